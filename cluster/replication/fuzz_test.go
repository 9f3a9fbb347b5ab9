package replication

import (
	"testing"
	"time"

	"github.com/revokd/revokd/internal/alloctest"
)

// seeds are messages of each kind.
func messages() [][]byte {
	p := newPair(new(testing.T), nil)
	p.write(0, testRecord(1, 1), testRecord(2, 1))
	p.exchange(30 * time.Millisecond)
	id := uint64(p.r[1].own[Urgent].ID)
	one := func(t frameType, fn func(w *writer)) []byte {
		return frames(func(w *writer) { w.frame(t); fn(w); w.end() })
	}
	r := testRecord(9, 9)
	return [][]byte{
		frames(func(w *writer) {
			w.origin(&origin{Origin: Origin{Index: 1, ID: 99, Node: "b"}})
			w.frame(frameVector)
			w.uint(1)
			w.uint(1)
			w.uint(5)
			w.uint(4)
			w.end()
			w.frame(frameRecords)
			w.uint(1)
			w.uint(1)
			w.records(r[:])
			w.end()
		}),
		one(frameDefine, func(w *writer) { w.uint(7) }),
		one(framePull, func(w *writer) { w.uint(1); w.uint(1) }),
		one(frameBelow, func(w *writer) { w.fixed(id); w.uint(3) }),
		one(frameScan, func(w *writer) { w.uint(1); w.key(Key{}); w.key(lastKey) }),
		one(frameScanBegin, func(w *writer) { w.uint(1); w.flag(true); w.uint(0) }),
		one(frameScanned, func(w *writer) { w.uint(1); w.records(r[:]); w.fixed(1) }),
		one(frameScanEnd, func(w *writer) { w.uint(1) }),
		one(frameProbe, func(w *writer) { w.uint(1) }),
		one(frameAnswer, func(w *writer) {
			w.uint(1)
			w.uint(2)
			w.uint(3)
			w.uint(1)
			w.uint(4)
			w.uint(5)
		}),
		one(frameControl, func(w *writer) { w.uint(1) }),
		one(frameAudit, func(w *writer) { w.uint(1); w.uint(2); w.uint(1); w.fixed(id); w.uint(1) }),
		one(frameSums, func(w *writer) { w.uint(1); w.uint(0); w.records(make([]byte, 256*8)) }),
		one(frameLeaf, func(w *writer) { w.uint(1); w.uint(0); w.flag(true); w.records(r[:]); w.fixed(1) }),
		one(frameAuditEnd, func(w *writer) { w.uint(1) }),
		one(frameWindow, func(w *writer) { w.uint(1) }),
		one(frameVoters, func(w *writer) { w.fixed(1); w.flag(true); w.uint(1); w.uint(1); w.string("a") }),
		frames(func(w *writer) { w.hello(hello{1, 0, "b", Incarnation{}, 1, false, true}) }),
	}
}

// FuzzReceived: whatever a peer sends, nothing panics, and N bytes cost at most 4 N + 64 KiB of memory, and there are 64 KiB more for what the process allocates
// beside a step that cannot be repeated. The sums of an audit are one allocation of a replica's life, and a session has a little of its own: both are made before.
func FuzzReceived(f *testing.F) {
	for _, m := range messages() {
		f.Add(m, false)
		f.Add(m, true)
	}
	f.Fuzz(func(t *testing.T, message []byte, client bool) {
		if len(message) > maxMessage {
			return
		}
		p := newPair(t, func(side int, c *Config) { c.Client, c.AuditEvery = client && side == 1, time.Hour })
		p.write(0, testRecord(1, 1), testRecord(2, 2))
		p.exchange(20 * time.Millisecond)
		if !client {
			p.step(0, Received{1, frames(func(w *writer) {
				w.frame(frameAudit)
				w.uint(1)
				w.uint(2)
				w.uint(0)
				w.end()
			})})
		}
		n := alloctest.Bytes(func() { p.r[0].Step(p.now, Received{1, message}) })
		if limit := uint64(4*len(message) + 128<<10); n > limit {
			t.Errorf("%d bytes allocate %d, limit %d", len(message), n, limit)
		}
		// It goes on, and so does its other end.
		for range 3 {
			p.now.Mono += time.Second
			p.r[0].Step(p.now, Tick{})
			if b := p.r[0].Fill(p.now, 1, nil); len(b) > MaxMessage {
				t.Fatalf("a message of %d bytes", len(b))
			}
		}
		for _, v := range p.r[0].Vector() {
			if v.Index == p.own[0] && v.Number > 2 {
				t.Errorf("it has written %d records", v.Number)
			}
		}
	})
}

// FuzzFrames: a message is taken apart to its end or to an error, for no more memory than it has itself, and what was written is read back.
func FuzzFrames(f *testing.F) {
	for _, m := range messages() {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var in reader
		var again writer
		alloctest.AtMost(t, 8*len(message)+64<<10, func() { // append takes five times what it ends with
			in, again = reader{b: message}, writer{}
			for total := 0; ; {
				typ, content, ok := in.next()
				if !ok {
					break
				}
				if total += 2 + len(content.b); total > len(message) {
					t.Fatalf("frames of %d bytes in %d", total, len(message))
				}
				again.frame(typ)
				again.records(content.b)
				again.end()
			}
		})
		if in.err == nil && len(in.b) != 0 {
			t.Fatal("bytes are left over")
		}
		back, second := reader{b: again.b}, reader{b: message}
		for {
			t1, c1, ok1 := back.next()
			t2, c2, ok2 := second.next()
			if !ok1 || !ok2 {
				break
			}
			if t1 != t2 || string(c1.b) != string(c2.b) {
				t.Fatal("read back otherwise")
			}
		}
	})
}

// A message full of one thing costs no more than its size allows.
func TestAllocationOfRepeatedFrames(t *testing.T) {
	for i, m := range messages() {
		if frameType(m[0]) == frameHello {
			continue
		}
		p := newPair(t, func(_ int, c *Config) { c.AuditEvery = time.Hour })
		p.write(0, testRecord(1, 1))
		p.exchange(20 * time.Millisecond)
		p.step(0, Received{1, frames(func(w *writer) {
			w.frame(frameAudit)
			w.uint(1)
			w.uint(2)
			w.uint(0)
			w.end()
		})})
		var b []byte
		for len(b)+len(m) < 256<<10 {
			b = append(b, m...)
		}
		began := time.Now()
		n := alloctest.Bytes(func() { p.r[0].Step(p.now, Received{1, b}) })
		t.Logf("frame %d: %d bytes allocate %d, %v", frameType(m[0]), len(b), n, time.Since(began))
		if limit := uint64(4*len(b) + 64<<10); n > limit {
			t.Errorf("message %d (frame %d): %d bytes allocate %d, limit %d", i, frameType(m[0]), len(b), n, limit)
		}
	}
}
