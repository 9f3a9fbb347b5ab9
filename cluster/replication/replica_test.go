package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// table is the least store: the later of two values under a key wins.
type table struct {
	records map[Key]Record
	dots    map[Key]Dot
	refuse  func(*Record) error
	early   func(*Record) bool
}

func newTable() *table { return &table{records: map[Key]Record{}, dots: map[Key]Dot{}} }

func (*table) Ahead([]Key) {}

func (t *table) Merge(r *Record, d Dot, _ Now, _ bool) (Merged, error) {
	if t.refuse != nil {
		if err := t.refuse(r); err != nil {
			return Merged{}, err
		}
	}
	if old, ok := t.records[r.Key()]; ok && bytes.Compare(old[16:], r[16:]) >= 0 {
		return Merged{}, nil
	}
	t.records[r.Key()], t.dots[r.Key()] = *r, d
	return Merged{Changed: true, Unnamed: d.Index() == 0}, nil
}

func (t *table) Held(r *Record, _ Now) (Record, Dot, bool) {
	held, ok := t.records[r.Key()]
	return held, t.dots[r.Key()], ok
}

func (t *table) Scan(from Key, budget int, _ Now, keep func(Dot) bool, fn func(*Record, Dot) bool) (Key, bool) {
	var keys []Key
	for k := range t.records {
		if !k.less(from) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b Key) int {
		if a.less(b) {
			return -1
		}
		return 1
	})
	for i, k := range keys {
		r := t.records[k]
		if budget--; budget < 0 {
			return k, true
		}
		if keep(t.dots[k]) && !fn(&r, t.dots[k]) {
			if i+1 == len(keys) {
				return Key{}, false
			}
			return keys[i+1], true
		}
	}
	return Key{}, false
}

func (t *table) Each(from Key, budget int, now Now, fn func(*Record, Dot)) (Key, bool) {
	return t.Scan(from, budget, now, func(Dot) bool { return true }, func(r *Record, d Dot) bool { fn(r, d); return true })
}

func (t *table) Size() int                    { return len(t.records) }
func (t *table) Early(Now) func(*Record) bool { return t.early }
func (t *table) Definition(uint64) []byte     { return nil }
func (t *table) Define(_ []byte, _ Now) error { return nil }
func testConfig(name string) Config {
	n := uint64(1)
	return Config{
		Name: name, AuditEvery: -1,
		Digest:       func(r *Record) uint64 { return binary.BigEndian.Uint64(r[:]) },
		Deadline:     func(*Record) uint32 { return math.MaxUint32 - 1 },
		DefinitionID: func(*Record) uint64 { return 0 },
		Random:       func() uint64 { n = n*6364136223846793005 + 1442695040888963407; return n >> 1 },
	}
}

func testRecord(key, value uint64) (r Record) {
	binary.BigEndian.PutUint64(r[:], key*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(r[8:], key)
	binary.BigEndian.PutUint64(r[16:], value)
	return r
}

// pair is two replicas and the session between them, without a network.
type pair struct {
	t     testing.TB
	r     [2]*Replica
	store [2]*table
	own   [2]uint32
	next  [2]uint64
	now   Now
	ended error
}

func newPair(t testing.TB, change func(side int, c *Config)) *pair {
	p := &pair{t: t, now: Now{Mono: time.Hour, Wall: 1_800_000_000_000, Guarded: 1_800_000_000_000}}
	for i := range 2 {
		cfg := testConfig(string(rune('a' + i)))
		if change != nil {
			change(i, &cfg)
		}
		p.store[i] = newTable()
		r, err := New(cfg, p.store[i], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.r[i] = r
		if !cfg.Client {
			if p.own[i], err = r.NewOrigin(MakeOrigin(uint64(i+1)<<20, Urgent)); err != nil {
				t.Fatal(err)
			}
		}
		p.next[i] = 1
	}
	p.step(0, Connected{Peer: 1, Name: p.r[1].cfg.Name, Client: p.r[1].cfg.Client})
	p.step(1, Connected{Peer: 1, Name: p.r[0].cfg.Name, Client: p.r[0].cfg.Client})
	p.exchange(50 * time.Millisecond)
	return p
}

// step carries out an event; what is given to the journal is durable at once.
func (p *pair) step(side int, e Event) {
	out := p.r[side].Step(p.now, e)
	if len(out.Close) > 0 {
		p.ended = out.Close[0].Err
	}
	token := uint64(0)
	for _, j := range out.Journal {
		token = j.Token
	}
	if token > 0 {
		p.step(side, Journaled{token})
	}
}

// exchange passes messages for a while.
func (p *pair) exchange(d time.Duration) {
	for end := p.now.Mono + d; p.now.Mono < end; p.now.Mono += time.Millisecond {
		for side := range 2 {
			p.step(side, Tick{})
			for {
				b := p.r[side].Fill(p.now, 1, nil)
				if len(b) == 0 {
					break
				}
				if len(b) > MaxMessage {
					p.t.Fatalf("a message of %d bytes", len(b))
				}
				p.step(1-side, Received{1, b})
			}
		}
	}
}

func (p *pair) write(side int, records ...Record) {
	for i := range records {
		if _, err := p.store[side].Merge(&records[i], MakeDot(p.own[side], p.next[side]+uint64(i)), p.now, true); err != nil {
			p.t.Fatal(err)
		}
	}
	first := p.next[side]
	p.next[side] += uint64(len(records))
	p.step(side, Written{Index: p.own[side], First: first, Records: records})
}

// frames builds messages as a peer would.
func frames(fn func(w *writer)) []byte {
	w := &writer{}
	fn(w)
	return w.b
}

// leaveOut is a Config.Mutant; empty: with all rules.
func leaveOut(rule string) func(string) bool {
	if rule == "" {
		return nil
	}
	return func(name string) bool { return name == rule }
}

// Votes count under one configuration, and only those of voters (guarantees 1, rule 3).
func TestVotesCountUnderOneConfiguration(t *testing.T) {
	for _, c := range []struct {
		name   string
		hash   uint64
		votes  bool
		counts bool
	}{
		{name: "the same voters", hash: 7, votes: true, counts: true},
		{name: "other voters", hash: 8, votes: true},
		{name: "no voter", hash: 7, votes: false},
	} {
		if confirms, views := voteOf(t, c.hash, c.votes, ""); confirms != c.counts || views != c.counts {
			t.Errorf("%s: confirmed %v, a view of all %v", c.name, confirms, views)
		}
	}
}

// voteOf reports whether a, which has voters of the hash 7, counts what b confirms and what it says about views.
func voteOf(t testing.TB, hash uint64, votes bool, mutant string) (confirms, views bool) {
	names := []string{"a", "b"}
	p := newPair(t, func(_ int, cfg *Config) { cfg.Mutant = leaveOut(mutant) })
	p.step(0, SetVoters{Voters{1, 7, names}, true})
	p.step(1, SetVoters{Voters{1, hash, names}, votes})
	p.write(0, testRecord(1, 1))
	p.exchange(3 * time.Second)
	_, all := p.r[0].FreshSince()
	return len(p.r[0].Confirmed(p.own[0], 1)) == 1, all != never
}

// A record that the store refuses holds the vector, and what follows over the hole does not raise it.
func TestRefusedRecordHoldsTheVector(t *testing.T) {
	p := refusing(t, "")
	if !p.holdsAt(2) {
		t.Errorf("the vector is %v", p.r[1].Vector())
	}
	if st := p.r[1].Stats(); st.Refused == 0 || !errors.Is(st.LastRefused, errFull) {
		t.Errorf("%+v", st)
	}
	p.store[1].refuse = nil
	p.exchange(3 * time.Second)
	if !p.holdsAt(5) {
		t.Errorf("not level when there is room: %v", p.r[1].Vector())
	}
}

var errFull = errors.New("full")

// refusing is a pair in which b has refused the third of a's five records.
func refusing(t testing.TB, mutant string) *pair {
	p := newPair(t, func(side int, c *Config) {
		if side == 1 {
			c.Mutant = leaveOut(mutant)
		}
	})
	p.store[1].refuse = func(r *Record) error {
		if *r == testRecord(3, 1) {
			return errFull
		}
		return nil
	}
	for k := range uint64(5) {
		p.write(0, testRecord(k+1, 1))
		p.exchange(2 * time.Millisecond)
	}
	return p
}

// holdsAt reports whether b's vector says so many of a's records, and nothing else.
func (p *pair) holdsAt(number uint64) bool {
	v := p.r[1].Vector()
	return len(v) == 1 && v[0].Number == number
}

// A missing definition ends the session; the next one brings it.
func TestMissingDefinitionEndsTheSession(t *testing.T) {
	p := newPair(t, nil)
	p.store[1].refuse = func(*Record) error { return fmt.Errorf("%w: 7", ErrDefinition) }
	p.write(0, testRecord(1, 1))
	p.exchange(10 * time.Millisecond)
	if !errors.Is(p.ended, ErrDefinition) {
		t.Fatal(p.ended)
	}
}

// A session begins with what the peer lacks, and not with the whole log.
func TestReconnectSendsOnlyWhatIsMissing(t *testing.T) {
	p := newPair(t, nil)
	for k := range uint64(1000) {
		p.write(0, testRecord(k, 1))
	}
	p.exchange(20 * time.Millisecond)
	p.step(0, Disconnected{1})
	p.step(1, Disconnected{1})
	p.write(0, testRecord(5000, 1), testRecord(5001, 1))
	sent := p.r[0].Stats().Sent
	p.step(0, Connected{Peer: 1, Name: "b"})
	p.step(1, Connected{Peer: 1, Name: "a"})
	p.exchange(50 * time.Millisecond)
	if n := p.r[0].Stats().Sent - sent; n != 2 || p.r[1].Stats().Duplicates != 0 {
		t.Errorf("%d records were sent again", n)
	}
}

// A client says nothing about anybody but itself.
func TestClientIsBelievedAboutItselfOnly(t *testing.T) {
	p := newPair(t, func(side int, c *Config) { c.Client = side == 1 })
	p.write(0, testRecord(1, 1))
	p.exchange(20 * time.Millisecond)
	p.step(0, Received{1, frames(func(w *writer) {
		w.origin(&origin{Origin: Origin{Index: 1, ID: p.r[0].own[Urgent].ID, Node: "a", Sealed: 1, Expires: 1}})
		w.origin(&origin{Origin: Origin{Index: 2, ID: 12345, Node: "x"}})
		w.frame(frameVector)
		w.uint(2)
		for ref := range uint64(2) {
			w.uint(ref + 1)
			w.uint(1 << 30)
			w.uint(1 << 30)
		}
		w.end()
	})})
	out := p.r[0].Step(p.now, Tick{})
	if p.ended != nil || out.Fence || len(p.r[0].Origins()) != 1 || p.r[0].Origins()[0].Sealed != 0 || len(p.r[0].Confirmed(p.own[0], 1)) != 0 || len(p.r[0].Barrier([]string{"b"})) != 0 || p.r[0].Stats().Behind != 0 {
		t.Errorf("%v %+v %+v", p.ended, p.r[0].Origins(), p.r[0].Stats())
	}
	p.step(0, Received{1, frames(func(w *writer) {
		w.frame(frameDefine)
		w.uint(1)
		w.end()
	})})
	if !errors.Is(p.ended, ErrProtocol) {
		t.Errorf("a client defines: %v", p.ended)
	}
}

// Another key, another name, no hello.
func TestIncompatiblePeers(t *testing.T) {
	for name, message := range map[string][]byte{
		"another key":  frames(func(w *writer) { w.hello(hello{1, 99, "b", Incarnation{}, 1, false, true}) }),
		"another name": frames(func(w *writer) { w.hello(hello{1, 0, "c", Incarnation{}, 1, false, true}) }),
		"this name":    frames(func(w *writer) { w.hello(hello{1, 0, "a", Incarnation{}, 1, false, true}) }),
		"version 0":    frames(func(w *writer) { w.hello(hello{0, 0, "b", Incarnation{}, 1, false, true}) }),
		"no hello":     frames(func(w *writer) { w.frame(frameProbe); w.uint(1); w.end() }),
	} {
		if !newAlone(t, "").turnsAway(message) {
			t.Error(name)
		}
	}
}

// newAlone is a replica without sessions.
func newAlone(t testing.TB, mutant string) *Replica {
	cfg := testConfig("a")
	cfg.Mutant = leaveOut(mutant)
	r, err := New(cfg, newTable(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// turnsAway reports whether a session with b ends at its first message.
func (r *Replica) turnsAway(message []byte) bool {
	r.Step(Now{}, Connected{Peer: 1, Name: "b"})
	out := r.Step(Now{}, Received{1, message})
	return len(out.Close) == 1 && (errors.Is(out.Close[0].Err, ErrIncompatible) || errors.Is(out.Close[0].Err, ErrProtocol))
}

// Who knows of one key is talked to as long as there is one. What is known of the keys goes ahead of all that follows.
func TestVersionsWithOneKey(t *testing.T) {
	for _, knows := range []bool{false, true} {
		r, err := New(testConfig("a"), newTable(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		greet := func(id PeerID, name string) *Outputs {
			r.Step(Now{}, Connected{Peer: id, Name: name})
			return r.Step(Now{}, Received{id, frames(func(w *writer) { w.hello(hello{1, 0, name, Incarnation{}, 1, false, knows}) })})
		}
		r.Step(Now{}, SetKeys{Keys: []byte("one")})
		if out := greet(1, "b"); len(out.Close) != 0 {
			t.Fatalf("%v: %v", knows, out.Close)
		}
		for len(r.Fill(Now{}, 1, nil)) > 0 {
			continue
		}
		out := r.Step(Now{}, SetKeys{Keys: []byte("two"), Several: true})
		if closed := len(out.Close) == 1 && errors.Is(out.Close[0].Err, ErrIncompatible); closed == knows {
			t.Errorf("%v: %+v", knows, out.Close)
		}
		if out = greet(2, "c"); (len(out.Close) == 0) != knows {
			t.Errorf("%v: %+v", knows, out.Close)
		}
		if !knows {
			continue
		}
		in := reader{b: r.Fill(Now{}, 1, nil)}
		if frame, f, ok := in.next(); !ok || frame != frameKeys || f.string(maxKeys) != "two" {
			t.Errorf("the first frame is %d", frame)
		}
	}

	// Nodes tell each other; a client tells nobody.
	p := newPair(t, nil)
	p.step(0, SetKeys{Keys: []byte("x")})
	message := frames(func(w *writer) { w.frame(frameKeys); w.string("y"); w.bytes('m', 'o', 'r', 'e'); w.end() })
	if out := p.r[0].Step(p.now, Received{1, message}); len(out.Keys) != 1 || string(out.Keys[0].Keys) != "y" || len(out.Close) != 0 {
		t.Errorf("%+v", out)
	}
	long := frames(func(w *writer) { w.frame(frameKeys); w.string(string(make([]byte, maxKeys+1))); w.end() })
	if out := p.r[0].Step(p.now, Received{1, long}); len(out.Close) != 1 || !errors.Is(out.Close[0].Err, ErrProtocol) {
		t.Errorf("%+v", out)
	}
}

// A node tells with its answers how many records it holds; earlier versions do not.
func TestAnswerTellsHowManyRecords(t *testing.T) {
	p := newPair(t, nil)
	p.write(1, testRecord(1, 1), testRecord(2, 1), testRecord(3, 1))
	p.exchange(3 * time.Second)
	for side := range 2 {
		if s := p.r[side].Peers()[0]; s.Records != 3 || !s.Counted {
			t.Errorf("%d knows of %d records, %v", side, s.Records, s.Counted)
		}
	}
	for _, c := range []struct {
		name    string
		rest    []byte // of the answer
		records uint64
		counted bool
		ended   error
	}{
		{name: "an earlier version"},
		{name: "none", rest: []byte{0}, counted: true},
		{name: "a later version", rest: []byte{7, 'm', 'o', 'r', 'e'}, records: 7, counted: true},
		{name: "more than there can be", rest: binary.AppendUvarint(nil, 1<<62+1), ended: ErrProtocol},
		{name: "cut short", rest: []byte{0x80}, ended: ErrProtocol},
	} {
		p := newPair(t, nil)
		p.now.Mono += time.Second
		p.step(0, Tick{}) // it asks
		p.step(0, Received{1, frames(func(w *writer) {
			w.frame(frameAnswer)
			w.uint(p.r[0].peers[1].probeID)
			w.uint(uint64(p.now.Wall))
			w.uint(uint64(p.now.Guarded))
			w.uint(0)
			w.bytes(c.rest...)
			w.end()
		})})
		if c.ended != nil {
			if !errors.Is(p.ended, c.ended) {
				t.Errorf("%s: %v", c.name, p.ended)
			}
			continue
		}
		if s := p.r[0].Peers()[0]; p.ended != nil || s.Records != c.records || s.Counted != c.counted || s.GuardedAt != p.now.Mono {
			t.Errorf("%s: %v, %+v", c.name, p.ended, s)
		}
	}
}

// Frames of a later version are passed over.
func TestUnknownFrameIsPassedOver(t *testing.T) {
	p := newPair(t, nil)
	p.step(0, Received{1, frames(func(w *writer) { w.frame(200); w.uint(5); w.end() })})
	p.write(1, testRecord(1, 1))
	p.exchange(10 * time.Millisecond)
	if p.ended != nil || len(p.store[0].records) != 1 {
		t.Error(p.ended)
	}
}

// Origins whose records have expired are forgotten, those of a run that was lost with its disk too, and their indices come again without claims.
func TestOriginsAreBounded(t *testing.T) {
	p := newPair(t, func(_ int, c *Config) {
		c.Deadline = func(r *Record) uint32 { return binary.BigEndian.Uint32(r[32:]) }
	})
	record := func(k uint64) Record {
		r := testRecord(k, 1)
		binary.BigEndian.PutUint32(r[32:], uint32(p.now.Guarded/1000)+60)
		return r
	}
	for run := range uint64(20) {
		// "a" begins anew with an empty disk; only "b" knows what it wrote.
		r, err := New(p.r[0].cfg, newTable(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.step(1, Disconnected{1})
		p.r[0], p.store[0], p.next[0] = r, r.store.(*table), 1
		p.step(0, Connected{Peer: 1, Name: "b"})
		p.step(1, Connected{Peer: 1, Name: "a"})
		if p.own[0], err = r.NewOrigin(MakeOrigin(1000+2*run, Urgent)); err != nil {
			t.Fatal(err)
		}
		p.exchange(1500 * time.Millisecond)
		p.write(0, record(run), record(run+100))
		p.exchange(20 * time.Millisecond)
		for range 4 { // an hour passes
			p.now.Mono += 15 * time.Minute
			p.now.Guarded += (15 * time.Minute).Milliseconds()
			p.exchange(100 * time.Millisecond)
		}
		for side := range 2 {
			if n := len(p.r[side].Origins()); n > 6 {
				t.Fatalf("run %d: replica %d knows %d origins: %+v; %v %+v", run, side, n, p.r[side].Origins(), p.ended, p.r[0].Origins())
			}
		}
	}
}

// When a clone is noticed in one lane, records of this run may be on their way to the disk under the origin of the other, too.
func TestCloneNoticedInOneLane(t *testing.T) {
	r, err := New(testConfig("a"), newTable(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := Now{Mono: time.Second}
	var index [lanes]uint32
	for lane := range Lane(lanes) {
		if index[lane], err = r.NewOrigin(MakeOrigin(uint64(100+lane), lane)); err != nil {
			t.Fatal(err)
		}
	}
	r.Step(now, Written{Index: index[Urgent], First: 1, Records: []Record{testRecord(1, 1)}})
	_ = r.fence(&peer{name: "b"})
	next, err := r.NewOrigin(MakeOrigin(200, Bulk))
	if err != nil || next == index[Bulk] {
		t.Fatalf("index %d again: %v", next, err)
	}
	r.Step(now, Written{Index: index[Bulk], First: 1, Records: []Record{testRecord(2, 2)}})
	if len(r.unnamed) == 0 || len(r.Own()) != 0 {
		t.Errorf("%d records wait for other numbers, %v", len(r.unnamed), r.Own())
	}
	r.Step(now, Written{Index: next, First: 1, Records: []Record{testRecord(3, 3)}})
	if own := r.Own(); len(own) != 1 || own[0] != MakeDot(next, 1) {
		t.Errorf("%v", own)
	}
}

// A disk that takes nothing for long costs no more memory with each message, and what it then takes counts.
func TestRaisesAreBounded(t *testing.T) {
	r, err := New(testConfig("a"), newTable(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	o := r.reg.add(Origin{ID: 101, Node: "b"})
	const n = 3 * maxRaises
	for i := range uint64(n) {
		r.out.reset()
		o.applied = i + 1
		r.keep([]Record{testRecord(i, i)}, []Dot{MakeDot(o.Index, i+1)}, VectorEntry{o.Index, i + 1})
		r.flush()
	}
	if len(r.raises) > maxRaises {
		t.Errorf("%d wait", len(r.raises))
	}
	if r.journaled(n - 1); o.durable >= n-1 {
		t.Errorf("durable up to %d", o.durable)
	}
	if r.journaled(n); o.durable != n {
		t.Errorf("durable up to %d of %d", o.durable, n)
	}
}

// What was written under a name that somebody else has used is asked for again until it has another, however often the host has no room for it.
func TestFencedContentIsAskedForAgain(t *testing.T) {
	store := newTable()
	r, err := New(testConfig("a"), store, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := Now{Mono: time.Second}
	index, err := r.NewOrigin(MakeOrigin(100, Urgent))
	if err != nil {
		t.Fatal(err)
	}
	rec := testRecord(1, 1)
	_, _ = store.Merge(&rec, MakeDot(index, 1), now, true)
	r.Step(now, Written{Index: index, First: 1, Records: []Record{rec}})
	if err := r.fence(&peer{name: "b"}); err != nil {
		t.Fatal(err)
	}
	if len(r.out.Origins) != 1 || !r.out.Origins[0].Fenced {
		t.Errorf("the host is told %+v", r.out.Origins)
	}
	asked := 0
	for range 50 {
		now.Mono += 100 * time.Millisecond
		asked += len(r.Step(now, Tick{}).Reissue)
	}
	if asked < 2 || asked > 4 {
		t.Errorf("asked for %d times in 5 s", asked)
	}
	other, err := r.NewOrigin(MakeOrigin(200, Urgent))
	if err != nil {
		t.Fatal(err)
	}
	store.dots[rec.Key()] = MakeDot(other, 1)
	r.Step(now, Written{Index: other, First: 1, Records: []Record{rec}})
	for range 50 {
		now.Mono += 100 * time.Millisecond
		if n := len(r.Step(now, Tick{}).Reissue); n > 0 || len(r.unnamed) > 0 && now.Mono > 10*time.Second {
			t.Fatalf("asked for %d times after it has a name, %d wait", n, len(r.unnamed))
		}
	}

	// So it is after a restart that finds the origin marked.
	r, err = New(testConfig("a"), store, []Origin{{Index: index, ID: MakeOrigin(100, Urgent), Node: "a", Fenced: true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	store.dots[rec.Key()] = MakeDot(index, 1)
	asked = 0
	for range 5 {
		now.Mono += 100 * time.Millisecond
		asked += len(r.Step(now, Tick{}).Reissue)
	}
	if asked != 1 || len(r.Confirmed(index, 1)) != 0 || len(r.Vector()) != 0 {
		t.Errorf("after a restart: asked for %d times, vector %v", asked, r.Vector())
	}
}

// An origin of an earlier run of which something was lost for good does not stay for ever.
func TestDoubtfulOriginsAreForgotten(t *testing.T) {
	second := uint32(1_800_000_000)
	for _, leveled := range []bool{false, true} {
		r, err := New(testConfig("a"), newTable(), []Origin{{Index: 1, ID: 101, Node: "a", Sealed: 9, Partial: true}, {Index: 2, ID: 103, Node: "b", Sealed: 9, Partial: true}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Seen(1, second)
		r.Seen(2, second)
		r.leveled = leveled
		now := Now{Mono: time.Second, Guarded: int64(second+dropAfter)*1000 + 999}
		if out := r.Step(now, Tick{}); len(out.Dropped) != 0 {
			t.Errorf("dropped before its time: %v", out.Dropped)
		}
		now.Mono += 2 * originsEvery
		now.Guarded += 1000
		if out := r.Step(now, Tick{}); leveled != (len(out.Dropped) == 1 && out.Dropped[0] == 1) {
			t.Errorf("leveled %v: dropped %v", leveled, out.Dropped)
		}
	}
}

// As many origins as there can be, with names as long as they can be, fit into messages, whatever is asked for at once; and no answer to a probe counts before all of the vector
// that it names has come.
func TestFullVector(t *testing.T) {
	const origins = MaxOrigins - 2
	p := newPair(t, nil)
	p.step(0, Disconnected{1})
	p.step(1, Disconnected{1})
	var list []Origin
	var vector []VectorEntry
	for i := range uint32(origins) {
		name := fmt.Sprintf("%0*d", maxName, i)
		list = append(list, Origin{Index: i + 1, ID: MakeOrigin(1<<40+uint64(i)<<8, Bulk), Node: name, Sealed: MaxNumber, Expires: math.MaxUint32})
		vector = append(vector, VectorEntry{i + 1, MaxNumber})
	}
	full, err := New(testConfig("a"), p.store[0], list, vector)
	if err != nil {
		t.Fatal(err)
	}
	p.r[0] = full
	voters := SetVoters{Voters: Voters{Hash: 7, Names: []string{"a"}}, Self: true}
	p.step(0, voters)
	voters.Self = false
	p.step(1, voters)
	p.step(0, Connected{Peer: 2, Name: "b"})
	p.step(1, Connected{Peer: 2, Name: "a"})
	largest, messages := 0, 0
	for range 4000 {
		for side := range 2 {
			p.step(side, Tick{})
			b := p.r[side].Fill(p.now, 2, nil)
			if largest = max(largest, len(b)); len(b) > MaxMessage {
				t.Fatalf("a message of %d bytes", len(b))
			}
			if len(b) > 0 {
				messages++
				p.step(1-side, Received{2, b})
			}
			if p.ended != nil {
				t.Fatal(p.ended)
			}
		}
		peer := p.r[1].order[0]
		if p.r[1].View("a") != never && len(peer.applied) <= origins {
			t.Fatalf("a view of %d origins of %d", len(peer.applied), origins)
		}
		p.now.Mono += time.Millisecond
	}
	peer := p.r[1].order[0]
	for i := range origins {
		if o := p.r[1].reg.byID[list[i].ID]; o == nil || at(peer.applied, o.Index) != MaxNumber {
			t.Fatalf("origin %d is not known", i)
		}
	}
	// Nothing of it can be had from a log, and the scan has no records: its end brings the vector.
	if n := len(p.r[1].Vector()); n != origins || !p.r[1].Leveled() || p.r[1].View("a") == never {
		t.Errorf("%d origins of %d are held, leveled %v; %+v", n, origins, p.r[1].Leveled(), p.r[1].Stats())
	}
	t.Logf("%d messages, the largest of %d bytes", messages, largest)
}

// What must not come behind the others comes before all of them in a scan, and a scan that breaks off in the middle of it goes on without a gap.
func TestEarlyRecordsOfAScan(t *testing.T) {
	const records, early = 600, 200
	isEarly := func(r *Record) bool { return r[39] == 1 }
	for broken := 0; broken < records+early; broken += 49 {
		p := newPair(t, func(_ int, c *Config) { c.LogBytes, c.ScanPiece = 400, 50 })
		p.step(0, Disconnected{1})
		p.step(1, Disconnected{1})
		for key := range uint64(records) {
			r := testRecord(key+1, 1)
			if key%3 == 0 {
				r[39] = 1
			}
			p.write(0, r)
		}
		p.store[0].early = isEarly
		merges := 0
		p.store[1].refuse = func(r *Record) error {
			if merges++; merges == broken {
				return errors.New("no room")
			}
			if n := len(p.store[1].records); !isEarly(r) && n < early {
				t.Fatalf("broken at %d: others came behind %d that are early", broken, n)
			}
			return nil
		}
		p.step(0, Connected{Peer: 2, Name: "b"})
		p.step(1, Connected{Peer: 2, Name: "a"})
		for range 1500 {
			p.now.Mono += time.Millisecond
			for side := range 2 {
				p.step(side, Tick{})
				if b := p.r[side].Fill(p.now, 2, nil); len(b) > 0 {
					p.step(1-side, Received{2, b})
				}
			}
		}
		if n := len(p.store[1].records); n != records || p.r[1].reg.byID[MakeOrigin(1<<20, Urgent)].applied != records || merges < records+early {
			t.Fatalf("broken at %d: %d records in %d merges, %+v", broken, n, merges, p.r[1].Stats())
		}
	}
}

// A part of the key space is served from its own beginning after what goes first has been sent.
func TestEarlyRecordsOfAPart(t *testing.T) {
	p := newPair(t, func(_ int, c *Config) { c.ScanPiece = 10 })
	p.store[0].early = func(r *Record) bool { return r[39] == 1 }
	from, to := Key{Hi: 1 << 62}, Key{Hi: 3 << 62}
	want := map[sentRecord]bool{}
	for key := range uint64(200) {
		r := testRecord(key+1, 1)
		r[39] = byte(key % 2)
		p.write(0, r)
		if k := r.Key(); !k.less(from) && !to.less(k) {
			want[sentRecord{frameScanned, k}] = true
			if r[39] == 1 {
				want[sentRecord{frameEarly, k}] = true
			}
		}
	}
	p.r[0].peers[1].applied = nil
	p.step(0, Received{1, frames(func(w *writer) {
		w.frame(frameScan)
		w.uint(1 << 20)
		w.key(from)
		w.key(to)
		w.end()
	})})
	got := map[sentRecord]bool{}
	for ended := false; !ended; {
		b := p.r[0].Fill(p.now, 1, nil)
		if len(b) == 0 {
			t.Fatal("it never ends")
		}
		in := reader{b: b}
		for {
			ft, f, ok := in.next()
			if !ok {
				break
			}
			ended = ended || ft == frameScanEnd
			if ft != frameScanned && ft != frameEarly {
				continue
			}
			f.uint()
			for list := f.scanned(nil); len(list) > 0; list = list[entrySize:] {
				got[sentRecord{ft, (*Record)(list).Key()}] = true
			}
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d records came, %d should", len(got), len(want))
	}
}

// sentRecord is a record in a frame.
type sentRecord struct {
	frame frameType
	key   Key
}

// A step needs little stack: each of thousands of sessions has a goroutine that makes some.
func TestStack(t *testing.T) {
	const goroutines, limit = 64, 32 << 10
	p := newPair(t, nil)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.StackInuse
	}
	before := used()
	stepped, over := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	for range goroutines {
		running.Go(func() {
			p.r[0].Step(p.now, Tick{})
			stepped <- struct{}{}
			<-over
		})
		<-stepped // one after another
	}
	if after := used(); after > before+goroutines*limit {
		t.Errorf("%d bytes of stack for a step, limit %d", (after-before)/goroutines, limit)
	}
	close(over)
	running.Wait()
}
