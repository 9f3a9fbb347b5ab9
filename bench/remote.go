package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// caller is one way to ask over the network; it makes one call.
type caller struct {
	name  string
	batch int // keys in a call
	call  func(worker, i int) error
}

// connections of those who do not have a pool of their own: calls are spread over them.
const connections = 8

func runRemote(ctx context.Context, r *Result, o options) error {
	n, rounds, slot := 1_000_000, 3, 700*time.Millisecond
	if o.quick {
		n, rounds, slot = 10_000, 1, 100*time.Millisecond
	}
	dir, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // PostgreSQL runs as somebody else
		return err
	}
	agents, err := filled(ctx, o.program, dir, n)
	if err != nil {
		return err
	}
	defer agents.stop()
	now := time.Now()
	p := newProbes(n, 0.01, now)
	list := revokdCallers(ctx, agents.nodes[0], p, now)
	add := func(s *subject) {
		ask := s.ask(p, 0)
		list = append(list, caller{s.name, s.batch, func(worker, i int) error {
			if !ask(worker*7919 + i) {
				return fmt.Errorf("a wrong answer to question %d", i)
			}
			return nil
		}})
	}
	servers, asked := serveAll(ctx, r, dir, n)
	defer stopAll(servers)
	for _, s := range asked {
		if s.close != nil {
			defer s.close()
		}
		if s.remote && s.name != newToken {
			add(s)
		}
	}
	return askRemotely(ctx, r, list, n, rounds, slot)
}

// revokdCallers ask an agent.
func revokdCallers(ctx context.Context, a *agent, p *probes, now time.Time) []caller {
	url := "http://127.0.0.1:" + a.port
	var grpc, json []revokdv1connect.RevocationServiceClient
	for range connections {
		grpc = append(grpc, revokdv1connect.NewRevocationServiceClient(h2c(), url, connect.WithGRPC(), connect.WithReadMaxBytes(16<<20)))
	}
	plain := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	json = append(json, revokdv1connect.NewRevocationServiceClient(plain, url, connect.WithProtoJSON()))
	request := func(i int) *revokdv1.CheckRequest {
		payload := fmt.Appendf(nil, `{"iss":%q,"sub":"user","jti":%q,"iat":%d,"exp":%d}`, issuer, p.keys[i&probeMask], now.Unix()-60, now.Unix()+3*3600)
		return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}
	}
	want := func(i int) revokdv1.Verdict {
		if p.want[i&probeMask] {
			return revokdv1.Verdict_VERDICT_REVOKED
		}
		return revokdv1.Verdict_VERDICT_ACTIVE
	}
	check := func(clients []revokdv1connect.RevocationServiceClient) func(worker, i int) error {
		return func(worker, i int) error {
			i += worker * 7919
			res, err := clients[worker%len(clients)].Check(ctx, connect.NewRequest(request(i)))
			if err == nil && res.Msg.GetVerdict() != want(i) {
				err = fmt.Errorf("verdict %v", res.Msg)
			}
			return err
		}
	}
	return []caller{
		{"revokd Check, gRPC", 0, check(grpc)},
		{"revokd Check, JSON over HTTP/1.1", 0, check(json)},
		{"revokd CheckBatch of 100, gRPC", 100, func(worker, i int) error {
			i = i*100 + worker*7919
			req := new(revokdv1.CheckBatchRequest)
			for j := range 100 {
				req.Items = append(req.Items, request(i+j))
			}
			res, err := grpc[worker%len(grpc)].CheckBatch(ctx, connect.NewRequest(req))
			if err != nil {
				return err
			}
			for j, v := range res.Msg.GetResults() {
				if v.GetResponse().GetVerdict() != want(i+j) {
					return fmt.Errorf("verdict %v", v)
				}
			}
			return nil
		}},
	}
}

func askRemotely(ctx context.Context, r *Result, list []caller, n, rounds int, slot time.Duration) error {
	const rate = 4000
	r.note("All processes share all cores, the callers too. A pipeline or batch of 100 is one call: its latency is that of the call, its keys/s those of all keys.")
	for round := range rounds + 1 {
		warm := round == 0
		progress("round %d of %d, %d ways to ask", round, rounds, len(list))
		for _, workers := range []int{1, 8, 64} {
			id := fmt.Sprintf("remote/%d", workers)
			r.table(Table{ID: id, Title: fmt.Sprintf("%s records, %d callers at once, as fast as they are answered", size(n), workers), Reference: "revokd Check, gRPC", Ratio: "keys", Higher: true})
			for _, c := range list {
				if err := ctx.Err(); err != nil {
					return err
				}
				d := slot
				if warm {
					d /= 4
				}
				m := closedLoop(d, workers, c.call)
				if m.failed > 0 {
					r.fail(fmt.Sprintf("%s, %d callers, %d calls", c.name, workers, m.failed), m.err)
					continue
				}
				if !warm {
					params := map[string]float64{"callers": float64(workers), "records": float64(n)}
					r.quantiles(id, c.name, "us", m.latency, params)
					r.add(id, c.name, "keys", "/s", m.reached*float64(max(1, c.batch)), params)
				}
			}
		}
		id := "remote/open"
		r.table(Table{
			ID: id, Title: fmt.Sprintf("%s records, %d calls/s that are due whether the last one was answered or not", size(n), rate), Reference: "revokd Check, gRPC", Ratio: "p99",
			Note: "Latency from when the call was due.",
		})
		for _, c := range list {
			if c.batch > 0 {
				continue
			}
			m := runOpen(rate, slot, 64, func(worker, i int, _ time.Time) error { return c.call(worker, i) })
			if m.failed > 0 {
				r.fail(fmt.Sprintf("%s at %d/s, %d calls", c.name, rate, m.failed), m.err)
				continue
			}
			if !warm {
				r.quantiles(id, c.name, "us", m.latency, nil)
				r.add(id, c.name, "reached", "/s", m.reached, nil)
				if round == rounds {
					r.curve(id, c.name, "us", m.latency)
				}
			}
		}
	}
	return nil
}
