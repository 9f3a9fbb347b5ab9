package sim

import (
	"bufio"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// Script is a history in text. Lines, in the order in which they happen; # begins a comment:
//
//	nodes 3, clients 1, seed 7         who there is; before everything else
//	set log=600 audit=50ms window=3    small logs (bytes), audits, windows (records)
//	chance 700ms                       first, writes and faults by chance for so long
//	mutants raise-early no-pull        rules without which the history must break a promise
//	write n1 5 or 5..40 [at 17 [2s]]   writes keys at a node, with that threshold, or a later one each time, that ends so long after the beginning, or in an hour
//	stream n1 60ms                     one of a thousand keys every 200 us for so long, from here on
//	acked n1 5 yes, no                 whether the last write of a key there is acknowledged by a majority
//	cut n1 n2, cut n1 > n2, heal       links, both ways or one; * is all others
//	crash n1, wipe n1, clone n1        the last with an empty disk and the names of the origins that it had before
//	start n1
//	rot n1 5                           its disk loses a key, without a sign, and it starts again
//	slow n1 400ms                      its disk
//	refuse n1 400ms                    its disk takes nothing for so long
//	full n1 10ms                       its memory takes nothing for so long
//	fail n1                            the next commit to its disk fails, and is there all the same
//	roll n1                            it starts again with the other version of the program
//	pause n1 300ms                     a node that does nothing for a while
//	clock n1 -10s                      guarded and wall time
//	follow c1 n2                       a client goes to a node
//	run 100ms
//	repaired                           an audit must have brought something
//	level                              all heals, and all must be equal; also at the end
type Script struct {
	Mutants []string
	text    string
}

// ParseScript reads the lines that say what must break.
func ParseScript(text string) (s Script) {
	s.text = text
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "mutants" {
			s.Mutants = append(s.Mutants, f[1:]...)
		}
	}
	return s
}

// Run carries out a script, perhaps without a rule. An error is a mistake in the script.
func (s Script) Run(mutant string) (Result, error) {
	o := Options{Mutant: mutant, Nodes: 3}
	var cfg []func(*replication.Config)
	o.Config = func(c *replication.Config) {
		for _, fn := range cfg {
			fn(c)
		}
	}
	var w *World
	lines := bufio.NewScanner(strings.NewReader(s.text))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		f := strings.Fields(text)
		if len(f) == 0 || f[0] == "mutants" {
			continue
		}
		var err error
		switch f[0] {
		case "nodes":
			o.Nodes, err = strconv.Atoi(f[1])
		case "clients":
			o.Clients, err = strconv.Atoi(f[1])
		case "seed":
			o.Seed, err = strconv.ParseUint(f[1], 10, 64)
		case "set":
			var fn func(*replication.Config)
			fn, err = setting(f[1:])
			cfg = append(cfg, fn)
		default:
			if w == nil {
				w = New(o)
				w.settleVoters()
			}
			if len(w.result.Failures) > 0 {
				return w.Result(), nil
			}
			err = w.command(f)
		}
		if err != nil {
			return Result{}, fmt.Errorf("line %d: %w", n, err)
		}
	}
	w.quiesce(20 * time.Second)
	return w.Result(), nil
}

func setting(fields []string) (func(*replication.Config), error) {
	values := make(map[string]time.Duration)
	for _, f := range fields {
		name, v, _ := strings.Cut(f, "=")
		d, err := time.ParseDuration(v)
		if n, errInt := strconv.Atoi(v); errInt == nil {
			d, err = time.Duration(n), nil
		}
		if err != nil {
			return nil, err
		}
		values[name] = d
	}
	return func(c *replication.Config) {
		for name, v := range values {
			switch name {
			case "log":
				c.LogBytes = int(v)
			case "window":
				c.Window = int(v)
			case "scans":
				c.Scans = int(v)
			case "piece":
				c.ScanPiece = int(v)
			case "audit":
				c.AuditEvery = v
			case "probe":
				c.ProbeEvery = v
			}
		}
	}, nil
}

func (w *World) command(f []string) error {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	d, _ := time.ParseDuration(arg(len(f) - 1))
	h := w.byName[arg(1)]
	switch f[0] {
	case "run":
		w.run(w.now + d)
		return nil
	case "chance":
		w.calm = false
		w.workload(w.now + d)
		w.nemesis(w.now + d)
		w.run(w.now + d)
		return nil
	case "level":
		w.quiesce(20 * time.Second)
		return nil
	case "heal":
		clear(w.cut)
		w.release()
		return nil
	case "repaired":
		n := uint64(0)
		for _, h := range w.nodes {
			n += h.core.Stats().Repaired
		}
		if n == 0 {
			w.failf("no audit has repaired anything")
		}
		return nil
	case "cut":
		both := arg(2) != ">"
		if h == nil {
			return fmt.Errorf("no host %q", arg(1))
		}
		for _, x := range w.hosts {
			if x != h && (x.name == arg(len(f)-1) || arg(len(f)-1) == "*") {
				w.cut[[2]*host{h, x}] = true
				if both {
					w.cut[[2]*host{x, h}] = true
				}
			}
		}
		return nil
	}
	if h == nil {
		return fmt.Errorf("no host %q", arg(1))
	}
	switch f[0] {
	case "write":
		from, to, _ := strings.Cut(arg(2), "..")
		first, err := strconv.ParseUint(from, 10, 64)
		last := first
		if err == nil && to != "" {
			last, err = strconv.ParseUint(to, 10, 64)
		}
		value := epoch + int64(len(w.writes))
		if arg(3) == "at" {
			var v int64
			v, err = strconv.ParseInt(arg(4), 10, 64)
			value = epoch + v
		}
		span := time.Hour
		if len(f) > 5 && err == nil {
			span, err = time.ParseDuration(f[5])
		}
		for k := first; k <= last && err == nil; k++ {
			r := makeRecord(k, value, uint32(epoch/1000+int64(span/time.Second)))
			if h.next {
				r = nextRecord(r, k)
			}
			h.write(r, replication.Urgent)
		}
		return err
	case "stream":
		end := w.now + d
		var next func()
		next = func() {
			if w.now < end {
				h.write(makeRecord(w.rng.Uint64N(1000), epoch+int64(len(w.writes)), uint32(epoch/1000)+3600), replication.Urgent)
				w.after(200*time.Microsecond, next)
			}
		}
		next()
	case "acked":
		k, err := strconv.ParseUint(arg(2), 10, 64)
		r := makeRecord(k, 0, 1)
		if h.next {
			r = nextRecord(r, k)
		}
		i := len(w.writes) - 1
		for i >= 0 && (w.writes[i].by != h.name || w.writes[i].record.Key() != r.Key()) {
			i--
		}
		if i < 0 {
			return fmt.Errorf("nothing was written")
		}
		if want := arg(3) == "yes"; want != w.writes[i].quorum {
			w.failf("a write of %s is acknowledged: %v", h.name, !want)
		}
		return err
	case "crash":
		h.stop()
	case "wipe":
		h.stop()
		h.wipe()
	case "clone":
		same := [2]replication.OriginID{h.own[0].id, h.own[1].id}
		for _, id := range same {
			w.ambiguous[id] = id != 0
		}
		h.stop()
		h.wipe()
		h.same = same
	case "start":
		h.start()
	case "rot":
		k, err := strconv.ParseUint(arg(2), 10, 64)
		r := makeRecord(k, 0, 1)
		h.stop()
		h.rotten = true
		h.disk.entries = slices.DeleteFunc(h.disk.entries, func(e entry) bool { return e.record.Key() == r.Key() })
		delete(h.disk.byKey, r.Key())
		h.start()
		return err
	case "slow":
		h.slow = d
	case "refuse":
		h.refuses = w.now + d
	case "full":
		s := h.store
		s.full = true
		w.after(d, func() { s.full = false })
	case "fail":
		h.fails = true
	case "roll":
		w.roll(h, time.Millisecond)
	case "pause":
		h.paused = w.now + d
	case "clock":
		h.wall, h.guarded = d.Milliseconds(), min(0, d.Milliseconds())
	case "follow":
		h.links[0].ends[1] = w.byName[arg(2)]
		if c := h.links[0].conn; c != nil {
			c.close(true)
		}
	default:
		return fmt.Errorf("what is %q?", f[0])
	}
	return nil
}
