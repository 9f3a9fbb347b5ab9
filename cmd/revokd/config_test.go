package main

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revokd/revokd/internal/alloctest"
)

// someFlags has a flag of each kind that an agent has.
func someFlags(t testing.TB) (*cobra.Command, *settings) {
	t.Helper()
	cmd, s := new(cobra.Command), new(settings)
	flags := cmd.Flags()
	flags.String("config", "", "")
	flags.Bool("dev", false, "")
	flags.String("data-dir", "", "")
	flags.StringArray("join", nil, "")
	flags.Duration("max-staleness", 0, "")
	flags.Int("writer-rate", 1000, "")
	flags.Var(&choice{value: "disk", allowed: []string{"disk", "memory"}}, "durability", "")
	flags.Var(&levels{text: "info"}, "log-level", "")
	flags.VisitAll(func(f *pflag.Flag) { s.flags = append(s.flags, f) })
	if err := s.environment(nil); err != nil {
		t.Fatal(err)
	}
	return cmd, s
}

// FuzzConfig: a configuration file is refused or sets flags, the same each time, each from a line of it.
func FuzzConfig(f *testing.F) {
	for _, seed := range []string{
		"", "# nothing\n", "dev: true\ndata-dir: d\njoin: [a, b]\nmax-staleness: 5s\nwriter-rate: 7\ndurability: memory\nlog-level: info,cluster=debug\n",
		"join: a\n", "dev: true\ndev: true\n", "data_dir: d\n", "- a\n", "a: &a [*a]\n", "join: []\n", "writer-rate: x\n", "--- {}\n--- {}\n", "? {a: b}\n: c\n", "data-dir: !!binary aGk=\n", "config: x\n", "dev: null\n", "<<: {dev: true}\n",
	} {
		f.Add([]byte(seed))
	}
	const path = "/etc/revokd/config.yaml"
	f.Fuzz(func(t *testing.T, b []byte) {
		var s *settings
		var err error
		// A node of YAML, of one letter, is a value of 160 bytes; and a key that is unknown is compared with those that are known.
		alloctest.AtMost(t, 1000*min(len(b), maxConfigFile)+256<<10, func() {
			var cmd *cobra.Command
			cmd, s = someFlags(t)
			err = s.read(cmd, path, bytes.NewReader(b))
		})
		if err != nil {
			return
		}
		cmd, again := someFlags(t)
		if err := again.read(cmd, path, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		for i, flag := range s.flags {
			if got := again.flags[i].Value.String(); got != flag.Value.String() {
				t.Fatalf("%s is %q and then %q", flag.Name, flag.Value, got)
			}
			if s.sources[flag.Name] == fromDefault && flag.Value.String() != flag.DefValue {
				t.Fatalf("%s is %q by itself", flag.Name, flag.Value)
			}
			if flag.Name == "data-dir" && s.sources[flag.Name] != fromDefault && !filepath.IsAbs(flag.Value.String()) {
				t.Fatalf("data in %q, wherever that is", flag.Value)
			}
		}
	})
}
