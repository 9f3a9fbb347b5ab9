package journal

import (
	"errors"
	"maps"
	"path"
	"slices"
)

// image is what a directory says of itself: which files count, how far, and the metadata. Making it reads the
// last segment whole and the heads of the others, and changes nothing.
type image struct {
	format   format
	listing  listing
	segments []segment // those that count, oldest first; the last one is where the log ends
	files    []expFile
	meta     metadata

	next prev   // what the next head says: how far the log is known to be durable
	tail []byte // records of the frame behind that, which was read but perhaps never synced
	cut  gap    // torn tail of the last segment
	void bool   // the last segment holds nothing but what the next head repeats
}

// segment is a file of wal/.
type segment struct {
	seq  uint64
	end  int64 // bytes that count
	seen int64 // guarded time at which Expire saw it first, 0 not yet
}

func (s segment) name() string { return path.Join(walDir, walName(s.seq)) }

// inspect reads the image of a directory whose FORMAT is known. The error is a *DamageError if parts are missing
// or cannot be read.
func (d directory) inspect(f format) (*image, error) {
	l, err := d.list()
	if err != nil {
		return nil, err
	}
	m := &image{format: f, listing: l}
	if err := m.findLast(d); err != nil {
		return nil, err
	}
	files, ok := parseManifest(m.meta.entries[keyFiles])
	if !ok {
		return nil, &DamageError{[]Damage{{File: walDir, Reason: "the list of expiry files cannot be read"}}}
	}
	var damage []Damage
	damage = append(damage, m.walk(d, files.from)...)
	damage = append(damage, m.checkFiles(d, files.files)...)
	if len(damage) > 0 {
		return nil, &DamageError{damage}
	}
	return m, nil
}

// findLast reads the segment in which the log ends, the one with the largest number.
func (m *image) findLast(d directory) error {
	if len(m.listing.wal) == 0 {
		return &DamageError{[]Damage{{File: walDir, Reason: "there are no segments"}}}
	}
	s := segment{seq: m.listing.wal[len(m.listing.wal)-1]}
	file, err := d.fs.Open(d.path(s.name()), false)
	if err != nil {
		return err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return err
	}
	var (
		meta   metadata
		origin prev
		good   = true
		last   struct {
			offset  int64
			typ     frameType
			records []byte
		}
	)
	sc := &scanner{file: file, limit: size, segment: s.seq, recordSize: m.format.recordSize}
	gaps, _ := sc.scan(func(off int64, f frame) error {
		if (f.typ == frameHead) != (off == 0) || f.typ != frameHead && f.typ != frameData && f.typ != frameEnd || last.typ == frameEnd {
			good = false
		}
		for _, e := range f.meta() {
			switch e.Key {
			case keyPrev:
				var ok bool
				origin, ok = parsePrev(e.Value)
				good = good && ok
			case keyFormat:
				var v format
				good = good && v.unmarshal(e.Value) && v.recordSize == m.format.recordSize && v.keyID == m.format.keyID
			default:
				meta.set(e)
			}
		}
		last.offset, last.typ = off, f.typ
		last.records = append(last.records[:0], f.records...)
		s.end = off + int64(f.size)
		return nil
	})
	var cut gap
	for _, g := range gaps {
		if g.err != nil || !g.tail {
			return &DamageError{[]Damage{*damageOf(s.name(), g, m.format.recordSize)}}
		}
		cut = g
	}
	switch {
	case s.end == 0:
		return &DamageError{[]Damage{*damageOf(s.name(), gap{bytes: size}, m.format.recordSize)}}
	case !good:
		return &DamageError{[]Damage{{File: s.name(), Bytes: size, Reason: "its frames do not belong together"}}}
	case last.typ == frameEnd && cut.bytes > 0:
		return &DamageError{[]Damage{*damageOf(s.name(), cut, m.format.recordSize)}}
	}
	m.meta, m.cut = meta, cut
	switch last.typ {
	case frameHead: // nothing follows it: the next head says the same
		m.next, m.tail, m.void = origin, last.records, true
	case frameEnd: // written after everything before it was synced
		m.next = prev{s.seq, last.offset}
	default:
		m.next, m.tail = prev{s.seq, last.offset}, last.records
	}
	m.segments = []segment{s}
	return nil
}

// walk follows the heads from the last segment back to the first that counts.
func (m *image) walk(d directory, from uint64) []Damage {
	for {
		first := m.segments[0]
		origin, err := m.origin(d, first)
		if err != nil {
			return []Damage{{File: first.name(), Reason: err.Error()}}
		}
		if origin.segment < max(from, 1) || m.listing.buried[path.Join(walDir, walName(origin.segment))] {
			return nil
		}
		s := segment{seq: origin.segment, end: origin.length}
		if origin.segment >= first.seq {
			return []Damage{{File: first.name(), Reason: "its head names a later segment as the one before it"}}
		}
		if !slices.Contains(m.listing.wal, s.seq) {
			return []Damage{{File: s.name(), Bytes: s.end, Records: s.end / int64(m.format.recordSize), Reason: "the file is missing"}}
		}
		m.segments = append([]segment{s}, m.segments...)
	}
}

func (m *image) origin(d directory, s segment) (prev, error) {
	file, err := d.fs.Open(d.path(s.name()), false)
	if err != nil {
		return prev{}, err
	}
	defer file.Close()
	size, err := file.Size()
	if err != nil {
		return prev{}, err
	}
	sc := &scanner{file: file, limit: min(s.end, size), segment: s.seq, recordSize: m.format.recordSize}
	f, ok := sc.first()
	if !ok || f.typ != frameHead {
		return prev{}, errors.Join(errors.New("its head cannot be read"), sc.failed)
	}
	p, ok := parsePrev(f.find(keyPrev))
	if !ok {
		return prev{}, errors.New("its head cannot be read")
	}
	return p, nil
}

// checkFiles compares the list of expiry files with the directory.
func (m *image) checkFiles(d directory, files []expFile) (damage []Damage) {
	for _, f := range files {
		name := path.Join(expDir, f.name())
		if m.listing.buried[name] {
			continue
		}
		if _, ok := m.listing.exp[f.name()]; !ok {
			damage = append(damage, Damage{File: name, Bytes: f.length, Records: f.records, Reason: "the file is missing"})
			continue
		}
		m.files = append(m.files, f)
	}
	return damage
}

// unused lists the files that hold nothing that counts, except the last segment.
func (m *image) unused() []string {
	used := map[string]bool{}
	for _, s := range m.segments {
		used[s.name()] = true
	}
	for _, f := range m.files {
		used[path.Join(expDir, f.name())] = true
	}
	list := slices.Clone(m.listing.other)
	for _, seq := range m.listing.wal {
		if name := (segment{seq: seq}).name(); !used[name] {
			list = append(list, name)
		}
	}
	for _, f := range m.listing.exp {
		if name := path.Join(expDir, f.name()); !used[name] {
			list = append(list, name)
		}
	}
	for name := range maps.Keys(m.listing.buried) {
		list = append(list, name+buriedSuffix)
	}
	slices.Sort(list)
	return list
}

func damageOf(file string, g gap, recordSize int) *Damage {
	reason := "no valid frame"
	if g.err != nil {
		reason = "read: " + g.err.Error()
	}
	return &Damage{File: file, Offset: g.offset, Bytes: g.bytes, Records: g.bytes / int64(recordSize), Reason: reason}
}

// metadata is a set of keyed entries with their size as a head holds them. The zero value is empty.
type metadata struct {
	entries map[string][]byte
	size    int
}

// set applies an entry; the value is copied.
func (m *metadata) set(e Meta) {
	if m.entries == nil {
		m.entries = make(map[string][]byte)
	}
	if old, ok := m.entries[e.Key]; ok {
		m.size -= entryHeader + len(e.Key) + len(old)
	}
	if e.Value == nil {
		delete(m.entries, e.Key)
		return
	}
	m.entries[e.Key] = append([]byte{}, e.Value...)
	m.size += entryHeader + len(e.Key) + len(e.Value)
}

// keys lists the entries in order, those of the journal itself included.
func (m *metadata) keys() []string { return slices.Sorted(maps.Keys(m.entries)) }
