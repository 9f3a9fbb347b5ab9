package bearer

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFormat(t *testing.T) {
	a, b := New(), New()
	if a == b || !Valid(a) || !strings.HasPrefix(a, "rvk_") || len(a) != 4+43 {
		t.Errorf("%q, %q", a, b)
	}
	for text, want := range map[string]bool{
		"": false, strings.Repeat("a", MinBytes-1): false, strings.Repeat("a", MinBytes): true,
		strings.Repeat("a", MaxBytes): true, strings.Repeat("a", MaxBytes+1): false,
		strings.Repeat("a", 30) + " ": false, strings.Repeat("a", 30) + "\n": false, strings.Repeat("ä", 30): false, strings.Repeat("a", 30) + "-._~+/=": true,
	} {
		if Valid(text) != want {
			t.Errorf("%q: not %v", text, want)
		}
	}
	for header, want := range map[string]string{
		"Bearer " + a: a, "bearer " + a: a, "Basic " + a: "", a: "", "Bearer": "", "": "", "Bearer  " + a: "", "Bearer " + a + " ": "", "Bearer x": "",
	} {
		if got := FromHeader(header); got != want {
			t.Errorf("%q: %q", header, got)
		}
	}
}

type seen struct{ header string }

func (s *seen) RoundTrip(r *http.Request) (*http.Response, error) {
	s.header = r.Header.Get("Authorization")
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// A token goes over TLS, or nowhere but to this machine.
func TestWhereTo(t *testing.T) {
	token := New()
	for url, want := range map[string]bool{
		"https://10.0.0.1:7950/": true, "http://127.0.0.1:7950/": true, "http://[::1]:7950/": true, "http://localhost/": true,
		"http://10.0.0.1:7950/": false, "http://localhost.example/": false, "http://0.0.0.0/": false, "http://[::ffff:10.0.0.1]/": false,
	} {
		base := &seen{}
		tr := &Transport{Base: base, Token: token}
		r := httptest.NewRequest(http.MethodPost, url, strings.NewReader("x"))
		res, err := tr.RoundTrip(r)
		if err == nil {
			res.Body.Close()
		}
		if (err == nil) != want || err != nil && !errors.Is(err, ErrPlaintext) || (base.header == "Bearer "+token) != want {
			t.Errorf("%s: %q, %v", url, base.header, err)
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the caller's request was changed")
		}
	}
	base := &seen{}
	res, err := (&Transport{Base: base}).RoundTrip(httptest.NewRequest(http.MethodGet, "http://10.0.0.1/", nil))
	if err != nil || base.header != "" {
		t.Errorf("%q, %v", base.header, err)
	}
	res.Body.Close()
}

// A file that is replaced is taken within five seconds; one that cannot be used in between changes nothing.
func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	base, now := &seen{}, time.Duration(0)
	tr := &Transport{Base: base, File: path, Mono: func() time.Duration { return now }}
	shown := func() string {
		t.Helper()
		res, err := tr.RoundTrip(httptest.NewRequest(http.MethodGet, "https://n1/", nil))
		if err != nil {
			return err.Error()
		}
		res.Body.Close()
		return strings.TrimPrefix(base.header, "Bearer ")
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := shown(); !strings.Contains(got, "no such file") {
		t.Error(got)
	}
	put("short")
	if got := shown(); !strings.Contains(got, "malformed") || strings.Contains(got, "short") {
		t.Error(got)
	}
	a, b := New(), New()
	put(a + "\n")
	if got := shown(); got != a {
		t.Error(got)
	}
	put(b)
	if got := shown(); got != a {
		t.Errorf("it was read again at once: %s", got)
	}
	now += rereadEvery
	if got := shown(); got != b {
		t.Error(got)
	}
	put("")
	now += rereadEvery
	if got := shown(); got != b {
		t.Error(got)
	}
}
