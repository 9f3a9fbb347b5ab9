package journal

import (
	"context"
	"path"
)

// replay reads the files of an image.
type replay struct {
	ctx    context.Context
	dir    directory
	image  *image
	fn     func(records []byte) error
	report func(Progress)

	skipLast, skipDamage bool // mutants

	buf      []byte
	stats    ReplayStats
	progress Progress
	damage   []Damage
}

// source is a part of a file that counts: all of it must be frames.
type source struct {
	name   string
	id     uint64
	length int64
}

// sources lists what counts, the oldest first.
func (m *image) sources() []source {
	var list []source
	for _, f := range m.files {
		list = append(list, source{path.Join(expDir, f.name()), f.id, f.length})
	}
	for _, s := range m.segments {
		list = append(list, source{s.name(), s.seq, s.end})
	}
	return list
}

func (r *replay) run() (ReplayStats, error) {
	list := r.image.sources()
	r.progress.FilesTotal = len(list)
	for _, s := range list {
		r.progress.BytesTotal += s.length
	}
	r.stats.Cut = r.image.cut.bytes
	r.tell() // how much there is
	for i, s := range list {
		if err := r.ctx.Err(); err != nil {
			return r.stats, err
		}
		fn := r.pass
		if r.skipLast && i == len(list)-1 {
			fn = r.passAllButLast()
		}
		damage, err := r.dir.read(s, r.image.format.recordSize, &r.buf, fn)
		if err != nil {
			return r.stats, err
		}
		r.damage = append(r.damage, damage...)
		r.stats.Files++
		r.stats.Bytes += s.length
		r.progress.Files++
		r.progress.Bytes = r.stats.Bytes
		r.tell()
	}
	if len(r.damage) > 0 && !r.skipDamage {
		return r.stats, &DamageError{r.damage}
	}
	return r.stats, nil
}

func (r *replay) pass(off int64, f frame) error {
	if len(f.records) > 0 {
		if err := r.fn(f.records); err != nil {
			return err
		}
	}
	before := r.stats.Records
	r.stats.Frames++
	r.stats.Records += int64(len(f.records) / r.image.format.recordSize)
	r.progress.Records = r.stats.Records
	if before>>18 != r.stats.Records>>18 {
		r.progress.Bytes = r.stats.Bytes + off
		r.tell()
		return r.ctx.Err()
	}
	return nil
}

// passAllButLast is the mutant that forgets the last frame with records.
func (r *replay) passAllButLast() func(int64, frame) error {
	var held []byte
	return func(off int64, f frame) error {
		if len(f.records) == 0 {
			return nil
		}
		previous := f
		previous.records = held
		err := r.pass(off, previous)
		held = append([]byte{}, f.records...)
		return err
	}
}

func (r *replay) tell() {
	if r.report != nil {
		r.report(r.progress)
	}
}

// read passes the frames of a source to fn and returns what cannot be read of it.
func (d directory) read(s source, recordSize int, buf *[]byte, fn func(off int64, f frame) error) ([]Damage, error) {
	file, err := d.fs.Open(d.path(s.name), false)
	if err != nil && !notExist(err) {
		return nil, err
	}
	if err != nil {
		return []Damage{{File: s.name, Bytes: s.length, Records: s.length / int64(recordSize), Reason: err.Error()}}, nil
	}
	defer file.Close()
	return readFile(file, s, recordSize, buf, fn)
}

// readFile is read for a file that is open.
func readFile(file File, s source, recordSize int, buf *[]byte, fn func(off int64, f frame) error) ([]Damage, error) {
	size, err := file.Size()
	if err != nil {
		return nil, err
	}
	sc := &scanner{file: file, limit: min(s.length, size), segment: s.id, recordSize: recordSize, buf: (*buf)[:0]}
	gaps, err := sc.scan(fn)
	*buf = sc.buf
	if size < s.length { // what is not there needs no search, which would take years for a length that is wrong
		rest := gap{offset: size, bytes: s.length - size, tail: true}
		if n := len(gaps); n > 0 && gaps[n-1].tail {
			rest.offset, rest.bytes, rest.err = gaps[n-1].offset, s.length-gaps[n-1].offset, gaps[n-1].err
			gaps = gaps[:n-1]
		}
		gaps = append(gaps, rest)
	}
	var damage []Damage
	for _, g := range gaps {
		damage = append(damage, *damageOf(s.name, g, recordSize))
	}
	return damage, err
}
