// Package history judges what was seen of a cluster of real processes: which revocations were acknowledged when, and what each replica answered about
// them when. It knows the promises (docs/promises.md) as intervals on one monotonic clock and nothing of how a cluster works.
//
// For each revocation and each replica (a node or a client) it tells apart
//
//   - [Lost]: acknowledged by a majority, and not enforced at the end, when everything is whole again;
//   - [Late]: called active later than MaxStaleness after a majority had acknowledged it: what an answer that is too old looks like from outside;
//   - [Flap]: called active after the same process had called it revoked;
//   - [Early]: the same between its ExpiresAt and the end of the retention;
//   - [Resurrected]: called revoked again after it had been forgotten, once its time was over;
//   - [Overdue]: still enforced long after its time, with [Config].Overdue;
//   - [False]: a token that nobody has revoked, or not yet, is called revoked.
//
// An attempt whose end is not known ([Unsure]: a time-out, a connection that ended, too few acknowledgements) may have happened or not, at any time from
// its beginning on, so only Flap, Early, Resurrected and False apply to it.
//
// Nothing is kept of a check but what later ones need: 16 bytes for each revocation and replica that has asked for it. A [Judge] may be used concurrently, a [Replica] by one
// goroutine at a time. Neither zero value is usable.
package history

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/revocation"
)

// Kind says which promise was broken.
type Kind string

// The kinds; see the package comment.
const (
	Lost        Kind = "lost"
	Late        Kind = "late"
	Flap        Kind = "flap"
	Early       Kind = "expired early"
	Resurrected Kind = "resurrected"
	Overdue     Kind = "overdue"
	False       Kind = "false"
)

// Outcome is what became of an attempt to revoke.
type Outcome uint32

// The outcomes. The zero Outcome is that of an attempt that has not ended.
const (
	pending Outcome = iota
	Quorum          // a majority has acknowledged it
	Unsure          // it may be there or not: too few, no answer, or one node only
	Refused         // it was refused and is not there
)

// Config of a [Judge].
type Config struct {
	MaxStaleness time.Duration // of the replicas
	Slack        time.Duration // how long beyond ExpiresAt a record is enforced at least
	Overdue      time.Duration // how long beyond that at most; 0: any time
	Behind       time.Duration // how far a replica's time may be behind, after a start or with a wrong clock: for so long it may know again what it had forgotten
}

// maxViolations bounds how many are kept; all are counted.
const maxViolations = 100

// Violation is one broken promise.
type Violation struct {
	Kind    Kind
	Replica string
	ID      string
	Detail  string // the times
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: %s on %s: %s", v.Kind, v.ID, v.Replica, v.Detail)
}

// Revocation is one attempt. Times are since the Judge was made.
type Revocation struct {
	ID      string
	number  int
	expires time.Duration
	invoked time.Duration
	ended   atomic.Int64 // when it ended, a Duration; written before outcome
	outcome atomic.Uint32
}

// Outcome returns what has become of the attempt, and when.
func (r *Revocation) Outcome() (Outcome, time.Duration) {
	o := Outcome(r.outcome.Load())
	return o, time.Duration(r.ended.Load())
}

// Expires returns its ExpiresAt.
func (r *Revocation) Expires() time.Duration { return r.expires }

// Judge collects a history.
type Judge struct {
	cfg Config
	now func() time.Duration

	invoked atomic.Int64
	ended   [Refused + 1]atomic.Int64
	checks  [revocation.Revoked + 1]atomic.Int64
	judged  atomic.Int64 // checks of revocations that a majority had acknowledged, beyond MaxStaleness
	delays  delays

	mu         sync.Mutex // guards what follows
	violations []Violation
	broken     map[Kind]int
	faults     map[string]int
}

// New returns a judge whose clock begins now.
func New(cfg Config) *Judge {
	c := clock.System()
	began := c.Mono()
	return &Judge{cfg: cfg, now: func() time.Duration { return c.Mono() - began }, broken: map[Kind]int{}, faults: map[string]int{}}
}

// Now returns the time on the clock of the judge, which is monotonic.
func (j *Judge) Now() time.Duration { return j.now() }

// Invoke notes that a revocation is about to be asked for. No check may be noted that began before and concerns it.
func (j *Judge) Invoke(id string, expires time.Duration) *Revocation {
	return &Revocation{ID: id, number: int(j.invoked.Add(1)) - 1, expires: expires, invoked: j.now()}
}

// End notes what has become of it. It is called once.
func (j *Judge) End(r *Revocation, o Outcome) {
	r.ended.Store(int64(j.now()))
	r.outcome.Store(uint32(o))
	j.ended[o].Add(1)
}

// Fault notes that a fault has really taken effect.
func (j *Judge) Fault(kind string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.faults[kind]++
}

func (j *Judge) broke(kind Kind, replica, id, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.broken[kind]++
	if len(j.violations) < maxViolations {
		j.violations = append(j.violations, Violation{kind, replica, id, fmt.Sprintf(format, args...)})
	}
}

// sighting is what a replica has seen of one revocation.
type sighting struct {
	revoked int64  // the earliest end of a check that said so; 0: none
	process uint32 // that said so; the highest bit: it was forgotten since, its time being over
}

const forgotten = 1 << 31

const chunk = 1 << 12

// Replica is one node or client as its checks see it.
type Replica struct {
	j       *Judge
	name    string
	process uint32
	seen    [][]sighting // by number, in chunks made when first needed
}

// Replica returns a replica.
func (j *Judge) Replica(name string) *Replica { return &Replica{j: j, name: name} }

// Restarted notes that checks from now on are answered by a new process.
func (r *Replica) Restarted() { r.process++ }

func (r *Replica) sighting(number int) *sighting {
	for len(r.seen) <= number/chunk {
		r.seen = append(r.seen, nil)
	}
	c := &r.seen[number/chunk]
	if *c == nil {
		*c = make([]sighting, chunk)
	}
	return &(*c)[number%chunk]
}

// Innocent notes the answer about a token that nobody ever revokes.
func (r *Replica) Innocent(id string, v revocation.Status) {
	r.j.checks[v].Add(1)
	if v == revocation.Revoked {
		r.j.broke(False, r.name, id, "nobody has revoked it")
	}
}

// Saw notes what a check answered that began and ended at these times. The token checked must not have been revoked by anything else.
func (r *Replica) Saw(rev *Revocation, began, ended time.Duration, v revocation.Status) {
	j := r.j
	j.checks[v].Add(1)
	if v == revocation.Unknown {
		return
	}
	s := r.sighting(rev.number)
	over := rev.expires + j.cfg.Slack
	outcome, at := rev.Outcome()
	if outcome == Quorum && began > at && began < rev.expires {
		if v == revocation.Revoked {
			j.delays.note(0)
		} else {
			j.delays.note(began - at)
		}
	}
	if v == revocation.Revoked {
		switch {
		case ended < rev.invoked || outcome == Refused && began > at:
			j.broke(False, r.name, rev.ID, "revoked at %s, asked for at %s, outcome %d", ended, rev.invoked, outcome)
		case s.process&forgotten != 0 && began > over+j.cfg.Behind:
			j.broke(Resurrected, r.name, rev.ID, "revoked at %s, was forgotten before; its time was over at %s", ended, over)
		case j.cfg.Overdue > 0 && began > over+j.cfg.Overdue:
			j.broke(Overdue, r.name, rev.ID, "revoked at %s; its time was over at %s", began, over)
		}
		if s.revoked == 0 || int64(ended) < s.revoked || s.process != r.process {
			s.revoked, s.process = int64(ended), r.process
		}
		j.count(rev, began, outcome, at)
		return
	}
	if ended >= over {
		if s.revoked != 0 {
			s.process |= forgotten
		}
		return
	}
	j.count(rev, began, outcome, at)
	switch {
	case s.revoked != 0 && s.process == r.process && time.Duration(s.revoked) <= began && began >= rev.expires:
		j.broke(Early, r.name, rev.ID, "active at %s; its time is over at %s", ended, over)
	case s.revoked != 0 && s.process == r.process && time.Duration(s.revoked) <= began:
		j.broke(Flap, r.name, rev.ID, "active at %s, was revoked at %s", began, time.Duration(s.revoked))
	case outcome == Quorum && began > at+j.cfg.MaxStaleness && began >= rev.expires:
		j.broke(Early, r.name, rev.ID, "active at %s; its time is over at %s", ended, over)
	case outcome == Quorum && began > at+j.cfg.MaxStaleness:
		j.broke(Late, r.name, rev.ID, "active at %s, %s after a majority acknowledged it", began, began-at)
	}
}

func (j *Judge) count(rev *Revocation, began time.Duration, outcome Outcome, at time.Duration) {
	if outcome == Quorum && began > at+j.cfg.MaxStaleness && began < rev.expires+j.cfg.Slack {
		j.judged.Add(1)
	}
}

// Final notes what a replica answers when all faults have ended and everything has had the time to settle.
func (r *Replica) Final(rev *Revocation, v revocation.Status) {
	now := r.j.now()
	if outcome, _ := rev.Outcome(); outcome == Quorum && v != revocation.Revoked && now < rev.expires+r.j.cfg.Slack {
		r.j.broke(Lost, r.name, rev.ID, "%s at the end", v)
		return
	}
	r.Saw(rev, now, now, v)
}

// Counts of a history.
type Counts struct {
	Acknowledged, Unsure, Refused int64
	Checks, Unknown               int64
	Judged                        int64 // checks that could have shown that an acknowledged revocation is not enforced
	Delay                         Delay
	Faults                        map[string]int
	Broken                        map[Kind]int
}

// Counts returns how much has happened.
func (j *Judge) Counts() Counts {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := Counts{
		Acknowledged: j.ended[Quorum].Load(), Unsure: j.ended[Unsure].Load(), Refused: j.ended[Refused].Load(),
		Unknown: j.checks[revocation.Unknown].Load(), Judged: j.judged.Load(), Delay: j.delays.read(), Faults: maps.Clone(j.faults), Broken: maps.Clone(j.broken),
	}
	for i := range j.checks {
		c.Checks += j.checks[i].Load()
	}
	return c
}

// Violations returns the first hundred promises that were broken.
func (j *Judge) Violations() []Violation {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.violations)
}

// ErrInvalid: too little has happened for the history to show anything.
var ErrInvalid = errors.New("history: invalid run")

// Gate is the least that must have happened.
type Gate struct {
	Acknowledged, Checks, Judged int64
	Faults                       map[string]int
}

// Valid returns an error that matches [ErrInvalid] and says what is missing, if something is.
func (c Counts) Valid(g Gate) error {
	var short []string
	need := func(what string, have, want int64) {
		if have < want {
			short = append(short, fmt.Sprintf("%d %s, at least %d are needed", have, what, want))
		}
	}
	need("acknowledged revocations", c.Acknowledged, g.Acknowledged)
	need("checks", c.Checks, g.Checks)
	need("checks that could show a loss", c.Judged, g.Judged)
	need("checks that were not answered Unknown", c.Checks-c.Unknown, c.Checks/2)
	for _, kind := range slices.Sorted(maps.Keys(g.Faults)) {
		need("faults "+kind, int64(c.Faults[kind]), int64(g.Faults[kind]))
	}
	if len(short) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrInvalid, strings.Join(short, "; "))
}
