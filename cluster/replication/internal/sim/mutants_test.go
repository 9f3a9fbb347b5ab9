//go:build faults

package sim

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// byRogue are mutants that show only where there is one.
var byRogue = map[string]bool{"no-meter": true, "no-bounds": true}

// Every rule that is left out is noticed, by each scenario that names it, or by chance. internal/mutants reads what this logs.
func TestMutants(t *testing.T) {
	byScript := make(map[string][]string)
	list := scripts(t)
	for _, name := range slices.Sorted(maps.Keys(list)) {
		for _, m := range list[name].Mutants {
			if Mutants[m] == "" {
				t.Errorf("scenario %s: nobody knows %q", name, m)
			}
			byScript[m] = append(byScript[m], name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(Mutants)) {
		t.Run(name, func(t *testing.T) {
			by := ""
			for _, script := range byScript[name] {
				r, err := list[script].Run(name)
				if err != nil || len(r.Failures) == 0 {
					t.Fatalf("not caught by scenario %s: %v", script, err)
				}
				t.Log(script, r.Failures[0])
				by = "scenario " + byScript[name][0]
			}
			if by == "" {
				by = bySeed(t, name)
			}
			t.Logf("%s\t%s\t%s", name, Mutants[name], by)
		})
	}
}

// bySeed looks for the first cluster that shows a mutant by chance.
func bySeed(t *testing.T, mutant string) string {
	const most = 40
	for seed := uint64(1); seed <= most; seed++ {
		if r := Run(Seeded(seed, Options{Clients: -1, Mutant: mutant, Rogue: byRogue[mutant]})); len(r.Failures) > 0 {
			t.Log(r.Failures[0])
			return fmt.Sprint("seed ", seed)
		}
	}
	t.Fatalf("not caught by %d seeds", most)
	return ""
}
