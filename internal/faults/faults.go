// Package faults lets a test make a real process misbehave: step its wall clock, fail its disk, or run
// with a known bug (a mutant) to prove that a test catches it.
//
// Without the build tag faults, [Mutant] and [Value] are constants that the compiler folds away: a
// release binary holds neither the faults nor a way to ask for them. With the tag they follow the control
// file named by the environment variable REVOKD_FAULTS; without the variable nothing is faulty. The file
// has one name=value on each line:
//
//	clock=-1h30m
//	disk=ENOSPC
//	mutant=ack-before-write,no-fsync
//
// It is looked at again when one of the functions is called, at most every 10 ms, so a running process
// follows it. Replace it by renaming another file over it: a file read while it is being written may be
// half of itself.
//
// A test whose fault is silently not there proves nothing. So everything unexpected is a panic under the
// tag, at the start or when it is first seen: a file that cannot be read, a name that is not in the list
// below, a value that does not parse, and a call that asks for a name not in the list.
//
// All functions may be called concurrently.
package faults

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Env is the environment variable with the path of the control file.
const Env = "REVOKD_FAULTS"

// MaxFile is the size of a control file in bytes.
const MaxFile = 4096

// names are the values that can be set, each with its test. The value of mutant is a list of mutants.
var names = map[string]func(string) error{
	"clock":  validClock,   // how far the wall clock is shifted, a duration: +30h, -1h30m
	"disk":   validDisk,    // what the journal's files fail with, one of disks
	"mutant": validMutants, // bugs to run with, separated by commas
}

// disks are the ways in which a disk can fail.
var disks = map[string]string{
	"ENOSPC":    "writes fail: no space",
	"EIO-write": "writes fail: input/output error",
	"EIO-fsync": "fsync fails",
}

// mutants are the bugs that can be asked for, each a mistake that a test must catch.
var mutants = map[string]string{
	"ack-before-write": "a write is acknowledged before it is on disk",
	"no-fsync":         "the journal does not fsync",
	"no-dir-fsync":     "the journal does not fsync its directory",
	"ignore-fsync":     "a failed fsync is ignored",
	"replay-skip-last": "the last record of the journal is not read back",
	"retry-fsync":      "a failed fsync is tried again, and believed",
	"skip-damage":      "damage in the middle of a file is skipped in silence",
	"unlink-first":     "files are removed before the log says that they do not count",
	"no-rejoin":        "a node that has joined once does not join again",
	"wall-clock":       "records expire by the wall clock",
	"no-slack":         "records are forgotten at their ExpiresAt",
	"local-ttl":        "a record's end is counted from its arrival",
	"short-key":        "half of the bits of a fingerprint are left out",
	"no-issuer":        "the issuer is not part of a fingerprint",
	"late-cutoff":      "a cutoff misses what was issued in the second before it",
	"accept-expired":   "what has expired is merged",
	"accept-future":    "cutoffs of peers in the far future are merged",
	"active-unready":   "a replica that has not copied everything yet answers Active",
	"active-stale":     "a replica that has lost touch answers Active",
	"suspended":        "the time that a machine was stopped for does not count",
	"answer-stays":     "a node's answer counts for more than a record that has come since",
	"answer-age":       "how old the view is that a node answered from does not count",
	"wide-keep":        "a session that was kept is exempt from every later cutoff",
	"stamp-by-clock":   "a block is stamped by the clock alone",
	"shared-classes":   "the rule classes share their keys",
	"no-skew":          "a cutoff does not count how far the issuer's clock may be ahead",
	"bound-peers":      "what was accepted elsewhere is held to the writers' limit of shapes",
	"bound-replay":     "what was accepted once is judged by the clock again",
	"unknown-key":      "records of a key that the node lacks are taken",
	"trust-repaired":   "the vector of a journal that was repaired is believed",
	"sum-no-cutoff":    "sums that nodes compare leave out the cutoffs",
}

// Mutants returns the bugs that can be asked for, by name, with what they are.
func Mutants() map[string]string { return maps.Clone(mutants) }

// Known reports whether a mutant of that name can be asked for.
func Known(mutant string) bool { return mutants[mutant] != "" }

// Settings is the content of a control file. The zero Settings asks for no fault.
type Settings struct {
	values  map[string]string
	mutants map[string]bool
}

// ErrSettings is what every error of [Parse] matches.
var ErrSettings = errors.New("invalid fault settings")

// Parse reads a control file. Empty lines are allowed; a name may stand only once.
func Parse(b []byte) (Settings, error) {
	if len(b) > MaxFile {
		return Settings{}, fmt.Errorf("%w: longer than %d bytes", ErrSettings, MaxFile)
	}
	s := Settings{values: map[string]string{}, mutants: map[string]bool{}}
	number := 0
	for line := range strings.SplitSeq(string(b), "\n") {
		number++
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok {
			return Settings{}, fmt.Errorf("%w: line %d: not name=value", ErrSettings, number)
		}
		valid, known := names[name]
		if !known {
			return Settings{}, fmt.Errorf("%w: line %d: unknown name %q", ErrSettings, number, name)
		}
		if _, twice := s.values[name]; twice {
			return Settings{}, fmt.Errorf("%w: line %d: %s stands twice", ErrSettings, number, name)
		}
		if err := valid(value); err != nil {
			return Settings{}, fmt.Errorf("%w: line %d: %s: %w", ErrSettings, number, name, err)
		}
		s.values[name] = value
	}
	if list, ok := s.values["mutant"]; ok {
		for name := range strings.SplitSeq(list, ",") {
			s.mutants[name] = true
		}
	}
	return s, nil
}

// String is the control file with these settings.
func (s Settings) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.values)) {
		fmt.Fprintf(&b, "%s=%s\n", name, s.values[name])
	}
	return b.String()
}

func validClock(value string) error {
	_, err := time.ParseDuration(value)
	return err
}

func validDisk(value string) error {
	if _, known := disks[value]; !known {
		return fmt.Errorf("unknown failure %q", value)
	}
	return nil
}

func validMutants(value string) error {
	for name := range strings.SplitSeq(value, ",") {
		if _, known := mutants[name]; !known {
			return fmt.Errorf("unknown mutant %q", name)
		}
	}
	return nil
}
