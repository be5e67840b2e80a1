// Package telemetry turns what the broker observes into Prometheus metrics and
// OpenTelemetry traces. Labels come from closed sets, never from guests.
package telemetry

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"

	"github.com/claviger/claviger/broker"
)

// Metrics of one broker, in a registry of its own.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	waited   *prometheus.HistogramVec
}

// NewMetrics makes the registry.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_releases_total", Help: "Release requests by evidence type, outcome, the stage where they ended and the reason evidence was refused.",
		}, []string{"type", "outcome", "stage", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "claviger_release_seconds", Help: "Time from admission to reply.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
		}, []string{"outcome"}),
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "claviger_queue_wait_seconds", Help: "Time in the queue of what was then served, by class.",
			Buckets: []float64{.001, .01, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}, []string{"class"}),
	}
	m.registry.MustRegister(m.requests, m.duration, m.waited, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Gauge adds a value that is read when it is asked for. labels, nil for none, come from the configuration or the code.
func (m *Metrics) Gauge(name, help string, labels map[string]string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, read))
}

// Counter adds a count that is kept elsewhere.
func (m *Metrics) Counter(name, help string, labels map[string]string, read func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, read))
}

// Waited counts a request that got its slot after d. class is one of admission's.
func (m *Metrics) Waited(class string, d time.Duration) {
	m.waited.WithLabelValues(class).Observe(d.Seconds())
}

// Observe counts a request.
func (m *Metrics) Observe(_ context.Context, e broker.Event) {
	m.requests.WithLabelValues(string(e.Type), string(e.Outcome), string(e.Stage), string(e.Reason)).Inc()
	m.duration.WithLabelValues(string(e.Outcome)).Observe(e.Duration.Seconds())
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Trace sends spans to an OTLP/gRPC collector over TLS. The returned function flushes and stops.
func Trace(ctx context.Context, endpoint, version string) (func(context.Context) error, error) {
	exp, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(endpoint))
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	res := resource.NewWithAttributes(semconv.SchemaURL, semconv.ServiceName("claviger"), semconv.ServiceVersion(version))
	tp := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exp), sdktrace.WithResource(res), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(0.1))))
	otel.SetTracerProvider(tp)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return tp.Shutdown, nil
}
