package devnode

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/revokd/revokd/client"
)

// TestOrders is the test of every example that serves /orders to whom a token of an issuer lets in: it does so until the token is revoked, and then says why it does not.
func TestOrders(t *testing.T, issuer string, newServer func(revoked *client.Client, key []byte) (http.Handler, error)) {
	addr := Start(t)
	revoked := Open(t, addr)
	key := []byte("0123456789abcdef0123456789abcdef")
	handler, err := newServer(revoked, key)
	if err != nil {
		t.Fatal(err)
	}
	get := func(token string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	token := Mint(t, key, issuer, "t1")
	if w := get(token); w.Code != http.StatusOK || w.Body.String() != "orders of alice" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := get(""); w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("without a token: %d %v", w.Code, w.Header())
	}
	if w := get(Mint(t, []byte("another key of the same length.."), issuer, "t2")); w.Code != http.StatusUnauthorized {
		t.Errorf("another key: %d", w.Code)
	}
	if _, err := revoked.Revoke(t.Context(), client.Match{"iss": issuer, "jti": "t1"}); err != nil {
		t.Fatal(err)
	}
	w := get(token)
	if challenge := w.Header().Get("WWW-Authenticate"); w.Code != http.StatusUnauthorized || !strings.Contains(challenge, "revoked") || strings.Contains(w.Body.String(), "orders") {
		t.Errorf("revoked: %d %q %s", w.Code, challenge, w.Body)
	}
	if w := get(Mint(t, key, issuer, "t3")); w.Code != http.StatusOK {
		t.Errorf("another token: %d", w.Code)
	}
}
