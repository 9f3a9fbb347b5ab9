package revocation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/ttlstore"
)

// What nobody has filled in is Unknown, invalid or empty, never Active.
func TestZeroValues(t *testing.T) {
	if v := (Verdict{}); v.Status != Unknown || v.Status.String() != "unknown" || v.Cause.String() != "" {
		t.Errorf("%+v", v)
	}
	if v := new(Pending).End(); v != (Verdict{}) {
		t.Errorf("%+v", v)
	}
	table := newTable(t, Policy{})
	if v := table.Check(new(Claims), t0); v.Status != Unknown || v.Cause != CauseLifetime {
		t.Errorf("%+v", v)
	}
	write(t, table, Request{}, t0)
	wantStatus(t, "no claims, everything revoked", table.Check(new(Claims), t0), Revoked)
	if v := (Value{}); v.Kind() != KindMissing || v.Kind().String() != "missing" {
		t.Errorf("%+v", v)
	}
	if err := (Record{}).valid(); !errors.Is(err, ErrRecord) {
		t.Error(err)
	}
	if len((Match{}).Names()) != 0 || string(must(Match{}.MarshalJSON())) != "{}" {
		t.Error("the zero match names something")
	}
	if s := (Shape{}); !s.valid() || s.String() != "{}" {
		t.Errorf("%s", s)
	}
	if _, ok := (Rule{}).Since(); ok {
		t.Error("the zero rule was made at some time")
	}
	if since, ok := (Rule{Class: ClassDeny, Value: t0}).Since(); !ok || since != t0 {
		t.Error(since, ok)
	}
	if _, ok := (Rule{Class: ClassBelow, Value: 7}).Since(); ok {
		t.Error("a version is no time")
	}
}

func TestWords(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"active": Active, "revoked": Revoked, "not_ready": CauseNotReady, "stale": CauseStale, "lifetime": CauseLifetime, "expired": CauseExpired, "claim": CauseClaim,
		"class": CauseClass, "probes": CauseProbes, "string": KindString, "integer": KindInt, "boolean": KindBool, "array": KindArray, "unusable": KindUnusable,
		"{a,b}<iat keep of {a}": Shape{Names: []string{"a", "b"}, Compared: IAT, Keep: true, KeepOf: []string{"a"}},
	} {
		if got.String() != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// A record is found until its ExpiresAt and the slack after it, to the second, before and after a sweep.
func TestNeverEarly(t *testing.T) {
	for _, slack := range []time.Duration{0, time.Second, 90 * time.Second, 1500 * time.Millisecond} {
		table, err := NewTable(TableConfig{Key: testKey, Slack: slack, Store: ttlstore.Config{MaxItems: 1000, Heap: true}})
		if err != nil {
			t.Fatal(err)
		}
		if slack == 0 {
			slack = DefaultSlack
		}
		exp := t0 + 500 // rounded up to the second
		write(t, table, Request{Match: match(t, "jti=1"), ExpiresAt: exp}, t0)
		c := token(t, t0-minute, map[string]any{"jti": "1", "exp": (t0 + day) / 1000})
		last := t0 + second + ms(slack+time.Second-1)/1000*1000 + 999
		for _, now := range []int64{t0, exp, exp + ms(slack), last} {
			table.Sweep(now)
			wantStatus(t, fmt.Sprint(slack, " at exp + ", now-exp), table.Check(c, now), Revoked)
		}
		if v := table.Check(c, last+1); v.Status == Revoked {
			t.Errorf("slack %s: kept longer", slack)
		}
		if stats := table.Sweep(last + 1); stats.Expired != 1 || table.Stats(last+1).Items != 0 {
			t.Errorf("swept %+v, held %+v", stats, table.Stats(last+1))
		}
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A token is named by its header's key id and by the SHA-256 of its signing input, not by payload claims of those names.
func TestPartsOutsideThePayload(t *testing.T) {
	sum := sha256.Sum256([]byte("header.payload"))
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "header.kid=k1")}, t0)
	write(t, table, Request{Match: match(t, "token.sha256="+hex.EncodeToString(sum[:]))}, t0)
	base := func() *Claims {
		return token(t, t0, map[string]any{"header.kid": "k1", "token.sha256": hex.EncodeToString(sum[:])})
	}
	wantStatus(t, "payload claims of those names", table.Check(base(), t0), Active)
	c := base()
	c.SetHeaderKID("k1")
	wantStatus(t, "key id", table.Check(c, t0), Revoked)
	c.SetHeaderKID("k2")
	wantStatus(t, "another key id", table.Check(c, t0), Active)
	c.SetSigningInput(sum)
	wantStatus(t, "signing input", table.Check(c, t0), Revoked)
	c.SetSigningInput(sha256.Sum256([]byte("header.payload.signature")))
	wantStatus(t, "another input", table.Check(c, t0), Active)
}

// A record of a class that this version does not know is stored and passed on, and a token that it matches is Unknown.
func TestUnknownClass(t *testing.T) {
	for _, s := range []Shape{{Names: []string{"iss", "sub"}}, {Names: []string{"iss", "sub"}, Compared: "ver"}, {Names: []string{"iss", "sub"}, Compared: IAT, Keep: true, KeepOf: []string{"iss"}}} {
		table := newTable(t, Policy{})
		rev := Revocation{Match: match(t, "iss=i,sub=u"), Shape: s, Class: 77, Value: -5, ExpiresAt: seconds(t0 + day), Reason: 200}
		put(t, table, rev, t0)
		c := token(t, t0, map[string]any{"iss": "i", "sub": "u"})
		v, steps := table.Explain(c, t0)
		wantUnknown(t, "it matches", v, CauseClass)
		if len(steps) != 1 || steps[0].Result != "unknown_class" || steps[0].Found.Class != 77 {
			t.Errorf("%+v", steps)
		}
		wantStatus(t, "it does not", table.Check(token(t, t0, map[string]any{"iss": "i", "sub": "v"}), t0), Active)
		if got := content(table, t0); len(got) != 1 || got[0] != testKey.Record(rev) {
			t.Errorf("passed on: %+v", got)
		}
		write(t, table, Request{Match: match(t, "iss=i,sub=u")}, t0+second)
		wantStatus(t, "a rule that is known says Revoked", table.Check(c, t0+second), Revoked)
	}
}

// A check looks at 64 combinations of shapes and array elements. What lies beyond them is Unknown, never Active.
func TestMaxProbes(t *testing.T) {
	table := newTable(t, Policy{})
	elems := func(prefix string) (list []string) {
		for i := range MaxArrayElements {
			list = append(list, fmt.Sprint(prefix, i))
		}
		return list
	}
	for i := range 4 {
		write(t, table, Request{Match: match(t, fmt.Sprintf("a%d=other", i))}, t0)
	}
	payload := map[string]any{"a0": elems("x"), "a1": elems("x"), "a2": elems("x"), "a3": elems("x"), "z": "z"}
	wantStatus(t, "64", table.Check(token(t, t0-minute, payload), t0), Active)
	write(t, table, Request{Match: match(t, "a3=x15")}, t0)
	wantStatus(t, "the 64th is revoked", table.Check(token(t, t0-minute, payload), t0), Revoked)
	payload["a3"] = elems("y")
	write(t, table, Request{Match: match(t, "z=other")}, t0)
	wantUnknown(t, "65", table.Check(token(t, t0-minute, payload), t0), CauseProbes)
	payload["a3"] = "y"
	wantStatus(t, "50", table.Check(token(t, t0-minute, payload), t0), Active)
}

// More live shapes than are kept in flight at once are asked in rounds; each of them decides.
func TestManyShapes(t *testing.T) {
	const n = MaxProbes
	table := newTable(t, Policy{})
	for i := range n {
		write(t, table, Request{Match: match(t, fmt.Sprintf("c%02d=revoked", i))}, t0)
	}
	for i := range n {
		payload := map[string]any{}
		for j := range n {
			payload[fmt.Sprintf("c%02d", j)] = "x"
		}
		var p Pending
		table.Begin(token(t, t0-minute, payload), t0, &p)
		wantStatus(t, "none", p.End(), Active)
		payload[fmt.Sprintf("c%02d", i)] = "revoked"
		c := token(t, t0-minute, payload)
		table.Begin(c, t0, &p)
		wantStatus(t, fmt.Sprint("shape ", i), p.End(), Revoked)
		wantStatus(t, fmt.Sprint("shape ", i), table.Check(c, t0), Revoked)
	}
}

// Shapes without live records cost nothing, not even a verdict: what they name is not looked at.
func TestShapesWithoutLiveRecords(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "sid=s"), ExpiresAt: t0 + second}, t0)
	if _, err := table.Define(Shape{Names: []string{"announced"}}, seconds(t0+day), t0, Admin); err != nil {
		t.Fatal(err)
	}
	odd := map[string]any{"sid": 1.5, "announced": 1.5}
	wantUnknown(t, "live", table.Check(token(t, t0, odd), t0), CauseClaim)
	now := t0 + second + ms(DefaultSlack) + second
	wantStatus(t, "expired", table.Check(token(t, now, odd), now), Active)
	if _, steps := table.Explain(token(t, now, odd), now); len(steps) != 0 {
		t.Errorf("%+v", steps)
	}
}

func TestCheckAllocatesNothing(t *testing.T) {
	table := newTable(t, Policy{Issuers: map[string]Settings{"i": {}}})
	for _, r := range []Request{
		{Match: match(t, "iss=i,sub=u"), Keep: []Match{match(t, "iss=i,sid=s"), match(t, "jti=1")}},
		{Match: match(t, "iss=i,sub=other"), Below: &Below{Claim: "/deep/ver", Value: 2}},
		{Match: match(t, "aud=other,iss=i")},
		{Match: match(t, "/org/id=x")},
		{Match: match(t, "/a~1b/c~0d=x")},
		{Match: match(t, "custom=x,another=y")},
		{Match: match(t, "jti=x")},
		{Match: match(t, "sid=x")},
		{Action: Block, Match: match(t, "iss=i,sub=blocked")},
	} {
		write(t, table, r, t0)
	}
	long := strings.Repeat("x", MaxValueBytes)
	list := slices.Repeat([]string{"x"}, MaxArrayElements)
	for name, c := range map[string]*Claims{
		"kept":    token(t, t0-minute, map[string]any{"iss": "i", "sub": "u", "sid": "s", "jti": "2"}),
		"revoked": token(t, t0-minute, map[string]any{"iss": "i", "sub": "u", "sid": "t", "jti": "2"}),
		"blocked": token(t, t0, map[string]any{"iss": "i", "sub": "blocked", "deep": map[string]any{"ver": 2}}),
		"usual":   token(t, t0, map[string]any{"iss": "i", "sub": "v", "sid": "t", "jti": "2", "aud": "a", "client_id": "c"}),
		"odd": token(t, t0, map[string]any{
			"iss": "i", "sub": long, "aud": list, "org": []int{1}, "a/b": map[string]any{"c~d": long}, "custom": list, "another": long, "jti": 5,
		}),
		"empty": new(Claims),
	} {
		var p Pending
		if n := testing.AllocsPerRun(100, func() { table.Check(c, t0) }); n != 0 {
			t.Errorf("%s: Check allocates %v times", name, n)
		}
		if n := testing.AllocsPerRun(100, func() { table.Begin(c, t0, &p); p.End() }); n != 0 {
			t.Errorf("%s: Begin and End allocate %v times", name, n)
		}
	}
}

func TestRange(t *testing.T) {
	table := newTable(t, Policy{})
	for i := range 100 {
		write(t, table, Request{Match: match(t, fmt.Sprint("jti=", i)), ExpiresAt: t0 + second + int64(i%2)*day}, t0)
	}
	all := content(table, t0)
	if len(all) != 100 || !slices.IsSortedFunc(all, compareRecords) {
		t.Fatalf("%d records", len(all))
	}
	if n := len(content(table, t0+hour)); n != 50 {
		t.Errorf("%d records are live", n)
	}
	var from []Record
	table.Range(all[40].Fingerprint, t0, func(r Record, dot uint64) bool { from = append(from, r); return len(from) < 10 && dot == 1 })
	if !slices.Equal(from, all[40:50]) {
		t.Errorf("from the 41st: %+v", from)
	}
}

func compareRecords(a, b Record) int {
	if a.Fingerprint.Hi != b.Fingerprint.Hi {
		return map[bool]int{true: -1, false: 1}[a.Fingerprint.Hi < b.Fingerprint.Hi]
	}
	return map[bool]int{true: -1, false: 1}[a.Fingerprint.Lo < b.Fingerprint.Lo]
}

// At the limit writes fail loudly; what is held stays, can be raised, and peers have the reserve.
func TestFull(t *testing.T) {
	table, err := NewTable(TableConfig{Key: testKey, Store: ttlstore.Config{MaxItems: 64, Reserve: 16, Heap: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	merge := func(i int, value int64, limited bool) error {
		rev := Revocation{Match: match(t, fmt.Sprint("sub=", i)), Shape: Shape{Names: []string{"sub"}, Compared: IAT}, Class: ClassIssuedBefore, Value: value, ExpiresAt: seconds(t0 + day)}
		if _, err := table.Define(rev.Shape, rev.ExpiresAt, t0, map[bool]Definer{true: Admin}[limited]); err != nil {
			t.Fatal(err)
		}
		_, err := table.Merge(testKey.Record(rev), 1, t0, limited)
		return err
	}
	held := 0
	for ; held < 1000 && merge(held, t0, true) == nil; held++ {
	}
	if held == 0 || held == 1000 {
		t.Fatalf("%d records were taken", held)
	}
	if err := merge(held, t0, true); !errors.Is(err, ErrFull) || !errors.Is(err, ttlstore.ErrFull) {
		t.Fatal(err)
	}
	if err := merge(0, t0+second, true); err != nil {
		t.Errorf("a cutoff that is held cannot be raised: %v", err)
	}
	if err := merge(held, t0, false); err != nil {
		t.Errorf("the reserve: %v", err)
	}
	for i := range held + 1 {
		wantStatus(t, fmt.Sprint("record ", i), table.Check(token(t, t0-minute, map[string]any{"sub": fmt.Sprint(i)}), t0), Revoked)
	}
}

// While shapes are defined, forgotten and defined again, and views replace each other, no record that was merged is missed
// by a check that begins afterwards.
func TestViewsUnderStress(t *testing.T) {
	table := newTable(t, Policy{Default: Settings{MaxTokenLifetime: 100 * 24 * time.Hour}})
	var now atomic.Int64
	now.Store(t0)
	const shapes, rounds = 24, 4000
	var writers, others sync.WaitGroup
	done := make(chan struct{})
	var missed, merged, late atomic.Int64
	for w := range 2 {
		writers.Go(func() {
			for i := range rounds {
				n := now.Load()
				name := fmt.Sprintf("n%02d", (i*7+w)%shapes)
				c := new(Claims)
				c.SetIssuedAt(n - hour)
				c.SetExpiresAt(n + hour)
				value := String(fmt.Sprint(w, "-", i))
				_ = c.Set(name, value)
				m, err := NewMatch(map[string]Value{name: value})
				if err != nil {
					t.Error(err)
					return
				}
				rev := Revocation{Match: m, Shape: Shape{Names: []string{name}}, Class: ClassBlock, Value: n, ExpiresAt: seconds(n + minute)}
				if i%3 == 0 {
					rev.Shape.Compared, rev.Class = IAT, ClassIssuedBefore
				}
				if _, err := table.Define(rev.Shape, rev.ExpiresAt, n, Unbound); err != nil {
					t.Error(err)
					return
				}
				_, err = table.Merge(testKey.Record(rev), 1, n, false)
				if err != nil {
					if errors.Is(err, ErrUnknownShape) && now.Load() > n {
						late.Add(1) // time has passed over the record before it was merged
						continue
					}
					t.Error(err)
					return
				}
				merged.Add(1)
				if v := table.Check(c, n); v.Status != Revoked && now.Load() == n {
					missed.Add(1)
				}
			}
		})
	}
	others.Go(func() { // time passes in steps after which shapes are forgotten, at most one for each write: it must not leave 32 bits
		for last := int64(-1); ; {
			select {
			case <-done:
				return
			default:
				table.Sweep(now.Load())
				if n := merged.Load() + late.Load(); n != last {
					last = n
					table.Sweep(now.Add(3 * hour))
				}
			}
		}
	})
	others.Go(func() { // readers walk whatever view there is
		c := token(t, t0, map[string]any{"n00": "x", "n01": "y", "n02": "z"})
		for {
			select {
			case <-done:
				return
			default:
				table.Explain(c, now.Load())
				table.Range(Fingerprint{}, now.Load(), func(Record, uint64) bool { return false })
				table.Shapes()
			}
		}
	})
	writers.Wait()
	close(done)
	others.Wait()
	if n := missed.Load(); n > 0 {
		t.Errorf("%d of %d merged records were missed", n, merged.Load())
	}
	if merged.Load() < rounds/4 {
		t.Errorf("only %d records were merged in time, %d were late: the test tests nothing", merged.Load(), late.Load())
	}
}

// Explain says when a threshold caught a token because there was nothing to compare.
func TestExplainUncompared(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "sub=u"), Below: &Below{Claim: "ver", Value: 7}}, t0)
	write(t, table, Request{Match: match(t, "sub=v")}, t0)
	for _, tc := range []struct {
		claims map[string]any
		want   string
	}{
		{map[string]any{"sub": "u"}, "missing"},
		{map[string]any{"sub": "u", "ver": "9"}, "malformed"},
		{map[string]any{"sub": "u", "ver": 6}, ""},
		{map[string]any{"sub": "v", "iat": "x"}, "malformed"},
		{map[string]any{"sub": "v", "iat": nil}, "missing"},
		{map[string]any{"sub": "v", "iat": t0/1000 - 1}, ""},
	} {
		v, steps := table.Explain(token(t, t0, tc.claims), t0)
		wantStatus(t, fmt.Sprint(tc.claims), v, Revoked)
		got := "no step revokes"
		for _, s := range steps {
			if s.Result == "revokes" {
				got = s.ComparedClaim
			}
		}
		if got != tc.want {
			t.Errorf("%v: %q, want %q", tc.claims, got, tc.want)
		}
	}
}
