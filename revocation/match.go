package revocation

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Match names zero to four claims with their values. A token matches when it has all of them, byte for
// byte and type for type; an array claim matches when one of its elements does. The zero Match, no
// claim at all, matches every token. A Match is immutable.
type Match struct {
	claims []claim // sorted by name, names canonical and distinct, values scalar
}

// NewMatch builds a match from claim names and scalar values. Errors are *FieldError: a bad name, a
// name twice, a value that is no scalar or too long, more than [MaxMatchClaims] claims.
func NewMatch(values map[string]Value) (Match, error) {
	if len(values) > MaxMatchClaims {
		return Match{}, &FieldError{Field: "match", Kind: "too_large", ValueKind: "object", Limit: "at most 4 claims"}
	}
	return newMatch(values)
}

func newMatch(values map[string]Value) (Match, error) {
	m := Match{claims: make([]claim, 0, len(values))}
	for name, v := range values {
		canonical, err := writtenName(name)
		if err != nil {
			return Match{}, err
		}
		if !v.scalar() {
			return Match{}, &FieldError{Field: "match." + canonical, Kind: "malformed", ValueKind: v.kind.String(), Limit: "a string of at most 512 bytes of valid UTF-8, a 64-bit integer or a boolean"}
		}
		if canonical == TokenSHA256 && !isSHA256Hex(v) {
			return Match{}, &FieldError{Field: "match." + TokenSHA256, Kind: "malformed", ValueKind: v.kind.String(), Limit: "64 lower-case hex digits"}
		}
		m.claims = append(m.claims, claim{canonical, v})
	}
	slices.SortFunc(m.claims, func(a, b claim) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(m.claims); i++ {
		if m.claims[i].name == m.claims[i-1].name {
			return Match{}, &FieldError{Field: "match." + m.claims[i].name, Kind: "conflict", Limit: "each claim once"}
		}
	}
	return m, nil
}

func isSHA256Hex(v Value) bool {
	s, ok := v.AsString()
	return ok && len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// ParseMatch reads the notation of the command line: name=value for strings, name:=value for JSON integers and
// booleans, separated by commas; \, stands for a comma in a value and \\ for a backslash. "" is the empty match.
func ParseMatch(s string) (Match, error) {
	values := map[string]Value{}
	for _, part := range splitUnescaped(s) {
		name, text, ok := strings.Cut(part, "=")
		if !ok {
			return Match{}, &FieldError{Field: "match", Kind: "malformed", ValueKind: "string", Limit: "name=value, or name:=7 for an integer"}
		}
		v := String(text)
		if typed, isTyped := strings.CutSuffix(name, ":"); isTyped {
			name = typed
			switch text {
			case "true", "false":
				v = Bool(text == "true")
			default:
				v = parseNumber(text)
			}
		}
		if _, twice := values[name]; twice {
			return Match{}, &FieldError{Field: "match", Kind: "conflict", Limit: "each claim once"}
		}
		values[name] = v
	}
	return NewMatch(values)
}

func splitUnescaped(s string) []string {
	if s == "" {
		return nil
	}
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == ',' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case s[i] == ',':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(parts, b.String())
}

// Names returns the canonical claim names in order.
func (m Match) Names() []string {
	names := make([]string, len(m.claims))
	for i, c := range m.claims {
		names[i] = c.name
	}
	return names
}

// Get returns the value of the claim with that canonical name.
func (m Match) Get(name string) (Value, bool) {
	for _, c := range m.claims {
		if c.name == name {
			return c.value, true
		}
	}
	return Value{}, false
}

// Contains reports whether m has all claims of other, with the same values.
func (m Match) Contains(other Match) bool {
	for _, c := range other.claims {
		if v, ok := m.Get(c.name); !ok || v != c.value {
			return false
		}
	}
	return true
}

// with returns m and the claims of other, which wins where both name one.
func (m Match) with(other Match) Match {
	values := make(map[string]Value, len(m.claims)+len(other.claims))
	for _, c := range m.claims {
		values[c.name] = c.value
	}
	for _, c := range other.claims {
		values[c.name] = c.value
	}
	joined, err := newMatch(values)
	if err != nil { // both were valid
		panic(err)
	}
	return joined
}

// MarshalJSON writes a JSON object from names to values.
func (m Match) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, c := range m.claims {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(c.name)
		if err != nil {
			return nil, err
		}
		b = append(append(b, name...), ':')
		switch c.value.kind {
		case KindString:
			text, err := json.Marshal(c.value.s)
			if err != nil {
				return nil, err
			}
			b = append(b, text...)
		case KindBool:
			b = strconv.AppendBool(b, c.value.n != 0)
		default:
			b = strconv.AppendInt(b, c.value.n, 10)
		}
	}
	return append(b, '}'), nil
}

// UnmarshalJSON reads what MarshalJSON writes, as strictly as [ParseClaims].
func (m *Match) UnmarshalJSON(b []byte) error {
	claims, err := ParseClaims(b)
	if err != nil {
		return err
	}
	// Names in a match are canonical names already, reserved ones included, so the keys are read once more as they stand.
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(b, &keys); err != nil {
		return &FieldError{Field: "match", Kind: "malformed", ValueKind: "JSON", Limit: "an object of claims"}
	}
	values := make(map[string]Value, len(keys))
	for key, raw := range keys {
		v := claims.Lookup(plainName(key))
		if string(raw) == "null" {
			v = Value{kind: KindUnusable}
		}
		values[key] = v
	}
	parsed, err := NewMatch(values)
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}
