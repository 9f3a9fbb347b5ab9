package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// writeReport makes report, CSV and plots of all results in a directory.
func writeReport(dir string) error {
	all, err := readResults(dir)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("%s holds no results", dir)
	}
	if err := writeCSV(dir, all); err != nil {
		return err
	}
	plots, err := writePlots(dir, all)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.md"), []byte(report(all, plots)), 0o644)
}

func report(all []*Result, plots map[string][]string) string {
	var b strings.Builder
	m := all[0].Machine
	fmt.Fprintf(&b, "# revokd: figures of %s\n\n", all[0].Began.UTC().Format(time.DateOnly))
	if all[0].Quick {
		b.WriteString("**Quick run:** small sizes, few repetitions. It shows that everything works, not how fast it is.\n\n")
	}
	fmt.Fprintf(&b, "`%s` on %d cores of %s, %d GB, %s; %s.\n", m.Command, m.Cores, m.CPU, m.MemoryGB, m.Kernel, m.Go)
	var versions []string
	for name, v := range m.Servers {
		versions = append(versions, name+" "+v)
	}
	for name, v := range m.Modules {
		versions = append(versions, strings.TrimPrefix(name, "github.com/")+" "+v)
	}
	slices.Sort(versions)
	fmt.Fprintf(&b, "Against %s.\n\n", strings.Join(versions, ", "))
	b.WriteString("| scenario | commit | began (UTC) | took | load average before | after |\n|---|---|---|--:|--:|--:|\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | %s | %s | %s |\n", r.Scenario, r.Scenario, r.Machine.Commit, r.Began.UTC().Format("2006-01-02 15:04"), r.Ended.Sub(r.Began).Round(time.Second), r.LoadBegan, r.LoadEnded)
	}
	fmt.Fprintf(&b, `
How it is measured: everybody in the same run, in rounds that take turns, the first of which warms up and is thrown away. A figure is the median of the
rounds, with the least and the greatest in brackets; ! marks one whose quartiles are further apart than %.0f %% of it: do not build on it. "x" says how many times better the
row marked * is; below 1 it is worse. Latencies at a rate are taken from when a call was due (no coordinated omission), in HdrHistograms of three digits.
All servers run on this machine, on loopback, on the same cores as everybody else. Raw data: the JSON files and figures.csv.

## Goals

%s`, unstable*100, goalTable(all))
	for _, r := range all {
		fmt.Fprintf(&b, "\n<a id=%q></a>\n\n## %s\n\n", r.Scenario, strings.ToUpper(r.Scenario[:1])+r.Scenario[1:]+": "+about(r.Scenario))
		for _, f := range r.Failed {
			fmt.Fprintf(&b, "**FAILED:** %s\n\n", f)
		}
		for _, a := range r.Absent {
			fmt.Fprintf(&b, "**Absent:** %s\n\n", a)
		}
		for _, n := range r.Notes {
			fmt.Fprintf(&b, "%s\n\n", n)
		}
		for _, p := range plots[r.Scenario] {
			fmt.Fprintf(&b, "![%s](%s)\n\n", strings.TrimSuffix(p, ".svg"), p)
		}
		for _, t := range r.Tables {
			b.WriteString(markdown(r, t))
		}
	}
	return b.String()
}

func about(name string) string {
	for _, s := range scenarios() {
		if s.name == name {
			return s.about
		}
	}
	return ""
}

// markdown is one table.
func markdown(r *Result, t Table) string {
	var rows, columns []string
	cells := map[[2]string]*Figure{}
	for i := range r.Figures {
		f := &r.Figures[i]
		if f.Table != t.ID {
			continue
		}
		if !slices.Contains(rows, f.Subject) {
			rows = append(rows, f.Subject)
		}
		if !slices.Contains(columns, f.Metric) {
			columns = append(columns, f.Metric)
		}
		cells[[2]string{f.Subject, f.Metric}] = f
	}
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n", t.Title)
	if t.Note != "" {
		fmt.Fprintf(&b, "%s\n\n", t.Note)
	}
	b.WriteString("| |")
	rule := "|---|"
	for _, c := range columns {
		fmt.Fprintf(&b, " %s |", c)
		rule += "--:|"
	}
	reference := cells[[2]string{t.Reference, t.Ratio}]
	if reference != nil {
		fmt.Fprintf(&b, " x (%s) |", t.Ratio)
		rule += "--:|"
	}
	b.WriteString("\n" + rule + "\n")
	for _, row := range rows {
		star := ""
		if row == t.Reference {
			star = " *"
		}
		fmt.Fprintf(&b, "| %s%s |", row, star)
		for _, c := range columns {
			b.WriteString(" " + cell(cells[[2]string{row, c}]) + " |")
		}
		if reference != nil {
			b.WriteString(" " + ratio(reference, cells[[2]string{row, t.Ratio}], t.Higher) + " |")
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	return b.String()
}

func cell(f *Figure) string {
	if f == nil {
		return ""
	}
	median, least, most, _ := spread(f.Samples)
	text := number(median, f.Unit)
	if len(f.Samples) > 1 && least != most {
		text += fmt.Sprintf(" [%s, %s]", number(least, f.Unit), number(most, f.Unit))
	}
	if f.Unstable() {
		text += " !"
	}
	return text
}

// ratio says how many times better the reference is.
func ratio(reference, f *Figure, higher bool) string {
	if f == nil || f.Median() == 0 || reference.Median() == 0 {
		return ""
	}
	v := f.Median() / reference.Median()
	if higher {
		v = 1 / v
	}
	return digits(v) + "x"
}

// number shows three digits, with a unit that keeps them short.
func number(v float64, unit string) string {
	switch unit {
	case "ns", "us", "ms", "s":
		ns := v * map[string]float64{"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[unit]
		switch {
		case math.Abs(ns) < 1e3:
			return digits(ns) + " ns"
		case math.Abs(ns) < 1e6:
			return digits(ns/1e3) + " us"
		case math.Abs(ns) < 1e9:
			return digits(ns/1e6) + " ms"
		}
		return digits(ns/1e9) + " s"
	case "/s":
		switch {
		case v >= 1e6:
			return digits(v/1e6) + " M/s"
		case v >= 1e4:
			return digits(v/1e3) + " k/s"
		}
		return digits(v) + "/s"
	case "x":
		return digits(v) + "x"
	case "":
		return digits(v)
	}
	return digits(v) + " " + unit
}

// digits rounds to three of them.
func digits(v float64) string {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	places := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	p := math.Pow(10, float64(min(places, 12)))
	v = math.Round(v*p) / p
	if math.Abs(v) >= 1e9 || math.Abs(v) < 1e-4 {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	return group(strconv.FormatFloat(v, 'f', -1, 64))
}

// group puts a space between thousands.
func group(s string) string {
	whole, rest, point := strings.Cut(s, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "-", whole[1:]
	}
	for i := len(whole) - 3; i > 0 && len(whole) > 4; i -= 3 {
		whole = whole[:i] + " " + whole[i:]
	}
	if point {
		return sign + whole + "." + rest
	}
	return sign + whole
}
