package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBootFiles: an initial RAM disk gets what the configuration names, wherever it is, and nothing that is secret.
func TestBootFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := selfSigned(t)
	ca := file("roots.crt", root)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})
	identity := base64.StdEncoding.EncodeToString(make([]byte, 44))
	volumes := []map[string]any{{"name": "root", "device": "/dev/vda", "resource": "disks/vm-1"}}
	static := map[string]any{"address": "192.0.2.1/24"}
	for name, c := range map[string]struct {
		change map[string]any
		code   int
		want   []string // lines, or what the error says
	}{
		"all":                    {map[string]any{"ca": ca, "tpm": map[string]any{"ak_certificate": ca}}, 0, []string{"file " + ca, "dhcp"}},
		"an address":             {map[string]any{"network": static}, 0, []string{""}},
		"a program":              {map[string]any{"devices": []any{map[string]any{"type": "nvidia-gpu", "command": []string{"/bin/sh"}}}}, 0, []string{"program /bin/sh"}},
		"name servers":           {map[string]any{"network": map[string]any{"address": "192.0.2.1/24", "dns": []string{"192.0.2.2"}}, "broker": "kb.example:7443"}, 0, []string{""}},
		"missing":                {map[string]any{"ca": filepath.Join(dir, "none.pem")}, exitFailed, []string{"ca: ", "none.pem"}},
		"a private key as CA":    {map[string]any{"ca": file("key.pem", key)}, exitFailed, []string{"ca: ", "key.pem"}},
		"a CA with a key behind": {map[string]any{"ca": file("both.pem", append(bytes.Clone(root), key...))}, exitFailed, []string{"both.pem"}},
		"a relative path":        {map[string]any{"tpm": map[string]any{"ak_certificate": "ak.pem"}}, exitFailed, []string{"ak_certificate"}},
		"no such program":        {map[string]any{"devices": []any{map[string]any{"type": "nvidia-gpu", "command": []string{"/no/such"}}}}, exitFailed, []string{"devices[0].command"}},
		"no volumes":             {map[string]any{"volumes": nil}, exitFailed, []string{"volumes"}},
		"no identity":            {map[string]any{"identity": ""}, exitUsage, []string{"identity"}},
		"a broken configuration": {map[string]any{"volumse": nil}, exitUsage, []string{"volumse"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := map[string]any{"broker": "192.0.2.9:7443", "identity": identity, "volumes": volumes}
			for k, v := range c.change {
				config[k] = v
			}
			b, err := json.Marshal(config)
			if err != nil {
				t.Fatal(err)
			}
			path := file("agent.json", b)
			// The environment of who builds the image is not that of the boot.
			r := command(t, []string{"CLAVIGER_IDENTITY=" + identity, "CLAVIGER_CA=/no/such"}, "boot-files", "--config", path)
			if r.code != c.code {
				t.Fatalf("code %d, %s%s", r.code, r.stdout, r.stderr)
			}
			for _, want := range c.want {
				if c.code == 0 && !strings.Contains("\n"+r.stdout, "\n"+want) || c.code != 0 && !strings.Contains(r.stderr, want) {
					t.Errorf("not %q in %q %q", want, r.stdout, r.stderr)
				}
			}
			if c.code == 0 && (!strings.Contains(r.stdout, "file "+path+"\n") || strings.Contains(r.stdout, "dhcp") == (name == "an address" || name == "name servers")) {
				t.Errorf("%q", r.stdout)
			}
		})
	}
}

// TestNameServers: a resolver of this machine's own is none at boot.
func TestNameServers(t *testing.T) {
	for text, good := range map[string]bool{
		"nameserver 192.0.2.53\n": true, "# by hand\nnameserver 2001:db8::53\noptions edns0\n": true, "nameserver fe80::1%eth0\n": true,
		"nameserver 127.0.0.53\n": false, "nameserver ::1\n": false, "nameserver 127.0.0.1\nnameserver 192.0.2.53\n": false, "search example\n": false, "": false,
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := nameServers(path); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
