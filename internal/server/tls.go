package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"
)

// serverTLS is TLS 1.3 with a certificate that is read again when its file
// changes, so that renewal needs no restart. With clients, only certificates
// of that pool get in.
func serverTLS(files TLSFiles, clients *x509.CertPool) (*tls.Config, error) {
	r := &reloader{files: files}
	if _, err := r.get(); err != nil {
		return nil, err
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.get() }}
	if clients != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	return cfg, nil
}

type reloader struct {
	files TLSFiles

	mu      sync.Mutex
	cert    *tls.Certificate // guarded by mu
	changed time.Time        // guarded by mu; when the newer of the two files did
	checked time.Time        // guarded by mu
}

func (r *reloader) get() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cert != nil && time.Since(r.checked) < time.Second {
		return r.cert, nil
	}
	r.checked = time.Now()
	changed, err := lastChange(r.files.Cert, r.files.Key)
	if err == nil && r.cert != nil && changed.Equal(r.changed) {
		return r.cert, nil
	}
	if err == nil {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(r.files.Cert, r.files.Key); err == nil {
			r.cert, r.changed = &pair, changed
			return r.cert, nil
		}
	}
	if r.cert != nil { // a half-written renewal: go on with what we have
		return r.cert, nil
	}
	return nil, fmt.Errorf("load certificate: %w", err)
}

func lastChange(files ...string) (newest time.Time, err error) {
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return time.Time{}, err
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return newest, nil
}
