package voters

import (
	"flag"
	"testing"
)

var seeds = flag.Int("voters.seeds", 0, "simulated histories (0: 300, or 100 with -short)")

var from = flag.Uint64("voters.from", 0, "the first seed")

// TestChaos plays random histories: faults, wipes within what a list can miss (and now and then beyond), proposals from all sides; then calm, in which
// all must agree, heal and decide whatever is asked. Named histories that it found are in histories_test.go.
func TestChaos(t *testing.T) {
	n := *seeds
	if n == 0 {
		n = 300
		if testing.Short() {
			n = 100
		}
	}
	var steps, stuck, changes, acked int
	for i := range uint64(n) {
		seed := *from + i
		s := chaos(seed, 0)
		if len(s.errs) > 0 {
			t.Fatalf("seed %d: %v", seed, s.errs)
		}
		s.settleDown(20_000)
		if len(s.errs) > 0 {
			t.Fatalf("seed %d, calm: %v", seed, s.errs)
		}
		c, err := s.agree(s.names...)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		changes += len(s.decided)
		acked += len(s.acked)
		if !c.IsZero() && s.tooFew(c) {
			stuck++
			s.acceptLoss(c)
			s.settleDown(20_000)
			if c, err = s.agree(s.names...); err != nil || len(s.errs) > 0 {
				t.Fatalf("seed %d, after the accepted loss: %v, %v", seed, err, s.errs)
			}
			if c.Losses != 1 {
				t.Fatalf("seed %d: %v after the accepted loss", seed, c)
			}
		}
		if c.IsZero() && len(s.decided) > 0 {
			continue // every directory was lost
		}
		if c.IsZero() {
			t.Fatalf("seed %d: no first list", seed)
		}
		for _, v := range c.Voters {
			if n := s.nodes[v.Name]; v.Silent || n.inc != v.Incarnation || !n.m.Status().Settled {
				t.Fatalf("seed %d: %v: %s is no voter after calm: %+v", seed, c, v.Name, n.m.Status())
			}
		}
		// Whatever is asked for now comes true.
		for i, name := range s.names {
			s.step(s.nodes[name], Propose{ID: 1 << 40, Op: Add, Name: s.names[(i+1)%len(s.names)], Until: s.now + 15_000})
		}
		s.settleDown(15_000)
		for _, name := range s.names {
			if err, ok := s.nodes[name].results[1<<40]; err != nil || !ok {
				t.Fatalf("seed %d: proposal of %s: %v, answered: %v: %v: %+v", seed, name, err, ok, s.errs, s.nodes[name].m.Status())
			}
		}
		steps++
	}
	t.Logf("%d histories: %d went on, %d after an accepted loss; %d configurations, %d acknowledged writes", n, steps, stuck, changes, acked)
	if steps < n/2 || changes < 2*n || acked < 10*n {
		t.Error("the histories show too little")
	}
}

// acceptLoss is what an operator does on a node that is left: those that voted and are no more are lost.
func (s *simulation) acceptLoss(c Config) {
	var gone, left []string
	for _, v := range c.Voters {
		if !v.Silent && s.nodes[v.Name].inc == v.Incarnation {
			left = append(left, v.Name)
		} else {
			gone = append(gone, v.Name)
		}
	}
	if len(left) == 0 {
		left = gone
	}
	clear(s.acked)
	s.step(s.nodes[left[0]], AcceptLoss{ID: 1 << 41, Names: gone})
	if err := s.nodes[left[0]].results[1<<41]; err != nil {
		s.failf("accept-loss on %s: %v", left[0], err)
	}
}

// tooFew reports whether c has lost more voters than it can miss, so that only an operator may go on.
func (s *simulation) tooFew(c Config) bool {
	voting, deciding := 0, 0
	for _, v := range c.Voters {
		if s.nodes[v.Name].inc == v.Incarnation {
			deciding++
			if !v.Silent {
				voting++
			}
		}
	}
	return deciding < c.Majority() || voting < c.Majority()
}
