// Command jwx verifies tokens with lestrrat-go/jwx and checks them in the same call: a validator runs when the signature has been verified.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

const issuer = "https://login.example"

// parse verifies a token and checks it. The claims are read from the text itself, so that header.kid and token.sha256 are among them.
func parse(ctx context.Context, raw string, key []byte, allow func(*revocation.Claims) error) (jwt.Token, *revocation.Claims, error) {
	claims, err := token.ParseUnverified(raw)
	if err != nil {
		return nil, nil, err
	}
	check := func(context.Context, jwt.Token) error { return allow(claims) }
	t, err := jwt.ParseString(raw, jwt.WithContext(ctx), jwt.WithKey(jwa.HS256(), key), jwt.WithIssuer(issuer),
		jwt.WithRequiredClaim("exp"), jwt.WithValidator(jwt.ValidatorFunc(check)))
	if err != nil {
		return nil, nil, err
	}
	return t, claims, nil
}

func newServer(revoked *client.Client, key []byte) (http.Handler, error) {
	protect, err := revokdhttp.New(revokdhttp.Config{
		Allow: func(*revocation.Claims) error { return nil }, // parse has checked
		Claims: revokdhttp.Bearer(func(ctx context.Context, raw string) (*revocation.Claims, error) {
			_, claims, err := parse(ctx, raw, key, revoked.Allow)
			return claims, err
		}),
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sub, _ := revokdhttp.FromContext(r.Context()).Lookup("sub").AsString()
		_, _ = w.Write([]byte("orders of " + sub))
	})))
	return mux, nil
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	revoked, err := client.Open(ctx, client.Config{Addrs: []string{os.Getenv("REVOKD_ADDR")}})
	if err != nil {
		return err
	}
	defer revoked.Close()
	handler, err := newServer(revoked, []byte(os.Getenv("JWT_KEY")))
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: "127.0.0.1:8080", Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
