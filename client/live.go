package client

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/revocation"
)

const (
	maxLists      = 128 // lists of claim names that registrations are found by; records of others make all registrations be checked
	maxCallbacks  = 16  // at once
	watchPiece    = 256 // registrations looked at before others get their turn
	askAgainAfter = time.Second
)

// watch finds the registrations that a record concerns. Its lock may be taken with Client.mu held, and not the other way round.
type watch struct {
	count atomic.Int64 // of registrations: without any a record costs nothing
	wake  chan struct{}

	mu     sync.Mutex // guards what follows
	kinds  map[kindID]kind
	last   kindID // the one that most records have is found without a map
	latest kind
	lists  []*revocation.Names // that registrations are indexed by, or are about to be
	byText map[string]int      // the number of a key and names to their place in lists
	heads  map[uint64]*head
	all    []*registration // in any order
	due    []*head         // that records have come for
	sweep  bool            // check all: a list is new, or there are too many
	again  []*registration // could not be judged
	lapsed []*registration // revoked: to be called back
	busy   int             // goroutines that call back
}

// kindID is what all records with the same tweak have in common.
type kindID struct {
	shape revocation.ShapeID
	class revocation.Class
	key   uint8 // the number of the fingerprint key
}

type kind struct {
	list  int // -1: there are too many
	tweak revocation.Fingerprint
}

// head has the registrations that share a base.
type head struct {
	base    uint64 // half of it: a collision costs a check
	due     bool
	members []member
}

type member struct {
	reg *registration
	at  int // in reg.places
}

// place is where a registration is among the members of a head.
type place struct {
	head *head
	at   int
}

type registration struct {
	claims  *revocation.Claims
	fn      func(revocation.Verdict)
	places  []place
	index   int // in watch.all
	lists   int // it is indexed by the first so many
	over    bool
	again   bool // is in watch.again
	lapsed  bool // is in watch.lapsed, with its verdict
	revoked revocation.Verdict
}

func (w *watch) init() {
	w.wake = make(chan struct{}, 1)
	w.kinds, w.byText, w.heads = make(map[kindID]kind), make(map[string]int), make(map[uint64]*head)
}

// OnRevoked calls fn once, from another goroutine, when the token with these claims is revoked: at once if it is, else as soon as the revocation
// arrives here. Callbacks run a few at a time, so they should be brief; they must not call Close, which waits for them. stop ends the registration; a
// callback may be under way then. claims must not change any more. It is for connections that outlive the check at their begin.
func (c *Client) OnRevoked(claims *revocation.Claims, fn func(revocation.Verdict)) (stop func()) {
	w := &c.watch
	r := &registration{claims: claims, fn: fn}
	table := c.held.Load().table
	shapes, ring := table.Shapes(), table.Ring()
	w.mu.Lock()
	for i := range shapes {
		for _, k := range ring.Keys() {
			w.listOf(ring, k.Number, &shapes[i])
		}
	}
	w.index(r)
	r.index = len(w.all)
	w.all = append(w.all, r)
	w.count.Add(1)
	w.mu.Unlock()
	// Whatever comes from now on finds it; what has come before, the check does.
	w.judge(r, c.Check(claims))
	w.signal()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.drop(r)
	}
}

// changed is told what has changed in the table; mu is held.
func (c *Client) changed(records []replication.Record) {
	w := &c.watch
	if w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range records {
		rec := &records[i]
		id := kindID{revocation.ShapeID(binary.BigEndian.Uint64(rec[24:32])), revocation.Class(rec[36]), rec[39]}
		if !id.class.Revokes() {
			continue
		}
		if id != w.last {
			w.last, w.latest = id, w.kind(c, id)
		}
		if w.latest.list < 0 {
			w.sweep = true
			continue
		}
		k := rec.Key()
		if h := w.heads[k.Hi^w.latest.tweak.Hi]; h != nil && !h.due {
			h.due = true
			w.due = append(w.due, h)
		}
	}
	if len(w.due) > 0 || w.sweep {
		w.signal()
	}
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// kind returns what is to be known of records of a shape and class; mu is held.
func (w *watch) kind(c *Client, id kindID) kind {
	if k, ok := w.kinds[id]; ok {
		return k
	}
	table := c.held.Load().table
	shape, ok := table.Shape(id.shape)
	if !ok {
		return kind{list: -1}
	}
	k := kind{list: w.listOf(table.Ring(), id.key, &shape), tweak: shape.Tweak(id.class)}
	if len(w.kinds) < 4*maxLists {
		w.kinds[id] = k
	}
	return k
}

// listOf returns the place of a shape's names among the lists. A new list is one that registrations are not indexed by yet: they are, and are checked,
// before long. mu is held.
func (w *watch) listOf(ring revocation.Ring, key uint8, s *revocation.Shape) int {
	text := string(rune(key)) + "\x00" + strings.Join(s.Names, "\x00")
	if i, ok := w.byText[text]; ok {
		return i
	}
	names, ok := ring.Names(*s, key)
	if !ok || len(w.lists) >= maxLists {
		return -1
	}
	i := len(w.lists)
	w.lists = append(w.lists, names)
	w.byText[text] = i
	w.sweep = w.sweep || len(w.all) > 0
	return i
}

// index enters a registration under all lists that it is not entered under yet; mu is held.
func (w *watch) index(r *registration) {
	var bases []revocation.Fingerprint
	for ; r.lists < len(w.lists); r.lists++ {
		bases = w.lists[r.lists].AppendBases(bases, r.claims)
	}
	r.places = slices.Grow(r.places, len(bases))
	for _, b := range bases {
		h := w.heads[b.Hi]
		if h == nil {
			h = &head{base: b.Hi}
			w.heads[b.Hi] = h
		}
		h.members = append(h.members, member{r, len(r.places)})
		r.places = append(r.places, place{h, len(h.members) - 1})
	}
}

// drop forgets a registration; mu is held.
func (w *watch) drop(r *registration) {
	if r.over {
		return
	}
	r.over = true
	for _, p := range r.places {
		last := len(p.head.members) - 1
		moved := p.head.members[last]
		p.head.members[p.at] = moved
		moved.reg.places[moved.at].at = p.at
		p.head.members[last] = member{}
		if p.head.members = p.head.members[:last]; last == 0 {
			delete(w.heads, p.head.base)
		}
	}
	r.places = nil
	last := w.all[len(w.all)-1]
	w.all[r.index], last.index = last, r.index
	w.all[len(w.all)-1] = nil
	w.all = w.all[:len(w.all)-1]
	w.count.Add(-1)
}

// judge takes a verdict about a registration.
func (w *watch) judge(r *registration, v revocation.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.over || r.lapsed:
	case v.Status == revocation.Revoked:
		r.lapsed, r.revoked = true, v
		w.lapsed = append(w.lapsed, r)
	case r.again:
	case v.Cause == revocation.CauseUnanswered || v.Cause == revocation.CauseNotReady:
		r.again = true
		w.again = append(w.again, r)
	}
}

// look checks the registrations that records have come for, until ctx ends.
func (c *Client) look(ctx context.Context) {
	w := &c.watch
	again := time.NewTicker(askAgainAfter)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-again.C:
			w.mu.Lock()
			list := w.again
			w.again = nil
			for _, r := range list {
				r.again = false
			}
			w.mu.Unlock()
			c.checkAll(ctx, list)
		}
		w.mu.Lock()
		due, sweep := w.due, w.sweep
		w.due, w.sweep = nil, false
		w.mu.Unlock()
		for _, h := range due {
			// From the end: what takes the place of one that is dropped has been looked at, and who comes later has looked himself.
			w.mu.Lock()
			h.due = false // from here on another record makes it due again
			i := len(h.members)
			w.mu.Unlock()
			for i > 0 && ctx.Err() == nil {
				var piece []*registration
				w.mu.Lock()
				i = min(i, len(h.members))
				for n := 0; n < watchPiece && i > 0; n++ {
					i--
					piece = append(piece, h.members[i].reg)
				}
				w.mu.Unlock()
				c.checkAll(ctx, piece)
			}
		}
		if sweep {
			c.lookAll(ctx)
		}
		w.mu.Lock()
		for n := len(w.lapsed); n > 0 && w.busy < maxCallbacks; n-- {
			w.busy++
			c.ended.Go(func() { c.callBack(ctx) })
		}
		w.mu.Unlock()
	}
}

// lookAll indexes and checks all registrations.
func (c *Client) lookAll(ctx context.Context) {
	w := &c.watch
	w.mu.Lock()
	i := len(w.all)
	w.mu.Unlock()
	for i > 0 && ctx.Err() == nil {
		var piece []*registration
		w.mu.Lock()
		i = min(i, len(w.all))
		for n := 0; n < watchPiece && i > 0; n++ {
			i--
			w.index(w.all[i])
			piece = append(piece, w.all[i])
		}
		w.mu.Unlock()
		c.checkAll(ctx, piece)
	}
}

// checkAll checks registrations.
func (c *Client) checkAll(ctx context.Context, list []*registration) {
	for _, r := range list {
		if ctx.Err() != nil {
			return
		}
		c.watch.judge(r, c.Check(r.claims))
	}
}

// callBack calls back until nobody is left.
func (c *Client) callBack(ctx context.Context) {
	w := &c.watch
	for {
		w.mu.Lock()
		var r *registration
		for r == nil && len(w.lapsed) > 0 && ctx.Err() == nil {
			last := len(w.lapsed) - 1
			if r = w.lapsed[last]; r.over {
				r = nil
			}
			w.lapsed[last] = nil
			w.lapsed = w.lapsed[:last]
		}
		if r == nil {
			w.busy--
			w.mu.Unlock()
			return
		}
		w.drop(r) // so that nobody calls it again
		w.mu.Unlock()
		r.fn(r.revoked)
	}
}
