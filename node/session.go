package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
)

// ErrSession: a session cannot begin, or was replaced by another one with the same node.
var ErrSession = errors.New("the session is not wanted")

// Stream carries messages between two replicas, whole and in order. Send and Receive are each called by one goroutine at a
// time. Close makes both return.
type Stream interface {
	Send(message []byte) error
	Receive() (message []byte, err error)
	Close()
}

// SessionPeer is who is at the other end of a stream.
type SessionPeer struct {
	Name   string // proved by its certificate, or what it says on a loopback address
	Client bool
	Dialed bool // by this node
}

const (
	// maxClients bounds the client replicas of one node.
	maxClients = 4096
	// idleBuffer is the most that a session with nothing to send keeps for the next message: clients may be thousands.
	idleBuffer = 8 << 10
	// silent is how long a session may stay without a message before it is given up: each side asks the other something every second.
	silent = 5 * time.Second
)

// session is a stream with a peer.
type session struct {
	id     replication.PeerID
	peer   SessionPeer
	stream Stream
	wake   chan struct{}
	ended  chan struct{}
	once   sync.Once
	err    error
	heard  time.Duration // on the monotonic clock; under replica.mu
	keys   *view.Keys    // what it has told; nil: nothing yet; under replica.mu
}

func (s *session) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fail ends the session; the first error counts.
func (s *session) fail(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.ended)
		s.stream.Close()
	})
}

func (s *session) over() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Session exchanges records with another replica over a stream until one of them ends it, and returns why. It closes the stream. One session for each node is kept:
// of two that cross, the one that the node with the lesser name has dialed.
func (n *Node) Session(ctx context.Context, stream Stream, peer SessionPeer) error {
	s, err := n.replica.open(stream, peer)
	if err != nil {
		stream.Close()
		return err
	}
	defer n.replica.close(s)
	defer context.AfterFunc(ctx, func() {
		s.fail(ctx.Err())
		n.replica.mu.Lock()
		defer n.replica.mu.Unlock()
		n.replica.room.Broadcast() // its reader need not wait for the disk
	})()
	var writer sync.WaitGroup
	writer.Go(func() { n.replica.write(s) })
	n.replica.read(s)
	writer.Wait()
	return s.err
}

func (r *replica) open(stream Stream, peer SessionPeer) (*session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.core == nil || r.ended:
		return nil, fmt.Errorf("%w: %w", ErrSession, ErrNotReady)
	case peer.Name == "":
		return nil, fmt.Errorf("%w: the peer has no name", ErrSession)
	case peer.Client && len(r.sessions)-len(r.byName) >= maxClients:
		return nil, fmt.Errorf("%w: %d clients", ErrBusy, maxClients)
	case !peer.Client && peer.Name == r.n.cfg.Name:
		return nil, fmt.Errorf("%w: it has this node's name", ErrSession)
	}
	if old := r.byName[peer.Name]; old != nil && !peer.Client {
		if peer.Dialed != old.peer.Dialed && peer.Dialed != (r.n.cfg.Name < peer.Name) {
			return nil, fmt.Errorf("%w: there is one already", ErrSession)
		}
		// The other side would not begin another one if it still had this one.
		old.fail(fmt.Errorf("%w: replaced by a newer one", ErrSession))
		r.forget(old)
		r.room.Broadcast()
	}
	r.lastPeer++
	s := &session{id: r.lastPeer, peer: peer, stream: stream, wake: make(chan struct{}, 1), ended: make(chan struct{}), heard: r.n.cfg.Clock.Mono()}
	r.sessions[s.id] = s
	if !peer.Client {
		r.byName[peer.Name] = s
	}
	r.stepLocked(replication.Connected{Peer: s.id, Name: peer.Name, Client: peer.Client})
	return s, nil
}

func (r *replica) close(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(s)
}

// forget is called with mu held.
func (r *replica) forget(s *session) {
	if r.sessions[s.id] != s {
		return
	}
	delete(r.sessions, s.id)
	if r.byName[s.peer.Name] == s {
		delete(r.byName, s.peer.Name)
	}
	r.stepLocked(replication.Disconnected{Peer: s.id})
}

// write sends what there is to send until the session ends.
func (r *replica) write(s *session) {
	var b []byte
	for {
		select {
		case <-s.ended:
			return
		case <-s.wake:
		}
		for {
			r.mu.Lock()
			if b = b[:0]; !r.ended {
				b = r.core.Fill(r.now(), s.id, b)
			}
			r.mu.Unlock()
			if len(b) == 0 {
				break
			}
			if err := s.stream.Send(b); err != nil {
				s.fail(err)
				return
			}
		}
		if cap(b) > idleBuffer {
			b = nil
		}
	}
}

// read takes in what comes until the session ends. It waits while the disk is far behind.
func (r *replica) read(s *session) {
	for {
		message, err := s.stream.Receive()
		if err != nil {
			s.fail(err)
			return
		}
		r.mu.Lock()
		for r.bytes > maxPeerBytes && !r.ended && !s.over() {
			r.room.Wait()
		}
		s.heard = r.n.cfg.Clock.Mono()
		if r.sessions[s.id] == s {
			r.stepLocked(replication.Received{Peer: s.id, Message: message})
		}
		r.mu.Unlock()
	}
}

// closeSilent ends sessions whose peers have stopped talking: a cut link does not say so.
func (r *replica) closeSilent() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.n.cfg.Clock.Mono()
	for _, s := range r.sessions {
		if now-s.heard > silent && r.bytes <= maxPeerBytes {
			s.fail(fmt.Errorf("%w: nothing heard for %s", ErrSession, silent))
			r.forget(s) // its stream may wait for the cut link much longer, and what others hold of the peer's counts once there is no session with it
		}
	}
}
