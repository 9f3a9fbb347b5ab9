package bloom

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"

	library "github.com/bits-and-blooms/bloom/v3"
)

// Limits of a [Filter].
const (
	// MaxBits is the largest size of a filter, 8 GiB.
	MaxBits = 1 << 36
	// MaxBitsPerKey is the largest number of bits that a key sets.
	MaxBitsPerKey = 64
	// MaxKeys is the largest number of keys to size a filter for.
	MaxKeys = 1 << 32
	// MinRate and MaxRate bound the false positive rate to size a filter for.
	MinRate, MaxRate = 1e-9, 0.5
)

// ErrSize: a size or rate is out of range.
var ErrSize = errors.New("bloom: size out of range")

// Filter is a Bloom filter that can be sent to others. Create it with [New], [FromSize] or [ReadFrom]. The
// zero Filter excludes nothing: Has is always true, Add does nothing, and it cannot be written.
type Filter struct {
	words []uint64 // accessed atomically; bits are only ever set
	m     uint64   // bits in words
	k     uint64
	count atomic.Uint64
	label atomic.Pointer[label]
}

// label is what a filter says about itself; immutable.
type label struct {
	keyID uint64
	asOf  int64
}

// Meta is what a filter says about itself.
type Meta struct {
	KeyID uint64 // under which secret the keys were made
	AsOf  int64  // Unix time in milliseconds for which the filter is complete
	Count uint64 // keys added; one that was added twice counts twice
}

// New returns an empty filter with a false positive rate of about rate once n keys have been added. n is 1
// to [MaxKeys], rate [MinRate] to [MaxRate]; the error matches [ErrSize].
func New(n uint64, rate float64) (*Filter, error) {
	if n < 1 || n > MaxKeys {
		return nil, fmt.Errorf("%w: %d keys, limit 1 to %d", ErrSize, n, uint64(MaxKeys))
	}
	if !(rate >= MinRate && rate <= MaxRate) { // not a number is not in range
		return nil, fmt.Errorf("%w: false positive rate %g, limit %g to %g", ErrSize, rate, MinRate, MaxRate)
	}
	m, k := library.EstimateParameters(uint(n), rate)
	return FromSize((uint64(m)+63)&^63, uint64(k))
}

// FromSize returns an empty filter of m bits of which each key sets k. m is a multiple of 64 up to [MaxBits], k is 1 to
// [MaxBitsPerKey]; the error matches [ErrSize].
func FromSize(m, k uint64) (*Filter, error) {
	if err := checkSize(m, k); err != nil {
		return nil, err
	}
	return &Filter{words: make([]uint64, m/64), m: m, k: k}, nil
}

func checkSize(m, k uint64) error {
	if m == 0 || m%64 != 0 || m > MaxBits {
		return fmt.Errorf("%w: %d bits, limit a multiple of 64 up to %d", ErrSize, m, uint64(MaxBits))
	}
	if k == 0 || k > MaxBitsPerKey {
		return fmt.Errorf("%w: %d bits per key, limit 1 to %d", ErrSize, k, uint64(MaxBitsPerKey))
	}
	return nil
}

// Add adds a key: once Add has returned, Has is true for it.
func (f *Filter) Add(hi, lo uint64) {
	h := hash(hi, lo)
	for i := range f.k {
		at := h.location(i) % f.m
		if !f.bit(at) { // leaves lines that others read alone
			atomic.OrUint64(&f.words[at/64], 1<<(at%64))
		}
	}
	f.count.Add(1)
}

// Has reports false if the key was certainly not added, true if it may have been.
func (f *Filter) Has(hi, lo uint64) bool {
	if f.k == 0 {
		return true
	}
	b := mixBlock(hi, lo)
	h0, h1 := b.first()
	if !f.bit(h0 % f.m) { // location 0: every other absent key ends here, without the second hash
		return false
	}
	h2, h3 := b.second()
	h := hashes{h0, h1, h2, h3}
	for i := uint64(1); i < f.k; i++ {
		if !f.bit(h.location(i) % f.m) {
			return false
		}
	}
	return true
}

func (f *Filter) bit(at uint64) bool { return atomic.LoadUint64(&f.words[at/64])&(1<<(at%64)) != 0 }

// M returns the number of bits.
func (f *Filter) M() uint64 { return f.m }

// K returns the number of bits that a key sets.
func (f *Filter) K() uint64 { return f.k }

// SetLabel states under which secret the keys were made and for which time, in Unix milliseconds, the filter is
// complete: for a filter that is filled by a scan, the time before the scan began.
func (f *Filter) SetLabel(keyID uint64, asOf int64) { f.label.Store(&label{keyID, asOf}) }

// Meta returns what the filter says about itself.
func (f *Filter) Meta() Meta {
	m := Meta{Count: f.count.Load()}
	if l := f.label.Load(); l != nil {
		m.KeyID, m.AsOf = l.keyID, l.asOf
	}
	return m
}

// FillRatio returns the share of bits that are set, 0 to 1. It reads the whole filter.
func (f *Filter) FillRatio() float64 {
	if f.m == 0 {
		return 0
	}
	set := 0
	for i := range f.words {
		set += bits.OnesCount64(atomic.LoadUint64(&f.words[i]))
	}
	return float64(set) / float64(f.m)
}

// FalsePositiveRate estimates the chance that Has is true for a key that was not added, from the bits that
// are set. It reads the whole filter.
func (f *Filter) FalsePositiveRate() float64 { return math.Pow(f.FillRatio(), float64(f.k)) }
