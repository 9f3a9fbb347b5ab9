package view

import (
	"encoding/binary"
	"fmt"

	"github.com/revokd/revokd/revocation"
)

// Keys is what a node tells its peers about the fingerprint keys.
type Keys struct {
	Ring revocation.Ring
	// LiveUntil is until which second, in Unix time and with the slack, it may hold records of the key that is not the primary one; 0: it has had none.
	LiveUntil uint32
}

// Its encoding: version 1, LiveUntil 4, length of the ring 1, the ring; later versions may add to the end.
const keysVersion = 1

// Append appends the encoding of k, in which the keys are, to b.
func (k Keys) Append(b []byte) []byte {
	ring, _ := k.Ring.MarshalBinary()
	b = append(b, keysVersion)
	b = binary.BigEndian.AppendUint32(b, k.LiveUntil)
	return append(append(b, byte(len(ring))), ring...)
}

// ParseKeys reads what [Keys.Append] has written. Errors match [revocation.ErrKey].
func ParseKeys(b []byte) (Keys, error) {
	if len(b) < 6 || b[0] != keysVersion || len(b) < 6+int(b[5]) {
		return Keys{}, fmt.Errorf("%w: malformed", revocation.ErrKey)
	}
	ring, err := revocation.ParseRing(b[6 : 6+int(b[5])])
	if err != nil {
		return Keys{}, err
	}
	return Keys{ring, binary.BigEndian.Uint32(b[1:])}, nil
}

// KeysOf returns what is to be told about the keys of a table.
func KeysOf(table *revocation.Table) Keys {
	k := Keys{Ring: table.Ring()}
	for _, key := range k.Ring.Keys() {
		if !key.Primary {
			k.LiveUntil = table.LiveUntil(key.Number)
		}
	}
	return k
}
