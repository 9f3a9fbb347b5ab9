package client

import (
	"fmt"
	"testing"
	"time"

	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

func change(t *testing.T, s *server, c node.KeyChange) {
	t.Helper()
	if err := s.node.ChangeKeys(t.Context(), c, 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

// Replicas of both modes go with the cluster from key to key, those that are there and those that come later.
func TestReplicaRotation(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 10)...)
	modes := map[string]Mode{"full": Full, "filter": Filter}
	replicas := map[string]*Client{}
	called := make(chan string, 2)
	for name, mode := range modes {
		c := open(t, Config{Addrs: []string{s.addr}, Mode: mode, AskTimeout: 10 * time.Second})
		replicas[name] = c
		c.OnRevoked(claims(t, "old11"), func(revocation.Verdict) { called <- name })
	}
	next := revocation.Key{7}
	change(t, s, node.KeyChange{Add: next})
	change(t, s, node.KeyChange{Use: next.ID()})
	s.revoke(t, logouts(t, 10, 10)...)
	for range modes {
		select {
		case <-called:
		case <-time.After(20 * time.Second):
			t.Fatal("nobody was called for a record under the newer key")
		}
	}
	check := func() {
		t.Helper()
		for name, c := range replicas {
			level(t, c, s)
			for i := range 20 {
				if v := c.Check(claims(t, fmt.Sprint("old", i))); v.Status != revocation.Revoked {
					t.Fatalf("%s: old%d is %s (%s)", name, i, v.Status, v.Cause)
				}
			}
			want(t, c, "valid", revocation.Active)
		}
	}
	check()
	for name, mode := range modes {
		replicas["later "+name] = open(t, Config{Addrs: []string{s.addr}, Mode: mode, AskTimeout: 10 * time.Second})
	}
	check()
	for name, c := range replicas {
		if c.Status().Filter == nil {
			continue
		}
		f, err := c.fetch(t.Context(), time.Millisecond)
		if err == nil {
			err = c.replace(f)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	check()
}

// A replica that is not told the newer key takes no record under it, and calls nothing active once its view is old.
func TestReplicaWithoutKey(t *testing.T) {
	for name, mode := range map[string]Mode{"full": Full, "filter": Filter} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "127.0.0.1:0")
			s.revoke(t, logouts(t, 0, 10)...)
			c := open(t, Config{Addrs: []string{s.addr}, Mode: mode, MaxStaleness: time.Second, AskTimeout: 10 * time.Second})
			c.mu.Lock()
			name := c.ring
			c.ring = 0 // what it is told is of no cluster that it knows
			c.mu.Unlock()
			next := revocation.Key{7}
			change(t, s, node.KeyChange{Add: next})
			change(t, s, node.KeyChange{Use: next.ID()})
			s.revoke(t, logouts(t, 10, 10)...)
			acknowledged := time.Now()
			for deadline := acknowledged.Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // a view grows old by itself
				asked := time.Now()
				v := c.Check(claims(t, "old11"))
				if v.Cause == revocation.CauseStale {
					break
				}
				if v.Status == revocation.Active && asked.Sub(acknowledged) > time.Second || asked.After(deadline) {
					t.Fatalf("%s (%s) %s after it was acknowledged", v.Status, v.Cause, asked.Sub(acknowledged))
				}
			}
			want(t, c, "valid", revocation.Unknown)
			c.mu.Lock()
			c.ring = name
			session := c.stream
			c.mu.Unlock()
			session.cancel() // the next session tells it again

			for deadline := time.Now().Add(20 * time.Second); c.Check(claims(t, "old11")).Status != revocation.Revoked; time.Sleep(time.Millisecond) { // between polls
				if time.Now().After(deadline) {
					t.Fatalf("%+v", c.Status())
				}
			}
		})
	}
}
