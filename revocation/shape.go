package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"
)

// IAT is the claim that issued-before rules compare.
const IAT = "iat"

// maxShapeNames: a match's claims and, for a keep, the two that name the kept token.
const maxShapeNames = MaxMatchClaims + 2

// ShapeID is the 64-bit name of a shape in records: the first bytes of the SHA-256 of its definition.
type ShapeID uint64

// Shape is the kind of a match: the sorted claim names, the claim that the rule compares, and for a
// keep the names in the match of the cutoff it belongs to.
type Shape struct {
	Names    []string
	Compared string   // "", "iat" or the claim of a below rule
	KeepOf   []string // nil unless keeps; a subset of Names
	Keep     bool
}

// AppendBinary appends the definition of s: what travels and is stored before the first record that uses it.
//
//	version 1 | flags 1 (1 = keep) | n names: count 1, each length 1 and bytes | compared: length 1 and bytes | n keep-of names
func (s Shape) AppendBinary(b []byte) ([]byte, error) {
	flags := byte(0)
	if s.Keep {
		flags = 1
	}
	b = append(b, 1, flags)
	b = appendNames(b, s.Names)
	b = append(append(b, byte(len(s.Compared))), s.Compared...)
	return appendNames(b, s.KeepOf), nil
}

func appendNames(b []byte, names []string) []byte {
	b = append(b, byte(len(names)))
	for _, n := range names {
		b = append(append(b, byte(len(n))), n...)
	}
	return b
}

// ParseShape reads a definition. It accepts exactly what AppendBinary writes for a valid shape; errors match [ErrRecord].
func ParseShape(b []byte) (Shape, error) {
	var s Shape
	if len(b) < 2 || b[0] != 1 || b[1] > 1 {
		return s, ErrRecord
	}
	s.Keep = b[1] == 1
	rest := b[2:]
	text := func() (string, bool) {
		if len(rest) == 0 || len(rest)-1 < int(rest[0]) {
			return "", false
		}
		end := 1 + int(rest[0])
		t := string(rest[1:end])
		rest = rest[end:]
		return t, true
	}
	names := func() ([]string, bool) {
		if len(rest) == 0 || rest[0] > maxShapeNames {
			return nil, false
		}
		n := int(rest[0])
		rest = rest[1:]
		var list []string
		for range n {
			t, ok := text()
			if !ok {
				return nil, false
			}
			list = append(list, t)
		}
		return list, true
	}
	var ok1, ok2, ok3 bool
	s.Names, ok1 = names()
	if ok1 {
		s.Compared, ok2 = text()
	}
	if ok2 {
		s.KeepOf, ok3 = names()
	}
	if !ok3 || len(rest) != 0 || !s.valid() {
		return Shape{}, ErrRecord
	}
	return s, nil
}

func (s Shape) valid() bool {
	ordered := func(names []string) bool {
		for i, n := range names {
			if c, err := CanonicalName(n); err != nil || c != n || i > 0 && names[i-1] >= n {
				return false
			}
		}
		return true
	}
	if !ordered(s.Names) || !ordered(s.KeepOf) {
		return false
	}
	if s.Compared != "" {
		if c, err := CanonicalName(s.Compared); err != nil || c != s.Compared {
			return false
		}
	}
	if !s.Keep {
		return len(s.KeepOf) == 0 && len(s.Names) <= MaxMatchClaims
	}
	if s.Compared != IAT || len(s.KeepOf) > MaxMatchClaims || len(s.Names) <= len(s.KeepOf) {
		return false
	}
	for _, n := range s.KeepOf {
		if !slices.Contains(s.Names, n) {
			return false
		}
	}
	return true
}

// ID returns the name of s in records.
func (s Shape) ID() ShapeID {
	sum := s.sum("revokd shape\x00")
	return ShapeID(binary.BigEndian.Uint64(sum[:]))
}

func (s Shape) sum(domain string) [32]byte {
	b, _ := s.AppendBinary([]byte(domain))
	return sha256.Sum256(b)
}

// String writes the shape for people: {iss,sub}<iat.
func (s Shape) String() string {
	t := "{" + strings.Join(s.Names, ",") + "}"
	if s.Compared != "" {
		t += "<" + s.Compared
	}
	if s.Keep {
		t += " keep of {" + strings.Join(s.KeepOf, ",") + "}"
	}
	return t
}

// cutoff returns the shape of the cutoff that a keep of shape s belongs to.
func (s Shape) cutoff() Shape { return Shape{Names: s.KeepOf, Compared: IAT} }

// fits reports whether records of a class can have shape s. What a class of a later version may have is not known here.
func (s Shape) fits(c Class) bool {
	switch c {
	case ClassKeep:
		return s.Keep
	case ClassIssuedBefore:
		return !s.Keep && s.Compared == IAT
	case ClassBelow:
		return !s.Keep && s.Compared != "" && s.Compared != IAT
	case ClassDeny, ClassBlock, ClassUnblock:
		return !s.Keep && s.Compared == ""
	}
	return true
}
