package devissuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 250e6, time.UTC)

func newVerifier(t *testing.T, i *Issuer) *token.Verifier {
	t.Helper()
	v, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{i.TokenIssuer()}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A token of each algorithm is accepted by a verifier, also after the issuer has been stored and read.
func TestMint(t *testing.T) {
	made, err := New()
	if err != nil {
		t.Fatal(err)
	}
	read, err := Unmarshal(made.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, read)
	for _, alg := range append(Algorithms(), "") {
		raw, err := made.Mint(Params{Sub: "alice", Sid: "s1", Alg: alg, Claims: map[string]any{"role": "x", "ver": 7}}, now)
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		tok, err := v.Verify(t.Context(), raw, now.UnixMilli())
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		iat, _ := tok.Claims.IssuedAt()
		exp, _ := tok.Claims.ExpiresAt()
		if iat != now.Truncate(time.Second).UnixMilli() || exp-iat != DefaultTTL.Milliseconds() || tok.Issuer != Name {
			t.Fatalf("%s: iat %d, exp %d", alg, iat, exp)
		}
		for name, want := range map[string]string{"sub": "alice", "sid": "s1", "role": "x"} {
			if got, _ := tok.Claims.Lookup(name).AsString(); got != want {
				t.Fatalf("%s: %s is %q", alg, name, got)
			}
		}
		if n, ok := tok.Claims.Lookup("ver").AsInt(); !ok || n != 7 {
			t.Fatalf("%s: ver is not 7", alg)
		}
		if tok.Claims.Lookup(revocation.HeaderKID).Kind() != revocation.KindString || tok.Claims.Lookup("jti").Kind() != revocation.KindString {
			t.Fatalf("%s: no kid or no jti", alg)
		}
	}
}

func TestMintFraction(t *testing.T) {
	i, err := New()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := i.Mint(Params{IssuedAt: now}, now)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := newVerifier(t, i).Verify(t.Context(), raw, now.UnixMilli())
	if err != nil {
		t.Fatal(err)
	}
	if iat, _ := tok.Claims.IssuedAt(); iat != now.UnixMilli() {
		t.Fatalf("iat %d, want %d", iat, now.UnixMilli())
	}
}

func TestMintRefuses(t *testing.T) {
	i, err := New()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]Params{
		"alg":        {Alg: "none"},
		"short ttl":  {TTL: time.Millisecond},
		"long ttl":   {TTL: 401 * 24 * time.Hour},
		"iss":        {Claims: map[string]any{"iss": "x"}},
		"exp":        {Claims: map[string]any{"exp": 1}},
		"large":      {Claims: map[string]any{"x": strings.Repeat("x", token.MaxSize)}},
		"iat by map": {Claims: map[string]any{"iat": 1}},
	} {
		if _, err := i.Mint(p, now); !errors.Is(err, revocation.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The public set verifies signatures and holds nothing that makes them.
func TestJWKS(t *testing.T) {
	i, err := New()
	if err != nil {
		t.Fatal(err)
	}
	var private struct{ Keys []map[string]any }
	if err := json.Unmarshal(i.Marshal(), &private); err != nil {
		t.Fatal(err)
	}
	for _, k := range private.Keys {
		for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "k"} {
			if secret, ok := k[member].(string); ok && bytes.Contains(i.JWKS(), []byte(secret)) {
				t.Fatalf("the public set has %q of a %v key", member, k["kty"])
			}
		}
	}
	v, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{{Name: Name, KeysJSON: i.JWKS()}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
		raw, err := i.Mint(Params{Alg: alg}, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	for _, b := range []string{"", "{}", "[]", `{"keys":[{"kty":"OKP"}]}`, `{"keys":[]}`} {
		if _, err := Unmarshal([]byte(b)); !errors.Is(err, revocation.ErrInvalid) {
			t.Errorf("%q: %v", b, err)
		}
	}
}

func Example() {
	issuer, err := New()
	if err != nil {
		panic(err)
	}
	raw, err := issuer.Mint(Params{Sub: "alice", TTL: time.Minute}, time.Now())
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Count(raw, "."))
	// Output: 2
}
