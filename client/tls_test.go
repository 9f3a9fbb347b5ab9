package client

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/credentials"
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
	stranger := authority(t, "prod")(pki.Request{Role: pki.RoleAdmin, Name: "login"})
	trusting := with(stranger)
	trusting.TLS.InsecureSkipVerify, trusting.TLS.VerifyConnection = true, nil // so that it is the node that refuses
	for name, tc := range map[string]struct {
		cfg  Config
		says string
	}{
		"of another authority": {with(stranger), "certificate is untrusted"},
		"refused by the node":  {trusting, "remote error: tls: unknown certificate authority"},
		"a reader":             {with(issue(pki.Request{Role: pki.RoleReader, Name: "looker"})), "role"},
		"without TLS":          {Config{Addrs: []string{s.addr}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if c, err := Open(ctx, tc.cfg); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), tc.says) {
				t.Error(err)
				if c != nil {
					_ = c.Close()
				}
			}
		})
	}
}

// ahead is a clock whose monotonic hand can be put forward.
type ahead struct {
	clock.Clock
	by atomic.Int64
}

func (a *ahead) Mono() time.Duration { return a.Clock.Mono() + time.Duration(a.by.Load()) }

// A service that checks and revokes needs one credential, which is no admin's: a certificate of both roles, or a token. A token file that is replaced is
// taken without another client.
func TestTokenFile(t *testing.T) {
	issue := authority(t, "prod")
	node := issue(pki.Request{Role: pki.RoleNode, Name: "n1"})
	source, err := pki.Load(pki.Config{CA: node.Root, Cert: node.Cert, Key: node.Key, Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tokens := []string{bearer.New(), bearer.New()}
	known := func(tokens ...string) *credentials.Set {
		t.Helper()
		text := []byte("tokens:\n")
		for _, token := range tokens {
			e, err := credentials.NewEntry(token, "shop", pki.RoleSubscriberWriter, nil, 0, 0, now.Add(time.Hour), now)
			if err != nil {
				t.Fatal(err)
			}
			b, err := e.YAML()
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, b...)
		}
		set, err := credentials.Parse(text, now)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	s := newServer(t, "127.0.0.1:0", func(c *api.Config) { c.TLS, c.Credentials = source.ServerConfig(), known(tokens[:1]...) })
	bare, err := LoadTLS("", "", node.Root)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "token")
	if _, err := Open(t.Context(), Config{Addrs: []string{s.addr}, TLS: bare, TokenFile: path}); !errors.Is(err, ErrConfig) {
		t.Errorf("without the file: %v", err)
	}
	put := func(token string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(tokens[0])
	mono := &ahead{Clock: clock.System()}
	both := issue(pki.Request{Role: pki.RoleSubscriberWriter, Name: "shop"})
	shown, err := LoadTLS(both.Cert, both.Key, both.Root)
	if err != nil {
		t.Fatal(err)
	}
	byToken := open(t, Config{Addrs: []string{s.addr}, TLS: bare, TokenFile: path, clock: mono, MinBackoff: time.Millisecond})
	for id, c := range map[string]*Client{"t2": byToken, "t3": open(t, Config{Addrs: []string{s.addr}, TLS: shown})} {
		want(t, c, id, revocation.Active)
		if _, err := c.Revoke(t.Context(), Match{"iss": "i", "jti": id}); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		want(t, c, id, revocation.Revoked)
	}
	// The old one is good beside the new one, and then no more.
	s.api.SetCredentials(known(tokens...))
	put(tokens[1])
	if _, err := byToken.Revoke(t.Context(), Match{"iss": "i", "jti": "t4"}); err != nil {
		t.Fatal(err)
	}
	mono.by.Store(int64(6 * time.Second))
	s.api.SetCredentials(known(tokens[1]))
	if _, err := byToken.Revoke(t.Context(), Match{"iss": "i", "jti": "t5"}); err != nil {
		t.Fatalf("after a rotation: %v", err)
	}
	want(t, byToken, "t5", revocation.Revoked)
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

// A call that would deny everything does so only if the caller, told what that is, agrees.
func TestConfirm(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	if _, err := c.Revoke(t.Context(), Match{}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("without a word: %v", err)
	}
	var asked []Confirmation
	answer := false
	ask := Confirm(func(c Confirmation) bool { asked = append(asked, c); return answer })
	if _, err := c.Block(t.Context(), Match{"iss": "i"}, ask); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("against the caller's will: %v", err)
	}
	if s.node.Status().Table.Items != 0 {
		t.Error("something was written")
	}
	answer = true
	for _, call := range []func() (Receipt, error){
		func() (Receipt, error) { return c.Revoke(t.Context(), Match{}, ask) },
		func() (Receipt, error) { return c.Block(t.Context(), Match{"iss": "i"}, ask) },
	} {
		if r, err := call(); err != nil || r.Outcome != "revoked" {
			t.Errorf("%v, %v", r, err)
		}
	}
	if len(asked) != 3 || asked[0].Effect != "every token of the issuer, old or new, until it is unblocked" || asked[2].Held != 1 {
		t.Errorf("%+v", asked)
	}
}
