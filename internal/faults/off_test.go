//go:build !faults

package faults

import (
	"os"
	"path/filepath"
	"testing"
)

// Without the tag the environment must not matter.
func TestOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults")
	if err := os.WriteFile(path, []byte("clock=1h\nmutant=no-fsync\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(Env, path)
	if Mutant("no-fsync") || Value("clock") != "" {
		t.Error("a release build misbehaves")
	}
}
