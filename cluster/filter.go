package cluster

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net/netip"
	"sync/atomic"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// The messages of memberlist's protocol, version 2; the numbers are memberlist's and append-only.
const (
	msgPing         = 0
	msgIndirectPing = 1
	msgAck          = 2
	msgSuspect      = 3
	msgAlive        = 4
	msgDead         = 5
	msgPushPull     = 6
	msgCompound     = 7
	msgEncrypted    = 10
	msgNack         = 11
	msgChecked      = 12 // behind a CRC
	msgError        = 13
)

// Incarnations are 32 bits; a member refutes an accusation with the next one, and after the last with zero, which nobody
// accepts: one accusation near the end would remove it for good (memberlist issue 358). Real ones count restarts, flaps and changes of
// metadata. So accusations, and anything about ourselves, must lie below maxAccused, and a node may go on beyond it when
// it refutes one that just does: others hear it up to maxAlive.
const (
	maxAccused = 1 << 31
	maxAlive   = maxAccused + 1<<30
)

// maxState bounds an exchange of states; [MaxMembers] take less than 1 MiB.
const (
	maxState  = 4 << 20
	maxStates = 4 * MaxMembers
)

// What arrives in a stream and is not taken.
var (
	errSealed    = errors.New("cluster: stream is not sealed with a key of this ring")
	errForbidden = errors.New("cluster: stream carries what has no place in gossip")
	errTooLarge  = errors.New("cluster: stream is larger than any state")
)

// accusation is memberlist's suspect and dead; alive and state are its messages of these names. The fields' names are the format.
type accusation struct {
	Incarnation uint32
	Node        string
	From        string
}

type alive struct {
	Incarnation uint32
	Node        string
	Addr        []byte
	Port        uint16
	Meta        []byte
	Vsn         []uint8
}

type stateHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

type state struct {
	Name        string
	Addr        []byte
	Port        uint16
	Meta        []byte
	Incarnation uint32
	State       int
	Vsn         []uint8
}

// memberlist's states of a node.
const (
	stateAlive = iota
	stateSuspect
	stateDead
	stateLeft
)

// refusals counts what did not pass, by reason.
type refusals struct {
	key         atomic.Uint64 // not sealed with a key of the ring, or label of another cluster
	kind        atomic.Uint64 // no business of membership, or malformed
	incarnation atomic.Uint64
	streams     atomic.Uint64 // too many at once
}

// filter lets membership pass and nothing else. It decodes with memberlist's decoder, so that both see the same.
type filter struct {
	self    string
	own     bool // what passes is said by this node: its incarnations are what others drove it to, and must be heard
	seen    sightings
	refused *refusals
}

// sightings learns what passes about members; memberlist tells its delegates neither of suspicion nor why a member has gone.
type sightings interface {
	sawAlive(name string, incarnation uint32)
	sawSuspect(name string, incarnation uint32)
	sawLeft(name string, incarnation uint32)
}

// packet returns what may pass of a plain packet; nil if nothing may.
func (f *filter) packet(b []byte) []byte {
	if len(b) >= 5 && b[0] == msgChecked {
		if crc32.ChecksumIEEE(b[5:]) != binary.BigEndian.Uint32(b[1:]) {
			f.refused.kind.Add(1)
			return nil
		}
		b = b[5:]
	}
	if len(b) == 0 {
		f.refused.kind.Add(1)
		return nil
	}
	if b[0] != msgCompound {
		if !f.message(b) {
			return nil
		}
		return b
	}
	parts, ok := split(b[1:])
	if !ok {
		f.refused.kind.Add(1)
		return nil
	}
	var pass [][]byte
	for _, part := range parts {
		if f.message(part) {
			pass = append(pass, part)
		}
	}
	switch len(pass) {
	case 0:
		return nil
	case len(parts):
		return b
	}
	return compound(pass)
}

// split takes a compound message apart: number of parts, their lengths, the parts.
func split(b []byte) ([][]byte, bool) {
	if len(b) < 1 || len(b) < 1+2*int(b[0]) {
		return nil, false
	}
	n := int(b[0])
	lengths, rest := b[1:], b[1+2*n:]
	parts := make([][]byte, 0, n)
	for i := range n {
		length := int(binary.BigEndian.Uint16(lengths[2*i:]))
		if length > len(rest) {
			return nil, false
		}
		parts, rest = append(parts, rest[:length]), rest[length:]
	}
	return parts, true
}

// compound is the inverse of split, for at most 255 parts.
func compound(parts [][]byte) []byte {
	b := []byte{msgCompound, byte(len(parts))}
	for _, part := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
	}
	return append(b, bytes.Join(parts, nil)...)
}

// message says whether one message of a packet may pass.
func (f *filter) message(b []byte) bool {
	if len(b) == 0 {
		f.refused.kind.Add(1)
		return false
	}
	kind, body := b[0], b[1:]
	switch kind {
	case msgPing, msgIndirectPing, msgAck, msgNack:
		return true
	case msgSuspect, msgDead:
		var a accusation
		if decode(body, &a) != nil {
			break
		}
		return f.accused(a.Node, a.Incarnation, kind == msgDead && a.Node == a.From, kind == msgSuspect)
	case msgAlive:
		var a alive
		if decode(body, &a) != nil || !speaks(a.Vsn) {
			break
		}
		return f.alive(a.Node, a.Incarnation)
	}
	f.refused.kind.Add(1)
	return false
}

func (f *filter) accused(name string, incarnation uint32, left, suspect bool) bool {
	if !f.own && incarnation >= maxAccused {
		f.refused.incarnation.Add(1)
		return false
	}
	switch {
	case left:
		f.seen.sawLeft(name, incarnation)
	case suspect:
		f.seen.sawSuspect(name, incarnation)
	}
	return true
}

func (f *filter) alive(name string, incarnation uint32) bool {
	if !f.own && (incarnation >= maxAlive || name == f.self && incarnation >= maxAccused) {
		f.refused.incarnation.Add(1)
		return false
	}
	f.seen.sawAlive(name, incarnation)
	return true
}

// speaks says whether a node speaks version 2 of the protocol and nothing of its own: one entry that does not would make
// memberlist refuse every exchange that mentions it.
func speaks(vsn []uint8) bool {
	return len(vsn) >= 6 && vsn[0] > 0 && vsn[0] <= 2 && vsn[1] >= 2 && vsn[2] == 2 && vsn[3] == 0 && vsn[4] == 0 && vsn[5] == 0
}

// handle reads and writes messages; all may use it at once. A list grows as it is read, whatever length it announces: the library would take a quarter of a megabyte
// for seven bytes.
var handle = func() *codec.MsgpackHandle {
	h := new(codec.MsgpackHandle)
	h.MaxInitLen = 64
	return h
}()

func decode(b []byte, into any) error {
	return codec.NewDecoderBytes(b, handle).Decode(into)
}

// stream reads the one plain message of a stream and returns what may pass.
func (f *filter) stream(r io.Reader) ([]byte, error) {
	limited := &io.LimitedReader{R: r, N: maxState}
	clean, err := f.readMessage(bufio.NewReader(limited))
	switch {
	case err == nil || errors.Is(err, io.EOF) && limited.N == maxState:
		return clean, err // io.EOF: the other side has closed without a word
	case limited.N <= 0:
		err = errTooLarge
	}
	f.refused.kind.Add(1)
	return nil, err
}

func (f *filter) readMessage(r *bufio.Reader) ([]byte, error) {
	kind, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	switch kind {
	case msgPushPull:
		return f.states(r)
	case msgPing, msgAck, msgError:
		b, err := value(r) // memberlist takes the fields
		if err != nil {
			return nil, err
		}
		var message struct{ SeqNo uint32 }
		return append([]byte{kind}, b...), decode(b, &message)
	}
	return nil, errForbidden
}

// value reads one value of MessagePack as it is (https://github.com/msgpack/msgpack/blob/master/spec.md). The decoder of the library takes memory for what a length
// announces, up to 4 GiB, before it reads from a stream; this takes memory for what comes. The reader bounds that.
func value(r *bufio.Reader) ([]byte, error) {
	var b bytes.Buffer
	for values := int64(1); values > 0; values-- {
		head, err := r.ReadByte()
		if err != nil {
			return nil, err
		}
		b.WriteByte(head)
		length := func(size int64) (n int64) { // what the next bytes say
			if _, err = io.CopyN(&b, r, size); err != nil {
				return 0
			}
			for _, c := range b.Bytes()[int64(b.Len())-size:] {
				n = n<<8 | int64(c)
			}
			return n
		}
		var content int64
		switch {
		case head <= 0x7f || head >= 0xe0 || head == 0xc0 || head == 0xc2 || head == 0xc3: // small integers, nil, booleans
		case head <= 0x8f:
			values += 2 * int64(head&0x0f)
		case head <= 0x9f:
			values += int64(head & 0x0f)
		case head <= 0xbf:
			content = int64(head & 0x1f)
		case head == 0xc1:
			return nil, errForbidden
		case head <= 0xc6: // bytes
			content = length(1 << (head - 0xc4))
		case head <= 0xc9: // an extension has a type too
			content = length(1<<(head-0xc7)) + 1
		case head <= 0xcb:
			content = 4 << (head - 0xca)
		case head <= 0xcf:
			content = 1 << (head - 0xcc)
		case head <= 0xd3:
			content = 1 << (head - 0xd0)
		case head <= 0xd8:
			content = 1<<(head-0xd4) + 1
		case head <= 0xdb:
			content = length(1 << (head - 0xd9))
		case head <= 0xdd:
			values += length(2 << (head - 0xdc))
		default:
			values += 2 * length(2<<(head-0xde))
		}
		if err == nil {
			_, err = io.CopyN(&b, r, content)
		}
		if err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// states reads an exchange of states and writes it again without the entries that may not pass.
func (f *filter) states(r *bufio.Reader) ([]byte, error) {
	var header stateHeader
	if err := next(r, &header); err != nil {
		return nil, err
	}
	if header.UserStateLen != 0 || header.Nodes < 0 || header.Nodes > maxStates {
		return nil, errForbidden
	}
	var pass []state
	for range header.Nodes {
		var s state
		if err := next(r, &s); err != nil {
			return nil, err
		}
		if f.state(&s) {
			pass = append(pass, s)
		}
	}
	header.Nodes = len(pass)
	clean := bytes.NewBuffer([]byte{msgPushPull})
	enc := codec.NewEncoder(clean, handle)
	err := enc.Encode(&header)
	for i := range pass {
		err = errors.Join(err, enc.Encode(&pass[i]))
	}
	return clean.Bytes(), err
}

// next decodes the next value of a stream.
func next(r *bufio.Reader, into any) error {
	b, err := value(r)
	if err != nil {
		return err
	}
	return decode(b, into)
}

func (f *filter) state(s *state) bool {
	if !speaks(s.Vsn) {
		f.refused.kind.Add(1)
		return false
	}
	switch s.State {
	case stateAlive:
		return f.alive(s.Name, s.Incarnation)
	case stateSuspect, stateDead:
		return f.accused(s.Name, s.Incarnation, false, true) // memberlist takes another's dead for a suspect
	case stateLeft:
		return f.accused(s.Name, s.Incarnation, true, false)
	}
	f.refused.kind.Add(1)
	return false
}

// addrPort is the address that a node announces; false if nobody could be reached there.
func addrPort(ip []byte, port uint16) (netip.AddrPort, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if !ok || port == 0 || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr, port), true
}
