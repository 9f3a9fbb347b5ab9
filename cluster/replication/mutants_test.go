//go:build faults

package replication

import (
	"maps"
	"slices"
	"testing"
)

// mutants are rules whose loss the simulator does not come by. holds plays the history of the test with a rule left out, and says of each promise in it
// whether it was kept.
var mutants = map[string]struct {
	what, test string
	holds      func(t *testing.T, mutant string) []bool
}{
	"fence-always": {"a node takes other names whenever somebody says that it must", "TestFencesAreMetered", func(t *testing.T, mutant string) []bool {
		return []bool{fencesOf(t, mutant) == fenceBurst}
	}},
	"fenced-votes": {"a node whose names somebody else uses votes before it has given others", "TestFencedNodeDoesNotVote", func(t *testing.T, mutant string) []bool {
		return []bool{!fencedVotes(t, mutant)}
	}},
	"hearsay":       {"who says that he holds more than its node has given is believed", "TestRogueDefences", defended("hearsay")},
	"hearsay-views": {"everybody's views of voters count", "TestRogueDefences", defended("hearsay-views")},
	"other-key": {"a node with another fingerprint key is let in", "TestIncompatiblePeers", func(t *testing.T, mutant string) []bool {
		return []bool{newAlone(t, mutant).turnsAway(frames(func(w *writer) { w.hello(hello{1, 99, "b", Incarnation{}, 1, false, true}) }))}
	}},
	"one-key-peers": {"a version that knows of one fingerprint key is let in when there are several", "TestVersionsWithOneKey", func(t *testing.T, mutant string) []bool {
		r := newAlone(t, mutant)
		r.Step(Now{}, SetKeys{Keys: []byte("two"), Several: true})
		return []bool{r.turnsAway(frames(func(w *writer) { w.hello(hello{1, 0, "b", Incarnation{}, 1, false, false}) }))}
	}},
	"non-voters": {"everybody's acknowledgements and views count", "TestVotesCountUnderOneConfiguration", func(t *testing.T, mutant string) []bool {
		confirms, views := voteOf(t, 7, false, mutant)
		return []bool{!confirms, !views}
	}},
	"other-hash": {"acknowledgements and views count under other voters too", "TestVotesCountUnderOneConfiguration", func(t *testing.T, mutant string) []bool {
		confirms, views := voteOf(t, 8, true, mutant)
		return []bool{!confirms, !views}
	}},
	"raise-early": {"the vector rises over a hole", "TestRefusedRecordHoldsTheVector", func(t *testing.T, mutant string) []bool {
		return []bool{refusing(t, mutant).holdsAt(2)}
	}},
	"stale-doubts": {"who was doubted, and claims nothing any more, keeps others from being believed", "TestWhoIsCutOffHoldsNobodyUp", func(t *testing.T, mutant string) []bool {
		return []bool{doubtsAnswered.run(t, mutant) == nil}
	}},
	"unasked": {"records of others are taken that nobody has asked for", "TestRogueDefences", defended("unasked")},
}

func defended(rule string) func(*testing.T, string) []bool {
	return func(t *testing.T, mutant string) []bool {
		return []bool{defences[rule](newRogueTest(t, func(c *Config) { c.Mutant = leaveOut(mutant) }))}
	}
}

// Every rule that is left out is noticed. internal/mutants reads what this logs.
func TestMutants(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(mutants)) {
		m := mutants[name]
		t.Run(name, func(t *testing.T) {
			for _, mutant := range []string{"", name} {
				for i, held := range m.holds(t, mutant) {
					if held != (mutant == "") {
						t.Errorf("without %q: promise %d is kept: %v", mutant, i, held)
					}
				}
			}
			if !t.Failed() {
				t.Logf("%s\t%s\t%s", name, m.what, m.test)
			}
		})
	}
}
