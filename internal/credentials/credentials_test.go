package credentials

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/revocation"
)

var noon = time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)

func hashOf(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

func match(t testing.TB, text string) revocation.Match {
	t.Helper()
	m, err := revocation.ParseMatch(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const (
	first  = "aaaaaaaaaaaaaaaaaaaaaa"
	second = "bbbbbbbbbbbbbbbbbbbbbb"
)

func TestTokens(t *testing.T) {
	s, err := Parse(fmt.Appendf(nil, `
tokens:
  - name: login
    sha256: %s
    role: subscriber,writer
    grants: [{iss: https://a.example}, {iss: https://b.example, tenant: 7, vip: true}]
    rate: 50
    expires: 2026-12-01T00:00:00Z
  - {name: login, sha256: %s, role: reader, expires: "2026-11-02T12:00:01Z"}
certificates:
  - {name: shop, grants: [{iss: https://a.example}]}
`, hashOf(first), hashOf(second)), noon)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := s.Token(first, noon)
	if !ok || c.Name != "login" || c.Role != pki.RoleSubscriberWriter || c.Rate != 50 || len(c.Grants) != 2 || c.String() != "token:login/"+hashOf(first)[:8] || !c.ByToken() {
		t.Errorf("%+v, %v", c, ok)
	}
	if s.Tokens(noon) != 2 || s.Tokens(noon.Add(time.Second)) != 1 {
		t.Error("wrong number of tokens in force")
	}
	// The second one ends at the instant that the file says, not after it.
	for at, want := range map[time.Duration]bool{0: true, time.Second - 1: true, time.Second: false, time.Hour: false} {
		if _, ok := s.Token(second, noon.Add(at)); ok != want {
			t.Errorf("after %s: %v", at, ok)
		}
	}
	for _, unknown := range []string{"", first + "a", first[1:], strings.ToUpper(first), hashOf(first), strings.Repeat("a", 257)} {
		if _, ok := s.Token(unknown, noon); ok {
			t.Errorf("%q was found", unknown)
		}
	}
	for text, want := range map[string]bool{
		"iss=https://a.example":                                 true,
		"iss=https://a.example,sub=x":                           true,
		"iss=https://b.example,sub=x":                           false,
		"iss=https://b.example,tenant:=7,vip:=true":             true,
		"iss=https://b.example,tenant:=7,vip:=true,sub=x":       true,
		"iss=https://b.example,tenant=7,vip:=true":              false, // text
		"iss=https://A.example":                                 false,
		"sub=https://a.example":                                 false,
		"iss=https://b.example,tenant:=7,vip:=false,sub=jessie": false,
	} {
		if c.Granted(match(t, text)) != want {
			t.Errorf("%s: not %v", text, want)
		}
	}
	if c.Granted(revocation.Match{}) {
		t.Error("no claim at all was granted")
	}
	// What a token says of itself makes its match one that is granted, or nothing does.
	lookup := func(text string) func(string) revocation.Value {
		m := match(t, text)
		return func(name string) revocation.Value { v, _ := m.Get(name); return v }
	}
	for claims, want := range map[string]string{
		"iss=https://a.example,jti=x":                      "iss=https://a.example,jti=x",
		"iss=https://b.example,tenant:=7,vip:=true,jti=x":  "iss=https://b.example,tenant:=7,vip:=true,jti=x",
		"iss=https://b.example,tenant:=7,vip:=false,jti=x": "iss=https://b.example,jti=x",
		"iss=https://b.example,tenant=7,vip:=true,jti=x":   "iss=https://b.example,jti=x",
	} {
		iss, _ := match(t, claims).Get("iss")
		m, err := revocation.NewMatch(map[string]revocation.Value{"iss": iss, "jti": revocation.String("x")})
		if err != nil {
			t.Fatal(err)
		}
		if m, err = c.Narrow(m, lookup(claims)); err != nil || !m.Contains(match(t, want)) || !match(t, want).Contains(m) {
			t.Errorf("%s: %v, %v", claims, m, err)
		}
	}

	shop := pki.Identity{Cluster: "prod", Role: pki.RoleWriter, Name: "shop"}
	limited := s.Certificate(shop)
	if limited.Granted(match(t, "iss=https://c.example")) || !limited.Granted(match(t, "iss=https://a.example,sub=x")) || limited.String() != "revokd://prod/writer/shop" || limited.ByToken() {
		t.Errorf("%+v", limited)
	}
	other := s.Certificate(pki.Identity{Cluster: "prod", Role: pki.RoleWriter, Name: "other"})
	node := s.Certificate(pki.Identity{Cluster: "prod", Role: pki.RoleNode, Name: "shop"})
	if !other.Granted(revocation.Match{}) || !node.Granted(revocation.Match{}) {
		t.Error("a name that is not in the file, or a node, is limited")
	}

	// Who has lost something is not the same any more.
	if !s.Still(&c, noon) || !s.Still(&limited, noon) || !s.Still(&other, noon) {
		t.Error("not the same by the same file")
	}
	more := c
	if more.Records++; s.Still(&more, noon) {
		t.Error("the same with another quota")
	}
	less, err := Parse(fmt.Appendf(nil, "tokens: [{name: login, sha256: %s, role: 'subscriber,writer', grants: [{iss: https://a.example}], rate: 50, expires: 2026-12-01T00:00:00Z}]", hashOf(first)), noon)
	if err != nil {
		t.Fatal(err)
	}
	if less.Still(&c, noon) || less.Still(&limited, noon) || !less.Still(&other, noon) || (*Set)(nil).Still(&c, noon) || s.Still(&c, c.Expires) {
		t.Error("the same by another file, without one, or after the end")
	}
}

func TestNilSet(t *testing.T) {
	var s *Set
	if _, ok := s.Token(first, noon); ok || s.Tokens(noon) != 0 {
		t.Error("no file, and a token")
	}
	if c := s.Certificate(pki.Identity{Cluster: "prod", Role: pki.RoleWriter, Name: "w"}); !c.Granted(revocation.Match{}) {
		t.Error("no file, and a limit")
	}
}

// What is refused says where and why, and quotes neither a token nor a hash.
func TestRefused(t *testing.T) {
	entry := func(changes ...string) string {
		fields := map[string]string{"name": "login", "sha256": hashOf(first), "role": "writer", "expires": "2026-12-01T00:00:00Z"}
		for _, c := range changes {
			name, value, _ := strings.Cut(c, "=")
			fields[name] = value
		}
		var parts []string
		for k, v := range fields {
			parts = append(parts, k+": "+v)
		}
		slices.Sort(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	one := func(change string) string { return "tokens: [" + entry(change) + "]" }
	third := entry("sha256=" + hashOf("cccccccccccccccccccccc"))
	grants := strings.TrimSuffix(strings.Repeat("{iss: a}, ", MaxGrants+1), ", ")
	for text, want := range map[string]string{
		one("grant=[{iss: a}]"):                        "line 1: unknown key",
		"bearer: []":                                   "line 1: unknown key",
		"tokens: " + first:                             "line 1: want tokens:",
		"tokens: [" + first + "]":                      "line 1: want tokens:",
		"{":                                            "want tokens:",
		"tokens: []\n---\ntokens: []":                  "one document",
		one("name="):                                   "tokens[0]: name: malformed",
		one("name=../x"):                               "tokens[0]: name: malformed",
		one("sha256=" + first):                         "tokens[0]: sha256: malformed",
		one("sha256=" + hashOf(first)[2:]):             "tokens[0]: sha256: malformed",
		one("role=node"):                               "tokens[0]: role: invalid",
		one("role="):                                   "tokens[0]: role: invalid",
		one("role='admin,writer'"):                     "tokens[0]: role: invalid",
		one("expires="):                                "tokens[0]: expires: malformed or missing",
		one("expires=soon"):                            "tokens[0]: expires: malformed or missing",
		one("expires=2027-12-08T12:00:00Z"):            "at most 400 days",
		one("rate=-1"):                                 "tokens[0]: rate: out of range",
		one("rate=49"):                                 "tokens[0]: rate: out of range",
		one("rate=1000001"):                            "tokens[0]: rate: out of range",
		one("records=-1"):                              "tokens[0]: records: out of range",
		one("records=1000000001"):                      "tokens[0]: records: out of range",
		one("records=1"):                               "tokens[0]: records: conflict",
		"certificates: [{name: a, records: 1}]":        "certificates[0]: records: conflict",
		one("grants=[" + grants + "]"):                 "at most 16",
		one("grants=[{}]"):                             "tokens[0]: grants[0]: malformed",
		one("grants=[{iss: 1.5}]"):                     "a value is a text",
		one("grants=[{iss: 2026-01-01}]"):              "a value is a text",
		one("grants=[{iss: [a]}]"):                     "a value is a text",
		one("grants=[{a: 1, b: 1, c: 1, d: 1, e: 1}]"): "grants[0]",
		"tokens: [{name: root, sha256: " + hashOf(first) + ", role: admin, grants: [{iss: a}], expires: 2026-12-01T00:00:00Z}]": "grants: conflict",
		"tokens: [" + entry() + "," + entry() + "]":                                       "sha256: conflict",
		"tokens: [" + entry() + "," + entry("sha256="+hashOf(second)) + "," + third + "]": "more than 2 tokens of one name",
		"certificates: [{name: a}, {name: a}]":                                            "certificates[1]: name: conflict",
		"certificates: [{name: a, role: writer}]":                                         "line 1: unknown key",
		"tokens: [{name: a, name: b}]":                                                    "line 1",
		"tokens: [" + strings.Repeat("{},", MaxEntries+1) + "]":                           "at most 1000 tokens",
		strings.Repeat("#", MaxFile+1):                                                    "too large",
	} {
		s, err := Parse([]byte(text), noon)
		if s != nil || !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %s", text, err, want)
		} else if strings.Contains(err.Error(), first[:5]) || strings.Contains(err.Error(), hashOf(first)[:5]) {
			t.Errorf("%.80s: quoted in %v", text, err)
		}
	}
	// At the limits it is taken: a lifetime of 400 days, two tokens in force beside any number that have ended, an empty file.
	for _, text := range []string{
		one("expires=2027-12-07T12:00:00Z"),
		"tokens: [" + entry() + "," + entry("sha256="+hashOf(second)) + "," + entry("expires=2026-11-02T12:00:00Z", "sha256="+hashOf("cccccccccccccccccccccc")) + "]",
		"", "{}", "tokens: []",
		one("rate=1000000"),
		"certificates: [{name: a, records: 1000000000, grants: [{iss: a}]}]",
		one("grants=[" + strings.TrimSuffix(grants, ", {iss: a}") + "]"),
	} {
		if _, err := Parse([]byte(text), noon); err != nil {
			t.Errorf("%.200s: %v", text, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), noon); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// What NewEntry makes is what Parse reads.
func TestNewEntry(t *testing.T) {
	grants := []revocation.Match{match(t, "iss=https://a.example"), match(t, "iss=https://b.example,tenant:=7,vip:=true")}
	text := bearer.New()
	e, err := NewEntry(text, "login", pki.RoleSubscriberWriter, grants, 50, 9000, noon.Add(time.Hour), noon)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.YAML()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(append([]byte("tokens:\n"), b...), noon)
	if err != nil {
		t.Fatalf("%v:\n%s", err, b)
	}
	c, ok := s.Token(text, noon)
	if !ok || c.Role != pki.RoleSubscriberWriter || !c.Granted(grants[0]) || !c.Granted(grants[1]) || c.Granted(match(t, "iss=https://b.example")) || c.Rate != 50 || c.Records != 9000 || !c.Expires.Equal(noon.Add(time.Hour)) {
		t.Errorf("%+v:\n%s", c, b)
	}
	if strings.Contains(string(b), text) {
		t.Error("the token is in its entry")
	}
	for _, e := range []error{
		errorOf(NewEntry(text, "", pki.RoleReader, nil, 0, 0, noon.Add(time.Hour), noon)),
		errorOf(NewEntry(text, "a", pki.RoleNode, nil, 0, 0, noon.Add(time.Hour), noon)),
		errorOf(NewEntry(text, "a", pki.RoleReader, nil, 0, 0, noon.Add(MaxLifetime+time.Second), noon)),
	} {
		if !errors.Is(e, ErrFile) {
			t.Errorf("%v", e)
		}
	}
}

func errorOf(_ *TokenEntry, err error) error { return err }

func FuzzParse(f *testing.F) {
	f.Add([]byte("tokens: [{name: a, sha256: " + hashOf(first) + ", role: writer, grants: [{iss: a}], expires: 2026-12-01T00:00:00Z}]\ncertificates: [{name: b}]"))
	f.Add([]byte(`{"tokens":[{"name":"a","sha256":"00","role":"admin","expires":"2026-12-01T00:00:00Z"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s *Set
		var err error
		alloctest.AtMost(t, 1000*len(b)+256<<10, func() { s, err = Parse(b, noon) }) // YAML: a bracket within brackets takes 770 bytes
		if (s == nil) == (err == nil) || err != nil && !errors.Is(err, ErrFile) {
			t.Fatalf("%v, %v", s, err)
		}
	})
}
