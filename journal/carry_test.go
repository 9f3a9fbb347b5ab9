package journal_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/revokd/revokd/journal"
)

// A failed write or sync may harm the whole block that its first byte is in. What was acknowledged and lies there is written again elsewhere
// and is found though the block has been lost.
func TestFailureTakesItsBlock(t *testing.T) {
	for _, op := range []string{"write", "sync"} {
		for before := range 200 { // records acknowledged before the failure: in the block of the head, across blocks, far behind it
			fs := newCrashFS()
			j, _ := start(t, config("/j", fs))
			for n := range uint64(before) {
				j.append(t, batch(record(n, 1000)))
			}
			failed, size := "", 0
			fs.mu.Lock()
			fs.before = func(did, name string) error {
				if failed != "" || did != op {
					return nil
				}
				failed = strings.TrimSuffix(name, ".tmp") // it has been renamed since
				n, err := fs.find(failed)
				if err != nil {
					t.Error(err)
					return nil
				}
				size = len(n.(*inode).data)
				return syscall.EIO
			}
			fs.mu.Unlock()
			if err := j.Append(t.Context(), batch(record(1000, 1000))); !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			j.append(t, batch(record(1001, 1000)))
			fs.mu.Lock()
			fs.before = nil
			rest := fs.after(crash{nothing, nothing}, nil)
			fs.mu.Unlock()
			j.end(t)
			if op == "sync" {
				size -= 32 + recordSize // the frame was written
			}
			if n, err := rest.find(failed); err == nil {
				data := n.(*inode).data
				clear(data[min(size/4096*4096, len(data)):])
			}
			j, set := start(t, config("/j", rest))
			j.end(t)
			if len(set) != before+1 || set[1000] != 0 || set[1001] == 0 {
				t.Fatalf("%d records acknowledged, then a failed %s and its block lost: %d found", before, op, len(set))
			}
		}
	}
}

// A file of exp/ that a failed write may have harmed is written again elsewhere.
func TestFailureInExpiryFile(t *testing.T) {
	fs := newCrashFS()
	cfg := config("/j", fs)
	cfg.SegmentBytes, cfg.SealAge = 200, 1 // a few commits for each segment, sorted at once
	j, _ := start(t, cfg)
	const now, deadline = 1_000_000, 1_002_000
	for range 5 {
		j.append(t, batch(record(0, deadline)))
	}
	if err := j.Expire(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	before, _ := fs.ReadDir("/j/exp")
	if len(before) != 1 {
		t.Fatalf("%v", before)
	}
	fs.mu.Lock()
	fs.before = func(op, name string) error {
		if op == "sync" && strings.HasSuffix(name, before[0]) {
			fs.before = nil
			return syscall.EIO
		}
		return nil
	}
	fs.mu.Unlock()
	for range 5 {
		j.append(t, batch(record(2, deadline)))
	}
	if err := j.Expire(t.Context(), now+1000); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := j.Expire(t.Context(), now+1000); err != nil {
		t.Fatal(err)
	}
	if after, _ := fs.ReadDir("/j/exp"); len(after) != 1 || after[0] == before[0] {
		t.Errorf("%v, then %v", before, after)
	}
	j.end(t)
	j, set := start(t, cfg)
	j.end(t)
	if set[0] == 0 || set[2] == 0 {
		t.Errorf("%v", keys(set))
	}
}

// What is lacking for a moment when the next segment is due does not end the writing for good.
func TestTransientFailures(t *testing.T) {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		fs := newCrashFS()
		cfg := config("/j", fs)
		cfg.SegmentBytes = 100
		j, _ := start(t, cfg)
		fs.mu.Lock()
		fs.before = func(op, _ string) error {
			if op == "create" {
				return errno
			}
			return nil
		}
		fs.mu.Unlock()
		var err error
		written := uint64(0)
		for ; written < 10 && err == nil; written++ {
			err = j.Append(t.Context(), batch(record(written, 1000)))
		}
		if !errors.Is(err, errno) || !errors.Is(j.Err(), errno) {
			t.Fatalf("%v: %v, %v", errno, err, j.Err())
		}
		fs.mu.Lock()
		fs.before = nil
		fs.mu.Unlock()
		for err = errno; errors.Is(err, errno); { // it is not tried for each batch
			if err = j.Append(t.Context(), batch(record(100, 1000))); j.Stats().Latched {
				t.Fatalf("%v: the journal refuses writes for good: %v", errno, err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		j.end(t)
		j, set := start(t, cfg)
		j.end(t)
		if len(set) != int(written) || set[100] == 0 { // all but the one that was refused
			t.Errorf("%v: %v", errno, keys(set))
		}
	}
}

// Whoever removes the lock file lets another process in: the first one acknowledges nothing and removes nothing from then on.
func TestLockFileRemoved(t *testing.T) {
	for name, remove := range map[string]func(path string) error{
		"removed":  os.Remove,
		"renamed":  func(path string) error { return os.Rename(path, path+".old") },
		"replaced": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) },
	} {
		dir := t.TempDir()
		j, _ := start(t, config(dir, nil))
		j.append(t, batch(record(1, 1000)))
		if err := remove(filepath.Join(dir, "LOCK")); err != nil {
			t.Fatal(err)
		}
		second, _ := start(t, config(dir, nil))
		second.append(t, batch(record(2, 1000)))
		for range 2 {
			if err := j.Append(t.Context(), batch(record(3, 1000))); !errors.Is(err, journal.ErrDisk) || !strings.Contains(err.Error(), "lock file") {
				t.Errorf("%s: %v", name, err)
			}
		}
		j.end(t)
		second.append(t, batch(record(4, 1000)))
		second.end(t)
		j, set := start(t, config(dir, nil))
		j.end(t)
		if set[1] == 0 || set[2] == 0 || set[3] != 0 || set[4] == 0 {
			t.Errorf("%s: %v", name, keys(set))
		}
	}
}

// A FORMAT that may not be opened is no damage: nothing has to be repaired.
func TestFormatNotOpened(t *testing.T) {
	dir := t.TempDir()
	j, _ := start(t, config(dir, nil))
	j.end(t)
	path := filepath.Join(dir, "FORMAT")
	if err := errors.Join(os.Remove(path), os.Symlink("FORMAT", path)); err != nil { // ELOOP, which root meets too
		t.Fatal(err)
	}
	_, err := journal.Open(config(dir, nil))
	var damage *journal.DamageError
	if !errors.Is(err, journal.ErrDisk) || errors.As(err, &damage) {
		t.Errorf("open: %v", err)
	}
	if _, err := journal.OpenReading(journal.ReadConfig{Dir: dir, RecordSize: recordSize}); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("reading: %v", err)
	}
}
