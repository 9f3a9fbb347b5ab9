// Command gin protects the routes of a gin service: the middleware of net/http, and a few lines that let gin take it.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/client/revokdjwt"
)

const issuer = "https://login.example"

// use lets gin take a middleware of net/http. A request that the middleware answers itself goes no further.
func use(middleware func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		passed := false
		middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.Request = r
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
		if !passed {
			c.Abort()
		}
	}
}

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
	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.GET("/", func(c *gin.Context) { c.String(http.StatusOK, "open to everybody") })
	r.GET("/orders", use(protect), func(c *gin.Context) {
		sub, _ := revokdhttp.FromContext(c.Request.Context()).Lookup("sub").AsString()
		c.String(http.StatusOK, "orders of %s", sub)
	})
	return r, nil
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
