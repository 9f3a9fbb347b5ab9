// Command simrun simulates clusters: many seeds, or one with its trace. It ends with status 1 if a promise is broken.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/revokd/revokd/cluster/replication/internal/sim"
	"github.com/revokd/revokd/internal/history"
)

func main() {
	var o sim.Options
	seed := flag.Uint64("seed", 1, "the first seed")
	seeds := flag.Uint64("seeds", 1, "how many")
	flag.IntVar(&o.Nodes, "nodes", 0, "nodes; 0: 3 to 9, by the seed")
	flag.IntVar(&o.Clients, "clients", -1, "client replicas; -1: by the seed")
	flag.DurationVar(&o.For, "for", 0, "virtual time of faults; 0: by the seed")
	flag.StringVar(&o.Mutant, "mutant", "", "a rule to leave out")
	flag.BoolVar(&o.Rogue, "rogue", false, "a host that everybody trusts sends what it likes")
	spread := flag.Int("spread", 0, "copy 400 records through a cluster of that many nodes, with one link in ten dead, twice")
	flag.Parse()
	debug.SetGCPercent(400) // much garbage, and the machine has room for it
	if *spread > 0 {
		debug.SetGCPercent(1600) // a thousand nodes are half a gigabyte, and what they leave three
		spreadOut(*seed, *spread)
		return
	}
	began := time.Now()
	var total sim.Result
	failed := 0
	shown := began
	for s := *seed; s < *seed+*seeds; s++ {
		r := sim.Run(sim.Seeded(s, o))
		total.Add(&r)
		if len(r.Failures) > 0 {
			failed++
			fmt.Printf("seed %d: %s\n", s, r.Failures[0])
			if failed == 20 {
				break
			}
		}
		if *seeds > 1 && time.Since(shown) > 10*time.Second {
			shown = time.Now()
			fmt.Printf("%d of %d seeds, %d failed, %v\n", s-*seed+1, *seeds, failed, time.Since(began).Round(time.Second))
		}
	}
	fmt.Printf("%d seeds from %d, %d failed, %.2f cluster-hours, %v\n%v\n", *seeds, *seed, failed, total.Virtual.Hours(), time.Since(began).Round(time.Millisecond), total)
	r := history.Report{Test: history.Simulation, Seed: *seed, Rounds: int(*seeds), Seconds: int(total.Virtual.Seconds()), Counts: history.Counts{
		Acknowledged: int64(total.Quorum), Checks: int64(total.Checked), Judged: int64(total.Checked),
		Broken: map[history.Kind]int{history.Lost: failed},
		Faults: map[string]int{
			"kill": total.Crashes, "wipe": total.Wipes, "partition/other": total.Cuts, "pause": total.Pauses, "clock": total.Steps, "disk": total.Refusals, "upgrade/rolling": total.Rolls,
		},
	}}
	if err := r.Save(); err != nil {
		fmt.Println(err)
		failed++
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func spreadOut(seed uint64, nodes int) {
	var traces [2]uint64
	for i := range traces {
		began := time.Now()
		r := sim.RunSpread(seed, nodes, 400)
		traces[i] = r.Trace
		fmt.Printf("%d nodes, %d of %d links dead, %d copies: p50 %v, p99 %v, most %v; took %v\n%v\n",
			nodes, r.Dead, r.Links, r.Copies, r.P50, r.P99, r.Max, time.Since(began).Round(time.Millisecond), r.Result)
		if len(r.Failures) > 0 {
			fmt.Println(r.Failures)
			os.Exit(1)
		}
	}
	if traces[0] != traces[1] {
		fmt.Println("the same seed has another trace")
		os.Exit(1)
	}
}
