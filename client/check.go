package client

import (
	"context"
	"fmt"
	"time"

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

// Check answers whether a token is revoked, from memory. c must hold verified claims. It allocates nothing.
func (c *Client) Check(claims *revocation.Claims) revocation.Verdict {
	return c.CheckFresh(claims, CheckOptions{Freshness: c.cfg.Freshness})
}

// CheckFresh is Check with options.
func (c *Client) CheckFresh(claims *revocation.Claims, o CheckOptions) revocation.Verdict {
	f := c.fresh.Load() // before the table is read: what the view is said to hold has been in it then
	v := c.table.Check(claims, c.now.Load())
	if !c.ready.Load() {
		if v.Status == revocation.Active {
			return revocation.Verdict{Cause: revocation.CauseNotReady}
		}
		return v
	}
	limit := o.MaxStaleness
	if limit == 0 {
		limit = c.cfg.MaxStaleness
	}
	return f.Judge(v, c.cfg.clock.Mono, o.Freshness == All, o.Freshness == Any, limit)
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
	Records   int
	Bytes     int64 // of memory for records
	BytesIn   uint64
	Voters    []VoterStatus
	QuorumAge time.Duration // how old the view of a majority is; the largest Duration: there is none
	AllAge    time.Duration
	RTT       time.Duration
	Behind    uint64 // records that the node holds and this replica does not yet
	LastError error  // why the last session ended, or could not begin
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
	mono := c.cfg.clock.Mono()
	f := c.fresh.Load()
	items, bytes := c.table.Size()
	s := Status{
		Ready: c.ready.Load(), Sessions: c.sessions, Records: items, Bytes: bytes, BytesIn: c.bytesIn,
		QuorumAge: f.Age(mono, false), AllAge: f.Age(mono, true), LastError: c.lastError,
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
