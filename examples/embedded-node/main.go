// Command embedded-node is a service that is itself a node: it holds the revocations on its own disk and needs no other process. The checks
// are those of a client, so the same middleware stands in front of its handlers.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/client/revokdjwt"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

const issuer = "https://login.example"

// allow is what Client.Allow is: nil, or an error that says revoked or unknown.
func allow(n *node.Node) func(*revocation.Claims) error {
	return func(c *revocation.Claims) error {
		switch v := n.Check(c); v.Status {
		case revocation.Active:
			return nil
		case revocation.Revoked:
			return client.ErrRevoked
		default:
			return fmt.Errorf("%w: %s", client.ErrUnknown, v.Cause)
		}
	}
}

// openNode makes a lone node in a directory. Its fingerprint key is made once: without it what is on disk means nothing.
func openNode(dir string) (*node.Node, error) {
	var key revocation.Key
	path := filepath.Join(dir, "fingerprint.key")
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		rand.Read(key[:])
		if err := os.WriteFile(path, key[:], 0o600); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case copy(key[:], b) != len(key):
		return nil, fmt.Errorf("%s: want %d bytes", path, len(key))
	}
	return node.New(node.Config{Name: "service", Dir: filepath.Join(dir, "journal"), Key: key})
}

func newServer(n *node.Node, key []byte) (http.Handler, error) {
	verifier, err := revokdjwt.New(revokdjwt.Config{
		Allow: allow(n), Keys: func(*jwt.Token) (any, error) { return key, nil }, Algorithms: []string{"HS256"}, Issuer: issuer,
	})
	if err != nil {
		return nil, err
	}
	protect, err := revokdhttp.New(revokdhttp.Config{Allow: allow(n), Claims: revokdhttp.Bearer(verifier.Claims)})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sub, _ := revokdhttp.FromContext(r.Context()).Lookup("sub").AsString()
		fmt.Fprint(w, "orders of ", sub)
	})))
	mux.Handle("POST /logout-all", protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sub := revokdhttp.FromContext(r.Context()).Lookup("sub")
		match, err := revocation.NewMatch(map[string]revocation.Value{"iss": revocation.String(issuer), "sub": sub})
		if err == nil {
			var results []node.Result
			results, _, err = n.Write(r.Context(), []revocation.Request{{Match: match, Reason: revocation.ReasonLogout}}, node.WriteOptions{})
			if err == nil {
				err = results[0].Err
			}
		}
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})))
	return mux, nil
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	n, err := openNode(".")
	if err != nil {
		return err
	}
	defer n.Close()
	handler, err := newServer(n, []byte(os.Getenv("JWT_KEY")))
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: "127.0.0.1:8080", Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.ListenAndServe() }()
	// The server ends first, then the node: no check may come after Close.
	nodeCtx, stopNode := context.WithCancel(context.Background())
	context.AfterFunc(ctx, func() {
		_ = srv.Close()
		stopNode()
	})
	err = n.Run(nodeCtx)
	_ = srv.Close()
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
