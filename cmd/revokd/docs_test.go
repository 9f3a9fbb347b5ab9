//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/revokd/revokd/internal/e2e"
)

// agentLine is the first command of the quick start; the test runs it in the background.
const agentLine = "go run ./cmd/revokd agent --dev"

// example is a block of commands that a document asks to be tested.
type example struct {
	line  int // of its first command
	lines []string
}

// examples returns the ```sh blocks that follow a line <!-- test -->.
func examples(text string) ([]example, error) {
	var found []example
	marked, in := false, false
	for i, line := range strings.Split(text, "\n") {
		switch {
		case in && line == "```":
			in = false
		case in:
			e := &found[len(found)-1]
			e.lines = append(e.lines, line)
		case line == "<!-- test -->":
			marked = true
		case marked && line == "```sh":
			marked, in = false, true
			found = append(found, example{line: i + 2})
		case marked && strings.TrimSpace(line) != "":
			return nil, fmt.Errorf("line %d: want ```sh behind <!-- test -->", i+1)
		}
	}
	if marked || in {
		return nil, errors.New("a block does not end, or does not follow <!-- test -->")
	}
	return found, nil
}

// script turns examples into one bash script. What is wrong goes to file descriptor 3.
//
//	# -> text   must occur in what the block has written so far
//	# exit N    is the exit code of the command before; without it, that must be 0
func script(blocks []example) string {
	var b strings.Builder
	b.WriteString(`
exec 4>&1
trap 'failed+=("$LINENO")' ERR
check() { # line text
  if ! grep -qF -e "$2" "$out"; then echo "line $1: the output has no: $2; it is:" >&3; cat "$out" >&3; fi
}
code() { # line got want
  if [ "$2" != "$3" ]; then echo "line $1: exit code $2, want $3" >&3; cat "$out" >&3; fi
  if [ "$2" != 0 ]; then unset 'failed[-1]'; fi
}
begin() { failed=(); out=$(mktemp); exec >"$out" 2>&1; }
end() { # line
  exec >&4 2>&4
  if [ ${#failed[@]} -gt 0 ]; then echo "block at line $1: a command failed:" >&3; cat "$out" >&3; fi
  rm "$out"
}
`)
	for _, block := range blocks {
		fmt.Fprintf(&b, "begin\n")
		annotated := false // the line before was an annotation: $? has been kept
		for i, line := range block.lines {
			at := block.line + i
			text, expects := strings.CutPrefix(line, "# -> ")
			code, exits := strings.CutPrefix(line, "# exit ")
			if !expects && !exits {
				annotated = false
				b.WriteString(line + "\n")
				continue
			}
			if !annotated {
				b.WriteString("rc=$?\n")
			}
			annotated = true
			if expects {
				fmt.Fprintf(&b, "check %d %s\n", at, shellQuote(text))
			} else {
				fmt.Fprintf(&b, "code %d $rc %s\n", at, shellQuote(code))
			}
		}
		fmt.Fprintf(&b, "end %d\n", block.line)
	}
	return b.String()
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// TestDocs runs the examples of the documents, each document against an agent and in a shell of its own.
func TestDocs(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	guides, err := filepath.Glob(filepath.Join(root, "docs", "guide", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(append(documents, guides...), filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		blocks, err := examples(string(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(blocks) == 0 {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			for _, complaint := range runExamples(t, root, blocks) {
				t.Errorf("%s: %s", filepath.Base(path), complaint)
			}
		})
	}
}

// runExamples returns what was not as the examples say.
func runExamples(t *testing.T, root string, blocks []example) []string {
	t.Helper()
	program, err := exec.LookPath("revokd")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	args := []string{program, "agent", "--dev"}
	for _, b := range blocks {
		for i, line := range b.lines {
			if strings.TrimSpace(line) == agentLine {
				args = strings.Fields(agentLine)
				b.lines[i] = ": it runs"
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience) // go run may have to compile, and the longest page has some fifty commands, beside other tests and the race detector
	defer cancel()
	env := docsEnv(t, home)
	agent, err := e2e.Start(ctx, e2e.Config{
		Args: append(args, "--api-addr", "127.0.0.1:0"), Env: append(env, anyGossipPort), Dir: root, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		// The group: go run does not pass signals on.
		if err := syscall.Kill(-agent.Pid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if _, err := agent.Wait(ctx); err != nil {
			t.Error(err)
		}
	}()

	text := script(blocks)
	for _, name := range []string{"127.0.0.1:7950", "localhost:7950"} {
		text = strings.ReplaceAll(text, name, strings.TrimPrefix(agent.URL, "http://"))
	}
	complaints, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer complaints.Close()
	shell := exec.CommandContext(ctx, "bash", "-s")
	shell.Stdin = strings.NewReader(text)
	shell.Dir = t.TempDir()
	shell.Env = append(env, "REVOKD_ADDR="+agent.URL)
	shell.ExtraFiles = []*os.File{writer}
	var output bytes.Buffer
	shell.Stdout, shell.Stderr = &output, &output
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	writer.Close()
	var found []string
	for lines := bufio.NewScanner(complaints); lines.Scan(); {
		found = append(found, lines.Text())
	}
	if err := shell.Wait(); err != nil {
		found = append(found, fmt.Sprintf("bash: %v: %s", err, output.String()))
	}
	return found
}

// docsEnv is what a newcomer's shell has: the programs, and a home of its own.
func docsEnv(t *testing.T, home string) []string {
	t.Helper()
	env := []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir(), noNap}
	out, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE", "GOPATH", "GOFLAGS", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	values := strings.Split(string(out), "\n")
	for i, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOFLAGS", "GOPROXY"} {
		env = append(env, name+"="+values[i])
	}
	return env
}

func TestExamples(t *testing.T) {
	found, err := examples("text\n\n<!-- test -->\n```sh\nrevokd a\n# -> b\n```\n\n```sh\nnot tested\n```\n<!-- test -->\n\n```sh\nc\n```\n")
	if err != nil || len(found) != 2 || found[0].line != 5 || len(found[0].lines) != 2 || found[1].lines[0] != "c" {
		t.Errorf("%+v, %v", found, err)
	}
	for _, text := range []string{"<!-- test -->\ntext\n", "<!-- test -->\n```sh\nc\n", "<!-- test -->\n```go\nc\n```\n", "<!-- test -->"} {
		if _, err := examples(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

// TestScriptOfExamples: the runner finds what is wrong, and nothing in what is right.
func TestScriptOfExamples(t *testing.T) {
	for _, tc := range []struct {
		lines []string
		want  string // "" is right
	}{
		{[]string{"echo hello", "# -> ello", "V=1"}, ""},
		{[]string{"echo hello", "# -> bye"}, "line 10: the output has no: bye"},
		{[]string{"(exit 3)", "# exit 3"}, ""},
		{[]string{"echo a; (exit 3)", "# -> a", "# exit 3", "true"}, ""},
		{[]string{"(exit 3)", "# exit 4"}, "line 10: exit code 3, want 4"},
		{[]string{"true", "# exit 3"}, "line 10: exit code 0, want 3"},
		{[]string{"false", "true"}, "a command failed"},
		{[]string{"false", "(exit 3)", "# exit 3"}, "a command failed"},
		{[]string{"echo one", "# -> one", "echo two", "# -> one", "# -> it's"}, "has no: it's"},
		{[]string{"if false; then echo no; fi", "! false", "false || true"}, ""},
	} {
		shell := exec.Command("bash", "-s")
		shell.Stdin = strings.NewReader("exec 3>&1\n" + script([]example{{line: 9, lines: tc.lines}}))
		out, err := shell.CombinedOutput()
		if err != nil || (tc.want == "") != (len(out) == 0) || !strings.Contains(string(out), tc.want) {
			t.Errorf("%q: %v, %s; want %q", tc.lines, err, out, tc.want)
		}
	}
}
