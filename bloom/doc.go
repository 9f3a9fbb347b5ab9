// Package bloom has Bloom filters over 128-bit keys. It knows bits and keys, and neither what a key stands for
// nor when it expires.
//
// A Bloom filter answers "certainly not" or "maybe". A key that was added is never denied; a key that was
// not is taken for one with a chance that the size fixes. Keys must be well mixed already, by a keyed hash
// if their owners are not to be trusted.
//
// There are two kinds. Segments are laid out for the hot path of a table in the same process: one cache line for a
// key. A [Filter] is for the others: it has the layout of github.com/bits-and-blooms/bloom/v3, which
// programs in other languages can read with little code, and an envelope around it for the way.
//
// # The envelope
//
// [Filter.WriteTo] writes, and [ReadFrom] reads (integers are big-endian):
//
//	offset  bytes
//	     0      8  magic, the ASCII letters "rvkbloom"
//	     8      8  version, 1
//	    16      8  key id: under which secret the keys were made; another secret's keys mean nothing here
//	    24      8  count: keys added
//	    32      8  as of: Unix time in milliseconds for which the filter is complete, signed
//	    40      8  length of the payload, 24 + m/8
//	    48      8  m, the number of bits, a multiple of 64   | the payload: exactly what WriteTo
//	    56      8  k, the number of bits per key, 1 to 64    | and ReadFrom of the library write
//	    64      8  m again                                   | and read; bit i is bit i mod 64
//	    72    m/8  the bits, as m/64 words                   | of word i/64
//	72+m/8      4  CRC-32C (Castagnoli) of everything before
//
// The bits of a key: with (h0, h1) the MurmurHash3 x64-128, seed 0, of its 16 bytes (hi, lo) and (h2, h3) that of the same
// bytes and a byte 1, bit number i of k is, modulo 2^64 and then modulo m,
//
//	h[i mod 2] + i * h[2 + ((i + i mod 2) mod 4) / 2]
//
// The checksum finds accidents, not forgers: take filters only over a channel that you trust.
//
// # Concurrency
//
// All methods of [Filter] may be called concurrently. Has is wait-free and allocates nothing.
package bloom
