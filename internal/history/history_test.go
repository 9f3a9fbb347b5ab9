package history

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/revocation"
)

const (
	s       = time.Second
	active  = revocation.Active
	revoked = revocation.Revoked
	unknown = revocation.Unknown
)

// check is an answer of a replica: "restart" before it if the process is another one than before.
type check struct {
	began, ended time.Duration
	verdict      revocation.Status
	restart      bool
	final        bool
}

// Every history is of one revocation that expires at 100 s, with a slack of 10 s and a MaxStaleness of 3 s.
func TestHistories(t *testing.T) {
	for _, test := range []struct {
		name    string
		asked   time.Duration
		ended   time.Duration
		outcome Outcome
		checks  []check
		want    []Kind
	}{
		{"enforced", 1 * s, 2 * s, Quorum, []check{{began: 0, ended: 1 * s, verdict: active}, {began: 2 * s, ended: 3 * s, verdict: revoked}, {began: 109 * s, ended: 109 * s, verdict: revoked}}, nil},
		{"within the staleness", 1 * s, 2 * s, Quorum, []check{{began: 5 * s, ended: 9 * s, verdict: active}}, nil},
		{"late", 1 * s, 2 * s, Quorum, []check{{began: 5*s + 1, ended: 6 * s, verdict: active}}, []Kind{Late}},
		{"late, but unsure", 1 * s, 2 * s, Unsure, []check{{began: 5*s + 1, ended: 6 * s, verdict: active}}, nil},
		{"late, but unknown", 1 * s, 2 * s, Quorum, []check{{began: 50 * s, ended: 50 * s, verdict: unknown}}, nil},
		{"flap", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 3 * s, ended: 3 * s, verdict: active}}, []Kind{Flap}},
		{"flap of what nobody acknowledged", 1 * s, 2 * s, Unsure, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 50 * s, ended: 50 * s, verdict: active}}, []Kind{Flap}},
		{"no flap: the checks overlap", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 4 * s, verdict: revoked}, {began: 3 * s, ended: 5 * s, verdict: active}}, nil},
		{"no flap: another process, not durable", 1 * s, 2 * s, Unsure, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 9 * s, ended: 9 * s, verdict: active, restart: true}}, nil},
		{"another process, but acknowledged", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 9 * s, ended: 9 * s, verdict: active, restart: true}}, []Kind{Late}},
		{"early", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 101 * s, ended: 109 * s, verdict: active}}, []Kind{Early}},
		{"early, never seen before", 1 * s, 2 * s, Quorum, []check{{began: 101 * s, ended: 109 * s, verdict: active}}, []Kind{Early}},
		{"over", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 109 * s, ended: 110 * s, verdict: active}}, nil},
		{"resurrected", 1 * s, 2 * s, Quorum, []check{{began: 2 * s, ended: 2 * s, verdict: revoked}, {began: 110 * s, ended: 110 * s, verdict: active}, {began: 113*s + 1, ended: 114 * s, verdict: revoked}}, []Kind{Resurrected}},
		{"resurrected by a clock that is behind", 1 * s, 2 * s, Quorum, []check{{began: 110 * s, ended: 110 * s, verdict: active}, {began: 111 * s, ended: 111 * s, verdict: revoked}}, nil},
		{"overdue", 1 * s, 2 * s, Quorum, []check{{began: 140*s + 1, ended: 141 * s, verdict: revoked}}, []Kind{Overdue}},
		{"refused and there", 1 * s, 2 * s, Refused, []check{{began: 2*s + 1, ended: 3 * s, verdict: revoked}}, []Kind{False}},
		{"there before it was asked for", 1 * s, 2 * s, Quorum, []check{{began: 0, ended: 1*s - 1, verdict: revoked}}, []Kind{False}},
		{"lost", 1 * s, 2 * s, Quorum, []check{{began: 50 * s, verdict: active, final: true}}, []Kind{Lost}},
		{"unknown at the end", 1 * s, 2 * s, Quorum, []check{{began: 50 * s, verdict: unknown, final: true}}, []Kind{Lost}},
		{"unsure at the end", 1 * s, 2 * s, Unsure, []check{{began: 50 * s, verdict: active, final: true}}, nil},
		{"over at the end", 1 * s, 2 * s, Quorum, []check{{began: 110 * s, verdict: active, final: true}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := New(Config{MaxStaleness: 3 * s, Slack: 10 * s, Overdue: 30 * s, Behind: 3 * s})
			now := test.asked
			j.now = func() time.Duration { return now }
			rev := j.Invoke("id", 100*s)
			now = test.ended
			j.End(rev, test.outcome)
			r := j.Replica("r")
			for _, c := range test.checks {
				if c.restart {
					r.Restarted()
				}
				if now = c.began; c.final {
					r.Final(rev, c.verdict)
				} else {
					r.Saw(rev, c.began, c.ended, c.verdict)
				}
			}
			var got []Kind
			for _, v := range j.Violations() {
				got = append(got, v.Kind)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%v, want %v", j.Violations(), test.want)
			}
		})
	}
}

func TestInnocent(t *testing.T) {
	j := New(Config{})
	r := j.Replica("r")
	for _, v := range []revocation.Status{active, unknown, revoked} {
		r.Innocent("id", v)
	}
	c := j.Counts()
	if c.Checks != 3 || c.Unknown != 1 || c.Broken[False] != 1 || len(c.Broken) != 1 {
		t.Errorf("%+v", c)
	}
}

// Quantiles are those of the checks that began after the acknowledgement, to a quarter.
func TestDelay(t *testing.T) {
	j := New(Config{MaxStaleness: 3 * s, Slack: s})
	rev := j.Invoke("id", time.Hour)
	j.End(rev, Quorum)
	_, at := rev.Outcome()
	r := j.Replica("r")
	for i := range 1000 { // of ten that come at the same time one is answered active: the earlier, the more
		r.Saw(rev, at+time.Duration(i+1)*time.Millisecond, at+time.Hour/2, []revocation.Status{active, revoked}[min(1, i/100)])
	}
	r.Saw(rev, at-1, at, active) // begun before
	got := j.Counts().Delay
	if got.P50 != 0 || got.P95 < 50*time.Millisecond || got.P95 > 63*time.Millisecond || got.P99 < 90*time.Millisecond || got.P999 > 100*time.Millisecond || got.Max != 100*time.Millisecond {
		t.Errorf("%+v", got)
	}
	for d := time.Duration(0); d < 100*time.Second; d = d*9/8 + time.Microsecond {
		if b := bucket(d); upTo(b) < d.Truncate(time.Microsecond) || b > 0 && upTo(b-1) > d {
			t.Errorf("%s is in bucket %d, up to %s", d, b, upTo(b))
		}
	}
}

// A run that did too little is invalid, whatever it did not find.
func TestGate(t *testing.T) {
	j := New(Config{})
	j.End(j.Invoke("a", s), Quorum)
	j.Fault("kill")
	if err := j.Counts().Valid(Gate{Acknowledged: 1, Faults: map[string]int{"kill": 1}}); err != nil {
		t.Error(err)
	}
	for _, g := range []Gate{{Acknowledged: 2}, {Checks: 1}, {Judged: 1}, {Faults: map[string]int{"kill": 2}}, {Faults: map[string]int{"pause": 1}}} {
		if err := j.Counts().Valid(g); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", g, err)
		}
	}
}

// All violations are counted, a hundred are kept.
func TestManyViolations(t *testing.T) {
	j := New(Config{})
	r := j.Replica("r")
	for range maxViolations + 1 {
		r.Innocent("id", revoked)
	}
	if got, kept := j.Counts().Broken[False], len(j.Violations()); got != maxViolations+1 || kept != maxViolations {
		t.Errorf("%d counted, %d kept", got, kept)
	}
}

func BenchmarkSaw(b *testing.B) {
	j := New(Config{MaxStaleness: s, Slack: s})
	r := j.Replica("r")
	rev := j.Invoke("id", time.Hour)
	j.End(rev, Quorum)
	b.ReportAllocs()
	for b.Loop() {
		r.Saw(rev, 2*s, 2*s, revoked)
	}
}

// What is simulated counts where the reference does not ask for real processes.
func TestTotals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reports")
	t.Setenv("REVOKD_REPORT", path)
	for _, r := range []Report{
		{Test: "TestNemesis", Counts: Counts{Acknowledged: 5, Checks: 7, Faults: map[string]int{"kill": 2, "wipe": 1, "partition/halves": 3}, Broken: map[Kind]int{Lost: 1}}},
		{Test: Simulation, Counts: Counts{Acknowledged: 20_000_000, Faults: map[string]int{"kill": 3000, "partition/other": 497}}},
	} {
		if err := r.Save(); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reports, err := ReadReports(file)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, total := range Totals(Night, reports) {
		got[total.Name] = fmt.Sprint(total.Real, total.Simulated, total.Enough(1))
	}
	for name, want := range map[string]string{
		"revocations acknowledged": "5 20000000 false", "kill -9 and start": "3 3000 false", "partitions": "3 497 true", "disk faults, damage, lost directories": "1 0 false", "broken promises": "1 0 true",
	} {
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
	for _, test := range []struct {
		t    Total
		want bool
	}{
		{Total{Real: 12, Simulated: 18, Least: Least{12, 30}}, true}, {Total{Real: 11, Simulated: 100, Least: Least{12, 30}}, false}, {Total{Real: 12, Simulated: 17, Least: Least{12, 30}}, false}, {Total{}, true},
	} {
		if test.t.Enough(1) != test.want {
			t.Errorf("%+v: %v", test.t, !test.want)
		}
	}
	if _, err := ReadReports(strings.NewReader("{}\n{")); err == nil {
		t.Error("half a report is read")
	}
}
