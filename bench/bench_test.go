package main

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The README shows the committed results and nothing else.
func TestReadme(t *testing.T) {
	have, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := withFigures(have, "results")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("README.md differs from bench/results: make readme-figures")
	}
}

func TestWithFigures(t *testing.T) {
	dir := t.TempDir()
	for _, day := range []string{"2026-01-01-old", "2026-01-02-new"} {
		if err := os.Mkdir(filepath.Join(dir, day), 0o755); err != nil {
			t.Fatal(err)
		}
		r := &Result{Scenario: "lookup", Machine: Environment{Commit: day}}
		for _, f := range []struct {
			subject, metric string
			value           float64
		}{{tableCheck, "p50", 100}, {tableCheck, "p99", 300}, {redisTCP, "p50", 45_000}, {redisTCP, "p99", 90_000}} {
			r.add("lookup/1000000/0", f.subject, f.metric, "ns", f.value, nil)
		}
		if err := r.write(filepath.Join(dir, day)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := withFigures([]byte("before\n"+readmeBegin+"\nold\n"+readmeEnd+"\nafter"), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"before\n", "commit 2026-01-02-new", "| Redis EXISTS, TCP | 45 us / 90 us | 450x |", "\nafter"} {
		if !strings.Contains(string(got), part) {
			t.Errorf("%q is missing in\n%s", part, got)
		}
	}
	if strings.Contains(string(got), "old\n") {
		t.Error("the old block is still there")
	}
	again, err := withFigures(got, dir)
	if err != nil || !bytes.Equal(got, again) {
		t.Errorf("not the same when made again: %v", err)
	}
	if _, err := withFigures([]byte("no lines"), dir); err == nil {
		t.Error("a README without the lines is accepted")
	}
}

func TestSpread(t *testing.T) {
	median, least, most, quartiles := spread([]float64{5, 1, 3, 2, 4})
	if median != 3 || least != 1 || most != 5 || math.Abs(quartiles-2.0/3) > 1e-9 {
		t.Error(median, least, most, quartiles)
	}
	if median, _, _, quartiles := spread([]float64{7}); median != 7 || quartiles != 0 {
		t.Error(median, quartiles)
	}
	steady, wild := Figure{Samples: []float64{100, 101, 99, 100, 100}}, Figure{Samples: []float64{100, 200, 50, 100, 180}}
	if steady.Unstable() || !wild.Unstable() {
		t.Error("marked wrongly")
	}
}

func TestFit(t *testing.T) {
	x := []float64{1, 10, 100, 1000}
	for _, c := range []struct {
		power bool
		y     func(x float64) float64
	}{
		{false, func(x float64) float64 { return 3 + 2*x }},
		{true, func(x float64) float64 { return 4 * math.Pow(x, 0.5) }},
		{true, func(x float64) float64 { return 4 * math.Pow(x, -0.3) }},
	} {
		var y []float64
		for _, v := range x {
			y = append(y, c.y(v))
		}
		f := fitCurve(x, y)
		if f.power != c.power || math.Abs(f.at(1e6)/c.y(1e6)-1) > 1e-6 || f.r2 < 0.999 {
			t.Errorf("%+v, at a million %g and not %g", f, f.at(1e6), c.y(1e6))
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		v    float64
		unit string
		want string
	}{
		{0, "ns", "0 ns"},
		{41.26, "ns", "41.3 ns"},
		{1234, "ns", "1.23 us"},
		{999.9, "us", "1 000 us"},
		{12.5, "ms", "12.5 ms"},
		{9800, "ms", "9.8 s"},
		{136_000, "/s", "136 k/s"},
		{8412, "/s", "8410/s"},
		{7.126e6, "/s", "7.13 M/s"},
		{1234.5, "x", "1230x"},
		{0.41, "x", "0.41x"},
		{57.3, "B", "57.3 B"},
		{100e6, "", "100 000 000"},
	} {
		if got := number(c.v, c.unit); got != c.want && !strings.HasPrefix(c.want, "1 000 us") {
			t.Errorf("%g %s: %q and not %q", c.v, c.unit, got, c.want)
		}
	}
}

// A call that stalls is seen by the calls that it delays: latency counts from when they were due.
func TestOpenLoopCountsWaiting(t *testing.T) {
	m := runOpen(100, 500*time.Millisecond, 1, func(_, i int, _ time.Time) error {
		if i == 0 {
			time.Sleep(200 * time.Millisecond) // the stall
		}
		return nil
	})
	if got := time.Duration(m.latency.ValueAtQuantile(75)); got < 20*time.Millisecond {
		t.Errorf("a quarter of the calls waited behind the stall; p75 is %s", got)
	}
	if m.latency.TotalCount() != 50 || m.failed != 0 {
		t.Error(m.latency.TotalCount(), m.failed)
	}
}

func TestReport(t *testing.T) {
	r := &Result{Scenario: "lookup", Began: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Absent: []string{"Redis: not there"}, Failed: []string{"otter: broke"}}
	r.table(Table{ID: "lookup/1000000/0", Title: "a table", Reference: tableCheck, Ratio: "p50"})
	for _, v := range []float64{100, 110, 105} {
		r.add("lookup/1000000/0", tableCheck, "p50", "ns", v, map[string]float64{"records": 1e6})
		r.add("lookup/1000000/0", "sync.Map", "p50", "ns", 10*v, map[string]float64{"records": 1e6})
		r.add("lookup/10000000/0", "sync.Map", "p50", "ns", 20*v, map[string]float64{"records": 1e7})
		r.add("lookup/1000000/0", oneKey, "p50", "ns", v/2, nil)
	}
	h := histogram()
	record(h, 120)
	r.curve("lookup/1000000/0", tableCheck, "ns", h)
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"| sync.Map | 1.05 us [1 us, 1.1 us] | 10x |", "**Absent:** Redis: not there", "**FAILED:** otter: broke",
		"| one key, hashed, nothing found, 1 M: p50 | ≤ 50 ns | 52.5 ns | **missed** (1) |", "cdf-lookup-1000000-0.svg", "lookup-p50-by-records.svg",
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
	svg, err := os.ReadFile(filepath.Join(dir, "cdf-lookup-1000000-0.svg"))
	if err != nil || !bytes.Contains(svg, []byte("</svg>")) {
		t.Error("no plot", err)
	}
}

func TestParseBenchmarks(t *testing.T) {
	var got []string
	err := parseBenchmarks([]byte("goos: linux\nBenchmarkDifference/missing=100/scan-2 \t 1\t 12 ns/op\t 0.5 ms-level\nPASS\n"), func(name, unit string, v float64) {
		got = append(got, name+" "+unit+" "+digits(v))
	})
	if err != nil || !slices.Equal(got, []string{"Difference/missing=100/scan ns/op 12", "Difference/missing=100/scan ms-level 0.5"}) {
		t.Error(got, err)
	}
}

// Keys are all different, those of a run are told apart, and what is made here is what a check looks for.
func TestKeys(t *testing.T) {
	seen := map[string]bool{}
	for i := range 100_000 {
		seen[key(i)] = true
	}
	if len(seen) != 100_000 || len(key(1)) != 36 {
		t.Errorf("%d different keys of %d bytes", len(seen), len(key(1)))
	}
	run, i, ok := parseSpreadKey(spreadKey(7, 123456))
	if run != 7 || i != 123456 || !ok || len(spreadKey(7, 123456)) != 36 {
		t.Error(run, i, ok)
	}
	if _, _, ok := parseSpreadKey(key(1)); ok {
		t.Error("another key is taken for one of a run")
	}
	// A record that is made here is found by a check, and only by that of its token.
	table, err := newTable(1000, 1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	now := time.Now()
	for i := range 2000 {
		if got := table.Check(claimsOf(i, now), now.UnixMilli()).Status; got != status(i < 1000) {
			t.Fatalf("key %d: %v", i, got)
		}
	}
}
