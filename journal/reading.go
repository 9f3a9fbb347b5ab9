package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// readAttempts is how often a directory is looked at again because another process has changed it meanwhile.
const readAttempts = 10

// ReadConfig names a journal for the tools. RecordSize is required.
type ReadConfig struct {
	_ struct{}

	Dir        string
	FS         FS // nil: the operating system's
	RecordSize int
}

// Reading is a journal opened for reading only. It takes no lock and changes nothing, so that the directory may be
// read-only, and a process may write it meanwhile: then it holds what was there at one moment, and perhaps a little more. A
// damaged journal can be read as well. Its methods are for one goroutine.
type Reading struct {
	dir     directory
	format  format
	meta    metadata
	cut     int64 // torn tail
	damage  []Damage
	salvage bool
	listing listing
	files   []openSource
}

// openSource is a file that is held open, so that it can be read after another process has removed its name.
type openSource struct {
	source
	file  File
	whole bool // read to its end, where length says only how far it must be readable; -1: not at all
}

// OpenReading opens what counts of a journal: all of its files are held open until Close. Errors match [ErrNotJournal], [ErrNewerFormat] and
// [ErrRecordSize]. Damage is no error here: see [Reading.Damage].
func OpenReading(cfg ReadConfig) (*Reading, error) {
	if cfg.RecordSize <= 0 || cfg.RecordSize > maxRecordSize {
		return nil, fmt.Errorf("journal: RecordSize %d is not between 1 and %d", cfg.RecordSize, maxRecordSize)
	}
	d := newDirectory(cfg.FS, cfg.Dir)
	for attempt := 1; ; attempt++ {
		before, err := d.list()
		if err != nil {
			return nil, fmt.Errorf("read the journal in %s: %w", cfg.Dir, err)
		}
		r, err := d.openReading(cfg.RecordSize, before)
		if err == nil && len(r.damage) == 0 {
			return r, nil
		}
		// What is missing may have been replaced by a process that is at work.
		after, listErr := d.list()
		if attempt < readAttempts && listErr == nil && !before.equal(after) {
			if r != nil {
				r.Close()
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the journal in %s: %w", cfg.Dir, err)
		}
		return r, nil
	}
}

func (l listing) equal(o listing) bool {
	return slices.Equal(l.wal, o.wal) && maps.Equal(l.exp, o.exp) && maps.Equal(l.buried, o.buried)
}

func (d directory) openReading(recordSize int, l listing) (*Reading, error) {
	r := &Reading{dir: d, format: format{recordSize: recordSize}, listing: l}
	have, err := d.readFormat()
	switch {
	case errors.Is(err, ErrNewerFormat):
		return nil, err
	case notExist(err) && len(l.wal)+len(l.exp)+len(l.buried) == 0:
		return nil, ErrNotJournal
	case err != nil && !notExist(err) && !errors.Is(err, errFormat):
		return nil, err
	case err != nil:
		reason := err.Error()
		if notExist(err) {
			reason = "the file is missing"
		}
		r.damage = append(r.damage, Damage{File: formatName, Reason: reason})
		r.recoverFormat()
	case have.recordSize != recordSize:
		return nil, fmt.Errorf("%w: %d bytes, not %d", ErrRecordSize, have.recordSize, recordSize)
	default:
		r.format = have
	}
	m, err := d.inspect(r.format)
	var damage *DamageError
	switch {
	case err == nil:
		r.meta, r.cut = m.meta, m.cut.bytes
		for _, s := range m.sources() {
			if err := r.open(s, false); err != nil {
				r.Close()
				return nil, err
			}
		}
	case errors.As(err, &damage):
		r.damage = append(r.damage, damage.Damage...)
		if err := r.openAll(); err != nil {
			r.Close()
			return nil, err
		}
	default:
		return nil, err
	}
	return r, nil
}

func (r *Reading) open(s source, whole bool) error {
	file, err := r.dir.fs.Open(r.dir.path(s.name), false)
	if err != nil {
		return err
	}
	r.files = append(r.files, openSource{s, file, whole})
	return nil
}

// recoverFormat takes from a head what FORMAT said.
func (r *Reading) recoverFormat() {
	for _, seq := range slices.Backward(r.listing.wal) {
		file, err := r.dir.fs.Open(r.dir.path(segment{seq: seq}.name()), false)
		if err != nil {
			continue
		}
		size, _ := file.Size()
		f, ok := (&scanner{file: file, limit: size, segment: seq, recordSize: r.format.recordSize}).first()
		var v format
		ok = ok && v.unmarshal(f.find(keyFormat)) && v.recordSize == r.format.recordSize
		file.Close()
		if ok {
			r.format = v
			return
		}
	}
}

// openAll is for a journal that does not say any more which files count, or not all of them: every file is read as far as it can be. A
// record that does not count does no harm: it was never acknowledged, or stands elsewhere too, or has expired.
func (r *Reading) openAll() error {
	r.salvage = true
	var buf []byte
	lengths := map[uint64]int64{} // of segments, as the heads behind them say
	var list []source
	for _, seq := range r.listing.wal {
		s := segment{seq: seq}
		size, err := r.dir.size(s.name())
		if err != nil {
			return err
		}
		src := source{s.name(), seq, size}
		readable := int64(0)
		_, err = r.dir.read(src, r.format.recordSize, &buf, func(off int64, f frame) error {
			readable = off + int64(f.size)
			if f.typ == frameHead {
				r.meta = metadata{} // a head has all of it
			}
			for _, e := range f.meta() {
				switch e.Key {
				case keyPrev:
					if p, ok := parsePrev(e.Value); ok {
						lengths[p.segment] = p.length
					}
				case keyFormat:
				default:
					r.meta.set(e)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if seq == r.listing.wal[len(r.listing.wal)-1] {
			lengths[seq] = readable // a torn tail is no damage; where it is more than that, inspect has said so
		}
		list = append(list, src)
	}
	files, known := parseManifest(r.meta.entries[keyFiles])
	for _, src := range list {
		if n, ok := lengths[src.id]; ok {
			src.length = min(n, src.length)
		}
		if src.id < files.from {
			src.length = -1
		}
		if err := r.open(src, true); err != nil {
			return err
		}
	}
	counts := map[string]int64{}
	for _, f := range files.files {
		counts[f.name()] = f.length
	}
	for _, name := range slices.Sorted(maps.Keys(r.listing.exp)) {
		src := source{path.Join(expDir, name), r.listing.exp[name].id, -1}
		size, err := r.dir.size(src.name)
		if err != nil {
			return err
		}
		if n, ok := counts[name]; ok {
			src.length = min(n, size)
		} else if !known || len(r.listing.wal) == 0 {
			src.length = size
		}
		if err := r.open(src, true); err != nil {
			return err
		}
	}
	return nil
}

// Incarnation is that of the directory.
func (r *Reading) Incarnation() Incarnation { return r.format.incarnation }

// KeyID is that of the directory; 0 if nothing readable tells it.
func (r *Reading) KeyID() uint64 { return r.format.keyID }

// Get returns a metadata value; it is not to be changed.
func (r *Reading) Get(key string) ([]byte, bool) {
	v, ok := r.meta.entries[key]
	return v, ok && !isOwn(key)
}

// Keys lists the keys of the metadata that begin with prefix, in order.
func (r *Reading) Keys(prefix string) []string {
	var keys []string
	for _, k := range r.meta.keys() {
		if strings.HasPrefix(k, prefix) && !isOwn(k) {
			keys = append(keys, k)
		}
	}
	return keys
}

// Damage lists what cannot be read, as far as it is known: after [Reading.Records] all of it.
func (r *Reading) Damage() []Damage { return slices.Clone(r.damage) }

// Records passes every record that can be read to fn, in any order and some of them twice. fn must not keep the slice; its error ends the
// reading. It may be called again.
func (r *Reading) Records(ctx context.Context, fn func(records []byte) error) (ReplayStats, error) {
	stats := ReplayStats{Cut: r.cut}
	var buf []byte
	for _, f := range r.files {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		src := f.source
		if f.whole {
			size, err := f.file.Size()
			if err != nil {
				return stats, err
			}
			src.length = size
		}
		damage, err := readFile(f.file, src, r.format.recordSize, &buf, func(_ int64, fr frame) error {
			stats.Frames++
			stats.Records += int64(len(fr.records) / r.format.recordSize)
			if len(fr.records) == 0 {
				return nil
			}
			if err := fn(fr.records); err != nil {
				return err
			}
			return ctx.Err()
		})
		if err != nil {
			return stats, err
		}
		stats.Files++
		stats.Bytes += src.length
		for _, d := range damage {
			if !f.whole || d.Offset < f.length {
				r.found(d)
			}
		}
	}
	return stats, nil
}

// found notes damage once.
func (r *Reading) found(d Damage) {
	for i, known := range r.damage {
		if known.File == d.File && (known.Bytes == 0 || known.Offset <= d.Offset && d.Offset < known.Offset+known.Bytes) {
			// What could not even be classified before is known better now.
			if known.Bytes == 0 || known.Records == 0 || d.Bytes < known.Bytes {
				r.damage[i] = d
			}
			return
		}
	}
	r.damage = append(r.damage, d)
}

// Close closes the files.
func (r *Reading) Close() {
	for _, f := range r.files {
		f.file.Close() // only read
	}
	r.files = nil
}
