package revocation

import (
	"strconv"
	"unicode/utf8"
)

// Limits of claims, for tokens and for writers alike.
const (
	MaxValueBytes    = 512  // of a string value
	MaxNameBytes     = 128  // of a claim name
	MaxMatchClaims   = 4    // of a match
	MaxArrayElements = 16   // of a claim that a live shape names
	MaxPayloadBytes  = 8192 // of a token's payload
	MaxDepth         = 8    // of its JSON
	MaxProbes        = 64   // of one check
	MaxLiveShapes    = 64   // made by writers
	AdminShapes      = 8    // of these, for admins only
	WriterShapes     = 16   // brought to life by one writer who is no admin
)

// Kind is the JSON type of a claim's value as far as matching is concerned.
type Kind uint8

// The kinds. KindUnusable stands for what can never be compared: objects, numbers with a fraction
// or an exponent or beyond 64 bits, strings over [MaxValueBytes], arrays that are too long or hold
// anything but scalars. A shape that names such a claim makes the verdict Unknown.
const (
	KindMissing Kind = iota
	KindString
	KindInt
	KindBool
	KindArray
	KindUnusable
)

func (k Kind) String() string {
	switch k {
	case KindMissing:
		return "missing"
	case KindString:
		return "string"
	case KindInt:
		return "integer"
	case KindBool:
		return "boolean"
	case KindArray:
		return "array"
	}
	return "unusable"
}

// Value is the value of a claim. The zero Value is a missing claim. Values are compared byte by byte
// and by type: String("1") and Int(1) are different.
type Value struct {
	s    string
	n    int64 // the integer; 0 or 1 for a boolean; start<<8|length within Claims.elems for an array
	kind Kind
}

// String returns a string value. Validity is checked where the value is used.
func String(s string) Value {
	if len(s) > MaxValueBytes || !utf8.ValidString(s) {
		return Value{kind: KindUnusable}
	}
	return Value{kind: KindString, s: s}
}

// Int returns an integer value.
func Int(n int64) Value { return Value{kind: KindInt, n: n} }

// Bool returns a boolean value.
func Bool(b bool) Value {
	v := Value{kind: KindBool}
	if b {
		v.n = 1
	}
	return v
}

// Kind returns the JSON type of v.
func (v Value) Kind() Kind { return v.kind }

// AsString returns the string, and whether v is one.
func (v Value) AsString() (string, bool) { return v.s, v.kind == KindString }

// AsInt returns the integer, and whether v is one.
func (v Value) AsInt() (int64, bool) { return v.n, v.kind == KindInt }

// AsBool returns the boolean, and whether v is one.
func (v Value) AsBool() (value, ok bool) { return v.n != 0, v.kind == KindBool }

func (v *Value) scalar() bool { return v.kind == KindString || v.kind == KindInt || v.kind == KindBool }

// parseNumber reads a JSON number literal. A number that is no 64-bit integer in plain notation is
// unusable: parsers disagree about its value.
func parseNumber(lit string) Value {
	n, err := strconv.ParseInt(lit, 10, 64)
	if err != nil || lit == "-0" {
		return Value{kind: KindUnusable}
	}
	return Int(n)
}
