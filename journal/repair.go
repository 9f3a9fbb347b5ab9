package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
)

// RepairConfig configures [Repair]. Dir and RecordSize are required.
type RepairConfig struct {
	_ struct{}

	Dir        string
	FS         FS // nil: the operating system's
	RecordSize int

	// Keep, if set, says of a record that was read whether it is of use with the metadata that was read: what is not would stop the
	// next start. get returns a metadata value.
	Keep func(record []byte, get func(key string) ([]byte, bool)) bool
	// Mark, if set, is a key of the metadata that gets the new incarnation as its value, so that whoever opens the journal knows that it holds less
	// than was acknowledged.
	Mark string
	// Anyway writes the journal anew without damage too, so that what Keep refuses goes.
	Anyway bool

	segmentBytes int64 // 0: the default; tests make it small
}

// RepairReport is what [Repair] found and did.
type RepairReport struct {
	Damage      []Damage    // what was lost
	Kept        int64       // records
	Dropped     int64       // records that Keep refused
	Incarnation Incarnation // of the directory now; a new one if it was written anew
	Quarantined []string    // the damaged files, relative to the directory, where they are now
}

// Repair makes a damaged journal readable again: everything that can be read is written anew, the directory gets a new incarnation, and the
// damaged files are moved to quarantine/, for those who want to look at them. What could not be read is lost, and reported. Without
// damage nothing is changed, unless Anyway is set. It needs as much space as the records that can be read. Until it has succeeded, or is interrupted, the
// journal is damaged as before.
//
// Errors match [ErrLocked], [ErrNotJournal], [ErrNewerFormat], [ErrRecordSize], [ErrFull] or [ErrDisk].
func Repair(ctx context.Context, cfg RepairConfig) (RepairReport, error) {
	report, err := repair(ctx, cfg)
	if err != nil {
		return report, fmt.Errorf("repair the journal in %s: %w", cfg.Dir, err)
	}
	return report, nil
}

func repair(ctx context.Context, cfg RepairConfig) (RepairReport, error) {
	d := newDirectory(cfg.FS, cfg.Dir)
	// A directory that is none must not get a lock file.
	l, err := d.list()
	if err != nil {
		return RepairReport{}, err
	}
	if _, err := d.size(formatName); err != nil && len(l.wal)+len(l.exp)+len(l.buried) == 0 {
		return RepairReport{}, ErrNotJournal
	}
	lock, err := d.fs.Lock(d.path(lockName), true)
	if err != nil {
		if errors.Is(err, ErrLocked) {
			return RepairReport{}, err
		}
		return RepairReport{}, diskError("take the lock", err)
	}
	defer lock.Close()
	r, err := OpenReading(ReadConfig{Dir: cfg.Dir, FS: cfg.FS, RecordSize: cfg.RecordSize})
	if err != nil {
		return RepairReport{}, err
	}
	defer r.Close()
	stats, err := r.Records(ctx, func([]byte) error { return nil })
	report := RepairReport{Damage: r.Damage(), Kept: stats.Records, Incarnation: r.Incarnation()}
	if err != nil || len(report.Damage) == 0 && !cfg.Anyway {
		return report, err
	}
	if r.format.incarnation == (Incarnation{}) {
		return report, &DamageError{append(report.Damage, Damage{File: formatName, Reason: "nothing that can be read tells which key the records belong to"})}
	}
	report.Kept = 0
	next := r.format
	next.incarnation = newIncarnation()
	if cfg.Mark != "" {
		r.meta.set(Meta{cfg.Mark, next.incarnation[:]})
	}
	w := newBulkWriter(d, next, r.meta, tempSuffix, r.listing.maxID+1, cfg.segmentBytes)
	if err := w.salvage(ctx, r, cfg.Keep, &report); err != nil {
		w.abort()
		return report, err
	}
	r.Close()
	// The number first: an interrupted repair leaves a damaged journal, whose number does not matter.
	if err := d.writeFormat(next); err != nil {
		w.abort()
		return report, diskError("write "+formatName, err)
	}
	if err := w.publish(); err != nil {
		return report, err
	}
	report.Incarnation, report.Kept = next.incarnation, w.records
	if err := d.makeDir(d.path(quarantineDir)); err != nil {
		return report, diskError("make "+quarantineDir, err)
	}
	d.putAway(r.listing, &report)
	return report, nil
}

// salvage copies what can be read.
func (w *bulkWriter) salvage(ctx context.Context, r *Reading, keep func([]byte, func(string) ([]byte, bool)) bool, report *RepairReport) error {
	for _, name := range r.listing.other { // of an interrupted repair
		if err := w.dir.fs.Remove(w.dir.path(name)); err != nil && !notExist(err) {
			return diskError("remove "+name, err)
		}
	}
	size := w.format.recordSize
	_, err := r.Records(ctx, func(records []byte) error {
		for ; len(records) > 0; records = records[size:] {
			if keep != nil && !keep(records[:size], r.Get) {
				report.Dropped++
				continue
			}
			if err := w.add(records[:size]); err != nil {
				return diskError("write a segment", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.finish()
}

// publish gives the segments their names, the newest first: as long as those before it are missing the journal is damaged, and never
// looks like one that has less in it.
func (w *bulkWriter) publish() error {
	for _, seq := range slices.Backward(w.made) {
		err := w.dir.fs.Rename(w.dir.path(w.name(seq)), w.dir.path(segment{seq: seq}.name()))
		if err == nil {
			err = w.dir.fs.SyncDir(w.dir.path(walDir))
		}
		if err != nil {
			return diskError("name a segment", err)
		}
	}
	return nil
}

// putAway moves the damaged files to quarantine and removes the others, which do not count any more. What stays because of a failure is
// removed by the next start.
func (d directory) putAway(l listing, report *RepairReport) {
	var old []string
	for _, seq := range l.wal {
		old = append(old, segment{seq: seq}.name())
	}
	for _, name := range slices.Sorted(maps.Keys(l.exp)) {
		old = append(old, path.Join(expDir, name))
	}
	for name := range l.buried {
		old = append(old, name+buriedSuffix)
	}
	for _, name := range old {
		if !slices.ContainsFunc(report.Damage, func(x Damage) bool { return x.File == name }) {
			_ = d.fs.Remove(d.path(name))
			continue
		}
		to := path.Join(quarantineDir, path.Base(name))
		if d.fs.Rename(d.path(name), d.path(to)) == nil {
			report.Quarantined = append(report.Quarantined, to)
		}
	}
	for _, sub := range []string{quarantineDir, walDir, expDir} {
		_ = d.fs.SyncDir(d.path(sub))
	}
}
