package faults

import (
	"errors"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
)

func TestParse(t *testing.T) {
	s, err := Parse([]byte("\nclock=-1h30m\nmutant=ack-before-write,no-fsync\n\ndisk=ENOSPC"))
	if err != nil {
		t.Fatal(err)
	}
	if s.values["clock"] != "-1h30m" || s.values["disk"] != "ENOSPC" {
		t.Errorf("values: %v", s.values)
	}
	if !s.mutants["ack-before-write"] || !s.mutants["no-fsync"] || s.mutants["wall-clock"] {
		t.Errorf("mutants: %v", s.mutants)
	}
	if got, want := s.String(), "clock=-1h30m\ndisk=ENOSPC\nmutant=ack-before-write,no-fsync\n"; got != want {
		t.Errorf("String: %q, want %q", got, want)
	}
}

func TestParseNothing(t *testing.T) {
	s, err := Parse(nil)
	if err != nil || len(s.values) != 0 || len(s.mutants) != 0 || s.String() != "" {
		t.Errorf("an empty file: %v, %v", s, err)
	}
}

func TestParseRejects(t *testing.T) {
	for file, want := range map[string]string{
		"clock":                            "line 1: not name=value",
		"clock=1h\n=1h":                    `line 2: unknown name ""`,
		"clok=1h":                          `unknown name "clok"`,
		" clock=1h":                        `unknown name " clock"`,
		"clock=1h\r\n":                     "line 1: clock:",
		"clock=1":                          "missing unit",
		"clock=":                           "line 1: clock:",
		"clock=1h\nclock=1h":               "line 2: clock stands twice",
		"disk=":                            `line 1: disk: unknown failure ""`,
		"disk=EIO":                         `line 1: disk: unknown failure "EIO"`,
		"mutant=":                          `unknown mutant ""`,
		"mutant=no-fsync,":                 `unknown mutant ""`,
		"mutant=no-fsink":                  `unknown mutant "no-fsink"`,
		strings.Repeat("\n", MaxFile+1):    "longer than 4096 bytes",
		"disk=" + strings.Repeat("x", 5e3): "longer than 4096 bytes",
	} {
		s, err := Parse([]byte(file))
		if !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error %v, want %q", file, err, want)
		}
		if s.values != nil || s.mutants != nil {
			t.Errorf("%.40q: settings beside an error: %v", file, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("clock=+30h\ndisk=EIO-fsync\nmutant=wall-clock\n"))
	f.Add([]byte("mutant=no-fsync,no-fsync"))
	f.Add([]byte("clock=1h\nclock=2h"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Settings
		var err error
		alloctest.AtMost(t, 80*min(len(b), MaxFile)+64<<10, func() { s, err = Parse(b) })
		if err != nil {
			if !errors.Is(err, ErrSettings) {
				t.Fatalf("error without its sentinel: %v", err)
			}
			if s.values != nil || s.mutants != nil {
				t.Fatalf("settings beside an error: %v", s)
			}
			return
		}
		if len(b) > MaxFile {
			t.Fatalf("accepted %d bytes", len(b))
		}
		for name := range s.values {
			if names[name] == nil {
				t.Fatalf("accepted the name %q", name)
			}
		}
		again, err := Parse([]byte(s.String()))
		if err != nil || again.String() != s.String() || len(again.mutants) != len(s.mutants) {
			t.Fatalf("%q does not read back: %v, %v", s, again, err)
		}
	})
}
