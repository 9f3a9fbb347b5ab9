package revocation

import "github.com/revokd/revokd/ttlstore"

// Step is one thing that [Table.Explain] tried.
type Step struct {
	Shape  *Shape
	Class  Class  // the class group looked for
	Result string // miss, missing_claim, unusable_claim, revokes, kept, not_below, lifted, ended, unknown_class
	Found  *Rule  // nil if nothing was found
}

// Explain answers like Check and tells every shape that was tried and what it found. It allocates, and walks
// as Check does, without its limit on probes.
func (t *Table) Explain(c *Claims, now int64) (Verdict, []Step) {
	verdict := t.Check(c, now)
	sec := unixSeconds(now)
	v := t.view.Load()
	var steps []Step
	for _, g := range v.groups {
		var values [MaxMatchClaims]Value
		array, n, outcome := g.values(c, &values)
		for i := range g.entries {
			e := &g.entries[i]
			if e.horizon.Load() < sec {
				continue
			}
			step := Step{Shape: &e.shape.Shape, Class: e.class}
			switch outcome {
			case KindMissing:
				step.Result = "missing_claim"
			case KindUnusable:
				step.Result = "unusable_claim"
			default:
				step.Result = "miss"
			}
			if outcome != KindString {
				steps = append(steps, step)
				continue
			}
			for elem := range n {
				if array >= 0 {
					claimed := c.get(g.known[array], g.names[array])
					values[array] = c.elements(claimed)[elem]
				}
				f := t.hash.fingerprint(&g.prefix, values[:len(g.names)]).xor(e.tweak)
				steps = append(steps, t.explainOne(step, f, e, c, int32(elem), now))
			}
			if n == 0 {
				steps = append(steps, step)
			}
		}
	}
	return verdict, steps
}

func (t *Table) explainOne(step Step, f Fingerprint, e *entry, c *Claims, elem int32, now int64) Step {
	it, ok := t.store.Lookup(ttlstore.Key{Hi: f.Hi, Lo: f.Lo}, unixSeconds(now))
	if !ok {
		return step
	}
	r := t.unpack(it, e.shape)
	step.Class = r.Class
	step.Found = &Rule{Shape: &e.shape.Shape, Class: r.Class, Reason: r.Reason, ExpiresAt: r.ExpiresAt, Value: r.Value}
	switch effect(r, e.shape, c, now) {
	case effectRevokes:
		step.Result = "revokes"
		if r.Class == ClassIssuedBefore && t.kept(e.shape, c, elem, r.Value, now) {
			step.Result = "kept"
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
