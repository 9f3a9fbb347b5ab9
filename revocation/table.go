package revocation

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/ttlstore"
)

// DefaultSlack is how long a record is kept beyond ExpiresAt: verifiers accept leeways of up to five
// minutes, and clocks differ. It is a constant of a cluster and never part of a record.
const DefaultSlack = 10 * time.Minute

// TableConfig configures a [Table]. Zero fields mean the defaults.
type TableConfig struct {
	Key    Key
	Slack  time.Duration   // default 10 min
	Store  ttlstore.Config // limits and memory
	Policy Policy
}

// Table holds the live records of a replica and answers checks. Create it with [NewTable].
type Table struct {
	key    Key
	hash   hasher
	slack  uint32 // seconds
	store  *ttlstore.Store
	policy atomic.Pointer[Policy]
	view   atomic.Pointer[view]

	// mu is held exclusively to replace view, and shared to raise a horizon: Sweep must not forget a shape
	// whose horizon a writer has just raised.
	mu        sync.RWMutex
	nextIndex uint32 // of shapes; never reused, so that no item can name another's
}

// view is an immutable picture of the shapes that have or had live records.
type view struct {
	groups  []*group
	shapes  map[ShapeID]*shape
	byIndex map[uint32]*shape
}

// group is a list of names with everything that one PRF over their values serves.
type group struct {
	names   []string
	known   []int8 // index in Claims.known, -1 if the name has none
	prefix  [16]byte
	entries []entry
}

// entry is a shape and class group that may have live records.
type entry struct {
	shape   *shape
	class   Class
	tweak   Fingerprint
	horizon *atomic.Uint32 // latest deadline of a record, slack included: beyond it there is nothing to find
}

type shape struct {
	Shape
	id        ShapeID
	index     uint32
	prefix    [16]byte
	keeps     []*shape       // of a cutoff: the shapes of keeps made with it
	horizon   *atomic.Uint32 // of all classes
	keepFrom  []int8         // of a keep: position in Names of each KeepOf name
	keepTweak Fingerprint
}

// NewTable returns an empty table. Errors are those of the policy and of ttlstore.New.
func NewTable(cfg TableConfig) (*Table, error) {
	if cfg.Slack == 0 {
		cfg.Slack = DefaultSlack
	}
	if cfg.Slack < 0 || cfg.Slack > 24*time.Hour {
		return nil, &FieldError{Field: "slack", Kind: "out_of_range", ValueKind: "duration", Limit: "0 to 24 h"}
	}
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	store, err := ttlstore.New(cfg.Store)
	if err != nil {
		return nil, err
	}
	t := &Table{key: cfg.Key, hash: newHasher(cfg.Key), slack: uint32(cfg.Slack / time.Second), store: store}
	t.policy.Store(&cfg.Policy)
	t.view.Store(&view{shapes: map[ShapeID]*shape{}, byIndex: map[uint32]*shape{}})
	return t, nil
}

// Close frees the table's memory. Nobody may use the table any more.
func (t *Table) Close() error { return t.store.Close() }

// Key returns the fingerprint key.
func (t *Table) Key() Key { return t.key }

// Policy returns the policy in force; it is not to be changed.
func (t *Table) Policy() *Policy { return t.policy.Load() }

// SetPolicy puts another policy in force, which must have been validated and is not to be changed afterwards; see [Policy.Succeed].
func (t *Table) SetPolicy(p *Policy) { t.policy.Store(p) }

func (t *Table) deadline(expiresAt uint32) uint32 { return addSat(expiresAt, t.slack) }

func addSat(a, b uint32) uint32 {
	if a+b < a {
		return ^uint32(0)
	}
	return a + b
}

// Define makes a shape known, which must be done before a record of it is merged; until is the latest
// ExpiresAt that is about to be merged. created reports that it was new here: then its definition
// must be journaled and sent before the record. For limited callers a shape without live records counts
// against [MaxLiveShapes]; the error matches [ErrShapes]. now is guarded time in milliseconds.
func (t *Table) Define(s Shape, until uint32, now int64, limited bool) (created bool, err error) {
	if !s.valid() {
		return false, fmt.Errorf("%w: shape", ErrRecord)
	}
	id := s.ID()
	horizon := t.deadline(until)
	t.mu.RLock()
	held := t.view.Load().shapes[id]
	if held != nil && held.equal(s) && int64(held.horizon.Load())*1000 >= now {
		raise(held.horizon, horizon)
		t.mu.RUnlock()
		return false, nil
	}
	t.mu.RUnlock()

	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	held = old.shapes[id]
	if held != nil && !held.equal(s) {
		return false, ErrShapeConflict
	}
	if limited && t.liveShapes(now) >= MaxLiveShapes && (held == nil || int64(held.horizon.Load())*1000 < now) {
		return false, ErrShapes
	}
	if held != nil {
		raise(held.horizon, horizon)
		return false, nil
	}
	t.nextIndex++
	made := &shape{Shape: s, id: id, index: t.nextIndex, prefix: namesPrefix(s.Names), horizon: new(atomic.Uint32)}
	made.horizon.Store(horizon)
	for _, n := range s.KeepOf {
		made.keepFrom = append(made.keepFrom, int8(slices.Index(s.Names, n)))
	}
	if s.Keep {
		made.keepTweak = tweak(s, ClassKeep)
	}
	t.view.Store(old.with(made))
	return true, nil
}

func (s *shape) equal(o Shape) bool {
	return slices.Equal(s.Names, o.Names) && s.Compared == o.Compared && s.Keep == o.Keep && slices.Equal(s.KeepOf, o.KeepOf)
}

func raise(a *atomic.Uint32, to uint32) {
	for old := a.Load(); old < to && !a.CompareAndSwap(old, to); old = a.Load() {
	}
}

// with returns a copy of v that knows one more shape.
func (v *view) with(s *shape) *view {
	shapes := make([]*shape, 0, len(v.shapes)+1)
	for _, held := range v.shapes {
		shapes = append(shapes, held)
	}
	n := newView(append(shapes, s))
	for _, g := range v.groups {
		for _, e := range g.entries {
			if _, kept := n.shapes[e.shape.id]; kept {
				n.add(n.shapes[e.shape.id], e.class, e.horizon)
			}
		}
	}
	return n
}

// newView links shapes anew: shapes are copied, because readers hold the old ones with their old keeps.
func newView(shapes []*shape) *view {
	n := &view{shapes: make(map[ShapeID]*shape, len(shapes)), byIndex: make(map[uint32]*shape, len(shapes))}
	for _, s := range shapes {
		c := *s
		c.keeps = nil
		n.shapes[c.id], n.byIndex[c.index] = &c, &c
	}
	for _, s := range n.shapes {
		if s.Keep {
			if d, ok := n.shapes[s.deny().ID()]; ok {
				d.keeps = append(d.keeps, s)
			}
		}
	}
	return n
}

// add puts an entry into a view that is not published yet. Keeps are looked for only when a cutoff is hit.
func (v *view) add(s *shape, class Class, horizon *atomic.Uint32) {
	i := slices.IndexFunc(v.groups, func(g *group) bool { return slices.Equal(g.names, s.Names) })
	if i < 0 {
		g := &group{names: s.Names, prefix: s.prefix}
		for _, n := range s.Names {
			g.known = append(g.known, int8(knownIndex(n)))
		}
		v.groups = append(v.groups, g)
		i = len(v.groups) - 1
	}
	v.groups[i].entries = append(v.groups[i].entries, entry{shape: s, class: class, tweak: tweak(s.Shape, class), horizon: horizon})
}

// activate makes sure that checks look for records of a shape and class up to a deadline. It
// returns before the record is stored: no check may skip it.
func (t *Table) activate(id ShapeID, class Class, deadline uint32) (*shape, error) {
	group := class.group()
	find := func(v *view) (*shape, bool) {
		s, ok := v.shapes[id]
		if !ok {
			return nil, false
		}
		if group == ClassKeep {
			return s, true
		}
		for _, g := range v.groups {
			for i := range g.entries {
				if e := &g.entries[i]; e.shape == s && e.class == group {
					raise(e.horizon, deadline)
					return s, true
				}
			}
		}
		return s, false
	}
	t.mu.RLock()
	s, ok := find(t.view.Load())
	if ok {
		raise(s.horizon, deadline)
	}
	t.mu.RUnlock()
	if ok {
		return s, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok = find(t.view.Load())
	if s == nil {
		return nil, ErrUnknownShape
	}
	raise(s.horizon, deadline)
	if ok {
		return s, nil
	}
	old := t.view.Load()
	shapes := make([]*shape, 0, len(old.shapes))
	for _, held := range old.shapes {
		shapes = append(shapes, held)
	}
	n := newView(shapes)
	for _, g := range old.groups {
		for _, e := range g.entries {
			n.add(n.shapes[e.shape.id], e.class, e.horizon)
		}
	}
	horizon := new(atomic.Uint32)
	horizon.Store(deadline)
	n.add(n.shapes[id], group, horizon)
	t.view.Store(n)
	return n.shapes[id], nil
}

// liveShapes counts shapes that have, or may have, live records.
func (t *Table) liveShapes(now int64) int {
	n := 0
	for _, s := range t.view.Load().shapes {
		if int64(s.horizon.Load())*1000 >= now {
			n++
		}
	}
	return n
}

// Delta is what a merge changed.
type Delta struct {
	Changed bool
	// Record is what the table holds now. If it equals neither the record that was held nor the one that was
	// merged, Joined is set: it is new content and needs a dot of its own.
	Record Record
	Joined bool
	Dot    uint64
}

// errClassMismatch can only be met by a forged record: the class is part of the fingerprint.
var errClassMismatch = errors.New("record of another class under this fingerprint")

// Merge joins a record into the table; dot is its number, kept beside it and given back with it. The record is
// found by every check that begins after Merge has returned. A record whose retention has passed
// changes nothing. For limited callers the store's limit is lowered by its reserve. Errors match
// [ErrFull], [ErrUnknownShape], [ErrRecord]. now is guarded time in milliseconds.
func (t *Table) Merge(r Record, dot uint64, now int64, limited bool) (Delta, error) {
	deadline := t.deadline(r.ExpiresAt)
	if int64(deadline)*1000 < now {
		return Delta{Record: r, Dot: dot}, nil
	}
	s, err := t.activate(r.Shape, r.Class, deadline)
	if err != nil {
		return Delta{}, err
	}
	if (r.Class == ClassKeep) != s.Keep {
		return Delta{}, fmt.Errorf("%w: class %s in shape of another", ErrRecord, r.Class)
	}
	var d Delta
	var refused error
	key := ttlstore.Key{Hi: r.Fingerprint.Hi, Lo: r.Fingerprint.Lo}
	err = t.store.Update(key, unixSeconds(now), limited, func(old ttlstore.Item, ok bool) (ttlstore.Item, bool) {
		d = Delta{Changed: true, Record: r, Dot: dot}
		if ok {
			held := t.unpack(old, s)
			if held.Class.group() != r.Class.group() {
				refused = fmt.Errorf("%w: %w", ErrRecord, errClassMismatch)
				return old, false
			}
			joined := Join(held, r)
			switch joined {
			case held:
				d = Delta{Record: held, Dot: old.Data[1]}
				return old, false
			case r:
			default:
				d.Record, d.Joined = joined, true
			}
		}
		return t.pack(key, d.Record, dot, s), true
	})
	switch {
	case errors.Is(err, ttlstore.ErrFull):
		return Delta{}, fmt.Errorf("%w: %w", ErrFull, err)
	case err == nil:
		err = refused
	}
	if err != nil {
		return Delta{}, err
	}
	return d, nil
}

// unixSeconds rounds down: a record is live through its whole last second.
func unixSeconds(ms int64) uint32 {
	return uint32(max(0, min(ms/1000, int64(^uint32(0)))))
}

func (t *Table) pack(key ttlstore.Key, r Record, dot uint64, s *shape) ttlstore.Item {
	return ttlstore.Item{Key: key, Deadline: t.deadline(r.ExpiresAt), Data: [3]uint64{
		uint64(r.Value), dot, uint64(s.index)<<32 | uint64(r.Class)<<24 | uint64(r.Reason)<<16 | uint64(r.Flags),
	}}
}

func (t *Table) unpack(it ttlstore.Item, s *shape) Record {
	meta := it.Data[2]
	return Record{
		Fingerprint: Fingerprint{it.Key.Hi, it.Key.Lo}, Value: int64(it.Data[0]), Shape: s.id,
		ExpiresAt: it.Deadline - t.slack, Class: Class(meta >> 24), Reason: Reason(meta >> 16), Flags: uint16(meta),
	}
}

// Held returns the record held under the key of r and its dot.
func (t *Table) Held(r Record, now int64) (held Record, dot uint64, ok bool) {
	it, ok := t.store.Lookup(ttlstore.Key{Hi: r.Fingerprint.Hi, Lo: r.Fingerprint.Lo}, unixSeconds(now))
	if !ok {
		return Record{}, 0, false
	}
	s, ok := t.view.Load().byIndex[uint32(it.Data[2]>>32)]
	if !ok {
		return Record{}, 0, false
	}
	return t.unpack(it, s), it.Data[1], true
}

// Stamp raises the stamp of a block or unblock above the one held, so that the later call wins whatever
// the clocks say. A stamp that would lie more than [MaxAheadAbsolute] ahead of wall (Unix milliseconds) is refused with a *FieldError.
func (t *Table) Stamp(r Record, now, wall int64) (Record, error) {
	held, _, ok := t.Held(r, now)
	if !ok || held.Value < r.Value {
		return r, nil
	}
	r.Value = held.Value + 1
	if r.Value > wall+MaxAheadAbsolute.Milliseconds() {
		return r, &FieldError{Field: "stamp", Kind: "out_of_range", ValueKind: "time", Limit: "at most 60 s ahead: the clock of this node is behind"}
	}
	if r.Class == ClassUnblock {
		r.ExpiresAt = max(r.ExpiresAt, unblockExpiry(r.Value))
	}
	return r, nil
}

// Range calls fn for the records live at now in the order of their fingerprints, from a fingerprint on,
// until fn returns false. Records that are written meanwhile may or may not be seen. fn must not call the table.
func (t *Table) Range(from Fingerprint, now int64, fn func(Record, uint64) bool) {
	v := t.view.Load()
	sec := unixSeconds(now)
	t.store.Range(ttlstore.Key{Hi: from.Hi, Lo: from.Lo}, func(it ttlstore.Item) bool {
		if it.Deadline < sec {
			return true
		}
		index := uint32(it.Data[2] >> 32)
		s, ok := v.byIndex[index]
		if !ok { // a shape that was defined after Range began
			v = t.view.Load()
			if s, ok = v.byIndex[index]; !ok {
				return true
			}
		}
		return fn(t.unpack(it, s), it.Data[1])
	})
}

// Shapes returns the definitions of all shapes that may have live records, in the order of their text.
func (t *Table) Shapes() []Shape {
	v := t.view.Load()
	list := make([]Shape, 0, len(v.shapes))
	for _, s := range v.shapes {
		list = append(list, s.Shape)
	}
	slices.SortFunc(list, func(a, b Shape) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// forgetShapes is how long a shape is remembered after its last record may have been found, so that a
// clock which steps back a little finds it still.
const forgetShapes = 2 * 60 * 60

// Sweep frees what expired before now (guarded time, milliseconds) and forgets shapes without records. It may run beside everything else.
func (t *Table) Sweep(now int64) ttlstore.SweepStats {
	stats := t.store.Sweep(unixSeconds(now))
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	var keep []*shape
	for _, s := range old.shapes {
		if int64(addSat(s.horizon.Load(), forgetShapes))*1000 >= now {
			keep = append(keep, s)
		}
	}
	if len(keep) == len(old.shapes) {
		return stats
	}
	n := newView(keep)
	for _, g := range old.groups {
		for _, e := range g.entries {
			if s, ok := n.shapes[e.shape.id]; ok {
				n.add(s, e.class, e.horizon)
			}
		}
	}
	t.view.Store(n)
	return stats
}

// TableStats counts what a table holds.
type TableStats struct {
	ttlstore.Stats
	Shapes     int // known
	LiveShapes int // with records that may be live
}

// Stats returns counters; now is guarded time in milliseconds.
func (t *Table) Stats(now int64) TableStats {
	return TableStats{Stats: t.store.Stats(), Shapes: len(t.view.Load().shapes), LiveShapes: t.liveShapes(now)}
}
