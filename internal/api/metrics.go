package api

import (
	"net/http"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/revokd/revokd/revocation"
)

// metrics counts what the API does and shows what the node counts. Every metric is in docs/api.md.
type metrics struct {
	server   *Server
	registry *prometheus.Registry

	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	refusal *prometheus.CounterVec
	checks  [3][causes]prometheus.Counter

	open    atomic.Int64 // connections
	dropped atomic.Uint64
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
			Name: "revokd_api_refused_total", Help: "Requests and items that were refused, by the kind of the ErrorDetail.",
		}, []string{"kind"}),
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
	m.registry.MustRegister(m.calls, m.seconds, m.refusal, checks, nodeCollector{m},
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

func (m *metrics) refused(kind string) { m.refusal.WithLabelValues(kind).Inc() }

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
	descEnding      = desc("blocks_ending", "Blocks in force that end within 7 days, counted once an hour.")
	descExpired     = desc("expired_total", "Records freed because their time had passed.")
	descWrites      = desc("writes_total", "Requests to write, by what became of them.", "outcome")
	descOpen        = desc("api_connections", "Open connections.")
	descDropped     = desc("api_connections_refused_total", "Connections closed because there were too many.")
	descPending     = desc("api_pending_bytes", "Bytes of requests that are being worked on.")
	descStreams     = desc("api_streams", "Calls of RevokeStream that are open.")
	descPanics      = desc("api_panics_total", "Handlers that panicked.")
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
	gauge(descEnding, float64(st.BlocksEnding))
	counter(descExpired, st.Table.Expired)
	for outcome, n := range map[string]uint64{
		"revoked": st.Writes.Revoked, "covered": st.Writes.Covered, "already_expired": st.Writes.AlreadyExpired,
		"unblocked": st.Writes.Unblocked, "refused": st.Writes.Refused, "failed": st.Writes.Failed,
	} {
		counter(descWrites, n, outcome)
	}
	gauge(descOpen, float64(c.open.Load()))
	counter(descDropped, c.dropped.Load())
	gauge(descPending, float64(c.server.pending.Load()))
	gauge(descStreams, float64(len(c.server.streams)))
	counter(descPanics, c.panics.Load())
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
