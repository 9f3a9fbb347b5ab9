package main

import (
	"errors"
	"testing"

	"github.com/revokd/revokd/internal/faults"
)

// Only the test itself, having failed, is a catch.
func TestVerdict(t *testing.T) {
	exit := errors.New("exit status 1")
	const (
		passes = iota
		fails
		neither
	)
	for out, c := range map[string]struct {
		err  error
		want int
	}{
		"=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\n":                                     {nil, passes},
		"=== RUN   TestA\n    a_test.go:1: no\n--- FAIL: TestA (0.00s)\nFAIL\n":                {exit, fails},
		"testing: warning: no tests to run\nPASS\n":                                            {nil, neither},
		"=== RUN   TestA\n--- SKIP: TestA (0.00s)\nPASS\n":                                     {nil, neither},
		"=== RUN   TestAll\n--- PASS: TestAll (0.00s)\nPASS\n":                                 {nil, neither},
		"# pkg\na.go:1:1: no\nFAIL\tpkg [build failed]\n":                                      {exit, neither},
		"=== RUN   TestB\n--- FAIL: TestB (0.00s)\nFAIL\n":                                     {exit, neither},
		"=== RUN   TestA\npanic: test timed out after 5m0s\n\trunning tests:\n\t\tTestA\n":     {exit, neither},
		"=== RUN   TestA\n--- FAIL: TestA (0.00s)\npanic: index out of range\n\ngoroutine 1\n": {exit, neither},
		"=== RUN   TestA\n--- PASS: TestA (0.00s)\nPASS\nsome TestMain\nFAIL\n":                {exit, neither},
	} {
		got := neither
		switch err := verdict("TestA", []byte(out), c.err); {
		case err == nil:
			got = passes
		case errors.Is(err, errFailed):
			got = fails
		}
		if got != c.want {
			t.Errorf("%q: %d, want %d", out, got, c.want)
		}
	}
}

// Every bug has a test.
func TestSuites(t *testing.T) {
	for name := range faults.Mutants() {
		if suites[name].test == "" {
			t.Errorf("%s has none", name)
		}
	}
	for name := range suites {
		if !faults.Known(name) {
			t.Errorf("nobody knows %s", name)
		}
	}
}
