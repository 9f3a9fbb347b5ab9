package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	testKey = revocation.Key{1, 2, 3}
	start   = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
)

// testNode runs a node until the test ends.
func testNode(t *testing.T, cfg Config) *Node {
	t.Helper()
	n, stop := runNode(t, cfg)
	t.Cleanup(stop)
	return n
}

// runNode runs a node until stop is called.
func runNode(t *testing.T, cfg Config) (n *Node, stop func()) {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "n1"
	}
	cfg.Key = testKey
	if cfg.Dir == "" {
		cfg.Durability = DurabilityMemory
	}
	if cfg.Clock == nil {
		cfg.Clock = clocktest.New(start)
	}
	cfg.Store.Heap = true
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for deadline := time.After(20 * time.Second); !n.complete.Load(); {
		select {
		case err := <-done:
			t.Fatalf("Run: %v", err)
		case <-deadline:
			t.Fatal("the node did not become ready")
		case <-time.After(time.Millisecond):
		}
	}
	return n, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := n.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func match(t testing.TB, s string) revocation.Match {
	t.Helper()
	m, err := revocation.ParseMatch(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// token returns the claims of a token issued at iat that lives an hour.
func token(t testing.TB, iat time.Time, extra string) *revocation.Claims {
	t.Helper()
	if extra != "" {
		extra = "," + extra
	}
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"alice","jti":"j1","sid":"s1","iat":%d,"exp":%d%s}`,
		iat.Unix(), iat.Add(time.Hour).Unix(), extra))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// write carries out one request that must not fail.
func write(t testing.TB, n *Node, r revocation.Request) Result {
	t.Helper()
	results, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if results[0].Err != nil {
		t.Fatal(results[0].Err)
	}
	return results[0]
}

func wantStatus(t testing.TB, n *Node, c *revocation.Claims, want revocation.Status) {
	t.Helper()
	if v := n.Check(c); v.Status != want {
		t.Fatalf("verdict %s (%s), want %s", v.Status, v.Cause, want)
	}
}

func deny(t testing.TB, jti string) revocation.Request {
	return revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: start.Add(time.Hour).UnixMilli()}
}

func TestWriteThenCheck(t *testing.T) {
	n := testNode(t, Config{})
	c := token(t, start.Add(-time.Minute), "")
	wantStatus(t, n, c, revocation.Active)
	if r := write(t, n, deny(t, "j1")); r.Outcome != OutcomeRevoked || r.Rule.Class != revocation.ClassDeny {
		t.Fatalf("outcome %s, rule %s", r.Outcome, r.Rule.Class)
	}
	wantStatus(t, n, c, revocation.Revoked)
	if r := write(t, n, deny(t, "j1")); r.Outcome != OutcomeCovered {
		t.Fatalf("again: %s, want covered", r.Outcome)
	}
	var p revocation.Pending
	n.Begin(c, &p)
	if v := n.End(&p); v.Status != revocation.Revoked || v.Rule.Class != revocation.ClassDeny {
		t.Fatalf("begun and ended: %s", v.Status)
	}
	v, steps := n.Explain(c)
	if v.Status != revocation.Revoked || len(steps) == 0 {
		t.Fatalf("explain: %s with %d steps", v.Status, len(steps))
	}
	past := revocation.Request{Match: match(t, "iss=i,jti=old"), ExpiresAt: start.Add(-revocation.DefaultSlack).UnixMilli()}
	if r := write(t, n, past); r.Outcome != OutcomeAlreadyExpired {
		t.Fatalf("past: %s", r.Outcome)
	}
	if s := n.Status(); s.Writes.Revoked != 1 || s.Writes.Covered != 1 || s.Writes.AlreadyExpired != 1 || s.Table.Items != 1 {
		t.Fatalf("status: %+v, %d items", s.Writes, s.Table.Items)
	}
}

// A bad item does not stop the good ones of its call, and changes nothing.
func TestWriteBatch(t *testing.T) {
	n := testNode(t, Config{})
	bad := deny(t, "j2")
	bad.ExpiresAt = start.AddDate(2, 0, 0).UnixMilli()
	results, receipt, err := n.Write(t.Context(), []revocation.Request{deny(t, "j1"), bad, deny(t, "j3")}, WriteOptions{Ack: AckQuorum})
	if err != nil {
		t.Fatal(err)
	}
	if results[0].Err != nil || results[2].Err != nil || !errors.Is(results[1].Err, revocation.ErrInvalid) {
		t.Fatalf("results: %+v", results)
	}
	if receipt.Durability != DurabilityMemory || receipt.Ack != AckQuorum || len(receipt.Confirmed) != 1 {
		t.Fatalf("receipt: %+v", receipt)
	}
	for _, size := range []int{0, MaxBatch + 1} {
		if _, _, err := n.Write(t.Context(), make([]revocation.Request, size), WriteOptions{}); !errors.Is(err, ErrTooMany) {
			t.Fatalf("%d requests: %v", size, err)
		}
	}
	full := make([]revocation.Request, MaxBatch)
	for i := range full {
		full[i] = deny(t, strconv.Itoa(i))
	}
	if _, _, err := n.Write(t.Context(), full, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Before the journal has been read nothing is Active and nothing is written.
// Each start has an epoch of its own, also on the same directory, and tells it in its status and in gossip.
func TestEpochOfARun(t *testing.T) {
	cfg := Config{Name: "n1", Key: testKey, Dir: t.TempDir(), Cluster: &ClusterConfig{}, Store: ttlstore.Config{Heap: true}}
	var seen []uint64
	for range 3 {
		n, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		epoch := n.Status().Epoch
		if epoch == 0 || slices.Contains(seen, epoch) || n.meta().Epoch != epoch {
			t.Errorf("epoch %x after %x, %x in gossip", epoch, seen, n.meta().Epoch)
		}
		seen = append(seen, epoch)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNotReady(t *testing.T) {
	n, err := New(Config{Name: "n", Key: testKey, Durability: DurabilityMemory, Clock: clocktest.New(start), Store: ttlstore.Config{Heap: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if v := n.Check(token(t, start, "")); v.Status != revocation.Unknown || v.Cause != revocation.CauseNotReady {
		t.Fatalf("verdict %s (%s)", v.Status, v.Cause)
	}
	if _, _, err := n.Write(t.Context(), []revocation.Request{deny(t, "j1")}, WriteOptions{}); !errors.Is(err, ErrNotReady) {
		t.Fatalf("write: %v", err)
	}
	if len(n.Ready()) != 1 {
		t.Fatalf("ready: %q", n.Ready())
	}
}

func TestConfig(t *testing.T) {
	good := Config{Name: "n", Key: testKey, Durability: DurabilityMemory}
	for name, change := range map[string]func(*Config){
		"no name":        func(c *Config) { c.Name = "" },
		"no key":         func(c *Config) { c.Key = revocation.Key{} },
		"no directory":   func(c *Config) { c.Durability = DurabilityDisk },
		"bad durability": func(c *Config) { c.Durability = 9 },
		"negative sweep": func(c *Config) { c.SweepEvery = -1 },
		"negative quota": func(c *Config) { c.IssuerRecords = -1 },
		"bad policy":     func(c *Config) { c.Policy.Ceiling = -1 },
	} {
		c := good
		change(&c)
		if _, err := New(c); !errors.Is(err, revocation.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// In one millisecond, and with a clock that goes back, the later call wins.
func TestBlockOrder(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk})
	c := token(t, start, "")
	for i := range 20 {
		write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")})
		wantStatus(t, n, c, revocation.Revoked)
		if i == 10 {
			clk.Jump(-20 * time.Second)
		}
		if r := write(t, n, revocation.Request{Action: revocation.Unblock, Match: match(t, "iss=i,sub=alice")}); r.Outcome != OutcomeUnblocked {
			t.Fatalf("round %d: %s", i, r.Outcome)
		}
		wantStatus(t, n, c, revocation.Active)
	}
	// The same within one call.
	block := revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")}
	unblock := revocation.Request{Action: revocation.Unblock, Match: match(t, "iss=i,sub=alice")}
	if _, _, err := n.Write(t.Context(), []revocation.Request{unblock, block, unblock}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, n, c, revocation.Active)
	if _, _, err := n.Write(t.Context(), []revocation.Request{block, unblock, block}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, n, c, revocation.Revoked)
}

// After a jump, or on a machine without a clock, a cutoff at "now" would miss what it is meant for.
func TestClockRefusesCutoffs(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk})
	cutoff := revocation.Request{Match: match(t, "iss=i,sub=alice")}
	write(t, n, cutoff)
	refused := func(r revocation.Request) {
		t.Helper()
		results, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{})
		if err != nil || !errors.Is(results[0].Err, ErrClock) {
			t.Fatalf("after a jump: %v, %+v", err, results)
		}
	}
	clk.Jump(-2 * time.Hour)
	refused(cutoff)
	refused(revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")})
	refused(revocation.Request{Match: match(t, "iss=i,sid=s1")})
	write(t, n, deny(t, "j9")) // states its own time
	clk.Advance(2 * time.Minute)
	write(t, n, cutoff)

	n = testNode(t, Config{Clock: clocktest.New(time.Unix(1000, 0))})
	refused(cutoff)
}

// A wall clock that jumps ahead makes nothing expire; when it comes back the table is as it was.
func TestJumpForgetsNothing(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk})
	write(t, n, deny(t, "j1"))
	c := token(t, start, "")
	for _, jump := range []time.Duration{2 * time.Hour, 30 * 24 * time.Hour} {
		clk.Jump(jump)
		n.tick()
		n.table.Sweep(n.Now())
		wantStatus(t, n, c, revocation.Revoked)
		// A revocation whose token looks expired by the wall clock alone is stored.
		if r := write(t, n, deny(t, "during"+jump.String())); r.Outcome != OutcomeRevoked {
			t.Fatalf("during a jump of %s: %s", jump, r.Outcome)
		}
		clk.Jump(-jump)
		n.tick()
		wantStatus(t, n, c, revocation.Revoked)
	}
	clk.Advance(time.Hour + revocation.DefaultSlack + 10*time.Second)
	n.tick()
	n.table.Sweep(n.Now())
	if items := n.Status().Table.Items; items != 0 {
		t.Fatalf("%d items after their time", items)
	}
}

func TestFull(t *testing.T) {
	n := testNode(t, Config{Store: ttlstore.Config{MaxItems: 100, Reserve: 10}})
	var full int
	for i := range 120 {
		results, _, err := n.Write(t.Context(), []revocation.Request{deny(t, strconv.Itoa(i))}, WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		switch err := results[0].Err; {
		case errors.Is(err, revocation.ErrFull):
			full++
		case err != nil:
			t.Fatal(err)
		}
	}
	if full != 30 {
		t.Fatalf("%d writes refused, want 30", full)
	}
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","jti":"0","iat":%d,"exp":%d}`, start.Unix(), start.Add(time.Hour).Unix()))
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, n, c, revocation.Revoked)
	if r := write(t, n, deny(t, "0")); r.Outcome != OutcomeCovered {
		t.Fatalf("covered write at the limit: %s", r.Outcome)
	}
}

func TestIdempotency(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk})
	cutoff := []revocation.Request{{Match: match(t, "iss=i,sub=alice")}}
	first, _, err := n.Write(t.Context(), cutoff, WriteOptions{IdempotencyKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	clk.Advance(5 * time.Minute)
	again, _, err := n.Write(t.Context(), cutoff, WriteOptions{IdempotencyKey: "k"})
	if err != nil || again[0].Rule.Value != first[0].Rule.Value || again[0].Outcome != OutcomeRevoked {
		t.Fatalf("retry: %v, %+v; first %+v", err, again, first)
	}
	wantStatus(t, n, token(t, start.Add(2*time.Minute), ""), revocation.Active)
	other := []revocation.Request{{Match: match(t, "iss=i,sub=bob")}}
	if _, _, err := n.Write(t.Context(), other, WriteOptions{IdempotencyKey: "k"}); !errors.Is(err, ErrIdempotencyConflict) {
		t.Fatalf("other request: %v", err)
	}
	clk.Advance(6 * time.Minute)
	later, _, err := n.Write(t.Context(), cutoff, WriteOptions{IdempotencyKey: "k"})
	if err != nil || later[0].Rule.Value <= first[0].Rule.Value {
		t.Fatalf("after ten minutes: %v, %+v", err, later)
	}
	long := make([]byte, maxKey+1)
	if _, _, err := n.Write(t.Context(), cutoff, WriteOptions{IdempotencyKey: string(long)}); !errors.Is(err, revocation.ErrInvalid) {
		t.Fatalf("long key: %v", err)
	}
}

func TestCalls(t *testing.T) {
	c := newCalls()
	c.limit = 3
	one := make([]revocation.Request, 1)
	ok := func() (written, error) { return written{results: []Result{{Outcome: OutcomeRevoked}}}, nil }
	failed := errors.New("failed")

	// A call that failed is forgotten, also when it panicked.
	if _, err := c.do(t.Context(), 0, "a", one, func() (written, error) { return written{}, failed }); !errors.Is(err, failed) {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = c.do(t.Context(), 0, "a", one, func() (written, error) { panic("x") })
	}()
	if len(c.byKey) != 0 || c.order.Len() != 0 || c.held != 0 {
		t.Fatalf("left behind: %d keys, %d in order, %d results", len(c.byKey), c.order.Len(), c.held)
	}

	// Others wait for the first; the next takes over when it fails.
	entered, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = c.do(t.Context(), 0, "b", one, func() (written, error) { close(entered); <-release; return written{}, failed })
	})
	<-entered
	var calls int
	wg.Go(func() {
		if _, err := c.do(t.Context(), 0, "b", one, func() (written, error) { calls++; return ok() }); err != nil {
			t.Error(err)
		}
	})
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.do(canceled, 0, "b", one, ok); !errors.Is(err, context.Canceled) && err != nil {
		t.Errorf("a waiting caller that goes away: %v", err)
	}
	close(release)
	wg.Wait()
	if calls > 1 {
		t.Fatalf("%d calls took over", calls)
	}

	// The limit counts results and is loud; room returns after ten minutes.
	for _, key := range []string{"c", "d"} {
		if _, err := c.do(t.Context(), 0, key, one, ok); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.do(t.Context(), callTTL, "e", one, ok); !errors.Is(err, ErrBusy) {
		t.Fatalf("beyond the limit: %v", err)
	}
	if _, err := c.do(t.Context(), callTTL+1, "e", one, ok); err != nil {
		t.Fatalf("after ten minutes: %v", err)
	}
	c.sweep(3 * callTTL)
	if c.held != 0 || c.order.Len() != 0 {
		t.Fatalf("%d results held after the sweep", c.held)
	}
}

// Writers and checks run beside each other; what was acknowledged is seen at once.
func TestConcurrent(t *testing.T) {
	n := testNode(t, Config{Clock: clock.System()})
	now := time.Now()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 300 {
				jti := fmt.Sprintf("w%d-%d", w, i)
				r := revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: now.Add(time.Hour).UnixMilli()}
				results, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{})
				if err != nil || results[0].Err != nil {
					t.Errorf("write: %v, %+v", err, results)
					return
				}
				c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","jti":%q,"iat":%d,"exp":%d}`, jti, now.Unix(), now.Add(time.Hour).Unix()))
				if err != nil || n.Check(c).Status != revocation.Revoked {
					t.Errorf("%s: acknowledged and not seen (%v)", jti, err)
					return
				}
				if i%50 == 0 {
					n.table.Sweep(n.Now())
				}
			}
		})
	}
	wg.Wait()
	if inflight := n.inflight.Load(); inflight != 0 {
		t.Fatalf("%d records in flight at the end", inflight)
	}
}

func TestCheckAllocatesNothing(t *testing.T) {
	n := testNode(t, Config{})
	write(t, n, deny(t, "j1"))
	write(t, n, revocation.Request{Match: match(t, "iss=i,sub=bob")})
	c := token(t, start, "")
	var p revocation.Pending
	if allocs := testing.AllocsPerRun(100, func() { n.Check(c); n.Begin(c, &p); n.End(&p) }); allocs != 0 {
		t.Fatalf("%v allocations in a check", allocs)
	}
}

// contender lifts, after each write, what it has blocked, with a later stamp, as a node does whose clock is ahead.
type contender struct {
	commits
	node  *Node
	times int
}

func (c *contender) commit(ctx context.Context, w *writing) error {
	err := c.commits.commit(ctx, w)
	for _, b := range w.blocks {
		if b.record.Class == revocation.ClassBlock && c.times > 0 {
			c.times--
			b.record.Class, b.record.Value = revocation.ClassUnblock, b.record.Value+1
			_, _ = c.node.table.Merge(b.record, 1, c.node.Now(), false)
		}
	}
	return err
}

// What keeps losing is never acknowledged as in force, and what goes with it in a call stays what it was.
func TestSuperseded(t *testing.T) {
	for times := range maxRestamps + 3 {
		clk := clocktest.New(start)
		n := testNode(t, Config{Clock: clk})
		n.commits = &contender{n.commits, n, times}
		requests := []revocation.Request{
			{Match: match(t, "iss=i,sub=bob")},
			{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")},
			{Action: revocation.Block, Match: match(t, "iss=i,sub=carol")},
			{Action: revocation.Unblock, Match: match(t, "iss=i,sub=carol")},
		}
		o := WriteOptions{IdempotencyKey: "k"}
		results, receipt, err := n.Write(t.Context(), requests, o)
		if err != nil || len(receipt.Positions) != 1 {
			t.Fatalf("%d: %+v %v", times, receipt, err)
		}
		if r := results[0]; r.Outcome != OutcomeRevoked || r.Rule.Value != start.UnixMilli() {
			t.Errorf("%d: the cutoff beside it: %+v", times, r)
		}
		c := token(t, start.Add(time.Second), "")
		if times <= maxRestamps {
			if results[1].Err != nil || results[1].Outcome != OutcomeRevoked || results[2].Outcome != OutcomeRevoked || results[3].Outcome != OutcomeUnblocked {
				t.Errorf("%d: %+v", times, results)
			}
			wantStatus(t, n, c, revocation.Revoked)
		} else {
			if !errors.Is(results[1].Err, ErrSuperseded) || results[1].Outcome != 0 || results[3].Outcome != OutcomeUnblocked {
				t.Errorf("%d: %+v", times, results)
			}
			wantStatus(t, n, c, revocation.Active)
			if results, _, err = n.Write(t.Context(), requests, o); err != nil || results[1].Err != nil { // a retry stamps anew
				t.Errorf("%d: again: %+v %v", times, results, err)
			}
		}
		if v := n.Check(claims(t, `"sub":"carol"`)); v.Status != revocation.Active {
			t.Errorf("%d: what was blocked and unblocked in one call is %s", times, v.Status)
		}
	}
}

// A retry of a block that was acknowledged does not undo the unblock behind it.
func TestRetryBehindUnblock(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk})
	block := []revocation.Request{{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")}}
	for range 2 {
		results, _, err := n.Write(t.Context(), block, WriteOptions{IdempotencyKey: "k"})
		if err != nil || results[0].Outcome != OutcomeRevoked {
			t.Fatal(results, err)
		}
		clk.Advance(time.Second)
		write(t, n, revocation.Request{Action: revocation.Unblock, Match: match(t, "iss=i,sub=alice")})
	}
	wantStatus(t, n, token(t, start.Add(time.Second), ""), revocation.Active)
	results, _, err := n.Write(t.Context(), block, WriteOptions{IdempotencyKey: "k"})
	if err != nil || results[0].Outcome != OutcomeRevoked {
		t.Fatal(results, err)
	}
	wantStatus(t, n, token(t, start.Add(time.Second), ""), revocation.Active)
}

// Whoever asks is told when the parts of a write ended, in order; what an earlier call has done is not among them.
func TestWriteTiming(t *testing.T) {
	n := testNode(t, Config{Clock: clock.System()})
	r := []revocation.Request{{Match: match(t, "iss=i,jti=1"), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}}
	var first, again Timing
	if _, _, err := n.Write(t.Context(), r, WriteOptions{Timing: &first, IdempotencyKey: "k"}); err != nil {
		t.Fatal(err)
	}
	if !(0 < first.Validated && first.Validated <= first.Durable && first.Durable <= first.Confirmed) {
		t.Errorf("%+v", first)
	}
	if _, _, err := n.Write(t.Context(), r, WriteOptions{Timing: &again, IdempotencyKey: "k"}); err != nil {
		t.Fatal(err)
	}
	if again.Validated != 0 || again.Durable != 0 || again.Confirmed <= 0 {
		t.Errorf("a repeated call: %+v", again)
	}
}
