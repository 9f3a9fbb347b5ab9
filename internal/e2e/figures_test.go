package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// fromEnv returns a number from the environment: a figure needs a longer run than a test.
func fromEnv(t *testing.T, name string, def int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return def
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < 1 {
		t.Fatalf("%s: want a number above 0", name)
	}
	return v
}

// watcher is a client replica of one node that only notes when it learns of a record.
type watcher struct {
	began   time.Time
	seen    []atomic.Int64 // by number of the revocation: nanoseconds since began
	numbers map[replication.Key]int
	missing atomic.Int64
}

func (*watcher) Ahead([]replication.Key)                              {}
func (*watcher) Size() int                                            { return 0 }
func (*watcher) Early(replication.Now) func(*replication.Record) bool { return nil }

func (w *watcher) Merge(r *replication.Record, _ replication.Dot, _ replication.Now, _ bool) (replication.Merged, error) {
	if i, ok := w.numbers[r.Key()]; ok && w.seen[i].CompareAndSwap(0, int64(time.Since(w.began))) {
		w.missing.Add(-1)
	}
	return replication.Merged{}, nil
}

func (w *watcher) Held(*replication.Record, replication.Now) (replication.Record, replication.Dot, bool) {
	return replication.Record{}, 0, false
}

func (w *watcher) Scan(replication.Key, int, replication.Now, func(replication.Dot) bool, func(*replication.Record, replication.Dot) bool) (replication.Key, bool) {
	return replication.Key{}, false
}

func (w *watcher) Each(replication.Key, int, replication.Now, func(*replication.Record, replication.Dot)) (replication.Key, bool) {
	return replication.Key{}, false
}
func (w *watcher) Definition(uint64) []byte             { return nil }
func (w *watcher) Define([]byte, replication.Now) error { return nil }

// follow reads what the node sends until ctx ends.
func (w *watcher) follow(ctx context.Context, f *fleet, m *member, keyID uint64) error {
	core, err := replication.New(replication.Config{
		Name: "figures", KeyID: keyID, Client: true, Random: rand.Uint64,
		Deadline:     func(r *replication.Record) uint32 { return binary.BigEndian.Uint32(r[32:]) },
		DefinitionID: func(r *replication.Record) uint64 { return binary.BigEndian.Uint64(r[24:32]) },
	}, w, nil, nil)
	if err != nil {
		return err
	}
	service := revokdv1connect.NewReplicationServiceClient(f.client, m.proc.URL, connect.WithGRPC())
	ex := service.Exchange(ctx)
	ex.RequestHeader().Set(api.HeaderClient, "figures")
	if err := ex.Send(nil); err != nil {
		return err
	}
	now := func() replication.Now {
		at := time.Now()
		return replication.Now{Mono: time.Since(w.began), Wall: at.UnixMilli(), Guarded: at.UnixMilli()}
	}
	core.Step(now(), replication.Connected{Peer: 1})
	for {
		for {
			b := core.Fill(now(), 1, nil)
			if len(b) == 0 {
				break
			}
			if err := ex.Send(&revokdv1.ExchangeMessage{Frames: b}); err != nil {
				return err
			}
		}
		message, err := ex.Receive()
		if err != nil {
			return err
		}
		for _, c := range core.Step(now(), replication.Received{Peer: 1, Message: message.GetFrames()}).Close {
			return c.Err
		}
	}
}

// processors returns what processes have used of processors, 0 where the system does not tell: on a machine with other work it says more than the
// time on the wall.
func processors(all ...*e2e.Process) (used time.Duration) {
	for _, p := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
		if err != nil {
			return 0
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		for _, text := range fields[11:13] { // ticks in user and in system mode, a hundredth of a second each
			ticks, err := strconv.Atoi(text)
			if err != nil {
				return 0
			}
			used += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return used
}

func (f *fleet) cpu() time.Duration {
	var all []*e2e.Process
	for _, m := range f.running() {
		all = append(all, m.proc)
	}
	return processors(all...)
}

func target(jti string) *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": jti}}},
		ExpiresAt: inAnHour(),
	}
}

func quantiles(all []time.Duration) string {
	slices.Sort(all)
	at := func(q int) time.Duration { return all[len(all)*q/100].Round(time.Microsecond) }
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, max %s of %d", at(50), at(90), at(99), all[len(all)-1].Round(time.Microsecond), len(all))
}

// Revocations at a steady rate on five nodes are seen by a subscriber of every node. REVOKD_FIGURES_RATE (a second) and
// REVOKD_FIGURES_SECONDS make it the run of DESIGN, section 9: 10000 and 60.
func TestPropagation(t *testing.T) {
	rate, seconds := fromEnv(t, "REVOKD_FIGURES_RATE", 500), fromEnv(t, "REVOKD_FIGURES_SECONDS", 2)
	const batch = 10 // in a call: the load must leave the machine to the nodes
	count := max(1, rate*seconds/batch) * batch
	f := newFleet(t, 5)
	identity, err := f.nodes[0].adm.Identity(t.Context(), connect.NewRequest(&revokdv1.IdentityRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	key := revocation.Key(identity.Msg.GetFingerprintKey())
	table, err := revocation.NewTable(revocation.TableConfig{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = table.Close() }() // nothing is in it
	numbers := make(map[replication.Key]int, count)
	id := func(i int) string { return "propagated-" + strconv.Itoa(i) }
	now := time.Now().UnixMilli()
	for i := range count {
		m, err := revocation.ParseMatch("iss=" + issuer + ",jti=" + id(i))
		if err != nil {
			t.Fatal(err)
		}
		plan, err := table.Plan(revocation.Request{Match: m, ExpiresAt: now + 3_600_000}, now, now)
		if err != nil {
			t.Fatal(err)
		}
		numbers[replication.Key(key.Record(plan.Main()).Fingerprint)] = i
	}
	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	var following sync.WaitGroup
	defer following.Wait()
	defer stop()
	var watchers []*watcher
	for _, m := range f.nodes {
		w := &watcher{began: began, seen: make([]atomic.Int64, count), numbers: numbers}
		w.missing.Store(int64(count))
		watchers = append(watchers, w)
		following.Go(func() {
			if err := w.follow(ctx, f, m, uint64(key.ID())); err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v", m.name, err)
			}
		})
	}
	acked := make([]time.Duration, count)
	calls := make(chan int)
	var callers sync.WaitGroup
	var took [256]time.Duration
	for range 32 {
		callers.Go(func() {
			for first := range calls {
				req := &revokdv1.RevokeBatchRequest{Options: &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}}
				for i := range batch {
					req.Items = append(req.Items, target(id(first+i)))
				}
				at := time.Since(began)
				if _, err := f.nodes[first/batch%len(f.nodes)].api.RevokeBatch(ctx, connect.NewRequest(req)); err != nil {
					t.Error(err)
				}
				done := time.Since(began)
				took[first/batch%len(took)] = done - at
				for i := range batch {
					acked[first+i] = done
				}
			}
		})
	}
	start, used := time.Now(), f.cpu()
	for first := 0; first < count; first += batch {
		time.Sleep(time.Until(start.Add(time.Duration(first) * time.Second / time.Duration(rate)))) // the rate of the load
		calls <- first
	}
	close(calls)
	callers.Wait()
	reached := float64(count) / time.Since(start).Seconds()
	for i, w := range watchers {
		f.until("all seen on "+f.nodes[i].name, func() error {
			if n := w.missing.Load(); n > 0 {
				return fmt.Errorf("%d of %d are missing", n, count)
			}
			return nil
		})
	}
	all := make([]time.Duration, count)
	for i := range all {
		for _, w := range watchers {
			all[i] = max(all[i], time.Duration(w.seen[i].Load())-acked[i])
		}
	}
	t.Logf("%.0f revocations/s; acknowledged locally after %s; the nodes used %s", reached, quantiles(took[:min(len(took), count/batch)]), f.cpu()-used)
	t.Logf("from the acknowledgement until a subscriber of the last of five nodes has it: %s", quantiles(all))
}

// One stream of revocations on one node reaches all five while single ones go on beside it. REVOKD_FIGURES_BULK makes it the run of DESIGN,
// section 9: 1000000.
func TestBulkBesideSingles(t *testing.T) {
	count := fromEnv(t, "REVOKD_FIGURES_BULK", 20_000)
	f := newFleet(t, 5)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var singles sync.WaitGroup
	var acks, seen []time.Duration
	singles.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			id := "single-" + strconv.Itoa(i)
			at := time.Now()
			if _, err := f.revoke(ctx, f.nodes[1], id, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}); err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			acked := time.Now()
			acks = append(acks, acked.Sub(at))
			for _, m := range f.nodes {
				f.until(id+" on "+m.name, func() error {
					v, err := f.check(m, id)
					if err == nil && v.GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
						err = fmt.Errorf("%s", v)
					}
					return err
				})
			}
			seen = append(seen, time.Since(acked))
			time.Sleep(5 * time.Millisecond) // leaves the processor to the bulk beside it
		}
	})
	began, used := time.Now(), f.cpu()
	stream := f.nodes[0].api.RevokeStream(ctx)
	answered := make(chan error, 1)
	var last *revokdv1.RevokeStreamResponse
	go func() {
		for {
			res, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if err != nil || res == nil {
				answered <- err
				return
			}
			last = res
		}
	}()
	for first := 0; first < count; first += 1000 {
		req := new(revokdv1.RevokeStreamRequest)
		if first == 0 {
			req.Options = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}
		}
		for i := first; i < min(first+1000, count); i++ {
			req.Items = append(req.Items, target("bulk-"+strconv.Itoa(i)))
		}
		if err := stream.Send(req); err != nil {
			t.Fatalf("%v: %v", err, <-answered)
		}
	}
	if err := stream.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil || last.GetRevoked() != int64(count) {
		t.Fatalf("%v %v", last, err)
	}
	acknowledged := time.Since(began)
	for _, m := range f.nodes {
		f.until("all on "+m.name, func() error {
			res, err := m.api.Status(ctx, connect.NewRequest(&revokdv1.StatusRequest{}))
			if err == nil && res.Msg.GetRecords() < int64(count) {
				err = fmt.Errorf("%d of %d", res.Msg.GetRecords(), count)
			}
			return err
		})
	}
	t.Logf("%d in one stream: acknowledged after %s, on all five nodes after %s; the nodes used %s", count, acknowledged.Round(time.Millisecond),
		time.Since(began).Round(time.Millisecond), f.cpu()-used)
	stop()
	singles.Wait()
	if len(seen) == 0 {
		t.Fatal("no single one went through")
	}
	t.Logf("single ones beside it: acknowledged after %s; from then on until all five answer Revoked %s", quantiles(acks), quantiles(seen))
}
