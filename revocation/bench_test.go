package revocation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"sync"
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
		p, err := t.Policy().Plan(Request{Match: m}, benchNow, benchNow)
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range p.Revocations {
			rec := t.Key().Record(r)
			if _, err := t.Define(r.Shape, rec.ExpiresAt, benchNow, true); err != nil {
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

// BenchmarkCheckUnderWrites is a check of a token with six live shapes while records are merged at a rate and sweeps go on.
func BenchmarkCheckUnderWrites(b *testing.B) {
	tokens := benchTokens(b, 1<<15)
	t := benchTable(b, 1_000_000, 6)
	for _, rate := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprint(rate), func(b *testing.B) {
			var wg sync.WaitGroup
			done := make(chan struct{})
			if rate > 0 {
				wg.Go(func() { mergeAt(t, rate, done) })
				wg.Go(func() {
					for {
						select {
						case <-done:
							return
						case <-time.After(50 * time.Millisecond):
							t.Sweep(benchNow)
						}
					}
				})
			}
			var h [8192]int
			i := 0
			for b.Loop() {
				began := time.Now()
				t.Check(tokens[i&(len(tokens)-1)], benchNow)
				h[min(len(h)-1, int(time.Since(began)))]++
				i++
			}
			close(done)
			wg.Wait()
			b.ReportMetric(benchQuantile(h[:], 0.5), "p50-ns")
			b.ReportMetric(benchQuantile(h[:], 0.99), "p99-ns")
		})
	}
}

// mergeAt merges records that live a second, at a rate.
func mergeAt(t *Table, perSecond int, done chan struct{}) {
	shape := Shape{Names: []string{"iss", "jti"}}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for i := uint64(1); ; {
		select {
		case <-done:
			return
		case <-tick.C:
			for range perSecond / 1000 {
				r := Record{Fingerprint: Fingerprint{i * 0x9e3779b97f4a7c15, i}, Shape: shape.ID(), Class: ClassDeny, Value: 1, ExpiresAt: uint32(benchNow/1000) + 1}
				_, _ = t.Merge(r, 1, benchNow, false)
				i++
			}
		}
	}
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

// BenchmarkInSitu is what a service pays: golang-jwt verifies an ES256 token, then the token is checked against six live shapes.
// The check is timed on its own, as a whole and, when it began before the verification, by what is left of it afterwards.
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
	benchSizes(b, func(b *testing.B, n int) {
		t := benchTable(b, n, 6)
		for _, early := range []bool{false, true} {
			name := "check-after"
			if early {
				name = "begin-before"
			}
			b.Run(name, func(b *testing.B) {
				var h [8192]int
				var verify, check time.Duration
				i := 0
				for b.Loop() {
					c := tokens[i&(len(tokens)-1)]
					var p Pending
					if early {
						sink += touch(c)
						t.Begin(c, benchNow, &p)
					}
					began := time.Now()
					if _, err := parser.Parse(raw, keyfunc); err != nil {
						b.Fatal(err)
					}
					sink += touch(c)
					verified := time.Now()
					if early {
						p.End()
					} else {
						t.Check(c, benchNow)
					}
					took := time.Since(verified)
					verify += verified.Sub(began)
					check += took
					h[min(len(h)-1, int(took))]++
					i++
				}
				b.ReportMetric(benchQuantile(h[:], 0.5), "check-p50-ns")
				b.ReportMetric(benchQuantile(h[:], 0.99), "check-p99-ns")
				b.ReportMetric(float64(verify.Nanoseconds())/float64(b.N), "verify-ns")
				b.ReportMetric(100*float64(check)/float64(verify), "%-of-ES256")
			})
		}
	})
}
