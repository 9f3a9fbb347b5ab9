// Package atomicfile writes small files so that a crash leaves the old content or the new, never a part.
//
// The sequence is: temporary file in the same directory (mode 0600), write, fsync, rename or link, fsync of the
// directory. When a function returns nil the new content survives a power loss. Functions may be called concurrently;
// for the same path the last one wins.
package atomicfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Write replaces the content of a file, or creates it.
func Write(path string, content []byte) error {
	return place(path, content, os.Rename)
}

// Create is Write for a file that must not exist: the error then matches [os.ErrExist] and the file is as it was.
func Create(path string, content []byte) error {
	return place(path, content, os.Link)
}

func place(path string, content []byte, put func(from, to string) error) (err error) {
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
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
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
