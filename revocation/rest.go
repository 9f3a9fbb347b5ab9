package revocation

import "github.com/revokd/revokd/internal/faults"

// Holding is what a [Rest] knows of a fingerprint.
type Holding uint8

// The holdings.
const (
	Absent   Holding = iota // there is no record
	Present                 // there is this one
	Doubtful                // there may be one
)

// Rest stands for the records that a table does not hold because it was begun when they were there already, such as a filter of them. Its
// method may be called concurrently if [Table.CheckWith] is.
type Rest interface {
	Held(f Fingerprint) (Record, Holding)
}

// CheckWith answers like [Table.Check] for the records of the table and of rest together: those of one fingerprint are joined. It allocates
// nothing, unless rest does. If the answer depends on a record that is in doubt it is Unknown with [CauseUnanswered]; Revoked never does: a record in
// doubt can lift a block and bring a keep, so neither is then taken for certain.
func (t *Table) CheckWith(c *Claims, now int64, rest Rest) Verdict {
	var p Pending
	t.Begin(c, now, &p)
	doubt := false
	for {
		for i := range p.probes[:p.n] {
			q := p.asked[i]
			s := q.entry.shape
			r, holding := t.joined(Fingerprint{p.probes[i].Key.Hi, p.probes[i].Key.Lo}, s, q.entry.class, p.now, rest)
			doubt = doubt || holding == Doubtful && r.Class == 0
			if r.Class == 0 {
				continue
			}
			switch effect(r, s, c, p.now) {
			case effectUnknown:
				p.cause = CauseClass
			case effectNone:
				doubt = doubt || holding == Doubtful
			case effectRevokes:
				certain := holding != Doubtful || r.Class != ClassBlock
				if r.Class == ClassBlock {
					outranked, sure := t.outrankedWith(r, s, q.entry.slot, c, q.elem, p.now, rest)
					if outranked {
						continue
					}
					certain = certain && sure
				}
				if r.Class == ClassIssuedBefore {
					kept, sure := t.keptWith(s, c, q.elem, r.Value, p.now, rest)
					if kept && sure && holding != Doubtful {
						continue
					}
					certain = sure && !kept
				}
				if certain {
					return Verdict{Status: Revoked, Rule: r.rule(s)}
				}
				doubt = true
			}
		}
		if p.done {
			break
		}
		p.n = 0
		p.fill()
	}
	switch {
	case doubt:
		return Verdict{Cause: CauseUnanswered}
	case p.cause != CauseNone:
		return Verdict{Cause: p.cause}
	}
	return Verdict{Status: Active}
}

// joined returns what table and rest hold under a fingerprint, the zero Record if that is nothing for certain, or in doubt.
func (t *Table) joined(f Fingerprint, s *shape, class Class, now uint32, rest Rest) (r Record, holding Holding) {
	other, holding := rest.Held(f)
	if holding == Present && (t.deadline(other.RetainUntil()) < now || other.Shape != s.id || other.Class.group() != class.group()) {
		holding = Absent
	}
	if it, ok := t.store.Lookup(f.key(), now); ok && (holding != Present || !faults.Mutant("answer-stays")) {
		r = t.unpack(it, s)
		if holding == Present {
			r = Join(r, other)
		}
		return r, holding
	}
	if holding == Present {
		r = other
	}
	return r, holding
}

// keptWith is kept for records that are held in two places. If sure is false, kept may be wrong either way.
func (t *Table) keptWith(s *shape, c *Claims, elem int32, threshold int64, now uint32, rest Rest) (kept, sure bool) {
	sure = true
	for _, k := range s.keeps {
		if k.horizon.Load() < now {
			continue
		}
		for i := range k.classes { // of each key
			e := &k.classes[i]
			if e.class != ClassKeep || e.horizon.Load() < now {
				continue
			}
			f, ok := k.fingerprint(e, c, elem)
			if !ok {
				continue
			}
			r, holding := t.joined(f, k, ClassKeep, now, rest)
			if r.Class == ClassKeep && r.Value >= threshold {
				return true, true
			}
			sure = sure && holding != Doubtful
		}
	}
	return false, sure
}

// outrankedWith is outranked for records that are held in two places. If sure is false, there may be something under the other key that outranks it.
func (t *Table) outrankedWith(r Record, s *shape, slot uint8, c *Claims, elem int32, now uint32, rest Rest) (outranked, sure bool) {
	e := s.otherLive(ClassBlock, slot, now)
	if e == nil {
		return false, true
	}
	f, ok := s.fingerprint(e, c, elem)
	if !ok {
		return false, true
	}
	later, holding := t.joined(f, s, ClassBlock, now, rest)
	// What is in doubt about a later block is asked for by its own probe.
	outranked = later.Class != 0 && later.Value > r.Value && effect(later, s, c, now) == effectNone
	return outranked, holding != Doubtful
}

// LiveClass says until when there may be records of a class, or of those that contend with it for a key, in a shape.
type LiveClass struct {
	Shape Shape
	Class Class
	Key   uint8  // the number of the key
	Until uint32 // Unix seconds, slack included
}

// LiveClasses returns what checks look for. Called after a scan, it covers every record that the scan has seen.
func (t *Table) LiveClasses(now int64) []LiveClass {
	sec := unixSeconds(now)
	var list []LiveClass
	v := t.view.Load()
	for _, s := range v.shapes {
		for _, e := range s.classes {
			if until := e.horizon.Load(); until >= sec {
				list = append(list, LiveClass{s.Shape, e.class, v.ring.keys[e.slot].number, until})
			}
		}
	}
	return list
}

// Keeps reports whether there may be keeps.
func (t *Table) Keeps(now int64) bool {
	sec := unixSeconds(now)
	for _, s := range t.view.Load().shapes {
		for _, e := range s.classes {
			if e.class == ClassKeep && e.horizon.Load() >= sec {
				return true
			}
		}
	}
	return false
}

// Await makes checks look for what somebody else holds records of. Errors are those of [Table.Define], and match [ErrRecord] for a class that the shape
// cannot have, and [ErrKey].
func (t *Table) Await(l LiveClass, now int64) error {
	if _, err := t.Define(l.Shape, min(l.Until, maxExpiresAt), now, Unbound); err != nil {
		return err
	}
	_, err := t.activate(Record{Shape: l.Shape.ID(), Class: l.Class, Flags: uint16(l.Key)}, l.Until)
	return err
}

// Get returns the record held under a fingerprint.
func (t *Table) Get(f Fingerprint, now int64) (Record, bool) {
	r, _, ok := t.Held(Record{Fingerprint: f}, now)
	return r, ok
}
