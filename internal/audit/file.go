package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/revokd/revokd/journal"
)

// file is the one that is written.
type file struct {
	journal.File
	size  int64
	began time.Time
}

const (
	filePrefix = "audit-"
	fileSuffix = ".jsonl"
)

func fileName(n uint64) string { return fmt.Sprintf("%s%016d%s", filePrefix, n, fileSuffix) }

// isFile reports whether a name is that of a file of lines.
func isFile(name string) bool {
	number, ok := strings.CutPrefix(name, filePrefix)
	number, ok2 := strings.CutSuffix(number, fileSuffix)
	return ok && ok2 && len(number) >= 16 && strings.Trim(number, "0123456789") == ""
}

// byNumber orders names of files by the numbers in them.
func byNumber(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func exists(err error) bool { return errors.Is(err, fs.ErrExist) }

// names returns the files of lines, the oldest first.
func (l *Log) names() ([]string, error) {
	all, err := l.cfg.FS.ReadDir(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(name string) bool { return !isFile(name) })
	slices.SortFunc(all, byNumber)
	return all, nil
}

// resume finds the end of the chain in the files and makes it one that can be appended to. It is called at the start and after a failure.
func (l *Log) resume() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.file != nil {
		_ = l.file.Close() // it has failed, or is about to be opened again
		l.file = nil
	}
	names, err := l.names()
	if err != nil {
		return err
	}
	l.files.Store(int64(len(names)))
	if len(names) == 0 {
		return l.create(names, torn{})
	}
	name := names[len(names)-1]
	f, err := l.cfg.FS.Open(l.path(name), true)
	if err != nil {
		return err
	}
	end, err := readEnd(f)
	if err == nil {
		err = l.resumeIn(f, names, end)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

// resumeIn takes f, the last file, or closes it and begins another if no more may be written to it.
func (l *Log) resumeIn(f journal.File, names []string, end fileEnd) error {
	head := end.last
	if head.n == 0 && len(names) > 1 {
		// The file was made, and no more: the chain ends in the one before.
		before, err := l.cfg.FS.Open(l.path(names[len(names)-2]), false)
		if err != nil {
			return err
		}
		other, err := readEnd(before)
		if err = errors.Join(err, before.Close()); err != nil {
			return err
		}
		if head = other.last; head.n == 0 {
			return fmt.Errorf("%s: it has no line, nor has the file after it: move both away, which begins a new chain", names[len(names)-2])
		}
	}
	l.chain.n, l.chain.sum = head.n, head.hash
	if end.torn.bytes > 0 {
		l.log.Warn("bytes at the end of the audit are no whole line: they stay, and the next line says so", "file", names[len(names)-1], "bytes", end.torn.bytes)
	}
	now := l.cfg.Clock.Now()
	if end.last.n == 0 {
		return l.take(f, end, now, l.chain.begin(now, l.cfg.Node, end.torn))
	}
	first, err := readFirst(f)
	if err != nil {
		return err
	}
	if l.renew || first.Seal != l.chain.seal.name || first.Key != l.chain.seal.id {
		return errors.Join(l.create(names, end.torn), f.Close())
	}
	var content []byte
	if end.torn.bytes > 0 {
		content = end.torn.content(now)
	}
	return l.take(f, end, first.Time, content)
}

// take goes on in a file, behind a line with that content if there is one.
func (l *Log) take(f journal.File, end fileEnd, began time.Time, content []byte) error {
	next := l.chain
	if content != nil {
		var b []byte
		if end.open {
			b = append(b, '\n')
		}
		b = next.sealed(b, content)
		if _, err := f.WriteAt(b, end.size); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			l.renew = true
			return err
		}
		if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
			return err
		}
		end.size += int64(len(b))
	}
	l.chain, l.renew = next, false
	l.head.Store(&Head{next.n, next.sum})
	l.file = &file{File: f, size: end.size, began: began}
	return nil
}

// create begins a file behind names, whose first line tells of torn bytes at the end of the one before, and removes the oldest.
func (l *Log) create(names []string, t torn) error {
	name := fileName(l.chain.n + 1)
	f, err := l.cfg.FS.Create(l.path(name))
	if err != nil {
		return err
	}
	now := l.cfg.Clock.Now()
	if err := l.take(f, fileEnd{}, now, l.chain.begin(now, l.cfg.Node, t)); err != nil {
		return errors.Join(err, f.Close())
	}
	names = append(names, name)
	for len(names) > l.cfg.Files {
		if err := l.cfg.FS.Remove(l.path(names[0])); err != nil {
			l.log.Warn("an old file of the audit cannot be removed", "file", names[0], "error", err)
			break
		}
		names = names[1:]
	}
	l.files.Store(int64(len(names)))
	return nil
}

func (l *Log) path(name string) string { return l.cfg.Dir + "/" + name }

// due reports whether a new file is to be begun before so many bytes more.
func (l *Log) due(more int64) bool {
	return l.file.size+more > l.cfg.FileBytes || l.cfg.Clock.Now().Sub(l.file.began) >= l.cfg.FileAge
}

// rotate ends the file and begins the next.
func (l *Log) rotate() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	l.unsynced.Store(false)
	if err := l.file.Sync(); err != nil {
		l.renew = true
		return err
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return err
	}
	names, err := l.names()
	if err != nil {
		return err
	}
	if err := l.create(names, torn{}); err != nil {
		return err
	}
	l.tellHead("the audit goes on in a new file")
	return nil
}

// fileEnd is what is at the end of a file.
type fileEnd struct {
	size int64
	last line // the last whole one; n is 0 if there is none
	torn torn // what is behind it
	open bool // the last byte ends no line
}

// readEnd looks for the last whole line, in ever more of the end of the file.
func readEnd(f journal.File) (end fileEnd, err error) {
	if end.size, err = f.Size(); err != nil || end.size == 0 {
		return end, err
	}
	for n := int64(64 << 10); ; n *= 4 {
		n = min(n, end.size)
		b := make([]byte, n)
		if _, err := f.ReadAt(b, end.size-n); err != nil && !errors.Is(err, io.EOF) {
			return end, err
		}
		end.open = b[n-1] != '\n'
		rest := b
		for {
			cut := bytes.LastIndexByte(rest, '\n')
			if cut < 0 {
				break
			}
			start := bytes.LastIndexByte(rest[:cut], '\n') + 1
			if start == 0 && n < end.size {
				break // its beginning is not here
			}
			if l, ok := parse(rest[start:cut]); ok {
				l.content, l.event = nil, nil
				end.last, end.torn = l, tear(b[cut+1:], end.open)
				return end, nil
			}
			rest = rest[:start]
			if start == 0 {
				break
			}
		}
		if n == end.size {
			end.torn = tear(b, end.open)
			return end, nil
		}
	}
}

// tear describes bytes that are no line; the end of line that is going to be behind them counts.
func tear(b []byte, open bool) torn {
	if len(b) == 0 {
		return torn{}
	}
	h := sha256.New()
	h.Write(b)
	t := torn{bytes: int64(len(b))}
	if open {
		h.Write([]byte{'\n'})
		t.bytes++
	}
	h.Sum(t.sum[:0])
	return t
}

// special is what lines of the chain's own say.
type special struct {
	Time   time.Time `json:"time"`
	Format int       `json:"format"`
	Node   string    `json:"node"`
	Prev   string    `json:"prev"`
	Seal   string    `json:"seal"`
	Key    string    `json:"key"`
	Count  uint64    `json:"count"`
	Torn   int64     `json:"torn"`
	Sum    string    `json:"torn_sha256"`
}

func (l *line) special() (s special, err error) {
	return s, json.Unmarshal(append(slices.Clone(l.content), '}'), &s)
}

// readFirst returns the first line of a file that has one.
func readFirst(f journal.File) (special, error) {
	r := newLines(io.NewSectionReader(f, 0, 1<<62))
	for {
		b, whole, err := r.next()
		if err != nil {
			return special{}, err
		}
		if l, ok := parse(b); ok && whole {
			if string(l.event) != "begin" {
				return special{}, fmt.Errorf("the first line of the last file is no begin: move the files away, which begins a new chain")
			}
			return l.special()
		}
	}
}
