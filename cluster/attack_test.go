package cluster

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
)

// encode makes a message of memberlist's protocol.
func encode(kind byte, parts ...any) []byte {
	b := bytes.NewBuffer([]byte{kind})
	enc := codec.NewEncoder(b, new(codec.MsgpackHandle))
	for _, part := range parts {
		if err := enc.Encode(part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

var vsn = []uint8{1, 5, 2, 0, 0, 0}

func metaBytes(t *testing.T, meta Meta) []byte {
	t.Helper()
	b, err := meta.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lies are what a key holder can say about a victim in one message: packets, and exchanges of states for streams.
func lies(t *testing.T, victim string, addr netip.AddrPort, incarnation uint32) (packets, streams [][]byte) {
	meta := metaBytes(t, Meta{State: Ready, Version: "forged"})
	packets = [][]byte{
		encode(msgSuspect, accusation{incarnation, victim, "n0"}),
		encode(msgDead, accusation{incarnation, victim, "n0"}),
		encode(msgDead, accusation{incarnation, victim, victim}),
		encode(msgAlive, alive{incarnation, victim, addr.Addr().AsSlice(), addr.Port(), meta, vsn}),
	}
	for _, how := range []int{stateAlive, stateSuspect, stateDead, stateLeft} {
		streams = append(streams, encode(msgPushPull, stateHeader{Nodes: 1},
			state{victim, addr.Addr().AsSlice(), addr.Port(), meta, incarnation, how, vsn}))
	}
	return packets, streams
}

// Reference F5, memberlist issue 358.
func TestIncarnationOverflowRemovesNobody(t *testing.T) {
	for _, incarnation := range []uint32{math.MaxUint32, math.MaxUint32 - 1, maxAlive, maxAccused, maxAccused - 1} {
		for lie := range 8 {
			t.Run(fmt.Sprintf("lie %d, %d", lie, incarnation), func(t *testing.T) {
				inBubble(t, func(t *testing.T, s *sim) {
					nodes := s.cluster(4)
					victim := nodes[3]
					packets, streams := lies(t, "n3", netip.MustParseAddrPort(victim.addr), incarnation)
					liar := newWire(s.net.listen(simAddr(66)), &Config{Label: "test", maxStreams: 1}, victim.ring, victim.table, &refusals{})
					defer liar.Shutdown()
					for _, n := range nodes {
						if lie < 4 {
							sealed := victim.ring.seal(nil, packets[lie], []byte("test"))
							labelled, err := memberlist.AddLabelHeaderToPacket(sealed, "test")
							if err != nil {
								t.Fatal(err)
							}
							if _, err := liar.Transport.WriteTo(labelled, n.addr); err != nil {
								t.Fatal(err)
							}
							continue
						}
						conn, err := liar.DialTimeout(n.addr, time.Second)
						if err != nil {
							t.Fatal(err)
						}
						if _, err := conn.Write(streams[lie-4]); err != nil {
							t.Fatal(err)
						}
						io.Copy(io.Discard, conn)
						conn.Close()
					}
					time.Sleep(10 * time.Second) // virtual: for the lie to spread
					for range 60 {
						if problem := complete(nodes); problem != "" {
							t.Fatal(problem)
						}
						time.Sleep(5 * time.Second) // virtual: five minutes in all, longer than anybody is suspected
					}
					if incarnation >= maxAlive {
						for _, n := range nodes {
							if n.Stats().RefusedIncarnation == 0 {
								t.Errorf("%s has refused nothing", n.cfg.Name)
							}
						}
					}
				})
			})
		}
	}
}

// Why the filter is there. When this fails, memberlist has been mended.
func TestIncarnationOverflowInMemberlistAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		var nodes []*memberlist.Memberlist
		for i := range 4 {
			c := memberlist.DefaultLANConfig()
			c.Name, c.Transport, c.LogOutput = fmt.Sprintf("n%d", i), s.net.listen(simAddr(i)), io.Discard
			m, err := memberlist.Create(c)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Shutdown()
			if _, err := m.Join([]string{simAddr(0)}); err != nil {
				t.Fatal(err)
			}
			nodes = append(nodes, m)
		}
		time.Sleep(10 * time.Second) // virtual: for all to know each other
		for i := range nodes {
			if _, err := s.net.listen(simAddr(66)).WriteTo(encode(msgSuspect, accusation{math.MaxUint32, "n3", "n0"}), simAddr(i)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Minute) // virtual: longer than anybody is suspected
		if n := nodes[0].NumMembers(); n != 3 {
			t.Errorf("%d members, want the victim to be gone", n)
		}
	})
}

// Reference P6: sealed packets can be sent again by anybody who has seen them. Members may flap, and are all there again soon.
func TestReplayedPackets(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		type sent struct {
			to     string
			packet []byte
		}
		var seen []sent
		s.net.tap = func(to string, packet []byte) { seen = append(seen, sent{to, bytes.Clone(packet)}) }
		nodes := s.cluster(5)
		for range 3 {
			if err := nodes[4].Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-nodes[4].done
			nodes[4].done <- nil
			time.Sleep(time.Second) // virtual: for some rounds of gossip about the good-bye
			nodes = nodes[:4]
			s.nodes = nodes
			nodes = append(nodes, s.start("n4", simAddr(4), []string{simAddr(0)}))
			s.within(10*time.Second, "back", func() string { return complete(nodes) })
		}
		s.net.mu.Lock()
		s.net.tap = nil
		s.net.mu.Unlock()
		attacker := s.net.listen(simAddr(66))
		for range 3 {
			for _, p := range seen {
				if _, err := attacker.WriteTo(p.packet, p.to); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond) // virtual: for receivers to keep up, as their queues are short
			}
		}
		s.within(10*time.Second, "all there after the replay", func() string { return complete(nodes) })
	})
}

func TestManyNodesThroughOneSeed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		for i := range 50 {
			s.start(fmt.Sprintf("n%d", i), simAddr(i), []string{simAddr(0)}, func(c *Config) {
				c.Meta = func() Meta { return Meta{State: Ready, Epoch: uint64(time.Since(s.clock.began))} }
			})
		}
		s.within(30*time.Second, "everybody knows everybody", func() string { return complete(s.nodes) })
		// Reference P1: packets stay small, so that a ping never carries 255 messages; all of them are understood.
		for range 20 {
			for _, n := range s.nodes {
				n.UpdateMeta()
			}
			time.Sleep(100 * time.Millisecond) // virtual: half a round of gossip, so that news pile up
		}
		for _, n := range s.nodes {
			if st := n.Stats(); st.RefusedKind != 0 || st.RefusedKey != 0 {
				t.Errorf("%s refused %d messages and %d packets of its peers", n.cfg.Name, st.RefusedKind, st.RefusedKey)
			}
		}
		if n := s.net.largest.Load(); n > 1400 || n < 700 {
			t.Errorf("largest packet %d bytes, want it to be well used and at most 1400", n)
		}
	})
}

// A fifth of everything is lost for two minutes.
func TestLossyNetwork(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		nodes := s.cluster(7)
		s.net.setCut(func(string, string) bool { return rand.IntN(5) == 0 })
		time.Sleep(2 * time.Minute) // virtual: as long as packets are lost, enough for many suspicions
		s.net.setCut(func(string, string) bool { return false })
		s.within(10*time.Second, "all members", func() string { return complete(nodes) })
	})
}

// Reference P13: a caller that does not return from OnChange delays nothing but its own next call.
func TestOnChangeThatHangsDelaysNobody(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		hang, calls := make(chan struct{}), make(chan int, 100)
		stuck := s.start("a", simAddr(0), nil, func(c *Config) {
			c.OnChange = func(members []Member) { calls <- len(members); <-hang }
		})
		for i := 1; i < 6; i++ {
			s.start(fmt.Sprintf("n%d", i), simAddr(i), []string{simAddr(0)})
		}
		s.within(10*time.Second, "all members", func() string { return complete(s.nodes) })
		close(hang)
		last := 0
		s.within(time.Second, "told", func() string {
			for len(calls) > 0 {
				last = <-calls
			}
			if last != 6 {
				return fmt.Sprintf("last told of %d members", last)
			}
			return ""
		})
		if stuck.Stats().Alive != 6 {
			t.Errorf("%+v", stuck.Stats())
		}
	})
}

func TestMetadataReachesEverybody(t *testing.T) {
	inBubble(t, func(t *testing.T, s *sim) {
		meta := make(chan Meta, 1)
		current := Meta{State: Starting}
		a := s.start("a", simAddr(0), nil, func(c *Config) {
			c.Meta = func() Meta {
				select {
				case current = <-meta:
				default:
				}
				return current
			}
		})
		for i := 1; i < 5; i++ {
			s.start(fmt.Sprintf("n%d", i), simAddr(i), []string{simAddr(0)})
		}
		s.within(10*time.Second, "all members", func() string { return complete(s.nodes) })
		want := Meta{
			State: Ready, APIAddr: "10.0.0.1:7950", Version: "1.2.3", Epoch: 7, Voters: 3,
			Incarnation: [16]byte{1}, Certificate: [32]byte{2},
		}
		meta <- want
		a.UpdateMeta()
		s.within(5*time.Second, "told", func() string {
			for _, n := range s.nodes {
				for _, m := range n.Members.Members() {
					if m.Name == "a" && m.Meta != want {
						return fmt.Sprintf("%s has %+v", n.cfg.Name, m.Meta)
					}
				}
			}
			return ""
		})
		if got := a.Local(); got.Meta != want || got.Addr.String() != simAddr(0) {
			t.Errorf("local: %+v", got)
		}
		// What cannot be encoded is not announced, and harms nobody.
		meta <- Meta{State: Ready, APIAddr: "\n"}
		a.UpdateMeta()
		time.Sleep(5 * time.Second) // virtual: for many rounds of gossip, had it anything to say
		if problem := complete(s.nodes); problem != "" {
			t.Error(problem)
		}
	})
}

// A name that resolves to another address later, one that does not resolve at first, and an SRV record.
func TestSeedsAreResolvedInEachRound(t *testing.T) {
	for _, seed := range []string{"peers.example:7956", "dns+peers.example:7956", "dnssrv+_gossip._udp.example"} {
		t.Run(seed, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *sim) {
				names := &fakeResolver{}
				s.start("a", simAddr(0), nil)
				b := s.start("b", simAddr(1), []string{seed}, func(c *Config) { c.Resolver = names })
				time.Sleep(10 * time.Second) // virtual: some rounds of joining in which the name does not resolve
				if st := b.Stats(); st.Unresolved < 3 {
					t.Errorf("%d lookups failed", st.Unresolved)
				}
				names.set("10.0.0.99")
				time.Sleep(10 * time.Second) // virtual: some rounds of joining at an address where nobody is
				names.set("10.0.0.1")
				s.within(10*time.Second, "found", func() string { return complete(s.nodes) })
			})
		})
	}
}

func TestClustersDoNotMix(t *testing.T) {
	for name, other := range map[string]func(*Config){
		"another key":     func(c *Config) { c.Keys = [][]byte{bytes.Repeat([]byte{7}, 32)} },
		"another label":   func(c *Config) { c.Label = "other" },
		"another cluster": func(c *Config) { c.Meta = func() Meta { return Meta{State: Ready, Cluster: [16]byte{2}} } },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *sim) {
				a := s.start("a", simAddr(0), []string{simAddr(1)}, func(c *Config) {
					c.Meta = func() Meta { return Meta{State: Ready, Cluster: [16]byte{1}} }
				})
				b := s.start("b", simAddr(1), []string{simAddr(0)}, other)
				unborn := s.start("c", simAddr(2), []string{simAddr(0)}) // does not know its cluster yet
				time.Sleep(time.Minute)                                  // virtual: many rounds of joining
				if status(a.Members, "b") != 0 || status(b.Members, "a") != 0 {
					t.Error("they have met")
				}
				if status(a.Members, "c") != Alive || status(unborn.Members, "a") != Alive {
					t.Error("who does not know its cluster was not admitted")
				}
				if st := a.Stats(); st.RefusedKey+st.RefusedMembers == 0 {
					t.Error("nothing is counted")
				}
			})
		})
	}
}
