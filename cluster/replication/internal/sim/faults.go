package sim

import (
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// Run simulates a cluster to its end: writes and faults, then calm, twice.
func Run(o Options) Result {
	w := New(o)
	w.settleVoters()
	for range 2 {
		if len(w.result.Failures) > 0 || o.Calm {
			break
		}
		w.calm = false
		end := w.now + w.o.For/2
		w.workload(end)
		w.nemesis(end)
		w.run(end)
		w.quiesce(20 * time.Second)
	}
	return w.Result()
}

// Result returns what has happened so far.
func (w *World) Result() Result {
	w.result.Trace, w.result.Virtual = w.trace, w.now
	return w.result
}

// settleVoters runs until all nodes vote.
func (w *World) settleVoters() {
	if w.large {
		return
	}
	for w.now < 20*time.Second && len(w.result.Failures) == 0 {
		w.run(w.now + 20*time.Millisecond)
		all := true
		for _, h := range w.hosts {
			all = all && (h.votes || h.client && h.voters.Hash != 0 || h.rogue != nil)
		}
		if all {
			w.setup = false
			return
		}
	}
	w.failf("the voters never agree")
}

// workload writes by chance: few keys, so that writes meet.
func (w *World) workload(end time.Duration) {
	keys := uint64(w.rng.IntN(60) + 3)
	every := w.between(500*time.Microsecond, 20*time.Millisecond)
	short := w.chance(0.3)
	var next func()
	next = func() {
		if w.now >= end || len(w.result.Failures) > 0 {
			return
		}
		h := w.nodes[w.rng.IntN(len(w.nodes))]
		n := 1
		if w.chance(0.05) {
			n = w.rng.IntN(100)
		}
		for range n {
			seconds := uint32(epoch/1000) + 3600 + uint32(w.rng.IntN(5))
			if short && w.chance(0.5) {
				seconds = uint32(epoch/1000) + uint32(w.now/time.Second) + uint32(w.rng.IntN(3))
			}
			lane := replication.Lane(w.rng.IntN(2))
			key := w.rng.Uint64N(keys)
			r := makeRecord(key, epoch+int64(w.rng.IntN(50)), seconds)
			if h.next {
				r = nextRecord(r, key)
			}
			h.write(r, lane)
		}
		w.after(w.between(every/2, every*2), next)
	}
	w.after(0, next)
}

// nemesis breaks things until a time.
func (w *World) nemesis(end time.Duration) {
	pause := w.between(10*time.Millisecond, 80*time.Millisecond)
	wipes, steps, disks, versions := w.chance(0.4), w.chance(0.3), w.chance(0.4), w.chance(0.4)
	var next func()
	next = func() {
		if w.now >= end || len(w.result.Failures) > 0 {
			return
		}
		w.mark(6)
		h := w.hosts[w.rng.IntN(len(w.hosts))]
		switch k := w.rng.IntN(24); {
		case k < 4:
			if l := w.links[w.rng.IntN(len(w.links))]; l.conn != nil {
				l.conn.close(w.chance(0.7))
			}
		case k < 7: // one way
			w.sever([]*host{h}, w.others(h, true), false, w.between(10*time.Millisecond, 600*time.Millisecond))
		case k < 9:
			w.sever([]*host{h}, w.others(h, false), true, w.between(50*time.Millisecond, 800*time.Millisecond))
		case k < 11:
			var a, b []*host
			for _, x := range w.hosts {
				if w.chance(0.5) {
					a = append(a, x)
				} else {
					b = append(b, x)
				}
			}
			w.sever(a, b, true, w.between(50*time.Millisecond, 800*time.Millisecond))
		case k < 15:
			w.crash(h, wipes && w.chance(0.4) && w.rogue == nil, w.between(time.Millisecond, 300*time.Millisecond))
		case k < 17:
			if h.up {
				w.result.Pauses++
				h.paused = w.now + w.between(5*time.Millisecond, 500*time.Millisecond)
			}
		case k < 18 && steps && w.rogue == nil: // whose clock cannot be believed judges no record
			w.result.Steps++
			h.wall = int64(w.between(-time.Hour, time.Hour) / time.Millisecond)
			h.guarded = int64(w.between(-20*time.Second, 0) / time.Millisecond)
		case k >= 22:
			if disks && !h.client { // full, or failing: memory goes on
				h.refuses = w.now + w.between(5*time.Millisecond, 600*time.Millisecond)
			}
		case k >= 20:
			if versions && h.up {
				w.roll(h, w.between(time.Millisecond, 100*time.Millisecond))
			}
		case h.client:
			h.links[0].move()
		case h.up && k == 19:
			s := h.store
			s.full = true
			w.after(w.between(5*time.Millisecond, 400*time.Millisecond), func() { s.full = false })
		}
		w.after(w.between(pause/2, pause*2), next)
	}
	w.after(0, next)
}

// others are all hosts but one, or some of them.
func (w *World) others(h *host, some bool) []*host {
	var list []*host
	for _, x := range w.hosts {
		if x != h && (!some || w.chance(0.5)) {
			list = append(list, x)
		}
	}
	return list
}

// sever cuts from a to b, perhaps both ways, for a while.
func (w *World) sever(a, b []*host, both bool, d time.Duration) {
	w.result.Cuts++
	set := func(cut bool) {
		for _, x := range a {
			for _, y := range b {
				w.cut[[2]*host{x, y}] = cut
				if both {
					w.cut[[2]*host{y, x}] = cut
				}
			}
		}
		if !cut {
			w.release()
		}
	}
	set(true)
	w.after(d, func() { set(false) })
}

// crash stops a host and starts it again after a while, perhaps with an empty disk, if the promises still hold then.
func (w *World) crash(h *host, wipe bool, d time.Duration) {
	if !h.up {
		return
	}
	h.stop()
	if wipe && !h.client && w.mayLose(h) {
		h.wipe()
	}
	w.after(d, func() {
		if !h.up {
			h.start()
		}
	})
}

// roll starts a host again with the other version of the program.
func (w *World) roll(h *host, d time.Duration) {
	h.next = !h.next
	w.result.Rolls++
	w.crash(h, false, d)
}

// mayLose reports whether another disk may be lost: no more at a time than a majority can miss, and one that was lost counts until it votes again.
func (w *World) mayLose(h *host) bool {
	n := 1
	for _, x := range w.nodes {
		if x != h && (x.lost || !x.up || !x.votes) {
			n++
		}
	}
	return n <= len(w.nodes)-(len(w.nodes)/2+1)
}
