package revocation

import (
	"github.com/revokd/revokd/ttlstore"
)

// pendingProbes is how many probes a check keeps in flight: what a token needs at six live shapes, and then some.
const pendingProbes = 16

// Pending is a check that has begun: its fingerprints are made and the memory they need is on its way. It
// belongs to one goroutine; the zero value is ready for [Table.Begin], and a Pending may be used again.
type Pending struct {
	table  *Table
	view   *view
	claims *Claims
	now    int64
	cursor cursor
	used   int // probes made so far, all rounds
	n      int // probes in flight
	cause  Cause
	probes [pendingProbes]probe
}

// cursor is where the walk over groups, array elements and entries goes on.
type cursor struct {
	group, elem, entry int
}

type probe struct {
	key   ttlstore.Key
	probe ttlstore.Probe
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
	p.table, p.view, p.claims, p.now = t, t.view.Load(), c, now
	p.cursor, p.used, p.n, p.cause = cursor{}, 0, 0, CauseNone
	p.fill()
}

// fill puts probes in flight until there is no room or no more to ask. It reports whether the walk is complete.
func (p *Pending) fill() (complete bool) {
	sec := unixSeconds(p.now)
	for ; p.cursor.group < len(p.view.groups); p.cursor = (cursor{group: p.cursor.group + 1}) {
		g := p.view.groups[p.cursor.group]
		live := false
		for i := range g.entries {
			live = live || g.entries[i].horizon.Load() >= sec
		}
		if !live {
			continue
		}
		var values [MaxMatchClaims]Value
		array, n, outcome := g.values(p.claims, &values)
		switch outcome {
		case KindMissing:
			continue
		case KindUnusable:
			p.cause = CauseClaim
			continue
		}
		for ; p.cursor.elem < n; p.cursor.elem, p.cursor.entry = p.cursor.elem+1, 0 {
			if array >= 0 {
				v := p.claims.get(g.known[array], g.names[array])
				values[array] = p.claims.elements(v)[p.cursor.elem]
			}
			base, hashed := Fingerprint{}, false
			for ; p.cursor.entry < len(g.entries); p.cursor.entry++ {
				e := &g.entries[p.cursor.entry]
				if e.horizon.Load() < sec {
					continue
				}
				if p.n == len(p.probes) {
					return false
				}
				if p.used == MaxProbes {
					p.cause = CauseProbes
					return true
				}
				if !hashed {
					base, hashed = p.table.hash.fingerprint(&g.prefix, values[:len(g.names)]), true
				}
				f := base.xor(e.tweak)
				q := &p.probes[p.n]
				q.key = ttlstore.Key{Hi: f.Hi, Lo: f.Lo}
				q.probe = p.table.store.Prepare(q.key)
				q.entry, q.elem = e, int32(p.cursor.elem)
				p.n++
				p.used++
			}
		}
	}
	return true
}

func (c *Claims) get(known int8, name string) Value {
	if known >= 0 {
		return c.known[known]
	}
	return c.other(name)
}

// values collects the claims that g names. array is the position of an array claim or -1, n the number of
// combinations. outcome is KindMissing if a claim is not there, so that nothing can match, KindUnusable if one
// cannot be compared, else KindString.
func (g *group) values(c *Claims, out *[MaxMatchClaims]Value) (array, n int, outcome Kind) {
	array, n, outcome = -1, 1, KindString
	for i, known := range g.known {
		v := c.get(known, g.names[i])
		switch v.kind {
		case KindMissing:
			return array, 0, KindMissing
		case KindUnusable:
			outcome = KindUnusable
		case KindArray:
			if array >= 0 {
				outcome = KindUnusable // one array claim in a shape at most
			}
			array, n = i, int(v.n&0xff)
		}
		out[i] = v
	}
	return array, n, outcome
}

// End finishes the check.
func (p *Pending) End() Verdict {
	for complete := false; ; {
		// Which part of the walk is in flight was decided by the fill before; a second fill tells whether there is more.
		for i := range p.n {
			q := &p.probes[i]
			if p.table.store.HasProbe(&q.probe, unixSeconds(p.now)) {
				if rule, revoked := p.judge(q); revoked {
					return Verdict{Status: Revoked, Rule: rule}
				}
			}
		}
		if complete {
			break
		}
		p.n = 0
		complete = p.fill()
		if p.n == 0 {
			break
		}
	}
	if p.cause == CauseNone {
		p.cause = p.table.lifetimeCause(p.claims, p.now)
	}
	if p.cause != CauseNone {
		return Verdict{Status: Unknown, Cause: p.cause}
	}
	return Verdict{Status: Active}
}

// judge looks at the record of a probe that hit, and notes in p.cause what cannot be judged.
func (p *Pending) judge(q *probe) (Rule, bool) {
	it, ok := p.table.store.Lookup(q.key, unixSeconds(p.now))
	if !ok {
		return Rule{}, false
	}
	r := p.table.unpack(it, q.entry.shape)
	rule := Rule{Shape: &q.entry.shape.Shape, Class: r.Class, Reason: r.Reason, ExpiresAt: r.ExpiresAt, Value: r.Value}
	switch effect(r, q.entry.shape, p.claims, p.now) {
	case effectRevokes:
		if r.Class == ClassIssuedBefore && p.table.kept(q.entry.shape, p.claims, q.elem, r.Value, p.now) {
			return rule, false
		}
		return rule, true
	case effectUnknown:
		p.cause = CauseClass
	}
	return rule, false
}

type effectKind uint8

const (
	effectNone effectKind = iota
	effectRevokes
	effectUnknown
)

// effect says what a record that matches by its fingerprint does to a token, keeps apart.
func effect(r Record, s *shape, c *Claims, now int64) effectKind {
	switch r.Class {
	case ClassDeny:
		return effectRevokes
	case ClassIssuedBefore:
		if c.hasIAT && c.iat >= r.Value {
			return effectNone
		}
		return effectRevokes
	case ClassBelow:
		if n, ok := c.Lookup(s.Compared).AsInt(); ok && n >= r.Value {
			return effectNone
		}
		return effectRevokes
	case ClassBlock:
		if now > int64(r.ExpiresAt)*1000+999 {
			return effectNone // a block ends at its ExpiresAt; the slack only keeps it as what unblocks are compared with
		}
		return effectRevokes
	case ClassUnblock, ClassKeep:
		return effectNone
	}
	return effectUnknown
}

// kept reports whether a keep exempts the token from a cutoff: one made with that shape and these very values
// (those of array element elem), by a request whose cutoff was not lower.
func (t *Table) kept(s *shape, c *Claims, elem int32, threshold, now int64) bool {
	for _, k := range s.keeps {
		if t.keepCovers(k, c, elem, threshold, now) {
			return true
		}
	}
	return false
}

func (t *Table) keepCovers(k *shape, c *Claims, elem int32, threshold, now int64) bool {
	if k.horizon.Load() < unixSeconds(now) {
		return false
	}
	var values [maxShapeNames]Value
	for i, name := range k.Names {
		val := c.Lookup(name)
		if val.kind == KindArray && inDeny(k, i) {
			val = c.elements(val)[elem]
		}
		if !val.scalar() {
			return false
		}
		values[i] = val
	}
	f := t.hash.fingerprint(&k.prefix, values[:len(k.Names)]).xor(k.keepTweak)
	it, ok := t.store.Lookup(ttlstore.Key{Hi: f.Hi, Lo: f.Lo}, unixSeconds(now))
	return ok && int64(it.Data[0]) >= threshold
}

// inDeny reports whether the name at position i of a keep's shape is one of the cutoff it belongs to.
func inDeny(k *shape, i int) bool {
	for _, at := range k.keepFrom {
		if int(at) == i {
			return true
		}
	}
	return false
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
