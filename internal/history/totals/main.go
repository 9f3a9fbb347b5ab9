// Command totals adds up the reports of a lane of the fault programme, prints them as a Markdown table beside what the lane has to see, and ends with status 1 if there was less or a
// promise was broken:
//
//	go run ./internal/history/totals -lane night -of 0.33 histories.json
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/revokd/revokd/internal/history"
)

func main() {
	lane := flag.String("lane", string(history.Night), "ci or night")
	of := flag.Float64("of", 1, "how many runs of the lane")
	flag.Parse()
	if err := run(history.Lane(*lane), flag.Arg(0), *of); err != nil {
		fmt.Fprintln(os.Stderr, "totals:", err)
		os.Exit(1)
	}
}

func run(lane history.Lane, path string, runs float64) error {
	if lane != history.CI && lane != history.Night {
		return fmt.Errorf("-lane %q: ci or night", lane)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	reports, err := history.ReadReports(file)
	if err != nil {
		return err
	}
	fmt.Println("| | real processes | simulated | at least |")
	fmt.Println("|---|--:|--:|--:|")
	few, broken := 0, false
	for _, t := range history.Totals(lane, reports) {
		var least []string
		if n := int64(runs * float64(t.Least.Real)); n > 0 {
			least = append(least, fmt.Sprintf("%d (real)", n))
		}
		if n := int64(runs * float64(t.Least.All)); n > 0 {
			least = append(least, fmt.Sprint(n))
		}
		if !t.Enough(runs) {
			few++
			least = append(least, "too few")
		}
		fmt.Printf("| %s | %d | %d | %s |\n", t.Name, t.Real, t.Simulated, strings.Join(least, ", "))
		if t.Name == history.Broken && t.Real+t.Simulated > 0 {
			broken = true
		}
	}
	if broken {
		return errors.New("promises were broken")
	}
	if few > 0 {
		return fmt.Errorf("%d quantities are too small: the run is invalid", few)
	}
	return nil
}
