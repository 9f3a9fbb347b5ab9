package replication

import (
	"math"
	"slices"
	"time"
)

// never is the time of a view that there is none of.
const never = time.Duration(math.MinInt64)

// probe is a question to a peer: what do you hold? The view of it is as old as the question, once all that is here.
type probe struct {
	id       uint64
	sent     time.Duration
	answered bool
	need     []uint64 // the peer's vector, by index, when it answered
	hash     uint64   // of the voters it answered under
	votes    bool     // so it was one of them
	ages     []uint64 // of its views, by voter, milliseconds + 1
}

// probe asks a peer if it was not asked for so long.
func (r *Replica) probe(p *peer, every time.Duration) {
	if r.now.Mono < p.probeAt+every || p.client {
		return
	}
	p.probes = slices.DeleteFunc(p.probes, func(q probe) bool { return !q.answered && r.now.Mono > q.sent+probeTimeout })
	if len(p.probes) >= maxProbes {
		return
	}
	p.probeAt = r.now.Mono
	p.probeID++
	p.probes = append(p.probes, probe{id: p.probeID, sent: r.now.Mono})
	p.say(func(w *writer) {
		w.frame(frameProbe)
		w.uint(p.probeID)
		w.end()
	})
	r.wake(p)
}

func (r *Replica) receiveProbe(p *peer, f *reader) {
	id := f.uint()
	if f.err != nil || r.cfg.Client || len(p.answers) == maxProbes {
		return // nobody asks more at a time
	}
	p.answers = append(p.answers, id)
	r.wake(p)
	r.probe(p, r.cfg.ProbeEvery/2) // in the same message: an idle session is mostly headers
}

// fillAnswers answers probes with the vector that has just been written.
func (r *Replica) fillAnswers(w *writer, p *peer) {
	for _, id := range p.answers {
		w.frame(frameAnswer)
		w.uint(id)
		w.uint(uint64(max(0, r.now.Wall)))
		w.uint(uint64(max(0, r.now.Guarded)))
		w.uint(uint64(len(r.voters.Names)))
		for _, name := range r.voters.Names {
			w.uint(r.age(name))
		}
		w.uint(uint64(r.store.Size()))
		w.end()
	}
	p.answers = p.answers[:0]
}

// age is how old the view of a voter is, in milliseconds rounded up, + 1; 0 if there is none.
func (r *Replica) age(name string) uint64 {
	if name == r.cfg.Name && !r.cfg.Client {
		return uint64(bit(r.votes))
	}
	at := r.View(name)
	if at == never {
		return 0
	}
	return uint64((r.now.Mono-at+time.Millisecond-1)/time.Millisecond) + 1
}

func (r *Replica) receiveAnswer(p *peer, f *reader) {
	id, wall, guarded := f.uint(), f.limited(1<<62), f.limited(1<<62)
	n := f.count(1)
	if n > maxVoters {
		f.fail("too many ages")
	}
	if f.err != nil {
		return
	}
	ages := make([]uint64, n)
	for i := range ages {
		ages[i] = f.uint()
	}
	records, counted := uint64(0), len(f.b) > 0
	if counted {
		records = f.limited(1 << 62)
	}
	i := slices.IndexFunc(p.probes, func(q probe) bool { return q.id == id && !q.answered })
	if f.err != nil || i < 0 {
		return
	}
	q := &p.probes[i]
	p.answered = max(p.answered, id)
	q.answered, q.need, q.hash, q.votes, q.ages = true, slices.Clone(p.applied), p.hash, p.votes, ages
	if r.without("view-at-answer") {
		q.sent = r.now.Mono
	}
	p.rtt = r.now.Mono - q.sent
	p.guarded, p.guardedAt = int64(guarded), r.now.Mono
	p.records, p.counted = records, counted
	if !p.timed || p.rtt < time.Second {
		p.timed, p.offset = true, int64(wall)-(r.now.Wall-p.rtt.Milliseconds()/2)
	}
}

// lookUp turns answers whose vectors have been reached into views.
func (r *Replica) lookUp(p *peer) {
	last := -1
	for i := range p.probes {
		if p.probes[i].answered && (r.holds(p.probes[i].need) || r.without("view-without-holding")) {
			last = i
		}
	}
	if last < 0 || p.overflows { // what it holds is not all known here
		return
	}
	q := p.probes[last]
	p.probes = append(p.probes[:0], p.probes[last+1:]...)
	if !r.leveled {
		r.leveled = true
		if slices.ContainsFunc(r.reg.list, func(o *origin) bool { return o != nil && o.Partial }) {
			r.looking, r.lookAt = true, Key{} // what nobody else has is known now
		}
	}
	p.viewed = q.sent
	if p.caught != q.hash && p.levelHash == 0 {
		p.level, p.levelHash = q.need, q.hash
	}
	if (q.hash != r.voters.Hash || p.hash != q.hash) && !r.without("other-hash") || len(q.ages) != len(r.voters.Names) {
		return // it counts other voters
	}
	if q.votes && p.votes || r.without("non-voters") {
		r.view(p.name, q.sent)
	}
	if !r.cfg.Client && !slices.Contains(r.voters.Names, p.name) && !r.without("hearsay-views") {
		return // it could make any view look young; a client takes its node's word
	}
	for i, name := range r.voters.Names {
		if age := q.ages[i]; age > 0 && age < 1<<40 && name != p.name {
			r.view(name, q.sent-time.Duration(age-1)*time.Millisecond)
		}
	}
}

// receiveVoters: from here on the peer acknowledges and answers under this configuration.
func (r *Replica) receiveVoters(p *peer, f *reader) {
	p.hash, p.votes = f.fixed(), f.flag()
	v := Voters{Hash: p.hash, Number: f.uint()}
	n := f.count(1)
	if n > maxVoters {
		f.fail("too many voters")
		return
	}
	r.out.Acks, r.out.Views = true, true
	// Nodes agree on their voters among themselves; a client follows whoever knows the latest.
	if !r.cfg.Client || v.Hash == r.voters.Hash || v.Number < r.voters.Number {
		f.take(len(f.b))
		return
	}
	for range n {
		v.Names = append(v.Names, f.string(maxName))
	}
	if f.err == nil {
		r.setVoters(v, false)
	}
}

func (r *Replica) setVoters(v Voters, votes bool) {
	if v.Hash != r.voters.Hash {
		// Views count under the configuration that they were taken under.
		clear(r.views)
		for _, p := range r.order {
			p.probes, p.probeAt = nil, -time.Hour
		}
	}
	r.voters, r.votes = v, votes
	r.out.Views, r.out.Acks = true, true
	for _, p := range r.order {
		r.wake(p)
	}
}

// lookLevel tells when all that a peer held is durable here, once under each configuration.
func (r *Replica) lookLevel(p *peer) {
	if p.levelHash == 0 {
		return
	}
	if p.levelHash != r.voters.Hash {
		p.level, p.levelHash = nil, 0
		return
	}
	for i, n := range p.level {
		if o := r.reg.get(uint32(i)); n > 0 && o != nil && o.durable < n {
			return
		}
	}
	p.caught, p.level, p.levelHash = p.levelHash, nil, 0
	r.out.CaughtUp = append(r.out.CaughtUp, CaughtUp{p.name, p.incarnation, p.caught})
}

func (r *Replica) holds(need []uint64) bool {
	for i, n := range need {
		if n == 0 {
			continue
		}
		if o := r.reg.get(uint32(i)); o != nil && o.applied < n {
			return false
		}
	}
	return true
}

func (r *Replica) view(name string, at time.Duration) {
	if old, ok := r.views[name]; !ok || at > old {
		if !ok && len(r.views) > 4096 {
			return
		}
		r.views[name] = at
		r.out.Views = true
	}
}

// View returns the instant, on the monotonic clock, as of which this replica holds all that a node held; the least Duration if there is
// none. A replica's view of itself is always now.
func (r *Replica) View(name string) time.Duration {
	if at, ok := r.views[name]; ok {
		return at
	}
	return never
}

// FreshSince returns the instants as of which this replica holds what a majority of the voters held, and what all of them
// held; the least Duration if there is none.
func (r *Replica) FreshSince() (quorum, all time.Duration) {
	n := len(r.voters.Names)
	if n == 0 {
		return never, never
	}
	at := make([]time.Duration, 0, n)
	for _, name := range r.voters.Names {
		if name == r.cfg.Name && !r.cfg.Client {
			if r.votes {
				at = append(at, math.MaxInt64)
			}
			continue
		}
		at = append(at, r.View(name))
	}
	for len(at) < n {
		at = append(at, never)
	}
	slices.SortFunc(at, func(a, b time.Duration) int {
		switch {
		case a > b:
			return -1
		case a < b:
			return 1
		}
		return 0
	})
	return at[r.voters.Majority()-1], at[n-1]
}

// Leveled reports whether this replica has held everything that a peer held at some instant of this run.
func (r *Replica) Leveled() bool { return r.leveled }

// Confirmed returns the connected voters, this replica not among them, that hold an origin durably up to a number and say so under the
// configuration that is in force here.
func (r *Replica) Confirmed(index uint32, number uint64) (names []string) {
	if o := r.reg.get(index); o == nil || o.Fenced {
		return nil // their numbers may be those of a clone
	}
	for _, p := range r.order {
		votes, held := p.votes && p.hash == r.voters.Hash, at(p.durable, index)
		switch {
		case r.without("non-voters"):
			votes = p.hash == r.voters.Hash
		case r.without("other-hash"):
			votes = p.votes
		case r.without("ack-applied"):
			held = at(p.applied, index)
		}
		if p.hello && !p.client && votes && held >= number {
			names = append(names, p.name)
		}
	}
	return names
}

// Own returns the dots of the last records that this run has written.
func (r *Replica) Own() (last []Dot) {
	for _, o := range r.own {
		if o != nil && o.applied > 0 {
			last = append(last, MakeDot(o.Index, o.applied))
		}
	}
	return last
}

// Durable reports whether this replica holds a dot durably.
func (r *Replica) Durable(d Dot) bool {
	o := r.reg.get(d.Index())
	return o != nil && o.durable >= d.Number()
}

// Barrier returns what the peers named hold now, as a vector for [Replica.Reached].
func (r *Replica) Barrier(names []string) []VectorEntry {
	var list []VectorEntry
	for _, p := range r.order {
		if p.client || !slices.Contains(names, p.name) {
			continue
		}
		for i, n := range p.applied {
			if n > 0 {
				list = append(list, VectorEntry{uint32(i), n})
			}
		}
	}
	return list
}

// Reached reports whether this replica holds all of a vector.
func (r *Replica) Reached(vector []VectorEntry) bool {
	for _, v := range vector {
		if o := r.reg.get(v.Index); o != nil && o.applied < v.Number {
			return false
		}
	}
	return true
}

// sample is a record of this node whose way to a peer is timed.
type sample struct {
	index  uint32
	number uint64
	at     time.Duration
}

// Lag is how long records of this node took until a peer said that it held them: the way back is in it, and no other clock.
type Lag struct {
	Count   uint64
	Sum     time.Duration
	Last    time.Duration
	Buckets [len(LagBounds) + 1]uint64
}

// LagBounds are the upper bounds of Lag.Buckets.
var LagBounds = [...]time.Duration{
	250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second,
}

// Quantile returns the upper bound of the bucket that a quantile falls into; beyond the last bound, the last one.
func (l *Lag) Quantile(q float64) time.Duration {
	rank, n := uint64(q*float64(l.Count)), uint64(0)
	for i, c := range l.Buckets {
		if n += c; n > rank {
			return LagBounds[min(i, len(LagBounds)-1)]
		}
	}
	return 0
}

func (r *Replica) measure(p *peer, o *origin) {
	if p.sample.number == 0 || p.sample.index != o.Index || p.applied[o.Index] < p.sample.number {
		return
	}
	d := r.now.Mono - p.sample.at
	p.sample = sample{}
	p.lag.Count++
	p.lag.Sum += d
	p.lag.Last = d
	i := 0
	for i < len(LagBounds) && d > LagBounds[i] {
		i++
	}
	p.lag.Buckets[i]++
}
