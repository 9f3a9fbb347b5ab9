//go:build faults

package clock_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/faults"
)

// The control file is read when a process starts, so the test runs itself as another process.
func TestShift(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	control(t, path, "clock=+30h\n")
	if out, err := process(path, "^TestShiftedProcess$").CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}

// The tests of the guard find a node whose records expire by the wall clock.
func TestMutantIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	control(t, path, "mutant=wall-clock\n")
	out, err := process(path, "^TestJumpAndReturn$").CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "guarded time is 2h0m0s off") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// process runs tests of this package under the control file at path.
func process(path, tests string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run="+tests)
	cmd.Env = append(os.Environ(), faults.Env+"="+path)
	return cmd
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
	control(t, path, "clock=32h\n")
	wantShift(t, c, 32*time.Hour)
	if r := g.Read(); r.Trusted || r.Offset.Round(time.Hour) != 2*time.Hour {
		t.Errorf("clock: %s, %+v", r, r)
	}
	control(t, path, "clock=-1h30m\n")
	wantShift(t, c, -90*time.Minute)
}

func control(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
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
