package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"log/slog"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/broker/rpc"
)

func goodConfig() Config {
	return Config{
		TLS: TLSFiles{Cert: "c", Key: "k"}, Admin: Admin{ClientCA: "ca", Operators: map[string]rpc.Role{"olga": rpc.Operator}}, Policy: Policy{Dir: "p"},
		Catalog: []Entry{{Pattern: "db/{name}", Source: "local", Key: "db/{name}", Policy: "disks"}},
	}
}

// TestComplete: each error names its field.
func TestComplete(t *testing.T) {
	good := goodConfig()
	if err := good.Complete(); err != nil {
		t.Fatal(err)
	}
	if good.Listen != "0.0.0.0:7443" || good.Admin.Listen != "127.0.0.1:7444" || good.Metrics != "127.0.0.1:7445" || good.DataDir != "/var/lib/claviger" ||
		good.Admin.TLS != good.TLS || time.Duration(good.Nonce) != 2*time.Minute || good.Evidence.KDS == "" || good.Log.Level != "info" {
		t.Errorf("defaults: %+v", good)
	}
	for field, spoil := range map[string]func(*Config){
		"test_root:":                           func(c *Config) { c.TestRoot = "root.pem" },
		"listen:":                              func(c *Config) { c.Listen = "7443" },
		"listen: \"off\"":                      func(c *Config) { c.Listen = "off" },
		"admin.listen:":                        func(c *Config) { c.Admin.Listen = "nowhere" },
		"metrics_listen:":                      func(c *Config) { c.Metrics = "x" },
		"tls.cert, tls.key:":                   func(c *Config) { c.TLS.Key = "" },
		"admin.client_ca:":                     func(c *Config) { c.Admin.ClientCA = "" },
		"admin.operators.eve:":                 func(c *Config) { c.Admin.Operators["eve"] = "root" },
		"policy.dir:":                          func(c *Config) { c.Policy.Dir = "" },
		"policy.config.allow_simulated:":       func(c *Config) { c.Policy.Config = map[string]any{"allow_simulated": false} },
		"evidence.bundle":                      func(c *Config) { c.Evidence.Bundle = "b" },
		"evidence.bundle_key":                  func(c *Config) { c.Evidence.BundleKey = "b" },
		"evidence.nitro.max_age:":              func(c *Config) { c.Evidence.Nitro.MaxAge = -1 },
		"seal_key_file:":                       func(c *Config) { c.Etcd.Endpoints = []string{"https://a:2379"} },
		"audit.origin:":                        func(c *Config) { c.Audit.Origin = "a+b" },
		"vault[0].name:":                       func(c *Config) { c.Vault = []Vault{{TokenFile: "t"}} },
		"vault[0].name: \"local\"":             func(c *Config) { c.Vault = []Vault{{Name: "local", TokenFile: "t"}} },
		"vault[1].name: \"v\"":                 func(c *Config) { c.Vault = []Vault{{Name: "v", TokenFile: "t"}, {Name: "v", TokenFile: "t"}} },
		"vault[0]: want one login":             func(c *Config) { c.Vault = []Vault{{Name: "v"}} },
		"vault[0]: want one login, not":        func(c *Config) { c.Vault = []Vault{{Name: "v", TokenFile: "t", AppRole: &AppRole{}}} },
		"catalog:":                             func(c *Config) { c.Catalog[0].Pattern = "/" },
		"catalog[0].source: db/{name}: source": func(c *Config) { c.Catalog[0].Source = "vault" },
		"etcd.quota_mib: 1 ":                   func(c *Config) { c.Etcd.QuotaMiB = 1 },
		"etcd.quota_mib: an external":          func(c *Config) { c.Etcd.QuotaMiB, c.Etcd.Endpoints, c.SealKey = 64, []string{"https://etcd:2379"}, "k" },
		"limits.peer_rate:":                    func(c *Config) { r := -1.0; c.Limits.PeerRate = &r },
		"limits.peer_rate: NaN":                func(c *Config) { r := math.NaN(); c.Limits.PeerRate = &r },
		"limits.peer_rate: 1e+07":              func(c *Config) { r := 1e7; c.Limits.PeerRate = &r },
		"limits.peer_burst:":                   func(c *Config) { c.Limits.PeerBurst = -1 },
		"limits.concurrency:":                  func(c *Config) { c.Limits.Concurrency = 100000 },
		"limits.queue:":                        func(c *Config) { c.Limits.Queue = -5 },
		"limits.queue_time:":                   func(c *Config) { c.Limits.QueueTime = Duration(time.Hour) },
		"limits.connections:":                  func(c *Config) { c.Limits.Connections = 1 },
		"limits.peer_connections:":             func(c *Config) { c.Limits.PeerConnections = -1 },
		"limits.streams:":                      func(c *Config) { c.Limits.Streams = 1 << 30 },
		"limits.peer_streams:":                 func(c *Config) { c.Limits.PeerStreams = -1 },
		"limits.peer_share_56:":                func(c *Config) { c.Limits.Share56 = 257 },
		"limits.peer_share_48:":                func(c *Config) { c.Limits.Share48 = -1 },
		"limits.collateral_waits:":             func(c *Config) { c.Limits.Away = -1 },
		"limits.peer_collateral_waits:":        func(c *Config) { c.Limits.PeerAway = 1 << 20 },
		"limits.patience:":                     func(c *Config) { c.Limits.Patience = 1 },

		"evidence.keystone.device_keys[1]:":       func(c *Config) { c.Evidence.Keystone.DeviceKeys = []string{strings.Repeat("0a", 32), "0a"} },
		"evidence.results[0].name:":               func(c *Config) { c.Evidence.Results = []Result{{JWKS: "f"}} },
		"evidence.results[1].jwks, roots:":        func(c *Config) { c.Evidence.Results = []Result{{Name: "a", JWKS: "f"}, {Name: "b"}} },
		"evidence.results[0].max_age:":            func(c *Config) { c.Evidence.Results = []Result{{Name: "a", JWKS: "f", MaxAge: -1}} },
		"evidence.keystone.security_monitors[0]:": func(c *Config) { c.Evidence.Keystone.SecurityMonitors = []string{strings.Repeat("zz", 64)} },

		"evidence.nvidia_gpu.ocsp:": func(c *Config) { c.Evidence.NVIDIAGPU.OCSP = "never" },
	} {
		c := goodConfig()
		spoil(&c)
		if err := c.Complete(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	// All that is wrong is said at once.
	c := Config{TestRoot: "x"}
	err := c.Complete()
	for _, want := range []string{"test_root", "tls.cert", "policy.dir", "admin.client_ca"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	c = goodConfig()
	c.Admin.Listen, c.Metrics, c.Admin.ClientCA, c.Evidence.Offline = "off", "off", "", true
	if err := c.Complete(); err != nil || c.Evidence.KDS != "" || c.Evidence.PCS != "" || c.Evidence.RootCRL != "" {
		t.Errorf("offline: %v %+v", err, c.Evidence)
	}
}

func TestLoad(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	load := func(s string) (Config, error) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(file)
	}
	c, err := load("listen: 127.0.0.1:1\nnonce_lifetime: 90s\nlimits: {peer_rate: 0}\nadmin:\n  operators: {vera: viewer}\n")
	if err != nil || c.Listen != "127.0.0.1:1" || time.Duration(c.Nonce) != 90*time.Second || c.Admin.Operators["vera"] != rpc.Viewer || *c.Limits.PeerRate != 0 {
		t.Errorf("%+v: %v", c, err)
	}
	if l := c.limits(); l.PeerRate != 0 || l.PeerConnections != 0 || l.PeerStreams != 0 || l.Concurrency != rpc.DefaultLimits().Concurrency {
		t.Errorf("limits %+v", l)
	}
	for bad, want := range map[string]string{
		"lisen: x\n":                     "lisen",
		"admin: {operator: {a: b}}\n":    "operator",
		"listen: a\nlisten: b\n":         "listen",
		"nonce_lifetime: 5\n":            "",
		"nonce_lifetime: -5s\n":          "-5s",
		"nonce_lifetime: soon\n":         "soon",
		"listen: [a\n":                   "",
		"evidence: {test_root: x.pem}\n": "test_root",
	} {
		if _, err := load(bad); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := Load(file + ".none"); err == nil {
		t.Error("no file, no error")
	}
}

func TestEnvironment(t *testing.T) {
	c := Config{Listen: "file:1", DataDir: "file"}
	c.Environment(func(k string) string {
		return map[string]string{"CLAVIGER_LISTEN": "env:1", "CLAVIGER_LOG_LEVEL": "debug"}[k]
	})
	if c.Listen != "env:1" || c.DataDir != "file" || c.Log.Level != "debug" {
		t.Errorf("%+v", c)
	}
}

// TestSealKey: made once, never made anew over state that needs the old one.
func TestSealKey(t *testing.T) {
	dir := t.TempDir()
	s := &Server{cfg: Config{DataDir: dir}, log: slog.New(slog.DiscardHandler)}
	first, err := s.sealKey()
	if err != nil || len(first) != 32 {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "seal.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if again, err := s.sealKey(); err != nil || !bytes.Equal(again, first) {
		t.Fatalf("changed: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sealKey(); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("made a new key over old state: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("wrote a key file")
	}
	s.cfg.SealKey = filepath.Join(dir, "own.key")
	if _, err := s.sealKey(); err == nil {
		t.Error("a named key file that is not there was made")
	}
	for content, ok := range map[string]bool{
		string(first): true, hex.EncodeToString(first) + "\n": true, "": false, "short": false, hex.EncodeToString(first[:16]): false, strings.Repeat("zz", 32): false,
	} {
		if err := os.WriteFile(s.cfg.SealKey, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := s.sealKey()
		if (err == nil) != ok || (ok && !bytes.Equal(key, first)) {
			t.Errorf("%d bytes: %v", len(content), err)
		}
	}
}

func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSampler(5, time.Second)
		count := func() (n int) {
			for range 1000 {
				if s.allow() {
					n++
				}
			}
			return n
		}
		if n := count(); n != 5 {
			t.Errorf("%d at first", n)
		}
		time.Sleep(time.Second)
		if n := count(); n != 5 {
			t.Errorf("%d a second later", n)
		}
	})
}

func writeCertificate(t *testing.T, files TLSFiles, name string, at time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: at, NotAfter: at.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, b := range map[string]*pem.Block{files.Cert: {Type: "CERTIFICATE", Bytes: der}, files.Key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCertificateReload: a renewed certificate is served without a restart, a
// half-written one is not; the CA of operators is read again, too.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	files := TLSFiles{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k")}
	ca := TLSFiles{Cert: filepath.Join(dir, "ca"), Key: filepath.Join(dir, "ca.key")}
	log := slog.New(slog.DiscardHandler)
	if _, err := serverTLS(log, files, ""); err == nil {
		t.Fatal("no files, no error")
	}
	synctest.Test(t, func(t *testing.T) {
		writeCertificate(t, files, "old", time.Now())
		writeCertificate(t, ca, "first", time.Now())
		cfg, err := serverTLS(log, files, ca.Cert)
		if err != nil || cfg.MinVersion != tls.VersionTLS13 {
			t.Fatalf("%v: %+v", err, cfg)
		}
		name := func() string {
			t.Helper()
			time.Sleep(time.Second)
			pair, err := cfg.GetCertificate(nil)
			if err != nil {
				t.Fatal(err)
			}
			c, err := x509.ParseCertificate(pair.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			return c.Subject.CommonName
		}
		believed := func() *x509.CertPool {
			t.Helper()
			c, err := cfg.GetConfigForClient(nil)
			if err != nil || c.ClientAuth != tls.RequireAndVerifyClientCert || c.MinVersion != tls.VersionTLS13 {
				t.Fatalf("%v: clients need no certificate, or old TLS: %+v", err, c)
			}
			return c.ClientCAs
		}
		first := believed()
		if n := name(); n != "old" {
			t.Fatal(n)
		}
		oldKey, err := os.ReadFile(files.Key)
		if err != nil {
			t.Fatal(err)
		}
		writeCertificate(t, files, "new", time.Now())
		newKey, err := os.ReadFile(files.Key)
		if err != nil {
			t.Fatal(err)
		}
		write := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(files.Key, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(oldKey)
		if n := name(); n != "old" {
			t.Errorf("served %s, whose key is not there yet", n)
		}
		write(newKey)
		if n := name(); n != "new" {
			t.Errorf("served %s after the renewal", n)
		}
		if err := os.Remove(files.Cert); err != nil {
			t.Fatal(err)
		}
		if n := name(); n != "new" {
			t.Errorf("served %s after the file went", n)
		}
		if cfg, err := serverTLS(log, files, ""); err == nil || cfg != nil {
			t.Error("started without a certificate")
		}
		if !believed().Equal(first) {
			t.Error("believes another CA, and the file is as it was")
		}
		writeCertificate(t, ca, "second", time.Now())
		time.Sleep(time.Second)
		if believed().Equal(first) {
			t.Error("still believes the CA that the file does not hold any more")
		}
	})
}

// TestResultIssuer: the files of evidence.results are read, and what is wrong with one names its field.
func TestResultIssuer(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The key of RFC 7515 §A.3, without its private part.
	keys := file("keys.json", `{"keys":[{"kty":"EC","crv":"P-256","kid":"k","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`)
	in, err := Result{Name: "n", Dialect: "ear", Issuer: "https://i", JWKS: keys, MaxAge: Duration(time.Minute), NonceAttested: true}.issuer()
	if err != nil || len(in.Keys) != 1 || in.Keys[0].ID != "k" || in.URL != "https://i" || in.MaxAge != time.Minute || !in.NonceAttested {
		t.Errorf("%+v, %v", in, err)
	}
	for field, r := range map[string]Result{
		"jwks: open":  {JWKS: filepath.Join(dir, "absent")},
		"jwks: /":     {JWKS: file("bad.json", "{}")},
		"roots: open": {Roots: filepath.Join(dir, "absent")},
		"roots: /":    {Roots: file("bad.pem", "x")},
	} {
		if _, err := r.issuer(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// TestEndorsements: what is wrong with the file is said with its name.
func TestEndorsements(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.json")
	if list, err := (Arm{}).endorsed(); list != nil || err != nil {
		t.Errorf("no file: %v, %v", list, err)
	}
	if _, err := (Arm{file}).endorsed(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(file, []byte(`[{"instance_id": "01"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Arm{file}).endorsed(); err == nil || !strings.Contains(err.Error(), file+": [0].instance_id") {
		t.Errorf("a short id: %v", err)
	}
}
