package revocation

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
)

// Each parser is given what it must refuse and what it must take, and may allocate only in proportion to its input.

// wantAllocated fails if fn allocates more than n bytes of input may.
func wantAllocated(t *testing.T, n int, fn func()) {
	t.Helper()
	// A claim of six bytes takes 48 in memory, its pointer name up to 128 more, and slices grow by doubling.
	alloctest.AtMost(t, 4096+100*n, fn)
}

func FuzzParseClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"iss":"i","sub":"u","jti":"1","iat":1735689600,"exp":1735693200.5,"aud":["a",1,true,null],"o":{"p":{"q":-1}}}`, `{"a":1,"\u0061":2}`, `{"a":"\ud83d\ude00\ud800"}`,
		`{"a":[[{"a":1,"a":2}]]}`, `{"a":1e5,"b":-0,"c":01}`, "{\"a\":\"\xff\"}", `{"` + strings.Repeat("x", 120) + `":{"a":1,"b":2,"c":{"d":[1,2,3]}}}`, strings.Repeat(`{"a":`, 10), `{"header.kid":1,"/a":2,"":3}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := compareWithOracle(b); err != nil {
			t.Fatal(err)
		}
		wantAllocated(t, min(len(b), MaxPayloadBytes), func() { _, _ = ParseClaims(b) })
	})
}

func FuzzParseMatch(f *testing.F) {
	for _, seed := range []string{``, `sub=u`, `iss=https://i,jti:=7`, `a=\,\\\x,b:=true`, `a=1,b=2,c=3,d=4,e=5`, `=`, `/a/b=c`, `token.sha256=00`, `a:=1.5`, "a=\xff", `a=1,a=1`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var m Match
		var err error
		wantAllocated(t, len(text), func() { m, err = ParseMatch(text) })
		if err != nil {
			var field *FieldError
			if !errors.As(err, &field) || len(m.claims) != 0 {
				t.Fatalf("%v, %+v", err, m)
			}
			return
		}
		checkMatch(t, m)
	})
}

// checkMatch checks what holds for every match: it survives JSON, and has a shape and a fingerprint.
func checkMatch(t *testing.T, m Match) {
	t.Helper()
	var again Match
	if err := json.Unmarshal(must(json.Marshal(m)), &again); err != nil || !equalMatches(m, again) {
		t.Fatalf("%+v becomes %+v, %v", m, again, err)
	}
	s := Shape{Names: m.Names()}
	if got, err := ParseShape(must(s.AppendBinary(nil))); err != nil || got.String() != s.String() {
		t.Fatalf("shape %s becomes %s, %v", s, got, err)
	}
	if testKey.fingerprint(m, s, ClassDeny) != testKey.fingerprint(again, s, ClassDeny) {
		t.Fatal("another fingerprint")
	}
}

func FuzzMatchJSON(f *testing.F) {
	for _, seed := range []string{`{}`, `{"sub":"u","n":1,"b":false}`, `{"/a/b":"x","/~1":1}`, `{"a":null}`, `{"a":[1]}`, `{"a":1,"/a":1}`, `{"header.kid":"k","/header.kid":"p"}`, `{"a":1.0}`, `[]`, `{"a":1,"a":1}`, `{"\ud800":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Match
		var err error
		wantAllocated(t, 2*min(len(b), MaxPayloadBytes), func() { m = Match{}; err = m.UnmarshalJSON(b) })
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrDuplicateClaim) {
				t.Fatal(err)
			}
			return
		}
		if !json.Valid(b) || len(m.claims) > MaxMatchClaims {
			t.Fatalf("%+v", m)
		}
		checkMatch(t, m)
	})
}

func FuzzParseRecord(f *testing.F) {
	good := must(Record{Fingerprint: Fingerprint{1, 2}, Value: t0, Shape: 3, ExpiresAt: 4, Class: ClassDeny}.AppendBinary(nil))
	f.Add(good)
	f.Add(good[:RecordSize-1])
	f.Add(append(good, 0))
	f.Add(make([]byte, RecordSize))
	f.Add(bytes.Repeat([]byte{0xff}, RecordSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Record
		var err error
		wantAllocated(t, 0, func() { r, err = ParseRecord(b) })
		if err != nil {
			if !errors.Is(err, ErrRecord) || r != (Record{}) {
				t.Fatalf("%+v, %v", r, err)
			}
			return
		}
		if got := must(r.AppendBinary(nil)); !bytes.Equal(got, b[:RecordSize]) {
			t.Fatalf("%x becomes %x", b, got)
		}
		if Join(r, r) != r {
			t.Fatalf("%+v does not join itself", r)
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	for _, p := range []Policy{{}, worldPolicy, {Issuers: map[string]Settings{"a": {Earlier: []Limit{{IssuedBefore: t0, MaxTokenLifetime: 1}}}}}} {
		f.Add(must(json.Marshal(p)))
	}
	for _, seed := range []string{``, `[]`, `{"Ceiling":-1}`, `{"Issuers":{"a":{"SessionClaim":"/"}}}`, `{"Default":{"MaxTokenLifetime":1}}`, `{"Issuers":{"a":{},"a":{},"b":null}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Policy
		var err error
		wantAllocated(t, 2*len(b), func() { p, err = ParsePolicy(b) }) // an issuer of seven bytes is one of a hundred in two maps
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !reflect.DeepEqual(p, Policy{}) {
				t.Fatalf("%+v, %v", p, err)
			}
			return
		}
		if again, err := ParsePolicy(must(json.Marshal(p))); err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("%+v becomes %+v, %v", p, again, err)
		}
	})
}

func FuzzParseShape(f *testing.F) {
	for _, s := range []Shape{{}, {Names: []string{"iss", "sub"}, Compared: IAT}, {Names: []string{"/a/b"}}, {Names: []string{"iss", "jti", "sub"}, Compared: IAT, Keep: true, KeepOf: []string{"iss", "sub"}}} {
		f.Add(must(s.AppendBinary(nil)))
	}
	f.Add([]byte{1, 0, 255, 255})
	f.Add([]byte{2, 0, 0, 0, 0})
	f.Add(append([]byte{1, 0, 1, 255}, make([]byte, 300)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Shape
		var err error
		wantAllocated(t, len(b), func() { s, err = ParseShape(b) })
		if err != nil {
			if !errors.Is(err, ErrRecord) || len(s.Names) > 0 || s.Keep {
				t.Fatalf("%+v, %v", s, err)
			}
			return
		}
		if got := must(s.AppendBinary(nil)); !bytes.Equal(got, b) {
			t.Fatalf("%x becomes %x", b, got)
		}
		if !s.valid() {
			t.Fatalf("%s is read and cannot be defined", s)
		}
	})
}
