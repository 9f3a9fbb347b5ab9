package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/dchest/siphash"
	"pgregory.net/rapid"
)

// The state kept behind the names and the values packed into words must hash as the library hashes their bytes from the start.
func TestSipHashLikeLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := Key(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "key"))
		names := [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "names"))
		input := names[:]
		var values []*Value
		for range rapid.IntRange(0, maxShapeNames).Draw(t, "values") {
			v := String(strings.Repeat("a", rapid.IntRange(0, MaxValueBytes).Draw(t, "long")))
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0:
				v = Int(rapid.Int64().Draw(t, "integer"))
			case 1:
				v = Bool(rapid.Bool().Draw(t, "boolean"))
			case 2, 3:
				v = String(rapid.StringN(0, 40, MaxValueBytes).Draw(t, "text"))
			}
			values = append(values, &v)
			if v.kind == KindString {
				input = append(input, byte(v.kind), byte(len(v.s)>>8), byte(len(v.s)))
				input = append(input, v.s...)
			} else {
				input = append(input, byte(v.kind), 0, 8)
				input = binary.BigEndian.AppendUint64(input, uint64(v.n))
			}
		}
		hi, lo := siphash.Hash128(binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:]), input)
		if got := newSip(key).after(names).hash(values); got != (Fingerprint{hi, lo}) {
			t.Fatalf("hash of %d bytes = %x, the library says %x %x", len(input), got, hi, lo)
		}
	})
}

// The digest of a record is the same PRF under a key of its own.
func TestDigestLikeLibrary(t *testing.T) {
	key := sha256.Sum256(append([]byte("revokd digest\x00"), testKey[:]...))
	record := [RecordSize]byte{0: 1, 9: 2, RecordSize - 1: 3}
	_, lo := siphash.Hash128(binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:16]), record[:])
	if got := testKey.Digest()(&record); got != lo {
		t.Errorf("%x, the library says %x", got, lo)
	}
}

func BenchmarkSipHash(b *testing.B) {
	iss, sub := String("https://id.example"), String("user-00000000000000000000000000000001")
	b.Run("own", func(b *testing.B) {
		s := newSip(Key{1}).after([16]byte{})
		values := []*Value{&iss, &sub}
		for b.Loop() {
			sink += int(s.hash(values).Lo)
		}
	})
	b.Run("library", func(b *testing.B) { // of bytes that are put together already
		buf := make([]byte, 16+6+len(iss.s)+len(sub.s))
		for b.Loop() {
			_, lo := siphash.Hash128(1, 2, buf)
			buf[20] = byte(lo)
		}
	})
}
