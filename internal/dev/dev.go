// Package dev prepares a broker for trying things out: fresh certificates, the
// example policies, and a SIMULATED device under a test root made on the spot.
// Only `claviger dev` and brokertest may import it: whoever holds the device
// file can claim to be any workload.
package dev

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/claviger/claviger/broker/pemfile"
	"github.com/claviger/claviger/broker/rpc"
	"github.com/claviger/claviger/broker/tee"
	"github.com/claviger/claviger/broker/tee/teesim"
	"github.com/claviger/claviger/examples"
	"github.com/claviger/claviger/internal/server"
	pb "github.com/claviger/claviger/proto/claviger/v1"
)

// Operator is the name in the operator's certificate.
const Operator = "dev-operator"

// Env is a prepared folder.
type Env struct {
	Dir    string
	Config server.Config
	// Root and Device are the simulated hardware.
	Root   *teesim.Root
	Device *teesim.Device
}

// Files of an Env, below Dir.
func (e *Env) path(name string) string { return filepath.Join(e.Dir, name) }

// Lock takes the folder for this process, and makes it if it does not exist.
func Lock(dir string) (release func(), err error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	return server.Lock(dir)
}

func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("dev folder: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("dev folder %s must be a folder that only you can enter (mode 0700)", dir)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("dev folder %s belongs to user %d: another user could read the keys and change the policies; take another folder with --dir", dir, st.Uid)
	}
	return nil
}

// Prepare makes or refreshes the folder. Data, and policies that the user has
// changed, stay; certificates and the simulated device are made anew.
func Prepare(dir string, now time.Time) (*Env, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("dev folder: %w", err)
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	e := &Env{Dir: dir}
	if err := errors.Join(e.certificates(now), e.device(now), e.policies()); err != nil {
		return nil, err
	}
	e.Config = server.Config{
		Listen: "127.0.0.1:7443", Metrics: "127.0.0.1:7445", DataDir: e.path("data"),
		TLS:      server.TLSFiles{Cert: e.path("server.pem"), Key: e.path("server.key")},
		Admin:    server.Admin{Listen: "127.0.0.1:7444", ClientCA: e.path("ca.pem"), Operators: map[string]rpc.Role{Operator: rpc.Operator}},
		Policy:   server.Policy{Dir: e.path("policies")},
		Evidence: server.Evidence{Folder: e.path("collateral"), Offline: true},
		Audit:    server.Audit{Origin: "claviger-dev"},
		Catalog: []server.Entry{
			{Pattern: "disks/{vm}", Source: "local", Key: "disks/{vm}", Policy: "disks", CreateBytes: 32, Priority: "boot"},
			{Pattern: "db/{name}", Source: "local", Key: "db/{name}", Policy: "disks"},
			{Pattern: "workloads/{workload}", Source: "local", Key: "workloads/{workload}", Policy: "workload"},
		},
		Log:    server.LogConfig{Format: "text"},
		Limits: oneAddress(server.Limits{}),
	}
	return e, nil
}

// oneAddress lets one address have what all have together: simulated guests come from loopback.
func oneAddress(l server.Limits) server.Limits {
	all := rpc.DefaultLimits()
	l.PeerConnections = cmp.Or(l.PeerConnections, l.Connections, all.Connections)
	l.PeerStreams = cmp.Or(l.PeerStreams, l.Streams, all.Streams)
	return l
}

// Add takes over what may be added to a dev broker, and refuses the rest: a
// configuration for production is not tried out under a test root by mistake.
func (e *Env) Add(c server.Config) error {
	rest := c
	rest.Origin, rest.Vault, rest.Catalog, rest.Sessions, rest.Tokens, rest.Limits = nil, nil, nil, server.Sessions{}, server.Tokens{}, server.Limits{}
	if !reflect.DeepEqual(rest, server.Config{}) {
		return errors.New("configuration: dev mode takes vault, catalog, sessions, tokens and limits only")
	}
	e.Config.Vault, e.Config.Sessions, e.Config.Tokens, e.Config.Limits = c.Vault, c.Sessions, c.Tokens, oneAddress(c.Limits)
	e.Config.Catalog = append(e.Config.Catalog, c.Catalog...)
	return nil
}

// TestRoots is what makes the device acceptable to a broker.
func (e *Env) TestRoots() []tee.TestRoot { return testRoots(e.Root.ARK()) }

func testRoots(ark *x509.Certificate) (roots []tee.TestRoot) {
	for _, p := range teesim.Products() {
		roots = append(roots, tee.TestRoot{Product: p, ARK: ark})
	}
	return roots
}

const rootFile = "test-root.pem"

// Trust is what makes the device of a folder's broker acceptable, and the folder with its collateral.
func Trust(dir string) (roots []tee.TestRoot, collateral string, err error) {
	b, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		return nil, "", fmt.Errorf("dev folder: %w", err)
	}
	certs, err := pemfile.Certificates(b)
	if err != nil || len(certs) != 1 {
		return nil, "", fmt.Errorf("dev folder: %s: %w", rootFile, cmp.Or(err, errors.New("want one certificate")))
	}
	return testRoots(certs[0]), filepath.Join(dir, "collateral"), nil
}

func (e *Env) device(now time.Time) error {
	var err error
	if e.Root, err = teesim.NewRoot(now); err != nil {
		return fmt.Errorf("make test root: %w", err)
	}
	e.Device, err = e.Root.NewDevice(teesim.DeviceOptions{Product: "Milan", TCB: teesim.TCB{Bootloader: 4, SNP: 24, Microcode: 219}})
	if err != nil {
		return fmt.Errorf("make simulated device: %w", err)
	}
	if err := e.Device.Save(e.path("device.json")); err != nil {
		return err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: e.Root.ARK().Raw})
	if err := os.WriteFile(e.path(rootFile), root, 0o600); err != nil {
		return fmt.Errorf("write test root: %w", err)
	}
	items, err := e.Root.Collateral(now)
	if err != nil {
		return fmt.Errorf("make test collateral: %w", err)
	}
	for ref, it := range items {
		path := filepath.Join(e.path("collateral"), string(ref.Kind), filepath.FromSlash(ref.Key))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("write test collateral: %w", err)
		}
		if err := os.WriteFile(path, it.Data, 0o600); err != nil {
			return fmt.Errorf("write test collateral: %w", err)
		}
	}
	return nil
}

// disks is the policy that stands in for the example of its name: the example ties
// a secret to one VM, and here one SIMULATED device stands for all.
//
//go:embed policies/disks.rego
var disks string

// policies copies the examples, without their tests and fixtures, where there are none yet.
func (e *Env) policies() error {
	if _, err := os.Stat(e.path("policies")); err == nil {
		return nil
	}
	return fs.WalkDir(examples.Policies, "policies", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() || !strings.HasSuffix(p, ".rego") || strings.HasSuffix(p, "_test.rego") {
			return nil
		}
		b, err := examples.Policies.ReadFile(p)
		if err != nil {
			return err
		}
		if path.Base(p) == "disks.rego" {
			b = []byte(disks)
		}
		dst := e.path(filepath.FromSlash(p))
		if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
			return err
		}
		return os.WriteFile(dst, b, 0o600)
	})
}

// certificates makes a CA for a month, a server certificate and an operator's.
func (e *Env) certificates(now time.Time) error {
	ca, caKey, err := e.certificate("ca", nil, nil, now, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Claviger dev CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	})
	if err != nil {
		return err
	}
	if _, _, err = e.certificate("server", ca, caKey, now, &x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}); err != nil {
		return err
	}
	_, _, err = e.certificate("operator", ca, caKey, now, &x509.Certificate{
		Subject: pkix.Name{CommonName: Operator}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func (e *Env) certificate(name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey, now time.Time, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s key: %w", name, err)
	}
	if ca == nil {
		ca, caKey = tmpl, key
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.Add(30*24*time.Hour)
	if tmpl.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, nil, fmt.Errorf("make %s serial: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s certificate: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s certificate: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make %s key: %w", name, err)
	}
	return cert, key, errors.Join(
		os.WriteFile(e.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(e.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}

// Finish writes what guests and operators need once the server runs: identity.pem, agent.json, env.
func (e *Env) Finish(s *server.Server) error {
	workloads, admin, metrics := s.Addresses()
	agent, err := json.MarshalIndent(map[string]string{"broker": workloads, "ca": e.path("ca.pem"), "identity": e.path("identity.pem")}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode agent.json: %w", err)
	}
	env := fmt.Sprintf(`# Written by "claviger dev"; to be read by a shell.
export CLAVIGER_DEV=%[1]s
export CLAVIGER_BROKER=%[2]s CLAVIGER_CA=%[1]s/ca.pem CLAVIGER_IDENTITY=%[1]s/identity.pem
export CLAVIGER_ADMIN=%[3]s CLAVIGER_ADMIN_CA=%[1]s/ca.pem CLAVIGER_ADMIN_CERT=%[1]s/operator.pem CLAVIGER_ADMIN_KEY=%[1]s/operator.key
export CLAVIGER_METRICS=%[4]s
`, quote(e.Dir), quote(workloads), quote(admin), quote(metrics))
	return errors.Join(
		os.WriteFile(e.path("identity.pem"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.Identity()}), 0o600),
		os.WriteFile(e.path("agent.json"), append(agent, '\n'), 0o600),
		os.WriteFile(e.path("env"), []byte(env), 0o600))
}

// quote makes a word of the shell of any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Seed registers the demo image and writes a database password where there is none, as an operator would.
func (e *Env) Seed(ctx context.Context, s *server.Server) error {
	conn, err := e.Dial(s)
	if err != nil {
		return err
	}
	defer conn.Close()
	admin := pb.NewAdminClient(conn)
	m := teesim.Measurement("")
	if _, err := admin.PutReferenceSet(ctx, &pb.PutReferenceSetRequest{Set: &pb.ReferenceSet{
		Name: "demo-image", Type: "sev-snp", State: "active", Source: "claviger dev", Comment: "the simulated demo image",
		Owner:  &pb.ReferenceOwner{Policies: []string{"*"}},
		Values: map[string]*pb.ReferenceValues{"measurement": {Values: []string{hex.EncodeToString(m[:])}}},
	}}); err != nil {
		return fmt.Errorf("register the demo image: %w", err)
	}
	have, err := admin.ListSecrets(ctx, &pb.ListSecretsRequest{Prefix: "db/orders"})
	if err != nil {
		return fmt.Errorf("list secrets: %w", err)
	}
	if len(have.GetSecrets()) > 0 {
		return nil
	}
	if _, err := admin.PutSecret(ctx, &pb.PutSecretRequest{Key: "db/orders", Value: []byte("dev-" + rand.Text())}); err != nil {
		return fmt.Errorf("write the demo password: %w", err)
	}
	return nil
}

// Dial connects to the operators' listener with the operator's certificate.
func (e *Env) Dial(s *server.Server) (*grpc.ClientConn, error) {
	cfg, err := e.clientTLS()
	if err != nil {
		return nil, err
	}
	_, admin, _ := s.Addresses()
	return grpc.NewClient(admin, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
}

// DialWorkloads connects to the guests' listener.
func (e *Env) DialWorkloads(s *server.Server) (*grpc.ClientConn, error) {
	pool, err := e.Roots()
	if err != nil {
		return nil, err
	}
	addr, _, _ := s.Addresses()
	return grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool})))
}

func (e *Env) clientTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(e.path("operator.pem"), e.path("operator.key"))
	if err != nil {
		return nil, fmt.Errorf("operator certificate: %w", err)
	}
	pool, err := e.Roots()
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool}, nil
}

// Roots verify the server's certificate.
func (e *Env) Roots() (*x509.CertPool, error) {
	b, err := os.ReadFile(e.path("ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("dev CA: %w", err)
	}
	pool, err := pemfile.Pool(b)
	if err != nil {
		return nil, fmt.Errorf("dev CA: %w", err)
	}
	return pool, nil
}
