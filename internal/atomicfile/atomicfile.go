// Package atomicfile writes files so that a crash leaves the old content or the new, never a part.
//
// The sequence is: temporary file in the same directory (mode 0600), write, fsync, rename or link, fsync of the
// directory. When a function returns nil the new content survives a power loss. Functions may be called concurrently;
// for the same path the last one wins.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Write replaces the content of a file, or creates it.
func Write(path string, content []byte) error {
	return place(path, whole(content), os.Rename)
}

// Create is Write for a file that must not exist: the error then matches [os.ErrExist] and the file is as it was.
func Create(path string, content []byte) error {
	return place(path, whole(content), os.Link)
}

// CreateFrom is Create for content that is too large for memory. The error of write is returned as it is; then there is no file.
func CreateFrom(path string, write func(io.Writer) error) error {
	return place(path, write, os.Link)
}

func whole(content []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	}
}

func place(path string, write func(io.Writer) error, put func(from, to string) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*.tmp") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		// After a rename there is nothing to remove.
		if rmErr := os.Remove(f.Name()); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}()
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err = errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := put(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names in a directory survive a power loss.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
