package revocation

import (
	"testing"

	"pgregory.net/rapid"
)

// drawContender draws a record that contends for one key with every other of its group. Few values, so that ties happen.
func drawContender(group Class) *rapid.Generator[Record] {
	return rapid.Custom(func(t *rapid.T) Record {
		class := group
		if group == ClassBlock && rapid.Bool().Draw(t, "lifts") {
			class = ClassUnblock
		}
		return Record{
			Fingerprint: Fingerprint{1, 2}, Shape: 3, Class: class,
			Value:     rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, maxNumericDate*1000-1)).Draw(t, "value"),
			ExpiresAt: rapid.OneOf(rapid.Uint32Range(1, 4), rapid.Uint32Range(1, maxExpiresAt)).Draw(t, "expires"),
			Reason:    Reason(rapid.Byte().Draw(t, "reason")),
			Flags:     rapid.Uint16().Draw(t, "flags"),
		}
	})
}

// Every group of classes, with one that this version does not know.
var groups = []Class{ClassDeny, ClassIssuedBefore, ClassBelow, ClassBlock, ClassKeep, 77}

func TestMergeLaws(t *testing.T) {
	for _, group := range groups {
		t.Run(group.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				g := drawContender(group)
				a, b, c := g.Draw(t, "a"), g.Draw(t, "b"), g.Draw(t, "c")
				ab := Join(a, b)
				if ab != Join(b, a) {
					t.Fatalf("not commutative: %+v, %+v", ab, Join(b, a))
				}
				if left, right := Join(ab, c), Join(a, Join(b, c)); left != right {
					t.Fatalf("not associative: %+v, %+v", left, right)
				}
				if Join(a, a) != a {
					t.Fatalf("not idempotent: %+v", Join(a, a))
				}
				if !Covers(ab, a) || !Covers(ab, b) || !Covers(a, a) {
					t.Fatalf("%+v does not cover what it joins", ab)
				}
				if Covers(a, b) && Covers(b, a) && a != b {
					t.Fatalf("two records cover each other: %+v, %+v", a, b)
				}
				if Covers(a, b) && Covers(b, c) && !Covers(a, c) {
					t.Fatal("covers is not transitive")
				}
			})
		})
	}
}

// A join denies at least what either record did, for at least as long, unless it is an unblock that wins.
func TestJoinIsNeverLessStrict(t *testing.T) {
	for _, group := range groups {
		t.Run(group.String(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				g := drawContender(group)
				a, b := g.Draw(t, "a"), g.Draw(t, "b")
				j := Join(a, b)
				if group == ClassBlock {
					// The larger stamp decides, a block at a tie: so a later block is never undone by an older unblock.
					newest := a
					if b.Value > a.Value || b.Value == a.Value && a.Class == ClassUnblock {
						newest = b
					}
					if j.Class != newest.Class || j.Value != newest.Value || j.ExpiresAt < newest.ExpiresAt {
						t.Fatalf("join %+v, the newest is %+v", j, newest)
					}
					return
				}
				if j.ExpiresAt < a.ExpiresAt || j.ExpiresAt < b.ExpiresAt || j.Class != a.Class {
					t.Fatalf("join %+v of %+v and %+v", j, a, b)
				}
				if group != ClassDeny && (j.Value < a.Value || j.Value < b.Value) {
					t.Fatalf("threshold %d below %d or %d", j.Value, a.Value, b.Value)
				}
				if group == ClassDeny && (j.Value > a.Value || j.Value > b.Value) {
					t.Fatalf("a deny made at %d, not at %d or %d", j.Value, a.Value, b.Value)
				}
			})
		})
	}
}

// What a merge returns is what has to be written and sent: exactly what the table did not have.
func TestDelta(t *testing.T) {
	table := newTable(t, Policy{})
	rev := Revocation{Match: match(t, "iss=i,sub=s"), Shape: Shape{Names: []string{"iss", "sub"}, Compared: IAT}, Class: ClassIssuedBefore, Value: t0, ExpiresAt: seconds(t0 + day)}
	if _, err := table.Define(rev.Shape, rev.ExpiresAt, t0, Unbound); err != nil {
		t.Fatal(err)
	}
	first := testKey.Record(rev)
	merge := func(r Record, dot uint64) Delta {
		t.Helper()
		d, err := table.Merge(r, dot, t0, false)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if d := merge(first, 1); d != (Delta{Changed: true, Record: first, Dot: 1}) {
		t.Fatalf("new: %+v", d)
	}
	if d := merge(first, 2); d != (Delta{Record: first, Dot: 1}) {
		t.Fatalf("again: %+v", d)
	}
	older := first
	older.Value -= hour
	if d := merge(older, 3); d != (Delta{Record: first, Dot: 1}) {
		t.Fatalf("covered: %+v", d)
	}
	newer := first
	newer.Value += second
	newer.ExpiresAt++
	if d := merge(newer, 4); d != (Delta{Changed: true, Record: newer, Dot: 4}) {
		t.Fatalf("replaced: %+v", d)
	}
	longer := first
	longer.ExpiresAt += 100
	both := newer
	both.ExpiresAt = longer.ExpiresAt
	if d := merge(longer, 5); d != (Delta{Changed: true, Record: both, Joined: true}) {
		t.Fatalf("joined: %+v", d)
	}
	if d := merge(longer, 5); d != (Delta{Record: both, Loose: true}) {
		t.Fatalf("a part of what was joined: %+v", d)
	}
	if d := merge(both, 7); d != (Delta{Record: both, Dot: 7, Loose: true}) {
		t.Fatalf("named: %+v", d)
	}
	if d := merge(longer, 5); d != (Delta{Record: both, Dot: 7}) {
		t.Fatalf("a part of what is named: %+v", d)
	}
	if held, dot, ok := table.Held(first, t0); !ok || held != both || dot != 7 {
		t.Fatalf("held %+v %d %v", held, dot, ok)
	}
	table.Rename(longer, 8, t0) // not what is held
	if _, dot, _ := table.Held(first, t0); dot != 7 {
		t.Fatalf("other content got the name %d", dot)
	}
	table.Rename(both, 8, t0)
	if held, dot, ok := table.Held(first, t0); !ok || held != both || dot != 8 {
		t.Fatalf("renamed: %+v %d %v", held, dot, ok)
	}
	// It would go back and forth between nodes that have forgotten it and others that have not yet.
	rev.Match, rev.Value, rev.ExpiresAt = match(t, "iss=i,sub=past"), t0-day, seconds(t0-hour)
	past := testKey.Record(rev)
	if d := merge(past, 6); d.Changed {
		t.Fatalf("a record whose retention has passed changed something: %+v", d)
	}
}

// What only a forged or damaged record can be is refused and changes nothing.
func TestMergeRefusesForgedRecords(t *testing.T) {
	table := newTable(t, Policy{})
	deny := Revocation{Match: match(t, "iss=i,jti=1"), Shape: Shape{Names: []string{"iss", "jti"}}, Class: ClassDeny, Value: t0, ExpiresAt: seconds(t0 + day)}
	cutoff := deny
	cutoff.Shape.Compared, cutoff.Class = IAT, ClassIssuedBefore
	put(t, table, deny, t0)
	put(t, table, cutoff, t0)
	good := testKey.Record(deny)
	forge := func(change func(*Record)) Record { r := good; change(&r); return r }
	for name, r := range map[string]Record{
		"class 0":                  forge(func(r *Record) { r.Class = 0 }),
		"no ExpiresAt":             forge(func(r *Record) { r.ExpiresAt = 0 }),
		"endless":                  forge(func(r *Record) { r.ExpiresAt = ^uint32(0) }),
		"time beyond times":        forge(func(r *Record) { r.Value = -1 }),
		"cutoff of a plain shape":  forge(func(r *Record) { r.Class = ClassIssuedBefore }),
		"keep of a plain shape":    forge(func(r *Record) { r.Class = ClassKeep }),
		"below of a plain shape":   forge(func(r *Record) { r.Class = ClassBelow }),
		"deny of a cutoff's shape": forge(func(r *Record) { r.Shape = cutoff.Shape.ID() }),
		"key of another shape":     forge(func(r *Record) { r.Class, r.Shape = ClassIssuedBefore, cutoff.Shape.ID() }),
		"key of another class":     forge(func(r *Record) { r.Class = ClassBlock }),
	} {
		if _, err := table.Merge(r, 1, t0, false); !isErr(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := table.Merge(forge(func(r *Record) { r.Shape++ }), 1, t0, false); !isErr(err, ErrUnknownShape) {
		t.Errorf("a shape that nobody defined: %v", err)
	}
	if held, _, ok := table.Held(good, t0); !ok || held != good {
		t.Errorf("held %+v %v", held, ok)
	}
}
