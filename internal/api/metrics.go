package api

import (
	"math"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// metrics counts what the API does and shows what the node counts. Every metric is in docs/api.md.
type metrics struct {
	server   *Server
	registry *prometheus.Registry

	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	refusal *prometheus.CounterVec

	strangers prometheus.Counter
	checks    [3][causes]prometheus.Counter

	open    atomic.Int64  // connections
	dropped atomic.Uint64 // those that were refused
	evicted atomic.Uint64 // those that made place for others
	panics  atomic.Uint64
}

// causes is the number of causes of an unknown verdict.
const causes = int(revocation.CauseProbes) + 1

func newMetrics(s *Server) *metrics {
	m := &metrics{
		server: s, registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "revokd_api_requests_total", Help: "Calls that were answered, by method and code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "revokd_api_request_seconds", Help: "Time from the decoded request to the answer, by method and code.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30},
		}, []string{"method", "code"}),
		refusal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "revokd_api_refused_total", Help: "Requests and items that were refused, by the kind of the ErrorDetail, and of which method, if it got as far.",
		}, []string{"kind", "method"}),
		strangers: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "revokd_api_unknown_tokens_total", Help: "Bearer tokens that are not in force, or not ours.",
		}),
	}
	checks := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "revokd_checks_total", Help: "Checks that the API answered, by verdict and the cause of unknown.",
	}, []string{"verdict", "cause"})
	for status := range m.checks {
		for cause := range m.checks[status] {
			if status == int(revocation.Unknown) || cause == 0 {
				m.checks[status][cause] = checks.WithLabelValues(revocation.Status(status).String(), revocation.Cause(cause).String())
			}
		}
	}
	m.registry.MustRegister(m.calls, m.seconds, m.refusal, m.strangers, checks, nodeCollector{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second, DisableCompression: true})
}

func (m *metrics) called(method, code string, d time.Duration) {
	m.calls.WithLabelValues(method, code).Inc()
	m.seconds.WithLabelValues(method, code).Observe(d.Seconds())
}

func (m *metrics) refused(kind, method string) { m.refusal.WithLabelValues(kind, method).Inc() }

func (m *metrics) checked(v revocation.Verdict) {
	if v.Status != revocation.Unknown {
		v.Cause = revocation.CauseNone
	}
	if int(v.Status) < len(m.checks) && int(v.Cause) < causes {
		m.checks[v.Status][v.Cause].Inc()
	}
}

// nodeCollector reads the node's status when it is scraped.
type nodeCollector struct{ *metrics }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("revokd_"+name, help, labels, nil)
}

var (
	descBuild       = desc("build_info", "1, with the versions of the program and of Go.", "version", "goversion")
	descReady       = desc("ready", "1 if the node is ready.")
	descInsecure    = desc("insecure", "1 if the API may be reached from elsewhere without TLS: --insecure.")
	descDurability  = desc("durability_info", "1, with what an acknowledged write survives.", "durability")
	descUptime      = desc("uptime_seconds", "Time since the node was made.")
	descClock       = desc("clock_ok", "1 if the wall clock is believed.")
	descClockAhead  = desc("clock_ahead_seconds", "How far the wall clock is ahead of guarded time.")
	descRecords     = desc("records", "Records held, expired but unswept ones included.")
	descLimit       = desc("records_limit", "Records that may be held.")
	descBytes       = desc("memory_bytes", "Memory for records.")
	descBytesLimit  = desc("memory_limit_bytes", "Memory that may be used for records.")
	descShapes      = desc("live_shapes", "Combinations of claim names with live records.")
	descShapesLimit = desc("live_shapes_limit", "Combinations of claim names that writers may bring to life.")
	descEnding      = desc("blocks_ending", "Blocks in force that end within 7 days, counted every ten minutes.")
	descKeyRecords  = desc("fingerprint_key_records", "Live records by the fingerprint key that they were made under, counted every ten minutes.", "key", "in_use")
	descKinds       = desc("records_by_rule", "Live records by the claims that they name and their rule, counted every ten minutes; the 100 largest kinds, and the rest as other.", "claims", "rule")
	descFilterFull  = desc("filter_saturation", "Records that the filter holds, freed ones included, over those it is made for.")
	descFilterWrong = desc("filter_false_positives_ratio", "Share of absent keys that the filter cannot exclude, measured every ten minutes.")
	descFilterBytes = desc("filter_bytes", "Memory of the filter.")
	descExpired     = desc("expired_total", "Records freed because their time had passed.")
	descWrites      = desc("writes_total", "Requests to write, by what became of them.", "outcome")
	descOpen        = desc("api_connections", "Open connections.")
	descDropped     = desc("api_connections_refused_total", "Connections closed because there were too many.")
	descEvicted     = desc("api_connections_evicted_total", "Connections closed to make place, on which nobody had shown who he is.")
	descPending     = desc("api_pending_bytes", "Bytes of requests that are being worked on.")
	descStreams     = desc("api_streams", "Calls of RevokeStream that are open.")
	descPanics      = desc("api_panics_total", "Handlers that panicked.")

	descAuditLines  = desc("audit_log_lines_total", "Lines written to the audit.")
	descAuditLost   = desc("audit_log_lost_total", "Lines that could not be written to the audit.")
	descAuditFailed = desc("audit_log_failed", "1 if the audit cannot be written now.")
	descAuditFiles  = desc("audit_log_files", "Files of the audit.")
	descAuditQueue  = desc("audit_log_queue_bytes", "Bytes of lines that wait for the disk.")

	descVoters       = desc("voters", "Voters of the cluster.")
	descVotersNumber = desc("voters_number", "Number of the list of voters: it grows with each change and is the same on all nodes.")
	descVotes        = desc("votes", "1 if this node, with its present data, is one of the voters.")
	descViewAge      = desc("view_age_seconds", "Age of the view by which checks are answered, of a majority of the voters and of all; +Inf without one.", "freshness")
	descClockOffset  = desc("clock_offset_seconds", "How far the median of the peers' wall clocks is ahead of this one.")
	descSessions     = desc("replication_sessions", "Sessions with other replicas.", "kind")
	descSent         = desc("replication_records_sent_total", "Records sent to peers, from the log and from scans of the table.", "by")
	descReceived     = desc("replication_records_received_total", "Records taken from peers.", "by")
	descDuplicates   = desc("replication_records_duplicate_total", "Records of those received by log that were held already.")
	descScannedNew   = desc("replication_records_scanned_new_total", "Records of those received by scan that were not held yet.")
	descPeerRefused  = desc("replication_records_refused_total", "Records of peers that were refused: the node is not fresh until they are accepted.")
	descNodeRecords  = desc("replication_node_records", "Live records held that a node has written, at most: those replaced since they were last counted are in it. The 64 nodes with most.", "node")
	descNodeRefused  = desc("replication_node_refused_total", "Runs of records of a node that were refused because it has written too many, or too fast.", "node")
	descImpostors    = desc("replication_impostors_total", "Claims that were not believed: that records exist which their node has not written.")
	descUnasked      = desc("replication_records_unasked_total", "Records of other nodes that a peer sent without having been asked: not taken.")
	descReissued     = desc("replication_records_reissued_total", "Records that came of joining two others and were written anew.")
	descRepaired     = desc("replication_records_repaired_total", "Records that only an audit found: there should be none.")
	descPulls        = desc("replication_pulls_total", "Requests for records of a peer's log.")
	descScans        = desc("replication_scans_total", "Scans of a peer's table, because its log did not reach back far enough.")
	descAudits       = desc("replication_audits_total", "Comparisons of sums over all records, by result.", "result")
	descOrigins      = desc("replication_origins", "Origins of records that are known.")
	descBehind       = desc("replication_behind_origins", "Origins of which a peer holds more than this node.")
	descLogBytes     = desc("replication_log_bytes", "Memory for recent records that peers may still need.")

	descPeerLag    = desc("peer_lag_seconds", "Time until a peer said that it holds a record of this node, the way back included.", "peer")
	descPeerView   = desc("peer_view_age_seconds", "Age of the view of what a peer holds; +Inf without one.", "peer")
	descPeerAudit  = desc("peer_audit_age_seconds", "Time since sums over all records were last found equal with a peer; +Inf: never.", "peer")
	descPeerBehind = desc("peer_behind_records", "Records that a peer lacks of what this node holds.", "peer")
	descPeerAhead  = desc("peer_ahead_records", "Records that a peer holds and this node lacks.", "peer")
	descPeerRTT    = desc("peer_rtt_seconds", "Round trip of a message.", "peer")
	descPeerOffset = desc("peer_clock_offset_seconds", "How far a peer's wall clock is ahead of this one.", "peer")

	descMembers       = desc("gossip_members", "Members of the cluster, this node included, by what gossip says of them.", "status")
	descGossipHealth  = desc("gossip_health", "0 is well; higher: this node does not keep up, and is slower to suspect others.")
	descJoinRounds    = desc("gossip_join_rounds_total", "Rounds of looking for members that are missing.")
	descJoins         = desc("gossip_joins_total", "Exchanges of states that began here to join.")
	descJoinsFailed   = desc("gossip_joins_failed_total", "Those of them that failed.")
	descUnresolved    = desc("gossip_unresolved_total", "Names of seeds that could not be resolved, counted in each round.")
	descPackets       = desc("gossip_packets_total", "Packets of gossip.", "direction")
	descGossipBytes   = desc("gossip_bytes_total", "Bytes of gossip.", "direction")
	descGossipRefused = desc("gossip_refused_total", "Gossip that was refused, by why.", "reason")
	descConflicts     = desc("gossip_name_conflicts_total", "Announcements of a name at a second address.")
	descSealed        = desc("gossip_sealed_total", "Messages sealed with the key in use; all nodes together should not pass 2^32.")
	descLinesLeftOut  = desc("gossip_log_lines_left_out_total", "Lines of the library's log that were not logged.")

	descJournalBytes      = desc("journal_bytes", "Bytes of the journal's files that count.")
	descJournalFiles      = desc("journal_files", "The journal's files that count: segments of the log, and files by expiry.", "kind")
	descJournalMeta       = desc("journal_metadata_bytes", "Bytes of the journal's metadata.")
	descJournalFailed     = desc("journal_failed", "1 if the disk refuses writes now.")
	descJournalLatched    = desc("journal_latched", "1 if it will until the next start.")
	descJournalFailures   = desc("journal_failures_total", "Writes, syncs and new files of the journal that failed.")
	descJournalCommits    = desc("journal_commit_seconds", "Time of a commit, from the write to the end of the sync.")
	descJournalBatches    = desc("journal_batches_total", "Batches that are on disk: several share a commit.")
	descJournalRecords    = desc("journal_records_total", "Records that are on disk by them.")
	descJournalWritten    = desc("journal_written_bytes_total", "Bytes written, those of expiry included.")
	descJournalBusy       = desc("journal_busy_total", "Batches refused because the queue was full.")
	descJournalQueue      = desc("journal_queue_batches", "Batches that wait for the disk.")
	descJournalQueueBytes = desc("journal_queue_bytes", "Their bytes.")
	descJournalCut        = desc("journal_cut_bytes", "Bytes at the end of the journal that the start left out: a commit torn, or damaged.")
	descJournalExpiry     = desc("journal_expiry_total", "What expiry did: segments sorted, files written again and removed, records written again.", "what")
)

func (c nodeCollector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

func (c nodeCollector) Collect(ch chan<- prometheus.Metric) {
	st := c.server.node.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	version := c.server.cfg.Version
	if version == "" {
		version = st.Version
	}
	gauge(descBuild, 1, version, runtime.Version())
	gauge(descReady, truth(len(c.server.waitingFor()) == 0))
	gauge(descInsecure, truth(c.server.cfg.Insecure))
	gauge(descDurability, 1, st.Durability.String())
	gauge(descUptime, st.Uptime.Seconds())
	gauge(descClock, truth(st.Clock == "ok"))
	gauge(descClockAhead, st.Wall.Sub(st.Guarded).Seconds())
	gauge(descRecords, float64(st.Table.Items))
	gauge(descLimit, float64(st.Table.Limit))
	gauge(descBytes, float64(st.Table.Bytes))
	gauge(descBytesLimit, float64(st.Table.BytesLimit))
	gauge(descShapes, float64(st.Table.LiveShapes))
	gauge(descShapesLimit, revocation.MaxLiveShapes)
	gauge(descEnding, float64(st.Census.BlocksEnding))
	collectKinds(st.Census.Kinds, gauge)
	for _, k := range st.Keys {
		gauge(descKeyRecords, float64(k.Records), k.ID.String(), strconv.FormatBool(k.Primary))
	}
	gauge(descFilterFull, st.Table.Saturation)
	gauge(descFilterWrong, st.Census.FilterWrong)
	gauge(descFilterBytes, float64(st.Table.FilterBits/8))
	counter(descExpired, st.Table.Expired)
	for outcome, n := range map[string]uint64{
		"revoked": st.Writes.Revoked, "covered": st.Writes.Covered, "already_expired": st.Writes.AlreadyExpired,
		"unblocked": st.Writes.Unblocked, "refused": st.Writes.Refused, "failed": st.Writes.Failed,
	} {
		counter(descWrites, n, outcome)
	}
	if st.Journal != nil {
		collectJournal(ch, st.Journal, gauge, counter)
	}
	gauge(descOpen, float64(c.open.Load()))
	counter(descDropped, c.dropped.Load())
	counter(descEvicted, c.evicted.Load())
	gauge(descPending, float64(c.server.pending.Load()))
	gauge(descStreams, float64(len(c.server.streams)))
	counter(descPanics, c.panics.Load())
	if a := c.server.cfg.Audit; a != nil {
		s := a.Stats()
		counter(descAuditLines, s.Lines)
		counter(descAuditLost, s.Lost)
		gauge(descAuditFailed, truth(s.Failed))
		gauge(descAuditFiles, float64(s.Files))
		gauge(descAuditQueue, float64(s.QueueBytes))
	}
	c.collectReplication(st, gauge, counter)
	c.collectPeers(ch, gauge)
	if g := c.server.node.Gossip(); g != nil {
		collectGossip(g.Stats(), gauge, counter)
	}
}

type (
	gaugeFunc   func(d *prometheus.Desc, v float64, labels ...string)
	counterFunc func(d *prometheus.Desc, v uint64, labels ...string)
)

// maxKinds bounds the series of collectKinds: other nodes may bring any number of shapes.
const maxKinds = 100

func collectKinds(kinds []revocation.KindCount, gauge gaugeFunc) {
	other := 0
	for i, k := range kinds {
		if i >= maxKinds {
			other += k.Records
			continue
		}
		claims := strings.Join(k.Shape.Names, ",")
		if k.Class == revocation.ClassBelow {
			claims += " < " + k.Shape.Compared
		}
		gauge(descKinds, float64(k.Records), claims, k.Class.String())
	}
	if len(kinds) > maxKinds {
		gauge(descKinds, float64(other), "other", "other")
	}
}

func (c nodeCollector) collectReplication(st node.Status, gauge gaugeFunc, counter counterFunc) {
	gauge(descVoters, float64(len(st.Voters)))
	gauge(descVotersNumber, float64(st.VotersNumber))
	gauge(descVotes, truth(st.Votes))
	gauge(descViewAge, ageSeconds(st.QuorumAge), "quorum")
	gauge(descViewAge, ageSeconds(st.AllAge), "all")
	gauge(descClockOffset, c.server.node.ClockOffset().Seconds())
	r := st.Replication
	counter(descSent, r.Sent, "log")
	counter(descSent, r.ScanSent, "scan")
	counter(descReceived, r.Received, "log")
	counter(descReceived, r.Scanned, "scan")
	counter(descDuplicates, r.Duplicates)
	counter(descScannedNew, r.ScannedNew)
	counter(descPeerRefused, r.Refused)
	for _, n := range st.Nodes {
		gauge(descNodeRecords, float64(n.Records), n.Name)
		counter(descNodeRefused, n.Refused, n.Name)
	}
	counter(descImpostors, r.Impostors)
	counter(descUnasked, r.Unasked)
	counter(descReissued, r.Reissued)
	counter(descRepaired, r.Repaired)
	counter(descPulls, r.Pulls)
	counter(descScans, r.Scans)
	counter(descAudits, r.AuditsEqual, "equal")
	counter(descAudits, r.AuditDifferences, "different")
	gauge(descOrigins, float64(r.Origins))
	gauge(descBehind, float64(r.Behind))
	gauge(descLogBytes, float64(r.LogBytes))
}

// collectPeers shows the sessions: those with nodes one by one, those with clients, which may be thousands, as a number.
func (c nodeCollector) collectPeers(ch chan<- prometheus.Metric, gauge gaugeFunc) {
	clients, nodes := 0, 0
	for _, p := range c.server.node.Peers() {
		if p.Client {
			clients++
			continue
		}
		nodes++
		gauge(descPeerView, ageSeconds(p.ViewAge), p.Name)
		gauge(descPeerAudit, ageSeconds(p.AuditAge), p.Name)
		gauge(descPeerBehind, float64(p.Behind), p.Name)
		gauge(descPeerAhead, float64(p.Ahead), p.Name)
		if p.Timed {
			gauge(descPeerRTT, p.RTT.Seconds(), p.Name)
			gauge(descPeerOffset, p.Offset.Seconds(), p.Name)
		}
		buckets, sum := make(map[float64]uint64, len(replication.LagBounds)), uint64(0)
		for i, bound := range replication.LagBounds {
			sum += p.Lag.Buckets[i]
			buckets[bound.Seconds()] = sum
		}
		ch <- prometheus.MustNewConstHistogram(descPeerLag, p.Lag.Count, p.Lag.Sum.Seconds(), buckets, p.Name)
	}
	gauge(descSessions, float64(nodes), "node")
	gauge(descSessions, float64(clients), "client")
}

func collectGossip(g cluster.Stats, gauge gaugeFunc, counter counterFunc) {
	for status, n := range map[cluster.Status]int{cluster.Alive: g.Alive, cluster.Suspect: g.Suspect, cluster.Dead: g.Dead, cluster.Left: g.Left} {
		gauge(descMembers, float64(n), status.String())
	}
	gauge(descGossipHealth, float64(g.Health))
	counter(descJoinRounds, g.Rounds)
	counter(descJoins, g.Joins)
	counter(descJoinsFailed, g.JoinsFailed)
	counter(descUnresolved, g.Unresolved)
	counter(descPackets, g.PacketsIn, "in")
	counter(descPackets, g.PacketsOut, "out")
	counter(descGossipBytes, g.BytesIn, "in")
	counter(descGossipBytes, g.BytesOut, "out")
	for reason, n := range map[string]uint64{
		"key": g.RefusedKey, "kind": g.RefusedKind, "incarnation": g.RefusedIncarnation, "streams": g.RefusedStreams, "members": g.RefusedMembers,
	} {
		counter(descGossipRefused, n, reason)
	}
	counter(descConflicts, g.Conflicts)
	counter(descSealed, g.Sealed)
	counter(descLinesLeftOut, g.LinesLeftOut)
}

// ageSeconds is infinite where there is no view: an alert on a limit then fires.
func ageSeconds(d time.Duration) float64 {
	if d == math.MaxInt64 {
		return math.Inf(1)
	}
	return d.Seconds()
}

func collectJournal(ch chan<- prometheus.Metric, j *journal.Stats, gauge gaugeFunc, counter counterFunc) {
	gauge(descJournalBytes, float64(j.Bytes))
	gauge(descJournalFiles, float64(j.Segments), "segment")
	gauge(descJournalFiles, float64(j.ExpiryFiles), "expiry")
	gauge(descJournalMeta, float64(j.MetaBytes))
	gauge(descJournalFailed, truth(j.Failed != nil))
	gauge(descJournalLatched, truth(j.Latched))
	counter(descJournalFailures, j.Failures)
	counter(descJournalBatches, j.Batches)
	counter(descJournalRecords, j.Records)
	counter(descJournalWritten, j.Written)
	counter(descJournalBusy, j.Busy)
	gauge(descJournalQueue, float64(j.QueueBatches))
	gauge(descJournalQueueBytes, float64(j.QueueBytes))
	gauge(descJournalCut, float64(j.Cut))
	for what, n := range map[string]uint64{
		"segments_sorted": j.Partitioned, "records_kept": j.Kept, "files_rewritten": j.Compacted, "files_removed": j.Released,
	} {
		counter(descJournalExpiry, n, what)
	}
	buckets := make(map[float64]uint64, len(j.Commit.Buckets))
	sum := uint64(0)
	for i, n := range j.Commit.Buckets[:len(j.Commit.Buckets)-1] {
		sum += n
		buckets[j.Commit.Bound(i).Seconds()] = sum
	}
	ch <- prometheus.MustNewConstHistogram(descJournalCommits, j.Commit.Count, j.Commit.Sum.Seconds(), buckets)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
