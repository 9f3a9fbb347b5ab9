package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/journal"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// patience bounds waits for a node. Ten million records take seconds on an idle machine, and minutes on a busy one.
const patience = 10 * time.Minute

// lifetime of the revocations that are measured: none expires during a run.
const lifetime = 24 * time.Hour

// cluster is real processes of revokd on loopback.
type cluster struct {
	program string
	home    string
	args    []string
	creds   []*syscall.Credential
	nodes   []*agent
	client  *http.Client
}

// agent is one node; its process changes when it is started again.
type agent struct {
	name string
	port string
	proc *e2e.Process // nil: it does not run
	api  revokdv1connect.RevocationServiceClient
	adm  revokdv1connect.ClusterServiceClient
	repl revokdv1connect.ReplicationServiceClient
}

// h2c is a client that speaks HTTP/2 without TLS, over as many connections as there are such clients.
func h2c() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}

// buildRevokd builds the program, once for a run.
func buildRevokd(ctx context.Context, root, dir string) (string, error) {
	path := filepath.Join(dir, "revokd")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/revokd")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, lastLines(string(out)))
	}
	return path, nil
}

// newCluster starts n nodes and waits until all of them vote.
func newCluster(ctx context.Context, program, home string, n int, creds []*syscall.Credential, args ...string) (*cluster, error) {
	c := &cluster{program: program, home: home, args: args, creds: creds, client: h2c()}
	for i := range n {
		c.nodes = append(c.nodes, &agent{name: fmt.Sprintf("n%d", i+1)})
	}
	for _, a := range c.nodes {
		if err := c.start(ctx, a); err != nil {
			c.stop()
			return nil, err
		}
	}
	if err := c.voters(ctx, n); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// start starts a node, on its port and its data if it had any, and waits until it is ready.
func (c *cluster) start(ctx context.Context, a *agent) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args := []string{c.program, "agent", "--dev", "--node-name", a.name, "--data-dir", c.home, "--api-addr", "127.0.0.1:" + max(a.port, "0"), "--log-level", "warn"}
	for _, other := range c.nodes {
		if other != a && other.proc != nil {
			args = append(args, "--join", strings.TrimPrefix(other.proc.URL, "http://"))
		}
	}
	as := at(c.creds, slices.Index(c.nodes, a))
	p, err := e2e.Start(ctx, e2e.Config{
		Args: append(args, c.args...), Env: []string{"HOME=" + c.home, "PATH=" + os.Getenv("PATH")}, Dir: c.home, Sys: dieWithParent(as),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	a.proc = p
	a.port = p.URL[strings.LastIndexByte(p.URL, ':')+1:]
	a.api = revokdv1connect.NewRevocationServiceClient(c.client, p.URL, connect.WithGRPC(), connect.WithReadMaxBytes(16<<20))
	a.adm = revokdv1connect.NewClusterServiceClient(c.client, p.URL)
	a.repl = revokdv1connect.NewReplicationServiceClient(c.client, p.URL, connect.WithGRPC())
	return nil
}

// end ends a node orderly, so that it can be started again on its data.
func (a *agent) end(ctx context.Context) error {
	p := a.proc
	if p == nil {
		return nil
	}
	a.proc = nil
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	code, err := p.Wait(ctx)
	if err != nil || code != 0 {
		p.Kill()
		return fmt.Errorf("%s: exit code %d %w: %s", a.name, code, err, lastLines(p.Stderr()))
	}
	return nil
}

func (c *cluster) stop() {
	if c == nil {
		return
	}
	var wg sync.WaitGroup
	for _, a := range c.nodes {
		if a.proc != nil {
			wg.Go(func() { a.proc.Kill(); a.proc = nil })
		}
	}
	wg.Wait()
	c.client.CloseIdleConnections()
}

func (c *cluster) pids() (list []int) {
	for _, a := range c.nodes {
		if a.proc != nil {
			list = append(list, a.proc.Pid())
		}
	}
	return list
}

func (c *cluster) voters(ctx context.Context, n int) error {
	return until(ctx, patience, func() error {
		for _, a := range c.nodes {
			res, err := a.adm.Members(ctx, connect.NewRequest(&revokdv1.MembersRequest{}))
			if err != nil {
				return err
			}
			if got := len(res.Msg.GetVoters().GetNames()); got != n {
				return fmt.Errorf("%s knows %d voters of %d", a.name, got, n)
			}
		}
		return nil
	})
}

// hold waits until nodes hold so many records.
func (c *cluster) hold(ctx context.Context, limit time.Duration, count int64, nodes ...*agent) error {
	for _, a := range nodes {
		if err := until(ctx, limit, func() error {
			n, err := a.records(ctx)
			if err == nil && n < count {
				err = fmt.Errorf("%s holds %d of %d", a.name, n, count)
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (a *agent) records(ctx context.Context) (int64, error) {
	res, err := a.api.Status(ctx, connect.NewRequest(&revokdv1.StatusRequest{}))
	if err != nil {
		return 0, err
	}
	return res.Msg.GetRecords(), nil
}

// key returns the cluster's fingerprint key.
func (a *agent) key(ctx context.Context) (revocation.Key, error) {
	res, err := a.adm.Identity(ctx, connect.NewRequest(&revokdv1.IdentityRequest{}))
	if err != nil {
		return revocation.Key{}, err
	}
	return revocation.Key(res.Msg.GetFingerprintKey()), nil
}

// until asks again every few milliseconds.
func until(ctx context.Context, limit time.Duration, ok func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s: %w", limit, err)
		}
		time.Sleep(2 * time.Millisecond) // between two questions
	}
}

// revokeRequest revokes one token by its id.
func revokeRequest(id string) *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": id}}},
		ExpiresAt: timestamppb.New(time.Now().Add(lifetime)),
	}
}

func localAck() *revokdv1.WriteOptions {
	return &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}
}

// stream revokes the ids from one number to another, in one stream of calls of a thousand, and returns when all are acknowledged.
func (a *agent) stream(ctx context.Context, from, to int) error {
	s := a.api.RevokeStream(ctx)
	answered := make(chan error, 1)
	var revoked int64
	go func() {
		for {
			res, err := s.Receive()
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				answered <- err
				return
			}
			revoked = res.GetRevoked() + res.GetCovered()
		}
	}()
	for first := from; first < to; first += 1000 {
		req := new(revokdv1.RevokeStreamRequest)
		if first == from {
			req.Options = localAck()
		}
		for i := first; i < min(first+1000, to); i++ {
			req.Items = append(req.Items, revokeRequest(key(i)))
		}
		if err := s.Send(req); err != nil {
			return errors.Join(err, <-answered)
		}
	}
	if err := s.CloseRequest(); err != nil {
		return err
	}
	if err := <-answered; err != nil {
		return err
	}
	if revoked != int64(to-from) {
		return fmt.Errorf("%d of %d were revoked", revoked, to-from)
	}
	return nil
}

// fillJournal adds records to the journal of a node that does not run, as the node would have over hours: its format is public. It must hold one
// already, so that shape and origin are there.
func fillJournal(ctx context.Context, dir string, k revocation.Key, from, to int) error {
	const entry = revocation.RecordSize + 8 // the dot behind it
	j, err := journal.Open(journal.Config{Dir: dir, RecordSize: entry, KeyID: uint64(k.ID())})
	if err != nil {
		return err
	}
	defer j.Close()
	var most uint64
	if _, err := j.Replay(ctx, func(r []byte) error {
		for ; len(r) > 0; r = r[entry:] {
			most = max(most, binary.BigEndian.Uint64(r[revocation.RecordSize:]))
		}
		return nil
	}, nil); err != nil {
		return err
	}
	if most == 0 {
		return errors.New("the journal holds no record to go on from")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	of, err := newRecords(k, "jti", time.Now().Add(lifetime))
	if err != nil {
		return err
	}
	const batch = 10_000
	for ; from < to; from += batch {
		all := make([]byte, 0, batch*entry)
		for i := from; i < min(from+batch, to); i++ {
			r, err := of.record(key(i))
			if err != nil {
				return err
			}
			if all, err = r.AppendBinary(all); err != nil {
				return err
			}
			most++
			all = binary.BigEndian.AppendUint64(all, most)
		}
		if err := j.Append(ctx, &journal.Batch{Records: all}); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

// filled starts a lone node that holds key(0) to key(n-1).
func filled(ctx context.Context, program, home string, n int, args ...string) (*cluster, error) {
	c, err := newCluster(ctx, program, home, 1, nil, args...)
	if err != nil {
		return nil, err
	}
	a := c.nodes[0]
	if err := c.refill(ctx, a, 0, n); err != nil {
		c.stop()
		return nil, err
	}
	return c, c.hold(ctx, patience, int64(n), a)
}

// refill adds records to a lone node that runs, from a number on; it is restarted meanwhile.
func (c *cluster) refill(ctx context.Context, a *agent, from, to int) error {
	if err := a.stream(ctx, from, from+1); err != nil {
		return err
	}
	k, err := a.key(ctx)
	if err != nil {
		return err
	}
	if err := a.end(ctx); err != nil {
		return err
	}
	if err := fillJournal(ctx, filepath.Join(c.home, a.name, "journal"), k, from+1, to); err != nil {
		return err
	}
	return c.start(ctx, a)
}
