package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxInput bounds what is read for one flag; a token has at most 8 KiB.
const maxInput = 64 << 10

// readInput returns a flag's value: "-" reads stdin, "@name" the file. A token on the command line shows in the
// list of processes, so both are worth having.
func (c *cli) readInput(flag, value string) (string, error) {
	var in io.Reader
	switch {
	case value == "-":
		in = c.stdin
	case strings.HasPrefix(value, "@"):
		f, err := os.Open(value[1:])
		if err != nil {
			return "", fmt.Errorf("--%s: %w", flag, err)
		}
		defer f.Close()
		in = f
	default:
		in = strings.NewReader(value)
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("--%s: %w", flag, err)
	case len(b) > maxInput:
		return "", usagef("--%s: too large: at most %d bytes", flag, maxInput)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", usagef("--%s: empty", flag)
	}
	return s, nil
}

// instant is a flag that takes RFC 3339, Unix milliseconds, or a signed duration from now.
type instant struct {
	text    string
	at      time.Time
	now     func() time.Time
	seconds bool // Unix seconds too: the flag stands for a NumericDate
}

func (f *instant) String() string { return f.text }
func (f *instant) Type() string   { return "time" }

func (f *instant) Set(s string) error {
	at, err := parseInstant(s, f.now(), f.seconds)
	if err != nil {
		return err
	}
	f.text, f.at = s, at
	return nil
}

// proto returns nil if the flag was not given.
func (f *instant) proto() *timestamppb.Timestamp {
	if f.text == "" {
		return nil
	}
	return timestamppb.New(f.at)
}

// Numbers between these are Unix milliseconds of the years 1973 to 5138. Beyond are seconds and microseconds, which
// would be read as 1970 or as never.
const (
	minMillis = 100_000_000_000
	maxMillis = 100_000_000_000_000
)

func parseInstant(s string, now time.Time, seconds bool) (time.Time, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && s[0] != '+' && s[0] != '-' {
		switch {
		case n < minMillis && seconds:
			return time.Unix(n, 0), nil
		case n < minMillis:
			return time.Time{}, fmt.Errorf("want Unix milliseconds; this number looks like seconds")
		case n > maxMillis:
			return time.Time{}, fmt.Errorf("want Unix milliseconds; this number is beyond the year 5138")
		}
		return time.UnixMilli(n), nil
	}
	if s != "" && (s[0] == '+' || s[0] == '-') {
		d, err := parseDuration(s)
		if err != nil {
			return time.Time{}, err
		}
		return now.Add(d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("want RFC 3339 such as 2026-01-31T12:00:00Z, Unix milliseconds, or from now such as +1h or -30m")
	}
	return t, nil
}

// duration is a flag that takes Go's durations, and days: 90s, 12h, 30d.
type duration struct {
	d   time.Duration
	set bool
}

func (f *duration) String() string {
	if !f.set {
		return ""
	}
	return f.d.String()
}
func (f *duration) Type() string { return "duration" }

func (f *duration) Set(s string) error {
	d, err := parseDuration(s)
	if err != nil {
		return err
	}
	f.d, f.set = d, true
	return nil
}

func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.Atoi(days)
		if err == nil && n > -10_000 && n < 10_000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("want a duration such as 90s, 15m, 12h or 30d")
	}
	return d, nil
}
