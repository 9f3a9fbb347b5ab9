package client

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a lone node behind its API.
type server struct {
	node *node.Node
	addr string
	api  *api.Server
	stop func()

	written map[replication.OriginID]uint64 // by revoke
}

func newServer(t *testing.T, addr string, change ...func(*api.Config)) *server {
	t.Helper()
	key := revocation.Key{1, 2, 3}
	n, err := node.New(node.Config{Name: "n1", Durability: node.DurabilityMemory, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{{
		Name: "i", Algorithms: []string{"HS256"}, KeysJSON: []byte(`{"keys":[{"kty":"oct","kid":"k","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}`),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := api.Config{Node: n, Verifier: verifier, AnyIssuer: true, Identity: func() *revokdv1.IdentityResponse {
		return &revokdv1.IdentityResponse{FingerprintKey: key[:]}
	}}
	for _, f := range change {
		f(&cfg)
	}
	s, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- n.Run(ctx) }()
	go func() { ended <- s.Serve(ctx, ln) }()
	sv := &server{node: n, addr: ln.Addr().String(), api: s, written: make(map[replication.OriginID]uint64)}
	stopped := false
	sv.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(sv.stop)
	return sv
}

func claims(t testing.TB, jti string) *revocation.Claims {
	t.Helper()
	now := time.Now()
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"alice","jti":%q,"iat":%d,"exp":%d}`, jti, now.Unix()-10, now.Unix()+3600))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open(t testing.TB, cfg Config) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := Open(ctx, cfg)
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

func want(t testing.TB, c *Client, jti string, status revocation.Status) {
	t.Helper()
	if v := c.Check(claims(t, jti)); v.Status != status {
		t.Fatalf("%s is %s (%s), want %s: %+v", jti, v.Status, v.Cause, status, c.Status())
	}
}

// What is revoked before and after the replica was opened is known to it; its own writes at once.
func TestClient(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	a := open(t, Config{Addrs: []string{s.addr}})
	want(t, a, "t1", revocation.Active)
	receipt, err := a.Revoke(t.Context(), Match{"iss": "i", "jti": "t1"}, Reason("logout"), ExpiresAt(time.Now().Add(time.Hour)))
	if err != nil || receipt.Outcome != "revoked" {
		t.Fatalf("%+v %v", receipt, err)
	}
	want(t, a, "t1", revocation.Revoked)
	b := open(t, Config{Addrs: []string{s.addr}})
	want(t, b, "t1", revocation.Revoked)
	if _, err := a.RevokeSubject(t.Context(), "i", "alice"); err != nil {
		t.Fatal(err)
	}
	want(t, a, "t2", revocation.Revoked)
}

// A replica that has not copied everything yet calls nothing active, whatever freshness is asked for. What it has is revoked.
func TestNotReady(t *testing.T) {
	for name, mode := range map[string]Mode{"full": Full, "filter": Filter} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "127.0.0.1:0")
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,jti=dead"), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()})
			c := open(t, Config{Addrs: []string{s.addr}, Mode: mode, AskTimeout: 10 * time.Second})
			level(t, c, s)
			want(t, c, "alive", revocation.Active)
			c.ready.Store(false) // as it was before the last record came
			for _, f := range []Freshness{Quorum, All, Any} {
				if v := c.CheckFresh(claims(t, "alive"), CheckOptions{Freshness: f}); v.Status != revocation.Unknown || v.Cause != revocation.CauseNotReady {
					t.Errorf("freshness %d: %+v", f, v)
				}
			}
			if mode == Full {
				want(t, c, "dead", revocation.Revoked)
			}
		})
	}
}

// A replica whose node is gone answers from memory until its view is too old, then Unknown, and goes on when the node is back.
func TestNodeGone(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}, MaxStaleness: 300 * time.Millisecond, MaxBackoff: 100 * time.Millisecond})
	want(t, c, "t1", revocation.Active)
	s.stop()
	deadline := time.Now().Add(10 * time.Second)
	for c.Check(claims(t, "t1")).Cause != revocation.CauseStale {
		if time.Now().After(deadline) {
			t.Fatalf("the view never grows old: %+v", c.Status())
		}
		time.Sleep(10 * time.Millisecond) // between polls
	}
	newServer(t, s.addr)
	for c.Check(claims(t, "t1")).Status != revocation.Active {
		if time.Now().After(deadline) {
			t.Fatalf("never fresh again: %+v", c.Status())
		}
		time.Sleep(10 * time.Millisecond) // between polls
	}
}

// moved is a clock whose wall hand is moved by hand.
type moved struct {
	clock.Clock
	by atomic.Int64
}

func (m *moved) Now() time.Time { return m.Clock.Now().Add(time.Duration(m.by.Load())) }

// A replica on a machine that was stopped by its host, so that its monotonic clock stood still, does not take its view for fresh, and forgets nothing by it.
func TestStoppedMachine(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	clk := &moved{Clock: clock.System()}
	c := open(t, Config{Addrs: []string{s.addr}, clock: clk})
	want(t, c, "t1", revocation.Active)
	s.stop()
	want(t, c, "t1", revocation.Active) // within MaxStaleness
	guarded := c.now.Load()
	clk.by.Store(int64(31 * time.Second))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // the wall clock is looked at once a millisecond
		if v := c.Check(claims(t, "t1")); v.Cause == revocation.CauseStale && v.Age > 30*time.Second {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the view never grows old: %+v", c.Status())
		}
	}
	time.Sleep(250 * time.Millisecond) // two ticks: what expires is told the time there
	if n := c.now.Load() - guarded; n > 10_000 {
		t.Errorf("%d ms have passed for what expires", n)
	}
	if st := c.Status(); st.QuorumAge < 30*time.Second {
		t.Errorf("the view is %s old", st.QuorumAge)
	}
}

// dialer counts connections.
type dialer struct{ open, opened atomic.Int64 }

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.open.Add(1)
	d.opened.Add(1)
	return &counted{Conn: c, open: &d.open}, nil
}

// counted is a connection that is counted while it is open.
type counted struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// When Close has returned, or Open has failed, no connection is left, whenever that was.
func TestCloseLeavesNoConnection(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	var d dialer
	cfg := Config{Addrs: []string{s.addr}, ProbeEvery: 10 * time.Millisecond, Dial: d.dial}
	for i := range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*20*time.Microsecond)
		c, err := Open(ctx, cfg)
		if err == nil {
			_ = c.Ready(ctx) // as far as it has come
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if n := d.open.Load(); n != 0 {
			t.Fatalf("%d connections are open after client %d (%v)", n, i, err)
		}
	}
	if n := d.opened.Load(); n < 10 {
		t.Fatalf("%d connections were opened", n)
	}
}

// A client that begins needs one connection, though it knows of several nodes, and one that has gone over to another node keeps none to the first.
func TestOneConnection(t *testing.T) {
	cfg := Config{Addrs: []string{newServer(t, "127.0.0.1:0").addr, newServer(t, "127.0.0.1:0").addr}, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond}
	var d dialer
	cfg.Dial = d.dial
	var c *Client
	for i := range int64(8) {
		c = open(t, cfg)
		if n := d.opened.Load(); n != i+1 {
			t.Fatalf("%d connections for %d clients", n, i+1)
		}
	}
	moves := 0
	for moves < 3 {
		before := c.Status()
		c.mu.Lock()
		c.stream.cancel() // the session ends, not the connection
		c.mu.Unlock()
		now := before
		for deadline := time.Now().Add(20 * time.Second); now.Sessions == before.Sessions || now.Node == "" || d.open.Load() != 8; now = c.Status() {
			if time.Now().After(deadline) {
				t.Fatalf("%d connections for 8 clients: %+v", d.open.Load(), now)
			}
			time.Sleep(time.Millisecond) // between polls
		}
		if now.Node != before.Node {
			moves++
		}
	}
}
