package revocation

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reserved claim names: they name parts of the token outside its payload. A payload claim of the same
// name is reached by its JSON pointer.
const (
	HeaderKID   = "header.kid"   // the key id in the JOSE header
	TokenSHA256 = "token.sha256" // hex SHA-256 of the signing input, header.payload; never of the whole token: signatures are malleable
)

// CanonicalName checks a claim name and returns its one spelling. A name that begins with "/" is a JSON
// pointer (RFC 6901) through objects; a pointer of one segment is the plain name unless that is
// reserved or begins with "/". Errors are *FieldError.
func CanonicalName(name string) (string, error) {
	bad := func(kind, limit string) (string, error) {
		return "", &FieldError{Field: "claim name", Kind: kind, ValueKind: "string", Limit: limit}
	}
	switch {
	case name == "":
		return bad("missing", "at least 1 byte")
	case len(name) > MaxNameBytes:
		return bad("too_large", "at most 128 bytes")
	case !utf8.ValidString(name):
		return bad("malformed", "valid UTF-8")
	case name[0] != '/':
		return name, nil
	}
	segments := strings.Split(name[1:], "/")
	if len(segments) > MaxDepth {
		return bad("too_large", "at most 8 segments")
	}
	for _, s := range segments {
		for i := 0; i < len(s); i++ {
			if s[i] == '~' && (i+1 == len(s) || s[i+1] != '0' && s[i+1] != '1') {
				return bad("malformed", "~ only as ~0 or ~1 (RFC 6901)")
			}
		}
	}
	if len(segments) == 1 {
		plain := unescapePointer.Replace(segments[0])
		if plain != "" && plainName(plain) == plain {
			return plain, nil
		}
	}
	return name, nil
}

// writtenName is [CanonicalName] for writers, whose names are shown in terminals and logs. What others have stored is read whatever its names are.
func writtenName(name string) (string, error) {
	if canonical, err := CanonicalName(name); err != nil || !strings.ContainsFunc(name, unicode.IsControl) {
		return canonical, err
	}
	return "", &FieldError{Field: "claim name", Kind: "malformed", ValueKind: "string", Limit: "no control characters"}
}

var (
	escapePointer   = strings.NewReplacer("~", "~0", "/", "~1")
	unescapePointer = strings.NewReplacer("~1", "/", "~0", "~")
)

// plainName returns the canonical name of a payload claim at the top level.
func plainName(key string) string {
	if key == "" || key[0] == '/' || key == HeaderKID || key == TokenSHA256 {
		return "/" + escapePointer.Replace(key)
	}
	return key
}

// pointerName returns the canonical name of a member of the object with the canonical name parent.
func pointerName(parent, key string) string {
	if parent == "" {
		return plainName(key)
	}
	if parent[0] != '/' {
		parent = "/" + escapePointer.Replace(parent)
	}
	return parent + "/" + escapePointer.Replace(key)
}
