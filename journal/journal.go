package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/internal/faults"
)

// Limits that are part of the format or keep memory bounded.
const (
	MaxMetaKey   = 128      // bytes of a key
	MaxMetaValue = 64 << 10 // bytes of a value
	MaxMetaTotal = 16 << 20 // bytes of all keys and values together
	MaxBatch     = 4 << 20  // bytes of a batch, records and metadata

	maxRecordSize = 64 << 10
	maxGroupBytes = 8 << 20 // of the batches that one frame commits together
)

// Config configures a [Journal]. Zero fields mean the defaults.
type Config struct {
	_ struct{}

	Dir    string
	FS     FS // nil: the operating system's
	Logger hclog.Logger

	RecordSize int    // bytes of every record; required, at most 64 KiB
	KeyID      uint64 // of whatever makes the records meaningful; a directory with another one is refused

	// Deadline returns the Unix second up to which a record must be kept; it may go when guarded time has passed it.
	// It may be called concurrently, and must return the same for the same bytes. Nil: records stay for ever.
	Deadline func(record []byte) int64
	// Live, if set, is asked before a record is written again whether it is still needed, and may be called concurrently. One that is not
	// must be superseded by another that is durable. Nil: all are needed up to their deadlines.
	Live func(record []byte) bool
	// Assign, if set, is called in commit order before a batch is encoded. It may write into the batch's
	// records and append to its metadata.
	Assign func(*Batch)
	// Committed, if set, is called in commit order when a batch is durable or has failed, once for every batch that
	// the journal took, before Append returns. A batch that failed may be found by a later Replay or not.
	Committed func(*Batch, error)

	SegmentBytes int64         // a segment that has reached it is closed; 64 MiB
	SealAge      time.Duration // how long a closed segment is left alone, by Expire's clock; 15 minutes
	QueueBatches int           // batches that wait; 16384
	QueueBytes   int           // their bytes; 64 MiB

	mutant func(name string) bool // bugs that tests switch on
}

func (c *Config) validate() error {
	switch {
	case c.Dir == "":
		return errors.New("journal: Dir is empty")
	case c.RecordSize <= 0 || c.RecordSize > maxRecordSize:
		return fmt.Errorf("journal: RecordSize %d is not between 1 and %d", c.RecordSize, maxRecordSize)
	case c.SegmentBytes < 0 || c.SealAge < 0 || c.QueueBatches < 0 || c.QueueBytes < 0:
		return errors.New("journal: a limit is negative")
	case c.QueueBytes != 0 && c.QueueBytes < MaxBatch:
		return fmt.Errorf("journal: QueueBytes %d is less than one batch, %d", c.QueueBytes, MaxBatch)
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Deadline == nil {
		c.Deadline = func([]byte) int64 { return 1<<63 - 1 }
	}
	if c.Live == nil {
		c.Live = func([]byte) bool { return true }
	}
	if c.Assign == nil {
		c.Assign = func(*Batch) {}
	}
	if c.Committed == nil {
		c.Committed = func(*Batch, error) {}
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 64 << 20
	}
	if c.SealAge == 0 {
		c.SealAge = 15 * time.Minute
	}
	if c.QueueBatches == 0 {
		c.QueueBatches = 16384
	}
	if c.QueueBytes == 0 {
		c.QueueBytes = 64 << 20
	}
	if c.mutant == nil {
		c.mutant = faults.Mutant
	}
	return nil
}

// Journal is an open journal: see the package comment.
type Journal struct {
	cfg  Config
	dir  directory
	log  hclog.Logger
	lock Lock

	incarnation Incarnation

	committer committer // belongs to the goroutine of Replay, then to that of Run
	wake      chan struct{}

	// maintenance is held by Expire, by Backup while it looks at the files, and by Close. It comes before mu.
	maintenance sync.Mutex
	dropped     uint64   // segments with smaller numbers are not needed; with maintenance
	buried      []string // names of what has expired that stand until the next commit of files; with maintenance

	mu       sync.Mutex
	image    *image // until Replay
	replayed bool
	started  chan struct{} // closed by Run, and by Close without it
	running  chan struct{} // closed when Run has returned; nil before
	stop     func()        // ends Run
	closed   bool          // takes no batches
	released bool          // Close was called
	queue    []*Batch
	queued   int // bytes in queue and in the commit that is under way
	waiting  int // batches in both
	meta     metadata
	sealed   []segment // segments that take no more frames and are not partitioned yet, oldest first
	active   segment   // the one that is written; seq 0: none
	files    []*expiryFile
	failure  error // why writes are refused now
	cut      int64 // see Stats
	latched  bool  // they are refused for good
	nextID   uint64
	stats    counters
}

// Open takes the lock of a directory, makes a journal in it if it is empty, and reads the metadata. It starts
// nothing. Errors match [ErrLocked], [ErrNewerFormat], [ErrKeyMismatch], [ErrRecordSize], [ErrFull] or
// [ErrDisk], or are a [*DamageError].
func Open(cfg Config) (*Journal, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	j := &Journal{cfg: cfg, dir: newDirectory(cfg.FS, cfg.Dir), log: cfg.Logger, wake: make(chan struct{}, 1), started: make(chan struct{})}
	j.committer.init(j)
	if err := j.open(); err != nil {
		if j.lock != nil {
			j.lock.Close()
		}
		return nil, fmt.Errorf("open the journal in %s: %w", cfg.Dir, err)
	}
	return j, nil
}

func (j *Journal) open() (err error) {
	want := format{recordSize: j.cfg.RecordSize, keyID: j.cfg.KeyID}
	_, err = j.dir.readFormat()
	if notExist(err) {
		if err := j.dir.make(); err != nil {
			return diskError("make the directory", err)
		}
	}
	if j.lock, err = j.dir.fs.Lock(j.dir.path(lockName), true); err != nil {
		if errors.Is(err, ErrLocked) {
			return err
		}
		return diskError("take the lock", err)
	}
	// Again, under the lock.
	have, err := j.dir.readFormat()
	switch {
	case notExist(err):
		want.incarnation = newIncarnation()
		if have, err = want, j.create(want); err != nil {
			return err
		}
	case errors.Is(err, ErrNewerFormat):
		return err
	case errors.Is(err, errFormat):
		return &DamageError{[]Damage{{File: formatName, Reason: err.Error()}}}
	case err != nil:
		return diskError("read "+formatName, err)
	case have.keyID != want.keyID:
		return fmt.Errorf("%w: it has key %016x, not %016x", ErrKeyMismatch, have.keyID, want.keyID)
	case have.recordSize != want.recordSize:
		return fmt.Errorf("%w: %d bytes, not %d", ErrRecordSize, have.recordSize, want.recordSize)
	}
	j.incarnation = have.incarnation
	if j.image, err = j.dir.inspect(have); err != nil {
		return err
	}
	if err := j.probe(); err != nil {
		return err
	}
	j.meta = j.image.meta
	j.committer.continueFrom(j.image)
	return nil
}

// create makes the first segment, then FORMAT, which says that this is a journal. What an interrupted attempt left can
// go: it is at most the head of a first segment. More than that means that FORMAT was lost.
func (j *Journal) create(f format) error {
	l, err := j.dir.list()
	if err != nil {
		return err
	}
	var b frameBuilder
	b.recordSize = f.recordSize
	first := head{format: f}
	name := segment{seq: 1}.name()
	lost := &DamageError{[]Damage{{File: formatName, Reason: "the file is missing"}}}
	switch {
	case len(l.exp)+len(l.buried) > 0 || len(l.wal) > 1:
		return lost
	case len(l.wal) == 1:
		size, err := j.dir.size(name)
		if err != nil && !notExist(err) {
			return err
		}
		frame, err := first.encode(&b, 1)
		if err != nil {
			return err
		}
		if l.wal[0] != 1 || size > int64(len(frame)) {
			return lost
		}
		if err := j.dir.fs.Remove(j.dir.path(name)); err != nil {
			return diskError("remove an interrupted start", err)
		}
	}
	file, err := createSegment(j.dir, segment{seq: 1}.name(), 1, first, &b)
	if err == nil {
		err = file.Sync()
		err = errors.Join(err, file.Close())
	}
	if err == nil {
		err = j.dir.fs.SyncDir(j.dir.path(walDir))
	}
	if err != nil {
		return diskError("make the first segment", err)
	}
	if err := j.dir.writeFormat(f); err != nil {
		return diskError("write "+formatName, err)
	}
	return nil
}

// probe fails if the directory cannot be written, which is better known before the records are read. No space is
// not a failure: it may return, and checks go on without it.
func (j *Journal) probe() error {
	name := j.dir.path(walDir, "probe"+tempSuffix)
	if err := j.dir.fs.Remove(name); err != nil && !notExist(err) {
		return diskError("write in the directory", err)
	}
	f, err := j.dir.fs.Create(name)
	if err == nil {
		err = errors.Join(f.Close(), j.dir.fs.Remove(name))
	}
	if err != nil && !isFull(err) {
		return diskError("write in the directory", err)
	}
	return nil
}

// Incarnation is the number of the directory: a new one means that it may hold less than was acknowledged.
func (j *Journal) Incarnation() Incarnation { return j.incarnation }

// Get returns a durable metadata value; the caller owns it.
func (j *Journal) Get(key string) ([]byte, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	v, ok := j.meta.entries[key]
	if !ok || isOwn(key) {
		return nil, false
	}
	return append([]byte{}, v...), true
}

// Keys lists the keys of the durable metadata that begin with prefix, in order.
func (j *Journal) Keys(prefix string) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var keys []string
	for k := range j.meta.entries {
		if strings.HasPrefix(k, prefix) && !isOwn(k) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func isOwn(key string) bool { return strings.HasPrefix(key, "\x00") }

// Err says why writes are refused now, nil if they are not. It matches [ErrFull], and ends by itself when
// space returns, or [ErrDisk]: for want of memory or open files it ends by itself too, else it stays until the journal is opened again.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failure
}

// Close ends Run, waits for it and for Expire, and gives the lock back. A journal that never ran fails what is queued with
// [ErrClosed]. Closing twice is harmless.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closed = true
	running, stop := j.running, j.stop
	j.mu.Unlock()
	if running != nil {
		stop()
		<-running
	}
	j.maintenance.Lock()
	defer j.maintenance.Unlock()
	j.mu.Lock()
	released := j.released
	j.released = true
	if running == nil && !released {
		close(j.started)
	}
	j.mu.Unlock()
	if released {
		return nil
	}
	for group := j.take(); len(group) > 0; group = j.take() {
		for _, b := range group {
			j.finish(b, ErrClosed)
		}
	}
	j.committer.closeFile()
	return j.lock.Close()
}

// Replay passes every record to fn, in any order and some of them twice, then makes sure that all of it is durable. It
// runs once, before Run. The metadata of [Journal.Get] is complete before the first record. fn must not
// keep the slice; its error ends the replay. progress may be nil; it is
// called before the first record too.
//
// Damage ends in a [*DamageError] after everything else has been passed to fn.
func (j *Journal) Replay(ctx context.Context, fn func(records []byte) error, progress func(Progress)) (ReplayStats, error) {
	j.mu.Lock()
	m := j.image
	closed := j.closed
	j.image = nil
	j.mu.Unlock()
	switch {
	case closed:
		return ReplayStats{}, ErrClosed
	case m == nil:
		return ReplayStats{}, ErrNotReplayed
	}
	r := &replay{ctx: ctx, dir: j.dir, image: m, fn: fn, report: progress, skipLast: j.cfg.mutant("replay-skip-last"), skipDamage: j.cfg.mutant("skip-damage")}
	stats, err := r.run()
	if err != nil {
		return stats, fmt.Errorf("replay the journal: %w", err)
	}
	if m.cut.bytes > 0 {
		last := m.segments[len(m.segments)-1]
		j.log.Warn("cut a torn tail of the journal", "file", last.name(), "offset", m.cut.offset, "bytes", m.cut.bytes)
	}
	return stats, j.adopt(m)
}

// adopt takes over what was replayed, begins a new segment, and removes what nothing needs. Files that existed
// before are never written again, except that those of exp/ grow behind their valid length.
func (j *Journal) adopt(m *image) error {
	sealed := slices.Clone(m.segments)
	last := &sealed[len(sealed)-1]
	if m.void {
		sealed = sealed[:len(sealed)-1]
	} else {
		last.end = m.next.length
	}
	files := make([]*expiryFile, len(m.files))
	for i, f := range m.files {
		files[i] = &expiryFile{expFile: f}
	}
	// Segments and files that were buried are not in it any more.
	manifest := manifest{from: m.segments[0].seq, files: m.files}
	j.mu.Lock()
	j.sealed, j.files, j.dropped = sealed, files, manifest.from
	j.cut = m.cut.bytes
	j.meta.set(Meta{keyFiles, manifest.marshal()})
	j.mu.Unlock()
	// The names are durable only now if the process before this one did not live to sync them.
	for _, d := range []string{j.dir.path(walDir), j.dir.path(expDir), j.dir.root} {
		if err := j.committer.syncDir(d); err != nil {
			return diskError("sync a directory", err)
		}
	}
	// On a full disk the next head has to wait. It would repeat the last frame, which this makes durable too, unless
	// a failed sync has made the system forget that it is not.
	if err := j.committer.syncFile(m.segments[len(m.segments)-1].name()); err != nil {
		return diskError("sync the last segment", err)
	}
	if err := j.committer.begin(); err != nil && j.latched {
		return err
	} else if err == nil {
		j.remove(m.unused())
		if m.void {
			j.remove([]string{m.segments[len(m.segments)-1].name()})
		}
	}
	j.mu.Lock()
	j.replayed = true
	j.mu.Unlock()
	return nil
}

// remove unlinks files that the log does not need. What stays because of a failure is removed after the next start.
func (j *Journal) remove(names []string) {
	for _, name := range names {
		if err := j.dir.fs.Remove(j.dir.path(name)); err != nil && !notExist(err) {
			j.log.Warn("a file that is no longer needed stays", "file", name, "error", err)
		}
	}
}

func (d directory) size(name string) (int64, error) {
	f, err := d.fs.Open(d.path(name), false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Size()
}

// newID returns a number for a file that no file had before.
func (j *Journal) newID() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.nextID++
	return j.nextID
}
