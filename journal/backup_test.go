package journal_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/journal"
)

// filled makes a journal with records in segments and in files by expiry, and returns what is in it.
func filled(t testing.TB, dir string, n uint64) (journal.Config, []uint64) {
	t.Helper()
	cfg := config(dir, nil)
	cfg.SegmentBytes, cfg.SealAge = 2000, 60e9
	j, _ := start(t, cfg)
	var want []uint64
	for i := range n {
		b := batch(record(i, 5_000_000+int64(i)*3600))
		b.Meta = []journal.Meta{{Key: fmt.Sprint("key/", i%7), Value: fmt.Append(nil, i)}}
		j.append(t, b)
		want = append(want, i)
		if i == n/2 {
			for _, now := range []int64{1_000_000, 1_001_000} {
				if err := j.Expire(context.Background(), now); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if s := j.Stats(); s.ExpiryFiles == 0 || s.Segments < 2 {
		t.Fatalf("the journal is too simple: %+v", s)
	}
	j.end(t)
	return cfg, want
}

func backup(t testing.TB, j *journal.Journal) []byte {
	t.Helper()
	var b bytes.Buffer
	info, err := j.Backup(context.Background(), &b)
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes != int64(b.Len()) {
		t.Fatalf("%+v of %d bytes", info, b.Len())
	}
	return b.Bytes()
}

func restoreConfig(dir string) journal.RestoreConfig {
	return journal.RestoreConfig{Dir: dir, RecordSize: recordSize, KeyID: 7}
}

func TestBackupRestore(t *testing.T) {
	cfg, want := filled(t, t.TempDir(), 300)
	j, _ := start(t, cfg)
	image := backup(t, j.Journal)
	if again := backup(t, j.Journal); len(again) != len(image) {
		t.Errorf("%d bytes, then %d", len(image), len(again))
	}
	incarnation := j.Incarnation()
	j.end(t)

	dir := filepath.Join(t.TempDir(), "a", "b")
	info, err := journal.RestoreBackup(context.Background(), restoreConfig(dir), bytes.NewReader(image))
	if err != nil || info.Records != 300 || info.KeyID != 7 {
		t.Fatalf("%+v, %v", info, err)
	}
	for range 2 { // and again after a start has adopted it
		j, set := start(t, config(dir, nil))
		if !slices.Equal(keys(set), want) {
			t.Errorf("%d records, want %d", len(set), len(want))
		}
		if v, _ := j.Get("key/3"); string(v) != "297" {
			t.Errorf("metadata %q", v)
		}
		if got := j.Keys(""); len(got) != 7 {
			t.Errorf("metadata %q", got)
		}
		if j.Incarnation() == incarnation || j.Incarnation() == (journal.Incarnation{}) {
			t.Error("the incarnation is the old one")
		}
		j.end(t)
	}
	if bytes.Contains(image, incarnation[:]) {
		t.Error("the backup has the incarnation")
	}
}

// An empty journal is a backup too.
func TestBackupEmpty(t *testing.T) {
	j, _ := start(t, config(t.TempDir(), nil))
	image := backup(t, j.Journal)
	j.end(t)
	dir := t.TempDir()
	if _, err := journal.RestoreBackup(context.Background(), restoreConfig(dir), bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	j, set := start(t, config(dir, nil))
	if len(set) != 0 {
		t.Errorf("%v", set)
	}
	j.end(t)
}

// What was acknowledged before a backup began is in it, whatever goes on beside it.
func TestBackupBesideWrites(t *testing.T) {
	cfg := config(t.TempDir(), nil)
	cfg.SegmentBytes, cfg.SealAge = 4000, 1e9
	j, _ := start(t, cfg)
	ctx, stop := context.WithCancel(t.Context())
	var acked atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(0); ctx.Err() == nil; i++ {
			if err := j.Append(context.Background(), batch(record(i, 2_000_000))); err != nil {
				t.Error(err)
				return
			}
			acked.Store(i + 1)
		}
	})
	wg.Go(func() {
		for now := int64(1_000_000); ctx.Err() == nil; now += 2 {
			if err := j.Expire(context.Background(), now); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for round := range uint64(20) {
		var before uint64
		for before < 30*round && !t.Failed() {
			before = acked.Load()
			runtime.Gosched()
		}
		image := backup(t, j.Journal)
		found := map[uint64]bool{}
		_, err := journal.ReadBackup(bytes.NewReader(image), journal.BackupReader{Records: func(records []byte) error {
			for ; len(records) > 0; records = records[recordSize:] {
				n, ok := numberOf(records)
				if !ok {
					return errors.New("a record that was never written")
				}
				found[n] = true
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range before {
			if !found[i] {
				t.Fatalf("round %d: %d of %d is missing", round, i, before)
			}
		}
	}
	stop()
	wg.Wait()
	j.end(t)
}

// A reader that goes away ends the backup with its error, and what it got is none.
func TestBackupCut(t *testing.T) {
	cfg, _ := filled(t, t.TempDir(), 300)
	j, _ := start(t, cfg)
	defer j.end(t)
	gone := errors.New("gone")
	if _, err := j.Backup(context.Background(), failing{gone}); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var b bytes.Buffer
	if _, err := j.Backup(ctx, &b); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := journal.ReadBackup(&b, journal.BackupReader{}); !errors.Is(err, journal.ErrBackup) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
func (f failing) Read([]byte) (int, error)  { return 0, f.err }

func TestBackupBeforeReplay(t *testing.T) {
	j, err := journal.Open(config(t.TempDir(), nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Backup(context.Background(), io.Discard); !errors.Is(err, journal.ErrNotReplayed) {
		t.Errorf("%v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Backup(context.Background(), io.Discard); !errors.Is(err, journal.ErrClosed) {
		t.Errorf("%v", err)
	}
}

// small is a backup with a few records.
func small(t testing.TB) []byte {
	t.Helper()
	j, _ := start(t, config(t.TempDir(), nil))
	b := batch(record(1, 2_000_000), record(2, 3_000_000))
	b.Meta = []journal.Meta{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte{}}}
	j.append(t, b)
	image := backup(t, j.Journal)
	j.end(t)
	return image
}

// Every truncation, every flipped bit and everything behind it is found, and leaves an empty directory that can be restored to.
func TestBackupDamaged(t *testing.T) {
	image := small(t)
	cfg := restoreConfig("/a/j")
	fs := newCrashFS()
	cfg.FS = fs
	refused := func(what string, b []byte) {
		t.Helper()
		_, err := journal.RestoreBackup(context.Background(), cfg, bytes.NewReader(b))
		if !errors.Is(err, journal.ErrBackup) && !errors.Is(err, journal.ErrNewerFormat) {
			t.Fatalf("%s: %v", what, err)
		}
		if f, err := fs.Open("/a/j/FORMAT", false); err == nil {
			f.Close()
			t.Fatalf("%s: it looks like a journal", what)
		}
	}
	for n := range len(image) {
		refused(fmt.Sprintf("cut at %d", n), image[:n])
	}
	for bit := range len(image) * 8 {
		b := bytes.Clone(image)
		b[bit/8] ^= 1 << (bit % 8)
		refused(fmt.Sprintf("bit %d", bit), b)
	}
	other := small(t)
	refused("followed by a byte", append(bytes.Clone(image), 0))
	refused("followed by another", append(bytes.Clone(image), other...))
	refused("text", []byte("this is a letter and no backup, and longer than a header"))
	first := 32 + int(binary.LittleEndian.Uint32(image[8:]))
	refused("the head of one and the rest of another", append(bytes.Clone(image[:first]), other[first:]...))
	trailer := bytes.Clone(image[len(image)-72:])
	refused("without records", append(bytes.Clone(image[:first]), trailer...))
	if _, err := journal.RestoreBackup(context.Background(), cfg, bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	image := small(t)
	for name, test := range map[string]struct {
		prepare func(dir string) error
		change  func(*journal.RestoreConfig)
		want    error
	}{
		"key":    {change: func(c *journal.RestoreConfig) { c.KeyID = 8 }, want: journal.ErrKeyMismatch},
		"record": {change: func(c *journal.RestoreConfig) { c.RecordSize = 8 }, want: journal.ErrRecordSize},
		"file":   {prepare: func(dir string) error { return os.WriteFile(dir+"/x", nil, 0o600) }, want: journal.ErrNotEmpty},
		"segment": {prepare: func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/wal", 0o700), os.WriteFile(dir+"/wal/0000000000000001.wal", nil, 0o600))
		}, want: journal.ErrNotEmpty},
		"journal": {prepare: func(dir string) error {
			j, err := journal.Open(config(dir, nil))
			if err != nil {
				return err
			}
			return j.Close()
		}, want: journal.ErrNotEmpty},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := restoreConfig(t.TempDir())
			if test.prepare != nil {
				if err := test.prepare(cfg.Dir); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, cfg.Dir)
			if test.change != nil {
				test.change(&cfg)
			}
			if _, err := journal.RestoreBackup(context.Background(), cfg, bytes.NewReader(image)); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if after := tree(t, cfg.Dir); !slices.Equal(before, after) {
				t.Errorf("%q, then %q", before, after)
			}
		})
	}
	gone := errors.New("gone")
	if _, err := journal.RestoreBackup(context.Background(), restoreConfig(t.TempDir()), failing{gone}); !errors.Is(err, gone) {
		t.Errorf("%v", err)
	}
}

// tree lists the files below a directory with their sizes.
func tree(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		list = append(list, fmt.Sprint(path, " ", info.Size()))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// FuzzReadBackup: whatever is read, there is no panic, and what is accepted is accepted as a whole and restores.
func FuzzReadBackup(f *testing.F) {
	image := small(f)
	f.Add(image)
	f.Add(image[:len(image)-1])
	f.Add([]byte("text"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var records int64
		var begun bool
		var info journal.BackupInfo
		var err error
		reader := journal.BackupReader{
			Begin: func(info journal.BackupInfo, meta []journal.Meta) error {
				begun = true
				for _, e := range meta {
					if e.Key == "" || len(e.Key) > journal.MaxMetaKey || len(e.Value) > journal.MaxMetaValue {
						t.Errorf("metadata beyond a limit: %d, %d bytes", len(e.Key), len(e.Value))
					}
				}
				if info.RecordSize <= 0 {
					t.Errorf("%+v", info)
				}
				return nil
			},
			Records: func(r []byte) error {
				records += int64(len(r))
				return nil
			},
		}
		alloctest.AtMost(t, 4*len(b)+4<<20, func() { // it reads by the megabyte
			records, begun = 0, false
			info, err = journal.ReadBackup(bytes.NewReader(b), reader)
		})
		switch {
		case err == nil && (!begun || info.Bytes != int64(len(b)) || info.Records*int64(info.RecordSize) != records):
			t.Errorf("accepted as %+v: %d bytes, %d of records", info, len(b), records)
		case err != nil && !errors.Is(err, journal.ErrBackup) && !errors.Is(err, journal.ErrNewerFormat):
			t.Errorf("%v", err)
		}
	})
}
