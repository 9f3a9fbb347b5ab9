package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/examples/internal/devnode"
	"github.com/revokd/revokd/node"
)

// start runs the node in a directory; stop ends it.
func start(t *testing.T, dir string) (n *node.Node, stop func()) {
	t.Helper()
	n, err := openNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for deadline := time.Now().Add(30 * time.Second); len(n.Ready()) > 0; time.Sleep(time.Millisecond) { // between polls
		if time.Now().After(deadline) {
			t.Fatal(n.Ready())
		}
	}
	return n, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What was revoked stays revoked when the service has been started again; before it is ready the answer is 503.
func TestEmbedded(t *testing.T) {
	dir := t.TempDir()
	key := []byte("0123456789abcdef0123456789abcdef")
	token := devnode.Mint(t, key, issuer, "t1")
	call := func(n *node.Node, method, path string) *httptest.ResponseRecorder {
		handler, err := newServer(n, key)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(method, path, nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	n, stop := start(t, dir)
	if w := call(n, http.MethodGet, "/orders"); w.Code != http.StatusOK || w.Body.String() != "orders of alice" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w := call(n, http.MethodPost, "/logout-all"); w.Code != http.StatusNoContent {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	stop()

	n, err := openNode(dir)
	if err != nil {
		t.Fatal(err)
	}
	if w := call(n, http.MethodGet, "/orders"); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("not ready: %d %v", w.Code, w.Header())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	n, stop = start(t, dir)
	defer stop()
	if w := call(n, http.MethodGet, "/orders"); w.Code != http.StatusUnauthorized || !strings.Contains(w.Header().Get("WWW-Authenticate"), "revoked") {
		t.Errorf("after a restart: %d %v", w.Code, w.Header())
	}
}
