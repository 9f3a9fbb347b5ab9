package client

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/revocation"
)

// authority makes certificates of a cluster.
func authority(t *testing.T, cluster string) func(pki.Request) pki.Issued {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.Create(filepath.Join(dir, "ca"), cluster, 0, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return func(r pki.Request) pki.Issued {
		t.Helper()
		files, err := ca.Issue(dir, r, false, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
}

func TestTLS(t *testing.T) {
	issue := authority(t, "prod")
	node := issue(pki.Request{Role: pki.RoleNode, Name: "n1"})
	source, err := pki.Load(pki.Config{CA: node.Root, Cert: node.Cert, Key: node.Key, Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "127.0.0.1:0", func(c *api.Config) { c.TLS = source.ServerConfig() })
	with := func(files pki.Issued) Config {
		cfg, err := LoadTLS(files.Cert, files.Key, files.Root)
		if err != nil {
			t.Fatal(err)
		}
		return Config{Addrs: []string{s.addr}, TLS: cfg}
	}
	// A subscriber may follow and not write.
	c := open(t, with(issue(pki.Request{Role: pki.RoleSubscriber, Name: "shop"})))
	want(t, c, "t1", revocation.Active)
	if _, err := c.Revoke(t.Context(), Match{"iss": "i", "jti": "t1"}); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Fatalf("a subscriber writes: %v", err)
	}
	admin := open(t, with(issue(pki.Request{Role: pki.RoleAdmin, Name: "login"})))
	if _, err := admin.Revoke(t.Context(), Match{"iss": "i", "jti": "t1"}); err != nil {
		t.Fatal(err)
	}
	want(t, admin, "t1", revocation.Revoked)
	for name, cfg := range map[string]Config{
		"of another authority": with(authority(t, "prod")(pki.Request{Role: pki.RoleAdmin, Name: "login"})),
		"a reader":             with(issue(pki.Request{Role: pki.RoleReader, Name: "looker"})),
		"without TLS":          {Addrs: []string{s.addr}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if c, err := Open(ctx, cfg); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
			if c != nil {
				_ = c.Close()
			}
		}
		cancel()
	}
}

func TestLoadTLS(t *testing.T) {
	files := authority(t, "prod")(pki.Request{Role: pki.RoleReader, Name: "r"})
	for name, f := range map[string][3]string{
		"no authority": {files.Cert, files.Key, ""},
		"no key":       {files.Cert, "", files.Root},
		"missing":      {files.Cert, files.Key, filepath.Join(t.TempDir(), "none")},
		"key as cert":  {files.Key, files.Key, files.Root},
	} {
		if _, err := LoadTLS(f[0], f[1], f[2]); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
