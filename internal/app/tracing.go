package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/revokd/revokd/internal/clock"
)

// TraceConfig says where spans of writes are sent to: a receiver of OTLP over HTTP. The zero TraceConfig is what the standard variables of OpenTelemetry say, nowhere
// without them.
type TraceConfig struct {
	Endpoint string // URL of the receiver; /v1/traces is appended if it has no path
	// Sample is the fraction of writes, from 0 to 1, that are traced of those whose caller does not say that his trace is or is not sampled. Empty: see defaultSample.
	Sample string

	Getenv func(string) string // nil: os.Getenv, which the library reads in any case
}

const (
	defaultSample  = 0.01
	traceShutdown  = 5 * time.Second
	traceErrorsLog = time.Minute // between two lines of the log
)

func (c *TraceConfig) getenv(name string) string {
	if c.Getenv != nil {
		return c.Getenv(name)
	}
	return os.Getenv(name)
}

// enabled reports whether anything is to be traced.
func (c *TraceConfig) enabled() bool {
	if c.Endpoint != "" {
		return true
	}
	exporter := cmp.Or(c.getenv("OTEL_TRACES_EXPORTER"), "otlp")
	return exporter == "otlp" && c.getenv("OTEL_SDK_DISABLED") != "true" &&
		(c.getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || c.getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "")
}

func (c *TraceConfig) validate() error {
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return errors.New("--trace-endpoint: malformed: want a URL such as http://127.0.0.1:4318; credentials belong into OTEL_EXPORTER_OTLP_HEADERS")
		}
	}
	if c.Sample != "" {
		if f, err := strconv.ParseFloat(c.Sample, 64); err != nil || !(f >= 0 && f <= 1) {
			return errors.New("--trace-sample: out of range: 0 to 1, such as 0.01")
		}
	}
	return nil
}

// tracing sends spans until it is shut down.
type tracing struct {
	provider *sdktrace.TracerProvider
	log      hclog.Logger
}

// startTracing begins; nil: nothing is traced. It asks nobody: a receiver that is away is for the log.
func startTracing(ctx context.Context, c TraceConfig, node, version string, log hclog.Logger) (*tracing, error) {
	if !c.enabled() {
		return nil, nil
	}
	var options []otlptracehttp.Option
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil {
			return nil, errors.New("--trace-endpoint: malformed")
		}
		if u.Path == "" || u.Path == "/" {
			u.Path = "/v1/traces"
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("--trace-endpoint: %w", err)
	}
	who, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "revokd"), attribute.String("service.instance.id", node), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv()) // what the operator says wins
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	// The queue of the batcher holds 2048 spans unless OTEL_BSP_MAX_QUEUE_SIZE says otherwise. What does not fit is left out: a write never waits.
	provide := []sdktrace.TracerProviderOption{sdktrace.WithResource(who), sdktrace.WithBatcher(exporter)}
	if c.Sample != "" || c.getenv("OTEL_TRACES_SAMPLER") == "" {
		fraction := defaultSample
		if c.Sample != "" {
			fraction, _ = strconv.ParseFloat(c.Sample, 64) // validate has
		}
		provide = append(provide, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(fraction))))
	}
	otel.SetErrorHandler(&traceErrors{log: log, mono: clock.System().Mono})
	log.Info("writes are traced")
	return &tracing{sdktrace.NewTracerProvider(provide...), log}, nil
}

// tracer is for whoever draws spans; nil without tracing.
func (t *tracing) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/revokd/revokd")
}

// end sends what is left, and does not wait for it for long.
func (t *tracing) end(ctx context.Context) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceShutdown)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("spans were lost at the end", "error", err)
	}
}

// traceErrors logs what fails in the library, which may be every few seconds for as long as the receiver is away.
type traceErrors struct {
	log  hclog.Logger
	mono func() time.Duration

	mu     sync.Mutex
	last   time.Duration // when a line was logged; 0: never
	missed int
}

// Handle is called by the library, with errors of which nobody else is told.
func (e *traceErrors) Handle(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.mono()
	if e.last != 0 && now-e.last < traceErrorsLog {
		e.missed++
		return
	}
	e.log.Warn("spans were not sent", "error", err, "left_out_before", e.missed)
	e.last, e.missed = max(1, now), 0
}
