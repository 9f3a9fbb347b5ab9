package replication

import (
	"errors"
	"testing"
	"time"
)

// rogueTest is a node a, an honest peer b, and r, which has a certificate and sends a what it likes.
type rogueTest struct {
	*pair
	closed error // why a has ended the session with r
	fences int
}

const roguePeer = 9

func newRogueTest(t testing.TB, change func(c *Config)) *rogueTest {
	x := &rogueTest{pair: newPair(t, func(side int, c *Config) {
		if change != nil && side == 0 {
			change(c)
		}
	})}
	names := []string{"a", "b"}
	x.step(0, SetVoters{Voters{1, 7, names}, true})
	x.step(1, SetVoters{Voters{1, 7, names}, true})
	x.write(0, testRecord(1, 1), testRecord(2, 1))
	x.write(1, testRecord(3, 1), testRecord(4, 1))
	x.exchange(50 * time.Millisecond)
	x.connect()
	return x
}

func (x *rogueTest) connect() {
	x.closed = nil
	x.event(Connected{Peer: roguePeer, Name: "r"})
	x.say(func(w *writer) { w.hello(hello{1, 0, "r", Incarnation{9}, 1, false, true}) })
}

func (x *rogueTest) event(e Event) {
	out := x.r[0].Step(x.now, e)
	for _, c := range out.Close {
		if c.Peer == roguePeer {
			x.closed = c.Err
		} else {
			x.ended = c.Err
		}
	}
	if out.Fence {
		x.fences++
	}
	for _, j := range append([]JournalWrite(nil), out.Journal...) {
		x.event(Journaled{j.Token})
	}
}

func (x *rogueTest) say(fn func(w *writer)) { x.event(Received{roguePeer, frames(fn)}) }

// id is that of b's origin.
func (x *rogueTest) id() OriginID { return x.r[1].own[Urgent].ID }

func (w *writer) claims(ref, number uint64) {
	w.frame(frameVector)
	w.uint(1)
	w.uint(ref)
	w.uint(number)
	w.uint(number)
	w.end()
}

func (w *writer) run(ref, first uint64, records ...Record) {
	w.frame(frameRecords)
	w.uint(ref)
	w.uint(first)
	for i := range records {
		w.records(records[i][:])
	}
	w.end()
}

func (w *writer) names(ref uint64, id OriginID, node string, sealed uint64, expires uint32, own bool) {
	w.origin(&origin{Origin: Origin{Index: uint32(ref), ID: id, Node: node, Sealed: sealed, Expires: expires}, own: own, applied: sealed})
}

// T-ROGUE: whatever a node with a certificate sends, the others take what the rest write, claim what they hold, and no more.
func TestRogue(t *testing.T) {
	evil := testRecord(1000, 9)
	ended := func(x *rogueTest) bool { return errors.Is(x.closed, ErrProtocol) }
	held := func(x *rogueTest, k uint64) bool {
		_, ok := x.store[0].records[(&[]Record{testRecord(k, 0)}[0]).Key()]
		return ok
	}
	for _, c := range []struct {
		name   string
		config func(*Config)
		do     func(x *rogueTest)
		ok     func(x *rogueTest) bool // nil: nothing in particular
	}{
		{name: "records of another node, unasked", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.id(), "b", 0, 0, false); w.run(5, 3, evil) })
		}, ok: func(x *rogueTest) bool { return !held(x, 1000) && x.r[0].Stats().Unasked == 1 }},
		{name: "records of another node, as its own", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.id(), "r", 0, 0, true); w.run(5, 3, evil) })
		}, ok: ended},
		{name: "more of another node than it has given", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.id(), "b", 0, 0, true); w.claims(5, 500) })
			x.exchange(100 * time.Millisecond)
			x.say(func(w *writer) { w.run(5, 3, evil) })
		}, ok: func(x *rogueTest) bool { return !held(x, 1000) && x.r[0].Stats().Impostors > 0 }},
		{name: "a log that begins above what was given", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.names(5, x.id(), "b", 0, 0, false)
				w.frame(frameBelow)
				w.fixed(uint64(x.id()))
				w.uint(400)
				w.end()
			})
			x.exchange(100 * time.Millisecond)
		}, ok: func(x *rogueTest) bool { return x.r[0].Stats().Scans == 0 }},
		{name: "a scan that nobody asked for", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.names(5, x.id(), "b", 0, 0, false)
				for id := range uint64(20) {
					w.frame(frameScanBegin)
					w.uint(id)
					w.flag(true)
					w.uint(1)
					w.uint(5)
					w.uint(400)
					w.end()
					w.frame(frameScanEnd)
					w.uint(id)
					w.end()
				}
			})
		}},
		{name: "another node's origin is sealed and has expired", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.id(), "b", 2, 1, false) })
			x.now.Guarded += 3 * dropAfter * 1000
			x.now.Mono += 2 * originsEvery
			x.event(Tick{})
		}, ok: func(x *rogueTest) bool { return x.r[0].reg.byID[x.id()] != nil && x.r[0].reg.byID[x.id()].Sealed == 0 }},
		{name: "this node's numbers are used, once", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.r[0].own[Urgent].ID, "a", 0, 0, false); w.claims(5, 500) })
		}, ok: func(x *rogueTest) bool { return x.fences == 1 }},
		{name: "another node's origin is two nodes'", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, x.id(), "c", 0, 0, true) })
		}, ok: ended},
		{name: "more origins than one node may have", do: func(x *rogueTest) {
			for i := range uint64(nodeOrigins + 50) {
				x.say(func(w *writer) { w.names(1+i, OriginID(1000+2*i), "r", 0, 0, true) })
			}
		}, ok: func(x *rogueTest) bool { return len(x.r[0].Origins()) <= nodeOrigins+2 && x.closed == nil }},
		{name: "more records than one node may have", config: func(c *Config) { c.NodeRecords = 10 }, do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.names(5, 1000, "r", 0, 0, true)
				for i := range uint64(30) {
					w.run(5, 1+i, testRecord(1000+i, 1))
				}
			})
		}, ok: func(x *rogueTest) bool {
			v := x.r[0].reg.byID[1000].applied
			return v == 10 && held(x, 1009) && !held(x, 1010) && errors.Is(x.r[0].Stats().LastRefused, ErrQuota)
		}},
		{name: "faster than one node may write", config: func(c *Config) { c.NodeRate = 1 }, do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.names(5, 1000, "r", 0, 0, true)
				for i := range uint64(30) {
					w.run(5, 1+i, testRecord(1000+i, 1))
				}
			})
		}, ok: func(x *rogueTest) bool { return x.r[0].reg.byID[1000].applied == 1*rateBurst }},
		{name: "the same number with other content", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, 1000, "r", 0, 0, true); w.run(5, 1, testRecord(1000, 1)) })
			x.say(func(w *writer) { w.run(5, 1, testRecord(1001, 1)) })
		}, ok: func(x *rogueTest) bool { return held(x, 1000) && !held(x, 1001) }},
		{name: "a hole", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, 1000, "r", 0, 0, true); w.run(5, 7, testRecord(1000, 1)) })
		}, ok: func(x *rogueTest) bool { return x.r[0].reg.byID[1000].applied == 0 }},
		{name: "views of the voters", do: func(x *rogueTest) {
			x.step(0, Disconnected{1})
			x.step(1, Disconnected{1})
			x.now.Mono += time.Hour
			for range 3 {
				x.event(Tick{})
				x.say(func(w *writer) {
					w.frame(frameVoters)
					w.fixed(7)
					w.flag(true)
					w.uint(1)
					w.uint(0)
					w.end()
					w.claims(0, 0)
					for id := range uint64(20) {
						w.frame(frameAnswer)
						w.uint(id)
						w.uint(1)
						w.uint(1)
						w.uint(2)
						w.uint(1)
						w.uint(1)
						w.end()
					}
				})
				x.now.Mono += time.Second
			}
			if x.r[0].now.Mono-x.r[0].View("b") < time.Hour {
				x.t.Error("the view of b is young, and b is not there")
			}
			x.step(0, Connected{Peer: 1, Name: "b"})
			x.step(1, Connected{Peer: 1, Name: "a"})
		}},
		{name: "acknowledgements", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.frame(frameVoters)
				w.fixed(8)
				w.flag(true)
				w.uint(1)
				w.uint(0)
				w.end()
				w.names(5, x.r[0].own[Urgent].ID, "a", 0, 0, false)
				w.claims(5, 2)
			})
		}, ok: func(x *rogueTest) bool {
			c := x.r[0].Confirmed(x.own[0], 2)
			return len(c) == 1 && c[0] == "b" // under other voters it counts for nothing
		}},
		{name: "a size that is not there", do: func(x *rogueTest) {
			x.event(Received{roguePeer, []byte{byte(frameRecords), 0xff, 0xff, 0xff, 0x7f}})
		}, ok: ended},
		{name: "a count that is not there", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.frame(frameVoters)
				w.fixed(1)
				w.flag(true)
				w.uint(1)
				w.uint(1 << 40)
				w.end()
			})
		}, ok: ended},
		{name: "half a record", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				w.names(5, 1000, "r", 0, 0, true)
				w.frame(frameRecords)
				w.uint(5)
				w.uint(1)
				w.bytes(1, 2, 3)
				w.end()
			})
		}, ok: ended},
		{name: "numbers beyond the last", do: func(x *rogueTest) {
			x.say(func(w *writer) { w.names(5, 1000, "r", 0, 0, true); w.run(5, MaxNumber, evil, evil) })
		}, ok: ended},
		{name: "a message that is too long", do: func(x *rogueTest) {
			x.event(Received{roguePeer, make([]byte, maxMessage+1)})
		}, ok: ended},
		{name: "definitions without end", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				for i := range uint64(definitionBurst + 10) {
					w.frame(frameDefine)
					w.uint(i)
					w.end()
				}
			})
		}, ok: func(x *rogueTest) bool { return errors.Is(x.closed, ErrQuota) }},
		{name: "control messages without end", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				for range maxControls + 1 {
					w.frame(frameControl)
					w.uint(1)
					w.end()
				}
			})
		}, ok: ended},
		{name: "questions without end", do: func(x *rogueTest) {
			x.say(func(w *writer) {
				for i := range uint64(20_000) {
					w.frame(frameProbe)
					w.uint(i)
					w.end()
					w.frame(framePull)
					w.uint(1)
					w.uint(1)
					w.end()
				}
			})
		}, ok: func(x *rogueTest) bool { return len(x.r[0].Fill(x.now, roguePeer, nil)) < MaxMessage }},
		{name: "audits that end in nothing", do: func(x *rogueTest) {
			for i := range uint64(50) {
				x.say(func(w *writer) {
					w.frame(frameAudit)
					w.uint(i)
					w.uint(0)
					w.uint(0)
					w.end()
					w.frame(frameLeaf)
					w.uint(i)
					w.uint(1)
					w.flag(true)
					w.records(evil[:])
					w.fixed(uint64(MakeDot(5, 1)))
					w.end()
				})
			}
		}},
		{name: "what another session has sent", do: func(x *rogueTest) {
			x.write(1, testRecord(50, 1))
			b := x.r[1].Fill(x.now, 1, nil)
			x.event(Received{roguePeer, b})
			x.step(0, Received{1, b})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newRogueTest(t, c.config)
			c.do(x)
			if c.ok != nil && !c.ok(x) {
				t.Errorf("ended %v, %+v, %+v", x.closed, x.r[0].Stats(), x.r[0].Origins())
			}
			if x.fences > 0 {
				return // all begins anew
			}
			// The others go on.
			x.write(1, testRecord(70, 1))
			x.write(0, testRecord(71, 1))
			x.exchange(3 * time.Second)
			o := x.r[0].reg.byID[x.id()]
			if x.ended != nil || !held(x, 70) || o.applied != x.next[1]-1 || x.r[0].own[Urgent].applied != x.next[0]-1 {
				t.Errorf("the honest session: %v, %+v; own %+v", x.ended, o, x.r[0].own[Urgent])
			}
			if c := x.r[0].Confirmed(x.own[0], x.next[0]-1); len(c) != 1 || c[0] != "b" {
				t.Errorf("confirmed by %v", c)
			}
		})
	}
}

// Who says again and again that this node's numbers are used is not listened to any more; it makes the node take other ones three times at once.
func TestFencesAreMetered(t *testing.T) {
	if n := fencesOf(t, ""); n != fenceBurst {
		t.Errorf("%d times, want %d", n, fenceBurst)
	}
}

// fencesOf is how often a takes other numbers when it is told twenty times that its own are used.
func fencesOf(t testing.TB, mutant string) int {
	x := newRogueTest(t, func(c *Config) { c.Mutant = leaveOut(mutant) })
	for i := range uint64(20) {
		id := x.r[0].own[Urgent]
		if id == nil {
			if _, err := x.r[0].NewOrigin(MakeOrigin(5000+2*i, Urgent)); err != nil {
				t.Fatal(err)
			}
			id = x.r[0].own[Urgent]
		}
		x.event(Disconnected{roguePeer})
		x.connect()
		x.say(func(w *writer) { w.names(5, id.ID, "a", 0, 0, false); w.claims(5, 500) })
		x.now.Mono += 100 * time.Millisecond
	}
	return x.fences
}

// Each defence is what stops it: see TestMutants.
func TestRogueDefences(t *testing.T) {
	for name, holds := range defences {
		if !holds(newRogueTest(t, nil)) {
			t.Error(name)
		}
	}
}

// defences are what a rogue tries, by the rule that stops it; each reports whether that was in vain.
var defences = map[string]func(x *rogueTest) bool{
	"unasked": func(x *rogueTest) bool {
		x.say(func(w *writer) { w.names(5, x.id(), "b", 0, 0, false); w.run(5, 3, testRecord(1000, 9)) })
		return x.r[0].reg.byID[x.id()].applied == 2
	},
	"hearsay-views": func(x *rogueTest) bool {
		x.step(0, Disconnected{1})
		x.now.Mono += time.Hour
		x.event(Tick{})
		x.say(func(w *writer) {
			w.frame(frameVoters)
			w.fixed(7)
			w.flag(true)
			w.uint(1)
			w.uint(0)
			w.end()
			for id := range uint64(20) {
				w.frame(frameAnswer)
				w.uint(id)
				w.uint(1)
				w.uint(1)
				w.uint(2)
				w.uint(1)
				w.uint(1)
				w.end()
			}
		})
		return x.r[0].now.Mono-x.r[0].View("b") >= time.Hour
	},
	"hearsay": func(x *rogueTest) bool {
		x.say(func(w *writer) { w.names(5, x.id(), "b", 0, 0, false); w.claims(5, 500) })
		x.exchange(100 * time.Millisecond)
		x.say(func(w *writer) { w.run(5, 3, testRecord(1000, 9)) })
		return x.r[0].reg.byID[x.id()].applied == 2
	},
}

// A node whose numbers somebody else has used no longer claims what it wrote under them: it is no voter until it has written that under others, or a view that
// names it would lack what it has confirmed.
func TestFencedNodeDoesNotVote(t *testing.T) {
	if fencedVotes(t, "") {
		t.Error("it votes")
	}
}

// fencedVotes reports whether a votes for b when others have used its numbers; it votes again when it has written what it had.
func fencedVotes(t testing.TB, mutant string) bool {
	x := newRogueTest(t, func(c *Config) { c.Mutant = leaveOut(mutant) })
	id := x.r[0].own[Urgent].ID
	x.say(func(w *writer) { w.names(5, id, "a", 0, 0, false); w.claims(5, 500) })
	index, err := x.r[0].NewOrigin(MakeOrigin(5000, Urgent))
	if err != nil || x.fences != 1 {
		t.Fatal(err, x.fences)
	}
	x.own[0], x.next[0] = index, 1
	x.step(1, Disconnected{1})
	x.step(0, Connected{Peer: 1, Name: "b"})
	x.step(1, Connected{Peer: 1, Name: "a"})
	x.exchange(50 * time.Millisecond)
	votes := x.r[1].peers[1].votes
	x.write(0, testRecord(1, 2), testRecord(2, 2)) // instead of what it had
	x.exchange(3 * time.Second)
	if !x.r[1].peers[1].votes {
		t.Error("a does not vote again")
	}
	return votes
}

// One of two peers says that it holds what only a scan brings, and its scans are empty. The other one is asked too, and is the only server of what follows a scan that was divided.
func TestScanOfWhoHasNothing(t *testing.T) {
	r, err := New(testConfig("a"), newTable(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := Now{Mono: time.Hour, Wall: 1_800_000_000_000, Guarded: 1_800_000_000_000}
	const id, holds = OriginID(1000), 50
	names := map[PeerID]string{1: "r", 2: "b"}
	for peer := PeerID(1); peer <= 2; peer++ {
		r.Step(now, Connected{Peer: peer, Name: names[peer]})
		r.Step(now, Received{peer, frames(func(w *writer) {
			w.hello(hello{1, 0, names[peer], Incarnation{byte(peer)}, 1, false, true})
			w.names(5, id, "c", 0, 0, false)
			w.claims(5, holds)
			w.below(&origin{Origin: Origin{ID: id}, floor: holds})
		})})
	}
	for end := now.Mono + 5*time.Second; now.Mono < end && r.reg.byID[id].applied < holds; now.Mono += 10 * time.Millisecond {
		r.Step(now, Tick{})
		for peer := PeerID(1); peer <= 2; peer++ {
			in := reader{b: r.Fill(now, peer, nil)}
			for kind, f, ok := in.next(); ok; kind, f, ok = in.next() {
				if kind != frameScan {
					continue
				}
				scan := f.uint()
				r.Step(now, Received{peer, frames(func(w *writer) {
					w.frame(frameScanBegin)
					w.uint(scan)
					w.flag(true)
					if peer == 1 {
						w.uint(0)
					} else {
						w.uint(1)
						w.uint(5)
						w.uint(holds)
					}
					w.end()
					w.frame(frameScanEnd)
					w.uint(scan)
					w.end()
				})})
			}
		}
	}
	if n := r.reg.byID[id].applied; n != holds {
		t.Errorf("holds %d of %d after %d scans", n, holds, r.Stats().Scans)
	}
}

// Somebody says of an origin whose node is away that it has expired. Who holds its records knows better, and a client that learns of it from him takes them.
func TestOriginSaidToHaveExpired(t *testing.T) {
	a, err := New(testConfig("a"), newTable(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg, held := testConfig("client"), newTable()
	cfg.Client = true
	client, err := New(cfg, held, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := Now{Mono: time.Hour, Wall: 1_800_000_000_000, Guarded: 1_800_000_000_000}
	record := testRecord(7, 1)
	hears := func(peer PeerID, name string, fn func(w *writer)) {
		a.Step(now, Connected{Peer: peer, Name: name})
		a.Step(now, Received{peer, frames(func(w *writer) {
			w.hello(hello{1, 0, name, Incarnation{byte(peer)}, 1, false, true})
			fn(w)
		})})
	}
	hears(1, "c", func(w *writer) { w.names(5, 1000, "c", 0, 0, true); w.run(5, 1, record) })
	a.Step(now, Disconnected{1})
	hears(2, "r", func(w *writer) { w.names(5, 1000, "c", 1, 1, false) })
	a.Step(now, Connected{Peer: 3, Client: true})
	client.Step(now, Connected{Peer: 3, Name: "a"})
	for range 100 {
		now.Mono += 10 * time.Millisecond
		a.Step(now, Tick{})
		client.Step(now, Tick{})
		if b := a.Fill(now, 3, nil); len(b) > 0 {
			client.Step(now, Received{3, b})
		}
		if b := client.Fill(now, 3, nil); len(b) > 0 {
			a.Step(now, Received{3, b})
		}
	}
	if _, ok := held.records[record.Key()]; !ok {
		t.Errorf("the client has no record; the node says %+v", a.Origins())
	}
}
