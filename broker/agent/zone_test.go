package agent

import (
	"crypto/tls"
	"net"
	"testing"
)

// TestZone: an IPv6 address may have a zone, which is in no certificate.
func TestZone(t *testing.T) {
	b, err := connect("[::1%lo]:7443,[::1]:7443", &tls.Config{}, nil, &net.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.close() })
	if got := b.list[0].conn.Target(); got != "passthrough:///[::1%25lo]:7443" {
		t.Errorf("target %s", got)
	}
}
