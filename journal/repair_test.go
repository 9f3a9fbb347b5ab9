package journal_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/revokd/revokd/journal"
)

// reading reads what can be read of a journal.
func reading(t testing.TB, dir string) (set map[uint64]bool, stats journal.ReplayStats, damage []journal.Damage) {
	t.Helper()
	r, err := journal.OpenReading(journal.ReadConfig{Dir: dir, RecordSize: recordSize})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	set = map[uint64]bool{}
	stats, err = r.Records(context.Background(), func(records []byte) error {
		for ; len(records) > 0; records = records[recordSize:] {
			n, ok := numberOf(records)
			if !ok {
				t.Error("a record that was never written")
			}
			set[n] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return set, stats, r.Damage()
}

func repairConfig(dir string) journal.RepairConfig {
	return journal.RepairConfig{Dir: dir, RecordSize: recordSize}
}

// files returns the names of the files of a kind, in order.
func files(t testing.TB, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	slices.Sort(list)
	return list
}

func change(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, f(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReading(t *testing.T) {
	dir := t.TempDir()
	cfg, want := filled(t, dir, 300)
	before := tree(t, dir)
	set, stats, damage := reading(t, dir)
	if !slices.Equal(slices.Sorted(maps.Keys(set)), want) || len(damage) > 0 || stats.Records < 300 {
		t.Errorf("%d records, %+v, %v", len(set), stats, damage)
	}
	if after := tree(t, dir); !slices.Equal(before, after) {
		t.Errorf("%q, then %q", before, after)
	}

	// Beside a process that has it.
	j, _ := start(t, cfg)
	set, _, damage = reading(t, dir)
	if len(set) != 300 || len(damage) > 0 {
		t.Errorf("%d records, %v", len(set), damage)
	}
	if _, err := journal.Repair(context.Background(), repairConfig(dir)); !errors.Is(err, journal.ErrLocked) {
		t.Errorf("%v", err)
	}
	j.end(t)

	for what, dir := range map[string]string{"empty": t.TempDir(), "missing": filepath.Join(t.TempDir(), "x")} {
		if _, err := journal.OpenReading(journal.ReadConfig{Dir: dir, RecordSize: recordSize}); !errors.Is(err, journal.ErrNotJournal) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := journal.Repair(context.Background(), repairConfig(dir)); !errors.Is(err, journal.ErrNotJournal) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := journal.OpenReading(journal.ReadConfig{Dir: dir, RecordSize: 8}); !errors.Is(err, journal.ErrRecordSize) {
		t.Errorf("%v", err)
	}
}

// A reader beside a busy journal never sees damage, and everything that was acknowledged before it began.
func TestReadingBesideWrites(t *testing.T) {
	cfg := config(t.TempDir(), nil)
	cfg.SegmentBytes, cfg.SealAge = 4000, 1e9
	j, _ := start(t, cfg)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	var acked atomic.Uint64
	go func() {
		defer close(done)
		for i := uint64(0); ctx.Err() == nil; i++ {
			if err := j.Append(context.Background(), batch(record(i, 2_000_000))); err != nil {
				t.Error(err)
				return
			}
			acked.Store(i + 1)
			if i%20 == 0 {
				if err := j.Expire(context.Background(), 1_000_000+int64(i)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	for round := range uint64(20) {
		var last uint64
		for last < 30*round && !t.Failed() {
			last = acked.Load()
			runtime.Gosched()
		}
		set, _, damage := reading(t, cfg.Dir)
		if len(damage) > 0 {
			t.Fatal(damage)
		}
		for i := range last {
			if !set[i] {
				t.Fatalf("%d of %d is missing", i, last)
			}
		}
	}
	stop()
	<-done
	j.end(t)
}

// Each kind of damage stops the start, is reported, and repaired with everything else.
func TestRepair(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(t *testing.T, dir string)
		file   string // that is reported
		lost   int    // records at most
		opens  bool   // Open does not see it, Replay does
	}{
		"nothing": {damage: func(*testing.T, string) {}},
		"torn tail": {damage: func(t *testing.T, dir string) {
			list := files(t, dir, "wal/*")
			change(t, list[len(list)-1], func(b []byte) []byte { return append(b[:len(b)-32], "torn"...) })
		}},
		"last segment": {func(t *testing.T, dir string) {
			list := files(t, dir, "wal/*")
			change(t, list[len(list)-1], func(b []byte) []byte { b[len(b)-150] ^= 1; return b })
		}, "wal/", 3, false},
		"first segment": {func(t *testing.T, dir string) {
			change(t, files(t, dir, "wal/*")[0], func(b []byte) []byte { b[len(b)-150] ^= 1; return b })
		}, "wal/", 3, true},
		"head": {func(t *testing.T, dir string) {
			change(t, files(t, dir, "wal/*")[1], func(b []byte) []byte { b[40] ^= 1; return b })
		}, "wal/", 3, false},
		"all heads": {func(t *testing.T, dir string) {
			for _, f := range files(t, dir, "wal/*") {
				change(t, f, func(b []byte) []byte { b[40] ^= 1; return b })
			}
		}, "wal/", 3, false},
		"segment missing": {func(t *testing.T, dir string) {
			if err := os.Remove(files(t, dir, "wal/*")[1]); err != nil {
				t.Fatal(err)
			}
		}, "wal/", 40, false},
		"expiry file": {func(t *testing.T, dir string) {
			change(t, files(t, dir, "exp/*")[0], func(b []byte) []byte { b[33] ^= 1; return b })
		}, "exp/", 40, true},
		"expiry file cut": {func(t *testing.T, dir string) {
			change(t, files(t, dir, "exp/*")[0], func(b []byte) []byte { return b[:len(b)-1] })
		}, "exp/", 40, true},
		"expiry file missing": {func(t *testing.T, dir string) {
			if err := os.Remove(files(t, dir, "exp/*")[0]); err != nil {
				t.Fatal(err)
			}
		}, "exp/", 40, false},
		"format": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, "FORMAT"), func(b []byte) []byte { b[len(b)-3] ^= 1; return b })
		}, "FORMAT", 0, false},
		"format missing": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "FORMAT")); err != nil {
				t.Fatal(err)
			}
		}, "FORMAT", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cfg, want := filled(t, dir, 300)
			j, err := journal.Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			incarnation := j.Incarnation()
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			test.damage(t, dir)

			set, _, damage := reading(t, dir)
			if (test.file == "") != (len(damage) == 0) || len(damage) > 0 && !strings.HasPrefix(damage[0].File, test.file) {
				t.Fatalf("damage: %v", damage)
			}
			if len(set) < len(want)-test.lost {
				t.Errorf("%d records can be read, want %d", len(set), len(want)-test.lost)
			}
			if test.file != "" {
				j, err := journal.Open(cfg)
				if test.opens {
					if err != nil {
						t.Fatal(err)
					}
					_, _, err = replayAll(j)
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
				}
				var damaged *journal.DamageError
				if !errors.As(err, &damaged) {
					t.Fatalf("the start says %v", err)
				}
			}

			before := tree(t, dir)
			report, err := journal.Repair(context.Background(), repairConfig(dir))
			if err != nil {
				t.Fatal(err)
			}
			if test.file == "" {
				if after := tree(t, dir); !slices.Equal(before, after) || len(report.Damage) > 0 || report.Incarnation != incarnation {
					t.Errorf("%+v; %q, then %q", report, before, after)
				}
				return
			}
			if !slices.Equal(report.Damage, damage) {
				t.Errorf("%v, want %v", report.Damage, damage)
			}
			if report.Incarnation == incarnation {
				t.Error("the incarnation is the old one")
			}
			for _, name := range report.Quarantined {
				if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
			for range 2 {
				j, again := start(t, cfg)
				if len(again) != len(set) {
					t.Errorf("%d records after the repair, %d before", len(again), len(set))
				}
				if j.Incarnation() != report.Incarnation {
					t.Error("another incarnation")
				}
				if got := j.Keys("key/"); len(got) != 7 {
					t.Errorf("metadata %q", got)
				}
				j.append(t, batch(record(1000, 5_000_000)))
				set[1000] = true
				j.end(t)
			}
			if _, _, damage := reading(t, dir); len(damage) > 0 {
				t.Errorf("after the repair: %v", damage)
			}
		})
	}
}

// Keep decides what is of use.
func TestRepairKeep(t *testing.T) {
	dir := t.TempDir()
	cfg, _ := filled(t, dir, 300)
	change(t, files(t, dir, "wal/*")[0], func(b []byte) []byte { b[len(b)-150] ^= 1; return b })
	rc := repairConfig(dir)
	rc.Keep = func(record []byte, get func(string) ([]byte, bool)) bool {
		if v, ok := get("key/3"); !ok || string(v) != "297" {
			t.Errorf("metadata %q", v)
		}
		n, _ := numberOf(record)
		return n%2 == 0
	}
	report, err := journal.Repair(context.Background(), rc)
	if err != nil || report.Dropped < 148 || report.Kept < 148 {
		t.Fatalf("%+v, %v", report, err)
	}
	j, set := start(t, cfg)
	for n := range set {
		if n%2 != 0 {
			t.Errorf("%d was to be dropped", n)
		}
	}
	j.end(t)
}

// An interrupted repair leaves a damaged journal that can be repaired.
func TestRepairInterrupted(t *testing.T) {
	dir := t.TempDir()
	cfg, _ := filled(t, dir, 300)
	change(t, files(t, dir, "wal/*")[0], func(b []byte) []byte { b[len(b)-150] ^= 1; return b })
	rc := repairConfig(dir)
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	rc.Keep = func([]byte, func(string) ([]byte, bool)) bool {
		if calls++; calls == 100 {
			cancel()
		}
		return true
	}
	before := tree(t, dir)
	if _, err := journal.Repair(ctx, rc); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if after := tree(t, dir); !slices.Equal(before, after) {
		t.Errorf("%q, then %q", before, after)
	}
	rc.Keep = nil
	if _, err := journal.Repair(context.Background(), rc); err != nil {
		t.Fatal(err)
	}
	j, set := start(t, cfg)
	if len(set) < 299 {
		t.Errorf("%d records", len(set))
	}
	j.end(t)
}
