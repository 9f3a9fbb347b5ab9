package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Report is what [Verify] found.
type Report struct {
	Files   int
	Lines   uint64
	Bytes   int64
	Nodes   []string // that have written it: more than one if files were moved
	First   Head     // where what is left of the chain begins
	Last    Head     // where it ends
	From    time.Time
	Until   time.Time
	Lost    uint64  // lines that could not be written, by what the chain says itself
	Torn    []Place // bytes that are no line, which the chain tells of
	Open    int64   // bytes at the end that are no whole line: a write under way, or one that a crash has torn
	Missing *Head   // the head that was asked for, if no line is at it
	Break   *Place  // the first line that does not fit; nil: there is none
}

// Whole reports whether every line fits, and the head that was asked for is among them.
func (r *Report) Whole() bool { return r.Break == nil && r.Missing == nil }

// Place is a line of a file, from 1.
type Place struct {
	File   string
	Line   int
	Reason string
}

func (p Place) String() string { return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Reason) }

// maxTold bounds Report.Torn and Report.Nodes.
const maxTold = 1000

// Files returns the files of a chain, the oldest first: those that paths name, and those in directories that paths name. Errors match [ErrInvalid] if there is none.
func Files(paths []string) ([]string, error) {
	var files []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, p)
			continue
		}
		entries, err := os.ReadDir(p)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if isFile(e.Name()) {
				files = append(files, filepath.Join(p, e.Name()))
			}
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no files of an audit (audit-*.jsonl) there", ErrInvalid)
	}
	slices.SortStableFunc(files, func(a, b string) int { return byNumber(filepath.Base(a), filepath.Base(b)) })
	return slices.Compact(files), nil
}

// Verify reads the files of one chain, in order, and checks that each line follows from the one before; the first line of the first file is believed. keys are those that lines may have
// been sealed with; anchor, unless nil, is a head that must be among them. The files may be in use. It stops at the first line that does not fit, which is in the report and no error.
func Verify(ctx context.Context, files []string, keys []Key, anchor *Head) (Report, error) {
	v := newVerifier(keys, anchor)
	for i, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return v.report, err
		}
		err = v.read(ctx, name, f, i == len(files)-1)
		f.Close()
		if err != nil || v.report.Break != nil {
			return v.report, err
		}
	}
	v.end()
	return v.report, nil
}

// verifier checks files one after the other.
type verifier struct {
	report Report
	seals  map[string]*seal // by the id of the key; "" is none
	anchor *Head
	met    bool // the anchor

	chain chain
	junk  *junk // behind the last line
}

// junk is lines that are none.
type junk struct {
	at    Place  // of the first
	in    string // the file of the last
	bytes int64
	h     hash.Hash
	open  bool // no end of line is behind it
	lines int
}

func newVerifier(keys []Key, anchor *Head) *verifier {
	v := &verifier{seals: map[string]*seal{"": newSeal(Key{})}, anchor: anchor}
	for _, k := range keys {
		if k.secret != "" {
			v.seals[k.ID()] = newSeal(k)
		}
	}
	return v
}

func (v *verifier) breaks(file string, number int, format string, args ...any) {
	v.report.Break = &Place{file, number, fmt.Sprintf(format, args...)}
}

// read checks one file.
func (v *verifier) read(ctx context.Context, name string, r io.Reader, last bool) error {
	v.report.Files++
	lines := newLines(r)
	first := true // no line of the file was one yet
	for number := 1; ; number++ {
		if number%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		b, whole, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		v.report.Bytes += int64(len(b))
		if whole {
			v.report.Bytes++
		}
		l, ok := parse(b)
		if !ok || !whole {
			v.notALine(name, number, b, whole)
			continue
		}
		v.line(name, number, &l, first)
		if v.report.Break != nil {
			return nil
		}
		first = false
	}
	if first && !last && v.junk == nil {
		v.breaks(name, 1, "the file is empty")
	}
	return nil
}

func (v *verifier) notALine(name string, number int, b []byte, whole bool) {
	if v.junk == nil {
		v.junk = &junk{at: Place{name, number, ""}, h: sha256.New()}
	} else if v.junk.open && v.junk.in != name {
		v.junk.close()
	}
	v.junk.in = name
	v.junk.h.Write(b)
	v.junk.bytes += int64(len(b))
	v.junk.lines++
	v.junk.open = !whole
	if whole {
		v.junk.close()
	}
}

func (j *junk) close() {
	j.h.Write([]byte{'\n'})
	j.bytes++
	j.open = false
}

// line checks a line that has the form of one.
func (v *verifier) line(name string, number int, l *line, first bool) {
	var s special
	event := string(l.event)
	switch event {
	case "begin", "torn", "lost":
		var err error
		if s, err = l.special(); err != nil {
			v.breaks(name, number, "the line is not valid JSON")
			return
		}
	default:
		if first {
			v.breaks(name, number, "the file does not begin with a line that says so: lines before it were removed")
			return
		}
	}
	if event == "begin" && !v.begin(name, number, l, &s, first) {
		return
	}
	if v.chain.seal == nil {
		v.breaks(name, number, "the file does not begin with a line that says so: lines before it were removed")
		return
	}
	if !v.explained(name, number, &s) {
		return
	}
	switch {
	case l.n > v.chain.n+1:
		v.breaks(name, number, "%d lines are missing before it: its number is %d, that of the one before %d", l.n-v.chain.n-1, l.n, v.chain.n)
		return
	case l.n <= v.chain.n:
		v.breaks(name, number, "its number is %d, that of the one before %d: it was moved or put in", l.n, v.chain.n)
		return
	}
	v.chain.seal.hash(&v.chain.sum, l.content)
	if v.chain.sum != l.hash {
		v.breaks(name, number, "the hash does not fit: this line was changed, or the one before together with its hash")
		return
	}
	v.chain.n = l.n
	head := Head{l.n, l.hash}
	if v.report.Lines == 0 {
		v.report.First = head
	}
	v.report.Last = head
	v.report.Lines++
	if v.anchor != nil && *v.anchor == head {
		v.met = true
	}
	if event == "lost" {
		v.report.Lost += s.Count
	}
	if event == "begin" {
		if v.report.From.IsZero() {
			v.report.From = s.Time
		}
		if !slices.Contains(v.report.Nodes, s.Node) && len(v.report.Nodes) < maxTold {
			v.report.Nodes = append(v.report.Nodes, s.Node)
		}
	}
	if t, ok := lineTime(l.content); ok {
		v.report.Until = t
	}
}

// begin takes what the first line of a file says about the chain before it.
func (v *verifier) begin(name string, number int, l *line, s *special, first bool) bool {
	if !first {
		v.breaks(name, number, "a line that begins a file is in the middle of one: files were put together, or lines removed")
		return false
	}
	if s.Format != 1 {
		v.breaks(name, number, "format %d: this program reads format 1", s.Format)
		return false
	}
	sl := v.seals[s.Key]
	switch {
	case s.Seal != plainSeal && s.Seal != keyedSeal || s.Seal == plainSeal && s.Key != "":
		v.breaks(name, number, "it is sealed in a way that this program does not know")
		return false
	case sl == nil || s.Seal == keyedSeal && s.Key == "":
		v.breaks(name, number, "it is sealed with the key %s, which was not given", cutText(s.Key))
		return false
	}
	var prev [32]byte
	if b, err := hex.DecodeString(s.Prev); err != nil || copy(prev[:], b) != len(prev) || len(b) != len(prev) {
		v.breaks(name, number, "it does not say what the last line before it was")
		return false
	}
	if v.chain.seal == nil { // what is before is not here
		v.chain.n, v.chain.sum = l.n-1, prev
	} else if l.n == v.chain.n+1 && prev != v.chain.sum {
		v.breaks(name, number, "the file before does not end as it did when this one was begun")
		return false
	}
	v.chain.seal = sl
	return true
}

func cutText(s string) string { return s[:min(len(s), 64)] }

// explained holds what is no line against what the line behind it says.
func (v *verifier) explained(name string, number int, s *special) bool {
	j := v.junk
	v.junk = nil
	if j == nil {
		if s.Torn != 0 {
			v.breaks(name, number, "the torn bytes that it tells of are not before it")
			return false
		}
		return true
	}
	if j.open {
		j.close()
	}
	if s.Torn != j.bytes || s.Sum != hex.EncodeToString(j.h.Sum(nil)) {
		v.breaks(j.at.File, j.at.Line, "this is no line of an audit, and no line tells of it")
		return false
	}
	j.at.Reason = fmt.Sprintf("%d bytes that a crash or a full disk has left of lines that nobody was told were written", j.bytes)
	if len(v.report.Torn) < maxTold {
		v.report.Torn = append(v.report.Torn, j.at)
	}
	return true
}

// end judges what is behind the last line.
func (v *verifier) end() {
	if j := v.junk; j != nil {
		if j.lines > 1 || !j.open {
			v.breaks(j.at.File, j.at.Line, "this is no line of an audit")
			return
		}
		v.report.Open = j.bytes
	}
	if v.anchor != nil && !v.met {
		v.report.Missing = v.anchor
	}
}

// lineTime returns the third member of a line.
func lineTime(content []byte) (time.Time, bool) {
	_, rest, ok := bytes.Cut(content, []byte(`","time":"`))
	if !ok || len(rest) < len(timeFormat) {
		return time.Time{}, false
	}
	t, err := time.Parse(timeFormat, string(rest[:len(timeFormat)]))
	return t, err == nil
}

// lines reads lines up to a length; what is longer comes in pieces that are no whole lines.
type lines struct{ r *bufio.Reader }

func newLines(r io.Reader) *lines { return &lines{bufio.NewReaderSize(r, maxLine+1)} }

// next returns a line without its end; whole is false if it has none. b is valid until the next call.
func (l *lines) next() (b []byte, whole bool, err error) {
	b, err = l.r.ReadSlice('\n')
	switch {
	case err == nil:
		return b[:len(b)-1], true, nil
	case errors.Is(err, bufio.ErrBufferFull), errors.Is(err, io.EOF) && len(b) > 0:
		return b, false, nil
	}
	return nil, false, err
}
