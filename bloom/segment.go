package bloom

import (
	"math/bits"
	"sync/atomic"
)

// SegmentLine is the number of words of a segment's line: one cache line of 64 bytes.
const SegmentLine = 8

// SegmentBits is the number of bits of a segment for each key. Each key sets one bit in each word of one
// line: 12 bits a key make about one false "maybe" in 230.
const SegmentBits = 12

// A segment is a blocked Bloom filter (Putze, Sanders, Singler: Cache-, Hash- and Space-Efficient Bloom Filters, 2007): a slice of
// whole lines that its owner allocates, so that it may lie outside the Go heap. These functions may be called concurrently;
// a key that has been added before SegmentHas began is seen.

// SegmentIndex returns the index of the first word of a key's line in a segment of so many lines.
func SegmentIndex(lo uint64, lines uint64) uint64 {
	line, _ := bits.Mul64(lo, lines)
	return line * SegmentLine
}

// SegmentHas reports whether a key may be in its line: false is certain.
func SegmentHas(line *[SegmentLine]uint64, hi uint64) bool {
	x := hi * segmentMix
	x ^= x >> 32
	return atomic.LoadUint64(&line[0])>>(x&63)&
		(atomic.LoadUint64(&line[1])>>(x>>6&63))&
		(atomic.LoadUint64(&line[2])>>(x>>12&63))&
		(atomic.LoadUint64(&line[3])>>(x>>18&63))&
		(atomic.LoadUint64(&line[4])>>(x>>24&63))&
		(atomic.LoadUint64(&line[5])>>(x>>30&63))&
		(atomic.LoadUint64(&line[6])>>(x>>36&63))&
		(atomic.LoadUint64(&line[7])>>(x>>42&63))&1 != 0
}

// SegmentAdd adds a key to its line.
func SegmentAdd(line *[SegmentLine]uint64, hi uint64) {
	x := hi * segmentMix
	x ^= x >> 32
	for i := range line {
		if bit := uint64(1) << (x & 63); atomic.LoadUint64(&line[i])&bit == 0 {
			atomic.OrUint64(&line[i], bit)
		}
		x >>= 6
	}
}

// segmentMix spreads a half whose top bits chose a shard and a bucket. It is 2^64 divided by the golden ratio, odd.
const segmentMix = 0x9e3779b97f4a7c15
