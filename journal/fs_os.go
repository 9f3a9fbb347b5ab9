package journal

import (
	"io"
	"os"
	"syscall"

	"github.com/revokd/revokd/internal/faults"
)

// osFS is the file system of the operating system.
type osFS struct{}

// OS returns the file system of the operating system.
func OS() FS { return osFS{} }

func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (osFS) Open(name string, write bool) (File, error) {
	if write {
		return openOS(name, os.O_RDWR)
	}
	return openOS(name, os.O_RDONLY)
}

func openOS(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) ReadDir(name string) ([]string, error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func (osFS) Mkdir(name string) error      { return os.Mkdir(name, 0o700) }
func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	if err = syncFault(name); err == nil {
		err = d.Sync()
	}
	d.Close()
	return err
}

func (osFS) Lock(name string, create bool) (Lock, error) {
	flag := os.O_RDONLY
	if create {
		flag = os.O_RDWR | os.O_CREATE
	}
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, err
	}
	return osLock{f}, nil
}

// osLock is a locked file.
type osLock struct{ *os.File }

func (l osLock) Linked() (bool, error) {
	mine, err := l.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(l.Name())
	if notExist(err) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}

// osFile is an open file; ReadAt, Truncate and Close are those of [os.File].
type osFile struct{ *os.File }

func (f osFile) WriteAt(b []byte, off int64) (int, error) {
	switch faults.Value("disk") {
	case "ENOSPC":
		return 0, &os.PathError{Op: "write", Path: f.Name(), Err: syscall.ENOSPC}
	case "EIO-write":
		return 0, &os.PathError{Op: "write", Path: f.Name(), Err: syscall.EIO}
	}
	return f.File.WriteAt(b, off)
}

func (f osFile) Sync() error {
	if err := syncFault(f.Name()); err != nil {
		return err
	}
	return fdatasync(f.File)
}

// syncFault is the injected failure of an fsync: see package faults.
func syncFault(name string) error {
	if faults.Value("disk") == "EIO-fsync" {
		return &os.PathError{Op: "fsync", Path: name, Err: syscall.EIO}
	}
	return nil
}

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Linked() (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	return linked(info), nil
}

// LockFile takes the exclusive lock of a file, which it makes if need be, and does not wait: the error matches [ErrLocked] if another process
// has it. Closing gives it back.
func LockFile(name string) (io.Closer, error) { return osFS{}.Lock(name, true) }
