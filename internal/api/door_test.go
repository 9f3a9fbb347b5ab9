package api

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// visitor is a connection of which only the address matters.
type visitor struct {
	net.Conn
	from   string
	closed int
}

func (v *visitor) RemoteAddr() net.Addr { return address(v.from) }
func (v *visitor) Close() error         { v.closed++; return nil }

type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

// come lets a connection in from an address, or returns nil.
func come(d *door, from string) (*guest, *visitor) {
	v := &visitor{from: from}
	return d.admit(v), v
}

func newTestDoor(connections, strangers int) (*door, *metrics) {
	m := new(metrics)
	return newDoor(nil, Limits{Connections: connections, Strangers: strangers}, m), m
}

// Who comes when all places of strangers are taken gets one: of his own network if that has more than its share, else the oldest.
func TestDoor(t *testing.T) {
	d, m := newTestDoor(100, 20) // a share is 2
	var few, many []*visitor
	for i := range 2 {
		_, v := come(d, fmt.Sprintf("[2001:db8::%d]:1", i+1))
		few = append(few, v)
	}
	for i := range 18 {
		_, v := come(d, fmt.Sprintf("192.0.2.1:%d", i+1))
		many = append(many, v)
	}
	for i := range 40 { // a flood
		if g, v := come(d, fmt.Sprintf("192.0.2.1:%d", i+100)); g == nil {
			t.Fatal("turned away")
		} else {
			many = append(many, v)
		}
	}
	for i, v := range many {
		if want := map[bool]int{true: 1}[i < 40]; v.closed != want {
			t.Errorf("%d of the flood: closed %d times, want %d", i, v.closed, want)
		}
	}
	if few[0].closed+few[1].closed != 0 {
		t.Error("who floods has driven out another network")
	}
	_, third := come(d, "[2001:db8::3]:1")
	if few[0].closed != 1 || few[1].closed != 0 || third.closed != 0 {
		t.Error("the oldest of all makes place for a network within its share")
	}
	if m.evicted.Load() != 41 || m.dropped.Load() != 0 || m.open.Load() != 20 {
		t.Errorf("evicted %d, dropped %d, open %d", m.evicted.Load(), m.dropped.Load(), m.open.Load())
	}
}

// Who is known stays. When only such are left nobody else comes in.
func TestDoorFull(t *testing.T) {
	d, m := newTestDoor(3, 2)
	var all []*visitor
	for i := range 3 {
		g, v := come(d, fmt.Sprintf("192.0.2.1:%d", i+1))
		known(d.context(context.Background(), g))
		all = append(all, v)
	}
	if g, v := come(d, "192.0.2.2:1"); g != nil || v.closed != 0 { // Accept closes it
		t.Error("one too many came in")
	}
	for i, v := range all {
		if v.closed != 0 {
			t.Errorf("%d was known and is closed", i)
		}
	}
	if m.dropped.Load() != 1 || m.evicted.Load() != 0 || m.open.Load() != 3 {
		t.Errorf("dropped %d, evicted %d, open %d", m.dropped.Load(), m.evicted.Load(), m.open.Load())
	}
	// At the limit of all connections a stranger makes place too.
	d, _ = newTestDoor(2, 2)
	g, v := come(d, "192.0.2.1:1")
	known(d.context(context.Background(), g))
	_, stranger := come(d, "192.0.2.2:1")
	if g, _ := come(d, "192.0.2.3:1"); g == nil || stranger.closed != 1 || v.closed != 0 {
		t.Error("the place of a stranger was not given away")
	}
}

// Whatever happens: no more than the limits, nobody who is known goes, each is counted once, and nothing is kept of who has gone.
func TestDoorHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		connections := rapid.IntRange(1, 12).Draw(t, "connections")
		d, m := newTestDoor(connections, rapid.IntRange(1, 12).Draw(t, "strangers"))
		here, isKnown := map[*guest]*visitor{}, map[*guest]bool{}
		var came []*guest
		drawn := func() *guest {
			came = slices.DeleteFunc(came, func(g *guest) bool { return here[g] == nil })
			if len(came) == 0 {
				return nil
			}
			return rapid.SampledFrom(came).Draw(t, "guest")
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				if g, v := come(d, fmt.Sprintf("192.0.2.%d:1", rapid.IntRange(1, 3).Draw(t, "from"))); g != nil {
					here[g] = v
					came = append(came, g)
				}
			case 2:
				if g := drawn(); g != nil {
					known(d.context(context.Background(), g))
					isKnown[g] = true
				}
			case 3:
				if g := drawn(); g != nil {
					_, _ = g.Close(), g.Close()
					delete(here, g)
				}
			}
			strangers := 0
			for g, v := range here {
				switch {
				case v.closed == 0 && !isKnown[g]:
					strangers++
				case v.closed > 0 && isKnown[g]:
					t.Fatal("one that was known is closed")
				case v.closed > 0:
					_ = g.Close() // as who serves it does
					delete(here, g)
				}
			}
			waiting := 0
			for _, l := range d.networks {
				if l.Len() == 0 {
					t.Fatal("a network without connections is kept")
				}
				waiting += l.Len()
			}
			if strangers > d.strangers || strangers != d.waiting.Len() || strangers != waiting || len(here) > connections ||
				len(here) != d.open || int64(d.open) != m.open.Load() {
				t.Fatalf("%d here, %d strangers; counted %d, %d, %d", len(here), strangers, d.open, d.waiting.Len(), waiting)
			}
		}
	})
}
