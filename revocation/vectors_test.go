package revocation

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the shape and record lines of testdata/vectors.txt anew")

// vectorRequest is the JSON of a write line.
type vectorRequest struct {
	Action       string `json:"action"`
	Match        Match  `json:"match"`
	Below        *Below `json:"below"`
	IssuedBefore int64  `json:"issued_before"`
	ExpiresAt    int64  `json:"expires_at"`
	Keep         []Match
	Reason       string `json:"reason"`
}

// TestVectors reads testdata/vectors.txt, which other implementations may use.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := policy(t, Policy{Issuers: map[string]Settings{"ahead": {Skew: 2 * time.Second}, "family": {SessionClaim: "fam"}}})
	var out bytes.Buffer
	var table *Table
	var now int64
	cases, tokens, writes := 0, 0, 0
	for number, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "shape", "record", "refused", "already_expired":
			continue // written below, and compared as a whole
		}
		fmt.Fprintln(&out, line)
		where := fmt.Sprintf("%s:%d", file, number+1)
		switch word {
		case "", "#":
		case "case":
			table = newTable(t, *p)
			cases++
		case "now":
			if _, err := fmt.Sscan(rest, &now); err != nil {
				t.Fatalf("%s: %v", where, err)
			}
		case "write":
			writes++
			vectorWrite(t, &out, where, table, rest, now)
		case "token":
			tokens++
			payload, want, ok := strings.Cut(rest, " = ")
			c, err := ParseClaims([]byte(payload))
			if !ok || err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			v := table.Check(c, now)
			got := v.Status.String()
			if v.Status == Unknown {
				got += " " + v.Cause.String()
			}
			if got != want {
				t.Errorf("%s: %s, want %s", where, got, want)
			}
		default:
			t.Fatalf("%s: %q", where, word)
		}
	}
	if cases < 15 || tokens < 40 || writes < 25 {
		t.Errorf("only %d cases, %d tokens and %d writes", cases, tokens, writes)
	}
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := strings.Split(string(text), "\n")
	for i, got := range strings.Split(out.String(), "\n") {
		if i >= len(want) || got != want[i] {
			t.Fatalf("%s:%d: this version makes\n%s", file, i+1, got)
		}
	}
}

// vectorWrite carries out a request like a node and writes the lines that follow it.
func vectorWrite(t *testing.T, out *bytes.Buffer, where string, table *Table, text string, now int64) {
	t.Helper()
	var v vectorRequest
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	r := Request{Match: v.Match, Below: v.Below, IssuedBefore: v.IssuedBefore, ExpiresAt: v.ExpiresAt, Keep: v.Keep}
	switch v.Action {
	case "", "revoke":
	case "block":
		r.Action = Block
	case "unblock":
		r.Action = Unblock
	default:
		t.Fatalf("%s: action %q", where, v.Action)
	}
	if v.Reason != "" {
		reason, err := ParseReason(v.Reason)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		r.Reason = reason
	}
	plan, err := table.Plan(r, now, now)
	if field, ok := errors.AsType[*FieldError](err); ok {
		fmt.Fprintln(out, "refused", field.Field, field.Kind)
		return
	} else if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if plan.AlreadyExpired {
		fmt.Fprintln(out, "already_expired")
		return
	}
	for _, rev := range plan.Revocations {
		record, err := table.Stamp(testKey.Record(rev), Record{}, now, now)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		b, err := record.AppendBinary(nil)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		fmt.Fprintf(out, "shape %016x %s\n", uint64(rev.Shape.ID()), rev.Shape)
		fmt.Fprintf(out, "record %s\n", hex.EncodeToString(b))
		put(t, table, rev, now)
		if read, err := ParseRecord(b); err != nil || read != record {
			t.Fatalf("%s: the record reads as %+v, %v", where, read, err)
		}
	}
}
