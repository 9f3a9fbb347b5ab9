package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/go-redis/v9"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func runMass(ctx context.Context, r *Result, o options) error {
	n, nodes := 1_000_000, 5
	if o.quick {
		n, nodes = 20_000, 3
	}
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	id := "mass"
	r.table(Table{
		ID: id, Title: fmt.Sprintf("%s revocations on all of %d nodes", size(n), nodes), Reference: "revokd, one stream", Ratio: "everywhere",
		Note: "beside: 50 single revocations/s meanwhile, from when they were due until the subscriber of the last node has them.",
	})
	if err := massRevokd(ctx, r, id, o.program, filepath.Join(dir, "revokd"), n, nodes, o.quick); err != nil {
		return err
	}
	for _, kind := range []struct {
		name string
		args []string
	}{
		{"Redis SET EX in pipelines of 1000, replicas, nothing on disk", nil},
		{"Redis SET EX in pipelines of 1000, replicas, appendfsync always", []string{"--appendonly", "yes", "--appendfsync", "always"}},
	} {
		own := filepath.Join(dir, fmt.Sprint("redis", len(kind.args)))
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
		s, err := spreadRedis(ctx, own, kind.name, nodes, nil, kind.args...)
		if err != nil {
			r.absent("Redis", err)
			return nil
		}
		err = massRedis(ctx, r, id, s, n)
		s.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return nil
}

// beside revokes single ones until bulk has ended.
func beside(ctx context.Context, s *spreader, bulk func() error) (m spreadResult, err error) {
	ended := make(chan error, 1)
	go func() { ended <- bulk() }()
	total := spreadResult{fromDue: histogram(), fromAck: histogram(), ack: histogram()}
	for {
		m, err := s.spread(ctx, 50, 500*time.Millisecond, 1)
		if err != nil {
			return total, errors.Join(err, <-ended)
		}
		total.fromDue.Merge(m.fromDue)
		total.fromAck.Merge(m.fromAck)
		total.ack.Merge(m.ack)
		total.unseen += m.unseen
		select {
		case err := <-ended:
			return total, err
		default:
		}
	}
}

func addBeside(r *Result, id, name string, m spreadResult) {
	if m.fromDue.TotalCount() == 0 { // nothing was seen by all
		return
	}
	r.add(id, name, "beside p50", "ms", in("ms", m.fromDue.ValueAtQuantile(50)), nil)
	r.add(id, name, "beside p99", "ms", in("ms", m.fromDue.ValueAtQuantile(99)), nil)
	r.add(id, name, "beside after ack p99", "ms", in("ms", m.fromAck.ValueAtQuantile(99)), nil)
}

func massRevokd(ctx context.Context, r *Result, id, program, dir string, n, nodes int, quick bool) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	s, c, err := spreadRevokd(ctx, program, dir, nodes, nil)
	if err != nil {
		return err
	}
	defer s.stop()
	rounds := 2
	if quick {
		rounds = 1
	}
	next := absentFrom
	for range rounds {
		before, err := c.nodes[0].records(ctx)
		if err != nil {
			return err
		}
		used, began := cpuTime(c.pids()...), time.Now()
		var acked, everywhere time.Duration
		m, err := beside(ctx, s, func() error {
			if err := c.nodes[0].stream(ctx, next, next+n); err != nil {
				return err
			}
			acked = time.Since(began)
			if err := c.hold(ctx, patience, before+int64(n), c.nodes...); err != nil {
				return err
			}
			everywhere = time.Since(began)
			return nil
		})
		if err != nil {
			return err
		}
		next += n
		const name = "revokd, one stream"
		r.add(id, name, "acknowledged", "s", acked.Seconds(), map[string]float64{"records": float64(n)})
		r.add(id, name, "everywhere", "s", everywhere.Seconds(), map[string]float64{"records": float64(n)})
		r.add(id, name, "CPU of the nodes", "s", (cpuTime(c.pids()...) - used).Seconds(), nil)
		addBeside(r, id, name, m)
		progress("revokd: %s in a stream on %d nodes after %s", size(n), nodes, everywhere.Round(time.Millisecond))
	}
	for i := range 5 {
		client := fmt.Sprint("client-", i)
		began := time.Now()
		if _, err := c.nodes[0].api.Revoke(ctx, connect.NewRequest(&revokdv1.RevokeRequest{
			Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "client_id": client}}}, Options: localAck(),
			IssuedBefore: timestamppb.New(began),
		})); err != nil {
			return err
		}
		acked := time.Since(began)
		for _, a := range c.nodes {
			if err := until(ctx, patience, func() error {
				at := began.Unix()
				res, err := a.api.Check(ctx, connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{
					Payload: fmt.Appendf(nil, `{"iss":%q,"jti":"x","client_id":%q,"iat":%d,"exp":%d}`, issuer, client, at-60, at+3600),
				}}))
				if err == nil && res.Msg.GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
					err = fmt.Errorf("verdict %v", res.Msg)
				}
				return err
			}); err != nil {
				return err
			}
		}
		r.add(id, "revokd, the same event as one cutoff", "acknowledged", "s", acked.Seconds(), nil)
		r.add(id, "revokd, the same event as one cutoff", "everywhere", "s", time.Since(began).Seconds(), nil)
	}
	return nil
}

func massRedis(ctx context.Context, r *Result, id string, s *spreader, n int) error {
	var clients []*redis.Client
	for _, addr := range s.addrs {
		c := redis.NewClient(&redis.Options{Addr: addr})
		defer c.Close()
		clients = append(clients, c)
	}
	began := time.Now()
	var acked, everywhere time.Duration
	m, err := beside(ctx, s, func() error {
		for first := 0; first < n; first += 1000 {
			if _, err := clients[0].Pipelined(ctx, func(p redis.Pipeliner) error {
				for i := range 1000 {
					p.Set(ctx, key(first+i), 1, lifetime)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		acked = time.Since(began)
		for _, c := range clients {
			if err := until(ctx, patience, func() error {
				have, err := c.DBSize(ctx).Result()
				if err == nil && have < int64(n) {
					err = fmt.Errorf("%d of %d", have, n)
				}
				return err
			}); err != nil {
				return err
			}
		}
		everywhere = time.Since(began)
		return nil
	})
	if err != nil {
		return err
	}
	r.add(id, s.name, "acknowledged", "s", acked.Seconds(), nil)
	r.add(id, s.name, "everywhere", "s", everywhere.Seconds(), nil)
	addBeside(r, id, s.name, m)
	progress("%s: %s", strings.ToLower(s.name[:5]), everywhere.Round(time.Millisecond))
	return nil
}
