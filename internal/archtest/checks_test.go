package archtest

import (
	"strings"
	"testing"
)

// Every check finds what it is for, and nothing in a file that keeps the rules.
func TestChecksFind(t *testing.T) {
	const clean = "// Package a does.\npackage a\n\nimport \"errors\"\n\nvar ErrX = errors.New(\"x\")\n"
	allow := map[string]string{"a": "b"}
	for name, test := range map[string]struct {
		check  func([]file) []string
		name   string // of the file
		source string
		want   string
	}{
		"unknown package": {
			func(f []file) []string { return checkImports(f, map[string]string{}) },
			"c/c.go", clean, "package c is not in the table",
		},
		"stale row": {
			func(f []file) []string { return checkImports(f, map[string]string{"a": "", "gone": ""}) },
			"a/a.go", clean, "gone is in the table of imports",
		},
		"sideways import": {
			func(f []file) []string { return checkImports(f, allow) },
			"a/a.go", "package a\nimport _ \"github.com/revokd/revokd/c\"", "a may not import c",
		},
		"import within what is allowed": {
			func(f []file) []string { return checkImports(f, allow) },
			"a/a.go", "package a\nimport _ \"github.com/revokd/revokd/b/c\"", "a may not import b/c",
		},
		"no package comment":      {checkPackageComments, "a/a.go", "package a", "has 0 package comments"},
		"begins otherwise":        {checkPackageComments, "a/a.go", "// Does a.\npackage a", "does not begin"},
		"command":                 {checkPackageComments, "cmd/a/a.go", "// Package main is.\npackage main", "does not begin"},
		"tests without a comment": {checkPackageComments, "a/a_test.go", "package a", "has 0 package comments"},
		"clock": {
			func(f []file) []string { return checkClockReaders(f, nil) },
			"a/a.go", "package a\nimport \"time\"\nvar x = time.Now()", "time.Now",
		},
		"clock by another name": {
			func(f []file) []string { return checkClockReaders(f, nil) },
			"a/a.go", "package a\nimport c \"time\"\nvar x = c.Since(c.Time{})", "time.Since",
		},
		"stale clock reader": {
			func(f []file) []string { return checkClockReaders(f, allow) },
			"a/a.go", clean, "a is in the table of clock readers",
		},
		"panic": {
			func(f []file) []string { return checkPanics(f, nil) },
			"a/a.go", "package a\nfunc f() { panic(1) }", "return an error",
		},
		"print": {
			func(f []file) []string { return checkPanics(f, nil) },
			"a/a.go", "package a\nimport \"fmt\"\nfunc f() { fmt.Println() }", "fmt.Println",
		},
		"exit": {
			func(f []file) []string { return checkPanics(f, nil) },
			"a/a.go", "package a\nimport \"os\"\nfunc f() { os.Exit(1) }", "os.Exit",
		},
		"log": {
			func(f []file) []string { return checkPanics(f, nil) },
			"a/a.go", "package a\nimport \"log\"\nvar x = log.Default()", "imports log",
		},
		"word in a name": {
			func(f []file) []string { return checkWord(f, []string{"a"}) },
			"a/a.go", "package a\nvar userTokens int", "a/a.go:2",
		},
		"word in a comment": {
			func(f []file) []string { return checkWord(f, []string{"a"}) },
			"a/a.go", "package a\n// Token by name.", "not tokens",
		},
		"unknown library": {
			func(f []file) []string { return checkLibraries(f, nil) },
			"a/a.go", "package a\nimport _ \"example.com/x/y\"", "belongs to no library",
		},
		"library elsewhere": {
			func(f []file) []string { return checkLibraries(f, []library{{"example.com/x", "MIT", "why", "b"}}) },
			"a/a.go", "package a\nimport _ \"example.com/x/y\"", "a may not import example.com/x/y",
		},
		"stale library": {
			func(f []file) []string { return checkLibraries(f, []library{{"example.com/x", "MIT", "why", "b"}}) },
			"a/a.go", clean, "example.com/x is in the table",
		},
		"value without a name": {
			checkLogs,
			"a/a.go", "package a\nfunc f(s struct{ log hclog.Logger }) { s.log.Warn(\"m\", \"k\", 1, \"v\") }", "odd number",
		},
		"number for a name": {
			checkLogs,
			"a/a.go", "package a\nfunc f(c Config) { c.Logger.With(7, \"v\") }", "logs 7 without a name",
		},
		"unknown mutant": {
			checkFaults,
			"a/a.go", "package a\nimport \"github.com/revokd/revokd/internal/faults\"\nvar x = faults.Mutant(\"y\")", `knows no "y" for Mutant`,
		},
		"unknown mutant by way of a field": {
			checkFaults,
			"a/a.go", "package a\nfunc f(c struct{ mutant func(string) bool }) { c.mutant(\"y\") }", `knows no "y" for Mutant`,
		},
		"rule without a test": {
			checkRules,
			"cluster/replication/a.go", "package replication\nfunc f(r *Replica) { r.without(\"y\") }", `no test is for the rule "y"`,
		},
		"test of a rule that nobody has": {
			checkRules,
			"cluster/replication/mutants_test.go", "package replication\nvar mutants = map[string]int{\"y\": 1}", "y is in the table of mutants",
		},
		"mutant that nobody has": {
			checkFaults,
			"internal/faults/faults.go", "package faults\nvar mutants = map[string]string{\"y\": \"\"}", "y is in the table of mutants",
		},
	} {
		f, err := parse(test.name, test.source)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if found := test.check([]file{f}); len(found) != 1 || !strings.Contains(found[0], test.want) {
			t.Errorf("%s: found %q, want %q", name, found, test.want)
		}
	}

	f, err := parse("a/a.go", clean)
	if err != nil {
		t.Fatal(err)
	}
	files := []file{f}
	for name, found := range map[string][]string{
		"imports": checkImports(files, allow), "comments": checkPackageComments(files), "clock": checkClockReaders(files, nil),
		"panics": checkPanics(files, nil), "word": checkWord(files, []string{"a"}), "libraries": checkLibraries(files, nil), "faults": checkFaults(files), "logs": checkLogs(files),
	} {
		if len(found) > 0 {
			t.Errorf("%s: found %q in a clean file", name, found)
		}
	}
}

// A second package comment in another file of the package.
func TestTwoPackageComments(t *testing.T) {
	var files []file
	for _, name := range []string{"a/a.go", "a/b.go"} {
		f, err := parse(name, "// Package a does.\npackage a\n")
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if found := checkPackageComments(files); len(found) != 1 || !strings.Contains(found[0], "has 2 package comments") {
		t.Errorf("found %q", found)
	}
}
