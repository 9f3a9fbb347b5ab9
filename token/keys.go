package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/MicahParks/jwkset"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Limits of key sets.
const (
	maxKeySet    = 1 << 20 // bytes
	maxKeys      = 200
	maxCandidate = 4 // keys that are tried for a token without kid
	fetchTimeout = 10 * time.Second
	minSecret    = 32   // bytes of an oct key
	minRSA       = 2048 // bits
	// unknownEvery is how often an unknown key id may make a set be fetched anew: an attacker chooses key ids.
	unknownEvery = 30 * time.Second
	firstRetry   = time.Second // after a failed fetch, doubled up to the interval
)

// issuer is an Issuer with its keys.
type issuer struct {
	Issuer
	client *http.Client

	keys atomic.Pointer[[]key] // the last good set; nil before the first

	reading chan struct{} // holds one element while a set is read: callers share the result
	unknown *rate.Limiter // of fetches because of an unknown key id
	changed time.Time     // of the file; guarded by reading
	err     atomic.Pointer[string]
}

// key is a verification key.
type key struct {
	kid, alg string // alg: "" if the set does not say
	key      any    // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey, []byte
}

// fits reports whether a key is for an algorithm. The type decides, so that no public key is ever taken for a secret.
func (k key) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch pub := k.key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		return map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[alg] == pub.Curve.Params().BitSize
	case ed25519.PublicKey:
		return alg == "EdDSA"
	case []byte:
		return strings.HasPrefix(alg, "HS")
	}
	return false
}

// find returns the keys that may have signed a token.
func (i *issuer) find(ctx context.Context, p *parsed) ([]key, error) {
	keys := i.keys.Load()
	if keys == nil {
		return nil, ErrKeysUnavailable
	}
	if found := candidates(*keys, p); found != nil {
		return found, nil
	}
	if !p.hasKID || i.url() == "" || !i.fetchUnknown(ctx) {
		return nil, ErrUnknownKey
	}
	if found := candidates(*i.keys.Load(), p); found != nil {
		return found, nil
	}
	return nil, ErrUnknownKey
}

func candidates(keys []key, p *parsed) []key {
	var found []key
	for _, k := range keys {
		if (!p.hasKID || k.kid == p.kid) && k.fits(p.alg) && len(found) < maxCandidate {
			found = append(found, k)
		}
	}
	return found
}

// fetchUnknown fetches the set anew because of an unknown key id, unless that has just been done.
func (i *issuer) fetchUnknown(ctx context.Context) bool {
	before := i.keys.Load()
	select {
	case i.reading <- struct{}{}:
		defer func() { <-i.reading }()
	case <-ctx.Done():
		return false
	}
	if i.keys.Load() != before {
		return true // somebody else has just done it
	}
	return i.unknown.Allow() && i.read(ctx) == nil
}

func (i *issuer) url() string {
	if i.Discovery {
		return i.Name
	}
	return i.JWKSURL
}

// readStatic reads keys that need no network.
func (i *issuer) readStatic() error {
	if i.url() != "" {
		return nil
	}
	return i.read(context.Background())
}

// read reads the key set from wherever it is and keeps it if it is good.
func (i *issuer) read(ctx context.Context) error {
	err := i.readAny(ctx)
	message := ""
	if err != nil {
		message = err.Error()
	}
	i.err.Store(&message)
	return err
}

func (i *issuer) readAny(ctx context.Context) error {
	b := i.KeysJSON
	if i.KeysFile != "" {
		info, err := os.Stat(i.KeysFile)
		if err != nil {
			return fmt.Errorf("keys file: %w", err)
		}
		if info.ModTime().Equal(i.changed) && i.keys.Load() != nil {
			return nil
		}
		if info.Size() > maxKeySet {
			return invalid("keys_file", "too_large", "at most 1 MiB")
		}
		if b, err = os.ReadFile(i.KeysFile); err != nil {
			return fmt.Errorf("keys file: %w", err)
		}
		i.changed = info.ModTime()
	}
	if b == nil {
		var err error
		if b, err = i.fetch(ctx); err != nil {
			return err
		}
	}
	jwks, err := parseKeySet(b)
	if err != nil {
		return err
	}
	return i.keep(jwks)
}

// parseKeySet reads a JWK set, without the keys of types that nobody here knows. Keys are counted before they are decoded: an empty one of three bytes takes
// four hundred in memory.
func parseKeySet(b []byte) ([]jwkset.JWK, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, invalid("keys", "malformed", "a JWK set (RFC 7517)")
	}
	if len(set.Keys) > maxKeys {
		return nil, invalid("keys", "too_large", fmt.Sprintf("at most %d keys", maxKeys))
	}
	var jwks []jwkset.JWK
	for _, raw := range set.Keys {
		var m jwkset.JWKMarshal
		err := json.Unmarshal(raw, &m)
		var k jwkset.JWK
		if err == nil {
			k, err = jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		}
		if errors.Is(err, jwkset.ErrUnsupportedKey) {
			continue
		}
		if err != nil {
			return nil, invalid("keys", "malformed", "valid keys of a JWK set (RFC 7517)")
		}
		jwks = append(jwks, k)
	}
	return jwks, nil
}

// keep takes over a set that has at least one usable key.
func (i *issuer) keep(jwks []jwkset.JWK) error {
	var keys []key
	for _, j := range jwks {
		m := j.Marshal()
		if m.USE != "" && m.USE != jwkset.UseSig {
			continue
		}
		k := key{kid: m.KID, alg: string(m.ALG)}
		switch pub := publicKey(j.Key()).(type) {
		case *rsa.PublicKey:
			if pub.N.BitLen() < minRSA {
				return invalid("keys", "out_of_range", "RSA keys of at least 2048 bits")
			}
			k.key = pub
		case []byte:
			if len(pub) < minSecret {
				return invalid("keys", "out_of_range", "secrets of at least 32 bytes")
			}
			k.key = pub
		case *ecdsa.PublicKey, ed25519.PublicKey:
			k.key = pub
		default:
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return invalid("keys", "missing", "at least one usable signature key")
	}
	i.keys.Store(&keys)
	return nil
}

func publicKey(k any) any {
	switch k := k.(type) {
	case *rsa.PrivateKey:
		return &k.PublicKey
	case *ecdsa.PrivateKey:
		return &k.PublicKey
	case ed25519.PrivateKey:
		return k.Public()
	}
	return k
}

// fetch gets the set over the network, once.
func (i *issuer) fetch(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	url := i.JWKSURL
	if i.Discovery {
		var err error
		if url, err = i.discover(ctx); err != nil {
			return nil, fmt.Errorf("discovery: %w", err)
		}
	}
	b, err := i.get(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("fetch the key set: %w", err)
	}
	return b, nil
}

// get gets a document; what is beyond the limit of [keyClient] is cut off.
func (i *issuer) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := i.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return io.ReadAll(resp.Body)
}

// discover asks the issuer where its keys are (OpenID Connect Discovery 1.0, section 4).
func (i *issuer) discover(ctx context.Context) (string, error) {
	b, err := i.get(ctx, strings.TrimSuffix(i.Name, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	var doc struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", errors.New("the document is not JSON, or too large")
	}
	if doc.Issuer != i.Name {
		return "", errors.New("the document is that of another issuer")
	}
	return doc.JWKSURI, safeURL("jwks_uri", doc.JWKSURI)
}

// keyClient bounds what a server can do to us: no redirects, no body beyond the limit.
func keyClient(given *http.Client) *http.Client {
	transport := http.DefaultTransport
	if given != nil && given.Transport != nil {
		transport = given.Transport
	}
	return &http.Client{
		Transport:     limited{transport},
		Timeout:       fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = body{io.LimitReader(resp.Body, maxKeySet), resp.Body}
	}
	return resp, err
}

type body struct {
	io.Reader
	io.Closer
}

// errReplaced ends what keeps the key sets of one list of issuers.
var errReplaced = errors.New("the issuers were replaced")

// Run fetches and refreshes key sets until ctx ends. A failed fetch is tried again after a second, then ever later.
func (v *Verifier) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		g, inner := errgroup.WithContext(ctx)
		for _, i := range *v.issuers.Load() {
			if i.KeysJSON == nil {
				g.Go(func() error { v.keepFresh(inner, i); return nil })
			}
		}
		g.Go(func() error {
			select {
			case <-ctx.Done():
			case <-v.replaced:
			}
			return errReplaced // ends the others
		})
		_ = g.Wait() // only that
	}
	return nil
}

func (v *Verifier) keepFresh(ctx context.Context, i *issuer) {
	wait := time.Duration(0)
	retry := firstRetry
	failing := false
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		i.reading <- struct{}{} // for as long as a fetch may take
		err := i.read(ctx)
		<-i.reading
		switch {
		case err == nil:
			if failing {
				v.log.Info("key set is available again", "issuer", i.Name)
			}
			wait, retry, failing = v.refresh, firstRetry, false
		case ctx.Err() != nil:
			return
		default:
			if !failing {
				v.log.Warn("key set is not available; the last good one stays", "issuer", i.Name, "error", err)
			}
			wait, failing = retry, true
			retry = min(2*retry, v.refresh)
		}
		wait -= rand.N(wait/5 + 1) // issuers are not all asked at once
	}
}

func (i *issuer) state() KeyState {
	s := KeyState{Issuer: i.Name}
	if keys := i.keys.Load(); keys != nil {
		s.Keys = len(*keys)
	}
	if err := i.err.Load(); err != nil {
		s.Err = *err
	}
	return s
}
