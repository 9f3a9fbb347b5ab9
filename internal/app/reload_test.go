package app

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/internal/devissuer"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// SIGHUP takes the issuers and the files of TLS, and none of them if one cannot be used.
func TestReload(t *testing.T) {
	files := certificates(t, "prod", "n1")["n1"]
	dir := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := devissuer.New()
	if err != nil {
		t.Fatal(err)
	}
	put(filepath.Join(dir, "jwks.json"), string(keys.JWKS()))
	put(filepath.Join(dir, "key"), "000102030405060708090a0b0c0d0e0f\n")
	issuers := func(names ...string) {
		t.Helper()
		var list []string
		for _, name := range names {
			list = append(list, fmt.Sprintf(`{"issuer":%q,"keys_file":"jwks.json"}`, name))
		}
		put(filepath.Join(dir, "issuers.json"), `{"issuers":[`+strings.Join(list, ",")+`]}`)
	}
	issuers("https://a.example")
	signals := make(chan os.Signal)
	logged := new(lockedBuffer)
	r := run(t, AgentConfig{
		NodeName: "n1", APIAddr: "127.0.0.1:0", DataDir: t.TempDir(), TLS: files,
		KeyFile: filepath.Join(dir, "key"), IssuersFile: filepath.Join(dir, "issuers.json"),
		Reload: signals, Logger: hclog.New(&hclog.LoggerOptions{Output: logged}),
	})
	service := revokdv1connect.NewRevocationServiceClient(r.client(files), r.url)
	known := func() []string {
		t.Helper()
		res, err := service.Status(t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetIssuers()
	}
	eventually(t, "the journal is read", func() bool { return slices.Equal(known(), []string{"https://a.example"}) })
	reload := func(want string) {
		t.Helper()
		before := strings.Count(logged.String(), want)
		eventually(t, want, func() bool { // one that comes while the journal is read is refused
			signals <- syscall.SIGHUP
			return strings.Count(logged.String(), want) > before
		})
	}

	issuers("https://a.example", "https://b.example")
	certificate, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	put(files.Cert, "half a certificate")
	reload("nothing was reloaded")
	if got := known(); !slices.Equal(got, []string{"https://a.example"}) {
		t.Errorf("half of a reload: %q", got)
	}
	put(files.Cert, string(certificate))
	reload("reloaded: issuers=2 tls=true")
	if got := known(); !slices.Equal(got, []string{"https://a.example", "https://b.example"}) {
		t.Errorf("issuers: %q", got)
	}
	put(filepath.Join(dir, "issuers.json"), `{"issuers":[{"issuer":"https://c.example"}]}`)
	reload("nothing was reloaded")
	if got := known(); len(got) != 2 {
		t.Errorf("issuers after a bad file: %q", got)
	}
}
