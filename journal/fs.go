package journal

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"
)

// FS is what the journal needs of a file system. A nil FS in a [Config] is the operating system's.
// Names are paths with slashes as given in
// [Config.Dir]. Implementations must be safe for concurrent use; errors must match [fs.ErrNotExist] and
// the [syscall.Errno] values where they apply.
type FS interface {
	// Create makes a file that must not exist yet and opens it for reading and writing.
	Create(name string) (File, error)
	// Open opens a file for reading, and for writing as well if write is set.
	Open(name string, write bool) (File, error)
	// ReadDir lists the names in a directory, in any order.
	ReadDir(name string) ([]string, error)
	Mkdir(name string) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the entries of a directory durable: files created, renamed and removed in it.
	SyncDir(name string) error
	// Lock takes the exclusive lock of a file, which it creates if create is set, and does not wait: the error
	// matches [ErrLocked] if another process, or another call in this one, has it.
	Lock(name string, create bool) (Lock, error)
}

// Lock is a lock that is held until it is closed.
type Lock interface {
	io.Closer
	// Linked reports whether the locked file still is what its name leads to; if not, somebody else may lock another one.
	Linked() (bool, error)
}

// File is an open file of an [FS]. The journal calls WriteAt and Sync of one file from one goroutine at a time.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the content durable (fdatasync). After a failure nothing is known of what was written since
	// the last success, whatever a later Sync returns.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	// Linked reports whether the file still has a name in the file system.
	Linked() (bool, error)
}

// isFull reports whether an error says that there is no space: it heals when space returns.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// isTransient reports whether an error says that something is lacking that comes back.
func isTransient(err error) bool {
	return isFull(err) || slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR}, func(lack error) bool {
		return errors.Is(err, lack)
	})
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
