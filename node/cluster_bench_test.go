package node

import (
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/revokd/revokd/revocation"
)

// watched is a session that tells when a message has been taken in: the node then asks for the next one.
type watched struct {
	Stream
	taken func()
	bytes *atomic.Int64 // sent
}

func (w *watched) Send(b []byte) error {
	w.bytes.Add(int64(len(b)))
	return w.Stream.Send(b)
}

func (w *watched) Receive() ([]byte, error) {
	w.taken()
	return w.Stream.Receive()
}

// trial is revocations of one writer and when they were seen elsewhere.
type trial struct {
	requests []revocation.Request
	claims   []*revocation.Claims
	written  []atomic.Int64 // when the write began, nanoseconds since the start; 0: not yet
	began    time.Time
	mu       sync.Mutex
	seen     map[string]int // by node
	delays   map[string][]time.Duration
}

func newTrial(t testing.TB, name string, count int) *trial {
	now := time.Now()
	tr := &trial{written: make([]atomic.Int64, count), began: now, seen: map[string]int{}, delays: map[string][]time.Duration{}}
	for i := range count {
		id := fmt.Sprintf("%s-%d", name, i)
		tr.requests = append(tr.requests, revocation.Request{Match: match(t, "iss=i,jti="+id), ExpiresAt: now.Add(time.Hour).UnixMilli()})
		tr.claims = append(tr.claims, claimsAt(t, now, id))
	}
	return tr
}

// look notes what a node has begun to answer Revoked for.
func (tr *trial) look(name string, n *Node) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	i := tr.seen[name]
	for ; i < len(tr.claims); i++ {
		at := tr.written[i].Load()
		if at == 0 || n.Check(tr.claims[i]).Status != revocation.Revoked {
			break
		}
		tr.delays[name] = append(tr.delays[name], time.Since(tr.began)-time.Duration(at))
	}
	tr.seen[name] = i
}

// everywhere waits until others have seen all, and returns for each revocation how long it took to be visible on the last node.
func (tr *trial) everywhere(t testing.TB, others []string) []time.Duration {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // between polls
		tr.mu.Lock()
		ok := true
		for _, name := range others {
			ok = ok && tr.seen[name] == len(tr.claims)
		}
		tr.mu.Unlock()
		if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("seen %v of %d", tr.seen, len(tr.claims))
		}
	}
	all := make([]time.Duration, len(tr.claims))
	for _, name := range others {
		for i, d := range tr.delays[name] {
			all[i] = max(all[i], d)
		}
	}
	return all
}

func reportDelays(b *testing.B, all []time.Duration, suffix string) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "p50-ms"+suffix)
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms"+suffix)
	b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "max-ms"+suffix)
}

// cpuTime is what this process has used: on a machine with other work it says more than the time on the wall.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var five = []string{"a", "b", "c", "d", "e"}

// watchedMesh is five nodes without disks; look is called on a node after each message that it has taken in.
func watchedMesh(b *testing.B, cfg Config, look func(name, peer string, n *Node)) (m *mesh, bytes *atomic.Int64) {
	cfg.Durability, cfg.Key = DurabilityMemory, testKey
	bytes = new(atomic.Int64)
	var nodes atomic.Pointer[map[string]*Node]
	m = newWrapped(b, cfg, func(name, peer string, s Stream) Stream {
		return &watched{Stream: s, bytes: bytes, taken: func() {
			if list := nodes.Load(); list != nil {
				look(name, peer, (*list)[name])
			}
		}}
	}, five...)
	m.ready()
	nodes.Store(&m.nodes)
	return m, bytes
}

// BenchmarkPropagation: single revocations on all five nodes in turn, in one process without disks, from the call until the last node
// answers Revoked.
func BenchmarkPropagation(b *testing.B) {
	for _, rate := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprintf("%d", rate), func(b *testing.B) {
			trials := map[string]*trial{}
			count := max(100, min(rate*3, 20_000)) / len(five)
			for _, name := range five {
				trials[name] = newTrial(b, name, count)
			}
			m, _ := watchedMesh(b, Config{}, func(name, peer string, n *Node) { trials[peer].look(name, n) })
			b.ResetTimer()
			began := time.Now()
			for i := range count * len(five) {
				if wait := time.Until(began.Add(time.Second * time.Duration(i) / time.Duration(rate))); wait > 0 {
					time.Sleep(wait) // the rate of the load
				}
				name := five[i%len(five)]
				tr := trials[name]
				tr.written[i/len(five)].Store(int64(time.Since(tr.began)))
				if _, _, err := m.nodes[name].Write(b.Context(), tr.requests[i/len(five):][:1], WriteOptions{Ack: AckLocal}); err != nil {
					b.Fatal(err)
				}
			}
			took := time.Since(began)
			var all []time.Duration
			for _, name := range five {
				all = append(all, trials[name].everywhere(b, slices.DeleteFunc(slices.Clone(five), func(n string) bool { return n == name }))...)
			}
			reportDelays(b, all, "")
			b.ReportMetric(float64(len(all))/took.Seconds(), "revocations/s")
		})
	}
}

// BenchmarkBulk: a million revocations in batches of a thousand on one node until all five have them, and single ones on another node
// meanwhile.
func BenchmarkBulk(b *testing.B) {
	count := 1_000_000
	if testing.Short() {
		count = 100_000
	}
	for _, beside := range []bool{false, true} {
		b.Run(fmt.Sprintf("beside=%v", beside), func(b *testing.B) {
			now := time.Now()
			single := newTrial(b, "single", 20_000)
			m, _ := watchedMesh(b, Config{}, func(name, peer string, n *Node) {
				if peer == "b" {
					single.look(name, n)
				}
			})
			b.ResetTimer()
			began, used := time.Now(), cpuTime(b)
			var writers sync.WaitGroup
			stop := make(chan struct{})
			wrote := 0
			if beside {
				writers.Go(func() {
					t := time.NewTicker(2 * time.Millisecond)
					defer t.Stop()
					for ; wrote < len(single.requests); wrote++ {
						select {
						case <-stop:
							return
						case <-t.C:
						}
						single.written[wrote].Store(int64(time.Since(single.began)))
						if _, _, err := m.nodes["b"].Write(b.Context(), single.requests[wrote:][:1], WriteOptions{Ack: AckLocal}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			batch := make([]revocation.Request, MaxBatch)
			for first := 0; first < count; first += MaxBatch {
				for i := range batch {
					batch[i] = revocation.Request{Match: match(b, "iss=i,jti=bulk-"+strconv.Itoa(first+i)), ExpiresAt: now.Add(time.Hour).UnixMilli()}
				}
				if _, _, err := m.nodes["a"].Write(b.Context(), batch, WriteOptions{Ack: AckLocal, Bulk: true}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(time.Since(began).Seconds(), "s-written")
			for _, name := range five {
				m.until("all there", func() bool { records, _ := m.nodes[name].table.Size(); return records >= count })
			}
			b.ReportMetric(time.Since(began).Seconds(), "s-everywhere")
			b.ReportMetric((cpuTime(b) - used).Seconds(), "cpu-s")
			close(stop)
			writers.Wait()
			if beside {
				single.mu.Lock()
				single.claims = single.claims[:wrote]
				single.mu.Unlock()
				reportDelays(b, single.everywhere(b, []string{"a", "c", "d", "e"}), "-single")
			}
		})
	}
}
