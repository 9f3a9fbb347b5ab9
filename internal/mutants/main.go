// Command mutants runs the tests against known bugs, one after the other, and prints which test caught which:
//
//	go run ./internal/mutants            all of them (about ten minutes)
//	go run ./internal/mutants no-slack   these
//	go run ./internal/mutants -markdown  the table of docs/reliability.md
//
// A bug of package faults is chosen at run time: the test is that of the plain program, built with the tag faults. It must pass without the bug, and it, and not
// another one, must fail with it: nothing else that goes wrong counts as a catch. The rules of replication and of the voters have tests of their own, each called
// TestMutants, which leave out one after the other. A bug that is not caught, and a test that fails without it or is not there, end the command with exit code 1.
package main

import (
	"bytes"
	"errors"
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

// suites say which test shows a bug.
var suites = map[string]struct {
	pkg, test string
	own       bool // the test switches the bug on itself, and passes when it shows
}{
	"ack-before-write": {pkg: "./internal/e2e", test: "TestCrashLoopFindsMutant", own: true},
	"no-fsync":         {pkg: "./journal", test: "TestCrashes"},
	"no-dir-fsync":     {pkg: "./journal", test: "TestCrashes"},
	"ignore-fsync":     {pkg: "./journal", test: "TestFailureTakesItsBlock"},
	"replay-skip-last": {pkg: "./journal", test: "TestBackupRestore"},
	"retry-fsync":      {pkg: "./journal", test: "TestFailureTakesItsBlock"},
	"skip-damage":      {pkg: "./journal", test: "TestRepair"},
	"unlink-first":     {pkg: "./journal", test: "TestCrashes"},
	"no-rejoin":        {pkg: "./cluster", test: "TestPartitionOfHalvesHealsWithinTenSeconds"},
	"wall-clock":       {pkg: "./internal/clock", test: "TestJumpAndReturn"},
	"no-slack":         {pkg: "./revocation", test: "TestNeverEarly"},
	"local-ttl":        {pkg: "./node", test: "TestJoinedContent"},
	"short-key":        {pkg: "./revocation", test: "TestVectors"},
	"no-issuer":        {pkg: "./revocation", test: "TestFingerprintsDiffer"},
	"late-cutoff":      {pkg: "./revocation", test: "TestVectors"},
	"accept-expired":   {pkg: "./revocation", test: "TestDelta"},
	"accept-future":    {pkg: "./internal/view", test: "TestMergeBounds"},
	"active-unready":   {pkg: "./client", test: "TestNotReady"},
	"active-stale":     {pkg: "./client", test: "TestNodeGone"},
	"suspended":        {pkg: "./client", test: "TestStoppedMachine"},
	"answer-stays":     {pkg: "./client", test: "TestFilterAnswerDies"},
	"answer-age":       {pkg: "./client", test: "TestFilterAnswerAge"},
	"wide-keep":        {pkg: "./revocation", test: "TestThiefKeepsHisSession"},
	"stamp-by-clock":   {pkg: "./revocation", test: "TestBlockBehindAFastClock"},
	"shared-classes":   {pkg: "./revocation", test: "TestClassesHaveKeysOfTheirOwn"},
	"no-skew":          {pkg: "./revocation", test: "TestIssuerAhead"},
	"bound-peers":      {pkg: "./revocation", test: "TestPartitionMakesManyShapes"},
	"bound-replay":     {pkg: "./revocation", test: "TestBootIn1970"},
	"unknown-key":      {pkg: "./node", test: "TestNodeWithoutKey"},
	"trust-repaired":   {pkg: "./node", test: "TestRepairedNode"},
	"sum-no-cutoff":    {pkg: "./node", test: "TestAuditSumsCutoffs"},
}

// tables are the packages whose test TestMutants leaves out rules of their own, and logs a line for each: its name, what it does, what caught it.
var tables = []string{"./cluster/replication", "./cluster/replication/internal/sim", "./cluster/voters"}

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
	clean := map[string]error{} // by test: whether it passes without a bug
	for _, name := range names {
		s, ok := suites[name]
		if !ok || known[name] == "" {
			return fmt.Errorf("%q is no bug that has a test; there are %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		f := finding{name: name, what: known[name], by: s.pkg + ": " + s.test}
		if _, ok := clean[f.by]; !ok {
			_, clean[f.by] = test(s.pkg, s.test, "")
		}
		if err := clean[f.by]; err != nil {
			return fmt.Errorf("without a bug: %w", err)
		}
		if !s.own {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte("mutant="+name+"\n"), 0o600); err != nil {
				return err
			}
			if _, err := test(s.pkg, s.test, path); !errors.Is(err, errFailed) {
				missed = append(missed, name)
				f.by = fmt.Sprintf("nothing: %s: %v", f.by, err)
			}
		}
		found = append(found, f)
		fmt.Fprintf(os.Stderr, "%-22s %s\n", f.name, f.by)
	}
	var errs error
	if all {
		for _, pkg := range tables {
			more, err := table(pkg)
			found, errs = append(found, more...), errors.Join(errs, err)
		}
	}
	print(found, markdown)
	if len(missed) > 0 {
		errs = errors.Join(fmt.Errorf("not caught: %s", strings.Join(missed, ", ")), errs)
	}
	if errs != nil {
		return errs
	}
	fmt.Fprintf(os.Stderr, "mutants: all %d caught\n", len(found))
	return nil
}

// errFailed: the test ran to its end, and failed. A build that fails, a process that dies and a time that runs out are other errors.
var errFailed = errors.New("it failed")

// test runs one test of a package built with the tag faults, with a bug if path names one, and returns what it printed.
func test(pkg, name, path string) (out []byte, err error) {
	cmd := exec.Command("go", "test", "-tags", "faults", "-count=1", "-v", "-short", "-timeout", "5m", "-run", "^"+name+"$", pkg)
	cmd.Env = append(os.Environ(), faults.Env+"="+path)
	out, err = cmd.CombinedOutput()
	return out, verdict(name, out, err)
}

// verdict is what the output of go test -v, and how it ended, say about a test.
func verdict(name string, out []byte, err error) error {
	ended := func(how string) bool {
		return regexp.MustCompile(`(?m)^ *--- ` + how + `: ` + regexp.QuoteMeta(name) + ` \(`).Match(out)
	}
	switch {
	case err == nil && ended("PASS"):
		return nil
	case err != nil && ended("FAIL") && !bytes.Contains(out, []byte("\npanic: ")):
		return errFailed
	case err == nil: // go test is content with no test at all, or one that is skipped
		return fmt.Errorf("%s did not run", name)
	}
	return fmt.Errorf("%s: %w: %s", name, err, out[max(0, len(out)-2000):])
}

var line = regexp.MustCompile(`(?m)^\s+mutants_test\.go:\d+: (\S+)\t([^\t]+)\t(.+)$`)

// table runs TestMutants of a package and returns the lines of what it says.
func table(pkg string) (found []finding, err error) {
	out, err := test(pkg, "TestMutants", "")
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", pkg, err, out)
	}
	for _, m := range line.FindAllSubmatch(out, -1) {
		f := finding{string(m[1]), string(m[2]), pkg + ": " + string(m[3])}
		if err := verdict("TestMutants/"+f.name, out, nil); err != nil {
			return nil, fmt.Errorf("%s: %w", pkg, err)
		}
		found = append(found, f)
	}
	if tests := bytes.Count(out, []byte("\n    --- PASS: TestMutants/")); len(found) == 0 || len(found) != tests {
		return nil, fmt.Errorf("%s: %d lines of %d mutants", pkg, len(found), tests)
	}
	return found, nil
}

func print(found []finding, markdown bool) {
	for _, f := range found {
		if markdown {
			fmt.Printf("| `%s` | %s | %s |\n", f.name, f.what, strings.ReplaceAll(f.by, "|", "\\|"))
		} else {
			fmt.Printf("%-34s %-75s %s\n", f.name, f.what, f.by)
		}
	}
}
