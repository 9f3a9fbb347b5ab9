package e2e_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/pki"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// secured is a cluster of real processes on loopback as it is on servers: certificates, sealed gossip, voters that are waited for. Nothing has a fixed port.
type secured struct {
	*testing.T
	program, home string
	nodes         []*securedNode
	admin         *tls.Config  // of an admin
	follow        func() error // has it follow his files
	entries       []string     // of the file of credentials, for bearer tokens
}

type securedNode struct {
	name   string
	args   []string
	proc   *e2e.Process
	gossip string // ip:port
	api    revokdv1connect.RevocationServiceClient
	adm    revokdv1connect.ClusterServiceClient
	http   *http.Client // of an admin
}

// newSecured starts n nodes with flags and waits until they agree on their voters.
func newSecured(t *testing.T, n int, flags ...string) *secured {
	t.Helper()
	s := &secured{T: t, program: program(t, ""), home: t.TempDir()}
	args := []string{"setup", "--cluster", "test", "--out", "cluster"}
	for i := range n {
		args = append(args, "--node", fmt.Sprintf("n%d=127.0.0.1", i+1))
	}
	s.run(args...)
	source, err := pki.Load(pki.Config{CA: s.path("admin/ca.crt"), Cert: s.path("admin/admin.crt"), Key: s.path("admin/admin.key"), Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	s.admin, s.follow = source.ClientConfig(""), source.Reload
	s.issue("login.token")
	for i := range n {
		m := &securedNode{name: fmt.Sprintf("n%d", i+1), http: httpsClient(t, s.admin)}
		dir := filepath.Join(s.home, "cluster", "nodes", m.name)
		m.args = append([]string{
			s.program, "agent", "--node-name", m.name, "--data-dir", filepath.Join(s.home, "data"), "--api-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0",
			"--tls-cert", filepath.Join(dir, m.name+".crt"), "--tls-key", filepath.Join(dir, m.name+".key"), "--tls-ca", filepath.Join(dir, "ca.crt"),
			"--gossip-key-file", filepath.Join(dir, "gossip.key"), "--key-file", filepath.Join(dir, "fingerprint.key"), "--issuers", filepath.Join(dir, "issuers.json"),
			"--bootstrap-expect", strconv.Itoa(n), "--credentials", s.path("credentials.yaml"),
		}, flags...)
		if i > 0 {
			m.args = append(m.args, "--join", s.nodes[0].gossip)
		}
		s.nodes = append(s.nodes, m)
		s.start(m)
	}
	for _, m := range s.nodes {
		s.until(m.name+" is ready and knows of the others", func() error {
			if !m.proc.Ready(t.Context()) {
				return fmt.Errorf("log:\n%s", m.proc.Stderr())
			}
			return checks(t.Context(), m.api, "nobody's", revokdv1.Verdict_VERDICT_ACTIVE)
		})
	}
	return s
}

// start starts a node and waits until it gossips, not until it is ready: for that it may need others.
func (s *secured) start(m *securedNode) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	var err error
	if m.proc, err = e2e.Start(ctx, e2e.Config{Args: m.args, Env: s.env(), Dir: s.home, HTTP: m.http, Unready: true}); err != nil {
		s.Fatalf("%s: %v", m.name, err)
	}
	s.Cleanup(m.proc.Kill)
	m.api = revokdv1connect.NewRevocationServiceClient(m.http, m.proc.URL)
	m.adm = revokdv1connect.NewClusterServiceClient(m.http, m.proc.URL)
	s.until(m.name+" gossips", func() error {
		res, err := m.adm.Members(ctx, connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			return err
		}
		for _, other := range res.Msg.GetMembers() {
			if other.GetName() == m.name && other.GetGossipAddr() != "" {
				m.gossip = other.GetGossipAddr()
				return nil
			}
		}
		return fmt.Errorf("%v", res.Msg.GetMembers())
	})
}

func (s *secured) env() []string { return []string{"HOME=" + s.home, "PATH=" + os.Getenv("PATH")} }

func (s *secured) path(name string) string { return filepath.Join(s.home, "cluster", name) }

// run runs a command and returns what it prints.
func (s *secured) run(args ...string) string {
	s.Helper()
	cmd := exec.Command(s.program, args...)
	cmd.Env, cmd.Dir = s.env(), s.home
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.Fatalf("revokd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// issue writes another bearer token of the same name to a file, and puts its entry into the file of credentials.
func (s *secured) issue(file string) {
	s.Helper()
	s.entries = append(s.entries, s.run("credentials", "new", "--name", "login", "--role", "writer,subscriber", "--issuer", issuer, "--out", s.path(file)))
	s.accept(s.entries...)
}

// accept makes these entries all that there are. Nodes take them when they reload.
func (s *secured) accept(entries ...string) {
	s.Helper()
	if err := os.WriteFile(s.path("credentials.yaml"), []byte("tokens:\n"+strings.Join(entries, "")), 0o600); err != nil {
		s.Fatal(err)
	}
}

// bearer has a client show the token that a file holds then.
type bearer struct {
	http.RoundTripper
	token func() string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token())
	return b.RoundTripper.RoundTrip(r)
}

func httpsClient(t *testing.T, c *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: c.Clone(), ForceAttemptHTTP2: true} // it changes what it is given
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (s *secured) until(what string, ok func() error) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("never: %s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // between polls: leaves the processor to the nodes
	}
}

// metric returns a metric without labels of a node.
func metric(t *testing.T, client *http.Client, url, name string) float64 {
	t.Helper()
	res, err := client.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(res.Body)
	if err = cmp.Or(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// checks returns an error unless a node gives a verdict about a token by its id.
func checks(ctx context.Context, api revokdv1connect.RevocationServiceClient, jti string, want revokdv1.Verdict) error {
	now := time.Now().Unix()
	payload := fmt.Appendf(nil, `{"iss":%q,"sub":"s","jti":%q,"iat":%d,"exp":%d}`, issuer, jti, now, now+3600)
	res, err := api.Check(ctx, connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}))
	if err == nil && res.Msg.GetVerdict() != want {
		err = fmt.Errorf("%s, want %s", res.Msg, want)
	}
	return err
}

// revokes revokes a token by its id.
func revokes(ctx context.Context, api revokdv1connect.RevocationServiceClient, jti string, o *revokdv1.WriteOptions) error {
	_, err := api.Revoke(ctx, connect.NewRequest(&revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": jti}}},
		ExpiresAt: inAnHour(), Options: o,
	}))
	return err
}
