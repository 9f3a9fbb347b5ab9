package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/clock/clocktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

func authority(t testing.TB, dir, cluster string) *Authority {
	t.Helper()
	a, err := Create(dir, cluster, 0, false, noon)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *Authority, dir string, r Request) Issued {
	t.Helper()
	out, err := a.Issue(dir, r, false, noon)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func source(t testing.TB, i Issued, now *clocktest.Fake) *Source {
	t.Helper()
	s, err := Load(Config{CA: i.Root, Cert: i.Cert, Key: i.Key, Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// made signs a certificate that Issue would not make, and returns what tls.Config wants.
func made(t testing.TB, parent *x509.Certificate, by *ecdsa.PrivateKey, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n1"}, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour),
		URIs: uris(t, "revokd://prod/node/n1"), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	change(c)
	if parent == nil {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uris(t testing.TB, list ...string) (out []*url.URL) {
	t.Helper()
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, u)
	}
	return out
}

// link is a connection as both sides see it.
type link struct {
	serverErr, clientErr error
	atServer, atClient   tls.ConnectionState
}

// connect makes a connection on a loopback address.
func connect(t testing.TB, server, client *tls.Config) (l link) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var served sync.WaitGroup
	served.Go(func() {
		raw, err := ln.Accept()
		if err != nil {
			l.serverErr = err
			return
		}
		c := tls.Server(raw, server)
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if l.serverErr = c.Handshake(); l.serverErr == nil {
			l.atServer = c.ConnectionState()
			_, l.serverErr = c.Write([]byte("x"))
		}
	})
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, client)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if l.clientErr = c.Handshake(); l.clientErr == nil {
		l.atClient = c.ConnectionState()
		// In TLS 1.3 the server judges the client after the client's handshake is done.
		_, l.clientErr = io.ReadFull(c, make([]byte, 1))
	}
	c.Close()
	served.Wait()
	return l
}

func nameOf(role Role) string { return strings.ReplaceAll(string(role), "+", "-") }

func TestParseRole(t *testing.T) {
	for text, want := range map[string]Role{
		"reader": RoleReader, "writer": RoleWriter, "subscriber,writer": RoleSubscriberWriter, "writer,subscriber": RoleSubscriberWriter, "subscriber+writer": RoleSubscriberWriter,
		"admin": RoleAdmin, "node": "", "": "", "writer,writer": "", "admin,writer": "", "reader,writer": "", "subscriber,writer,reader": "", ",writer": "",
	} {
		r, err := ParseRole(text)
		if r != want || (want == "") != errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v", text, r, err)
		}
	}
	if !RoleSubscriberWriter.Has(RoleWriter) || !RoleSubscriberWriter.Has(RoleSubscriber) || RoleSubscriberWriter.Has(RoleAdmin) || RoleSubscriberWriter.Has(RoleReader) ||
		RoleWriter.Has(RoleSubscriberWriter) || RoleAdmin.Has(RoleWriter) || !RoleAdmin.Has(RoleAdmin) {
		t.Error("a role has another one than it should")
	}
}

func TestPeersKnowEachOther(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	a := authority(t, dir, "prod")
	n1 := source(t, issue(t, a, dir, Request{Role: RoleNode, Name: "n1"}), now)
	n2 := source(t, issue(t, a, dir, Request{Role: RoleNode, Name: "n2", Hosts: []string{"n2.example", "192.0.2.2"}}), now)
	for _, role := range ClientRoles() {
		issue(t, a, dir, Request{Role: role, Name: nameOf(role)})
	}
	bare, err := Load(Config{CA: filepath.Join(dir, AuthorityCert), Clock: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"", "n2"} {
		l := connect(t, n2.ServerConfig(), n1.ClientConfig(node))
		if l.serverErr != nil || l.clientErr != nil {
			t.Fatalf("node %q: %v, %v", node, l.serverErr, l.clientErr)
		}
		if id, err := PeerIdentity(l.atServer); err != nil || id != (Identity{"prod", RoleNode, "n1"}) {
			t.Errorf("the server sees %v, %v", id, err)
		}
		if id, err := PeerIdentity(l.atClient); err != nil || id != n2.Identity() {
			t.Errorf("the client sees %v, %v", id, err)
		}
		if l.atServer.Version != tls.VersionTLS13 || len(l.atServer.VerifiedChains) == 0 {
			t.Errorf("version %x, %d chains", l.atServer.Version, len(l.atServer.VerifiedChains))
		}
	}
	for _, role := range ClientRoles() {
		s, err := Load(Config{CA: filepath.Join(dir, AuthorityCert), Cert: filepath.Join(dir, nameOf(role)+".crt"), Key: filepath.Join(dir, nameOf(role)+".key"), Clock: now})
		if err != nil {
			t.Fatal(err)
		}
		l := connect(t, n2.ServerConfig(), s.ClientConfig(""))
		if id, err := PeerIdentity(l.atServer); l.serverErr != nil || l.clientErr != nil || err != nil || id.Role != role {
			t.Errorf("%s: %v, %v, %v, %v", role, l.serverErr, l.clientErr, id, err)
		}
	}
	// Without a certificate the connection stands, and is nobody's.
	l := connect(t, n2.ServerConfig(), bare.ClientConfig(""))
	if _, err := PeerIdentity(l.atServer); l.serverErr != nil || l.clientErr != nil || !errors.Is(err, ErrNoIdentity) {
		t.Errorf("%v, %v, %v", l.serverErr, l.clientErr, err)
	}
	if bare.Identity() != (Identity{}) || !bare.NotAfter().IsZero() {
		t.Errorf("%v, %v", bare.Identity(), bare.NotAfter())
	}
	// A client that is not revokd verifies names and addresses.
	for _, name := range []string{"n2.example", "192.0.2.2", "localhost", "127.0.0.1"} {
		if l := connect(t, n2.ServerConfig(), &tls.Config{RootCAs: rootsOf(t, a), ServerName: name, Time: now.Now}); l.clientErr != nil {
			t.Errorf("%s: %v", name, l.clientErr)
		}
	}
	// No server without a certificate.
	if l := connect(t, bare.ServerConfig(), n1.ClientConfig("")); !errors.Is(l.serverErr, ErrInvalid) {
		t.Errorf("%v", l.serverErr)
	}
}

func rootsOf(t testing.TB, a *Authority) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// What a node that dials refuses, and a node that is dialled.
func TestPeersRefused(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	a := authority(t, dir, "prod")
	other := authority(t, t.TempDir(), "prod") // the same name is no proof
	n1 := source(t, issue(t, a, dir, Request{Role: RoleNode, Name: "n1"}), now)
	intermediate := made(t, a.cert, a.key, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.URIs = true, x509.KeyUsageCertSign, nil
	})
	below, err := x509.ParseCertificate(intermediate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	fromBelow := made(t, below, intermediate.PrivateKey.(*ecdsa.PrivateKey), func(*x509.Certificate) {})
	fromBelow.Certificate = append(fromBelow.Certificate, intermediate.Certificate[0])
	sign := func(change func(*x509.Certificate)) tls.Certificate { return made(t, a.cert, a.key, change) }
	for name, c := range map[string]struct {
		cert             tls.Certificate
		asServer, asPeer error // what n1 says when it dials such a server, and when such a client dials it; nil: welcome
	}{
		"good":              {sign(func(*x509.Certificate) {}), nil, nil},
		"expired":           {sign(func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Second) }), ErrUntrusted, errAny},
		"not yet valid":     {sign(func(c *x509.Certificate) { c.NotBefore = noon.Add(time.Second) }), ErrUntrusted, errAny},
		"another authority": {made(t, other.cert, other.key, func(*x509.Certificate) {}), ErrUntrusted, errAny},
		"self-signed":       {made(t, nil, nil, func(*x509.Certificate) {}), ErrUntrusted, errAny},
		"self-signed authority": {made(t, nil, nil, func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}), ErrUntrusted, errAny},
		"from an authority below ours": {fromBelow, ErrUntrusted, errAny},
		"another cluster":              {sign(func(c *x509.Certificate) { c.URIs = uris(t, "revokd://test/node/n1") }), ErrWrongPeer, ErrWrongPeer},
		"another node":                 {sign(func(c *x509.Certificate) { c.URIs = uris(t, "revokd://prod/node/n2") }), ErrWrongPeer, nil},
		"writer":                       {sign(func(c *x509.Certificate) { c.URIs = uris(t, "revokd://prod/writer/n1") }), ErrWrongPeer, nil},
		"unknown role":                 {sign(func(c *x509.Certificate) { c.URIs = uris(t, "revokd://prod/root/n1") }), ErrNoIdentity, ErrNoIdentity},
		"no role":                      {sign(func(c *x509.Certificate) { c.URIs = uris(t, "revokd://prod//n1") }), ErrNoIdentity, ErrNoIdentity},
		"no identity":                  {sign(func(c *x509.Certificate) { c.URIs = uris(t, "spiffe://prod/node/n1") }), ErrNoIdentity, ErrNoIdentity},
		"names only":                   {sign(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"n1"} }), ErrNoIdentity, ErrNoIdentity},
		"two identities": {sign(func(c *x509.Certificate) {
			c.URIs = uris(t, "revokd://prod/node/n1", "revokd://prod/admin/n1")
		}), ErrNoIdentity, ErrNoIdentity},
		"one of revokd and another": {sign(func(c *x509.Certificate) {
			c.URIs = uris(t, "spiffe://prod/n1", "revokd://prod/node/n1")
		}), nil, nil},
		"for clients only": {sign(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), ErrUntrusted, nil},
		"for servers only": {sign(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), nil, errAny},
	} {
		server := &tls.Config{Certificates: []tls.Certificate{c.cert}}
		if l := connect(t, server, n1.ClientConfig("n1")); !is(l.clientErr, c.asServer) {
			t.Errorf("%s: dialled: %v, want %v", name, l.clientErr, c.asServer)
		}
		client := &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert, nil }}
		l := connect(t, n1.ServerConfig(), client)
		if !is(l.serverErr, c.asPeer) || (l.clientErr == nil) != (c.asPeer == nil) {
			t.Errorf("%s: dials: %v, want %v; it sees %v", name, l.serverErr, c.asPeer, l.clientErr)
		}
	}
}

// errAny is an error that the library makes.
var errAny = errors.New("any")

func is(err, want error) bool {
	if want == errAny {
		return err != nil
	}
	return errors.Is(err, want)
}

func TestOnlyTLS13(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	n := source(t, issue(t, authority(t, dir, "prod"), dir, Request{Role: RoleNode, Name: "n1"}), now)
	old := func(c *tls.Config) *tls.Config {
		c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12
		return c
	}
	if l := connect(t, n.ServerConfig(), old(n.ClientConfig(""))); l.clientErr == nil || !strings.Contains(l.clientErr.Error(), "protocol version") {
		t.Errorf("a client with TLS 1.2: %v", l.clientErr)
	}
	pair := *n.current.Load().cert
	if l := connect(t, old(&tls.Config{Certificates: []tls.Certificate{pair}}), n.ClientConfig("")); l.clientErr == nil || !strings.Contains(l.clientErr.Error(), "protocol version") {
		t.Errorf("a server with TLS 1.2: %v", l.clientErr)
	}
}

// A session that could be resumed would outlive its certificate.
func TestNoResumption(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	n := source(t, issue(t, authority(t, dir, "prod"), dir, Request{Role: RoleNode, Name: "n1"}), now)
	c := n.ClientConfig("")
	c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	c.ServerName = "n1"
	for range 3 {
		if l := connect(t, n.ServerConfig(), c); l.clientErr != nil || l.atServer.DidResume {
			t.Fatalf("%v, resumed %v", l.clientErr, l.atServer.DidResume)
		}
	}
}

func TestIdentities(t *testing.T) {
	for uri, want := range map[string]Identity{
		"revokd://prod/node/n1":         {"prod", RoleNode, "n1"},
		"revokd://p-1/writer/Login.App": {"p-1", RoleWriter, "Login.App"},
		"revokd://prod/node/":           {},
		"revokd://prod/node":            {},
		"revokd://prod/node/n1/":        {},
		"revokd://prod/node/n1/x":       {},
		"revokd://prod/node/..":         {},
		"revokd://prod/node/n%31":       {},
		"revokd://prod/node/n1?x":       {},
		"revokd://prod/node/n1#x":       {},
		"revokd://u@prod/node/n1":       {},
		"revokd://prod:1/node/n1":       {},
		"revokd://Prod/node/n1":         {},
		"revokd:///node/n1":             {},
		"revokd:prod/node/n1":           {},
		"revokd://prod/Node/n1":         {},
	} {
		id, err := identityOf(&x509.Certificate{URIs: uris(t, uri)})
		if id != want || (err == nil) != (want != Identity{}) {
			t.Errorf("%s: %v, %v", uri, id, err)
		}
		if err == nil && id.String() != uri {
			t.Errorf("%s becomes %s", uri, id)
		}
	}
}

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	a := authority(t, dir, "prod")
	// Critical, so that nobody who ignores them takes the certificate for more than it is.
	for _, oid := range []asn1.ObjectIdentifier{{2, 5, 29, 19}, {2, 5, 29, 15}} { // basic constraints, key usage
		found := false
		for _, e := range a.cert.Extensions {
			found = found || e.Id.Equal(oid) && e.Critical
		}
		if !found {
			t.Errorf("%v is not there or not critical", oid)
		}
	}
	if key, ok := a.cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T", a.cert.PublicKey)
	}
	if !a.cert.IsCA || a.cert.MaxPathLen != 0 || !a.cert.NotAfter.Equal(noon.Add(AuthorityLifetime)) {
		t.Errorf("%v %d %v", a.cert.IsCA, a.cert.MaxPathLen, a.cert.NotAfter)
	}
	again, err := Open(dir)
	if err != nil || again.Cluster() != "prod" || !again.cert.Equal(a.cert) {
		t.Fatalf("%v, %v", again, err)
	}
	serials := map[string]bool{}
	for _, name := range []string{"n1", "n2", "n3"} {
		out := issue(t, again, dir, Request{Role: RoleNode, Name: name, Hosts: []string{"N.Example", "*.n.example", "2001:db8::1", "::ffff:192.0.2.1"}})
		d, err := Describe(out.Cert)
		if err != nil || len(d) != 1 {
			t.Fatalf("%v, %v", d, err)
		}
		if got := strings.Join(d[0].Hosts, " "); got != "localhost n.example *.n.example 127.0.0.1 ::1 2001:db8::1 192.0.2.1" {
			t.Errorf("hosts %s", got)
		}
		if !d[0].Server || !d[0].Client || d[0].Authority || *d[0].Identity != out.Identity || !d[0].NotAfter.Equal(noon.Add(CertificateLifetime)) {
			t.Errorf("%+v", d[0])
		}
		if n, ok := new(big.Int).SetString(d[0].Serial, 16); !ok || n.BitLen() > 129 || n.BitLen() < 64 || serials[d[0].Serial] {
			t.Errorf("serial number %s", d[0].Serial)
		}
		serials[d[0].Serial] = true
	}
	out := issue(t, again, filepath.Join(dir, "clients"), Request{Role: RoleWriter, Name: "login", Lifetime: time.Hour})
	d, err := Describe(out.Cert)
	if err != nil || d[0].Server || !d[0].Client || len(d[0].Hosts) != 0 || !d[0].NotAfter.Equal(noon.Add(time.Hour)) {
		t.Errorf("%+v, %v", d, err)
	}
	root, err := Describe(out.Root)
	if err != nil || !root[0].Authority || root[0].Identity != nil {
		t.Errorf("%+v, %v", root, err)
	}
	if _, err := Describe(out.Key); !errors.Is(err, ErrFile) {
		t.Errorf("a key is described: %v", err)
	}
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		want := os.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestArguments(t *testing.T) {
	dir := t.TempDir()
	for _, cluster := range []string{"", "Prod", "a.b", "-a", "a-", "a b", strings.Repeat("a", 64)} {
		if _, err := Create(dir, cluster, 0, false, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("cluster %q: %v", cluster, err)
		}
	}
	if _, err := Create(dir, "prod", -1, false, noon); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	a := authority(t, dir, "prod")
	out := t.TempDir()
	for name, r := range map[string]Request{
		"no name":             {Role: RoleNode},
		"path":                {Role: RoleNode, Name: "../n1"},
		"hidden":              {Role: RoleNode, Name: ".n1"},
		"the authority's":     {Role: RoleNode, Name: "CA"},
		"role":                {Role: "root", Name: "n1"},
		"no role":             {Name: "n1"},
		"negative lifetime":   {Role: RoleNode, Name: "n1", Lifetime: -1},
		"outlives":            {Role: RoleNode, Name: "n1", Lifetime: AuthorityLifetime + 1},
		"client with hosts":   {Role: RoleReader, Name: "n1", Hosts: []string{"a"}},
		"host with port":      {Role: RoleNode, Name: "n1", Hosts: []string{"a:1"}},
		"empty host":          {Role: RoleNode, Name: "n1", Hosts: []string{""}},
		"all interfaces":      {Role: RoleNode, Name: "n1", Hosts: []string{"0.0.0.0"}},
		"address with a zone": {Role: RoleNode, Name: "n1", Hosts: []string{"fe80::1%eth0"}},
		"star in the middle":  {Role: RoleNode, Name: "n1", Hosts: []string{"a.*.b"}},
	} {
		if _, err := a.Issue(out, r, true, noon); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(out); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir, "prod")
	n1 := issue(t, a, dir, Request{Role: RoleNode, Name: "n1"})
	all := []string{n1.Root, filepath.Join(dir, AuthorityKey), n1.Cert, n1.Key}
	contents := func() (out [4]string) {
		for i, path := range all {
			out[i] = read(t, path)
		}
		return out
	}
	before := contents()
	if _, err := Create(dir, "prod", 0, false, noon); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if _, err := a.Issue(dir, Request{Role: RoleReader, Name: "n1"}, false, noon); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	other := authority(t, t.TempDir(), "prod")
	if _, err := other.Issue(dir, Request{Role: RoleNode, Name: "n2"}, false, noon); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if contents() != before {
		t.Error("a file has changed")
	}
	if _, err := os.Stat(filepath.Join(dir, "n2.crt")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused call left something behind: %v", err)
	}

	// With force a certificate is renewed, with a new key.
	if _, err := a.Issue(dir, Request{Role: RoleNode, Name: "n1"}, true, noon); err != nil {
		t.Fatal(err)
	}
	after := contents()
	if after[0] != before[0] || after[1] != before[1] || after[2] == before[2] || after[3] == before[3] {
		t.Error("the wrong files have changed")
	}
	source(t, n1, clocktest.New(noon)) // the pair belongs together

	// What an interrupted call leaves is finished by the next.
	if err := os.Remove(n1.Cert); err != nil {
		t.Fatal(err)
	}
	issue(t, a, dir, Request{Role: RoleNode, Name: "n1"})
	if read(t, n1.Key) != after[3] {
		t.Error("the key was replaced")
	}
	if err := os.Remove(n1.Root); err != nil {
		t.Fatal(err)
	}
	if a, err := Create(dir, "prod", 0, false, noon); err != nil {
		t.Error(err)
	} else {
		issue(t, a, t.TempDir(), Request{Role: RoleNode, Name: "n1"})
	}

	// A key that is none is no reason to overwrite it.
	stray := filepath.Join(dir, "n3.key")
	if err := os.WriteFile(stray, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Issue(dir, Request{Role: RoleNode, Name: "n3"}, false, noon); err == nil || read(t, stray) != "mine" {
		t.Errorf("%v", err)
	}

	// A bundle that has our authority among others is left alone.
	bundle := read(t, filepath.Join(dir, AuthorityCert)) + string(other.pem)
	to := t.TempDir()
	if err := os.WriteFile(filepath.Join(to, AuthorityCert), []byte(bundle), 0o600); err != nil {
		t.Fatal(err)
	}
	issue(t, other, to, Request{Role: RoleNode, Name: "n1"})
	if read(t, filepath.Join(to, AuthorityCert)) != bundle {
		t.Error("the bundle was replaced")
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	a := authority(t, dir, "prod")
	n1 := issue(t, a, dir, Request{Role: RoleNode, Name: "n1"})
	for name, files := range map[string][2]string{
		"another key":      {a.Cluster(), read(t, n1.Key)},
		"not an authority": {read(t, n1.Cert), read(t, n1.Key)},
		"no certificate":   {"hello", read(t, n1.Key)},
		"key as cert":      {read(t, n1.Key), read(t, n1.Key)},
		"no key":           {string(a.pem), "hello"},
		"too large":        {strings.Repeat("a", maxFile+1), read(t, n1.Key)},
	} {
		if name == "another key" {
			files[0] = string(a.pem)
		}
		bad := t.TempDir()
		for i, file := range []string{AuthorityCert, AuthorityKey} {
			if err := os.WriteFile(filepath.Join(bad, file), []byte(files[i]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := Open(bad)
		if !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: the error quotes a key", name)
		}
	}
}

// Files that cannot be used leave those from before in force, all of them.
func TestReload(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	a := authority(t, dir, "prod")
	out := issue(t, a, dir, Request{Role: RoleNode, Name: "n1"})
	n2 := issue(t, a, dir, Request{Role: RoleNode, Name: "n2"})
	other := authority(t, t.TempDir(), "prod")
	stranger := issue(t, other, t.TempDir(), Request{Role: RoleNode, Name: "n1"})
	s := source(t, out, now)
	peer := source(t, n2, now)
	serial := func() string {
		t.Helper()
		l := connect(t, s.ServerConfig(), peer.ClientConfig("n1"))
		if l.clientErr != nil {
			t.Fatalf("the old files are no longer in force: %v", l.clientErr)
		}
		return l.atClient.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	good := [3]string{read(t, out.Root), read(t, out.Cert), read(t, out.Key)}
	put := func(files [3]string) {
		t.Helper()
		for i, path := range []string{out.Root, out.Cert, out.Key} {
			if err := os.WriteFile(path, []byte(files[i]), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	expired := made(t, a.cert, a.key, func(c *x509.Certificate) { c.NotAfter = noon.Add(-time.Second) })
	leaf := string(pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: expired.Certificate[0]}))
	key, err := x509.MarshalPKCS8PrivateKey(expired.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	expiredKey := string(pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: key}))
	for name, c := range map[string]struct {
		files [3]string
		want  error
	}{
		"another key":                 {[3]string{good[0], good[1], read(t, n2.Key)}, ErrFile},
		"half a certificate":          {[3]string{good[0], good[1][:len(good[1])/2], good[2]}, ErrFile},
		"empty":                       {[3]string{good[0], "", good[2]}, ErrFile},
		"another node":                {[3]string{good[0], read(t, n2.Cert), read(t, n2.Key)}, ErrWrongPeer},
		"another authority":           {[3]string{string(other.pem), good[1], good[2]}, ErrUntrusted},
		"of another authority":        {[3]string{good[0], read(t, stranger.Cert), read(t, stranger.Key)}, ErrUntrusted},
		"expired":                     {[3]string{good[0], leaf, expiredKey}, ErrUntrusted},
		"a node as an authority":      {[3]string{good[1], good[1], good[2]}, ErrFile},
		"a key among the authorities": {[3]string{good[0] + good[2], good[1], good[2]}, ErrFile},
	} {
		put(c.files)
		if err := s.Reload(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if serial() != first {
			t.Errorf("%s: the certificate has changed", name)
		}
		if _, err := Load(s.cfg); c.want != ErrWrongPeer && !errors.Is(err, c.want) {
			t.Errorf("%s: loaded: %v", name, err)
		}
	}
	if err := os.Remove(out.Key); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); !errors.Is(err, os.ErrNotExist) || serial() != first {
		t.Errorf("%v", err)
	}

	// A renewed certificate is shown in new connections, of a configuration that was made before.
	put(good)
	server := s.ServerConfig()
	if _, err := a.Issue(dir, Request{Role: RoleNode, Name: "n1"}, true, noon); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if l := connect(t, server, peer.ClientConfig("n1")); l.clientErr != nil || l.atClient.PeerCertificates[0].SerialNumber.String() == first {
		t.Errorf("%v, or the certificate is the old one", l.clientErr)
	}

	// A second authority is believed beside the first, by servers and clients.
	strange := source(t, stranger, now)
	dial := strange.ClientConfig("n1")
	if l := connect(t, server, dial); l.serverErr == nil {
		t.Error("a stranger is welcome")
	}
	if err := os.WriteFile(out.Root, []byte(good[0]+string(other.pem)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	if l := connect(t, strange.ServerConfig(), s.ClientConfig("n1")); l.clientErr == nil || l.serverErr == nil {
		t.Error("the stranger believes in our authority")
	}
	if err := os.WriteFile(stranger.Root, []byte(good[0]+string(other.pem)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := strange.Reload(); err != nil {
		t.Fatal(err)
	}
	if l := connect(t, server, dial); l.clientErr != nil || l.serverErr != nil {
		t.Errorf("%v, %v", l.serverErr, l.clientErr)
	}

	// Certificates end by the clock, with nothing reloaded.
	now.Advance(CertificateLifetime + time.Second)
	if l := connect(t, server, peer.ClientConfig("n1")); !errors.Is(l.clientErr, ErrUntrusted) {
		t.Errorf("an expired certificate: %v", l.clientErr)
	}
}

func TestConfigIsChecked(t *testing.T) {
	dir, now := t.TempDir(), clocktest.New(noon)
	out := issue(t, authority(t, dir, "prod"), dir, Request{Role: RoleNode, Name: "n1"})
	for name, c := range map[string]Config{
		"no clock":       {CA: out.Root},
		"no authority":   {Cert: out.Cert, Key: out.Key, Clock: now},
		"no key":         {CA: out.Root, Cert: out.Cert, Clock: now},
		"no certificate": {CA: out.Root, Key: out.Key, Clock: now},
		"interval":       {CA: out.Root, Clock: now, Interval: -1},
	} {
		if _, err := Load(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.b.String(), text)
}

// Run follows the files and says each thing once.
func TestRun(t *testing.T) {
	dir, now, log := t.TempDir(), clocktest.New(noon), new(syncBuffer)
	a := authority(t, dir, "prod")
	out := issue(t, a, dir, Request{Role: RoleNode, Name: "n1"})
	s, err := Load(Config{
		CA: out.Root, Cert: out.Cert, Key: out.Key, Clock: now, Interval: time.Millisecond,
		Logger: hclog.New(&hclog.LoggerOptions{Output: log}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) { // between polls
			if time.Now().After(deadline) {
				t.Fatalf("never came true: %s", what)
			}
		}
	}
	cert := read(t, out.Cert)
	if err := os.WriteFile(out.Cert, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually("the refusal is logged", func() bool { return log.count("cannot be used") == 1 })
	now.Advance(CertificateLifetime - 10*24*time.Hour)
	eventually("the coming end is logged", func() bool { return log.count("about to expire") == 1 })
	now.Advance(24 * time.Hour)
	eventually("again a day later", func() bool { return log.count("about to expire") == 2 })
	if log.count("cannot be used") != 1 {
		t.Error("the same refusal is logged twice")
	}
	if err := os.WriteFile(out.Cert, []byte(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	old := s.NotAfter()
	if _, err := a.Issue(dir, Request{Role: RoleNode, Name: "n1"}, true, now.Now()); err != nil {
		t.Fatal(err)
	}
	eventually("the new certificate is taken", func() bool { return s.NotAfter().After(old) })
	eventually("and it is logged", func() bool { return log.count("taken anew") >= 1 })
	if log.count("BEGIN")+log.count("MIG") != 0 {
		t.Error("the log quotes a key")
	}
}

// FuzzIdentity: a URI is an identity only in the one way in which it is written.
func FuzzIdentity(f *testing.F) {
	for _, uri := range []string{"revokd://prod/node/n1", "revokd://p-1/subscriber+writer/Login.App", "revokd://u@prod/node/n1", "revokd://prod/node/n%31", "revokd:prod/node/n1", "https://prod/node/n1", "revokd://prod/node/n1?"} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return // x509 refuses it
		}
		var id Identity
		alloctest.AtMost(t, 40*len(text)+64<<10, func() { id, err = identityOf(&x509.Certificate{URIs: []*url.URL{u}}) })
		switch {
		case err != nil && (!errors.Is(err, ErrNoIdentity) || id != Identity{}):
			t.Fatalf("%+v, %v", id, err)
		case err == nil && (id.String() != u.String() || id.validate() != nil):
			t.Fatalf("%q is taken for %s", text, id)
		}
	})
}

// FuzzCertificates: a file of certificates, or one as its bytes, is refused or has at least one, with at most one identity.
func FuzzCertificates(f *testing.F) {
	der := made(f, nil, nil, func(*x509.Certificate) {}).Certificate[0]
	file := pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
	f.Add(der, true)
	f.Add(der[:len(der)-1], true)
	f.Add(file, false)
	f.Add(append(bytes.Clone(file), file...), false)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, bare bool) {
		if bare {
			b = pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: b})
		}
		var certs []*x509.Certificate
		var err error
		alloctest.AtMost(t, 100*len(b)+64<<10, func() { certs, err = parseCerts(b) })
		if (len(certs) == 0) == (err == nil) || err != nil && !errors.Is(err, ErrFile) {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
		for _, c := range certs {
			if id, err := identityOf(c); (err == nil) != (id.validate() == nil) || err != nil && !errors.Is(err, ErrNoIdentity) {
				t.Fatalf("%+v, %v", id, err)
			}
		}
	})
}
