package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/history"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// noLeaks looks, when everything that the test has started must have ended, whether it has.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// addrs lists the APIs of nodes.
func addrs(nodes ...*member) []string {
	var list []string
	for _, m := range nodes {
		list = append(list, "127.0.0.1:"+m.port)
	}
	return list
}

// open opens a replica and waits until it is level with a node.
func open(t *testing.T, cfg replica.Config) *replica.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := replica.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Ready(ctx); err != nil {
		t.Fatalf("%v: %+v", err, c.Status())
	}
	return c
}

func claimsOf(jti string, iat time.Time) *revocation.Claims {
	c := new(revocation.Claims)
	for name, v := range map[string]string{"iss": issuer, "sub": "s", "jti": jti} {
		if err := c.Set(name, revocation.String(v)); err != nil {
			panic(err) // constants of these tests
		}
	}
	c.SetIssuedAt(iat.UnixMilli())
	c.SetExpiresAt(iat.Add(time.Hour).UnixMilli())
	return c
}

func verdict(c *replica.Client, jti string) revocation.Status {
	return c.Check(claimsOf(jti, time.Now())).Status
}

// by returns the node of an address.
func (f *fleet) by(addr string) *member {
	for _, m := range f.nodes {
		if addr == "127.0.0.1:"+m.port {
			return m
		}
	}
	return nil
}

// A receipt says who holds a write, at each level; when a voter is silent, all is not reached and a majority is.
func TestClientReceipts(t *testing.T) {
	noLeaks(t)
	f := newFleet(t, 3)
	c := open(t, replica.Config{Addrs: addrs(f.nodes[0])})
	token := replica.Match{"iss": issuer, "jti": "r"}
	for level, least := range map[replica.Ack]int{replica.AckLocal: 1, replica.AckQuorum: 2, replica.AckDefault: 2, replica.AckAll: 3} {
		r, err := c.Revoke(t.Context(), token, replica.Acknowledged(level, 10*time.Second))
		if err != nil || !r.Durable || len(r.Confirmed) < least || level != replica.AckDefault && r.Ack < level {
			t.Errorf("level %d: %+v %v", level, r, err)
		}
	}
	if verdict(c, "r") != revocation.Revoked {
		t.Error("a write is not seen by its own client")
	}
	if err := f.nodes[2].proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r, err := c.Revoke(t.Context(), replica.Match{"iss": issuer, "jti": "r2"}, replica.Acknowledged(replica.AckAll, 3*time.Second))
	if !errors.Is(err, replica.ErrNotConfirmed) || !slices.Equal(r.Unconfirmed, []string{"n3"}) || len(r.Confirmed) != 2 {
		t.Errorf("with a silent voter: %+v %v", r, err)
	}
	if verdict(c, "r2") != revocation.Revoked {
		t.Error("what was not confirmed is durable on one node all the same")
	}
	if r, err := c.Revoke(t.Context(), replica.Match{"iss": issuer, "jti": "r3"}, replica.Acknowledged(replica.AckQuorum, 10*time.Second)); err != nil || len(r.Confirmed) != 2 {
		t.Errorf("a majority: %+v %v", r, err)
	}
	some := func(yield func(replica.Item) bool) {
		for i := range 10 {
			if !yield(replica.Item{Match: replica.Match{"iss": issuer, "jti": fmt.Sprint("all-", i)}}) {
				return
			}
		}
	}
	if b, err := c.RevokeAll(t.Context(), some, nil, replica.Acknowledged(replica.AckAll, 3*time.Second)); !errors.Is(err, replica.ErrNotConfirmed) || b.Acknowledged != 0 || len(b.Receipt.Confirmed) != 2 {
		t.Errorf("in bulk: %+v %v", b, err)
	}
	if err := f.nodes[2].proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if b, err := c.RevokeAll(t.Context(), some, nil, replica.Acknowledged(replica.AckAll, 10*time.Second)); err != nil || b.Acknowledged != 10 || len(b.Receipt.Confirmed) != 3 {
		t.Errorf("in bulk, all: %+v %v", b, err)
	}
}

// relay stands between a client and a node, and can lose what the node says.
type relay struct {
	ln   net.Listener
	mute atomic.Bool
	mu   sync.Mutex // guards conns and to
	to   string
	open []net.Conn
	work sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, to: to}
	r.work.Go(r.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		r.cut()
		r.work.Wait()
	})
	return r
}

func (r *relay) accept() {
	for {
		a, err := r.ln.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", r.to)
		if err != nil {
			_ = a.Close()
			continue
		}
		r.mu.Lock()
		r.open = append(r.open, a, b)
		r.mu.Unlock()
		r.work.Go(func() { r.pipe(b, a, false) })
		r.work.Go(func() { r.pipe(a, b, true) })
	}
}

func (r *relay) pipe(to, from net.Conn, answers bool) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 && !(answers && r.mute.Load()) {
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends all connections.
func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.open {
		_ = c.Close()
	}
	r.open = nil
}

// A node is killed after it has written and before its answer arrives: the client carries the call out on another node, once for
// everybody, and a token issued between the two stays good.
func TestClientAnswerLost(t *testing.T) {
	noLeaks(t)
	f := newFleet(t, 3)
	relays := map[string]*relay{}
	var list []string
	for _, m := range f.nodes {
		r := newRelay(t, "127.0.0.1:"+m.port)
		relays[r.ln.Addr().String()] = r
		list = append(list, r.ln.Addr().String())
	}
	c := open(t, replica.Config{Addrs: list})
	for round := range 3 {
		f.until("the replica has a node", func() error {
			if c.Status().Node == "" {
				return errors.New("none")
			}
			return nil
		})
		used := relays[c.Status().Node]
		m := f.by(used.to)
		used.mute.Store(true)
		sub := fmt.Sprint("user-", round)
		type outcome struct {
			r   replica.Receipt
			err error
		}
		done := make(chan outcome, 1)
		go func() {
			r, err := c.RevokeSubject(t.Context(), issuer, sub)
			done <- outcome{r, err}
		}()
		old := claimsFor(sub, time.Now().Add(-time.Minute))
		var other *member
		for _, o := range f.running() {
			if o != m {
				other = o
			}
		}
		f.until("the write is there without its answer", func() error {
			payload := fmt.Appendf(nil, `{"iss":%q,"sub":%q,"iat":%d,"exp":%d}`, issuer, sub, time.Now().Unix()-60, time.Now().Unix()+60)
			res, err := other.api.Check(t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}))
			if err == nil && res.Msg.GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
				err = fmt.Errorf("%s", res.Msg)
			}
			return err
		})
		fresh := claimsFor(sub, time.Now().Add(time.Millisecond)) // issued after the first write
		f.kill(m)
		used.cut()
		o := <-done
		if o.err != nil || o.r.Outcome != "covered" && o.r.Outcome != "revoked" {
			t.Fatalf("round %d: %+v %v", round, o.r, o.err)
		}
		if v := c.Check(old); v.Status != revocation.Revoked {
			t.Errorf("round %d: an older token: %+v", round, v)
		}
		if v := c.Check(fresh); v.Status == revocation.Revoked {
			t.Errorf("round %d: the second try has moved the cutoff over a token issued after the first", round)
		}
		used.mute.Store(false)
		f.start(m)
	}
}

func claimsFor(sub string, iat time.Time) *revocation.Claims {
	c := claimsOf("t", iat)
	if err := c.Set("sub", revocation.String(sub)); err != nil {
		panic(err) // a constant of these tests
	}
	return c
}

// The node in use is killed in the middle of a bulk call, again and again: everything is there in the end, on a majority.
func TestClientBulkFailover(t *testing.T) {
	noLeaks(t)
	f := newFleet(t, 3)
	c := open(t, replica.Config{Addrs: addrs(f.nodes...)})
	const n = 100_000
	var acked atomic.Int64
	type outcome struct {
		b   replica.Bulk
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		b, err := c.RevokeAll(t.Context(), func(yield func(replica.Item) bool) {
			for i := range n {
				if !yield(replica.Item{Match: replica.Match{"iss": issuer, "jti": fmt.Sprint("bulk-", i)}}) {
					return
				}
			}
		}, func(b replica.Bulk) { acked.Store(b.Acknowledged) }, replica.Acknowledged(replica.AckQuorum, 10*time.Second))
		done <- outcome{b, err}
	}()
	var o outcome
	kills := 0
	for ended := false; !ended; {
		select {
		case o = <-done:
			ended = true
			continue
		case <-time.After(300 * time.Millisecond): // long enough for some of it to be written
		}
		if m := f.by(c.Status().Node); m != nil && kills < 3 {
			f.kill(m)
			kills++
			f.start(m)
		}
	}
	if o.err != nil || o.b.Acknowledged != n || o.b.Refused != 0 || o.b.Revoked+o.b.Covered != n {
		t.Fatalf("%+v %v", o.b, o.err)
	}
	if kills == 0 {
		t.Fatal("invalid run: no node was killed meanwhile")
	}
	t.Logf("%d items, %d kills: %d revoked, %d covered", n, kills, o.b.Revoked, o.b.Covered)
	missing := 0
	for i := range n {
		if verdict(c, fmt.Sprint("bulk-", i)) != revocation.Revoked {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged items are not there", missing, n)
	}
}

// load revokes on nodes that run, and remembers since when a majority has acknowledged what.
type load struct {
	mu      sync.Mutex // guards what follows, and the processes of the fleet against the writers
	ids     []string
	acked   map[string]time.Time
	refused int
	took    []time.Duration
}

func (l *load) run(ctx context.Context, f *fleet, w int, pause time.Duration) {
	for i := 0; ctx.Err() == nil; i++ {
		l.mu.Lock()
		nodes := f.running()
		m := *nodes[(i+w)%len(nodes)]
		l.mu.Unlock()
		id := fmt.Sprintf("w%d-%d", w, i)
		began := time.Now()
		_, err := f.revoke(ctx, &m, id, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM})
		now := time.Now()
		l.mu.Lock()
		if err == nil {
			l.ids = append(l.ids, id)
			l.acked[id] = now
			l.took = append(l.took, now.Sub(began))
		} else {
			l.refused++
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// late returns an id that a majority acknowledged more than d ago, of those that were the latest then.
func (l *load) late(d time.Duration, n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := len(l.ids)
	for end > 0 && time.Since(l.acked[l.ids[end-1]]) <= d {
		end--
	}
	return slices.Clone(l.ids[max(0, end-n):end])
}

// TestClientFailover: the node in use is killed as kill -9 does, under load, round after round. Nothing that a majority acknowledged is
// ever called active by the replica later than MaxStaleness afterwards, and a resume transfers the difference only.
func TestClientFailover(t *testing.T) {
	noLeaks(t)
	rounds := fromEnv(t, "REVOKD_FAILOVER_ROUNDS", 3)
	const staleness = 2 * time.Second
	f := newFleet(t, 3, "--max-staleness", staleness.String())
	first := open(t, replica.Config{Addrs: addrs(f.nodes[0])})
	const base = 50_000
	if _, err := first.RevokeAll(t.Context(), func(yield func(replica.Item) bool) {
		for i := range base {
			if !yield(replica.Item{Match: replica.Match{"iss": issuer, "jti": fmt.Sprint("base-", i)}}) {
				return
			}
		}
	}, nil); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	c := open(t, replica.Config{Addrs: addrs(f.nodes...), MaxStaleness: staleness, ProbeEvery: 100 * time.Millisecond})
	whole := c.Status().BytesIn

	l := &load{acked: map[string]time.Time{}}
	ctx, stop := context.WithCancel(t.Context())
	writing, stopWriting := context.WithCancel(ctx)
	var work, writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() { l.run(writing, f, w, 2*time.Millisecond) })
	}
	var checks, unknown, active atomic.Int64
	work.Go(func() {
		for ctx.Err() == nil {
			for _, id := range l.late(staleness, 50) {
				checks.Add(1)
				switch verdict(c, id) {
				case revocation.Active:
					active.Add(1)
					t.Errorf("%s is active: %+v", id, c.Status())
					return
				case revocation.Unknown:
					unknown.Add(1)
				}
			}
			time.Sleep(5 * time.Millisecond) // leaves the processor to the nodes
		}
	})
	defer work.Wait()
	defer writers.Wait()
	defer stop()

	fresh := func() error {
		if s := c.Status(); s.Node == "" || s.QuorumAge > staleness/2 || s.Behind > 0 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}
	var took, bytes, again []time.Duration // bytes as a Duration: quantiles
	for range rounds {
		f.until("the replica is fresh", fresh)
		s := c.Status()
		m := f.by(s.Node)
		l.mu.Lock()
		p := m.proc
		m.proc = nil
		l.mu.Unlock()
		p.Kill()
		began := time.Now()
		f.until("another node has taken over", func() error {
			if now := c.Status(); now.Sessions == s.Sessions {
				return errors.New("the same session")
			}
			return fresh()
		})
		took = append(took, time.Since(began))
		bytes = append(bytes, time.Duration(c.Status().BytesIn-s.BytesIn))
		began = time.Now()
		restarted := *m
		f.start(&restarted)
		again = append(again, time.Since(began))
		l.mu.Lock()
		*m = restarted
		l.mu.Unlock()
		// A session that ends within a second makes the client wait longer for the next: that is for nodes that cannot hold one.
		time.Sleep(1200 * time.Millisecond)
	}
	stopWriting()
	writers.Wait()
	f.until("the last writes have been checked beyond MaxStaleness", func() error {
		if checked := checks.Load(); len(l.late(staleness, len(l.ids))) < len(l.ids) || checked == 0 {
			return fmt.Errorf("%d checks", checked)
		}
		return nil
	})
	stop()
	work.Wait()
	if checks.Load() == 0 || len(l.ids) < 10*rounds {
		t.Fatalf("invalid run: %d checks, %d writes", checks.Load(), len(l.ids))
	}
	slices.Sort(bytes)
	saved(t, history.Report{Nodes: 3, Rounds: rounds, Counts: history.Counts{
		Acknowledged: int64(len(l.ids)), Checks: checks.Load(), Judged: checks.Load(), Faults: map[string]int{"kill": rounds}, Broken: map[history.Kind]int{history.Late: int(active.Load())},
	}})
	t.Logf("%d rounds; %d revocations acknowledged by a majority (%s), %d refused; %d checks of those beyond MaxStaleness: %d unknown, %d active",
		rounds, len(l.ids), quantiles(l.took), l.refused, checks.Load(), unknown.Load(), active.Load())
	t.Logf("fresh again after: %s; a node started again: %s", quantiles(took), quantiles(again))
	t.Logf("bytes until fresh, the stream's own included: p50 %d, most %d; a whole copy of %d records: %d", bytes[len(bytes)/2], bytes[len(bytes)-1], base, whole)
	if most := uint64(bytes[len(bytes)-1]); most > whole/2 {
		t.Errorf("a resume transferred %d bytes, a whole copy is %d", most, whole)
	}
	f.until("everything has arrived", func() error {
		for _, id := range l.ids {
			if v := verdict(c, id); v != revocation.Revoked {
				return fmt.Errorf("%s is %s", id, v)
			}
		}
		return nil
	})
}

// A revocation on one node is visible in the replica of a client of another one.
func TestClientVisible(t *testing.T) {
	noLeaks(t)
	f := newFleet(t, 3)
	c := open(t, replica.Config{Addrs: addrs(f.nodes[1])})
	f.visible(t, c, f.nodes[0], 300, "a client of another node")
}

// visible measures from the call on m, and from its answer, until c says Revoked.
func (f *fleet) visible(t *testing.T, c *replica.Client, m *member, n int, what string) {
	t.Helper()
	var call, ack []time.Duration
	for i := range n {
		id := fmt.Sprintf("seen-%s-%d", what, i)
		began := time.Now()
		if _, err := f.revoke(t.Context(), m, id, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}); err != nil {
			t.Fatal(err)
		}
		acked := time.Now()
		for verdict(c, id) != revocation.Revoked {
			if time.Since(acked) > patience {
				t.Fatalf("%s: not visible: %+v", id, c.Status())
			}
			runtime.Gosched()
		}
		seen := time.Now()
		call, ack = append(call, seen.Sub(began)), append(ack, seen.Sub(acked))
	}
	t.Logf("%s: visible after the local acknowledgement: %s; after the call: %s", what, quantiles(ack), quantiles(call))
}

// TestClientCrowd: a thousand replicas lose their node at once. All resume elsewhere, and the cluster stays healthy meanwhile.
func TestClientCrowd(t *testing.T) {
	noLeaks(t)
	crowd := fromEnv(t, "REVOKD_CROWD", 200)
	f := newFleet(t, 3)
	// All of them on n1: the others are away while they connect.
	f.kill(f.nodes[1])
	f.kill(f.nodes[2])
	all := make([]*replica.Client, crowd)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	var opening sync.WaitGroup
	places := make(chan struct{}, 32)
	for i := range all {
		opening.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			c, err := replica.Open(ctx, replica.Config{Addrs: addrs(f.nodes...), ProbeEvery: 2 * time.Second})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := c.Ready(ctx); err != nil {
				t.Error(err)
			}
			all[i] = c
		})
	}
	opening.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("%d replicas connected to one node after %v", crowd, time.Since(began).Round(time.Millisecond))
	f.start(f.nodes[1])
	f.start(f.nodes[2])
	on := func(addr string) (n, fresh int, bytes uint64) {
		for _, c := range all {
			s := c.Status()
			if s.Node == addr {
				n++
			}
			if s.Node != "" && s.Node != addr && c.Check(claimsOf("nobody", time.Now())).Status == revocation.Active {
				fresh++
			}
			bytes += s.BytesIn
		}
		return n, fresh, bytes
	}
	old := addrs(f.nodes[0])[0]
	n, _, _ := on(old)
	if n < crowd*9/10 {
		for _, c := range all {
			if s := c.Status(); s.Node != old {
				t.Fatalf("invalid run: only %d of %d are on one node; one that is not: %+v", n, crowd, s)
			}
		}
	}
	f.until("all are fresh", func() error {
		for _, c := range all {
			if v := c.Check(claimsOf("nobody", time.Now())); v.Status != revocation.Active {
				return fmt.Errorf("%+v", v)
			}
		}
		return nil
	})
	f.visible(t, all[0], f.nodes[1], 100, fmt.Sprintf("with %d replicas", crowd))

	l := &load{acked: map[string]time.Time{}}
	loadCtx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	_, _, before := on(old)
	f.kill(f.nodes[0])
	began = time.Now()
	work.Go(func() { l.run(loadCtx, f, 0, time.Millisecond) })
	deadline := time.Now().Add(2 * patience)
	for {
		_, fresh, _ := on(old)
		if fresh == crowd {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d are fresh elsewhere", fresh, crowd)
		}
		time.Sleep(20 * time.Millisecond) // leaves the processor to the nodes
	}
	took := time.Since(began)
	stop()
	work.Wait()
	_, _, after := on(old)
	t.Logf("all fresh on other nodes after %v, %d bytes each; meanwhile %d writes acknowledged by a majority, %d not: %s",
		took.Round(time.Millisecond), (after-before)/uint64(crowd), len(l.ids), l.refused, quantiles(l.took))
	if len(l.ids) == 0 {
		t.Error("no write was acknowledged meanwhile")
	}
	f.revoked(l.ids[max(0, len(l.ids)-5):])
}
