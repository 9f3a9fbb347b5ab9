package revocation

import (
	"errors"
	"fmt"
)

// Sentinels: one for each decision a caller can take. Match them with errors.Is.
var (
	// ErrInvalid: the request can never be accepted as it is; the [*FieldError] says why.
	ErrInvalid = errors.New("invalid")
	// ErrDuplicateClaim: a JSON object names a claim twice, so parsers would disagree about it.
	ErrDuplicateClaim = errors.New("claim named twice")
	// ErrFull: the table's limit for writers is reached. Nothing was dropped; retry when records have expired.
	ErrFull = errors.New("table is full")
	// ErrShapes: the limit of live shapes for writers is reached.
	ErrShapes = errors.New("too many live shapes")
	// ErrWriterShapes: a writer's share of them is used up. It matches [ErrShapes].
	ErrWriterShapes = fmt.Errorf("%w of one writer", ErrShapes)
	// ErrUnknownShape: a record names a shape that has not been defined here.
	ErrUnknownShape = errors.New("shape is not defined")
	// ErrShapeConflict: a definition has the id of another shape.
	ErrShapeConflict = errors.New("shape id names another shape")
	// ErrRecord: bytes are not a record.
	ErrRecord = errors.New("malformed record")
	// ErrKey: a record was made under a key that the ring in force does not have, or a ring is none, or does not follow from the one in force.
	ErrKey = errors.New("fingerprint key is not in the ring")
)

// FieldError says which field of a request was refused, what kind of value it had and which
// limit that passed. It never holds the value itself. It matches [ErrInvalid].
type FieldError struct {
	Field     string // "expires_at", "match", a claim's name
	Kind      string // "out_of_range", "malformed", "too_large", "missing", "conflict", "not_allowed"
	ValueKind string // "string", "integer", "object", "milliseconds"; empty if it says nothing
	Limit     string // in words, such as "at most 512 bytes"
}

func (e *FieldError) Error() string {
	s := fmt.Sprintf("%s: %s", e.Field, e.Kind)
	if e.ValueKind != "" {
		s += " (" + e.ValueKind + ")"
	}
	if e.Limit != "" {
		s += ": " + e.Limit
	}
	return s
}

// Is makes every FieldError match [ErrInvalid].
func (e *FieldError) Is(target error) bool { return target == ErrInvalid }
