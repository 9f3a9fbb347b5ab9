package bloom

import "math/bits"

// hashes are the four numbers from which the library makes the bits of a key.
type hashes [4]uint64

// hash returns the hashes of the 16 bytes of a key, hi first, both big-endian.
func hash(hi, lo uint64) hashes {
	// MurmurHash3 x64-128 reads little-endian words. The first 16 bytes are the same for both hashes.
	const c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
	k1 := bits.RotateLeft64(bits.ReverseBytes64(hi)*c1, 31) * c2
	h1 := bits.RotateLeft64(k1, 27)*5 + 0x52dce729
	k2 := bits.RotateLeft64(bits.ReverseBytes64(lo)*c2, 33) * c1
	h2 := (bits.RotateLeft64(k2, 31)+h1)*5 + 0x38495ab5

	const one = 0x34e09d0b6bdefe38 // the last block of the second hash: a byte 1, times c1, rotated by 31, times c2
	var h hashes
	h[0], h[1] = finish(h1, h2, 16)
	h[2], h[3] = finish(h1^one, h2, 17)
	return h
}

func finish(h1, h2, length uint64) (uint64, uint64) {
	h1 ^= length
	h2 ^= length
	h1 += h2
	h2 += h1
	h1, h2 = mix(h1), mix(h2)
	h1 += h2
	return h1, h2 + h1
}

func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// location returns the number i of the bits of a key, before it is taken modulo m.
func (h *hashes) location(i uint64) uint64 {
	return h[i%2] + i*h[2+(i+i%2)%4/2]
}
