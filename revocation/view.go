package revocation

import (
	"slices"
	"strings"
	"sync/atomic"
)

// view is an immutable picture of the shapes that have or had live records: what a check walks. Only the horizons
// in it move. A reader loads it once; a writer that needs another shape or class publishes the next one.
type view struct {
	groups  []group
	entries []entry // of all groups, side by side
	shapes  []*shape
	byID    map[ShapeID]*shape
	byIndex map[uint32]*shape

	ring      Ring
	retired   [2]bool // by slot: records of the key are refused, because it is about to go
	maxProbes uint8
}

// accepts reports whether records of a key may be merged.
func (v *view) accepts(number uint8) bool { return v.ring.has(number) && !v.retired[number&1] }

// group is a list of names under a key: everything that one PRF over their values serves.
type group struct {
	start    sip                 // the PRF behind the names
	from, to int32               // of its entries
	known    [maxShapeNames]int8 // the names' places in Claims.known
	n        int8                // of the names
	names    []claimName
}

// entry is a shape and class group that may have live records under a key.
type entry struct {
	horizon *atomic.Uint32 // latest deadline of a record, slack included: beyond it there is nothing to find
	tweak   Fingerprint
	shape   *shape
	class   Class
	slot    uint8 // of the key
}

// shape is a Shape in a table. Each view has its own copies; horizons are shared by all of them.
type shape struct {
	Shape
	id       ShapeID
	by       Definer // who brought it to life
	text     string
	index    uint32         // in items
	starts   [2]sip         // the PRF behind the names, by slot of the key
	horizon  *atomic.Uint32 // until when the shape must be known: of records that are here or announced, slack included
	classes  []classEntry   // what there are records of
	names    []claimName
	compared claimName
	inCutoff []bool   // of a keep: which names are those of the cutoff it belongs to
	keeps    []*shape // of a cutoff: the shapes of keeps made with it
}

type classEntry struct {
	class   Class // group
	slot    uint8 // of the key
	tweak   Fingerprint
	horizon *atomic.Uint32
}

// entry returns what there is of a class group under a key, nil if there never was a record of it.
func (s *shape) entry(class Class, slot uint8) *classEntry {
	for i := range s.classes {
		if s.classes[i].class == class && s.classes[i].slot == slot {
			return &s.classes[i]
		}
	}
	return nil
}

// otherLive returns what there is of a class group under the key that is not in a slot, nil if it has no live records.
func (s *shape) otherLive(class Class, slot uint8, now uint32) *classEntry {
	if e := s.entry(class, 1-slot); e != nil && e.horizon.Load() >= now {
		return e
	}
	return nil
}

// fingerprint returns that of a record about a token; false if there can be none.
func (s *shape) fingerprint(e *classEntry, c *Claims, elem int32) (Fingerprint, bool) {
	var room [maxShapeNames]*Value
	values := room[:len(s.names)]
	for i := range values {
		v := c.value(&s.names[i])
		if v.kind == KindArray && (!s.Keep || s.inCutoff[i]) {
			v = &c.elements(v)[elem]
		}
		if !v.scalar() {
			return Fingerprint{}, false // an exemption that cannot be judged is none
		}
		values[i] = v
	}
	return s.starts[e.slot].hash(values).xor(e.tweak), true
}

// raise makes s known and its records of a class looked for until a deadline. It reports false, and does
// nothing, if checks do not look for the class yet.
func (s *shape) raise(class Class, slot uint8, deadline uint32) bool {
	e := s.entry(class.group(), slot)
	if e == nil {
		return false
	}
	raise(s.horizon, deadline)
	raise(e.horizon, deadline)
	return true
}

// find returns a shape by its definition, nil if there is none: there are few, and most differ in their first name.
func (v *view) find(s Shape) *shape {
	for _, held := range v.shapes {
		if held.equal(s) {
			return held
		}
	}
	return nil
}

func (s *shape) equal(o Shape) bool {
	return slices.Equal(s.Names, o.Names) && s.Compared == o.Compared && s.Keep == o.Keep && slices.Equal(s.KeepOf, o.KeepOf)
}

func raise(a *atomic.Uint32, to uint32) {
	for old := a.Load(); old < to && !a.CompareAndSwap(old, to); old = a.Load() {
	}
}

// newView builds a view of shapes, which it copies: readers hold the old ones with their old keeps. The order of
// groups and entries follows from the shapes alone, so that every replica finds the same rule first.
func newView(ring Ring, shapes []*shape) *view {
	v := &view{byID: make(map[ShapeID]*shape, len(shapes)), byIndex: make(map[uint32]*shape, len(shapes)), ring: ring, maxProbes: MaxProbes}
	for _, s := range shapes {
		c := *s
		c.keeps = nil
		v.shapes = append(v.shapes, &c)
		v.byID[c.id], v.byIndex[c.index] = &c, &c
	}
	slices.SortFunc(v.shapes, func(a, b *shape) int {
		if d := slices.Compare(a.Names, b.Names); d != 0 {
			return d
		}
		return strings.Compare(a.text, b.text)
	})
	for _, s := range v.shapes {
		if s.Keep {
			if cutoff := v.byID[s.cutoff().ID()]; cutoff != nil {
				cutoff.keeps = append(cutoff.keeps, s)
			}
		}
	}
	var slots [2]bool
	for rest := v.shapes; len(rest) > 0; {
		n := 1
		for n < len(rest) && slices.Equal(rest[n].Names, rest[0].Names) {
			n++
		}
		for slot := range uint8(2) {
			g := newGroup(rest[0], slot, len(v.entries))
			for _, s := range rest[:n] {
				for _, c := range s.classes {
					if c.slot == slot && c.class != ClassKeep { // that is looked for only when its cutoff is hit
						v.entries = append(v.entries, entry{horizon: c.horizon, tweak: c.tweak, shape: s, class: c.class, slot: slot})
					}
				}
			}
			if g.to = int32(len(v.entries)); g.to > g.from {
				v.groups = append(v.groups, g)
				slots[slot] = true
			}
		}
		rest = rest[n:]
	}
	if slots[0] && slots[1] {
		v.maxProbes = 2 * MaxProbes
	}
	return v
}

func newGroup(s *shape, slot uint8, from int) group {
	g := group{start: s.starts[slot], from: int32(from), to: int32(from), n: int8(len(s.names)), names: s.names}
	for i, n := range s.names {
		g.known[i] = n.known
	}
	return g
}

// with returns a view in which s takes the place of the shape with its id.
func (v *view) with(s *shape) *view {
	shapes := slices.DeleteFunc(slices.Clone(v.shapes), func(held *shape) bool { return held.id == s.id })
	next := newView(v.ring, append(shapes, s))
	next.retired = v.retired
	return next
}

// liveUntil returns the latest horizon of the key in a slot; 0: there have been no records of it.
func (v *view) liveUntil(slot uint8) (until uint32) {
	for _, s := range v.shapes {
		for _, e := range s.classes {
			if e.slot == slot {
				until = max(until, e.horizon.Load())
			}
		}
	}
	return until
}
