package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// headerClient names the replica; see ReplicationService.Exchange.
const headerClient = "Revokd-Client"

const (
	sweepEvery = 10 * time.Second
	// silent is how long a node may say nothing before another one is tried: it is asked something every maxProbeEvery at least. Nodes are as patient.
	silent = 5 * time.Second
	// settled is how long a session must have lasted for the next pause to be a short one.
	settled = time.Second
)

// stream is a session with a node.
type stream struct {
	id     replication.PeerID
	cancel context.CancelFunc
	wake   chan struct{}
	heard  time.Duration // on the monotonic clock; under Client.mu
}

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// follow holds a session with one node after another until ctx ends.
func (c *Client) follow(ctx context.Context) {
	attempt := 0
	for ctx.Err() == nil {
		for _, addr := range c.addresses(ctx) {
			began := c.cfg.clock.Mono()
			err := c.session(ctx, addr)
			if ctx.Err() != nil {
				return
			}
			c.mu.Lock()
			c.lastError = err
			if c.node == addr {
				c.node = ""
			}
			c.mu.Unlock()
			c.log.Debug("no session", "node", addr, "error", err)
			if c.cfg.clock.Mono()-began > settled {
				attempt = 0
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(c.backoff(attempt)):
			}
			attempt++
		}
	}
}

// session follows one node until it or ctx ends.
func (c *Client) session(ctx context.Context, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	service := revokdv1connect.NewReplicationServiceClient(c.http, c.url(addr), connect.WithGRPC(), connect.WithReadMaxBytes(replication.MaxMessage+1024))
	ex := service.Exchange(ctx)
	ex.RequestHeader().Set(headerClient, c.cfg.Name)
	hurry := time.AfterFunc(silent, cancel) // dialing and the first answer
	err := ex.Send(nil)
	if err == nil {
		_, err = ex.Receive() // empty: the node has accepted
	}
	if !hurry.Stop() || err != nil {
		return fmt.Errorf("begin a session: %w", errors.Join(err, ctx.Err()))
	}
	s := c.open(addr, cancel)
	defer c.shut(s)
	c.http.CloseIdleConnections() // to the node of the session before: thousands of clients may leave one
	var writer sync.WaitGroup
	writer.Go(func() { c.write(ctx, s, ex) })
	defer writer.Wait()
	defer cancel()
	for {
		m, err := ex.Receive()
		if err != nil {
			return err
		}
		if err := c.receive(s, m.GetFrames()); err != nil {
			return err
		}
	}
}

func (c *Client) open(addr string, cancel context.CancelFunc) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastPeer++
	s := &stream{id: c.lastPeer, cancel: cancel, wake: make(chan struct{}, 1), heard: c.cfg.clock.Mono()}
	c.stream, c.node, c.connected = s, addr, c.cfg.clock.Now()
	c.sessions++
	_ = c.step(replication.Connected{Peer: s.id})
	return s
}

func (c *Client) shut(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stream == s {
		c.stream = nil
	}
	_ = c.step(replication.Disconnected{Peer: s.id})
}

func (c *Client) write(ctx context.Context, s *stream, ex *connect.BidiStreamForClient[revokdv1.ExchangeMessage, revokdv1.ExchangeMessage]) {
	var b []byte
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		for {
			c.mu.Lock()
			b = c.core.Fill(c.clockNow(), s.id, b[:0])
			c.mu.Unlock()
			if len(b) == 0 {
				break
			}
			if err := ex.Send(&revokdv1.ExchangeMessage{Frames: b}); err != nil {
				s.cancel()
				return
			}
		}
	}
}

func (c *Client) receive(s *stream, message []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.heard = c.cfg.clock.Mono()
	c.bytesIn += uint64(len(message))
	return c.step(replication.Received{Peer: s.id, Message: message})
}

func (c *Client) clockNow() replication.Now {
	return replication.Now{Mono: c.elapsed.Mono(), Wall: c.cfg.clock.Now().UnixMilli(), Guarded: c.now.Load()}
}

// step tells the state machine what has happened; mu is held. The error is why the session must end.
func (c *Client) step(e replication.Event) (err error) {
	out := c.core.Step(c.clockNow(), e)
	if len(out.Wake) > 0 && c.stream != nil {
		c.stream.signal()
	}
	for _, closing := range out.Close {
		if c.stream != nil && closing.Peer == c.stream.id {
			err = closing.Err
		}
	}
	for _, m := range out.Keys {
		if told, err := view.ParseKeys(m.Keys); err == nil && told.Ring.Name() == c.ring && told.Ring.Compare(c.offered) > 0 {
			c.offered = told.Ring
			c.adopt()
		}
	}
	if out.Views {
		c.publish()
	}
	if len(out.Changed) > 0 {
		if p := c.held.Load().part; p != nil {
			p.touched(out.Changed)
		}
		c.changed(out.Changed)
	}
	c.reached.Broadcast()
	return err
}

// adopt puts the keys in force that a node has told, if they are not; mu is held. Records of a key that is not there are refused, so that the view grows old.
func (c *Client) adopt() {
	if c.offered == (revocation.Ring{}) || c.offered.Compare(c.tableConfig.Ring) <= 0 {
		return
	}
	tables := []*revocation.Table{c.held.Load().table}
	if c.store.next != nil {
		tables = append(tables, c.store.next.Table)
	}
	now := c.now.Load()
	for _, t := range tables {
		if err := t.Retire(c.offered, now); err != nil {
			c.log.Debug("the fingerprint keys of the node are not in force here yet", "error", err)
			return
		}
	}
	for _, t := range tables {
		if err := t.SetRing(c.offered, now); err != nil {
			c.log.Debug("the fingerprint keys of the node are not in force here yet", "error", err)
			return
		}
	}
	c.tableConfig.Ring = c.offered
}

// publish makes the age of the view known to checks, and takes the node's guarded time: records expire by that, never by this machine's clock.
func (c *Client) publish() {
	c.fresh.Store(view.NewFreshness(c.core.FreshSince()))
	if c.core.Leveled() && c.ready.CompareAndSwap(false, true) {
		c.log.Info("the replica is level with a node", "records", c.held.Load().table.Stats(c.now.Load()).Items)
	}
}

// tick keeps time until ctx ends.
func (c *Client) tick(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	sweep := c.cfg.clock.Mono() + sweepEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		c.mu.Lock()
		_ = c.step(replication.Tick{})
		c.adopt()
		mono := c.cfg.clock.Mono()
		for _, p := range c.core.Peers() {
			if p.Guarded > 0 && p.GuardedAt > c.guardedSeen {
				// From here on by the monotonic clock, whatever the wall clock makes of the time since: records stay longer by a tick.
				c.guarded, c.guardedSeen, c.guardedAt = p.Guarded, p.GuardedAt, mono
			}
		}
		if c.guarded > 0 {
			c.now.Store(c.guarded + (mono - c.guardedAt).Milliseconds())
		}
		if s := c.stream; s != nil && mono-s.heard > silent {
			s.cancel()
		}
		next := c.core.Deadline() - c.elapsed.Mono()
		c.mu.Unlock()
		if mono >= sweep {
			sweep = mono + sweepEvery
			c.held.Load().table.Sweep(c.now.Load())
		}
		t.Reset(min(max(next, 5*time.Millisecond), 100*time.Millisecond))
	}
}
