package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	grpccreds "google.golang.org/grpc/credentials"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// secured is a fixture with TLS, and an authority for callers.
type secured struct {
	*fixture
	ca  *pki.Authority
	dir string
	now *clocktest.Fake

	bearer string // a token that status shows
}

func startTLS(t testing.TB, change ...func(*setup)) *secured {
	t.Helper()
	s := &secured{dir: t.TempDir(), now: clocktest.New(noon)}
	var err error
	if s.ca, err = pki.Create(s.dir, "prod", 0, false, noon); err != nil {
		t.Fatal(err)
	}
	own := s.source(t, pki.RoleNode, "n1")
	s.fixture = start(t, append(change, func(c *setup) { c.api.TLS = own.ServerConfig() })...)
	s.url = strings.Replace(s.url, "http://", "https://", 1)
	return s
}

func (s *secured) source(t testing.TB, role pki.Role, name string) *pki.Source {
	t.Helper()
	files, err := s.ca.Issue(s.dir, pki.Request{Role: role, Name: name, Hosts: hostsOf(role)}, false, noon)
	if err != nil {
		t.Fatal(err)
	}
	src, err := pki.Load(pki.Config{CA: files.Root, Cert: files.Cert, Key: files.Key, Clock: s.now})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func hostsOf(role pki.Role) []string {
	if role == pki.RoleNode {
		return []string{"192.0.2.1"}
	}
	return nil
}

// as makes the fixture's client somebody.
func (s *secured) as(c *tls.Config) {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	tr := &http.Transport{TLSClientConfig: c, Protocols: protocols}
	s.http = &http.Client{Transport: tr, Timeout: 20 * time.Second}
	s.Cleanup(tr.CloseIdleConnections)
}

// status asks for a path and returns the code of the answer and its text.
func (s *secured) status(method, path string) (int, string) {
	s.Helper()
	var body io.Reader = http.NoBody
	if method == http.MethodPost {
		body = strings.NewReader("{}")
	}
	req, err := http.NewRequest(method, s.url+path, body)
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if s.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+s.bearer)
	}
	res, err := s.http.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// Every protocol carries the caller's certificate, and a refusal in its own form.
func TestTLSProtocols(t *testing.T) {
	s := startTLS(t)
	for _, role := range []pki.Role{pki.RoleWriter, pki.RoleReader} {
		src := s.source(t, role, "app-"+string(role))
		s.as(src.ClientConfig("n1"))
		conn, err := grpc.NewClient(strings.TrimPrefix(s.url, "https://"), grpc.WithTransportCredentials(grpccreds.NewTLS(src.ClientConfig("n1"))))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		want := "ok"
		if role == pki.RoleReader {
			want = "permission_denied"
		}
		for _, p := range []protocol{
			{"json", s.post}, {"connect", s.viaConnect(s.client())}, {"grpc", s.viaGRPC(conn)}, {"grpc-web", s.viaConnect(s.client(connect.WithGRPCWeb()))},
		} {
			if r := p.call("Check", `{"claims":{"iss":"https://dev.revokd.test","sub":"canary-a"}}`); r.code != "ok" {
				t.Errorf("%s over %s: check: %+v", role, p.name, r)
			}
			r := p.call("Revoke", `{"match":{"claims":{"iss":"https://dev.revokd.test","sub":"canary-a"}}}`)
			if r.code != want || want != "ok" && (r.detail.GetKind() != "not_allowed" || r.detail.GetLimit() != "one of the roles writer, admin, node") {
				t.Errorf("%s over %s: revoke: %+v", role, p.name, r)
			}
		}
		stream := s.client().RevokeStream(t.Context())
		err = stream.Send(&revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{{
			Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://dev.revokd.test", "sid": "canary"}}},
		}}})
		if err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if err := stream.CloseRequest(); err != nil {
			t.Error(err)
		}
		_, err = stream.Receive()
		if role == pki.RoleReader && connect.CodeOf(err) != connect.CodePermissionDenied || role == pki.RoleWriter && err != nil {
			t.Errorf("%s: a stream: %v", role, err)
		}
		if err := stream.CloseResponse(); err != nil && role == pki.RoleWriter {
			t.Error(err)
		}
	}
}

// Clients that are not revokd verify the name, and may speak HTTP/1.1. Any Host will do. Without TLS nothing is answered.
func TestTLSFromOutside(t *testing.T) {
	s := startTLS(t)
	pem, err := os.ReadFile(filepath.Join(s.dir, pki.AuthorityCert))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no authority")
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Time: s.now.Now}}
	defer tr.CloseIdleConnections()
	s.http = &http.Client{Transport: tr, Timeout: 20 * time.Second}
	req, err := http.NewRequest(http.MethodGet, s.url+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "revokd.internal:7950"
	res, err := s.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK || res.ProtoMajor != 1 || !bytes.Contains(b, []byte("https://revokd.internal:7950/revokd.v1")) {
		t.Errorf("%d, HTTP/%d, %v: %s", res.StatusCode, res.ProtoMajor, err, b)
	}
	plain, err := http.Get(strings.Replace(s.url, "https://", "http://", 1) + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Body.Close()
	if plain.StatusCode != http.StatusBadRequest {
		t.Errorf("HTTP without TLS: %d", plain.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}

// Without TLS nobody is known and nobody is refused; a header is no certificate.
func TestCaller(t *testing.T) {
	if c, ok := Caller(t.Context()); ok || c != nil {
		t.Errorf("%v, %v", c, ok)
	}
	with := func(role pki.Role) context.Context {
		c := (*credentials.Set)(nil).Certificate(pki.Identity{Cluster: "prod", Role: role, Name: "n1"})
		return context.WithValue(t.Context(), callerKey{}, &c)
	}
	node1, reader := with(pki.RoleNode), with(pki.RoleSubscriber)
	if c, ok := Caller(node1); !ok || c.Name != "n1" {
		t.Errorf("%v, %v", c, ok)
	}
	for _, c := range []struct {
		ctx  context.Context
		peer node.SessionPeer
		want error
	}{
		{t.Context(), node.SessionPeer{Name: "n1"}, nil},
		{node1, node.SessionPeer{Name: "n1"}, nil},
		{node1, node.SessionPeer{Name: "n2"}, errRole},
		{reader, node.SessionPeer{Name: "n1"}, errRole},
		{reader, node.SessionPeer{Name: "edge-7", Client: true}, nil},
	} {
		if err := mayExchange(c.ctx, c.peer); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.peer, err, c.want)
		}
	}
	if err := mayExchange(node1, node.SessionPeer{}); err == nil {
		t.Error("a peer without a name")
	}
}

// A match that concerns every issuer is for admins, and the audit log says who wrote.
func TestWhatTheCallerMay(t *testing.T) {
	s := startTLS(t, func(c *setup) { c.api.Dev = nil })
	for role, want := range map[pki.Role]string{pki.RoleAdmin: "ok", pki.RoleWriter: "permission_denied", pki.RoleNode: "permission_denied"} {
		s.as(s.source(t, role, "b-"+string(role)).ClientConfig("n1"))
		for method, body := range map[string]string{
			"Revoke": `{"match":{"claims":{"sub":"canary"}}}`, "Block": `{"match":{"claims":{"sub":"canary"}}}`,
		} {
			if r := s.post(method, body); r.code != want {
				t.Errorf("%s as %s: %+v", method, role, r)
			}
		}
		if caller := `"who":"revokd://prod/` + string(role) + `/b-` + string(role) + `","role":"` + string(role) + `","from":"127.0.0.1:`; strings.Count(s.auditText(), caller) != 2 {
			t.Errorf("not twice in the audit: %s", caller)
		}
	}
}
