package revocation

import (
	"testing"

	"pgregory.net/rapid"
)

// exchange gives each table what the other one has, as two nodes do after a partition.
func exchange(t testing_, a, b *Table, now int64) {
	t.Helper()
	for _, way := range [][2]*Table{{a, b}, {b, a}} {
		var all []Record
		way[0].Range(Fingerprint{}, now, func(r Record, _ uint64) bool { all = append(all, r); return true })
		for _, r := range all {
			s, _ := way[0].Shape(r.Shape)
			if _, err := way[1].Define(s, r.RetainUntil(), now, Unbound); err != nil {
				t.Fatalf("Define: %v", err)
			}
			if _, err := way[1].Merge(r, 1, now, false); err != nil {
				t.Fatalf("Merge: %v", err)
			}
		}
	}
}

// A block that was replaced by a shorter one does not come back when that has ended, from whoever never saw it.
func TestReplacedBlockStaysReplaced(t *testing.T) {
	a, b := newTable(t, Policy{}), newTable(t, Policy{})
	user := match(t, "iss=i,sub=s")
	write(t, a, Request{Action: Block, Match: user, ExpiresAt: t0 + 30*day}, t0)
	exchange(t, a, b, t0)
	write(t, a, Request{Action: Block, Match: user, ExpiresAt: t0 + hour}, t0+second)

	now := t0 + day
	tok := token(t, now, map[string]any{"iss": "i", "sub": "s"})
	a.Sweep(now)
	b.Sweep(now)
	wantStatus(t, "where the shorter block has ended", a.Check(tok, now), Active)
	wantStatus(t, "where it was never seen", b.Check(tok, now), Revoked)
	exchange(t, a, b, now)
	wantStatus(t, "where the shorter block has ended, after the exchange", a.Check(tok, now), Active)
	wantStatus(t, "where it was never seen, after the exchange", b.Check(tok, now), Active)
}

// Whatever two replicas were asked to block and unblock, and whenever they swept and saw each other: after an exchange both hold the call with the latest stamp.
func TestBlocksConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tables := []*Table{newTable(t, Policy{}), newTable(t, Policy{})}
		user := match(t, "iss=i,sub=s")
		rev := Revocation{Match: user, Shape: Shape{Names: []string{"iss", "sub"}}}
		var latest Record
		now := t0
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			table := rapid.SampledFrom(tables).Draw(t, "table")
			now += rapid.SampledFrom([]int64{1, hour, 40 * day}).Draw(t, "pause")
			switch rapid.SampledFrom([]string{"block", "unblock", "sweep", "exchange"}).Draw(t, "what") {
			case "block":
				rev.Class, rev.Value = ClassBlock, now
				rev.ExpiresAt = seconds(now + rapid.SampledFrom([]int64{second, day, 400 * day}).Draw(t, "for"))
			case "unblock":
				rev.Class, rev.Value, rev.ExpiresAt = ClassUnblock, now, unblockExpiry(now)
			case "sweep":
				table.Sweep(now)
				continue
			case "exchange":
				exchange(t, tables[0], tables[1], now)
				continue
			}
			put(t, table, rev, now)
			latest = testKey.Record(rev)
		}
		exchange(t, tables[0], tables[1], now)
		if latest.Class == 0 {
			return
		}
		want := Active
		if latest.Class == ClassBlock && unixSeconds(now) <= latest.ExpiresAt {
			want = Revoked
		}
		tok := token(t, now, map[string]any{"iss": "i", "sub": "s"})
		for _, table := range tables {
			wantStatus(t, "after the exchange", table.Check(tok, now), want)
		}
	})
}

// The table gives back what it was given, whatever it makes of the deadline and the stamp meanwhile.
func TestBlocksAsGiven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newTable(t, Policy{})
		rev := Revocation{Match: match(t, "iss=i,sub=s"), Shape: Shape{Names: []string{"iss", "sub"}}}
		rev.Class = rapid.SampledFrom([]Class{ClassBlock, ClassUnblock}).Draw(t, "class")
		rev.Value = rapid.OneOf(rapid.Int64Range(t0-30*day, t0+30*day), rapid.Int64Range(t0, maxStamp)).Draw(t, "stamp")
		rev.ExpiresAt = rapid.Uint32Range(seconds(t0), unblockExpiry(rev.Value)).Draw(t, "expires")
		want := testKey.Record(rev)
		put(t, table, rev, t0)
		if held, dot, ok := table.Held(want, t0); !ok || held != want || dot != 1 {
			t.Fatalf("held %+v %d %v, want %+v", held, dot, ok, want)
		}
		last := int64(want.RetainUntil()) + int64(table.slack)
		if _, _, ok := table.Held(want, last*1000+999); !ok {
			t.Fatal("gone in its last second")
		}
		if _, _, ok := table.Held(want, last*1000+1000); ok {
			t.Fatal("there after its last second")
		}
	})
}

// What no writer can have made: a block that outlives what older ones are compared with, and a stamp whose retention has no number.
func TestRefusedBlocks(t *testing.T) {
	r := Record{Class: ClassBlock, Value: t0, ExpiresAt: unblockExpiry(t0), Shape: 1}
	if err := r.valid(); err != nil {
		t.Errorf("the longest block: %v", err)
	}
	r.ExpiresAt++
	if err := r.valid(); !isErr(err, ErrRecord) {
		t.Errorf("a longer one: %v", err)
	}
	r.Class, r.Value, r.ExpiresAt = ClassUnblock, maxStamp, unblockExpiry(maxStamp)
	if err := r.valid(); err != nil {
		t.Errorf("the latest stamp: %v", err)
	}
	r.Value++
	if err := r.valid(); !isErr(err, ErrRecord) {
		t.Errorf("a later one: %v", err)
	}
}
