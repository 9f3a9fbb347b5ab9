package revocation

import "github.com/revokd/revokd/ttlstore"

// Step is one thing that [Table.Explain] tried.
type Step struct {
	Shape  *Shape
	Class  Class  // the class group looked for
	Result string // miss, missing_claim, unusable_claim, revokes, kept, not_below, lifted, ended, unknown_class
	Found  *Rule  // nil if nothing was found
	// ComparedClaim says why a threshold caught the token without a comparison: missing, malformed (no integer, or no time), or "".
	ComparedClaim string
}

// Explain answers like Check and tells every shape that was tried and what it found. It allocates, and walks
// as Check does, without its limit on probes.
func (t *Table) Explain(c *Claims, now int64) (Verdict, []Step) {
	verdict := t.Check(c, now)
	sec := unixSeconds(now)
	v := t.view.Load()
	var steps []Step
	for i := range v.groups {
		g := &v.groups[i]
		values := make([]*Value, g.n)
		elems, at, outcome := g.values(c, values)
		for j := range v.entries[g.from:g.to] {
			e := &v.entries[int(g.from)+j]
			if e.horizon.Load() < sec {
				continue
			}
			step := Step{Shape: &e.shape.Shape, Class: e.class, Result: "miss"}
			rounds := 1
			switch {
			case outcome == KindMissing:
				step.Result, rounds = "missing_claim", 0
			case outcome == KindUnusable:
				step.Result, rounds = "unusable_claim", 0
			case at >= 0:
				rounds = len(elems)
			}
			if rounds == 0 {
				steps = append(steps, step)
			}
			for k := range rounds {
				if at >= 0 {
					values[at] = &elems[k]
				}
				steps = append(steps, t.explain(step, g.start.hash(values).xor(e.tweak), e, c, int32(k), sec))
			}
		}
	}
	return verdict, steps
}

// uncompared says what keeps a threshold from comparing; "" if it did compare, or is none.
func uncompared(r Record, s *shape, c *Claims) string {
	v := c.value(&s.compared)
	_, isInt := v.AsInt()
	switch {
	case r.Class == ClassIssuedBefore && c.hasIAT, r.Class == ClassBelow && isInt, r.Class != ClassIssuedBefore && r.Class != ClassBelow:
		return ""
	case v.kind == KindMissing:
		return "missing"
	}
	return "malformed"
}

// explain returns step with what was found under a fingerprint.
func (t *Table) explain(step Step, f Fingerprint, e *entry, c *Claims, elem int32, now uint32) Step {
	s := e.shape
	it, ok := t.store.Lookup(ttlstore.Key{Hi: f.Hi, Lo: f.Lo}, now)
	if !ok {
		return step
	}
	r := t.unpack(it, s)
	found := r.rule(s)
	step.Class, step.Found = r.Class, &found
	switch effect(r, s, c, now) {
	case effectRevokes:
		step.Result = "revokes"
		step.ComparedClaim = uncompared(r, s, c)
		if r.Class == ClassIssuedBefore && t.kept(s, c, elem, r.Value, now) {
			step.Result = "kept"
		}
		if r.Class == ClassBlock && t.outranked(r, s, e.slot, c, elem, now) {
			step.Result = "lifted"
		}
	case effectUnknown:
		step.Result = "unknown_class"
	default:
		switch r.Class {
		case ClassUnblock:
			step.Result = "lifted"
		case ClassBlock:
			step.Result = "ended"
		default:
			step.Result = "not_below"
		}
	}
	return step
}
