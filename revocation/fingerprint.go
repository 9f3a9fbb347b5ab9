package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/dchest/siphash"
)

// Key is the secret of a cluster under which fingerprints are made. All its nodes and clients share
// it; whoever has it can test guesses of a claim's value against a record.
type Key [16]byte

// KeyID names a key without telling it.
type KeyID uint64

// ID returns the name of the key: the first bytes of a SHA-256.
func (k Key) ID() KeyID {
	sum := sha256.Sum256(append([]byte("revokd key\x00"), k[:]...))
	return KeyID(binary.BigEndian.Uint64(sum[:]))
}

func (id KeyID) String() string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(id))
	return hex.EncodeToString(b[:])
}

// Fingerprint stands for a rule class, a shape and the values of a match.
//
// It is SipHash-2-4-128 under the cluster's [Key] (a PRF: Aumasson and Bernstein 2012, so that whoever chooses
// claim values cannot aim at another's fingerprint), over
//
//	SHA-256("revokd names" | names)[:16] | for each name in order: type 1 | length 2 | value
//
// with a constant of the shape and class added by XOR, so that one PRF serves every rule over the same claims.
type Fingerprint struct{ Hi, Lo uint64 }

func (f Fingerprint) xor(t Fingerprint) Fingerprint { return Fingerprint{f.Hi ^ t.Hi, f.Lo ^ t.Lo} }

// hasher holds the two words of a Key.
type hasher struct{ k0, k1 uint64 }

func newHasher(k Key) hasher {
	return hasher{binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])}
}

func (h hasher) sum(b []byte) Fingerprint {
	hi, lo := siphash.Hash128(h.k0, h.k1, b)
	return Fingerprint{hi, lo}
}

// namesPrefix opens the PRF's input: the names, in 128 bits that nobody can make collide.
func namesPrefix(names []string) (p [16]byte) {
	sum := sha256.Sum256(appendNames([]byte("revokd names\x00"), names))
	copy(p[:], sum[:])
	return p
}

// tweak returns the constant of a shape and the group of rule classes that share a key.
func tweak(s Shape, group Class) Fingerprint {
	sum := s.sum("revokd tweak" + string(rune(group)) + "\x00")
	return Fingerprint{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// Sizes of the PRF's input: small covers every usual token, large the limits.
const (
	smallInput = 192
	largeInput = 16 + maxShapeNames*(3+MaxValueBytes)
)

func inputSize(v Value) int {
	if v.kind == KindString {
		return 3 + len(v.s)
	}
	return 3 + 8
}

func appendValue(b []byte, v Value) []byte {
	b = append(b, byte(v.kind))
	if v.kind == KindString {
		b = append(b, byte(len(v.s)>>8), byte(len(v.s)))
		return append(b, v.s...)
	}
	b = append(b, 0, 8)
	return binary.BigEndian.AppendUint64(b, uint64(v.n))
}

// fingerprint returns the fingerprint of the values, which are scalar, without the tweak.
func (h hasher) fingerprint(prefix *[16]byte, values []Value) Fingerprint {
	size := len(prefix)
	for i := range values {
		size += inputSize(values[i])
	}
	if size <= smallInput {
		var buf [smallInput]byte
		return h.sum(appendValues(buf[:0], prefix, values))
	}
	return h.fingerprintLarge(prefix, values)
}

// fingerprintLarge keeps the large buffer out of the usual frame.
//
//go:noinline
func (h hasher) fingerprintLarge(prefix *[16]byte, values []Value) Fingerprint {
	var buf [largeInput]byte
	return h.sum(appendValues(buf[:0], prefix, values))
}

func appendValues(b []byte, prefix *[16]byte, values []Value) []byte {
	b = append(b, prefix[:]...)
	for i := range values {
		b = appendValue(b, values[i])
	}
	return b
}

// Fingerprint returns the fingerprint of a match under a rule of that class and shape.
func (k Key) fingerprint(m Match, s Shape, class Class) Fingerprint {
	values := make([]Value, len(m.claims))
	for i, c := range m.claims {
		values[i] = c.value
	}
	prefix := namesPrefix(s.Names)
	return newHasher(k).fingerprint(&prefix, values).xor(tweak(s, class.group()))
}
