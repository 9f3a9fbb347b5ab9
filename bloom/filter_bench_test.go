package bloom

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	library "github.com/bits-and-blooms/bloom/v3"
)

var sink atomic.Uint64

// locked is the library as its users make it safe.
type locked struct {
	mu  sync.RWMutex
	lib *library.BloomFilter
}

func (l *locked) test(b []byte) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.lib.Test(b)
}

// Keys that are not in the filter, 1 % false positives, against the library behind an RWMutex.
func BenchmarkFilterHas(b *testing.B) {
	sizes := []uint64{1_000_000, 10_000_000}
	if testing.Short() {
		sizes = []uint64{10_000}
	}
	for _, n := range sizes {
		f := mustNew(b, n, 0.01)
		l := &locked{lib: library.From(make([]uint64, f.M()/64), uint(f.K()))}
		rng := rand.New(rand.NewPCG(5, 6))
		for range n {
			f.Add(rng.Uint64(), rng.Uint64())
		}
		copy(l.lib.BitSet().Words(), f.words)
		probes := make([][2]uint64, 1<<20)
		bytes := make([][]byte, len(probes))
		for i := range probes {
			probes[i] = [2]uint64{rng.Uint64(), rng.Uint64()}
			bytes[i] = key(probes[i][0], probes[i][1])
		}
		var start atomic.Uint64
		b.Run(fmt.Sprintf("n=%d/ours", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				maybe := uint64(0)
				for i := start.Add(1 << 18); pb.Next(); i++ {
					p := &probes[i%uint64(len(probes))]
					if f.Has(p[0], p[1]) {
						maybe++
					}
				}
				sink.Add(maybe)
			})
		})
		b.Run(fmt.Sprintf("n=%d/library", n), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				maybe := uint64(0)
				for i := start.Add(1 << 18); pb.Next(); i++ {
					if l.test(bytes[i%uint64(len(bytes))]) {
						maybe++
					}
				}
				sink.Add(maybe)
			})
		})
	}
}

func BenchmarkFilterAdd(b *testing.B) {
	f := mustNew(b, 1_000_000, 0.01)
	b.ReportAllocs()
	for i := range uint64(b.N) {
		f.Add(i*0x9e3779b97f4a7c15, i)
	}
}
