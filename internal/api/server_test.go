package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

const check = revokdv1connect.RevocationServiceCheckProcedure

// do sends a request and returns the status and the body.
func (f *fixture) do(r *http.Request) (*http.Response, string) {
	f.Helper()
	res, err := f.http.Do(r)
	if err != nil {
		f.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.Fatal(err)
	}
	f.clean(r.URL.Path, string(b))
	return res, string(b)
}

func (f *fixture) get(path string) (*http.Response, string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		f.Fatal(err)
	}
	return f.do(r)
}

func TestPages(t *testing.T) {
	f := start(t)
	for path, want := range map[string]string{
		"/":                      "curl -H 'content-type: application/json' -d '{\"sub\":\"alice\"}' " + f.url,
		"/healthz":               "ok\n",
		"/readyz":                `{"ready":true}`,
		"/metrics":               "\nrevokd_ready 1\n",
		"/.well-known/jwks.json": `"keys"`,
	} {
		res, body := f.get(path)
		if res.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, res.StatusCode, body)
		}
		if res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", path, res.Header)
		}
	}
	for _, path := range []string{"/x", "/revokd.v1.RevocationService/Nothing", "/healthz/", "/debug/pprof/"} {
		if res, _ := f.get(path); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

// Without the dev issuer nothing signs tokens, and a match without an issuer is refused.
func TestWithoutDev(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Dev = nil })
	for _, path := range []string{"/.well-known/jwks.json", revokdv1connect.DevServiceMintTokenProcedure} {
		if res, _ := f.get(path); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	if _, body := f.get("/"); strings.Contains(body, "development") {
		t.Error("the page speaks of a development node")
	}
	for method, body := range map[string]string{
		"Revoke": `{"match":{"claims":{"sub":"canary"}}}`, "Block": `{"match":{}}`, "Unblock": `{"match":{}}`,
	} {
		if r := f.post(method, body); r.code != "permission_denied" || r.detail.GetField() != "match.iss" {
			t.Errorf("%s: %s %v", method, r.code, r.detail)
		}
	}
	if r := f.post("Status", `{}`); r.field("dev") != "" {
		t.Error("the status says dev")
	}
}

func TestAnyIssuer(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Dev, c.api.AnyIssuer = nil, true })
	if r := f.post("Revoke", `{"match":{"claims":{"sub":"canary"}}}`); r.code != "ok" {
		t.Errorf("%s %v", r.code, r.detail)
	}
}

func TestNotReady(t *testing.T) {
	f := start(t, func(c *setup) { c.noRun = true })
	res, body := f.get("/readyz")
	var answer struct {
		Ready      bool
		WaitingFor []string
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusServiceUnavailable || answer.Ready || len(answer.WaitingFor) != 1 || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := f.get("/healthz"); res.StatusCode != http.StatusOK {
		t.Error("not alive")
	}
	token := f.mint(devissuer.Params{Sub: "canary"})
	for _, p := range f.protocols() {
		if r := p.call("Check", `{"token":"`+token+`"}`); r.field("verdict") != "VERDICT_UNKNOWN" || r.field("unknownCause") != "not_ready" {
			t.Errorf("%s: %v", p.name, r)
		}
		if r := p.call("Revoke", `{"token":"`+token+`"}`); r.code != "unavailable" || r.detail.GetKind() != "not_ready" || p.name != "grpc" && r.retry != "1" {
			t.Errorf("%s: %v", p.name, r)
		}
		if r := p.call("Status", `{}`); r.field("ready") != "" || r.field("waitingFor") == "" {
			t.Errorf("%s: %v", p.name, r)
		}
	}
	if got := f.health(""); got != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health %s", got)
	}
}

func (f *fixture) health(service string) healthv1.HealthCheckResponse_ServingStatus {
	f.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(f.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	defer conn.Close()
	res, err := healthv1.NewHealthClient(conn).Check(f.Context(), &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		f.Logf("health: %v", err)
	}
	return res.GetStatus()
}

func TestHealth(t *testing.T) {
	f := start(t)
	for service, want := range map[string]healthv1.HealthCheckResponse_ServingStatus{
		"": healthv1.HealthCheckResponse_SERVING, revokdv1connect.RevocationServiceName: healthv1.HealthCheckResponse_SERVING,
		"x.Y": healthv1.HealthCheckResponse_UNKNOWN,
	} {
		if got := f.health(service); got != want {
			t.Errorf("%q: %s", service, got)
		}
	}
}

func TestReflection(t *testing.T) {
	f := start(t)
	s := grpcreflect.NewClient(f.h2c(), f.url, connect.WithGRPC()).NewStream(t.Context())
	defer s.Close()
	names, err := s.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{revokdv1connect.RevocationServiceName, revokdv1connect.DevServiceName, "grpc.health.v1.Health"} {
		if !slices.Contains(names, protoreflect.FullName(want)) {
			t.Errorf("no %s in %v", want, names)
		}
	}
	if _, err := s.FileContainingSymbol("revokd.v1.CheckRequest"); err != nil {
		t.Error(err)
	}
}

// Web pages can make a browser send requests here, and can point a name of theirs at this machine.
func TestBrowsers(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Hosts = []string{"Revokd.Internal"} })
	token := f.mint(devissuer.Params{Sub: "canary"})
	port := f.url[strings.LastIndex(f.url, ":"):]
	for _, c := range []struct {
		name, host string
		header     map[string]string
		status     int
		kind       string
	}{
		{"curl", "", nil, 200, ""},
		{"localhost", "localhost" + port, nil, 200, ""},
		{"no port", "LOCALHOST", nil, 200, ""},
		{"another loopback", "127.8.9.10" + port, nil, 200, ""},
		{"IPv6", "[::1]" + port, nil, 200, ""},
		{"IPv4 in IPv6", "[::ffff:127.0.0.1]", nil, 200, ""},
		{"configured", "revokd.internal" + port, nil, 200, ""},
		{"rebound", "evil.example" + port, nil, 403, "host"},
		{"suffix", "localhost.evil.example", nil, 403, "host"},
		{"prefix", "127.0.0.1.evil.example", nil, 403, "host"},
		{"not loopback", "10.0.0.1" + port, nil, 403, "host"},
		{"same origin", "", map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": f.url}, 200, ""},
		{"typed in", "", map[string]string{"Sec-Fetch-Site": "none"}, 200, ""},
		{"cross site", "", map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403, "cross_site"},
		{"another port", "", map[string]string{"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"}, 403, "cross_site"},
		{"old browser", "", map[string]string{"Origin": "https://evil.example"}, 403, "cross_site"},
		{"sandbox", "", map[string]string{"Origin": "null"}, 403, "cross_site"},
		{"old browser, same origin", "", map[string]string{"Origin": f.url}, 200, ""},
		{"form", "", map[string]string{"Content-Type": "text/plain"}, 415, ""},
		{"form", "", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, ""},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+check, strings.NewReader(`{"token":"`+token+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for name, v := range c.header {
			r.Header.Set(name, v)
		}
		r.Host = c.host
		res, body := f.do(r)
		if res.StatusCode != c.status || c.kind != "" && !strings.Contains(body, `"kind":"`+c.kind+`"`) {
			t.Errorf("%s: %d %s", c.name, res.StatusCode, body)
		}
		if res.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: pages may read the answer", c.name)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodOptions} {
		r, err := http.NewRequestWithContext(t.Context(), method, f.url+check+"?encoding=json&message=%7B%7D", nil)
		if err != nil {
			t.Fatal(err)
		}
		if res, _ := f.do(r); res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, res.StatusCode)
		}
	}
	// Pages, too, are for our own names only.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "evil.example"
	if res, _ := f.do(r); res.StatusCode != http.StatusForbidden {
		t.Errorf("metrics: %d", res.StatusCode)
	}
}

func TestAnyHost(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Hosts = []string{"*"} })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+"/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "node-1.example"
	if res, _ := f.do(r); res.StatusCode != http.StatusOK {
		t.Errorf("%d", res.StatusCode)
	}
}

// Each limit on bytes: what is just inside is read, what is just beyond is refused with the limit in words.
func TestSizes(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Message, c.api.Limits.Batch = 4096, 16384 })
	pad := func(body string, n int) string { return body + strings.Repeat(" ", n-len(body)) }
	for _, c := range []struct {
		method, body string
		limit        int
	}{
		{"Check", `{"claims":{}}`, 4096},
		{"Revoke", `{"match":{"claims":{"iss":"i","jti":"canary"}}}`, 4096},
		{"Status", `{}`, 4096},
		{"CheckBatch", `{"items":[{"claims":{}}]}`, 16384},
		{"RevokeBatch", `{"items":[{"match":{"claims":{"iss":"i","jti":"canary"}}}]}`, 16384},
	} {
		if r := f.post(c.method, pad(c.body, c.limit)); r.code != "ok" {
			t.Errorf("%s: %s %s", c.method, r.code, r.text)
		}
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(pad(c.body, c.limit+1))
			if chunked {
				body = io.MultiReader(body)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/revokd.v1.RevocationService/"+c.method, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			res, text := f.do(req)
			r := f.readJSON(c.method, res, []byte(text))
			if r.code != "invalid_argument" || r.detail.GetKind() != "too_large" || r.detail.GetLimit() != fmt.Sprintf("at most %d bytes", c.limit) {
				t.Errorf("%s, chunked %v: %s %v", c.method, chunked, r.code, r.detail)
			}
		}
	}
	// gRPC: five bytes more for the envelope. A CheckRequest with a payload of n bytes has n+3.
	for _, p := range f.protocols() {
		if p.name == "json" {
			continue
		}
		for n, want := range map[int]string{4096 - 3: "malformed", 4096 - 2: "too_large"} {
			body := fmt.Sprintf(`{"payload":%q}`, base64.StdEncoding.EncodeToString(make([]byte, n)))
			if r := p.call("Check", body); r.detail.GetKind() != want {
				t.Errorf("%s, %d bytes: %s %s %v", p.name, n, r.code, r.text, r.detail)
			}
		}
	}
	eventually(t, "all bytes are given back", func() bool { return f.server.pending.Load() == 0 })
}

// All requests together have a limit as well.
func TestTotal(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Total = 100_000 })
	r, w := io.Pipe()
	slow, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+check, r)
	if err != nil {
		t.Fatal(err)
	}
	slow.Header.Set("Content-Type", "application/json")
	answered := make(chan int, 1)
	go func() {
		res, err := f.http.Do(slow)
		if err != nil {
			answered <- 0
			return
		}
		defer res.Body.Close()
		answered <- res.StatusCode
	}()
	if _, err := io.WriteString(w, `{"claims":{}`+strings.Repeat(" ", 90_000)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bytes are counted", func() bool { return f.server.pending.Load() > 90_000 })
	if r := f.post("Check", `{"claims":{}`+strings.Repeat(" ", 20_000)+`}`); r.code != "resource_exhausted" || r.detail.GetKind() != "busy" || r.retry != "1" {
		t.Errorf("%s %v %q", r.code, r.detail, r.retry)
	}
	if _, err := io.WriteString(w, `}`); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := <-answered; got != http.StatusOK {
		t.Errorf("status %d", got)
	}
	eventually(t, "the bytes are given back", func() bool { return f.server.pending.Load() == 0 })
}

// A body that does not arrive is not waited for, and does not occupy a place.
func TestSlowBody(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Read = 200 * time.Millisecond })
	c := f.dial()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"tok", check)
	b, _ := io.ReadAll(c)
	if !strings.Contains(string(b), "deadline_exceeded") || !strings.Contains(string(b), "504") {
		t.Errorf("%s", b)
	}
	f.clean("the answer", string(b))
	eventually(t, "the bytes are given back", func() bool { return f.server.pending.Load() == 0 })
}

func (f *fixture) dial() net.Conn {
	f.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		f.Fatal(err)
	}
	return c
}

// Whatever comes to the port, the server goes on.
func TestGarbage(t *testing.T) {
	f := start(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	preface := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	send := [][]byte{
		noise(1), noise(100), noise(100_000), preface, append(slices.Clone(preface), noise(10_000)...),
		[]byte("GET / HTTP/9.9\r\n\r\n"), []byte("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"),
		[]byte("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"),
		[]byte("GET /" + strings.Repeat("a", 1<<20) + " HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		[]byte("POST " + check + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n"),
		[]byte("*1\r\n$4\r\nPING\r\n"), []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
	}
	for i, b := range send {
		c := f.dial()
		_, _ = c.Write(b)
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Errorf("%d: the connection stays open", i)
		}
		_ = c.Close()
	}
	if res, _ := f.get("/healthz"); res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
	eventually(t, "connections are counted out", func() bool { return f.server.metrics.open.Load() <= 1 })
}

func TestHeaderLimit(t *testing.T) {
	f := start(t)
	for n, want := range map[int]string{14 << 10: " 200 ", 21 << 10: " 431 "} {
		c := f.dial()
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: %s\r\n\r\n", strings.Repeat("a", n))
		if b, _ := io.ReadAll(c); !strings.Contains(string(b), want) {
			t.Errorf("%d bytes: %s", n, b)
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Connections = 2 })
	a, b := f.dial(), f.dial()
	for _, c := range []net.Conn{a, b} {
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := io.ReadAtLeast(c, make([]byte, 4096), 12); err != nil {
			t.Fatal(err)
		}
	}
	c := f.dial()
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a third connection: %v", err)
	}
	_ = a.Close()
	eventually(t, "a place is free", func() bool { return f.server.metrics.open.Load() == 1 })
	if res, _ := f.get("/metrics"); res.StatusCode != http.StatusOK {
		t.Error("no metrics")
	}
}

// A panic ends its call, in the log stands where and not what.
func TestPanic(t *testing.T) {
	f := start(t)
	f.server.mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("canary") })
	if res, body := f.get("/panic"); res.StatusCode != http.StatusInternalServerError || body != "internal error\n" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	const path = "/revokd.v1.Test/Panic"
	f.server.mux.Handle(path, connect.NewUnaryHandler(path, func(context.Context, *connect.Request[revokdv1.StatusRequest]) (*connect.Response[revokdv1.StatusResponse], error) {
		panic(fmt.Errorf("canary"))
	}, connect.WithInterceptors(interceptor{f.server})))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+path, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	if res, body := f.do(r); res.StatusCode != http.StatusInternalServerError || !strings.Contains(body, `"message":"internal error"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	const streamPath = "/revokd.v1.Test/PanicStream"
	f.server.mux.Handle(streamPath, connect.NewBidiStreamHandler(streamPath, func(_ context.Context, st *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]) error {
		m, err := st.Receive()
		if err != nil {
			return err
		}
		panic(m.GetItems()[0].GetToken())
	}, connect.WithInterceptors(interceptor{f.server})))
	st := connect.NewClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse](f.h2c(), f.url+streamPath).CallBidiStream(t.Context())
	if err := st.Send(&revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{{Target: &revokdv1.RevokeRequest_Token{Token: "canary"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Receive(); connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), canary) {
		t.Errorf("a stream: %v", err)
	}
	_ = st.CloseRequest() // it has ended
	if n := f.server.metrics.panics.Load(); n != 3 {
		t.Errorf("%d panics counted", n)
	}
	if log := f.log.String(); strings.Count(log, "handler panicked") != 3 || !strings.Contains(log, "server_test.go") {
		t.Errorf("log %s", log)
	}
}

// Serve lets calls end and refuses new ones.
func TestDrain(t *testing.T) {
	f := start(t)
	r, w := io.Pipe()
	slow, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+check, r)
	if err != nil {
		t.Fatal(err)
	}
	slow.Header.Set("Content-Type", "application/json")
	type answer struct {
		status int
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		res, err := f.http.Do(slow)
		if err != nil {
			answered <- answer{err: err}
			return
		}
		defer res.Body.Close()
		answered <- answer{status: res.StatusCode}
	}()
	if _, err := io.WriteString(w, `{"claims":{}`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call has begun", func() bool { return f.server.pending.Load() > 0 })
	stopped := make(chan error, 1)
	go func() { stopped <- f.stop() }()
	eventually(t, "nothing is accepted any more", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if len(f.server.waitingFor()) == 0 {
		t.Error("still ready")
	}
	if _, err := io.WriteString(w, `}`); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if a := <-answered; a.err != nil || a.status != http.StatusOK {
		t.Errorf("%+v", a)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// Before it stops accepting, it says for a while that it will: whoever sends callers here looks at /readyz.
func TestLinger(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Linger = 3 * time.Second })
	stopped := make(chan error, 1)
	go func() { stopped <- f.stop() }()
	eventually(t, "a new connection is told that the node is not ready", func() bool {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(f.url + "/readyz")
		if err != nil {
			t.Fatalf("it accepts no more: %v", err)
		}
		return res.Body.Close() == nil && res.StatusCode == http.StatusServiceUnavailable
	})
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// After the time for that it cuts off.
func TestDrainEnds(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Drain = 50 * time.Millisecond })
	c := f.dial()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"tok", check)
	eventually(t, "the call has begun", func() bool { return f.server.pending.Load() > 0 })
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(f.log.String(), "cut off") {
		t.Error("the log does not say so")
	}
}

func TestServeFails(t *testing.T) {
	f := start(t)
	s, err := New(Config{Node: f.node, Verifier: f.server.cfg.Verifier})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := s.Serve(t.Context(), ln); err == nil {
		t.Error("no error")
	}
}

func TestConfig(t *testing.T) {
	f := start(t)
	good := Config{Node: f.node, Verifier: f.server.cfg.Verifier}
	for name, change := range map[string]func(*Config){
		"node": func(c *Config) { c.Node = nil }, "verifier": func(c *Config) { c.Verifier = nil },
		"limits": func(c *Config) { c.Limits.Message = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// JSON that does not decode is refused with its place, and no byte of it is quoted.
func TestMalformed(t *testing.T) {
	f := start(t)
	for body, want := range map[string]string{
		``:                           "valid JSON of the message expected at line 1, column 1",
		"{\"token\":\n \"canary\"":   "valid JSON of the message expected at line 2, column 10",
		"{\n\"token\": \"can\xff\"}": "at line 2",
		"{\n\"token\": \"can\ary\"}": "at line 2",
		"{} {}":                      "at line 1, column 4",
		`canary`:                     "valid JSON of the message expected at line 1, column 1",
		"{\n\"token\": canary}":      "line 2, column 10",
		`{"token":"canary"`:          "valid JSON",
		`{"tokenn":"canary"}`:        "no such member at line 1, column 2",
		`{"token":7}`:                "valid JSON",
		`{"token":"a","token":"b"}`:  "valid JSON",
		`{"scope":"SCOPE_canary"}`:   "valid JSON",
		`{"expiresAt":"canary"}`:     "valid JSON",
		`[]`:                         "valid JSON",
		"\xff":                       "valid JSON",
		`{"token":"\ud800"}`:         "valid JSON",
	} {
		r := f.post("Revoke", body)
		if r.code != "invalid_argument" || r.detail.GetKind() != "malformed" || r.detail.GetField() != "body" || !strings.Contains(r.text, want) {
			t.Errorf("%.60s: %s %s %v", body, r.code, r.text, r.detail)
		}
	}
	for _, typ := range []string{"application/proto", "application/grpc-web+proto"} {
		body := "\x0a\xff\xff\xff\xff\x0fcanary"
		if typ != "application/proto" {
			body = "\x00\x00\x00\x00" + string(rune(len(body))) + body
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+check, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", typ)
		res, text := f.do(r)
		if !strings.Contains(text+res.Header.Get("Grpc-Message"), "format of Protobuf") {
			t.Errorf("%s: %d %s %v", typ, res.StatusCode, text, res.Header)
		}
	}
}

// A small message must not become a large one in memory.
func TestParts(t *testing.T) {
	f := start(t)
	list := func(n int) string { return `{"claims":{"a":[` + strings.Repeat(`0,`, n) + `0]}}` }
	deep := func(n int) string {
		return `{"claims":` + strings.Repeat(`{"a":`, n) + `1` + strings.Repeat(`}`, n) + `}`
	}
	for _, c := range []struct{ name, method, body, limit string }{
		{"list", "Check", list(4093), "at most 8192 bytes as JSON"}, // decoded, and then too long for claims
		{"longer list", "Check", list(4094), tooManyLimit},
		{"list in a batch", "CheckBatch", `{"items":[` + strings.Repeat(`{},`, 50_001) + `{}]}`, tooManyLimit},
		{"deep", "Check", deep(20), "depth at most 8"},
		{"deeper", "Check", deep(128), tooManyLimit},
		{"much deeper", "Check", deep(4000), tooManyLimit},
		{"commas and brackets in strings", "Check", `{"token":"` + strings.Repeat(`,[{\"`, 1000) + `"}`, ""},
	} {
		if r := f.post(c.method, c.body); r.code != "invalid_argument" || r.detail.GetLimit() != c.limit {
			t.Errorf("%s: %s %s %v", c.name, r.code, r.text, r.detail)
		}
	}
	values := make([]*structpb.Value, 3000)
	for i := range values {
		values[i] = structpb.NewNullValue()
	}
	nested := structpb.NewNullValue()
	for range 60 {
		nested = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{nested}})
	}
	claims := func(v *structpb.Value) *revokdv1.CheckRequest {
		return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Claims{Claims: &structpb.Struct{Fields: map[string]*structpb.Value{"a": v}}}}
	}
	twice := structpb.NewListValue(&structpb.ListValue{Values: append(values, values...)})
	for name, c := range map[string]struct {
		m     *revokdv1.CheckRequest
		limit string
	}{
		"values": {claims(structpb.NewListValue(&structpb.ListValue{Values: values})), "at most 8192 bytes as JSON"}, "more values": {claims(twice), tooManyLimit},
		"deep": {claims(nested), "depth at most 8"}, "deeper": {claims(structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{nested}})}}),
		}})), tooManyLimit},
	} {
		_, err := f.client().Check(t.Context(), connect.NewRequest(c.m))
		if r := f.connectError(err); r.code != "invalid_argument" || r.detail.GetLimit() != c.limit {
			t.Errorf("%s: %s %s %v", name, r.code, r.text, r.detail)
		}
	}
}

// Compressed requests are not unpacked for whoever comes.
func TestNoCompression(t *testing.T) {
	f := start(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+check, strings.NewReader("\x1f\x8b"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Content-Encoding", "gzip")
	if res, body := f.do(r); res.StatusCode != http.StatusNotImplemented {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func TestMint(t *testing.T) {
	f := start(t)
	c := revokdv1connect.NewDevServiceClient(f.http, f.url)
	claims, err := structpb.NewStruct(map[string]any{"ver": 7, "roles": []any{"a", 1}, "ext": map[string]any{"n": 3}})
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.MintToken(t.Context(), connect.NewRequest(&revokdv1.MintTokenRequest{Sub: "canary-alice", Sid: "canary-s1", Claims: claims}))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(res.Msg.GetToken(), ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"ver":7`, `"roles":["a",1]`, `"n":3`, `"sub":"canary-alice"`, `"sid":"canary-s1"`, `"exp":1793624400`, `"iat":1793620800`} {
		if !bytes.Contains(payload, []byte(want)) {
			t.Errorf("no %s in %s", want, payload)
		}
	}
	if r := f.post("Check", `{"token":"`+res.Msg.GetToken()+`"}`); r.field("verdict") != "VERDICT_ACTIVE" {
		t.Errorf("%v", r)
	}
	for name, m := range map[string]*revokdv1.MintTokenRequest{
		"sub": {Sub: strings.Repeat("canary", 100)}, "sid": {Sid: strings.Repeat("canary", 100)}, "alg": {Alg: "canary"},
	} {
		_, err := c.MintToken(t.Context(), connect.NewRequest(m))
		if r := f.connectError(err); r.code != "invalid_argument" || r.detail.GetField() != name {
			t.Errorf("%s: %s %v", name, r.code, r.detail)
		}
	}
}

// The limits of the node below, each with its code.
func TestFull(t *testing.T) {
	f := start(t, func(c *setup) { c.node.Store.MaxItems, c.node.Store.Reserve, c.node.Store.Shards = 200, 100, 1 })
	var last reply
	for i := range 300 {
		if last = f.post("Revoke", fmt.Sprintf(`{"match":{"claims":{"iss":"i","jti":"canary-%d"}}}`, i)); last.code != "ok" {
			break
		}
	}
	if last.code != "resource_exhausted" || last.detail.GetKind() != "full" || last.retry == "" {
		t.Errorf("%s %v", last.code, last.detail)
	}
	if r := f.post("Check", `{"claims":{"iss":"i","jti":"canary-0","iat":1793620000,"exp":1793623600}}`); r.field("verdict") != "VERDICT_REVOKED" {
		t.Errorf("a check of a full node: %v", r)
	}
}

func TestShapes(t *testing.T) {
	f := start(t)
	var last reply
	for i := range revocation.MaxLiveShapes + 1 {
		last = f.post("Revoke", fmt.Sprintf(`{"match":{"claims":{"iss":"i","claim%d":"canary"}}}`, i))
		if (last.code == "ok") != (i < revocation.MaxLiveShapes) {
			t.Fatalf("%d: %s %v", i, last.code, last.detail)
		}
	}
	if last.code != "resource_exhausted" || last.detail.GetKind() != "shapes" {
		t.Errorf("%s %v", last.code, last.detail)
	}
}

func TestBatchLimit(t *testing.T) {
	f := start(t)
	c := f.client()
	for n, want := range map[int]string{node.MaxBatch: "ok", node.MaxBatch + 1: "invalid_argument"} {
		_, err := c.RevokeBatch(t.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: items(0, n)}))
		if got := codeOf(err); got != want {
			t.Errorf("RevokeBatch of %d: %s", n, got)
		}
		checks := make([]*revokdv1.CheckRequest, n)
		for i := range checks {
			checks[i] = &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: []byte("{}")}}
		}
		_, err = c.CheckBatch(t.Context(), connect.NewRequest(&revokdv1.CheckBatchRequest{Items: checks}))
		if got := codeOf(err); got != want {
			t.Errorf("CheckBatch of %d: %s", n, got)
		}
	}
}

func codeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

var metricLine = regexp.MustCompile(`(?m)^(revokd_[a-z_]+?)(_bucket|_sum|_count)?(\{.*\})? `)

// Every metric is documented, and every one that is documented is there.
func TestMetricsAreDocumented(t *testing.T) {
	f := start(t, func(c *setup) { c.paired, c.node.SweepEvery = true, 10*time.Millisecond })
	token := f.mint(devissuer.Params{Sub: "canary"})
	f.post("Revoke", `{"token":"`+token+`"}`)
	f.post("Check", `{"token":"`+token+`"}`)
	f.post("Check", `{"token":"canary"}`)
	eventually(t, "the other node says that it holds the record", func() bool {
		f.clock.Advance(5 * time.Millisecond)
		_, text := f.get("/metrics")
		return strings.Contains(text, `revokd_peer_lag_seconds_count{peer="n2"} 1`) && strings.Contains(text, `revokd_peer_rtt_seconds{`) && strings.Contains(text, `revokd_records_by_rule{claims="iss,jti",rule="deny"} 1`)
	})
	_, text := f.get("/metrics")
	for _, want := range []string{
		`revokd_peer_view_age_seconds{peer="n2"} `, `revokd_peer_audit_age_seconds{peer="n2"} `, `revokd_peer_lag_seconds_bucket{peer="n2",le="+Inf"} 1`,
		`revokd_replication_sessions{kind="node"} 1`, `revokd_replication_sessions{kind="client"} 0`, `revokd_view_age_seconds{freshness="quorum"} 0`,
		"revokd_voters 1", "revokd_votes 1", `revokd_gossip_members{status="alive"} 1`,
		`revokd_replication_records_sent_total{by="log"} 1`,
		`revokd_checks_total{cause="",verdict="revoked"} 1`, `revokd_writes_total{outcome="revoked"} 1`, "revokd_records 1",
		`revokd_api_requests_total{code="ok",method="/revokd.v1.RevocationService/Check"} 1`,
		`revokd_api_requests_total{code="invalid_argument",method="/revokd.v1.RevocationService/Check"} 1`,
		`revokd_api_refused_total{kind="malformed",method="/revokd.v1.RevocationService/Check"} 1`, "revokd_live_shapes 1", `revokd_durability_info{durability="memory"} 1`,
		"go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	shown, documented := map[string]bool{}, map[string]bool{}
	for _, m := range metricLine.FindAllStringSubmatch(text, -1) {
		shown[m[1]] = true
	}
	for _, m := range regexp.MustCompile("`(revokd_[a-z_]+)").FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	for name := range shown {
		if !documented[name] {
			t.Errorf("docs/api.md does not know %s", name)
		}
	}
	for name := range documented {
		if !shown[name] && !strings.HasPrefix(name, "revokd_journal_") {
			t.Errorf("docs/api.md knows %s, which is not there", name)
		}
	}
}

// Checking is cheap beside what HTTP costs: what the handlers themselves allocate.
func TestCheckAllocations(t *testing.T) {
	f := start(t)
	s := revocations{f.server}
	payload := &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{
		Payload: []byte(`{"iss":"i","sub":"canary-alice","jti":"canary-j1","sid":"canary-s1","iat":1793620000,"exp":1793623600}`),
	}}
	claims := request(t, "Check", `{"claims":{"iss":"i","sub":"canary-alice","jti":"canary-j1","sid":"canary-s1","iat":1793620000,"exp":1793623600}}`).(*revokdv1.CheckRequest)
	for name, c := range map[string]struct {
		m    *revokdv1.CheckRequest
		most float64
	}{"payload": {payload, 16}, "claims": {claims, 48}} {
		n := testing.AllocsPerRun(200, func() {
			if _, err := s.check(t.Context(), c.m); err != nil {
				t.Fatal(err)
			}
		})
		if n > c.most {
			t.Errorf("%s: %.0f allocations, want at most %.0f", name, n, c.most)
		}
	}
}
