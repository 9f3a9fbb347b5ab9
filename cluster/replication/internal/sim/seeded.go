package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// Seeded fills in what o leaves open by its seed: how many nodes and clients, for how long, how small logs, windows and intervals are.
func Seeded(seed uint64, o Options) Options {
	rng := rand.New(rand.NewPCG(seed, 3))
	o.Seed = seed
	nodes, clients, span := 3+rng.IntN(3)+rng.IntN(2)*rng.IntN(5), rng.IntN(3), time.Duration(500+rng.IntN(2000))*time.Millisecond
	logBytes := []int{600, 2_000, 20_000, 1 << 20}[rng.IntN(4)]
	window := []int{3, 50, 16384}[rng.IntN(3)]
	piece := []int{1, 5, 4096}[rng.IntN(3)]
	scans := 1 + rng.IntN(4)
	audit := []time.Duration{-1, -1, 200 * time.Millisecond}[rng.IntN(3)]
	if o.Rogue { // what it has others believe only an audit finds
		audit = 200 * time.Millisecond
	}
	if o.Nodes == 0 {
		o.Nodes = min(nodes, 9)
	}
	if o.Clients < 0 {
		o.Clients = clients
	}
	if o.For == 0 {
		o.For = span
	}
	earlier := o.Config
	o.Config = func(c *replication.Config) {
		c.LogBytes, c.Window, c.Scans, c.ScanPiece, c.AuditEvery = logBytes, window, scans, piece, audit
		if earlier != nil {
			earlier(c)
		}
	}
	return o
}

// Add adds the counts of another run.
func (r *Result) Add(o *Result) {
	r.Trace = mix(r.Trace, o.Trace)
	r.Events += o.Events
	r.Virtual += o.Virtual
	r.Messages += o.Messages
	r.Bytes += o.Bytes
	r.Writes += o.Writes
	r.Quorum += o.Quorum
	r.Crashes += o.Crashes
	r.Wipes += o.Wipes
	r.Rolls += o.Rolls
	r.Cuts += o.Cuts
	r.Pauses += o.Pauses
	r.Steps += o.Steps
	r.Refusals += o.Refusals
	r.Breaks += o.Breaks
	r.Scans += o.Scans
	r.Pulls += o.Pulls
	r.Reissued += o.Reissued
	r.Repaired += o.Repaired
	r.Checked += o.Checked
}

func (r Result) String() string {
	return fmt.Sprintf("trace %016x, %d events, %v virtual, %d messages, %d bytes, %d writes (%d at quorum), %d crashes, %d wipes, %d changes of version, %d cuts, %d pauses, %d clock steps, %d refusals of a disk, %d sessions ended, %d scans, %d pulls, %d reissued, %d repaired, %d looked up in fresh views",
		r.Trace, r.Events, r.Virtual.Round(time.Millisecond), r.Messages, r.Bytes, r.Writes, r.Quorum, r.Crashes, r.Wipes, r.Rolls, r.Cuts, r.Pauses, r.Steps, r.Refusals, r.Breaks, r.Scans, r.Pulls, r.Reissued, r.Repaired, r.Checked)
}
