package revokdhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBad = errors.New("secret detail")

// by makes a Config that verifies and decides by the words in the token.
func by() Config {
	return Config{
		Claims: Bearer(func(_ context.Context, token string) (*revocation.Claims, error) {
			switch token {
			case "bad":
				return nil, errBad
			case "nokeys":
				return nil, fmt.Errorf("%w: no keys", client.ErrUnknown)
			case "none":
				return nil, nil
			}
			c := new(revocation.Claims)
			return c, c.Set("jti", revocation.String(token))
		}),
		Allow: func(c *revocation.Claims) error {
			switch jti, _ := c.Lookup("jti").AsString(); jti {
			case "revoked":
				return fmt.Errorf("%w: rule deny", client.ErrRevoked)
			case "unknown":
				return fmt.Errorf("%w: stale", client.ErrUnknown)
			case "odd":
				return errBad
			}
			return nil
		},
	}
}

func wrap(t *testing.T, cfg Config) http.Handler {
	t.Helper()
	mw, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return mw(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		jti, _ := FromContext(r.Context()).Lookup("jti").AsString()
		fmt.Fprint(w, "hello ", jti)
	}))
}

func TestAnswers(t *testing.T) {
	const invalid = `Bearer realm="r", error="invalid_token", error_description="The access token `
	for _, c := range []struct {
		name, authorization      string
		status                   int
		challenge, retry, reason string
		is                       error
	}{
		{"good", "Bearer ok", 200, "", "", "hello ok", nil},
		{"scheme in another case", "bearer ok", 200, "", "", "hello ok", nil},
		{"no token", "", 401, `Bearer realm="r"`, "", "", ErrNoToken},
		{"another scheme", "Basic YTpi", 401, `Bearer realm="r"`, "", "", ErrNoToken},
		{"claims without an error", "Bearer none", 401, `Bearer realm="r"`, "", "", ErrNoToken},
		{"empty", "Bearer ", 400, `Bearer realm="r", error="invalid_request", error_description="The credentials of the request are not well-formed"`, "", "invalid_request", ErrRequest},
		{"two words", "Bearer a b", 400, `Bearer realm="r", error="invalid_request", error_description="The credentials of the request are not well-formed"`, "", "invalid_request", ErrRequest},
		{"not valid", "Bearer bad", 401, invalid + `is not valid"`, "", "invalid_token", ErrInvalidToken},
		{"revoked", "Bearer revoked", 401, invalid + `has been revoked"`, "", "invalid_token", client.ErrRevoked},
		{"unknown", "Bearer unknown", 503, "", "3", "temporarily_unavailable", client.ErrUnknown},
		{"no keys", "Bearer nokeys", 503, "", "3", "temporarily_unavailable", client.ErrUnknown},
		{"an error without a meaning", "Bearer odd", 503, "", "3", "temporarily_unavailable", ErrNotDecided},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := by()
			cfg.Realm, cfg.RetryAfter = "r", 2500*time.Millisecond
			var told error
			for _, hook := range []func(http.ResponseWriter, *http.Request, Refusal, error){nil, func(w http.ResponseWriter, _ *http.Request, r Refusal, err error) {
				told = err
				r.Write(w)
			}} {
				cfg.OnError = hook
				r := httptest.NewRequest(http.MethodGet, "/", nil)
				if c.authorization != "" {
					r.Header.Set("Authorization", c.authorization)
				}
				w := httptest.NewRecorder()
				wrap(t, cfg).ServeHTTP(w, r)
				if w.Code != c.status || w.Header().Get("WWW-Authenticate") != c.challenge || w.Header().Get("Retry-After") != c.retry {
					t.Errorf("%d %q %q", w.Code, w.Header().Get("WWW-Authenticate"), w.Header().Get("Retry-After"))
				}
				if !strings.Contains(w.Body.String(), c.reason) || strings.Contains(w.Body.String(), "secret") {
					t.Errorf("body %q", w.Body)
				}
				if c.status != 200 && w.Header().Get("Cache-Control") != "no-store" {
					t.Error("a refusal may be stored")
				}
			}
			if !errors.Is(told, c.is) || c.is == nil && told != nil {
				t.Errorf("told %v, want %v", told, c.is)
			}
			for _, other := range []error{client.ErrRevoked, client.ErrUnknown, ErrNoToken, ErrRequest, ErrInvalidToken, ErrNotDecided} {
				if other != c.is && errors.Is(told, other) {
					t.Errorf("%v is also %v", told, other)
				}
			}
		})
	}
}

func TestTwoHeaders(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header["Authorization"] = []string{"Bearer ok", "Bearer revoked"}
	w := httptest.NewRecorder()
	wrap(t, by()).ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest {
		t.Fatalf("%d", w.Code)
	}
}

// What the handler gets is the server's own writer: flushing and hijacking work behind the middleware.
func TestWriterIsNotWrapped(t *testing.T) {
	mw, err := New(by())
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer ok")
	mw(http.HandlerFunc(func(got http.ResponseWriter, _ *http.Request) {
		if got != http.ResponseWriter(w) {
			t.Error("wrapped")
		}
	})).ServeHTTP(w, r)
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no Allow":      func(c *Config) { c.Allow = nil },
		"no Claims":     func(c *Config) { c.Claims = nil },
		"quoted realm":  func(c *Config) { c.Realm = `a"b` },
		"negative wait": func(c *Config) { c.RetryAfter = -1 },
	} {
		cfg := by()
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
