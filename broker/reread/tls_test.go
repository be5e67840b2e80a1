package reread

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// selfSigned is a certificate for 127.0.0.1, and the pool that believes it.
func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// TestCredentials: each handshake believes the roots of its moment, and no others; the address is checked, too.
func TestCredentials(t *testing.T) {
	theirs, pool := selfSigned(t)
	_, other := selfSigned(t)
	var today atomic.Pointer[x509.CertPool]
	creds := Credentials(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}, today.Load)
	shake := func(creds credentials.TransportCredentials, authority string) error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{theirs}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12}).Handshake()
			_, _ = c.Read(make([]byte, 1))
		}()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, _, err = creds.ClientHandshake(ctx, authority, c)
		return err
	}
	for _, creds := range []credentials.TransportCredentials{creds, creds.Clone()} {
		today.Store(other)
		if err := shake(creds, "127.0.0.1:1"); err == nil {
			t.Error("believes the roots from before")
		}
		today.Store(pool)
		if err := shake(creds, "127.0.0.1:1"); err != nil {
			t.Errorf("the roots of today: %v", err)
		}
		if err := shake(creds, "127.0.0.2:1"); err == nil {
			t.Error("another address than the certificate's")
		}
	}
}
