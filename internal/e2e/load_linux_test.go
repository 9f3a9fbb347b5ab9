package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// loads are put on a cluster of real nodes, one after another.
type loads struct {
	*secured
	users *users
	size  int

	crowd       []*replica.Client
	lines       sync.Map         // *line to nothing: connections of the crowd
	most        map[string]int64 // connections of each node so far
	quiet, busy []time.Duration
}

// TestLoad: whatever many do at once, those whom a cluster serves beside them see no error, all that was acknowledged is enforced, nodes use no more memory than
// docs/operations.md says, and after each load they are as they were before it. REVOKD_LOAD is the size of the loads (default 100): so many subscribers and as many
// connections on which nothing is said, a fiftieth of it slow subscribers, twenty times as many records in a burst, and forty times as many logouts of one account. What is
// written while there is a crowd is as much as makes two million records sent.
func TestLoad(t *testing.T) {
	noLeaks(t)
	defer debug.SetGCPercent(debug.SetGCPercent(30)) // thousands of replicas in one process: it has more memory to lose than time
	l := &loads{secured: newSecured(t, 3), size: fromEnv(t, "REVOKD_LOAD", 100), most: map[string]int64{}}
	l.users = &users{T: t, url: l.nodes[0].proc.URL, client: func() *http.Client { return httpsClient(t, l.admin) }}
	ctx, stop := context.WithCancel(t.Context())
	var using sync.WaitGroup
	l.users.use(ctx, &using)
	defer using.Wait()
	defer stop()

	l.during("nothing", func() {})
	empty := l.footprints()
	l.during("a crowd comes", l.gather)
	defer l.leave()
	idle := l.idlers()
	crowded := l.footprints()
	l.during("it is told", func() { l.tell("told") })
	l.during("some of it are slow", l.slow)
	l.back(crowded)
	l.during("it loses its connections", l.storm)
	l.back(crowded)
	l.tell("last")
	idle()
	l.leave()
	l.back(empty)
	l.during("a burst", func() { l.burst("burst", 20*l.size) })
	l.during("an account logs out", l.logouts)
	l.back(empty)
	l.eased()

	stop()
	using.Wait()
	l.users.report()
	// As in TestHostile: the machine is shared with those who make the load, so only what no load explains fails here.
	q, b := median(l.quiet), median(l.busy)
	t.Logf("median p99 of those who are served: quiet %s, under load %s, ratio %.1f", q, b, float64(b)/float64(q))
	if b > max(50*q, time.Second) {
		t.Errorf("p99 under load: %s, quiet %s", b, q)
	}
}

// during puts a load on, beside which others are served.
func (l *loads) during(name string, load func()) {
	l.Helper()
	quiet := l.users.window(func() {
		time.Sleep(hostileWindow) // a window
	})
	began := time.Now()
	busy := l.users.window(func() {
		load()
		time.Sleep(hostileWindow - time.Since(began)) // some must have been served
	})
	l.quiet, l.busy = append(l.quiet, quiet), append(l.busy, busy)
	u := l.footprints()
	l.Logf("%s, %.1f s: p99 of those who are served: quiet %s, meanwhile %s; then %d goroutines, %d open files, %d MiB of all nodes, %d records",
		name, time.Since(began).Seconds(), quiet.Round(10*time.Microsecond), busy.Round(10*time.Microsecond), u.goroutines, u.files, u.rss>>20, u.records)
}

// footprints of all nodes together, each of which must keep to the formula of docs/operations.md.
func (l *loads) footprints() (sum footprint) {
	l.Helper()
	for _, n := range l.nodes {
		u := footprint{
			rss: rss(l.T, n.proc), records: int64(metric(l.T, n.http, n.proc.URL, "revokd_records")),
			goroutines: int64(metric(l.T, n.http, n.proc.URL, "go_goroutines")), files: int64(metric(l.T, n.http, n.proc.URL, "process_open_fds")),
		}
		// net/http keeps what a connection had for up to two minutes after its end.
		l.most[n.name] = max(l.most[n.name], int64(metric(l.T, n.http, n.proc.URL, "revokd_api_connections")))
		if limit := memoryLimit(u.records, 512<<10*l.most[n.name]); u.rss > limit {
			l.Errorf("%s uses %d bytes for %d records and %d connections, limit %d", n.name, u.rss, u.records, l.most[n.name], limit)
		}
		sum = footprint{sum.rss + u.rss, sum.records + u.records, sum.goroutines + u.goroutines, sum.files + u.files}
	}
	return sum
}

// back waits until the nodes together use as much as they did.
func (l *loads) back(to footprint) {
	l.Helper()
	waitFor(l.T, "goroutines and open files are back", func() error {
		if u := l.footprints(); u.goroutines > to.goroutines*21/20+30 || u.files > to.files+50 { // the journal has files more
			return fmt.Errorf("%d goroutines, %d before; %d open files, %d before", u.goroutines, to.goroutines, u.files, to.files)
		}
		return nil
	})
}

// eased waits until the nodes need no more memory than for what they hold. A collection that nothing else asks for comes every two minutes.
func (l *loads) eased() {
	l.Helper()
	began := time.Now()
	for deadline := began.Add(10 * patience); ; time.Sleep(time.Second) { // between polls
		var over []string
		for _, n := range l.nodes {
			used, records := rss(l.T, n.proc), int64(metric(l.T, n.http, n.proc.URL, "revokd_records"))
			if limit := memoryLimit(records, 0); used > limit {
				over = append(over, fmt.Sprintf("%s uses %d bytes for %d records, limit %d", n.name, used, records, limit))
			}
		}
		if len(over) == 0 {
			l.Logf("the memory of all nodes is back %.0f s after the last load", time.Since(began).Seconds())
			return
		}
		if time.Now().After(deadline) {
			l.Fatalf("memory is not given back: %v", over)
		}
	}
}

// line is a connection of the crowd. One that is slow takes so many bytes a second; 0: all it gets, -1: nothing.
type line struct {
	net.Conn
	slow *atomic.Int64
	ends func()
}

func (c *line) Read(b []byte) (int, error) {
	for rate := c.slow.Load(); rate != 0; rate = c.slow.Load() {
		time.Sleep(50 * time.Millisecond) // as slow as it is to be
		if rate > 0 {
			return c.Conn.Read(b[:min(len(b), int(rate/20))])
		}
	}
	return c.Conn.Read(b)
}

func (c *line) Close() error {
	c.ends()
	return c.Conn.Close()
}

// subscribe opens a replica.
func (l *loads) subscribe(ctx context.Context, slow *atomic.Int64, keep bool) (*replica.Client, error) {
	cfg := replica.Config{TLS: l.admin, ProbeEvery: 2 * time.Second, MaxStaleness: 10 * time.Second, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c := &line{Conn: conn, slow: slow}
		if c.ends = func() { l.lines.Delete(c) }; keep {
			l.lines.Store(c, nil)
		}
		return c, nil
	}}
	for _, n := range l.nodes {
		cfg.Addrs = append(cfg.Addrs, n.host())
	}
	c, err := replica.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return c, errors.Join(c.Ready(ctx), ctx.Err())
}

// many does something so often, some of it at the same time.
func many(n int, do func(i int)) {
	var running sync.WaitGroup
	places := make(chan struct{}, 64)
	for i := range n {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			do(i)
		})
	}
	running.Wait()
}

// gather opens the crowd.
func (l *loads) gather() {
	ctx, cancel := context.WithTimeout(l.Context(), 10*patience)
	defer cancel()
	l.crowd = make([]*replica.Client, l.size)
	fast := new(atomic.Int64)
	many(l.size, func(i int) {
		c, err := l.subscribe(ctx, fast, true)
		if err != nil {
			l.Errorf("subscriber %d: %v", i, err)
		}
		l.crowd[i] = c
	})
	if l.Failed() {
		l.FailNow()
	}
}

// leave closes the crowd.
func (l *loads) leave() {
	many(len(l.crowd), func(i int) {
		if c := l.crowd[i]; c != nil {
			if err := c.Close(); err != nil {
				l.Error(err)
			}
		}
	})
	l.crowd = nil
	l.lines.Range(func(any, any) bool {
		l.Error("a connection of a closed client is open")
		return false
	})
}

// idlers opens as many connections as there are subscribers, with a call on each, and returns what closes them.
func (l *loads) idlers() (end func()) {
	clients := make([]*http.Client, l.size)
	many(l.size, func(i int) {
		clients[i] = &http.Client{Transport: &http.Transport{TLSClientConfig: l.admin.Clone(), ForceAttemptHTTP2: true}}
		n := l.nodes[i%len(l.nodes)]
		if err := checks(l.Context(), revokdv1connect.NewRevocationServiceClient(clients[i], n.proc.URL), "nobody's", revokdv1.Verdict_VERDICT_ACTIVE); err != nil {
			l.Errorf("idle connection %d: %v", i, err)
		}
	})
	return func() {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
	}
}

// write writes n revocations in a stream and waits until all are acknowledged by a majority.
func (l *loads) write(n int, item func(i int) *revokdv1.RevokeRequest) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 10*patience)
	defer cancel()
	acked := 0
	for acked < n { // a call ends at its deadline
		s := l.nodes[1].api.RevokeStream(ctx)
		begin := acked
		var sending sync.WaitGroup
		sending.Go(func() {
			defer func() { _ = s.CloseRequest() }() // Receive says what was wrong
			for i := begin; i < min(n, begin+50_000); {
				req := &revokdv1.RevokeStreamRequest{}
				if i == begin {
					req.Options = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM}
				}
				for ; i < n && len(req.Items) < 500; i++ {
					req.Items = append(req.Items, item(i))
				}
				if s.Send(req) != nil {
					return
				}
			}
		})
		for {
			res, err := s.Receive()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				l.Fatalf("after %d of %d: %v", acked, n, err)
			}
			if res.GetRefused() > 0 {
				l.Fatalf("refused: %v", res.GetErrors())
			}
			acked = begin + int(res.GetAcknowledged())
		}
		_ = s.CloseResponse() // it has ended
		sending.Wait()
	}
}

// burst writes many records.
func (l *loads) burst(name string, n int) {
	l.write(n, func(i int) *revokdv1.RevokeRequest { return target(fmt.Sprint(name, "-", i)) })
}

// tell waits until the whole crowd enforces what is acknowledged now.
func (l *loads) tell(name string) {
	l.Helper()
	began := time.Now()
	if err := revokes(l.Context(), l.nodes[2].api, name, nil); err != nil {
		l.Fatal(err)
	}
	acked := time.Now()
	waitFor(l.T, "all enforce "+name, func() error {
		left := 0
		for _, c := range l.crowd {
			if verdict(c, name) != revocation.Revoked {
				left++
			}
		}
		if left > 0 {
			return fmt.Errorf("%d do not", left)
		}
		return nil
	})
	l.Logf("%s is enforced by all %d subscribers %s after the acknowledgement, which took %s", name, len(l.crowd), time.Since(acked).Round(time.Millisecond), acked.Sub(began).Round(time.Millisecond))
}

// slow has subscribers that take nothing or next to nothing while much is written. They call nothing active that they do not know of, and hold up nobody.
func (l *loads) slow() {
	ctx, cancel := context.WithTimeout(l.Context(), 10*patience)
	defer cancel()
	var clients []*replica.Client
	rates := []*atomic.Int64{new(atomic.Int64), new(atomic.Int64)} // of half of them each
	for i := range max(2, l.size/50) {
		c, err := l.subscribe(ctx, rates[i%2], false)
		if err != nil {
			l.Fatal(err)
		}
		defer func() {
			if err := c.Close(); err != nil {
				l.Error(err)
			}
		}()
		clients = append(clients, c)
	}
	rates[0].Store(-1)
	rates[1].Store(1024)
	l.burst("slow", max(200, 2_000_000/l.size))
	l.tell("beside the slow")
	say := func(what string, ok func(revocation.Status) bool) {
		waitFor(l.T, what, func() error {
			for i, c := range clients {
				if s := verdict(c, "beside the slow"); !ok(s) {
					return fmt.Errorf("subscriber %d says %s", i, s)
				}
			}
			return nil
		})
	}
	say("who is behind does not call active what was revoked", func(s revocation.Status) bool { return s != revocation.Active })
	l.footprints()
	for _, r := range rates {
		r.Store(0)
	}
	say("they are level again", func(s revocation.Status) bool { return s == revocation.Revoked })
}

// storm ends all connections of the crowd at once.
func (l *loads) storm() {
	sessions := func() (all []uint64) {
		for _, c := range l.crowd {
			all = append(all, c.Status().Sessions)
		}
		return all
	}
	before := sessions()
	began := time.Now()
	cut := 0
	l.lines.Range(func(c, _ any) bool {
		cut++
		_ = c.(*line).Conn.Close() // the client notices
		return true
	})
	if cut < l.size {
		l.Errorf("only %d connections were cut", cut)
	}
	waitFor(l.T, "all have a session again", func() error {
		for i, n := range sessions() {
			if n <= before[i] || l.crowd[i].Status().Node == "" {
				return fmt.Errorf("subscriber %d has none", i)
			}
		}
		return nil
	})
	l.tell("after the storm")
	resumed := time.Since(began)
	var nodes []*e2e.Process
	for _, n := range l.nodes {
		nodes = append(nodes, n.proc)
	}
	used := processors(nodes...)
	const while = 3 * time.Second
	time.Sleep(while) // what they need when all is calm again
	l.Logf("%d subscribers have resumed and are level after %.1f s; then all nodes need %.0f %% of a processor", l.size, resumed.Seconds(), 100*float64(processors(nodes...)-used)/float64(while))
}

// logouts revokes everything of one account again and again: that is one record at most.
func (l *loads) logouts() {
	records := func() int64 {
		return int64(metric(l.T, l.nodes[1].http, l.nodes[1].proc.URL, "revokd_records")) - l.users.made()
	}
	before := records()
	began := time.Now()
	n := 40 * l.size
	l.write(n, func(i int) *revokdv1.RevokeRequest {
		return &revokdv1.RevokeRequest{
			Target:       &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "sub": "victim"}}},
			IssuedBefore: timestamppb.New(began.Add(time.Duration(i) * time.Millisecond / 100)),
		}
	})
	took := time.Since(began)
	grown := records() - before
	l.Logf("%d logouts of one account, %.0f a second: %d records more", n, float64(n)/took.Seconds(), grown)
	if grown > 10 { // and what others are just about to write
		l.Errorf("%d logouts of one account have made %d records", n, grown)
	}
}
