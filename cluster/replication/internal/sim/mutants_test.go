package sim

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// Every history holds, and breaks a promise when its rule is left out.
func TestScenarios(t *testing.T) {
	for name, s := range scripts(t) {
		t.Run(name, func(t *testing.T) {
			r, err := s.Run("")
			if err != nil || len(r.Failures) > 0 {
				t.Fatal(err, r.Failures)
			}
			for _, mutant := range s.Mutants {
				if Mutants[mutant] == "" {
					t.Fatalf("nobody knows %q", mutant)
				}
				r, err := s.Run(mutant)
				if err != nil || len(r.Failures) == 0 {
					t.Errorf("without the rule nothing breaks: %s (%s) %v", mutant, Mutants[mutant], err)
					continue
				}
				t.Logf("%s: %s", mutant, r.Failures[0])
			}
		})
	}
}

// elsewhere are mutants whose test is in package replication: the simulator does not come by what they break.
var elsewhere = map[string]string{
	"non-voters":  "TestVotesCountUnderOneConfiguration",
	"other-hash":  "TestVotesCountUnderOneConfiguration",
	"raise-early": "TestRefusedRecordHoldsTheVector",

	"hearsay":       "TestRogueMutants",
	"hearsay-views": "TestRogueMutants",
	"stale-doubts":  "TestWhoIsCutOffHoldsNobodyUp",
	"unasked":       "TestRogueMutants",
	"fence-always":  "TestFencesAreMetered",
	"fenced-votes":  "TestFencedNodeDoesNotVote",
}

// byRogue are mutants that show only where there is one.
var byRogue = map[string]bool{"no-meter": true, "no-bounds": true}

// Every rule that is left out is noticed, by a scenario or by chance.
func TestMutants(t *testing.T) {
	const most = 40
	byScript := make(map[string]string)
	list := scripts(t)
	for _, name := range slices.Sorted(maps.Keys(list)) {
		for _, m := range list[name].Mutants {
			byScript[m] = name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(Mutants)) {
		if test := elsewhere[name]; test != "" {
			t.Logf("%-22s %-75s %s", name, Mutants[name], test)
			continue
		}
		if script := byScript[name]; script != "" {
			r, err := list[script].Run(name)
			if err != nil || len(r.Failures) == 0 {
				t.Errorf("%-22s %-75s not caught by %s: %v", name, Mutants[name], script, err)
				continue
			}
			t.Logf("%-22s %-75s scenario %s: %.160s", name, Mutants[name], script, r.Failures[0])
			continue
		}
		var failure string
		seed := uint64(1)
		for ; seed <= most && failure == ""; seed++ {
			if r := Run(Seeded(seed, Options{Clients: -1, Mutant: name, Rogue: byRogue[name]})); len(r.Failures) > 0 {
				failure = r.Failures[0]
			}
		}
		if failure == "" {
			t.Errorf("%-22s %-75s not caught by %d seeds", name, Mutants[name], most)
			continue
		}
		t.Logf("%-22s %-75s seed %d: %.160s", name, Mutants[name], seed-1, failure)
	}
}
