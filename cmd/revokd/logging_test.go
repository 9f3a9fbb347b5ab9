package main

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestLevels(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"debug", "debug"},
		{"info,cluster=debug,journal=trace", "info cluster=debug journal=trace"},
		{"cluster=debug, warn", "warn cluster=debug"},
		{"cluster=debug", "info cluster=debug"},
		{"", "error: : must be one of trace, debug, info, warn, error"},
		{"info,", "error: : must be one of trace, debug, info, warn, error"},
		{"info,debug", "error: debug: conflict: a second level for everything"},
		{"api=info,api=debug", "error: api: conflict: it is there twice"},
		{"api=loud", "error: api=loud: must be one of trace, debug, info, warn, error"},
		{"off", "error: off: must be one of trace, debug, info, warn, error"},
		{"clutser=debug", "error: clutser: unknown subsystem: did you mean cluster? there are api, audit, cluster, journal, node, tls, token, trace"},
		{"x=debug", "error: x: unknown subsystem: there are api, audit, cluster, journal, node, tls, token, trace"},
	} {
		l := levels{text: "before", least: hclog.Error}
		if err := l.Set(c.text); err != nil {
			if got := "error: " + err.Error(); got != c.want {
				t.Errorf("%q: %s, want %s", c.text, got, c.want)
			}
			if l.text != "before" || l.least != hclog.Error {
				t.Errorf("%q changed the levels to %+v", c.text, l)
			}
			continue
		}
		got := l.least.String()
		for _, name := range slices.Sorted(maps.Keys(l.by)) {
			got += " " + name + "=" + l.by[name].String()
		}
		if got != c.want || l.String() != c.text {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

// Levels hold for loggers that exist already, and however often one is derived.
func TestLogs(t *testing.T) {
	var out bytes.Buffer
	at := func(text string) (l levels) {
		t.Helper()
		if err := l.Set(text); err != nil {
			t.Fatal(err)
		}
		return l
	}
	g := newLogs(&out, false, at("info,journal=trace"))
	journal, node := g.root.Named("journal"), g.root.Named("node")
	lines := func() string {
		out.Reset()
		g.root.Info("root")
		journal.Trace("journal")
		node.Debug("node")
		g.root.Named("node").Debug("again")
		g.root.With("key", "value").Debug("with")
		var said []string
		for line := range strings.Lines(out.String()) {
			said = append(said, strings.TrimSuffix(strings.Fields(line[strings.Index(line, "revokd"):])[1], ":"))
		}
		return strings.Join(said, " ")
	}
	for _, c := range []struct{ set, want string }{
		{"info,journal=trace", "root journal"}, {"error,node=debug", "node again"}, {"debug", "root node again with"},
	} {
		g.set(at(c.set))
		if got := lines(); got != c.want {
			t.Errorf("at %s: %q, want %q", c.set, got, c.want)
		}
	}
}

// Whoever names a logger anew must say so here, or its level could not be set.
func TestSubsystems(t *testing.T) {
	named := regexp.MustCompile(`\.Logger\.Named\("([a-z]+)"\)`)
	found := map[string]bool{}
	root := filepath.Join("..", "..")
	for _, dir := range []string{"internal", "node", "journal", "cluster", "token"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range named.FindAllStringSubmatch(string(text), -1) {
				found[m[1]] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, subsystems) {
		t.Errorf("the parts that log are %q, subsystems has %q", got, subsystems)
	}
}
