//go:build !unix

package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Without a lock two processes would write one directory, so there is no journal on other systems.
func flock(*os.File) error { return fmt.Errorf("lock the journal: %w", errors.ErrUnsupported) }

func linked(fs.FileInfo) bool { return true }
