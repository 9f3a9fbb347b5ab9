package bloom

import "math/bits"

// hashes are the four numbers from which the library makes the bits of a key.
type hashes [4]uint64

// hash returns the hashes of a key.
func hash(hi, lo uint64) hashes {
	b := mixBlock(hi, lo)
	h0, h1 := b.first()
	h2, h3 := b.second()
	return hashes{h0, h1, h2, h3}
}

// block is the state of MurmurHash3 x64-128 after the 16 bytes of a key, hi first, both big-endian.
type block struct{ h1, h2 uint64 }

func mixBlock(hi, lo uint64) block {
	const c1, c2 = 0x87c37b91114253d5, 0x4cf5ad432745937f
	// It reads little-endian words.
	k1 := bits.RotateLeft64(bits.ReverseBytes64(hi)*c1, 31) * c2
	h1 := bits.RotateLeft64(k1, 27)*5 + 0x52dce729
	k2 := bits.RotateLeft64(bits.ReverseBytes64(lo)*c2, 33) * c1
	h2 := (bits.RotateLeft64(k2, 31)+h1)*5 + 0x38495ab5
	return block{h1, h2}
}

// first returns the hash of the key.
func (b block) first() (h0, h1 uint64) { return finish(b.h1, b.h2, 16) }

// second returns the hash of the key and a byte 1.
func (b block) second() (h2, h3 uint64) {
	const one = 0x34e09d0b6bdefe38 // the byte 1 times c1, rotated by 31, times c2
	return finish(b.h1^one, b.h2, 17)
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
