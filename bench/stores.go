package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/dchest/siphash"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/krakendio/bloomfilter/v2"
	krakend "github.com/krakendio/bloomfilter/v2/rotate"
	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

// subject is one way to know whether a token is revoked.
type subject struct {
	name   string
	remote bool // behind a socket: asked less often
	batch  int  // keys in a question; 0: one
	failed bool // it is not asked any more
	ask    func(p *probes, worker int) question
	// put revokes a key for a second and del forgets it, for those that are measured while they are written to. A store that forgets by
	// itself has no del.
	put   func(i int)
	del   func(i int)
	close func()
}

// probes are the keys that are asked for, ready as a service has them. There are more than caches hold, and the hits among them lie
// anywhere in the store.
type probes struct {
	keys   []string
	bytes  [][]byte
	claims []*revocation.Claims
	want   []bool
}

const probeMask = 1<<17 - 1

// newProbes makes probes of which a share is held by a store of n keys.
func newProbes(n int, hits float64, now time.Time) *probes {
	p := &probes{keys: make([]string, probeMask+1), bytes: make([][]byte, probeMask+1), claims: make([]*revocation.Claims, probeMask+1), want: make([]bool, probeMask+1)}
	for i := range p.keys {
		k := absentFrom + i
		if float64(mix(uint64(i)+1)>>11)/(1<<53) < hits {
			k, p.want[i] = int(mix(uint64(i))%uint64(n)), true
		}
		p.keys[i], p.bytes[i], p.claims[i] = key(k), []byte(key(k)), claimsOf(k, now)
	}
	return p
}

// touched keeps the compiler from leaving out what touch reads.
var touched atomic.Uint64

// touch reads a token's key and claims into the cache: who asks has just parsed them.
func (p *probes) touch(i int) {
	i &= probeMask
	sum := uint64(p.bytes[i][0]) + uint64(p.bytes[i][len(p.bytes[i])-1]) + uint64(p.keys[i][0]) + uint64(p.keys[i][len(p.keys[i])-1])
	for _, name := range [...]string{"iss", "jti", "sub", "sid", "client_id", "tenant_id"} {
		text, _ := p.claims[i].Lookup(name).AsString()
		for j := 0; j < len(text); j += 32 {
			sum += uint64(text[j])
		}
	}
	touched.Store(sum)
}

var benchKey = revocation.Key{1, 2, 3}

// newTable is a table that holds n denied tokens, and with more shapes a tenth as many subjects and sessions and ten of three others.
func newTable(n, shapes int, now time.Time) (*revocation.Table, error) {
	t, err := revocation.NewTable(revocation.TableConfig{Key: benchKey})
	if err != nil {
		return nil, err
	}
	return t, fillTable(t, n, shapes, now)
}

func fillTable(t *revocation.Table, n, shapes int, now time.Time) error {
	t.Expect(n)
	ms := now.UnixMilli()
	for i, claim := range []string{"jti", "sub", "sid", "client_id", "tenant_id", revocation.HeaderKID}[:shapes] {
		count := []int{n, n / 10, n / 10, 10, 10, 10}[i]
		of, err := newRecords(benchKey, claim, now.Add(lifetime))
		if err != nil {
			return err
		}
		if _, err := t.Define(of.shape, of.one.ExpiresAt, ms, revocation.Admin); err != nil {
			return err
		}
		for j := range count {
			r, err := of.record(key(j))
			if err != nil {
				return err
			}
			if _, err := t.Merge(r, 1, ms, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func tableSubject(name string, n, shapes int, now time.Time) (*subject, error) {
	t, err := newTable(n, shapes, now)
	if err != nil {
		return nil, err
	}
	ms := now.UnixMilli()
	of, err := newRecords(benchKey, "jti", now.Add(time.Second))
	if err != nil {
		return nil, err
	}
	later := ms // guarded time of the writer, a thousand times as fast: what it writes lives a second and the slack of ten minutes
	return &subject{
		name: name, close: func() { _ = t.Close() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				return t.Check(p.claims[i], ms).Status == status(p.want[i])
			}
		},
		put: func(i int) {
			later += 10
			r, err := of.record(key(i))
			if err == nil {
				r.ExpiresAt = uint32(later/1000) + 1
				_, err = t.Merge(r, 1, later, false)
			}
			if err != nil {
				panic(err) // an unknown shape or a full table: this program's fault
			}
			if i%5000 == 0 { // every 50 ms at the rate of writes
				t.Sweep(later)
			}
		},
	}, nil
}

func status(revoked bool) revocation.Status {
	if revoked {
		return revocation.Revoked
	}
	return revocation.Active
}

// storeSubject is the lookup of one key without what makes it a check: hashing and the table of keys and deadlines.
func storeSubject(n int, now time.Time) (one, batch *subject, err error) {
	s, err := ttlstore.New(ttlstore.Config{})
	if err != nil {
		return nil, nil, err
	}
	s.Expect(n)
	hash := func(b []byte) ttlstore.Key {
		hi, lo := siphash.Hash128(1, 2, b)
		return ttlstore.Key{Hi: hi, Lo: lo}
	}
	at, until := uint32(now.Unix()), uint32(now.Add(lifetime).Unix())
	for i := range n {
		k := hash([]byte(key(i)))
		if err := s.Update(k, at, false, func(ttlstore.Item, bool) (ttlstore.Item, bool) { return ttlstore.Item{Key: k, Deadline: until}, true }); err != nil {
			return nil, nil, err
		}
	}
	one = &subject{
		name: "revokd ttlstore, one key, hashed", close: func() { _ = s.Close() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				return s.Has(hash(p.bytes[i]), at) == p.want[i]
			}
		},
	}
	batch = &subject{
		name: "revokd ttlstore, batch of 128", batch: 128,
		ask: func(p *probes, _ int) question {
			var keys [128]ttlstore.Key
			var out [128]bool
			return func(i int) bool {
				first := i * 128 & probeMask
				for j := range keys {
					keys[j] = hash(p.bytes[first+j])
				}
				s.HasBatch(keys[:], at, out[:])
				for j := range out {
					if out[j] != p.want[first+j] {
						return false
					}
				}
				return true
			}
		},
	}
	return one, batch, nil
}

func mapSubject(n int, now time.Time) *subject {
	var mu sync.RWMutex
	m := make(map[string]int64, n)
	at, until := now.Unix(), now.Add(lifetime).Unix()
	for i := range n {
		m[key(i)] = until
	}
	return &subject{
		name: "map + RWMutex",
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				mu.RLock()
				deadline := m[p.keys[i]]
				mu.RUnlock()
				return (deadline >= at) == p.want[i]
			}
		},
		put: func(i int) { k := key(i); mu.Lock(); m[k] = until; mu.Unlock() },
		del: func(i int) { k := key(i); mu.Lock(); delete(m, k); mu.Unlock() },
	}
}

func syncMapSubject(n int, now time.Time) *subject {
	var m sync.Map
	at, until := now.Unix(), now.Add(lifetime).Unix()
	for i := range n {
		m.Store(key(i), until)
	}
	return &subject{
		name: "sync.Map",
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				v, ok := m.Load(p.keys[i])
				return (ok && v.(int64) >= at) == p.want[i]
			}
		},
		put: func(i int) { m.Store(key(i), until) },
		del: func(i int) { m.Delete(key(i)) },
	}
}

func otterSubject(n int) (*subject, error) {
	// Without a maximum: with one it drops live entries.
	c, err := otter.New(&otter.Options[string, struct{}]{InitialCapacity: n, ExpiryCalculator: otter.ExpiryWriting[string, struct{}](lifetime)})
	if err != nil {
		return nil, err
	}
	for i := range n {
		c.Set(key(i), struct{}{})
	}
	return &subject{
		name: "otter", close: func() { c.StopAllGoroutines() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				_, ok := c.GetIfPresent(p.keys[i])
				return ok == p.want[i]
			}
		},
		put: func(i int) { c.Set(key(i), struct{}{}) },
		del: func(i int) { c.Invalidate(key(i)) },
	}, nil
}

// krakendSubject is the filter of KrakenD's revoker. It may say yes to what was not revoked; that it says no to what was is counted.
func krakendSubject(n int, missed *atomic.Int64) *subject {
	f := krakend.New(context.Background(), krakend.Config{Config: bloomfilter.Config{N: uint(n), P: 1e-3, HashName: bloomfilter.HASHER_OPTIMAL}, TTL: uint(lifetime.Seconds())})
	for i := range n {
		f.Add([]byte(key(i)))
	}
	return &subject{
		name: "KrakenD bloomfilter, optimal", close: f.Close,
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				if !f.Check(p.bytes[i]) && p.want[i] {
					missed.Add(1)
				}
				return true
			}
		},
		put: func(i int) { f.Add([]byte(key(i))) },
	}
}

// nodeSubject is a lone node in this process with a journal, as an agent has it.
func nodeSubject(ctx context.Context, dir string, n int) (*subject, error) {
	start := func() (*node.Node, func() error, error) {
		nd, err := node.New(node.Config{Name: "n1", Key: benchKey, Dir: filepath.Join(dir, "node")})
		if err != nil {
			return nil, nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- nd.Run(ctx) }()
		stop := func() error { cancel(); return errors.Join(<-done, nd.Close()) }
		if err := until(ctx, patience, func() error {
			if w := nd.Ready(); len(w) > 0 {
				return fmt.Errorf("the node waits for %v", w)
			}
			return nil
		}); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
		return nd, stop, nil
	}
	nd, stop, err := start()
	if err != nil {
		return nil, err
	}
	m, err := revocation.ParseMatch("iss=" + issuer + ",jti=" + key(0))
	if err == nil {
		_, _, err = nd.Write(ctx, []revocation.Request{{Match: m, ExpiresAt: time.Now().Add(lifetime).UnixMilli()}}, node.WriteOptions{})
	}
	if err = errors.Join(err, stop()); err != nil {
		return nil, err
	}
	if err := fillJournal(ctx, filepath.Join(dir, "node"), benchKey, 1, n); err != nil {
		return nil, err
	}
	if nd, stop, err = start(); err != nil {
		return nil, err
	}
	return &subject{
		name: "revokd node.Check", close: func() { _ = stop() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				return nd.Check(p.claims[i]).Status == status(p.want[i])
			}
		},
	}, nil
}

// clientSubject is a replica of an agent.
func clientSubject(ctx context.Context, a *agent, name string, mode client.Mode, remote bool) (*subject, error) {
	c, err := client.Open(ctx, client.Config{Addrs: []string{"127.0.0.1:" + a.port}, Mode: mode})
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := c.Ready(ready); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &subject{
		name: name, remote: remote, close: func() { _ = c.Close() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				return c.Check(p.claims[i]).Status == status(p.want[i])
			}
		},
	}, nil
}

// newToken is measured for what is not found only: it asks for a key once.
const newToken = "Redis GET, rueidis client cache, new token"

// redisSubjects ask a Redis that is filled.
func redisSubjects(ctx context.Context, s *server) (list []*subject, err error) {
	tcp := redis.NewClient(&redis.Options{Addr: s.addr, PoolSize: 64})
	unix := redis.NewClient(&redis.Options{Network: "unix", Addr: s.sock, PoolSize: 64})
	exists := func(c *redis.Client) func(p *probes, _ int) question {
		return func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				n, err := c.Exists(ctx, p.keys[i]).Result()
				return err == nil && (n == 1) == p.want[i]
			}
		}
	}
	list = append(list,
		&subject{
			name: "Redis EXISTS, go-redis, TCP", remote: true, ask: exists(tcp), close: func() { _ = tcp.Close() }, put: redisPutter(ctx, s),
		},
		&subject{name: "Redis EXISTS, go-redis, Unix socket", remote: true, ask: exists(unix), close: func() { _ = unix.Close() }},
		&subject{
			name: "Redis EXISTS, go-redis, pipeline of 100", remote: true, batch: 100,
			ask: func(p *probes, _ int) question {
				return func(i int) bool {
					first := i * 100 & probeMask
					answers, err := tcp.Pipelined(ctx, func(pipe redis.Pipeliner) error {
						for j := range 100 {
							pipe.Exists(ctx, p.keys[(first+j)&probeMask])
						}
						return nil
					})
					if err != nil {
						return false
					}
					for j, a := range answers {
						if (a.(*redis.IntCmd).Val() == 1) != p.want[(first+j)&probeMask] {
							return false
						}
					}
					return true
				}
			},
		})
	r, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.addr}})
	if err != nil {
		return list, err
	}
	get := func(k string, cached bool) (found bool, err error) {
		var answer rueidis.RedisResult
		if cached {
			answer = r.DoCache(ctx, r.B().Get().Key(k).Cache(), time.Hour)
		} else {
			answer = r.Do(ctx, r.B().Get().Key(k).Build())
		}
		if err := answer.Error(); err != nil && !rueidis.IsRedisNil(err) {
			return false, err
		}
		return !rueidis.IsRedisNil(answer.Error()), nil
	}
	asks := func(cached bool) func(p *probes, _ int) question {
		return func(p *probes, _ int) question {
			const few = 1<<10 - 1 // keys, all of them seen: the best that a cache can do
			for i := range few + 1 {
				if !cached {
					break
				}
				_, _ = get(p.keys[i], true) // who asks again sees the error
			}
			return func(i int) bool {
				i &= probeMask
				if cached {
					i &= few
				}
				found, err := get(p.keys[i], cached)
				return err == nil && found == p.want[i]
			}
		}
	}
	var fresh atomic.Int64
	list = append(list,
		&subject{name: "Redis GET, rueidis", remote: true, ask: asks(false), close: r.Close},
		&subject{name: "Redis GET, rueidis client cache, token seen before", ask: asks(true)},
		&subject{name: newToken, remote: true, ask: func(*probes, int) question {
			return func(int) bool {
				found, err := get(key(2*absentFrom+int(fresh.Add(1))), true)
				return err == nil && !found
			}
		}})
	return list, nil
}

func memcachedSubject(s *server) *subject {
	c := memcache.New(s.addr)
	c.MaxIdleConns = 64
	return &subject{
		name: "memcached GET, gomemcache", remote: true, close: func() { _ = c.Close() },
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				_, err := c.Get(p.keys[i])
				return (err == nil) == p.want[i] && (err == nil || errors.Is(err, memcache.ErrCacheMiss))
			}
		},
	}
}

const revokedTable = "CREATE TABLE IF NOT EXISTS revoked (id text, expires_at timestamptz NOT NULL)"

// fillPostgres makes the table with its primary key.
func fillPostgres(ctx context.Context, pool *pgxpool.Pool, n int) error {
	if _, err := pool.Exec(ctx, "DROP TABLE IF EXISTS revoked"); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, revokedTable); err != nil {
		return err
	}
	at := time.Now().Add(lifetime)
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"revoked"}, []string{"id", "expires_at"}, pgx.CopyFromSlice(n, func(i int) ([]any, error) { return []any{key(i), at}, nil })); err != nil {
		return err
	}
	for _, statement := range []string{"ALTER TABLE revoked ADD PRIMARY KEY (id)", "VACUUM ANALYZE revoked", "CHECKPOINT"} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func postgresPool(ctx context.Context, s *server, conns int) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(fmt.Sprintf("host=%s port=%s user=bench dbname=postgres sslmode=disable", s.sock, s.addr[len("127.0.0.1:"):]))
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(conns)
	return pgxpool.NewWithConfig(ctx, cfg)
}

func postgresSubject(ctx context.Context, pool *pgxpool.Pool) *subject {
	return &subject{
		name: "PostgreSQL primary key, pgx, Unix socket", remote: true, close: pool.Close,
		ask: func(p *probes, _ int) question {
			return func(i int) bool {
				i &= probeMask
				var one int
				err := pool.QueryRow(ctx, "SELECT 1 FROM revoked WHERE id = $1 AND expires_at > now()", p.keys[i]).Scan(&one)
				return (err == nil) == p.want[i] && (err == nil || errors.Is(err, pgx.ErrNoRows))
			}
		},
	}
}

// redisPutter sets keys that live a second, a hundred in a pipeline.
func redisPutter(ctx context.Context, s *server) func(i int) {
	c := redis.NewClient(&redis.Options{Addr: s.addr})
	var keys []string
	return func(i int) {
		if keys = append(keys, key(i)); len(keys) < 100 {
			return
		}
		_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.Set(ctx, k, 1, time.Second)
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			panic(err) // it is on this machine and was there a moment ago
		}
		keys = keys[:0]
	}
}
