//go:build !linux

package journal

import "os"

// Sync of [os.File] is F_FULLFSYNC on darwin, where fsync alone does not reach the medium.
func fdatasync(f *os.File) error { return f.Sync() }
