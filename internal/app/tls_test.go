package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// certificates makes an authority and the certificates of nodes.
func certificates(t *testing.T, cluster string, nodes ...string) map[string]TLSConfig {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.Create(filepath.Join(dir, "ca"), cluster, 0, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]TLSConfig{}
	for _, name := range nodes {
		files, err := ca.Issue(dir, pki.Request{Role: pki.RoleNode, Name: name}, false, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		out[name] = TLSConfig{Cert: files.Cert, Key: files.Key, CA: files.Root}
	}
	return out
}

// running is an agent in this process.
type running struct {
	*testing.T
	url  string
	end  context.CancelFunc
	done chan error
}

type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

var printedURL = regexp.MustCompile(`(?m)^  API +(https?://\S+)$`)

func run(t *testing.T, cfg AgentConfig) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := new(output)
	cfg.Stdout, cfg.Durability = out, durabilityMemory
	r := &running{T: t, end: cancel, done: make(chan error, 1)}
	go func() { r.done <- Agent(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Errorf("%s: %v", cfg.NodeName, err)
		}
	})
	eventually(t, "it says where it listens", func() bool {
		select {
		case err := <-r.done:
			r.done <- nil
			t.Fatalf("%s: %v", cfg.NodeName, err)
		default:
		}
		m := printedURL.FindStringSubmatch(out.String())
		if m != nil {
			r.url = m[1]
		}
		return m != nil
	})
	return r
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) { // between polls
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// client calls an agent with the certificate of a node.
func (r *running) client(c TLSConfig) *http.Client {
	r.Helper()
	source, err := pki.Load(pki.Config{CA: c.CA, Cert: c.Cert, Key: c.Key, Clock: clock.System()})
	if err != nil {
		r.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: source.ClientConfig(""), ForceAttemptHTTP2: true}
	r.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

// Two nodes find each other and replicate over TLS; one whose certificate is of another authority stays outside.
func TestNodesReplicateOverTLS(t *testing.T) {
	files := certificates(t, "prod", "n1", "n2")
	start := func(name string, c TLSConfig, join ...string) *running {
		return run(t, AgentConfig{
			Dev: true, NodeName: name, APIAddr: "127.0.0.1:0", DataDir: t.TempDir(), TLS: c,
			Cluster: ClusterConfig{GossipAddr: "127.0.0.1:0", Join: join},
		})
	}
	n1 := start("n1", files["n1"])
	if !strings.HasPrefix(n1.url, "https://") {
		t.Fatal(n1.url)
	}
	c1 := revokdv1connect.NewRevocationServiceClient(n1.client(files["n1"]), n1.url)
	ready := func(c revokdv1connect.RevocationServiceClient) func() bool {
		return func() bool {
			res, err := c.Status(t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
			return err == nil && res.Msg.GetReady()
		}
	}
	eventually(t, "n1 is ready", ready(c1))
	n2 := start("n2", files["n2"], n1.url)
	c2 := revokdv1connect.NewRevocationServiceClient(n2.client(files["n1"]), n2.url)
	eventually(t, "n2 is ready", ready(c2))
	match := &revokdv1.Match{Claims: map[string]string{"iss": "https://dev.revokd.test", "sid": "s1"}}
	_, err := c1.Revoke(t.Context(), connect.NewRequest(&revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: match}}))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "n2 knows", func() bool {
		res, err := c2.Check(t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: []byte(`{"iss":"https://dev.revokd.test","sid":"s1"}`)}}))
		return err == nil && res.Msg.GetVerdict() == revokdv1.Verdict_VERDICT_REVOKED
	})

	stranger := certificates(t, "prod", "n3")["n3"]
	err = Agent(t.Context(), AgentConfig{
		Dev: true, NodeName: "n3", APIAddr: "127.0.0.1:0", DataDir: t.TempDir(), TLS: stranger,
		Cluster: ClusterConfig{GossipAddr: "127.0.0.1:0", Join: []string{n1.url}},
	})
	if err == nil || !strings.Contains(err.Error(), "--join") {
		t.Errorf("a stranger joins: %v", err)
	}
}

// The files are looked at before anything is written.
func TestTLSFilesAreChecked(t *testing.T) {
	files := certificates(t, "prod", "n1", "n2")
	for name, c := range map[string]struct {
		tls  TLSConfig
		want string
	}{
		"no key":       {TLSConfig{Cert: files["n1"].Cert, CA: files["n1"].CA}, "missing: all of them or none"},
		"another node": {files["n2"], "conflict: it is of node n2"},
		"missing file": {TLSConfig{Cert: "none", Key: "none", CA: files["n1"].CA}, "no such file"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		err := Agent(t.Context(), AgentConfig{Dev: true, NodeName: "n1", APIAddr: "127.0.0.1:0", DataDir: dir, TLS: c.tls})
		if err == nil || !strings.Contains(err.Error(), "--tls-cert") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was written: %v", name, err)
		}
	}
}

// Another node is called by its name, so that nobody takes its place, and each connection pool is one node's.
func TestPeerTransport(t *testing.T) {
	files := certificates(t, "prod", "n1", "n2", "n3")
	a := &agent{cfg: AgentConfig{NodeName: "n1", TLS: files["n1"]}}
	if err := a.cfg.validate(); err == nil {
		t.Fatal("no data directory")
	}
	if err := a.loadTLS(); err != nil {
		t.Fatal(err)
	}
	n2, err := pki.Load(pki.Config{CA: files["n2"].CA, Cert: files["n2"].Cert, Key: files["n2"].Key, Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{TLSConfig: n2.ServerConfig(), ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := pki.PeerIdentity(*r.TLS)
		fmt.Fprintf(w, "%s %v", id.Name, err)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(ln, "", "") }()
	defer func() {
		srv.Close()
		<-served
	}()
	for name, welcome := range map[string]bool{"n2": true, "n3": false, "": true} {
		client, scheme := a.peerTransport(name)
		if again, _ := a.peerTransport(name); again != client || scheme != "https" {
			t.Errorf("%q: another client, or %s", name, scheme)
		}
		res, err := client.Get("https://" + ln.Addr().String())
		if (err == nil) != welcome || !welcome && !errors.Is(err, pki.ErrWrongPeer) {
			t.Errorf("%q: %v", name, err)
		}
		if err == nil {
			res.Body.Close()
		}
		client.CloseIdleConnections()
	}
}

func TestPrintedFlags(t *testing.T) {
	for _, c := range []struct {
		word, want string
	}{{"n1.crt", "n1.crt"}, {"a b", "'a b'"}, {"it's", `'it'\''s'`}, {"", "''"}, {"$x", "'$x'"}} {
		if got := shellWord(c.word); got != c.want {
			t.Errorf("%q: %s, want %s", c.word, got, c.want)
		}
	}
}
