package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/revokd/revokd/client"
)

// holdArg makes this program fill one store and say what it takes: each is measured in a process of its own.
const holdArg = "-hold"

// held is what such a process says.
type held struct {
	Heap   int64   `json:"heap"`   // live bytes on the Go heap
	RSS    int64   `json:"rss"`    // more than the process had before
	Stated int64   `json:"stated"` // by the store itself, of what it holds outside the heap; 0: it holds nothing there
	Lookup int64   `json:"lookup"` // of these, what a lookup touches
	GC     float64 `json:"gc_ms"`  // one collection
}

// holders fill stores in memory. arg is the address of an agent for clients.
var holders = []struct {
	name string
	fill func(n int, arg string) (keep any, stated, lookup int64, err error)
}{
	{"revokd table", func(n int, _ string) (any, int64, int64, error) {
		t, err := newTable(n, 1, time.Now())
		if err != nil {
			return nil, 0, 0, err
		}
		s := t.Stats(time.Now().UnixMilli())
		return t, s.Bytes, s.LookupBytes, nil
	}},
	{"revokd client, Full", func(_ int, arg string) (any, int64, int64, error) { return holdClient(arg, client.Full) }},
	{"revokd client, Filter", func(_ int, arg string) (any, int64, int64, error) { return holdClient(arg, client.Filter) }},
	{"map[string]int64 + RWMutex", func(n int, _ string) (any, int64, int64, error) { return mapSubject(n, time.Now()), 0, 0, nil }},
	{"sync.Map", func(n int, _ string) (any, int64, int64, error) { return syncMapSubject(n, time.Now()), 0, 0, nil }},
	{"otter", func(n int, _ string) (any, int64, int64, error) { s, err := otterSubject(n); return s, 0, 0, err }},
	{"KrakenD bloomfilter, optimal, 1e-3", func(n int, _ string) (any, int64, int64, error) {
		return krakendSubject(n, new(atomic.Int64)), 0, 0, nil
	}},
}

func holdClient(addr string, mode client.Mode) (any, int64, int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Open(ctx, client.Config{Addrs: []string{addr}, Mode: mode})
	if err != nil {
		return nil, 0, 0, err
	}
	if err := c.Ready(ctx); err != nil {
		return nil, 0, 0, errors.Join(err, c.Close())
	}
	return c, c.Status().Bytes, 0, nil
}

// hold is the process: hold NAME RECORDS ADDRESS.
func hold(args []string) error {
	if len(args) != 3 {
		return errors.New("-hold is for this program only")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	debug.SetGCPercent(-1) // filling takes minutes otherwise; what is measured comes after a collection
	debug.SetMemoryLimit(10 << 30)
	for _, h := range holders {
		if h.name != args[0] {
			continue
		}
		before := settled()
		keep, stated, lookup, err := h.fill(n, args[2])
		if err != nil {
			return err
		}
		after := settled()
		m := held{Heap: after.heap - before.heap, RSS: after.rss - before.rss, Stated: stated, Lookup: lookup}
		for began, times := time.Now(), 0; times < 3 && time.Since(began) < 3*time.Second; times++ {
			at := time.Now()
			runtime.GC()
			if took := time.Since(at).Seconds() * 1000; times == 0 || took < m.GC {
				m.GC = took
			}
		}
		runtime.KeepAlive(keep)
		return json.NewEncoder(os.Stdout).Encode(m)
	}
	return fmt.Errorf("no store %q", args[0])
}

type resident struct{ heap, rss int64 }

func settled() resident {
	runtime.GC()
	debug.FreeOSMemory() // and a second collection, for what cleanups let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return resident{int64(m.HeapAlloc), residentSet(os.Getpid())}
}

func runMemory(ctx context.Context, r *Result, o options) error {
	sizes := []int{1_000_000, 10_000_000}
	if o.quick {
		sizes = []int{20_000, 100_000}
	}
	r.note("Bytes are counts, not times: each was taken once, in a process of its own, after a full collection. Resident bytes are those above the empty process.")
	for _, n := range sizes {
		r.table(Table{ID: fmt.Sprintf("memory/%d", n), Title: size(n) + " live revocations", Reference: "revokd table", Ratio: "resident", Note: "A collection is the fastest of up to three."})
	}
	id := "memory/slope"
	r.table(Table{ID: id, Title: fmt.Sprintf("For each live revocation, between %s and %s", size(sizes[0]), size(sizes[1])), Reference: "revokd table", Ratio: "resident", Note: "KrakenD's filter forgets by rotation and is wrong once in a thousand; so is the client's filter, which then asks a node."})
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	rss := map[string][]float64{} // by subject, for each size
	note := func(subject string, n int, column string, bytes int64) {
		r.add(fmt.Sprintf("memory/%d", n), subject, column, "B/record", float64(bytes)/float64(n), map[string]float64{"records": float64(n)})
		rss[subject+"|"+column] = append(rss[subject+"|"+column], float64(bytes))
	}
	for _, n := range sizes {
		if err := holdAll(ctx, r, o.program, n, note); err != nil {
			return err
		}
		if err := holdServers(ctx, r, n, note); err != nil {
			return err
		}
	}
	for _, f := range r.Figures[:len(r.Figures):len(r.Figures)] {
		both := rss[f.Subject+"|"+f.Metric]
		if f.Unit == "B/record" && len(both) == 2 && f.Table == fmt.Sprintf("memory/%d", sizes[0]) {
			r.add(id, f.Subject, f.Metric, "B/record", (both[1]-both[0])/float64(sizes[1]-sizes[0]), nil)
		}
	}
	return nil
}

// holdAll measures the stores in memory and the agent.
func holdAll(ctx context.Context, r *Result, program string, n int, note func(subject string, n int, column string, bytes int64)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	home, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	empty, err := newCluster(ctx, program, home, 1, nil)
	if err != nil {
		return err
	}
	defer empty.stop()
	base := residentSet(empty.nodes[0].proc.Pid())
	if err := empty.refill(ctx, empty.nodes[0], 0, n); err != nil {
		return err
	}
	if err := empty.hold(ctx, patience, int64(n), empty.nodes[0]); err != nil {
		return err
	}
	note("revokd agent (the whole process)", n, "resident", residentSet(empty.nodes[0].proc.Pid())-base)
	for _, h := range holders {
		progress("%s records: %s", size(n), h.name)
		cmd := exec.CommandContext(ctx, self, holdArg, h.name, strconv.Itoa(n), "127.0.0.1:"+empty.nodes[0].port)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			r.fail(h.name, fmt.Errorf("%w: %s", err, lastLines(stderr.String())))
			continue
		}
		var m held
		if err := json.Unmarshal(out, &m); err != nil {
			return err
		}
		note(h.name, n, "heap", m.Heap)
		note(h.name, n, "resident", m.RSS)
		if m.Stated > 0 {
			note(h.name, n, "by its own count", m.Stated)
		}
		if m.Lookup > 0 {
			note(h.name, n, "touched by lookups", m.Lookup)
		}
		r.add(fmt.Sprintf("memory/%d", n), h.name, "collection", "ms", m.GC, map[string]float64{"records": float64(n)})
	}
	return nil
}

func holdServers(ctx context.Context, r *Result, n int, note func(subject string, n int, column string, bytes int64)) error {
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"redis", "memcached"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if s, err := startRedis(ctx, filepath.Join(dir, "redis"), nil); err != nil {
		r.absent("Redis", err)
	} else {
		defer s.stop()
		progress("%s records: Redis", size(n))
		base, used := residentSet(s.pid()), redisMemory(ctx, s)
		if err := fillRedis(s, 0, n, lifetime); err != nil {
			return err
		}
		note("Redis, SET key 1 EX", n, "resident", residentSet(s.pid())-base)
		note("Redis, SET key 1 EX", n, "by its own count", redisMemory(ctx, s)-used)
	}
	if s, err := startMemcached(ctx, filepath.Join(dir, "memcached")); err != nil {
		r.absent("memcached", err)
	} else {
		defer s.stop()
		progress("%s records: memcached", size(n))
		base := residentSet(s.pid())
		if err := fillMemcached(s, 0, n, lifetime); err != nil {
			return err
		}
		note("memcached", n, "resident", residentSet(s.pid())-base)
	}
	return nil
}

func redisMemory(ctx context.Context, s *server) int64 {
	c := redis.NewClient(&redis.Options{Addr: s.addr})
	defer c.Close()
	text, err := c.InfoMap(ctx, "memory").Result()
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(text["Memory"]["used_memory"], 10, 64)
	return n
}
