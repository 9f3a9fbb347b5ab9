package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func scripts(t *testing.T) map[string]Script {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	list := make(map[string]Script)
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		list[strings.TrimSuffix(filepath.Base(name), ".txt")] = ParseScript(string(b))
	}
	return list
}

// Every history holds. That each breaks a promise when its rule is left out is TestMutants, built with the tag faults.
func TestScenarios(t *testing.T) {
	for name, s := range scripts(t) {
		t.Run(name, func(t *testing.T) {
			r, err := s.Run("")
			if err != nil || len(r.Failures) > 0 {
				t.Fatal(err, r.Failures)
			}
		})
	}
}
