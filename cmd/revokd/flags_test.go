package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flagsOf returns the flags of the commands, by the words that call them.
func flagsOf() map[string]map[string]bool {
	all := map[string]map[string]bool{}
	var walk func(cmd *cobra.Command, path string)
	walk = func(cmd *cobra.Command, path string) {
		cmd.InitDefaultHelpFlag()
		flags := map[string]bool{}
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
		all[path] = flags
		for _, sub := range cmd.Commands() {
			walk(sub, strings.TrimSpace(path+" "+sub.Name()))
		}
	}
	walk((&cli{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}).root(), "")
	return all
}

var (
	commandLine = regexp.MustCompile(`(?m)\brevokd((?: [a-z]+)+)((?: [^\n|)#` + "`" + `]*)?)`)
	longFlag    = regexp.MustCompile(`(?:^|\s)--([a-z][a-z-]*)`)
)

// wrongFlags returns the flags of command lines in a text that their command does not have.
func wrongFlags(text string, known map[string]map[string]bool) (wrong []string, found int) {
	text = strings.ReplaceAll(text, "\\\n", " ")
	for _, m := range commandLine.FindAllStringSubmatch(text, -1) {
		path := ""
		for _, word := range strings.Fields(m[1]) {
			next := strings.TrimSpace(path + " " + word)
			if known[next] == nil {
				break
			}
			path = next
		}
		if path == "" {
			continue // prose
		}
		for _, f := range longFlag.FindAllStringSubmatch(m[2], -1) {
			found++
			if !known[path][f[1]] {
				wrong = append(wrong, "revokd "+path+" has no --"+f[1])
			}
		}
	}
	return wrong, found
}

// TestFlagsInDocuments: whoever renames a flag finds the documents that still have the old name.
func TestFlagsInDocuments(t *testing.T) {
	known := flagsOf()
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/guide/*.md"} {
		paths, err := filepath.Glob(filepath.Join("..", "..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		all := 0
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			wrong, found := wrongFlags(string(text), known)
			all += found
			for _, w := range wrong {
				t.Errorf("%s: %s", path, w)
			}
		}
		if all == 0 {
			t.Errorf("%s: no flag found: the test reads nothing", pattern)
		}
	}
	if wrong, _ := wrongFlags("`revokd revoke --tokn x` and revokd dev token --sub a --sbu b", known); len(wrong) != 2 {
		t.Errorf("%q", wrong)
	}
}

// TestOperations: the handbook has a row for every flag of an agent.
func TestOperations(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := ""
	for line := range strings.Lines(string(text)) {
		if column, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), "|"); ok && strings.HasPrefix(line, "|") {
			rows += column
		}
	}
	for name := range flagsOf()["agent"] {
		if name != "help" && !strings.Contains(rows, "`--"+name+"`") {
			t.Errorf("docs/operations.md has no row for --%s", name)
		}
	}
}

// TestPromises: every test that docs/promises.md names is there.
func TestPromises(t *testing.T) {
	text, err := os.ReadFile("../../docs/promises.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{} // true: found
	for _, name := range regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(string(text), -1) {
		names[name[1]] = false
	}
	if len(names) < 10 {
		t.Fatalf("only %d tests are named", len(names))
	}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(source), -1) {
			if _, named := names[m[1]]; named {
				names[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, found := range names {
		if !found {
			t.Errorf("docs/promises.md names %s, which does not exist", name)
		}
	}
}
