package reread

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"

	"google.golang.org/grpc/credentials"
)

// Credentials are those of a gRPC client that believes, at each handshake, the roots of that moment.
func Credentials(cfg *tls.Config, roots func() *x509.CertPool) credentials.TransportCredentials {
	return &rooted{credentials.NewTLS(cfg), cfg, roots}
}

type rooted struct {
	credentials.TransportCredentials
	cfg   *tls.Config
	roots func() *x509.CertPool
}

// ClientHandshake implements credentials.TransportCredentials.
func (r *rooted) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg := r.cfg.Clone()
	cfg.RootCAs = r.roots()
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, c)
}

// Clone implements credentials.TransportCredentials.
func (r *rooted) Clone() credentials.TransportCredentials {
	return &rooted{r.TransportCredentials.Clone(), r.cfg, r.roots}
}
