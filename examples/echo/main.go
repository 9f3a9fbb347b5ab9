// Command echo protects the routes of an echo service: echo takes the middleware of net/http as it is.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/labstack/echo/v4"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/client/revokdjwt"
)

const issuer = "https://login.example"

func newServer(revoked *client.Client, key []byte) (http.Handler, error) {
	verifier, err := revokdjwt.New(revokdjwt.Config{
		Allow: revoked.Allow, Keys: func(*jwt.Token) (any, error) { return key, nil }, Algorithms: []string{"HS256"}, Issuer: issuer,
	})
	if err != nil {
		return nil, err
	}
	protect, err := revokdhttp.New(revokdhttp.Config{Allow: revoked.Allow, Claims: revokdhttp.Bearer(verifier.Claims)})
	if err != nil {
		return nil, err
	}
	e := echo.New()
	e.GET("/", func(c echo.Context) error { return c.String(http.StatusOK, "open to everybody") })
	e.GET("/orders", func(c echo.Context) error {
		sub, _ := revokdhttp.FromContext(c.Request().Context()).Lookup("sub").AsString()
		return c.String(http.StatusOK, "orders of "+sub)
	}, echo.WrapMiddleware(protect))
	return e, nil
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
