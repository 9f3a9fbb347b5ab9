package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// TestBulkSurvivesKill: revoke --from-file goes on by itself when the node is killed and comes back at its address.
func TestBulkSurvivesKill(t *testing.T) {
	const lines = 40_000
	n := newNode(t, "")
	p, api := n.start(t)
	h := newLedger(0)
	entries := make([]entry, lines)
	var text bytes.Buffer
	for i := range entries {
		for entries[i] = h.entry(); entries[i].n%16 < 3; entries[i] = h.entry() { // those without jti
		}
		fmt.Fprintf(&text, `{"jti":%q,"iss":%q}`+"\n", entries[i].id(), issuer)
	}
	path := filepath.Join(n.home, "ids.ndjson")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.program, "revoke", "--addr", p.URL, "--from-file", path)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &output, &output, n.env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	held := int64(0)
	for held < 1000 {
		res, err := api.Status(ctx, connect.NewRequest(&revokdv1.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		held = res.Msg.GetRecords()
	}
	p.Kill()
	if held > lines/2 {
		t.Fatalf("invalid run: %d of %d lines were there before the kill", held, lines)
	}
	p, err := e2e.Start(ctx, e2e.Config{
		Args: []string{n.program, "agent", "--dev", "--api-addr", strings.TrimPrefix(p.URL, "http://")}, Env: n.env, Dir: n.home,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, output.String())
	}
	if !strings.Contains(output.String(), "40000 lines: ") || !strings.Contains(output.String(), " 0 refused") {
		t.Errorf("%s", output.String())
	}
	if missing := lost(t, client(t, p.URL), entries); len(missing) > 0 {
		t.Errorf("%d of %d revocations are not there", len(missing), lines)
	}
	if _, err := os.Stat(path + ".revokd-progress"); !os.IsNotExist(err) {
		t.Errorf("the resume file is still there: %v", err)
	}
	t.Logf("%s", output.String())
}
