package app

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// Profiles have an address of their own, on this machine only, with TLS too; without --pprof-addr there are none.
func TestProfiles(t *testing.T) {
	logged := new(lockedBuffer)
	r := run(t, AgentConfig{
		Dev: true, DataDir: t.TempDir(), APIAddr: "127.0.0.1:0", PprofAddr: "127.0.0.1:0", Logger: hclog.New(&hclog.LoggerOptions{Output: logged}),
	})
	m := regexp.MustCompile(`address=(http://127\.0\.0\.1:\d+)/debug/pprof/`).FindStringSubmatch(logged.String())
	if m == nil {
		t.Fatalf("the address is not logged:\n%s", logged)
	}
	get := func(url string) (int, []byte) {
		t.Helper()
		res, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, b
	}
	if code, b := get(m[1] + "/debug/pprof/heap"); code != http.StatusOK || !bytes.HasPrefix(b, []byte{0x1f, 0x8b}) {
		t.Errorf("heap: %d, %d bytes", code, len(b))
	}
	if code, b := get(m[1] + "/debug/pprof/goroutine?debug=1"); code != http.StatusOK || !bytes.Contains(b, []byte("goroutine profile")) {
		t.Errorf("goroutine: %d %s", code, b)
	}
	if code, _ := get(m[1] + "/"); code != http.StatusNotFound {
		t.Errorf("another path: %d", code)
	}
	if code, _ := get(r.url + "/debug/pprof/heap"); code != http.StatusNotFound {
		t.Errorf("on the API: %d", code)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestProfilesForThisMachineOnly(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":6060", "192.0.2.1:6060", "[2001:db8::1]:0", "example.test:6060"} {
		err := Agent(t.Context(), AgentConfig{
			NodeName: "n1", DataDir: t.TempDir(), APIAddr: "127.0.0.1:0", PprofAddr: addr, TLS: certificates(t, "prod", "n1")["n1"],
			KeyFile: filepath.Join("testdata", "absent"), IssuersFile: filepath.Join("testdata", "absent"),
		})
		if err == nil || !strings.HasPrefix(err.Error(), "--pprof-addr "+addr+": ") || strings.Contains(err.Error(), "--tls-cert") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// What a web page can make a browser ask is refused, and only so many profiles are made at once.
func TestProfilesHandler(t *testing.T) {
	h := profilesHandler()
	for _, c := range []struct {
		method, host, site string
		want               int
	}{
		{"GET", "127.0.0.1:6060", "", http.StatusOK},
		{"GET", "[::1]:6060", "none", http.StatusOK},
		{"GET", "localhost:6060", "same-origin", http.StatusOK},
		{"GET", "evil.example:6060", "", http.StatusForbidden},
		{"GET", "127.0.0.1.evil.example:6060", "", http.StatusForbidden},
		{"GET", "", "", http.StatusForbidden},
		{"GET", "127.0.0.1:6060", "cross-site", http.StatusForbidden},
		{"GET", "127.0.0.1:6060", "same-site", http.StatusForbidden},
		{"POST", "127.0.0.1:6060", "", http.StatusMethodNotAllowed},
	} {
		r := httptest.NewRequest(c.method, "/debug/pprof/goroutine?debug=1", nil)
		r.Host = c.host
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s %q: %d, want %d", c.method, c.host, c.site, w.Code, c.want)
		}
	}

	srv := httptest.NewServer(h)
	defer srv.Close()
	for range maxProfiles { // as long as they are being made: until the connection ends
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /debug/pprof/heap?seconds=60 HTTP/1.1\r\nHost: localhost:1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "too many", func() bool {
		res, err := http.Get(srv.URL + "/debug/pprof/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		return res.Body.Close() == nil && res.StatusCode == http.StatusTooManyRequests
	})
}
