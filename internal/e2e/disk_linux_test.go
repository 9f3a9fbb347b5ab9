package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// revoke sends an entry and remembers it if it is acknowledged.
func revoke(t *testing.T, api revokdv1connect.RevocationServiceClient, h *ledger) error {
	t.Helper()
	e := h.entry()
	_, err := api.Revoke(t.Context(), connect.NewRequest(e.request(time.Now())))
	if err == nil {
		h.ack(e)
	}
	return err
}

// refused fails unless the node refuses a write with a code and words that say why, goes on with checks, and is not ready for the same reason.
func refused(t *testing.T, p *e2e.Process, api revokdv1connect.RevocationServiceClient, h *ledger, code connect.Code, why string) {
	t.Helper()
	if err := revoke(t, api, h); connect.CodeOf(err) != code || !strings.Contains(err.Error(), "disk") {
		t.Errorf("write: %v, want %s", err, code)
	}
	if missing := lost(t, api, h.acked); len(missing) > 0 {
		t.Errorf("%d of %d acknowledged revocations are not revoked", len(missing), len(h.acked))
	}
	if status, waiting := readiness(t, p); status != http.StatusServiceUnavailable || !strings.Contains(waiting, why) {
		t.Errorf("/readyz: %d, %q; want the reason %q", status, waiting, why)
	}
}

// again waits until the node takes writes again and is ready.
func again(t *testing.T, p *e2e.Process, api revokdv1connect.RevocationServiceClient, h *ledger) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // it looks at the disk ten times a second
		if err = revoke(t, api, h); err == nil {
			if status, waiting := readiness(t, p); status != http.StatusOK {
				t.Errorf("/readyz: %d, %s", status, waiting)
			}
			return
		}
	}
	t.Fatalf("no writes though the cause is gone: %v", err)
}

func readiness(t *testing.T, p *e2e.Process) (status int, waiting string) {
	t.Helper()
	res, err := http.Get(p.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct{ WaitingFor []string }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, strings.Join(answer.WaitingFor, "; ")
}

// after starts the node again after a kill: everything acknowledged is revoked.
func after(t *testing.T, n *node, p *e2e.Process, h *ledger) {
	t.Helper()
	p.Kill()
	p, api := n.start(t)
	if missing := lost(t, api, h.acked); len(missing) > 0 {
		t.Errorf("%d of %d acknowledged revocations were forgotten", len(missing), len(h.acked))
	}
	if err := revoke(t, api, h); err != nil {
		t.Errorf("write after the restart: %v", err)
	}
	p.Kill()
}

// TestDiskFails: the disk of a running node fails. It says so, acknowledges nothing more, goes on with checks; it takes writes
// again by itself when space returns, and after an error of the device only when it is started again.
func TestDiskFails(t *testing.T) {
	for disk, test := range map[string]struct {
		code  connect.Code
		why   string
		heals bool
	}{
		"ENOSPC":    {connect.CodeResourceExhausted, "full", true},
		"EIO-write": {connect.CodeUnavailable, "failed", false},
		"EIO-fsync": {connect.CodeUnavailable, "failed", false},
	} {
		t.Run(disk, func(t *testing.T) {
			control := filepath.Join(t.TempDir(), "faults")
			set := func(content string) {
				t.Helper()
				err := os.WriteFile(control+".new", []byte(content), 0o600)
				if err = errors.Join(err, os.Rename(control+".new", control)); err != nil {
					t.Fatal(err)
				}
				<-time.After(50 * time.Millisecond) // the process looks at it every 10 ms
			}
			set("")
			n := newNode(t, "faults", "REVOKD_FAULTS="+control, "REVOKD_AUDIT_ON_FAILURE=continue")
			p, api := n.start(t)
			h := newLedger(0)
			for range 20 {
				if err := revoke(t, api, h); err != nil {
					t.Fatal(err)
				}
			}
			set("disk=" + disk + "\n")
			for range 3 {
				refused(t, p, api, h, test.code, test.why)
			}
			set("")
			if test.heals {
				again(t, p, api, h)
			} else {
				refused(t, p, api, h, test.code, test.why)
			}
			after(t, n, p, h)
		})
	}
}

// mounted gives the node a small file system of its own.
func mounted(t *testing.T, n *node, size string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	if err := syscall.Mount("revokd-test", n.home, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(n.home, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestDiskFull fills a real disk.
func TestDiskFull(t *testing.T) {
	n := newNode(t, "", "REVOKD_AUDIT_ON_FAILURE=continue")
	mounted(t, n, "1m")
	ballast := filepath.Join(n.home, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	p, api := n.start(t)
	h := newLedger(0)
	var full error
	for full == nil {
		batch := make([]entry, 200)
		req := &revokdv1.RevokeBatchRequest{}
		for i := range batch {
			batch[i] = h.entry()
			req.Items = append(req.Items, batch[i].request(time.Now()))
		}
		if _, full = api.RevokeBatch(t.Context(), connect.NewRequest(req)); full == nil {
			h.ack(batch...)
		}
		if len(h.acked) > 200_000 {
			t.Fatal("the disk is not full after 200000 revocations")
		}
	}
	if connect.CodeOf(full) != connect.CodeResourceExhausted {
		t.Errorf("a full disk: %v", full)
	}
	for err := error(nil); err == nil; err = revoke(t, api, h) { // what is left may be enough for one
	}
	refused(t, p, api, h, connect.CodeResourceExhausted, "full")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	again(t, p, api, h)
	t.Logf("%d acknowledged", len(h.acked))
	after(t, n, p, h)
}

// startFails starts an agent that must not start, and returns what it says.
func startFails(t *testing.T, n *node) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{Args: []string{n.program, "agent", "--dev", "--api-addr", "127.0.0.1:0"}, Env: n.env, Dir: n.home})
	if err == nil {
		p.Kill()
		t.Fatal("the agent starts")
	}
	if ctx.Err() != nil || !strings.Contains(err.Error(), "ended with exit code 1") {
		t.Errorf("the agent does not end with code 1: %v", err)
	}
	return err.Error()
}

// TestReadOnlyDirectory: a node that cannot write does not start, and names the directory.
func TestReadOnlyDirectory(t *testing.T) {
	n := newNode(t, "")
	mounted(t, n, "1m")
	p, api := n.start(t)
	h := newLedger(0)
	if err := revoke(t, api, h); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	remount := func(flags uintptr) {
		t.Helper()
		if err := syscall.Mount("revokd-test", n.home, "tmpfs", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	if said := startFails(t, n); !strings.Contains(said, "read-only file system") || !strings.Contains(said, n.home) {
		t.Errorf("the agent says: %s", said)
	}
	remount(0)
	after(t, n, p, h)
}

// TestTwoProcesses: the second agent on one directory does not start, and the first one does not notice.
func TestTwoProcesses(t *testing.T) {
	n := newNode(t, "")
	p, api := n.start(t)
	h := newLedger(0)
	if said := startFails(t, n); !strings.Contains(said, "in use by another process") || !strings.Contains(said, n.home) {
		t.Errorf("the second agent says: %s", said)
	}
	if err := revoke(t, api, h); err != nil {
		t.Error(err)
	}
	after(t, n, p, h)
}

// TestDirectoryRemoved: somebody removes the data under a running node. It refuses writes, goes on with checks, and does not
// begin a new directory that would hide what has gone.
func TestDirectoryRemoved(t *testing.T) {
	n := newNode(t, "")
	p, api := n.start(t)
	h := newLedger(0)
	for range 20 {
		if err := revoke(t, api, h); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(n.home, ".local", "state", "revokd")
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		refused(t, p, api, h, connect.CodeUnavailable, "removed")
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made again: %v", err)
	}
	p.Kill()
}
