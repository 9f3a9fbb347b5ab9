package revocation

import (
	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/ttlstore"
)

// maxPending is how many probes a check keeps in flight: one for each class and list of names of twice
// as many live shapes as the usual token meets. What does not fit is asked in further rounds.
const maxPending = 12

// Pending is a check that has begun: its fingerprints are made and the memory they need is on its way. It
// belongs to one goroutine; the zero value is ready for [Table.Begin], and a Pending may be used again.
type Pending struct {
	// Mark is the caller's own: it stays what it was at Begin.
	Mark any

	table  *Table
	view   *view
	claims *Claims
	now    uint32 // seconds
	cause  Cause  // why the token cannot be Active
	done   bool   // the walk is complete: nothing is left to ask but what is in flight
	used   uint8  // probes made so far, all rounds
	n      uint8  // probes in flight

	// Where the walk goes on.
	group       int32
	elem, entry int32

	probes [maxPending]ttlstore.Probe
	asked  [maxPending]asked
}

// asked is what a probe is for.
type asked struct {
	entry *entry
	elem  int32
}

// Check answers whether a token is revoked; now is guarded time in Unix milliseconds. It never
// blocks and allocates nothing. c must hold verified claims.
func (t *Table) Check(c *Claims, now int64) Verdict {
	var p Pending
	t.Begin(c, now, &p)
	return p.End()
}

// Begin starts a check: it hashes and requests memory, so that [Pending.End] finds it in the cache.
// Begin before verifying a signature, End after it. c must not change in between.
func (t *Table) Begin(c *Claims, now int64, p *Pending) {
	p.table, p.view, p.claims, p.now = t, t.view.Load(), c, unixSeconds(now)
	p.cause, p.done, p.used, p.n = t.lifetimeCause(c, now), false, 0, 0
	p.group, p.elem, p.entry = 0, 0, 0
	p.fill()
}

// fill puts probes in flight until there is no room or no more to ask. It hashes first and requests memory then: the
// requests overlap, and hashing between them would fill the processor's window.
func (p *Pending) fill() {
	p.hash()
	p.table.store.Prepare(p.probes[:p.n])
}

// hash makes the keys of the next probes.
func (p *Pending) hash() {
	for ; int(p.group) < len(p.view.groups); p.group, p.elem, p.entry = p.group+1, 0, 0 {
		g := &p.view.groups[p.group]
		entries := p.view.entries[g.from:g.to]
		if !anyLive(entries, p.now) {
			continue
		}
		var room [maxShapeNames]*Value
		values := room[:g.n]
		elems, at, outcome := g.values(p.claims, values)
		switch outcome {
		case KindMissing:
			continue
		case KindUnusable:
			p.cause = CauseClaim
			continue
		}
		combinations := 1
		if at >= 0 {
			combinations = len(elems)
		}
		for ; int(p.elem) < combinations; p.elem, p.entry = p.elem+1, 0 {
			if at >= 0 {
				values[at] = &elems[p.elem]
			}
			var base Fingerprint
			hashed := false
			for ; int(p.entry) < len(entries); p.entry++ {
				e := &entries[p.entry]
				if e.horizon.Load() < p.now {
					continue
				}
				if p.n == maxPending {
					return
				}
				if p.used == p.view.maxProbes {
					p.cause, p.done = CauseProbes, true
					return
				}
				if !hashed {
					base, hashed = g.start.hash(values), true
				}
				f := base.xor(e.tweak)
				p.probes[p.n].Key = ttlstore.Key{Hi: f.Hi, Lo: f.Lo}
				p.table.store.Announce(p.probes[p.n].Key)
				p.asked[p.n] = asked{e, p.elem}
				p.n++
				p.used++
			}
		}
	}
	p.done = true
}

func anyLive(entries []entry, now uint32) bool {
	for i := range entries {
		if entries[i].horizon.Load() >= now {
			return true
		}
	}
	return false
}

// values collects the claims that g names. If one is an array, at is its position and elems are what is to take its place in
// turn, else at is -1. outcome is KindMissing if a claim is not there, so that nothing can match, KindUnusable if one
// cannot be compared, else KindString.
func (g *group) values(c *Claims, out []*Value) (elems []Value, at int, outcome Kind) {
	at, outcome = -1, KindString
	for i := range out {
		if k := g.known[i]; k >= 0 {
			out[i] = &c.known[k]
		} else {
			out[i] = c.value(&g.names[i])
		}
		switch out[i].kind {
		case KindMissing:
			return nil, -1, KindMissing
		case KindString:
			if g.known[i] == 0 && faults.Mutant("no-issuer") {
				out[i] = &anyIssuer
			}
		case KindUnusable:
			outcome = KindUnusable
		case KindArray:
			if at >= 0 {
				outcome = KindUnusable // one array claim in a shape at most
			}
			elems, at = c.elements(out[i]), i
		}
	}
	return elems, at, outcome
}

// End finishes the check. The verdict of a Pending that was never begun is the zero Verdict.
func (p *Pending) End() Verdict {
	if p.table == nil {
		return Verdict{}
	}
	for {
		for i := range p.probes[:p.n] {
			if it, ok := p.table.store.LookupProbe(&p.probes[i], p.now); ok {
				if rule, revoked := p.judge(it, p.asked[i]); revoked {
					return Verdict{Status: Revoked, Rule: rule}
				}
			}
		}
		if p.done {
			break
		}
		p.n = 0
		p.fill()
	}
	if p.cause != CauseNone {
		return Verdict{Status: Unknown, Cause: p.cause}
	}
	return Verdict{Status: Active}
}

// judge looks at the record of a probe that hit, and notes in p.cause what cannot be judged.
func (p *Pending) judge(it ttlstore.Item, q asked) (Rule, bool) {
	s := q.entry.shape
	r := p.table.unpack(it, s)
	switch effect(r, s, p.claims, p.now) {
	case effectRevokes:
		switch r.Class {
		case ClassIssuedBefore:
			if p.table.kept(s, p.claims, q.elem, r.Value, p.now) {
				return Rule{}, false
			}
		case ClassBlock:
			if p.table.outranked(r, s, q.entry.slot, p.claims, q.elem, p.now) {
				return Rule{}, false
			}
		}
		return r.rule(s), true
	case effectUnknown:
		p.cause = CauseClass
	}
	return Rule{}, false
}

func (r Record) rule(s *shape) Rule {
	return Rule{Shape: &s.Shape, Class: r.Class, Reason: r.Reason, ExpiresAt: r.ExpiresAt, Value: r.Value}
}

type effectKind uint8

const (
	effectNone effectKind = iota
	effectRevokes
	effectUnknown
)

// effect says what a record that matches by its fingerprint does to a token, keeps apart.
func effect(r Record, s *shape, c *Claims, now uint32) effectKind {
	switch r.Class {
	case ClassDeny:
		return effectRevokes
	case ClassIssuedBefore:
		if c.hasIAT && (c.iat >= r.Value || faults.Mutant("late-cutoff") && c.iat >= r.Value-1000) {
			return effectNone
		}
		return effectRevokes
	case ClassBelow:
		if n, ok := c.value(&s.compared).AsInt(); ok && n >= r.Value {
			return effectNone
		}
		return effectRevokes
	case ClassBlock:
		if now > r.ExpiresAt {
			return effectNone // it stays only as what others with an older stamp are compared with
		}
		return effectRevokes
	case ClassUnblock, ClassKeep:
		return effectNone
	}
	if laterDenies(r.Class) {
		return effectRevokes
	}
	return effectUnknown
}

// kept reports whether a keep exempts the token from a cutoff: one made with that shape and these very values
// (those of array element elem), by a request whose cutoff was not lower.
func (t *Table) kept(s *shape, c *Claims, elem int32, threshold int64, now uint32) bool {
	for _, k := range s.keeps {
		if k.horizon.Load() < now {
			continue
		}
		for i := range k.classes { // of each key
			if e := &k.classes[i]; e.class == ClassKeep && e.horizon.Load() >= now && t.keepCovers(k, e, c, elem, threshold, now) {
				return true
			}
		}
	}
	return false
}

func (t *Table) keepCovers(k *shape, e *classEntry, c *Claims, elem int32, threshold int64, now uint32) bool {
	f, ok := k.fingerprint(e, c, elem)
	if !ok {
		return false
	}
	it, ok := t.store.Lookup(f.key(), now)
	return ok && (int64(it.Data[0]) >= threshold || faults.Mutant("wide-keep"))
}

// outranked reports whether a block has been followed by a block or unblock of the same match under the other key, which decides.
func (t *Table) outranked(r Record, s *shape, slot uint8, c *Claims, elem int32, now uint32) bool {
	e := s.otherLive(ClassBlock, slot, now)
	if e == nil {
		return false
	}
	f, ok := s.fingerprint(e, c, elem)
	if !ok {
		return false
	}
	it, ok := t.store.Lookup(f.key(), now)
	if !ok {
		return false
	}
	later := t.unpack(it, s)
	return later.Value > r.Value && effect(later, s, c, now) == effectNone
}

// lifetimeCause says whether records about the token may be gone already: it lives longer than its issuer's
// cutoffs are kept, or is long expired.
func (t *Table) lifetimeCause(c *Claims, now int64) Cause {
	if !c.hasExp || !c.hasIAT {
		return CauseLifetime
	}
	if c.exp+int64(t.slack)*1000 < now {
		return CauseExpired
	}
	settings := t.policy.Load().Settings(c.Issuer())
	if c.exp-c.iat > settings.lifetime(c.iat).Milliseconds() {
		return CauseLifetime
	}
	return CauseNone
}
