package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/revokd/revokd/journal"
)

// filledFS is filled on a file system in memory, without its expiry files if flat.
func filledFS(t testing.TB, flat bool) (*crashFS, journal.Config, map[uint64]int64) {
	t.Helper()
	f := newCrashFS()
	cfg := config("/a/j", f)
	cfg.SegmentBytes, cfg.SealAge = 600, 60e9
	j, _ := start(t, cfg)
	want := map[uint64]int64{}
	for i := range uint64(40) {
		b := batch(record(i, 5_000_000+int64(i)*3600))
		b.Meta = []journal.Meta{{Key: fmt.Sprint("key/", i%3), Value: fmt.Append(nil, i)}}
		j.append(t, b)
		want[i] = 5_000_000 + int64(i)*3600
		if i == 20 && !flat {
			for _, now := range []int64{1_000_000, 1_001_000} {
				if err := j.Expire(context.Background(), now); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	j.end(t)
	return f, cfg, want
}

// names lists a directory in order.
func names(t testing.TB, f *crashFS, dir string) []string {
	t.Helper()
	list, err := f.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// flip flips a bit on the disk.
func flip(t testing.TB, f *crashFS, name string, fromEnd int64) {
	t.Helper()
	h, err := f.Open(name, true)
	if err != nil {
		t.Fatal(err)
	}
	size, err := h.Size()
	b := make([]byte, 1)
	if err == nil {
		_, err = h.ReadAt(b, size-fromEnd)
	}
	if err == nil {
		_, err = h.WriteAt([]byte{b[0] ^ 1}, size-fromEnd)
	}
	if err = errors.Join(err, h.Sync(), h.Close()); err != nil {
		t.Fatal(err)
	}
}

// afterCrashes calls look with what each crash before each step of do leaves, and what is left after it.
func afterCrashes(t *testing.T, f *crashFS, do func() error, look func(f *crashFS, where string) error) {
	t.Helper()
	dice := rand.New(rand.NewPCG(1, 2))
	crashes := 0
	var found error
	try := func(where string) {
		for _, c := range f.crashes() {
			crashes++
			if err := look(f.after(c, dice), where); err != nil && found == nil {
				found = fmt.Errorf("%s, %s: %w", where, c, err)
			}
		}
		crashes++
		if err := look(f.killed(), where); err != nil && found == nil {
			found = fmt.Errorf("%s, killed: %w", where, err)
		}
	}
	f.before = func(op, name string) error {
		try(fmt.Sprintf("before %s %s", op, name))
		return nil
	}
	err := do()
	f.before = nil
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	try("at the end")
	f.mu.Unlock()
	if found != nil {
		t.Error(found)
	}
	if crashes < 20 {
		t.Errorf("only %d crashes", crashes)
	}
	t.Logf("%d crashes", crashes)
}

// TestRepairCrashes: a power loss at any moment of a repair leaves a journal that is damaged as before, and can be repaired, or one with all
// that could be read and a new incarnation. It never looks whole with less in it.
func TestRepairCrashes(t *testing.T) {
	for _, dir := range []string{"wal", "exp"} {
		t.Run(dir, func(t *testing.T) {
			f, cfg, want := filledFS(t, false)
			flip(t, f, "/a/j/"+dir+"/"+names(t, f, "/a/j/"+dir)[1], 100)
			old, set, damage := readingFS(t, f)
			if len(damage) == 0 || len(set) == len(want) || len(set) == 0 {
				t.Fatalf("%d of %d records, %v", len(set), len(want), damage)
			}
			repair := func(f *crashFS) error {
				_, err := journal.Repair(context.Background(), journal.RepairConfig{Dir: cfg.Dir, FS: f, RecordSize: recordSize}.WithSegments(300))
				return err
			}
			open := func(f *crashFS) (map[uint64]int64, error) {
				cfg := cfg
				cfg.FS = f
				j, err := journal.Open(cfg)
				if err != nil {
					return nil, err
				}
				defer j.Close()
				set, _, err := replayAll(j)
				if err == nil && j.Incarnation() == old {
					err = errors.New("the incarnation is the old one")
				}
				if err == nil && len(j.Keys("key/")) != 3 {
					err = fmt.Errorf("metadata %q", j.Keys(""))
				}
				return set, err
			}
			afterCrashes(t, f, func() error { return repair(f) }, func(f *crashFS, where string) error {
				again, err := open(f)
				var damaged *journal.DamageError
				if errors.As(err, &damaged) && where != "at the end" {
					if err := repair(f); err != nil {
						return fmt.Errorf("the next repair: %w", err)
					}
					again, err = open(f)
				}
				if err == nil && !maps.Equal(again, set) {
					err = fmt.Errorf("%d records, want %d", len(again), len(set))
				}
				return err
			})
		})
	}
}

func readingFS(t testing.TB, f *crashFS) (journal.Incarnation, map[uint64]int64, []journal.Damage) {
	t.Helper()
	r, err := journal.OpenReading(journal.ReadConfig{Dir: "/a/j", FS: f, RecordSize: recordSize})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	set := map[uint64]int64{}
	_, err = r.Records(context.Background(), func(records []byte) error {
		for ; len(records) > 0; records = records[recordSize:] {
			n, _ := numberOf(records)
			set[n] = deadlineOf(records)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.Incarnation(), set, r.Damage()
}

// TestRestoreCrashes: a power loss at any moment of a restore leaves a directory that is refused, or empty, or has all of it.
func TestRestoreCrashes(t *testing.T) {
	_, cfg, want := filledFS(t, true)
	j, _ := start(t, cfg)
	image := backup(t, j.Journal)
	j.end(t)
	f := newCrashFS()
	cfg.Dir = "/b/c/j"
	restore := func() error {
		_, err := journal.RestoreBackup(context.Background(), journal.RestoreConfig{Dir: cfg.Dir, FS: f, RecordSize: recordSize, KeyID: 7}.WithSegments(300), bytes.NewReader(image))
		return err
	}
	afterCrashes(t, f, restore, func(f *crashFS, where string) error {
		cfg := cfg
		cfg.FS = f
		j, err := journal.Open(cfg)
		var damaged *journal.DamageError
		switch {
		case errors.As(err, &damaged) && where != "at the end":
			return nil
		case err != nil:
			return err
		}
		defer j.Close()
		set, _, err := replayAll(j)
		if err == nil && !maps.Equal(set, want) && (len(set) > 0 || where == "at the end") {
			err = fmt.Errorf("%d records, want %d or none", len(set), len(want))
		}
		return err
	})
}

// TestToolsOnBadDisk: each step of a repair and of a restore may fail. The error says so, and the same call works when the disk does.
func TestToolsOnBadDisk(t *testing.T) {
	broken := errors.New("broken")
	_, cfg, want := filledFS(t, true)
	j, _ := start(t, cfg)
	image := backup(t, j.Journal)
	j.end(t)
	for n := 0; ; n++ {
		f := newCrashFS()
		fail := true
		steps := 0
		f.before = func(op, name string) error {
			if steps++; fail && steps > n && !strings.HasPrefix(op, "remove") {
				return broken
			}
			return nil
		}
		restore := func() error {
			_, err := journal.RestoreBackup(context.Background(), journal.RestoreConfig{Dir: "/a/j", FS: f, RecordSize: recordSize, KeyID: 7}.WithSegments(300), bytes.NewReader(image))
			return err
		}
		err := restore()
		if err == nil {
			if n < 5 {
				t.Errorf("a restore has %d steps", n)
			}
			break
		}
		if !errors.Is(err, journal.ErrDisk) || !errors.Is(err, broken) {
			t.Fatalf("restore, %d steps: %v", n, err)
		}
		fail = false
		if err := restore(); err != nil {
			t.Fatalf("restore again, %d steps: %v", n, err)
		}
	}
	for n := 0; ; n++ {
		f, _, _ := filledFS(t, false)
		flip(t, f, "/a/j/wal/"+names(t, f, "/a/j/wal")[1], 100)
		_, set, _ := readingFS(t, f)
		fail := true
		steps := 0
		f.before = func(op, name string) error {
			if steps++; fail && steps > n {
				return broken
			}
			return nil
		}
		repair := func() error {
			_, err := journal.Repair(context.Background(), journal.RepairConfig{Dir: "/a/j", FS: f, RecordSize: recordSize}.WithSegments(300))
			return err
		}
		err := repair()
		if err != nil && (!errors.Is(err, journal.ErrDisk) || !errors.Is(err, broken)) {
			t.Fatalf("repair, %d steps: %v", n, err)
		}
		fail = false
		if err := repair(); err != nil {
			t.Fatalf("repair again, %d steps: %v", n, err)
		}
		if _, again, damage := readingFS(t, f); !maps.Equal(again, set) || len(damage) > 0 {
			t.Fatalf("%d steps: %d records, want %d; %v", n, len(again), len(set), damage)
		}
		if err == nil {
			if n < 5 {
				t.Errorf("a repair has %d steps", n)
			}
			break
		}
	}
	if len(want) == 0 {
		t.Error("nothing to lose")
	}
}

// TestBackupOnBadDisk: when the disk refuses writes, everything that was acknowledged can still be backed up, also after a start that could not
// begin a segment.
func TestBackupOnBadDisk(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, restarts := range []int{0, 1, 2} {
			f := newCrashFS()
			cfg := config("/a/j", f)
			refuse := func(op, _ string) error {
				if op == "create" || op == "write" || errors.Is(cause, syscall.EIO) {
					return cause
				}
				return nil
			}
			j, _ := start(t, cfg)
			for i := range uint64(10) {
				j.append(t, batch(record(i, 5_000_000)))
			}
			for range restarts {
				if errors.Is(cause, syscall.EIO) {
					continue // then there is no start
				}
				f.mu.Lock()
				killed := f.killed() // the last frame has no segment behind it that says it again
				f.mu.Unlock()
				f = killed
				old := j
				cfg.FS, f.before = f, refuse
				j, _ = start(t, cfg)
				old.end(t)
			}
			f.hook(refuse)
			if err := j.Append(context.Background(), batch(record(11, 5_000_000))); err == nil {
				t.Fatal("the disk takes writes")
			}
			found := map[uint64]bool{}
			_, err := journal.ReadBackup(bytes.NewReader(backup(t, j.Journal)), journal.BackupReader{Records: func(records []byte) error {
				for ; len(records) > 0; records = records[recordSize:] {
					n, _ := numberOf(records)
					found[n] = true
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(10) {
				if !found[i] {
					t.Errorf("%v, %d starts: %d is missing", cause, restarts, i)
				}
			}
			f.hook(nil)
			j.end(t)
		}
	}
}

// hook sets before while a journal runs.
func (f *crashFS) hook(before func(op, name string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// TestAnyDamage: whatever is broken, the reader and the start agree whether it is whole; a repair keeps all that can be read, and then it is.
func TestAnyDamage(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	damaged := 0
	for round := range 400 {
		f, cfg, want := filledFS(t, round%4 == 0)
		what := ""
		for range 1 + dice.IntN(3) {
			var files []string
			for _, dir := range []string{"/a/j/wal/", "/a/j/exp/"} {
				for _, name := range names(t, f, dir) {
					files = append(files, dir+name)
				}
			}
			if dice.IntN(10) == 0 && slices.Contains(names(t, f, "/a/j"), "FORMAT") {
				files = []string{"/a/j/FORMAT"}
			}
			if len(files) == 0 {
				break
			}
			what += " " + breakFile(t, f, files[dice.IntN(len(files))], dice)
		}
		r, err := journal.OpenReading(journal.ReadConfig{Dir: cfg.Dir, FS: f, RecordSize: recordSize})
		if errors.Is(err, journal.ErrNotJournal) || errors.Is(err, journal.ErrNewerFormat) {
			continue // nothing is left; or a bit of the version in FORMAT, of which nobody can know more
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		set := map[uint64]int64{}
		_, err = r.Records(context.Background(), func(records []byte) error {
			for ; len(records) > 0; records = records[recordSize:] {
				n, ok := numberOf(records)
				if _, was := want[n]; !ok || !was {
					return errors.New("a record that was never written")
				}
				set[n] = deadlineOf(records)
			}
			return nil
		})
		whole := len(r.Damage()) == 0
		r.Close()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		open := func() (map[uint64]int64, error) {
			j, err := journal.Open(cfg)
			if err != nil {
				return nil, err
			}
			defer j.Close()
			set, _, err := replayAll(j)
			return set, err
		}
		again, err := open()
		var damage *journal.DamageError
		if whole != (err == nil) || err != nil && !errors.As(err, &damage) {
			t.Fatalf("%s: whole: %v, but the start says %v", what, whole, err)
		}
		if whole {
			if !maps.Equal(again, set) {
				t.Fatalf("%s: the start finds %d records, the reader %d", what, len(again), len(set))
			}
			continue
		}
		damaged++
		_, err = journal.Repair(context.Background(), journal.RepairConfig{Dir: cfg.Dir, FS: f, RecordSize: recordSize})
		if errors.As(err, &damage) {
			continue // nothing tells the key any more
		}
		if err != nil {
			t.Fatalf("%s: repair: %v", what, err)
		}
		if again, err := open(); err != nil || !maps.Equal(again, set) {
			t.Fatalf("%s: after the repair %d records, want %d: %v", what, len(again), len(set), err)
		}
	}
	if damaged < 100 {
		t.Errorf("only %d of the journals were damaged", damaged)
	}
	t.Logf("%d damaged", damaged)
}

// breakFile damages a file on the disk and says how.
func breakFile(t testing.TB, f *crashFS, name string, dice *rand.Rand) string {
	t.Helper()
	if dice.IntN(6) == 0 {
		if err := f.Remove(name); err != nil {
			t.Fatal(err)
		}
		return "remove " + name
	}
	h, err := f.Open(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	size, err := h.Size()
	if err != nil || size == 0 {
		return "nothing"
	}
	at := dice.Int64N(size)
	switch dice.IntN(4) {
	case 0:
		err = h.Truncate(at)
		name = fmt.Sprintf("truncate %s to %d", name, at)
	case 1:
		n := min(size-at, 1+dice.Int64N(100))
		_, err = h.WriteAt(make([]byte, n), at)
		name = fmt.Sprintf("zero %d at %d of %s", n, at, name)
	case 2:
		_, err = h.WriteAt([]byte("garbage that nobody wrote"), size)
		name = "garbage behind " + name
	default:
		b := make([]byte, 1)
		if _, err = h.ReadAt(b, at); err == nil {
			_, err = h.WriteAt([]byte{b[0] ^ 1<<dice.IntN(8)}, at)
		}
		name = fmt.Sprintf("flip at %d of %s", at, name)
	}
	if err = errors.Join(err, h.Sync()); err != nil {
		t.Fatal(err)
	}
	return name
}
