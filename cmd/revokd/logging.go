package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
)

// subsystems are the names under which parts of an agent log.
var subsystems = []string{"api", "audit", "cluster", "journal", "node", "tls", "token", "trace"}

var logLevels = []string{"trace", "debug", "info", "warn", "error"}

// levels is a flag: the least level that is logged, and others for subsystems, such as info,cluster=debug.
type levels struct {
	text  string
	least hclog.Level
	by    map[string]hclog.Level // of subsystems that have one of their own
}

func (l *levels) String() string { return l.text }
func (l *levels) Type() string   { return "level[,subsystem=level...]" }

// Set takes a level for everything, once and at any place, and levels for subsystems. Without the first it is info.
func (l *levels) Set(text string) error {
	next := levels{text: text, by: map[string]hclog.Level{}}
	for part := range strings.SplitSeq(text, ",") {
		name, word, of := strings.Cut(strings.TrimSpace(part), "=")
		if !of {
			name, word = "", name
		}
		switch {
		case !slices.Contains(logLevels, word):
			return fmt.Errorf("%s: must be one of %s", part, strings.Join(logLevels, ", "))
		case !of && next.least != hclog.NoLevel:
			return fmt.Errorf("%s: conflict: a second level for everything", part)
		case !of:
			next.least = hclog.LevelFromString(word)
			continue
		case !slices.Contains(subsystems, name):
			hint := ""
			if near := nearest(name, slices.Values(subsystems)); near != "" {
				hint = "did you mean " + near + "? "
			}
			return fmt.Errorf("%s: unknown subsystem: %sthere are %s", name, hint, strings.Join(subsystems, ", "))
		case next.by[name] != hclog.NoLevel:
			return fmt.Errorf("%s: conflict: it is there twice", name)
		}
		next.by[name] = hclog.LevelFromString(word)
	}
	if next.least == hclog.NoLevel {
		next.least = hclog.Info
	}
	*l = next
	return nil
}

// logs makes the loggers of an agent, whose levels may be changed while they are used.
type logs struct {
	root hclog.Logger

	mu     sync.Mutex
	levels levels
	named  map[string]hclog.Logger // of the subsystems that have logged
}

func newLogs(out io.Writer, json bool, l levels) *logs {
	g := &logs{levels: l, named: map[string]hclog.Logger{}}
	g.root = hclog.New(&hclog.LoggerOptions{
		Name: "revokd", Output: out, Level: l.least, JSONFormat: json, IndependentLevels: true, SubloggerHook: g.sub,
	})
	return g
}

// sub is called with each logger that was derived from another. Those of one subsystem are one, or its level would have to be set on all.
func (g *logs) sub(l hclog.Logger) hclog.Logger {
	_, name, ok := strings.Cut(l.Name(), ".")
	if !ok || len(l.ImpliedArgs()) > 0 {
		return l
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known := g.named[name]; known != nil {
		return known
	}
	if slices.Contains(subsystems, name) {
		l.SetLevel(g.level(name))
		g.named[name] = l
	}
	return l
}

func (g *logs) level(name string) hclog.Level {
	if l, ok := g.levels.by[name]; ok {
		return l
	}
	return g.levels.least
}

// set changes the levels.
func (g *logs) set(l levels) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.levels = l
	g.root.SetLevel(l.least)
	for name, logger := range g.named {
		logger.SetLevel(g.level(name))
	}
}

// completions are what a shell offers for the flag.
func (l *levels) completions() []string {
	all := slices.Clone(logLevels)
	for _, name := range subsystems {
		all = append(all, "info,"+name+"=debug")
	}
	return all
}
