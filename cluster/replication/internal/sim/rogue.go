package sim

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// A rogue is a host with a certificate that everybody trusts, which does what a replica does, and sends what it likes beside. It is no voter: what one of those
// confirms falsely nobody can know. What must hold all the same: nothing is lost, removed or shortened, no view is younger than it is, and the others
// become level on what they have written. Of its own records they keep no more than one node may have.
type rogue struct {
	made     []replication.OriginID // origins of its own invention
	numbers  map[replication.OriginID]uint64
	messages [][]byte // that went over its sessions
}

const (
	rogueName    = "r1"
	rogueRecords = 300 // NodeRecords where there is one
	rogueRef     = 30_000
)

// addRogue adds one with a link to every node.
func (w *World) addRogue() {
	h := w.addHost(rogueName, uint64(len(w.hosts)+1), false)
	h.rogue = &rogue{numbers: make(map[replication.OriginID]uint64)}
	for _, n := range w.nodes {
		l := &link{w: w, ends: [2]*host{n, h}}
		w.links = append(w.links, l)
		n.links, h.links = append(n.links, l), append(h.links, l)
	}
	w.rogue = h
}

// misbehave sends something to somebody, again and again.
func (h *host) misbehave(run int) {
	h.later(h.w.between(2*time.Millisecond, 30*time.Millisecond), func() {
		if h.run != run {
			return
		}
		var open []*session
		for _, l := range h.links {
			if l.conn != nil && l.conn.ends[1].helped {
				open = append(open, l.conn.ends[1])
			}
		}
		if len(open) > 0 && !h.w.calm {
			s := open[h.w.rng.IntN(len(open))]
			message := h.evil(s)
			h.w.mark(7, uint64(len(message)))
			s.send(message)
		}
		h.misbehave(run)
	})
}

// talk reports whether two nodes have a session that works.
func (w *World) talk(a, b *host) bool {
	if w.isCut(a, b) || w.isCut(b, a) || a.paused > w.now || b.paused > w.now {
		return false
	}
	for _, l := range a.links {
		if l.conn != nil && (l.ends == [2]*host{a, b} || l.ends == [2]*host{b, a}) {
			return l.conn.ends[0].heard && l.conn.ends[1].heard
		}
	}
	return false
}

// frames builds messages as package replication does: see wire.go there.
type frames struct{ b []byte }

func (f *frames) add(t byte, content ...[]byte) {
	all := slices.Concat(content...)
	f.b = binary.AppendUvarint(append(f.b, t), uint64(len(all)))
	f.b = append(f.b, all...)
}

func num(values ...uint64) (b []byte) {
	for _, v := range values {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func fixed(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func (f *frames) origin(ref uint64, id replication.OriginID, sealed, expires uint64, node string, own byte) {
	f.add(2, num(ref), fixed(uint64(id)), num(sealed, expires, uint64(len(node))), []byte(node), []byte{own})
}

// evil returns one of many messages that no honest node sends.
func (h *host) evil(s *session) []byte {
	w, g, rng := h.w, h.rogue, h.w.rng
	f := &frames{}
	// Somebody's origin that is in use, and one of its own.
	var live replication.OriginID
	honest := ""
	for _, n := range w.nodes {
		// Who has no session with that node takes others' word for it: only an audit finds what is wrong then.
		if id := n.own[rng.IntN(2)].id; id != 0 && (n == s.other || w.talk(n, s.other)) {
			live, honest = id, n.name
		}
	}
	if len(g.made) == 0 || rng.IntN(20) == 0 {
		id := replication.MakeOrigin(rng.Uint64(), replication.Lane(rng.IntN(2)))
		g.made = append(g.made, id)
		w.ambiguous[id] = true
	}
	own := g.made[rng.IntN(len(g.made))]
	if live == 0 {
		live, honest = own, rogueName
	}
	number := uint64(len(w.content[live]))
	record := func() replication.Record {
		return makeRecord(rng.Uint64N(60), epoch+int64(rng.IntN(100)), uint32(epoch/1000)+3600)
	}
	run := func(n int, make func() replication.Record) (b []byte) {
		for range n {
			r := make()
			b = append(b, r[:]...)
		}
		return b
	}
	define := func() {
		for d := range uint64(3) {
			f.add(5, fixed(d+1))
		}
	}
	switch rng.IntN(14) {
	case 0: // it holds what its node has not written
		f.origin(rogueRef, live, 0, 0, honest, 0)
		n := number + 1 + rng.Uint64N(100)
		f.add(3, num(1, rogueRef, n, n))
	case 1: // unasked for, under somebody's name
		f.origin(rogueRef, live, 0, 0, honest, 1)
		define()
		f.add(4, num(rogueRef, number+1), run(3, record))
	case 2: // out of bounds
		f.origin(rogueRef, own, 0, 0, rogueName, 1)
		define()
		f.add(4, num(rogueRef, g.numbers[own]+1), run(1, func() replication.Record {
			r := record()
			switch rng.IntN(3) {
			case 0:
				binary.BigEndian.PutUint32(r[32:], 1<<32-1-90_000)
			case 1:
				binary.BigEndian.PutUint64(r[16:], uint64(epoch+int64(100*time.Hour/time.Millisecond)))
			case 2:
				r[36] = 0
			}
			return r
		}))
	case 3: // many of its own, with the same numbers and other content for each
		f.origin(rogueRef, own, 0, 0, rogueName, 1)
		define()
		first := g.numbers[own] + 1
		if rng.IntN(2) == 0 {
			first = 1
		}
		n := rng.IntN(300) + 1
		f.add(4, num(rogueRef, first), run(n, func() replication.Record {
			return makeRecord(1000+rng.Uint64N(100_000), epoch+int64(rng.IntN(100)), uint32(epoch/1000)+3600)
		}))
		g.numbers[own] = max(g.numbers[own], first+uint64(n)-1)
	case 4: // an origin that its node has not made
		id := replication.MakeOrigin(rng.Uint64(), replication.Urgent)
		w.ambiguous[id] = true
		f.origin(rogueRef, id, 0, 0, honest, byte(rng.IntN(2)))
		define()
		f.add(4, num(rogueRef, 1), run(1, record))
	case 5: // sealed, and expired long ago
		f.origin(rogueRef, live, 1+rng.Uint64N(number+1), 1, honest, byte(rng.IntN(2)))
	case 6: // nobody's log reaches back that far
		f.origin(rogueRef, live, 0, 0, honest, 0)
		f.add(7, fixed(uint64(live)), num(number+rng.Uint64N(50)))
	case 7: // floods
		for range 200 {
			switch rng.IntN(5) {
			case 0:
				f.add(6, num(1+rng.Uint64N(5), 1+rng.Uint64N(50)))
			case 1:
				f.add(12, num(rng.Uint64N(1000)))
			case 2:
				f.add(14, fixed(rng.Uint64()))
			case 3:
				f.add(15, num(rng.Uint64N(9), 0, 0))
			case 4:
				f.add(8, num(rng.Uint64N(9)), make([]byte, 32))
			}
		}
	case 8: // sizes: the session ends
		switch rng.IntN(3) {
		case 0:
			f.b = append(f.b, 4, 0xff, 0xff, 0xff, 0x7f, 1)
		case 1:
			f.add(3, num(1<<40))
		case 2:
			f.add(20, fixed(1), []byte{1}, num(1, 1<<30))
		}
	case 9: // it votes, and its views of everybody are young
		hash := w.nodes[0].voters.Hash
		f.add(20, fixed(hash), []byte{1}, num(1, 0))
		f.add(3, num(0))
		for id := range uint64(100) {
			ages := num(id, uint64(epoch), uint64(epoch), uint64(len(w.nodes)))
			for range w.nodes {
				ages = append(ages, 1)
			}
			f.add(13, ages)
		}
	case 10:
		for range 20 {
			f.add(5, fixed(rng.Uint64()))
		}
	case 11: // what was sent once
		if len(g.messages) > 0 {
			return g.messages[rng.IntN(len(g.messages))]
		}
	case 12: // a scan that it was not asked for, or was: nothing in it, and all is there
		f.origin(rogueRef, live, 0, 0, honest, 0)
		f.origin(rogueRef+1, own, 0, 0, rogueName, 0)
		for id := range uint64(60) {
			f.add(9, num(id), []byte{1}, num(2, rogueRef, number+1+rng.Uint64N(9), rogueRef+1, 5))
			f.add(11, num(id))
		}
	case 13: // leaves of an audit
		for id := range uint64(30) {
			r := record()
			f.add(17, num(id, uint64(r[0])<<8|uint64(r[1])), []byte{1, 1}, r[:], fixed(uint64(replication.MakeDot(rogueRef, 1))))
		}
	}
	return f.b
}

// overheard keeps a few messages of the rogue's sessions.
func (h *host) overheard(message []byte) {
	if g := h.rogue; g != nil && len(message) < 4096 {
		if len(g.messages) < 50 {
			g.messages = append(g.messages, slices.Clone(message))
		} else {
			g.messages[h.rng.IntN(50)] = slices.Clone(message)
		}
	}
}
