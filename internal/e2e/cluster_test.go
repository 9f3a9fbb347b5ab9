package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// fleet is a cluster of real processes on loopback.
type fleet struct {
	t       *testing.T
	program string
	home    string
	args    []string
	nodes   []*member
	client  *http.Client
}

// member is one node of a fleet; its process changes when it is started again.
type member struct {
	name    string
	program string // empty: that of the fleet
	port    string // of the API, once it is known
	proc    *e2e.Process
	http    *http.Client // of a node that is a host of its own
	api     revokdv1connect.RevocationServiceClient
	adm     revokdv1connect.ClusterServiceClient
}

func newFleet(t *testing.T, n int, args ...string) *fleet {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	f := &fleet{t: t, program: program(t, ""), home: t.TempDir(), args: args, client: &http.Client{Transport: transport}}
	for i := range n {
		f.nodes = append(f.nodes, &member{name: fmt.Sprintf("n%d", i+1)})
	}
	for _, m := range f.nodes {
		f.start(m)
	}
	f.voters(n)
	return f
}

// start starts a node, again on its port if it had one, and waits until it is ready.
func (f *fleet) start(m *member) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	args := []string{f.program, "agent", "--dev", "--node-name", m.name, "--data-dir", f.home, "--api-addr", "127.0.0.1:" + max(m.port, "0")}
	for _, other := range f.nodes {
		if other != m && other.proc != nil {
			args = append(args, "--join", strings.TrimPrefix(other.proc.URL, "http://"))
		}
	}
	p, err := e2e.Start(ctx, e2e.Config{Args: append(args, f.args...), Env: []string{"HOME=" + f.home, "PATH=" + os.Getenv("PATH")}, Dir: f.home})
	if err != nil {
		f.t.Fatalf("%s: %v", m.name, err)
	}
	f.t.Cleanup(p.Kill)
	m.proc = p
	m.port = p.URL[strings.LastIndexByte(p.URL, ':')+1:]
	m.api = revokdv1connect.NewRevocationServiceClient(f.client, p.URL, connect.WithReadMaxBytes(16<<20))
	m.adm = revokdv1connect.NewClusterServiceClient(f.client, p.URL)
}

// kill ends a node as kill -9 does.
func (f *fleet) kill(m *member) {
	m.proc.Kill()
	m.proc = nil
}

// voters waits until all nodes that run agree on a list of n voters.
func (f *fleet) voters(n int) {
	f.t.Helper()
	f.until(fmt.Sprintf("%d voters", n), func() error {
		for _, m := range f.running() {
			res, err := m.adm.Members(f.t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
			if err != nil {
				return err
			}
			if got := len(res.Msg.GetVoters().GetNames()); got != n {
				return fmt.Errorf("%s knows %d: %v", m.name, got, res.Msg.GetVoters())
			}
		}
		return nil
	})
}

func (f *fleet) running() []*member {
	return slices.DeleteFunc(slices.Clone(f.nodes), func(m *member) bool { return m.proc == nil })
}

func (f *fleet) until(what string, ok func() error) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			for _, m := range f.running() {
				f.t.Logf("%s:\n%s", m.name, m.proc.Stderr())
			}
			f.t.Fatalf("never: %s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond) // between polls: leaves the processor to the nodes
	}
}

// revoke revokes one made-up token by its id on a node.
func (f *fleet) revoke(ctx context.Context, m *member, jti string, o *revokdv1.WriteOptions) (*revokdv1.Receipt, error) {
	res, err := m.api.Revoke(ctx, connect.NewRequest(&revokdv1.RevokeRequest{
		Target:  &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": jti}}},
		Options: o, ExpiresAt: inAnHour(),
	}))
	if err != nil {
		return receiptOf(err), err
	}
	return res.Msg.GetReceipt(), nil
}

// receiptOf returns the receipt that goes with the error of a write that was not confirmed widely enough.
func receiptOf(err error) *revokdv1.Receipt {
	var coded *connect.Error
	if !errors.As(err, &coded) {
		return nil
	}
	for _, d := range coded.Details() {
		if v, err := d.Value(); err == nil {
			if r, ok := v.(*revokdv1.Receipt); ok {
				return r
			}
		}
	}
	return nil
}

// check asks a node about a token by its id.
func (f *fleet) check(m *member, jti string) (*revokdv1.CheckResponse, error) {
	now := time.Now().Unix()
	payload := fmt.Appendf(nil, `{"iss":%q,"sub":"s","jti":%q,"iat":%d,"exp":%d}`, issuer, jti, now, now+3600)
	res, err := m.api.Check(f.t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// revoked waits until all nodes that run answer Revoked for all ids.
func (f *fleet) revoked(ids []string) {
	f.t.Helper()
	for _, m := range f.running() {
		for _, id := range ids {
			f.until(id+" on "+m.name, func() error {
				v, err := f.check(m, id)
				if err == nil && v.GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
					err = fmt.Errorf("%s", v)
				}
				return err
			})
		}
	}
}

// What one node acknowledges the others enforce; a node that was killed, and one that lost its data, catch up and vote again.
func TestCluster(t *testing.T) {
	f := newFleet(t, 3)
	var ids []string
	write := func(m *member, id string) {
		t.Helper()
		receipt, err := f.revoke(t.Context(), m, id, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM})
		if err != nil || len(receipt.GetConfirmed()) < 2 {
			t.Fatalf("%s on %s: %v %v", id, m.name, receipt, err)
		}
		ids = append(ids, id)
	}
	for i := range 30 {
		write(f.nodes[i%3], fmt.Sprint("first-", i))
	}
	f.revoked(ids)

	f.kill(f.nodes[1])
	for i := range 10 {
		write(f.nodes[2*(i%2)], fmt.Sprint("second-", i))
	}
	f.start(f.nodes[1])
	f.revoked(ids)

	f.kill(f.nodes[2])
	if err := os.RemoveAll(filepath.Join(f.home, "n3", "journal")); err != nil {
		t.Fatal(err)
	}
	write(f.nodes[0], "third")
	f.start(f.nodes[2])
	f.revoked(ids)
	// The new directory votes again once it has caught up: all of three acknowledge.
	f.until("all acknowledge", func() error {
		_, err := f.revoke(t.Context(), f.nodes[0], "fourth", &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL})
		return err
	})
}

// A node without a majority keeps what it is told, says that nobody has confirmed it, and its checks turn Unknown; when the others go on, so does it.
func TestClusterMinority(t *testing.T) {
	f := newFleet(t, 3, "--max-staleness", "2s", "--ack-timeout", "500ms")
	for _, m := range f.nodes[1:] {
		if err := m.proc.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	receipt, err := f.revoke(t.Context(), f.nodes[0], "lonely", nil)
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded || len(receipt.GetConfirmed()) != 1 || len(receipt.GetUnconfirmed()) != 2 {
		t.Fatalf("receipt %v, error %v", receipt, err)
	}
	f.until("a check is unknown", func() error {
		v, err := f.check(f.nodes[0], "other")
		if err == nil && v.GetUnknownCause() != "stale" {
			err = fmt.Errorf("%s", v)
		}
		return err
	})
	if v, err := f.check(f.nodes[0], "lonely"); err != nil || v.GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
		t.Fatalf("what is known to be revoked: %v %v", v, err)
	}
	for _, m := range f.nodes[1:] {
		if err := m.proc.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	f.revoked([]string{"lonely"})
	f.until("checks are active again", func() error {
		v, err := f.check(f.nodes[0], "other")
		if err == nil && v.GetVerdict() != revokdv1.Verdict_VERDICT_ACTIVE {
			err = fmt.Errorf("%s", v)
		}
		return err
	})
}

// All nodes are stopped and started in turn while writers go on: nothing that was acknowledged by a majority is ever called active
// later than the staleness allows, on any node.
func TestClusterRollingRestart(t *testing.T) {
	f := newFleet(t, 3, "--max-staleness", "2s")
	var mu sync.Mutex // guards what follows, and f.nodes' processes against the writers
	var ids []string
	acked := map[string]time.Time{}
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				mu.Lock()
				nodes := f.running()
				m := *nodes[(i+w)%len(nodes)]
				mu.Unlock()
				id := fmt.Sprintf("w%d-%d", w, i)
				if _, err := f.revoke(ctx, &m, id, nil); err == nil {
					mu.Lock()
					ids = append(ids, id)
					acked[id] = time.Now()
					mu.Unlock()
				}
			}
		})
	}
	// What was acknowledged longer ago than the staleness, asked for again and again, at nodes that are about to stop or have just started too.
	var checks atomic.Int64
	for k := range f.nodes {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				mu.Lock()
				m, known := *f.nodes[k], len(ids) > 0
				id, late := "", false
				if known {
					id = ids[len(ids)-1-(i*i)%len(ids)]
					late = time.Since(acked[id]) > 2*time.Second
				}
				mu.Unlock()
				if m.proc == nil || !late {
					time.Sleep(time.Millisecond) // there is nothing to ask, or nobody
					continue
				}
				v, err := f.check(&m, id)
				if err != nil {
					continue // it stops
				}
				if checks.Add(1); v.GetVerdict() == revokdv1.Verdict_VERDICT_ACTIVE {
					t.Errorf("%s is active on %s", id, m.name)
					return
				}
			}
		})
	}
	for _, m := range f.nodes {
		time.Sleep(time.Second) // with all nodes
		mu.Lock()
		p := m.proc
		m.proc = nil
		mu.Unlock()
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(t.Context()); err != nil || code != 0 {
			t.Fatalf("%s ended with %d %v\n%s", m.name, code, err, p.Stderr())
		}
		restarted := *m
		f.start(&restarted)
		mu.Lock()
		*m = restarted
		mu.Unlock()
	}
	time.Sleep(3 * time.Second) // what was written while the last one was away is asked for too
	stop()
	writers.Wait()
	if len(ids) < 100 || checks.Load() < 1000 {
		t.Fatalf("only %d writes and %d checks", len(ids), checks.Load())
	}
	t.Logf("%d revocations acknowledged by a majority, %d checks", len(ids), checks.Load())
	f.revoked(ids)
}

func inAnHour() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(time.Hour)) }
