package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Report is what a run leaves behind for those who add up a lane.
type Report struct {
	Test    string
	Seed    uint64 `json:",omitempty"`
	Nodes   int    `json:",omitempty"`
	Rounds  int
	Seconds int `json:",omitempty"`
	Counts  Counts
}

// Simulation is the Test of a report about simulated clusters.
const Simulation = "simulation"

// Save appends a line to the file that REVOKD_REPORT names, and does nothing if there is none.
func (r Report) Save() error {
	path := os.Getenv("REVOKD_REPORT")
	if path == "" {
		return nil
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(append(line, '\n'))
	return errors.Join(err, file.Close())
}

// ReadReports reads what [Report.Save] has written.
func ReadReports(from io.Reader) ([]Report, error) {
	var all []Report
	d := json.NewDecoder(from)
	for {
		var r Report
		switch err := d.Decode(&r); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("report %d: %w", len(all)+1, err)
		}
		all = append(all, r)
	}
}

// Total is one quantity of a lane: what was seen of it, and what a night has to see.
type Total struct {
	Name      string
	Real      int64 // with real processes
	Simulated int64
	Night     int64 // 0: any number
	OnlyReal  bool  // what is simulated does not count
}

// Enough reports whether that is as much as in so many nights.
func (t Total) Enough(nights float64) bool {
	seen := t.Real
	if !t.OnlyReal {
		seen += t.Simulated
	}
	return float64(seen) >= nights*float64(t.Night)
}

// quantities of a lane; what a night has to see is from the reference of the fault programme. What ends in kill -9 counts as that too.
var quantities = []struct {
	name  string
	night int64
	real  bool
	of    func(Counts) int64
}{
	{"revocations acknowledged", 20_000_000, true, func(c Counts) int64 { return c.Acknowledged }},
	{"revocations of which nobody knows", 0, false, func(c Counts) int64 { return c.Unsure }},
	{"checks", 200_000_000, true, func(c Counts) int64 { return c.Checks }},
	{"checks that could have shown a loss", 0, false, func(c Counts) int64 { return c.Judged }},
	{"kill -9 and start", 3000, true, faults("kill", "kill/all", "disk", "wipe", "damage")},
	{"partitions", 500, false, faults("partition/halves", "partition/isolate", "partition/oneway", "partition/bridge", "partition/other")},
	{"pauses", 500, false, faults("pause")},
	{"clock steps", 500, false, faults("clock")},
	{"disk faults, damage, lost directories", 1000, false, faults("disk", "wipe", "damage")},
	{"rolling upgrades and roll-backs", 20, true, faults("upgrade/rolling")},
	{"broken promises", 0, false, func(c Counts) int64 {
		sum := 0
		for _, n := range c.Broken {
			sum += n
		}
		return int64(sum)
	}},
}

// faults counts those of some names.
func faults(names ...string) func(Counts) int64 {
	return func(c Counts) int64 {
		sum := 0
		for _, name := range names {
			sum += c.Faults[name]
		}
		return int64(sum)
	}
}

// Totals adds up reports.
func Totals(reports []Report) []Total {
	var all []Total
	for _, q := range quantities {
		t := Total{Name: q.name, Night: q.night, OnlyReal: q.real}
		for _, r := range reports {
			if n := q.of(r.Counts); r.Test == Simulation {
				t.Simulated += n
			} else {
				t.Real += n
			}
		}
		all = append(all, t)
	}
	return all
}
