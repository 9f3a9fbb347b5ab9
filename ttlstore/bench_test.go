package ttlstore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bits-and-blooms/bloom/v3"
)

// Benchmarks at 1 M and, without -short, 10 M items, beside what a user would write instead, in one process:
//
//	go test -run '^$' -bench . -cpu 1,2 ./ttlstore

var sizes = []int{1_000_000, 10_000_000}

func eachSize(b *testing.B, fn func(b *testing.B, n int)) {
	for _, n := range sizes {
		if n > 1_000_000 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprintf("%dM", n/1_000_000), func(b *testing.B) { fn(b, n) })
	}
}

func filled(b *testing.B, n int) *Store {
	s := newStore(b, Config{})
	for i := range n {
		mustPut(b, s, key(i), 1000, 1, uint64(i))
	}
	return s
}

const probes = 1 << 20

// misses are keys that no store holds, hits such as it holds.
func misses() []Key {
	keys := make([]Key, probes)
	for i := range keys {
		keys[i] = key(i + 1<<40)
	}
	return keys
}

func hits(n int) []Key {
	keys := make([]Key, probes)
	for i := range keys {
		keys[i] = key(rand.IntN(n))
	}
	return keys
}

// ask runs has over keys on all the goroutines of the benchmark.
func ask(b *testing.B, keys []Key, has func(Key) bool, want bool) {
	b.ReportAllocs()
	var next atomic.Int64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		i := int(next.Add(1)) * 7919
		for pb.Next() {
			if has(keys[i&(probes-1)]) != want {
				b.Error("wrong answer")
				return
			}
			i++
		}
	})
}

func BenchmarkNegative(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		keys := misses()
		b.Run("ttlstore", func(b *testing.B) {
			s := filled(b, n)
			ask(b, keys, func(k Key) bool { return s.Has(k, 1) }, false)
		})
		b.Run("map-RWMutex", func(b *testing.B) {
			var mu sync.RWMutex
			m := make(map[Key]uint32, n)
			for i := range n {
				m[key(i)] = 1000
			}
			ask(b, keys, func(k Key) bool {
				mu.RLock()
				defer mu.RUnlock()
				return m[k] >= 1
			}, false)
		})
		b.Run("sync.Map", func(b *testing.B) {
			var m sync.Map
			for i := range n {
				m.Store(key(i), uint32(1000))
			}
			ask(b, keys, func(k Key) bool { _, ok := m.Load(k); return ok }, false)
		})
		b.Run("bloom-v3-RWMutex", func(b *testing.B) { // answers maybe, and forgets nothing
			var mu sync.RWMutex
			f := bloom.NewWithEstimates(uint(n), 1e-3)
			var buf [16]byte
			bytes := func(k Key, buf []byte) []byte {
				for i := range 8 {
					buf[i], buf[8+i] = byte(k.Hi>>(8*i)), byte(k.Lo>>(8*i))
				}
				return buf
			}
			for i := range n {
				f.Add(bytes(key(i), buf[:]))
			}
			maybe := 0
			ask(b, keys, func(k Key) bool {
				var buf [16]byte
				mu.RLock()
				defer mu.RUnlock()
				if f.Test(bytes(k, buf[:])) {
					maybe++
				}
				return false
			}, false)
		})
	})
}

func BenchmarkPositive(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		s := filled(b, n)
		keys := hits(n)
		b.ResetTimer()
		ask(b, keys, func(k Key) bool { return s.Has(k, 1) }, true)
	})
}

func BenchmarkBatch128(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		s := filled(b, n)
		keys := misses()
		var out [128]bool
		i := 0
		b.ReportAllocs()
		for b.Loop() {
			s.HasBatch(keys[i:i+128], 1, out[:])
			i = (i + 128) & (probes - 1)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/128, "ns/key")
	})
}

// BenchmarkUnderWrites measures single lookups, median and 99th percentile, while writers work at a rate, what they wrote expires and
// is swept, and filters are rebuilt without a pause.
func BenchmarkUnderWrites(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		s := filled(b, n)
		for _, c := range []struct {
			name     string
			writes   int // a second
			rebuilds bool
		}{{"0", 0, false}, {"10k", 10_000, true}, {"100k", 100_000, true}, {"rebuilds", 0, true}} {
			for _, there := range []bool{false, true} {
				name, keys := c.name+"/miss", misses()
				if there {
					name, keys = c.name+"/hit", hits(n)
				}
				b.Run(name, func(b *testing.B) {
					var wg sync.WaitGroup
					var now, written, rebuilt atomic.Int64
					now.Store(1)
					done := make(chan struct{})
					before := s.Stats()
					if c.writes > 0 {
						wg.Go(func() { writeAt(b, s, c.writes, &now, &written, done) })
					}
					if c.rebuilds {
						wg.Go(func() { rebuildAll(s, &now, &rebuilt, done) })
					}
					var h [4096]int // ns
					i := 0
					b.ReportAllocs()
					for b.Loop() {
						began := time.Now()
						has := s.Has(keys[i&(probes-1)], 1)
						h[min(len(h)-1, int(time.Since(began)))]++
						if has != there {
							b.Fatal("wrong answer")
						}
						i++
					}
					elapsed := b.Elapsed()
					close(done)
					wg.Wait()
					b.ReportMetric(quantile(h[:], 0.5), "p50-ns")
					b.ReportMetric(quantile(h[:], 0.99), "p99-ns")
					if elapsed < time.Second {
						return // a trial run
					}
					expired := s.Stats().Expired - before.Expired
					if c.writes > 0 {
						b.ReportMetric(float64(written.Load())/elapsed.Seconds(), "writes/s")
						b.ReportMetric(float64(expired), "expired")
					}
					if c.rebuilds {
						b.ReportMetric(float64(rebuilt.Load()), "rebuilds")
					}
					if c.writes > 0 && expired == 0 || c.rebuilds && rebuilt.Load() == 0 {
						b.Fatalf("%d expired, %d rebuilds: nothing to disturb a lookup", expired, rebuilt.Load())
					}
				})
			}
		}
	})
}

// writeAt puts items at a rate, by the time that has passed. now advances by one each tenth of a second, up to the deadline of the items that
// fill the store, and what is written lives until the next.
func writeAt(b *testing.B, s *Store, perSecond int, now, written *atomic.Int64, done chan struct{}) {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	began := time.Now()
	for i := rand.IntN(1<<60) | 1<<41; ; {
		select {
		case <-done:
			return
		case <-t.C:
		}
		passed := time.Since(began)
		at := min(1000, 1+passed.Milliseconds()/100)
		now.Store(at)
		for ; written.Load() < int64(passed.Seconds()*float64(perSecond)); written.Add(1) {
			if err := put(s, key(i), uint32(at)+1, uint32(at), false, 0); err != nil {
				b.Error(err)
				return
			}
			i++
		}
	}
}

func rebuildAll(s *Store, now, rebuilt *atomic.Int64, done chan struct{}) {
	for n := 0; ; n = (n + 1) % len(s.shards) {
		select {
		case <-done:
			return
		default:
			s.SweepShard(n, uint32(now.Load()))
			sh := &s.shards[n]
			sh.mu.Lock()
			_ = s.rebuild(n, sh, s.tables[n].Load().buckets)
			sh.mu.Unlock()
			rebuilt.Add(1)
			if s.memory.wantsGC() {
				runtime.GC()
			}
		}
	}
}

func quantile(h []int, q float64) float64 {
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

// BenchmarkMemory measures bytes an item as the slope between 1 M and 10 M items, by Stats and by the resident set,
// and a full collection with all of them in memory.
func BenchmarkMemory(b *testing.B) {
	if testing.Short() {
		return
	}
	for b.Loop() {
		s := newStore(b, Config{})
		measure := func(from, to int) (stats, lookup, rss float64) {
			for i := from; i < to; i++ {
				mustPut(b, s, key(i), 1000, 1, 0)
			}
			runtime.GC()
			runtime.GC()
			st := s.Stats()
			return float64(st.Bytes), float64(st.LookupBytes), float64(residentSet(b))
		}
		s1, l1, r1 := measure(0, sizes[0])
		s10, l10, r10 := measure(sizes[0], sizes[1])
		n := float64(sizes[1] - sizes[0])
		b.ReportMetric((s10-s1)/n, "stats-B/item")
		b.ReportMetric((l10-l1)/n, "lookup-B/item")
		b.ReportMetric((r10-r1)/n, "rss-B/item")
		var gc []time.Duration
		for range 5 {
			began := time.Now()
			runtime.GC()
			gc = append(gc, time.Since(began))
		}
		b.ReportMetric(float64(min(gc[0], gc[1], gc[2], gc[3], gc[4]).Microseconds())/1000, "gc-ms")
	}
}

func residentSet(b *testing.B) int {
	f, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(f))[1])
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func BenchmarkUpdate(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		s := filled(b, n)
		i := n
		b.ReportAllocs()
		for b.Loop() {
			if err := put(s, key(i), 1000, 1, false, 0); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// BenchmarkSweep frees all of n items.
func BenchmarkSweep(b *testing.B) {
	eachSize(b, func(b *testing.B, n int) {
		for b.Loop() {
			b.StopTimer()
			s := filled(b, n)
			b.StartTimer()
			if st := s.Sweep(1001); st.Expired != n {
				b.Fatal(st)
			}
		}
	})
}
