package node

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/revocation"
)

// store is how many records the nodes of these benchmarks hold.
func storeSize() int {
	if testing.Short() {
		return 1_000_000
	}
	return 10_000_000
}

// The origin of the records that nodes hold from the beginning: its node is not there any more.
var gone = replication.Origin{Index: 1, ID: replication.MakeOrigin(42, replication.Bulk), Node: "gone"}

// fill gives a node without disk the first held of records numbered in no order of their keys, as a start from a journal would: its log is empty.
func fill(b *testing.B, n *Node, records, held int) {
	b.Helper()
	one := deny(b, "x")
	one.ExpiresAt = time.Now().Add(time.Hour).UnixMilli()
	plan, err := n.table.Plan(one, time.Now().UnixMilli(), n.Now())
	if err != nil {
		b.Fatal(err)
	}
	rec := n.table.Record(plan.Main())
	if _, err := n.table.Define(plan.Main().Shape, rec.ExpiresAt, n.Now(), revocation.Unbound); err != nil {
		b.Fatal(err)
	}
	n.table.Expect(held)
	value, expires := rec.Value, rec.ExpiresAt
	step := ^uint64(0) / uint64(records)
	for i := range uint64(records) {
		number := i*999_999_937%uint64(records) + 1 // a prime: every number once
		if number > uint64(held) {
			continue
		}
		rec.Value, rec.ExpiresAt = value-int64(number%3_600_000), expires+uint32(number%3600)
		rec.Fingerprint = revocation.Fingerprint{Hi: i*step + i*0x9e3779b97f4a7c15%step, Lo: i * 0x9e3779b97f4a7c15}
		if _, err := n.table.Merge(rec, uint64(replication.MakeDot(gone.Index, number)), n.Now(), false); err != nil {
			b.Fatal(err)
		}
	}
	if err := n.replica.begin([]replication.Origin{gone}, []replication.VectorEntry{{Index: gone.Index, Number: uint64(held)}}, nil); err != nil {
		b.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(10 * time.Millisecond) { // between polls
		n.replica.mu.Lock()
		quiet := n.replica.core.Deadline()-n.cfg.Clock.Mono() > 50*time.Millisecond
		n.replica.mu.Unlock()
		if quiet { // what a start does in pieces is done
			return
		}
	}
	b.Fatal("a node does not come to rest")
}

// apart is a mesh without links.
func apart(b *testing.B, wrap func(node, peer string, s Stream) Stream, names ...string) *mesh {
	m := &mesh{t: b, names: names, wrap: wrap, nodes: map[string]*Node{}, stops: map[string]func(){}, links: map[string]func(){}}
	for _, name := range names {
		m.start(name, Config{Name: name, Durability: DurabilityMemory, Key: testKey, Cluster: &ClusterConfig{}, AuditEvery: -1})
	}
	b.Cleanup(func() {
		for _, name := range names {
			m.stops[name]()
		}
		m.wg.Wait()
	})
	return m
}

// BenchmarkDifference: a node that lacks some of ten million records is connected to two that have them, in one process without disks. From the log: the
// two have written them since they started. By scan: they have just started.
func BenchmarkDifference(b *testing.B) {
	for _, missing := range []int{100, 1_000_000} {
		if missing > storeSize()/10 {
			missing = storeSize() / 10
		}
		for _, way := range []string{"log", "scan"} {
			b.Run(fmt.Sprintf("missing=%d/%s", missing, way), func(b *testing.B) {
				var bytes atomic.Int64
				m := apart(b, func(node, peer string, s Stream) Stream {
					if node != "c" && peer != "c" {
						return s
					}
					return &watched{Stream: s, bytes: &bytes, taken: func() {}}
				}, "a", "b", "c")
				records := storeSize()
				want := records
				if way == "log" {
					for _, name := range m.names {
						fill(b, m.nodes[name], records, records)
					}
					m.link("a", "b")
					m.ready2(b, "a", "b")
					want += missing
					batch := make([]revocation.Request, 0, MaxBatch)
					for i := range missing {
						r := deny(b, fmt.Sprint("more-", i))
						r.ExpiresAt = time.Now().Add(time.Hour).UnixMilli()
						if batch = append(batch, r); len(batch) == MaxBatch || i == missing-1 {
							if _, _, err := m.nodes["a"].Write(b.Context(), batch, WriteOptions{Ack: AckLocal, Bulk: true}); err != nil {
								b.Fatal(err)
							}
							batch = batch[:0]
						}
					}
				} else {
					for _, name := range []string{"a", "b"} {
						fill(b, m.nodes[name], records, records)
					}
					fill(b, m.nodes["c"], records, records-missing)
					m.link("a", "b")
				}
				size := func(name string) int { n, _ := m.nodes[name].table.Size(); return n }
				m.until("b has all", func() bool { return size("b") == want })
				b.ResetTimer()
				used := cpuTime(b)
				m.link("a", "c")
				m.link("b", "c")
				m.until("c has all", func() bool { return size("c") == want })
				b.StopTimer()
				b.ReportMetric(float64(b.Elapsed().Microseconds())/1000, "ms-level")
				b.ReportMetric((cpuTime(b)-used).Seconds()*1000, "cpu-ms")
				m.until("c's vector has all", func() bool {
					m.nodes["c"].replica.mu.Lock()
					defer m.nodes["c"].replica.mu.Unlock()
					held := uint64(0)
					for _, v := range m.nodes["c"].replica.core.Vector() {
						held += v.Number
					}
					return held == uint64(want)
				})
				b.ReportMetric(float64(bytes.Load()), "bytes")
				b.ReportMetric(float64(bytes.Load())/float64(missing*replication.RecordSize), "bytes/size")
			})
		}
	}
}

// ready2 waits until some nodes are ready.
func (m *mesh) ready2(b *testing.B, names ...string) {
	for _, name := range names {
		m.until(name+" is ready", func() bool { return len(m.nodes[name].Ready()) == 0 })
	}
}

// framed is a stream over a connection: messages with their lengths before them.
type framed struct {
	conn net.Conn
	in   *bufio.Reader
	sent *atomic.Int64
}

func (f *framed) Send(b []byte) error {
	f.sent.Add(int64(len(b)))
	if _, err := f.conn.Write(binary.BigEndian.AppendUint32(make([]byte, 0, 4), uint32(len(b)))); err != nil {
		return err
	}
	_, err := f.conn.Write(b)
	return err
}

func (f *framed) Receive() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(f.in, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, min(binary.BigEndian.Uint32(length[:]), replication.MaxMessage))
	_, err := io.ReadFull(f.in, b)
	return b, err
}

func (f *framed) Close() { _ = f.conn.Close() }

// linkTLS is link over a connection with TLS on a loopback address.
func (m *mesh) linkTLS(b *testing.B, from, to string, sent *atomic.Int64) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	m.wg.Go(func() {
		if conn, err := ln.Accept(); err == nil {
			_ = m.nodes[to].Session(b.Context(), &framed{conn, bufio.NewReaderSize(conn, 64<<10), sent}, SessionPeer{Name: from})
		}
	})
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		b.Fatal(err)
	}
	m.wg.Go(func() {
		_ = m.nodes[from].Session(b.Context(), &framed{conn, bufio.NewReaderSize(conn, 64<<10), sent}, SessionPeer{Name: to, Dialed: true})
	})
}

// BenchmarkBootstrap: an empty node is connected to three that have ten million records, over TLS, in one process without disks.
func BenchmarkBootstrap(b *testing.B) {
	m := apart(b, nil, "a", "b", "c", "d")
	for _, name := range []string{"a", "b", "c"} {
		fill(b, m.nodes[name], storeSize(), storeSize())
	}
	var sent atomic.Int64
	b.ResetTimer()
	used := cpuTime(b)
	for _, name := range []string{"a", "b", "c"} {
		m.linkTLS(b, name, "d", &sent)
	}
	m.until("d has all", func() bool { n, _ := m.nodes["d"].table.Size(); return n == storeSize() })
	b.StopTimer()
	b.ReportMetric(b.Elapsed().Seconds(), "s-level")
	b.ReportMetric((cpuTime(b) - used).Seconds(), "cpu-s")
	b.ReportMetric(float64(sent.Load())/float64(storeSize()), "bytes/record")
}
