// Package devnode starts a development node for the tests of the examples: the real program, built from this repository, as a process of its own.
package devnode

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/e2e"
)

// Start builds and starts a node and returns where its API is. The end of the test kills it.
func Start(t *testing.T) (addr string) {
	t.Helper()
	home := t.TempDir()
	program := filepath.Join(home, "revokd")
	build := exec.Command("go", "build", "-o", program, "./cmd/revokd")
	build.Dir = "../.." // from the directory of an example's test
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{
		Args: []string{program, "agent", "--dev", "--api-addr", "127.0.0.1:0"}, Env: []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, Dir: home,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return strings.TrimPrefix(p.URL, "http://")
}

// Open returns a client that is level with a node. The end of the test closes it.
func Open(t *testing.T, addr string) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.Open(ctx, client.Config{Addrs: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// Mint signs a token of an issuer with HS256 and a key.
func Mint(t *testing.T, key []byte, issuer, jti string) string {
	t.Helper()
	now := time.Now()
	raw, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": issuer, "sub": "alice", "aud": "shop", "jti": jti, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
