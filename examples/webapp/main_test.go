package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/examples/internal/devnode"
)

// browser is one device of a user.
type browser struct {
	t    *testing.T
	url  string
	http *http.Client
}

func (b *browser) post(path string, body any) int {
	b.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := b.http.Post(b.url+path, "application/json", bytes.NewReader(text))
	if err != nil {
		b.t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func (b *browser) me() int {
	b.t.Helper()
	res, err := b.http.Get(b.url + "/me")
	if err != nil {
		b.t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func (b *browser) login(user, password string) {
	b.t.Helper()
	if code := b.post("/login", map[string]string{"user": user, "password": password}); code != http.StatusNoContent {
		b.t.Fatalf("login: %d", code)
	}
}

// live opens the WebSocket; the channel tells with what code it was closed.
func (b *browser) live() <-chan websocket.StatusCode {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	b.t.Cleanup(cancel)
	// Without a time limit, which would end the connection.
	conn, _, err := websocket.Dial(ctx, strings.Replace(b.url, "http", "ws", 1)+"/live", &websocket.DialOptions{HTTPClient: &http.Client{Jar: b.http.Jar}})
	if err != nil {
		b.t.Fatal(err)
	}
	closed := make(chan websocket.StatusCode, 1)
	go func() {
		_, _, err := conn.Read(ctx)
		closed <- websocket.CloseStatus(err)
	}()
	b.t.Cleanup(func() { _ = conn.CloseNow() })
	return closed
}

// Two instances of the site: what is done at one ends sessions and open pages at the other.
func TestWebapp(t *testing.T) {
	addr := devnode.Start(t)
	key := []byte("0123456789abcdef0123456789abcdef")
	passwords := map[string]string{"alice": "wonderland", "bob": "builder"}
	var sites []string
	var clients []*client.Client
	for range 2 {
		c := devnode.Open(t, addr)
		handler, err := newApp(c, key, passwords)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(handler)
		t.Cleanup(s.Close)
		sites, clients = append(sites, s.URL), append(clients, c)
	}
	device := func(site int) *browser {
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		return &browser{t, sites[site], &http.Client{Jar: jar, Timeout: 30 * time.Second}}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) { // between polls
			if time.Now().After(deadline) {
				t.Fatal("never: ", what)
			}
		}
	}
	kicked := func(closed <-chan websocket.StatusCode) {
		t.Helper()
		if code := <-closed; code != revoked {
			t.Fatalf("the WebSocket was closed with %d, want %d", code, revoked)
		}
	}

	phone, laptop, bob := device(0), device(1), device(1)
	if code := phone.me(); code != http.StatusUnauthorized {
		t.Fatalf("before the login: %d", code)
	}
	if code := phone.post("/login", map[string]string{"user": "alice", "password": "guess"}); code != http.StatusForbidden {
		t.Fatalf("a wrong password: %d", code)
	}
	phone.login("alice", "wonderland")
	laptop.login("alice", "wonderland")
	bob.login("bob", "builder")
	page, bobs := laptop.live(), bob.live()

	// One session: at once where it is done, and only this one.
	if code := phone.post("/logout", nil); code != http.StatusNoContent {
		t.Fatalf("logout: %d", code)
	}
	if phone.me() != http.StatusUnauthorized || laptop.me() != http.StatusOK {
		t.Fatalf("after the logout: phone %d, laptop %d", phone.me(), laptop.me())
	}

	// All devices, from the other site; a new login is good at once.
	phone.login("alice", "wonderland")
	time.Sleep(2 * time.Millisecond) // a cutoff has whole milliseconds, and spares what is issued in its own
	if code := phone.post("/logout-all", nil); code != http.StatusNoContent {
		t.Fatalf("logout-all: %d", code)
	}
	kicked(page)
	until("the laptop is logged out", func() bool { return laptop.me() == http.StatusUnauthorized })
	if phone.me() != http.StatusUnauthorized {
		t.Fatal("the phone is not logged out")
	}
	phone.login("alice", "wonderland")
	laptop.login("alice", "wonderland")
	if phone.me() != http.StatusOK || laptop.me() != http.StatusOK {
		t.Fatal("a new login is not accepted")
	}

	// A changed password: the device that changed it stays.
	page = laptop.live()
	time.Sleep(2 * time.Millisecond) // the same: the laptop's login has to be before the cutoff
	if code := phone.post("/password", map[string]string{"password": "glass"}); code != http.StatusNoContent {
		t.Fatalf("password: %d", code)
	}
	kicked(page)
	if phone.me() != http.StatusOK || laptop.me() != http.StatusUnauthorized {
		t.Fatalf("after the change: phone %d, laptop %d", phone.me(), laptop.me())
	}

	// An administrator elsewhere.
	if _, err := clients[0].Block(t.Context(), client.Match{"iss": issuer, "sub": "bob"}, client.Reason("user-suspended")); err != nil {
		t.Fatal(err)
	}
	kicked(bobs)
	if bob.me() != http.StatusUnauthorized {
		t.Fatal("a blocked user is not refused")
	}
}
