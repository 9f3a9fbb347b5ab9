package journal_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/revokd/revokd/journal"
)

// mountSmall mounts a file system of so many bytes.
func mountSmall(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("journal-test", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill appends batches until the disk is full and returns the number of the next record.
func fill(t *testing.T, j running, next uint64, deadline int64, acked map[uint64]int64) uint64 {
	t.Helper()
	for range 10_000 {
		b := &journal.Batch{}
		first := next
		for range 100 {
			b.Records = append(b.Records, record(next, deadline)...)
			next++
		}
		err := j.Append(t.Context(), b)
		if err == nil {
			for n := first; n < next; n++ {
				acked[n] = deadline
			}
			continue
		}
		if !errors.Is(err, journal.ErrFull) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("a full disk: %v", err)
		}
		return next
	}
	t.Fatal("the disk does not get full")
	return 0
}

// A full disk refuses writes with a name, loses nothing, and the journal goes on by itself when space returns, because
// somebody makes room or because records expire.
func TestDiskFull(t *testing.T) {
	mount := mountSmall(t, "1m")
	ballast := filepath.Join(mount, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(filepath.Join(mount, "j"), nil)
	cfg.SegmentBytes = 64 << 10
	acked := map[uint64]int64{}
	j, _ := start(t, cfg)
	next := fill(t, j, 0, 1000, acked)
	if !errors.Is(j.Err(), journal.ErrFull) {
		t.Errorf("Err: %v", j.Err())
	}
	full := len(acked)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	wait := func() {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; {
			err := j.Append(t.Context(), batch(record(next, 1e9)))
			next++
			if err == nil {
				acked[next-1] = 1e9
				return
			}
			if !errors.Is(err, journal.ErrFull) || time.Now().After(end) {
				t.Fatalf("with space again: %v", err)
			}
			time.Sleep(10 * time.Millisecond) // it looks again at most every 100 ms
		}
	}
	wait()
	if j.Err() != nil {
		t.Errorf("Err: %v", j.Err())
	}
	next = fill(t, j, next, 1000, acked)
	j.end(t)

	// A start on a full disk reads, and refuses writes until there is space.
	j, set := start(t, cfg)
	for n := range acked {
		if set[n] == 0 {
			t.Fatalf("record %d was acknowledged and is lost", n)
		}
	}
	next = fill(t, j, next, 1000, acked)

	// Expiry makes the space itself: all but those of wait have expired.
	for now := int64(1001); now < 10_000 && errors.Is(j.Err(), journal.ErrFull); now += 1000 {
		if err := j.Expire(context.Background(), now); err != nil && !errors.Is(err, journal.ErrFull) {
			t.Fatal(err)
		}
	}
	wait()
	t.Logf("%d records until the disk was full, %d in all; %+v", full, len(acked), j.Stats())
	j.end(t)
	j, set = start(t, cfg)
	defer j.end(t)
	for n, deadline := range acked {
		if set[n] == 0 && deadline == 1e9 {
			t.Fatalf("record %d was acknowledged and is lost", n)
		}
	}
}

func TestReadOnlyMount(t *testing.T) {
	mount := mountSmall(t, "1m")
	cfg := config(filepath.Join(mount, "j"), nil)
	j, _ := start(t, cfg)
	j.append(t, batch(record(1, 1000)))
	j.end(t)
	if err := syscall.Mount("journal-test", mount, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Open(cfg); !errors.Is(err, journal.ErrDisk) || !errors.Is(err, syscall.EROFS) {
		t.Errorf("a read-only file system: %v", err)
	}
}
