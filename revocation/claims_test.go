package revocation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestParseClaimsRefuses(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	for payload, want := range map[string]error{
		``: ErrInvalid, ` `: ErrInvalid, `null`: ErrInvalid, `[]`: ErrInvalid, `"a"`: ErrInvalid, `{`: ErrInvalid, `{}}`: ErrInvalid, `{} {}`: ErrInvalid, "{}\x00": ErrInvalid,
		`{"a"}`: ErrInvalid, `{"a":}`: ErrInvalid, `{"a":1,}`: ErrInvalid, `{,}`: ErrInvalid, `{a:1}`: ErrInvalid, `{'a':1}`: ErrInvalid, `{"a":1 "b":2}`: ErrInvalid, `{"a" 1}`: ErrInvalid,
		`{"a":01}`: ErrInvalid, `{"a":+1}`: ErrInvalid, `{"a":.5}`: ErrInvalid, `{"a":1.}`: ErrInvalid, `{"a":1e}`: ErrInvalid, `{"a":-}`: ErrInvalid, `{"a":0x1}`: ErrInvalid, `{"a":NaN}`: ErrInvalid,
		`{"a":tru}`: ErrInvalid, `{"a":True}`: ErrInvalid, `{"a":nul}`: ErrInvalid, `{"a":[1,]}`: ErrInvalid, `{"a":[1 2]}`: ErrInvalid, `{"a":[}`: ErrInvalid, `{"a":[`: ErrInvalid,
		`{"a":"`: ErrInvalid, `{"a":"\`: ErrInvalid, `{"a":"\x"}`: ErrInvalid, `{"a":"\u12"}`: ErrInvalid, `{"a":"\u+123"}`: ErrInvalid, "{\"a\":\"\n\"}": ErrInvalid, "{\"a\":\"\\n\x01\"}": ErrInvalid,
		`{"a":"\ud800"}`: ErrInvalid, `{"a":"\udc00"}`: ErrInvalid, `{"a":"\ud800\ud800"}`: ErrInvalid, `{"a":"\ud800x"}`: ErrInvalid, `{"\ud800":1}`: ErrInvalid,
		"{\"a\":\"\xff\"}": ErrInvalid, "{\"\xff\":1}": ErrInvalid, "{\"a\":\"\xed\xa0\x80\"}": ErrInvalid, "\xef\xbb\xbf{}": ErrInvalid,
		`{"a":1,"a":1}`: ErrDuplicateClaim, `{"a":1,"\u0061":2}`: ErrDuplicateClaim, `{"\/":1,"/":2}`: ErrDuplicateClaim, `{"":1,"":2}`: ErrDuplicateClaim,
		`{"o":{"a":1,"a":2}}`: ErrDuplicateClaim, `{"o":[{"a":1,"a":2}]}`: ErrDuplicateClaim, `{"iss":"a","x":{"iss":"c"},"iss":"b"}`: ErrDuplicateClaim,
		`{"a":"` + strings.Repeat("x", MaxPayloadBytes) + `"}`: ErrInvalid,
		deep(MaxDepth + 1): ErrInvalid, `{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`: ErrInvalid,
		`{"a":` + strings.Repeat("[", 4000): ErrInvalid, strings.Repeat(`{"a":`, 1600): ErrInvalid,
	} {
		c, err := ParseClaims([]byte(payload))
		if c != nil || !errors.Is(err, want) {
			t.Errorf("%.60q: %v, want %v", payload, err, want)
		}
	}
	for _, payload := range []string{
		`{}`, " \t\r\n{ \"a\" : [ 1 , { } ] } \n", deep(MaxDepth), `{"a":` + strings.Repeat("[", MaxDepth-1) + strings.Repeat("]", MaxDepth-1) + `}`,
		`{"a":1,"A":2}`, `{"a":{"b":1},"b":{"b":1}}`, `{"a":[{"b":1},{"b":1}]}`, `{"a/b":1,"a":{"b":2}}`, `{"a":"\ud83d\ude00"}`,
		`{"a":"` + strings.Repeat("x", MaxPayloadBytes-len(`{"a":""}`)) + `"}`,
	} {
		if _, err := ParseClaims([]byte(payload)); err != nil {
			t.Errorf("%.60q: %v", payload, err)
		}
	}
}

// Errors say where and what, and never quote the payload.
func TestParseClaimsErrorsTellNothing(t *testing.T) {
	secret := "s3cr3t"
	for _, payload := range []string{`{"` + secret + `":"` + secret + `" x`, `{"` + secret + `":1,"` + secret + `":2}`, `{"a":"` + secret + `\q"}`, `{"a":` + secret + `}`} {
		_, err := ParseClaims([]byte(payload))
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%v", err)
		}
	}
}

func TestClaimValues(t *testing.T) {
	c := claims(t, `{"s":"x\u0041\/\n😀\ud83d\ude00","n":-7,"b":false,"null":null,"o":{"in":{"deep":1}},"list":["a",2,true],"empty":[],"aud":"x","sub":7,
		"f":1.0,"e":1e2,"big":9223372036854775807,"bigger":9223372036854775808,"a/b":{"c~d":"p"},"":"empty name","/x":"slash","header.kid":"payload","org":[{"id":1}],
		"`+strings.Repeat("n", MaxNameBytes)+`":1,"`+strings.Repeat("m", MaxNameBytes+1)+`":1}`)
	for name, want := range map[string]Value{
		"s": String("xA/\n😀😀"), "n": Int(-7), "b": Bool(false), "null": {}, "nothing": {}, "o": unusable, "/o/in": unusable, "/o/in/deep": Int(1), "/o/in/nothing": {},
		"empty": {kind: KindArray}, "aud": String("x"), "sub": Int(7), "jti": {}, "f": unusable, "e": unusable, "big": Int(1<<63 - 1), "bigger": unusable,
		"/a~1b/c~0d": String("p"), "/a/b": {}, "/": String("empty name"), "/~1x": String("slash"), "/header.kid": String("payload"), HeaderKID: {}, TokenSHA256: {},
		"/org/id": unusable, "/org/0/id": unusable, "/list/0": unusable, "/s/x": {},
		strings.Repeat("n", MaxNameBytes): Int(1), strings.Repeat("m", MaxNameBytes+1): {},
	} {
		got := c.Lookup(name)
		if got.kind == KindArray {
			got.n &= 0xff
		}
		if got != want {
			t.Errorf("%s = %+v, want %+v", name, got, want)
		}
	}
	list := c.Lookup("list")
	if got := c.elements(&list); !slices.Equal(got, []Value{String("a"), Int(2), Bool(true)}) {
		t.Errorf("list = %+v", got)
	}
}

// NumericDates are read exactly, to the millisecond below.
func TestNumericDate(t *testing.T) {
	type date struct {
		ms   int64
		kind string
	}
	for lit, want := range map[string]date{
		"0": {0, ""}, "1735689600": {1735689600000, ""}, "1735689600.999": {1735689600999, ""}, "1735689600.9999": {1735689600999, ""}, "1735689600.0": {1735689600000, ""},
		"1735689600.001": {1735689600001, ""}, "1735689600.5": {1735689600500, ""}, "1735689600.29": {1735689600290, ""}, "1.735689600999e9": {1735689600999, ""}, "1735689600e0": {1735689600000, ""},
		"17356896e2": {1735689600000, ""}, "1e-3": {1, ""}, "1e-300": {0, ""}, "0.0009": {0, ""}, "0e0": {0, ""},
		"99999999999.999": {99999999999999, ""}, "100000000000": {0, "milliseconds"}, "1735689600000": {0, "milliseconds"}, "1.7356896e12": {0, "milliseconds"},
		"1735689600000000": {0, "number"}, "9223372036854775807": {0, "number"}, "99999999999999999999": {0, "number"}, "1e300": {0, "number"}, "1e999": {0, "number"},
		"-1": {0, "negative number"}, "-0.5": {0, "negative number"}, "-1e300": {0, "negative number"}, "": {0, "no number"},
	} {
		ms, kind := parseNumericDate(lit)
		if got := (date{ms, kind}); got != want {
			t.Errorf("%s = %+v, want %+v", lit, got, want)
		}
	}
	for exp, kind := range map[string]string{`1735689600000`: "milliseconds", `"1735689600"`: "no number", `-5`: "negative number", `1e300`: "number", `{}`: "no number"} {
		c := claims(t, `{"exp":`+exp+`}`)
		var f *FieldError
		if err := c.CheckExpiresAt(); !errors.As(err, &f) || f.Field != "exp" || f.ValueKind != kind {
			t.Errorf("exp %s: %v", exp, err)
		}
		if _, ok := c.ExpiresAt(); ok {
			t.Errorf("exp %s is a time", exp)
		}
	}
	for _, payload := range []string{`{}`, `{"exp":null}`, `{"exp":1735689600.5}`} {
		if err := claims(t, payload).CheckExpiresAt(); err != nil {
			t.Errorf("%s: %v", payload, err)
		}
	}
}

// Claims that are set one by one are those of a payload.
func TestSetIsLikeParse(t *testing.T) {
	parsed := claims(t, `{"iss":"i","sub":"u","n":5,"b":true,"aud":["a","b"],"iat":1735689600,"exp":1735693200,"/x":1,"o":"p"}`)
	set := new(Claims)
	for name, v := range map[string]Value{"iss": String("i"), "sub": String("u"), "n": Int(5), "b": Bool(true), "iat": Int(1735689600), "exp": Int(1735693200), "/~1x": Int(1), "/o": String("p")} {
		if err := set.Set(name, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.SetStrings("aud", "a", "b"); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parsed, set) {
		t.Errorf("%+v\n%+v", parsed, set)
	}
	for name, v := range map[string]Value{"": Int(1), "/a~": Int(1), "\xff": Int(1), strings.Repeat("x", MaxNameBytes+1): Int(1), "list": {kind: KindArray}} {
		if err := new(Claims).Set(name, v); !errors.Is(err, ErrInvalid) {
			t.Errorf("Set(%.10q): %v", name, err)
		}
	}
	if err := set.SetStrings("/~"); !errors.Is(err, ErrInvalid) {
		t.Errorf("SetStrings: %v", err)
	}
	set.SetIssuedAt(1735689600500)
	if ms, ok := set.IssuedAt(); ms != 1735689600500 || !ok {
		t.Errorf("iat %d", ms)
	}
	set.SetIssuedAt(-1)
	if _, ok := set.IssuedAt(); ok {
		t.Error("iat before 1970 is a time")
	}
	_ = set.Set("exp", String("soon"))
	if _, ok := set.ExpiresAt(); ok {
		t.Error("exp in words is a time")
	}
	_ = set.SetStrings("aud", slices.Repeat([]string{"x"}, 1000)...)
	if set.Lookup("aud").Kind() != KindUnusable {
		t.Error("a long array can be compared")
	}
}

// oracle decodes a payload with encoding/json, which lets duplicates, depth, lone surrogates and invalid UTF-8 pass.
func oracle(payload []byte) (claims map[string]any, duplicate, deep bool, err error) {
	if !json.Valid(payload) {
		return nil, false, false, errors.New("invalid")
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var names []map[string]bool
	var isName []bool
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, false, false, err
		}
		top := len(names) - 1
		switch v := tok.(type) {
		case json.Delim:
			switch v {
			case '{', '[':
				if top >= 0 && names[top] != nil {
					isName[top] = true // after this value
				}
				if v == '{' {
					names, isName = append(names, map[string]bool{}), append(isName, true)
				} else {
					names, isName = append(names, nil), append(isName, false)
				}
				deep = deep || len(names) > MaxDepth
			default:
				names, isName = names[:top], isName[:top]
			}
		default:
			if top < 0 || names[top] == nil {
				continue
			}
			if isName[top] {
				name := v.(string)
				duplicate = duplicate || names[top][name]
				names[top][name] = true
			}
			isName[top] = !isName[top]
		}
	}
	d = json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	err = d.Decode(&claims)
	if err == nil && claims == nil {
		err = errors.New("null")
	}
	return claims, duplicate, deep, err
}

func loneSurrogate(payload []byte) bool {
	// encoding/json replaces a lone surrogate by U+FFFD; whoever writes that character itself writes no escape of a surrogate.
	return bytes.Contains(bytes.ToLower(payload), []byte(`\ud`))
}

// compareWithOracle says how ParseClaims and encoding/json disagree about a payload; nil if they do not.
func compareWithOracle(payload []byte) error {
	c, err := ParseClaims(payload)
	want, duplicate, deep, oracleErr := oracle(payload)
	refuse := oracleErr != nil || duplicate || deep || !utf8.Valid(payload) || len(payload) > MaxPayloadBytes
	switch {
	case err != nil && c != nil:
		return errors.New("claims and an error")
	case err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrDuplicateClaim):
		return fmt.Errorf("unknown error %w", err)
	case err == nil && refuse:
		return fmt.Errorf("accepted; encoding/json: %v, duplicate %v, deep %v", oracleErr, duplicate, deep)
	case err != nil && !refuse && !loneSurrogate(payload):
		return fmt.Errorf("refused: %w", err)
	case err != nil:
		return nil
	}
	for name, v := range want {
		canonical := plainName(name)
		if len(canonical) > MaxNameBytes {
			continue
		}
		got := c.Lookup(canonical)
		var expect Value
		switch v := v.(type) {
		case nil:
		case string:
			expect = String(v)
		case bool:
			expect = Bool(v)
		case json.Number:
			expect = parseNumber(v.String())
		case []any:
			expect.kind = KindArray
			for _, e := range v {
				switch e := e.(type) {
				case string:
					if s := String(e); s.kind != KindString {
						expect.kind = KindUnusable
					}
				case bool:
				case json.Number:
					if n := parseNumber(e.String()); n.kind != KindInt {
						expect.kind = KindUnusable
					}
				default:
					expect.kind = KindUnusable
				}
			}
			if len(v) > MaxArrayElements {
				expect.kind = KindUnusable
			}
			if got.kind == expect.kind && (got.kind != KindArray || len(c.elements(&got)) == len(v)) {
				continue
			}
		default:
			expect = unusable
		}
		if got != expect {
			return fmt.Errorf("claim of kind %s is %s", expect.kind, got.kind)
		}
	}
	return nil
}

// ParseClaims and encoding/json agree about every payload that both accept.
func TestParseClaimsLikeEncodingJSON(t *testing.T) {
	var value func(depth int) *rapid.Generator[string]
	text := rapid.OneOf(rapid.SampledFrom([]string{"a", "b", "iss", "iat", `\u0061`, `\"`, `\\`, "", "😀", `\ud83d\ude00`, `\ud800`, "/", "header.kid"}), rapid.StringMatching(`[ -!#-\[\]-~]{0,6}`))
	value = func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(t *rapid.T) string {
			switch k := rapid.IntRange(0, 9).Draw(t, "kind"); {
			case k == 0 && depth > 0:
				var b strings.Builder
				for i := range rapid.IntRange(0, 4).Draw(t, "members") {
					if i > 0 {
						b.WriteByte(',')
					}
					fmt.Fprintf(&b, `"%s":%s`, text.Draw(t, "name"), value(depth-1).Draw(t, "value"))
				}
				return "{" + b.String() + "}"
			case k == 1 && depth > 0:
				list := rapid.SliceOfN(value(depth-1), 0, 18).Draw(t, "elements")
				return "[" + strings.Join(list, ",") + "]"
			case k == 2:
				return rapid.SampledFrom([]string{"0", "-0", "1.5", "1e3", "-7", "9223372036854775807", "9223372036854775808", "1E-2"}).Draw(t, "number")
			case k == 3:
				return rapid.SampledFrom([]string{"true", "false", "null", "tru", "01", "{", "]", ""}).Draw(t, "word")
			}
			return `"` + text.Draw(t, "string") + `"`
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for i := range rapid.IntRange(0, 6).Draw(t, "claims") {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, ` "%s" :%s`, text.Draw(t, "name"), value(9).Draw(t, "claim"))
		}
		payload := "{" + b.String() + "}"
		if err := compareWithOracle([]byte(payload)); err != nil {
			t.Fatalf("%s: %v", payload, err)
		}
	})
}

func TestCanonicalName(t *testing.T) {
	for in, want := range map[string]string{
		"sub": "sub", "/sub": "sub", "/a~1b": "a/b", "/~0": "~", "/a/b": "/a/b", "/": "/", "//": "//", "/~1a": "/~1a", "/header.kid": "/header.kid", "header.kid": "header.kid",
		"token.sha256": "token.sha256", "/token.sha256": "/token.sha256", "a/b": "a/b", "/1/2/3/4/5/6/7/8": "/1/2/3/4/5/6/7/8", strings.Repeat("x", 128): strings.Repeat("x", 128),
		"": "", "/~": "", "/~2": "", "/a/~": "", "/1/2/3/4/5/6/7/8/9": "", "\xff": "", strings.Repeat("x", 129): "",
	} {
		got, err := CanonicalName(in)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("CanonicalName(%.20q) = %q, %v", in, got, err)
		}
		if want != "" {
			if again, err := CanonicalName(got); again != got || err != nil {
				t.Errorf("%q is not canonical: %q, %v", got, again, err)
			}
		}
	}
}

// Two ways through a payload never have one name: what a match names is one place in a token.
func TestNamesOfMembersAreDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		part := rapid.SampledFrom([]string{"", "a", "b", "/", "~", "~1", "a/b", "/a", HeaderKID, TokenSHA256})
		path := rapid.SliceOfN(part, 1, 3)
		a, b := path.Draw(t, "a"), path.Draw(t, "b")
		name := func(path []string) (n string) {
			for _, p := range path {
				n = pointerName(n, p)
			}
			return n
		}
		if same := slices.Equal(a, b); (name(a) == name(b)) != same {
			t.Fatalf("%q and %q are %q and %q", a, b, name(a), name(b))
		}
		if c, err := CanonicalName(name(a)); err != nil || c != name(a) {
			t.Fatalf("%q of %q is not canonical: %q, %v", name(a), a, c, err)
		}
	})
}
