package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/revokd/revokd/bloom"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/internal/view"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

const (
	// freshAbove is how many records may stand beside the filter, besides one in freshShare of those in it, before another filter is fetched, and
	// freshEvery how long one is kept at least.
	freshAbove = 1 << 16
	freshShare = 16
	freshEvery = 30 * time.Second

	recentShards  = 64      // each takes a kilobyte, and there are few records
	maxFilter     = 4 << 30 // bytes
	filterTimeout = 2 * time.Minute

	answerAge   = 5 * time.Second // how long an answer of a node is used, if MaxStaleness is not shorter
	maxAnswers  = 1 << 14
	maxAsking   = 64 // calls at once
	maxFlights  = 1 << 10
	pauseAsking = 500 * time.Millisecond // after no node has answered
	// askRounds: an answer can bring up another question, whether a token was kept.
	askRounds = 3
	// lookupSize is how many fingerprints are asked about at once: more than a check has.
	lookupSize = 256
)

// held is what a check reads.
type held struct {
	table *revocation.Table
	part  *part // nil: the table has all records
}

// part is what stands for the records that are older than those of the table.
type part struct {
	filter *bloom.Filter
	covers map[replication.OriginID]uint64

	mu      sync.Mutex
	answers map[revocation.Fingerprint]answer
	flights map[revocation.Fingerprint]*flight
}

// answer is what a node held under a fingerprint.
type answer struct {
	record  revocation.Record
	holding revocation.Holding
	asked   time.Duration // on the monotonic clock
	// As of when the node held all that a majority of the voters held, and all of them, on the same clock.
	quorum, all time.Duration
}

// flight is a question that is on its way.
type flight struct {
	done chan struct{}
	ok   bool // valid once done is closed, like answer
	answer
}

func newPart(f *view.Filtered) *part {
	p := &part{
		filter: f.Filter, covers: make(map[replication.OriginID]uint64, len(f.Origins)),
		answers: make(map[revocation.Fingerprint]answer), flights: make(map[revocation.Fingerprint]*flight),
	}
	for _, o := range f.Origins {
		p.covers[o.ID] = o.Number
	}
	return p
}

// Held makes a part a [revocation.Rest] that asks nobody.
func (p *part) Held(f revocation.Fingerprint) (revocation.Record, revocation.Holding) {
	if p.filter.Has(f.Hi, f.Lo) {
		return revocation.Record{}, revocation.Doubtful
	}
	return revocation.Record{}, revocation.Absent
}

// touched forgets the answers about a record that has come.
func (p *part) touched(records []replication.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answers) == 0 || faults.Mutant("answer-stays") {
		return
	}
	for i := range records {
		k := records[i].Key()
		delete(p.answers, revocation.Fingerprint{Hi: k.Hi, Lo: k.Lo})
	}
}

// question is a check that needs answers. It is a [revocation.Rest] that notes what it does not know.
type question struct {
	part        *part
	notBefore   time.Duration // an older answer is none
	known       map[revocation.Fingerprint]answer
	missing     []revocation.Fingerprint
	quorum, all time.Duration // the oldest view among the answers
}

func (q *question) Held(f revocation.Fingerprint) (revocation.Record, revocation.Holding) {
	if !q.part.filter.Has(f.Hi, f.Lo) {
		return revocation.Record{}, revocation.Absent
	}
	a, ok := q.known[f]
	if !ok {
		q.part.mu.Lock()
		a, ok = q.part.answers[f]
		q.part.mu.Unlock()
		if ok = ok && a.asked >= q.notBefore; !ok {
			q.missing = append(q.missing, f)
			return revocation.Record{}, revocation.Doubtful
		}
		q.know(f, a)
	}
	return a.record, a.holding
}

func (q *question) know(f revocation.Fingerprint, a answer) {
	q.known[f] = a
	q.quorum, q.all = min(q.quorum, a.quorum), min(q.all, a.all)
}

// ask answers a check that the filter cannot answer. asOf is as of when what nodes answered is complete.
func (c *Client) ask(h *held, claims *revocation.Claims, all bool, limit time.Duration) (v revocation.Verdict, asOf time.Duration) {
	c.doubts.Add(1)
	q := &question{
		part: h.part, notBefore: c.elapsed.Mono() - min(answerAge, limit/2), known: make(map[revocation.Fingerprint]answer),
		quorum: math.MaxInt64, all: math.MaxInt64,
	}
	for range askRounds {
		q.missing = q.missing[:0]
		if v = h.table.CheckWith(claims, c.now.Load(), q); v.Cause != revocation.CauseUnanswered || len(q.missing) == 0 {
			break
		}
		if !c.resolve(q) {
			break
		}
	}
	if all {
		return v, q.all
	}
	return v, q.quorum
}

// resolve asks a node about what is missing, unless somebody is asking already: then it waits for him. It reports whether there are answers.
func (c *Client) resolve(q *question) bool {
	if c.cfg.clock.Mono() < time.Duration(c.askAfter.Load()) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.AskTimeout)
	defer cancel()
	p := q.part
	flights := make(map[revocation.Fingerprint]*flight, len(q.missing))
	var mine []revocation.Fingerprint
	p.mu.Lock()
	for _, f := range q.missing {
		if flights[f] != nil {
			continue
		}
		if a, ok := p.answers[f]; ok && a.asked >= q.notBefore { // it has just come
			q.know(f, a)
			continue
		}
		if flights[f] = p.flights[f]; flights[f] == nil {
			if len(p.flights) >= maxFlights || len(mine) == lookupSize {
				p.mu.Unlock()
				c.land(p, mine, nil)
				return false
			}
			flights[f] = &flight{done: make(chan struct{})}
			p.flights[f] = flights[f]
			mine = append(mine, f)
		}
	}
	p.mu.Unlock()
	if len(mine) > 0 {
		answers, err := c.lookup(ctx, mine)
		if err != nil {
			c.log.Debug("no node answers about what the filter does not exclude", "error", err)
			c.askAfter.Store(int64(c.cfg.clock.Mono() + pauseAsking))
		}
		c.land(p, mine, answers)
	}
	for f, fl := range flights {
		select {
		case <-fl.done:
		case <-ctx.Done():
			return false
		}
		if !fl.ok {
			return false
		}
		q.know(f, fl.answer)
	}
	return true
}

// land ends flights with their answers; nil: there are none.
func (c *Client) land(p *part, list []revocation.Fingerprint, answers map[revocation.Fingerprint]answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range list {
		fl := p.flights[f]
		delete(p.flights, f)
		if a, ok := answers[f]; ok {
			fl.ok, fl.answer = true, a
			if len(p.answers) >= maxAnswers {
				for old := range p.answers { // any
					delete(p.answers, old)
					break
				}
			}
			p.answers[f] = a
		}
		close(fl.done)
	}
}

// lookup asks nodes in turn, the one in use first.
func (c *Client) lookup(ctx context.Context, list []revocation.Fingerprint) (map[revocation.Fingerprint]answer, error) {
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	req := &revokdv1.LookupRequest{KeyId: uint64(c.ring)}
	for _, f := range list {
		req.Fingerprints = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(req.Fingerprints, f.Hi), f.Lo)
	}
	var errs error
	for _, addr := range c.addresses(ctx) {
		sent := c.elapsed.Mono()
		callCtx, cancel := context.WithTimeout(ctx, c.cfg.AskTimeout/2) // so that there is time for another one
		res, err := revokdv1connect.NewReplicationServiceClient(c.http, c.url(addr), connect.WithReadMaxBytes(1<<20)).Lookup(callCtx, connect.NewRequest(req))
		cancel()
		c.asks.Add(1)
		if err == nil {
			return answersOf(list, res.Msg, sent)
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", addr, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, errs)
}

func answersOf(list []revocation.Fingerprint, m *revokdv1.LookupResponse, sent time.Duration) (map[revocation.Fingerprint]answer, error) {
	since := func(age *durationpb.Duration) time.Duration {
		if age == nil || age.CheckValid() != nil {
			return math.MinInt64
		}
		return sent - age.AsDuration()
	}
	out := make(map[revocation.Fingerprint]answer, len(list))
	for _, f := range list {
		out[f] = answer{asked: sent, quorum: since(m.GetQuorumAge()), all: since(m.GetAllAge())}
	}
	for b := m.GetRecords(); len(b) > 0; b = b[revocation.RecordSize:] {
		r, err := revocation.ParseRecord(b)
		if err != nil {
			return nil, err
		}
		if a, ok := out[r.Fingerprint]; ok {
			a.record, a.holding = r, revocation.Present
			out[r.Fingerprint] = a
		}
	}
	return out, nil
}

// fetch gets a filter from one node after another.
// maxAge: not older than that, if it can be; 0: whatever there is.
func (c *Client) fetch(ctx context.Context, maxAge time.Duration) (*view.Filtered, error) {
	var errs error
	for _, addr := range c.addresses(ctx) {
		f, err := c.fetchFrom(ctx, addr, maxAge)
		if err == nil && f.KeyID != uint64(c.ring) {
			return nil, ErrKeyChanged
		}
		if err == nil {
			return f, nil
		}
		errs = errors.Join(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, errs)
}

func (c *Client) fetchFrom(ctx context.Context, addr string, maxAge time.Duration) (*view.Filtered, error) {
	ctx, cancel := context.WithTimeout(ctx, filterTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(addr)+"/filter?max_age="+maxAge.String(), nil)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, res.Body, 4<<10)
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, res.Status)
	}
	return view.ReadFiltered(res.Body, maxFilter)
}

// firstFilter gets the filter to begin with; ctx bounds the tries.
func (c *Client) firstFilter(ctx context.Context) (*view.Filtered, error) {
	for attempt := 0; ; attempt++ {
		f, err := c.fetch(ctx, 0)
		if err == nil || errors.Is(err, ErrKeyChanged) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(ctx.Err(), err))
		case <-time.After(c.backoff(attempt)):
		}
	}
}

// newHeld returns what a filter makes of a replica that has received nothing yet. The table is on the heap: it is small, and when another one has
// taken its place the last check that reads it lets go of it.
func (c *Client) newHeld(f *view.Filtered) (*held, error) {
	c.mu.Lock()
	cfg := c.tableConfig
	c.mu.Unlock()
	for _, k := range f.Keys {
		if !cfg.Ring.Has(k.Number, k.ID) && !cfg.Ring.Had(k.Number) { // of one that has gone all have expired
			return nil, errKeys
		}
	}
	cfg.Store.Heap = true
	if cfg.Store.Shards == 0 {
		cfg.Store.Shards = recentShards
	}
	table, err := revocation.NewTable(cfg)
	if err != nil {
		return nil, err
	}
	for _, l := range f.Live {
		if cfg.Ring.Had(l.Key) {
			continue
		}
		if err := table.Await(l, f.Guarded); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return &held{table, newPart(f)}, nil
}

// refresh fetches another filter when many records stand beside the one in use, until ctx ends.
func (c *Client) refresh(ctx context.Context) {
	every, above := c.cfg.freshEvery, c.cfg.freshAbove
	maxAge := time.Duration(0)
	for {
		pause := every + time.Duration(random()%uint64(every/4+1))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		h := c.held.Load()
		if records, _ := h.table.Size(); uint64(records) <= uint64(above)+h.part.filter.Meta().Count/freshShare {
			continue
		}
		f, err := c.fetch(ctx, maxAge)
		maxAge = 0
		if err == nil {
			err = c.replace(f)
		}
		if errors.Is(err, errOlder) {
			maxAge = time.Second
		}
		if err != nil && ctx.Err() == nil {
			c.log.Debug("the filter was not replaced", "error", err)
		}
	}
}

// errOlder: a filter lacks what the one in use has.
var errOlder = errors.New("the filter is older than the one in use")

// replace puts another filter in the place of the one in use, with a table of the records that it does not cover. The stream goes on: while those
// that are here are copied, those that come are merged into both tables.
func (c *Client) replace(f *view.Filtered) error {
	next, err := c.newHeld(f)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if next.table.Ring() != c.tableConfig.Ring { // another one has come meanwhile
		c.mu.Unlock()
		return errKeys
	}
	old := c.held.Load()
	covered := make(map[uint32]uint64)
	for _, o := range c.core.Origins() { // what this replica has forgotten has expired
		covered[o.Index] = next.part.covers[o.ID]
		if old.part.covers[o.ID] > next.part.covers[o.ID] {
			c.mu.Unlock()
			return errOlder
		}
	}
	now := c.now.Load()
	shapes := old.table.Shapes()
	live := old.table.LiveClasses(now)
	for _, s := range shapes { // a node defines a shape once in a session
		if _, err := next.table.Define(s, uint32(now/1000), now, revocation.Unbound); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	for _, l := range live {
		if err := next.table.Await(l, now); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.store.next = &view.Store{Table: next.table}
	c.mu.Unlock()

	var from revocation.Fingerprint
	for more := true; more && err == nil; {
		from, more = old.table.Each(from, 4096, now, func(r revocation.Record, dot uint64) {
			if d := replication.Dot(dot); dot == 0 || d.Number() > covered[d.Index()] {
				_, mergeErr := next.table.Merge(r, dot, now, false)
				err = errors.Join(err, mergeErr)
			}
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err = errors.Join(err, c.store.failed)
	c.store.next, c.store.failed = nil, nil
	if err != nil {
		return err
	}
	c.store.Store = view.Store{Table: next.table}
	c.held.Store(next)
	c.filters.Add(1)
	return nil
}

// store is the table as the state machine sees it, and for a while also the one that will take its place.
type store struct {
	view.Store
	next   *view.Store
	failed error // of next
}

// Merge merges into both.
func (s *store) Merge(rec *replication.Record, d replication.Dot, now replication.Now, direct bool) (replication.Merged, error) {
	if s.next != nil {
		if _, err := s.next.Merge(rec, d, now, direct); err != nil && s.failed == nil {
			s.failed = err
		}
	}
	return s.Store.Merge(rec, d, now, direct)
}

// Define defines for both.
func (s *store) Define(definition []byte, now replication.Now) error {
	if s.next != nil {
		if err := s.next.Define(definition, now); err != nil && s.failed == nil {
			s.failed = err
		}
	}
	return s.Store.Define(definition, now)
}
