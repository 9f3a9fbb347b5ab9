// Command webapp is a small site with logins that end when they are told to: log out, log out all devices, change the password. A page that is
// open is told at once, over its WebSocket, when its session has been revoked, wherever that happened.
//
// Sessions are JWTs in a cookie. Nothing is stored here but the users: what ends a session is a revocation, and every instance of the site knows it.
package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/client/revokdjwt"
	"github.com/revokd/revokd/revocation"
)

const (
	issuer  = "https://webapp.example"
	cookie  = "session"
	maxAge  = time.Hour
	revoked = 4401 // the code with which a WebSocket is closed
)

//go:embed index.html
var page []byte

// app is the site.
type app struct {
	revoked *client.Client
	key     []byte

	mu        sync.Mutex
	passwords map[string]string // in a real site: salted hashes, in a database
}

func newApp(c *client.Client, key []byte, passwords map[string]string) (http.Handler, error) {
	a := &app{revoked: c, key: key, passwords: passwords}
	verifier, err := revokdjwt.New(revokdjwt.Config{
		Allow: c.Allow, Keys: func(*jwt.Token) (any, error) { return key, nil }, Algorithms: []string{"HS256"}, Issuer: issuer,
	})
	if err != nil {
		return nil, err
	}
	protect, err := revokdhttp.New(revokdhttp.Config{
		Allow: c.Allow,
		Claims: func(r *http.Request) (*revocation.Claims, error) {
			held, err := r.Cookie(cookie)
			if err != nil {
				return nil, revokdhttp.ErrNoToken
			}
			return verifier.Claims(r.Context(), held.Value)
		},
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(page)
	})
	mux.HandleFunc("POST /login", a.login)
	mux.Handle("GET /me", protect(http.HandlerFunc(a.me)))
	mux.Handle("POST /logout", protect(http.HandlerFunc(a.logout)))
	mux.Handle("POST /logout-all", protect(http.HandlerFunc(a.logoutAll)))
	mux.Handle("POST /password", protect(http.HandlerFunc(a.password)))
	mux.Handle("GET /live", protect(http.HandlerFunc(a.live)))
	return mux, nil
}

func claim(r *http.Request, name string) string {
	s, _ := revokdhttp.FromContext(r.Context()).Lookup(name).AsString()
	return s
}

// issue signs a session. Its iat has milliseconds: one that is issued right after "log out all devices" is good at once.
func (a *app) issue(w http.ResponseWriter, user string) error {
	now := time.Now()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"iss": issuer, "sub": user, "sid": rand.Text(), "iat": float64(now.UnixMilli()) / 1000, "exp": now.Add(maxAge).Unix(),
	}).SignedString(a.key)
	if err != nil {
		return err
	}
	http.SetCookie(w, &http.Cookie{Name: cookie, Value: token, Path: "/", MaxAge: int(maxAge / time.Second), HttpOnly: true, SameSite: http.SameSiteStrictMode})
	return nil
}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ User, Password string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&in); err != nil {
		http.Error(w, "want user and password", http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	want, known := a.passwords[in.User]
	a.mu.Unlock()
	if !known || subtle.ConstantTimeCompare([]byte(want), []byte(in.Password)) != 1 {
		http.Error(w, "wrong user or password", http.StatusForbidden)
		return
	}
	a.answer(w, a.issue(w, in.User))
}

func (a *app) me(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"user": claim(r, "sub"), "session": claim(r, "sid")})
}

// logout ends this session.
func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	_, err := a.revoked.Revoke(r.Context(), client.Match{"iss": issuer, "sid": claim(r, "sid")}, client.Reason("logout"))
	a.answer(w, err)
}

// logoutAll ends all sessions of the user.
func (a *app) logoutAll(w http.ResponseWriter, r *http.Request) {
	_, err := a.revoked.RevokeSubject(r.Context(), issuer, claim(r, "sub"), client.Reason("logout"))
	a.answer(w, err)
}

// password changes it, ends all sessions of the user, and begins a new one here.
func (a *app) password(w http.ResponseWriter, r *http.Request) {
	var in struct{ Password string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&in); err != nil || in.Password == "" {
		http.Error(w, "want a password", http.StatusBadRequest)
		return
	}
	user := claim(r, "sub")
	a.mu.Lock()
	a.passwords[user] = in.Password
	a.mu.Unlock()
	_, err := a.revoked.RevokeSubject(r.Context(), issuer, user, client.Reason("password-changed"))
	if err == nil {
		err = a.issue(w, user)
	}
	a.answer(w, err)
}

// answer says whether it is done. A logout that could not be written is not done: the page must say so and offer to try again.
func (a *app) answer(w http.ResponseWriter, err error) {
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrNotConfirmed):
		w.Header().Set("Retry-After", "1")
		http.Error(w, "try again", http.StatusServiceUnavailable)
	default:
		log.Print(err)
		http.Error(w, "failed", http.StatusInternalServerError)
	}
}

// live holds a WebSocket open until the page goes away or the session is revoked.
func (a *app) live(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil) // which refuses pages of other sites
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	ended := make(chan struct{}, 1)
	stop := a.revoked.OnRevoked(revokdhttp.FromContext(r.Context()), func(revocation.Verdict) { ended <- struct{}{} })
	defer stop()
	gone := conn.CloseRead(r.Context())
	select {
	case <-gone.Done():
	case <-ended:
		_ = conn.Close(revoked, "revoked")
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	addr := os.Getenv("REVOKD_ADDR")
	if addr == "" {
		addr = "127.0.0.1:7950"
	}
	c, err := client.Open(ctx, client.Config{Addrs: []string{addr}})
	if err != nil {
		return err
	}
	defer c.Close()
	key := make([]byte, 32)
	rand.Read(key)
	handler, err := newApp(c, key, map[string]string{"alice": "wonderland", "bob": "builder"})
	if err != nil {
		return err
	}
	srv := &http.Server{Addr: "127.0.0.1:8080", Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	log.Print("http://", srv.Addr, " (alice, wonderland)")
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
