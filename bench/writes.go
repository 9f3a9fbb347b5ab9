package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// writer makes one call that is acknowledged when it is on disk.
type writer struct {
	name  string
	batch int
	most  int // callers at once that it stands; 0: any number
	call  func(worker int, ids []string) error
}

const agentRevoke = "revokd Revoke, gRPC"

func runWrites(ctx context.Context, r *Result, o options) error {
	rounds, slot := 3, time.Second
	if o.quick {
		rounds, slot = 1, 150*time.Millisecond
	}
	r.note("Each acknowledgement comes after fsync: revokd's journal, Redis with appendfsync always, PostgreSQL with synchronous_commit. One node, nothing is replicated.")
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as somebody else
		return err
	}
	agents, err := newCluster(ctx, o.program, dir, 1, nil)
	if err != nil {
		return err
	}
	defer agents.stop()
	list := revokdWriters(ctx, agents.nodes[0])
	inProcess, stop, err := nodeWriter(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	list = append(list, inProcess...)
	for _, name := range []string{"redis", "postgres"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if s, err := startRedis(ctx, filepath.Join(dir, "redis"), nil, "--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"); err != nil {
		r.absent("Redis", err)
	} else {
		defer s.stop()
		more, end, err := redisWriters(ctx, s)
		if err != nil {
			return err
		}
		defer end()
		list = append(list, more...)
	}
	if s, err := startPostgres(ctx, filepath.Join(dir, "postgres")); err != nil {
		r.absent("PostgreSQL", err)
	} else {
		defer s.stop()
		pool, err := postgresPool(ctx, s, 100)
		if err != nil {
			return err
		}
		defer pool.Close()
		if err := fillPostgres(ctx, pool, 0); err != nil {
			return err
		}
		list = append(list, postgresWriters(ctx, pool)...)
	}
	return measureWrites(ctx, r, list, rounds, slot)
}

func measureWrites(ctx context.Context, r *Result, list []writer, rounds int, slot time.Duration) error {
	var next atomic.Int64
	next.Store(absentFrom)
	ids := func(n int) []string {
		first := int(next.Add(int64(n))) - n
		out := make([]string, n)
		for i := range out {
			out[i] = key(first + i)
		}
		return out
	}
	for round := range rounds + 1 {
		d := slot
		if round == 0 {
			d /= 4
		}
		progress("round %d of %d, %d ways to write", round, rounds, len(list))
		for _, callers := range []int{1, 64, 1024} {
			id := fmt.Sprintf("writes/%d", callers)
			r.table(Table{ID: id, Title: fmt.Sprintf("Acknowledged on disk, %d writers at once, as fast as they are answered", callers), Reference: agentRevoke, Ratio: "revocations", Higher: true})
			for _, w := range list {
				if w.most > 0 && callers > w.most {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				m := closedLoop(d, callers, func(worker, _ int) error { return w.call(worker, ids(w.batch)) })
				if m.failed > 0 {
					r.fail(fmt.Sprintf("%s, %d writers, %d calls", w.name, callers, m.failed), m.err)
					continue
				}
				if round == 0 {
					continue
				}
				params := map[string]float64{"writers": float64(callers)}
				r.quantiles(id, w.name, "ms", m.latency, params)
				r.add(id, w.name, "revocations", "/s", m.reached*float64(w.batch), params)
				if round == rounds && callers == 64 {
					r.curve(id, w.name, "ms", m.latency)
				}
			}
		}
		const rate = 2000
		id := "writes/open"
		r.table(Table{ID: id, Title: fmt.Sprintf("Acknowledged on disk, %d revocations/s that are due whether the last one was answered or not", rate), Reference: agentRevoke, Ratio: "p99", Note: "Latency from when the call was due."})
		for _, w := range list {
			if w.batch > 1 {
				continue
			}
			m := runOpen(rate, d, 256, func(worker, _ int, _ time.Time) error { return w.call(worker, ids(1)) })
			if m.failed > 0 {
				r.fail(fmt.Sprintf("%s at %d/s, %d calls", w.name, rate, m.failed), m.err)
				continue
			}
			if round > 0 {
				r.quantiles(id, w.name, "ms", m.latency, nil)
				r.add(id, w.name, "reached", "/s", m.reached, nil)
			}
		}
	}
	return nil
}

func revokdWriters(ctx context.Context, a *agent) []writer {
	var grpc []revokdv1connect.RevocationServiceClient
	for range connections {
		grpc = append(grpc, revokdv1connect.NewRevocationServiceClient(h2c(), "http://127.0.0.1:"+a.port, connect.WithGRPC(), connect.WithReadMaxBytes(16<<20)))
	}
	return []writer{
		{agentRevoke, 1, 0, func(worker int, ids []string) error {
			_, err := grpc[worker%connections].Revoke(ctx, connect.NewRequest(revokeRequest(ids[0])))
			return err
		}},
		{"revokd RevokeBatch of 100, gRPC", 100, 64, func(worker int, ids []string) error {
			req := new(revokdv1.RevokeBatchRequest)
			for _, id := range ids {
				req.Items = append(req.Items, revokeRequest(id))
			}
			res, err := grpc[worker%connections].RevokeBatch(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for _, item := range res.Msg.GetResults() {
				if item.GetError() != nil {
					return errors.New(item.GetError().GetMessage())
				}
			}
			return nil
		}},
	}
}

// nodeWriter is a node in this process, as an agent has it: what is left without the network.
func nodeWriter(ctx context.Context, dir string) ([]writer, func(), error) {
	nd, err := node.New(node.Config{Name: "n1", Key: benchKey, Dir: filepath.Join(dir, "node")})
	if err != nil {
		return nil, nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- nd.Run(running) }()
	stop := func() { cancel(); <-done; _ = nd.Close() }
	if err := until(ctx, patience, func() error {
		if w := nd.Ready(); len(w) > 0 {
			return fmt.Errorf("the node waits for %v", w)
		}
		return nil
	}); err != nil {
		stop()
		return nil, nil, err
	}
	write := func(_ int, ids []string) error {
		expires := time.Now().Add(lifetime).UnixMilli()
		list := make([]revocation.Request, len(ids))
		for i, id := range ids {
			m, err := revocation.NewMatch(map[string]revocation.Value{"iss": revocation.String(issuer), "jti": revocation.String(id)})
			if err != nil {
				return err
			}
			list[i] = revocation.Request{Match: m, ExpiresAt: expires}
		}
		_, _, err := nd.Write(ctx, list, node.WriteOptions{})
		return err
	}
	return []writer{{"revokd node.Write, in process", 1, 0, write}, {"revokd node.Write of 100, in process", 100, 64, write}}, stop, nil
}

func redisWriters(ctx context.Context, s *server) ([]writer, func(), error) {
	c := redis.NewClient(&redis.Options{Addr: s.addr, PoolSize: 1024})
	r, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.addr}, DisableCache: true})
	if err != nil {
		return nil, nil, err
	}
	return []writer{
		{"Redis SET EX, go-redis", 1, 0, func(_ int, ids []string) error { return c.Set(ctx, ids[0], 1, lifetime).Err() }},
		{"Redis SET EX, rueidis", 1, 0, func(_ int, ids []string) error {
			return r.Do(ctx, r.B().Set().Key(ids[0]).Value("1").Ex(lifetime).Build()).Error()
		}},
		{"Redis SET EX, go-redis, pipeline of 100", 100, 64, func(_ int, ids []string) error {
			_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, id := range ids {
					p.Set(ctx, id, 1, lifetime)
				}
				return nil
			})
			return err
		}},
	}, func() { _ = c.Close(); r.Close() }, nil
}

func postgresWriters(ctx context.Context, pool *pgxpool.Pool) []writer {
	insert := func(_ int, ids []string) error {
		_, err := pool.Exec(ctx, "INSERT INTO revoked SELECT unnest($1::text[]), $2", ids, time.Now().Add(lifetime))
		return err
	}
	return []writer{
		{"PostgreSQL INSERT, pgx", 1, 64, insert},
		{"PostgreSQL INSERT of 100 rows, pgx", 100, 64, insert},
	}
}
