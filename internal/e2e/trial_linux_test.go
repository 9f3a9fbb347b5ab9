package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/history"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// slack is how long a node enforces a revocation beyond its ExpiresAt.
const slack = 10 * time.Minute

// Of the load of a trial.
const (
	writePause   = 15 * time.Millisecond // between writes of one writer, of which each node has two
	nodePause    = 20 * time.Millisecond // between batches of checks on a node
	nodeBatch    = 100
	clientPause  = 10 * time.Millisecond // between bursts of checks of an embedded client
	clientBurst  = 1000
	askingBurst  = 20 // of a client in Filter mode, which asks for what is revoked
	bulkMessage  = 500
	bulkStreams  = 2 // at the same time
	bulkWindow   = 8 // messages of a stream under way
	writeTimeout = 2 * time.Second
)

// mark is one attempt to revoke: every claim of the token that it is about has its id as the value.
type mark struct {
	*history.Revocation
	claim string
}

// generation counts the kills and the starts of a node, so that nobody mistakes one of its processes for another.
type generation struct{ atomic.Uint32 }

// trial is a cluster of hosts under load, and the judge of what is seen of it.
type trial struct {
	*network
	judge   *history.Judge
	seed    uint64
	clients []*embedded
	starts  map[*member]*generation

	calm    sync.RWMutex // held by writers for each write; by the conductor while nothing is to be written
	stop    context.CancelFunc
	working sync.WaitGroup

	mu     sync.RWMutex // guards what follows
	marks  []mark
	judged int // marks that have been compared when it was calm

	bulked atomic.Int64 // attempts in bulk

	// Of the faults: see nemesis_linux_test.go.
	faults
}

// embedded is a client on a host of its own.
type embedded struct {
	*replica.Client
	name string
	host *host
	seen *history.Replica // of the goroutine that checks
}

// newTrial makes a cluster of n nodes with embedded clients, two with all records and one with a filter.
// behind is how far the time of a node may be.
func newTrial(t *testing.T, n int, tags string, seed uint64, behind time.Duration) *trial {
	t.Helper()
	w := newFaultyNetwork(t, n, tags)
	w.run("ca", "issue", "client", "sub", "--role", "subscriber", "--ca", w.path("ca"), "--out", w.path("tls"))
	w.form()
	tr := &trial{
		network: w, seed: seed, starts: map[*member]*generation{},
		judge: history.New(history.Config{MaxStaleness: staleness, Slack: slack, Behind: behind}),
	}
	for _, m := range w.nodes {
		tr.starts[m] = &generation{}
	}
	for i, mode := range []replica.Mode{replica.Full, replica.Full, replica.Filter} {
		tr.clients = append(tr.clients, tr.embed(fmt.Sprint("c", i+1), mode))
	}
	tr.faults.init(tr)
	return tr
}

// config of a client that connects from a host.
func (tr *trial) config(h *host, name string, mode replica.Mode) replica.Config {
	tr.t.Helper()
	tls, err := replica.LoadTLS(tr.path("tls/sub.crt"), tr.path("tls/sub.key"), tr.path("tls/ca.crt"))
	if err != nil {
		tr.t.Fatal(err)
	}
	cfg := replica.Config{
		Name: name, Mode: mode, TLS: tls, MaxStaleness: staleness, ProbeEvery: 300 * time.Millisecond,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			return h.dial(ctx, network, addr)
		},
	}
	for _, m := range tr.nodes {
		cfg.Addrs = append(cfg.Addrs, tr.hosts[m].at(7950))
	}
	return cfg
}

func (tr *trial) embed(name string, mode replica.Mode) *embedded {
	tr.t.Helper()
	e := &embedded{name: name, host: tr.lab.add(), seen: tr.judge.Replica(name)}
	e.Client = open(tr.t, tr.config(e.host, name, mode))
	return e
}

// start begins the load: writers and a checker for each node, a checker for each client, and streams of bulk with rate records a second together.
func (tr *trial) start(rate int) {
	ctx, cancel := context.WithCancel(tr.t.Context())
	tr.stop = cancel
	for i, m := range tr.nodes {
		for w := range 2 {
			tr.working.Go(func() { tr.write(ctx, m, w) })
		}
		tr.working.Go(func() { tr.checkNode(ctx, m, rand.New(rand.NewPCG(tr.seed, uint64(i)))) })
	}
	for i, c := range tr.clients {
		tr.working.Go(func() { tr.checkClient(ctx, c, rand.New(rand.NewPCG(tr.seed, 100+uint64(i)))) })
	}
	for i := range bulkStreams {
		tr.working.Go(func() { tr.bulk(ctx, i, rate/bulkStreams) })
	}
}

// end ends the load.
func (tr *trial) end() {
	tr.stop()
	tr.working.Wait()
}

// attempt notes an attempt and lets it be checked from now on.
func (tr *trial) attempt(claim, id string, expires time.Duration) mark {
	m := mark{tr.judge.Invoke(id, expires), claim}
	tr.mu.Lock()
	tr.marks = append(tr.marks, m)
	tr.mu.Unlock()
	return m
}

// ended notes what has become of an attempt.
func (tr *trial) ended(m mark, err error) {
	switch {
	case err == nil:
		tr.judge.End(m.Revocation, history.Quorum)
	case connect.CodeOf(err) == connect.CodeInvalidArgument:
		tr.judge.End(m.Revocation, history.Refused)
	default:
		tr.judge.End(m.Revocation, history.Unsure)
	}
}

func (tr *trial) write(ctx context.Context, m *member, writer int) {
	options := &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM, AckTimeout: durationpb.New(writeTimeout)}
	for i := 0; ctx.Err() == nil; i++ {
		tr.calm.RLock()
		claim, lives := "jti", time.Hour
		switch i % 10 {
		case 0:
			claim, lives = "sub", 24*time.Hour
		case 1:
			claim, lives = "sid", time.Duration(3+i%7)*time.Second // it ends during the run, and is enforced on
		case 2:
			claim, lives = "client_id", time.Hour // a block
		case 3:
			lives = 1000 * 24 * time.Hour // out of bounds: refused
		}
		id := fmt.Sprintf("%s-%d-%d", m.name, writer, i)
		mk := tr.attempt(claim, id, tr.judge.Now()+lives)
		match := &revokdv1.Match{Claims: map[string]string{"iss": issuer, claim: id}}
		end := timestamppb.New(time.Now().Add(lives))
		// Requests that have begun are finished, so that it is known what became of them.
		call, cancel := context.WithTimeout(tr.t.Context(), 2*writeTimeout)
		var err error
		var res *connect.Response[revokdv1.RevokeResponse]
		if claim == "client_id" {
			res, err = m.api.Block(call, connect.NewRequest(&revokdv1.BlockRequest{Match: match, ExpiresAt: end, Options: options}))
		} else {
			req := &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: match}, ExpiresAt: end, Options: options}
			if claim == "sub" {
				req.ExpiresAt = nil
			}
			res, err = m.api.Revoke(call, connect.NewRequest(req))
		}
		cancel()
		if err == nil && res.Msg.GetOutcome() == revokdv1.Outcome_OUTCOME_ALREADY_EXPIRED {
			tr.t.Errorf("%s says at %s that what ends at %s has expired for longer than the slack", m.name, tr.judge.Now(), mk.Expires())
			err = errors.New("already expired")
		}
		tr.ended(mk, err)
		tr.calm.RUnlock()
		time.Sleep(writePause) // the rate of the load
	}
}

// bulk writes streams of up to a second and ten messages to one node after the other, rate records a second.
func (tr *trial) bulk(ctx context.Context, first, rate int) {
	pace := time.NewTicker(time.Second * bulkMessage / time.Duration(max(1, rate)))
	defer pace.Stop()
	for i := first; ctx.Err() == nil; i++ {
		tr.calm.RLock()
		tr.stream(ctx, tr.nodes[i%len(tr.nodes)], pace.C, min(10, max(1, rate/bulkMessage)))
		tr.calm.RUnlock()
		time.Sleep(writePause) // a node that is away refuses at once
	}
}

// stream writes one stream.
func (tr *trial) stream(ctx context.Context, m *member, pace <-chan time.Time, messages int) {
	call, cancel := context.WithTimeout(tr.t.Context(), 10*time.Second)
	defer cancel()
	s := m.api.RevokeStream(call)
	var sent []mark // of the goroutine that sends, until it has ended
	done := 0
	room := make(chan struct{}, bulkWindow)
	over := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		defer func() { _ = s.CloseRequest() }() // Receive says what was wrong
		for range messages {
			select {
			case <-pace:
			case <-ctx.Done():
				return
			case <-over:
				return
			}
			select {
			case room <- struct{}{}:
			case <-over:
				return
			}
			req := &revokdv1.RevokeStreamRequest{}
			if len(sent) == 0 {
				req.Options = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM, AckTimeout: durationpb.New(writeTimeout)}
			}
			end := inAnHour()
			for range bulkMessage {
				id := fmt.Sprintf("bulk-%d", tr.bulked.Add(1))
				sent = append(sent, tr.attempt("jti", id, tr.judge.Now()+time.Hour-time.Second))
				req.Items = append(req.Items, &revokdv1.RevokeRequest{
					Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": id}}}, ExpiresAt: end,
				})
			}
			if s.Send(req) != nil {
				return
			}
		}
	})
	outcome := history.Unsure
	for {
		res, err := s.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) && done > 0 { // the last answer has come, with the receipt of a majority for all of it
				outcome = history.Quorum
			}
			break
		}
		for _, e := range res.GetErrors() {
			tr.t.Errorf("%s refuses an item: %v", m.name, e)
		}
		for ; done < int(res.GetAcknowledged()); done++ { // on one disk
			if (done+1)%bulkMessage == 0 {
				<-room
			}
		}
	}
	close(over)
	sending.Wait()
	_ = s.CloseResponse() // it has ended
	for i, mk := range sent {
		if i >= done {
			outcome = history.Unsure
		}
		tr.judge.End(mk.Revocation, outcome)
	}
}

// pick returns an attempt, half of the time a recent one.
func (tr *trial) pick(rng *rand.Rand) (mark, bool) {
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	n := len(tr.marks)
	if n == 0 {
		return mark{}, false
	}
	if rng.IntN(2) == 0 {
		return tr.marks[n-1-rng.IntN(min(n, 2000))], true
	}
	return tr.marks[rng.IntN(n)], true
}

// question asks for a token that has the id in every claim.
func question(id string, now time.Time) *revokdv1.CheckRequest {
	payload := fmt.Appendf(nil, `{"iss":%q,"jti":%q,"sub":%q,"sid":%q,"client_id":%q,"iat":%d,"exp":%d}`,
		issuer, id, id, id, id, now.Add(-time.Hour).Unix(), now.Add(time.Hour).Unix())
	return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}
}

var verdicts = map[revokdv1.Verdict]revocation.Status{
	revokdv1.Verdict_VERDICT_ACTIVE: revocation.Active, revokdv1.Verdict_VERDICT_REVOKED: revocation.Revoked,
}

// innocent is the id of a token that nobody revokes: like others, and yet not one of them.
func innocent(rng *rand.Rand) string {
	return []string{"BULK-1", "bulk-01", "bulk-1 ", "bulk-", "nobody", "n1-0-"}[rng.IntN(6)] + strconv.Itoa(-1-rng.IntN(1_000_000))
}

// ask asks a node about attempts, and notes what it answers if it is still the process that it is taken for.
func (tr *trial) ask(ctx context.Context, m *member, process uint32, seen *history.Replica, marks []mark, innocents []string, final bool) error {
	req := &revokdv1.CheckBatchRequest{}
	now := time.Now()
	for _, mk := range marks {
		req.Items = append(req.Items, question(mk.ID, now))
	}
	for _, id := range innocents {
		req.Items = append(req.Items, question(id, now))
	}
	began := tr.judge.Now()
	res, err := m.api.CheckBatch(ctx, connect.NewRequest(req))
	ended := tr.judge.Now()
	if err != nil {
		return err
	}
	if len(res.Msg.GetResults()) != len(req.GetItems()) {
		return fmt.Errorf("%d answers to %d questions", len(res.Msg.GetResults()), len(req.GetItems()))
	}
	if tr.starts[m].Load() != process {
		return nil // nobody knows which process has answered
	}
	for i, r := range res.Msg.GetResults() {
		if r.GetError() != nil {
			return fmt.Errorf("%v", r.GetError())
		}
		v := verdicts[r.GetResponse().GetVerdict()]
		switch {
		case i >= len(marks):
			seen.Innocent(innocents[i-len(marks)], v)
		case final:
			seen.Final(marks[i].Revocation, v)
		default:
			seen.Saw(marks[i].Revocation, began, ended, v)
		}
	}
	return nil
}

func (tr *trial) checkNode(ctx context.Context, m *member, rng *rand.Rand) {
	seen := tr.judge.Replica(m.name)
	process := tr.starts[m].Load()
	for ; ctx.Err() == nil; time.Sleep(nodePause) { // the rate of the load
		if now := tr.starts[m].Load(); now != process {
			process = now
			seen.Restarted()
		}
		var marks []mark
		for range nodeBatch {
			if mk, ok := tr.pick(rng); ok {
				marks = append(marks, mk)
			}
		}
		call, cancel := context.WithTimeout(ctx, 3*time.Second)
		_ = tr.ask(call, m, process, seen, marks, []string{innocent(rng), innocent(rng)}, false) // a node that is away answers nothing
		cancel()
	}
}

// token fills in the claims of a token that has the id in every claim.
func token(c *revocation.Claims, id string) *revocation.Claims {
	for _, name := range []string{"jti", "sub", "sid", "client_id"} {
		if err := c.Set(name, revocation.String(id)); err != nil {
			panic(err) // the ids of these tests are strings
		}
	}
	return c
}

func (tr *trial) checkClient(ctx context.Context, e *embedded, rng *rand.Rand) {
	c := claimsOf("", time.Now().Add(-30*time.Minute))
	burst := clientBurst
	if e == tr.clients[2] {
		burst = askingBurst
	}
	for ; ctx.Err() == nil; time.Sleep(clientPause) { // the rate of the load
		for i := range burst {
			if i%20 == 0 {
				id := innocent(rng)
				e.seen.Innocent(id, e.Check(token(c, id)).Status)
				continue
			}
			mk, ok := tr.pick(rng)
			if !ok {
				continue
			}
			token(c, mk.ID)
			began := tr.judge.Now()
			v := e.Check(c).Status
			e.seen.Saw(mk.Revocation, began, tr.judge.Now(), v)
		}
	}
}

// settle stops writing and waits until everything is whole: all nodes run and have found each other, they have the same number of records, and all acknowledge.
// Then everything that a majority has acknowledged since the last time must be revoked on every node and in every client, and much of what was before.
func (tr *trial) settle(round string, rng *rand.Rand) {
	t := tr.t
	t.Helper()
	tr.calm.Lock()
	defer tr.calm.Unlock()
	tr.until("all nodes have found each other", tr.connected)
	for _, m := range tr.nodes {
		tr.until(m.name+" has all acknowledge", func() error {
			receipt, err := tr.revoke(t.Context(), m, "settled-"+round+"-"+m.name, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL})
			if err != nil {
				return fmt.Errorf("%w; %v%s", err, receipt, tr.views())
			}
			return nil
		})
	}
	tr.until("all nodes have as many records", tr.level)
	tr.mu.RLock()
	marks := append([]mark(nil), tr.marks[tr.judged:]...)
	for range 5000 {
		marks = append(marks, tr.marks[rng.IntN(len(tr.marks))])
	}
	tr.judged = len(tr.marks)
	tr.mu.RUnlock()
	tr.final(marks)
}

// views says what the nodes hold of each other.
func (tr *trial) views() string {
	var b strings.Builder
	for _, m := range tr.nodes {
		res, err := m.adm.Members(tr.t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			fmt.Fprintf(&b, "\n%s: %v", m.name, err)
			continue
		}
		for _, p := range res.Msg.GetMembers() {
			fmt.Fprintf(&b, "\n%s: %v", m.name, p)
		}
		if st, err := m.api.Status(tr.t.Context(), connect.NewRequest(&revokdv1.StatusRequest{})); err == nil {
			fmt.Fprintf(&b, "\n%s: %d records, %v", m.name, st.Msg.GetRecords(), st.Msg.GetReplication())
		}
	}
	return b.String()
}

// final asks everybody about attempts, when everything is whole.
func (tr *trial) final(marks []mark) {
	t := tr.t
	t.Helper()
	for _, m := range tr.nodes {
		seen := tr.judge.Replica(m.name)
		for rest := marks; len(rest) > 0; rest = rest[min(len(rest), 1000):] {
			if err := tr.ask(t.Context(), m, tr.starts[m].Load(), seen, rest[:min(len(rest), 1000)], nil, true); err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
		}
	}
	for _, e := range tr.clients {
		tr.until(e.name+" is fresh", func() error {
			if s := e.Status(); s.Node == "" || s.QuorumAge > staleness/2 || s.Behind > 0 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		some := marks
		if e == tr.clients[2] {
			some = marks[max(0, len(marks)-500):]
		}
		seen := tr.judge.Replica(e.name)
		c := claimsOf("", time.Now().Add(-30*time.Minute))
		for _, mk := range some {
			v := e.Check(token(c, mk.ID)).Status
			for end := time.Now().Add(patience); v == revocation.Unknown && time.Now().Before(end); v = e.Check(token(c, mk.ID)).Status {
				time.Sleep(50 * time.Millisecond) // a node that it asked did not answer in time, and it waits before it asks again
			}
			seen.Final(mk.Revocation, v)
		}
	}
}

// level returns nil when all nodes have the same number of records, but for those that are just being forgotten: their clocks are not the same, and a node may keep a record
// for as long as its clock was once behind.
func (tr *trial) level() error {
	var counts []int64
	for _, m := range tr.nodes {
		st, err := m.api.Status(tr.t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		counts = append(counts, st.Msg.GetRecords())
	}
	if going := tr.going(); slices.Max(counts)-slices.Min(counts) > going {
		return fmt.Errorf("%v, of which %d may be gone on some", counts, going)
	}
	return nil
}

// going is how many attempts some nodes may have forgotten and others not yet.
func (tr *trial) going() (n int64) {
	now := tr.judge.Now()
	tr.mu.RLock()
	defer tr.mu.RUnlock()
	for _, mk := range tr.marks {
		if over := mk.Expires() + slack; over < now+5*time.Second && over > now-time.Minute {
			n++
		}
	}
	return n
}

// footprint is what a node uses.
type footprint struct{ rss, records, goroutines, files int64 }

// footprints of all nodes together.
func (tr *trial) footprints() footprint {
	var sum footprint
	for _, m := range tr.nodes {
		u := tr.footprint(m)
		sum.goroutines, sum.files = sum.goroutines+u.goroutines, sum.files+u.files
	}
	return sum
}

// footprint of a node that runs.
func (tr *trial) footprint(m *member) footprint {
	t := tr.t
	t.Helper()
	var u footprint
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.proc.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			u.rss = kb << 10
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.proc.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	u.files = int64(len(files))
	st, err := m.api.Status(t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	u.records = st.Msg.GetRecords()
	res, err := m.http.Get("https://" + tr.hosts[m].at(7950) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := readAll(res)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			u.goroutines = int64(v)
		}
	}
	return u
}

// namespaced runs the program on a host.
func (tr *trial) namespaced(h *host, args ...string) error {
	args = append(append(h.command(), tr.program), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Dir = []string{"HOME=" + tr.home, "PATH=" + os.Getenv("PATH")}, tr.home
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
