package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/history"
	"github.com/revokd/revokd/internal/pki"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// staleness is the MaxStaleness of the nodes in these tests.
const staleness = 3 * time.Second

// network is a cluster of nodes that are hosts of their own: TLS, sealed gossip, no --dev.
type network struct {
	*fleet
	lab    *lab
	hosts  map[*member]*host
	faulty bool // each node has a control file of faults
}

// newNetwork makes the hosts, certificates and secrets of n nodes that are all to be voters.
func newNetwork(t *testing.T, n int, args ...string) *network {
	t.Helper()
	return newFaultyNetwork(t, n, "", args...)
}

// newFaultyNetwork builds the program with build tags; with "faults" among them each node has a control file.
func newFaultyNetwork(t *testing.T, n int, tags string, args ...string) *network {
	t.Helper()
	w := &network{
		lab: newLab(t), hosts: map[*member]*host{}, faulty: tags != "",
		fleet: &fleet{t: t, program: program(t, tags), home: t.TempDir(), args: append([]string{"--bootstrap-expect", strconv.Itoa(n), "--max-staleness", staleness.String()}, args...)},
	}
	w.run("ca", "init", "--cluster", "lab", "--out", w.path("ca"))
	w.run("ca", "issue", "client", "admin", "--role", "admin", "--ca", w.path("ca"), "--out", w.path("tls"))
	w.file("gossip.key", base64.StdEncoding.EncodeToString(random(32)))
	w.file("fingerprint.key", hex.EncodeToString(random(16)))
	w.file("keys.json", fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"k","x":%q}]}`, base64.RawURLEncoding.EncodeToString(random(32))))
	w.file("issuers.json", fmt.Sprintf(`{"issuers":[{"issuer":%q,"keys_file":"keys.json"}]}`, issuer))
	for i := range n {
		w.nodes = append(w.nodes, w.add(fmt.Sprintf("n%d", i+1)))
	}
	return w
}

// form starts the nodes and waits until they vote.
func (w *network) form() {
	w.t.Helper()
	var starting sync.WaitGroup
	for _, m := range w.nodes { // at once: none is ready before all are there
		starting.Go(func() { w.boot(m) })
	}
	starting.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
	w.voters(len(w.nodes))
}

func (w *network) path(name string) string { return filepath.Join(w.home, name) }

func (w *network) file(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(content+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// run runs the program in the directory of the test and returns what it prints.
func (w *network) run(args ...string) []byte {
	w.t.Helper()
	cmd := exec.Command(w.program, args...)
	cmd.Env, cmd.Dir = []string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}, w.home
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("revokd %s: %v: %s", strings.Join(args, " "), err, &stderr)
	}
	return out
}

// add makes a host and a certificate for a node.
func (w *network) add(name string) *member {
	w.t.Helper()
	m := &member{name: name}
	w.hosts[m] = w.lab.add()
	w.run("ca", "issue", "node", name, "--host", w.hosts[m].addr.String(), "--ca", w.path("ca"), "--out", w.path("tls"))
	source, err := pki.Load(pki.Config{CA: w.path("tls/ca.crt"), Cert: w.path("tls/admin.crt"), Key: w.path("tls/admin.key"), Clock: clock.System()})
	if err != nil {
		w.t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: w.hosts[m].dial, TLSClientConfig: source.ClientConfig(name)}
	w.t.Cleanup(transport.CloseIdleConnections)
	m.http = &http.Client{Transport: transport}
	url := "https://" + w.hosts[m].at(7950)
	m.api = revokdv1connect.NewRevocationServiceClient(m.http, url, connect.WithReadMaxBytes(16<<20))
	m.adm = revokdv1connect.NewClusterServiceClient(m.http, url)
	if w.faulty {
		w.fault(m, "")
	}
	return m
}

// flags are those of a node; a later one of the same name wins.
func (w *network) flags(m *member) []string {
	h := w.hosts[m]
	args := append(h.command(), cmp.Or(m.program, w.program), "agent", "--node-name", m.name, "--data-dir", w.home, "--api-addr", h.at(7950), "--gossip-addr", h.at(7956),
		"--tls-cert", w.path("tls/"+m.name+".crt"), "--tls-key", w.path("tls/"+m.name+".key"), "--tls-ca", w.path("tls/ca.crt"),
		"--issuers", w.path("issuers.json"), "--key-file", w.path("fingerprint.key"), "--gossip-key-file", w.path("gossip.key"))
	for other, h := range w.hosts {
		if other != m {
			args = append(args, "--join", h.at(7956))
		}
	}
	return append(args, w.args...)
}

// boot starts a node and waits until it is ready. It may be called beside the test's goroutine.
func (w *network) boot(m *member) { w.begin(m, false) }

func (w *network) begin(m *member, unready bool) {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{
		Args: w.flags(m), Env: append([]string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}, w.env(m)...), Dir: w.home, HTTP: m.http, Unready: unready,
	})
	if err != nil {
		w.t.Errorf("%s: %v", m.name, err)
		return
	}
	w.t.Cleanup(p.Kill)
	m.proc = p
}

// env is what a node finds in its environment: the control file of its faults, if the program can have any.
func (w *network) env(m *member) []string {
	if !w.faulty {
		return nil
	}
	return []string{"REVOKD_FAULTS=" + w.control(m)}
}

func (w *network) control(m *member) string { return w.path(m.name + ".faults") }

// fault writes the control file of a node.
func (w *network) fault(m *member, content string) {
	w.t.Helper()
	w.file(m.name+".faults.new", content)
	if err := os.Rename(w.control(m)+".new", w.control(m)); err != nil {
		w.t.Fatal(err)
	}
}

// attempt is one write: what was asked of whom, and what became of it.
type attempt struct {
	node         *member
	key          string // of the record: the claim and its value
	quorum       bool
	covered      bool // by what was there before
	began, ended time.Time
	receipt      *revokdv1.Receipt
	err          error
}

// stored reports whether the record is in the cluster: with a receipt it is on one disk at least.
func (a *attempt) stored() bool { return a.receipt != nil }

// sight is one check of a token that nobody has revoked.
type sight struct {
	node    *member
	began   time.Time
	verdict revokdv1.Verdict
}

// storm writes and checks on all nodes, and judges what must hold whatever the network does.
type storm struct {
	w       *network
	name    string
	timeout time.Duration // of writes that a majority has to acknowledge
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	attempts []attempt
	sights   []sight
	acked    []attempt // by a majority, each with a token of its own
	checks   int
	faults   []string // what was wrong
}

const (
	localPause  = 10 * time.Millisecond // between writes of one writer
	quorumPause = 20 * time.Millisecond
	checkPause  = 4 * time.Millisecond
	pool        = 40 // names that all nodes write
)

func (w *network) storm(name string, timeout time.Duration) *storm {
	s := &storm{w: w, name: name, timeout: timeout}
	ctx, cancel := context.WithCancel(w.t.Context())
	s.stop = cancel
	for _, m := range w.nodes {
		s.running.Go(func() { s.write(ctx, m, false, 0) })
		for i := range 3 {
			s.running.Go(func() { s.write(ctx, m, true, i) })
		}
		s.running.Go(func() { s.check(ctx, m) })
	}
	return s
}

// write writes until ctx ends. Requests that have begun are finished, so that it is known what became of them.
func (s *storm) write(ctx context.Context, m *member, quorum bool, writer int) {
	options := &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}
	pause := localPause
	if quorum {
		options = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM, AckTimeout: durationpb.New(s.timeout)}
		pause = quorumPause
	}
	for i := 0; ctx.Err() == nil; i++ {
		claim, value := "jti", fmt.Sprintf("%s-%s-%t-%d-%d", s.name, m.name, quorum, writer, i)
		req := &revokdv1.RevokeRequest{Options: options, ExpiresAt: inAnHour()}
		switch i % 8 {
		case 0: // what others write too, with another end
			value = fmt.Sprint("shared-", mathrand.N(pool))
			req.ExpiresAt = timestamppb.New(time.Now().Add(time.Hour + mathrand.N(time.Hour)))
		case 1: // and with another cutoff
			claim, value, req.ExpiresAt = "sub", fmt.Sprint("shared-", mathrand.N(pool)), nil
		}
		req.Target = &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, claim: value}}}
		a := attempt{node: m, key: claim + ":" + value, quorum: quorum, began: time.Now()}
		res, err := m.api.Revoke(s.w.t.Context(), connect.NewRequest(req))
		a.ended, a.err = time.Now(), err
		if err == nil {
			a.receipt, a.covered = res.Msg.GetReceipt(), res.Msg.GetOutcome() == revokdv1.Outcome_OUTCOME_COVERED
		} else {
			a.receipt = receiptOf(err)
		}
		s.mu.Lock()
		s.attempts = append(s.attempts, a)
		if err == nil && quorum && i%8 > 1 {
			s.acked = append(s.acked, a)
		}
		if a.receipt == nil {
			s.faults = append(s.faults, fmt.Sprintf("%s: a write got no receipt: %v", m.name, err))
		}
		s.mu.Unlock()
		time.Sleep(pause) // the rate of the load
	}
}

// check checks until ctx ends: a token that nobody has revoked, then one that a majority has acknowledged.
func (s *storm) check(ctx context.Context, m *member) {
	seen := map[string]bool{} // revoked

	for ; ctx.Err() == nil; time.Sleep(checkPause) { // the rate of the load
		began := time.Now()
		v, err := s.w.check(m, "nobody-revokes-this")
		if err != nil {
			s.fault("%s: check: %v", m.name, err)
			continue
		}
		if v.GetVerdict() == revokdv1.Verdict_VERDICT_REVOKED {
			s.fault("%s: a token is revoked that nobody has revoked", m.name)
		}
		s.mu.Lock()
		s.checks++
		s.sights = append(s.sights, sight{m, began, v.GetVerdict()})
		var a attempt
		if len(s.acked) > 0 {
			a = s.acked[len(s.acked)-1-mathrand.N(min(len(s.acked), 500))]
		}
		s.mu.Unlock()
		if a.node == nil {
			continue
		}
		began = time.Now()
		_, id, _ := strings.Cut(a.key, ":")
		v, err = s.w.check(m, id)
		switch {
		case err != nil:
			s.fault("%s: check: %v", m.name, err)
		case v.GetVerdict() == revokdv1.Verdict_VERDICT_REVOKED:
			seen[id] = true
		case v.GetVerdict() == revokdv1.Verdict_VERDICT_ACTIVE && began.Sub(a.ended) > staleness:
			s.fault("%s: %s is active %s after a majority has acknowledged it, on %s", m.name, id, began.Sub(a.ended), a.node.name)
		case seen[id]:
			s.fault("%s: %s was revoked and is not any more: %s", m.name, id, v)
		}
		s.mu.Lock()
		s.checks++
		s.mu.Unlock()
	}
}

func (s *storm) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// end ends the writers and reports what was wrong.
func (s *storm) end() {
	s.w.t.Helper()
	s.stop()
	s.running.Wait()
	for i, f := range s.faults {
		if i == 10 {
			s.w.t.Errorf("and %d more", len(s.faults)-i)
			break
		}
		s.w.t.Error(f)
	}
}

// connected returns nil when every node is alive for every other and has a session with it.
func (w *network) connected() error {
	for _, m := range w.nodes {
		res, err := m.adm.Members(w.t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		good := 0
		for _, p := range res.Msg.GetMembers() {
			if p.GetSelf() || p.GetStatus() == "alive" && p.GetConnected() {
				good++
			}
		}
		if good != len(w.nodes) {
			return fmt.Errorf("%s: %v", m.name, res.Msg.GetMembers())
		}
	}
	return nil
}

// counts returns nil when every node has that many records.
func (w *network) counts(want int) error {
	for _, m := range w.nodes {
		st, err := m.api.Status(w.t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		if got := st.Msg.GetRecords(); got != int64(want) {
			return fmt.Errorf("%s has %d records, want %d; %v", m.name, got, want, st.Msg.GetReplication())
		}
	}
	return nil
}

// revokes returns nil when every node answers Revoked for every record.
func (w *network) revokes(keys map[string]bool) error {
	now := time.Now()
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(keys)), 100) {
		req := &revokdv1.CheckBatchRequest{}
		for _, key := range chunk {
			claim, value, _ := strings.Cut(key, ":")
			payload := fmt.Appendf(nil, `{"iss":%q,%q:%q,"iat":%d,"exp":%d}`, issuer, claim, value, now.Add(-time.Hour).Unix(), now.Add(time.Hour).Unix())
			req.Items = append(req.Items, &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}})
		}
		for _, m := range w.nodes {
			res, err := m.api.CheckBatch(w.t.Context(), connect.NewRequest(req))
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			for i, r := range res.Msg.GetResults() {
				if r.GetResponse().GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
					return fmt.Errorf("%s on %s: %s", chunk[i], m.name, r)
				}
			}
		}
	}
	return nil
}

// dumps stops all nodes and compares what they have on disk, record by record; want is how many there must be, or -1.
func (w *network) dumps(want int) {
	w.t.Helper()
	for _, m := range w.nodes {
		if err := m.proc.Signal(syscall.SIGTERM); err != nil {
			w.t.Fatal(err)
		}
	}
	type content struct{ since, expires int64 } // Unix milliseconds
	var first map[string]content
	going := time.Now().Add(time.Minute) // what is over before that, some may have forgotten and others not yet
	for _, m := range w.nodes {
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		code, err := m.proc.Wait(ctx)
		cancel()
		if err != nil || code != 0 {
			w.t.Fatalf("%s ended with %d %v\n%s", m.name, code, err, m.proc.Stderr())
		}
		set := map[string]content{}
		for line := range bytes.Lines(w.run("journal", "dump", "--output", "json", w.path(m.name))) {
			var rec struct {
				Fingerprint, Rule string
				Since, ExpiresAt  time.Time
			}
			if err := json.Unmarshal(line, &rec); err != nil {
				w.t.Fatal(err)
			}
			if rec.ExpiresAt.Add(slack).Before(going) {
				continue
			}
			// Of a record that was written again the log has every version; they join as they do in memory.
			key, c := rec.Fingerprint+" "+rec.Rule, content{rec.Since.UnixMilli(), rec.ExpiresAt.UnixMilli()}
			if old, ok := set[key]; ok {
				c.expires = max(c.expires, old.expires)
				if rec.Rule == "deny" {
					c.since = min(c.since, old.since)
				} else {
					c.since = max(c.since, old.since)
				}
			}
			set[key] = c
		}
		if want < 0 {
			want = len(set)
		}
		if len(set) != want {
			w.t.Errorf("%s has %d records on disk, want %d", m.name, len(set), want)
		}
		if first == nil {
			first = set
		}
		for key, c := range set {
			if first[key] != c {
				w.t.Errorf("%s: %v on %s, %v on %s", key, c, m.name, first[key], w.nodes[0].name)
			}
		}
	}
}

// cutFor is how long each fault lasts.
func cutFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("REVOKD_PARTITION_SECONDS")
	if text == "" {
		return 6 * time.Second // longer than a node without a majority goes on to answer
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 6 {
		t.Fatalf("REVOKD_PARTITION_SECONDS: %q, want a number of seconds from 6", text)
	}
	return time.Duration(n) * time.Second
}

// Whatever becomes of the network, what was acknowledged is revoked everywhere once it is whole again, a node without a majority says that it does not know,
// and all nodes have the same records.
func TestPartitions(t *testing.T) {
	lasts := cutFor(t)
	w := newNetwork(t, 5)
	w.form()
	from := func(nodes ...int) string {
		var addrs []string
		for _, n := range nodes {
			addrs = append(addrs, w.hosts[w.nodes[n-1]].addr.String())
		}
		return "ip saddr { " + strings.Join(addrs, ", ") + " }"
	}
	keys := map[string]bool{}
	for _, fault := range []struct {
		name     string
		minority []int
		drops    map[int]string // what each node drops
	}{
		{"halves", []int{1, 2}, map[int]string{1: from(3, 4, 5), 2: from(3, 4, 5), 3: from(1, 2), 4: from(1, 2), 5: from(1, 2)}},
		{"isolated", []int{3}, map[int]string{1: from(3), 2: from(3), 3: from(1, 2, 4, 5), 4: from(3), 5: from(3)}},
		{"oneway", []int{5}, map[int]string{5: from(1, 2, 3, 4)}}, // the others hear it
		// Nobody hears gossip any more, and everybody is declared dead; the sessions stay.
		{"gossip", nil, map[int]string{1: gossip, 2: gossip, 3: gossip, 4: gossip, 5: gossip}},
		// All members are alive, but one has no sessions.
		{"sessions", []int{2}, map[int]string{1: from(2) + sessions, 2: from(1, 3, 4, 5) + sessions, 3: from(2) + sessions, 4: from(2) + sessions, 5: from(2) + sessions}},
		{"loss", nil, map[int]string{1: loss, 2: loss, 3: loss, 4: loss, 5: loss}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			w.t, w.lab.t = t, t
			for _, h := range w.hosts {
				h.t = t
			}
			timeout := 2 * time.Second
			lossy := fault.name == "loss"
			if lossy {
				timeout = 5 * time.Second
			}
			s := w.storm(fault.name, timeout)
			time.Sleep(time.Second) // load before the fault
			for n, rule := range fault.drops {
				w.hosts[w.nodes[n-1]].drop(rule)
			}
			cut := time.Now()
			time.Sleep(lasts) // for which the network is broken
			healing := time.Now()
			dropped := 0
			for n := range fault.drops {
				dropped += w.hosts[w.nodes[n-1]].heal()
			}
			healed := time.Now()
			w.until("all nodes have found each other again", w.connected)
			rejoined := time.Since(healed)
			w.until("checks are active again", func() error { return s.active(healed) })
			answering := time.Since(healed)
			time.Sleep(time.Until(healed.Add(2 * time.Second))) // for more of them, whose answers are judged
			s.end()
			for _, a := range s.attempts {
				if a.stored() {
					keys[a.key] = true
				}
			}
			quiet := time.Now()
			w.until("all nodes have as many records as were written", func() error { return w.counts(len(keys)) })
			level := time.Since(quiet)
			if err := w.revokes(keys); err != nil {
				t.Error(err)
			}
			t.Logf("%d packets dropped; all sessions %s after healing, sets equal %s after the last write, %d records; %d writes, %d checks",
				dropped, rejoined.Round(time.Millisecond), level.Round(time.Millisecond), len(keys), len(s.attempts), s.checks)
			saved(t, history.Report{Nodes: 5, Rounds: 1, Counts: history.Counts{Checks: int64(s.checks), Faults: map[string]int{"partition/other": 1}}})
			if dropped == 0 {
				t.Error("nothing was dropped: the test shows nothing")
			}
			if rejoined > 10*time.Second {
				t.Errorf("all nodes found each other only %s after healing", rejoined)
			}
			if answering > 10*time.Second {
				t.Errorf("checks are active again only %s after healing", answering)
			}
			for i, m := range w.nodes {
				s.judge(m, slices.Contains(fault.minority, i+1), lossy, cut, healing, healed)
			}
			for _, m := range w.nodes {
				if receipt, err := w.revoke(t.Context(), m, fault.name+"-all-"+m.name, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL}); err != nil {
					t.Errorf("%s: not all acknowledge: %v %v", m.name, receipt, err)
				}
				keys["jti:"+fault.name+"-all-"+m.name] = true
			}
			if t.Failed() {
				for _, m := range w.nodes {
					t.Logf("%s:\n%s", m.name, m.proc.Stderr())
				}
			}
		})
		if t.Failed() {
			return
		}
	}
	w.t = t
	w.dumps(len(keys))
}

// What is dropped, in the words of nft.
const (
	loss     = "numgen random mod 100 < 20"
	gossip   = "th dport 7956 meta l4proto { tcp, udp }"
	sessions = " tcp dport 7950"
)

// active tells which node has not answered a check of after since with Active.
func (s *storm) active(since time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.w.nodes {
		if !slices.ContainsFunc(s.sights, func(c sight) bool {
			return c.node == m && c.began.After(since) && c.verdict == revokdv1.Verdict_VERDICT_ACTIVE
		}) {
			return fmt.Errorf("not on %s", m.name)
		}
	}
	return nil
}

// judge looks at what one node did while the network was broken.
func (s *storm) judge(m *member, minority, lossy bool, cut, healing, healed time.Time) {
	t := s.w.t
	t.Helper()
	var local, ok, failed, active, unknown int
	var lastActive, again time.Time
	var took []time.Duration
	example := &attempt{}
	for i := range s.attempts {
		a := &s.attempts[i]
		if a.node != m || a.began.Before(cut) || a.ended.After(healing) {
			continue
		}
		switch {
		case !a.quorum && a.err == nil:
			local++
		case !a.quorum:
			t.Errorf("%s: a local write: %v", m.name, a.err)
		case a.err == nil && minority && a.covered: // a majority may have acknowledged it before the cut
		case a.err == nil:
			ok++
			took = append(took, a.ended.Sub(a.began))
			if !lossy && took[len(took)-1] >= s.timeout {
				t.Errorf("%s: %s is acknowledged by a majority only when its time is up: %v", m.name, a.key, a.receipt)
			}
		default:
			failed, example = failed+1, a
			if connect.CodeOf(a.err) != connect.CodeDeadlineExceeded || !slices.Contains(a.receipt.GetConfirmed(), m.name) || len(a.receipt.GetUnconfirmed()) == 0 {
				t.Errorf("%s: a write that too few have acknowledged: %v %v", m.name, a.err, a.receipt)
			}
		}
	}
	for _, c := range s.sights {
		if c.node != m {
			continue
		}
		switch isActive := c.verdict == revokdv1.Verdict_VERDICT_ACTIVE; {
		case c.began.Before(cut):
		case c.began.After(healing):
			if isActive && again.IsZero() && c.began.After(healed) {
				again = c.began
			}
		case isActive:
			active, lastActive = active+1, c.began
		default:
			unknown++
		}
	}
	if again.IsZero() {
		t.Errorf("%s: checks are not active again", m.name)
	}
	switch {
	case minority:
		t.Logf("%s, a minority: %d local writes; unknown since %s after the cut; active again %s after healing; %d writes refused by quorum, such as: %v %v",
			m.name, local, lastActive.Sub(cut).Round(time.Millisecond), again.Sub(healed).Round(time.Millisecond), failed, example.err, example.receipt)
		if ok > 0 || failed == 0 {
			t.Errorf("%s: %d writes acknowledged by a majority that is not there, %d refused", m.name, ok, failed)
		}
		if lastActive.Sub(cut) > staleness || unknown == 0 {
			t.Errorf("%s: still active %s after the cut", m.name, lastActive.Sub(cut))
		}
	default:
		slices.Sort(took)
		at := func(percent int) time.Duration {
			if len(took) == 0 {
				return 0
			}
			return took[(len(took)-1)*percent/100].Round(time.Millisecond)
		}
		t.Logf("%s: %d local writes; %d of %d acknowledged by a majority, in %s, %s, %s (p50, p99, max); %d of %d checks active",
			m.name, local, ok, ok+failed, at(50), at(99), at(100), active, active+unknown)
		least := 0.95
		if lossy {
			least = 0.5
		}
		if float64(ok) < least*float64(ok+failed) || float64(active) < least*float64(active+unknown) || ok == 0 || active == 0 {
			t.Errorf("%s: a majority goes on: %d of %d writes, %d of %d checks", m.name, ok, ok+failed, active, active+unknown)
		}
	}
}

// A node that starts while it is cut off answers nothing, whatever it has on disk, and neither does a whole cluster whose nodes start cut off
// from one another. When they meet they have everything that any of them has acknowledged.
func TestPartitionedStart(t *testing.T) {
	w := newNetwork(t, 3)
	w.form()
	keys := map[string]bool{}
	write := func(m *member, id string, level revokdv1.AckLevel) {
		t.Helper()
		if receipt, err := w.revoke(t.Context(), m, id, &revokdv1.WriteOptions{Ack: level}); err != nil {
			t.Fatalf("%s: %s: %v %v", m.name, id, receipt, err)
		}
		keys["jti:"+id] = true
	}
	isolate := func(nodes ...*member) {
		for _, m := range nodes {
			w.hosts[m].drop("ip saddr 10.77.0.0/24")
		}
	}
	restart := func(nodes ...*member) {
		t.Helper()
		for _, m := range nodes {
			w.kill(m)
		}
		var starting sync.WaitGroup
		for _, m := range nodes {
			starting.Go(func() { w.begin(m, true) })
		}
		starting.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	silent := func(nodes ...*member) {
		t.Helper()
		end := time.Now().Add(staleness + time.Second)
		for ; time.Now().Before(end); time.Sleep(100 * time.Millisecond) { // between looks: it has to stay so until the end
			for _, m := range nodes {
				v, err := w.check(m, "nobody-revokes-this")
				if err != nil || v.GetVerdict() != revokdv1.Verdict_VERDICT_UNKNOWN {
					t.Fatalf("%s, cut off since its start: %v %v", m.name, v, err)
				}
				if m.proc.Ready(t.Context()) {
					t.Fatalf("%s calls itself ready", m.name)
				}
			}
		}
	}
	whole := func(nodes ...*member) {
		t.Helper()
		dropped := 0
		for _, m := range nodes {
			dropped += w.hosts[m].heal()
		}
		healed := time.Now()
		if dropped > 0 {
			wasApart(t, 3, 1)
		}
		w.until("all are there again", w.connected)
		w.until("all are ready", func() error {
			for _, m := range w.nodes {
				if v, err := w.check(m, "nobody-revokes-this"); err != nil || v.GetVerdict() != revokdv1.Verdict_VERDICT_ACTIVE || !m.proc.Ready(t.Context()) {
					return fmt.Errorf("%s: %v %v", m.name, v, err)
				}
			}
			return nil
		})
		w.until("all have everything", func() error { return w.counts(len(keys)) })
		if took := time.Since(healed); took > 10*time.Second {
			t.Errorf("whole only %s after healing", took)
		}
		if err := w.revokes(keys); err != nil {
			t.Error(err)
		}
	}

	last := w.nodes[2]
	for i := range 50 {
		write(last, fmt.Sprint("before-", i), revokdv1.AckLevel_ACK_LEVEL_QUORUM)
	}
	isolate(last)
	for i := range 50 {
		write(w.nodes[0], fmt.Sprint("majority-", i), revokdv1.AckLevel_ACK_LEVEL_QUORUM)
		write(last, fmt.Sprint("minority-", i), revokdv1.AckLevel_ACK_LEVEL_LOCAL)
	}
	restart(last)
	silent(last)
	whole(last)

	isolate(w.nodes...)
	for i := range 50 {
		for _, m := range w.nodes {
			write(m, fmt.Sprint("each-", i, m.name), revokdv1.AckLevel_ACK_LEVEL_LOCAL)
		}
	}
	restart(w.nodes...)
	silent(w.nodes...)
	whole(w.nodes...)
	write(w.nodes[1], "after", revokdv1.AckLevel_ACK_LEVEL_ALL)
	w.dumps(len(keys))
}

// What gossip says of a node does not keep the others from it: a session is made anew though everybody has been declared dead.
func TestPartitionOfGossip(t *testing.T) {
	w := newNetwork(t, 3)
	w.form()
	for _, h := range w.hosts {
		h.drop(gossip)
	}
	third := func() *revokdv1.Member {
		res, err := w.nodes[0].adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range res.Msg.GetMembers() {
			if p.GetName() == "n3" {
				return p
			}
		}
		t.Fatalf("n3 is not among %v", res.Msg.GetMembers())
		return nil
	}
	w.until("n3 is declared dead", func() error {
		if p := third(); p.GetStatus() != "dead" {
			return fmt.Errorf("%v", p)
		}
		return nil
	})
	if p := third(); !p.GetConnected() {
		t.Errorf("its session went with it: %v", p)
	}
	h := w.hosts[w.nodes[2]]
	h.drop(gossip, "tcp dport 7950", "tcp sport 7950")
	w.until("the session ends", func() error {
		if p := third(); p.GetConnected() {
			return fmt.Errorf("%v", p)
		}
		return nil
	})
	h.drop(gossip)
	w.until("all acknowledge again", func() error {
		_, err := w.revoke(t.Context(), w.nodes[0], "id", &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL, AckTimeout: durationpb.New(time.Second)})
		return err
	})
	if p := third(); p.GetStatus() != "dead" {
		t.Errorf("gossip has come through: the test shows nothing: %v", p)
	}
	wasApart(t, 3, 2)
}

// wasApart notes partitions of so many nodes that were seen to take effect.
func wasApart(t *testing.T, nodes, times int) {
	t.Helper()
	saved(t, history.Report{Nodes: nodes, Rounds: times, Counts: history.Counts{Faults: map[string]int{"partition/other": times}}})
}
