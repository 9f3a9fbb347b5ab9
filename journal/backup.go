package journal

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A backup is a file of frames: one with the format and all metadata, any number with records, one that says how many there were. The
// frames carry a random number in place of a segment's, so that parts of two backups do not fit together; their checksums
// cover where they stand. The incarnation is not in it: a restored directory has one of its own.

// BackupInfo describes a backup.
type BackupInfo struct {
	RecordSize int
	KeyID      uint64
	Keys       []string // of its metadata, in order
	Records    int64
	Bytes      int64
}

// Backup writes all that is durable when it is called to w: records, some of them perhaps twice or expired, and metadata. Appends go on
// meanwhile, and so does Expire but for a moment. It needs a Replay before it, and works when the disk
// refuses writes. The memory that it needs does not depend on the size of the journal. On an error what was written is
// no backup; it ends without a trailer, so that [ReadBackup] says so.
func (j *Journal) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	info, err := j.backup(ctx, w)
	if err != nil {
		return info, fmt.Errorf("back up the journal: %w", err)
	}
	return info, nil
}

func (j *Journal) backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	r, err := j.snapshot()
	if err != nil {
		return BackupInfo{}, err
	}
	defer r.Close()
	out, err := newBackupWriter(w, r.format, r.meta)
	if err != nil {
		return BackupInfo{}, err
	}
	if _, err := r.Records(ctx, out.add); err != nil {
		return BackupInfo{}, err
	}
	if damage := j.stillThere(r); len(damage) > 0 {
		return BackupInfo{}, &DamageError{damage}
	}
	return out.finish()
}

// snapshot opens the files that count now.
func (j *Journal) snapshot() (*Reading, error) {
	j.maintenance.Lock()
	defer j.maintenance.Unlock()
	j.mu.Lock()
	if !j.replayed || j.released {
		released := j.released
		j.mu.Unlock()
		if released {
			return nil, ErrClosed
		}
		return nil, ErrNotReplayed
	}
	r := &Reading{dir: j.dir, format: format{recordSize: j.cfg.RecordSize, keyID: j.cfg.KeyID}}
	for key, v := range j.meta.entries {
		if !isOwn(key) {
			r.meta.set(Meta{key, v})
		}
	}
	var list []openSource
	for _, f := range j.files {
		list = append(list, openSource{source: source{f.path(), f.id, f.length}})
	}
	newest := uint64(0)
	for _, s := range j.sealed {
		list = append(list, openSource{source: source{s.name(), s.seq, s.end}})
		newest = s.seq
	}
	writing := j.active.seq != 0
	if writing {
		list = append(list, openSource{source: source{j.active.name(), j.active.seq, j.active.end}})
	}
	j.mu.Unlock()
	if !writing {
		// The disk refuses writes. What the next head would repeat stands behind the end of the newest segment, or in one that is
		// only a head.
		l, err := j.dir.list()
		if err != nil {
			return nil, diskError("list the directory", err)
		}
		for _, seq := range l.wal {
			if seq >= newest {
				list = append(list, openSource{source: source{segment{seq: seq}.name(), seq, -1}, whole: true})
			}
		}
	}
	for _, s := range list {
		if err := r.open(s.source, s.whole); err != nil {
			r.Close()
			return nil, diskError("open "+s.name, err)
		}
	}
	return r, nil
}

// stillThere returns the damage of a snapshot without that of files whose content has expired and was given back meanwhile.
func (j *Journal) stillThere(r *Reading) []Damage {
	if len(r.damage) == 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	counts := map[string]bool{j.active.name(): true}
	for _, s := range j.sealed {
		counts[s.name()] = true
	}
	for _, f := range j.files {
		counts[f.path()] = true
	}
	return slices.DeleteFunc(r.damage, func(d Damage) bool {
		i := slices.IndexFunc(r.files, func(f openSource) bool { return f.name == d.File })
		size, err := r.files[i].file.Size()
		return !counts[d.File] && err == nil && size < r.files[i].length
	})
}

// backupWriter writes a backup.
type backupWriter struct {
	w       io.Writer
	format  format
	builder frameBuilder
	id      uint64
	info    BackupInfo
	frames  uint64
	pending []byte
}

func newBackupWriter(w io.Writer, f format, meta metadata) (*backupWriter, error) {
	var id [8]byte
	rand.Read(id[:])
	b := &backupWriter{w: w, format: f, id: binary.LittleEndian.Uint64(id[:]), info: BackupInfo{RecordSize: f.recordSize, KeyID: f.keyID}}
	b.format.incarnation = Incarnation{}
	b.builder.recordSize = f.recordSize
	b.builder.begin(frameBackup, b.id)
	b.builder.addEntry(keyFormat, b.format.marshal())
	b.info.Keys = meta.keys()
	for _, key := range b.info.Keys {
		b.builder.addEntry(key, meta.entries[key])
	}
	return b, b.put()
}

func (b *backupWriter) put() error {
	frame, err := b.builder.finish(b.info.Bytes)
	if err != nil {
		return err
	}
	n, err := b.w.Write(frame)
	b.info.Bytes += int64(n)
	b.frames++
	return err
}

func (b *backupWriter) add(records []byte) error {
	limit := max(bulkFrame/b.format.recordSize, 1) * b.format.recordSize
	for len(records) > 0 {
		n := min(len(records), limit-len(b.pending))
		b.pending = append(b.pending, records[:n]...)
		records = records[n:]
		if len(b.pending) == limit {
			if err := b.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *backupWriter) flush() error {
	if len(b.pending) == 0 {
		return nil
	}
	b.builder.begin(frameData, b.id)
	b.builder.addRecords(b.pending)
	b.info.Records += int64(len(b.pending) / b.format.recordSize)
	b.pending = b.pending[:0]
	return b.put()
}

func (b *backupWriter) finish() (BackupInfo, error) {
	if err := b.flush(); err != nil {
		return b.info, err
	}
	b.builder.begin(frameTrailer, b.id)
	b.builder.addEntry(keyTotal, marshalTotal(b.info.Records, b.frames))
	return b.info, b.put()
}

func marshalTotal(records int64, frames uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(records)), frames)
}

// BackupReader takes what [ReadBackup] reads. Nil functions skip.
type BackupReader struct {
	// Begin is called first, with the format and the metadata, which it may keep. Its error ends the reading.
	Begin func(info BackupInfo, meta []Meta) error
	// Records is called with whole records, which it must not keep. Its error ends the reading.
	Records func(records []byte) error
}

// ReadBackup reads a backup to its end and verifies it. The error matches [ErrBackup] if it is damaged, incomplete, followed by
// something or not a backup at all, and [ErrNewerFormat] if a later version wrote it; what the functions were given before is then to
// be thrown away. Memory is bounded by what a valid backup needs.
func ReadBackup(r io.Reader, to BackupReader) (BackupInfo, error) {
	b := backupParser{r: bufio.NewReaderSize(r, 64<<10)}
	f, err := b.next()
	if err != nil {
		return b.info, err
	}
	meta := f.meta()
	var v format
	if f.typ != frameBackup || len(f.records) > 0 || len(meta) == 0 || meta[0].Key != keyFormat || !v.unmarshal(meta[0].Value) {
		return b.info, b.damaged(errors.New("it does not begin as a backup does"))
	}
	meta = meta[1:]
	total := 0
	for i, e := range meta {
		total += entryHeader + len(e.Key) + len(e.Value)
		switch {
		case e.Key == "" || len(e.Key) > MaxMetaKey || isOwn(e.Key) || e.Value == nil || len(e.Value) > MaxMetaValue || total > MaxMetaTotal:
			return b.info, b.damaged(errors.New("its metadata is beyond a limit"))
		case i > 0 && strings.Compare(meta[i-1].Key, e.Key) >= 0:
			return b.info, b.damaged(errors.New("its metadata is out of order"))
		}
		meta[i].Value = bytes.Clone(e.Value)
		b.info.Keys = append(b.info.Keys, e.Key)
	}
	b.info.RecordSize, b.info.KeyID = v.recordSize, v.keyID
	if to.Begin != nil {
		if err := to.Begin(b.info, meta); err != nil {
			return b.info, err
		}
	}
	for frames := uint64(1); ; frames++ {
		if f, err = b.next(); err != nil {
			return b.info, err
		}
		switch {
		case f.typ == frameData && f.count == 0 && len(f.records) > 0:
			b.info.Records += int64(len(f.records) / v.recordSize)
			if to.Records != nil {
				if err := to.Records(f.records); err != nil {
					return b.info, err
				}
			}
		case f.typ == frameTrailer && len(f.records) == 0 && bytes.Equal(f.find(keyTotal), marshalTotal(b.info.Records, frames)) && f.count == 1:
			if _, err := b.r.ReadByte(); !errors.Is(err, io.EOF) {
				return b.info, b.damaged(cause(err, errors.New("something follows it")))
			}
			return b.info, nil
		default:
			return b.info, b.damaged(errors.New("a frame does not belong there"))
		}
	}
}

// cause prefers an error of the reader.
func cause(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// backupParser reads frames one after the other.
type backupParser struct {
	r    *bufio.Reader
	buf  bytes.Buffer
	id   uint64
	info BackupInfo
	at   int64 // where the frame begins that is read
}

func (b *backupParser) damaged(err error) error {
	return fmt.Errorf("%w: at offset %d: %w", ErrBackup, b.at, err)
}

// next returns a frame that is valid until the next call. A length is not believed before the bytes have come.
func (b *backupParser) next() (frame, error) {
	b.at = b.info.Bytes
	b.buf.Reset()
	if _, err := io.CopyN(&b.buf, b.r, headerSize); err != nil {
		return frame{}, b.damaged(ended(err))
	}
	head := b.buf.Bytes()
	size := max(b.info.RecordSize, 1) // the first frame has no records
	if binary.LittleEndian.Uint32(head) == frameMagic && head[4] > frameVersion {
		return frame{}, fmt.Errorf("%w: the backup has %d, this version reads up to %d", ErrNewerFormat, head[4], frameVersion)
	}
	h, err := parseHeader(head, size)
	if err != nil {
		return frame{}, b.damaged(err)
	}
	if b.at == 0 {
		b.id = h.segment
	}
	if _, err := io.CopyN(&b.buf, b.r, int64(h.length)); err != nil {
		return frame{}, b.damaged(ended(err))
	}
	f, err := parseFrame(b.buf.Bytes(), size, b.id, b.at)
	if err != nil {
		return frame{}, b.damaged(err)
	}
	b.info.Bytes += int64(f.size)
	return f, nil
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("it ends there")
	}
	return err
}

// RestoreConfig configures [RestoreBackup]. Dir and RecordSize are required.
type RestoreConfig struct {
	_ struct{}

	Dir        string
	FS         FS // nil: the operating system's
	RecordSize int
	KeyID      uint64 // of the key that the records are wanted for; a backup with another one is refused
	// Check looks at the metadata before anything is made; its error refuses the backup. Nil: any.
	Check func(meta []Meta) error

	segmentBytes int64 // 0: the default; tests make it small
}

// RestoreBackup makes a journal of a backup in a directory that is empty or does not exist. The journal has an incarnation of its own.
// Until the whole backup has been read and verified the directory is no journal that can be opened. After an error it is as
// empty as before; after a crash it must be emptied by hand. Errors match those of [ReadBackup], [ErrNotEmpty], [ErrKeyMismatch],
// [ErrRecordSize], [ErrLocked], [ErrFull] or [ErrDisk].
func RestoreBackup(ctx context.Context, cfg RestoreConfig, r io.Reader) (BackupInfo, error) {
	info, err := restore(ctx, cfg, r)
	if err != nil {
		return info, fmt.Errorf("restore a journal to %s: %w", cfg.Dir, err)
	}
	return info, nil
}

func restore(ctx context.Context, cfg RestoreConfig, from io.Reader) (info BackupInfo, err error) {
	d := newDirectory(cfg.FS, cfg.Dir)
	if err := d.empty(); err != nil {
		return info, err
	}
	var w *bulkWriter
	var lock io.Closer
	defer func() {
		if err != nil && w != nil {
			for _, name := range []string{formatName, formatName + tempSuffix} {
				_ = d.fs.Remove(d.path(name)) // it may not exist
			}
			w.abort()
		}
		if lock != nil {
			lock.Close()
		}
	}()
	f := format{recordSize: cfg.RecordSize, keyID: cfg.KeyID, incarnation: newIncarnation()}
	info, err = ReadBackup(from, BackupReader{
		Begin: func(have BackupInfo, meta []Meta) (err error) {
			switch {
			case have.KeyID != cfg.KeyID:
				return fmt.Errorf("%w: the backup has key %016x, not %016x", ErrKeyMismatch, have.KeyID, cfg.KeyID)
			case have.RecordSize != cfg.RecordSize:
				return fmt.Errorf("%w: %d bytes, not %d", ErrRecordSize, have.RecordSize, cfg.RecordSize)
			}
			if cfg.Check != nil {
				if err := cfg.Check(meta); err != nil {
					return err
				}
			}
			if err := d.make(); err != nil {
				return diskError("make the directory", err)
			}
			if lock, err = d.fs.Lock(d.path(lockName), true); err != nil {
				if errors.Is(err, ErrLocked) {
					return err
				}
				return diskError("take the lock", err)
			}
			if err := d.empty(); err != nil { // again, under the lock
				return err
			}
			var entries metadata
			for _, e := range meta {
				entries.set(e)
			}
			w = newBulkWriter(d, f, entries, "", 1, cfg.segmentBytes)
			return nil
		},
		Records: func(records []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := w.add(records); err != nil {
				return diskError("write a segment", err)
			}
			return nil
		},
	})
	if err != nil {
		return info, err
	}
	if err := w.finish(); err != nil {
		return info, err
	}
	if err := d.writeFormat(f); err != nil {
		return info, diskError("write "+formatName, err)
	}
	return info, nil
}

// empty fails unless the directory does not exist or holds nothing but what an earlier attempt has left of itself.
func (d directory) empty() error {
	for _, sub := range []string{"", walDir, expDir} {
		names, err := d.fs.ReadDir(d.path(sub))
		if err != nil && !notExist(err) {
			return diskError("read the directory", err)
		}
		for _, name := range names {
			if sub != "" || name != walDir && name != expDir && name != lockName {
				return fmt.Errorf("%w: it has %s", ErrNotEmpty, strings.TrimPrefix(sub+"/"+name, "/"))
			}
		}
	}
	return nil
}
