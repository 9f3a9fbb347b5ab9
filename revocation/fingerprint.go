package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/ttlstore"
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

func (f Fingerprint) key() ttlstore.Key { return ttlstore.Key{Hi: f.Hi, Lo: f.Lo} }

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

// Words of the values in the PRF's input: small covers every usual token, large the limits.
const (
	smallWords = 20
	largeWords = (maxShapeNames*(3+MaxValueBytes) + 7) / 8
)

// hash returns the fingerprint of values, which are scalar, under a state behind their names; the tweak is still to be added.
func (s sip) hash(values []*Value) Fingerprint {
	size := 0
	for _, v := range values {
		size += 3 + max(8, len(v.s))
	}
	if size >= smallWords*8 {
		return s.hashLarge(values)
	}
	var words [smallWords]uint64
	n, last := pack(words[:], values)
	f := s.sum(words[:n], last)
	if faults.Mutant("short-key") {
		f.Lo = 0
	}
	return f
}

// hashLarge keeps the large buffer out of the usual frame.
//
//go:noinline
func (s sip) hashLarge(values []*Value) Fingerprint {
	var words [largeWords]uint64
	n, last := pack(words[:], values)
	return s.sum(words[:n], last)
}

// pack writes type, length and value of each as words: n whole ones, and the last one, which is not full and whose highest byte is the
// length of all, the names included. It moves words and not bytes: bytes that are read again as words at once stall the processor.
func pack(words []uint64, values []*Value) (n int, last uint64) {
	var rest uint64 // what is not a whole word yet
	var used uint   // bits of it
	size := prefixSize
	for _, v := range values {
		text := v.s
		length := len(text)
		if v.kind != KindString {
			length = 8
		}
		size += 3 + length
		// Three bytes: type and length, which is big-endian.
		w := uint64(v.kind) | uint64(length>>8)<<8 | uint64(length&0xff)<<16
		rest |= w << (used & 63)
		if used += 24; used >= 64 {
			words[n] = rest
			n++
			used -= 64
			rest = w >> ((24 - used) & 63)
		}
		if v.kind != KindString {
			w = bits.ReverseBytes64(uint64(v.n))
			words[n] = rest | w<<(used&63)
			n++
			rest = w >> 1 >> ((63 - used) & 63)
			continue
		}
		for i := 0; i+8 <= length; i += 8 {
			w = word(text[i:])
			words[n] = rest | w<<(used&63)
			n++
			rest = w >> 1 >> ((63 - used) & 63)
		}
		tail := uint(length&7) * 8
		switch {
		case tail == 0:
			continue
		case length >= 8:
			w = word(text[length-8:]) >> ((64 - tail) & 63)
		default:
			w = 0
			for i := range length {
				w |= uint64(text[i]) << (8 * i & 63)
			}
		}
		rest |= w << (used & 63)
		if used += tail; used >= 64 {
			words[n] = rest
			n++
			used -= 64
			rest = w >> ((tail - used) & 63)
		}
	}
	return n, rest | uint64(size)<<56
}

// word reads eight bytes, little-endian.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// fingerprint returns the fingerprint of a match under a rule of that class and shape.
func (k Key) fingerprint(m Match, s Shape, class Class) Fingerprint {
	return k.start(s.Names).hash(m.values()).xor(tweak(s, class.group()))
}

var anyIssuer = String("") // of a mutant

func (m Match) values() []*Value {
	values := make([]*Value, len(m.claims))
	for i := range m.claims {
		if values[i] = &m.claims[i].value; m.claims[i].name == "iss" && faults.Mutant("no-issuer") {
			values[i] = &anyIssuer
		}
	}
	return values
}

// Digest returns a PRF over encoded records, under a key of its own that is derived from k: replicas compare sums of it.
func (k Key) Digest() func(*[RecordSize]byte) uint64 {
	sum := sha256.Sum256(append([]byte("revokd digest\x00"), k[:]...))
	s := newSip(Key(sum[:16]))
	return func(b *[RecordSize]byte) uint64 {
		var words [RecordSize / 8]uint64
		for i := range words {
			words[i] = binary.LittleEndian.Uint64(b[8*i:])
		}
		if faults.Mutant("sum-no-cutoff") {
			words[2] = 0
		}
		return s.sum(words[:], RecordSize<<56).Lo
	}
}
