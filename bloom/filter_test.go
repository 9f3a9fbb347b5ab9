package bloom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	library "github.com/bits-and-blooms/bloom/v3"
	"pgregory.net/rapid"
)

// key is the form in which the library takes a key.
func key(hi, lo uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)
}

func mustSize(tb testing.TB, m, k uint64) *Filter {
	tb.Helper()
	f, err := FromSize(m, k)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func mustNew(tb testing.TB, n uint64, rate float64) *Filter {
	tb.Helper()
	f, err := New(n, rate)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

// The library is the oracle for the bits of a key.
func TestLocationsAreTheLibrarys(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	keys := [][2]uint64{{0, 0}, {0, 1}, {1, 0}, {math.MaxUint64, math.MaxUint64}, {1 << 63, 1}, {0x0102030405060708, 0x090a0b0c0d0e0f10}}
	for range 20000 {
		keys = append(keys, [2]uint64{rng.Uint64(), rng.Uint64()})
	}
	for _, k := range keys {
		h := hash(k[0], k[1])
		for i, want := range library.Locations(key(k[0], k[1]), MaxBitsPerKey) {
			if got := h.location(uint64(i)); got != want {
				t.Fatalf("key %x: location %d is %x, the library's is %x", k, i, got, want)
			}
		}
	}
}

func TestNoFalseNegatives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, err := FromSize(64*rapid.Uint64Range(1, 200).Draw(t, "words"), rapid.Uint64Range(1, MaxBitsPerKey).Draw(t, "k"))
		if err != nil {
			t.Fatal(err)
		}
		model := library.From(make([]uint64, f.M()/64), uint(f.K()))
		keys := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) [2]uint64 {
			return [2]uint64{rapid.Uint64().Draw(t, "hi"), rapid.Uint64().Draw(t, "lo")}
		}), 1, 100).Draw(t, "keys")
		added := keys[:len(keys)/2+1]
		for _, k := range added {
			f.Add(k[0], k[1])
			model.Add(key(k[0], k[1]))
		}
		for _, k := range added {
			if !f.Has(k[0], k[1]) {
				t.Fatalf("key %x is missing", k)
			}
		}
		for _, k := range keys {
			if f.Has(k[0], k[1]) != model.Test(key(k[0], k[1])) {
				t.Fatalf("key %x: the library differs", k)
			}
		}
		if got := f.Meta().Count; got != uint64(len(added)) {
			t.Fatalf("count %d, want %d", got, len(added))
		}
	})
}

func TestFalsePositiveRate(t *testing.T) {
	const probes = 1_000_000
	for _, test := range []struct {
		n    uint64
		rate float64
	}{{1000, 0.1}, {100_000, 0.01}, {100_000, 0.001}, {64, 0.05}} {
		// A small filter is an accident of its keys: take the mean of several.
		rounds := max(1, 10_000/int(test.n))
		found, estimated := 0, 0.0
		rng := rand.New(rand.NewPCG(3, 4))
		for range rounds {
			f := mustNew(t, test.n, test.rate)
			for range test.n {
				f.Add(rng.Uint64(), rng.Uint64())
			}
			for range probes / rounds {
				if f.Has(rng.Uint64(), rng.Uint64()) {
					found++
				}
			}
			estimated += f.FalsePositiveRate() / float64(rounds)
		}
		measured := float64(found) / probes
		if measured > 1.2*test.rate || measured < 0.5*test.rate {
			t.Errorf("%d keys: false positive rate %g, want %g", test.n, measured, test.rate)
		}
		if math.Abs(estimated-measured) > 0.1*measured {
			t.Errorf("%d keys: estimated rate %g, measured %g", test.n, estimated, measured)
		}
	}
}

func TestFillRatio(t *testing.T) {
	f := mustSize(t, 640, 1)
	if f.FillRatio() != 0 || f.FalsePositiveRate() != 0 {
		t.Error("an empty filter is not empty")
	}
	f.Add(1, 2)
	if got := f.FillRatio(); got != 1.0/640 {
		t.Errorf("one bit: %g", got)
	}
	for i := range f.words {
		f.words[i] = math.MaxUint64
	}
	if f.FillRatio() != 1 || f.FalsePositiveRate() != 1 {
		t.Error("a full filter is not full")
	}
}

func TestSizes(t *testing.T) {
	type size struct {
		n    uint64
		rate float64
	}
	sizes := []size{{1, MinRate}, {1, MaxRate}, {12345, 1e-6}}
	for n := range uint64(1000) {
		sizes = append(sizes, size{n + 1, 0.01})
	}
	for _, test := range sizes {
		f := mustNew(t, test.n, test.rate)
		m, k := library.EstimateParameters(uint(test.n), test.rate)
		if f.M() < uint64(m) || f.M() >= uint64(m)+64 || f.M()%64 != 0 || f.K() != uint64(k) {
			t.Errorf("%d keys at %g: m %d, k %d; the library says %d, %d", test.n, test.rate, f.M(), f.K(), m, k)
		}
	}
	for _, test := range []size{{0, 0.01}, {MaxKeys + 1, 0.01}, {MaxKeys, MinRate}, {10, 0}, {10, -1}, {10, 0.51}, {10, MinRate / 2}, {10, math.NaN()}, {10, math.Inf(1)}} {
		if f, err := New(test.n, test.rate); f != nil || !errors.Is(err, ErrSize) {
			t.Errorf("%d keys at %g: %v", test.n, test.rate, err)
		}
	}
	for _, test := range [][2]uint64{{0, 1}, {63, 1}, {65, 1}, {MaxBits + 64, 1}, {math.MaxUint64 &^ 63, 1}, {64, 0}, {64, MaxBitsPerKey + 1}} {
		if f, err := FromSize(test[0], test[1]); f != nil || !errors.Is(err, ErrSize) {
			t.Errorf("m %d, k %d: %v", test[0], test[1], err)
		}
	}
}

// What is not known must not be denied.
func TestZeroFilter(t *testing.T) {
	var f Filter
	if !f.Has(1, 2) {
		t.Error("the zero filter denies a key")
	}
	f.Add(1, 2)
	if f.FillRatio() != 0 || f.FalsePositiveRate() != 1 {
		t.Errorf("fill ratio %g, false positive rate %g", f.FillRatio(), f.FalsePositiveRate())
	}
	if n, err := f.WriteTo(&bytes.Buffer{}); n != 0 || !errors.Is(err, ErrSize) {
		t.Errorf("written: %d bytes, %v", n, err)
	}
}

func TestAllocatesNothing(t *testing.T) {
	f := mustNew(t, 1000, 0.01)
	lo := uint64(0)
	if got := testing.AllocsPerRun(1000, func() { lo++; f.Add(1, lo); f.Has(1, lo); f.Has(2, lo) }); got != 0 {
		t.Errorf("%g allocations", got)
	}
}

// Writers, readers and a copy on its way at once: what was added before is in every copy.
func TestConcurrently(t *testing.T) {
	f := mustNew(t, 4000, 0.01)
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			for i := range uint64(1000) {
				f.Add(w, i)
				if !f.Has(w, i) {
					t.Errorf("key %d of writer %d is missing", i, w)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			f.SetLabel(7, 8)
			var b bytes.Buffer
			if _, err := f.WriteTo(&b); err != nil {
				t.Error(err)
			}
			g, err := ReadFrom(&b, 1<<20)
			if err != nil {
				t.Error(err)
				return
			}
			if fill, now := g.FillRatio(), f.FillRatio(); fill > now {
				t.Errorf("fill ratio %g in a copy, %g afterwards", fill, now)
			}
		}
	})
	wg.Wait()
	for w := range uint64(4) {
		for i := range uint64(1000) {
			if !f.Has(w, i) {
				t.Fatalf("key %d of writer %d is missing", i, w)
			}
		}
	}
	if got := f.Meta().Count; got != 4000 {
		t.Errorf("count %d", got)
	}
}
