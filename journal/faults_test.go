package journal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/revokd/revokd/journal"
)

// Each step of a history fails once, or from then on: whatever fails, and with what, nothing that was acknowledged is
// lost, not even when the power goes afterwards.
func TestEveryFailure(t *testing.T) {
	t.Parallel()
	short := func(seed uint64) *enumeration {
		e := newEnumeration(t, seed)
		e.every, e.deep, e.faults = 1<<30, 0, true // looks at the end only
		return e
	}
	const operations = 60
	clean := short(7)
	clean.history(operations)
	if err := clean.violation(); err != nil {
		t.Fatal(err)
	}
	runs, fails := 0, 0
	for step := 1; step <= clean.points; step += sparse {
		for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
			for _, once := range []bool{true, false} {
				e := short(7)
				e.failAt(step, errno, once)
				e.history(operations)
				runs++
				fails += min(e.fails, 1)
				if err := e.violation(); err != nil {
					t.Fatalf("step %d fails with %v, once: %v: %v", step, errno, once, err)
				}
			}
		}
	}
	t.Logf("%d histories of %d steps, a failure in %d", runs, clean.points, fails)
	if fails < runs/2 {
		t.Error("invalid run")
	}
}

// After a failed write or sync the file is never written again, and after a failed sync the journal goes on only in another one.
func TestFailedSync(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		fs := newCrashFS()
		j, _ := start(t, config("/j", fs))
		j.append(t, batch(record(1, 1000)))
		failed := ""
		fs.mu.Lock()
		fs.before = func(did, name string) error {
			if failed == "" && did == op {
				failed = name
				return syscall.EIO
			}
			if name == failed {
				t.Errorf("%s of %s after its %s failed", did, name, op)
			}
			return nil
		}
		fs.mu.Unlock()
		err := j.Append(t.Context(), batch(record(2, 1000)))
		if !errors.Is(err, journal.ErrDisk) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("failed %s: %v", op, err)
		}
		j.append(t, batch(record(3, 1000)))
		if s := j.Stats(); s.Failures != 1 || !errors.Is(s.LastError, syscall.EIO) || s.Failed != nil || j.Err() != nil {
			t.Errorf("failed %s: %+v", op, s)
		}
		fs.mu.Lock()
		rest := fs.after(crash{everything, everything}, nil)
		fs.before = nil
		fs.mu.Unlock()
		j.end(t)
		_, set := start(t, config("/j", rest))
		if set[1] == 0 || set[2] != 0 || set[3] == 0 {
			t.Errorf("after a failed %s and a power loss: %v", op, keys(set))
		}
	}
}

// A disk that refuses the next file too ends the writing for good: no sync that succeeds later proves anything.
func TestLatch(t *testing.T) {
	fs := newCrashFS()
	j, _ := start(t, config("/j", fs))
	j.append(t, batch(record(1, 1000)))
	fs.mu.Lock()
	fs.before = func(op, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	fs.mu.Unlock()
	if err := j.Append(t.Context(), batch(record(2, 1000))); !errors.Is(err, journal.ErrDisk) {
		t.Fatal(err)
	}
	fs.mu.Lock()
	fs.before = nil // the disk works again
	fs.mu.Unlock()
	for range 3 {
		if err := j.Append(t.Context(), batch(record(3, 1000))); !errors.Is(err, journal.ErrDisk) || !errors.Is(j.Err(), journal.ErrDisk) {
			t.Fatalf("after the latch: %v, %v", err, j.Err())
		}
	}
	j.end(t)
	j, set := start(t, config("/j", fs))
	if set[1] == 0 || set[3] != 0 {
		t.Errorf("after a start: %v", keys(set))
	}
	j.append(t, batch(record(3, 1000)))
	j.end(t)
}

func TestLocked(t *testing.T) {
	for name, cfg := range map[string]journal.Config{"memory": config("/j", newCrashFS()), "disk": config(t.TempDir(), nil)} {
		j, _ := start(t, cfg)
		if _, err := journal.Open(cfg); !errors.Is(err, journal.ErrLocked) || !strings.Contains(err.Error(), cfg.Dir) {
			t.Errorf("%s: a second one: %v", name, err)
		}
		j.append(t, batch(record(1, 1000)))
		j.end(t)
		j, set := start(t, cfg)
		if len(set) != 1 {
			t.Errorf("%s: %v", name, set)
		}
		j.end(t)
	}
}

// What a start refuses, by name.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir, nil)
	j, _ := start(t, cfg)
	j.end(t)
	for name, test := range map[string]struct {
		change func(*journal.Config)
		format func(string) string
		want   error
	}{
		"another key":  {change: func(c *journal.Config) { c.KeyID++ }, want: journal.ErrKeyMismatch},
		"another size": {change: func(c *journal.Config) { c.RecordSize++ }, want: journal.ErrRecordSize},
		"newer":        {format: func(s string) string { return strings.Replace(s, "journal 1", "journal 2", 1) }, want: journal.ErrNewerFormat},
	} {
		cfg := cfg
		if test.change != nil {
			test.change(&cfg)
		}
		path := filepath.Join(dir, "FORMAT")
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if test.format != nil {
			if err := os.WriteFile(path, []byte(test.format(string(before))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := journal.Open(cfg); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, _ = start(t, cfg) // nothing has changed
	j.end(t)
}

// Somebody removes the directory, or the segment, under the process: writes end for good, and no new file hides it.
func TestRemovedUnderneath(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"the directory": os.RemoveAll,
		"the segments":  func(dir string) error { return os.RemoveAll(filepath.Join(dir, "wal")) },
	} {
		dir := filepath.Join(t.TempDir(), "j")
		j, _ := start(t, config(dir, nil))
		j.append(t, batch(record(1, 1000)))
		if err := remove(dir); err != nil {
			t.Fatal(err)
		}
		for i := range uint64(3) {
			if err := j.Append(t.Context(), batch(record(2+i, 1000))); !errors.Is(err, journal.ErrDisk) || !strings.Contains(err.Error(), "removed") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := j.Err(); !errors.Is(err, journal.ErrDisk) {
			t.Errorf("%s: Err: %v", name, err)
		}
		j.stop()
		if err := <-j.done; err != nil {
			t.Error(err)
		}
		_ = j.Close()
		if _, err := os.Stat(filepath.Join(dir, "wal")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it was made again: %v", name, err)
		}
	}
}

// A process without the right to write fails at its start, with the reason.
func TestReadOnlyDirectory(t *testing.T) {
	fs := newCrashFS()
	j, _ := start(t, config("/j", fs))
	j.append(t, batch(record(1, 1000)))
	j.end(t)
	fs.before = func(string, string) error { return syscall.EROFS }
	_, err := journal.Open(config("/j", fs))
	if !errors.Is(err, journal.ErrDisk) || !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "/j") {
		t.Errorf("open: %v", err)
	}
	fs.before = nil
	j, set := start(t, config("/j", fs))
	if fmt.Sprint(keys(set)) != "[1]" {
		t.Errorf("%v", set)
	}
	j.end(t)
}
