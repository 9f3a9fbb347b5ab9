package client

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/revocation"
)

// Policy says what becomes of a token about which nothing is known.
type Policy struct {
	allow bool
	after time.Duration
}

// Deny refuses it, with 503. It is the default.
func Deny() Policy { return Policy{} }

// Allow lets it pass: a revoked token may be accepted while no node can be reached.
func Allow() Policy { return Policy{allow: true} }

// DenyAfter lets it pass while the view is no older than d beyond MaxStaleness, and refuses it then.
func DenyAfter(d time.Duration) Policy { return Policy{after: d} }

// CheckOptions narrow a check.
type CheckOptions struct {
	Freshness    Freshness
	MaxStaleness time.Duration // 0: that of Config
}

// Check answers whether a token is revoked, from memory. claims must be verified. It allocates nothing, unless it has to ask a node: see [Filter].
func (c *Client) Check(claims *revocation.Claims) revocation.Verdict {
	return c.CheckFresh(claims, CheckOptions{Freshness: c.cfg.Freshness})
}

// CheckFresh is Check with options.
func (c *Client) CheckFresh(claims *revocation.Claims, o CheckOptions) revocation.Verdict {
	f := c.fresh.Load() // before the records are read: what the view is said to hold has been in them then
	h := c.held.Load()
	limit := o.MaxStaleness
	if limit == 0 {
		limit = c.cfg.MaxStaleness
	}
	if h.part != nil {
		return c.checkPart(f, h, claims, o, limit)
	}
	v := h.table.Check(claims, c.now.Load())
	if !c.ready.Load() {
		return notReady(v)
	}
	return f.Judge(v, c.elapsed.Mono, o.Freshness == All, o.Freshness == Any, limit)
}

// notReady withholds Active from a view that is not complete.
func notReady(v revocation.Verdict) revocation.Verdict {
	if (v.Status == revocation.Active || v.Cause == revocation.CauseUnanswered) && !faults.Mutant("active-unready") {
		return revocation.Verdict{Cause: revocation.CauseNotReady}
	}
	return v
}

// checkPart checks with a filter: the verdict is as old as the older of this view and that of the node that was asked.
func (c *Client) checkPart(f *view.Freshness, h *held, claims *revocation.Claims, o CheckOptions, limit time.Duration) revocation.Verdict {
	v := h.table.CheckWith(claims, c.now.Load(), h.part)
	if !c.ready.Load() {
		return notReady(v)
	}
	if v.Cause != revocation.CauseUnanswered {
		return f.Judge(v, c.elapsed.Mono, o.Freshness == All, o.Freshness == Any, limit)
	}
	v, asOf := c.ask(h, claims, o.Freshness == All, limit)
	v = f.Judge(v, c.elapsed.Mono, o.Freshness == All, o.Freshness == Any, limit)
	age := view.Oldest
	if asOf > math.MinInt64 {
		age = max(0, c.elapsed.Mono()-asOf)
	}
	if v.Status == revocation.Active && age > limit && o.Freshness != Any && !faults.Mutant("answer-age") {
		return revocation.Verdict{Cause: revocation.CauseStale, Age: age}
	}
	v.Age = max(v.Age, age)
	return v
}

// Allow decides by [Config.OnUnknown]: nil, or an error that matches [ErrRevoked] or [ErrUnknown].
func (c *Client) Allow(claims *revocation.Claims) error { return c.Decide(c.Check(claims)) }

// Decide is Allow for a verdict. Only a view that is too old can be let pass: what cannot be judged for another reason stays refused.
func (c *Client) Decide(v revocation.Verdict) error {
	switch v.Status {
	case revocation.Active:
		return nil
	case revocation.Revoked:
		return fmt.Errorf("%w: rule %s", ErrRevoked, v.Rule.Class)
	}
	stale := v.Cause == revocation.CauseStale || v.Cause == revocation.CauseNotReady
	p := c.cfg.OnUnknown
	if p.allow && v.Cause == revocation.CauseUnanswered {
		return nil // no node can be reached
	}
	if stale && (p.allow || p.after > 0 && v.Age > 0 && v.Age <= c.cfg.MaxStaleness+p.after) {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnknown, v.Cause)
}

// Ready waits until the replica is level with a node, and returns nil, or until ctx ends.
func (c *Client) Ready(ctx context.Context) error {
	return c.wait(ctx, c.ready.Load)
}

// wait waits until something holds that a step can make hold.
func (c *Client) wait(ctx context.Context, ok func() bool) error {
	defer context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reached.Broadcast()
	})()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !ok() {
		if c.closed {
			return ErrClosed
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		c.reached.Wait()
	}
	return nil
}

// Status describes a replica.
type Status struct {
	Ready     bool
	Node      string // address of the node in use; empty: none
	Since     time.Time
	Sessions  uint64 // begun so far
	Records   int    // in Filter mode about
	Bytes     int64  // of memory for records
	BytesIn   uint64
	Voters    []VoterStatus
	QuorumAge time.Duration // how old the view of a majority is; the largest Duration: there is none
	AllAge    time.Duration
	RTT       time.Duration
	Behind    uint64        // records that the node holds and this replica does not yet
	LastError error         // why the last session ended, or could not begin
	Filter    *FilterStatus // nil in Full mode
}

// FilterStatus is what there is to say in Filter mode.
type FilterStatus struct {
	Filtered  uint64 // records in the filter
	Recent    int    // records beside it
	AsOf      time.Time
	Refreshed uint64 // filters that took the place of another one
	Doubts    uint64 // checks that the filter could not answer
	Asks      uint64 // calls to nodes because of them
}

// VoterStatus is what a replica knows of a voter.
type VoterStatus struct {
	Name string
	Age  time.Duration // of the view; the largest Duration: there is none
}

// Status returns a description.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	mono := c.elapsed.Mono()
	f := c.fresh.Load()
	h := c.held.Load()
	items, bytes := h.table.Size()
	s := Status{
		Ready: c.ready.Load(), Sessions: c.sessions, Records: items, Bytes: bytes, BytesIn: c.bytesIn,
		QuorumAge: f.Age(mono, false), AllAge: f.Age(mono, true), LastError: c.lastError,
	}
	if h.part != nil {
		meta := h.part.filter.Meta()
		s.Filter = &FilterStatus{
			Filtered: meta.Count, Recent: items, AsOf: time.UnixMilli(meta.AsOf), Refreshed: c.filters.Load(), Doubts: c.doubts.Load(), Asks: c.asks.Load(),
		}
		s.Records += int(meta.Count)
		s.Bytes += int64(h.part.filter.M() / 8)
	}
	if c.stream != nil {
		s.Node, s.Since = c.node, c.connected
	}
	for _, p := range c.core.Peers() {
		s.RTT, s.Behind = p.RTT, p.Ahead
	}
	for _, name := range c.core.Voters().Names {
		age := view.Oldest
		if at := c.core.View(name); at > -1<<62 {
			age = mono - at
		}
		s.Voters = append(s.Voters, VoterStatus{name, age})
	}
	return s
}
