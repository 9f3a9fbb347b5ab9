package journal_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/revokd/revokd/journal"
)

// The tests of this file stop a journal before every step that changes its file system, take away what a power loss or a
// kill may take, and read what is left. REVOKD_CRASH_FACTOR multiplies how many histories they do that to.

// sent is a batch as the test remembers it. Its metadata value is its number.
type sent struct {
	first, n  uint64 // its records
	key       string // of its metadata; empty: none
	deletes   bool
	acked     bool
	failed    bool
	deadlines []int64
}

// memory is what the callers of a journal know of it.
type memory struct {
	mu      sync.Mutex
	batches []*sent
	owner   []int // of each record, its batch
	now     int64 // no Expire was called with a later one
	opened  bool
	inc     journal.Incarnation
}

// seen is what a replay yields.
type seen struct {
	records []int // how often, by number
	meta    map[string]uint64
	set     map[string]bool
}

// read opens a journal, replays it and returns what it says.
func (m *memory) read(cfg journal.Config) (*journal.Journal, *seen, error) {
	j, err := journal.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	s := &seen{records: make([]int, len(m.owner)), meta: map[string]uint64{}, set: map[string]bool{}}
	for _, key := range j.Keys("") {
		v, _ := j.Get(key)
		if len(v) < 8 {
			return j, nil, fmt.Errorf("a value that was never written: %q", v)
		}
		s.meta[key], s.set[key] = binary.LittleEndian.Uint64(v), true
	}
	_, err = j.Replay(context.Background(), func(records []byte) error {
		for ; len(records) > 0; records = records[recordSize:] {
			n, ok := numberOf(records)
			if !ok || n >= uint64(len(m.owner)) {
				return fmt.Errorf("a record that was never written: %x", records[:recordSize])
			}
			b := m.batches[m.owner[n]]
			if deadlineOf(records) != b.deadlines[n-b.first] {
				return fmt.Errorf("a record with another deadline: %d", n)
			}
			s.records[n]++
		}
		return nil
	}, nil)
	return j, s, err
}

// check compares what a journal says after a crash with what its callers know.
func (m *memory) check(j *journal.Journal, s *seen) error {
	if m.opened && j.Incarnation() != m.inc {
		return errors.New("another incarnation")
	}
	newest := -1 // batch that was found
	for key, v := range s.meta {
		if v >= uint64(len(m.batches)) || m.batches[v].key != key || m.batches[v].deletes {
			return fmt.Errorf("metadata that was never written: %s=%d", key, v)
		}
		newest = max(newest, int(v))
	}
	for n, times := range s.records {
		if times > 0 {
			newest = max(newest, m.owner[n])
		}
	}
	acked := map[string]int{}
	for i, b := range m.batches {
		if b.key != "" && b.acked {
			acked[b.key] = i
		}
		found, missing := 0, 0
		for n := range b.n {
			switch {
			case s.records[b.first+n] > 0:
				found++
			case b.deadlines[n] >= m.now:
				missing++
			}
		}
		switch {
		case b.acked && missing > 0:
			return fmt.Errorf("batch %d was acknowledged and %d of its %d records are lost", i, missing, b.n)
		case found > 0 && missing > 0:
			return fmt.Errorf("batch %d is there in part: %d of its %d records are missing", i, missing, b.n)
		case missing > 0 && newest >= i && !b.failed:
			return fmt.Errorf("batch %d is missing, and a later one, %d, is there", i, newest)
		}
	}
	for key, i := range acked {
		if s.set[key] && s.meta[key] >= uint64(i) {
			continue
		}
		// Deleted since, or by it.
		ok := false
		for _, b := range m.batches[i:] {
			ok = ok || b.key == key && b.deletes && !s.set[key]
		}
		if !ok {
			return fmt.Errorf("metadata %s=%d was acknowledged; found %d (%v)", key, i, s.meta[key], s.set[key])
		}
	}
	return nil
}

// gone returns the records that s has and later has not, though they live.
func (m *memory) gone(s, later *seen) error {
	for n, times := range s.records {
		b := m.batches[m.owner[n]]
		if times > 0 && later.records[n] == 0 && b.deadlines[uint64(n)-b.first] >= m.now {
			return fmt.Errorf("record %d was replayed and is lost after another crash", n)
		}
	}
	for key, v := range s.meta {
		if !later.set[key] || later.meta[key] != v {
			return fmt.Errorf("metadata %s=%d was read and is %d (%v) after another crash", key, v, later.meta[key], later.set[key])
		}
	}
	return nil
}

// enumeration runs a history on a crashFS and looks at every crash on the way.
type enumeration struct {
	t      testing.TB
	cfg    journal.Config
	fs     *crashFS
	memory memory
	rng    *rand.Rand // of the history
	dice   *rand.Rand // of the crashes
	faults bool       // the file system may fail
	random bool       // at moments that nobody chose
	beside bool       // batches are written while Expire works
	fails  int        // how many
	every  int        // looks at one in so many steps
	deep   int        // crashes again during the recovery in one of so many; 0: never

	// The lock of fs guards these.
	points, crashes int
	found           error // the first violation
	fault           func(op, name string) error
}

func newEnumeration(t testing.TB, seed uint64) *enumeration {
	e := &enumeration{t: t, fs: newCrashFS(), rng: rand.New(rand.NewPCG(seed, 1)), dice: rand.New(rand.NewPCG(seed, 2)), every: 1, deep: 64}
	e.memory.now = 1_000_000
	e.cfg = config("/j", e.fs)
	e.cfg.SegmentBytes, e.cfg.SealAge = 1500, 10*time.Second
	e.fs.before = e.before
	return e
}

// before looks at the crashes that are possible now, then lets the step fail if it is its turn. The file system is locked.
func (e *enumeration) before(op, name string) error {
	e.points++
	if e.found == nil && e.points%e.every == 0 {
		e.look(e.fs, fmt.Sprintf("before step %d (%s %s)", e.points, op, name), e.deep > 0 && e.points/e.every%e.deep == 0)
	}
	if e.fault != nil {
		return e.fault(op, name)
	}
	return nil
}

// look reads what each crash leaves of a file system whose lock is held.
func (e *enumeration) look(f *crashFS, where string, deep bool) {
	e.memory.mu.Lock()
	defer e.memory.mu.Unlock()
	e.recoverAll(f, where, deep)
}

// recoverAll recovers from every crash that is possible now.
func (e *enumeration) recoverAll(f *crashFS, where string, deep bool) {
	crashes := f.crashes()
	for _, c := range crashes {
		e.recover(f.after(c, e.dice), fmt.Sprintf("%s, %s", where, c), deep, e.dice.IntN(4) == 0)
	}
	if len(crashes) > 1 { // else it is the same
		e.recover(f.killed(), where+", killed", deep, true)
	}
}

// recover starts a journal on what a crash left, compares, then, if again, loses what the recovery has not made durable itself.
func (e *enumeration) recover(f *crashFS, where string, deep, again bool) {
	e.crashes++
	if e.found != nil {
		return
	}
	cfg := e.cfg
	cfg.FS = f
	if deep {
		// The recovery is interrupted as well.
		f.before = func(op, name string) error {
			e.recoverAll(f, fmt.Sprintf("%s, then while that is recovered before %s %s", where, op, name), false)
			return nil
		}
	}
	j, s, err := e.memory.read(cfg)
	if err == nil {
		err = e.memory.check(j, s)
	}
	if err == nil && deep {
		err = e.goOn(j)
	}
	if j != nil {
		_ = j.Close()
	}
	if err == nil && again {
		cfg.FS = f.after(crash{everything, everything}, e.dice)
		var later *seen
		j, later, err = e.memory.read(cfg)
		if err == nil {
			err = e.memory.gone(s, later)
		}
		if j != nil {
			_ = j.Close()
		}
		if err != nil {
			err = fmt.Errorf("after a recovery and a power loss: %w", err)
		}
	}
	if err != nil && e.found == nil {
		e.found = fmt.Errorf("%s: %w", where, err)
	}
}

// goOn shows that a recovered journal takes batches and expires.
func (e *enumeration) goOn(j *journal.Journal) error {
	r := run(j)
	defer func() {
		r.stop()
		<-r.done
	}()
	if err := r.Append(context.Background(), &journal.Batch{}); err != nil {
		return fmt.Errorf("append after the recovery: %w", err)
	}
	if err := r.Expire(context.Background(), e.memory.now); err != nil {
		return fmt.Errorf("expire after the recovery: %w", err)
	}
	return nil
}

// start starts the journal of the history.
func (e *enumeration) start() (running, error) {
	j, s, err := e.memory.read(e.cfg)
	if err == nil {
		if err = e.memory.check(j, s); err != nil {
			e.end(err)
		}
	}
	if err != nil {
		if j != nil {
			_ = j.Close()
		}
		return running{}, fmt.Errorf("start: %w", err)
	}
	e.memory.mu.Lock()
	e.memory.opened, e.memory.inc = true, j.Incarnation()
	e.memory.mu.Unlock()
	return run(j), nil
}

// batch makes the next batch of the history.
func (e *enumeration) batch() (*journal.Batch, *sent) {
	m := &e.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &sent{first: uint64(len(m.owner)), n: uint64(e.rng.IntN(4))}
	if e.rng.IntN(20) == 0 {
		s.n = 60
	}
	b := &journal.Batch{}
	for n := range s.n {
		deadline := m.now + e.rng.Int64N(2*3600)
		switch e.rng.IntN(16) {
		case 0:
			deadline += 90 * 86400
		case 1:
			deadline += 1000 * 86400
		}
		s.deadlines = append(s.deadlines, deadline)
		b.Records = append(b.Records, record(s.first+n, deadline)...)
		m.owner = append(m.owner, len(m.batches))
	}
	if e.rng.IntN(3) == 0 {
		s.key, s.deletes = fmt.Sprint("key", e.rng.IntN(5)), e.rng.IntN(5) == 0
		var value []byte
		if !s.deletes {
			value = make([]byte, 8+e.rng.IntN(64))
			binary.LittleEndian.PutUint64(value, uint64(len(m.batches)))
		}
		b.Meta = []journal.Meta{{Key: s.key, Value: value}}
	}
	m.batches = append(m.batches, s)
	return b, s
}

// write appends a group of batches at once and waits for them.
func (e *enumeration) write(j running, group int) error {
	var wg sync.WaitGroup
	var failed error
	for range group {
		b, s := e.batch()
		wg.Add(1)
		refused := j.AppendAsync(b, func(failure error) {
			e.memory.mu.Lock()
			s.acked, s.failed = failure == nil, failure != nil
			if failure != nil {
				failed = failure
			}
			e.memory.mu.Unlock()
			wg.Done()
		})
		if refused != nil {
			e.memory.mu.Lock()
			s.failed, failed = true, refused
			e.memory.mu.Unlock()
			wg.Done()
		}
	}
	wg.Wait()
	return failed
}

// history runs operations: batches alone and in groups, expiry, orderly ends, kills, and starts.
func (e *enumeration) history(operations int) {
	j, err := e.start()
	if err != nil && e.faults {
		e.setFault(nil)
		j, err = e.start()
	}
	if e.end(err); err != nil {
		return
	}
	for done := 0; done < operations && e.violation() == nil; {
		if e.random && e.rng.IntN(12) == 0 {
			e.fail()
		}
		done++
		switch dice := e.rng.IntN(100); {
		case dice < 70:
			err = e.write(j, 1)
		case dice < 85:
			group := 2 + e.rng.IntN(6)
			err = e.write(j, group)
			done += group - 1
		case dice < 97:
			e.memory.mu.Lock()
			e.memory.now += e.rng.Int64N(400)
			now := e.memory.now
			e.memory.mu.Unlock()
			expired := make(chan error, 1)
			go func() { expired <- j.Expire(context.Background(), now) }()
			if !e.beside {
				err = <-expired
				break
			}
			err = e.write(j, 1+e.rng.IntN(4))
			err = errors.Join(err, e.write(j, 1), <-expired)
		default:
			err = nil
			j = e.restart(j, dice == 97)
		}
		if err == nil {
			continue
		}
		if !e.faults {
			e.end(err)
			break
		}
		// The cause goes away; if the journal does not go on by itself, a start must.
		e.setFault(nil)
		if j.Err() != nil && !errors.Is(j.Err(), journal.ErrFull) {
			j = e.restart(j, e.rng.IntN(2) == 0)
		}
	}
	e.setFault(nil)
	if j.Journal != nil {
		j.stop()
		<-j.done
		_ = j.Close()
	}
	e.fs.mu.Lock()
	e.look(e.fs, "at the end", e.deep > 0)
	e.fs.mu.Unlock()
}

// restart ends a journal, in an orderly way or as a kill does, and starts it again.
func (e *enumeration) restart(j running, kill bool) running {
	old := e.fs
	old.mu.Lock()
	if kill {
		e.fs = old.killed()
		e.fs.before, e.fs.lies = old.before, old.lies
		old.before = nil // it belongs to a process that is dead
		e.cfg.FS = e.fs
	}
	old.mu.Unlock()
	j.stop()
	<-j.done
	_ = j.Close()
	j, err := e.start()
	if err != nil && e.faults {
		e.setFault(nil)
		j, err = e.start()
	}
	e.end(err)
	return j
}

func (e *enumeration) end(err error) {
	e.fs.mu.Lock()
	defer e.fs.mu.Unlock()
	if e.found == nil {
		e.found = err
	}
}

func (e *enumeration) violation() error {
	e.fs.mu.Lock()
	defer e.fs.mu.Unlock()
	return e.found
}

func (e *enumeration) setFault(fault func(op, name string) error) {
	e.fs.mu.Lock()
	defer e.fs.mu.Unlock()
	e.fault = fault
}

// failAt makes the file system fail at one step, or from it on until an operation fails.
func (e *enumeration) failAt(step int, errno error, once bool) {
	e.setFault(func(op, _ string) error {
		if e.points < step || once && e.points > step || op == "remove" && errno == syscall.ENOSPC || op == "truncate" && errno == syscall.ENOSPC {
			return nil
		}
		e.fails++
		return errno
	})
}

// fail makes the file system fail at one of the next steps, once, or until the next failure of an operation.
func (e *enumeration) fail() {
	after := e.rng.IntN(6)
	errno := []error{syscall.EIO, syscall.ENOSPC}[e.rng.IntN(2)]
	once := e.rng.IntN(2) == 0
	e.setFault(func(op, _ string) error {
		if after--; after >= 0 || op == "remove" && errno == syscall.ENOSPC || op == "truncate" && errno == syscall.ENOSPC {
			return nil
		}
		if once {
			e.fault = nil
		}
		e.fails++
		return errno
	})
}

// factor is how much more than by default is to be done.
func factor(t testing.TB) int {
	text := os.Getenv("REVOKD_CRASH_FACTOR")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatal("REVOKD_CRASH_FACTOR: want a whole number from 1")
	}
	return n
}

// TestCrashes looks at every write and sync of histories of 2000 operations.
func TestCrashes(t *testing.T) {
	for i := range 3 * factor(t) {
		t.Run(fmt.Sprint("history", i), func(t *testing.T) {
			t.Parallel()
			e := newEnumeration(t, uint64(i))
			e.faults, e.random, e.beside, e.every = i%3 == 2, i%3 == 2, i%3 == 1, sparse
			e.history(2000)
			t.Logf("%d batches, %d records, %d steps, %d crashes, %d injected failures", len(e.memory.batches), len(e.memory.owner), e.points, e.crashes, e.fails)
			if err := e.violation(); err != nil {
				t.Fatal(err)
			}
			// A run that did little proves little.
			if e.points < 2000 || e.faults && e.fails < 50 {
				t.Error("invalid run")
			}
		})
	}
}

// TestCrashesFindMutants: the same enumeration finds each of these bugs, and each sync that is left out.
func TestCrashesFindMutants(t *testing.T) {
	for _, name := range []string{"ack-before-write", "no-fsync", "no-dir-fsync", "ignore-fsync", "retry-fsync", "replay-skip-last", "unlink-first"} {
		mustFind(t, name, func(e *enumeration) { e.cfg = journal.WithMutant(e.cfg, name) })
	}
	in := func(dir string) func(string, string) bool {
		return func(_, name string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
	}
	for name, lies := range map[string]func(op, name string) bool{
		"no sync of segments":         func(op, name string) bool { return op == "sync" && in("/j/wal")(op, name) },
		"no sync of expiry files":     func(op, name string) bool { return op == "sync" && in("/j/exp")(op, name) },
		"no sync of FORMAT":           func(op, name string) bool { return op == "sync" && name == "/j/FORMAT.tmp" },
		"no sync of names in wal/":    func(op, name string) bool { return op == "syncdir" && name == "/j/wal" },
		"no sync of names in exp/":    func(op, name string) bool { return op == "syncdir" && name == "/j/exp" },
		"no sync of names in the dir": func(op, name string) bool { return op == "syncdir" && name == "/j" },
		"no sync of the dir's name":   func(op, name string) bool { return op == "syncdir" && name == "/" },
	} {
		mustFind(t, name, func(e *enumeration) { e.fs.lies = lies })
	}
}

// mustFind runs histories until one shows the bug.
func mustFind(t *testing.T, name string, infect func(*enumeration)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		for seed := range uint64(4) {
			e := newEnumeration(t, 100+seed)
			e.faults, e.random = seed%2 == 0, seed%2 == 0
			infect(e)
			e.history(2000)
			if err := e.violation(); err != nil {
				t.Logf("found after %d steps and %d crashes: %v", e.points, e.crashes, err)
				return
			}
		}
		t.Error("nobody noticed")
	})
}
