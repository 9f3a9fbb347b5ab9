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

// Lane is what a report is held against.
type Lane string

// The lanes; a release is ten nights.
const (
	CI    Lane = "ci"
	Night Lane = "night"
)

// Least is how much of something a lane has to see: with real processes, and in all.
type Least struct{ Real, All int64 }

// Total is one quantity of a lane: what was seen of it, and what has to be.
type Total struct {
	Name      string
	Real      int64 // with real processes
	Simulated int64
	Least     Least // the zero Least: any number
}

// Enough reports whether that is as much as in so many runs of the lane.
func (t Total) Enough(runs float64) bool {
	return float64(t.Real) >= runs*float64(t.Least.Real) && float64(t.Real+t.Simulated) >= runs*float64(t.Least.All)
}

// Broken names the Total that has to be 0.
const Broken = "broken promises"

// quantities of a lane; what it has to see is from the reference of the fault programme. What ends in kill -9 counts as that too.
var quantities = []struct {
	name      string
	ci, night Least
	of        func(Counts) int64
}{
	{"revocations acknowledged", Least{500_000, 0}, Least{20_000_000, 0}, func(c Counts) int64 { return c.Acknowledged }},
	{"revocations of which nobody knows", Least{}, Least{}, func(c Counts) int64 { return c.Unsure }},
	{"checks", Least{5_000_000, 0}, Least{200_000_000, 0}, func(c Counts) int64 { return c.Checks }},
	{"checks that could have shown a loss", Least{}, Least{}, func(c Counts) int64 { return c.Judged }},
	{"kill -9 and start", Least{300, 0}, Least{3000, 0}, faults("kill", "kill/all", "disk", "wipe", "damage")},
	{"partitions", Least{12, 30}, Least{0, 500}, faults("partition/halves", "partition/isolate", "partition/oneway", "partition/bridge", "partition/other")},
	{"pauses", Least{12, 30}, Least{0, 500}, faults("pause")},
	{"clock steps", Least{0, 50}, Least{0, 500}, faults("clock")},
	{"disk faults, damage, lost directories", Least{0, 100}, Least{0, 1000}, faults("disk", "wipe", "damage")},
	{"rolling upgrades and roll-backs", Least{1, 0}, Least{20, 0}, faults("upgrade/rolling")},
	{Broken, Least{}, Least{}, func(c Counts) int64 {
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
func Totals(lane Lane, reports []Report) []Total {
	var all []Total
	for _, q := range quantities {
		t := Total{Name: q.name, Least: q.night}
		if lane == CI {
			t.Least = q.ci
		}
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
