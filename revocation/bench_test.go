package revocation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/ttlstore"
)

// Whole-token checks at 1 M and, without -short, 10 M live records:
//
//	go test -run '^$' -bench . ./revocation

var benchNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).UnixMilli()

// benchTable holds n denied tokens in the first shape, and ten records in each further one.
func benchTable(b *testing.B, n, shapes int) *Table {
	b.Helper()
	t, err := NewTable(TableConfig{Key: Key{1, 2, 3}, Store: ttlstore.Config{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = t.Close() })
	merge := func(m Match) {
		p, err := t.Plan(Request{Match: m}, benchNow, benchNow)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range p.Revocations {
			rec := t.Record(r)
			if _, err := t.Define(r.Shape, rec.ExpiresAt, benchNow, Admin); err != nil {
				b.Fatal(err)
			}
			if _, err := t.Merge(rec, 1, benchNow, true); err != nil {
				b.Fatal(err)
			}
		}
	}
	names := []string{"jti", "sub", "sid", "client_id", "tenant_id", HeaderKID}
	for i, name := range names[:shapes] {
		count := n
		switch i {
		case 0:
		case 1, 2:
			count = n / 10
		default:
			count = 10
		}
		for j := range count {
			m, err := NewMatch(map[string]Value{"iss": String("https://id.example"), name: String(fmt.Sprintf("%s-%032d", name, j))})
			if err != nil {
				b.Fatal(err)
			}
			merge(m)
		}
	}
	return t
}

// benchTokens are claims that no record matches.
func benchTokens(b *testing.B, n int) []*Claims {
	b.Helper()
	tokens := make([]*Claims, n)
	for i := range tokens {
		c, err := ParseClaims(fmt.Appendf(nil,
			`{"iss":"https://id.example","sub":"user-%032d","jti":"id-%034d","sid":"session-%029d","client_id":"web","tenant_id":"acme","iat":%d,"exp":%d}`,
			i, i, i, benchNow/1000-60, benchNow/1000+3600))
		if err != nil {
			b.Fatal(err)
		}
		c.SetHeaderKID("k1")
		tokens[i] = c
	}
	return tokens
}

// touch reads a token's claims, as parsing it has just done where tokens come from.
func touch(c *Claims) (sum int) {
	for i := range c.known {
		for j := 0; j < len(c.known[i].s); j += 32 {
			sum += int(c.known[i].s[j])
		}
	}
	return sum
}

var sink int

func benchSizes(b *testing.B, fn func(b *testing.B, n int)) {
	for _, n := range []int{1_000_000, 10_000_000} {
		if n > 1_000_000 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprintf("%dM", n/1_000_000), func(b *testing.B) { fn(b, n) })
	}
}

// BenchmarkNegative is the lookup of one key that is not there, hashing included: a fingerprint of issuer and jti, then the table. Back to
// back, and one at a time with the clock, whose own reading (clock-ns) is in p50 and p99.
func BenchmarkNegative(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	benchSizes(b, func(b *testing.B, n int) {
		t := benchTable(b, n, 1)
		start := (Key{1, 2, 3}).start([]string{"iss", "jti"})
		tweak := tweak(Shape{Names: []string{"iss", "jti"}}, ClassDeny)
		now := unixSeconds(benchNow)
		has := func(c *Claims) bool {
			f := start.hash([]*Value{&c.known[0], &c.known[2]}).xor(tweak)
			return t.store.Has(ttlstore.Key{Hi: f.Hi, Lo: f.Lo}, now)
		}
		b.Run("back-to-back", func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				sink += touch(tokens[(i+8)&(len(tokens)-1)])
				if has(tokens[i&(len(tokens)-1)]) {
					b.Fatal("there")
				}
				i++
			}
		})
		b.Run("single", func(b *testing.B) {
			b.ReportAllocs()
			var h, clock [8192]int
			i := 0
			for b.Loop() {
				c := tokens[i&(len(tokens)-1)]
				sink += touch(c)
				began := time.Now()
				clock[min(len(clock)-1, int(time.Since(began)))]++
				began = time.Now()
				has(c)
				h[min(len(h)-1, int(time.Since(began)))]++
				i++
			}
			b.ReportMetric(benchQuantile(h[:], 0.5), "p50-ns")
			b.ReportMetric(benchQuantile(h[:], 0.99), "p99-ns")
			b.ReportMetric(benchQuantile(clock[:], 0.5), "clock-ns")
		})
	})
}

// BenchmarkCheck is a check of a whole token, back to back.
func BenchmarkCheck(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	benchSizes(b, func(b *testing.B, n int) {
		for _, shapes := range []int{1, 3, 6} {
			t := benchTable(b, n, shapes)
			b.Run(fmt.Sprintf("%d-shapes", shapes), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					c := tokens[i&(len(tokens)-1)]
					sink += touch(tokens[(i+8)&(len(tokens)-1)]) // the claims are in the cache, the table is not
					if v := t.Check(c, benchNow); v.Status != Active {
						b.Fatal(v.Status, v.Cause)
					}
					i++
				}
			})
			if shapes != 6 {
				continue
			}
			b.Run("6-shapes-revoked", func(b *testing.B) {
				b.ReportAllocs()
				revoked := new(Claims)
				if err := revoked.Set("iss", String("https://id.example")); err != nil {
					b.Fatal(err)
				}
				revoked.SetIssuedAt(benchNow - 60_000)
				revoked.SetExpiresAt(benchNow + 60_000)
				ids := make([]Value, 1<<14)
				for i := range ids {
					ids[i] = String(fmt.Sprintf("jti-%032d", i*7919%n))
				}
				i := 0
				for b.Loop() {
					_ = revoked.Set("jti", ids[i&(len(ids)-1)])
					if v := t.Check(revoked, benchNow); v.Status != Revoked {
						b.Fatal(v.Status, v.Cause)
					}
					i++
				}
			})
		}
	})
}

// BenchmarkCheckTwoKeys is a check of a whole token with six live shapes, of which there are records under one key, or under both.
func BenchmarkCheckTwoKeys(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	for _, both := range []string{"one", "second-without-records", "both"} {
		t := benchTable(b, 100_000, 6)
		if both != "one" {
			ring, err := t.Ring().Add(Key{4, 5, 6})
			if err == nil {
				err = t.SetRing(ring, benchNow)
			}
			if err != nil {
				b.Fatal(err)
			}
			if both == "both" {
				for _, l := range t.LiveClasses(benchNow) {
					l.Key = 1
					if err := t.Await(l, benchNow); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		b.Run(both, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				c := tokens[i&(len(tokens)-1)]
				sink += touch(tokens[(i+8)&(len(tokens)-1)])
				if v := t.Check(c, benchNow); v.Status != Active {
					b.Fatal(v.Status, v.Cause)
				}
				i++
			}
		})
	}
}

// BenchmarkCheckUnderWrites is a check of a token, of which nothing is revoked or its jti, while records are merged at a rate, expire, are swept, and
// filters are rebuilt as far as that makes it worth while (ttlstore's benchmark rebuilds without a pause). Guarded time runs a thousand times as fast for the records that are written, so that they expire.
func BenchmarkCheckUnderWrites(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	benchSizes(b, func(b *testing.B, n int) {
		for _, shapes := range []int{1, 3, 6} {
			t := benchTable(b, n, shapes)
			revoked := benchRevoked(b, n)
			for _, rate := range []int{0, 10_000, 100_000} {
				for _, hit := range []bool{false, true} {
					claims, want, name := tokens, Active, "active"
					if hit {
						claims, want, name = revoked, Revoked, "revoked"
					}
					b.Run(fmt.Sprintf("%d-shapes/%d-writes/%s", shapes, rate, name), func(b *testing.B) {
						w := benchWrites{table: t, rate: rate}
						before := t.Stats(benchNow)
						stop := w.start(b)
						var h [8192]int
						i := 0
						b.ReportAllocs()
						for b.Loop() {
							began := time.Now()
							v := t.Check(claims[i&(len(claims)-1)], benchNow)
							h[min(len(h)-1, int(time.Since(began)))]++
							if v.Status != want {
								b.Fatal(v.Status, v.Cause)
							}
							i++
						}
						elapsed := b.Elapsed()
						stop()
						after := t.Stats(benchNow)
						b.ReportMetric(benchQuantile(h[:], 0.5), "p50-ns")
						b.ReportMetric(benchQuantile(h[:], 0.99), "p99-ns")
						if rate > 0 && elapsed > time.Second {
							expired, rebuilds := after.Expired-before.Expired, after.Rebuilds+after.Grows-before.Rebuilds-before.Grows
							b.ReportMetric(float64(w.written)/elapsed.Seconds(), "writes/s")
							b.ReportMetric(float64(expired), "expired")
							b.ReportMetric(float64(rebuilds), "rebuilds")
							if expired == 0 {
								b.Fatal("nothing expired: there was little to disturb a check")
							}
						}
					})
				}
			}
		}
	})
}

// benchRevoked are claims whose jti is denied.
func benchRevoked(b *testing.B, n int) []*Claims {
	b.Helper()
	list := make([]*Claims, 1<<14)
	for i := range list {
		c, err := ParseClaims(fmt.Appendf(nil, `{"iss":"https://id.example","sub":"user-%032d","jti":"jti-%032d","sid":"session-%029d","client_id":"web","tenant_id":"acme","iat":%d,"exp":%d}`,
			i, i*7919%n, i, benchNow/1000-60, benchNow/1000+3600))
		if err != nil {
			b.Fatal(err)
		}
		c.SetHeaderKID("k1")
		list[i] = c
	}
	return list
}

// benchWrites merges and sweeps beside a benchmark.
type benchWrites struct {
	table   *Table
	rate    int // a second
	written int
}

// start returns what ends it.
func (w *benchWrites) start(b *testing.B) (stop func()) {
	if w.rate == 0 {
		return func() {}
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	var clock atomic.Int64 // milliseconds, of those who write and sweep
	clock.Store(benchNow)
	wg.Go(func() { w.merge(b, &clock, done) })
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
				w.table.Sweep(clock.Load())
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

// merge keeps to the rate by the time that has passed, whatever the machine makes of a tick. A record lives a second and the slack, and that
// passes in six tenths of a second.
func (w *benchWrites) merge(b *testing.B, clock *atomic.Int64, done chan struct{}) {
	shape := Shape{Names: []string{"iss", "jti"}}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for i := rand64(); ; {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		passed := time.Since(began)
		now := benchNow + passed.Milliseconds()*1000
		clock.Store(now)
		for ; w.written < int(passed.Seconds()*float64(w.rate)); w.written++ {
			r := Record{Fingerprint: Fingerprint{i * 0x9e3779b97f4a7c15, i}, Shape: shape.ID(), Class: ClassDeny, Value: 1, ExpiresAt: uint32(now/1000) + 1}
			if _, err := w.table.Merge(r, 1, now, false); err != nil {
				b.Error(err)
				return
			}
			i++
		}
	}
}

func rand64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func benchQuantile(h []int, q float64) float64 {
	total, sum := 0, 0
	for _, n := range h {
		total += n
	}
	for i, n := range h {
		if sum += n; float64(sum) >= q*float64(total) {
			return float64(i)
		}
	}
	return float64(len(h))
}

// BenchmarkInSitu is what a service pays: golang-jwt verifies an ES256 token, then the token is checked against six live shapes. The check is
// timed on its own: begin-ns is what of it comes before the verification, rest-ns what comes after it, total-ns both, all medians and
// less what reading the clock takes by itself (clock-ns). The share is that of the medians. early: the check begins before.
func BenchmarkInSitu(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	raw, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "https://id.example", "sub": "alice", "jti": "x", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(key)
	if err != nil {
		b.Fatal(err)
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}))
	keyfunc := func(*jwt.Token) (any, error) { return key.Public(), nil }
	tokens := benchTokens(b, 1<<15)
	const unit = 50 // ns, of verifications
	benchSizes(b, func(b *testing.B, n int) {
		t := benchTable(b, n, 6)
		for _, early := range []bool{false, true} {
			name := "check-after"
			if early {
				name = "begin-before"
			}
			b.Run(name, func(b *testing.B) {
				var begins, rests, totals, verifies, clock [8192]int
				note := func(h *[8192]int, d int) { h[min(len(h)-1, d)]++ }
				i := 0
				for b.Loop() {
					c := tokens[i&(len(tokens)-1)]
					i++
					var p Pending
					var begin time.Duration
					if early {
						if _, err := parser.Parse(raw, keyfunc); err != nil { // of the request before: Begin too comes straight after one
							b.Fatal(err)
						}
						sink += touch(c)
						began := time.Now()
						t.Begin(c, benchNow, &p)
						begin = time.Since(began)
					}
					began := time.Now()
					if _, err := parser.Parse(raw, keyfunc); err != nil {
						b.Fatal(err)
					}
					verify := time.Since(began)
					sink += touch(c)
					began = time.Now()
					note(&clock, int(time.Since(began)))
					began = time.Now()
					var v Verdict
					if early {
						v = p.End()
					} else {
						v = t.Check(c, benchNow)
					}
					rest := time.Since(began)
					if v.Status != Active {
						b.Fatal(v.Status, v.Cause)
					}
					note(&begins, int(begin))
					note(&rests, int(rest))
					note(&totals, int(begin+rest))
					note(&verifies, int(verify)/unit)
				}
				tick, verify := benchQuantile(clock[:], 0.5), benchQuantile(verifies[:], 0.5)*unit
				total := benchQuantile(totals[:], 0.5) - tick
				b.ReportMetric(tick, "clock-ns")
				b.ReportMetric(verify, "verify-ns")
				if early {
					b.ReportMetric(benchQuantile(begins[:], 0.5)-tick, "begin-ns")
					total -= tick
				}
				b.ReportMetric(benchQuantile(rests[:], 0.5)-tick, "rest-ns")
				b.ReportMetric(benchQuantile(rests[:], 0.99)-tick, "rest-p99-ns")
				b.ReportMetric(total, "total-ns")
				b.ReportMetric(100*total/verify, "%-of-ES256")
			})
		}
	})
}
