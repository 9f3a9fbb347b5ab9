package revocation

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The table of events in the design: what each becomes, and until when it is kept.
func TestEvents(t *testing.T) {
	p := policy(t, Policy{Issuers: map[string]Settings{
		"i": {MaxTokenLifetime: 2 * time.Hour, MaxSessionLifetime: 5 * time.Hour, Skew: 2 * time.Second, SessionClaim: "family"},
	}})
	now := t0 + 300 // in mid-second
	exp := now + 20*minute
	type want struct {
		shape   string
		class   Class
		value   int64
		expires int64
	}
	for name, c := range map[string]struct {
		Request
		want
	}{
		"one token":                  {Request{Match: match(t, "iss=i,jti=1"), ExpiresAt: exp}, want{"{iss,jti}", ClassDeny, now, exp}},
		"one token, exp unknown":     {Request{Match: match(t, "iss=i,jti=1")}, want{"{iss,jti}", ClassDeny, now, now + 2*hour}},
		"one token of any issuer":    {Request{Match: match(t, "jti=1")}, want{"{jti}", ClassDeny, now, now + day}},
		"token without jti":          {Request{Match: match(t, "token.sha256="+strings.Repeat("0a", 32)), ExpiresAt: exp}, want{"{token.sha256}", ClassDeny, now, exp}},
		"token in a session":         {Request{Match: match(t, "iss=i,jti=1,sid=s")}, want{"{iss,jti,sid}", ClassDeny, now, now + 2*hour}},
		"session":                    {Request{Match: match(t, "iss=i,sid=s")}, want{"{iss,sid}", ClassDeny, now, now + 5*hour}},
		"session, end known":         {Request{Match: match(t, "iss=i,sid=s"), ExpiresAt: exp}, want{"{iss,sid}", ClassDeny, now, exp}},
		"refresh family reused":      {Request{Match: match(t, "iss=i,family=f"), Reason: ReasonTokenReused}, want{"{family,iss}", ClassDeny, now, now + 5*hour}},
		"session elsewhere":          {Request{Match: match(t, "iss=j,sid=s")}, want{"{iss,sid}", ClassDeny, now, now + 30*day}},
		"family claim elsewhere":     {Request{Match: match(t, "iss=j,family=f")}, want{"{family,iss}<iat", ClassIssuedBefore, now, now + day}},
		"all devices":                {Request{Match: match(t, "iss=i,sub=u")}, want{"{iss,sub}<iat", ClassIssuedBefore, now + 2*second, now + 2*second + 2*hour}},
		"since a stated time":        {Request{Match: match(t, "iss=i,sub=u"), IssuedBefore: now - hour}, want{"{iss,sub}<iat", ClassIssuedBefore, now - hour, now + hour}},
		"session by a cutoff":        {Request{Match: match(t, "iss=i,sid=s"), Cutoff: true}, want{"{iss,sid}<iat", ClassIssuedBefore, now + 2*second, now + 2*second + 2*hour}},
		"token version":              {Request{Match: match(t, "iss=i,sub=u"), Below: &Below{"ver", 7}}, want{"{iss,sub}<ver", ClassBelow, 7, now + 2*hour}},
		"client":                     {Request{Match: match(t, "client_id=c")}, want{"{client_id}<iat", ClassIssuedBefore, now + 2*second, now + 2*second + day}},
		"tenant":                     {Request{Match: match(t, "tenant_id=x,iss=j")}, want{"{iss,tenant_id}<iat", ClassIssuedBefore, now, now + day}},
		"issuer":                     {Request{Match: match(t, "iss=i")}, want{"{iss}<iat", ClassIssuedBefore, now + 2*second, now + 2*second + 2*hour}},
		"everything":                 {Request{}, want{"{}<iat", ClassIssuedBefore, now + 2*second, now + 2*second + day}},
		"signing key":                {Request{Match: match(t, "iss=i,header.kid=k")}, want{"{header.kid,iss}", ClassDeny, now, now + 2*hour}},
		"signing key, longer":        {Request{Match: match(t, "iss=i,header.kid=k"), ExpiresAt: now + day}, want{"{header.kid,iss}", ClassDeny, now, now + day}},
		"suspended":                  {Request{Action: Block, Match: match(t, "iss=i,sub=u")}, want{"{iss,sub}", ClassBlock, now, now + 400*day}},
		"suspended for a while":      {Request{Action: Block, Match: match(t, "iss=i,sub=u"), ExpiresAt: exp}, want{"{iss,sub}", ClassBlock, now, exp}},
		"reinstated":                 {Request{Action: Unblock, Match: match(t, "iss=i,sub=u")}, want{"{iss,sub}", ClassUnblock, now, now + 400*day + minute}},
		"all devices, kept for long": {Request{Match: match(t, "iss=i,sub=u"), ExpiresAt: now + 3*day}, want{"{iss,sub}<iat", ClassIssuedBefore, now + 2*second, now + 3*day}},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := p.plan(c.Request, clocks{wall: now, guarded: now})
			if err != nil {
				t.Fatal(err)
			}
			got := plan.Main()
			if len(plan.Revocations) != 1 || plan.AlreadyExpired {
				t.Fatalf("%+v", plan)
			}
			if w := (want{got.Shape.String(), got.Class, got.Value, int64(got.ExpiresAt) * 1000}); w.shape != c.shape || w.class != c.class || w.value != c.value {
				t.Errorf("%+v, want %+v", w, c.want)
			}
			if got.ExpiresAt != seconds(c.expires) {
				t.Errorf("kept until now %+d ms, want %+d ms", int64(got.ExpiresAt)*1000-now, c.expires-now)
			}
			if got.Reason != c.Reason || !slices.Equal(got.Match.Names(), got.Shape.Names) {
				t.Errorf("%+v", got)
			}
			if after := plan.UsableAfter; (after != 0) != (c.class == ClassIssuedBefore) || after%1000 != 0 || after != 0 && (after < c.value || after >= c.value+second) {
				t.Errorf("usable after %d", after)
			}
		})
	}
}

// "All other devices": the keeps come first, carry the cutoff and expire with it.
func TestKeeps(t *testing.T) {
	p := policy(t, Policy{Issuers: map[string]Settings{"i": {SessionClaim: "family"}}})
	user := match(t, "iss=i,sub=u")
	plan, err := p.plan(Request{Match: user, Keep: []Match{match(t, "iss=i,sid=s"), match(t, "jti=1"), match(t, "family=f")}, IssuedBefore: t0 - second}, clocks{wall: t0, guarded: t0})
	if err != nil {
		t.Fatal(err)
	}
	main := plan.Main()
	var shapes []string
	for _, k := range plan.Revocations[:len(plan.Revocations)-1] {
		if k.Class != ClassKeep || k.Value != main.Value || k.ExpiresAt != main.ExpiresAt {
			t.Errorf("keep %+v of %+v", k, main)
		}
		for _, c := range user.claims { // so a writer who is granted the deny is granted the keep
			if v, ok := k.Match.Get(c.name); !ok || v != c.value {
				t.Errorf("keep without %s", c.name)
			}
		}
		if _, err := ParseShape(must(k.Shape.AppendBinary(nil))); err != nil {
			t.Errorf("shape %s: %v", k.Shape, err)
		}
		shapes = append(shapes, k.Shape.String())
	}
	if want := []string{"{iss,sid,sub}<iat keep of {iss,sub}", "{iss,jti,sub}<iat keep of {iss,sub}", "{family,iss,sub}<iat keep of {iss,sub}"}; !slices.Equal(shapes, want) {
		t.Errorf("%q", shapes)
	}
	if main.Class != ClassIssuedBefore || main.Value != t0-second {
		t.Errorf("%+v", main)
	}
	// A session may be cut off but for one token.
	if _, err := p.plan(Request{Match: match(t, "iss=i,sid=s"), Keep: []Match{match(t, "jti=1")}}, clocks{wall: t0, guarded: t0}); err != nil {
		t.Error(err)
	}

	for name, kept := range map[string]string{
		"a user":                "iss=i,sub=u",
		"another user":          "sub=v,jti=1",
		"everything":            "",
		"an issuer":             "iss=i",
		"another issuer":        "iss=j,jti=1",
		"a client":              "client_id=c",
		"a signing key":         "header.kid=k",
		"a family elsewhere":    "grant=f",
		"a token and a session": "jti=1,sid=s",
	} {
		_, err := p.plan(Request{Match: user, Keep: []Match{match(t, kept)}}, clocks{wall: t0, guarded: t0})
		t.Run(name, func(t *testing.T) { wantField(t, err, "keep", "not_allowed") })
	}
	_, err = p.plan(Request{Match: match(t, "iss=i,sid=s"), Keep: []Match{match(t, "iss=i,sid=s")}}, clocks{wall: t0, guarded: t0})
	wantField(t, err, "keep", "not_allowed")
	_, err = p.plan(Request{Match: user, Keep: slices.Repeat([]Match{match(t, "jti=1")}, MaxKeeps+1)}, clocks{wall: t0, guarded: t0})
	wantField(t, err, "keep", "too_large")
	_, err = p.plan(Request{Match: user, Keep: slices.Repeat([]Match{match(t, "jti=1")}, MaxKeeps)}, clocks{wall: t0, guarded: t0})
	if err != nil {
		t.Error(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// The bounds, at each edge. Out of range is refused with the field and the limit, never clamped.
func TestBounds(t *testing.T) {
	p := policy(t, Policy{Ceiling: 100 * 24 * time.Hour})
	user, tok, key := match(t, "iss=i,sub=u"), match(t, "iss=i,jti=1"), match(t, "iss=i,header.kid=k")
	below := &Below{Claim: "ver", Value: 1}
	now := t0 + 1
	for name, c := range map[string]struct {
		ok, bad Request
		field   string
		kind    string
	}{
		"cutoff ahead": {
			Request{Match: user, IssuedBefore: now + 5*second}, Request{Match: user, IssuedBefore: now + 5*second + 1}, "issued_before", "out_of_range",
		},
		"cutoff in seconds": {
			Request{Match: user, IssuedBefore: now}, Request{Match: user, IssuedBefore: now / 1000}, "issued_before", "out_of_range",
		},
		"negative cutoff": {
			Request{Match: user, IssuedBefore: now}, Request{Match: user, IssuedBefore: -1}, "issued_before", "out_of_range",
		},
		"beyond the ceiling": {
			Request{Match: tok, ExpiresAt: now + 100*day}, Request{Match: tok, ExpiresAt: now + 100*day + 1}, "expires_at", "out_of_range",
		},
		"block beyond the ceiling": {
			Request{Action: Block, Match: user, ExpiresAt: now + 100*day}, Request{Action: Block, Match: user, ExpiresAt: now + 100*day + 1}, "expires_at", "out_of_range",
		},
		"exp in milliseconds": {
			Request{Match: tok, ExpiresAt: now + hour}, Request{Match: tok, ExpiresAt: (now + hour) * 1000}, "expires_at", "out_of_range",
		},
		"exp in seconds": {
			Request{Match: tok, ExpiresAt: now + hour}, Request{Match: tok, ExpiresAt: (now + hour) / 1000}, "expires_at", "out_of_range",
		},
		"cutoff kept too short": {
			Request{Match: user, IssuedBefore: now, ExpiresAt: now + day}, Request{Match: user, IssuedBefore: now, ExpiresAt: now + day - 1}, "expires_at", "out_of_range",
		},
		"version kept too short": {
			Request{Match: user, Below: below, ExpiresAt: now + day}, Request{Match: user, Below: below, ExpiresAt: now + day - 1}, "expires_at", "out_of_range",
		},
		"signing key kept too short": {
			Request{Match: key, ExpiresAt: now + day}, Request{Match: key, ExpiresAt: now + day - 1}, "expires_at", "out_of_range",
		},
		"below and a cutoff": {
			Request{Match: user, Below: below}, Request{Match: user, Below: below, IssuedBefore: now}, "below", "conflict",
		},
		"below and a cutoff at now": {
			Request{Match: user, Below: below}, Request{Match: user, Below: below, Cutoff: true}, "below", "conflict",
		},
		"below iat": {
			Request{Match: user, Below: below}, Request{Match: user, Below: &Below{Claim: "iat"}}, "below", "not_allowed",
		},
		"below nothing": {
			Request{Match: user, Below: below}, Request{Match: user, Below: &Below{}}, "claim name", "missing",
		},
		"below what nobody can read": {
			Request{Match: user, Below: below}, Request{Match: user, Below: &Below{Claim: "ver\r"}}, "claim name", "malformed",
		},
		"below with a keep": {
			Request{Match: user, Below: below}, Request{Match: user, Below: below, Keep: []Match{tok}}, "keep", "not_allowed",
		},
		"block with a cutoff": {
			Request{Action: Block, Match: user}, Request{Action: Block, Match: user, IssuedBefore: now}, "match", "conflict",
		},
		"unblock with a keep": {
			Request{Action: Unblock, Match: user}, Request{Action: Unblock, Match: user, Keep: []Match{tok}}, "match", "conflict",
		},
		"unblock that expires": {
			Request{Action: Unblock, Match: user}, Request{Action: Unblock, Match: user, ExpiresAt: now + day}, "expires_at", "not_allowed",
		},
		"reason": {
			Request{Match: user, Reason: reasonCount - 1}, Request{Match: user, Reason: reasonCount}, "reason", "out_of_range",
		},
		"action": {
			Request{Action: Unblock, Match: user}, Request{Action: Unblock + 1, Match: user}, "action", "out_of_range",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if plan, err := p.plan(c.ok, clocks{wall: now, guarded: now}); err != nil || plan.AlreadyExpired {
				t.Errorf("at the edge: %+v, %v", plan, err)
			}
			plan, err := p.plan(c.bad, clocks{wall: now, guarded: now})
			wantField(t, err, c.field, c.kind)
			if len(plan.Revocations) > 0 {
				t.Errorf("refused, and yet %+v", plan)
			}
		})
	}
	_, err := p.plan(Request{Match: tok, ExpiresAt: (now + hour) * 1000}, clocks{wall: now, guarded: now})
	if err == nil || !strings.Contains(err.Error(), "milliseconds") {
		t.Errorf("milliseconds are not named: %v", err)
	}
	for name, wall := range map[string]int64{"before 1970": -1, "where 32 bits end": (1 << 32) * 1000} {
		_, err := p.plan(Request{Match: user}, clocks{wall: wall, guarded: wall})
		t.Run(name, func(t *testing.T) { wantField(t, err, "now", "out_of_range") })
	}
}

func TestAlreadyExpired(t *testing.T) {
	p := policy(t, Policy{Default: Settings{MaxTokenLifetime: time.Hour}})
	for name, c := range map[string]struct{ gone, alive Request }{
		"token":   {Request{Match: match(t, "jti=1"), ExpiresAt: t0}, Request{Match: match(t, "jti=1"), ExpiresAt: t0 + 1}},
		"session": {Request{Match: match(t, "sid=1"), ExpiresAt: t0}, Request{Match: match(t, "sid=1"), ExpiresAt: t0 + 1}},
		"cutoff":  {Request{Match: match(t, "sub=1"), IssuedBefore: t0 - hour}, Request{Match: match(t, "sub=1"), IssuedBefore: t0 - hour + 1}},
		"keep": {
			Request{Match: match(t, "sub=1"), IssuedBefore: t0 - hour, Keep: []Match{match(t, "jti=1")}},
			Request{Match: match(t, "sub=1"), IssuedBefore: t0 - hour + 1, Keep: []Match{match(t, "jti=1")}},
		},
		"block": {Request{Action: Block, Match: match(t, "sub=1"), ExpiresAt: t0}, Request{Action: Block, Match: match(t, "sub=1"), ExpiresAt: t0 + 1}},
	} {
		t.Run(name, func(t *testing.T) {
			if plan, err := p.plan(c.gone, clocks{wall: t0, guarded: t0}); err != nil || !plan.AlreadyExpired || len(plan.Revocations) != 0 {
				t.Errorf("gone: %+v, %v", plan, err)
			}
			if plan, err := p.plan(c.alive, clocks{wall: t0, guarded: t0}); err != nil || plan.AlreadyExpired || len(plan.Revocations) == 0 {
				t.Errorf("alive: %+v, %v", plan, err)
			}
		})
	}
}

// What is new is at the wall clock and bounded by it; what has expired must have by both; what is kept is kept by the later.
func TestTwoClocks(t *testing.T) {
	p := policy(t, Policy{Default: Settings{MaxTokenLifetime: time.Hour, MaxSessionLifetime: 2 * time.Hour}})
	user, tok := match(t, "sub=u"), match(t, "jti=1")
	for name, c := range map[string]struct{ wall, guarded int64 }{"wall ahead": {t0 + day, t0}, "wall behind": {t0 - day, t0}} {
		t.Run(name, func(t *testing.T) {
			plan := func(r Request) Revocation {
				t.Helper()
				plan, err := p.plan(r, clocks{wall: c.wall, guarded: c.guarded})
				if err != nil || plan.AlreadyExpired {
					t.Fatalf("%+v: %+v, %v", r, plan, err)
				}
				return plan.Main()
			}
			later := max(c.wall, c.guarded)
			for what, got := range map[string][2]int64{
				"cutoff":      {plan(Request{Match: user}).Value, c.wall},
				"its expiry":  {int64(plan(Request{Match: user}).ExpiresAt) * 1000, later + hour},
				"block":       {plan(Request{Action: Block, Match: user}).Value, c.wall},
				"unblock":     {plan(Request{Action: Unblock, Match: user}).Value, c.wall},
				"deny":        {plan(Request{Match: tok}).Value, c.wall},
				"its expiry ": {int64(plan(Request{Match: tok}).ExpiresAt) * 1000, later + hour},
				"session":     {int64(plan(Request{Match: match(t, "sid=s")}).ExpiresAt) * 1000, later + 2*hour},
				"version":     {int64(plan(Request{Match: user, Below: &Below{"ver", 1}}).ExpiresAt) * 1000, later + hour},
				"key":         {int64(plan(Request{Match: match(t, "header.kid=k")}).ExpiresAt) * 1000, later + hour},
			} {
				if got[0] != got[1] {
					t.Errorf("%s: %+d ms, want %+d ms", what, got[0]-t0, got[1]-t0)
				}
			}
			if _, err := p.plan(Request{Match: user, IssuedBefore: c.wall + 5*second}, clocks{wall: c.wall, guarded: c.guarded}); err != nil {
				t.Errorf("5 s ahead of the wall clock: %v", err)
			}
			_, err := p.plan(Request{Match: user, IssuedBefore: c.wall + 5*second + 1}, clocks{wall: c.wall, guarded: c.guarded})
			wantField(t, err, "issued_before", "out_of_range")
		})
	}
}

// The same second: a whole-second iat counts as the start of its second, so a cutoff in mid-second also catches a token issued
// later in that second. usable_after says from when on a new token passes; a fractional iat passes at once.
func TestSameSecond(t *testing.T) {
	for name, c := range map[string]struct{ cutoff, usable int64 }{
		"mid-second":   {t0 + 500, t0 + second},
		"whole second": {t0, t0},
		"its first ms": {t0 + 1, t0 + second},
		"its last ms":  {t0 + 999, t0 + second},
	} {
		t.Run(name, func(t *testing.T) {
			table := newTable(t, Policy{})
			plan := write(t, table, Request{Match: match(t, "sub=u"), IssuedBefore: c.cutoff}, t0+999)
			if plan.UsableAfter != c.usable {
				t.Errorf("usable after %d ms, want %d ms", plan.UsableAfter-t0, c.usable-t0)
			}
			check := func(iat int64) Status {
				return table.Check(token(t, iat, map[string]any{"sub": "u"}), t0+999).Status
			}
			for iat, want := range map[int64]Status{
				t0 - second:          Revoked,
				plan.UsableAfter:     Active,
				c.usable - second:    Revoked,
				c.cutoff - 1:         Revoked,
				c.cutoff:             Active,
				c.cutoff + 1:         Active,
				t0 - 1:               Revoked,
				t0 + second + second: Active,
			} {
				if got := check(iat); got != want {
					t.Errorf("iat %+d ms: %s, want %s", iat-t0, got, want)
				}
			}
		})
	}
}

func TestPolicyBounds(t *testing.T) {
	for name, c := range map[string]struct {
		field string
		p     Policy
	}{
		"ceiling":            {"ceiling", Policy{Ceiling: MaxCeiling + 1}},
		"negative ceiling":   {"ceiling", Policy{Ceiling: -1}},
		"lifetime":           {"max_token_lifetime", Policy{Ceiling: time.Hour, Default: Settings{MaxTokenLifetime: time.Hour + 1}}},
		"negative lifetime":  {"max_token_lifetime", Policy{Default: Settings{MaxTokenLifetime: -1}}},
		"session":            {"max_session_lifetime", Policy{Default: Settings{MaxSessionLifetime: MaxCeiling + 1}}},
		"skew":               {"issuer_skew", Policy{Default: Settings{Skew: 55*time.Second + 1}}},
		"negative skew":      {"issuer_skew", Policy{Default: Settings{Skew: -1}}},
		"session claim":      {"claim name", Policy{Default: Settings{SessionClaim: "/a~"}}},
		"skew of an issuer":  {"issuer_skew", Policy{Issuers: map[string]Settings{"i": {Skew: time.Minute}}}},
		"claim of an issuer": {"claim name", Policy{Issuers: map[string]Settings{"i": {SessionClaim: strings.Repeat("x", MaxNameBytes+1)}}}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.p.Validate()
			if c.field == "claim name" {
				if !isErr(err, ErrInvalid) {
					t.Fatal(err)
				}
				return
			}
			wantField(t, err, c.field, "out_of_range")
			if _, err := NewTable(TableConfig{Policy: c.p}); !isErr(err, ErrInvalid) {
				t.Errorf("NewTable: %v", err)
			}
		})
	}
	p := policy(t, Policy{Issuers: map[string]Settings{"z": {}, "a": {Skew: 55 * time.Second}}})
	want := Settings{MaxTokenLifetime: 24 * time.Hour, MaxSessionLifetime: 30 * 24 * time.Hour, SessionClaim: "sid"}
	for _, got := range []Settings{p.Default, p.Settings("z"), p.Settings("not listed")} {
		if got.MaxTokenLifetime != want.MaxTokenLifetime || got.MaxSessionLifetime != want.MaxSessionLifetime || got.SessionClaim != want.SessionClaim || got.Skew != 0 {
			t.Errorf("defaults %+v", got)
		}
	}
	if p.Ceiling != MaxCeiling || !slices.Equal(p.IssuerNames(), []string{"a", "z"}) {
		t.Errorf("%+v", p)
	}
	for _, slack := range []time.Duration{-1, 24*time.Hour + 1} {
		_, err := NewTable(TableConfig{Slack: slack})
		wantField(t, err, "slack", "out_of_range")
	}
}
