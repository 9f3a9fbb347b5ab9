package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// Sentinels that callers of the API cannot meet, each with the reason.
var unreachable = map[string]string{
	"revocation.ErrInvalid":       "is a FieldError, which says more",
	"revocation.ErrKey":           "of records that peers and the journal bring, and of keys that a node or client cannot take yet",
	"revocation.ErrRecord":        "of bytes that peers and the journal bring",
	"revocation.ErrUnknownShape":  "of records that peers and the journal bring",
	"revocation.ErrShapeConflict": "of records that peers and the journal bring",
	"node.ErrSlack":               "of the start",
	"journal.ErrLocked":           "of the start",
	"journal.ErrNewerFormat":      "of the start",
	"journal.ErrKeyMismatch":      "of the start",
	"journal.ErrRecordSize":       "of the start",
	"journal.ErrNotReplayed":      "of the start",
	"journal.ErrNotJournal":       "of the tools",
	"journal.ErrNotEmpty":         "of the tools",
	"journal.ErrBackup":           "of backups",
	"journal.ErrBusy":             "becomes node.ErrBusy",
	"journal.ErrClosed":           "becomes node.ErrNotReady",
	"journal.ErrInvalid":          "of batches that the node does not make",
}

var reachable = map[string]error{
	"token.ErrMalformed": token.ErrMalformed, "token.ErrTooLarge": token.ErrTooLarge, "token.ErrUnsigned": token.ErrUnsigned,
	"token.ErrAlgorithm": token.ErrAlgorithm, "token.ErrUnknownIssuer": token.ErrUnknownIssuer, "token.ErrUnknownKey": token.ErrUnknownKey,
	"token.ErrSignature": token.ErrSignature, "token.ErrNotYetValid": token.ErrNotYetValid, "token.ErrExpired": token.ErrExpired,
	"token.ErrDuplicateClaim": token.ErrDuplicateClaim, "token.ErrType": token.ErrType, "token.ErrAudience": token.ErrAudience,
	"token.ErrKeysUnavailable":     token.ErrKeysUnavailable,
	"revocation.ErrDuplicateClaim": revocation.ErrDuplicateClaim, "revocation.ErrFull": revocation.ErrFull, "revocation.ErrShapes": revocation.ErrShapes, "revocation.ErrWriterShapes": revocation.ErrWriterShapes,
	"node.ErrNotReady": node.ErrNotReady, "node.ErrClock": node.ErrClock, "node.ErrTooMany": node.ErrTooMany, "node.ErrBusy": node.ErrBusy,
	"node.ErrAck": node.ErrAck, "node.ErrVoters": node.ErrVoters, "node.ErrKeys": node.ErrKeys, "node.ErrNoCluster": node.ErrNoCluster, "node.ErrSession": node.ErrSession,
	"node.ErrIdempotencyConflict": node.ErrIdempotencyConflict, "node.ErrSuperseded": node.ErrSuperseded, "node.ErrNoJournal": node.ErrNoJournal, "node.ErrQuota": node.ErrQuota,
	"journal.ErrDisk": journal.ErrDisk, "journal.ErrFull": journal.ErrFull,
}

// Every sentinel of the packages below has a code, or a reason why it needs none: whoever adds one is reminded here.
func TestEverySentinelHasACode(t *testing.T) {
	for _, pkg := range []string{"token", "revocation", "node", "journal"} {
		for _, name := range sentinels(t, "../../"+pkg) {
			name = pkg + "." + name
			err, ok := reachable[name]
			if !ok && unreachable[name] == "" {
				t.Errorf("%s is neither in the table of codes nor among those that cannot be met", name)
			}
			if !ok {
				continue
			}
			o, _, known := outcomeOf(fmt.Errorf("wrapped: %w", err))
			if !known || o.kind == "" || o.message == "" {
				t.Errorf("%s: %+v", name, o)
			}
		}
	}
}

// sentinels lists the exported error variables of a package.
func sentinels(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s", dir)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tree, err := parser.ParseFile(gotoken.NewFileSet(), file, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range tree.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == gotoken.VAR {
				for _, spec := range g.Specs {
					for _, n := range spec.(*ast.ValueSpec).Names {
						if strings.HasPrefix(n.Name, "Err") {
							names = append(names, n.Name)
						}
					}
				}
			}
		}
	}
	return names
}

// What may be retried says when, and nothing else does.
func TestRetryAfter(t *testing.T) {
	for _, row := range outcomes {
		retryable := row.code == connect.CodeUnavailable || row.code == connect.CodeResourceExhausted
		if retryable != (row.retry > 0) {
			t.Errorf("%v: %s with Retry-After %d", row.err, row.code, row.retry)
		}
	}
}

func TestOutcomes(t *testing.T) {
	field := &revocation.FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "at most 1 h"}
	for _, c := range []struct {
		err                error
		code               connect.Code
		kind, field, limit string
	}{
		{field, connect.CodeInvalidArgument, "out_of_range", "expires_at", "at most 1 h"},
		{fmt.Errorf("%w: %w", token.ErrMalformed, field), connect.CodeInvalidArgument, "malformed", "token", "at most 1 h"},
		{&inField{"keep.token", token.ErrSignature}, connect.CodeInvalidArgument, "signature", "keep.token", ""},
		{fmt.Errorf("a: %w", context.Canceled), connect.CodeCanceled, "canceled", "", ""},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded, "timeout", "", ""},
		{errors.New("canary"), connect.CodeInternal, "internal", "", ""},
		{&inField{"token", errors.New("canary")}, connect.CodeInternal, "internal", "", ""},
	} {
		o, _, _ := outcomeOf(c.err)
		if o.code != c.code || o.kind != c.kind || o.field != c.field || o.limit != c.limit {
			t.Errorf("%v: %+v", c.err, o)
		}
		if strings.Contains(o.message, canary) {
			t.Errorf("%v: message %q", c.err, o.message)
		}
	}
}

// What nobody foresaw is logged once, with an id that the caller gets instead of the text.
func TestUnexpected(t *testing.T) {
	f := start(t)
	err := f.server.refusal(errors.New("a surprise"), "/m")
	id := err.Meta().Get(headerRequestID)
	if err.Code() != connect.CodeInternal || err.Message() != "internal error" || len(id) != 16 {
		t.Errorf("%v %q", err, id)
	}
	if log := f.log.String(); strings.Count(log, "a surprise") != 1 || strings.Count(log, id) != 1 {
		t.Errorf("log %s", log)
	}
	// Passing it on changes nothing.
	if f.server.refusal(err, "/m") != err || strings.Count(f.log.String(), "a surprise") != 1 {
		t.Error("logged twice")
	}
}

func TestReasonsAreTheSame(t *testing.T) {
	for number, name := range revokdv1.Reason_name {
		r := revocation.Reason(number)
		want := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "REASON_"), "_", "-"))
		if number == 0 {
			continue
		}
		if r.String() != want {
			t.Errorf("%d is %s there and %s here", number, want, r)
		}
	}
	if n := len(revocation.Reasons()); n != len(revokdv1.Reason_name) && n != len(revokdv1.Reason_name)-1 {
		t.Errorf("%d reasons, %d in the schema", n, len(revokdv1.Reason_name))
	}
}

// No text of an outcome quotes anything: they are constants, and say what they are about.
func TestOutcomeTexts(t *testing.T) {
	var all bytes.Buffer
	for _, row := range outcomes {
		if row.message == "" || row.kind == "" || strings.Contains(row.message, "%") {
			t.Errorf("%v: %+v", row.err, row.outcome)
		}
		all.WriteString(row.kind + "\n")
	}
	doc, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	for kind := range strings.FieldsSeq(all.String()) {
		if !bytes.Contains(doc, []byte("`"+kind+"`")) {
			t.Errorf("docs/api.md does not know the kind %s", kind)
		}
	}
}
