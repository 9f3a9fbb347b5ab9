package revocation

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// ParseClaims reads a token's payload: one JSON object of at most [MaxPayloadBytes] and depth
// [MaxDepth]. It is stricter than encoding/json where parsers disagree and a token could mean two
// things: names are case-sensitive, a name used twice is [ErrDuplicateClaim], invalid UTF-8 and lone
// surrogates are refused. null counts as a missing claim. Members of nested objects are reached by
// JSON pointers. Errors match [ErrInvalid] or ErrDuplicateClaim and never quote the payload.
func ParseClaims(payload []byte) (*Claims, error) {
	if len(payload) > MaxPayloadBytes {
		return nil, &FieldError{Field: "payload", Kind: "too_large", ValueKind: "object", Limit: "at most 8192 bytes"}
	}
	p := parser{in: string(payload), claims: new(Claims)}
	if !utf8.ValidString(p.in) {
		return nil, p.errorf("valid UTF-8")
	}
	p.space()
	if p.peek() != '{' {
		return nil, p.errorf("a JSON object")
	}
	if err := p.members("", 1, true); err != nil {
		return nil, err
	}
	if p.space(); p.pos != len(p.in) {
		return nil, p.errorf("nothing after the object")
	}
	slices.SortFunc(p.claims.others, func(a, b claim) int { return strings.Compare(a.name, b.name) })
	return p.claims, nil
}

// parser is a strict recursive-descent reader of RFC 8259 text that keeps scalars under their canonical names.
type parser struct {
	in     string
	pos    int
	claims *Claims
	names  []string // of the members read so far, of all open objects
}

func (p *parser) errorf(want string) error {
	return &FieldError{Field: "payload", Kind: "malformed", ValueKind: "JSON", Limit: fmt.Sprintf("%s expected at byte %d", want, p.pos)}
}

func tooDeep() error {
	return &FieldError{Field: "payload", Kind: "too_large", ValueKind: "JSON", Limit: "depth at most 8"}
}

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

// members reads an object whose members are named below parent; store is false inside arrays.
func (p *parser) members(parent string, depth int, store bool) error {
	if depth > MaxDepth {
		return tooDeep()
	}
	p.pos++ // {
	if p.space(); p.peek() == '}' {
		p.pos++
		return nil
	}
	outer := len(p.names)
	for {
		p.space()
		if p.peek() != '"' {
			return p.errorf("a member name")
		}
		key, err := p.str()
		if err != nil {
			return err
		}
		p.names = append(p.names, key)
		if p.space(); p.peek() != ':' {
			return p.errorf("a colon")
		}
		p.pos++
		p.space()
		if err := p.member(parent, key, depth, store); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			names := p.names[outer:]
			p.names = p.names[:outer]
			slices.Sort(names)
			if n := len(names); len(slices.Compact(names)) != n {
				return ErrDuplicateClaim
			}
			return nil
		default:
			return p.errorf("a comma or the end of the object")
		}
	}
}

func (p *parser) member(parent, key string, depth int, store bool) error {
	name := ""
	if store {
		name = pointerName(parent, key)
		store = len(name) <= MaxNameBytes // no match can name it
	}
	date := store && parent == "" && (name == "iat" || name == "exp")
	start := p.pos
	if p.peek() == '{' {
		if store {
			p.keep(name, unusable)
		}
		if date {
			p.claims.setTime(name, "")
		}
		return p.members(name, depth+1, store)
	}
	v, err := p.value(depth, store)
	if err != nil || !store || v.kind == KindMissing {
		return err
	}
	p.keep(name, v)
	if date {
		lit := ""
		if c := p.in[start]; c == '-' || c >= '0' && c <= '9' {
			lit = p.in[start:p.pos]
		}
		p.claims.setTime(name, lit)
	}
	return nil
}

// keep puts a claim; others are sorted at the end, and names that are used twice refused.
func (p *parser) keep(name string, v Value) {
	if i := knownIndex(name); i >= 0 {
		p.claims.known[i] = v
		return
	}
	p.claims.others = append(p.claims.others, claim{name, v})
}

// value reads anything but an object that is to be kept; keep goes for the elements of an array.
func (p *parser) value(depth int, keep bool) (Value, error) {
	switch c := p.peek(); {
	case c == '"':
		s, err := p.str()
		return String(s), err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	case c == '{':
		return Value{kind: KindUnusable}, p.members("", depth+1, false)
	case c == '[':
		return p.arr(depth+1, keep)
	case strings.HasPrefix(p.in[p.pos:], "true"):
		p.pos += 4
		return Bool(true), nil
	case strings.HasPrefix(p.in[p.pos:], "false"):
		p.pos += 5
		return Bool(false), nil
	case strings.HasPrefix(p.in[p.pos:], "null"):
		p.pos += 4
		return Value{}, nil
	}
	return Value{}, p.errorf("a value")
}

// arr reads an array; keep says whether it is a claim, so that its elements are kept.
func (p *parser) arr(depth int, keep bool) (Value, error) {
	if depth > MaxDepth {
		return Value{}, tooDeep()
	}
	p.pos++ // [
	start, comparable := len(p.claims.elems), true
	if p.space(); p.peek() == ']' {
		p.pos++
		return p.claims.array(start, comparable), nil
	}
	for {
		p.space()
		v, err := p.value(depth, false)
		if err != nil {
			return v, err
		}
		comparable = comparable && v.scalar() // null is no value to compare
		if keep && comparable && len(p.claims.elems)-start <= MaxArrayElements {
			p.claims.elems = append(p.claims.elems, v)
		}
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return p.claims.array(start, comparable), nil
		default:
			return Value{}, p.errorf("a comma or the end of the array")
		}
	}
}

func (p *parser) number() (Value, error) {
	start := p.pos
	digits := func() bool {
		from := p.pos
		for p.peek() >= '0' && p.peek() <= '9' {
			p.pos++
		}
		return p.pos > from
	}
	if p.peek() == '-' {
		p.pos++
	}
	if p.peek() == '0' {
		p.pos++
	} else if !digits() {
		return Value{}, p.errorf("a digit")
	}
	if p.peek() == '.' {
		p.pos++
		if !digits() {
			return Value{}, p.errorf("a digit")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if !digits() {
			return Value{}, p.errorf("a digit")
		}
	}
	return parseNumber(p.in[start:p.pos]), nil
}

// str reads a string; one without escapes shares the payload's memory.
func (p *parser) str() (string, error) {
	p.pos++ // opening quote
	start := p.pos
	for p.pos < len(p.in) {
		switch c := p.in[p.pos]; {
		case c == '"':
			s := p.in[start:p.pos]
			p.pos++
			return s, nil
		case c == '\\':
			return p.escaped(start)
		case c < 0x20:
			return "", p.errorf("no control character")
		}
		p.pos++
	}
	return "", p.errorf("a closing quote")
}

func (p *parser) escaped(start int) (string, error) {
	out := append(make([]byte, 0, p.pos-start+16), p.in[start:p.pos]...)
	for p.pos < len(p.in) {
		c := p.in[p.pos]
		switch {
		case c == '"':
			p.pos++
			return string(out), nil
		case c < 0x20:
			return "", p.errorf("no control character")
		case c != '\\':
			out = append(out, c)
			p.pos++
			continue
		}
		p.pos++
		e := p.peek()
		p.pos++
		switch e {
		case '"', '\\', '/':
			out = append(out, e)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := p.hex4()
			if ok && utf16.IsSurrogate(r) {
				if !strings.HasPrefix(p.in[p.pos:], `\u`) {
					return "", p.errorf("the other half of a surrogate pair")
				}
				p.pos += 2
				var low rune
				if low, ok = p.hex4(); ok {
					r = utf16.DecodeRune(r, low)
					ok = r != utf8.RuneError
				}
			}
			if !ok {
				return "", p.errorf("four hex digits of a valid character")
			}
			out = utf8.AppendRune(out, r)
		default:
			return "", p.errorf("a known escape")
		}
	}
	return "", p.errorf("a closing quote")
}

func (p *parser) hex4() (rune, bool) {
	if p.pos+4 > len(p.in) {
		return 0, false
	}
	for i := range 4 {
		if c := p.in[p.pos+i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(p.in[p.pos:p.pos+4], 16, 32)
	p.pos += 4
	return rune(n), err == nil
}
