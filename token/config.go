package token

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/time/rate"

	"github.com/revokd/revokd/revocation"
)

// Config of a [Verifier]. Zero fields mean the defaults.
type Config struct {
	Issuers    []Issuer
	HTTPClient *http.Client  // for key sets; its transport is used, redirects are not followed; default http.DefaultTransport
	Logger     hclog.Logger  // nil: none
	Refresh    time.Duration // of key sets and files, with jitter; default 10 min, at least 1 s
}

// Issuer is one issuer of tokens and where its keys are: exactly one of JWKSURL, Discovery, KeysFile and KeysJSON.
type Issuer struct {
	Name      string // the iss of its tokens
	JWKSURL   string // https, or http on loopback
	Discovery bool   // Name is an https URL that serves /.well-known/openid-configuration (OpenID Connect Discovery 1.0)
	KeysFile  string // a JWK set, read anew when it changes
	KeysJSON  []byte // a JWK set (RFC 7517)

	// Algorithms that its tokens may be signed with (RFC 7518). Default: the asymmetric ones, RS, PS, ES and EdDSA. HS256, HS384 and
	// HS512 must be named, and work only with keys of type oct.
	Algorithms []string
	Types      []string      // accepted typ, without "application/"; default: any, and none
	Audiences  []string      // accepted aud; default: any, and none
	Leeway     time.Duration // for exp and nbf; 0 to 5 min

	// See revocation.Settings for these and their defaults.
	MaxTokenLifetime, MaxSessionLifetime, Skew time.Duration
	SessionClaim                               string
}

// Limits.
const (
	MaxIssuers = 1000
	maxLeeway  = 5 * time.Minute
)

var asymmetric = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

var symmetric = []string{"HS256", "HS384", "HS512"}

// Verifier verifies tokens. See the package comment.
type Verifier struct {
	issuers  atomic.Pointer[map[string]*issuer] // a map is never changed
	replaced chan struct{}                      // holds one element when Run has to look again
	client   *http.Client
	log      hclog.Logger
	refresh  time.Duration
}

// NewVerifier checks the configuration and reads keys that are in it or in files. It starts nothing. Errors are
// *revocation.FieldError, or say what is wrong with a key set.
func NewVerifier(cfg Config) (*Verifier, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = 10 * time.Minute
	}
	if cfg.Refresh < time.Second {
		return nil, invalid("refresh", "out_of_range", "at least 1 s")
	}
	if len(cfg.Issuers) > MaxIssuers {
		return nil, invalid("issuers", "too_large", fmt.Sprintf("at most %d", MaxIssuers))
	}
	v := &Verifier{replaced: make(chan struct{}, 1), client: keyClient(cfg.HTTPClient), log: cfg.Logger.Named("token"), refresh: cfg.Refresh}
	issuers := make(map[string]*issuer, len(cfg.Issuers))
	for _, c := range cfg.Issuers {
		if err := c.validate(); err != nil {
			return nil, err
		}
		if issuers[c.Name] != nil {
			return nil, invalid("issuer", "conflict", "each issuer once")
		}
		i := &issuer{Issuer: c, client: v.client, reading: make(chan struct{}, 1), unknown: rate.NewLimiter(rate.Every(unknownEvery), 1)}
		if err := i.readStatic(); err != nil {
			return nil, err
		}
		issuers[c.Name] = i
	}
	v.issuers.Store(&issuers)
	p := v.Policy()
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return v, nil
}

// Replace makes v verify with the issuers of next, which nobody may use any more, from one token to the next. Keys of an issuer that are read from
// the same place stay until they have been read again, which a running Run does at once.
func (v *Verifier) Replace(next *Verifier) {
	was, is := *v.issuers.Load(), *next.issuers.Load()
	for name, i := range is {
		old := was[name]
		if old == nil || old.JWKSURL != i.JWKSURL || old.Discovery != i.Discovery || old.KeysFile != i.KeysFile || !bytes.Equal(old.KeysJSON, i.KeysJSON) {
			continue
		}
		if i.keys.Load() == nil { // what next has read from a file is younger
			i.keys.Store(old.keys.Load())
		}
	}
	v.issuers.Store(&is)
	select {
	case v.replaced <- struct{}{}:
	default:
	}
}

func invalid(field, kind, limit string) error {
	return &revocation.FieldError{Field: field, Kind: kind, Limit: limit}
}

func (i *Issuer) validate() error {
	if k := revocation.String(i.Name).Kind(); i.Name == "" || k != revocation.KindString {
		return invalid("issuer", "out_of_range", "1 to 512 bytes of UTF-8")
	}
	sources := 0
	for _, given := range []bool{i.JWKSURL != "", i.Discovery, i.KeysFile != "", i.KeysJSON != nil} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		return invalid("keys", "conflict", "exactly one of a JWKS URL, discovery, a file and inline keys")
	}
	if i.JWKSURL != "" {
		if err := safeURL("jwks_url", i.JWKSURL); err != nil {
			return err
		}
	}
	if i.Discovery {
		if err := safeURL("issuer", i.Name); err != nil {
			return err
		}
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = asymmetric
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(asymmetric, a) && !slices.Contains(symmetric, a) {
			return invalid("algorithms", "out_of_range", fmt.Sprintf("of %v and, by name, %v", asymmetric, symmetric))
		}
	}
	i.Types = slices.Clone(i.Types)
	for n, t := range i.Types {
		i.Types[n] = canonicalType(t)
	}
	if i.Leeway < 0 || i.Leeway > maxLeeway {
		return invalid("leeway", "out_of_range", "0 to 5 min")
	}
	return nil
}

// safeURL accepts https, and http on loopback. Who can change a key set on its way can make tokens.
func safeURL(field, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return invalid(field, "malformed", "an absolute URL without user and fragment")
	}
	ip := net.ParseIP(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		return invalid(field, "not_allowed", "https, or http on loopback")
	}
	return nil
}

// Policy returns the issuers' settings, for a node.
func (v *Verifier) Policy() revocation.Policy {
	p := revocation.Policy{Issuers: make(map[string]revocation.Settings, len(*v.issuers.Load()))}
	for name, i := range *v.issuers.Load() {
		p.Issuers[name] = revocation.Settings{
			MaxTokenLifetime: i.MaxTokenLifetime, MaxSessionLifetime: i.MaxSessionLifetime, Skew: i.Skew, SessionClaim: i.SessionClaim,
		}
	}
	return p
}

// KeyState describes the key set of an issuer.
type KeyState struct {
	Issuer string
	Keys   int    // usable keys; 0: its tokens cannot be verified
	Err    string // why the last attempt to read the set failed, without values
}

// Keys returns the state of all key sets, by issuer.
func (v *Verifier) Keys() []KeyState {
	var states []KeyState
	issuers := *v.issuers.Load()
	for _, name := range slices.Sorted(maps.Keys(issuers)) {
		states = append(states, issuers[name].state())
	}
	return states
}
