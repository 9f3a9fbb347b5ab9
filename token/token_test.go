package token

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/revocation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const iss = "https://id.example"

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// signer is a private key with its place in a key set.
type signer struct {
	alg, kid string
	key      any
}

var (
	ed      = newSigner("EdDSA", "ed", must(ed25519Key()))
	ec256   = newSigner("ES256", "ec256", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	ec384   = newSigner("ES384", "ec384", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)))
	ec521   = newSigner("ES512", "ec521", must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)))
	rs      = newSigner("RS256", "rs", must(rsa.GenerateKey(rand.Reader, 2048)))
	oct     = newSigner("HS256", "oct", bytes.Repeat([]byte{7}, 64))
	signers = []signer{ed, ec256, ec384, ec521, rs, oct}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func ed25519Key() (ed25519.PrivateKey, error) {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	return k, err
}

func newSigner(alg, kid string, key any) signer { return signer{alg, kid, key} }

// jwk is the public key, or the secret, without alg: the type must decide.
func (s signer) jwk() jwkset.JWKMarshal {
	k := s.key
	if p, ok := k.(crypto.Signer); ok {
		k = p.Public()
	}
	return must(jwkset.NewJWKFromKey(k, jwkset.JWKOptions{
		Marshal: jwkset.JWKMarshalOptions{Private: true}, Metadata: jwkset.JWKMetadataOptions{KID: s.kid, USE: jwkset.UseSig},
	})).Marshal()
}

func keySet(signers ...signer) []byte {
	var set jwkset.JWKSMarshal
	for _, s := range signers {
		set.Keys = append(set.Keys, s.jwk())
	}
	return must(json.Marshal(set))
}

// sign signs header and payload as they are.
func (s signer) sign(header, payload string) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return input + "." + base64.RawURLEncoding.EncodeToString(must(jwt.GetSigningMethod(s.alg).Sign(input, s.key)))
}

func (s signer) header() string { return fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, s.alg, s.kid) }

func payload(extra string) string {
	return fmt.Sprintf(`{"iss":%q,"sub":"canary-sub","jti":"canary-jti","iat":%d,"exp":%d%s}`, iss, now.Unix(), now.Add(time.Hour).Unix(), extra)
}

func newVerifier(t testing.TB, change func(*Issuer)) *Verifier {
	t.Helper()
	i := Issuer{Name: iss, KeysJSON: keySet(signers...), Algorithms: append(append([]string{}, asymmetric...), symmetric...)}
	if change != nil {
		change(&i)
	}
	v, err := NewVerifier(Config{Issuers: []Issuer{i}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Every algorithm with the key that it is for is accepted, and with every other key refused.
func TestAlgorithms(t *testing.T) {
	v := newVerifier(t, nil)
	for _, alg := range append(append([]string{}, asymmetric...), symmetric...) {
		method := jwt.GetSigningMethod(alg)
		for _, s := range signers {
			s.alg = alg
			fits := key{key: publicKey(s.key)}.fits(alg)
			if !fits {
				raw := ed.sign(s.header(), payload("")) // any signature: the key must not even be tried
				if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); !errors.Is(err, ErrUnknownKey) {
					t.Errorf("%s with key %s: %v", alg, s.kid, err)
				}
				continue
			}
			tok, err := v.Verify(t.Context(), s.sign(s.header(), payload("")), now.UnixMilli())
			if err != nil {
				t.Errorf("%s: %v", method.Alg(), err)
				continue
			}
			if kid, _ := tok.Claims.Lookup(revocation.HeaderKID).AsString(); kid != s.kid || tok.Issuer != iss {
				t.Errorf("%s: kid %q, issuer %q", alg, kid, tok.Issuer)
			}
			if tok.Claims.Lookup(revocation.TokenSHA256).Kind() != revocation.KindString {
				t.Errorf("%s: no token.sha256", alg)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	good := ed.sign(ed.header(), payload(""))
	parts := strings.Split(good, ".")
	public := must(x509.MarshalPKIXPublicKey(rs.key.(*rsa.PrivateKey).Public()))
	confused := signer{"HS256", "rs", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})}
	other := newSigner("EdDSA", "ed", must(ed25519Key()))
	lastChanged := func(s string, to byte) string { return s[:len(s)-1] + string(to) }
	for name, c := range map[string]struct {
		raw    string
		change func(*Issuer)
		want   error
	}{
		"empty":                  {raw: "", want: ErrMalformed},
		"two parts":              {raw: parts[0] + "." + parts[1], want: ErrMalformed},
		"four parts":             {raw: good + ".x", want: ErrMalformed},
		"empty header":           {raw: "." + parts[1] + "." + parts[2], want: ErrMalformed},
		"space":                  {raw: good + " ", want: ErrMalformed},
		"line break":             {raw: parts[0] + "\n." + parts[1] + "." + parts[2], want: ErrMalformed},
		"break in signature":     {raw: good[:len(good)-4] + "\r\n" + good[len(good)-4:], want: ErrMalformed},
		"padding":                {raw: good + "=", want: ErrMalformed},
		"trailing bits":          {raw: lastChanged(good, next(good[len(good)-1])), want: ErrMalformed},
		"no signature":           {raw: parts[0] + "." + parts[1] + ".", want: ErrUnsigned},
		"none":                   {raw: ed.sign(`{"alg":"none"}`, payload("")), want: ErrUnsigned},
		"nOnE":                   {raw: ed.sign(`{"alg":"nOnE"}`, payload("")), want: ErrUnsigned},
		"no alg":                 {raw: ed.sign(`{"kid":"ed"}`, payload("")), want: ErrAlgorithm},
		"unknown alg":            {raw: ed.sign(`{"alg":"ES256K"}`, payload("")), want: ErrAlgorithm},
		"alg is no string":       {raw: ed.sign(`{"alg":5}`, payload("")), want: ErrMalformed},
		"alg not allowed":        {raw: oct.sign(oct.header(), payload("")), change: func(i *Issuer) { i.Algorithms = nil }, want: ErrAlgorithm},
		"public key as a secret": {raw: confused.sign(confused.header(), payload("")), want: ErrUnknownKey},
		"crit":                   {raw: ed.sign(`{"alg":"EdDSA","kid":"ed","crit":["b64"],"b64":false}`, payload("")), want: ErrMalformed},
		"other key":              {raw: other.sign(other.header(), payload("")), want: ErrSignature},
		"changed payload":        {raw: parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(payload(`,"admin":true`))) + "." + parts[2], want: ErrSignature},
		"short signature":        {raw: parts[0] + "." + parts[1] + ".AAAA", want: ErrSignature},
		"unknown kid":            {raw: ed.sign(`{"alg":"EdDSA","kid":"x"}`, payload("")), want: ErrUnknownKey},
		"jwk in the header":      {raw: other.sign(`{"alg":"EdDSA","jwk":`+string(must(json.Marshal(other.jwk())))+`}`, payload("")), want: ErrSignature},
		"duplicate in header":    {raw: ed.sign(`{"alg":"EdDSA","alg":"EdDSA"}`, payload("")), want: ErrDuplicateClaim},
		"duplicate claim":        {raw: ed.sign(ed.header(), payload(`,"sub":"b"`)), want: ErrDuplicateClaim},
		"duplicate by escape":    {raw: ed.sign(ed.header(), payload(`,"\u0073ub":"b"`)), want: ErrDuplicateClaim},
		"two documents":          {raw: ed.sign(ed.header(), payload("")+"{}"), want: ErrMalformed},
		"array":                  {raw: ed.sign(ed.header(), "[]"), want: ErrMalformed},
		"deep":                   {raw: ed.sign(ed.header(), payload(`,"x":`+strings.Repeat("[", 500)+strings.Repeat("]", 500))), want: ErrMalformed},
		"no iss":                 {raw: ed.sign(ed.header(), `{"sub":"a"}`), want: ErrUnknownIssuer},
		"other iss":              {raw: ed.sign(ed.header(), `{"iss":"https://id.example/"}`), want: ErrUnknownIssuer},
		"iss is an array":        {raw: ed.sign(ed.header(), `{"iss":["https://id.example"]}`), want: ErrUnknownIssuer},
		"exp in milliseconds":    {raw: ed.sign(ed.header(), fmt.Sprintf(`{"iss":%q,"exp":%d}`, iss, now.UnixMilli())), want: ErrMalformed},
		"exp is a string":        {raw: ed.sign(ed.header(), fmt.Sprintf(`{"iss":%q,"exp":"1"}`, iss)), want: ErrMalformed},
		"not yet valid":          {raw: ed.sign(ed.header(), payload(fmt.Sprintf(`,"nbf":%d`, now.Unix()+1))), want: ErrNotYetValid},
		"nbf is a string":        {raw: ed.sign(ed.header(), payload(`,"nbf":"x"`)), want: ErrMalformed},
		"type":                   {raw: good, change: func(i *Issuer) { i.Types = []string{"at+jwt"} }, want: ErrType},
		"audience":               {raw: ed.sign(ed.header(), payload(`,"aud":"b"`)), change: func(i *Issuer) { i.Audiences = []string{"a"} }, want: ErrAudience},
		"no audience":            {raw: good, change: func(i *Issuer) { i.Audiences = []string{"a"} }, want: ErrAudience},
		"AUD is not aud":         {raw: ed.sign(ed.header(), payload(`,"AUD":"a"`)), change: func(i *Issuer) { i.Audiences = []string{"a"} }, want: ErrAudience},
		// The signature is judged first: a forger learns nothing else.
		"forged and expired": {raw: other.sign(other.header(), fmt.Sprintf(`{"iss":%q,"exp":1}`, iss)), want: ErrSignature},
	} {
		tok, err := newVerifier(t, c.change).Verify(t.Context(), c.raw, now.UnixMilli())
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if tok != nil {
			t.Errorf("%s: a token comes with %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error holds a claim: %v", name, err)
		}
	}
}

// next returns the base64url character after c: the same bytes to a lenient decoder.
func next(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)+1]
}

func TestAccepts(t *testing.T) {
	for name, c := range map[string]struct {
		raw    string
		change func(*Issuer)
		now    time.Time
	}{
		"no kid, one key":     {raw: ed.sign(`{"alg":"EdDSA"}`, payload(""))},
		"no typ":              {raw: ed.sign(`{"alg":"EdDSA","kid":"ed"}`, payload(""))},
		"type":                {raw: ed.sign(`{"alg":"EdDSA","kid":"ed","typ":"Application/AT+JWT"}`, payload("")), change: func(i *Issuer) { i.Types = []string{"at+jwt"} }},
		"audience":            {raw: ed.sign(ed.header(), payload(`,"aud":["b","a"]`)), change: func(i *Issuer) { i.Audiences = []string{"a"} }},
		"no exp":              {raw: ed.sign(ed.header(), fmt.Sprintf(`{"iss":%q}`, iss))},
		"last millisecond":    {raw: ed.sign(ed.header(), payload("")), now: now.Add(time.Hour - time.Millisecond)},
		"exp within leeway":   {raw: ed.sign(ed.header(), payload("")), now: now.Add(time.Hour + 59*time.Second), change: func(i *Issuer) { i.Leeway = time.Minute }},
		"nbf now":             {raw: ed.sign(ed.header(), payload(fmt.Sprintf(`,"nbf":%d`, now.Unix())))},
		"nbf within leeway":   {raw: ed.sign(ed.header(), payload(fmt.Sprintf(`,"nbf":%d`, now.Unix()+60))), change: func(i *Issuer) { i.Leeway = time.Minute }},
		"iat with a fraction": {raw: ed.sign(ed.header(), fmt.Sprintf(`{"iss":%q,"iat":%d.25,"exp":%d.5}`, iss, now.Unix(), now.Unix()+1))},
	} {
		at := c.now
		if at.IsZero() {
			at = now
		}
		if _, err := newVerifier(t, c.change).Verify(t.Context(), c.raw, at.UnixMilli()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An expired token comes back with its error: revoking it answers that nothing is left to do.
func TestExpired(t *testing.T) {
	tok, err := newVerifier(t, nil).Verify(t.Context(), ed.sign(ed.header(), payload("")), now.Add(time.Hour).UnixMilli())
	if !errors.Is(err, ErrExpired) || tok == nil || tok.Claims.Issuer() != iss {
		t.Fatalf("%v, %v", tok, err)
	}
}

func TestSizeLimit(t *testing.T) {
	v := newVerifier(t, nil)
	var longest string // not every length can be reached with one segment
	for pad := range 4 {
		header := ed.header() + strings.Repeat(" ", pad)
		room := MaxSize - len(ed.sign(header, payload(`,"x":""`)))
		for fill := room*3/4 - 4; fill <= room*3/4+4; fill++ {
			if raw := ed.sign(header, payload(`,"x":"`+strings.Repeat("x", fill)+`"`)); len(raw) == MaxSize {
				longest = raw
			}
		}
	}
	if _, err := v.Verify(t.Context(), longest, now.UnixMilli()); err != nil || len(longest) != MaxSize {
		t.Fatalf("%d bytes: %v", len(longest), err)
	}
	if _, err := v.Verify(t.Context(), strings.Repeat("x", MaxSize+1), now.UnixMilli()); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("one byte more: %v", err)
	}
}

// The check may begin before the signature has been verified.
func TestVerifyWith(t *testing.T) {
	var began *revocation.Claims
	tok, err := newVerifier(t, nil).VerifyWith(t.Context(), ed.sign(ed.header(), payload("")), now.UnixMilli(), func(c *revocation.Claims) { began = c })
	if err != nil || began != tok.Claims {
		t.Fatalf("%v: began with %p, returned %v", err, began, tok)
	}
}

func TestConfig(t *testing.T) {
	keys := keySet(ed)
	small := newSigner("RS256", "small", must(rsa.GenerateKey(rand.Reader, 1024)))
	for name, i := range map[string]Issuer{
		"no name":             {KeysJSON: keys},
		"long name":           {Name: strings.Repeat("x", 513), KeysJSON: keys},
		"no keys":             {Name: iss},
		"two sources":         {Name: iss, KeysJSON: keys, JWKSURL: "https://id.example/keys"},
		"http":                {Name: iss, JWKSURL: "http://id.example/keys"},
		"user in URL":         {Name: iss, JWKSURL: "https://a:b@id.example/keys"},
		"relative URL":        {Name: iss, JWKSURL: "/keys"},
		"discovery of a word": {Name: "id", Discovery: true},
		"algorithm":           {Name: iss, KeysJSON: keys, Algorithms: []string{"none"}},
		"leeway":              {Name: iss, KeysJSON: keys, Leeway: time.Hour},
		"negative leeway":     {Name: iss, KeysJSON: keys, Leeway: -1},
		"lifetime":            {Name: iss, KeysJSON: keys, MaxTokenLifetime: 401 * 24 * time.Hour},
		"keys are no JSON":    {Name: iss, KeysJSON: []byte("x")},
		"no usable key":       {Name: iss, KeysJSON: []byte(`{"keys":[]}`)},
		"encryption key":      {Name: iss, KeysJSON: []byte(strings.ReplaceAll(string(keys), `"sig"`, `"enc"`))},
		"small RSA key":       {Name: iss, KeysJSON: keySet(small)},
		"short secret":        {Name: iss, KeysJSON: keySet(newSigner("HS256", "s", make([]byte, 31)))},
		"missing file":        {Name: iss, KeysFile: filepath.Join(t.TempDir(), "none")},
	} {
		if _, err := NewVerifier(Config{Issuers: []Issuer{i}}); !errors.Is(err, revocation.ErrInvalid) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	twice := Issuer{Name: iss, KeysJSON: keys}
	if _, err := NewVerifier(Config{Issuers: []Issuer{twice, twice}}); !errors.Is(err, revocation.ErrInvalid) {
		t.Errorf("twice: %v", err)
	}
	v, err := NewVerifier(Config{Issuers: []Issuer{{Name: iss, KeysJSON: keys, MaxTokenLifetime: time.Hour, SessionClaim: "fam"}}})
	if err != nil {
		t.Fatal(err)
	}
	if s := v.Policy().Issuers[iss]; s.MaxTokenLifetime != time.Hour || s.SessionClaim != "fam" {
		t.Errorf("settings: %+v", s)
	}
}

// server serves a key set that a test can change.
type server struct {
	*httptest.Server
	body    atomic.Pointer[[]byte]
	fetches atomic.Int64
}

func newServer(t *testing.T, body []byte) *server {
	s := &server{}
	s.body.Store(&body)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/.well-known/openid-configuration" {
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s.URL, s.URL+"/keys")
			return
		}
		s.fetches.Add(1)
		if b := *s.body.Load(); b != nil {
			_, _ = w.Write(b)
		} else {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// run runs a verifier and waits until cond holds.
func run(t *testing.T, v *Verifier, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	wait(t, cond)
}

func wait(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.After(10 * time.Second); !cond(); {
		select {
		case <-deadline:
			t.Fatal("it did not happen")
		case <-time.After(time.Millisecond):
		}
	}
}

func urlVerifier(t *testing.T, i Issuer) *Verifier {
	t.Helper()
	v, err := NewVerifier(Config{Issuers: []Issuer{i}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFetch(t *testing.T) {
	s := newServer(t, keySet(ed))
	for name, i := range map[string]Issuer{
		"JWKS URL":  {Name: iss, JWKSURL: s.URL + "/keys"},
		"discovery": {Name: s.URL, Discovery: true},
	} {
		v := urlVerifier(t, i)
		raw := ed.sign(ed.header(), strings.Replace(payload(""), iss, i.Name, 1))
		if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); !errors.Is(err, ErrKeysUnavailable) {
			t.Fatalf("%s, before Run: %v", name, err)
		}
		run(t, v, func() bool { return v.Keys()[0].Keys == 1 })
		if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// A new key is found at once; made-up key ids make no more than one fetch.
func TestRotation(t *testing.T) {
	s := newServer(t, keySet(ed))
	v := urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/keys"})
	run(t, v, func() bool { return v.Keys()[0].Keys == 1 })
	both := keySet(ed, rs)
	s.body.Store(&both)
	if _, err := v.Verify(t.Context(), rs.sign(rs.header(), payload("")), now.UnixMilli()); err != nil {
		t.Fatalf("new key: %v", err)
	}
	for n := range 50 {
		raw := ed.sign(fmt.Sprintf(`{"alg":"EdDSA","kid":"made-up-%d"}`, n), payload(""))
		if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); !errors.Is(err, ErrUnknownKey) {
			t.Fatal(err)
		}
	}
	if got := s.fetches.Load(); got != 2 {
		t.Fatalf("%d fetches, want 2", got)
	}
}

// Whatever the server does, the last good set stays.
func TestBadServer(t *testing.T) {
	s := newServer(t, keySet(ed))
	v := urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/keys"})
	i := (*v.issuers.Load())[iss]
	if err := i.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	huge := append([]byte(`{"keys":[`), bytes.Repeat([]byte(" "), maxKeySet)...)
	many := make([]signer, maxKeys+1)
	for n := range many {
		many[n] = newSigner("HS256", fmt.Sprint(n), bytes.Repeat([]byte{1}, 32))
	}
	for name, body := range map[string][]byte{
		"redirect": nil, "garbage": []byte("x"), "empty": []byte(`{"keys":[]}`), "huge": append(huge, keySet(ed)[9:]...), "many": keySet(many...),
	} {
		s.body.Store(&body)
		if err := i.read(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if v.Keys()[0].Keys != 1 || v.Keys()[0].Err == "" {
			t.Errorf("%s: %+v", name, v.Keys())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := i.read(ctx); err == nil {
		t.Error("canceled: no error")
	}
	if _, err := v.Verify(t.Context(), ed.sign(ed.header(), payload("")), now.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	// A discovery document of another issuer would let it name our keys.
	d := urlVerifier(t, Issuer{Name: strings.Replace(s.URL, "127.0.0.1", "localhost", 1), Discovery: true})
	for _, i := range *d.issuers.Load() {
		if err := i.read(t.Context()); err == nil || i.keys.Load() != nil {
			t.Errorf("discovery of another issuer: %v", err)
		}
	}
}

func TestFileIsReadAnew(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	write := func(b []byte, at time.Time) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, b, 0o600), os.Chtimes(file, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write(keySet(ed), now)
	v := urlVerifier(t, Issuer{Name: iss, KeysFile: file})
	raw := rs.sign(rs.header(), payload(""))
	if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); !errors.Is(err, ErrUnknownKey) {
		t.Fatal(err)
	}
	write([]byte("half a fil"), now.Add(time.Second))
	if err := (*v.issuers.Load())[iss].read(t.Context()); err == nil {
		t.Fatal("a broken file was accepted")
	}
	write(keySet(ed, rs), now.Add(2*time.Second))
	if err := (*v.issuers.Load())[iss].read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), raw, now.UnixMilli()); err != nil {
		t.Fatal(err)
	}
}

// The log has no token, claim or key id.
func TestLogHoldsNoSecrets(t *testing.T) {
	var log lockedBuffer
	s := newServer(t, []byte("x"))
	v, err := NewVerifier(Config{
		Issuers: []Issuer{{Name: iss, JWKSURL: s.URL + "/keys"}},
		Logger:  hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}),
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, v, func() bool { return v.Keys()[0].Err != "" })
	_, _ = v.Verify(t.Context(), ed.sign(ed.header(), payload("")), now.UnixMilli())
	good := keySet(ed)
	s.body.Store(&good)
	wait(t, func() bool { return v.Keys()[0].Keys == 1 }) // after a second
	if text := log.String(); strings.Contains(text, "canary") || !strings.Contains(text, "key set") {
		t.Fatalf("log: %s", text)
	}
}

// lockedBuffer may be written while it is read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// What is accepted is accepted by golang-jwt too, and no input makes Verify panic or allocate much.
func FuzzVerify(f *testing.F) {
	f.Add(ed.sign(ed.header(), payload("")))
	f.Add(rs.sign(rs.header(), payload(`,"aud":["a"],"nbf":1`)))
	f.Add(oct.sign(`{"alg":"HS256"}`, payload("")))
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	v := newVerifier(f, nil)
	keyfunc := func(t *jwt.Token) (any, error) {
		for _, s := range signers {
			if k := publicKey(s.key); (key{key: k}).fits(t.Method.Alg()) {
				return k, nil
			}
		}
		return nil, errors.New("no key")
	}
	parser := jwt.NewParser(jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	f.Fuzz(func(t *testing.T, raw string) {
		var tok *Token
		var err error
		alloctest.AtMost(t, 20*len(raw)+64<<10, func() { tok, err = v.Verify(t.Context(), raw, now.UnixMilli()) })
		if err == nil && tok == nil {
			t.Fatal("neither a token nor an error")
		}
		if err != nil {
			return
		}
		if _, err := parser.Parse(raw, keyfunc); err != nil {
			t.Fatalf("golang-jwt refuses what was accepted: %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	v := newVerifier(b, nil)
	for _, s := range signers {
		raw := s.sign(s.header(), payload(""))
		b.Run(s.alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw, now.UnixMilli()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func ExampleVerifier_Verify() {
	v, err := NewVerifier(Config{Issuers: []Issuer{{Name: iss, KeysJSON: keySet(ed)}}})
	if err != nil {
		panic(err)
	}
	raw := ed.sign(ed.header(), payload(""))
	tok, err := v.Verify(context.Background(), raw, now.UnixMilli())
	fmt.Println(tok.Claims.Issuer(), err)
	_, err = v.Verify(context.Background(), raw[:len(raw)-8]+"AAAAAAAA", now.UnixMilli())
	fmt.Println(errors.Is(err, ErrSignature))
	// Output:
	// https://id.example <nil>
	// true
}

// A token of an issuer that is new is accepted, one of an issuer that has gone is not, and what stays keeps its keys until they have been read again.
func TestReplace(t *testing.T) {
	s := newServer(t, keySet(ed))
	v := urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/keys"})
	if err := (*v.issuers.Load())[iss].read(t.Context()); err != nil {
		t.Fatal(err)
	}
	signed := ed.sign(ed.header(), payload(""))
	verify := func(want error) {
		t.Helper()
		if _, err := v.Verify(t.Context(), signed, now.UnixMilli()); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	verify(nil)
	v.Replace(urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/keys", Leeway: time.Second}))
	if (*v.issuers.Load())[iss].keys.Load() == nil {
		t.Error("the keys have gone, though they are read from the same place")
	}
	verify(nil)
	v.Replace(urlVerifier(t, Issuer{Name: "https://other.example", KeysJSON: keySet(ed)}))
	verify(ErrUnknownIssuer)
	v.Replace(urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/elsewhere"}))
	if (*v.issuers.Load())[iss].keys.Load() != nil {
		t.Error("keys of another place")
	}
}

// A running verifier reads the keys of issuers that came later.
func TestReplaceWhileRunning(t *testing.T) {
	s := newServer(t, keySet(ed))
	v := newVerifier(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx) }()
	v.Replace(urlVerifier(t, Issuer{Name: iss, JWKSURL: s.URL + "/keys"}))
	for deadline := time.Now().Add(30 * time.Second); v.Keys()[0].Keys == 0; time.Sleep(time.Millisecond) { // between polls
		if time.Now().After(deadline) {
			t.Fatal("the keys are not read")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
