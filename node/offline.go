package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// ErrNoJournal: the node keeps nothing on disk.
var ErrNoJournal = errors.New("the node has no journal: durability memory")

// BackupInfo describes a backup.
type BackupInfo struct {
	KeyID   revocation.KeyID
	Records int64 // some of them perhaps twice, or expired
	Shapes  int
	Bytes   int64
}

func backupInfo(b journal.BackupInfo) BackupInfo {
	info := BackupInfo{KeyID: revocation.KeyID(b.KeyID), Records: b.Records, Bytes: b.Bytes}
	for _, key := range b.Keys {
		if strings.HasPrefix(key, metaShape) {
			info.Shapes++
		}
	}
	return info
}

// Backup writes everything that is durable when it is called to w: records, shapes, origins, policy and time. Checks and writes go on
// meanwhile. Errors match [ErrNoJournal], [ErrNotReady], or are those of w, of ctx and of the journal; then w has no complete
// backup, and [CheckBackup] says so.
func (n *Node) Backup(ctx context.Context, w io.Writer) (BackupInfo, error) {
	switch {
	case n.journal == nil:
		return BackupInfo{}, ErrNoJournal
	case !n.complete.Load():
		return BackupInfo{}, ErrNotReady
	}
	info, err := n.journal.Backup(ctx, w)
	if errors.Is(err, journal.ErrClosed) {
		err = fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return backupInfo(info), err
}

// CheckBackup reads a backup to its end and verifies it. Errors match [journal.ErrBackup] and others of [journal.ReadBackup].
func CheckBackup(r io.Reader) (BackupInfo, error) {
	info, err := journal.ReadBackup(r, journal.BackupReader{Begin: func(info journal.BackupInfo, _ []journal.Meta) error {
		if info.RecordSize != entrySize {
			return fmt.Errorf("%w: %d bytes, not %d", journal.ErrRecordSize, info.RecordSize, entrySize)
		}
		return nil
	}})
	return backupInfo(info), err
}

// RestoreJournal makes the journal of a node from a backup, in a directory that is empty or does not exist. It is for the process that runs no
// node there. ring are the keys that the node will have; a backup with records of another one is refused with [revocation.ErrKey]. Other errors are those of [journal.RestoreBackup].
func RestoreJournal(ctx context.Context, dir string, ring revocation.Ring, r io.Reader) (BackupInfo, error) {
	info, err := journal.RestoreBackup(ctx, journal.RestoreConfig{
		Dir: dir, RecordSize: entrySize, KeyID: uint64(ring.Name()),
		Check: func(meta []journal.Meta) error {
			for _, m := range meta {
				if err := checkKeyName(m.Key, ring); err != nil {
					return err
				}
			}
			return nil
		},
	}, r)
	return backupInfo(info), err
}

// Damage is a part of a journal that cannot be read.
type Damage = journal.Damage

// JournalReport describes what lies in the directory of a journal. Records are counted as they lie there: one that was made anew
// counts twice until the older one has gone.
type JournalReport struct {
	Dir         string
	KeyID       revocation.KeyID
	Incarnation string
	Files       int
	Bytes       int64
	Torn        int64 // bytes of a write at the end that nobody was told of: the next start cuts them
	Records     int64
	Live        int64 // whose deadline, slack included, has not passed
	Expired     int64
	Unusable    int64 // live, or not to be understood, and no start can use them
	Shapes      int

	Oldest, Newest   time.Time // when live records were made; zero: none says it
	Earliest, Latest time.Time // ExpiresAt of live records; zero: none

	Damage []Damage
}

// Whole reports whether a node can start with it.
func (r *JournalReport) Whole() bool { return len(r.Damage) == 0 && r.Unusable == 0 }

// JournalRecord is what a record tells without the key.
type JournalRecord struct {
	Fingerprint string // hex
	Rule        string
	Since       time.Time // when it was made, or its cutoff; zero for a rule without
	ExpiresAt   time.Time
}

// DescribeJournal reads the journal in a directory and changes nothing; a node may be running on it. now is the wall clock's. each is
// called with every record that can be read, in any order and some of them twice; its error ends the reading. It may be nil. Damage is
// in the report and no error.
func DescribeJournal(ctx context.Context, dir string, now time.Time, each func(JournalRecord) error) (JournalReport, error) {
	r, err := journal.OpenReading(journal.ReadConfig{Dir: dir, RecordSize: entrySize})
	if err != nil {
		return JournalReport{}, err
	}
	defer r.Close()
	report := JournalReport{Dir: dir, KeyID: revocation.KeyID(r.KeyID()), Incarnation: r.Incarnation().String()}
	shapes := shapesOf(r)
	slack, _ := slackOf(r.Get)
	report.Shapes = len(shapes)
	stats, err := r.Records(ctx, func(records []byte) error {
		for ; len(records) > 0; records = records[entrySize:] {
			rec, _, err := parseEntry(records[:entrySize])
			if err != nil {
				report.Unusable++
				continue
			}
			report.count(rec, slack, now, shapes)
			if each == nil {
				continue
			}
			if err := each(describeRecord(rec)); err != nil {
				return err
			}
		}
		return nil
	})
	report.Files, report.Bytes, report.Torn, report.Records = stats.Files, stats.Bytes, stats.Cut, stats.Records
	report.Damage = r.Damage()
	return report, err
}

func shapesOf(r *journal.Reading) map[revocation.ShapeID]bool {
	shapes := make(map[revocation.ShapeID]bool)
	for _, key := range r.Keys(metaShape) {
		def, _ := r.Get(key)
		if s, err := revocation.ParseShape(def); err == nil {
			shapes[s.ID()] = true
		}
	}
	return shapes
}

func describeRecord(r revocation.Record) JournalRecord {
	d := JournalRecord{Fingerprint: fmt.Sprintf("%016x%016x", r.Fingerprint.Hi, r.Fingerprint.Lo), Rule: r.Class.String(), ExpiresAt: time.Unix(int64(r.ExpiresAt), 0).UTC()}
	d.Since, _ = madeAt(r)
	return d
}

// madeAt is false for rules whose value is no time, and for those of later versions.
func madeAt(r revocation.Record) (time.Time, bool) {
	switch r.Class {
	case revocation.ClassDeny, revocation.ClassIssuedBefore, revocation.ClassBlock, revocation.ClassUnblock, revocation.ClassKeep:
		return time.UnixMilli(r.Value).UTC(), true
	}
	return time.Time{}, false
}

func expired(r revocation.Record, slack time.Duration, now time.Time) bool {
	return time.Unix(int64(r.RetainUntil()), 0).Add(slack).Before(now)
}

func (j *JournalReport) count(r revocation.Record, slack time.Duration, now time.Time, shapes map[revocation.ShapeID]bool) {
	if expired(r, slack, now) {
		j.Expired++
		return
	}
	j.Live++
	if !shapes[r.Shape] {
		j.Unusable++
	}
	if made, ok := madeAt(r); ok {
		widen(&j.Oldest, &j.Newest, made)
	}
	widen(&j.Earliest, &j.Latest, time.Unix(int64(r.ExpiresAt), 0).UTC())
}

func widen(from, to *time.Time, t time.Time) {
	if from.IsZero() || t.Before(*from) {
		*from = t
	}
	if to.IsZero() || t.After(*to) {
		*to = t
	}
}

// RepairReport is what [RepairJournal] found and did.
type RepairReport struct {
	Dir         string
	Repaired    bool     // else there was nothing to repair, and nothing was changed
	Damage      []Damage // what was lost
	Kept        int64    // records
	Unusable    int64    // records that were read and are lost: what they mean was in a damaged part
	Incarnation string   // a new one if Repaired
	Quarantined []string // damaged files, relative to Dir
}

// RepairJournal makes a damaged journal one that a node can start with: see [journal.Repair]. now is the wall clock's.
func RepairJournal(ctx context.Context, dir string, now time.Time) (RepairReport, error) {
	report := RepairReport{Dir: dir}
	before, err := DescribeJournal(ctx, dir, now, nil)
	if err != nil {
		return report, err
	}
	shapes := make(map[revocation.ShapeID]bool)
	done, err := journal.Repair(ctx, journal.RepairConfig{
		Dir: dir, RecordSize: entrySize, Anyway: before.Unusable > 0, Mark: metaRepaired,
		Keep: func(b []byte, get func(string) ([]byte, bool)) bool {
			r, _, err := parseEntry(b)
			if err != nil {
				report.Unusable++
				return false
			}
			known, asked := shapes[r.Shape]
			if !asked {
				def, _ := get(shapeKey(r.Shape))
				shape, err := revocation.ParseShape(def)
				known = err == nil && shape.ID() == r.Shape
				shapes[r.Shape] = known
			}
			if slack, _ := slackOf(get); !known && !expired(r, slack, now) {
				report.Unusable++
			}
			return known
		},
	})
	report.Damage, report.Kept, report.Quarantined = done.Damage, done.Kept, done.Quarantined
	report.Incarnation = done.Incarnation.String()
	report.Repaired = err == nil && report.Incarnation != before.Incarnation
	return report, err
}
