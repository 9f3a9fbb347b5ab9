//go:build faults

package faults

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// every is how long a reading of the control file is good.
const every = 10 * time.Millisecond

// active is the control file of this process.
var active = open(os.Getenv(Env))

// Mutant reports whether the process is to run with the bug of that name.
func Mutant(name string) bool {
	if _, known := mutants[name]; !known {
		panic(fmt.Sprintf("faults: no mutant is called %q", name))
	}
	return active.get().mutants[name]
}

// Value returns what the control file sets name to, empty if it does not.
func Value(name string) string {
	if _, known := names[name]; !known {
		panic(fmt.Sprintf("faults: no value is called %q", name))
	}
	return active.get().values[name]
}

// control follows one control file.
type control struct {
	path     string // empty: none
	settings atomic.Pointer[Settings]
	read     atomic.Int64 // when the file was last read, nanoseconds

	mu  sync.Mutex // held to read the file
	raw []byte     // as last read
}

// open reads the file at path and panics if it is not a control file.
func open(path string) *control {
	c := &control{path: path}
	c.settings.Store(&Settings{})
	if path != "" {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.load()
	}
	return c
}

func (c *control) get() *Settings {
	if c.path == "" {
		return c.settings.Load()
	}
	// A reading from the future is none: the clock was set back, or a test has virtual time.
	if age := time.Since(time.Unix(0, c.read.Load())); (age < 0 || age >= every) && c.mu.TryLock() {
		defer c.mu.Unlock()
		c.load()
	}
	return c.settings.Load()
}

// load reads the file; mu is held.
func (c *control) load() {
	raw, err := readFile(c.path)
	if err != nil {
		panic(fmt.Sprintf("faults: the control file of %s: %v", Env, err))
	}
	if c.read.Load() == 0 || !bytes.Equal(raw, c.raw) {
		s, err := Parse(raw)
		if err != nil {
			panic(fmt.Sprintf("faults: the control file of %s: %v", Env, err))
		}
		c.raw = raw
		c.settings.Store(&s)
	}
	c.read.Store(time.Now().UnixNano())
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}
