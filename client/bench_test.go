package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/revocation"
)

// Checks, memory and questions to nodes at 1 M and, without -short, 10 M records:
//
//	go test -run '^$' -bench . ./client
//
// The replicas are whole but for the network: what a stream brings is put into them as a session would.

var benchKey = revocation.Key{1, 2, 3}

// offline is a replica with n denied tokens and a few records in two other shapes, and the bytes of memory that it takes for them.
func offline(b *testing.B, mode Mode, n int) (c *Client, heap, mapped int64) {
	b.Helper()
	cfg := Config{Addrs: []string{"127.0.0.1:1"}, Mode: mode, MaxStaleness: 24 * time.Hour}
	if err := cfg.validate(); err != nil {
		b.Fatal(err)
	}
	before := heapBytes()
	c = newClient(cfg)
	c.ring, c.tableConfig = benchKey.ID(), revocation.TableConfig{Ring: revocation.NewRing(benchKey)}
	table, err := revocation.NewTable(c.tableConfig)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now().UnixMilli()
	table.Expect(n)
	one := planned(b, table, "iss=i,jti=x", now)
	rng := rand.New(rand.NewPCG(1, 2))
	for range n {
		one.Fingerprint = revocation.Fingerprint{Hi: rng.Uint64(), Lo: rng.Uint64()}
		if _, err := table.Merge(one, 1, now, false); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 10 {
		for _, text := range []string{"iss=i,sub=other%d", "iss=i,sid=other%d"} {
			if _, err := table.Merge(planned(b, table, fmt.Sprintf(text, i), now), 1, now, false); err != nil {
				b.Fatal(err)
			}
		}
	}
	h := &held{table: table}
	if mode == Filter {
		f, err := view.Filter(b.Context(), table, uint64(benchKey.ID()), nil, nil, now)
		if err != nil {
			b.Fatal(err)
		}
		if h, err = c.newHeld(f); err != nil {
			b.Fatal(err)
		}
		if err := table.Close(); err != nil {
			b.Fatal(err)
		}
	} else {
		_, mapped = table.Size()
		b.Cleanup(func() { _ = table.Close() })
	}
	c.held.Store(h)
	c.store = &store{Store: view.Store{Table: h.table}}
	if c.core, err = c.newCore(revocation.DefaultSlack, nil, nil); err != nil {
		b.Fatal(err)
	}
	c.now.Store(now)
	mono := c.elapsed.Mono()
	c.fresh.Store(view.NewFreshness(mono, mono))
	c.ready.Store(true)
	heap = heapBytes() - before
	return c, heap, mapped
}

func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what cleanups let go of
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func planned(b *testing.B, table *revocation.Table, text string, now int64) revocation.Record {
	b.Helper()
	p, err := table.Plan(revocation.Request{Match: match(b, text), ExpiresAt: expiry(text, now)}, now, now)
	if err != nil {
		b.Fatal(err)
	}
	r := p.Revocations[0]
	if _, err := table.Define(r.Shape, r.ExpiresAt, now, revocation.Unbound); err != nil {
		b.Fatal(err)
	}
	return benchKey.Record(r)
}

// expiry is stated where it may be.
func expiry(text string, now int64) int64 {
	if text == "iss=i,jti=x" {
		return now + 24*3_600_000
	}
	return 0
}

func benchTokens(b *testing.B, n int) []*revocation.Claims {
	b.Helper()
	list := make([]*revocation.Claims, n)
	now := time.Now().Unix()
	for i := range list {
		c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"user-%d","jti":"id-%032d","sid":"session-%d","iat":%d,"exp":%d}`, i, i, i, now-60, now+3600))
		if err != nil {
			b.Fatal(err)
		}
		list[i] = c
	}
	return list
}

// source is a node as far as a stream needs one.
type source struct {
	core  *replication.Replica
	table *revocation.Table
	index uint32
	next  uint64
	one   revocation.Record
	rng   *rand.Rand
	c     *Client
	buf   []byte
}

func newSource(b *testing.B, c *Client) *source {
	b.Helper()
	table, err := revocation.NewTable(revocation.TableConfig{Key: benchKey})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = table.Close() })
	digest := benchKey.Digest()
	s := &source{table: table, next: 1, one: planned(b, table, "iss=i,jti=x", c.now.Load()), rng: rand.New(rand.NewPCG(3, 4)), c: c}
	s.core, err = replication.New(replication.Config{
		Name: "n1", Boot: random(), KeyID: uint64(benchKey.ID()), Random: random, AuditEvery: -1,
		Digest:       func(rec *replication.Record) uint64 { return digest((*[revocation.RecordSize]byte)(rec)) },
		Deadline:     func(rec *replication.Record) uint32 { return binary.BigEndian.Uint32(rec[32:]) },
		DefinitionID: func(rec *replication.Record) uint64 { return binary.BigEndian.Uint64(rec[24:32]) },
	}, &view.Store{Table: table}, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	if s.index, err = s.core.NewOrigin(replication.MakeOrigin(random(), replication.Bulk)); err != nil {
		b.Fatal(err)
	}
	s.core.Step(c.clockNow(), replication.SetVoters{Voters: replication.Voters{Number: 1, Hash: 1, Names: []string{"n1"}}, Self: true})
	s.core.Step(c.clockNow(), replication.Connected{Peer: 1, Client: true})
	c.mu.Lock()
	c.stream = &stream{id: 1, cancel: func() {}, wake: make(chan struct{}, 1)}
	_ = c.step(replication.Connected{Peer: 1})
	c.mu.Unlock()
	s.pump(b)
	return s
}

// write sends n records.
func (s *source) write(b testing.TB, n int) {
	records := make([]replication.Record, n)
	now := s.c.now.Load()
	for i := range records {
		s.one.Fingerprint = revocation.Fingerprint{Hi: s.rng.Uint64(), Lo: s.rng.Uint64()}
		if _, err := s.table.Merge(s.one, uint64(replication.MakeDot(s.index, s.next+uint64(i))), now, false); err != nil {
			b.Error(err)
		}
		records[i] = view.Encode(s.one)
	}
	s.core.Step(s.c.clockNow(), replication.Written{Index: s.index, First: s.next, Records: records})
	s.next += uint64(n)
	s.pump(b)
}

// pump carries messages both ways until there are none.
func (s *source) pump(b testing.TB) {
	for more := true; more; {
		more = false
		if s.buf = s.core.Fill(s.c.clockNow(), 1, s.buf[:0]); len(s.buf) > 0 {
			more = true
			if err := s.c.receive(s.c.stream, s.buf); err != nil {
				b.Error(err)
			}
		}
		s.c.mu.Lock()
		s.buf = s.c.core.Fill(s.c.clockNow(), 1, s.buf[:0])
		s.c.mu.Unlock()
		if len(s.buf) > 0 {
			more = true
			s.core.Step(s.c.clockNow(), replication.Received{Peer: 1, Message: s.buf})
		}
	}
}

// stream writes so many records a second until ctx ends, and returns how many it has written.
func (s *source) stream(ctx context.Context, b testing.TB, rate int) int {
	began := time.Now()
	sent := 0
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return sent
		case <-t.C:
		}
		due := int(time.Since(began).Seconds()*float64(rate)) - sent
		for ; due > 0; due -= 1000 {
			n := min(due, 1000)
			s.write(b, n)
			sent += n
		}
	}
}

func sizes(b *testing.B, fn func(b *testing.B, n int)) {
	for _, n := range []int{1_000_000, 10_000_000} {
		if n > 1_000_000 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprintf("%dM", n/1_000_000), func(b *testing.B) { fn(b, n) })
	}
}

// BenchmarkCheck is the check of tokens that no record concerns, one at a time: the reading of the clock, clock-ns, is in p50 and p99. Memory is in
// heap-B and mapped-B for each record.
func BenchmarkCheck(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	for _, m := range []struct {
		name string
		mode Mode
	}{{"full", Full}, {"filter", Filter}} {
		b.Run(m.name, func(b *testing.B) {
			sizes(b, func(b *testing.B, n int) {
				c, heap, mapped := offline(b, m.mode, n)
				measure := func(b *testing.B) {
					spent := make([]time.Duration, 0, b.N)
					var clock time.Duration
					b.ReportAllocs()
					b.ResetTimer()
					for i := range b.N {
						began := time.Now()
						v := c.Check(tokens[i&(1<<15-1)])
						spent = append(spent, time.Since(began))
						if v.Status == revocation.Revoked {
							b.Fatal(v)
						}
					}
					b.StopTimer()
					for range 1000 {
						began := time.Now()
						clock += time.Since(began)
					}
					slices.Sort(spent)
					b.ReportMetric(float64(spent[len(spent)/2]), "p50-ns")
					b.ReportMetric(float64(spent[len(spent)*99/100]), "p99-ns")
					b.ReportMetric(float64(clock)/1000, "clock-ns")
				}
				b.Run("quiet", func(b *testing.B) {
					measure(b)
					b.ReportMetric(float64(heap)/float64(n), "heap-B/record")
					b.ReportMetric(float64(mapped)/float64(n), "mapped-B/record")
				})
				s := newSource(b, c)
				b.Run("changes", func(b *testing.B) {
					ctx, cancel := context.WithCancel(b.Context())
					done := make(chan int)
					began := time.Now()
					go func() { done <- s.stream(ctx, b, 100_000) }()
					measure(b)
					took := time.Since(began)
					cancel()
					b.ReportMetric(float64(<-done)/took.Seconds(), "changes/s")
				})
			})
		})
	}
}

// BenchmarkDoubts is how many of 1 M checks of tokens that no record concerns need a node, with three shapes of live records.
func BenchmarkDoubts(b *testing.B) {
	sizes(b, func(b *testing.B, n int) {
		c, _, _ := offline(b, Filter, n)
		h := c.held.Load()
		doubts, checks := 0, 0
		random := revocation.Claims{}
		_ = random.Set("iss", revocation.String("i"))
		random.SetIssuedAt(c.now.Load() - 1000)
		random.SetExpiresAt(c.now.Load() + 1_000_000)
		for b.Loop() {
			for i := range 1_000_000 {
				for _, name := range []string{"jti", "sub", "sid"} {
					_ = random.Set(name, revocation.Int(int64(i)))
				}
				checks++
				if h.table.CheckWith(&random, c.now.Load(), h.part).Cause == revocation.CauseUnanswered {
					doubts++
				}
			}
		}
		b.ReportMetric(float64(doubts)/float64(checks)*1000, "asks/1000-checks")
		b.ReportMetric(h.part.filter.FalsePositiveRate()*1000, "false-positives/1000-probes")
	})
}

// BenchmarkOnRevoked is what 100 000 registrations cost a stream of 1 M records that concern none of them, and how long it takes until all of them
// have been called back for one that concerns each.
func BenchmarkOnRevoked(b *testing.B) {
	const registered, records = 100_000, 1_000_000
	for b.Loop() {
		c, _, _ := offline(b, Full, 1000)
		ctx, cancel := context.WithCancel(b.Context())
		c.ended.Go(func() { c.look(ctx) })
		s := newSource(b, c)
		rate := func() float64 {
			began := time.Now()
			for range records / 1000 {
				s.write(b, 1000)
			}
			return records / time.Since(began).Seconds()
		}
		without := rate()
		tokens := benchTokens(b, registered)
		before := heapBytes()
		var called atomic.Int64
		all := make(chan struct{})
		for _, t := range tokens {
			c.OnRevoked(t, func(revocation.Verdict) {
				if called.Add(1) == registered {
					close(all)
				}
			})
		}
		heap := heapBytes() - before
		with := rate()
		began := time.Now()
		table := c.held.Load().table
		cutoff := planned(b, table, "iss=i", c.now.Load())
		if _, err := table.Merge(cutoff, 1, c.now.Load(), false); err != nil {
			b.Fatal(err)
		}
		c.mu.Lock()
		c.changed([]replication.Record{view.Encode(cutoff)})
		c.mu.Unlock()
		locked := time.Since(began)
		<-all
		b.ReportMetric(float64(heap)/registered, "B/registration")
		b.ReportMetric(without, "records/s-without")
		b.ReportMetric(with, "records/s-with")
		b.ReportMetric(float64(locked.Microseconds()), "stream-us")
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "all-called-ms")
		cancel()
		c.ended.Wait()
	}
}
