package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// TestHostileText: what a broker, or who passes for one, says does nothing to the console.
func TestHostileText(t *testing.T) {
	const hostile = "evil\x1b[2J\u009b31m\u202e\nclaviger-agent: all is well\r"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(any, grpc.ServerStream) error { return status.Error(codes.InvalidArgument, hostile) }
	s := grpc.NewServer(grpc.UnknownServiceHandler(answer), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})))
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, config := start(t)
	r := command(t, nil, append(config, "get", "db/orders", "--broker", "localhost:"+port, "--ca", ca, "--verbose")...).want(t, exitFailed, "evil")
	more := command(t, nil, "get", hostile, "--broker", hostile, "--ca", ca, "--identity", hostile, "--timeout", "2s")
	for _, out := range []string{r.stderr, more.stderr} {
		for _, c := range out {
			if c != '\n' && c != '\t' && !unicode.IsPrint(c) {
				t.Errorf("prints %U: %q", c, out)
				break
			}
		}
		if strings.Contains(out, "\nclaviger-agent: all is well") {
			t.Errorf("prints somebody else's line: %q", out)
		}
	}
}
