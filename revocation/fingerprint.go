package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
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
// It is SipHash-2-4-128 under the cluster's [Key] (a PRF, so that whoever chooses claim values cannot aim at
// another's fingerprint), over
//
//	SHA-256("revokd names" | names)[:16] | for each name in order: type 1 | length 2 | value
//
// with a constant of the shape and class added by XOR, so that one PRF serves every rule over the same claims.
type Fingerprint struct{ Hi, Lo uint64 }

func (f Fingerprint) xor(t Fingerprint) Fingerprint { return Fingerprint{f.Hi ^ t.Hi, f.Lo ^ t.Lo} }

// prefixSize is the length of what opens the PRF's input: the names, in 128 bits that nobody can make collide.
const prefixSize = 16

// start returns the state of the PRF behind the names.
func (k Key) start(names []string) sip {
	sum := sha256.Sum256(appendNames([]byte("revokd names\x00"), names))
	return newSip(k).after([prefixSize]byte(sum[:]))
}

// tweak returns the constant of a shape and the group of rule classes that share a key.
func tweak(s Shape, group Class) Fingerprint {
	sum := s.sum("revokd tweak" + string(rune(group)) + "\x00")
	return Fingerprint{binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])}
}

// Sizes of the values in the PRF's input: small covers every usual token, large the limits.
const (
	smallInput = 160
	largeInput = maxShapeNames * (3 + MaxValueBytes)
)

// hash returns the fingerprint of values, which are scalar, under a state behind their names; the tweak is still to be added.
func (s sip) hash(values []*Value) Fingerprint {
	size := 0
	for _, v := range values {
		size += 3 + max(8, len(v.s))
	}
	if size > smallInput {
		return s.hashLarge(values)
	}
	var buf [smallInput]byte
	return s.sum(prefixSize, appendValues(buf[:0], values))
}

// hashLarge keeps the large buffer out of the usual frame.
//
//go:noinline
func (s sip) hashLarge(values []*Value) Fingerprint {
	var buf [largeInput]byte
	return s.sum(prefixSize, appendValues(buf[:0], values))
}

func appendValues(b []byte, values []*Value) []byte {
	for _, v := range values {
		if v.kind == KindString {
			b = append(b, byte(KindString), byte(len(v.s)>>8), byte(len(v.s)))
			b = append(b, v.s...)
			continue
		}
		b = append(b, byte(v.kind), 0, 8)
		b = binary.BigEndian.AppendUint64(b, uint64(v.n))
	}
	return b
}

// fingerprint returns the fingerprint of a match under a rule of that class and shape.
func (k Key) fingerprint(m Match, s Shape, class Class) Fingerprint {
	values := make([]*Value, len(m.claims))
	for i := range m.claims {
		values[i] = &m.claims[i].value
	}
	return k.start(s.Names).hash(values).xor(tweak(s, class.group()))
}

// Digest returns a PRF over encoded records, under a key of its own that is derived from k: replicas compare sums of it.
func (k Key) Digest() func(*[RecordSize]byte) uint64 {
	sum := sha256.Sum256(append([]byte("revokd digest\x00"), k[:]...))
	s := newSip(Key(sum[:16]))
	return func(b *[RecordSize]byte) uint64 { return s.sum(0, b[:]).Lo }
}
