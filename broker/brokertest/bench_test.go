package brokertest

import (
	"testing"

	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/internal/server"
)

// BenchmarkReleaseOverGRPC is the whole job as guests see it, many at once:
// challenge, simulated evidence, gRPC over TLS 1.3, embedded etcd, audit log on
// disk, opening the reply. Guests and broker share this machine's cores.
func BenchmarkReleaseOverGRPC(b *testing.B) {
	none := 0.0
	broker := Start(b, func(c *server.Config) { c.Limits.PeerRate = &none })
	client := broker.Client(b, teesim.ReportOptions{})
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if _, _, err := client.Get(b.Context(), "disks/vm-1"); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "releases/s")
}
