package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)

func event(i int) Event {
	return Event{
		Kind: "write", Time: start.Add(time.Duration(i) * time.Second), Method: "Revoke", Request: fmt.Sprintf("%016x", i), Who: "login", Role: "writer", From: "10.0.0.7:1234",
		Target: "match", Match: [16]byte(bytes.Repeat([]byte{15}, 16)), Claims: []string{"iss", "jti"}, Rule: "deny", Reason: "logout", Comment: "ticket \"7\"\n\u2028",
		Outcome: "revoked", Durability: "disk", Ack: "local", Confirmed: []string{"n1"}, Expires: start.Unix(),
	}
}

// running is a Log that runs.
type running struct {
	*Log
	stop context.CancelFunc
	done chan error
}

func run(t testing.TB, cfg Config) *running {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return begin(l)
}

func begin(l *Log) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Log: l, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- l.Run(ctx) }()
	return r
}

func (r *running) end(t testing.TB) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}

// lines appends the lines from one number to another, one by one.
func (r *running) lines(t testing.TB, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := r.Append(context.Background(), event(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t testing.TB, dir string, keys []Key, anchor *Head) Report {
	t.Helper()
	files, err := Files([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Verify(t.Context(), files, keys, anchor)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verifyFS verifies what is in a memFS.
func verifyFS(t testing.TB, m *memFS) Report {
	t.Helper()
	v := newVerifier(nil, nil)
	names, err := (&Log{cfg: Config{FS: m, Dir: "d"}}).names()
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if err := v.read(t.Context(), name, bytes.NewReader(m.files["d/"+name].data), i == len(names)-1); err != nil {
			t.Fatal(err)
		}
		if v.report.Break != nil {
			return v.report
		}
	}
	v.end()
	return v.report
}

// The lines are JSON, one object each, and say what they were given.
func TestLines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := run(t, Config{Dir: dir, Node: "n1"})
	e := event(1)
	e.Values = []byte(`{"iss":"i"}`)
	e.Item, e.Count = 3, 4
	if err := l.Append(t.Context(), e, Event{Kind: "write", Time: start, Comment: "\x00\xff\u0085é\U0001f600" + strings.Repeat("a", 2*maxField), Claims: slices.Repeat([]string{"x"}, 100)}); err != nil {
		t.Fatal(err)
	}
	l.end(t)
	path := filepath.Join(dir, "audit-0000000000000001.jsonl")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var got []map[string]any
	for text := range strings.Lines(string(text)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		got = append(got, m)
	}
	if len(got) != 3 {
		t.Fatalf("%d lines", len(got))
	}
	want := map[string]any{
		"n": 2.0, "event": "write", "time": "2026-01-02T03:04:06.000006Z", "method": "Revoke", "request": "0000000000000001", "item": 3.0, "who": "login", "role": "writer",
		"from": "10.0.0.7:1234", "target": "match", "match": strings.Repeat("0f", 16), "claims": []any{"iss", "jti"}, "values": map[string]any{"iss": "i"}, "rule": "deny",
		"reason": "logout", "comment": "ticket \"7\"\n\u2028", "outcome": "revoked", "durability": "disk", "ack": "local", "confirmed": []any{"n1"}, "expires": "2026-01-02T03:04:05Z",
		"count": 4.0, "hash": got[1]["hash"],
	}
	if fmt.Sprint(got[1]) != fmt.Sprint(want) {
		t.Errorf("%v\nwant %v", got[1], want)
	}
	if c := got[2]["comment"].(string); !strings.HasPrefix(c, "\x00\ufffd\u0085é\U0001f600aaa") || len(got[2]["claims"].([]any)) != maxList {
		t.Errorf("%.40q", c)
	}
	if r := verify(t, dir, nil, nil); !r.Whole() || r.Lines != 3 || r.Last.N != 3 || fmt.Sprint(r.Nodes) != "[n1]" {
		t.Errorf("%+v", r)
	}
}

// The chain goes on across restarts and files, whoever writes at the same time.
func TestChainGoesOn(t *testing.T) {
	dir := t.TempDir()
	var heads []Head
	for range 3 {
		l := run(t, Config{Dir: dir, FileBytes: MinFileBytes})
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() { l.lines(t, w*50, w*50+50) })
		}
		wg.Wait()
		heads = append(heads, l.Stats().Head)
		l.end(t)
	}
	files, err := Files([]string{dir})
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	r := verify(t, dir, nil, &heads[0])
	if !r.Whole() || r.Lines != 1200+uint64(len(files)) || r.Last != heads[2] || r.First.N != 1 {
		t.Errorf("%+v", r)
	}
	// A head that is not among them.
	other := heads[1]
	other.Hash[0]++
	if r := verify(t, dir, nil, &other); r.Whole() || r.Missing == nil {
		t.Errorf("%+v", r)
	}
	// A part of the chain can be checked without the rest, and together in any order of arguments.
	if r, err := Verify(t.Context(), files[2:4], nil, nil); err != nil || !r.Whole() || r.First.N < 100 {
		t.Errorf("%+v, %v", r, err)
	}
	if again, err := Files([]string{files[3], files[1], dir}); err != nil || !slices.Equal(again, files) {
		t.Errorf("%v, %v", again, err)
	}
}

// Only so many files are kept, and so old.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		clk := clocktest.New(start)
		l := run(t, Config{Dir: "d", FS: m, Clock: clk, FileAge: time.Hour, Files: 2})
		for i := range 4 {
			l.lines(t, i, i+1)
			clk.Advance(time.Hour)
			time.Sleep(2 * time.Second) // of the bubble: the log looks at its clock once a second
		}
		st := l.Stats()
		l.end(t)
		if st.Files != 2 || len(m.files) != 2 {
			t.Errorf("%+v, %d files", st, len(m.files))
		}
		if r := verifyFS(t, m); !r.Whole() || r.First.N != 7 {
			t.Errorf("%+v", r)
		}
	})
}

// Limits of the configuration.
func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Dir: "d", FileBytes: MinFileBytes - 1},
		{Dir: "d", FileBytes: MaxFileBytes + 1},
		{Dir: "d", FileAge: time.Second},
		{Dir: "d", FileAge: 400 * 24 * time.Hour},
		{Dir: "d", Files: 1},
		{Dir: "d", Files: MaxFiles + 1},
	} {
		if _, err := Open(c); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	dir := t.TempDir()
	l, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, journal.ErrLocked) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Append(t.Context(), event(1)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// With a key the chain cannot be made by others, nor be checked without it; another key begins another file.
func TestKey(t *testing.T) {
	key := func(c string) Key {
		k, err := ParseKey(strings.Repeat(c, 32) + "\n")
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	a, b := key("0a"), key("0b")
	dir := t.TempDir()
	for i, k := range []Key{{}, a, a, b} {
		l := run(t, Config{Dir: dir, Key: k})
		l.lines(t, i, i+1)
		l.end(t)
	}
	if r := verify(t, dir, []Key{a, b}, nil); !r.Whole() || r.Files != 3 || r.Lines != 7 {
		t.Errorf("%+v", r)
	}
	for _, keys := range [][]Key{nil, {a}, {b}} {
		if r := verify(t, dir, keys, nil); r.Whole() || !strings.Contains(r.Break.Reason, "which was not given") {
			t.Errorf("%+v", r)
		}
	}
	for _, text := range []string{"", "0a", strings.Repeat("0", 62), strings.Repeat("zz", 32), strings.Repeat("0a", 2000)} {
		if _, err := ParseKey(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.10q: %v", text, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", a, a, a, a); strings.Contains(s, "\n\n") || strings.Contains(s, strings.Repeat("\x0a", 4)) {
		t.Errorf("%q", s)
	}
}

// What was appended before a crash at any operation, whatever of it arrived, is there after the next start, and the chain is whole.
func TestCrash(t *testing.T) {
	history := func(m *memFS) (acked int) {
		defer func() { m.mu.Lock(); m.off = true; m.mu.Unlock() }()
		l, err := Open(Config{Dir: "d", FS: m, FileBytes: MinFileBytes, Files: 3, Clock: clocktest.New(start)})
		if err != nil {
			return 0
		}
		r := begin(l)
		defer func() { r.stop(); <-r.done }()
		for i := range 25 {
			e := event(i)
			e.Comment = strings.Repeat("c", 1000) // so that files end
			var es []Event
			for range 7 {
				es = append(es, e)
			}
			if r.Append(context.Background(), es...) != nil {
				return acked
			}
			acked += len(es)
		}
		return acked
	}
	whole := newMemFS()
	whole.left = -1
	if n := history(whole); n != 175 {
		t.Fatalf("%d lines", n)
	}
	ops := whole.ops
	if ops < 25 {
		t.Fatalf("only %d operations", ops)
	}
	torns := 0
	for at := 1; at <= ops; at++ {
		for part := range 3 {
			for _, power := range []bool{false, true} {
				m := newMemFS()
				m.left, m.part = at, part
				acked := history(m)
				m = m.reboot(power)
				for again := range 2 {
					l, err := Open(Config{Dir: "d", FS: m, FileBytes: MinFileBytes, Files: 3, Clock: clocktest.New(start)})
					if err != nil {
						t.Fatalf("crash at %d, part %d, power %t: %v", at, part, power, err)
					}
					n := l.Stats().Head.N
					r := begin(l)
					r.lines(t, 0, 1)
					r.end(t)
					report := verifyFS(t, m)
					if !report.Whole() || report.Open != 0 {
						t.Fatalf("crash at %d, part %d, power %t: %+v", at, part, power, report.Break)
					}
					if again == 0 && !power && n < uint64(acked) {
						t.Fatalf("crash at %d: %d lines of %d", at, n, acked)
					}
					torns += len(report.Torn)
				}
			}
		}
	}
	if torns == 0 {
		t.Error("no crash tore a line: the test shows nothing")
	}
}

// A full disk fails the lines, and when there is room again the chain goes on and says what is missing.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l := run(t, Config{Dir: "d", FS: m, Clock: clocktest.New(start)})
		l.lines(t, 0, 3)
		m.set(func() { m.full = 100 })
		for range 2 {
			if err := l.Append(t.Context(), event(4), event(5)); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		if st := l.Stats(); !st.Failed || st.Lost != 4 || !errors.Is(l.Failed(), ErrFailed) {
			t.Errorf("%+v", st)
		}
		m.set(func() { m.full = -1 })
		time.Sleep(2 * time.Second) // of the bubble: it tries once a second
		if err := l.Failed(); err != nil {
			t.Error(err)
		}
		l.lines(t, 6, 8)
		l.end(t)
		r := verifyFS(t, m)
		if !r.Whole() || r.Lost != 4 || len(r.Torn) != 1 || r.Lines != 1+3+1+1+2 {
			t.Errorf("%+v", r)
		}
	})
}

// After a sync that failed the file is not written any more: the chain goes on in another.
func TestFailedSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFS()
		l := run(t, Config{Dir: "d", FS: m, Clock: clocktest.New(start)})
		l.lines(t, 0, 3)
		m.set(func() { m.sync = syscall.EIO })
		time.Sleep(1500 * time.Millisecond) // of the bubble: past the sync, and before the next attempt
		time.Sleep(2 * time.Second)         // of the bubble: past that attempt, which begins another file
		l.lines(t, 3, 5)
		l.end(t)
		if r := verifyFS(t, m); !r.Whole() || r.Files != 2 || r.Lines != 2+5 {
			t.Errorf("%+v", r)
		}
	})
}

func (m *memFS) set(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fn()
}

// The queue is bounded: who comes when it is full waits for his turn, or for the end of his context.
func TestQueueIsBounded(t *testing.T) {
	m := newMemFS()
	l, err := Open(Config{Dir: "d", FS: m, Clock: clocktest.New(start)})
	if err != nil {
		t.Fatal(err)
	}
	big := event(1)
	big.Comment = strings.Repeat("c", maxField)
	many := slices.Repeat([]Event{big}, 1000)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if err := l.Append(gone, many...); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	st := l.Stats()
	if st.QueueBytes > queueBytes+2<<20 || st.Lost == 0 {
		t.Errorf("%+v", st)
	}
	r := begin(l)
	if err := r.Append(t.Context(), many...); err != nil {
		t.Error(err)
	}
	r.end(t)
	if report := verifyFS(t, m); !report.Whole() || report.Lost != st.Lost || report.Lines+st.Lost != 21_000+2 {
		t.Errorf("%+v, lost %d", report, st.Lost)
	}
}

// The log names the head, for whoever keeps it elsewhere, and nothing of the lines.
func TestHeadIsLogged(t *testing.T) {
	var out bytes.Buffer
	l := run(t, Config{Dir: "d", FS: newMemFS(), Logger: hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Trace})})
	l.lines(t, 0, 2)
	head := l.Stats().Head
	l.end(t)
	if !strings.Contains(out.String(), head.String()) || strings.Contains(out.String(), "login") {
		t.Error(out.String())
	}
	if again, err := ParseHead(head.String()); err != nil || again != head {
		t.Errorf("%v, %v", again, err)
	}
	for _, text := range []string{"", "1", "1:", "0:" + strings.Repeat("00", 32), "x:" + strings.Repeat("00", 32), "1:" + strings.Repeat("00", 33)} {
		if _, err := ParseHead(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// BenchmarkAppend is the cost of a line of a batch: encoding, hash and write.
func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := run(b, Config{Dir: b.TempDir(), FileBytes: MaxFileBytes})
			events := slices.Repeat([]Event{event(1)}, n)
			b.ReportAllocs()
			before := cpu()
			for range b.N / n {
				if err := l.Append(b.Context(), events...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu()-before)/float64(max(1, b.N/n*n)), "cpu-ns/line")
			l.end(b)
		})
	}
}

func cpu() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}
