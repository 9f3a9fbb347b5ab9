// Package bearer knows what a bearer token of the API looks like and how a client shows one.
//
// It promises that a token is never sent where others could read it, that no error quotes one, and that a token file which is replaced is taken within
// five seconds without another client. A [Transport] may be used by any number of goroutines; its zero value shows nothing. It knows nothing of roles:
// see package credentials.
package bearer

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// Limits of a token: 22 letters of base64 are the 128 bits that RFC 6750 and common sense ask for.
const (
	MinBytes = 22
	MaxBytes = 256

	prefix = "rvk_" // for those who look for secrets where none should be
)

// Errors a caller can decide by.
var (
	ErrMalformed = errors.New("malformed: a token has 22 to 256 letters, digits and -._~+/=")
	ErrPlaintext = errors.New("a token is sent over TLS only, or to a loopback address")
)

// New makes a token of 256 random bits.
func New() string {
	var b [32]byte
	rand.Read(b[:])
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// Valid reports whether a text can be a token.
func Valid(text string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	return len(text) >= MinBytes && len(text) <= MaxBytes && strings.Trim(text, letters) == ""
}

// FromHeader returns the token of an Authorization header, or "" if it holds none.
func FromHeader(value string) string {
	scheme, token, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") || !Valid(token) {
		return ""
	}
	return token
}

// ReadFile reads a file that holds a token and nothing else but blanks around it. Errors match [ErrMalformed] or are those of the file.
func ReadFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	if !Valid(token) {
		return "", fmt.Errorf("%s: %w", path, ErrMalformed)
	}
	return token, nil
}

// rereadEvery is how soon a token file that was replaced is taken.
const rereadEvery = 5 * time.Second

// Transport shows a token with each request. It is not copied.
type Transport struct {
	Base  http.RoundTripper    // required
	Token string               // or
	File  string               // which is read again now and then
	Mono  func() time.Duration // required with File: a clock that never goes back

	mu   sync.Mutex
	held string
	read time.Duration
}

// RoundTrip is that of [http.RoundTripper]. Errors of the token match [ErrPlaintext], [ErrMalformed] or are those of the file.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.token()
	if err == nil && token != "" {
		if r.URL.Scheme != "https" && !Loopback(r.URL.Hostname()) {
			err = ErrPlaintext
		} else {
			r = r.Clone(r.Context())
			r.Header.Set("Authorization", "Bearer "+token)
		}
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as RoundTrip has to
		}
		return nil, err
	}
	return t.Base.RoundTrip(r)
}

// CloseIdleConnections passes on what [http.Client.CloseIdleConnections] asks for.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// token returns what to show. A file that cannot be used while there is a token leaves that in force: it may just be being replaced.
func (t *Transport) token() (string, error) {
	if t.File == "" {
		return t.Token, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.Mono(); t.held == "" || now-t.read >= rereadEvery {
		token, err := ReadFile(t.File)
		if err != nil && t.held == "" {
			return "", err
		}
		if err == nil {
			t.held = token
		}
		t.read = now
	}
	return t.held, nil
}

// Loopback reports whether a host, without a port, is this machine whatever its resolver says of other names.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}
