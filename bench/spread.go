package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/revokd/revokd/cluster/replication"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// spreader is a system that carries revocations to all of its nodes, of which each has a subscriber in this process.
type spreader struct {
	name  string
	nodes int
	seen  *sightings
	// write revokes the ids from one number to another and returns when that is acknowledged.
	write func(ctx context.Context, run, from, to int) error
	// prepare is told which ids will come; may be nil.
	prepare func(run, count int) error
	pids    func() []int
	addrs   []string // of the servers, for Redis
	stop    func()
}

// spreadKey is the i-th id of a run, as long as any other key.
func spreadKey(run, i int) string { return fmt.Sprintf("%08d-%027d", run, i) }

func parseSpreadKey(k string) (run, i int, ok bool) {
	if len(k) != 36 {
		return 0, 0, false
	}
	run, err1 := strconv.Atoi(k[:8])
	i, err2 := strconv.Atoi(k[9:])
	return run, i, err1 == nil && err2 == nil
}

// sightings notes when the subscriber of each node has learned of an id.
type sightings struct {
	began time.Time
	run   atomic.Pointer[sighted]
}

type sighted struct {
	run     int
	at      [][]atomic.Int64 // by node and id: nanoseconds since began; 0: not yet
	missing atomic.Int64
}

func newSightings() *sightings { return &sightings{began: time.Now()} }

func (s *sightings) begin(run, nodes, count int) *sighted {
	r := &sighted{run: run, at: make([][]atomic.Int64, nodes)}
	for i := range r.at {
		r.at[i] = make([]atomic.Int64, count)
	}
	r.missing.Store(int64(nodes * count))
	s.run.Store(r)
	return r
}

func (s *sightings) saw(node, run, i int) {
	r := s.run.Load()
	if r == nil || r.run != run || i >= len(r.at[node]) {
		return
	}
	if r.at[node][i].CompareAndSwap(0, int64(time.Since(s.began))) {
		r.missing.Add(-1)
	}
}

// spreadResult is what a run has measured.
type spreadResult struct {
	fromDue *hdrhistogram.Histogram // from when it was due until the last subscriber has it
	fromAck *hdrhistogram.Histogram // from its acknowledgement
	ack     *hdrhistogram.Histogram // from when it was due until it was acknowledged
	reached float64                 // acknowledged a second
	unseen  int64                   // sightings that did not happen in time
	cpu     time.Duration           // of all nodes
}

var runs atomic.Int64

// spread revokes at a rate for a while and waits until all subscribers have all of it.
func (s *spreader) spread(ctx context.Context, rate float64, d time.Duration, batch int) (res spreadResult, err error) {
	calls := max(1, int(rate*d.Seconds())/batch)
	count := calls * batch
	run := int(runs.Add(1))
	if s.prepare != nil {
		if err := s.prepare(run, count); err != nil {
			return res, err
		}
	}
	seen := s.seen.begin(run, s.nodes, count)
	due, acked := make([]int64, count), make([]int64, count)
	used := cpuTime(s.pids()...)
	m := runOpen(rate/float64(batch), d, 64, func(_, call int, at time.Time) error {
		if call >= calls {
			return nil
		}
		if err := s.write(ctx, run, call*batch, call*batch+batch); err != nil {
			return err
		}
		now := int64(time.Since(s.seen.began))
		for i := call * batch; i < (call+1)*batch; i++ {
			due[i], acked[i] = int64(at.Sub(s.seen.began)), now
		}
		return nil
	})
	if m.failed > 0 {
		return res, fmt.Errorf("%d of %d calls failed: %w", m.failed, calls, m.err)
	}
	for deadline := time.Now().Add(10 * time.Second); seen.missing.Load() > 0 && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(time.Millisecond) // between two looks
	}
	s.seen.run.Store(nil)
	res = spreadResult{fromDue: histogram(), fromAck: histogram(), ack: m.latency, reached: m.reached * float64(batch), unseen: seen.missing.Load(), cpu: cpuTime(s.pids()...) - used}
	for i := range count {
		var last int64
		for _, at := range seen.at {
			v := at[i].Load()
			if v == 0 {
				last = -1
				break
			}
			last = max(last, v)
		}
		if last < 0 {
			continue
		}
		record(res.fromDue, time.Duration(last-due[i]))
		record(res.fromAck, time.Duration(last-acked[i]))
	}
	return res, ctx.Err()
}

// watcher is a replica of one node that only notes when it learns of a record. It costs less than a client, of which there is one for each node here.
type watcher struct {
	node    int
	seen    *sightings
	numbers *atomic.Pointer[map[replication.Key]int]
}

func (w *watcher) Merge(r *replication.Record, _ replication.Dot, _ replication.Now, _ bool) (replication.Merged, error) {
	if i, ok := (*w.numbers.Load())[r.Key()]; ok {
		if run := w.seen.run.Load(); run != nil {
			w.seen.saw(w.node, run.run, i)
		}
	}
	return replication.Merged{}, nil
}

func (w *watcher) Held(*replication.Record, replication.Now) (replication.Record, replication.Dot, bool) {
	return replication.Record{}, 0, false
}

func (w *watcher) Scan(replication.Key, int, replication.Now, func(replication.Dot) bool, func(*replication.Record, replication.Dot) bool) (replication.Key, bool) {
	return replication.Key{}, false
}

func (w *watcher) Each(replication.Key, int, replication.Now, func(*replication.Record, replication.Dot)) (replication.Key, bool) {
	return replication.Key{}, false
}

func (*watcher) Ahead([]replication.Key)                              {}
func (*watcher) Size() int                                            { return 0 }
func (*watcher) Early(replication.Now) func(*replication.Record) bool { return nil }
func (*watcher) Definition(uint64) []byte                             { return nil }
func (*watcher) Define([]byte, replication.Now) error                 { return nil }

// follow reads what a node sends until ctx ends.
func (w *watcher) follow(ctx context.Context, a *agent, keyID uint64, began func()) error {
	core, err := replication.New(replication.Config{
		Name: "bench", KeyID: keyID, Client: true, Random: rand.Uint64,
		Deadline:     func(r *replication.Record) uint32 { return binary.BigEndian.Uint32(r[32:]) },
		DefinitionID: func(r *replication.Record) uint64 { return binary.BigEndian.Uint64(r[24:32]) },
	}, w, nil, nil)
	if err != nil {
		return err
	}
	ex := a.repl.Exchange(ctx)
	ex.RequestHeader().Set("Revokd-Client", "bench") // the name that package internal/api knows it by, which links too much
	if err := ex.Send(nil); err != nil {
		return err
	}
	now := func() replication.Now {
		at := time.Now()
		return replication.Now{Mono: time.Since(w.seen.began), Wall: at.UnixMilli(), Guarded: at.UnixMilli()}
	}
	core.Step(now(), replication.Connected{Peer: 1})
	for {
		for {
			b := core.Fill(now(), 1, nil)
			if len(b) == 0 {
				break
			}
			if err := ex.Send(&revokdv1.ExchangeMessage{Frames: b}); err != nil {
				return err
			}
		}
		message, err := ex.Receive()
		if err != nil {
			return err
		}
		for _, c := range core.Step(now(), replication.Received{Peer: 1, Message: message.GetFrames()}).Close {
			return c.Err
		}
		began()
	}
}

// spreadRevokd starts a cluster that fsyncs.
func spreadRevokd(ctx context.Context, program, dir string, n int, creds []*syscall.Credential) (*spreader, *cluster, error) {
	c, err := newCluster(ctx, program, dir, n, creds)
	if err != nil {
		return nil, nil, err
	}
	k, err := c.nodes[0].key(ctx)
	if err != nil {
		c.stop()
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	s := &spreader{name: "revokd, fsynced on every node", nodes: n, seen: newSightings(), pids: c.pids}
	s.stop = func() { cancel(); c.stop(); following.Wait() }
	var numbers atomic.Pointer[map[replication.Key]int]
	numbers.Store(&map[replication.Key]int{})
	var ready sync.WaitGroup
	for i, a := range c.nodes {
		w := &watcher{node: i, seen: s.seen, numbers: &numbers}
		ready.Add(1)
		following.Go(func() {
			once := sync.OnceFunc(ready.Done)
			defer once()
			for ctx.Err() == nil { // a session may end when voters change
				_ = w.follow(ctx, a, uint64(k.ID()), once)
			}
		})
	}
	ready.Wait()
	of, err := newRecords(k, "jti", time.Now().Add(lifetime))
	if err != nil {
		s.stop()
		return nil, nil, err
	}
	s.prepare = func(run, count int) error {
		m := make(map[replication.Key]int, count)
		for i := range count {
			r, err := of.record(spreadKey(run, i))
			if err != nil {
				return err
			}
			m[replication.Key(r.Fingerprint)] = i
		}
		numbers.Store(&m)
		return nil
	}
	var next atomic.Int64
	s.write = func(ctx context.Context, run, from, to int) error {
		a := c.nodes[int(next.Add(1))%n]
		if to-from == 1 {
			req := revokeRequest(spreadKey(run, from))
			req.Options = localAck()
			_, err := a.api.Revoke(ctx, connect.NewRequest(req))
			return err
		}
		req := &revokdv1.RevokeBatchRequest{Options: localAck()}
		for i := from; i < to; i++ {
			req.Items = append(req.Items, revokeRequest(spreadKey(run, i)))
		}
		res, err := a.api.RevokeBatch(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		for _, item := range res.Msg.GetResults() {
			if item.GetError() != nil {
				return errors.New(item.GetError().GetMessage())
			}
		}
		return nil
	}
	return s, c, nil
}

// spreadRedis starts a primary and replicas; each has one subscriber to the events of its keys.
func spreadRedis(ctx context.Context, dir, name string, n int, creds []*syscall.Credential, args ...string) (*spreader, error) {
	var servers []*server
	var clients []rueidis.Client
	ctx, cancel := context.WithCancel(ctx)
	s := &spreader{name: name, nodes: n, seen: newSightings()}
	var following sync.WaitGroup
	s.stop = func() {
		cancel()
		for _, c := range clients {
			c.Close()
		}
		following.Wait()
		stopAll(servers)
	}
	s.pids = func() (list []int) {
		for _, server := range servers {
			list = append(list, server.pid())
		}
		return list
	}
	for i := range n {
		own := filepath.Join(dir, fmt.Sprintf("redis%d", i+1))
		if err := ownDir(own, at(creds, i)); err != nil {
			s.stop()
			return nil, err
		}
		all := append([]string{"--notify-keyspace-events", "KEA", "--repl-diskless-sync-delay", "0", "--client-output-buffer-limit", "pubsub 1gb 1gb 0"}, args...)
		if i > 0 {
			host, port := servers[0].addr[:len("127.0.0.1")], servers[0].addr[len("127.0.0.1:"):]
			all = append(all, "--replicaof", host+" "+port)
		}
		server, err := startRedis(ctx, own, at(creds, i), all...)
		if err != nil {
			s.stop()
			return nil, err
		}
		servers = append(servers, server)
		s.addrs = append(s.addrs, server.addr)
	}
	for i, server := range servers {
		c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.addr}, DisableCache: true, ForceSingleClient: true})
		if err != nil {
			s.stop()
			return nil, err
		}
		clients = append(clients, c)
		if i > 0 {
			if err := until(ctx, 20*time.Second, func() error {
				text, err := c.Do(ctx, c.B().Info().Section("replication").Build()).ToString()
				if err == nil && !contains(text, "master_link_status:up") {
					err = errors.New("the replica is not connected")
				}
				return err
			}); err != nil {
				s.stop()
				return nil, err
			}
		}
		subscribed := make(chan struct{})
		following.Go(func() {
			hooked, release := c.Dedicate()
			defer release()
			once := sync.OnceFunc(func() { close(subscribed) })
			gone := hooked.SetPubSubHooks(rueidis.PubSubHooks{
				OnSubscription: func(rueidis.PubSubSubscription) { once() },
				OnMessage: func(m rueidis.PubSubMessage) {
					if run, k, ok := parseSpreadKey(m.Message); ok {
						s.seen.saw(i, run, k)
					}
				},
			})
			_ = hooked.Do(ctx, hooked.B().Subscribe().Channel("__keyevent@0__:set").Build()).Error() // until told otherwise
			select {
			case <-gone:
			case <-ctx.Done():
			}
		})
		select {
		case <-subscribed:
		case <-time.After(10 * time.Second):
			s.stop()
			return nil, errors.New("no subscription")
		}
	}
	primary := redis.NewClient(&redis.Options{Addr: servers[0].addr, PoolSize: 64})
	stop := s.stop
	s.stop = func() { _ = primary.Close(); stop() }
	s.write = func(ctx context.Context, run, from, to int) error {
		if to-from == 1 {
			return primary.Set(ctx, spreadKey(run, from), 1, lifetime).Err()
		}
		_, err := primary.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := from; i < to; i++ {
				p.Set(ctx, spreadKey(run, i), 1, lifetime)
			}
			return nil
		})
		return err
	}
	return s, nil
}

func ownDir(path string, as *syscall.Credential) error {
	if err := os.Mkdir(path, 0o755); err != nil || as == nil {
		return err
	}
	return os.Chown(path, int(as.Uid), int(as.Gid))
}

// spreadNATS starts a cluster with a key-value bucket that has at most five replicas, which is the limit; each node has one watcher.
func spreadNATS(ctx context.Context, dir string, n int, creds []*syscall.Credential) (*spreader, error) {
	servers, err := startNATS(ctx, dir, n, creds)
	var conns []*nats.Conn
	s := &spreader{name: "NATS KV watch, in memory of the system", nodes: n, seen: newSightings()}
	s.stop = func() {
		for _, c := range conns {
			c.Close()
		}
		stopAll(servers)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	s.pids = func() (list []int) {
		for _, server := range servers {
			list = append(list, server.pid())
		}
		return list
	}
	var streams []nats.JetStreamContext
	for i, server := range servers {
		c, err := nats.Connect("nats://"+server.addr, nats.NoReconnect())
		if err != nil {
			s.stop()
			return nil, err
		}
		conns = append(conns, c)
		js, err := c.JetStream(nats.PublishAsyncMaxPending(1<<16), nats.MaxWait(20*time.Second))
		if err != nil {
			s.stop()
			return nil, err
		}
		streams = append(streams, js)
		var w nats.KeyWatcher
		// What is asked before there is a leader, of the servers or of the bucket, is never answered.
		early, err := c.JetStream(nats.MaxWait(time.Second))
		if err != nil {
			s.stop()
			return nil, err
		}
		if err := until(ctx, 40*time.Second, func() (err error) {
			var kv nats.KeyValue
			if i == 0 {
				kv, err = early.CreateKeyValue(&nats.KeyValueConfig{Bucket: "revoked", TTL: lifetime, Storage: nats.FileStorage, Replicas: min(5, n)})
			} else {
				kv, err = early.KeyValue("revoked")
			}
			if err == nil {
				w, err = kv.WatchAll(nats.IgnoreDeletes(), nats.MetaOnly())
			}
			return err
		}); err != nil {
			s.stop()
			return nil, err
		}
		go func() {
			for e := range w.Updates() {
				if e == nil {
					continue
				}
				if run, k, ok := parseSpreadKey(e.Key()); ok {
					s.seen.saw(i, run, k)
				}
			}
		}()
	}
	var next atomic.Int64
	s.write = func(ctx context.Context, run, from, to int) error {
		js := streams[int(next.Add(1))%n]
		var pending []nats.PubAckFuture
		for i := from; i < to; i++ {
			f, err := js.PublishAsync("$KV.revoked."+spreadKey(run, i), []byte("1"))
			if err != nil {
				return err
			}
			pending = append(pending, f)
		}
		for _, f := range pending {
			select {
			case <-f.Ok():
			case err := <-f.Err():
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	return s, nil
}
