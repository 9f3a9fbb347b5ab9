package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/history"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// entry is one revocation of a crash test: what to send, and by its number the claims that it must deny.
type entry struct{ round, n int }

func (e entry) id() string { return fmt.Sprintf("r%d-%d", e.round, e.n) }

// request covers every rule; most entries are the usual logout.
func (e entry) request(now time.Time) *revokdv1.RevokeRequest {
	match := &revokdv1.Match{Claims: map[string]string{"iss": issuer}}
	req := &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: match}, Reason: revokdv1.Reason_REASON_LOGOUT}
	switch e.n % 16 {
	case 0:
		match.Claims["sub"] = e.id()
	case 1:
		match.Claims["sid"] = e.id()
	case 2:
		match.Claims["sub"] = e.id()
		req.Below = &revokdv1.Below{Claim: "token_version", Value: now.Unix()}
	default:
		match.Claims["jti"] = e.id()
	}
	return req
}

// check asks for a token that the entry denies, issued well before it.
func (e entry) check(now time.Time) *revokdv1.CheckRequest {
	id := structpb.NewStringValue(e.id())
	return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Claims{Claims: &structpb.Struct{Fields: map[string]*structpb.Value{
		"iss": structpb.NewStringValue(issuer), "jti": id, "sid": id, "sub": id, "token_version": structpb.NewNumberValue(1),
		"iat": structpb.NewNumberValue(float64(now.Add(-time.Hour).Unix())), "exp": structpb.NewNumberValue(float64(now.Add(time.Hour).Unix())),
	}}}}
}

// ledger is what writers know: the entries that were acknowledged, and how many were sent.
type ledger struct {
	round int
	ends  bool // the node will be asked to end, and may say so
	next  atomic.Int64
	mu    sync.Mutex
	acked []entry
	first chan struct{} // closed at the first acknowledgement
}

func newLedger(round int) *ledger { return &ledger{round: round, first: make(chan struct{})} }

func (h *ledger) entry() entry { return entry{h.round, int(h.next.Add(1))} }

func (h *ledger) ack(entries ...entry) {
	if len(entries) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.acked) == 0 {
		close(h.first)
	}
	h.acked = append(h.acked, entries...)
}

// write writes until the node is gone: single calls from many goroutines, and a stream that does not wait for its answers.
// An answer other than success and the end of the node is an error.
func (h *ledger) write(ctx context.Context, client revokdv1connect.RevocationServiceClient) error {
	const callers = 32
	var wg sync.WaitGroup
	errs := make([]error, callers+1)
	for i := range callers {
		wg.Go(func() { errs[i] = h.call(ctx, client) })
	}
	wg.Go(func() { errs[callers] = h.stream(ctx, client) })
	wg.Wait()
	return errors.Join(errs...)
}

// gone: the node went away, which is what the test is about, or said that it will; anything else that it says is not.
func (h *ledger) gone(err error) bool {
	return !connect.IsWireError(err) || h.ends && connect.CodeOf(err) == connect.CodeUnavailable
}

func (h *ledger) call(ctx context.Context, client revokdv1connect.RevocationServiceClient) error {
	for {
		e := h.entry()
		_, err := client.Revoke(ctx, connect.NewRequest(e.request(time.Now())))
		switch {
		case err == nil:
			h.ack(e)
		case h.gone(err):
			return nil
		default:
			return err
		}
	}
}

// stream keeps up to a window of entries under way.
func (h *ledger) stream(ctx context.Context, client revokdv1connect.RevocationServiceClient) error {
	const window, message = 4000, 100
	s := client.RevokeStream(ctx)
	var mu sync.Mutex
	var sent []entry
	room := make(chan struct{}, window/message)
	ended := make(chan struct{})
	go func() {
		defer func() { _ = s.CloseRequest() }() // the node may be gone
		for {
			select {
			case room <- struct{}{}:
			case <-ended:
				return
			}
			batch := make([]entry, message)
			items := make([]*revokdv1.RevokeRequest, message)
			for i := range batch {
				batch[i] = h.entry()
				items[i] = batch[i].request(time.Now())
			}
			mu.Lock()
			sent = append(sent, batch...)
			mu.Unlock()
			if s.Send(&revokdv1.RevokeStreamRequest{Items: items}) != nil {
				return // Receive says why
			}
		}
	}()
	defer close(ended)
	for done := int64(0); ; {
		m, err := s.Receive()
		switch {
		case err == nil:
		case h.gone(err):
			return nil
		default:
			return err
		}
		if len(m.GetErrors()) > 0 {
			return fmt.Errorf("the node refused an item: %s", m.GetErrors()[0].GetError().GetMessage())
		}
		mu.Lock()
		h.ack(sent[done:m.GetAcknowledged()]...)
		mu.Unlock()
		for ; done < m.GetAcknowledged(); done++ {
			if (done+1)%message == 0 {
				<-room
			}
		}
	}
}

// lost returns the entries for which the node does not answer Revoked.
func lost(t *testing.T, client revokdv1connect.RevocationServiceClient, entries []entry) []entry {
	t.Helper()
	var missing []entry
	for batch := range slices.Chunk(entries, 1000) {
		req := &revokdv1.CheckBatchRequest{}
		for _, e := range batch {
			req.Items = append(req.Items, e.check(time.Now()))
		}
		res, err := client.CheckBatch(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Msg.GetResults()) != len(batch) {
			t.Fatalf("%d answers to %d questions", len(res.Msg.GetResults()), len(batch))
		}
		for i, r := range res.Msg.GetResults() {
			if r.GetResponse().GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
				missing = append(missing, batch[i])
			}
		}
	}
	return missing
}

// neverSent: what nobody revoked is active (exact), or the test could not fail.
func neverSent(t *testing.T, client revokdv1connect.RevocationServiceClient, round int) {
	t.Helper()
	const n = 100
	entries := make([]entry, n)
	for i := range entries {
		entries[i] = entry{round, -1 - i}
	}
	if missing := lost(t, client, entries); len(missing) != n {
		t.Errorf("round %d: %d of %d tokens that nobody revoked are revoked", round, n-len(missing), n)
	}
}

// crashes kills a node again and again under load, at a random moment after its first acknowledgement, and sometimes while
// it starts. It returns how many acknowledged revocations it had forgotten; with untilLoss it stops there.
func crashes(t *testing.T, n *node, rounds int, seed uint64, untilLoss bool) (forgotten int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 0))
	var all []entry
	open, checks, pauses := 0, 0, 0
	for round := range rounds {
		if random.IntN(4) == 0 {
			n.killAtStart(t, time.Duration(random.Int64N(int64(30*time.Millisecond))))
		}
		p, api := n.start(t)
		h := newLedger(round)
		written := make(chan error, 1)
		go func() { written <- h.write(t.Context(), api) }()
		select {
		case <-h.first:
		case err := <-written:
			t.Fatalf("round %d: the writers ended before anything was acknowledged: %v", round, err)
		case <-time.After(patience):
			t.Fatalf("round %d: nothing is acknowledged", round)
		}
		if round%20 == 0 {
			pauses += standStill(t, p)
		}
		<-time.After(time.Duration(random.Int64N(int64(60 * time.Millisecond))))
		p.Kill()
		if err := <-written; err != nil {
			t.Fatalf("round %d: %v; log:\n%s", round, err, p.Stderr())
		}
		if int(h.next.Load()) > len(h.acked) {
			open++
		}
		all = append(all, h.acked...)

		// This round's, and of the earlier ones a sample.
		questions := slices.Clone(h.acked)
		for range min(2000, len(all)) {
			questions = append(questions, all[random.IntN(len(all))])
		}
		p, api = n.start(t)
		missing := lost(t, api, questions)
		checks += len(questions)
		neverSent(t, api, round)
		if forgotten += len(missing); forgotten > 0 && untilLoss {
			return forgotten
		}
		if len(missing) > 0 {
			t.Errorf("round %d (seed %d): %d acknowledged revocations were forgotten, the first %s", round, seed, len(missing), missing[0].id())
		}
		p.Kill()
	}
	p, api := n.start(t)
	forgotten += len(lost(t, api, all))
	p.Kill()
	checks += len(all)
	// A second kill in each round hits nothing that is being written, and does not count.
	saved(t, history.Report{Seed: seed, Nodes: 1, Rounds: rounds, Counts: history.Counts{
		Acknowledged: int64(len(all)), Checks: int64(checks), Judged: int64(checks), Faults: map[string]int{"kill": rounds, "pause": pauses}, Broken: map[history.Kind]int{history.Lost: forgotten},
	}})
	t.Logf("%d rounds, %d kills with writes under way, %d acknowledged revocations, %d forgotten; seed %d", rounds, open, len(all), forgotten, seed)
	// A run that did nothing proves nothing.
	if open < rounds/2 || len(all) < 20*rounds {
		t.Errorf("invalid run: %d of %d kills hit writes, %d revocations were acknowledged", open, rounds, len(all))
	}
	return forgotten
}

// standStill stops a process for a second, and returns 1 if it really stood still.
func standStill(t *testing.T, p *e2e.Process) int {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Second)
	stopped := isStopped(p.Pid())
	if err := p.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if !stopped {
		return 0
	}
	return 1
}

// isStopped reports whether a process is in the state T, where /proc says so.
func isStopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return err == nil && bytes.HasPrefix(state, []byte("T"))
}

// killAtStart kills the agent while it starts, perhaps while it reads its journal.
func (n *node) killAtStart(t *testing.T, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	// Start kills what is not ready in time.
	p, err := e2e.Start(ctx, e2e.Config{Args: []string{n.program, "agent", "--dev", "--api-addr", "127.0.0.1:0"}, Env: n.env, Dir: n.home})
	if err == nil {
		p.Kill()
	}
}

func crashRounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv("REVOKD_CRASH_ROUNDS")
	if text == "" {
		return 10
	}
	rounds, err := strconv.Atoi(text)
	if err != nil || rounds < 1 {
		t.Fatalf("REVOKD_CRASH_ROUNDS: want a number of rounds")
	}
	return rounds
}

// crashSeed is REVOKD_CRASH_SEED, which repeats the moments of the kills, or another one each time.
func crashSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("REVOKD_CRASH_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal("REVOKD_CRASH_SEED: want a number")
	}
	return seed
}

// TestCrashLoop kills a node as often as REVOKD_CRASH_ROUNDS says (default 10): no acknowledged revocation is forgotten.
func TestCrashLoop(t *testing.T) {
	if forgotten := crashes(t, newNode(t, ""), crashRounds(t), crashSeed(t), false); forgotten != 0 {
		t.Errorf("%d acknowledged revocations were forgotten", forgotten)
	}
}

// TestCrashLoopFindsMutant: the same loop finds a node that acknowledges before it writes.
func TestCrashLoopFindsMutant(t *testing.T) {
	control := filepath.Join(t.TempDir(), "faults")
	if err := os.WriteFile(control, []byte("mutant=ack-before-write\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if crashes(t, newNode(t, "faults", "REVOKD_FAULTS="+control), 30, crashSeed(t), true) == 0 {
		t.Error("30 rounds did not find a node that acknowledges before it writes")
	}
}

// TestTerminateUnderLoad: SIGTERM ends a node under load with exit code 0, and nothing that it acknowledged is lost.
func TestTerminateUnderLoad(t *testing.T) {
	n := newNode(t, "")
	p, api := n.start(t)
	h := newLedger(0)
	h.ends = true
	written := make(chan error, 1)
	go func() { written <- h.write(t.Context(), api) }()
	<-h.first
	<-time.After(50 * time.Millisecond)
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := p.Wait(ctx)
	if err != nil || code != 0 {
		t.Errorf("exit code %d, %v; log:\n%s", code, err, p.Stderr())
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	_, api = n.start(t)
	if missing := lost(t, api, h.acked); len(missing) > 0 {
		t.Errorf("%d of %d acknowledged revocations were forgotten", len(missing), len(h.acked))
	}
	t.Logf("%d acknowledged", len(h.acked))
}
