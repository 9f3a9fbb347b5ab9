package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// ref of the tables of clusters.
const revokdSpread = "revokd, fsynced on every node"

// spreaders starts all systems with n nodes each.
func spreaders(ctx context.Context, r *Result, program, dir string, n int, creds []*syscall.Credential) (list []*spreader, err error) {
	sub := func(i int, name string) string {
		d := filepath.Join(dir, name)
		err = errors.Join(err, os.MkdirAll(d, 0o755), chownTo(d, at(creds, i)))
		return d
	}
	// They start at the same time: most of it is waiting for each other's elections.
	type way struct {
		name, peer, dir string
		start           func(dir string) (*spreader, error)
		spreader        *spreader
		err             error
	}
	redis := func(dir, name string, args ...string) way {
		return way{name: name, peer: "Redis", dir: dir, start: func(dir string) (*spreader, error) { return spreadRedis(ctx, dir, name, n, creds, args...) }}
	}
	ways := []way{
		{name: "revokd", dir: "revokd", start: func(dir string) (*spreader, error) {
			c, _, err := spreadRevokd(ctx, program, dir, n, creds)
			return c, err
		}},
		redis("redis", "Redis replication, keyspace events, nothing on disk"),
		redis("redis-aof", "Redis replication, keyspace events, appendfsync always", "--appendonly", "yes", "--appendfsync", "always"),
		{name: "NATS", peer: "NATS", dir: "nats", start: func(dir string) (*spreader, error) { return spreadNATS(ctx, dir, n, creds) }},
	}
	var starting sync.WaitGroup
	for i := range ways {
		w, dir := &ways[i], sub(0, ways[i].dir)
		starting.Go(func() { w.spreader, w.err = w.start(dir) })
	}
	starting.Wait()
	for _, w := range ways {
		switch {
		case w.err == nil:
			list = append(list, w.spreader)
		case w.peer == "":
			err = errors.Join(err, w.err)
		case errors.Is(w.err, errMissing):
			r.absent(w.peer, w.err)
		default:
			r.fail(w.name, w.err)
		}
	}
	return list, err
}

func chownTo(path string, as *syscall.Credential) error {
	if as == nil {
		return nil
	}
	return os.Chmod(path, 0o777) // nodes of several users make files here
}

func runEverywhere(ctx context.Context, r *Result, o options) error {
	type step struct {
		rate  float64
		d     time.Duration
		batch int
	}
	sizes := []int{3, 5, 9}
	steps := []step{{20, 1500 * time.Millisecond, 1}, {1000, 1500 * time.Millisecond, 1}, {10_000, 1500 * time.Millisecond, 10}, {100_000, 400 * time.Millisecond, 100}}
	rounds := 3
	if o.quick {
		sizes, rounds = []int{3}, 1
		steps = []step{{50, 200 * time.Millisecond, 1}, {1000, 300 * time.Millisecond, 1}}
	}
	r.note("revokd fsyncs on every node before a subscriber there sees a record; Redis acknowledges from the primary, with appendfsync always after its own fsync; NATS acknowledges from a majority and syncs files every two minutes. The key-value bucket has as many replicas as nodes, at most 5.")
	r.note("All nodes, subscribers and writers share all cores. All systems run during the whole scenario; one is written to at a time.")
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, n := range sizes {
		rounds := rounds
		if n != 5 && !o.quick {
			rounds = 2
		}
		own := filepath.Join(dir, fmt.Sprint(n))
		list, err := spreaders(ctx, r, o.program, own, n, nil)
		progress("%d nodes: %d systems run", n, len(list))
		if err == nil {
			for _, st := range steps {
				id := fmt.Sprintf("everywhere/%d/%g", n, st.rate)
				r.table(Table{
					ID: id, Title: fmt.Sprintf("%d nodes, %s revocations/s in calls of %d", n, size(int(st.rate)), st.batch), Reference: revokdSpread, Ratio: "p99",
					Note: "p50 to p99.9: from when a revocation was due until the subscriber of the last node has it. after ack: from its acknowledgement; 1 ns: seen before it.",
				})
				params := map[string]float64{"nodes": float64(n), "rate": st.rate}
				for round := range rounds + 1 {
					for _, s := range list {
						d := st.d
						if round == 0 {
							d /= 3
						}
						m, err := s.spread(ctx, st.rate, d, st.batch)
						if err != nil {
							if ctx.Err() != nil {
								stopSpreaders(list)
								return ctx.Err()
							}
							r.fail(fmt.Sprintf("%s, %d nodes, %g/s", s.name, n, st.rate), err)
							continue
						}
						if round > 0 {
							addSpread(r, id, s.name, m, params)
							if round == rounds && n == sizes[min(1, len(sizes)-1)] {
								r.curve(id, s.name, "ms", m.fromDue)
							}
						}
					}
				}
				progress("%d nodes: %g/s done", n, st.rate)
			}
		}
		stopSpreaders(list)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(own); err != nil {
			return err
		}
	}
	return nil
}

func stopSpreaders(list []*spreader) {
	for _, s := range list {
		s.stop()
	}
}

func addSpread(r *Result, id, name string, m spreadResult, params map[string]float64) {
	if m.fromDue.TotalCount() > 0 { // something was seen by all
		r.quantiles(id, name, "ms", m.fromDue, params)
		r.add(id, name, "after ack p50", "ms", in("ms", m.fromAck.ValueAtQuantile(50)), params)
		r.add(id, name, "after ack p99", "ms", in("ms", m.fromAck.ValueAtQuantile(99)), params)
	}
	r.add(id, name, "ack p50", "ms", in("ms", m.ack.ValueAtQuantile(50)), params)
	r.add(id, name, "ack p99", "ms", in("ms", m.ack.ValueAtQuantile(99)), params)
	r.add(id, name, "reached", "/s", m.reached, params)
	r.add(id, name, "never seen", "", float64(m.unseen), params)
	r.add(id, name, "CPU of the nodes", "ms", float64(m.cpu.Milliseconds()), params)
}

// firstUser is the first of the users that nodes run as where the packet filter must tell them apart.
const firstUser = 61_000

// runLossy is the same with five nodes, and a node all of whose connections with other nodes lose packets. It runs in a network namespace of its own:
// what it does to packets concerns nobody else.
func runLossy(ctx context.Context, r *Result, o options) error {
	const rate = 1000
	n, losses, rounds, d := 5, []int{0, 5, 20}, 3, 1500*time.Millisecond
	if o.quick {
		n, losses, rounds, d = 3, []int{5}, 1, 400*time.Millisecond
	}
	if os.Geteuid() != 0 {
		r.absent("a lossy link", errors.New("network namespaces and packet filters need root"))
		return nil
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			r.absent("a lossy link", fmt.Errorf("%s: %w", tool, errMissing))
			return nil
		}
	}
	if links := firstLine("ip", "-br", "link"); !strings.HasPrefix(links, "lo ") {
		return fmt.Errorf("this is not a namespace of its own: %s", links)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var creds []*syscall.Credential
	for i := range n {
		creds = append(creds, &syscall.Credential{Uid: uint32(firstUser + i), Gid: firstUser})
	}
	list, err := spreaders(ctx, r, o.program, filepath.Join(dir, "systems"), n, creds)
	defer func() { stopSpreaders(list) }()
	if err != nil {
		return err
	}
	for _, loss := range losses {
		if err := lose(loss, firstUser+n-1); err != nil {
			r.absent("a lossy link", err)
			return nil
		}
		id := fmt.Sprintf("lossy/%d", loss)
		r.table(Table{
			ID: id, Title: fmt.Sprintf("5 nodes, %d revocations/s, %d %% of the packets lost between one node and each other", rate, loss), Reference: revokdSpread, Ratio: "p99",
			Note: "Both directions, on loopback, by the packet filter; connections of subscribers and writers lose nothing.",
		})
		params := map[string]float64{"loss": float64(loss)}
		for round := range rounds + 1 {
			for _, s := range list {
				m, err := s.spread(ctx, rate, d, 1)
				if err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					r.fail(fmt.Sprintf("%s, %d %% lost", s.name, loss), err)
					continue
				}
				if round > 0 {
					addSpread(r, id, s.name, m, params)
				}
			}
		}
		progress("%d %% lost: done", loss)
	}
	return nil
}

// lose makes connections between the node of a user and nodes of others lose packets in both directions. The two ends of a connection are told apart by who
// sends: a packet of the user to another node's user cannot be seen as such, so connections are marked when either end's user is the one, unless root sends
// on them, and a marked connection loses what goes either way.
func lose(percent, uid int) error {
	others := fmt.Sprintf("%d-%d", firstUser, uid-1)
	rules := fmt.Sprintf(`
table inet bench
delete table inet bench
table inet bench {
 chain out {
  type filter hook output priority 0;
  oifname != "lo" accept
  meta skuid 0 ct mark set ct mark or 4
  meta skuid %d ct mark set ct mark or 1
  meta skuid %s ct mark set ct mark or 2
  ct mark 3 numgen random mod 100 < %d drop
 }
}
`, uid, others, percent)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, lastLines(string(out)))
	}
	return nil
}
