package cluster

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// memNet is a network in memory, for virtual time: a goroutine that waits for a socket would stop the clock. (memberlist's
// MockTransport blocks while sending and does nothing on shutdown.)
type memNet struct {
	delay time.Duration // up to twice as much

	mu    sync.Mutex
	nodes map[string]*memTransport
	cut   func(from, to string) bool

	tap func(to string, packet []byte) // sees every packet that is sent

	lost, unplanned atomic.Uint64
	largest         atomic.Int64 // packet
}

func newMemNet(delay time.Duration) *memNet {
	return &memNet{delay: delay, nodes: map[string]*memTransport{}, cut: func(string, string) bool { return false }}
}

func (n *memNet) setCut(cut func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
}

// reach returns the transport at to; nil if there is none or the way is cut.
func (n *memNet) reach(from, to string) *memTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut(from, to) {
		n.lost.Add(1)
		return nil
	}
	t := n.nodes[to]
	if t == nil || t.down.Load() {
		return nil
	}
	return t
}

func (n *memNet) listen(addr string) *memTransport {
	t := &memTransport{net: n, addr: addr, packets: make(chan *memberlist.Packet, 512), streams: make(chan net.Conn, 256)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[addr] = t
	return t
}

type memTransport struct {
	net     *memNet
	addr    string
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    atomic.Bool
}

func (t *memTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a := netip.MustParseAddrPort(t.addr)
	return a.Addr().AsSlice(), int(a.Port()), nil
}

func (t *memTransport) latency() time.Duration { return t.net.delay + rand.N(t.net.delay) }

func (t *memTransport) WriteTo(b []byte, to string) (time.Time, error) {
	if t.down.Load() {
		return time.Now(), nil
	}
	t.net.mu.Lock()
	if t.net.tap != nil {
		t.net.tap(to, b)
	}
	t.net.mu.Unlock()
	if n := int64(len(b)); n > t.net.largest.Load() {
		t.net.largest.Store(n)
	}
	p := &memberlist.Packet{Buf: bytes.Clone(b), From: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(t.addr))}
	time.AfterFunc(t.latency(), func() {
		other := t.net.reach(t.addr, to)
		if other == nil {
			return
		}
		p.Timestamp = time.Now()
		select {
		case other.packets <- p:
		default:
			t.net.unplanned.Add(1)
		}
	})
	return time.Now(), nil
}

func (t *memTransport) DialTimeout(to string, timeout time.Duration) (net.Conn, error) {
	time.Sleep(t.latency()) // virtual: the way there
	other := t.net.reach(t.addr, to)
	if other == nil || t.down.Load() {
		time.Sleep(timeout) // virtual: nobody refuses, so it waits in vain
		return nil, errors.New("dial timed out")
	}
	here, there := net.Pipe()
	select {
	case other.streams <- lateConn{there, t}:
		return lateConn{here, t}, nil
	default:
		t.net.unplanned.Add(1)
		return nil, errors.New("refused")
	}
}

// lateConn delays what is written.
type lateConn struct {
	net.Conn
	of *memTransport
}

func (c lateConn) Write(b []byte) (int, error) {
	time.Sleep(c.of.latency()) // virtual: the way there
	return c.Conn.Write(b)
}

func (t *memTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *memTransport) StreamCh() <-chan net.Conn           { return t.streams }
func (t *memTransport) Shutdown() error                     { t.down.Store(true); return nil }

// bubbleClock follows the virtual time of a test.
type bubbleClock struct{ began time.Time }

func (bubbleClock) Now() time.Time        { return time.Now() }
func (c bubbleClock) Mono() time.Duration { return time.Since(c.began) }

// skipRace: Go 1.26 may crash on synctest under the race detector (go.dev/issue/76691, fixed in 1.27). The tests on real sockets run there.
func skipRace(t *testing.T) {
	t.Helper()
	if raceEnabled {
		t.Skip("testing/synctest under the race detector may crash in Go 1.26: go.dev/issue/76691")
	}
}

// fakeResolver knows one address, or none.
type fakeResolver struct {
	mu sync.Mutex
	ip string
}

func (r *fakeResolver) set(ip string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ip = ip
}

func (r *fakeResolver) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ip == "" {
		return nil, errors.New("no such host")
	}
	return []netip.Addr{netip.MustParseAddr(r.ip)}, nil
}

func (r *fakeResolver) LookupSRV(_ context.Context, _, _, name string) (string, []*net.SRV, error) {
	if name != "_gossip._udp.example" {
		return "", nil, errors.New("no such record")
	}
	return name, []*net.SRV{{Target: "peers.example.", Port: 7956}}, nil
}
