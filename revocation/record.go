package revocation

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/revokd/revokd/internal/faults"
)

// RecordSize is the length of an encoded [Record] in bytes.
const RecordSize = 40

// maxSlack bounds the slack of a table, and maxExpiresAt leaves room for it within 32 bits.
const (
	maxSlack     = 24 * time.Hour
	maxExpiresAt = ^uint32(0) - uint32(maxSlack/time.Second)
	// maxStamp is of blocks and unblocks: what they lift has ended by maxExpiresAt.
	maxStamp = int64(maxExpiresAt)*1000 - longestBlock
)

// Class is the rule of a record. The numbers are append-only. A node stores and passes on classes it
// does not know, and answers Unknown for a token that matches one.
type Class uint8

// The classes. The zero Class is invalid.
const (
	ClassDeny         Class = 1 // every matching token
	ClassIssuedBefore Class = 2 // matching tokens whose iat is below the threshold
	ClassBelow        Class = 3 // matching tokens whose compared integer claim is below the threshold
	ClassBlock        Class = 4 // every matching token, until lifted
	ClassUnblock      Class = 5 // lifts blocks with an older stamp
	ClassKeep         Class = 6 // exempts from the issued-before cutoff it was made with
)

func (c Class) String() string {
	switch c {
	case ClassDeny:
		return "deny"
	case ClassIssuedBefore:
		return "issued_before"
	case ClassBelow:
		return "below"
	case ClassBlock:
		return "block"
	case ClassUnblock:
		return "unblock"
	case ClassKeep:
		return "keep"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

func (c Class) known() bool { return c >= ClassDeny && c <= ClassKeep }

// group returns the class whose key c uses: block and unblock contend for one, every other class has its own.
func (c Class) group() Class {
	if faults.Mutant("shared-classes") {
		return ClassDeny
	}
	if c == ClassUnblock {
		return ClassBlock
	}
	return c
}

// Reason is why a revocation was made: a closed list with append-only numbers; a merge keeps the larger.
type Reason uint8

// The reasons.
const (
	ReasonUnspecified Reason = iota
	ReasonLogout
	ReasonPasswordChanged
	ReasonUserDeleted
	ReasonUserSuspended
	ReasonTokenReused
	ReasonCredentialStolen
	ReasonClientDisabled
	ReasonTenantDisabled
	ReasonKeyCompromised
	ReasonIssuerCompromised
	ReasonPrivilegesChanged
	ReasonAdministrative
	ReasonReinstated
	reasonCount
)

var reasonNames = [reasonCount]string{
	"unspecified", "logout", "password-changed", "user-deleted", "user-suspended", "token-reused", "credential-stolen",
	"client-disabled", "tenant-disabled", "key-compromised", "issuer-compromised", "privileges-changed", "administrative", "reinstated",
}

func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// ParseReason reads a name such as "password-changed"; "" is unspecified. Errors are *FieldError.
func ParseReason(s string) (Reason, error) {
	if s == "" {
		return ReasonUnspecified, nil
	}
	for i, n := range reasonNames {
		if n == s {
			return Reason(i), nil
		}
	}
	return 0, &FieldError{Field: "reason", Kind: "malformed", ValueKind: "string", Limit: "one of the reasons listed by --help"}
}

// Reasons returns the names that [ParseReason] accepts.
func Reasons() []string { return append([]string(nil), reasonNames[:]...) }

// Record is a revocation as it is stored and sent: fixed in size, without a raw identifier.
//
//	0 fingerprint 16 | 16 value 8 | 24 shape 8 | 32 ExpiresAt 4 | 36 class 1 | 37 reason 1 | 38 flags 2
//
// All numbers are big-endian.
type Record struct {
	Fingerprint Fingerprint
	// Value is the time it was made for a deny; the threshold; the stamp of a block or unblock; the cutoff of
	// the request for a keep. Times are Unix milliseconds.
	Value     int64
	Shape     ShapeID
	ExpiresAt uint32 // Unix seconds: the last second in which a matching token can be alive, or in which a block is in force
	Class     Class
	Reason    Reason
	Flags     uint16 // the lower byte is the number of the key in the [Ring]; of the others none is defined, and they are kept as they are
}

// AppendBinary appends the [RecordSize] bytes of r. The error is always nil.
func (r Record) AppendBinary(b []byte) ([]byte, error) {
	b = binary.BigEndian.AppendUint64(b, r.Fingerprint.Hi)
	b = binary.BigEndian.AppendUint64(b, r.Fingerprint.Lo)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Value))
	b = binary.BigEndian.AppendUint64(b, uint64(r.Shape))
	b = binary.BigEndian.AppendUint32(b, r.ExpiresAt)
	b = append(b, byte(r.Class), byte(r.Reason))
	return binary.BigEndian.AppendUint16(b, r.Flags), nil
}

// ParseRecord reads the first [RecordSize] bytes of b. It makes the structural checks only: a record that peers
// or the journal have accepted is not judged by bounds that move with the clock. Errors match [ErrRecord].
func ParseRecord(b []byte) (Record, error) {
	if len(b) < RecordSize {
		return Record{}, fmt.Errorf("%w: %d bytes of %d", ErrRecord, len(b), RecordSize)
	}
	r := Record{
		Fingerprint: Fingerprint{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])},
		Value:       int64(binary.BigEndian.Uint64(b[16:])),
		Shape:       ShapeID(binary.BigEndian.Uint64(b[24:])),
		ExpiresAt:   binary.BigEndian.Uint32(b[32:]),
		Class:       Class(b[36]),
		Reason:      Reason(b[37]),
		Flags:       binary.BigEndian.Uint16(b[38:]),
	}
	if err := r.valid(); err != nil {
		return Record{}, err
	}
	return r, nil
}

// Plausible checks the times of a record that its maker has just made, by a clock that can be believed: they bind every
// writer, whatever he was asked for. wall is in Unix milliseconds. Errors are *FieldError.
func (r Record) Plausible(wall int64) error {
	ahead := wall + MaxAheadAbsolute.Milliseconds()
	switch {
	case r.Class.known() && r.Class != ClassBelow && r.Value > ahead:
		return &FieldError{Field: "value", Kind: "out_of_range", ValueKind: "time", Limit: "at most 60 s ahead"}
	case int64(r.ExpiresAt)*1000 > ahead+(MaxCeiling+MaxAheadAbsolute).Milliseconds():
		return &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "at most 400 days ahead"}
	}
	return nil
}

// RetainUntil returns the last second, in Unix time, for which a record is kept, the slack apart. It is its ExpiresAt, but for blocks and unblocks: they are
// what others with an older stamp are compared with, whoever brings those, so they stay until the longest of those has ended, and their own effect ends before.
func (r Record) RetainUntil() uint32 {
	if r.Class.group() == ClassBlock {
		return unblockExpiry(r.Value)
	}
	return r.ExpiresAt
}

// KeyNumber is the number, in the [Ring], of the key that the record was made under.
func (r Record) KeyNumber() uint8 { return uint8(r.Flags) }

func (r Record) valid() error {
	switch {
	case r.Class == 0:
		return fmt.Errorf("%w: class 0", ErrRecord)
	case r.ExpiresAt == 0 || r.ExpiresAt > maxExpiresAt:
		return fmt.Errorf("%w: ExpiresAt out of range", ErrRecord)
	case r.Class.known() && r.Class != ClassBelow && !inTimeRange(r.Value):
		return fmt.Errorf("%w: value of a %s is no time", ErrRecord, r.Class)
	case r.Class.group() == ClassBlock && (r.Value > maxStamp || r.ExpiresAt > r.RetainUntil()):
		return fmt.Errorf("%w: stamp and ExpiresAt of a %s do not go together", ErrRecord, r.Class)
	}
	return nil
}
