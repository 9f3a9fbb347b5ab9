//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cmd/revokd/internal/bulk"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// fakeNode acknowledges what it is sent; after some items it calls a function and acknowledges nothing more.
type fakeNode struct {
	revokdv1connect.UnimplementedRevocationServiceHandler

	mu    sync.Mutex
	items map[string]bool
	stop  int
	then  func()
}

func (n *fakeNode) Status(context.Context, *connect.Request[revokdv1.StatusRequest]) (*connect.Response[revokdv1.StatusResponse], error) {
	return connect.NewResponse(&revokdv1.StatusResponse{}), nil
}

func (n *fakeNode) RevokeStream(ctx context.Context, s *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]) error {
	var out revokdv1.RevokeStreamResponse
	for {
		in, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		n.mu.Lock()
		for _, item := range in.GetItems() {
			n.items[item.GetMatch().GetClaims()["jti"]] = true
			out.Acknowledged++
			out.Revoked++
		}
		stopped := n.stop > 0 && len(n.items) >= n.stop
		n.mu.Unlock()
		if stopped {
			n.then()
			<-ctx.Done()
			return ctx.Err()
		}
		if err := s.Send(&out); err != nil {
			return err
		}
	}
}

func (n *fakeNode) start(t *testing.T) (url string) {
	t.Helper()
	n.items = map[string]bool{}
	mux := http.NewServeMux()
	mux.Handle(revokdv1connect.NewRevocationServiceHandler(n))
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.CloseClientConnections)
	t.Cleanup(srv.Close)
	return srv.URL
}

func runLine(args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = run(args, &cli{stdin: strings.NewReader(""), stdout: &out, stderr: &errOut})
	return code, out.String(), errOut.String()
}

// TestRevokeFileInterrupted: SIGINT in the middle of 20 000 lines leaves a resume file and says how to go on; the same command
// then does the rest, and nothing is left behind.
func TestRevokeFileInterrupted(t *testing.T) {
	const lines = 20_000
	dir := t.TempDir()
	path := filepath.Join(dir, "ids.ndjson")
	var text bytes.Buffer
	for i := range lines {
		if i == 10 || i == 15_000 {
			text.WriteString("{\n")
			continue
		}
		fmt.Fprintf(&text, `{"jti":"%d","iss":"https://id.example","exp":4000000000}`+"\n", i)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{stop: 12_000, then: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
	url := n.start(t)
	command := []string{"revoke", "--addr", url, "--from-file", path, "--errors", filepath.Join(dir, "refused")}

	code, stdout, stderr := runLine(command...)
	if code != exitError || stdout != "" || !strings.Contains(stderr, "revokd: interrupted; ") || !strings.Contains(stderr, "run the same command again") {
		t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	b, err := os.ReadFile(path + resumeSuffix)
	if err != nil {
		t.Fatal(err)
	}
	var state resumeState
	if err := json.Unmarshal(b, &state); err != nil || state.Line < 5000 || state.Line > 12_002 || state.Refused != 1 {
		t.Fatalf("%s, %v", b, err)
	}
	if got := bytes.Count(text.Bytes()[:state.Offset], []byte("\n")); got != int(state.Line) {
		t.Errorf("offset %d is behind line %d, not %d", state.Offset, got, state.Line)
	}

	n.mu.Lock()
	n.stop = 0
	n.mu.Unlock()
	code, stdout, stderr = runLine(command...)
	if code != exitError || !strings.HasPrefix(stdout, "20000 lines: 19998 revoked, 0 covered, 0 already expired, 2 refused") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if !strings.Contains(stderr, fmt.Sprintf("going on behind line %d,", state.Line)) || !strings.Contains(stderr, ":15001: line: malformed") {
		t.Errorf("stderr %q", stderr)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.items) != lines-2 {
		t.Errorf("%d of %d arrived", len(n.items), lines-2)
	}
	refused, err := os.ReadFile(filepath.Join(dir, "refused"))
	if err != nil || strings.Count(string(refused), "\n") != 2 {
		t.Errorf("refused %q, %v", refused, err)
	}
	if _, err := os.Stat(path + resumeSuffix); !os.IsNotExist(err) {
		t.Errorf("the resume file is still there: %v", err)
	}
}

func TestMeter(t *testing.T) {
	begun := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var out bytes.Buffer
	m := newMeter(&out, 1000, 0, begun)
	for i := int64(1); i <= 100; i++ {
		m.update(bulk.Progress{Offset: 10 * i, Line: i}, begun.Add(time.Duration(i)*100*time.Millisecond))
	}
	// A line for each tenth, after the first second.
	if got := strings.Count(out.String(), "\n"); got != 10 {
		t.Errorf("%d lines, want 10:\n%s", got, out.String())
	}
	if !strings.HasPrefix(out.String(), " 11%  11 lines  10/s  9s left\n 20%") || !strings.HasSuffix(out.String(), "100%  100 lines  10/s  0s left\n") {
		t.Errorf("%s", out.String())
	}

	out.Reset()
	m = newMeter(&out, 1000, 500, begun) // resumed
	m.terminal = true
	m.update(bulk.Progress{Offset: 750, Line: 75}, begun.Add(time.Second))
	m.update(bulk.Progress{Offset: 751, Line: 75}, begun.Add(time.Second+time.Millisecond))
	m.clear()
	if want := "\r[======================        ]  75%  75 lines  25/s  1s left\x1b[K\r\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}

	out.Reset()
	m = newMeter(&out, 0, 0, begun) // stdin
	m.update(bulk.Progress{Offset: 10, Line: 1}, begun.Add(time.Second))
	if out.Len() != 0 {
		t.Errorf("%q", out.String())
	}
}

func TestParseInstant(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]string{
		"2026-01-31T12:00:00Z":          "2026-01-31T12:00:00Z",
		"2026-01-31T12:00:00.250+01:00": "2026-01-31T11:00:00.25Z",
		"1767225600000":                 "2026-01-01T00:00:00Z",
		"+1h":                           "2026-01-01T13:00:00Z",
		"-30m":                          "2026-01-01T11:30:00Z",
		"+30d":                          "2026-01-31T12:00:00Z",
	} {
		if got, err := parseInstant(s, now, false); err != nil || got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v; want %s", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"":                 "want RFC 3339",
		"1767225600":       "looks like seconds",
		"1767225600000000": "beyond the year 5138",
		"1h":               "want RFC 3339",
		"+":                "want a duration",
		"-5":               "want a duration",
		"2026-01-31":       "want RFC 3339",
	} {
		if _, err := parseInstant(s, now, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", s, err, want)
		}
	}
}

func TestBaseURL(t *testing.T) {
	for addr, want := range map[string]string{
		"":                       defaultAddr,
		"127.0.0.1:7000":         "http://127.0.0.1:7000",
		"localhost":              "http://localhost:7950",
		"[::1]:7":                "http://[::1]:7",
		"http://h:1/":            "http://h:1",
		"http://h:1/revokd/":     "http://h:1/revokd",
		"https://h":              "",
		"http://":                "",
		"http://user:pw@h":       "",
		"http://h/?q":            "",
		"http://h:1\n":           "",
		"127.0.0.1:7000\x00evil": "",
	} {
		c := &cli{addr: addr}
		got, err := c.baseURL()
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", addr, got, err, want)
		}
	}
	for addr, want := range map[string]string{"": "https://127.0.0.1:7950", "h:1": "https://h:1", "https://h": "https://h:7950", "http://h": ""} {
		c := &cli{addr: addr, tls: tlsFiles{ca: "ca.crt"}}
		if addr == "" {
			c.environ = []string{"REVOKD_ADDR=127.0.0.1"}
		}
		if got, err := c.baseURL(); got != want || (err == nil) != (want != "") {
			t.Errorf("with TLS %q: %q, %v; want %q", addr, got, err, want)
		}
	}
	c := &cli{environ: []string{"REVOKD_ADDR=h:2"}}
	if got, err := c.baseURL(); err != nil || got != "http://h:2" {
		t.Errorf("%q, %v", got, err)
	}
	c.addr = "h:3"
	if got, err := c.baseURL(); err != nil || got != "http://h:3" {
		t.Errorf("the flag does not win: %q, %v", got, err)
	}
}

func TestSizeFlag(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "512MiB": 512 << 20, "4GiB": 4 << 30, "1TiB": 1 << 40, "": 0, "0": 0, "-1": 0, "4GB": 0, "9999999999TiB": 0} {
		var f size
		if err := f.Set(s); (err == nil) != (want > 0) || int64(f) != want {
			t.Errorf("%q: %d, %v; want %d", s, f, err, want)
		}
	}
}
