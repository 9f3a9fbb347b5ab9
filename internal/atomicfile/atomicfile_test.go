package atomicfile_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/revokd/revokd/internal/atomicfile"
)

func TestWriteAndCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	has := func(want string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v; want mode 0600", info.Mode(), err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	}
	if err := atomicfile.Create(path, []byte("one")); err != nil {
		t.Fatal(err)
	}
	has("one")
	if err := atomicfile.Create(path, []byte("two")); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v, want %v", err, os.ErrExist)
	}
	has("one")
	if err := atomicfile.Write(path, []byte("three")); err != nil {
		t.Fatal(err)
	}
	has("three")
	if err := atomicfile.Write(filepath.Join(dir, "none", "state"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v, want %v", err, os.ErrNotExist)
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "atomicfile")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "progress.json")
	if err := atomicfile.Write(path, []byte(`{"line":7}`)); err != nil {
		panic(err)
	}
	b, err := os.ReadFile(path)
	fmt.Println(string(b), err)
	// Output: {"line":7} <nil>
}

func TestCreateFrom(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	failed := errors.New("failed")
	err := atomicfile.CreateFrom(path, func(w io.Writer) error {
		if _, err := io.WriteString(w, "a part"); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	write := func(text string) error {
		return atomicfile.CreateFrom(path, func(w io.Writer) error {
			_, err := io.WriteString(w, text)
			return err
		})
	}
	if err := write("first"); err != nil {
		t.Fatal(err)
	}
	if err := write("second"); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
}
