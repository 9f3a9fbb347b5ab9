package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/examples/internal/devnode"
)

func TestOrders(t *testing.T) {
	addr := devnode.Start(t)
	revoked := devnode.Open(t, addr)
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
	token := devnode.Mint(t, key, issuer, "t1")
	if w := get(token); w.Code != http.StatusOK || w.Body.String() != "orders of alice" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := get(""); w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("without a token: %d %v", w.Code, w.Header())
	}
	if w := get(devnode.Mint(t, []byte("another key of the same length.."), issuer, "t2")); w.Code != http.StatusUnauthorized {
		t.Errorf("another key: %d", w.Code)
	}
	if _, err := revoked.Revoke(t.Context(), client.Match{"iss": issuer, "jti": "t1"}); err != nil {
		t.Fatal(err)
	}
	w := get(token)
	if challenge := w.Header().Get("WWW-Authenticate"); w.Code != http.StatusUnauthorized || !strings.Contains(challenge, "revoked") || strings.Contains(w.Body.String(), "orders") {
		t.Errorf("revoked: %d %q %s", w.Code, challenge, w.Body)
	}
	if w := get(devnode.Mint(t, key, issuer, "t3")); w.Code != http.StatusOK {
		t.Errorf("another token: %d", w.Code)
	}
}
