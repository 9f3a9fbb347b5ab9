package revocation

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is the domain written down once more, slowly and without fingerprints: it keeps every revocation with its real
// claim values and evaluates them as the design's section on the domain says. A token is a map of JSON values.
type model struct {
	slack  int64 // seconds
	policy *Policy
	rules  map[string][]Revocation // by what contends for one record: match, shape and class group
	live   map[string]int64        // by shape and class group: latest deadline of a record, seconds
}

func newModel(p *Policy) *model {
	return &model{slack: int64(DefaultSlack / time.Second), policy: p, rules: map[string][]Revocation{}, live: map[string]int64{}}
}

func modelGroup(c Class) string {
	if c == ClassBlock || c == ClassUnblock {
		return "block"
	}
	return c.String()
}

// retained is how long a revocation is of interest: a block or unblock until the longest block with an older stamp has ended.
func retained(r Revocation) int64 {
	if modelGroup(r.Class) == "block" {
		return (r.Value + 400*day + minute + 999) / 1000
	}
	return int64(r.ExpiresAt)
}

func (m *model) deadline(rules []Revocation) (latest int64) {
	for _, r := range m.inForce(rules) {
		latest = max(latest, retained(r)+m.slack)
	}
	return latest
}

// inForce drops blocks and unblocks with an older stamp; the others add up.
func (m *model) inForce(rules []Revocation) []Revocation {
	if len(rules) == 0 || modelGroup(rules[0].Class) != "block" {
		return rules
	}
	var newest []Revocation
	for _, r := range rules {
		switch {
		case len(newest) == 0 || r.Value > newest[0].Value || r.Value == newest[0].Value && r.Class == ClassBlock && newest[0].Class == ClassUnblock:
			newest = []Revocation{r}
		case r.Value == newest[0].Value && r.Class == newest[0].Class:
			newest = append(newest, r)
		}
	}
	return newest
}

func (m *model) merge(r Revocation, now int64) {
	sec := now / 1000
	if retained(r)+m.slack < sec {
		return
	}
	shape := r.Shape.String() + " " + modelGroup(r.Class)
	m.live[shape] = max(m.live[shape], retained(r)+m.slack)
	key := shape
	for _, c := range r.Match.claims {
		key += fmt.Sprintf(" %q=%d:%q:%d", c.name, c.value.kind, c.value.s, c.value.n)
	}
	if m.deadline(m.rules[key]) < sec {
		m.rules[key] = nil
	}
	m.rules[key] = append(m.rules[key], r)
}

// modelToken is a token as JSON would decode it, with the times a verifier would read.
type modelToken map[string]any

func (tok modelToken) lookup(name string) any {
	if name[0] != '/' {
		return tok[name]
	}
	var at any = map[string]any(tok)
	for _, part := range strings.Split(name[1:], "/") {
		switch v := at.(type) {
		case map[string]any:
			at = v[part]
		case []any:
			return struct{}{} // in an array: cannot be compared
		default:
			return nil
		}
	}
	return at
}

func comparable_(v any) bool {
	switch s := v.(type) {
	case string:
		return len(s) <= MaxValueBytes
	case int64, bool:
		return true
	case []any:
		for _, e := range s {
			if _, list := e.([]any); list || !comparable_(e) {
				return false
			}
		}
		return len(s) <= MaxArrayElements
	}
	return v == nil
}

func same(claim any, v Value) bool {
	switch c := claim.(type) {
	case string:
		s, ok := v.AsString()
		return ok && s == c
	case int64:
		n, ok := v.AsInt()
		return ok && n == c
	case bool:
		b, ok := v.AsBool()
		return ok && b == c
	}
	return false
}

func (tok modelToken) matches(m Match) bool {
	for _, c := range m.claims {
		claim := tok.lookup(c.name)
		list, ok := claim.([]any)
		if !ok {
			list = []any{claim}
		}
		if !slices.ContainsFunc(list, func(e any) bool { return same(e, c.value) }) {
			return false
		}
	}
	return true
}

// judgeable: a shape names no claim that cannot be compared, and at most one array.
func (tok modelToken) judgeable(names []string) bool {
	arrays := 0
	for _, n := range names {
		claim := tok.lookup(n)
		if claim == nil {
			return true // nothing can match
		}
	}
	for _, n := range names {
		claim := tok.lookup(n)
		if !comparable_(claim) {
			return false
		}
		if _, ok := claim.([]any); ok {
			arrays++
		}
	}
	return arrays <= 1
}

func (tok modelToken) time(name string) (ms int64, ok bool) {
	switch n := tok[name].(type) {
	case int64:
		return n * 1000, n >= 0 && n < maxNumericDate
	case float64:
		return int64(n * 1000), n >= 0 && n < maxNumericDate // the tests use halves
	}
	return 0, false
}

// revokes says whether the rules that contend for one record revoke a token.
func (m *model) revokes(rules []Revocation, tok modelToken, now int64) bool {
	if len(rules) == 0 || m.deadline(rules) < now/1000 || !tok.matches(rules[0].Match) || !tok.judgeable(rules[0].Shape.Names) {
		return false
	}
	first := m.inForce(rules)[0]
	threshold, until := first.Value, int64(0)
	for _, r := range m.inForce(rules) {
		threshold, until = max(threshold, r.Value), max(until, int64(r.ExpiresAt))
	}
	switch first.Class {
	case ClassDeny:
		return true
	case ClassBlock:
		return now/1000 <= until
	case ClassBelow:
		n, ok := tok.lookup(first.Shape.Compared).(int64)
		return !ok || n < threshold
	case ClassIssuedBefore:
		iat, ok := tok.time("iat")
		return (!ok || iat < threshold) && !m.kept(first, threshold, tok, now)
	}
	return false
}

// kept looks for a keep made with this very cutoff.
func (m *model) kept(cutoff Revocation, threshold int64, tok modelToken, now int64) bool {
	for _, keeps := range m.rules {
		k := keeps[0]
		if k.Class != ClassKeep || !slices.Equal(k.Shape.KeepOf, cutoff.Shape.Names) || m.deadline(keeps) < now/1000 {
			continue
		}
		fits := true
		for _, c := range k.Match.claims {
			if v, ok := cutoff.Match.Get(c.name); ok {
				fits = fits && v == c.value
			} else {
				fits = fits && same(tok.lookup(c.name), c.value) // an array is no token or session
			}
		}
		made := int64(0)
		for _, r := range keeps {
			made = max(made, r.Value)
		}
		if fits && made >= threshold {
			return true
		}
	}
	return false
}

func (m *model) check(tok modelToken, now int64) Status {
	for _, rules := range m.rules {
		if m.revokes(rules, tok, now) {
			return Revoked
		}
	}
	for shape, until := range m.live {
		names := strings.Split(strings.TrimPrefix(shape[:strings.IndexByte(shape, '}')], "{"), ",")
		if names[0] == "" {
			names = nil
		}
		if until >= now/1000 && !strings.HasSuffix(shape, " keep") && !tok.judgeable(names) {
			return Unknown
		}
	}
	iat, ok1 := tok.time("iat")
	exp, ok2 := tok.time("exp")
	iss, _ := tok["iss"].(string)
	switch {
	case !ok1 || !ok2:
		return Unknown
	case exp-iat > m.policy.Settings(iss).MaxTokenLifetime.Milliseconds():
		return Unknown
	case exp+m.slack*1000 < now:
		return Unknown
	}
	return Active
}

// The small world of the random tests: few names and values, so that things meet.

var (
	worldNames  = []string{"iss", "sub", "jti", "sid", "aud", "ver", "/org/id"}
	worldValues = []any{"a", "b", "1", int64(1), int64(2), true}
)

var worldPolicy = Policy{
	Default: Settings{MaxTokenLifetime: 2 * time.Hour, MaxSessionLifetime: 6 * time.Hour},
	Issuers: map[string]Settings{"a": {MaxTokenLifetime: time.Hour, Skew: 2 * time.Second}, "b": {MaxTokenLifetime: 4 * time.Hour, SessionClaim: "aud"}},
}

func drawValue(t *rapid.T, label string) Value {
	switch v := rapid.SampledFrom(worldValues).Draw(t, label).(type) {
	case string:
		return String(v)
	case int64:
		return Int(v)
	case bool:
		return Bool(v)
	}
	panic("unreachable")
}

func drawMatch(t *rapid.T, label string, most int) Match {
	names := rapid.SliceOfNDistinct(rapid.SampledFrom(worldNames), 0, most, rapid.ID[string]).Draw(t, label)
	values := map[string]Value{}
	for _, n := range names {
		values[n] = drawValue(t, label+"."+n)
	}
	m, err := NewMatch(values)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func drawRequest(t *rapid.T, now int64) Request {
	r := Request{Match: drawMatch(t, "match", 3), Reason: Reason(rapid.IntRange(0, int(reasonCount)-1).Draw(t, "reason"))}
	switch rapid.IntRange(0, 7).Draw(t, "event") {
	case 0, 1: // whatever the match allows
	case 2:
		r.IssuedBefore = now + rapid.Int64Range(-3*hour, 5*second).Draw(t, "issued before")
	case 3:
		r.Cutoff = true
	case 4:
		r.Below = &Below{Claim: "ver", Value: rapid.Int64Range(0, 3).Draw(t, "below")}
	case 5:
		r.Action = Block
	case 6:
		r.Action = Unblock
	case 7:
		for range rapid.IntRange(1, 2).Draw(t, "keeps") {
			values := map[string]Value{rapid.SampledFrom([]string{"jti", "sid", "aud"}).Draw(t, "kept"): drawValue(t, "kept value")}
			if rapid.Bool().Draw(t, "kept iss") {
				values["iss"] = drawValue(t, "kept issuer")
			}
			m, err := NewMatch(values)
			if err != nil {
				t.Fatal(err)
			}
			r.Keep = append(r.Keep, m)
		}
	}
	if r.Action != Unblock && rapid.IntRange(0, 3).Draw(t, "stated") == 0 {
		r.ExpiresAt = now + rapid.Int64Range(-hour, 8*hour).Draw(t, "expires")
	}
	return r
}

func drawToken(t *rapid.T, now int64) modelToken {
	tok := modelToken{}
	for _, n := range worldNames {
		if rapid.IntRange(0, 3).Draw(t, "has "+n) == 0 {
			continue
		}
		var v any = rapid.SampledFrom(worldValues).Draw(t, n)
		switch rapid.IntRange(0, 19).Draw(t, n+" odd") {
		case 0:
			v = []any{rapid.SampledFrom(worldValues).Draw(t, n+"[0]"), v}
		case 1:
			v = map[string]any{"id": v}
		case 2:
			v = 1.5
		}
		if n == "/org/id" {
			tok["org"] = map[string]any{"id": v}
			if rapid.IntRange(0, 19).Draw(t, "org is an array") == 0 {
				tok["org"] = []any{v}
			}
			continue
		}
		tok[n] = v
	}
	iat := now/1000 + rapid.Int64Range(-5*3600, 60).Draw(t, "iat")
	switch rapid.IntRange(0, 9).Draw(t, "iat is") {
	case 0: // missing
	case 1:
		tok["iat"] = "yesterday"
	case 2:
		tok["iat"] = float64(iat) + 0.5
	default:
		tok["iat"] = iat
	}
	if rapid.IntRange(0, 9).Draw(t, "has exp") > 0 {
		tok["exp"] = iat + rapid.Int64Range(1, 5*3600).Draw(t, "lifetime")
	}
	return tok
}

// payload writes a token as JSON.
func (tok modelToken) payload() string {
	var write func(b *strings.Builder, v any)
	write = func(b *strings.Builder, v any) {
		switch v := v.(type) {
		case map[string]any:
			names := make([]string, 0, len(v))
			for n := range v {
				names = append(names, n)
			}
			sort.Strings(names)
			b.WriteByte('{')
			for i, n := range names {
				if i > 0 {
					b.WriteByte(',')
				}
				fmt.Fprintf(b, "%q:", n)
				write(b, v[n])
			}
			b.WriteByte('}')
		case []any:
			b.WriteByte('[')
			for i, e := range v {
				if i > 0 {
					b.WriteByte(',')
				}
				write(b, e)
			}
			b.WriteByte(']')
		case string:
			fmt.Fprintf(b, "%q", v)
		case float64:
			fmt.Fprintf(b, "%.1f", v)
		default:
			fmt.Fprint(b, v)
		}
	}
	var b strings.Builder
	write(&b, map[string]any(tok))
	return b.String()
}

// explained checks that Explain tells the same story as a verdict.
func explained(t *rapid.T, table *Table, c *Claims, now int64, v Verdict) {
	again, steps := table.Explain(c, now)
	if again != v {
		t.Fatalf("Explain says %+v, Check %+v", again, v)
	}
	if revokes := slices.ContainsFunc(steps, func(s Step) bool { return s.Result == "revokes" }); revokes != (v.Status == Revoked) {
		t.Fatalf("verdict %s, steps %+v", v.Status, steps)
	}
}

// A table answers like the model, whatever happens in whatever order, at any time, with sweeps in between.
func TestTableLikeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newTable(t, worldPolicy)
		m := newModel(table.Policy())
		now := t0
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				now += rapid.Int64Range(0, 3*hour).Draw(t, "later")
			case 1:
				table.Sweep(now)
			default:
				plan, err := table.Plan(drawRequest(t, now), now, now)
				if err != nil {
					continue
				}
				for _, r := range plan.Revocations {
					put(t, table, r, now)
					m.merge(r, now)
				}
			}
			for range 4 {
				tok := drawToken(t, now)
				c := claims(t, tok.payload())
				v := table.Check(c, now)
				if want := m.check(tok, now); v.Status != want {
					t.Fatalf("at %d, %s: %s (cause %q, rule %+v), the model says %s", now-t0, tok.payload(), v.Status, v.Cause, v.Rule, want)
				}
				explained(t, table, c, now, v)
			}
		}
	})
}

// The same records give the same verdicts and the same content in every order, delivered once or twice.
func TestOrderOfMergesDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newTable(t, worldPolicy)
		m := newModel(table.Policy())
		var all []Revocation
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			at := t0 - rapid.Int64Range(0, 2*hour).Draw(t, "made before")
			plan, err := table.Plan(drawRequest(t, at), at, at)
			if err == nil {
				all = append(all, plan.Revocations...)
			}
		}
		other := newTable(t, worldPolicy)
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "order"), 0))
		for _, r := range all {
			put(t, table, r, t0)
			m.merge(r, t0)
		}
		for _, i := range append(random.Perm(len(all)), random.Perm(len(all))...) {
			put(t, other, all[i], t0)
		}
		if a, b := content(table, t0), content(other, t0); !slices.Equal(a, b) {
			t.Fatalf("content differs:\n%+v\n%+v", a, b)
		}
		for range 8 {
			at := t0 + rapid.Int64Range(0, 10*hour).Draw(t, "checked later")
			tok := drawToken(t, at)
			c := claims(t, tok.payload())
			a, b, want := table.Check(c, at), other.Check(c, at), m.check(tok, at)
			if a.Status != want || b.Status != want {
				t.Fatalf("at %d, %s: %s and %s, the model says %s", at-t0, tok.payload(), a.Status, b.Status, want)
			}
		}
	})
}

func content(table *Table, now int64) (list []Record) {
	table.Range(Fingerprint{}, now, func(r Record, _ uint64) bool { list = append(list, r); return true })
	return list
}

// Without a new keep or unblock a token that was Revoked is not Active again before the rule's ExpiresAt, whatever is
// merged in whatever order. (A block with a newer stamp may end sooner: it says so, so blocks here only grow.)
func TestRevokedStaysRevoked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := newTable(t, worldPolicy)
		var pending []Revocation
		type revoked struct {
			c     *Claims
			until int64
		}
		var seen []revoked
		now := t0
		for range rapid.IntRange(2, 20).Draw(t, "steps") {
			r := drawRequest(t, now)
			if r.Action == Unblock || len(r.Keep) > 0 {
				r = Request{Match: r.Match}
			}
			if r.Action == Block {
				r.ExpiresAt = 0
			}
			if plan, err := table.Plan(r, now, now); err == nil {
				pending = append(pending, plan.Revocations...)
			}
			if len(pending) > 0 && rapid.Bool().Draw(t, "deliver") {
				i := rapid.IntRange(0, len(pending)-1).Draw(t, "which")
				put(t, table, pending[i], now)
			}
			c := claims(t, drawToken(t, now).payload())
			if v := table.Check(c, now); v.Status == Revoked {
				seen = append(seen, revoked{c, int64(v.Rule.ExpiresAt) * 1000})
			}
			now += rapid.Int64Range(0, hour).Draw(t, "later")
			if rapid.Bool().Draw(t, "sweep") {
				table.Sweep(now)
			}
			for _, s := range seen {
				if v := table.Check(s.c, now); now <= s.until && v.Status == Active {
					t.Fatalf("Active again %d ms before its ExpiresAt", s.until-now)
				}
			}
		}
	})
}
