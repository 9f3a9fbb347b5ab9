package revocation

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
)

// maxKeyNumber bounds how many keys a cluster can ever have had: their numbers are one byte of a record and do not come again.
const maxKeyNumber = 255

// A Ring is the fingerprint keys of a cluster: the primary one, under which records are made, and at most one more that records are looked up under. It is
// immutable, and the zero Ring is none.
//
// Keys have numbers, of which records carry the lowest byte; the first key has 0. A number is never given to another key, so that no record can be
// taken for one of a key that has gone. The two numbers of a ring differ in their lowest bit, which is the key's slot.
//
// Rings of one cluster are totally ordered by [Ring.Compare], first by how often a key was put to use: whoever takes the larger of two ends with the same as everybody else, and
// a key under which records have been made is never lost to a change that did not know of it.
type Ring struct {
	name    KeyID  // of the first key; for ever
	uses    uint32 // how often a key has become the primary one
	changes uint32
	last    uint8 // the largest number that was given
	primary uint8 // a number
	keys    [2]ringKey
}

type ringKey struct {
	key    Key // zero: none
	number uint8
}

// RingKey describes a key of a [Ring].
type RingKey struct {
	ID      KeyID
	Number  uint8
	Primary bool // records are made under it
}

// NewRing returns the ring of a cluster that has never had another key.
func NewRing(first Key) Ring { return Ring{name: first.ID(), keys: [2]ringKey{{key: first}}} }

// Name is the id of the cluster's first key, also when that has gone.
func (r Ring) Name() KeyID { return r.name }

// Single reports whether there has never been another key: then versions that know of one key understand all records.
func (r Ring) Single() bool { return r.changes == 0 }

// Keys returns the keys, the primary one first.
func (r Ring) Keys() []RingKey {
	var list []RingKey
	for _, slot := range [2]uint8{r.primary & 1, 1 - r.primary&1} {
		if k := &r.keys[slot]; k.key != (Key{}) {
			list = append(list, RingKey{k.key.ID(), k.number, k.number == r.primary})
		}
	}
	return list
}

// has reports whether records of a key can be looked up.
func (r *Ring) has(number uint8) bool {
	k := &r.keys[number&1]
	return k.number == number && k.key != (Key{})
}

// Had reports whether a number was given to a key that has gone. That goes only when all its records have expired.
func (r Ring) Had(number uint8) bool { return number <= r.last && !r.has(number) }

// Has reports whether the ring has the key with a number and id.
func (r Ring) Has(number uint8, id KeyID) bool {
	return r.has(number) && r.keys[number&1].key.ID() == id
}

// Add returns the ring with another key, under which nothing is made yet. Errors are *FieldError.
func (r Ring) Add(k Key) (Ring, error) {
	other := 1 - r.primary&1
	next := int(r.last) + 1
	if next&1 != int(other) {
		next++
	}
	switch {
	case k == Key{}:
		return r, &FieldError{Field: "key", Kind: "out_of_range", ValueKind: "bytes", Limit: "16 random bytes"}
	case r.keys[other].key != Key{}:
		return r, &FieldError{Field: "key", Kind: "conflict", Limit: "at most 2 keys: drop one first"}
	case r.keys[1-other].key == k || r.name == k.ID():
		return r, &FieldError{Field: "key", Kind: "conflict", Limit: "a key that the cluster has not had"}
	case next > maxKeyNumber:
		return r, &FieldError{Field: "key", Kind: "out_of_range", Limit: "255 keys in the life of a cluster"}
	}
	r.keys[other] = ringKey{k, uint8(next)}
	r.last = uint8(next)
	r.changes++
	return r, nil
}

// Use returns the ring in which records are made under the other key. Errors are *FieldError.
func (r Ring) Use(id KeyID) (Ring, error) {
	k, err := r.other(id)
	if err != nil {
		return r, err
	}
	r.primary = k.number
	r.uses++
	r.changes++
	return r, nil
}

// Drop returns the ring without the other key, of which no record may be live any more. Errors are *FieldError.
func (r Ring) Drop(id KeyID) (Ring, error) {
	k, err := r.other(id)
	if err != nil {
		return r, err
	}
	r.keys[k.number&1] = ringKey{}
	r.changes++
	return r, nil
}

func (r *Ring) other(id KeyID) (ringKey, error) {
	k := r.keys[1-r.primary&1]
	switch {
	case r.keys[r.primary&1].key.ID() == id:
		return k, &FieldError{Field: "key", Kind: "conflict", Limit: "the key that is not in use: this one is"}
	case k.key == Key{} || k.key.ID() != id:
		return k, &FieldError{Field: "key", Kind: "missing", Limit: "the id of a key of the ring"}
	}
	return k, nil
}

// Compare orders rings of one cluster: the larger one is in force.
func (r Ring) Compare(o Ring) int {
	return cmp.Or(cmp.Compare(r.uses, o.uses), cmp.Compare(r.changes, o.changes), bytes.Compare(r.append(nil), o.append(nil)))
}

// Record returns the record of a revocation under the primary key.
func (r *Ring) Record(v Revocation) Record {
	rec := r.keys[r.primary&1].key.Record(v)
	rec.Flags |= uint16(r.primary)
	return rec
}

// starts returns the state of the PRF behind names under each key.
func (r *Ring) starts(names []string) (s [2]sip) {
	for slot := range r.keys {
		if k := r.keys[slot].key; k != (Key{}) {
			s[slot] = k.start(names)
		}
	}
	return s
}

// A ring's encoding: version 1 | name 8 | uses 4 | changes 4 | last 1 | primary 1 | n 1 | n times number 1, key 16. Numbers are big-endian, the primary key is first.
const (
	ringVersion = 1
	ringHeader  = 20
	ringKeySize = 17
)

func (r Ring) append(b []byte) []byte {
	b = append(b, ringVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(r.name))
	b = binary.BigEndian.AppendUint32(b, r.uses)
	b = binary.BigEndian.AppendUint32(b, r.changes)
	keys := r.Keys()
	b = append(b, r.last, r.primary, byte(len(keys)))
	for _, k := range keys {
		b = append(b, k.Number)
		b = append(b, r.keys[k.Number&1].key[:]...)
	}
	return b
}

// MarshalBinary returns the ring with its keys, which are secret. The error is always nil.
func (r Ring) MarshalBinary() ([]byte, error) { return r.append(nil), nil }

// ParseRing reads what [Ring.MarshalBinary] returns. Errors match [ErrKey] and hold no key.
func ParseRing(b []byte) (Ring, error) {
	bad := func(why string) (Ring, error) { return Ring{}, fmt.Errorf("%w: malformed ring: %s", ErrKey, why) }
	if len(b) < ringHeader || b[0] != ringVersion {
		return bad("truncated, or of another version")
	}
	r := Ring{
		name: KeyID(binary.BigEndian.Uint64(b[1:])), uses: binary.BigEndian.Uint32(b[9:]), changes: binary.BigEndian.Uint32(b[13:]), last: b[17], primary: b[18],
	}
	n := int(b[19])
	if n < 1 || n > 2 || len(b) != ringHeader+n*ringKeySize {
		return bad("1 or 2 keys")
	}
	for b = b[ringHeader:]; len(b) > 0; b = b[ringKeySize:] {
		k := ringKey{key: Key(b[1:ringKeySize]), number: b[0]}
		if k.key == (Key{}) || k.number > r.last || r.keys[k.number&1].key != (Key{}) || k.key == r.keys[1-k.number&1].key {
			return bad("a key stands twice, or has no number")
		}
		r.keys[k.number&1] = k
	}
	switch {
	case !r.has(r.primary):
		return bad("no primary key")
	case r.has(0) && r.keys[0].key.ID() != r.name:
		return bad("the first key has another name")
	case r.uses > r.changes || r.Single() && r.last > 0:
		return bad("counters")
	}
	return r, nil
}

func (r Ring) String() string {
	return fmt.Sprintf("ring %s of %d keys, change %d", r.name, len(r.Keys()), r.changes)
}
