package cluster

import (
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A node that floods us, or one that cannot be reached, makes memberlist log a line for each packet.
const (
	logBurst = 20
	logEvery = time.Second // one more
)

// lineLog takes memberlist's lines and logs some of them: at most logBurst at once and one each logEvery, with how many were left out.
// A line has names from the network in it, so it becomes a value, never a message.
type lineLog struct {
	to   hclog.Logger
	mono func() time.Duration

	mu     sync.Mutex
	budget float64
	last   time.Duration
	missed uint64
	total  uint64
}

func newLineLog(to hclog.Logger, mono func() time.Duration) *lineLog {
	return &lineLog{to: to, mono: mono, budget: logBurst, last: mono()}
}

// Write is called with one line that begins with its level.
func (l *lineLog) Write(p []byte) (int, error) {
	level, text, _ := strings.Cut(strings.TrimSpace(string(p)), "]")
	text = strings.TrimPrefix(strings.TrimSpace(text), "memberlist: ")
	severity := hclog.LevelFromString(strings.TrimPrefix(level, "["))
	switch {
	case strings.HasPrefix(text, "Binding to public address without encryption"):
		return len(p), nil // memberlist does not see that its transport seals
	case severity == hclog.Debug:
		severity = hclog.Trace
	case severity == hclog.Error:
		severity = hclog.Warn // packets that were lost, peers that did not answer: all of it is handled
	case severity == hclog.NoLevel:
		severity = hclog.Info
	}
	if l.to.GetLevel() > severity {
		return len(p), nil
	}
	missed, ok := l.take()
	switch {
	case !ok:
	case missed > 0:
		l.to.Log(severity, "memberlist", "said", text, "left_out_before", missed)
	default:
		l.to.Log(severity, "memberlist", "said", text)
	}
	return len(p), nil
}

func (l *lineLog) take() (missed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.mono()
	l.budget = min(logBurst, l.budget+float64(now-l.last)/float64(logEvery))
	l.last = now
	if l.budget < 1 {
		l.missed++
		l.total++
		return 0, false
	}
	l.budget--
	missed, l.missed = l.missed, 0
	return missed, true
}

func (l *lineLog) leftOut() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}
