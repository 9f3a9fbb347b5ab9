package revocation

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// Claims holds what a check needs from a token whose signature the caller has verified. Build it with
// [ParseClaims], or with Set for callers that have no payload. The zero value has no claims.
// It may be read by any number of goroutines while nobody sets anything.
type Claims struct {
	known   [knownNames]Value
	others  []claim // sorted by name once parsed or set
	elems   []Value // of arrays
	iat     int64   // milliseconds, floor
	exp     int64
	hasIAT  bool
	hasExp  bool
	expKind string // why exp could not be read, for errors
}

type claim struct {
	name  string
	value Value
}

// Names with a place of their own in Claims, so that a check finds them without searching.
const knownNames = 10

func knownIndex(name string) int {
	switch name {
	case "iss":
		return 0
	case "sub":
		return 1
	case "jti":
		return 2
	case "sid":
		return 3
	case "client_id":
		return 4
	case "tenant_id":
		return 5
	case "azp":
		return 6
	case "aud":
		return 7
	case HeaderKID:
		return 8
	case TokenSHA256:
		return 9
	}
	return -1
}

// Set puts a claim, replacing an earlier one of that name. iat and exp are NumericDates: whole
// seconds here; see [Claims.SetIssuedAt] for fractions. Errors are *FieldError.
func (c *Claims) Set(name string, v Value) error {
	name, err := CanonicalName(name)
	if err != nil {
		return err
	}
	if v.kind == KindArray {
		return &FieldError{Field: name, Kind: "not_allowed", ValueKind: "array", Limit: "SetStrings sets an array"}
	}
	c.set(name, v)
	if n, ok := v.AsInt(); ok && (name == "iat" || name == "exp") {
		c.setTime(name, strconv.FormatInt(n, 10))
	} else if name == "iat" || name == "exp" {
		c.setTime(name, "")
	}
	return nil
}

// SetStrings puts a claim whose value is an array of strings.
func (c *Claims) SetStrings(name string, values ...string) error {
	name, err := CanonicalName(name)
	if err != nil {
		return err
	}
	start, comparable := len(c.elems), true
	for _, s := range values[:min(len(values), MaxArrayElements+1)] {
		v := String(s)
		c.elems = append(c.elems, v)
		comparable = comparable && v.scalar()
	}
	c.set(name, c.array(start, comparable))
	if name == "iat" || name == "exp" {
		c.setTime(name, "")
	}
	return nil
}

// SetIssuedAt states iat in Unix milliseconds; a token with whole seconds counts as issued at their start.
func (c *Claims) SetIssuedAt(ms int64) {
	c.iat, c.hasIAT = ms, inTimeRange(ms)
	c.set("iat", Int(ms/1000))
}

// SetExpiresAt states exp in Unix milliseconds.
func (c *Claims) SetExpiresAt(ms int64) {
	c.exp, c.hasExp = ms, inTimeRange(ms)
	c.set("exp", Int(ms/1000))
}

// SetHeaderKID states the key id of the token's header.
func (c *Claims) SetHeaderKID(kid string) { c.known[8] = String(kid) }

// SetSigningInput states the SHA-256 of the token's signing input (header.payload).
func (c *Claims) SetSigningInput(sum [32]byte) { c.known[9] = String(hex.EncodeToString(sum[:])) }

// Issuer returns iss, or "".
func (c *Claims) Issuer() string { s, _ := c.known[0].AsString(); return s }

// IssuedAt returns iat in Unix milliseconds, rounded down. ok is false if it is missing or no time:
// not a number, negative, or beyond the year 5138, which is what milliseconds look like.
func (c *Claims) IssuedAt() (ms int64, ok bool) { return c.iat, c.hasIAT }

// ExpiresAt returns exp like [Claims.IssuedAt].
func (c *Claims) ExpiresAt() (ms int64, ok bool) { return c.exp, c.hasExp }

// CheckExpiresAt says what is wrong with an exp that is there and no time, such as milliseconds
// where seconds belong; nil if exp is missing or right. Errors are *FieldError.
func (c *Claims) CheckExpiresAt() error {
	switch c.expKind {
	case "":
		return nil
	case "milliseconds":
		return &FieldError{Field: "exp", Kind: "out_of_range", ValueKind: "milliseconds", Limit: "seconds since 1970 (RFC 7519 NumericDate); this looks like milliseconds"}
	}
	return &FieldError{Field: "exp", Kind: "malformed", ValueKind: c.expKind, Limit: "seconds since 1970 (RFC 7519 NumericDate)"}
}

// Lookup returns the claim with a canonical name: the zero Value if the token has none, and an unusable
// one if a pointer leads into an array.
func (c *Claims) Lookup(name string) Value {
	n := newClaimName(name)
	return *c.value(&n)
}

// claimName is a canonical name with what a check needs to find it without allocating.
type claimName struct {
	name  string
	known int8        // its place in Claims.known, -1 if it has none
	above []claimName // of a pointer: what it leads through, innermost first
}

func newClaimName(name string) claimName {
	n := claimName{name: name, known: int8(knownIndex(name))}
	if name != "" && name[0] == '/' {
		for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
			if parent, err := CanonicalName(name[:i]); err == nil {
				n.above = append(n.above, claimName{name: parent, known: int8(knownIndex(parent))})
			}
		}
	}
	return n
}

func newClaimNames(names []string) []claimName {
	list := make([]claimName, len(names))
	for i, n := range names {
		list[i] = newClaimName(n)
	}
	return list
}

var (
	missing  Value
	unusable = Value{kind: KindUnusable}
)

func (c *Claims) value(n *claimName) *Value {
	if n.known >= 0 {
		return &c.known[n.known]
	}
	if i, ok := c.search(n.name); ok {
		return &c.others[i].value
	}
	for i := range n.above {
		// A pointer does not reach into arrays, so what it names there must not look absent.
		if v := c.value(&n.above[i]); v.kind == KindArray || v.kind == KindUnusable && v.s == unusableArray {
			return &unusable
		}
	}
	return &missing
}

func (c *Claims) search(name string) (int, bool) {
	return slices.BinarySearchFunc(c.others, name, func(e claim, n string) int { return strings.Compare(e.name, n) })
}

func (c *Claims) set(name string, v Value) {
	if i := knownIndex(name); i >= 0 {
		c.known[i] = v
		return
	}
	i, found := c.search(name)
	if found {
		c.others[i].value = v
		return
	}
	c.others = slices.Insert(c.others, i, claim{name, v})
}

// array returns the array of the elements from start on; one that cannot be compared keeps none.
func (c *Claims) array(start int, comparable bool) Value {
	n := len(c.elems) - start
	if !comparable || n > MaxArrayElements {
		c.elems = c.elems[:start]
		return Value{kind: KindUnusable, s: unusableArray}
	}
	return Value{kind: KindArray, n: int64(start)<<8 | int64(n)}
}

const unusableArray = "array"

func (c *Claims) elements(v *Value) []Value {
	start, n := v.n>>8, v.n&0xff
	return c.elems[start : start+n]
}

// setTime reads a NumericDate literal; "" stands for a value that is no number.
func (c *Claims) setTime(name, lit string) {
	ms, kind := parseNumericDate(lit)
	if name == "iat" {
		c.iat, c.hasIAT = ms, kind == ""
		return
	}
	c.exp, c.hasExp, c.expKind = ms, kind == "", kind
}

const maxNumericDate = 100_000_000_000 // seconds: the year 5138. What is beyond is milliseconds.

func inTimeRange(ms int64) bool { return ms >= 0 && ms < maxNumericDate*1000 }

// parseNumericDate returns the time in milliseconds, rounded down, and the kind of the value if it is no time.
func parseNumericDate(lit string) (ms int64, kind string) {
	if lit == "" {
		return 0, "no number"
	}
	if lit[0] == '-' {
		return 0, "negative number"
	}
	if strings.ContainsAny(lit, "eE") {
		f, err := strconv.ParseFloat(lit, 64)
		if err != nil || f >= maxNumericDate*1000 {
			return 0, "number"
		}
		lit = strconv.FormatFloat(f, 'f', -1, 64)
	}
	// Decimals are read as they stand: a float between could make another millisecond of 1735689600.999.
	whole, fraction, _ := strings.Cut(lit, ".")
	n, err := strconv.ParseInt(whole, 10, 64)
	switch {
	case err != nil || n >= maxNumericDate*1000:
		return 0, "number"
	case n >= maxNumericDate:
		return 0, "milliseconds"
	}
	thousandths, err := strconv.ParseInt((fraction + "000")[:3], 10, 64)
	if err != nil {
		return 0, "number"
	}
	return n*1000 + thousandths, ""
}
