package revocation

import (
	"testing"

	"pgregory.net/rapid"
)

// older is a Rest made of a table. In doubt it says so about what is there, and about a part of what is not.
type older struct {
	table  *Table
	now    int64
	doubts bool
}

func (o older) Held(f Fingerprint) (Record, Holding) {
	r, ok := o.table.Get(f, o.now)
	switch {
	case o.doubts && (ok || f.Lo%4 == 0):
		return Record{}, Doubtful
	case ok:
		return r, Present
	}
	return Record{}, Absent
}

// Records in two places answer like the same records in one; with a filter in place of the older ones never differently, unless in doubt.
func TestCheckWith(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		whole, before, after := newTable(t, worldPolicy), newTable(t, worldPolicy), newTable(t, worldPolicy)
		var all []Revocation
		now := t0
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			at := t0 - rapid.Int64Range(0, 2*hour).Draw(t, "made before")
			if plan, err := whole.Plan(drawRequest(t, at), at, at); err == nil {
				all = append(all, plan.Revocations...)
			}
		}
		for _, r := range all {
			put(t, whole, r, now)
			if rapid.Bool().Draw(t, "older") {
				put(t, before, r, now)
			} else {
				put(t, after, r, now)
			}
		}
		for _, l := range before.LiveClasses(now) {
			if err := after.Await(l, now); err != nil {
				t.Fatal(err)
			}
		}
		// A block that another one has superseded is forgotten where the two met, and comes back where they did not once the other has expired.
		latest := 6 * hour
		for _, r := range all {
			if r.Class == ClassBlock {
				latest = 0
			}
		}
		for range 8 {
			at := now + rapid.Int64Range(0, latest).Draw(t, "checked later")
			tok := drawToken(t, at)
			c := claims(t, tok.payload())
			want := whole.Check(c, at)
			if got := after.CheckWith(c, at, older{before, at, false}); got.Status != want.Status || got.Cause != want.Cause {
				t.Fatalf("at %d, %s: %s (%s), in one table %s (%s)", at-t0, tok.payload(), got.Status, got.Cause, want.Status, want.Cause)
			}
			got := after.CheckWith(c, at, older{before, at, true})
			if got.Cause != CauseUnanswered && (got.Status != want.Status || got.Cause != want.Cause) {
				t.Fatalf("at %d, in doubt, %s: %s (%s), in one table %s (%s)", at-t0, tok.payload(), got.Status, got.Cause, want.Status, want.Cause)
			}
		}
	})
}

// nothing is the Rest of a table that is all.
type nothing struct{}

func (nothing) Held(Fingerprint) (Record, Holding) { return Record{}, Absent }

func TestCheckWithAllocatesNothing(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "iss=a,sub=u")}, t0)
	c := token(t, t0-minute, map[string]any{"iss": "a", "sub": "u"})
	var rest Rest = nothing{}
	if n := testing.AllocsPerRun(100, func() { table.CheckWith(c, t0, rest) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// The definition of a keep's shape arrives before its first record: a check between the two finds no keep.
func TestKeepAnnounced(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "iss=a,sub=u")}, t0)
	keep := Shape{Names: []string{"iss", "jti", "sub"}, Compared: IAT, Keep: true, KeepOf: []string{"iss", "sub"}}
	if _, err := table.Define(keep, uint32(t0/1000)+3600, t0, Unbound); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "the token", table.Check(token(t, t0-minute, map[string]any{"iss": "a", "sub": "u", "jti": "1"}), t0), Revoked)
}
