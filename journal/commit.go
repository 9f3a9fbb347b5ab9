package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// How often the journal looks whether space has returned: with batches waiting, and without.
const (
	retryFull = 100 * time.Millisecond
	probeFull = time.Second
)

// head is the content of the first frame of a segment.
type head struct {
	format  format
	prev    prev
	meta    metadata
	records []byte // of a frame behind prev that may not be durable there
}

func (h head) encode(b *frameBuilder, seq uint64) ([]byte, error) {
	b.begin(frameHead, seq)
	b.addRecords(h.records)
	b.addEntry(keyFormat, h.format.marshal())
	b.addEntry(keyPrev, h.prev.marshal())
	for _, key := range h.meta.keys() {
		b.addEntry(key, h.meta.entries[key])
	}
	return b.finish(0)
}

// createSegment makes a file with a head, neither of them durable yet.
func createSegment(d directory, name string, seq uint64, h head, b *frameBuilder) (File, error) {
	frame, err := h.encode(b, seq)
	if err != nil {
		return nil, err
	}
	file, err := d.fs.Create(d.path(name))
	if err != nil {
		return nil, err
	}
	if _, err := file.WriteAt(frame, 0); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// committer writes the segments. One goroutine uses it; what others read is in Journal under mu.
type committer struct {
	j       *Journal
	builder frameBuilder
	file    File  // of Journal.active; nil: none, the next commit begins a segment
	start   int64 // where its head ends
	empty   bool  // it has no commit behind its head
	// What the head of the active segment says; without one, the next head.
	base  prev
	carry []byte // records behind base that must be repeated
	block lastBlock

	spare string    // a segment that the next head makes superfluous
	tried time.Time // when a segment could not be begun
	roll  bool
}

// lastBlock is what the last block of the active segment holds. A failed write of a frame may harm all of its first block, and with it
// frames that were acknowledged: these are repeated in another file.
type lastBlock struct {
	frames  []blockFrame
	records []byte // of all frames
}

type blockFrame struct {
	offset, end int64
	records     int // bytes
}

// add takes a durable frame into account.
func (l *lastBlock) add(offset int64, size int, records []byte) {
	end := offset + int64(size)
	n, bytes := 0, 0
	for n < len(l.frames) && l.frames[n].end <= end/ioBlock*ioBlock {
		bytes += l.frames[n].records
		n++
	}
	l.frames = slices.Delete(l.frames, 0, n)
	l.records = slices.Delete(l.records, 0, bytes)
	if cap(l.records) > 1<<20 && len(l.records) < ioBlock {
		l.records = slices.Clone(l.records)
	}
	if end%ioBlock != 0 {
		l.frames = append(l.frames, blockFrame{offset, end, len(records)})
		l.records = append(l.records, records...)
	}
}

func (c *committer) init(j *Journal) {
	c.j = j
	c.builder.recordSize = j.cfg.RecordSize
}

func (c *committer) continueFrom(m *image) {
	c.base, c.carry, c.j.nextID = m.next, m.tail, m.listing.maxID
	for _, f := range m.files {
		c.j.nextID = max(c.j.nextID, f.id)
	}
}

// Run commits what is queued until ctx ends, then what was queued by then, and returns nil. It runs once, after
// Replay. A disk that fails does not end it: see [Journal.Err].
func (j *Journal) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	j.mu.Lock()
	if j.closed || !j.replayed || j.running != nil {
		closed := j.closed
		j.mu.Unlock()
		if closed {
			return ErrClosed
		}
		return ErrNotReplayed
	}
	running := make(chan struct{})
	j.running, j.stop = running, stop
	close(j.started)
	j.mu.Unlock()
	defer close(running)

	probe := time.NewTicker(probeFull)
	defer probe.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			j.mu.Lock()
			j.closed = true
			j.mu.Unlock()
			ended = true
		case <-j.wake:
		case <-probe.C:
			j.committer.heal()
		}
		for group := j.take(); len(group) > 0; group = j.take() {
			for len(group) > 0 {
				group = group[j.committer.commit(group):]
			}
		}
	}
	j.committer.end()
	return nil
}

// commit makes some of the batches durable with one frame, or fails them, and returns how many.
func (c *committer) commit(group []*Batch) int {
	j := c.j
	if err := c.ready(slices.ContainsFunc(group, func(b *Batch) bool { return b.control != nil })); err != nil {
		for _, b := range group {
			j.finish(b, err)
		}
		return len(group)
	}
	n, refused := c.assign(group)
	if n > 0 {
		early := j.cfg.mutant("ack-before-write")
		if early {
			finishAll(j, group[:n], nil)
			time.Sleep(mutantPause)
		}
		err := c.write(group[:n])
		if !early {
			finishAll(j, group[:n], err)
		}
	}
	if refused != nil {
		j.finish(group[n], refused)
		n++
	}
	if c.roll {
		_ = c.ready(false) // shows in Err
	}
	return n
}

// mutantPause is how long the mutant that acknowledges first leaves the write for later, so that a kill falls in between.
const mutantPause = 5 * time.Millisecond

func finishAll(j *Journal, group []*Batch, err error) {
	for _, b := range group {
		j.finish(b, err)
	}
}

// assign lets the owner number the batches, up to one that has become invalid by it: that one fails after
// those before it are known, and before those after it are numbered.
func (c *committer) assign(group []*Batch) (n int, err error) {
	c.j.mu.Lock()
	total := c.j.meta.size
	c.j.mu.Unlock()
	size := 0
	for _, b := range group {
		if b.control != nil {
			n++
			continue
		}
		c.j.cfg.Assign(b)
		if err := b.check(c.j.cfg.RecordSize); err != nil {
			return n, err
		}
		size += b.bytes()
		// Replaced values are counted twice, which refuses a little early.
		for _, m := range b.Meta {
			if m.Value != nil {
				total += entryHeader + len(m.Key) + len(m.Value)
			}
		}
		if len(b.Meta) > 0 && total > MaxMetaTotal {
			return n, fmt.Errorf("%w: metadata of %d bytes in all, limit %d", ErrInvalid, total, MaxMetaTotal)
		}
		if size > maxFrame/2 {
			return n, fmt.Errorf("%w: a commit of %d bytes, limit %d", ErrInvalid, size, maxFrame/2)
		}
		n++
	}
	return n, nil
}

// write writes one frame, makes it durable and takes it into account.
func (c *committer) write(group []*Batch) error {
	j := c.j
	b := &c.builder
	b.begin(frameData, j.active.seq)
	records := 0
	for _, batch := range group {
		b.addRecords(batch.Records)
		records += len(batch.Records) / j.cfg.RecordSize
	}
	for _, batch := range group {
		for _, m := range batch.Meta {
			b.addEntry(m.Key, m.Value)
		}
		if batch.control != nil {
			if batch.control.files != nil {
				b.addEntry(keyFiles, batch.control.files)
			}
			c.roll = c.roll || batch.control.roll
		}
	}
	if len(b.buf) == headerSize {
		return nil // nothing to write
	}
	frame, err := b.finish(j.active.end)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.put(frame); err != nil {
		return c.failed(err)
	}
	took := time.Since(began)
	c.empty = false
	c.block.add(j.active.end, len(frame), frame[headerSize:headerSize+records*j.cfg.RecordSize])
	j.mu.Lock()
	defer j.mu.Unlock()
	j.active.end += int64(len(frame))
	for _, batch := range group {
		for _, m := range batch.Meta {
			j.meta.set(m)
		}
		if batch.control != nil && batch.control.files != nil {
			j.meta.set(Meta{keyFiles, batch.control.files})
			batch.control.apply()
		}
	}
	j.stats.commit(len(group), records, len(frame), took)
	b.shrink()
	return nil
}

// put writes at the end of the active segment and makes it durable.
func (c *committer) put(frame []byte) error {
	if _, err := c.file.WriteAt(frame, c.j.active.end); err != nil {
		return err
	}
	if err := c.sync(c.file); err != nil {
		return err
	}
	return c.linked()
}

// errUnlinked: somebody removed the directory or the file. Fresh files would hide that the older ones are gone.
var errUnlinked = errors.New("the segment's file was removed")

func (c *committer) linked() error {
	ok, err := c.file.Linked()
	if err == nil && !ok {
		err = errUnlinked
	}
	if err != nil {
		return err
	}
	return c.locked()
}

// errUnlocked: somebody removed the lock file, so another process may have the directory.
var errUnlocked = errors.New("the lock file was removed or replaced")

func (c *committer) locked() error {
	ok, err := c.j.lock.Linked()
	if err == nil && !ok {
		err = errUnlocked
	}
	return err
}

// failed gives up the active segment after a failed write or sync, and begins another one: whether the disk takes
// a fresh file decides whether the journal goes on. The file is never written again; the next head says how much of
// it counts, so that nothing of the failed commit is ever read, whole or torn.
func (c *committer) failed(err error) error {
	err = diskError("write the journal", err)
	c.abandon(true)
	c.note(err)
	if errors.Is(err, errUnlinked) || errors.Is(err, errUnlocked) {
		c.fail(err, true)
	} else {
		_ = c.begin() // shows in Err
	}
	return err
}

// abandon ends the active segment. After a failure the next head repeats what shares a block with it, even the whole segment.
func (c *committer) abandon(failed bool) {
	c.closeFile()
	j := c.j
	end := j.active.end
	whole := c.empty
	if failed && len(c.block.frames) > 0 {
		end = c.block.frames[0].offset
		whole = whole || end == 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case whole && c.empty:
		c.spare = j.active.name() // only a head: the next one repeats it
	case whole:
		c.spare = j.active.name()
		c.carry = slices.Clone(c.block.records) // those of the head are among them
	default:
		c.base, c.carry = prev{j.active.seq, end}, nil
		if failed {
			c.carry = slices.Clone(c.block.records)
		}
		s := j.active
		s.end = end
		j.sealed = append(j.sealed, s)
	}
	j.active = segment{}
}

// ready makes sure that there is a segment to write to. Without force it does not try for every batch on a full disk.
func (c *committer) ready(force bool) error {
	j := c.j
	if j.latched {
		return j.Err()
	}
	if c.file != nil && !c.empty && (j.active.end-c.start >= j.cfg.SegmentBytes || c.roll) {
		if err := c.linked(); err != nil {
			return c.failed(err)
		}
		c.abandon(false)
	}
	c.roll = false
	if c.file != nil {
		return nil
	}
	if err := j.Err(); err != nil && !force && time.Since(c.tried) < retryFull {
		return err
	}
	return c.begin()
}

// heal begins a segment if one is missing.
func (c *committer) heal() {
	if c.file == nil && !c.j.latched {
		_ = c.begin() // shows in Err
	}
}

// begin makes a new segment: file, head, fsync, its name, and fsync of the directory. A segment thus never has a
// torn head, and one without a head is damage. Until it has succeeded nothing is written anywhere. A failure for want of something
// that comes back, such as space, may be tried again: nothing counts that it left. Any other is final.
func (c *committer) begin() error {
	j := c.j
	seq := j.newID()
	s := segment{seq: seq}
	j.mu.Lock()
	h := head{
		format: format{recordSize: j.cfg.RecordSize, keyID: j.cfg.KeyID, incarnation: j.incarnation},
		prev:   c.base, meta: metadata{entries: j.meta.entries}, records: c.carry,
	}
	j.mu.Unlock() // only this goroutine changes the metadata
	began := time.Now()
	temp := s.name() + tempSuffix
	var file File
	err := c.locked()
	if err == nil {
		file, err = createSegment(j.dir, temp, seq, h, &c.builder)
	}
	if err == nil {
		if err = c.sync(file); err == nil {
			err = j.dir.fs.Rename(j.dir.path(temp), j.dir.path(s.name()))
		}
		if err == nil {
			err = c.syncDir(j.dir.path(walDir))
		}
		if err != nil {
			file.Close()
		}
	}
	if err != nil {
		// Its head may be found by the next start, which then goes on behind it: nothing was acknowledged meanwhile.
		_ = j.dir.fs.Remove(j.dir.path(temp))
		_ = j.dir.fs.Remove(j.dir.path(s.name()))
		err = diskError("begin a segment", err)
		c.tried = time.Now()
		c.note(err)
		c.fail(err, !isTransient(err))
		return err
	}
	c.file, c.start, c.empty = file, int64(len(c.builder.buf)), true
	c.block = lastBlock{}
	c.block.add(0, len(c.builder.buf), c.carry)
	s.end = c.start
	j.mu.Lock()
	healed := j.failure != nil
	j.active, j.failure = s, nil
	j.stats.segment(len(c.builder.buf), time.Since(began))
	j.mu.Unlock()
	if healed {
		j.log.Info("the journal writes again")
	}
	c.builder.shrink()
	if c.spare != "" {
		j.remove([]string{c.spare})
		c.spare = ""
	}
	return nil
}

// fail refuses writes from now on: for good, or until a segment can be begun.
func (c *committer) fail(err error, latch bool) {
	j := c.j
	j.mu.Lock()
	first := j.failure == nil || latch && !j.latched
	j.failure = err
	j.latched = j.latched || latch
	j.mu.Unlock()
	if first {
		j.log.Error("the journal refuses writes", "error", err, "for_good", latch)
	}
}

// note keeps a failure for Stats.
func (c *committer) note(err error) {
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	c.j.stats.failures++
	c.j.stats.lastError = err
}

// end closes the active segment with a frame that proves that everything before it was synced.
func (c *committer) end() {
	if c.file == nil || c.empty {
		return // a head alone says it already
	}
	c.builder.begin(frameEnd, c.j.active.seq)
	frame, err := c.builder.finish(c.j.active.end)
	if err == nil {
		err = c.put(frame)
	}
	if err != nil {
		c.note(diskError("end the journal", err)) // everything acknowledged is durable without it
	}
	c.closeFile()
}

func (c *committer) closeFile() {
	if c.file != nil {
		c.file.Close() // what matters was synced
		c.file = nil
	}
}

func (c *committer) sync(f File) error {
	if c.j.cfg.mutant("no-fsync") {
		return nil
	}
	err := f.Sync()
	if err != nil && c.j.cfg.mutant("retry-fsync") {
		err = f.Sync()
	}
	if err != nil && c.j.cfg.mutant("ignore-fsync") {
		return nil
	}
	return err
}

func (c *committer) syncDir(name string) error {
	if c.j.cfg.mutant("no-dir-fsync") {
		return nil
	}
	return c.j.dir.fs.SyncDir(name)
}

// syncFile makes durable what an earlier process wrote to a file.
func (c *committer) syncFile(name string) error {
	f, err := c.j.dir.fs.Open(c.j.dir.path(name), true)
	if err != nil {
		return err
	}
	return errors.Join(c.sync(f), f.Close())
}
