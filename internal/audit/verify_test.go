package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/clock/clocktest"
)

// small returns the files of a chain of two files, as bytes, and their names.
func small(t testing.TB) (names []string, files [][]byte) {
	t.Helper()
	m := newMemFS()
	l := run(t, Config{Dir: "d", FS: m, Clock: clocktest.New(start), Node: "n1"})
	l.lines(t, 0, 3)
	l.end(t)
	l = run(t, Config{Dir: "d", FS: m, Clock: clocktest.New(start.Add(DefaultFileAge)), Node: "n1"})
	l.lines(t, 3, 5)
	l.end(t)
	for name := range m.files {
		names = append(names, strings.TrimPrefix(name, "d/"))
	}
	slices.SortFunc(names, byNumber)
	for _, name := range names {
		files = append(files, m.files["d/"+name].data)
	}
	if len(files) != 2 {
		t.Fatalf("%v", names)
	}
	return names, files
}

func check(t testing.TB, names []string, files [][]byte) Report {
	t.Helper()
	v := newVerifier(nil, nil)
	for i, b := range files {
		if err := v.read(t.Context(), names[i], bytes.NewReader(b), i == len(files)-1); err != nil {
			t.Fatal(err)
		}
		if v.report.Break != nil {
			return v.report
		}
	}
	v.end()
	return v.report
}

// A change of any byte is found, and so is a byte put in or taken out.
func TestEveryByte(t *testing.T) {
	names, files := small(t)
	if r := check(t, names, files); !r.Whole() || r.Open != 0 || r.Lines != 7 {
		t.Fatalf("%+v", r)
	}
	for i := range files {
		for at := range files[i] {
			for what, changed := range map[string][]byte{
				"changed":  slices.Concat(files[i][:at], []byte{files[i][at] ^ 1}, files[i][at+1:]),
				"put in":   slices.Concat(files[i][:at], []byte{'0'}, files[i][at:]),
				"left out": slices.Concat(files[i][:at], files[i][at+1:]),
			} {
				if bytes.Equal(changed, files[i]) {
					continue
				}
				all := slices.Clone(files)
				all[i] = changed
				r := check(t, names, all)
				// The end of the last line is the exception: that looks like a write under way, and is reported as one.
				if r.Whole() && !(i == 1 && r.Open > 0 && at >= len(changed)-1) {
					t.Fatalf("byte %d of file %d %s: %+v", at, i, what, r)
				}
			}
		}
	}
}

// Lines that were changed, removed, moved, repeated or put in are found, and the report says where.
func TestTampering(t *testing.T) {
	names, files := small(t)
	first, second := bytes.SplitAfter(files[0], []byte("\n")), bytes.SplitAfter(files[1], []byte("\n"))
	first, second = first[:len(first)-1], second[:len(second)-1]
	join := func(a, b [][]byte) [][]byte { return [][]byte{bytes.Join(a, nil), bytes.Join(b, nil)} }
	reseal := func(c chain, content string) []byte {
		c.seal = newSeal(Key{})
		return c.sealed(nil, []byte(content))
	}
	at := func(b []byte) (c chain) {
		l, ok := parse(bytes.TrimSuffix(b, []byte("\n")))
		if !ok {
			t.Fatalf("%s", b)
		}
		return chain{n: l.n, sum: l.hash}
	}
	for _, tc := range []struct {
		name  string
		files [][]byte
		want  string // file:line: part of the reason; empty: it is not found
	}{
		{"removed", join(slices.Delete(slices.Clone(first), 2, 3), second), names[0] + ":3: 1 lines are missing before it"},
		{"removed at the end of a file", join(first[:3], second), names[1] + ":1: 1 lines are missing before it"},
		{"removed at the beginning", join(first[1:], second), names[0] + ":1: the file does not begin"},
		{"removed at the beginning of the second", join(first, second[1:]), names[1] + ":1: the file does not begin"},
		{"removed at the very end", join(first, second[:2]), ""},
		{"the first file is removed", [][]byte{nil, files[1]}, names[0] + ":1: the file is empty"},
		{"moved", join([][]byte{first[0], first[2], first[1], first[3]}, second), names[0] + ":2: 1 lines are missing"},
		{"repeated", join(slices.Insert(slices.Clone(first), 2, first[1]), second), names[0] + ":3: its number is 2"},
		{"put in", join(slices.Insert(slices.Clone(first), 2, []byte("{}\n")), second), names[0] + ":3: this is no line of an audit"},
		{"put in at the end", join(first, append(slices.Clone(second), []byte("{}\n"))), names[1] + ":4: this is no line of an audit"},
		{"changed", join(replace(first, 1, "login", "other"), second), names[0] + ":2: the hash does not fit"},
		{"changed and sealed again", join(slices.Concat(first[:2], [][]byte{reseal(at(first[1]), `,"event":"write"`)}, first[3:]), second), names[0] + ":4: the hash does not fit"},
		{"the last of a file sealed again", join(slices.Concat(first[:3], [][]byte{reseal(at(first[2]), `,"event":"write"`)}), second), names[1] + ":1: the file before does not end as"},
		{"put together", [][]byte{slices.Concat(files[0], files[1]), nil}, names[0] + ":5: a line that begins a file is in the middle"},
		{"torn bytes that are not there", join(append(slices.Clone(first), reseal(at(first[3]), `,"event":"torn","time":"x","torn":4,"torn_sha256":"00"`)), second), names[0] + ":5: the line is not valid JSON"},
		{"torn bytes that are not there", join(append(slices.Clone(first), reseal(at(first[3]), `,"event":"torn","torn":4,"torn_sha256":"00"`)), second), names[0] + ":5: the torn bytes"},
		{"unknown format", [][]byte{reseal(chain{}, `,"event":"begin","format":2`), nil}, names[0] + ":1: format 2"},
		{"unknown seal", [][]byte{reseal(chain{}, `,"event":"begin","format":1,"seal":"rot13"`), nil}, names[0] + ":1: it is sealed in a way"},
		{"no hash before", [][]byte{reseal(chain{}, `,"event":"begin","format":1,"seal":"sha256","prev":"00"`), nil}, names[0] + ":1: it does not say"},
		{"a write under way", [][]byte{files[0], slices.Concat(files[1], []byte(`{"n":8,"ev`))}, ""},
		{"not an audit", [][]byte{[]byte("hello\nworld\n"), nil}, names[0] + ":1: this is no line"},
		{"a long line", [][]byte{bytes.Repeat([]byte("a"), 3<<20), files[1]}, names[0] + ":1: this is no line"},
	} {
		if len(tc.files[1]) == 0 {
			tc.files = tc.files[:1]
		}
		r := check(t, names, tc.files)
		switch {
		case tc.want == "" && r.Break != nil, tc.want != "" && (r.Break == nil || !strings.HasPrefix(r.Break.String(), tc.want)):
			t.Errorf("%s: %v, want %s", tc.name, r.Break, tc.want)
		}
	}
	// What was cut off at the end is found by who has kept the head.
	head := check(t, names, files).Last
	v := newVerifier(nil, &head)
	for i, b := range join(first, second[:2]) {
		if err := v.read(t.Context(), names[i], bytes.NewReader(b), i == 1); err != nil {
			t.Fatal(err)
		}
	}
	if v.end(); v.report.Missing == nil {
		t.Errorf("%+v", v.report)
	}
}

func replace(lines [][]byte, i int, old, with string) [][]byte {
	lines = slices.Clone(lines)
	lines[i] = bytes.Replace(lines[i], []byte(old), []byte(with), 1)
	return lines
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := Files([]string{dir}); err == nil {
		t.Error("an empty directory has an audit")
	}
	if _, err := Files([]string{filepath.Join(dir, "none")}); err == nil {
		t.Error("a directory that is not there has an audit")
	}
	for _, name := range []string{"audit-x.jsonl", "lock", "audit-0000000000000010.jsonl", "audit-0000000000000002.jsonl", "audit-10000000000000002.jsonl"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := Files([]string{dir})
	if err != nil || len(files) != 3 || !strings.Contains(files[0], "2.jsonl") || !strings.Contains(files[2], "-1000") {
		t.Errorf("%v, %v", files, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := os.WriteFile(files[0], bytes.Repeat([]byte("\n"), 10_000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(ctx, files, nil, nil); err == nil {
		t.Error("a canceled Verify goes on")
	}
}

// FuzzVerify: whatever is in a file, Verify neither panics nor finds a chain whole that its own hashes do not bear out.
func FuzzVerifyAudit(f *testing.F) {
	_, files := small(f)
	f.Add(files[0], files[1])
	f.Add([]byte(nil), []byte(`{"n":1,"event":"begin"`))
	f.Add(slices.Concat(files[0], []byte("torn")), files[1])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var r Report
		alloctest.AtMost(t, 40*(len(a)+len(b))+3<<20, func() { r = check(t, []string{"a", "b"}, [][]byte{a, b}) }) // a buffer of a megabyte for each file
		if !r.Whole() {
			return
		}
		lines := 0
		for _, text := range [][]byte{a, b} {
			for _, line := range bytes.Split(text, []byte("\n")) {
				if _, ok := parse(line); ok {
					lines++
				}
			}
		}
		if uint64(lines) < r.Lines || r.Last.N-r.First.N+1 != r.Lines && r.Lines > 0 {
			t.Errorf("%s", fmt.Sprintf("%+v", r))
		}
		if end, err := readEnd(&memFile{fs: newMemFS(), data: b}); err != nil || end.size != int64(len(b)) {
			t.Errorf("%+v, %v", end, err)
		}
	})
}
