package main

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Figure is one number with all its repetitions: what was measured, of whom, and at which size.
type Figure struct {
	Table   string             `json:"table"`   // the ID of the Table it stands in
	Subject string             `json:"subject"` // its row
	Metric  string             `json:"metric"`  // its column
	Unit    string             `json:"unit"`    // ns, us, ms, s, B, /s; empty: a count
	Samples []float64          `json:"samples"`
	Params  map[string]float64 `json:"params,omitempty"` // records, nodes, rate, writers: what it is a function of
}

// Table says how figures are shown together. The ratio compares a column of each row with that of the reference.
type Table struct {
	ID        string `json:"id"`
	Title     string `json:"title"`
	Reference string `json:"reference,omitempty"` // a subject
	Ratio     string `json:"ratio,omitempty"`     // a metric
	Higher    bool   `json:"higher,omitempty"`    // more of it is better
	Note      string `json:"note,omitempty"`
}

// Curve is a distribution, for the plots.
type Curve struct {
	Table   string    `json:"table"`
	Subject string    `json:"subject"`
	Unit    string    `json:"unit"`
	Values  []float64 `json:"values"`
	Shares  []float64 `json:"shares"` // of what was measured, up to the value
}

// Result is all that a scenario has to say. It is the raw data: report and plots are made from it.
type Result struct {
	Scenario  string      `json:"scenario"`
	Quick     bool        `json:"quick"`
	Began     time.Time   `json:"began"`
	Ended     time.Time   `json:"ended"`
	LoadBegan string      `json:"load_began"` // of the machine: what ran beside
	LoadEnded string      `json:"load_ended"`
	Machine   Environment `json:"machine"`
	Tables    []Table     `json:"tables"`
	Figures   []Figure    `json:"figures"`
	Curves    []Curve     `json:"curves,omitempty"`
	Absent    []string    `json:"absent,omitempty"` // competitors that were not measured, and why
	Notes     []string    `json:"notes,omitempty"`
	Failed    []string    `json:"failed,omitempty"`
}

// unstable is the spread above which a figure is marked: the distance of the quartiles over the median.
const unstable = 0.25

// spread returns median, least, greatest and the distance of the quartiles over the median of samples, of which there must be one.
func spread(samples []float64) (median, least, most, quartiles float64) {
	s := slices.Sorted(slices.Values(samples))
	at := func(q float64) float64 {
		x := q * float64(len(s)-1)
		i := int(x)
		if i+1 == len(s) {
			return s[i]
		}
		return s[i] + (x-float64(i))*(s[i+1]-s[i])
	}
	median = at(0.5)
	if median != 0 {
		quartiles = (at(0.75) - at(0.25)) / median
	}
	return median, s[0], s[len(s)-1], quartiles
}

// Median of the repetitions.
func (f *Figure) Median() float64 { m, _, _, _ := spread(f.Samples); return m }

// Unstable reports whether the repetitions disagree.
func (f *Figure) Unstable() bool { _, _, _, q := spread(f.Samples); return q > unstable }

func (r *Result) table(t Table) {
	if !slices.ContainsFunc(r.Tables, func(have Table) bool { return have.ID == t.ID }) {
		r.Tables = append(r.Tables, t)
	}
}

// add notes one repetition.
func (r *Result) add(table, subject, metric, unit string, value float64, params map[string]float64) {
	for i := range r.Figures {
		f := &r.Figures[i]
		if f.Table == table && f.Subject == subject && f.Metric == metric {
			f.Samples = append(f.Samples, value)
			return
		}
	}
	r.Figures = append(r.Figures, Figure{Table: table, Subject: subject, Metric: metric, Unit: unit, Samples: []float64{value}, Params: params})
}

func (r *Result) absent(who string, why error) {
	text := fmt.Sprintf("%s: %v", who, why)
	if !slices.Contains(r.Absent, text) {
		progress("absent: %s", text)
		r.Absent = append(r.Absent, text)
	}
}

func (r *Result) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.Notes, text) {
		r.Notes = append(r.Notes, text)
	}
}

// fail notes what went wrong; the scenario goes on with what does not need it.
func (r *Result) fail(what string, err error) {
	progress("FAILED: %s: %v", what, err)
	r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", what, err))
}

func (r *Result) write(dir string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Scenario+".json"), append(b, '\n'), 0o644)
}

// readResults returns what a directory holds, in the order of the scenarios.
func readResults(dir string) ([]*Result, error) {
	var all []*Result
	for _, s := range scenarios() {
		b, err := os.ReadFile(filepath.Join(dir, s.name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := new(Result)
		if err := json.Unmarshal(b, r); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// writeCSV writes every repetition of every figure, one on each line.
func writeCSV(dir string, all []*Result) error {
	f, err := os.Create(filepath.Join(dir, "figures.csv"))
	if err != nil {
		return err
	}
	defer f.Close()
	w := csv.NewWriter(f)
	_ = w.Write([]string{"scenario", "table", "subject", "metric", "unit", "repetition", "value"}) // Error tells
	for _, r := range all {
		for _, fig := range r.Figures {
			for i, v := range fig.Samples {
				_ = w.Write([]string{r.Scenario, fig.Table, fig.Subject, fig.Metric, fig.Unit, strconv.Itoa(i + 1), strconv.FormatFloat(v, 'g', 6, 64)})
			}
		}
	}
	w.Flush()
	return w.Error()
}
