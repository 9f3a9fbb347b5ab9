package revocation

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/revokd/revokd/ttlstore"
)

var otherKey = Key{15: 1}

func added(t testing_, r Ring, k Key) Ring {
	t.Helper()
	next, err := r.Add(k)
	if err != nil {
		t.Fatalf("Add: %v", err)
	}
	return next
}

func used(t testing_, r Ring, k Key) Ring {
	t.Helper()
	next, err := r.Use(k.ID())
	if err != nil {
		t.Fatalf("Use: %v", err)
	}
	return next
}

func dropped(t testing_, r Ring, k Key) Ring {
	t.Helper()
	next, err := r.Drop(k.ID())
	if err != nil {
		t.Fatalf("Drop: %v", err)
	}
	return next
}

// twoKeys returns the ring of testKey and otherKey, the second one in use.
func twoKeys(t testing_) Ring {
	t.Helper()
	return used(t, added(t, NewRing(testKey), otherKey), otherKey)
}

// under returns a record under the key with a number.
func under(ring Ring, number uint8, r Revocation) Record {
	ring.primary = number
	return ring.Record(r)
}

func putUnder(t testing_, table *Table, number uint8, r Revocation, now int64) {
	t.Helper()
	if _, err := table.Define(r.Shape, r.ExpiresAt, now, Unbound); err != nil {
		t.Fatalf("Define %s: %v", r.Shape, err)
	}
	if _, err := table.Merge(under(table.Ring(), number, r), 1, now, false); err != nil {
		t.Fatalf("Merge %s: %v", r.Shape, err)
	}
}

func ringTable(t testing_, ring Ring, p Policy) *Table {
	t.Helper()
	table, err := NewTable(TableConfig{Ring: ring, Policy: p, Store: ttlstore.Config{MaxItems: 1 << 16, Heap: true}})
	if err != nil {
		t.Fatalf("NewTable: %v", err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

func TestRing(t *testing.T) {
	first := NewRing(testKey)
	if !first.Single() || first.Name() != testKey.ID() || !first.Has(0, testKey.ID()) || first.Had(0) || first.Had(1) {
		t.Fatalf("%s", first)
	}
	two := added(t, first, otherKey)
	if got := two.Keys(); len(got) != 2 || got[0] != (RingKey{testKey.ID(), 0, true}) || got[1] != (RingKey{otherKey.ID(), 1, false}) || two.Single() {
		t.Fatalf("%+v", got)
	}
	inUse := used(t, two, otherKey)
	if got := inUse.Keys(); got[0] != (RingKey{otherKey.ID(), 1, true}) || got[1] != (RingKey{testKey.ID(), 0, false}) {
		t.Fatalf("%+v", got)
	}
	if back := used(t, inUse, testKey); back.primary != 0 || back.Compare(inUse) <= 0 {
		t.Fatalf("%s", back)
	}
	one := dropped(t, inUse, testKey)
	if got := one.Keys(); len(got) != 1 || got[0].ID != otherKey.ID() || !one.Had(0) || one.Had(1) || one.Name() != testKey.ID() {
		t.Fatalf("%+v", got)
	}

	// Numbers do not come again, whatever was dropped.
	again := added(t, dropped(t, two, otherKey), Key{7})
	if again.keys[1].number != 3 || !again.Had(1) || again.Had(2) != true {
		t.Fatalf("%+v", again.Keys())
	}
	if next := added(t, one, Key{7}); next.keys[0].number != 2 {
		t.Fatalf("%+v", next.Keys())
	}

	for _, refused := range []struct {
		what string
		kind string
		do   func() error
	}{
		{"a third key", "conflict", func() error { _, err := two.Add(Key{9}); return err }},
		{"the same key", "conflict", func() error { _, err := first.Add(testKey); return err }},
		{"the first key again", "conflict", func() error { _, err := one.Add(testKey); return err }},
		{"no key", "out_of_range", func() error { _, err := first.Add(Key{}); return err }},
		{"use of what is in use", "conflict", func() error { _, err := two.Use(testKey.ID()); return err }},
		{"use of what is not there", "missing", func() error { _, err := two.Use(Key{9}.ID()); return err }},
		{"use without another key", "missing", func() error { _, err := first.Use(Key{}.ID()); return err }},
		{"drop of what is in use", "conflict", func() error { _, err := two.Drop(testKey.ID()); return err }},
		{"drop of what is not there", "missing", func() error { _, err := first.Drop(otherKey.ID()); return err }},
	} {
		wantField(t, refused.do(), "key", refused.kind)
		_ = refused.what
	}
}

// A cluster can have 256 keys, one after the other.
func TestRingNumbers(t *testing.T) {
	ring := NewRing(testKey)
	last := testKey
	for i := 1; i <= maxKeyNumber; i++ {
		next := Key{1, byte(i), byte(i >> 8)}
		ring = dropped(t, used(t, added(t, ring, next), next), last)
		last = next
	}
	if keys := ring.Keys(); len(keys) != 1 || keys[0].Number != maxKeyNumber {
		t.Fatalf("%+v", keys)
	}
	_, err := ring.Add(Key{2})
	wantField(t, err, "key", "out_of_range")
}

// Rings are totally ordered, and what was put to use is larger than whatever was not.
func TestRingOrder(t *testing.T) {
	first := NewRing(testKey)
	two := added(t, first, otherKey)
	inUse := used(t, two, otherKey)
	ascending := []Ring{first, two, dropped(t, two, otherKey), added(t, dropped(t, two, otherKey), Key{7}), inUse, dropped(t, inUse, testKey), used(t, inUse, testKey)}
	for i, a := range ascending {
		for j, b := range ascending {
			if got, want := a.Compare(b), 0; i < j && got >= 0 || i > j && got <= 0 || i == j && got != want {
				t.Errorf("%d and %d: %d", i, j, got)
			}
		}
	}
	// Two additions at once.
	x, y := added(t, first, Key{1, 1}), added(t, first, Key{1, 2})
	if x.Compare(y) == 0 || x.Compare(y) != -y.Compare(x) {
		t.Errorf("%d and %d", x.Compare(y), y.Compare(x))
	}
}

func TestRingEncoding(t *testing.T) {
	rings := []Ring{NewRing(testKey), added(t, NewRing(testKey), otherKey), twoKeys(t), dropped(t, twoKeys(t), testKey)}
	for _, want := range rings {
		b, _ := want.MarshalBinary()
		if got, err := ParseRing(b); err != nil || got != want {
			t.Fatalf("%s, %v; want %s", got, err, want)
		}
		for n := range b {
			if _, err := ParseRing(b[:n]); !errors.Is(err, ErrKey) {
				t.Fatalf("%d bytes of %d: %v", n, len(b), err)
			}
		}
		if text := fmt.Sprintf("%v %+v %s", want, want, want); strings.Contains(text, fmt.Sprint(otherKey[:])) || strings.Contains(text, "15 0") {
			t.Errorf("%s tells a key", text)
		}
	}
	good, _ := twoKeys(t).MarshalBinary()
	for what, change := range map[string]func(b []byte) []byte{
		"version":           func(b []byte) []byte { b[0] = 2; return b },
		"name":              func(b []byte) []byte { b[1]++; return b },
		"more uses":         func(b []byte) []byte { b[12] = 9; return b },
		"number beyond":     func(b []byte) []byte { b[ringHeader] = 3; return b },
		"primary not there": func(b []byte) []byte { b[18] = 2; return b },
		"no keys":           func(b []byte) []byte { b[19] = 0; return b[:ringHeader] },
		"three keys":        func(b []byte) []byte { b[19] = 3; return append(b, make([]byte, ringKeySize)...) },
		"a key of zeros":    func(b []byte) []byte { clear(b[ringHeader+1 : ringHeader+ringKeySize]); return b },
		"one slot":          func(b []byte) []byte { b[17], b[ringHeader] = 2, 2; return b },
		"one key twice": func(b []byte) []byte {
			copy(b[ringHeader+1:ringHeader+ringKeySize], b[ringHeader+ringKeySize+1:])
			return b
		},
		"something behind it": func(b []byte) []byte { return append(b, 0) },
	} {
		if got, err := ParseRing(change(append([]byte(nil), good...))); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %s, %v", what, got, err)
		}
	}
}

func FuzzParseRing(f *testing.F) {
	b, _ := NewRing(testKey).MarshalBinary()
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Ring
		var err error
		wantAllocated(t, 0, func() { r, err = ParseRing(b) })
		if err != nil {
			if !errors.Is(err, ErrKey) || r != (Ring{}) {
				t.Fatalf("%s, %v", r, err)
			}
			return
		}
		again, _ := r.MarshalBinary()
		if back, err := ParseRing(again); err != nil || back != r {
			t.Fatalf("%s, %v; want %s", back, err, r)
		}
	})
}

// A table takes records of the keys in force, and of no others; a key goes only when all its records have expired.
func TestRingInForce(t *testing.T) {
	first := NewRing(testKey)
	two, inUse := added(t, first, otherKey), twoKeys(t)
	rev := writtenBy(t, Request{Match: match(t, "iss=a,jti=1"), ExpiresAt: t0 + hour}, t0)
	alive := claims(t, fmt.Sprintf(`{"iss":"a","jti":"1","iat":%d,"exp":%d}`, t0/1000, (t0+hour)/1000))
	table := newTable(t, Policy{})
	if _, err := table.Define(rev.Shape, rev.ExpiresAt, t0, Unbound); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, number uint8) {
		t.Helper()
		if _, err := table.Merge(under(inUse, number, rev), 1, t0, false); !errors.Is(err, ErrKey) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	refused("a record of a key to come", 1)
	if err := newTable(t, Policy{}).SetRing(dropped(t, inUse, testKey), 0); err != nil {
		t.Fatalf("without records, at no time: %v", err)
	}
	wantStatus(t, "refused", table.Check(alive, t0), Active)
	if err := table.SetRing(two, t0); err != nil {
		t.Fatal(err)
	}
	if err := table.SetRing(two, t0); !errors.Is(err, ErrKey) {
		t.Fatalf("the same ring again: %v", err)
	}
	if err := table.SetRing(first, t0); !errors.Is(err, ErrKey) {
		t.Fatalf("an older ring: %v", err)
	}
	if err := table.SetRing(used(t, added(t, NewRing(Key{8}), Key{9}), Key{9}), t0); err == nil {
		t.Fatal("the ring of another cluster")
	}
	if got := table.Record(rev); got.KeyNumber() != 0 || got != testKey.Record(rev) {
		t.Fatalf("%+v", got)
	}
	if _, err := table.Merge(table.Record(rev), 1, t0, false); err != nil {
		t.Fatal(err)
	}
	if err := table.SetRing(inUse, t0); err != nil {
		t.Fatal(err)
	}
	if got := table.Record(rev); got.KeyNumber() != 1 || got.Fingerprint == testKey.Record(rev).Fingerprint {
		t.Fatalf("%+v", got)
	}
	wantStatus(t, "under the older key", table.Check(alive, t0), Revoked)

	// A forged record with the fingerprint of one under another key is refused.
	forged := testKey.Record(rev)
	forged.Flags = 1
	if _, err := table.Merge(forged, 1, t0, false); !errors.Is(err, ErrRecord) {
		t.Fatalf("%v", err)
	}

	one := dropped(t, inUse, testKey)
	end := int64(table.LiveUntil(0)) * 1000
	if want := t0 + hour + DefaultSlack.Milliseconds(); end != want {
		t.Fatalf("live until %d, want %d", end, want)
	}
	if err := table.Retire(one, end); !errors.Is(err, ErrKey) {
		t.Fatalf("in its last second: %v", err)
	}
	wantStatus(t, "kept", table.Check(alive, t0), Revoked)
	longer := rev
	longer.ExpiresAt += 9 * 3600
	if err := table.Retire(one, end+1000); err != nil {
		t.Fatal(err)
	}
	for _, number := range []uint8{0, 2} {
		if _, err := table.Merge(under(Ring{keys: [2]ringKey{{key: testKey, number: number}}}, number, longer), 1, end+1000, false); !errors.Is(err, ErrKey) {
			t.Fatalf("a record of a key that goes: %v", err)
		}
	}
	if _, err := table.Merge(under(inUse, 1, longer), 1, end+1000, false); err != nil {
		t.Fatal(err)
	}
	if table.Ring() != inUse {
		t.Fatalf("%s is in force", table.Ring())
	}
	table.Sweep(end + 1000) // what is about to go stays so
	if _, err := table.Merge(testKey.Record(longer), 1, end+1000, false); !errors.Is(err, ErrKey) {
		t.Fatalf("%v", err)
	}
	if err := table.SetRing(one, end+1000); err != nil {
		t.Fatal(err)
	}
	// The number of the key that has gone is not that of one which takes its slot.
	if err := table.SetRing(added(t, one, Key{7}), end+1000); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Merge(testKey.Record(longer), 1, end+1000, false); !errors.Is(err, ErrKey) {
		t.Fatalf("%v", err)
	}
	if _, err := table.Merge(testKey.Record(rev), 1, end+1000, false); err != nil {
		t.Fatalf("what has expired changes nothing: %v", err)
	}
	if got := table.LiveUntil(2); got != 0 {
		t.Fatalf("live until %d", got)
	}
}

func writtenBy(t testing_, r Request, now int64) Revocation {
	t.Helper()
	plan, err := newTable(t, Policy{}).Plan(r, now, now)
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	return plan.Main()
}

// Random histories answer under two keys, in whatever mixture, as under one: whole, and beside a filter.
func TestTwoKeysLikeOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ring := twoKeys(t)
		one, two := newTable(t, worldPolicy), ringTable(t, ring, worldPolicy)
		before, after := ringTable(t, ring, worldPolicy), ringTable(t, ring, worldPolicy)
		now, latest := t0, int64(math.MaxInt64)
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			at := t0 - rapid.Int64Range(0, 2*hour).Draw(t, "made before")
			plan, err := one.Plan(drawRequest(t, at), at, at)
			if err != nil {
				continue
			}
			for _, r := range plan.Revocations {
				put(t, one, r, now)
				number := rapid.Uint8Range(0, 1).Draw(t, "key")
				putUnder(t, two, number, r, now)
				if rapid.Bool().Draw(t, "older") {
					putUnder(t, before, number, r, now)
				} else {
					putUnder(t, after, number, r, now)
				}
				if r.Class != ClassBlock && r.Class != ClassUnblock {
					// Of two thresholds of a match under two keys each lasts as long as it must; joined, the larger lasts as long as the longer.
					latest = min(latest, int64(r.ExpiresAt)*1000+DefaultSlack.Milliseconds())
				}
			}
		}
		for _, l := range before.LiveClasses(now) {
			if err := after.Await(l, now); err != nil {
				t.Fatal(err)
			}
		}
		latest = max(now, min(latest, now+6*hour))
		for range 8 {
			at := rapid.Int64Range(now, latest).Draw(t, "checked")
			tok := drawToken(t, at)
			c := claims(t, tok.payload())
			want, got := one.Check(c, at), two.Check(c, at)
			if got.Status != want.Status || got.Cause != want.Cause {
				t.Fatalf("at %d, %s: %s (%s), under one key %s (%s)", at-t0, tok.payload(), got.Status, got.Cause, want.Status, want.Cause)
			}
			explained(t, two, c, at, got)
			for _, doubts := range []bool{false, true} {
				got := after.CheckWith(c, at, older{before, at, doubts})
				if doubts && got.Cause == CauseUnanswered {
					continue
				}
				if got.Status != want.Status || got.Cause != want.Cause {
					t.Fatalf("at %d, in two places (doubts %v), %s: %s (%s), under one key %s (%s)", at-t0, doubts, tok.payload(), got.Status, got.Cause, want.Status, want.Cause)
				}
			}
		}
	})
}

// What belongs together does so under whichever keys it lies.
func TestHistoriesOfTwoKeys(t *testing.T) {
	user := match(t, "iss=a,sub=u")
	tok := token(t, t0-minute, map[string]any{"iss": "a", "sub": "u", "jti": "1", "sid": "s"})
	planned := func(r Request, at int64) []Revocation {
		plan, err := newTable(t, Policy{}).Plan(r, at, at)
		if err != nil {
			t.Fatal(err)
		}
		return plan.Revocations
	}
	cutoff := func(at int64) Request { return Request{Match: user, Cutoff: true, IssuedBefore: at} }
	keep := func(at int64) Request {
		r := cutoff(at)
		r.Keep = []Match{match(t, "iss=a,sid=s")}
		return r
	}
	block := func(action Action) Request { return Request{Match: user, Action: action} }
	type step struct {
		key uint8
		Request
		at int64
	}
	for _, h := range []struct {
		name  string
		steps []step
		want  Status
	}{
		{"a cutoff of before the rotation still catches", []step{{0, cutoff(t0), t0}}, Revoked},
		{"a keep exempts from the cutoff of its call", []step{{0, keep(t0 - 10*second), t0}}, Active},
		{"not from a later cutoff under the other key", []step{{0, keep(t0 - 10*second), t0}, {1, cutoff(t0), t0}}, Revoked},
		{"an earlier cutoff under the other key changes nothing for what was kept", []step{{0, cutoff(t0 - 20*second), t0}, {1, keep(t0 - 10*second), t0}}, Active},
		{"a block under the older key", []step{{0, block(Block), t0}}, Revoked},
		{"is lifted under the newer", []step{{0, block(Block), t0}, {1, block(Unblock), t0 + second}}, Active},
		{"and comes back", []step{{0, block(Block), t0}, {1, block(Unblock), t0 + second}, {1, block(Block), t0 + 2*second}}, Revoked},
		{"an unblock of a node that had not heard of the newer key", []step{{1, block(Block), t0}, {0, block(Unblock), t0 + second}}, Active},
		{"an older unblock lifts nothing", []step{{0, block(Unblock), t0}, {1, block(Block), t0 + second}}, Revoked},
	} {
		t.Run(h.name, func(t *testing.T) {
			table := ringTable(t, twoKeys(t), Policy{})
			for _, s := range h.steps {
				for _, r := range planned(s.Request, s.at) {
					putUnder(t, table, s.key, r, t0)
				}
			}
			wantStatus(t, h.name, table.Check(tok, t0+3*second), h.want)
			wantStatus(t, h.name+", beside a filter of nothing", table.CheckWith(tok, t0+3*second, nothing{}), h.want)
		})
	}
}

// At a tie of stamps block wins, whichever key it lies under; and a new stamp lies above those under both.
func TestTiesOfTwoKeys(t *testing.T) {
	tok := token(t, t0-minute, map[string]any{"iss": "a", "sub": "u"})
	stamped := func(action Action, at int64) Revocation {
		return writtenBy(t, Request{Match: match(t, "iss=a,sub=u"), Action: action}, at)
	}
	for number := range uint8(2) {
		table := ringTable(t, twoKeys(t), Policy{})
		putUnder(t, table, number, stamped(Block, t0), t0)
		putUnder(t, table, 1-number, stamped(Unblock, t0), t0)
		wantStatus(t, "at a tie", table.Check(tok, t0), Revoked)

		unblock := stamped(Unblock, t0-hour) // of a clock that is behind
		twin, ok := table.Twin(unblock, t0)
		if !ok || twin.KeyNumber() != 0 {
			t.Fatalf("%+v, %v", twin, ok)
		}
		r, err := table.Stamp(table.Record(unblock), twin, t0, t0)
		if err != nil || r.Value != t0+1 || r.KeyNumber() != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		if _, err := table.Merge(r, 2, t0, false); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, "lifted", table.Check(tok, t0), Active)
	}
	// Without records under the other key there is none to look at.
	if _, ok := ringTable(t, twoKeys(t), Policy{}).Twin(stamped(Block, t0), t0); ok {
		t.Error("a twin of nothing")
	}
	if _, ok := newTable(t, Policy{}).Twin(stamped(Block, t0), t0); ok {
		t.Error("a twin under no key")
	}
}

// The limit of probes is for each key: records of a second one take no check away from the first.
func TestMaxProbesOfTwoKeys(t *testing.T) {
	table := ringTable(t, twoKeys(t), Policy{})
	payload := map[string]any{"iss": "a"}
	for i := range MaxProbes {
		name := fmt.Sprintf("c%02d", i)
		payload[name] = "x"
		for number := range uint8(2) {
			r := writtenBy(t, Request{Match: match(t, name+"=y"), Cutoff: true, IssuedBefore: t0}, t0)
			putUnder(t, table, number, r, t0)
		}
	}
	wantStatus(t, "64 shapes under both keys", table.Check(token(t, t0-minute, payload), t0), Active)
	for number := range uint8(2) {
		putUnder(t, table, number, writtenBy(t, Request{Match: match(t, "iss=z,c00=y"), Cutoff: true, IssuedBefore: t0}, t0), t0)
	}
	wantUnknown(t, "65", table.Check(token(t, t0-minute, payload), t0), CauseProbes)
}

func TestCheckOfTwoKeysAllocatesNothing(t *testing.T) {
	table := ringTable(t, twoKeys(t), Policy{})
	block := func(action Action, at int64) Revocation {
		return writtenBy(t, Request{Match: match(t, "iss=a,sub=u"), Action: action}, at)
	}
	putUnder(t, table, 0, block(Block, t0), t0)
	putUnder(t, table, 1, block(Unblock, t0+second), t0)
	c := token(t, t0-minute, map[string]any{"iss": "a", "sub": "u"})
	var rest Rest = nothing{}
	if n := testing.AllocsPerRun(100, func() { table.Check(c, t0); table.CheckWith(c, t0, rest) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A block is not certain while something may lie under the other key that lifts it.
func TestDoubtOfTwoKeys(t *testing.T) {
	table := ringTable(t, twoKeys(t), Policy{})
	block := func(action Action, at int64) Revocation {
		return writtenBy(t, Request{Match: match(t, "iss=a,sub=u"), Action: action}, at)
	}
	putUnder(t, table, 0, block(Block, t0), t0)
	r := block(Unblock, t0+second)
	if err := table.Await(LiveClass{Shape: r.Shape, Class: ClassBlock, Key: 1, Until: uint32(t0/1000) + 3600}, t0); err != nil {
		t.Fatal(err)
	}
	c := token(t, t0-minute, map[string]any{"iss": "a", "sub": "u"})
	wantUnknown(t, "in doubt", table.CheckWith(c, t0, doubtful(under(table.Ring(), 1, r).Fingerprint)), CauseUnanswered)
	wantStatus(t, "nothing there", table.CheckWith(c, t0, nothing{}), Revoked)
	if err := table.Await(LiveClass{Shape: r.Shape, Class: ClassBlock, Key: 2, Until: uint32(t0/1000) + 3600}, t0); !errors.Is(err, ErrKey) {
		t.Errorf("%v", err)
	}
}

// doubtful is a Rest that may hold one record.
type doubtful Fingerprint

func (d doubtful) Held(f Fingerprint) (Record, Holding) {
	if f == Fingerprint(d) {
		return Record{}, Doubtful
	}
	return Record{}, Absent
}
