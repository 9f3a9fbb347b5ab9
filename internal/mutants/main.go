// Command mutants runs the tests against known bugs, one after the other, and prints which test caught which:
//
//	go run ./internal/mutants            all of them (about ten minutes)
//	go run ./internal/mutants no-slack   these
//	go run ./internal/mutants -markdown  the table of docs/reliability.md
//
// A bug of package faults is chosen at run time: the tests are those of the plain program, built with the tag faults, and every one of them must pass without the
// bug. A bug that no test catches, and a test that fails without it, end the command with exit code 1. The bugs of the simulator have their own
// test, TestMutants, whose findings are listed behind them.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/revokd/revokd/internal/faults"
)

// suites say where a bug is expected to show.
var suites = map[string]struct {
	pkg, run string
	own      bool // the tests switch the bug on themselves, and pass when it shows
}{
	"ack-before-write": {pkg: "./internal/e2e", run: "TestCrashLoopFindsMutant", own: true},
	"no-fsync":         {pkg: "./journal", run: "TestCrashes"},
	"no-dir-fsync":     {pkg: "./journal", run: "TestCrashes"},
	"ignore-fsync":     {pkg: "./journal", run: "."},
	"replay-skip-last": {pkg: "./journal", run: "."},
	"retry-fsync":      {pkg: "./journal", run: "."},
	"skip-damage":      {pkg: "./journal", run: "."},
	"unlink-first":     {pkg: "./journal", run: "TestCrashes"},
	"no-rejoin":        {pkg: "./cluster", run: "."},
	"wall-clock":       {pkg: "./internal/clock", run: "."},
	"no-slack":         {pkg: "./revocation", run: "."},
	"local-ttl":        {pkg: "./node", run: "."},
	"short-key":        {pkg: "./revocation", run: "."},
	"no-issuer":        {pkg: "./revocation", run: "."},
	"late-cutoff":      {pkg: "./revocation", run: "."},
	"accept-expired":   {pkg: "./revocation", run: "."},
	"accept-future":    {pkg: "./internal/view", run: "."},
	"active-unready":   {pkg: "./client", run: "."},
	"active-stale":     {pkg: "./client", run: "."},
}

func main() {
	markdown := flag.Bool("markdown", false, "print a Markdown table")
	flag.Parse()
	if err := run(flag.Args(), *markdown); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// finding is a bug and what caught it.
type finding struct{ name, what, by string }

func run(names []string, markdown bool) error {
	known := faults.Mutants()
	all := len(names) == 0
	if all {
		names = slices.Sorted(maps.Keys(known))
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var found []finding
	var missed []string
	clean := map[string]error{} // by suite: whether it passes without a bug
	for _, name := range names {
		s, ok := suites[name]
		if !ok || known[name] == "" {
			return fmt.Errorf("%q is no bug that has a suite; there are %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		key := s.pkg + " " + s.run
		if _, ok := clean[key]; !ok {
			_, clean[key] = test(s.pkg, s.run, "")
		}
		if err := clean[key]; err != nil {
			return fmt.Errorf("the tests of %s fail without a bug: %w", s.pkg, err)
		}
		f := finding{name: name, what: known[name], by: s.pkg + ": " + s.run}
		if !s.own {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("mutant="+name+"\n"), 0o600); err != nil {
				return err
			}
			failed, err := test(s.pkg, s.run, path)
			if err == nil {
				missed = append(missed, name)
				failed = "nothing"
			}
			f.by = s.pkg + ": " + failed
		}
		found = append(found, f)
		fmt.Fprintf(os.Stderr, "%-18s %s\n", f.name, f.by)
	}
	if all {
		more, err := simulated()
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	print(found, markdown)
	if len(missed) > 0 {
		return fmt.Errorf("not caught: %s", strings.Join(missed, ", "))
	}
	fmt.Fprintf(os.Stderr, "mutants: all %d caught\n", len(found))
	return nil
}

var failure = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// test runs tests of a package built with the tag faults, with a bug if path names one, and returns the first test that failed.
func test(pkg, run, path string) (failed string, err error) {
	cmd := exec.Command("go", "test", "-tags", "faults", "-count=1", "-failfast", "-short", "-timeout", "5m", "-run", run, pkg)
	cmd.Env = append(os.Environ(), faults.Env+"="+path)
	out, err := cmd.CombinedOutput()
	if m := failure.FindSubmatch(out); m != nil {
		return string(m[1]), err
	}
	if err != nil && (bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("no tests to run"))) {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return "the run ended: " + last(out), err
}

func last(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[max(0, len(lines)-2)]
}

var line = regexp.MustCompile(`^\s+mutants_test\.go:\d+: (\S+)\s+(.*?)\s{2,}(.*)$`)

// simulated runs the test of the simulator's own bugs and returns what it says.
func simulated() (found []finding, err error) {
	out, err := exec.Command("go", "test", "-count=1", "-v", "-run", "^TestMutants$", "./cluster/replication/internal/sim").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("the simulator: %w: %s", err, out)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if m := line.FindStringSubmatch(lines.Text()); m != nil {
			found = append(found, finding{m[1], m[2], "simulation: " + m[3]})
		}
	}
	return found, nil
}

func print(found []finding, markdown bool) {
	for _, f := range found {
		if markdown {
			fmt.Printf("| `%s` | %s | %s |\n", f.name, f.what, strings.ReplaceAll(f.by, "|", "\\|"))
		} else {
			fmt.Printf("%-22s %-75s %s\n", f.name, f.what, f.by)
		}
	}
}
