package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
)

// The row that others are compared with.
const tableCheck = "revokd Table.Check, one shape"

func runLookup(ctx context.Context, r *Result, o options) error {
	debug.SetMemoryLimit(14 << 30)
	r.note("The garbage collector stood still while lookups were timed. The clock's own cost (%d ns, median of two readings) has been taken off every single call.", clockCost())
	sizes, rounds, slot := []int{10_000, 100_000, 1_000_000, 10_000_000}, 5, 30*time.Millisecond
	if o.quick {
		sizes, rounds, slot = []int{20_000}, 2, 5*time.Millisecond
	}
	yardstick(r, rounds, slot)
	for _, n := range sizes {
		if err := lookupSize(ctx, r, o, n, rounds, slot); err != nil {
			return fmt.Errorf("%s records: %w", size(n), err)
		}
		debug.SetGCPercent(100)
		debug.FreeOSMemory()
	}
	return nil
}

func lookupSize(ctx context.Context, r *Result, o options, n, rounds int, slot time.Duration) error {
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as somebody else
		return err
	}
	now := time.Now()
	var missed atomic.Int64
	list, end, err := subjects(ctx, r, o, dir, n, now, &missed)
	defer end()
	if err != nil {
		return err
	}
	if n == 1_000_000 || o.quick {
		if err := inSitu(r, n, rounds, slot*4, now); err != nil {
			return err
		}
	}
	for _, hits := range []float64{0, 0.01, 1} {
		p := newProbes(n, hits, now)
		id := fmt.Sprintf("lookup/%d/%g", n, hits*100)
		title := map[float64]string{0: "nothing is found", 0.01: "1 % are revoked", 1: "all are revoked"}[hits]
		r.table(Table{ID: id, Title: fmt.Sprintf("%s records, %s", size(n), title), Reference: tableCheck, Ratio: "p50", Note: "p50 to p99.9 of calls one at a time; calls/s back to back."})
		progress("%s records, %s: %d subjects, %d rounds", size(n), title, len(list), rounds)
		params := map[string]float64{"records": float64(n), "hits": hits}
		curves := map[string]*hdrhistogram.Histogram{}
		for round := range rounds + 1 { // the first one warms up
			for _, s := range list {
				if s.name == newToken && hits > 0 {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if s.failed {
					continue
				}
				if err := lookupSlot(r, id, s, p, round, slot, params, curves); err != nil {
					s.failed = true
					r.fail(fmt.Sprintf("%s, %s", s.name, title), err)
				}
			}
		}
		if hits == 0 {
			for _, s := range list {
				if h := curves[s.name]; h != nil {
					r.curve(id, s.name, "ns", h)
				}
			}
		}
	}
	if err := underWrites(ctx, r, list, n, rounds, slot*4, now); err != nil {
		return err
	}
	if m := missed.Load(); m > 0 {
		r.note("With %s records KrakenD's filter said %d times that a revoked token was not: its hash functions are shared by concurrent callers.", size(n), m)
	}
	return nil
}

// lookupSlot measures one subject once. The place of the next question is kept by the round, so that rounds ask for different keys.
func lookupSlot(r *Result, id string, s *subject, p *probes, round int, slot time.Duration, params map[string]float64, curves map[string]*hdrhistogram.Histogram) error {
	h := histogram()
	ask := s.ask(p, 0)
	if s.remote {
		slot *= 2
	}
	next, err := single(slot, ask, p.touch, round*30_011, h)
	if err != nil {
		return err
	}
	one, err := backToBack(slot, 1, func(w int) question { return s.ask(p, w) }, next)
	if err != nil {
		return err
	}
	all, err := backToBack(slot, runtime.NumCPU(), func(w int) question { return s.ask(p, w) }, next)
	if err != nil || round == 0 {
		return err
	}
	batch := float64(max(1, s.batch))
	for _, q := range []struct {
		name string
		at   float64
	}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}} {
		r.add(id, s.name, q.name, "ns", float64(h.ValueAtQuantile(q.at))/batch, params)
	}
	r.add(id, s.name, "one core", "/s", one*batch, params)
	r.add(id, s.name, "all cores", "/s", all*batch, params)
	if round == 1 {
		r.add(id, s.name, "allocs", "", allocations(ask)/batch, params)
	}
	if s.batch == 0 {
		if curves[s.name] == nil {
			curves[s.name] = histogram()
		}
		curves[s.name].Merge(h)
	}
	return nil
}

// subjects makes all that can be had; end ends them.
func subjects(ctx context.Context, r *Result, o options, dir string, n int, now time.Time, missed *atomic.Int64) (list []*subject, end func(), err error) {
	var servers []*server
	var agents *cluster
	end = func() {
		for _, s := range list {
			if s.close != nil {
				s.close()
			}
		}
		agents.stop()
		stopAll(servers)
	}
	began := time.Now()
	table, err := tableSubject(tableCheck, n, 1, now)
	if err != nil {
		return list, end, err
	}
	six, err := tableSubject("revokd Table.Check, six shapes", n, 6, now)
	if err != nil {
		return list, end, err
	}
	one, batch, err := storeSubject(n, now)
	if err != nil {
		return list, end, err
	}
	list = append(list, table, six, one, batch)
	if agents, err = filled(ctx, o.program, dir, n); err != nil {
		return list, end, err
	}
	nd, err := nodeSubject(ctx, dir, n)
	if err != nil {
		return list, end, err
	}
	list = append(list, nd)
	for name, mode := range map[string]client.Mode{"revokd client.Check, Full": client.Full, "revokd client.Check, Filter": client.Filter} {
		s, err := clientSubject(ctx, agents.nodes[0], name, mode, false)
		if err != nil {
			return list, end, err
		}
		list = append(list, s)
	}
	progress("%s records: revokd is filled, %s", size(n), time.Since(began).Round(time.Second))
	filter := krakendSubject(n, missed)
	more, asked := serveAll(ctx, r, dir, n)
	servers = more
	progress("%s records: servers are filled, %s", size(n), time.Since(began).Round(time.Second))
	// From here on the collector would run for seconds through the maps of the others and disturb everybody: the scenario memory says what it costs.
	runtime.GC()
	debug.SetGCPercent(-1)
	ot, err := otterSubject(n)
	if err != nil {
		return list, end, err
	}
	list = append(list, mapSubject(n, now), syncMapSubject(n, now), ot, filter)
	list = append(list, asked...)
	progress("%s records: stores in memory are filled, %s", size(n), time.Since(began).Round(time.Second))
	return list, end, nil
}

// underWrites measures single calls while the store is written to.
func underWrites(ctx context.Context, r *Result, list []*subject, n, rounds int, slot time.Duration, now time.Time) error {
	const rate = 100_000
	p := newProbes(n, 0.01, now)
	id := fmt.Sprintf("lookup-writes/%d", n)
	r.table(Table{
		ID: id, Title: fmt.Sprintf("%s records, 1 %% are revoked, while %s revocations/s come and go", size(n), size(rate)), Reference: tableCheck, Ratio: "p99",
		Note: "quiet: the same without writes, in the same round. Maps and otter are told which entries to delete; that is cheaper than finding them.",
	})
	params := map[string]float64{"records": float64(n), "writes": rate}
	for round := range rounds + 1 {
		for _, s := range list {
			if s.put == nil || s.failed {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			quiet, busy := histogram(), histogram()
			next, err := single(slot/2, s.ask(p, 0), p.touch, round*30_011, quiet)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			stop := write(s, rate, round)
			_, err = single(slot, s.ask(p, 0), p.touch, next, busy)
			wrote := stop()
			if err != nil {
				return fmt.Errorf("%s under writes: %w", s.name, err)
			}
			if round == 0 {
				continue
			}
			r.add(id, s.name, "quiet p50", "ns", float64(quiet.ValueAtQuantile(50)), params)
			r.add(id, s.name, "p50", "ns", float64(busy.ValueAtQuantile(50)), params)
			r.add(id, s.name, "quiet p99", "ns", float64(quiet.ValueAtQuantile(99)), params)
			r.add(id, s.name, "p99", "ns", float64(busy.ValueAtQuantile(99)), params)
			r.add(id, s.name, "p99.9", "ns", float64(busy.ValueAtQuantile(99.9)), params)
			r.add(id, s.name, "writes", "/s", wrote, params)
		}
	}
	return nil
}

// write puts keys at a rate, and deletes those put a second ago where the store does not forget by itself; stop returns the rate that was reached.
func write(s *subject, rate, round int) (stop func() float64) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	began := time.Now()
	first := 4*absentFrom + round<<32
	written := 0
	wg.Go(func() {
		t := time.NewTicker(time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
			}
			for due := int(time.Since(began).Seconds() * float64(rate)); written < due; written++ {
				s.put(first + written)
				if s.del != nil && written >= rate {
					s.del(first + written - rate)
				}
			}
		}
	})
	return func() float64 {
		close(done)
		wg.Wait()
		reached := float64(written) / time.Since(began).Seconds()
		if s.del != nil {
			for i := max(0, written-rate); i < written; i++ {
				s.del(first + i)
			}
		}
		return reached
	}
}

// yardstick is what verifying the signature costs that a check comes after.
func yardstick(r *Result, rounds int, slot time.Duration) {
	r.table(Table{ID: "verify", Title: "What verifying the token takes (golang-jwt, parse and verify)", Reference: "ES256", Ratio: "p50"})
	asks := map[string]question{}
	algorithms := []string{"HS256", "RS256", "ES256", "EdDSA"}
	for _, alg := range algorithms {
		verify, err := verifier(alg)
		if err != nil {
			r.fail(alg, err)
			return
		}
		asks[alg] = verify
	}
	for round := range rounds + 1 {
		for _, alg := range algorithms {
			h := histogram()
			if _, err := single(slot, asks[alg], nil, 0, h); err != nil {
				r.fail(alg, err)
				return
			}
			if round > 0 {
				r.quantiles("verify", alg, "us", h, nil)
				r.add("verify", alg, "allocs", "", allocations(asks[alg]), nil)
			}
		}
	}
}

func verifier(alg string) (question, error) {
	var private crypto.PrivateKey
	var public any
	switch alg {
	case "HS256":
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // never fails
		private, public = secret, secret
	case "RS256":
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		private, public = k, k.Public()
	case "ES256":
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		private, public = k, k.Public()
	case "EdDSA":
		pub, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		private, public = k, pub
	}
	raw, err := jwt.NewWithClaims(jwt.GetSigningMethod(alg), jwt.MapClaims{
		"iss": issuer, "sub": "user-" + key(1), "jti": key(1), "sid": key(2), "client_id": "web", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(private)
	if err != nil {
		return nil, err
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{alg}))
	keys := func(*jwt.Token) (any, error) { return public, nil }
	return func(int) bool {
		_, err := parser.Parse(raw, keys)
		return err == nil
	}, nil
}

// inSitu is what a service pays for a check of six shapes straight after it has verified an ES256 token, when caches are cold.
func inSitu(r *Result, n, rounds int, slot time.Duration, now time.Time) error {
	t, err := newTable(n, 6, now)
	if err != nil {
		return err
	}
	defer t.Close()
	verify, err := verifier("ES256")
	if err != nil {
		return err
	}
	id := fmt.Sprintf("insitu/%d", n)
	r.table(Table{ID: id, Title: fmt.Sprintf("A check of six shapes with %s records straight after an ES256 verification", size(n)), Reference: "check after the verification", Ratio: "p50"})
	p := newProbes(n, 0, now)
	ms := now.UnixMilli()
	params := map[string]float64{"records": float64(n)}
	i := 0
	for round := range rounds + 1 {
		check, begin, rest, whole, verified := histogram(), histogram(), histogram(), histogram(), histogram()
		for end := time.Now().Add(slot); time.Now().Before(end); i++ {
			c := p.claims[i&probeMask]
			at := time.Now()
			if !verify(0) {
				return errors.New("the token is not accepted")
			}
			record(verified, time.Since(at))
			p.touch(i)
			at = time.Now()
			v := t.Check(c, ms)
			record(check, time.Since(at)-time.Duration(clockCost()))
			if v.Status != revocation.Active {
				return fmt.Errorf("verdict %v %v", v.Status, v.Cause)
			}
			c = p.claims[(i+probeMask/2)&probeMask]
			var pending revocation.Pending
			if !verify(0) { // of the request before
				return errors.New("the token is not accepted")
			}
			p.touch(i + probeMask/2)
			at = time.Now()
			t.Begin(c, ms, &pending)
			first := time.Since(at) - time.Duration(clockCost())
			if !verify(0) {
				return errors.New("the token is not accepted")
			}
			at = time.Now()
			v = pending.End()
			second := time.Since(at) - time.Duration(clockCost())
			record(begin, first)
			record(rest, second)
			record(whole, first+second)
			if v.Status != revocation.Active {
				return fmt.Errorf("verdict %v %v", v.Status, v.Cause)
			}
		}
		if round == 0 {
			continue
		}
		r.quantiles(id, "check after the verification", "ns", check, params)
		r.quantiles(id, "begun before it: what comes before", "ns", begin, params)
		r.quantiles(id, "begun before it: what is left after", "ns", rest, params)
		r.quantiles(id, "begun before it: both", "ns", whole, params)
		r.quantiles(id, "ES256 verification", "ns", verified, params)
		r.add(id, "check after the verification", "% of ES256", "%", 100*float64(check.ValueAtQuantile(50))/float64(verified.ValueAtQuantile(50)), params)
	}
	return nil
}
