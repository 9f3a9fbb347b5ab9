package e2e_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/e2e"
)

// run runs the program to its end, in the environment of the node.
func (n *node) run(t *testing.T, args ...string) (code int, output string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.program, args...)
	cmd.Env, cmd.Dir = n.env, n.home
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// must runs the program and expects that it succeeds.
func (n *node) must(t *testing.T, args ...string) string {
	t.Helper()
	code, output := n.run(t, args...)
	if code != 0 {
		t.Fatalf("%s: exit code %d\n%s", strings.Join(args, " "), code, output)
	}
	return output
}

// dir is the directory of the dev node.
func (n *node) dir() string { return filepath.Join(n.home, ".local", "state", "revokd", "dev") }

// underLoad starts a node and writers, waits for the first acknowledgement, and returns what ends the writers with the node.
func (n *node) underLoad(t *testing.T) (p *e2e.Process, h *ledger, kill func()) {
	t.Helper()
	p, api := n.start(t)
	h = newLedger(0)
	written := make(chan error, 1)
	go func() { written <- h.write(t.Context(), api) }()
	select {
	case <-h.first:
	case err := <-written:
		t.Fatalf("the writers ended before anything was acknowledged: %v", err)
	}
	return p, h, func() {
		p.Kill()
		if err := <-written; err != nil {
			t.Fatalf("%v; log:\n%s", err, p.Stderr())
		}
	}
}

func (h *ledger) acknowledged() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.acked)
}

// TestBackupUnderLoad: what was acknowledged before a backup began is Revoked on a node that is restored from it.
func TestBackupUnderLoad(t *testing.T) {
	n := newNode(t, "")
	p, h, kill := n.underLoad(t)
	var before []entry
	for range 5 { // the last one counts
		h.mu.Lock()
		before = append([]entry{}, h.acked...)
		h.mu.Unlock()
		if err := os.RemoveAll(filepath.Join(n.home, "b")); err != nil {
			t.Fatal(err)
		}
		n.must(t, "backup", "b", "--addr", p.URL)
	}
	kill()

	other := newNode(t, "")
	identity, err := os.ReadFile(filepath.Join(n.dir(), "identity.json"))
	if err == nil {
		err = os.MkdirAll(other.dir(), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(other.dir(), "identity.json"), identity, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	output := other.must(t, "restore", filepath.Join(n.home, "b"), "--node-name", "dev")
	other.must(t, "journal", "verify")
	q, api := other.start(t)
	if missing := lost(t, api, before); len(missing) > 0 {
		t.Errorf("%d of %d revocations are not there, the first %s\n%s", len(missing), len(before), missing[0].id(), output)
	}
	neverSent(t, api, 0)
	q.Kill()
	if len(before) < 100 {
		t.Errorf("invalid run: %d revocations before the backup", len(before))
	}
	t.Logf("%d acknowledged before the backup; %s", len(before), output)
}

// TestDamage: a node with a damaged file refuses to start and says what is lost; verify says the same; after a repair it starts, with everything
// else in force.
func TestDamage(t *testing.T) {
	n := newNode(t, "")
	_, h, kill := n.underLoad(t)
	for h.acknowledged() < 2000 {
		<-time.After(time.Millisecond)
	}
	kill()
	n.must(t, "journal", "verify")
	names, err := filepath.Glob(filepath.Join(n.dir(), "journal", "wal", "*.wal"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b[len(b)/2:], []byte{0x7f, 0xab, 0x46, '\n'})+len(b)/2+40] ^= 1
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}

	code, output := n.run(t, "agent", "--dev", "--api-addr", "127.0.0.1:0")
	file := "wal/" + filepath.Base(names[0])
	for _, want := range []string{file + ": ", " bytes at offset ", "(about ", "revokd-", " journal verify --data-dir ", " journal repair --data-dir "} {
		if code != 1 || !strings.Contains(output, want) {
			t.Errorf("the start: exit code %d, no %q in\n%s", code, want, output)
		}
	}
	code, output = n.run(t, "journal", "verify")
	if code != 1 || !strings.Contains(output, "lost  "+file+": ") {
		t.Errorf("verify: exit code %d\n%s", code, output)
	}
	output = n.must(t, "journal", "repair")
	n.must(t, "journal", "verify")
	_, api := n.start(t)
	missing := lost(t, api, h.acked)
	// One frame: what was written together, at most a message of the stream and a call of each writer.
	if len(missing) == 0 || len(missing) > 4100 || len(missing) == len(h.acked) {
		t.Errorf("%d of %d revocations are lost", len(missing), len(h.acked))
	}
	neverSent(t, api, 0)
	t.Logf("%d acknowledged, %d lost; %s", len(h.acked), len(missing), output)
}
