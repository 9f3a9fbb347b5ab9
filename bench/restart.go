package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redis/go-redis/v9"
)

func runRestart(ctx context.Context, r *Result, o options) error {
	sizes, rounds := []int{1_000_000, 10_000_000}, 3
	missed := []int{100, 10_000, 1_000_000}
	if o.quick {
		sizes, rounds, missed = []int{10_000, 50_000}, 1, []int{100, 1000}
	}
	r.table(Table{ID: "restart/start", Title: "From the start of the process until it is ready and holds all", Note: "warm: files in the page cache; cold: dropped from it. Redis has its AOF as it was written, or a snapshot."})
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i, n := range sizes {
		if i > 0 && !o.quick {
			rounds = 2
		}
		own := filepath.Join(dir, fmt.Sprint(n))
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		c, err := filled(ctx, o.program, own, n)
		if err != nil {
			return err
		}
		err = startAgain(ctx, r, c, n, rounds)
		if err == nil {
			err = redisStarts(ctx, r, own, n, rounds)
		}
		if err == nil {
			err = catchUp(ctx, r, c, n, missed, rounds, i > 0 && !o.quick)
		}
		c.stop()
		if err != nil {
			return fmt.Errorf("%s records: %w", size(n), err)
		}
		if err := os.RemoveAll(own); err != nil {
			return err
		}
	}
	return nil
}

// startAgain ends and starts a lone node.
func startAgain(ctx context.Context, r *Result, c *cluster, n, rounds int) error {
	a := c.nodes[0]
	params := map[string]float64{"records": float64(n)}
	for range rounds {
		for _, cold := range []bool{false, true} {
			if err := a.end(ctx); err != nil {
				return err
			}
			name := "revokd, warm"
			if cold {
				name = "revokd, cold"
				if err := forget(c.home); err != nil {
					r.absent("a cold start", err)
					cold = false
				}
			}
			began := time.Now()
			if err := c.start(ctx, a); err != nil {
				return err
			}
			took := time.Since(began)
			if err := c.hold(ctx, patience, int64(n), a); err != nil {
				return err
			}
			r.add("restart/start", name, size(n), "s", took.Seconds(), params)
		}
	}
	progress("%s records: starts done", size(n))
	return nil
}

// forget drops files from the page cache.
func forget(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, unix.ETXTBSY) {
			return nil // the program
		}
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil { // what is dirty stays
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// redisStarts is the same for Redis.
func redisStarts(ctx context.Context, r *Result, dir string, n, rounds int) error {
	params := map[string]float64{"records": float64(n)}
	for _, kind := range []struct {
		name string
		args []string
	}{
		{"Redis, AOF, warm", []string{"--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"}},
		{"Redis, RDB snapshot, warm", nil},
	} {
		own := filepath.Join(dir, "redis")
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		s, err := startRedis(ctx, own, nil, kind.args...)
		if err != nil {
			r.absent("Redis", err)
			return os.RemoveAll(own)
		}
		if err := fillRedis(s, 0, n, lifetime); err != nil {
			s.stop()
			return err
		}
		if kind.args == nil {
			c := redis.NewClient(&redis.Options{Addr: s.addr, ReadTimeout: time.Minute})
			err := c.Save(ctx).Err()
			_ = c.Close()
			if err != nil {
				s.stop()
				return err
			}
		}
		s.stop()
		for range rounds {
			began := time.Now()
			if s, err = startRedis(ctx, own, nil, kind.args...); err != nil {
				return err
			}
			r.add("restart/start", kind.name, size(n), "s", time.Since(began).Seconds(), params)
			s.stop()
		}
		if err := os.RemoveAll(own); err != nil {
			return err
		}
	}
	progress("%s records: Redis done", size(n))
	return nil
}

// catchUp makes the node one of three, takes the third away, revokes, and brings it back; then it comes back with nothing.
func catchUp(ctx context.Context, r *Result, c *cluster, n int, missed []int, rounds int, large bool) error {
	id := fmt.Sprintf("restart/missed/%d", n)
	r.table(Table{
		ID: id, Title: fmt.Sprintf("One of three nodes with %s records was away, or lost its disk: from the start of its process until it is ready and holds all", size(n)),
		Reference: "missed nothing: only the start", Ratio: "time", Note: "Real processes, on loopback. What it missed is what the others acknowledged meanwhile. The node reads its own journal first.",
	})
	for len(c.nodes) < 3 {
		a := &agent{name: fmt.Sprintf("n%d", len(c.nodes)+1)}
		c.nodes = append(c.nodes, a)
		began := time.Now()
		if err := c.start(ctx, a); err != nil {
			return err
		}
		if err := c.hold(ctx, patience, int64(n), a); err != nil {
			return err
		}
		r.add(id, "a new node: everything", "time", "s", time.Since(began).Seconds(), map[string]float64{"records": float64(n)})
	}
	if err := c.voters(ctx, 3); err != nil {
		return err
	}
	progress("%s records: three nodes", size(n))
	third, held, next := c.nodes[2], n, absentFrom+n<<8
	if large {
		rounds = 1
	}
	for _, m := range append([]int{0}, missed...) {
		if large && m == 10_000 {
			continue
		}
		times := rounds
		if m >= 1_000_000 {
			times = 1
		}
		for range times {
			if err := third.end(ctx); err != nil {
				return err
			}
			if m > 0 {
				if err := c.nodes[0].stream(ctx, next, next+m); err != nil {
					return err
				}
			}
			next, held = next+m, held+m
			if err := c.hold(ctx, patience, int64(held), c.nodes[0], c.nodes[1]); err != nil {
				return err
			}
			began := time.Now()
			if err := c.start(ctx, third); err != nil {
				return err
			}
			if err := c.hold(ctx, patience, int64(held), third); err != nil {
				return err
			}
			name := fmt.Sprintf("missed %s", size(m))
			if m == 0 {
				name = "missed nothing: only the start"
			}
			r.add(id, name, "time", "s", time.Since(began).Seconds(), map[string]float64{"missed": float64(m), "records": float64(n)})
		}
		progress("%s records: missed %s done", size(n), size(m))
	}
	return nil
}
