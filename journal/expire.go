package journal

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync/atomic"
	"time"
)

const (
	expiryFrame    = 64 << 10 // bytes of records in a frame of exp/: what one damaged byte can cost
	partitionBytes = 64 << 20 // of the segments that are sorted in one go, in memory
	compactFloor   = 64 << 10 // smaller buckets are not worth writing again
	maxBucketFiles = 4
	histogramSlots = 64
)

// expiryFile is a file of exp/. Expire owns it; what Stats and Backup read is guarded by Journal.mu.
type expiryFile struct {
	expFile
	closed bool                    // a write of it failed, or may have: never written again
	harmed bool                    // and that may have harmed the block where it ends: to be written again elsewhere
	counts *[histogramSlots]uint32 // records by deadline; nil: not counted yet
	gone   atomic.Bool             // its content has expired and was given back
}

func (f *expiryFile) path() string { return path.Join(expDir, f.name()) }

// change is what a step of Expire does to the files that count: it prepares new ones, one commit makes them
// count and the old ones not, then the old ones are removed. Whatever happens in between, the log describes a state
// in which every live record is in exactly the files that count.
type change struct {
	files  []*expiryFile // that count afterwards
	grown  map[*expiryFile]expFile
	made   []*expiryFile
	upTo   uint64   // segments up to this number are dropped; 0: none
	remove []string // afterwards
}

// Expire removes what has expired at now, in guarded Unix seconds: files of exp/ whose records have all expired go; closed
// segments that are old enough, or too many, are sorted into files by expiry without what has expired or is not needed; files
// most of whose records have expired are written again. It waits for Run, and goes on beside writes; calls
// wait for each other. It never removes a record whose deadline is now or later. An error leaves everything
// readable; the next call tries again.
func (j *Journal) Expire(ctx context.Context, now int64) error {
	select {
	case <-j.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	j.maintenance.Lock()
	defer j.maintenance.Unlock()
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		return fmt.Errorf("expire: %w", ErrClosed)
	}
	for _, step := range []func(context.Context, int64) error{j.release, j.partition, j.compact, j.rollOld} {
		if err := step(ctx, now); err != nil {
			return fmt.Errorf("expire: %w", err)
		}
	}
	return nil
}

// release drops the files whose bucket has passed.
func (j *Journal) release(ctx context.Context, now int64) error {
	var c change
	released := 0
	for _, f := range j.files {
		if f.end() <= now {
			c.remove = append(c.remove, f.path())
			released++
		} else {
			c.files = append(c.files, f)
		}
	}
	if released == 0 {
		return nil
	}
	if err := j.apply(&c); err != nil {
		return err
	}
	j.count(func(s *counters) { s.released += uint64(released) })
	return nil
}

// partition sorts closed segments into files by expiry.
func (j *Journal) partition(ctx context.Context, now int64) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		group := j.due(now)
		if len(group) == 0 {
			return nil
		}
		if err := j.sort(ctx, group, now); err != nil {
			return err
		}
	}
}

// due returns the oldest closed segments that are to be sorted now, as many as fit in memory. They wait until
// most of their records have expired; but not if they have become more than what lives, which keeps the space
// proportional to that.
func (j *Journal) due(now int64) []segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	var waiting, live int64
	for i := range j.sealed {
		s := &j.sealed[i]
		if s.seen == 0 || s.seen > now {
			s.seen = now
		}
		waiting += s.end
	}
	for _, f := range j.files {
		live += f.length
	}
	limit := max(4*j.cfg.SegmentBytes, live)
	var group []segment
	var size int64
	for _, s := range j.sealed {
		old := now-s.seen >= int64(j.cfg.SealAge/time.Second)
		if !old && waiting <= limit || len(group) > 0 && size+s.end > partitionBytes {
			break
		}
		waiting -= s.end
		size += s.end
		group = append(group, s)
	}
	return group
}

// sort writes what lives of some segments to files by expiry, and drops the segments.
func (j *Journal) sort(ctx context.Context, group []segment, now int64) error {
	buckets := map[bucket][]byte{}
	var buf []byte
	for _, s := range group {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := j.readRecords(source{s.name(), s.seq, s.end}, &buf, func(record []byte) error {
			if deadline := j.cfg.Deadline(record); deadline >= now && j.cfg.Live(record) {
				b := bucketOf(deadline, now)
				buckets[b] = append(buckets[b], record...)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	last := group[len(group)-1].seq
	c := change{files: slices.Clone(j.files), upTo: last}
	for _, s := range group {
		c.remove = append(c.remove, s.name())
	}
	if len(buckets) > 0 {
		if err := j.Err(); err != nil {
			return err // what was prepared now could not be made to count
		}
	}
	keys := make([]bucket, 0, len(buckets))
	for b := range buckets {
		keys = append(keys, b)
	}
	slices.SortFunc(keys, compareBuckets)
	kept := 0
	for _, b := range keys {
		if err := ctx.Err(); err != nil {
			j.discard(&c)
			return err
		}
		w, err := j.growing(&c, b)
		if err == nil {
			err = w.close(w.add(buckets[b]))
		}
		if err != nil {
			j.discard(&c)
			return diskError("write an expiry file", err)
		}
		kept += len(buckets[b]) / j.cfg.RecordSize
	}
	if err := j.apply(&c); err != nil {
		return err
	}
	j.count(func(s *counters) { s.partitioned += uint64(len(group)); s.kept += uint64(kept) })
	return nil
}

// compact writes buckets again most of whose records have expired, or that have many files, or one that a failed write may have harmed. Every record is written at most
// once more for that on average, since at least as many are left out.
func (j *Journal) compact(ctx context.Context, now int64) error {
	buckets := map[bucket][]*expiryFile{}
	for _, f := range j.files {
		buckets[f.bucket] = append(buckets[f.bucket], f)
	}
	for b, files := range buckets {
		if err := ctx.Err(); err != nil {
			return err
		}
		var size int64
		for _, f := range files {
			size += f.length
		}
		harmed := slices.ContainsFunc(files, func(f *expiryFile) bool { return f.harmed })
		if len(files) <= maxBucketFiles && !harmed && (b.start() >= now || size < compactFloor) {
			continue
		}
		var total, live int64
		for _, f := range files {
			if f.counts == nil {
				if err := j.tally(f); err != nil {
					return err
				}
			}
			for slot, n := range f.counts {
				total += int64(n)
				if slotEnd(b, slot) > now {
					live += int64(n)
				}
			}
		}
		if len(files) > maxBucketFiles || harmed || live*2 < total {
			if err := j.rewrite(ctx, b, files, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// slotWidth divides a bucket into slots; the last one has the rest, which is without end in the last bucket.
func slotWidth(b bucket) int64 { return (width(b.unit) + histogramSlots - 1) / histogramSlots }

func slotOf(b bucket, deadline int64) int {
	return int(min(max(deadline-b.start(), 0)/slotWidth(b), histogramSlots-1))
}

// slotEnd is the first second at which every deadline of a slot has passed.
func slotEnd(b bucket, slot int) int64 {
	if slot == histogramSlots-1 {
		return b.end()
	}
	return b.start() + int64(slot+1)*slotWidth(b)
}

func (j *Journal) tally(f *expiryFile) error {
	var counts [histogramSlots]uint32
	var buf []byte
	err := j.readRecords(source{f.path(), f.id, f.length}, &buf, func(record []byte) error {
		counts[slotOf(f.bucket, j.cfg.Deadline(record))]++
		return nil
	})
	if err == nil {
		f.counts = &counts
	}
	return err
}

// rewrite replaces the files of a bucket by one with what lives.
func (j *Journal) rewrite(ctx context.Context, b bucket, files []*expiryFile, now int64) error {
	if err := j.Err(); err != nil {
		return err
	}
	var c change
	for _, f := range j.files {
		if f.bucket != b {
			c.files = append(c.files, f)
		}
	}
	w, err := j.newFile(&c, b)
	if err != nil {
		j.discard(&c)
		return diskError("write an expiry file", err)
	}
	var buf, out []byte
	for _, f := range files {
		err = ctx.Err()
		if err == nil {
			err = j.readRecords(source{f.path(), f.id, f.length}, &buf, func(record []byte) error {
				if j.cfg.Deadline(record) >= now && j.cfg.Live(record) {
					out = append(out, record...)
				}
				if len(out) < expiryFrame {
					return nil
				}
				err := w.add(out)
				out = out[:0]
				return err
			})
		}
		if err != nil {
			break
		}
		c.remove = append(c.remove, f.path())
	}
	if err == nil {
		err = w.add(out)
	}
	if err = w.close(err); err != nil {
		j.discard(&c)
		var damage *DamageError
		if errors.As(err, &damage) || ctx.Err() != nil {
			return err
		}
		return diskError("write an expiry file", err)
	}
	if err := j.apply(&c); err != nil {
		return err
	}
	j.count(func(s *counters) { s.compacted += uint64(len(files)) })
	return nil
}

// rollOld closes the active segment if nothing filled it for long, so that what has expired in it goes too.
func (j *Journal) rollOld(_ context.Context, now int64) error {
	j.mu.Lock()
	s := &j.active
	if s.seen == 0 || s.seen > now {
		s.seen = now
	}
	old := s.seq != 0 && now-s.seen >= 4*int64(j.cfg.SealAge/time.Second)
	j.mu.Unlock()
	if !old {
		return nil
	}
	return j.commitControl(&control{roll: true})
}

// readRecords passes the records of a source to fn, and fails on damage: nothing is dropped that could not be read.
func (j *Journal) readRecords(s source, buf *[]byte, fn func(record []byte) error) error {
	damage, err := j.dir.read(s, j.cfg.RecordSize, buf, func(_ int64, f frame) error {
		for r := f.records; len(r) > 0; r = r[j.cfg.RecordSize:] {
			if err := fn(r[:j.cfg.RecordSize]); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && len(damage) > 0 {
		err = &DamageError{damage}
	}
	return err
}

// expiryWriter appends frames to a file of exp/.
type expiryWriter struct {
	j       *Journal
	change  *change
	target  *expiryFile
	file    File
	now     expFile // what it will be
	fresh   bool
	builder frameBuilder
}

// growing opens the file of a bucket behind its valid length, or makes one.
func (j *Journal) growing(c *change, b bucket) (*expiryWriter, error) {
	for _, f := range c.files {
		if f.bucket != b || f.closed {
			continue
		}
		file, err := j.dir.fs.Open(j.dir.path(f.path()), true)
		if err != nil {
			return nil, err
		}
		w := &expiryWriter{j: j, change: c, target: f, file: file, now: f.expFile}
		w.builder.recordSize = j.cfg.RecordSize
		// What an interrupted step left behind the valid length.
		size, err := file.Size()
		if err == nil && size > f.length {
			err = file.Truncate(f.length)
		}
		if err != nil {
			f.closed = true
			file.Close()
			return nil, err
		}
		return w, nil
	}
	return j.newFile(c, b)
}

func (j *Journal) newFile(c *change, b bucket) (*expiryWriter, error) {
	f := &expiryFile{expFile: expFile{bucket: b, id: j.newID()}}
	file, err := j.dir.fs.Create(j.dir.path(f.path()))
	if err != nil {
		return nil, err
	}
	c.made = append(c.made, f)
	c.files = append(c.files, f)
	w := &expiryWriter{j: j, change: c, target: f, file: file, now: f.expFile, fresh: true}
	w.builder.recordSize = j.cfg.RecordSize
	return w, nil
}

func (w *expiryWriter) add(records []byte) error {
	for len(records) > 0 {
		n := min(len(records), max(expiryFrame/w.j.cfg.RecordSize, 1)*w.j.cfg.RecordSize)
		w.builder.begin(frameExpiry, w.now.id)
		w.builder.addRecords(records[:n])
		frame, err := w.builder.finish(w.now.length)
		if err != nil {
			return err
		}
		if _, err := w.file.WriteAt(frame, w.now.length); err != nil {
			return err
		}
		w.now.length += int64(len(frame))
		w.now.records += int64(n / w.j.cfg.RecordSize)
		records = records[n:]
	}
	return nil
}

// close makes the file durable and notes in the change what it has become. With an error, or a failed sync, the
// file is not written again.
func (w *expiryWriter) close(err error) error {
	if err == nil {
		err = w.j.committer.sync(w.file)
	}
	if err != nil {
		w.target.closed = true
		if isFull(err) {
			_ = w.file.Truncate(w.target.length) // gives space back
		} else {
			w.target.harmed = true
		}
		w.file.Close()
		return err
	}
	w.file.Close()
	if w.change.grown == nil {
		w.change.grown = map[*expiryFile]expFile{}
	}
	w.change.grown[w.target] = w.now
	written := w.now.length - w.target.length
	w.j.count(func(s *counters) { s.written += uint64(written) })
	return nil
}

// discard gives up a change that cannot be found by a later start: what was made is removed, what grew is cut.
func (j *Journal) discard(c *change) {
	for _, f := range c.made {
		j.remove([]string{f.path()})
	}
	for f := range c.grown {
		if slices.Contains(c.made, f) {
			continue
		}
		if file, err := j.dir.fs.Open(j.dir.path(f.path()), true); err == nil {
			_ = file.Truncate(f.length) // else the next writer does it
			file.Close()
		}
	}
}

// apply commits a change and then removes what does not count any more.
func (j *Journal) apply(c *change) error {
	if len(c.made) > 0 {
		if err := j.committer.syncDir(j.dir.path(expDir)); err != nil {
			j.discard(c)
			return diskError("sync a directory", err)
		}
	}
	files := make([]*expiryFile, 0, len(c.files))
	m := manifest{from: max(j.dropped, c.upTo+1)}
	for _, f := range c.files {
		state := f.expFile
		if grown, ok := c.grown[f]; ok {
			state = grown
		}
		if state.length == 0 {
			c.remove = append(c.remove, f.path())
			continue
		}
		files = append(files, f)
		m.files = append(m.files, state)
	}
	control := &control{files: m.marshal(), apply: func() {
		j.files = files
		for f, grown := range c.grown {
			f.expFile, f.counts = grown, nil
		}
		j.drop(c.upTo)
	}}
	if j.cfg.mutant("unlink-first") {
		j.remove(c.remove)
	}
	err := j.commitControl(control)
	if errors.Is(err, ErrFull) && len(c.made)+len(c.grown) == 0 {
		if err = j.bury(c); err == nil {
			err = j.commitControl(control)
		}
	}
	switch {
	case err == nil:
		j.remove(append(c.remove, j.buried...))
		j.buried = nil
	case j.Err() == nil:
		j.discard(c) // a new head has made the failed commit void
	default:
		// The next start may find the commit or not: what it names must stay as it is.
		for f := range c.grown {
			f.closed = true
		}
	}
	return err
}

// drop forgets the segments up to a number. mu is held.
func (j *Journal) drop(upTo uint64) {
	j.sealed = slices.DeleteFunc(j.sealed, func(s segment) bool { return s.seq <= upTo })
	j.dropped = max(j.dropped, upTo+1)
}

// bury gives back the space of files whose records have all expired when there is no space to say so in the log:
// first the name says it, which needs none; then the content goes. The name stays until the log says it too.
func (j *Journal) bury(c *change) error {
	j.mu.Lock()
	upTo := c.upTo
	if n := len(j.sealed); upTo > 0 && j.active.seq == 0 && j.sealed[n-1].seq <= upTo {
		upTo = j.sealed[n-1].seq - 1 // the newest segment is the only one that has all metadata
	}
	j.mu.Unlock()
	var names []string
	for _, name := range c.remove {
		if seq, ok := parseWalName(path.Base(name)); !ok || seq <= upTo {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if err := j.dir.fs.Rename(j.dir.path(name), j.dir.path(name+buriedSuffix)); err != nil && !notExist(err) {
			return diskError("give space back", err)
		}
		j.buried = append(j.buried, name+buriedSuffix)
	}
	for _, sub := range []string{walDir, expDir} {
		if err := j.committer.syncDir(j.dir.path(sub)); err != nil {
			return diskError("sync a directory", err)
		}
	}
	j.mu.Lock()
	j.files = slices.DeleteFunc(slices.Clone(j.files), func(f *expiryFile) bool {
		gone := slices.Contains(names, f.path())
		f.gone.Store(gone)
		return gone
	})
	j.drop(upTo)
	j.mu.Unlock()
	for _, name := range names {
		file, err := j.dir.fs.Open(j.dir.path(name+buriedSuffix), true)
		if err == nil {
			err = errors.Join(file.Truncate(0), file.Close())
		}
		if err != nil {
			return diskError("give space back", err)
		}
	}
	c.remove = slices.DeleteFunc(c.remove, func(name string) bool { return slices.Contains(names, name) })
	return nil
}

func (j *Journal) count(f func(*counters)) {
	j.mu.Lock()
	f(&j.stats)
	j.mu.Unlock()
}
