package revocation

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseMatch(t *testing.T) {
	for text, want := range map[string]string{
		``:                        `{}`,
		`sub=u`:                   `{"sub":"u"}`,
		`sub=u,iss=i`:             `{"iss":"i","sub":"u"}`,
		`sub=`:                    `{"sub":""}`,
		`sub=a=b`:                 `{"sub":"a=b"}`,
		`sub=a\,b,iss=c\\d\e`:     `{"iss":"c\\d\\e","sub":"a,b"}`,
		`n:=7,b:=true,s=7`:        `{"b":true,"n":7,"s":"7"}`,
		`n:=-9223372036854775808`: `{"n":-9223372036854775808}`,
		`/org/id=x`:               `{"/org/id":"x"}`,
		`/sub=x`:                  `{"sub":"x"}`,
		`header.kid=k`:            `{"header.kid":"k"}`,
		`/header.kid=k`:           `{"/header.kid":"k"}`,
		`urn:x:=1`:                `{"urn:x":1}`,
		`a=1,b=2,c=3,d=4`:         `{"a":"1","b":"2","c":"3","d":"4"}`,
		`token.sha256=` + strings.Repeat("0f", 32): `{"token.sha256":"` + strings.Repeat("0f", 32) + `"}`,
		`s=` + strings.Repeat("x", MaxValueBytes):  `{"s":"` + strings.Repeat("x", MaxValueBytes) + `"}`,
	} {
		m, err := ParseMatch(text)
		if err != nil {
			t.Errorf("%.40q: %v", text, err)
			continue
		}
		if got := must(json.Marshal(m)); string(got) != want {
			t.Errorf("%.40q = %.80s, want %.80s", text, got, want)
		}
	}
	for text, want := range map[string][2]string{
		`sub`:                    {"match", "malformed"},
		`sub=u,`:                 {"match", "malformed"},
		`,`:                      {"match", "malformed"},
		`=x`:                     {"claim name", "missing"},
		`/a~=x`:                  {"claim name", "malformed"},
		"a\x1b[2J=x":             {"claim name", "malformed"},
		"/a\n=x":                 {"claim name", "malformed"},
		"a\x7f=x":                {"claim name", "malformed"},
		"a\u009b=x":              {"claim name", "malformed"},
		`n:=1.0`:                 {"match.n", "malformed"},
		`n:=1e3`:                 {"match.n", "malformed"},
		`n:=`:                    {"match.n", "malformed"},
		`n:="x"`:                 {"match.n", "malformed"},
		`n:=null`:                {"match.n", "malformed"},
		`n:=9223372036854775808`: {"match.n", "malformed"},
		`a=1,a=2`:                {"match", "conflict"},
		`a=1,/a=2`:               {"match.a", "conflict"},
		`a=1,b=2,c=3,d=4,e=5`:    {"match", "too_large"},
		"s=\xff":                 {"match.s", "malformed"},
		`s=` + strings.Repeat("x", MaxValueBytes+1): {"match.s", "malformed"},
		strings.Repeat("x", MaxNameBytes+1) + `=y`:  {"claim name", "too_large"},
		`token.sha256=abc`:                          {"match.token.sha256", "malformed"},
		`token.sha256=` + strings.Repeat("0F", 32):  {"match.token.sha256", "malformed"},
		`token.sha256:=7`:                           {"match.token.sha256", "malformed"},
	} {
		_, err := ParseMatch(text)
		t.Run(text[:min(len(text), 30)], func(t *testing.T) { wantField(t, err, want[0], want[1]) })
	}
}

// What a node has taken of a writer before names were looked at so closely, it and others go on reading.
func TestControlCharactersOfOthers(t *testing.T) {
	s := Shape{Names: []string{"a\x1b"}, Compared: "b\n"}
	b, err := s.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if read, err := ParseShape(b); err != nil || read.ID() != s.ID() {
		t.Error(read, err)
	}
	if _, err := newTable(t, Policy{}).Define(s, 1, 0, Unbound); err != nil {
		t.Error(err)
	}
}

func TestMatchJSON(t *testing.T) {
	for _, text := range []string{
		`{"a":1.0}`, `{"a":[1]}`, `{"a":{}}`, `{"a":null}`, `{"a":1,"/a":2}`, `{"a":1,"a":2}`, `{"a":1,"b":1,"c":1,"d":1,"e":1}`, `[]`, `null`, `"x"`, `{"":1}`, `{"/a~":1}`, `{`,
		`{"header.kid":["k"]}`, `{"` + strings.Repeat("x", MaxNameBytes+1) + `":1}`, `{"a":"` + strings.Repeat("x", MaxValueBytes+1) + `"}`,
	} {
		m := match(t, "was=here")
		if err := m.UnmarshalJSON([]byte(text)); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrDuplicateClaim) {
			t.Errorf("%.40s: %v", text, err)
		}
		if v, ok := m.Get("was"); !ok || v != String("here") {
			t.Errorf("%.40s changed the match it was refused for", text)
		}
	}
	// Names in a match are canonical names: a pointer is a pointer, a reserved name is reserved.
	for text, claim := range map[string]string{
		`{"/org/id":"x"}`: `{"org":{"id":"x"}}`, `{"/~1org":"x"}`: `{"/org":"x"}`, `{"/header.kid":"x"}`: `{"header.kid":"x"}`, `{"/sub":"x"}`: `{"sub":"x"}`, `{"iat":"x"}`: `{"iat":"x"}`,
	} {
		var m Match
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		if got := claims(t, claim).Lookup(m.Names()[0]); got != String("x") {
			t.Errorf("%s does not name the claim in %s: %+v", text, claim, got)
		}
	}
}

func drawAnyMatch(t *rapid.T) Match {
	values := map[string]Value{}
	for range rapid.IntRange(0, MaxMatchClaims).Draw(t, "claims") {
		name, err := CanonicalName(rapid.StringMatching(`/?[a-z,=:"\\/]{1,8}`).Draw(t, "name"))
		if err != nil {
			t.Skip("no name") // what was drawn names nothing: it draws again
		}
		values[name] = rapid.OneOf(
			rapid.Map(rapid.String(), String), rapid.Map(rapid.Int64(), Int), rapid.Map(rapid.Bool(), Bool),
		).Draw(t, "value")
	}
	m, err := NewMatch(values)
	if err != nil {
		t.Skip("no match") // likewise
	}
	return m
}

func TestMatchRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawAnyMatch(t)
		var again Match
		if err := json.Unmarshal(must(json.Marshal(m)), &again); err != nil {
			t.Fatal(err)
		}
		if !equalMatches(m, again) {
			t.Fatalf("%+v, %+v", m, again)
		}
	})
}

func equalMatches(a, b Match) bool {
	return bytes.Equal(must(json.Marshal(a)), must(json.Marshal(b)))
}

// What differs in a name, a value, a type, a shape or a class differs in its fingerprint; what names the same has the same.
func TestFingerprintsDiffer(t *testing.T) {
	seen := map[Fingerprint]string{}
	add := func(what string, m Match, s Shape, class Class) {
		t.Helper()
		f := testKey.fingerprint(m, s, class)
		if other, ok := seen[f]; ok {
			t.Errorf("%s and %s are one", what, other)
		}
		seen[f] = what
	}
	for _, text := range []string{
		"", "a=b", "b=a", "a=bc", "ab=c", "a=b,c=d", "a=bc=d", "a-b=c", "a=b-c", "iss=x,sub=y", "iss=y,sub=x", "iss=xs,ub=y", "jti=x", "sid=x", "sub=x", "iss=a,jti=x", "iss=b,jti=x",
		"n:=1", "n=1", "n:=true", "n=true", "n:=0", "n:=false", "n=", "n:=256", "n=\x01", "n=\x00\x00\x00\x00\x00\x00\x00\x01", "n:=-1", "/org/id=x", "org=x",
	} {
		m := match(t, text)
		plain := Shape{Names: m.Names()}
		cutoff := Shape{Names: m.Names(), Compared: IAT}
		add(text+" deny", m, plain, ClassDeny)
		add(text+" block", m, plain, ClassBlock)
		add(text+" cutoff", m, cutoff, ClassIssuedBefore)
		add(text+" below", m, Shape{Names: m.Names(), Compared: "ver"}, ClassBelow)
		add(text+" below another", m, Shape{Names: m.Names(), Compared: "version"}, ClassBelow)
		add(text+" unknown class", m, plain, 77)
		if len(m.claims) > 0 {
			add(text+" keep", m, Shape{Names: m.Names(), Compared: IAT, Keep: true, KeepOf: nil}, ClassKeep)
		}
		if len(m.claims) > 1 {
			add(text+" keep of one", m, Shape{Names: m.Names(), Compared: IAT, Keep: true, KeepOf: m.Names()[:1]}, ClassKeep)
		}
		if testKey.fingerprint(m, plain, ClassUnblock) != testKey.fingerprint(m, plain, ClassBlock) {
			t.Error("block and unblock do not contend")
		}
	}
	m := match(t, "iss=i,sub=u")
	if (Key{1}).fingerprint(m, Shape{Names: m.Names()}, ClassDeny) == (Key{2}).fingerprint(m, Shape{Names: m.Names()}, ClassDeny) {
		t.Error("the key does not matter")
	}
	if (Key{1}).ID() == (Key{2}).ID() || testKey.ID().String() == "" {
		t.Error("keys have one id")
	}
}
