package replication

import (
	"testing"
	"time"
)

// refs are what a peer has been told of origins, and what a message names without that.
type refs map[uint64]bool

func (s refs) unknown(t *testing.T, message []byte) (list []uint64) {
	in := reader{b: message}
	name := func(ref uint64) {
		if !s[ref] {
			list = append(list, ref)
		}
	}
	for {
		kind, f, ok := in.next()
		if !ok {
			break
		}
		switch kind {
		case frameOrigin:
			s[f.uint()] = true
		case frameVector:
			for range f.count(3) {
				name(f.uint())
				f.uint()
				f.uint()
			}
		case framePull, frameRecords:
			name(f.uint())
		case frameScanBegin:
			f.uint()
			f.flag()
			for range f.count(2) {
				name(f.uint())
				f.uint()
			}
		}
		if f.err != nil {
			t.Fatal(f.err)
		}
	}
	return list
}

// What a message says of an origin stands behind what the origin is, also when something that goes behind the vector names it too: the vector would not be heard, and not
// come again. Here all begins with one exchange: the peer's vector, with what has to be asked for.
func TestVectorsNameWhatIsKnown(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(w *writer) // what the peer says behind its vector
	}{
		{"a pull", func(*writer) {}},
		{"a scan", func(w *writer) {
			w.frame(frameProbe)
			w.uint(1)
			w.end()
			w.frame(frameScan)
			w.uint(2)
			w.key(Key{})
			w.key(lastKey)
			w.end()
		}},
		{"a pull from below the log", func(w *writer) {
			w.frame(framePull)
			w.uint(7)
			w.uint(1)
			w.end()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := []Origin{
				{Index: 1, ID: MakeOrigin(1<<40, Bulk), Node: "c", Sealed: 24},
				{Index: 2, ID: MakeOrigin(2<<40, Bulk), Node: "c", Sealed: 24},
			}
			r, err := New(testConfig("a"), newTable(), list, []VectorEntry{{1, 23}, {2, 24}})
			if err != nil {
				t.Fatal(err)
			}
			now := Now{Mono: time.Hour, Wall: 1_800_000_000_000, Guarded: 1_800_000_000_000}
			r.Step(now, Connected{Peer: 1, Name: "b"})
			r.Step(now, Received{1, frames(func(w *writer) {
				w.hello(hello{1, 0, "b", Incarnation{9}, 1, false, true})
				for i, n := range []uint64{24, 7} {
					w.names(uint64(6+i), list[i].ID, "c", 24, 0, false)
					w.claims(uint64(6+i), n)
				}
				c.then(w)
			})})
			told, claimed := refs{}, false
			for range 10 {
				b := r.Fill(now, 1, nil)
				if unknown := told.unknown(t, b); len(unknown) > 0 {
					t.Fatalf("it names %v before it has said what they are", unknown)
				}
				claimed = claimed || len(told) == 2
			}
			if !claimed {
				t.Error("it has told nothing")
			}
		})
	}
}
