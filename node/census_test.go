package node

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/revocation"
)

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// What ends within a week is counted every ten minutes and logged at most once a day.
func TestBlocksEndingSoon(t *testing.T) {
	var log lockedLog
	c := clocktest.New(start)
	n := testNode(t, Config{Clock: c, SweepEvery: time.Hour, Logger: hclog.New(&hclog.LoggerOptions{Output: &log})})
	write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=canary"), ExpiresAt: start.Add(48 * time.Hour).UnixMilli()})
	check := func(what string, soon, warnings int) {
		t.Helper()
		n.count()
		if got := n.Status().Census.BlocksEnding; got != soon || strings.Count(log.String(), "blocks end soon") != warnings {
			t.Errorf("%s: %d end soon, want %d; log %s", what, got, soon, log.String())
		}
	}
	check("at once", 1, 1)
	write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=another"), ExpiresAt: start.Add(time.Hour).UnixMilli()})
	check("before it is time", 1, 1)
	c.Advance(censusEvery - time.Second)
	n.tick()
	check("still", 1, 1)
	c.Advance(time.Second)
	n.tick()
	check("ten minutes later", 2, 1)
	c.Advance(24 * time.Hour)
	n.tick()
	check("a day later", 1, 2)
	if strings.Contains(log.String(), "canary") {
		t.Error("the log names somebody")
	}
}

// Who asks for the keys is told what is live now; whoever asks again and again makes no work.
func TestRecount(t *testing.T) {
	c := clocktest.New(start)
	n := testNode(t, Config{Clock: c, SweepEvery: time.Hour})
	live := func() int {
		n.Recount()
		return n.Keys()[0].Records
	}
	if got := live(); got != 0 {
		t.Errorf("%d live, nothing was written", got)
	}
	for _, sub := range []string{"a", "b", "c"} {
		write(t, n, revocation.Request{Match: match(t, "iss=i,sub="+sub)})
	}
	if got := live(); got != 0 {
		t.Errorf("%d live: counted again at once", got)
	}
	c.Advance(recountEvery)
	n.tick()
	if got := live(); got != 3 {
		t.Errorf("%d live, three were written", got)
	}
}
