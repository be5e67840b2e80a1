package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"

	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/reread"
)

// serverTLS is TLS 1.3 with a certificate that is read again when its file
// changes, so that renewal needs no restart. With clientCA, only clients with a
// certificate by a CA in that file get in; it is read again, too.
func serverTLS(log *slog.Logger, files TLSFiles, clientCA string) (*tls.Config, error) {
	pair, err := openPair(log, files.Cert, files.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Get(), nil }}
	if clientCA == "" {
		return cfg, nil
	}
	pool, err := openPool(log, clientCA)
	if err != nil {
		return nil, fmt.Errorf("client_ca: %w", err)
	}
	cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, pool.Get()
	base := cfg.Clone()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.ClientCAs = pool.Get()
		return c, nil
	}
	return cfg, nil
}

// openPool is the CAs of a file.
func openPool(log *slog.Logger, file string) (*reread.File[*x509.CertPool], error) {
	return reread.Open(tell(log, file), func(b [][]byte) (*x509.CertPool, error) {
		pool, err := pemfile.Pool(b[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return pool, nil
	}, file)
}

// openPair is a certificate with its key.
func openPair(log *slog.Logger, cert, key string) (*reread.File[*tls.Certificate], error) {
	return reread.Open(tell(log, cert), func(b [][]byte) (*tls.Certificate, error) { return parsePair(cert, b[0], b[1]) }, cert, key)
}

// tell logs why what a file says is not in force.
func tell(log *slog.Logger, file string) func(error) {
	return func(err error) {
		if err != nil {
			log.Error("a file changed, and what it says cannot be used: what it said before stays in force", "file", file, "error", err)
			return
		}
		log.Info("a file can be used again", "file", file)
	}
}

// parsePair is tls.X509KeyPair, which passes over blocks that are broken: a chain with a hole in it.
func parsePair(name string, cert, key []byte) (*tls.Certificate, error) {
	if _, err := pemfile.Blocks(cert); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &pair, nil
}
