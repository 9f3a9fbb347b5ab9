// Command totals adds up the reports of a lane of the fault programme, prints them as a Markdown table beside what a night has to see, and ends with status 1 if there was less:
//
//	go run ./internal/history/totals -of 0.33 histories.json
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/revokd/revokd/internal/history"
)

func main() {
	of := flag.Float64("of", 1, "how many nights")
	flag.Parse()
	if err := run(flag.Arg(0), *of); err != nil {
		fmt.Fprintln(os.Stderr, "totals:", err)
		os.Exit(1)
	}
}

func run(path string, nights float64) error {
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
	few := 0
	for _, t := range history.Totals(reports) {
		least := ""
		if t.Night > 0 {
			least = fmt.Sprint(int64(nights * float64(t.Night)))
			if t.OnlyReal {
				least += " (real)"
			}
		}
		if !t.Enough(nights) {
			few++
			least += ": too few"
		}
		fmt.Printf("| %s | %d | %d | %s |\n", t.Name, t.Real, t.Simulated, least)
	}
	if few > 0 {
		return fmt.Errorf("%d quantities are too small: the run is invalid", few)
	}
	return nil
}
