//go:build faults

package clock_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/faults"
)

// The control file is read when a process starts, so the test runs itself as another process.
func TestShift(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	setShift(t, path, "+30h")
	cmd := exec.Command(os.Args[0], "-test.run=^TestShiftedProcess$", "-test.v")
	cmd.Env = append(os.Environ(), faults.Env+"="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}

// TestShiftedProcess is what TestShift runs; without a control file there is no shift.
func TestShiftedProcess(t *testing.T) {
	c := clock.System()
	path := os.Getenv(faults.Env)
	if path == "" {
		wantShift(t, c, 0)
		return
	}
	wantShift(t, c, 30*time.Hour)
	g := clock.NewGuard(c, clock.GuardConfig{})
	setShift(t, path, "32h")
	wantShift(t, c, 32*time.Hour)
	if r := g.Read(); r.Trusted || r.Offset.Round(time.Hour) != 2*time.Hour {
		t.Errorf("clock: %s, %+v", r, r)
	}
	setShift(t, path, "-1h30m")
	wantShift(t, c, -90*time.Minute)
}

func setShift(t *testing.T, path, shift string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte("clock="+shift+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// wantShift polls: the file is looked at every few milliseconds.
func wantShift(t *testing.T, c clock.Clock, want time.Duration) {
	t.Helper()
	var got time.Duration
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if got = time.Until(c.Now()).Round(time.Minute); got == want {
			return
		}
	}
	t.Fatalf("the wall clock is shifted by %s, want %s", got, want)
}
