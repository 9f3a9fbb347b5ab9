package revocation

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/revokd/revokd/ttlstore"
)

// t0 is the time at which most tests play, in milliseconds: a whole second in January 2027.
const t0 int64 = 1_800_000_000_000

const (
	second = int64(1000)
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

var testKey = Key{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

type testing_ interface {
	Helper()
	Fatalf(string, ...any)
	Cleanup(func())
}

func newTable(t testing_, p Policy) *Table {
	t.Helper()
	table, err := NewTable(TableConfig{Key: testKey, Policy: p, Store: ttlstore.Config{MaxItems: 1 << 16, Heap: true}})
	if err != nil {
		t.Fatalf("NewTable: %v", err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

func policy(t testing_, p Policy) *Policy {
	t.Helper()
	if err := p.Validate(); err != nil {
		t.Fatalf("Validate: %v", err)
	}
	return &p
}

// put stores what a revocation says, as a node does.
func put(t testing_, table *Table, r Revocation, now int64) Delta {
	t.Helper()
	if _, err := table.Define(r.Shape, r.ExpiresAt, now, Unbound); err != nil {
		t.Fatalf("Define %s: %v", r.Shape, err)
	}
	d, err := table.Merge(testKey.Record(r), 1, now, false)
	if err != nil {
		t.Fatalf("Merge %s: %v", r.Shape, err)
	}
	return d
}

// write carries out a request as a node does whose clocks agree.
func write(t testing_, table *Table, r Request, now int64) Plan {
	t.Helper()
	plan, err := table.Plan(r, now, now)
	if err != nil {
		t.Fatalf("Plan: %v", err)
	}
	for _, rev := range plan.Revocations {
		if rev.Class == ClassBlock || rev.Class == ClassUnblock {
			stamped, err := table.Stamp(testKey.Record(rev), Record{}, now, now)
			if err != nil {
				t.Fatalf("Stamp: %v", err)
			}
			rev.Value, rev.ExpiresAt = stamped.Value, stamped.ExpiresAt
		}
		put(t, table, rev, now)
	}
	return plan
}

func match(t testing_, text string) Match {
	t.Helper()
	m, err := ParseMatch(text)
	if err != nil {
		t.Fatalf("ParseMatch(%q): %v", text, err)
	}
	return m
}

// token makes claims of a payload, with exp an hour after iat unless it says otherwise.
func token(t testing_, iat int64, payload map[string]any) *Claims {
	t.Helper()
	all := map[string]any{"iat": json.Number(milliseconds(iat)), "exp": json.Number(milliseconds(iat + hour))}
	for k, v := range payload {
		all[k] = v
		if v == nil {
			delete(all, k)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatalf("Marshal: %v", err)
	}
	return claims(t, string(b))
}

func claims(t testing_, payload string) *Claims {
	t.Helper()
	c, err := ParseClaims([]byte(payload))
	if err != nil {
		t.Fatalf("ParseClaims(%s): %v", payload, err)
	}
	return c
}

func milliseconds(ms int64) string {
	b, _ := json.Marshal(float64(ms) / 1000)
	return string(b)
}

func wantStatus(t testing_, what string, v Verdict, want Status) {
	t.Helper()
	if v.Status != want {
		t.Fatalf("%s: %s (cause %q, rule %s), want %s", what, v.Status, v.Cause, v.Rule.Class, want)
	}
}

func wantUnknown(t testing_, what string, v Verdict, cause Cause) {
	t.Helper()
	if v.Status != Unknown || v.Cause != cause {
		t.Fatalf("%s: %s (cause %q), want unknown (%s)", what, v.Status, v.Cause, cause)
	}
}

// wantField checks that a request was refused because of a field, in words that name it.
func wantField(t testing_, err error, field, kind string) {
	t.Helper()
	var f *FieldError
	if !errors.As(err, &f) || f.Field != field || f.Kind != kind {
		t.Fatalf("error = %v, want %s: %s", err, field, kind)
	}
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("%v does not match ErrInvalid", err)
	}
	if f.Limit == "" {
		t.Fatalf("%v names no limit", err)
	}
}

var _ testing_ = (*testing.T)(nil)

func ms(d time.Duration) int64 { return d.Milliseconds() }
