package api

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// door lets connections in. Those on which nobody has shown yet who he is, strangers, are few: a flood of them takes no memory and no place from who is
// known. A stranger too many is not turned away, because that would be who comes and not who lingers: another one goes, the oldest from the same network if that has
// more than its share, else the oldest of all. So each has some time to show who he is, and who floods evicts himself.
//
// Beyond Limits.Connections the next is closed, unless a stranger can go.
type door struct {
	net.Listener
	metrics   *metrics
	limit     int
	strangers int // most of them
	share     int // of a network

	mu       sync.Mutex
	open     int
	waiting  list.List // of strangers, the oldest first
	networks map[netip.Prefix]*list.List
}

func newDoor(ln net.Listener, l Limits, m *metrics) *door {
	return &door{Listener: ln, metrics: m, limit: l.Connections, strangers: min(l.Strangers, l.Connections), share: max(1, l.Strangers/10), networks: map[netip.Prefix]*list.List{}}
}

// Accept returns the next connection that may stay.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := d.admit(c); g != nil {
			return g, nil
		}
		_ = c.Close()
	}
}

// guest is a connection that has come through the door.
type guest struct {
	net.Conn
	door *door
	from netip.Prefix

	known atomic.Bool // so that the requests of who is known need no lock

	// Under door.mu:
	gone     bool
	all, own *list.Element // of door.waiting and of its network; nil: it is known
}

// admit makes place for a connection if it must, and returns nil if there is none.
func (d *door) admit(c net.Conn) *guest {
	g := &guest{Conn: c, door: d, from: network(c.RemoteAddr())}
	d.mu.Lock()
	var evicted *guest
	if d.open >= d.limit || d.waiting.Len() >= d.strangers {
		if evicted = d.victim(g.from); evicted == nil {
			d.mu.Unlock()
			d.metrics.dropped.Add(1)
			return nil
		}
		d.leave(evicted)
	}
	d.open++
	own := d.networks[g.from]
	if own == nil {
		own = list.New()
		d.networks[g.from] = own
	}
	g.all, g.own = d.waiting.PushBack(g), own.PushBack(g)
	d.metrics.open.Store(int64(d.open))
	d.mu.Unlock()
	if evicted != nil {
		d.metrics.evicted.Add(1)
		_ = evicted.Conn.Close() // who serves it sees that and closes it again
	}
	return g
}

// victim is who makes place for one from a network; mu is held.
func (d *door) victim(from netip.Prefix) *guest {
	crowd := d.networks[from]
	if crowd == nil || crowd.Len() <= d.share {
		crowd = &d.waiting
	}
	if oldest := crowd.Front(); oldest != nil {
		return oldest.Value.(*guest)
	}
	return nil
}

// leave counts a guest out, once; mu is held.
func (d *door) leave(g *guest) {
	if g.gone {
		return
	}
	g.gone = true
	d.open--
	d.metrics.open.Store(int64(d.open))
	d.know(g)
}

// know takes a guest off the strangers; mu is held.
func (d *door) know(g *guest) {
	if g.all == nil {
		return
	}
	d.waiting.Remove(g.all)
	own := d.networks[g.from]
	own.Remove(g.own)
	if own.Len() == 0 {
		delete(d.networks, g.from)
	}
	g.all, g.own = nil, nil
}

func (g *guest) Close() error {
	g.door.mu.Lock()
	g.door.leave(g)
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// network is what one sender may have all addresses of: a host in IPv4, a /64 in IPv6.
func network(a net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // not TCP, as in tests
	}
	ip := at.Addr().Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // both are in range
	return p
}

type guestKey struct{}

// context is for http.Server.ConnContext.
func (d *door) context(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, guestKey{}, c)
}

// known is called with the context of a request whose sender has shown who he is: his connection is no stranger's any more.
func known(ctx context.Context) {
	g, ok := ctx.Value(guestKey{}).(*guest)
	if !ok || g.known.Swap(true) {
		return
	}
	g.door.mu.Lock()
	defer g.door.mu.Unlock()
	g.door.know(g)
}
