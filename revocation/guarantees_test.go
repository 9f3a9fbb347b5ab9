package revocation

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

// These are the histories that break a promise when one of the rules of the domain is missing. Each is named
// after what goes wrong.

// A thief logs out "all others" and keeps his own session. The victim's later "log out everywhere" and an
// administrator's global cutoff catch it all the same; so do a plain deny and a block.
func TestThiefKeepsHisSession(t *testing.T) {
	user, session := match(t, "iss=i,sub=victim"), match(t, "iss=i,sid=thief")
	thief := func(t *testing.T) (*Table, *Claims) {
		table := newTable(t, Policy{})
		c := token(t, t0-hour/2, map[string]any{"iss": "i", "sub": "victim", "sid": "thief"})
		write(t, table, Request{Match: user, Keep: []Match{session}}, t0)
		wantStatus(t, "kept", table.Check(c, t0), Active)
		other := token(t, t0-hour/2, map[string]any{"iss": "i", "sub": "victim", "sid": "victim's"})
		wantStatus(t, "not kept", table.Check(other, t0), Revoked)
		return table, c
	}
	for name, r := range map[string]Request{
		"everywhere": {Match: user},
		"global":     {},
		"issuer":     {Match: match(t, "iss=i")},
		"deny":       {Match: session},
		"block":      {Action: Block, Match: user},
		"version":    {Match: user, Below: &Below{Claim: "ver", Value: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			table, c := thief(t)
			write(t, table, r, t0+second)
			wantStatus(t, "after "+name, table.Check(c, t0+second), Revoked)
		})
	}
	t.Run("earlier but of another scope", func(t *testing.T) {
		table, c := thief(t)
		write(t, table, Request{Match: match(t, "sub=victim"), IssuedBefore: t0 - minute}, t0+second)
		wantStatus(t, "another shape's cutoff", table.Check(c, t0+second), Revoked)
	})
}

// A keep is worth nothing without the claim it names, with that claim as an array, or for another user's session of the same name.
func TestKeepIsNarrow(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "iss=i,sub=a"), Keep: []Match{match(t, "iss=i,jti=1")}}, t0)
	write(t, table, Request{Match: match(t, "iss=i,sub=b")}, t0)
	for payload, want := range map[string]Status{
		`"sub":"a","jti":"1"`:       Active,
		`"sub":"a"`:                 Revoked,
		`"sub":"a","jti":"2"`:       Revoked,
		`"sub":"a","jti":1`:         Revoked,
		`"sub":"a","jti":["1"]`:     Revoked,
		`"sub":"b","jti":"1"`:       Revoked,
		`"sub":["a","b"],"jti":"1"`: Revoked, // b's cutoff was made without a keep
		`"sub":["c","a"],"jti":"1"`: Active,
	} {
		c := claims(t, fmt.Sprintf(`{"iss":"i",%s,"iat":%d,"exp":%d}`, payload, t0/1000-60, t0/1000+60))
		wantStatus(t, payload, table.Check(c, t0), want)
	}
}

// A's clock is 30 s ahead and it reinstates a user; B suspends the user again 10 s later. B's stamp must not lie below
// A's, or the block would be covered without a word.
func TestBlockBehindAFastClock(t *testing.T) {
	b := newTable(t, Policy{})
	user := match(t, "iss=i,sub=u")
	c := token(t, t0, map[string]any{"iss": "i", "sub": "u"})
	write(t, b, Request{Action: Block, Match: user}, t0-hour)
	fromA, err := b.Plan(Request{Action: Unblock, Match: user}, t0+30*second, t0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b, fromA.Main(), t0)
	wantStatus(t, "reinstated by A", b.Check(c, t0), Active)

	now := t0 + 10*second
	plan := write(t, b, Request{Action: Block, Match: user}, now)
	wantStatus(t, "suspended by B", b.Check(c, now), Revoked)
	held, _, _ := b.Held(testKey.Record(plan.Main()), now)
	if held.Value != t0+30*second+1 {
		t.Fatalf("stamp %d after A's", held.Value-(t0+30*second))
	}

	// A stamp beyond 60 s ahead is refused, not clamped: this node's clock is behind.
	far := fromA.Main()
	far.Value = now + 61*second
	put(t, b, far, now)
	_, err = b.Stamp(testKey.Record(plan.Main()), Record{}, now, now)
	wantField(t, err, "stamp", "out_of_range")
}

// A block made before a partition must not come back when it heals and the unblock has long been heard, even if the ceiling was lowered meanwhile.
func TestOldBlockDoesNotComeBack(t *testing.T) {
	table := newTable(t, Policy{})
	user := match(t, "iss=i,sub=u")
	old, err := table.Plan(Request{Action: Block, Match: user}, t0, t0)
	if err != nil {
		t.Fatal(err)
	}
	low := policy(t, Policy{Ceiling: 30 * 24 * time.Hour})
	table.SetPolicy(low)
	write(t, table, Request{Action: Unblock, Match: user}, t0+second)
	for _, later := range []int64{2 * second, 40 * day, 400 * day} {
		now := t0 + later
		table.Sweep(now)
		put(t, table, old.Main(), now)
		wantStatus(t, fmt.Sprint(later/day, " days later"), table.Check(token(t, now, map[string]any{"iss": "i", "sub": "u"}), now), Active)
	}
}

// A block ends with the winning stamp's ExpiresAt, not with an older block's longer one, and the slack does not prolong it.
func TestBlockEnds(t *testing.T) {
	table := newTable(t, Policy{})
	user := match(t, "iss=i,sub=u")
	check := func(now int64) Verdict {
		return table.Check(token(t, now, map[string]any{"iss": "i", "sub": "u"}), now)
	}
	write(t, table, Request{Action: Block, Match: user, ExpiresAt: t0 + 10*day}, t0)
	write(t, table, Request{Action: Block, Match: user, ExpiresAt: t0 + day}, t0+second)
	wantStatus(t, "on its last second", check(t0+day+999), Revoked)
	wantStatus(t, "ended", check(t0+day+second), Active)
}

// The classes have keys of their own: a plain deny does not inherit a cutoff's deadline, nor a cutoff a deny's.
func TestClassesHaveKeysOfTheirOwn(t *testing.T) {
	table := newTable(t, Policy{})
	session := match(t, "iss=i,sid=s")
	c := func(iat int64) *Claims { return token(t, iat, map[string]any{"iss": "i", "sid": "s"}) }
	write(t, table, Request{Match: session, ExpiresAt: t0 + hour}, t0)
	write(t, table, Request{Match: session, Cutoff: true}, t0)
	write(t, table, Request{Action: Block, Match: session, ExpiresAt: t0 + minute}, t0)
	if n := len(content(table, t0)); n != 3 {
		t.Fatalf("%d records", n)
	}
	later := t0 + hour + 11*minute
	table.Sweep(later)
	wantStatus(t, "issued after the cutoff, the deny and the block have ended", table.Check(c(later), later), Active)
	wantStatus(t, "issued before the cutoff", table.Check(token(t, t0-minute, map[string]any{"iss": "i", "sid": "s", "exp": later/1000 + 60}), later), Revoked)
}

// No rule masks another: with every combination of rules over one token it is Revoked if and only if one of them alone revokes it.
// Each combination has a user of its own in one table.
func TestNoScopeMasksAnother(t *testing.T) {
	type rule struct {
		name string
		Request
		alone Status
	}
	iat := t0 - hour/2
	rules := func(u string) []rule {
		user := match(t, "iss=i,sub="+u)
		return []rule{
			{"old cutoff", Request{Match: user, IssuedBefore: iat}, Active},
			{"cutoff", Request{Match: user, IssuedBefore: t0 - minute}, Revoked},
			{"cutoff that keeps", Request{Match: user, IssuedBefore: t0 - second, Keep: []Match{match(t, "jti="+u)}}, Active},
			{"session", Request{Match: match(t, "iss=i,sid="+u)}, Revoked},
			{"session of another", Request{Match: match(t, "iss=i,sid=other"+u)}, Active},
			{"session at another issuer", Request{Match: match(t, "iss=j,sid="+u)}, Active},
			{"version", Request{Match: user, Below: &Below{Claim: "ver", Value: 3}}, Revoked},
			{"old version", Request{Match: user, Below: &Below{Claim: "ver", Value: 2}}, Active},
			{"unblock", Request{Action: Unblock, Match: user}, Active},
			{"block", Request{Action: Block, Match: match(t, "sub="+u)}, Revoked},
			{"tenant's cutoff", Request{Match: match(t, "tenant_id="+u)}, Revoked},
			{"one of the roles", Request{Match: match(t, "roles="+u+",iss=i"), Cutoff: true}, Revoked},
		}
	}
	n := len(rules("u"))
	table := newTable(t, Policy{})
	random := rand.New(rand.NewPCG(1, 2))
	for set := range 1 << n {
		u := fmt.Sprint("u", set)
		all := rules(u)
		want := Active
		var versions, cutoffs int
		for _, i := range random.Perm(n) {
			if set&(1<<i) == 0 {
				continue
			}
			write(t, table, all[i].Request, t0)
			if all[i].alone == Revoked {
				want = Revoked
			}
			switch all[i].name {
			case "version":
				versions++
			case "cutoff", "cutoff that keeps":
				cutoffs++
			}
		}
		// The one exception there is: a keep made with the newest cutoff exempts from that shape's cutoffs.
		if cutoffs == 2 && want == Revoked {
			want = Active
			for i, r := range all {
				if set&(1<<i) != 0 && r.alone == Revoked && r.name != "cutoff" {
					want = Revoked
				}
			}
		}
		c := token(t, iat, map[string]any{"iss": "i", "sub": u, "sid": u, "jti": u, "tenant_id": u, "ver": 2, "roles": []string{"x", u}})
		if v := table.Check(c, t0); v.Status != want {
			var names []string
			for i, r := range all {
				if set&(1<<i) != 0 {
					names = append(names, r.name)
				}
			}
			t.Fatalf("%s: %s, want %s", strings.Join(names, ", "), v.Status, want)
		}
	}
}

// A claim that a threshold compares and that is missing or malformed is below every threshold.
func TestMissingComparedClaim(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "sub=cutoff")}, t0)
	write(t, table, Request{Match: match(t, "sub=version"), Below: &Below{Claim: "ver", Value: 3}}, t0)
	for _, iat := range []string{``, `,"iat":null`, `,"iat":"1800000000"`, `,"iat":-1`, `,"iat":1800000001000`, `,"iat":1e300`, `,"iat":[1800000060]`, `,"iat":{}`, `,"iat":true`} {
		c := claims(t, `{"sub":"cutoff","exp":1800000060`+iat+`}`)
		wantStatus(t, "cutoff"+iat, table.Check(c, t0), Revoked)
		c = claims(t, `{"sub":"nobody","exp":1800000060`+iat+`}`)
		wantUnknown(t, "no cutoff"+iat, table.Check(c, t0), CauseLifetime)
	}
	for ver, want := range map[string]Status{
		``: Revoked, `,"ver":null`: Revoked, `,"ver":2`: Revoked, `,"ver":-9223372036854775808`: Revoked, `,"ver":"3"`: Revoked, `,"ver":3.0`: Revoked, `,"ver":3e0`: Revoked,
		`,"ver":[3]`: Revoked, `,"ver":{}`: Revoked, `,"ver":true`: Revoked, `,"ver":9223372036854775808`: Revoked, `,"ver":3`: Active, `,"ver":9223372036854775807`: Active,
	} {
		c := claims(t, fmt.Sprintf(`{"sub":"version","iat":%d,"exp":%d%s}`, t0/1000, t0/1000+60, ver))
		wantStatus(t, "version"+ver, table.Check(c, t0), want)
	}
}

// A value that cannot be compared, in a claim that a live shape names, is Unknown and never Active; if no live shape names it, it says nothing.
func TestUnusableClaims(t *testing.T) {
	long, longer := strings.Repeat("x", MaxValueBytes), strings.Repeat("x", MaxValueBytes+1)
	array := func(n int) string { return `["hit"` + strings.Repeat(`,"x"`, n-1) + `]` }
	cases := map[string]Status{ // of claim g, where hit and long are revoked
		`"hit"`: Revoked, `"miss"`: Active, `1`: Revoked, `"1"`: Active, `true`: Revoked, `"true"`: Active, `false`: Active, `0`: Active, `""`: Active, `null`: Active,
		`"` + long + `"`: Revoked, `"` + longer + `"`: Unknown,
		`1.0`: Unknown, `1e0`: Unknown, `-0`: Unknown, `9223372036854775808`: Unknown,
		`{}`: Unknown, `{"a":"hit"}`: Unknown,
		`[]`: Active, `["miss"]`: Active, `["miss","hit"]`: Revoked, `["miss",1]`: Revoked, `["1",true]`: Revoked,
		array(16): Revoked, array(17): Unknown, `["x"` + strings.Repeat(`,"x"`, 15) + `]`: Active,
		`["hit",null]`: Unknown, `["hit",{}]`: Unknown, `["hit",["hit"]]`: Unknown, `["hit",1.5]`: Unknown, `["hit","` + longer + `"]`: Unknown,
	}
	values := map[string]Value{"hit": String("hit"), "long": String(long), "one": Int(1), "true": Bool(true)}
	live, quiet := newTable(t, Policy{}), newTable(t, Policy{})
	for _, v := range values {
		m, err := NewMatch(map[string]Value{"g": v})
		if err != nil {
			t.Fatal(err)
		}
		write(t, live, Request{Match: m}, t0)
	}
	write(t, quiet, Request{Match: match(t, "other=x")}, t0)
	for value, want := range cases {
		c := claims(t, fmt.Sprintf(`{"g":%s,"iat":%d,"exp":%d}`, value, t0/1000-60, t0/1000+60))
		v := live.Check(c, t0)
		if v.Status != want || want == Unknown && v.Cause != CauseClaim {
			t.Errorf("%.60s: %s (%s), want %s", value, v.Status, v.Cause, want)
		}
		wantStatus(t, "no live shape names it: "+value, quiet.Check(c, t0), Active)
	}

	// Revoked by another shape wins over Unknown, wherever it stands in the walk.
	for _, text := range []string{"a=1", "z=1"} {
		write(t, live, Request{Match: match(t, text)}, t0)
	}
	for _, other := range []string{"a", "z"} {
		c := claims(t, fmt.Sprintf(`{"g":{},%q:"1","iat":%d,"exp":%d}`, other, t0/1000-60, t0/1000+60))
		wantStatus(t, "g cannot be judged, "+other+" is revoked", live.Check(c, t0), Revoked)
	}
}

// Two arrays in one shape are more combinations than a check looks at.
func TestTwoArraysInAShape(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "aud=a,grp=g")}, t0)
	check := func(payload string) Verdict {
		return table.Check(claims(t, fmt.Sprintf(`{%s,"iat":%d,"exp":%d}`, payload, t0/1000-60, t0/1000+60)), t0)
	}
	wantStatus(t, "one array", check(`"aud":["x","a"],"grp":"g"`), Revoked)
	wantStatus(t, "the other", check(`"aud":"a","grp":["x","g"]`), Revoked)
	wantStatus(t, "an array and no second claim", check(`"aud":["a","b"]`), Active)
	wantUnknown(t, "two", check(`"aud":["a"],"grp":["g"]`), CauseClaim)
	wantUnknown(t, "two, one empty", check(`"aud":[],"grp":["g"]`), CauseClaim)
}

// A pointer reaches through objects; into an array it does not, and what it names there cannot be judged.
func TestPointers(t *testing.T) {
	table := newTable(t, Policy{})
	write(t, table, Request{Match: match(t, "/org/id=acme")}, t0)
	write(t, table, Request{Match: match(t, "/header.kid=payload")}, t0)
	write(t, table, Request{Match: match(t, "/a~1b/c~0d=x")}, t0)
	for payload, want := range map[string]Status{
		`"org":{"id":"acme"}`:       Revoked,
		`"org":{"id":"other"}`:      Active,
		`"org":{}`:                  Active,
		`"org":"acme"`:              Active,
		`"org":null`:                Active,
		`"/org/id":"acme"`:          Active, // a claim of that very name is another
		`"org":{"id":{"id":"x"}}`:   Unknown,
		`"org":{"id":["x","acme"]}`: Revoked,
		`"org":[{"id":"acme"}]`:     Unknown,
		`"org":[]`:                  Unknown,
		`"header.kid":"payload"`:    Revoked,
		`"a/b":{"c~d":"x"}`:         Revoked,
		`"a":{"b":{"c~d":"x"}}`:     Active,
	} {
		c := claims(t, fmt.Sprintf(`{%s,"iat":%d,"exp":%d}`, payload, t0/1000-60, t0/1000+60))
		wantStatus(t, payload, table.Check(c, t0), want)
	}
}

// A token that lives longer than its issuer's cutoffs are kept, or does not say how long, cannot be called Active.
func TestLifetime(t *testing.T) {
	table := newTable(t, Policy{Default: Settings{MaxTokenLifetime: time.Hour}, Issuers: map[string]Settings{"long": {MaxTokenLifetime: 3 * time.Hour}}})
	write(t, table, Request{Match: match(t, "sub=u")}, t0)
	check := func(iss, sub string, iat, exp int64) Verdict {
		return table.Check(token(t, iat, map[string]any{"iss": iss, "sub": sub, "exp": json.Number(milliseconds(exp))}), t0+minute)
	}
	wantStatus(t, "as long as it may", check("i", "x", t0, t0+hour), Active)
	wantUnknown(t, "too long", check("i", "x", t0, t0+hour+1), CauseLifetime)
	wantStatus(t, "an issuer with longer tokens", check("long", "x", t0, t0+3*hour), Active)
	wantUnknown(t, "too long there", check("long", "x", t0, t0+3*hour+1), CauseLifetime)
	wantStatus(t, "too long and revoked", check("i", "u", t0-second, t0+2*hour), Revoked)
	noExp := table.Check(token(t, t0, map[string]any{"exp": nil}), t0)
	wantUnknown(t, "no exp", noExp, CauseLifetime)
	wantUnknown(t, "exp in milliseconds", table.Check(token(t, t0, map[string]any{"exp": t0}), t0), CauseLifetime)
	wantStatus(t, "no exp and revoked", table.Check(token(t, t0-second, map[string]any{"sub": "u", "exp": nil}), t0), Revoked)
	expired := token(t, t0-hour, map[string]any{"exp": t0 / 1000})
	wantStatus(t, "expired, within the leeway of verifiers", table.Check(expired, t0+ms(DefaultSlack)), Active)
	wantUnknown(t, "expired so long ago that its revocation may be gone", table.Check(expired, t0+ms(DefaultSlack)+1), CauseExpired)

	// A cutoff without iss is kept for the longest-lived tokens it can mean.
	plan := write(t, table, Request{Match: match(t, "sub=v")}, t0)
	if got := plan.Main().ExpiresAt; got != seconds(t0+3*hour) {
		t.Errorf("kept for %d s", int64(got)-t0/1000)
	}
}

// When max_token_lifetime is raised, cutoffs made before are forgotten as early as they would have been. A token they revoked
// must not become Active by that, even if its cutoff had been forgotten before the raise.
func TestRaisedLifetime(t *testing.T) {
	short := policy(t, Policy{Default: Settings{MaxTokenLifetime: time.Hour}})
	table := newTable(t, *short)
	write(t, table, Request{Match: match(t, "sub=u")}, t0)
	payload := map[string]any{"sub": "u", "exp": (t0 + 10*hour) / 1000}
	old := token(t, t0-second, payload)
	wantStatus(t, "before", table.Check(old, t0), Revoked)

	raise := func(p Policy, at int64) {
		t.Helper()
		next := policy(t, p)
		next.Succeed(table.Policy(), at)
		table.SetPolicy(next)
	}
	at := t0 + 3*hour // the cutoff is gone, the token was Unknown
	table.Sweep(at)
	wantUnknown(t, "forgotten, too long a life", table.Check(old, at), CauseLifetime)
	raise(Policy{Default: Settings{MaxTokenLifetime: 24 * time.Hour}}, at)
	wantUnknown(t, "after the raise", table.Check(old, at), CauseLifetime)
	wantUnknown(t, "issued while cutoffs of the old kind may still be made ahead", table.Check(token(t, at+59*second, map[string]any{"exp": (at + 5*hour) / 1000}), at), CauseLifetime)
	wantStatus(t, "issued later", table.Check(token(t, at+60*second, map[string]any{"exp": (at + 5*hour) / 1000}), at+minute), Active)
	wantStatus(t, "issued before, as short as it had to be", table.Check(token(t, at-second, map[string]any{"exp": (at + minute) / 1000}), at), Active)

	// The same at the next start, from what was persisted; and an issuer taken off the list, or put on it, changes nothing.
	b, err := json.Marshal(table.Policy())
	if err != nil {
		t.Fatal(err)
	}
	var persisted Policy
	if err := json.Unmarshal(b, &persisted); err != nil {
		t.Fatal(err)
	}
	table.SetPolicy(policy(t, persisted))
	raise(Policy{Default: Settings{MaxTokenLifetime: 24 * time.Hour}, Issuers: map[string]Settings{"listed": {MaxTokenLifetime: 48 * time.Hour}}}, at+hour)
	wantUnknown(t, "after a restart", table.Check(old, at+hour), CauseLifetime)
	listed := token(t, at+30*minute, map[string]any{"iss": "listed", "exp": (at + 40*hour) / 1000})
	wantUnknown(t, "issued under the default", table.Check(listed, at+hour), CauseLifetime)

	// Limits do not pile up, and go when the tokens they are for have expired.
	now := at + hour
	for i := range 100 {
		now += minute
		raise(Policy{Default: Settings{MaxTokenLifetime: 25*time.Hour + time.Duration(i)*time.Hour}}, now)
		if n := len(table.Policy().Default.Earlier); n == 0 || n > maxEarlier {
			t.Fatalf("%d limits", n)
		}
	}
	raise(Policy{Default: Settings{MaxTokenLifetime: 200 * time.Hour}}, now+300*day)
	raise(Policy{Default: Settings{MaxTokenLifetime: 200 * time.Hour}}, now+600*day)
	if n := len(table.Policy().Default.Earlier); n != 0 {
		t.Fatalf("%d limits are left", n)
	}
	wantStatus(t, "all is new", table.Check(token(t, now+600*day, map[string]any{"exp": (now + 608*day) / 1000}), now+600*day), Active)
}

// Whatever a policy becomes and whenever: a token that was issued before a cutoff it matches is never Active from then on.
func TestCutoffHoldsWhileLifetimesChange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lifetime := func(label string) time.Duration {
			return time.Duration(rapid.IntRange(1, 12).Draw(t, label)) * time.Hour
		}
		draw := func() Policy {
			p := Policy{Default: Settings{MaxTokenLifetime: lifetime("default")}}
			for _, iss := range []string{"a", "b"} {
				if rapid.Bool().Draw(t, iss+" is listed") {
					if p.Issuers == nil {
						p.Issuers = map[string]Settings{}
					}
					p.Issuers[iss] = Settings{MaxTokenLifetime: lifetime(iss)}
				}
			}
			return p
		}
		table := newTable(t, draw())
		var revoked []*Claims
		now := t0
		for range rapid.IntRange(2, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				next := policy(t, draw())
				next.Succeed(table.Policy(), now)
				table.SetPolicy(next)
			case 1:
				now += rapid.Int64Range(0, 5*hour).Draw(t, "later")
				table.Sweep(now)
			default:
				iss, u := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "iss"), rapid.SampledFrom([]string{"u", "v"}).Draw(t, "sub")
				issued := now - rapid.Int64Range(1, 12*hour).Draw(t, "issued")
				expires := issued + rapid.Int64Range(1, 14*hour).Draw(t, "lifetime")
				c := new(Claims)
				c.SetIssuedAt(issued)
				c.SetExpiresAt(expires)
				_, _ = c.Set("iss", String(iss)), c.Set("sub", String(u))
				request := Request{Match: match(t, "sub="+u)}
				if rapid.Bool().Draw(t, "scoped") {
					request.Match = match(t, "iss="+iss+",sub="+u)
				}
				write(t, table, request, now)
				revoked = append(revoked, c)
			}
			for _, c := range revoked {
				if v := table.Check(c, now); v.Status == Active {
					t.Fatalf("at %d: Active, iat %d, exp %d, policy %+v", now-t0, c.iat-t0, c.exp-t0, *table.Policy())
				}
			}
		}
	})
}

// The issuer's clock is 2 s ahead: a token that it issues at :00 says :02, and a cutoff made at :01 would miss it.
func TestIssuerAhead(t *testing.T) {
	table := newTable(t, Policy{Issuers: map[string]Settings{"ahead": {Skew: 2 * time.Second}}})
	ahead := token(t, t0+2*second, map[string]any{"iss": "ahead", "sub": "u"})
	plan := write(t, table, Request{Match: match(t, "iss=ahead,sub=u")}, t0+second)
	wantStatus(t, "issued before the cutoff by a clock that is ahead", table.Check(ahead, t0+second), Revoked)
	if plan.UsableAfter != t0+3*second {
		t.Errorf("usable after %d ms", plan.UsableAfter-t0)
	}
	wantStatus(t, "usable", table.Check(token(t, plan.UsableAfter, map[string]any{"iss": "ahead", "sub": "u"}), plan.UsableAfter), Active)
	// A cutoff of any issuer takes the largest skew; one that a caller states is taken as it is.
	if got := write(t, table, Request{Match: match(t, "sub=x")}, t0).Main().Value; got != t0+2*second {
		t.Errorf("cutoff of any issuer %+d ms", got-t0)
	}
	if got := write(t, table, Request{Match: match(t, "iss=ahead,sub=x"), IssuedBefore: t0}, t0).Main().Value; got != t0 {
		t.Errorf("stated cutoff %+d ms", got-t0)
	}
}

// 40 shapes on each side of a partition: writers are held to 64, but what was accepted elsewhere is merged when it heals.
func TestPartitionMakesManyShapes(t *testing.T) {
	a, b := newTable(t, Policy{}), newTable(t, Policy{})
	revs := map[*Table][]Revocation{}
	for i := range 40 {
		for side, table := range map[string]*Table{"a": a, "b": b} {
			name := fmt.Sprintf("%s%d", side, i)
			rev := Revocation{Match: match(t, name+"=x"), Shape: Shape{Names: []string{name}, Compared: IAT}, Class: ClassIssuedBefore, Value: t0, ExpiresAt: seconds(t0 + day)}
			if created, err := table.Define(rev.Shape, rev.ExpiresAt, t0, Admin); err != nil || !created {
				t.Fatal(created, err)
			}
			put(t, table, rev, t0)
			revs[table] = append(revs[table], rev)
		}
	}
	for i := range 40 {
		put(t, a, revs[b][i], t0)
		put(t, b, revs[a][i], t0)
	}
	for _, table := range []*Table{a, b} {
		if n := table.Stats(t0).LiveShapes; n != 80 {
			t.Fatalf("%d live shapes", n)
		}
		for i := range 40 {
			for _, side := range []string{"a", "b"} {
				wantStatus(t, "", table.Check(token(t, t0-minute, map[string]any{fmt.Sprintf("%s%d", side, i): "x"}), t0), Revoked)
			}
		}
		_, err := table.Define(Shape{Names: []string{"new"}}, seconds(t0+day), t0, Admin)
		if !isErr(err, ErrShapes) {
			t.Fatalf("a writer's 81st shape: %v", err)
		}
		if _, err := table.Define(Shape{Names: []string{"a1"}, Compared: IAT}, seconds(t0+day), t0, Admin); err != nil {
			t.Fatalf("a shape that is live: %v", err)
		}
	}
}

// A writer has a share of the live shapes, all writers together leave some to admins, and what was accepted already is bound by neither.
func TestShapeShares(t *testing.T) {
	table := newTable(t, Policy{})
	next := 0
	define := func(by Definer, until int64) (Shape, error) {
		t.Helper()
		s := Shape{Names: []string{fmt.Sprint("n", next)}}
		next++
		_, err := table.Define(s, seconds(until), t0, by)
		if live, admits := table.Admits(s, t0, by); live != (err == nil) || !errors.Is(admits, err) {
			t.Errorf("%s: %v, but as a question: %v, %v", s, err, live, admits)
		}
		return s, err
	}
	must := func(count int, by Definer) (last Shape) {
		t.Helper()
		for i := range count {
			var err error
			if last, err = define(by, t0+hour); err != nil {
				t.Fatalf("the shape %d of %d: %v", i+1, count, err)
			}
		}
		return last
	}
	refused := func(by Definer, share bool) {
		t.Helper()
		if _, err := define(by, t0+hour); !errors.Is(err, ErrShapes) || errors.Is(err, ErrWriterShapes) != share {
			t.Errorf("%d live shapes: %v", table.Stats(t0).LiveShapes, err)
		}
	}
	a, b, c, d := DefinerOf("a"), DefinerOf("b"), DefinerOf("c"), DefinerOf("d")
	own := must(WriterShapes, a)
	refused(a, true)
	others := must(WriterShapes, b)
	refused(b, true)
	must(WriterShapes, c)
	must(MaxLiveShapes-AdminShapes-3*WriterShapes, d)
	refused(d, false) // fewer than his share
	must(AdminShapes, Admin)
	refused(Admin, false)
	must(3, Unbound)
	// What is live already costs nothing, whoever made it.
	for _, by := range []Definer{a, b, d, Admin, Unbound} {
		for _, s := range []Shape{own, others} {
			if created, err := table.Define(s, seconds(t0+day), t0, by); created || err != nil {
				t.Errorf("what is live: %v, %v", created, err)
			}
		}
	}
	// What brings a shape to life again has it: of a's sixteen one lives on, another is b's now.
	later := t0 + hour + ms(DefaultSlack) + second
	shape := func(i int) Shape { return Shape{Names: []string{fmt.Sprint("n", i)}} }
	for i, by := range []Definer{b, Admin, Unbound} {
		if created, err := table.Define(shape(i), seconds(later+day), later, by); created || err != nil {
			t.Fatal(created, err)
		}
	}
	for i, count := 3, 1; ; i, count = i+1, count+1 {
		_, err := table.Define(shape(1000+i), seconds(later+day), later, a)
		if (err == nil) != (count < WriterShapes) || err != nil && !errors.Is(err, ErrWriterShapes) {
			t.Fatalf("%d of his live: %v", count, err)
		}
		if err != nil {
			break
		}
	}
	if live, err := table.Admits(shape(2000), later, b); live || err != nil {
		t.Errorf("b has two: %v", err)
	}
	if DefinerOf("a") != a || a == b || DefinerOf("") <= Admin {
		t.Error("names are not told apart")
	}
}

// The limit counts live shapes: when their records have expired, writers may use others.
func TestShapesExpire(t *testing.T) {
	table := newTable(t, Policy{})
	shape := func(i int) Shape { return Shape{Names: []string{fmt.Sprint("n", i)}} }
	for i := range MaxLiveShapes {
		if _, err := table.Define(shape(i), seconds(t0+hour), t0, Admin); err != nil {
			t.Fatal(err)
		}
	}
	last := t0 + hour + ms(DefaultSlack)
	if _, err := table.Define(shape(100), seconds(t0+day), last+999, Admin); !isErr(err, ErrShapes) {
		t.Fatalf("all are live: %v", err)
	}
	if _, err := table.Define(shape(100), seconds(t0+day), last+second, Admin); err != nil {
		t.Fatalf("all have expired: %v", err)
	}
	table.Sweep(last + second)
	if n := len(table.Shapes()); n != MaxLiveShapes+1 {
		t.Fatalf("%d shapes are remembered", n)
	}
	table.Sweep(last + (forgetShapes+1)*second)
	if got := table.Shapes(); len(got) != 1 || got[0].String() != "{n100}" {
		t.Fatalf("remembered: %v", got)
	}
}

// A node that boots in 1970 reads its own journal: records that were accepted once are not judged by bounds that move with the clock.
func TestBootIn1970(t *testing.T) {
	table := newTable(t, Policy{})
	plan, err := table.Plan(Request{Match: match(t, "iss=i,sub=u")}, t0, t0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := testKey.Record(plan.Main()).AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Define(plan.Main().Shape, r.ExpiresAt, 0, Unbound); err != nil {
		t.Fatal(err)
	}
	if d, err := table.Merge(r, 1, 0, false); err != nil || !d.Changed {
		t.Fatalf("Merge in 1970: %+v, %v", d, err)
	}
	wantStatus(t, "once the clock is right", table.Check(token(t, t0-minute, map[string]any{"iss": "i", "sub": "u"}), t0), Revoked)
}

// NTP steps a node two hours ahead. Nothing that is live is answered already_expired, missed or overwritten, because all of
// it goes by guarded time; and what the writer makes new goes by the wall clock.
func TestWallClockJumpsAhead(t *testing.T) {
	table := newTable(t, Policy{Default: Settings{MaxTokenLifetime: time.Hour}})
	wall, guarded := t0+2*hour, t0
	exp := guarded + minute
	write(t, table, Request{Match: match(t, "iss=i,jti=old"), ExpiresAt: exp}, guarded)
	for name, r := range map[string]Request{
		"token":  {Match: match(t, "iss=i,jti=new"), ExpiresAt: exp},
		"block":  {Action: Block, Match: match(t, "iss=i,sub=u"), ExpiresAt: exp},
		"cutoff": {Match: match(t, "iss=i,sub=u"), IssuedBefore: exp - hour},
	} {
		plan, err := table.Plan(r, wall, guarded)
		if err != nil || plan.AlreadyExpired {
			t.Fatalf("%s: %+v, %v", name, plan, err)
		}
		put(t, table, plan.Main(), guarded)
	}
	for _, jti := range []string{"old", "new"} {
		wantStatus(t, jti, table.Check(token(t, guarded-minute, map[string]any{"iss": "i", "jti": jti, "exp": exp / 1000}), guarded), Revoked)
	}
	// By both clocks it has expired, and nobody accepts it any more.
	end := exp + DefaultSlack.Milliseconds()
	for _, c := range [][2]int64{{end, end}, {wall, end}, {end, wall}} {
		plan, err := table.Plan(Request{Match: match(t, "iss=i,jti=new"), ExpiresAt: exp}, c[0], c[1])
		if err != nil || !plan.AlreadyExpired || len(plan.Revocations) != 0 {
			t.Errorf("%+v, %v", plan, err)
		}
	}
	if plan, err := table.Plan(Request{Match: match(t, "iss=i,jti=new"), ExpiresAt: exp}, end-1, wall); err != nil || plan.AlreadyExpired {
		t.Errorf("the wall clock stands before its end: %+v, %v", plan, err)
	}
}
