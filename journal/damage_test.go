package journal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/journal"
)

// specimen is a journal of a few segments and expiry files that ended without an orderly end.
type specimen struct {
	fs      *crashFS
	cfg     journal.Config
	batches [][]uint64 // the records of each, in the order of the log
	live    map[uint64]int64
	newest  int // batches from this one on are in the segment that was open at the end
}

// makeSpecimen writes batches until the files have about so many bytes.
func makeSpecimen(t testing.TB, size int) *specimen {
	t.Helper()
	s := &specimen{fs: newCrashFS(), live: map[uint64]int64{}}
	s.cfg = config("/j", s.fs)
	s.cfg.SegmentBytes = int64(size / 8)
	j, _ := start(t, s.cfg)
	rng := rand.New(rand.NewPCG(3, 4))
	const now = 1_000_000
	next := uint64(0)
	for s.bytes() < size-200 {
		var b journal.Batch
		var numbers []uint64
		for range 1 + rng.IntN(3) {
			deadline := now + rng.Int64N(2*3600)
			b.Records = append(b.Records, record(next, deadline)...)
			s.live[next] = deadline
			numbers = append(numbers, next)
			next++
		}
		if rng.IntN(8) == 0 {
			b.Meta = []journal.Meta{{Key: "key", Value: []byte("value")}}
		}
		open := s.files()
		j.append(t, &b)
		if now := s.files(); now[len(now)-1] != open[len(open)-1] {
			s.newest = len(s.batches)
		}
		s.batches = append(s.batches, numbers)
		if len(s.batches) == size/256 { // once: what is closed by now goes to expiry files
			if err := j.Expire(context.Background(), now); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.fs.mu.Lock()
	image := s.fs.after(crash{nothing, nothing}, rng)
	s.fs.mu.Unlock()
	j.end(t)
	s.fs = image
	return s
}

func (s *specimen) names(dir string) []string {
	names, _ := s.fs.ReadDir(dir)
	slices.Sort(names)
	for i := range names {
		names[i] = dir + "/" + names[i]
	}
	return names
}

// files lists what is read at a start.
func (s *specimen) files() []string {
	files := slices.Concat([]string{"/j/FORMAT"}, s.names("/j/exp"), s.names("/j/wal"))
	return slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, ".tmp") })
}

func (s *specimen) bytes() (n int) {
	s.fs.mu.Lock()
	defer s.fs.mu.Unlock()
	for _, name := range []string{"wal", "exp"} {
		d, err := s.fs.find("/j/" + name)
		if err != nil {
			return 0
		}
		for _, f := range d.(*dir).entries {
			n += len(f.(*inode).data)
		}
	}
	return n
}

// with returns the file system with another content of one file.
func (s *specimen) with(name string, content []byte) *crashFS {
	f := s.fs.after(crash{nothing, nothing}, nil)
	n, err := f.find(name)
	if err != nil {
		panic(err)
	}
	n.(*inode).data, n.(*inode).durable = content, content
	return f
}

func (s *specimen) content(name string) []byte {
	n, err := s.fs.find(name)
	if err != nil {
		panic(err)
	}
	return n.(*inode).data
}

// outcome of a start on damaged files.
type outcome int

const (
	whole    outcome = iota // nothing is lost
	refused                 // an error says what is wrong
	tornTail                // the last batches of the log are not there
	wrong                   // a wrong answer, or nothing that says what is damaged
)

// judge starts a journal on a file system.
func (s *specimen) judge(f *crashFS) (outcome, int, error) {
	cfg := s.cfg
	cfg.FS = f
	j, err := journal.Open(cfg)
	var set map[uint64]int64
	var stats journal.ReplayStats
	if err == nil {
		set, stats, err = replayAll(j)
		_ = j.Close()
	}
	for n, deadline := range set {
		if s.live[n] != deadline {
			return wrong, 0, fmt.Errorf("record %d with deadline %d was never written", n, deadline)
		}
	}
	var damage *journal.DamageError
	switch {
	case errors.As(err, &damage):
		if d := damage.Damage[0]; d.File == "" || d.Reason == "" {
			return wrong, 0, fmt.Errorf("damage without a place or a reason: %v", err)
		}
		return refused, len(set), err
	case errors.Is(err, journal.ErrNewerFormat), errors.Is(err, journal.ErrKeyMismatch), errors.Is(err, journal.ErrRecordSize):
		return refused, 0, err
	case err != nil:
		return wrong, 0, fmt.Errorf("an error that does not name the damage: %v", err)
	}
	missing := 0
	for i, numbers := range s.batches {
		for _, n := range numbers {
			_, ok := set[n]
			switch {
			case ok && missing > 0:
				return wrong, 0, fmt.Errorf("record %d of batch %d is there, and one before it is lost in silence", n, i)
			case !ok:
				missing++
			}
		}
	}
	if missing == 0 {
		return whole, 0, nil
	}
	if first := len(set); first < firstOf(s.batches, s.newest) {
		return wrong, 0, fmt.Errorf("%d records are lost in silence, more than the last segment had", missing)
	}
	if stats.Cut == 0 {
		return tornTail, missing, errors.New("nothing was cut")
	}
	return tornTail, missing, nil
}

// firstOf is how many records the batches before batch i have.
func firstOf(batches [][]uint64, i int) (n int) {
	for _, b := range batches[:i] {
		n += len(b)
	}
	return n
}

// Every truncation of every file of a 64 KiB journal is found, or is that of a torn tail: then everything before it is there.
func TestTruncations(t *testing.T) {
	t.Parallel()
	s := makeSpecimen(t, 64<<10)
	files := s.files()
	last := files[len(files)-1]
	tried, count := 0, map[outcome]int{}
	for _, name := range files {
		b := s.content(name)
		for n := range len(b) {
			if tried++; tried%sparse != 0 {
				continue
			}
			got, _, err := s.judge(s.with(name, b[:n:n]))
			count[got]++
			switch {
			case got == whole:
				t.Fatalf("%s cut to %d of %d bytes: nothing is missing", name, n, len(b))
			case got == wrong, got == tornTail && name != last:
				t.Fatalf("%s cut to %d of %d bytes: %v", name, n, len(b), err)
			}
		}
	}
	t.Logf("%d truncations of %d bytes in %d files: %d refused, %d torn tails", tried, s.bytes(), len(files), count[refused], count[tornTail])
	if tried < 60_000 || count[refused] == 0 || count[tornTail] == 0 {
		t.Error("invalid run")
	}
}

// Every flip of one bit of an 8 KiB journal is found, or costs the last commit, where it cannot be told from a torn write.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	s := makeSpecimen(t, 8<<10*max(1, min(factor(t)/2, 8))) // a night has 64 KiB
	files := s.files()
	last := files[len(files)-1]
	tried, count := 0, map[outcome]int{}
	largest := 0
	for _, b := range s.batches {
		largest = max(largest, len(b))
	}
	for _, name := range files {
		original := s.content(name)
		for bit := range 8 * len(original) {
			if tried++; tried%sparse != 0 {
				continue
			}
			b := slices.Clone(original)
			b[bit/8] ^= 1 << (bit % 8)
			got, missing, err := s.judge(s.with(name, b))
			count[got]++
			switch {
			case got == whole:
				t.Fatalf("%s with bit %d flipped: nobody notices", name, bit)
			case got == wrong, got == tornTail && (name != last || missing > largest || err != nil):
				t.Fatalf("%s with bit %d flipped: %d records are lost in silence: %v", name, bit, missing, err)
			}
		}
	}
	t.Logf("%d flips in %d files: %d refused, %d torn tails", tried, len(files), count[refused], count[tornTail])
	if tried < 60_000 || count[refused] == 0 || count[tornTail] == 0 {
		t.Error("invalid run")
	}
}

// After an orderly end no damage is taken for a torn tail: the end frame, the shortest there is, stands behind it.
func TestBitFlipsAfterOrderlyEnd(t *testing.T) {
	s := &specimen{fs: newCrashFS(), live: map[uint64]int64{}}
	s.cfg = config("/j", s.fs)
	j, _ := start(t, s.cfg)
	for n := range uint64(8) {
		j.append(t, batch(record(n, 1000)))
		s.batches, s.live[n] = append(s.batches, []uint64{n}), 1000
	}
	j.end(t)
	files := s.files()
	name := files[len(files)-1]
	original := s.content(name)
	refusals := 0
	for bit := range 8 * len(original) {
		b := slices.Clone(original)
		b[bit/8] ^= 1 << (bit % 8)
		got, missing, err := s.judge(s.with(name, b))
		end := bit/8 >= len(original)-32
		switch {
		case got == refused:
			refusals++
		case got != whole || !end: // a damaged end says as much as none
			t.Fatalf("bit %d of %d flipped: %d records are lost in silence: %v", bit, 8*len(original), missing, err)
		}
	}
	if refusals < 8*(len(original)-32) {
		t.Errorf("%d refusals", refusals)
	}
}

// TestDamageFindsMutant: a journal that skips what it cannot read gives itself away.
func TestDamageFindsMutant(t *testing.T) {
	s := makeSpecimen(t, 8<<10)
	s.cfg = journal.WithMutant(s.cfg, "skip-damage")
	for _, name := range s.files()[1:] {
		b := slices.Clone(s.content(name))
		b[len(b)/2] ^= 1
		if got, _, err := s.judge(s.with(name, b)); got == wrong {
			t.Logf("found: %v", err)
			return
		}
	}
	t.Error("nobody noticed")
}

// FuzzDamage: a directory with one file that is cut or overwritten is never taken for a whole one and nothing in it is read wrongly; and with checksums
// that are right it is read or refused, but without panic, for a bounded amount of memory.
func FuzzDamage(f *testing.F) {
	s := makeSpecimen(f, 8<<10)
	files := s.files()
	for i := range files {
		f.Add(byte(i), uint16(40), uint16(0), []byte("damage"), false)
		f.Add(byte(i), uint16(8), uint16(0), []byte{1}, true) // the length of a frame
		f.Add(byte(i), uint16(0), uint16(20*i+1), []byte(nil), false)
	}
	f.Fuzz(func(t *testing.T, file byte, at, length uint16, patch []byte, sealed bool) {
		name := files[int(file)%len(files)]
		original := s.content(name)
		b := slices.Clone(original)
		if length > 0 {
			b = b[:int(length-1)%(len(b)+1)]
		}
		copy(b[min(int(at), len(b)):], patch)
		if sealed {
			journal.Seal(b, recordSize)
		}
		var got outcome
		var err error
		alloctest.AtMost(t, 4<<20, func() { got, _, err = s.judge(s.with(name, b)) })
		switch {
		case sealed || bytes.Equal(b, original):
		case got == whole:
			t.Fatalf("%s: nobody notices", name)
		case got == wrong, got == tornTail && name != files[len(files)-1]:
			t.Fatalf("%s: %v", name, err)
		}
	})
}
