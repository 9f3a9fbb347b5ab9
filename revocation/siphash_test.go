package revocation

import (
	"testing"

	"github.com/dchest/siphash"
	"pgregory.net/rapid"
)

// The state kept behind the names must hash as the library does from the start.
func TestSipHashLikeLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := Key(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
		names := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "names"))
		rest := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "rest")
		k0, k1 := le64(key[:8]), le64(key[8:])
		hi, lo := siphash.Hash128(k0, k1, append(names[:], rest...))
		if got := newSip(key).after(names).sum(len(names), rest); got != (Fingerprint{hi, lo}) {
			t.Fatalf("sum = %x, the library says %x %x", got, hi, lo)
		}
	})
}

func le64(b []byte) (n uint64) {
	for i, c := range b[:8] {
		n |= uint64(c) << (8 * i)
	}
	return n
}

func BenchmarkSipHash(b *testing.B) {
	buf := make([]byte, 78)
	b.Run("own", func(b *testing.B) {
		s := newSip(Key{1}).after([16]byte{})
		for b.Loop() {
			f := s.sum(16, buf[16:])
			buf[20] = byte(f.Lo)
		}
	})
	b.Run("library", func(b *testing.B) {
		for b.Loop() {
			_, lo := siphash.Hash128(1, 2, buf)
			buf[20] = byte(lo)
		}
	})
}
