package revocation

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/ttlstore"
)

// DefaultSlack is how long a record is kept beyond ExpiresAt: verifiers accept leeways of up to five
// minutes, and clocks differ. It is a constant of a cluster and never part of a record.
const DefaultSlack = 10 * time.Minute

// TableConfig configures a [Table]. Zero fields mean the defaults.
type TableConfig struct {
	Key    Key             // of a cluster that has never had another one
	Ring   Ring            // the keys; the zero Ring: only Key
	Slack  time.Duration   // default 10 min
	Store  ttlstore.Config // limits and memory
	Policy Policy
}

// Table holds the live records of a replica and answers checks. Create it with [NewTable].
type Table struct {
	slack  uint32 // seconds
	store  *ttlstore.Store
	policy atomic.Pointer[Policy]
	view   atomic.Pointer[view]

	// mu is held exclusively to replace view, and shared to raise a horizon: Sweep must not forget a shape
	// whose horizon a writer has just raised.
	mu        sync.RWMutex
	nextIndex uint32          // of shapes; never reused, so that no item can name another's
	horizons  []atomic.Uint32 // not handed out yet: a check reads those of all live shapes, so they lie side by side
}

// NewTable returns an empty table. Errors are those of the policy and of ttlstore.New.
func NewTable(cfg TableConfig) (*Table, error) {
	if cfg.Slack == 0 {
		cfg.Slack = DefaultSlack
	}
	if cfg.Slack < 0 || cfg.Slack > maxSlack {
		return nil, &FieldError{Field: "slack", Kind: "out_of_range", ValueKind: "duration", Limit: "0 to 24 h"}
	}
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	store, err := ttlstore.New(cfg.Store)
	if err != nil {
		return nil, err
	}
	if cfg.Ring == (Ring{}) {
		cfg.Ring = NewRing(cfg.Key)
	}
	t := &Table{slack: uint32((cfg.Slack + time.Second - 1) / time.Second), store: store}
	t.policy.Store(&cfg.Policy)
	t.view.Store(newView(cfg.Ring, nil))
	return t, nil
}

// Close frees the table's memory. Nobody may use the table any more.
func (t *Table) Close() error { return t.store.Close() }

// Ring returns the keys in force.
func (t *Table) Ring() Ring { return t.view.Load().ring }

// Leaving reports whether records of the primary key are refused, because [Table.Retire] has made sure that it can go: whatever is made before [Table.SetRing] is lost.
func (t *Table) Leaving() bool {
	v := t.view.Load()
	return !v.accepts(v.ring.primary)
}

// Retire makes sure that no record is live, nor will be, of a key that next lacks: from when it returns nil they are refused with [ErrKey], until [Table.SetRing] puts next in
// force. If there may be live records of it, or next is not larger than the ring in force, the error matches [ErrKey] and nothing has changed. now is guarded time in milliseconds.
//
// Whoever keeps the ring on disk writes it between the two: before, records of a key that goes could still be stored, and afterwards those of a key that comes.
func (t *Table) Retire(next Ring, now int64) error {
	sec := unixSeconds(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	if next.name != old.ring.name || next.Compare(old.ring) <= 0 {
		return fmt.Errorf("%w: %s does not follow %s", ErrKey, next, old.ring)
	}
	retired := old.retired
	for _, k := range old.ring.Keys() {
		if next.Has(k.Number, k.ID) {
			continue
		}
		if until := old.liveUntil(k.Number & 1); until != 0 && until >= sec {
			return fmt.Errorf("%w: there are records of key %s for %d s", ErrKey, k.ID, until-sec+1)
		}
		retired[k.Number&1] = true
	}
	if retired != old.retired {
		v := *old
		v.retired = retired
		t.view.Store(&v)
	}
	return nil
}

// SetRing puts a ring in force: it retires what that lacks and makes records of its other keys welcome. Errors are those of [Table.Retire]. Checks that
// have begun go on under the ring before.
func (t *Table) SetRing(next Ring, now int64) error {
	if err := t.Retire(next, now); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	shapes := slices.Clone(old.shapes)
	for i, s := range shapes {
		made := *s
		made.starts = next.starts(s.Names)
		made.classes = slices.DeleteFunc(slices.Clone(s.classes), func(e classEntry) bool { return next.keys[e.slot] != old.ring.keys[e.slot] })
		shapes[i] = &made
	}
	t.view.Store(newView(next, shapes))
	return nil
}

// LiveUntil returns until which second, in Unix time, there may be records of a key; 0: there have been none.
func (t *Table) LiveUntil(number uint8) uint32 {
	v := t.view.Load()
	if !v.ring.has(number) {
		return 0
	}
	return v.liveUntil(number & 1)
}

// Policy returns the policy in force; it is not to be changed.
func (t *Table) Policy() *Policy { return t.policy.Load() }

// SetPolicy puts another policy in force, which must have been validated and is not to be changed afterwards; see [Policy.Succeed].
func (t *Table) SetPolicy(p *Policy) { t.policy.Store(p) }

func (t *Table) deadline(until uint32) uint32 {
	if faults.Mutant("no-slack") {
		return until
	}
	return addSat(until, t.slack)
}

func addSat(a, b uint32) uint32 {
	if a+b < a {
		return ^uint32(0)
	}
	return a + b
}

// Define makes a shape known, which must be done before a record of it is merged; until is the latest
// [Record.RetainUntil] that is about to be merged. created reports that it was new here: then its definition
// must be journaled and sent before the record. A shape without live records needs a place among those that by may
// bring to life; the error matches [ErrShapes]. Others match [ErrRecord] for a definition that is none and
// [ErrShapeConflict]. now is guarded time in milliseconds.
func (t *Table) Define(s Shape, until uint32, now int64, by Definer) (created bool, err error) {
	deadline, sec := t.deadline(until), unixSeconds(now)
	t.mu.RLock()
	held := t.view.Load().find(s)
	known := held != nil && held.horizon.Load() >= sec
	if known {
		raise(held.horizon, deadline)
	}
	t.mu.RUnlock()
	if known {
		return false, nil
	}
	if !s.valid() {
		return false, fmt.Errorf("%w: shape", ErrRecord)
	}
	id := s.ID()

	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	held = old.byID[id]
	if held != nil && !held.equal(s) {
		return false, ErrShapeConflict
	}
	live := held != nil && held.horizon.Load() >= sec
	if !live {
		if err := t.place(by, sec); err != nil {
			return false, err
		}
	}
	if held != nil {
		raise(held.horizon, deadline)
		if !live && held.by != by {
			made := *held
			made.by = by
			t.view.Store(old.with(&made))
		}
		return false, nil
	}
	t.nextIndex++
	made := &shape{
		Shape: s, id: id, by: by, text: s.String(), index: t.nextIndex, starts: old.ring.starts(s.Names), horizon: t.newHorizon(deadline),
		names: newClaimNames(s.Names), compared: newClaimName(s.Compared),
	}
	for _, n := range s.Names {
		made.inCutoff = append(made.inCutoff, slices.Contains(s.KeepOf, n))
	}
	t.view.Store(old.with(made))
	return true, nil
}

// Definer is who brings a shape to life.
type Definer uint64

// Definers that are not held to a share; all others are writers, see [DefinerOf].
const (
	Unbound Definer = iota // what was accepted already: by the journal, or by another node
	Admin                  // any of the [MaxLiveShapes]
)

// DefinerOf returns the definer for a writer's name. He may bring to life [WriterShapes], and none of the last [AdminShapes].
func DefinerOf(name string) Definer {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return max(Definer(h.Sum64()), Admin+1)
}

// place reports whether there is one for another live shape. Whose a shape is only this table knows, since it was made: of what was replayed, or came from
// elsewhere, it is nobody's, but takes its place all the same.
func (t *Table) place(by Definer, now uint32) error {
	all, own := 0, 0
	for _, s := range t.view.Load().shapes {
		if s.horizon.Load() >= now {
			all++
			if s.by == by {
				own++
			}
		}
	}
	switch {
	case by == Unbound && !faults.Mutant("bound-peers"):
	case by == Admin && all < MaxLiveShapes:
	case by == Admin || all >= MaxLiveShapes-AdminShapes:
		return ErrShapes
	case own >= WriterShapes:
		return ErrWriterShapes
	}
	return nil
}

// Admits reports whether a shape has, or may have, live records; if not, and if by could not bring it to life, the error is that of [Table.Define].
func (t *Table) Admits(s Shape, now int64, by Definer) (live bool, err error) {
	sec := unixSeconds(now)
	if held := t.view.Load().find(s); held != nil && held.horizon.Load() >= sec {
		return true, nil
	}
	if !s.valid() {
		return false, fmt.Errorf("%w: shape", ErrRecord)
	}
	return false, t.place(by, sec)
}

// newHorizon is called with mu held.
func (t *Table) newHorizon(until uint32) *atomic.Uint32 {
	if len(t.horizons) == 0 {
		t.horizons = make([]atomic.Uint32, 16) // a cache line
	}
	h := &t.horizons[0]
	t.horizons = t.horizons[1:]
	h.Store(until)
	return h
}

// Record is [Ring.Record] of the ring in force, and quicker where the table knows the shape.
func (t *Table) Record(r Revocation) Record {
	v := t.view.Load()
	s := v.find(r.Shape)
	if s == nil {
		return v.ring.Record(r)
	}
	e := s.entry(r.Class.group(), v.ring.primary&1)
	if e == nil {
		return v.ring.Record(r)
	}
	return s.record(r, e, v.ring.primary)
}

func (s *shape) record(r Revocation, e *classEntry, number uint8) Record {
	return Record{
		Fingerprint: s.starts[e.slot].hash(r.Match.values()).xor(e.tweak),
		Value:       r.Value, Shape: s.id, ExpiresAt: r.ExpiresAt, Class: r.Class, Reason: r.Reason, Flags: writtenFlags | uint16(number),
	}
}

// Twin returns what [Table.Record] would under the key that is not the primary one; ok is false if nothing that contends with it can be held there.
func (t *Table) Twin(r Revocation, now int64) (twin Record, ok bool) {
	v := t.view.Load()
	other := 1 - v.ring.primary&1
	if v.ring.keys[other].key == (Key{}) {
		return Record{}, false
	}
	s := v.find(r.Shape)
	if s == nil {
		return Record{}, false
	}
	e := s.otherLive(r.Class.group(), 1-other, unixSeconds(now))
	if e == nil {
		return Record{}, false
	}
	return s.record(r, e, v.ring.keys[other].number), true
}

// activate makes sure that checks look for records of r's shape and class up to a deadline. It
// returns before the record is stored: no check may skip it.
func (t *Table) activate(r Record, deadline uint32) (*shape, error) {
	number := r.KeyNumber()
	t.mu.RLock()
	v := t.view.Load()
	s := v.byID[r.Shape]
	active := s != nil && v.accepts(number) && s.raise(r.Class, number&1, deadline)
	t.mu.RUnlock()
	if active {
		return s, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	switch s = old.byID[r.Shape]; {
	case !old.accepts(number) && !faults.Mutant("unknown-key"):
		return nil, fmt.Errorf("%w: key number %d", ErrKey, number)
	case s == nil:
		return nil, ErrUnknownShape
	case !s.fits(r.Class):
		return nil, fmt.Errorf("%w: class %s in shape %s", ErrRecord, r.Class, s.text)
	case s.raise(r.Class, number&1, deadline): // another writer was here first
		return s, nil
	}
	raise(s.horizon, deadline)
	group := r.Class.group()
	made := *s
	made.classes = append(slices.Clone(s.classes), classEntry{group, number & 1, tweak(s.Shape, group), t.newHorizon(deadline)})
	next := old.with(&made)
	t.view.Store(next)
	return next.byID[r.Shape], nil
}

// liveShapes counts shapes that have, or may have, live records.
func (t *Table) liveShapes(now uint32) int {
	n := 0
	for _, s := range t.view.Load().shapes {
		if s.horizon.Load() >= now {
			n++
		}
	}
	return n
}

// Delta is what a merge changed.
type Delta struct {
	Changed bool
	// Record is what the table holds now. If it equals neither the record that was held nor the one that was
	// merged, Joined is set: it is new content, held without a dot until it is merged again with one of its own.
	Record Record
	Joined bool
	Dot    uint64 // of what the table holds now
	// Loose: nothing changed, but what covers the record was held without a dot: it came of a join, and nobody has written it as it is.
	Loose bool
}

// MaxRun is how many fingerprints [Table.Ahead] looks at.
const MaxRun = ttlstore.MaxRun

// Ahead requests the memory that merging records with these fingerprints will touch, and does not wait for it: a run of merges is quicker behind
// it. It looks at no more than [MaxRun] of them.
func (t *Table) Ahead(list []Fingerprint) {
	var keys [MaxRun]ttlstore.Key
	n := min(len(list), len(keys))
	for i, f := range list[:n] {
		keys[i] = ttlstore.Key(f)
	}
	t.store.Ahead(keys[:n])
}

// Merge joins a record into the table; dot is its number, kept beside it and given back with it; 0 is none. The record is
// found by every check that begins after Merge has returned. A record whose retention has passed
// changes nothing. For limited callers the store's limit is lowered by its reserve. Errors match
// [ErrFull], [ErrUnknownShape], [ErrRecord], [ErrKey]. now is guarded time in milliseconds.
func (t *Table) Merge(r Record, dot uint64, now int64, limited bool) (Delta, error) {
	if err := r.valid(); err != nil {
		return Delta{}, err
	}
	if faults.Mutant("bound-replay") {
		if err := r.Plausible(now); err != nil {
			return Delta{}, err
		}
	}
	deadline, sec := t.deadline(r.RetainUntil()), unixSeconds(now)
	if deadline < sec && !faults.Mutant("accept-expired") {
		return Delta{Record: r, Dot: dot}, nil
	}
	s, err := t.activate(r, deadline)
	if err != nil {
		return Delta{}, err
	}
	var d Delta
	var refused error
	key := ttlstore.Key{Hi: r.Fingerprint.Hi, Lo: r.Fingerprint.Lo}
	err = t.store.Update(key, sec, limited, func(old ttlstore.Item, ok bool) (ttlstore.Item, bool) {
		d = Delta{Changed: true, Record: r, Dot: dot}
		if ok {
			held := t.unpack(old, s)
			if held.Class.group() != r.Class.group() || uint32(old.Data[2]>>32) != s.index || held.KeyNumber() != r.KeyNumber() {
				// Shape and class are part of the fingerprint, so only a forged record comes here.
				refused = fmt.Errorf("%w: fingerprint of another class, shape or key", ErrRecord)
				return old, false
			}
			joined := Join(held, r)
			switch joined {
			case held:
				d = Delta{Record: held, Dot: old.Data[1], Loose: old.Data[1] == 0}
				if d.Dot != 0 || r != held {
					return old, false
				}
				d.Dot = dot // it gets its name
			case r:
			default:
				d.Record, d.Joined, d.Dot = joined, true, 0
			}
		}
		return t.pack(key, d.Record, d.Dot, s), true
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

// Rename gives the content of a record another dot, if the table holds just that content: the one that it had may name something else elsewhere.
func (t *Table) Rename(r Record, dot uint64, now int64) {
	s, ok := t.view.Load().byID[r.Shape]
	if !ok {
		return
	}
	// An item that is there takes no room, so nothing is refused.
	_ = t.store.Update(r.Fingerprint.key(), unixSeconds(now), false, func(old ttlstore.Item, ok bool) (ttlstore.Item, bool) {
		if !ok || uint32(old.Data[2]>>32) != s.index || t.unpack(old, s) != r {
			return old, false
		}
		old.Data[1] = dot
		return old, true
	})
}

// unixSeconds rounds down: a record is live through its whole last second.
func unixSeconds(ms int64) uint32 {
	return uint32(max(0, min(ms/1000, int64(^uint32(0)))))
}

// pack makes an item. ExpiresAt is in its deadline, but for a block or unblock: that stays until a time that follows from its stamp, so the deadline tells the stamp to
// a second, and the upper half of the stamp makes room for ExpiresAt.
func (t *Table) pack(key ttlstore.Key, r Record, dot uint64, s *shape) ttlstore.Item {
	value := uint64(r.Value)
	if r.Class.group() == ClassBlock {
		value = uint64(r.ExpiresAt)<<32 | uint64(uint32(r.Value))
	}
	return ttlstore.Item{Key: key, Deadline: t.deadline(r.RetainUntil()), Data: [3]uint64{
		value, dot, uint64(s.index)<<32 | uint64(r.Class)<<24 | uint64(r.Reason)<<16 | uint64(r.Flags),
	}}
}

func (t *Table) unpack(it ttlstore.Item, s *shape) Record {
	meta := it.Data[2]
	r := Record{
		Fingerprint: Fingerprint{it.Key.Hi, it.Key.Lo}, Value: int64(it.Data[0]), Shape: s.id,
		ExpiresAt: it.Deadline - t.slack, Class: Class(meta >> 24), Reason: Reason(meta >> 16), Flags: uint16(meta),
	}
	if r.Class.group() == ClassBlock {
		latest := int64(r.ExpiresAt)*1000 - longestBlock // the stamp lies less than a second before
		r.Value = latest - int64(uint32(latest)-uint32(it.Data[0]))
		r.ExpiresAt = uint32(it.Data[0] >> 32)
	}
	return r
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
// the clocks say; twin is the same under the other key, the zero Record if there is none. A stamp that would lie more than [MaxAheadAbsolute] ahead of wall (Unix milliseconds) is refused with a *FieldError.
func (t *Table) Stamp(r, twin Record, now, wall int64) (Record, error) {
	held, _, _ := t.Held(r, now)
	if twin.Class != 0 {
		other, _, _ := t.Held(twin, now)
		held.Value = max(held.Value, other.Value)
	}
	if held.Value < r.Value || faults.Mutant("stamp-by-clock") {
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

// Select is Range over the records live at now for whose dots keep says yes, in pieces: it goes on until fn returns false or it has looked
// at about budget records, and returns where to go on; more is false at the end. keep must be brief and must not call the table.
func (t *Table) Select(from Fingerprint, budget int, now int64, keep func(dot uint64) bool, fn func(Record, uint64) bool) (next Fingerprint, more bool) {
	sec := unixSeconds(now)
	k, more := t.store.Select(ttlstore.Key{Hi: from.Hi, Lo: from.Lo}, budget, func(it *ttlstore.Item) bool {
		return it.Deadline >= sec && keep(it.Data[1])
	}, func(it ttlstore.Item) bool {
		s, ok := t.view.Load().byIndex[uint32(it.Data[2]>>32)]
		return !ok || fn(t.unpack(it, s), it.Data[1])
	})
	return Fingerprint{k.Hi, k.Lo}, more
}

// Each calls fn for the records live at now in any order, until it has seen about budget of them; from is zero or what an earlier call
// has returned. more is false at the end. fn must be brief and must not call the table.
func (t *Table) Each(from Fingerprint, budget int, now int64, fn func(Record, uint64)) (next Fingerprint, more bool) {
	sec := unixSeconds(now)
	v := t.view.Load()
	k, more := t.store.Each(ttlstore.Key{Hi: from.Hi, Lo: from.Lo}, budget, func(it *ttlstore.Item) {
		s, ok := v.byIndex[uint32(it.Data[2]>>32)]
		if !ok {
			v = t.view.Load()
			s, ok = v.byIndex[uint32(it.Data[2]>>32)]
		}
		if ok && it.Deadline >= sec {
			fn(t.unpack(*it, s), it.Data[1])
		}
	})
	return Fingerprint{k.Hi, k.Lo}, more
}

// Shape returns the definition with an id.
func (t *Table) Shape(id ShapeID) (Shape, bool) {
	s, ok := t.view.Load().byID[id]
	if !ok {
		return Shape{}, false
	}
	return s.Shape, true
}

// Shapes returns the definitions of all shapes that may have live records, in the order of their names.
func (t *Table) Shapes() []Shape {
	v := t.view.Load()
	list := make([]Shape, len(v.shapes))
	for i, s := range v.shapes {
		list[i] = s.Shape
	}
	return list
}

// forgetShapes is how long, in seconds, a shape is remembered after its last record may have been found: a record that was
// on its way meanwhile still finds its definition, and so does a clock that steps back a little.
const forgetShapes = 2 * 60 * 60

// Expect makes room for about so many records at once: see [ttlstore.Store.Expect].
func (t *Table) Expect(records int) { t.store.Expect(records) }

// Sweep frees what expired before now (guarded time, milliseconds) and forgets shapes without records. It may run beside everything else.
func (t *Table) Sweep(now int64) ttlstore.SweepStats {
	sec := unixSeconds(now)
	stats := t.store.Sweep(sec)
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.view.Load()
	live := slices.DeleteFunc(slices.Clone(old.shapes), func(s *shape) bool { return addSat(s.horizon.Load(), forgetShapes) < sec })
	if len(live) < len(old.shapes) {
		v := newView(old.ring, live)
		v.retired = old.retired
		t.view.Store(v)
	}
	return stats
}

// TableStats counts what a table holds.
type TableStats struct {
	ttlstore.Stats
	Shapes     int // known
	LiveShapes int // with records that may be live
}

// Size returns how many records the table holds, expired but unswept ones included, and its memory in bytes. It is cheap.
func (t *Table) Size() (records int, bytes int64) { return t.store.Size() }

// Stats returns counters; now is guarded time in milliseconds.
func (t *Table) Stats(now int64) TableStats {
	return TableStats{Stats: t.store.Stats(), Shapes: len(t.view.Load().shapes), LiveShapes: t.liveShapes(unixSeconds(now))}
}
