package vault

import (
	"testing"

	"github.com/claviger/claviger/broker"
	"github.com/claviger/claviger/broker/internal/grant"
)

// BenchmarkFetchKV is over loopback HTTP, with Vault on the same cores.
func BenchmarkFetchKV(b *testing.B) {
	d := deploy(b)
	d.write(b, "secret/data/db/x", map[string]any{"data": map[string]any{"value": "0123456789abcdef0123456789abcdef"}})
	e := broker.CatalogEntry{Key: "db/x"}
	b.Run("fetch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.src.Fetch(b.Context(), grant.Mint(broker.Granted{Entry: e})); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("fetch parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := d.src.Fetch(b.Context(), grant.Mint(broker.Granted{Entry: e})); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("version", func(b *testing.B) {
		for b.Loop() {
			if _, err := d.src.CurrentVersion(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
	})
}
