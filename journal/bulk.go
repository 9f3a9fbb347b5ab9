package journal

import "errors"

const (
	bulkFrame   = 256 << 10 // bytes of records in a frame: what one damaged byte can cost
	bulkSegment = 64 << 20  // bytes after which a segment is closed
)

// bulkWriter makes the segments of a journal that nobody runs, for the tools. Nothing counts before the caller says so.
type bulkWriter struct {
	dir    directory
	format format
	meta   metadata
	suffix string // of the names, while they must not count
	next   uint64 // number of the next segment
	limit  int64  // bulkSegment, less in tests

	builder frameBuilder
	origin  prev
	file    File
	end     int64
	made    []uint64
	pending []byte
	records int64
}

func newBulkWriter(d directory, f format, meta metadata, suffix string, next uint64, limit int64) *bulkWriter {
	w := &bulkWriter{dir: d, format: f, suffix: suffix, next: next, limit: limit}
	if limit == 0 {
		w.limit = bulkSegment
	}
	w.builder.recordSize = f.recordSize
	for key, v := range meta.entries {
		if !isOwn(key) {
			w.meta.set(Meta{key, v})
		}
	}
	return w
}

func (w *bulkWriter) name(seq uint64) string { return segment{seq: seq}.name() + w.suffix }

func (w *bulkWriter) begin() error {
	seq := w.next
	w.made = append(w.made, seq) // also if it fails: abort removes what there is
	file, err := createSegment(w.dir, w.name(seq), seq, head{format: w.format, prev: w.origin, meta: w.meta}, &w.builder)
	if err != nil {
		return err
	}
	w.next++
	w.file, w.end = file, int64(len(w.builder.buf))
	return nil
}

// add takes whole records.
func (w *bulkWriter) add(records []byte) error {
	limit := max(int(min(bulkFrame, w.limit))/w.format.recordSize, 1) * w.format.recordSize
	for len(records) > 0 {
		n := min(len(records), limit-len(w.pending))
		w.pending = append(w.pending, records[:n]...)
		records = records[n:]
		if len(w.pending) == limit {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *bulkWriter) flush() error {
	if len(w.pending) == 0 {
		return nil
	}
	if w.file != nil && w.end >= w.limit {
		w.origin = prev{w.made[len(w.made)-1], w.end}
		if err := w.close(); err != nil {
			return err
		}
	}
	if w.file == nil {
		if err := w.begin(); err != nil {
			return err
		}
	}
	w.records += int64(len(w.pending) / w.format.recordSize)
	err := w.frame(frameData, w.pending)
	w.pending = w.pending[:0]
	return err
}

func (w *bulkWriter) frame(t frameType, records []byte) error {
	w.builder.begin(t, w.made[len(w.made)-1])
	w.builder.addRecords(records)
	frame, err := w.builder.finish(w.end)
	if err != nil {
		return err
	}
	if _, err := w.file.WriteAt(frame, w.end); err != nil {
		return err
	}
	w.end += int64(len(frame))
	return nil
}

func (w *bulkWriter) close() error {
	if w.file == nil {
		return nil
	}
	err := errors.Join(w.file.Sync(), w.file.Close())
	w.file = nil
	return err
}

// finish makes everything durable, names included.
func (w *bulkWriter) finish() error {
	err := w.flush()
	if err == nil && w.file == nil {
		err = w.begin()
	}
	if err == nil {
		err = w.frame(frameEnd, nil)
	}
	if err == nil {
		err = w.close()
	}
	if err == nil {
		err = w.dir.fs.SyncDir(w.dir.path(walDir))
	}
	if err != nil {
		return diskError("write a segment", err)
	}
	return nil
}

// abort removes what was made.
func (w *bulkWriter) abort() {
	if w.file != nil {
		w.file.Close()
		w.file = nil
	}
	for _, seq := range w.made {
		_ = w.dir.fs.Remove(w.dir.path(w.name(seq))) // it may not exist; what stays does not count
	}
}
