//go:build faults

package faults

import (
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// use makes path the control file of this process until the test ends.
func use(t *testing.T, path string) {
	before := active
	active = open(path)
	t.Cleanup(func() { active = before })
}

// write replaces the file at path as tests that drive a process must.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// eventually polls: the file is read again only after every.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Error(what)
			return
		}
		runtime.Gosched()
	}
}

func panics(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("no panic: %s", what)
		}
	}()
	f()
}

func TestFollowsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	write(t, path, "clock=1h\n")
	use(t, path)
	if Value("clock") != "1h" || Value("disk") != "" || Mutant("no-fsync") {
		t.Errorf("at the start: %q", active.get())
	}
	write(t, path, "clock=2h\nmutant=no-fsync\n") // the same length but for the mutant
	eventually(t, "the new file is not seen", func() bool { return Value("clock") == "2h" })
	if !Mutant("no-fsync") || Mutant("wall-clock") {
		t.Errorf("after the change: %q", active.get())
	}
	write(t, path, "")
	eventually(t, "the faults do not end", func() bool { return !Mutant("no-fsync") })
}

func TestWithoutFile(t *testing.T) {
	use(t, "")
	if Value("clock") != "" || Mutant("no-fsync") {
		t.Error("faults without a control file")
	}
}

func TestLoud(t *testing.T) {
	dir := t.TempDir()
	panics(t, "no file", func() { open(filepath.Join(dir, "none")) })
	path := filepath.Join(dir, "faults")
	write(t, path, "clok=1h\n")
	panics(t, "unknown name", func() { open(path) })
	write(t, path, "clock=1h\n")
	use(t, path)
	panics(t, "a call with an unknown mutant", func() { Mutant("no-fsink") })
	panics(t, "a call with an unknown value", func() { Value("clok") })
	write(t, path, "clock=soon\n")
	panics(t, "a bad value in a running process", func() {
		eventually(t, "the new file is not seen", func() bool { Value("clock"); return false })
	})
}

func TestConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	write(t, path, "clock=1h\nmutant=no-fsync\n")
	use(t, path)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			eventually(t, "the new file is not seen", func() bool { return Value("clock") == "2h" && !Mutant("no-fsync") })
		})
	}
	write(t, path, "clock=2h\n")
	wg.Wait()
}
