package revocation

import (
	"fmt"
	"strings"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"github.com/revokd/revokd/ttlstore"
)

func TestSampleIsBounded(t *testing.T) {
	if n := unsafe.Sizeof(sampled{}); n > sampleSize {
		t.Errorf("%d bytes for a check", n)
	}
	for i, name := range knownClaims {
		if knownIndex(name) != i {
			t.Errorf("%s is not at %d", name, i)
		}
	}
	s := NewSample(10)
	for i := range 25 {
		c := sampleToken(t, `{"iss":"i","sub":"alice","iat":1}`)
		s.Add(c, Active, int64(1000+i))
	}
	plan := planOf(t, Request{Action: Block, Match: matchOfText(t, "iss=i,sub=alice")})
	if c := s.Catch(plan, 0); c != (Caught{Checks: 10, Since: 1015, Refused: 10}) {
		t.Errorf("%+v", c)
	}
	if c := s.Catch(plan, 1020); c.Checks != 5 || c.Refused != 5 {
		t.Errorf("%+v", c)
	}
	c := sampleToken(t, `{"iss":"i","sub":"alice","aud":["a","b","c"],"x":{"y":1},"iat":1}`)
	if n := testing.AllocsPerRun(100, func() { s.Add(c, Active, 5000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if text := fmt.Sprintf("%+v", s.rows); strings.Contains(text, "alice") {
		t.Error("a value is kept")
	}
}

func sampleToken(t testing.TB, payload string) *Claims {
	t.Helper()
	c, err := ParseClaims([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func matchOfText(t testing.TB, text string) Match {
	t.Helper()
	m, err := ParseMatch(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const sampleNow = 1_800_000_000_000

func planOf(t testing.TB, r Request) Plan {
	t.Helper()
	var p Policy
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	plan, err := p.plan(r, clocks{wall: sampleNow, guarded: sampleNow})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func TestSampleCatches(t *testing.T) {
	old, young := fmt.Sprint(sampleNow/1000-100), fmt.Sprint(sampleNow/1000+100)
	many := `{"iss":"i","sub":"alice","iat":` + old
	for i := range 30 {
		many += fmt.Sprintf(`,"c%d":%d`, i, i)
	}
	many += "}"
	cutoff := Request{Match: matchOfText(t, "iss=i,sub=alice")}
	keep := cutoff
	keep.Keep = []Match{matchOfText(t, "iss=i,sid=s1")}
	below := cutoff
	below.Below = &Below{Claim: "ver", Value: 7}
	for _, tc := range []struct {
		name    string
		r       Request
		payload string
		status  Status
		want    string // refused, already, unclear or empty
	}{
		{"another subject", cutoff, `{"iss":"i","sub":"bob","iat":` + old + `}`, Active, ""},
		{"another type", Request{Action: Block, Match: matchOfText(t, "iss=i,sub:=1")}, `{"iss":"i","sub":"1"}`, Active, ""},
		{"before the cutoff", cutoff, `{"iss":"i","sub":"alice","iat":` + old + `}`, Active, "refused"},
		{"unknown before", cutoff, `{"iss":"i","sub":"alice","iat":` + old + `}`, Unknown, "refused"},
		{"revoked before", cutoff, `{"iss":"i","sub":"alice","iat":` + old + `}`, Revoked, "already"},
		{"after the cutoff", cutoff, `{"iss":"i","sub":"alice","iat":` + young + `}`, Active, ""},
		{"without iat", cutoff, `{"iss":"i","sub":"alice"}`, Active, "refused"},
		{"a block catches all", Request{Action: Block, Match: matchOfText(t, "iss=i,sub=alice")}, `{"iss":"i","sub":"alice","iat":` + young + `}`, Active, "refused"},
		{"an unblock none", Request{Action: Unblock, Match: matchOfText(t, "iss=i,sub=alice")}, `{"iss":"i","sub":"alice","iat":` + young + `}`, Active, ""},
		{"everything", Request{}, `{"iss":"x","iat":` + old + `}`, Active, "refused"},
		{"an element", Request{Match: matchOfText(t, "iss=i,aud=b")}, `{"iss":"i","aud":["a","b"],"iat":` + old + `}`, Active, "refused"},
		{"no element", Request{Match: matchOfText(t, "iss=i,aud=c")}, `{"iss":"i","aud":["a","b"],"iat":` + old + `}`, Active, ""},
		{"a pointer", Request{Match: matchOfText(t, "iss=i,/act/sub=x")}, `{"iss":"i","act":{"sub":"x"},"iat":` + old + `}`, Active, "refused"},
		{"unusable", Request{Match: matchOfText(t, "iss=i,x=1")}, `{"iss":"i","x":1.5,"iat":` + old + `}`, Active, "unclear"},
		{"kept", keep, `{"iss":"i","sub":"alice","sid":"s1","iat":` + old + `}`, Active, ""},
		{"not kept", keep, `{"iss":"i","sub":"alice","sid":"s2","iat":` + old + `}`, Active, "refused"},
		{"a version", below, `{"iss":"i","sub":"alice","ver":6,"iat":` + old + `}`, Active, "unclear"},
		{"no version", below, `{"iss":"i","sub":"alice","iat":` + old + `}`, Active, "refused"},
		{"more claims than are kept", Request{Match: matchOfText(t, "iss=i,c29:=29")}, many, Active, "unclear"},
		{"more claims than are kept, and another issuer", Request{Match: matchOfText(t, "iss=j,sub=alice")}, many, Active, "unclear"},
	} {
		s := NewSample(4)
		s.Add(sampleToken(t, tc.payload), tc.status, sampleNow)
		got := s.Catch(planOf(t, tc.r), 0)
		want := Caught{Checks: 1, Since: sampleNow}
		switch tc.want {
		case "refused":
			want.Refused = 1
		case "already":
			want.Already = 1
		case "unclear":
			want.Unclear = 1
		}
		if got != want {
			t.Errorf("%s: %+v, want %q", tc.name, got, tc.want)
		}
	}
	if c := NewSample(4).Catch(Plan{AlreadyExpired: true}, 0); c != (Caught{}) {
		t.Errorf("%+v", c)
	}
}

// What the sample says of a check is what the table says of it once the revocation has been made.
func TestSampleAgreesWithTheTable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		value := rapid.SampledFrom([]string{`"x"`, `"y"`, `1`, `true`, `["x","y"]`, `{"z":1}`, `1.5`})
		payload := fmt.Sprintf(`{"iss":"i","exp":%d`, sampleNow/1000+60)
		if rapid.Bool().Draw(t, "iat") {
			payload += fmt.Sprintf(`,"iat":%d`, sampleNow/1000+rapid.Int64Range(-3, 3).Draw(t, "at"))
		}
		seen := map[string]bool{}
		for range rapid.IntRange(0, 3).Draw(t, "claims") {
			if n := name.Draw(t, "name"); !seen[n] {
				payload += fmt.Sprintf(`,%q:%s`, n, value.Draw(t, "value"))
				seen[n] = true
			}
		}
		claims, err := ParseClaims([]byte(payload + "}"))
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]Value{"iss": String("i")}
		for range rapid.IntRange(0, 2).Draw(t, "matched") {
			values[name.Draw(t, "match")] = rapid.SampledFrom([]Value{String("x"), String("y"), Int(1), Bool(true)}).Draw(t, "matched value")
		}
		m, err := NewMatch(values)
		if err != nil {
			t.Fatal(err)
		}
		var policy Policy
		if err := policy.Validate(); err != nil {
			t.Fatal(err)
		}
		plan, err := policy.plan(Request{Action: rapid.SampledFrom([]Action{Revoke, Block}).Draw(t, "action"), Match: m}, clocks{wall: sampleNow, guarded: sampleNow})
		if err != nil {
			t.Fatal(err)
		}
		table, err := NewTable(TableConfig{Key: Key{1}, Policy: policy, Store: ttlstore.Config{Heap: true, MaxItems: 1000}})
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		before := table.Check(claims, sampleNow)
		s := NewSample(1)
		s.Add(claims, before.Status, sampleNow)
		caught := s.Catch(plan, 0)
		main := plan.Main()
		if _, err := table.Define(main.Shape, main.ExpiresAt, sampleNow, Unbound); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Merge(table.Record(main), 1, sampleNow, false); err != nil {
			t.Fatal(err)
		}
		after := table.Check(claims, sampleNow)
		if (after.Status == Revoked) != (caught.Refused == 1) || (after.Cause == CauseClaim) != (caught.Unclear == 1) {
			t.Errorf("%s: the table says %+v, the sample %+v", payload, after, caught)
		}
	})
}

func BenchmarkSampleAdd(b *testing.B) {
	s := NewSample(4096)
	c := sampleToken(b, `{"iss":"https://id.example","sub":"alice","jti":"0123456789abcdef","sid":"s","client_id":"web","aud":["a","b"],"iat":1800000000,"exp":1800003600}`)
	b.ReportAllocs()
	for b.Loop() {
		s.Add(c, Active, sampleNow)
	}
}
