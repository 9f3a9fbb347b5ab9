//go:build faults

package voters

import (
	"strings"
	"testing"
)

// rules by name, with what a voter does without them.
var rules = []struct {
	rule
	name, what string
}{
	{ruleHash, "voters-hash", "acknowledgements count under any list of voters"},
	{ruleBootstrap, "voters-bootstrap", "whoever has seen enough nodes makes the first list"},
	{ruleOneChange, "voters-one-change", "a list may differ from the last one in two names"},
	{ruleCatchUp, "voters-catch-up", "a new voter counts before it has caught up"},
	{ruleSettle, "voters-settle", "the next change need not wait for the last one to settle"},
	{rulePersist, "voters-persist", "lists and promises are not written to disk"},
	{ruleIncarnation, "voters-incarnation", "a voter that lost its disk counts as before"},
	{ruleSilent, "voters-silent", "a new incarnation votes at once"},
	{ruleOthers, "voters-others", "a new incarnation need not catch up with enough others"},
	{ruleRecorded, "voters-recorded", "the others it catches up with need not have recorded it"},
	{ruleLeft, "voters-left", "a removal may leave too few that vote"},
	{ruleFence, "voters-fence", "two lists of one number both go on"},
}

// describe names the rules in a set.
func describe(taken rule) (name, what string) {
	var names, whats []string
	for _, r := range rules {
		if taken&r.rule != 0 {
			names, whats = append(names, r.name), append(whats, r.what)
		}
	}
	return strings.Join(names, "+"), strings.Join(whats, "; ")
}

// Each history breaks a promise when its rules are taken out. internal/mutants reads what this logs.
func TestMutants(t *testing.T) {
	by := map[rule][]string{}
	var order []rule
	var all rule
	for _, h := range histories {
		if err := h.play(0); err != nil {
			t.Fatalf("%s: with all rules: %v", h.name, err)
		}
		for _, taken := range h.taken {
			if err := h.play(taken); err == nil {
				name, _ := describe(taken)
				t.Errorf("%s: nothing breaks without %s", h.name, name)
			}
			if by[taken] == nil {
				order = append(order, taken)
			}
			by[taken] = append(by[taken], h.name)
			all |= taken
		}
	}
	for _, r := range rules {
		if all&r.rule == 0 {
			t.Errorf("no history is for %s", r.name)
		}
	}
	for _, taken := range order {
		name, what := describe(taken)
		t.Run(name, func(t *testing.T) { t.Logf("%s\t%s\tTestHistories: %s", name, what, strings.Join(by[taken], ", ")) })
	}
}

// The rules whose loss random histories find as well.
func TestChaosFindsMutants(t *testing.T) {
	for _, taken := range []rule{ruleHash, ruleBootstrap, ruleSettle, rulePersist, ruleIncarnation, ruleRecorded} {
		name, _ := describe(taken)
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(1000) {
				if len(chaos(seed, taken).errs) > 0 {
					return
				}
			}
			t.Error("1000 histories show nothing")
		})
	}
}
