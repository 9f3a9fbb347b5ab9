package journal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/revokd/revokd/journal"
)

// Records of the tests: a number, a deadline, and what the number says again, so that a wrong record shows.
const recordSize = 24

func record(n uint64, deadline int64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, n)
	b = binary.LittleEndian.AppendUint64(b, uint64(deadline))
	return binary.LittleEndian.AppendUint64(b, ^n)
}

func deadlineOf(b []byte) int64 { return int64(binary.LittleEndian.Uint64(b[8:])) }

func numberOf(b []byte) (uint64, bool) {
	n := binary.LittleEndian.Uint64(b)
	return n, binary.LittleEndian.Uint64(b[16:]) == ^n
}

func config(dir string, fs journal.FS) journal.Config {
	return journal.Config{Dir: dir, FS: fs, RecordSize: recordSize, KeyID: 7, Deadline: deadlineOf}
}

// replayAll reads a journal into a set.
func replayAll(j *journal.Journal) (map[uint64]int64, journal.ReplayStats, error) {
	set := map[uint64]int64{}
	stats, err := j.Replay(context.Background(), func(records []byte) error {
		for ; len(records) > 0; records = records[recordSize:] {
			n, ok := numberOf(records)
			if !ok {
				return fmt.Errorf("a record that was never written: %x", records[:recordSize])
			}
			set[n] = deadlineOf(records)
		}
		return nil
	}, nil)
	return set, stats, err
}

// running is a journal with its Run.
type running struct {
	*journal.Journal
	stop context.CancelFunc
	done chan error
}

func run(j *journal.Journal) running {
	ctx, stop := context.WithCancel(context.Background())
	r := running{j, stop, make(chan error, 1)}
	go func() { r.done <- j.Run(ctx) }()
	return r
}

// end stops Run, as a process does that ends in an orderly way.
func (r running) end(t testing.TB) {
	t.Helper()
	r.stop()
	if err := errors.Join(<-r.done, r.Close()); err != nil {
		t.Fatal(err)
	}
}

// start opens and replays a journal and runs it.
func start(t testing.TB, cfg journal.Config) (running, map[uint64]int64) {
	t.Helper()
	j, err := journal.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	set, _, err := replayAll(j)
	if err != nil {
		t.Fatal(err)
	}
	return run(j), set
}

func batch(records ...[]byte) *journal.Batch {
	return &journal.Batch{Records: slices.Concat(records...)}
}

func (r running) append(t testing.TB, b *journal.Batch) {
	t.Helper()
	if err := r.Append(context.Background(), b); err != nil {
		t.Fatal(err)
	}
}

func keys(m map[uint64]int64) []uint64 { return slices.Sorted(maps.Keys(m)) }

func TestRestart(t *testing.T) {
	dir := t.TempDir() + "/a/b"
	cfg := config(dir, nil)
	want := []uint64{}
	for round := range 5 {
		j, set := start(t, cfg)
		if !slices.Equal(keys(set), want) {
			t.Fatalf("round %d: %v, want %v", round, keys(set), want)
		}
		if v, ok := j.Get("round"); round > 0 && (!ok || string(v) != fmt.Sprint(round-1)) {
			t.Errorf("round %d: metadata %q", round, v)
		}
		for i := range 3 {
			n := uint64(round*10 + i)
			b := batch(record(n, 1000))
			b.Meta = []journal.Meta{{Key: "round", Value: fmt.Append(nil, round)}}
			j.append(t, b)
			want = append(want, n)
		}
		j.end(t)
	}
}

func TestExpire(t *testing.T) {
	cfg := config(t.TempDir(), nil)
	cfg.SealAge = 60e9
	cfg.SegmentBytes = 200
	j, _ := start(t, cfg)
	now := int64(1_000_000)
	for i := range uint64(100) {
		j.append(t, batch(record(i, now+int64(i)*3600)))
	}
	for range 2 {
		if err := j.Expire(context.Background(), now); err != nil {
			t.Fatal(err)
		}
		now += 3600
	}
	t.Logf("%+v", j.Stats())
	j.end(t)
	j, set := start(t, cfg)
	for i := uint64(1); i < 100; i++ {
		if _, ok := set[i]; !ok {
			t.Errorf("%d is missing", i)
		}
	}
	now += 200 * 3600
	if err := j.Expire(context.Background(), now); err != nil {
		t.Fatal(err)
	}
	now += 200 * 3600
	if err := j.Expire(context.Background(), now); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", j.Stats())
	j.end(t)
}
