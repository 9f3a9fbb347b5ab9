// Package revokdhttp refuses revoked tokens in front of a net/http handler.
//
// # What it knows
//
// A function gives it the verified claims of a request; another one, usually Client.Allow of package client, says whether they may pass. What it
// returns is a func(http.Handler) http.Handler, which net/http, chi, gorilla/mux and alice take as it is; echo takes it through
// echo.WrapMiddleware, and gin through a few lines: see the directory examples.
//
// # What it promises
//
//   - A request without a token is answered 401 with a bare challenge, one with a token that is not valid 401 with error="invalid_token", and so is a
//     revoked one, as RFC 6750 has it. A token of which nobody can say whether it is revoked is answered 503 with Retry-After, never
//     401: it may be good, and a client that is told 401 would throw it away.
//   - Whatever error it does not know is refused. Its text never reaches the caller.
//   - A request is decided about once, when it arrives: a connection that lives on, such as a WebSocket, is for Client.OnRevoked.
//
// # Concurrency
//
// What [New] returns may be used concurrently if the functions of its Config may. The zero [Config] is not usable: it needs both functions.
package revokdhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
)

// Sentinels: one for each answer that is not for package client to name.
var (
	// ErrConfig: the configuration cannot be used.
	ErrConfig = errors.New("revokdhttp: invalid configuration")
	// ErrNoToken: the request has no token: answer 401 without an error code.
	ErrNoToken = errors.New("revokdhttp: the request has no bearer token")
	// ErrRequest: the request has more than one Authorization header, or one that is not well-formed: answer 400.
	ErrRequest = errors.New("revokdhttp: the request's credentials are not well-formed")
	// ErrInvalidToken: Claims refused the token: answer 401.
	ErrInvalidToken = errors.New("revokdhttp: the token is not valid")
	// ErrNotDecided: Allow failed with an error that says neither revoked nor unknown: answer 503.
	ErrNotDecided = errors.New("revokdhttp: whether the token is revoked could not be decided")
)

// Config of [New]. Zero fields mean the defaults.
type Config struct {
	// Allow decides: nil, or an error that matches client.ErrRevoked or client.ErrUnknown. Usually Client.Allow. Required.
	Allow func(*revocation.Claims) error
	// Claims returns the verified claims of a request; see [Bearer]. Its errors: [ErrNoToken], [ErrRequest], client.ErrUnknown when the token could not be
	// verified through no fault of its own (no keys), anything else: not valid. Required.
	Claims func(*http.Request) (*revocation.Claims, error)
	// Realm of the challenge; printable ASCII without quotes and backslashes. Default: none.
	Realm string
	// RetryAfter of 503, in whole seconds, rounded up. Default 1 s.
	RetryAfter time.Duration
	// OnError answers a refused request, and sees why, instead of [Refusal.Write]. err matches one of the sentinels of this package, client.ErrRevoked or
	// client.ErrUnknown, and what Claims or Allow returned.
	OnError func(http.ResponseWriter, *http.Request, Refusal, error)
}

func (c *Config) validate() error {
	if c.Allow == nil || c.Claims == nil {
		return fmt.Errorf("%w: Allow and Claims: required", ErrConfig)
	}
	if strings.ContainsFunc(c.Realm, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) || len(c.Realm) > 256 {
		return fmt.Errorf("%w: Realm: at most 256 bytes of printable ASCII without quotes and backslashes", ErrConfig)
	}
	if c.RetryAfter < 0 {
		return fmt.Errorf("%w: RetryAfter: not negative", ErrConfig)
	}
	if c.RetryAfter == 0 {
		c.RetryAfter = time.Second
	}
	return nil
}

// New returns the middleware. Errors match [ErrConfig].
func New(cfg Config) (func(http.Handler) http.Handler, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, err := cfg.check(r)
			if err == nil {
				next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), claims)))
				return
			}
			refusal := cfg.Refusal(err)
			if cfg.OnError != nil {
				cfg.OnError(w, r, refusal, err)
				return
			}
			refusal.Write(w)
		})
	}, nil
}

func (c *Config) check(r *http.Request) (*revocation.Claims, error) {
	claims, err := c.Claims(r)
	switch {
	case err == nil && claims == nil:
		return nil, ErrNoToken
	case err == nil:
	case errors.Is(err, ErrNoToken), errors.Is(err, ErrRequest), errors.Is(err, client.ErrUnknown), errors.Is(err, client.ErrRevoked):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrInvalidToken, err)
	}
	err = c.Allow(claims)
	if err == nil || errors.Is(err, client.ErrRevoked) || errors.Is(err, client.ErrUnknown) {
		return claims, err
	}
	return nil, fmt.Errorf("%w: %w", ErrNotDecided, err)
}

// Refusal is the answer to a request that may not pass.
type Refusal struct {
	Status      int
	Code        string // of RFC 6750, or temporarily_unavailable; empty: none
	Description string
	Challenge   string        // WWW-Authenticate; empty: none
	RetryAfter  time.Duration // 0: none
}

// Refusal returns the answer to an error of the middleware, of package client or of a verifier that matches one of these: it is the one place where errors become
// answers, also for middleware of others. It needs no field of the Config.
func (c *Config) Refusal(err error) Refusal {
	r := Refusal{Status: http.StatusUnauthorized, Code: "invalid_token"}
	switch {
	case errors.Is(err, client.ErrRevoked):
		r.Description = "The access token has been revoked"
	case errors.Is(err, ErrNoToken):
		r.Code = ""
	case errors.Is(err, ErrRequest):
		r.Status, r.Code, r.Description = http.StatusBadRequest, "invalid_request", "The credentials of the request are not well-formed"
	case errors.Is(err, ErrInvalidToken):
		r.Description = "The access token is not valid"
	default:
		return Refusal{
			Status: http.StatusServiceUnavailable, Code: "temporarily_unavailable",
			Description: "Whether the access token is valid cannot be said at the moment", RetryAfter: max(c.RetryAfter, time.Second),
		}
	}
	r.Challenge = challenge(c.Realm, r.Code, r.Description)
	return r
}

func challenge(realm, code, description string) string {
	var params []string
	for _, p := range [][2]string{{"realm", realm}, {"error", code}, {"error_description", description}} {
		if p[1] != "" {
			params = append(params, p[0]+`="`+p[1]+`"`)
		}
	}
	if len(params) == 0 {
		return "Bearer"
	}
	return "Bearer " + strings.Join(params, ", ")
}

// Write answers a request: headers, status and, where there is a code, a JSON body with error and error_description.
func (r Refusal) Write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if r.Challenge != "" {
		h.Set("WWW-Authenticate", r.Challenge)
	}
	if r.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((r.RetryAfter+time.Second-1)/time.Second), 10))
	}
	if r.Code == "" {
		w.WriteHeader(r.Status)
		return
	}
	body, _ := json.Marshal(map[string]string{"error": r.Code, "error_description": r.Description}) // strings always can be
	h.Set("Content-Type", "application/json")
	w.WriteHeader(r.Status)
	_, _ = w.Write(body) // the caller may have gone
}

// Bearer makes Config.Claims of a function that verifies a token, such as Verifier.Claims of package revokdjwt: it takes the token from the Authorization header.
// A token elsewhere, in a cookie or a subprotocol, is for a function of your own.
func Bearer(verify func(ctx context.Context, token string) (*revocation.Claims, error)) func(*http.Request) (*revocation.Claims, error) {
	return func(r *http.Request) (*revocation.Claims, error) {
		token, err := Token(r)
		if err != nil {
			return nil, err
		}
		return verify(r.Context(), token)
	}
}

// Token returns the bearer token of the Authorization header. Errors match [ErrNoToken], also for another scheme, or [ErrRequest].
func Token(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", ErrNoToken
	}
	scheme, token, found := strings.Cut(values[0], " ")
	switch {
	case len(values) > 1:
		return "", fmt.Errorf("%w: more than one Authorization header", ErrRequest)
	case !strings.EqualFold(scheme, "Bearer"):
		return "", ErrNoToken
	}
	if token = strings.Trim(token, " "); !found || token == "" || strings.ContainsAny(token, " ,") {
		return "", fmt.Errorf("%w: want Bearer and one token", ErrRequest)
	}
	return token, nil
}

type contextKey struct{}

// NewContext returns a context with claims; the middleware does so for the handlers behind it.
func NewContext(ctx context.Context, c *revocation.Claims) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// FromContext returns the claims of the request that the middleware has let pass, nil if there are none. They must not be changed.
func FromContext(ctx context.Context) *revocation.Claims {
	c, _ := ctx.Value(contextKey{}).(*revocation.Claims)
	return c
}
