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
}

// group is a list of names: everything that one PRF over their values serves.
type group struct {
	start    sip                 // the PRF behind the names
	from, to int32               // of its entries
	known    [maxShapeNames]int8 // the names' places in Claims.known
	n        int8                // of the names
	names    []claimName
}

// entry is a shape and class group that may have live records.
type entry struct {
	horizon *atomic.Uint32 // latest deadline of a record, slack included: beyond it there is nothing to find
	tweak   Fingerprint
	shape   *shape
	class   Class
}

// shape is a Shape in a table. Each view has its own copies; horizons are shared by all of them.
type shape struct {
	Shape
	id       ShapeID
	text     string
	index    uint32         // in items
	start    sip            // the PRF behind the names
	horizon  *atomic.Uint32 // until when the shape must be known: of records that are here or announced, slack included
	classes  []classEntry   // what there are records of
	names    []claimName
	compared claimName
	inCutoff []bool   // of a keep: which names are those of the cutoff it belongs to
	keeps    []*shape // of a cutoff: the shapes of keeps made with it
}

type classEntry struct {
	class   Class // group
	tweak   Fingerprint
	horizon *atomic.Uint32
}

// entry returns what there is of a class group, nil if there never was a record of it.
func (s *shape) entry(class Class) *classEntry {
	for i := range s.classes {
		if s.classes[i].class == class {
			return &s.classes[i]
		}
	}
	return nil
}

// raise makes s known and its records of a class looked for until a deadline. It reports false, and does
// nothing, if checks do not look for the class yet.
func (s *shape) raise(class Class, deadline uint32) bool {
	e := s.entry(class.group())
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
func newView(shapes []*shape) *view {
	v := &view{byID: make(map[ShapeID]*shape, len(shapes)), byIndex: make(map[uint32]*shape, len(shapes))}
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
	var names []string
	for _, s := range v.shapes {
		if s.Keep {
			if cutoff := v.byID[s.cutoff().ID()]; cutoff != nil {
				cutoff.keeps = append(cutoff.keeps, s)
			}
		}
		for _, c := range s.classes {
			if c.class == ClassKeep {
				continue // looked for only when its cutoff is hit
			}
			if len(v.groups) == 0 || !slices.Equal(names, s.Names) {
				names = s.Names
				v.groups = append(v.groups, newGroup(s, len(v.entries)))
			}
			v.entries = append(v.entries, entry{horizon: c.horizon, tweak: c.tweak, shape: s, class: c.class})
			v.groups[len(v.groups)-1].to++
		}
	}
	return v
}

func newGroup(s *shape, from int) group {
	g := group{start: s.start, from: int32(from), to: int32(from), n: int8(len(s.names)), names: s.names}
	for i, n := range s.names {
		g.known[i] = n.known
	}
	return g
}

// with returns a view in which s takes the place of the shape with its id.
func (v *view) with(s *shape) *view {
	shapes := slices.DeleteFunc(slices.Clone(v.shapes), func(held *shape) bool { return held.id == s.id })
	return newView(append(shapes, s))
}
