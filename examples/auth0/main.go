// Command auth0 adds the check to a service that uses auth0/go-jwt-middleware: around its function that validates a token.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	jwtmiddleware "github.com/auth0/go-jwt-middleware/v2"
	"github.com/auth0/go-jwt-middleware/v2/validator"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

const issuer = "https://login.example"

// checked returns a function like validate that also checks what it has validated.
func checked(validate jwtmiddleware.ValidateToken, allow func(*revocation.Claims) error) jwtmiddleware.ValidateToken {
	return func(ctx context.Context, raw string) (any, error) {
		claims, err := token.ParseUnverified(raw)
		if err != nil {
			return nil, err
		}
		valid, err := validate(ctx, raw)
		if err != nil {
			return nil, err
		}
		return valid, allow(claims)
	}
}

// refuse answers as RFC 6750 has it: 401 for a token that is revoked or not valid, 503 for one of which it cannot be said. The middleware's own
// handler would answer 400 without a token.
func refuse(w http.ResponseWriter, _ *http.Request, err error) {
	var answers revokdhttp.Config
	switch {
	case errors.Is(err, client.ErrRevoked), errors.Is(err, client.ErrUnknown):
	case errors.Is(err, jwtmiddleware.ErrJWTMissing):
		err = revokdhttp.ErrNoToken
	default:
		err = revokdhttp.ErrInvalidToken
	}
	answers.Refusal(err).Write(w)
}

func newServer(revoked *client.Client, key []byte) (http.Handler, error) {
	v, err := validator.New(func(context.Context) (any, error) { return key, nil }, validator.HS256, issuer, []string{"shop"})
	if err != nil {
		return nil, err
	}
	m := jwtmiddleware.New(checked(v.ValidateToken, revoked.Allow), jwtmiddleware.WithErrorHandler(refuse))
	mux := http.NewServeMux()
	mux.Handle("GET /orders", m.CheckJWT(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims := r.Context().Value(jwtmiddleware.ContextKey{}).(*validator.ValidatedClaims)
		_, _ = w.Write([]byte("orders of " + claims.RegisteredClaims.Subject))
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
