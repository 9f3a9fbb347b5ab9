package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// maxStreams is how many inbound streams are served at once; the next is closed, and its node tries again in its next round.
// memberlist's own limit of 128 counts only those that have said what they want.
const maxStreams = 96

var errClosed = errors.New("cluster: transport is closed")

// wire is the transport that memberlist sees: it seals and opens what the transport below carries, in memberlist's own
// format (a node of stock memberlist with key and label understands it), and lets only membership pass. It is done here because
// inside memberlist nothing stands between opening a message and believing it.
type wire struct {
	memberlist.Transport
	label  string
	ring   *ring
	filter filter // of what comes in
	own    filter // of what goes out
	limit  int    // of inbound streams

	packets chan *memberlist.Packet
	streams chan net.Conn
	closing chan struct{} // closed when nothing more is handed to memberlist
	stop    chan struct{} // closed when nothing comes from below any more
	once    sync.Once
	wg      sync.WaitGroup

	mu      sync.Mutex
	closed  bool             // no stream is opened any more
	conns   map[*stream]bool // open ones; true: inbound
	inbound int

	packetsIn, packetsOut, bytesIn, bytesOut atomic.Uint64
}

var _ memberlist.NodeAwareTransport = (*wire)(nil)

func newWire(below memberlist.Transport, cfg *Config, ring *ring, seen sightings, refused *refusals) *wire {
	w := &wire{
		Transport: below, label: cfg.Label, ring: ring, limit: cfg.maxStreams,
		filter:  filter{self: cfg.Name, seen: seen, refused: refused},
		own:     filter{self: cfg.Name, own: true, seen: seen, refused: refused},
		packets: make(chan *memberlist.Packet, 64), streams: make(chan net.Conn), closing: make(chan struct{}), stop: make(chan struct{}), conns: map[*stream]bool{},
	}
	w.wg.Add(2)
	go w.takePackets()
	go w.takeStreams()
	return w
}

// overhead is by how much a packet grows.
func (w *wire) overhead() int {
	n := 0
	if w.label != "" {
		n += 2 + len(w.label)
	}
	return n + sealedOverhead
}

func (w *wire) PacketCh() <-chan *memberlist.Packet { return w.packets }
func (w *wire) StreamCh() <-chan net.Conn           { return w.streams }

// takePackets goes on until the transport below has ended, which may wait for somebody to take its packets.
func (w *wire) takePackets() {
	defer w.wg.Done()
	for {
		select {
		case p := <-w.Transport.PacketCh():
			w.packetsIn.Add(1)
			w.bytesIn.Add(uint64(len(p.Buf)))
			plain := w.openPacket(p.Buf)
			if plain == nil {
				continue
			}
			select {
			case w.packets <- &memberlist.Packet{Buf: plain, From: p.From, Timestamp: p.Timestamp}:
			case <-w.closing: // nobody may be there to take it
			}
		case <-w.stop:
			return
		}
	}
}

func (w *wire) openPacket(b []byte) []byte {
	b, label, err := memberlist.RemoveLabelHeaderFromPacket(b)
	if err != nil || label != w.label {
		w.filter.refused.key.Add(1)
		return nil
	}
	if len(w.ring.all()) > 0 {
		if b = w.ring.open(b, []byte(label)); b == nil {
			w.filter.refused.key.Add(1)
			return nil
		}
	}
	return w.filter.packet(b)
}

// WriteToAddress sends a packet. What memberlist says on its own behalf, such as its suspicions, is seen here.
func (w *wire) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if b = w.own.packet(b); b == nil {
		return time.Time{}, errForbidden
	}
	if len(w.ring.all()) > 0 {
		b = w.ring.seal(nil, b, []byte(w.label))
	}
	b, err := memberlist.AddLabelHeaderToPacket(b, w.label)
	if err != nil {
		return time.Time{}, err
	}
	w.packetsOut.Add(1)
	w.bytesOut.Add(uint64(len(b)))
	if aware, ok := w.Transport.(memberlist.NodeAwareTransport); ok {
		return aware.WriteToAddress(b, to)
	}
	return w.Transport.WriteTo(b, to.Addr)
}

func (w *wire) WriteTo(b []byte, to string) (time.Time, error) {
	return w.WriteToAddress(b, memberlist.Address{Addr: to})
}

func (w *wire) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	var conn net.Conn
	var err error
	if aware, ok := w.Transport.(memberlist.NodeAwareTransport); ok {
		conn, err = aware.DialAddressTimeout(to, timeout)
	} else {
		conn, err = w.Transport.DialTimeout(to.Addr, timeout)
	}
	if err != nil {
		return nil, err
	}
	s := &stream{Conn: conn, wire: w, dialed: true}
	if !w.keep(s, false) {
		return nil, errors.Join(errClosed, conn.Close())
	}
	return s, nil
}

func (w *wire) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	return w.DialAddressTimeout(memberlist.Address{Addr: to}, timeout)
}

func (w *wire) takeStreams() {
	defer w.wg.Done()
	for {
		select {
		case conn := <-w.Transport.StreamCh():
			s := &stream{Conn: conn, wire: w}
			if !w.keep(s, true) {
				w.filter.refused.streams.Add(1)
				conn.Close()
				continue
			}
			select {
			case w.streams <- s:
			case <-w.closing:
				s.Close()
			}
		case <-w.stop:
			return
		}
	}
}

// keep notes an open stream; false if there are too many or the transport is closed.
func (w *wire) keep(s *stream, inbound bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || inbound && w.inbound >= w.limit {
		return false
	}
	if inbound {
		w.inbound++
	}
	w.conns[s] = inbound
	return true
}

func (w *wire) drop(s *stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns[s] {
		w.inbound--
	}
	delete(w.conns, s)
}

// Shutdown closes all streams and returns when nothing of the transport runs any more.
func (w *wire) Shutdown() error {
	var err error
	w.once.Do(func() {
		w.mu.Lock()
		w.closed = true
		conns := make([]*stream, 0, len(w.conns))
		for s := range w.conns {
			conns = append(conns, s)
		}
		w.mu.Unlock()
		for _, s := range conns {
			s.Close()
		}
		close(w.closing)
		err = w.Transport.Shutdown()
		close(w.stop)
		w.wg.Wait()
	})
	return err
}

// stream carries one message in each direction. memberlist uses it from one goroutine.
type stream struct {
	net.Conn
	wire   *wire
	dialed bool // the side that dialed puts the label in front, once

	wrote  bool
	plain  *bytes.Reader // the message of the other side, when it has been read
	failed error
}

// Write seals one message: memberlist writes each with one call.
func (s *stream) Write(plain []byte) (int, error) {
	var b []byte
	if s.dialed && !s.wrote && s.wire.label != "" {
		b = append(b, 244, byte(len(s.wire.label)))
		b = append(b, s.wire.label...)
	}
	s.wrote = true
	if len(s.wire.ring.all()) == 0 {
		b = append(b, plain...)
	} else {
		header := binary.BigEndian.AppendUint32([]byte{msgEncrypted}, uint32(len(plain)+sealedOverhead))
		b = append(b, header...)
		b = s.wire.ring.seal(b, plain, append(header, s.wire.label...))
	}
	s.wire.bytesOut.Add(uint64(len(b)))
	if _, err := s.Conn.Write(b); err != nil {
		return 0, err
	}
	return len(plain), nil
}

// Read reads the whole message before it gives any of it away.
func (s *stream) Read(p []byte) (int, error) {
	if s.plain == nil && s.failed == nil {
		b, err := s.message()
		s.plain, s.failed = bytes.NewReader(b), err
	}
	if s.failed != nil {
		return 0, s.failed
	}
	return s.plain.Read(p)
}

func (s *stream) message() ([]byte, error) {
	if !s.dialed && s.wire.label != "" {
		header := make([]byte, 2+len(s.wire.label))
		if n, err := io.ReadFull(s.Conn, header); err != nil {
			if n == 0 {
				return nil, io.EOF
			}
			s.wire.filter.refused.key.Add(1)
			return nil, errSealed
		}
		if header[0] != 244 || int(header[1]) != len(s.wire.label) || string(header[2:]) != s.wire.label {
			s.wire.filter.refused.key.Add(1)
			return nil, errSealed
		}
	}
	if len(s.wire.ring.all()) == 0 {
		return s.wire.filter.stream(s.Conn)
	}
	header := make([]byte, 5)
	if n, err := io.ReadFull(s.Conn, header); err != nil {
		if n == 0 {
			return nil, io.EOF
		}
		s.wire.filter.refused.key.Add(1)
		return nil, errSealed
	}
	size := binary.BigEndian.Uint32(header[1:])
	if header[0] != msgEncrypted || size > maxState {
		s.wire.filter.refused.key.Add(1)
		return nil, errSealed
	}
	// Grows with what arrives, not with what is announced.
	var sealed bytes.Buffer
	if _, err := io.CopyN(&sealed, s.Conn, int64(size)); err != nil {
		return nil, err
	}
	s.wire.bytesIn.Add(uint64(len(header)) + uint64(size))
	plain := s.wire.ring.open(sealed.Bytes(), append(header, s.wire.label...))
	if plain == nil {
		s.wire.filter.refused.key.Add(1)
		return nil, errSealed
	}
	return s.wire.filter.stream(bytes.NewReader(plain))
}

func (s *stream) Close() error {
	s.wire.drop(s)
	return s.Conn.Close()
}
