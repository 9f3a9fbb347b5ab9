package journal

import (
	"errors"
	"fmt"
)

// Errors of Open and of the tools.
var (
	// ErrLocked: another process uses the directory.
	ErrLocked = errors.New("the journal is in use by another process")
	// ErrNewerFormat: a later version wrote the directory; it is left as it is.
	ErrNewerFormat = errors.New("the journal has a newer format")
	// ErrKeyMismatch: the records belong to another key.
	ErrKeyMismatch = errors.New("the journal belongs to another key")
	// ErrRecordSize: the directory holds records of another size.
	ErrRecordSize = errors.New("the journal has records of another size")
	// ErrNotJournal: the directory does not hold a journal.
	ErrNotJournal = errors.New("not a journal")
	// ErrNotEmpty: RestoreBackup writes into an empty directory only.
	ErrNotEmpty = errors.New("the directory is not empty")
	// ErrBackup: a backup is damaged or incomplete.
	ErrBackup = errors.New("the backup is damaged or incomplete")
)

// Errors of a running journal.
var (
	// ErrBusy: the queue is full; the batch was not taken. Retry later.
	ErrBusy = errors.New("the journal's queue is full")
	// ErrFull: there is no space on the disk. The journal goes on by itself when space returns.
	ErrFull = errors.New("the journal's disk is full")
	// ErrDisk: the disk failed in another way. [Journal.Err] says whether the journal still writes.
	ErrDisk = errors.New("the journal's disk failed")
	// ErrClosed: Run has ended or Close was called.
	ErrClosed = errors.New("the journal is closed")
	// ErrInvalid: a batch is malformed or beyond a limit.
	ErrInvalid = errors.New("invalid batch")
	// ErrNotReplayed: Run needs a Replay before it, and Replay runs once.
	ErrNotReplayed = errors.New("the journal is replayed once, before it runs")
)

// Damage is a part of a file that cannot be read, or a file that is not there.
type Damage struct {
	File    string // relative to the directory
	Offset  int64
	Bytes   int64
	Records int64 // about how many records were in it; 0 if unknown
	Reason  string
}

func (d Damage) String() string {
	return fmt.Sprintf("%s: %d bytes at offset %d (about %d records): %s", d.File, d.Bytes, d.Offset, d.Records, d.Reason)
}

// DamageError says which parts of the journal cannot be read. What is damaged is never skipped in
// silence: see [Repair].
type DamageError struct {
	Damage []Damage // at least one
}

func (e *DamageError) Error() string {
	if more := len(e.Damage) - 1; more > 0 {
		return fmt.Sprintf("the journal is damaged: %s; and in %d more places", e.Damage[0], more)
	}
	return fmt.Sprintf("the journal is damaged: %s", e.Damage[0])
}

// diskError gives a failure of the file system its sentinel.
func diskError(what string, err error) error {
	if isFull(err) {
		return fmt.Errorf("%w: %s: %w", ErrFull, what, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrDisk, what, err)
}
