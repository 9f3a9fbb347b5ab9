package journal_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/revokd/revokd/journal"
)

// crashFS is a file system in memory that knows apart what programs see and what a power loss leaves. It promises no
// more than POSIX does: what was written since the last sync of a file may be there, in any order of sectors, torn or
// not; names that were made, changed or removed since the last sync of their directory may be there or not; and what
// a sync failed to write is never written by a later sync that succeeds.
type crashFS struct {
	mu    sync.Mutex
	root  *dir
	locks map[string]bool

	// before is called with the operation and its path before each step that changes something. An error fails the step.
	before func(op, name string) error
	// lies names the steps that do nothing and report success.
	lies func(op, name string) bool
}

// inode is a file.
type inode struct {
	data    []byte // what programs see
	durable []byte // what is on disk whatever happens
	pending []write
	linked  bool
}

// write is a change of a file since its last sync.
type write struct {
	off      int64
	data     []byte
	truncate bool // to off
	lost     bool // a sync of it failed: it is on disk or not, and no sync changes that
}

// dir is a directory; its nodes are *inode and *dir.
type dir struct {
	entries map[string]any
	durable map[string]any
	pending []rename
}

// rename is a change of a directory since its last sync: of a name from nothing, to nothing, or to another one.
type rename struct {
	from, to string
	node     any
	lost     bool
}

func newDir() *dir { return &dir{entries: map[string]any{}, durable: map[string]any{}} }

func newCrashFS() *crashFS { return &crashFS{root: newDir(), locks: map[string]bool{}} }

// step asks the hook. mu is held.
func (f *crashFS) step(op, name string) error {
	if f.before == nil {
		return nil
	}
	if err := f.before(op, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

func (f *crashFS) lie(op, name string) bool { return f.lies != nil && f.lies(op, name) }

func (f *crashFS) find(name string) (any, error) {
	var n any = f.root
	for elem := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		d, ok := n.(*dir)
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
		}
		if elem == "" || elem == "." {
			continue
		}
		if n = d.entries[elem]; n == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
	}
	return n, nil
}

func (f *crashFS) parent(name string) (*dir, string, error) {
	i := strings.LastIndexByte(name, '/')
	n, err := f.find(name[:max(i, 0)])
	if err != nil {
		return nil, "", err
	}
	d, ok := n.(*dir)
	if !ok {
		return nil, "", &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	return d, name[i+1:], nil
}

func (f *crashFS) Create(name string) (journal.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step("create", name); err != nil {
		return nil, err
	}
	d, base, err := f.parent(name)
	if err != nil {
		return nil, err
	}
	if d.entries[base] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	n := &inode{linked: true}
	d.entries[base] = n
	d.pending = append(d.pending, rename{to: base, node: n})
	return &handle{f, n, name, true}, nil
}

func (f *crashFS) Open(name string, write bool) (journal.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err != nil {
		return nil, err
	}
	file, ok := n.(*inode)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	return &handle{f, file, name, write}, nil
}

func (f *crashFS) ReadDir(name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err != nil {
		return nil, err
	}
	d, ok := n.(*dir)
	if !ok {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	return keysOf(d.entries), nil
}

func (f *crashFS) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step("mkdir", name); err != nil {
		return err
	}
	d, base, err := f.parent(name)
	if err != nil {
		return err
	}
	if d.entries[base] != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
	}
	n := newDir()
	d.entries[base] = n
	d.pending = append(d.pending, rename{to: base, node: n})
	return nil
}

func (f *crashFS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step("rename", from); err != nil {
		return err
	}
	d, old, err := f.parent(from)
	if err != nil {
		return err
	}
	d2, base, err := f.parent(to)
	if err != nil {
		return err
	}
	n := d.entries[old]
	switch {
	case d2 != d:
		return errors.New("crashFS: a rename stays in its directory")
	case n == nil:
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	if replaced, ok := d.entries[base].(*inode); ok {
		replaced.linked = false
	}
	delete(d.entries, old)
	d.entries[base] = n
	d.pending = append(d.pending, rename{from: old, to: base, node: n})
	return nil
}

func (f *crashFS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, base, err := f.parent(name)
	if err != nil {
		return err
	}
	n, ok := d.entries[base].(*inode)
	if !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if err := f.step("remove", name); err != nil {
		return err
	}
	n.linked = false
	delete(d.entries, base)
	d.pending = append(d.pending, rename{from: base})
	return nil
}

func (f *crashFS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.find(name)
	if err != nil {
		return err
	}
	d, ok := n.(*dir)
	if !ok {
		return &fs.PathError{Op: "syncdir", Path: name, Err: syscall.ENOTDIR}
	}
	if err := f.step("syncdir", name); err != nil {
		// The names of directories, and FORMAT, are no better after a second attempt than after the first, but a start
		// has nothing else than to try again; real file systems stop altogether then.
		for i, r := range d.pending {
			_, isDir := r.node.(*dir)
			d.pending[i].lost = !isDir && path.Base(name) != "j"
		}
		return err
	}
	if f.lie("syncdir", name) {
		return nil
	}
	var lost []rename
	for i, r := range d.pending {
		if !r.lost {
			r.apply(d.durable)
		} else if !overtaken(r, d.pending[i+1:]) {
			lost = append(lost, r)
		}
	}
	d.pending = lost
	return nil
}

func (r rename) touches(o rename) bool {
	for _, name := range []string{r.from, r.to} {
		if name != "" && (name == o.from || name == o.to) {
			return true
		}
	}
	return false
}

// overtaken reports whether a later change that reached the disk decides about the same name.
func overtaken(r rename, later []rename) bool {
	for _, l := range later {
		if !l.lost && r.touches(l) {
			return true
		}
	}
	return false
}

func (r rename) apply(entries map[string]any) {
	if r.from != "" {
		delete(entries, r.from)
	}
	if r.to != "" {
		entries[r.to] = r.node
	}
}

func (f *crashFS) Lock(name string, create bool) (journal.Lock, error) {
	f.mu.Lock()
	_, err := f.find(name)
	f.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) && create {
		var file journal.File
		if file, err = f.Create(name); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locks[name] {
		return nil, fmt.Errorf("%w: %s", journal.ErrLocked, name)
	}
	f.locks[name] = true
	n, _ := f.find(name)
	return &lock{f, name, n}, nil
}

type lock struct {
	fs   *crashFS
	name string
	n    any
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	delete(l.fs.locks, l.name)
	return nil
}

func (l *lock) Linked() (bool, error) {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	n, _ := l.fs.find(l.name)
	return n == l.n, nil
}

// handle is an open file.
type handle struct {
	fs    *crashFS
	n     *inode
	name  string
	write bool
}

func (h *handle) ReadAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(b, h.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes half when it fails.
func (h *handle) WriteAt(b []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.write {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: syscall.EBADF}
	}
	err := h.fs.step("write", h.name)
	if err != nil {
		b = b[:len(b)/2]
	}
	w := write{off: off, data: append([]byte{}, b...)}
	h.n.data = w.apply(h.n.data)
	h.n.pending = append(h.n.pending, w)
	return len(b), err
}

func (h *handle) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.write {
		return &fs.PathError{Op: "truncate", Path: h.name, Err: syscall.EBADF}
	}
	if err := h.fs.step("truncate", h.name); err != nil {
		return err
	}
	w := write{off: size, truncate: true}
	h.n.data = w.apply(h.n.data)
	h.n.pending = append(h.n.pending, w)
	return nil
}

func (h *handle) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.step("sync", h.name); err != nil {
		for i := range h.n.pending {
			h.n.pending[i].lost = true
		}
		return err
	}
	if h.fs.lie("sync", h.name) {
		return nil
	}
	var lost []write
	for i, w := range h.n.pending {
		if !w.lost {
			h.n.durable = w.apply(h.n.durable)
		} else if !w.overwritten(h.n.pending[i+1:]) {
			lost = append(lost, w)
		}
	}
	h.n.pending = lost
	return nil
}

// overwritten reports whether a later change that reached the disk decides about the same bytes.
func (w write) overwritten(later []write) bool {
	for _, l := range later {
		end := l.off + int64(len(l.data))
		if !l.lost && (l.truncate && l.off < w.off+int64(len(w.data)) || l.off < w.off+int64(len(w.data)) && w.off < end) {
			return true
		}
	}
	return false
}

// apply returns changed contents; it never writes into the bytes of the old ones, which snapshots share.
func (w write) apply(b []byte) []byte {
	if w.truncate {
		if w.off <= int64(len(b)) {
			return b[:w.off:w.off]
		}
		return append(b[:len(b):len(b)], make([]byte, w.off-int64(len(b)))...)
	}
	if w.off == int64(len(b)) {
		return append(b, w.data...)
	}
	changed := append([]byte{}, b...)
	if gap := w.off + int64(len(w.data)) - int64(len(b)); gap > 0 {
		changed = append(changed, make([]byte, gap)...)
	}
	copy(changed[w.off:], w.data)
	return changed
}

func (h *handle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.n.data)), nil
}

func (h *handle) Linked() (bool, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return h.n.linked, nil
}

func (h *handle) Close() error { return nil }

// loss is how much of what was not synced a crash loses.
type loss int

const (
	nothing loss = iota
	half         // the later half, the write in the middle torn
	random       // any sectors, any names
	everything
)

func (l loss) String() string { return []string{"nothing", "half", "random", "everything"}[l] }

// crash is a power loss.
type crash struct{ data, names loss }

func (c crash) String() string {
	return fmt.Sprintf("unsynced data lost: %s, unsynced names lost: %s", c.data, c.names)
}

// crashes are those that can differ for the state of the file system. mu is held.
func (f *crashFS) crashes() []crash {
	data, names := f.root.unsynced()
	switch {
	case data && names:
		return []crash{{everything, everything}, {nothing, nothing}, {everything, nothing}, {nothing, everything}, {half, half}, {random, random}}
	case data:
		return []crash{{everything, nothing}, {nothing, nothing}, {half, nothing}, {random, nothing}}
	case names:
		return []crash{{nothing, everything}, {nothing, nothing}, {nothing, half}, {nothing, random}}
	}
	return []crash{{nothing, nothing}}
}

// unsynced reports whether anything that could still be found has not been synced.
func (d *dir) unsynced() (data, names bool) {
	names = len(d.pending) > 0
	for _, entries := range []map[string]any{d.entries, d.durable} {
		for _, n := range entries {
			switch n := n.(type) {
			case *inode:
				data = data || len(n.pending) > 0
			case *dir:
				a, b := n.unsynced()
				data, names = data || a, names || b
			}
		}
	}
	return data, names
}

// after returns the file system after a crash. mu is held.
func (f *crashFS) after(c crash, rng *rand.Rand) *crashFS {
	return &crashFS{root: f.root.after(c, rng), locks: map[string]bool{}}
}

func (d *dir) after(c crash, rng *rand.Rand) *dir {
	entries := map[string]any{}
	for name, n := range d.durable {
		entries[name] = n
	}
	var dropped []rename
	for i, r := range d.pending {
		keep := c.names == nothing || c.names == half && i < len(d.pending)/2 || c.names == random && rng.IntN(2) == 0
		for _, earlier := range dropped {
			keep = keep && !r.touches(earlier)
		}
		if keep {
			r.apply(entries)
		} else {
			dropped = append(dropped, r)
		}
	}
	after := newDir()
	for _, name := range keysOf(entries) { // in order: the same seed gives the same state
		switch n := entries[name].(type) {
		case *inode:
			b := n.after(c.data, rng)
			after.entries[name] = &inode{data: b, durable: b, linked: true}
		case *dir:
			after.entries[name] = n.after(c, rng)
		}
		after.durable[name] = after.entries[name]
	}
	return after
}

func (n *inode) after(l loss, rng *rand.Rand) []byte {
	const sector = 512
	if len(n.pending) == 0 || l == everything {
		return n.durable[:len(n.durable):len(n.durable)]
	}
	full := n.durable[:len(n.durable):len(n.durable)]
	for i, w := range n.pending {
		if l == half && i >= len(n.pending)/2 {
			if i == len(n.pending)/2 && !w.truncate {
				w.data = w.data[:len(w.data)/2]
				full = w.apply(full)
			}
			break
		}
		full = w.apply(full)
	}
	if l != random {
		return full[:len(full):len(full)]
	}
	size := len(full)
	if rng.IntN(2) == 0 {
		size = len(n.durable)
	}
	mixed := make([]byte, size)
	for at := 0; at < size; at += sector {
		end := min(at+sector, size)
		from := full
		if rng.IntN(2) == 0 {
			from = n.durable
		}
		if at < len(from) {
			copy(mixed[at:end], from[at:])
		}
	}
	return mixed
}

// killed returns the file system as the next process finds it when this one was killed: nothing has gone, and nothing
// more is on disk. mu is held.
func (f *crashFS) killed() *crashFS {
	copies := map[any]any{}
	return &crashFS{root: f.root.killed(copies), locks: map[string]bool{}}
}

func (d *dir) killed(copies map[any]any) *dir {
	k := newDir()
	copies[d] = k
	same := func(n any) any {
		if n == nil {
			return nil
		}
		if c := copies[n]; c != nil {
			return c
		}
		switch n := n.(type) {
		case *inode:
			copies[n] = &inode{
				data: n.data[:len(n.data):len(n.data)], durable: n.durable[:len(n.durable):len(n.durable)],
				pending: append([]write{}, n.pending...), linked: n.linked,
			}
		case *dir:
			n.killed(copies)
		}
		return copies[n]
	}
	for name, n := range d.entries {
		k.entries[name] = same(n)
	}
	for name, n := range d.durable {
		k.durable[name] = same(n)
	}
	for _, r := range d.pending {
		r.node = same(r.node)
		k.pending = append(k.pending, r)
	}
	return k
}

// The tests below stand on what crashFS loses.
func TestCrashFS(t *testing.T) {
	f := newCrashFS()
	if err := f.Mkdir("/d"); err != nil {
		t.Fatal(err)
	}
	file, err := f.Create("/d/a")
	if err != nil {
		t.Fatal(err)
	}
	put := func(s string, off int64) {
		t.Helper()
		if _, err := file.WriteAt([]byte(s), off); err != nil {
			t.Fatal(err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(what string, f *crashFS, want string) {
		t.Helper()
		got := "no file"
		if n, err := f.find("/d/a"); err == nil {
			got = string(n.(*inode).data)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	put("one", 0)
	do(file.Sync())
	want("name not durable", f.after(crash{nothing, everything}, rng), "no file")
	do(f.SyncDir("/d"))
	want("its directory's name not durable", f.after(crash{nothing, everything}, rng), "no file")
	do(f.SyncDir("/"))
	put("four", 3)
	want("unsynced data", f.after(crash{everything, everything}, rng), "one")
	want("half of it", f.after(crash{half, everything}, rng), "onefo")
	want("all of it", f.after(crash{nothing, everything}, rng), "onefour")
	f.before = func(op, _ string) error { return syscall.EIO }
	if err := file.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	f.before = nil
	do(file.Sync())
	want("a failed sync and one that succeeds", f.after(crash{everything, everything}, rng), "one")
	put("!", 7)
	do(file.Sync())
	want("a later write", f.after(crash{everything, everything}, rng), "one\x00\x00\x00\x00!")
	want("killed", f.killed(), "onefour!")
	want("killed, then without power", f.killed().after(crash{everything, everything}, rng), "one\x00\x00\x00\x00!")
	do(f.Remove("/d/a"))
	want("removal not durable", f.after(crash{everything, everything}, rng), "one\x00\x00\x00\x00!")
	want("removal durable", f.after(crash{everything, nothing}, rng), "no file")
	if ok, err := file.Linked(); ok || err != nil {
		t.Errorf("linked %v, %v", ok, err)
	}
}

func keysOf(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
