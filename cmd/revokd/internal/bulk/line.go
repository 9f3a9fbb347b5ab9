package bulk

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// MaxLine is the longest line in bytes, without its end.
const MaxLine = 16 << 10

// parseLine reads one line. It is strict where a lenient reader would revoke something else than was written:
// unknown and repeated keys, invalid UTF-8, lone surrogates, times in the wrong unit. exp: the line states its deadline as
// exp. Errors are *revocation.FieldError and never quote a value.
func parseLine(line []byte) (req *revokdv1.RevokeRequest, exp bool, err error) {
	o, err := parseObject(line)
	if err != nil {
		return nil, false, err
	}
	req = &revokdv1.RevokeRequest{}
	switch {
	case o.has("token"):
		err = o.token(req)
	case o.has("match"):
		err = o.match(req)
	case o.has("jti"):
		err = o.jti(req)
	default:
		err = &revocation.FieldError{Field: "line", Kind: "missing", ValueKind: "object", Limit: "one of jti, match and token"}
	}
	if err != nil {
		return nil, false, err
	}
	if name, ok := o.unread(); ok {
		return nil, false, &revocation.FieldError{Field: name, Kind: "not_allowed", ValueKind: "key", Limit: "unknown, or of no use in this line"}
	}
	return req, o.has("exp"), nil
}

// object holds the members of a JSON object.
type object struct{ members []member }

type member struct {
	key, value string // as they stand in the text
	read       bool
}

func malformed(field, kind, limit string) error {
	return &revocation.FieldError{Field: field, Kind: "malformed", ValueKind: kind, Limit: limit}
}

func parseObject(line []byte) (*object, error) {
	switch {
	case len(line) > MaxLine:
		return nil, &revocation.FieldError{Field: "line", Kind: "too_large", ValueKind: "object", Limit: "at most 16384 bytes"}
	case !utf8.Valid(line):
		return nil, malformed("line", "text", "valid UTF-8")
	case !json.Valid(line):
		return nil, malformed("line", "JSON", "one JSON object")
	}
	s := skipSpace(string(line))
	if s[0] != '{' {
		return nil, malformed("line", "JSON", "one JSON object")
	}
	// The text is known to be valid JSON: members are found by counting brackets outside strings.
	o := &object{members: make([]member, 0, 4)}
	for s = skipSpace(s[1:]); s[0] != '}'; s = skipSpace(s) {
		if s[0] == ',' {
			s = skipSpace(s[1:])
		}
		end := valueEnd(s)
		key := s[1 : end-1]
		s = skipSpace(s[end:])
		s = skipSpace(s[1:]) // the colon
		end = valueEnd(s)
		if o.find(key) != nil {
			return nil, &revocation.FieldError{Field: fieldName(key), Kind: "conflict", ValueKind: "key", Limit: "each key once"}
		}
		o.members = append(o.members, member{key: key, value: s[:end]})
		s = s[end:]
	}
	return o, nil
}

func skipSpace(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t' || s[0] == '\r' || s[0] == '\n') {
		s = s[1:]
	}
	return s
}

// valueEnd returns where the JSON value ends that s, which is valid, begins with.
func valueEnd(s string) int {
	depth, inString := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
			if !inString && depth == 0 {
				return i + 1
			}
		case inString:
		case c == '{' || c == '[':
			depth++
		case depth == 0 && strings.IndexByte(",}] \t\r\n", c) >= 0:
			return i // behind a number or a literal
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(s)
}

// fieldName makes a key of the file fit for a message.
func fieldName(key string) string {
	if len(key) > 40 {
		key = key[:40]
	}
	return strconv.QuoteToASCII(key)
}

// find returns a member. Keys are compared as they stand, so an escaped one is unknown.
func (o *object) find(key string) *member {
	for i := range o.members {
		if o.members[i].key == key {
			return &o.members[i]
		}
	}
	return nil
}

func (o *object) has(key string) bool { return o.find(key) != nil }

// take returns the value of a member and marks it as read.
func (o *object) take(key string) (value string, ok bool) {
	m := o.find(key)
	if m == nil {
		return "", false
	}
	m.read = true
	return m.value, true
}

// unread returns a member that nothing has asked for.
func (o *object) unread() (field string, ok bool) {
	for _, m := range o.members {
		if !m.read {
			return fieldName(m.key), true
		}
	}
	return "", false
}

// text reads a string member; ok is false if it is not there.
func (o *object) text(key string) (s string, ok bool, err error) {
	raw, ok := o.take(key)
	switch {
	case !ok:
		return "", false, nil
	case raw[0] != '"':
		return "", false, malformed(key, kindOf(raw), "a string")
	case raw == `""`:
		return "", false, &revocation.FieldError{Field: key, Kind: "missing", ValueKind: "string", Limit: "at least 1 byte"}
	case strings.IndexByte(raw, '\\') < 0:
		return raw[1 : len(raw)-1], true, nil
	}
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return "", false, malformed(key, "string", "a string")
	}
	// encoding/json replaces a lone surrogate, which would name another value.
	if strings.ContainsRune(s, utf8.RuneError) && !strings.Contains(raw, "\uFFFD") {
		return "", false, malformed(key, "string", "no lone surrogate and no escaped U+FFFD")
	}
	return s, true, nil
}

func kindOf(raw string) string {
	switch raw[0] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}

func (o *object) token(req *revokdv1.RevokeRequest) error {
	token, _, err := o.text("token")
	if err != nil {
		return err
	}
	req.Target = &revokdv1.RevokeRequest_Token{Token: token}
	scope, ok, err := o.text("scope")
	if err != nil {
		return err
	}
	if ok {
		n, known := revokdv1.Scope_value["SCOPE_"+strings.ToUpper(scope)]
		if !known || n == 0 {
			return malformed("scope", "string", "token, session or subject")
		}
		req.Scope = revokdv1.Scope(n)
	}
	return o.reason(req)
}

func (o *object) jti(req *revokdv1.RevokeRequest) error {
	claims := make(map[string]string, 2)
	for _, name := range [...]string{"jti", "iss"} {
		s, ok, err := o.text(name)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if len(s) > revocation.MaxValueBytes {
			return &revocation.FieldError{Field: name, Kind: "too_large", ValueKind: "string", Limit: "at most 512 bytes"}
		}
		claims[name] = s
	}
	req.Target = &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: claims}}
	if raw, ok := o.take("exp"); ok {
		var err error
		if req.ExpiresAt, err = numericDate(raw); err != nil {
			return err
		}
	}
	return o.reason(req)
}

// longAgo is 2000-01-01. The node refuses earlier deadlines because they look like another unit; an exp has but one, so whatever
// is earlier is simply a token that expired long ago.
const longAgo = 946_684_800

// numericDate reads exp as tokens have it: seconds, rounded up to milliseconds if it has a fraction.
func numericDate(raw string) (*timestamppb.Timestamp, error) {
	const limit = "seconds since 1970 (RFC 7519 NumericDate)"
	f, err := strconv.ParseFloat(raw, 64)
	switch {
	case err != nil || kindOf(raw) != "number":
		return nil, malformed("exp", kindOf(raw), limit)
	case f < 0:
		return nil, &revocation.FieldError{Field: "exp", Kind: "out_of_range", ValueKind: "negative number", Limit: limit}
	case f >= 100_000_000_000:
		return nil, &revocation.FieldError{Field: "exp", Kind: "out_of_range", ValueKind: "milliseconds", Limit: limit + "; this looks like milliseconds"}
	}
	return timestamppb.New(time.UnixMilli(int64(math.Ceil(max(f, longAgo) * 1000)))), nil
}

// inLine puts the names of the line into what the node says about the request that it became.
func inLine(item *revokdv1.ItemError) *revokdv1.ItemError {
	if item.GetDetail().GetField() != "expires_at" {
		return item
	}
	item = proto.CloneOf(item)
	item.Detail.Field = "exp"
	item.Message = strings.ReplaceAll(item.Message, "expires_at", "exp")
	return item
}

func (o *object) match(req *revokdv1.RevokeRequest) error {
	raw, _ := o.take("match")
	if kindOf(raw) != "object" {
		return malformed("match", kindOf(raw), "an object of claims")
	}
	var m revocation.Match
	if err := m.UnmarshalJSON([]byte(raw)); err != nil {
		return fmt.Errorf("match: %w", err)
	}
	if len(m.Names()) == 0 {
		return &revocation.FieldError{Field: "match", Kind: "missing", ValueKind: "object", Limit: "at least one claim: only the command line can revoke everything"}
	}
	req.Target = &revokdv1.RevokeRequest_Match{Match: ProtoMatch(m)}
	for _, field := range []struct {
		key string
		to  **timestamppb.Timestamp
	}{{"expires_at", &req.ExpiresAt}, {"issued_before", &req.IssuedBefore}} {
		if raw, ok := o.take(field.key); ok {
			at, err := parseTime(field.key, raw)
			if err != nil {
				return err
			}
			*field.to = timestamppb.New(at)
		}
	}
	if raw, ok := o.take("below"); ok {
		below, err := parseBelow(raw)
		if err != nil {
			return err
		}
		req.Below = below
	}
	return o.reason(req)
}

// parseTime reads RFC 3339 or Unix milliseconds. A number that looks like another unit is refused: it would mean 1970, or never.
func parseTime(field, raw string) (time.Time, error) {
	const limit = "RFC 3339, or Unix milliseconds"
	switch kindOf(raw) {
	case "string":
		var s string
		if json.Unmarshal([]byte(raw), &s) == nil {
			if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
				return at, nil
			}
		}
	case "number":
		n, err := strconv.ParseInt(raw, 10, 64)
		switch {
		case err != nil:
		case n < 100_000_000_000:
			return time.Time{}, &revocation.FieldError{Field: field, Kind: "out_of_range", ValueKind: "seconds", Limit: limit + "; this looks like seconds"}
		case n < 100_000_000_000_000:
			return time.UnixMilli(n), nil
		default:
			return time.Time{}, &revocation.FieldError{Field: field, Kind: "out_of_range", ValueKind: "number", Limit: limit + " before the year 5138"}
		}
	}
	return time.Time{}, malformed(field, kindOf(raw), limit)
}

func parseBelow(raw string) (*revokdv1.Below, error) {
	const limit = `an object such as {"claim":"token_version","value":7}`
	if kindOf(raw) != "object" {
		return nil, malformed("below", kindOf(raw), limit)
	}
	o, err := parseObject([]byte(raw))
	if err != nil {
		return nil, err
	}
	claim, ok, err := o.text("claim")
	if err != nil || !ok {
		return nil, malformed("below", "object", limit)
	}
	value, ok := o.take("value")
	if !ok {
		return nil, malformed("below", "object", limit)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if _, more := o.unread(); err != nil || more {
		return nil, malformed("below", "object", limit)
	}
	return &revokdv1.Below{Claim: claim, Value: n}, nil
}

func (o *object) reason(req *revokdv1.RevokeRequest) error {
	s, ok, err := o.text("reason")
	if err != nil || !ok {
		return err
	}
	n, known := revokdv1.Reason_value["REASON_"+strings.ToUpper(strings.ReplaceAll(s, "-", "_"))]
	if !known || n == 0 {
		return malformed("reason", "string", "a reason of the closed list such as logout")
	}
	req.Reason = revokdv1.Reason(n)
	return nil
}

// ProtoMatch returns the wire form of a match.
func ProtoMatch(m revocation.Match) *revokdv1.Match {
	out := &revokdv1.Match{}
	for _, name := range m.Names() {
		v, _ := m.Get(name)
		if s, ok := v.AsString(); ok {
			put(&out.Claims, name, s)
		} else if n, ok := v.AsInt(); ok {
			put(&out.Integers, name, n)
		} else if b, ok := v.AsBool(); ok {
			put(&out.Booleans, name, b)
		}
	}
	return out
}

func put[V any](m *map[string]V, name string, v V) {
	if *m == nil {
		*m = make(map[string]V)
	}
	(*m)[name] = v
}
