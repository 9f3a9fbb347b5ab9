package revocation

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := Record{
			Fingerprint: Fingerprint{rapid.Uint64().Draw(t, "hi"), rapid.Uint64().Draw(t, "lo")},
			Value:       rapid.Int64().Draw(t, "value"), Shape: ShapeID(rapid.Uint64().Draw(t, "shape")), ExpiresAt: rapid.Uint32().Draw(t, "expires"),
			Class: Class(rapid.Byte().Draw(t, "class")), Reason: Reason(rapid.Byte().Draw(t, "reason")), Flags: rapid.Uint16().Draw(t, "flags"),
		}
		b, err := r.AppendBinary([]byte("before"))
		if err != nil || len(b) != len("before")+RecordSize || !bytes.HasPrefix(b, []byte("before")) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		got, err := ParseRecord(append(b[len("before"):], "behind"...))
		if valid := r.valid() == nil; valid != (err == nil) || valid && got != r || !valid && got != (Record{}) {
			t.Fatalf("%+v, %v, want %+v", got, err, r)
		}
	})
}

func TestParseRecordRefuses(t *testing.T) {
	good := Record{Fingerprint: Fingerprint{1, 2}, Value: t0, Shape: 3, ExpiresAt: 4, Class: ClassDeny}
	change := func(f func(*Record)) []byte { r := good; f(&r); return must(r.AppendBinary(nil)) }
	for name, b := range map[string][]byte{
		"nothing": nil, "39 bytes": change(func(*Record) {})[:39],
		"class 0":      change(func(r *Record) { r.Class = 0 }),
		"ExpiresAt 0":  change(func(r *Record) { r.ExpiresAt = 0 }),
		"no room":      change(func(r *Record) { r.ExpiresAt = maxExpiresAt + 1 }),
		"before 1970":  change(func(r *Record) { r.Value = -1 }),
		"microseconds": change(func(r *Record) { r.Value = t0 * 1000 }),
	} {
		if _, err := ParseRecord(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"all is well":          change(func(*Record) {}),
		"room for the slack":   change(func(r *Record) { r.ExpiresAt = maxExpiresAt }),
		"any threshold":        change(func(r *Record) { r.Class, r.Value = ClassBelow, -1<<63 }),
		"unknown class":        change(func(r *Record) { r.Class, r.Value = 200, -1 }),
		"unknown reason, flag": change(func(r *Record) { r.Reason, r.Flags = 255, 1<<15 }),
	} {
		if _, err := ParseRecord(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func drawShape(t *rapid.T) Shape {
	name := rapid.SampledFrom([]string{"iss", "sub", "jti", "/a/b", "header.kid", "x", strings.Repeat("n", MaxNameBytes)})
	names := rapid.SliceOfNDistinct(name, 0, MaxMatchClaims, rapid.ID[string]).Draw(t, "names")
	slices.Sort(names)
	s := Shape{Names: names, Compared: rapid.SampledFrom([]string{"", IAT, "ver"}).Draw(t, "compared")}
	if rapid.Bool().Draw(t, "keep") && len(names) > 0 {
		s.Keep, s.Compared = true, IAT
		s.KeepOf = slices.Clone(names[:rapid.IntRange(0, len(names)-1).Draw(t, "keep of")])
	}
	return s
}

func TestShapeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawShape(t), drawShape(t)
		def := must(a.AppendBinary(nil))
		got, err := ParseShape(def)
		if err != nil || !bytes.Equal(must(got.AppendBinary(nil)), def) || got.String() != a.String() {
			t.Fatalf("%s, %v, want %s", got, err, a)
		}
		if same := a.String() == b.String(); same != (a.ID() == b.ID()) {
			t.Fatalf("%s has id %x, %s has %x", a, a.ID(), b, b.ID())
		}
	})
}

func TestParseShapeRefuses(t *testing.T) {
	def := func(s Shape) []byte { return must(s.AppendBinary(nil)) }
	for name, b := range map[string][]byte{
		"nothing": nil, "a version to come": {2, 0, 0, 0, 0}, "a flag to come": {1, 2, 0, 0, 0}, "cut short": {1, 0, 0, 0}, "more": {1, 0, 0, 0, 0, 0},
		"many names":          {1, 0, 255},
		"a long name":         {1, 0, 1, 255, 'x'},
		"the longest":         append([]byte{1, 0, 1, 255}, make([]byte, 300)...), // 1 + 255 overflows a byte
		"names out of order":  def(Shape{Names: []string{"b", "a"}}),
		"a name twice":        def(Shape{Names: []string{"a", "a"}}),
		"no canonical name":   def(Shape{Names: []string{"/a"}}),
		"no name":             def(Shape{Names: []string{""}}),
		"five names":          def(Shape{Names: []string{"a", "b", "c", "d", "e"}}),
		"compared to nothing": def(Shape{Compared: "/~"}),
		"keep of itself":      def(Shape{Names: []string{"a"}, Keep: true, KeepOf: []string{"a"}, Compared: IAT}),
		"keep of another":     def(Shape{Names: []string{"a", "b"}, Keep: true, KeepOf: []string{"c"}, Compared: IAT}),
		"keep of a version":   def(Shape{Names: []string{"a"}, Keep: true, Compared: "ver"}),
		"keep of, no keep":    def(Shape{Names: []string{"a", "b"}, KeepOf: []string{"a"}, Compared: IAT}),
	} {
		if _, err := ParseShape(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newTable(t, Policy{}).Define(Shape{Names: []string{"b", "a"}}, 1, 0, Unbound); !errors.Is(err, ErrRecord) {
		t.Errorf("Define: %v", err)
	}
}

func TestReasons(t *testing.T) {
	for i, name := range Reasons() {
		r, err := ParseReason(name)
		if err != nil || r != Reason(i) || r.String() != name {
			t.Errorf("%q = %d (%s), %v", name, r, r, err)
		}
	}
	if r, err := ParseReason(""); r != ReasonUnspecified || err != nil {
		t.Errorf("%v, %v", r, err)
	}
	_, err := ParseReason("because")
	wantField(t, err, "reason", "malformed")
	if got := Reason(99).String(); got != "reason 99" {
		t.Error(got)
	}
}

// The numbers are on disks and wires: they are never given another meaning.
func TestNumbersOnTheWire(t *testing.T) {
	for class, name := range map[Class]string{1: "deny", 2: "issued_before", 3: "below", 4: "block", 5: "unblock", 6: "keep", 7: "class 7"} {
		if class.String() != name {
			t.Errorf("class %d is %s", class, class)
		}
	}
	for reason, name := range []string{
		"unspecified", "logout", "password-changed", "user-deleted", "user-suspended", "token-reused", "credential-stolen",
		"client-disabled", "tenant-disabled", "key-compromised", "issuer-compromised", "privileges-changed", "administrative", "reinstated",
	} {
		if Reason(reason).String() != name {
			t.Errorf("reason %d is %s", reason, Reason(reason))
		}
	}
}
