package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// sim is a cluster in virtual time.
type sim struct {
	t     *testing.T
	net   *memNet
	clock bubbleClock
	key   []byte
	nodes []*simNode
}

type simNode struct {
	*Members
	addr string
	stop context.CancelFunc
	done chan error
}

// inBubble runs test in virtual time, ends all its nodes and lets memberlist's timers run out.
func inBubble(t *testing.T, test func(*testing.T, *sim)) {
	skipRace(t)
	synctest.Test(t, func(t *testing.T) {
		s := &sim{t: t, net: newMemNet(time.Millisecond), clock: bubbleClock{time.Now()}, key: make([]byte, 32)}
		defer func() {
			for _, n := range s.nodes {
				n.stop()
			}
			for _, n := range s.nodes {
				<-n.done
			}
			time.Sleep(3 * time.Minute) // virtual: for timers that outlive their node, at most those of suspicion
			synctest.Wait()
		}()
		test(t, s)
		if n := s.net.unplanned.Load(); n != 0 {
			t.Errorf("the simulated network dropped %d packets or streams that it should not", n)
		}
	})
}

func simAddr(i int) string { return fmt.Sprintf("10.0.%d.%d:7956", i/200, 1+i%200) }

func (s *sim) start(name, addr string, seeds []string, change ...func(*Config)) *simNode {
	s.t.Helper()
	cfg := Config{
		Name: name, Bind: addr, Transport: s.net.listen(addr), Seeds: seeds, Keys: [][]byte{s.key}, Label: "test", Clock: s.clock,
		Meta: func() Meta { return Meta{State: Ready} },
	}
	for _, f := range change {
		f(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	n := &simNode{Members: m, addr: addr, stop: stop, done: make(chan error, 1)}
	go func() { n.done <- m.Run(ctx) }()
	<-m.Started()
	s.nodes = append(s.nodes, n)
	return n
}

// kill makes a node vanish without a word.
func (s *sim) kill(n *simNode) {
	s.net.mu.Lock()
	s.net.nodes[n.addr].down.Store(true)
	delete(s.net.nodes, n.addr)
	s.net.mu.Unlock()
	n.stop()
	<-n.done
	n.done <- nil
}

// cluster starts n nodes whose seeds are the first few.
func (s *sim) cluster(n int) []*simNode {
	var seeds []string
	for i := range min(n, 3) {
		seeds = append(seeds, simAddr(i))
	}
	for i := range n {
		s.start(fmt.Sprintf("n%d", i), simAddr(i), seeds)
	}
	s.within(30*time.Second, "all members at the start", func() string { return complete(s.nodes) })
	return s.nodes
}

// within waits until wrong returns nothing.
func (s *sim) within(limit time.Duration, what string, wrong func() string) time.Duration {
	s.t.Helper()
	began := time.Now()
	for {
		problem := wrong()
		if problem == "" {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			s.t.Fatalf("%s: not within %v: %s", what, limit, problem)
		}
		time.Sleep(50 * time.Millisecond) // virtual: between polls
	}
}

// complete says who does not know whom, among nodes.
func complete(nodes []*simNode) string {
	for _, n := range nodes {
		for _, other := range nodes {
			if got := status(n.Members, other.cfg.Name); got != Alive {
				return fmt.Sprintf("for %s, %s is %v", n.cfg.Name, other.cfg.Name, got)
			}
		}
	}
	return ""
}

func status(m *Members, name string) Status {
	for _, member := range m.Members() {
		if member.Name == name {
			return member.Status
		}
	}
	return 0
}

// Reference P3: memberlist alone never heals this.
func TestPartitionOfHalvesHealsWithinTenSeconds(t *testing.T) {
	for _, cut := range []time.Duration{5 * time.Second, 20 * time.Second, 60 * time.Second, 5 * time.Minute} {
		for _, size := range []int{4, 9} {
			t.Run(fmt.Sprintf("%d nodes, %v", size, cut), func(t *testing.T) {
				inBubble(t, func(t *testing.T, s *sim) {
					nodes := s.cluster(size)
					left := map[string]bool{}
					for _, n := range nodes[:size/2] {
						left[n.addr] = true
					}
					time.Sleep(3 * time.Second) // every node has remembered its peers
					s.net.setCut(func(from, to string) bool { return left[from] != left[to] })
					time.Sleep(cut) // virtual: for which it is cut
					if cut >= 20*time.Second {
						if got := status(nodes[0].Members, nodes[size-1].cfg.Name); got != Dead {
							t.Errorf("beyond the partition a node is %v, want dead", got)
						}
					}
					s.net.setCut(func(string, string) bool { return false })
					took := s.within(10*time.Second, "all members after healing", func() string { return complete(nodes) })
					t.Logf("healed after %v", took)
				})
			})
		}
	}
}

// The mutant that the test above is for: this is what memberlist alone does.
func TestPartitionStaysWithoutRejoin(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		for i := range 6 {
			s.start(fmt.Sprintf("n%d", i), simAddr(i), []string{simAddr(0), simAddr(1)}, func(c *Config) {
				c.mutant = func(name string) bool { return name == "no-rejoin" }
			})
		}
		time.Sleep(time.Minute) // virtual: for all to know each other
		if problem := complete(s.nodes); problem != "" {
			t.Fatal(problem)
		}
		left := map[string]bool{simAddr(0): true, simAddr(1): true, simAddr(2): true}
		s.net.setCut(func(from, to string) bool { return left[from] != left[to] })
		time.Sleep(3 * time.Minute) // virtual: apart, longer than anybody is suspected
		s.net.setCut(func(string, string) bool { return false })
		time.Sleep(10 * time.Minute) // virtual: sixty times what healing may take with rejoining
		if complete(s.nodes) == "" {
			t.Error("healed: the tests of rejoining prove nothing")
		}
	})
}

// An idle cluster of five costs at most 1 KB/s for each peer.
func TestIdleTraffic(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(5)
		time.Sleep(time.Minute) // virtual: what a start leaves to say
		for _, n := range nodes {
			before := n.Stats()
			time.Sleep(10 * time.Minute) // virtual: the 600 s that the rate is of
			after := n.Stats()
			rate := float64(after.BytesOut-before.BytesOut+after.BytesIn-before.BytesIn) / 600 / 4
			if rate > 1000 || rate == 0 {
				t.Errorf("%s: %.0f bytes a second for each peer", n.cfg.Name, rate)
			}
			t.Logf("%.0f bytes a second for each peer", rate)
		}
	})
}

// One node cut off from all, and a way that is cut in one direction.
func TestIsolatedAndOneWay(t *testing.T) {
	for name, cut := range map[string]func(from, to string) bool{
		"isolated":     func(from, to string) bool { return from == simAddr(4) || to == simAddr(4) },
		"hears nobody": func(_, to string) bool { return to == simAddr(4) },
		"is not heard": func(from, _ string) bool { return from == simAddr(4) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *sim) {
				nodes := s.cluster(5)
				s.net.setCut(cut)
				time.Sleep(time.Minute) // virtual: for which it is cut, longer than anybody is suspected
				s.net.setCut(func(string, string) bool { return false })
				s.within(10*time.Second, "all members", func() string { return complete(nodes) })
			})
		})
	}
}

// Seeds that are down for long are still asked, and remembered peers are too: these nodes have no seeds.
func TestRejoinNeverGivesUp(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		first := s.start("a", simAddr(0), []string{simAddr(1)})
		time.Sleep(2 * time.Hour) // virtual: its seed is away that long
		s.start("b", simAddr(1), nil)
		s.within(10*time.Second, "found two hours later", func() string { return complete(s.nodes) })
		if st := first.Stats(); st.Rounds < 1000 || st.JoinsFailed == 0 {
			t.Errorf("rounds %d, failed joins %d", st.Rounds, st.JoinsFailed)
		}
	})
}

func TestRememberedPeersServeAsSeedsAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		file := filepath.Join(t.TempDir(), "peers")
		keep := func(c *Config) { c.PeersFile = file }
		s.start("a", simAddr(0), nil)
		b := s.start("b", simAddr(1), []string{simAddr(0)}, keep)
		s.within(10*time.Second, "joined", func() string { return complete(s.nodes) })
		time.Sleep(5 * time.Second) // virtual: two rounds of joining, in which it writes its peers down
		s.kill(b)
		time.Sleep(5 * time.Minute) // virtual: away, until it is dead for the other
		s.nodes = s.nodes[:1]
		s.start("b", simAddr(1), nil, keep)
		s.within(10*time.Second, "joined again without seeds", func() string { return complete(s.nodes) })
	})
}

// A peer that no seed names is found again although many that were remembered before it are gone for good.
func TestRejoinAmongStalePeers(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		var stale bytes.Buffer
		for i := range 250 {
			fmt.Fprintln(&stale, simAddr(1000+i))
		}
		file := filepath.Join(t.TempDir(), "peers")
		if err := os.WriteFile(file, stale.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		s.start("a", simAddr(0), nil, func(c *Config) { c.PeersFile = file })
		// It joins once and never again by itself.
		s.start("b", simAddr(1), []string{simAddr(0)}, func(c *Config) { c.mutant = func(name string) bool { return name == "no-rejoin" } })
		for range 4 {
			s.within(10*time.Second, "both are members", func() string { return complete(s.nodes) })
			time.Sleep(5 * time.Second) // together
			s.net.setCut(func(string, string) bool { return true })
			time.Sleep(2 * time.Minute) // apart, until each is dead for the other
			s.net.setCut(func(string, string) bool { return false })
		}
		s.within(10*time.Second, "both are members at the end", func() string { return complete(s.nodes) })
	})
}

// Of a member that has moved again and again the last address is remembered, over a restart too.
func TestRememberedWhereAMemberWasLast(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		file := filepath.Join(t.TempDir(), "peers")
		keep := func(c *Config) { c.PeersFile = file }
		a := s.start("a", simAddr(0), nil, keep)
		for i := range 6 {
			b := s.start("b", simAddr(10+i), []string{simAddr(0)})
			s.within(time.Minute, "b is known at "+b.addr, func() string {
				for _, m := range a.Members.Members() {
					if m.Name == "b" && m.Status == Alive && m.Addr.String() == b.addr {
						return ""
					}
				}
				return "it is not"
			})
			time.Sleep(10 * time.Second) // two rounds of a's, in one of which it waits for where b was
			if text, err := os.ReadFile(file); err != nil || string(text) != b.addr+" b\n" {
				t.Errorf("%q, %v; want b at %s only", text, err, b.addr)
			}
			s.kill(b)
			s.nodes = s.nodes[:1]
			if i%2 == 1 {
				s.kill(a)
				s.nodes = nil
				a = s.start("a", simAddr(0), nil, keep)
			}
		}
	})
}

// Reference P9: the address of a name may change, after a crash and after a good-bye.
func TestSameNameOnANewAddress(t *testing.T) {
	for name, leave := range map[string]bool{"crashed": false, "left": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *sim) {
				nodes := s.cluster(4)
				old := nodes[3]
				if leave {
					if err := old.Leave(t.Context()); err != nil {
						t.Fatal(err)
					}
				} else {
					s.kill(old)
				}
				s.nodes = append(s.nodes[:3:3], s.start("n3", simAddr(77), []string{simAddr(0)}))
				s.within(30*time.Second, "known at its new address", func() string {
					for _, n := range s.nodes {
						for _, m := range n.Members.Members() {
							if m.Name == "n3" && m.Addr != netip.MustParseAddrPort(simAddr(77)) {
								return fmt.Sprintf("%s has it at %v", n.cfg.Name, m.Addr)
							}
						}
					}
					return complete(s.nodes)
				})
			})
		})
	}
}

// Two nodes with one name: the first stays, and both can see that something is wrong.
func TestTwoNodesWithOneName(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(3)
		twin := s.start("n2", simAddr(50), []string{simAddr(0)})
		time.Sleep(30 * time.Second) // virtual: for all to hear of both, again and again
		if got := complete(nodes); got != "" {
			t.Error(got)
		}
		for _, m := range nodes[0].Members.Members() {
			if m.Name == "n2" && m.Addr.String() != simAddr(2) {
				t.Errorf("the name has gone to %v", m.Addr)
			}
		}
		if nodes[0].Stats().Conflicts == 0 || twin.Stats().Conflicts == 0 {
			t.Error("no conflict is counted")
		}
	})
}

// Reference P8: nodes that are refused because too many join at once come in later.
func TestJoinStormAtOneSeed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		seed := s.start("seed", simAddr(0), nil, func(c *Config) { c.maxStreams = 1 })
		for i := 1; i < 40; i++ {
			s.start(fmt.Sprintf("n%d", i), simAddr(i), []string{simAddr(0)})
		}
		s.within(time.Minute, "all are in", func() string { return complete(s.nodes) })
		if seed.Stats().RefusedStreams == 0 {
			t.Error("no stream was refused: the test tests nothing")
		}
	})
}

func TestSuspectIsReportedAndClears(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(5)
		s.net.setCut(func(from, to string) bool { return from == simAddr(4) || to == simAddr(4) })
		s.within(10*time.Second, "suspected", func() string {
			if got := status(nodes[0].Members, "n4"); got != Suspect {
				return fmt.Sprintf("n4 is %v", got)
			}
			return ""
		})
		s.net.setCut(func(string, string) bool { return false })
		s.within(10*time.Second, "cleared", func() string { return complete(nodes) })
	})
}

func TestLeftAndDeadAreToldApart(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(4)
		if err := nodes[2].Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.kill(nodes[3])
		s.within(30*time.Second, "known", func() string {
			for _, n := range nodes[:2] {
				if a, b := status(n.Members, "n2"), status(n.Members, "n3"); a != Left || b != Dead {
					return fmt.Sprintf("who left is %v, who crashed is %v", a, b)
				}
			}
			return ""
		})
	})
}

// Who is about to go says so while it is still a member, and the good-bye does not wait for it for long.
func TestLeavingIsSaidBeforeTheGoodBye(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(4)
		known := func(name string, want Status) func() string {
			return func() string {
				for _, n := range nodes[:2] {
					list := n.Members.Members()
					i := slices.IndexFunc(list, func(m Member) bool { return m.Name == name })
					if i < 0 || list[i].Status != want || list[i].Meta.State != Leaving {
						return fmt.Sprintf("%s is not known as %v to %s: %+v", name, want, n.cfg.Name, list)
					}
				}
				return ""
			}
		}
		nodes[2].AnnounceLeaving() // and it goes on
		s.within(time.Second, "announced", known("n2", Alive))
		for _, n := range nodes[2:] { // also if nothing was announced before
			began := time.Now()
			if err := n.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > leavingTime+time.Second { // the good-bye is passed on four times, to three at a time at most
				t.Errorf("%s took %v to leave", n.cfg.Name, took)
			}
			s.within(5*time.Second, "left", known(n.cfg.Name, Left))
		}
		// Nobody is there whom it could tell.
		lone := s.start("lone", simAddr(9), nil)
		began := time.Now()
		if err := lone.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took >= leavingTime {
			t.Errorf("a lone node took %v to leave", took)
		}
	})
}

// A node that stands still for longer than it takes to be declared dead, and comes back.
func TestTenMinutesAway(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(6)
		away := func(from, to string) bool { return from == simAddr(1) || to == simAddr(1) }
		for range 3 {
			s.net.setCut(away)
			time.Sleep(10 * time.Minute) // virtual: away, far longer than it takes to be declared dead
			s.net.setCut(func(string, string) bool { return false })
			s.within(10*time.Second, "back", func() string { return complete(nodes) })
		}
	})
}

// Who is dead and forgotten has left, here: nobody looks for it any more. Who comes back is alive again.
func TestForget(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		file := filepath.Join(t.TempDir(), "peers")
		a := s.start("a", simAddr(0), nil, func(c *Config) { c.PeersFile = file })
		b := s.start("b", simAddr(1), []string{simAddr(0)})
		c := s.start("c", simAddr(2), []string{simAddr(0)})
		s.within(10*time.Second, "all members", func() string { return complete(s.nodes) })
		forget := func(name string, want error) {
			t.Helper()
			if err := a.Forget(name); !errors.Is(err, want) {
				t.Errorf("forget %s: %v, want %v", name, err, want)
			}
		}
		is := func(n *simNode, want Status) {
			t.Helper()
			s.within(time.Minute, fmt.Sprint("c is ", want, " for ", n.cfg.Name), func() string {
				if got := status(n.Members, "c"); got != want {
					return fmt.Sprint("it is ", got)
				}
				return ""
			})
		}
		forget("a", ErrPresent)
		forget("c", ErrPresent)
		forget("nobody", nil)
		s.kill(c)
		is(a, Suspect)
		forget("c", ErrPresent)
		is(a, Dead)
		is(b, Dead)
		forget("c", nil)
		forget("c", nil)
		is(a, Left)
		is(b, Dead)                            // each for itself
		time.Sleep(settleFor + 10*time.Second) // whoever is asked because somebody has just gone has been
		tried := a.Stats().Joins
		time.Sleep(10 * time.Minute) // many rounds of joining
		is(a, Left)
		if text, err := os.ReadFile(file); err != nil || string(text) != b.addr+" b\n" || a.Stats().Joins != tried {
			t.Errorf("%q, %v, %d more joins; want b only, and nobody asked", text, err, a.Stats().Joins-tried)
		}
		s.nodes = s.nodes[:2]
		s.start("c", simAddr(3), []string{simAddr(1)})
		s.within(10*time.Second, "it is back", func() string { return complete(s.nodes) })
	})
}
