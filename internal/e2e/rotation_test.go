package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// Every secret of a cluster is replaced while it is used: certificates, the authority, bearer tokens, the key of gossip. No request fails, neither on connections that stand nor on new ones,
// sessions go on, and afterwards the old secrets are worth nothing and a node can start with the new ones.
func TestRotation(t *testing.T) {
	s := newSecured(t, 3, "--log-level", "info,tls=debug")
	load := rotationLoad(s, s.admin)
	c, err := replica.Open(t.Context(), replica.Config{Addrs: []string{s.nodes[0].host()}, TLS: s.admin, Name: "service"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	step := func(what string) {
		t.Helper()
		began, before := load.done.Load(), load.fresh.Load()
		s.until("requests after "+what, func() error {
			if load.done.Load() < began+300 || load.fresh.Load() < before+30 {
				return errors.New("too few")
			}
			return nil
		})
		// What a node acknowledges is in the replica of a service, through a session that has been there from the beginning.
		id := "replica-" + strings.ReplaceAll(what, " ", "-")
		if err := revokes(t.Context(), s.nodes[1].api, id, nil); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
		s.until("the replica knows "+id, func() error {
			if v := c.Check(claimsOf(id, time.Now())); v.Status != revocation.Revoked {
				return fmt.Errorf("%v", v)
			}
			return nil
		})
		for _, err := range load.failures() {
			t.Errorf("until %s: %v", what, err)
		}
	}
	step("the start")

	first := serials(s, s.admin)
	for _, n := range s.nodes {
		s.run("ca", "issue", "node", n.name, "--host", "127.0.0.1", "--ca", s.path("ca"), "--out", s.path("nodes/"+n.name), "--force")
	}
	s.run("ca", "issue", "client", "admin", "--role", "admin", "--ca", s.path("ca"), "--out", s.path("admin"), "--force")
	s.reload()
	step("new certificates")
	second := serials(s, s.admin)
	for i := range first {
		if first[i] == second[i] {
			t.Errorf("%s shows the certificate that was replaced", s.nodes[i].name)
		}
	}

	// Another authority: believed beside the old one, then it issues everything, then it is alone.
	old := read(t, s.path("ca/ca.crt"))
	stale, err := tls.LoadX509KeyPair(s.path("admin/admin.crt"), s.path("admin/admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.run("ca", "init", "--cluster", "test", "--out", s.path("ca2"))
	both := old + read(t, s.path("ca2/ca.crt"))
	s.believe(both)
	step("two authorities")
	for _, n := range s.nodes {
		s.run("ca", "issue", "node", n.name, "--host", "127.0.0.1", "--ca", s.path("ca2"), "--out", s.path("nodes/"+n.name), "--force")
	}
	s.run("ca", "issue", "client", "admin", "--role", "admin", "--ca", s.path("ca2"), "--out", s.path("admin"), "--force")
	s.believe(both) // "ca issue" has written that of one authority
	step("certificates of the new authority")
	s.believe(read(t, s.path("ca2/ca.crt")))
	step("the new authority alone")
	for _, n := range s.nodes {
		conn, err := tls.Dial("tcp", n.host(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{stale}}) // the node is asked what it believes
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // in TLS 1.3 a refusal comes after the handshake
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
			t.Errorf("%s and a certificate of the old authority: %v", n.name, err)
		}
	}

	// Two tokens of one name are in force for a while.
	s.issue("next.token")
	s.reload()
	step("two bearer tokens")
	former := load.token.Swap(tokenOf(t, s, "next.token"))
	step("the next bearer token in use")
	s.accept(s.entries[1])
	s.reload()
	step("the former bearer token gone")
	for _, n := range s.nodes {
		c := &http.Client{Transport: bearer{httpsClient(t, s.stranger()).Transport, func() string { return *former }}}
		if err := checks(t.Context(), revokdv1connect.NewRevocationServiceClient(c, n.proc.URL), "nobody's", revokdv1.Verdict_VERDICT_ACTIVE); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("%s and a token that is gone: %v", n.name, err)
		}
	}

	flags := []string{"--addr", s.nodes[0].host(), "--tls-ca", s.path("admin/ca.crt"), "--tls-cert", s.path("admin/admin.crt"), "--tls-key", s.path("admin/admin.key"), "--output", "json"}
	ring := func(args ...string) []string {
		t.Helper()
		var answer struct {
			Nodes []struct {
				Node string
				Ids  []string
			}
		}
		out := s.run(append(append([]string{"keys"}, args...), flags...)...)
		if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Nodes) != 3 {
			t.Fatalf("keys %q: %v\n%s", args, err, out)
		}
		for _, n := range answer.Nodes[1:] {
			if strings.Join(n.Ids, " ") != strings.Join(answer.Nodes[0].Ids, " ") {
				t.Fatalf("keys %q: rings differ: %s", args, out)
			}
		}
		return answer.Nodes[0].Ids
	}
	was := ring("list")
	now := ring("install")
	if len(was) != 1 || len(now) != 2 {
		t.Fatalf("rings: %q, %q", was, now)
	}
	step("another key of gossip")
	ring("use", now[1])
	step("the other key in use")
	if now = ring("remove", was[0]); len(now) != 1 || now[0] == was[0] {
		t.Errorf("ring at the end: %q", now)
	}
	step("the first key gone")

	fingerprints := func(args ...string) []string {
		t.Helper()
		var answer struct{ Keys []struct{ ID string } }
		out := s.run(append(append([]string{"keys", "fingerprint"}, args...), flags...)...)
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatalf("keys fingerprint %q: %v\n%s", args, err, out)
		}
		ids := make([]string, len(answer.Keys))
		for i, k := range answer.Keys {
			ids[i] = k.ID
		}
		return ids
	}
	if was = fingerprints("list"); len(was) != 1 {
		t.Fatalf("fingerprint keys: %q", was)
	}
	if now = fingerprints("add"); len(now) != 2 || now[0] != was[0] {
		t.Fatalf("fingerprint keys: %q, %q", was, now)
	}
	step("another fingerprint key")
	if used := fingerprints("use", now[1]); used[0] != now[1] {
		t.Fatalf("fingerprint keys: %q", used)
	}
	step("the other fingerprint key in use")

	load.stop()
	for _, err := range load.failures() {
		t.Error(err)
	}
	for _, n := range s.nodes { // all were there all the time
		res, err := n.adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range res.Msg.GetMembers() {
			if m.GetStatus() != "alive" {
				t.Errorf("%s says that %s is %s", n.name, m.GetName(), m.GetStatus())
			}
		}
	}
	// A start with what there is now, of each: its own file has the fingerprint keys of all that its journal has.
	for i, n := range s.nodes {
		n.proc.Kill()
		s.start(n)
		s.until(n.name+" acknowledges again", func() error {
			return revokes(t.Context(), s.nodes[(i+1)%3].api, "last-"+n.name, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL})
		})
		s.until("all have met "+n.name+" where it is now", func() error { // its ports are others
			for _, m := range s.nodes {
				res, err := m.adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
				if err != nil {
					return err
				}
				for _, other := range res.Msg.GetMembers() {
					if !other.GetConnected() && !other.GetSelf() || other.GetStatus() != "alive" {
						return fmt.Errorf("%s says that %s is %s", m.name, other.GetName(), other.GetStatus())
					}
				}
			}
			return nil
		})
		for _, id := range []string{"replica-the-start", "replica-the-other-fingerprint-key-in-use", "last-" + n.name} {
			s.until(n.name+" knows "+id, func() error { return checks(t.Context(), n.api, id, revokdv1.Verdict_VERDICT_REVOKED) })
		}
	}
	t.Logf("%d requests on connections that stood, %d on new ones, none failed", load.done.Load(), load.fresh.Load())
}

func tokenOf(t *testing.T, s *secured, file string) *string {
	t.Helper()
	text := strings.TrimSpace(read(t, s.path(file)))
	return &text
}

// stranger is the configuration of TLS of somebody without a certificate, who is told which node he talks to in another way.
func (s *secured) stranger() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func (n *securedNode) host() string { return strings.TrimPrefix(n.proc.URL, "https://") }

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// believe puts authorities into the place of those that nodes and admin believe, as careful people do: beside, then renamed.
func (s *secured) believe(authorities string) {
	s.Helper()
	paths := []string{s.path("admin/ca.crt")}
	for _, n := range s.nodes {
		paths = append(paths, s.path(filepath.Join("nodes", n.name, "ca.crt")))
	}
	for _, path := range paths {
		if err := os.WriteFile(path+".new", []byte(authorities), 0o600); err != nil {
			s.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			s.Fatal(err)
		}
	}
	s.reload()
}

// reload makes all nodes read their files, and the admin his.
func (s *secured) reload() {
	s.Helper()
	for _, n := range s.nodes {
		said := func() int { return strings.Count(n.proc.Stderr(), "reloaded") }
		before := said()
		if err := n.proc.Signal(syscall.SIGHUP); err != nil {
			s.Fatal(err)
		}
		s.until(n.name+" has reloaded", func() error {
			if said() == before {
				return errors.New("nothing is logged")
			}
			return nil
		})
		if strings.Contains(n.proc.Stderr(), "nothing was reloaded") {
			s.Fatalf("%s:\n%s", n.name, n.proc.Stderr())
		}
	}
	if err := s.follow(); err != nil {
		s.Fatal(err)
	}
}

// serials returns the numbers of the certificates that nodes show on new connections.
func serials(s *secured, c *tls.Config) (list []string) {
	s.Helper()
	for _, n := range s.nodes {
		conn, err := tls.Dial("tcp", n.host(), c)
		if err != nil {
			s.Fatal(err)
		}
		list = append(list, conn.ConnectionState().PeerCertificates[0].SerialNumber.String())
		_ = conn.Close()
	}
	return list
}

// usage is what goes on meanwhile: on each node one who checks and revokes on a connection that stands, and some on new connections, one of them with a bearer token.
type usage struct {
	done, fresh atomic.Int64
	token       atomic.Pointer[string] // what those with one show
	stop        func()

	mu     sync.Mutex
	failed []error
}

func rotationLoad(s *secured, c *tls.Config) *usage {
	l := new(usage)
	l.token.Store(tokenOf(s.T, s, "login.token"))
	ctx, cancel := context.WithCancel(s.Context())
	var running sync.WaitGroup
	l.stop = func() { cancel(); running.Wait() }
	s.Cleanup(l.stop)
	use := func(api revokdv1connect.RevocationServiceClient, id string) {
		err := checks(s.Context(), api, id, revokdv1.Verdict_VERDICT_ACTIVE)
		if err == nil {
			err = revokes(s.Context(), api, id, nil)
		}
		if err == nil {
			err = checks(s.Context(), api, id, revokdv1.Verdict_VERDICT_REVOKED)
		}
		if err != nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.failed = append(l.failed, fmt.Errorf("%s: %w", id, err))
		}
	}
	for _, n := range s.nodes {
		api, url := revokdv1connect.NewRevocationServiceClient(httpsClient(s.T, c), n.proc.URL), n.proc.URL
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				use(api, fmt.Sprint(n.name, "-standing-", i))
				l.done.Add(3)
				time.Sleep(2 * time.Millisecond) // the machine has other things to do
			}
		})
		running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				client := httpsClient(s.T, c)
				use(revokdv1connect.NewRevocationServiceClient(client, url), fmt.Sprint(n.name, "-new-", i))
				client.CloseIdleConnections()
				client = httpsClient(s.T, s.stranger())
				use(revokdv1connect.NewRevocationServiceClient(&http.Client{Transport: bearer{client.Transport, func() string { return *l.token.Load() }}}, url), fmt.Sprint(n.name, "-bearer-", i))
				client.CloseIdleConnections()
				l.fresh.Add(3)
				time.Sleep(20 * time.Millisecond) // the same
			}
		})
	}
	return l
}

func (l *usage) failures() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.failed
	l.failed = nil
	return list[:min(5, len(list))]
}

// How much a writer may write in a second is taken from the file at SIGHUP, with everything else that is read then or not at all.
func TestRatesReload(t *testing.T) {
	n := newNode(t, "")
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(n.home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(n.program, "credentials", "new", "--name", "w", "--role", "writer", "--out", "w.token")
	cmd.Env, cmd.Dir = n.env, n.home
	entry, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	put("credentials.yaml", "tokens:\n"+string(entry))
	put("config.yaml", "writer-rate: 100000\n")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{
		Args: []string{n.program, "agent", "--dev", "--api-addr", "127.0.0.1:0", "--credentials", "credentials.yaml", "--config", "config.yaml"}, Env: n.env, Dir: n.home,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	token := strings.TrimSpace(read(t, filepath.Join(n.home, "w.token")))
	api := revokdv1connect.NewRevocationServiceClient(&http.Client{Transport: bearer{h2c(t).Transport, func() string { return token }}}, p.URL)
	batch := &revokdv1.RevokeBatchRequest{}
	for i := range 1000 {
		batch.Items = append(batch.Items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": fmt.Sprint(i)}}}})
	}
	write := func(what string, want ...connect.Code) {
		t.Helper()
		for i, code := range want {
			if _, err := api.RevokeBatch(ctx, connect.NewRequest(batch)); err == nil && code != 0 || err != nil && connect.CodeOf(err) != code {
				t.Errorf("%s, batch %d: %v, want code %d", what, i, err, code)
			}
		}
	}
	hangup := func(want string) {
		t.Helper()
		before := strings.Count(p.Stderr(), want)
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		for strings.Count(p.Stderr(), want) == before {
			if ctx.Err() != nil {
				t.Fatalf("no %q; log:\n%s", want, p.Stderr())
			}
			time.Sleep(time.Millisecond) // the log comes through a pipe
		}
	}
	write("at the start", 0, 0, 0)
	put("config.yaml", "writer-rate: 50\n")
	hangup(": reloaded")
	write("a lower rate: a whole message at once, and no more", 0, connect.CodeResourceExhausted)
	put("config.yaml", "writer-rate: 100000\n")
	put("credentials.yaml", "tokens: [{name: x}]\n")
	hangup("nothing was reloaded")
	write("with a file that cannot be used nothing is taken", connect.CodeResourceExhausted)
	put("credentials.yaml", "tokens:\n"+string(entry))
	put("config.yaml", "writer-rate: 49\n")
	hangup("at least 50 records a second")
	write("nor with a rate that cannot be", connect.CodeResourceExhausted)
	put("config.yaml", "writer-rate: 100000\n")
	hangup(": reloaded")
	// The bucket has been filled at 50 a second until now: what is missing of a message comes in a hundredth of a second, not in twenty.
	if _, err := api.RevokeBatch(ctx, connect.NewRequest(batch)); err != nil {
		coded, ok := errors.AsType[*connect.Error](err)
		if !ok || coded.Code() != connect.CodeResourceExhausted || coded.Meta().Get("Retry-After") != "1" {
			t.Errorf("the first rate again: %v", err)
		}
	}
}
