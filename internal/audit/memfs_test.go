package audit

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"

	"github.com/revokd/revokd/journal"
)

var errCrashed = errors.New("the machine is off")

// memFS is a file system that ends at a chosen operation that changes something, or refuses writes, and can then lose what was not synced.
type memFS struct {
	mu    sync.Mutex
	files map[string]*memFile
	left  int // operations until the end; negative: no end
	part  int // of 2: how much of the last write arrives
	off   bool
	full  int   // bytes that still fit; negative: any
	sync  error // of the next Sync
	ops   int
}

type memFile struct {
	fs     *memFS
	data   []byte
	synced []byte
	named  bool // the directory was synced with it
}

func newMemFS() *memFS { return &memFS{files: map[string]*memFile{}, left: -1, full: -1} }

// step counts an operation; last is set at the one within which the machine ends.
func (m *memFS) step() (last bool, err error) {
	if m.off {
		return false, errCrashed
	}
	m.ops++
	if m.left > 0 {
		m.left--
	}
	if m.left == 0 {
		m.off = true
		return true, nil
	}
	return false, nil
}

// reboot returns what a next process finds: everything that was written, or with power set only what was synced.
func (m *memFS) reboot(power bool) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := newMemFS()
	for name, f := range m.files {
		data := f.data
		if power {
			if !f.named {
				continue
			}
			data = f.synced
		}
		next.files[name] = &memFile{fs: next, data: append([]byte(nil), data...), synced: append([]byte(nil), data...), named: true}
	}
	return next
}

func (m *memFS) Create(name string) (journal.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] != nil {
		return nil, fs.ErrExist
	}
	if _, err := m.step(); err != nil {
		return nil, err
	}
	f := &memFile{fs: m}
	m.files[name] = f
	return f, nil
}

func (m *memFS) Open(name string, _ bool) (journal.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.files[name]; f != nil && !m.off {
		return f, nil
	}
	return nil, fs.ErrNotExist
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off {
		return nil, errCrashed
	}
	var names []string
	for name := range m.files {
		names = append(names, strings.TrimPrefix(name, dir+"/"))
	}
	return names, nil
}

func (m *memFS) Mkdir(string) error                      { return fs.ErrExist }
func (m *memFS) Rename(string, string) error             { return errors.ErrUnsupported }
func (m *memFS) Lock(string, bool) (journal.Lock, error) { return memLock{}, nil }

func (m *memFS) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(); err != nil {
		return err
	}
	delete(m.files, name)
	return nil
}

func (m *memFS) SyncDir(string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(); err != nil {
		return err
	}
	for _, f := range m.files {
		f.named = true
	}
	return nil
}

type memLock struct{}

func (memLock) Close() error          { return nil }
func (memLock) Linked() (bool, error) { return true, nil }

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if off >= int64(len(f.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	last, err := f.fs.step()
	if err != nil {
		return 0, err
	}
	n := len(b)
	if last {
		n = n * f.fs.part / 2
		err = errCrashed
	}
	if f.fs.full >= 0 && n > f.fs.full {
		n, err = f.fs.full, syscall.ENOSPC
	}
	if f.fs.full >= 0 {
		f.fs.full -= n
	}
	if grow := int(off) + n - len(f.data); grow > 0 {
		f.data = append(f.data, make([]byte, grow)...)
	}
	copy(f.data[off:], b[:n])
	return n, err
}

func (f *memFile) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if _, err := f.fs.step(); err != nil {
		return err
	}
	if err := f.fs.sync; err != nil {
		f.fs.sync = nil
		return err
	}
	f.synced = append([]byte(nil), f.data...)
	return nil
}

func (f *memFile) Truncate(int64) error { return errors.ErrUnsupported }

func (f *memFile) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.data)), nil
}
func (f *memFile) Linked() (bool, error) { return true, nil }
func (f *memFile) Close() error          { return nil }
