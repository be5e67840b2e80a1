package teesim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func newRoot(t *testing.T) *Root {
	t.Helper()
	r, err := NewRoot(now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestMarked: nothing made here can be taken for hardware.
func TestMarked(t *testing.T) {
	r := newRoot(t)
	certs := []*x509.Certificate{r.ARK()}
	for _, p := range Products() {
		certs = append(certs, r.ASK(p), r.ASVK(p))
	}
	for _, c := range certs {
		if !slices.Contains(c.Subject.Organization, Marker) {
			t.Errorf("subject %q lacks %q", c.Subject, Marker)
		}
		if err := c.CheckSignatureFrom(r.ARK()); err != nil {
			t.Errorf("%q: %v", c.Subject, err)
		}
	}
	if !strings.Contains(r.ARK().Subject.CommonName, Marker) {
		t.Errorf("the root's name is %q", r.ARK().Subject.CommonName)
	}
	if r.ASK("Rome") != nil {
		t.Error("an issuer for Rome")
	}
}

func TestRootPEM(t *testing.T) {
	r := newRoot(t)
	c, err := ParseRootPEM(r.RootPEM())
	if err != nil || !c.Equal(r.ARK()) {
		t.Fatalf("round trip: %v", err)
	}
	for name, b := range map[string][]byte{
		"empty":     nil,
		"two":       append(r.RootPEM(), r.RootPEM()...),
		"not a CA":  bytes.Replace(r.RootPEM(), []byte("CERTIFICATE"), []byte("CERTIFICATX"), 2),
		"truncated": r.RootPEM()[:300],
	} {
		if _, err := ParseRootPEM(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	a, err := newAuthority("ARK-Milan", now, now.AddDate(1, 0, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.ark = a
	if _, err := ParseRootPEM(r.RootPEM()); err == nil {
		t.Error("a root that does not say it is simulated was accepted")
	}
}

func TestCRL(t *testing.T) {
	r := newRoot(t)
	der, err := r.CRL(now, big.NewInt(5))
	if err != nil {
		t.Fatal(err)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.CheckSignatureFrom(r.ARK()); err != nil {
		t.Error(err)
	}
	if len(l.RevokedCertificateEntries) != 1 || !l.ThisUpdate.Before(now) || !l.NextUpdate.After(now) {
		t.Errorf("%+v", l)
	}
	c, err := r.Collateral(now)
	if err != nil || len(c) != 6 || c[attest.CollateralRef{Kind: attest.SNPCRL, Key: "turin/vcek"}].FetchedAt != now {
		t.Errorf("%d pieces of collateral, %v", len(c), err)
	}
}

// TestSaveLoad: another process makes the same device's evidence.
func TestSaveLoad(t *testing.T) {
	for _, o := range []DeviceOptions{{}, {Product: "Genoa"}, {Product: "Turin"}, {VLEK: true}} {
		d, err := newRoot(t).NewDevice(o)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "device.json")
		if err := os.WriteFile(path, []byte("older"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := d.Save(path); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		if b, _ := os.ReadFile(path); !bytes.Contains(b, []byte("SIMULATED")) {
			t.Error("the file does not warn")
		}
		e, err := LoadDevice(path)
		if err != nil {
			t.Fatal(err)
		}
		if !d.key.Equal(e.key) || !bytes.Equal(d.CertTable(), e.CertTable()) || d.Product() != e.Product() || !bytes.Equal(d.ChipID(), e.ChipID()) {
			t.Error("the loaded device differs")
		}
		ev, err := e.Evidence([64]byte{1}, ReportOptions{})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(d.Leaf())
		if err != nil {
			t.Fatal(err)
		}
		sum := sha512.Sum384(ev.Report[:signatureOffset])
		le := func(b []byte) *big.Int {
			b = slices.Clone(b)
			slices.Reverse(b)
			return new(big.Int).SetBytes(b)
		}
		r, s := le(ev.Report[signatureOffset:][:componentSize]), le(ev.Report[signatureOffset+componentSize:][:componentSize])
		if !ecdsa.Verify(leaf.PublicKey.(*ecdsa.PublicKey), sum[:], r, s) {
			t.Error("the report's signature does not verify")
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	d, err := newRoot(t).NewDevice(DeviceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"no warning": bytes.Replace(good, []byte(warning), []byte("fine"), 1),
		"product":    bytes.Replace(good, []byte(`"Milan"`), []byte(`"Turin"`), 1),
		"no key":     bytes.Replace(good, []byte(`"key"`), []byte(`"kex"`), 1),
		"cut":        good[:len(good)/2],
	} {
		if err := new(Device).UnmarshalJSON(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, o := range map[string]DeviceOptions{"product": {Product: "Rome"}, "chip id": {ChipID: []byte{1}}} {
		if _, err := newRoot(t).NewDevice(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestLight: the agent carries this package, so it imports the standard library, attest and what that imports alone.
func TestLight(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	want := []string{"github.com/claviger/claviger/broker/strictjson", "github.com/claviger/claviger/broker/attest", "github.com/claviger/claviger/broker/tee/teesim"}
	if got := strings.Fields(string(out)); !slices.Equal(got, want) {
		t.Errorf("imports %v", got)
	}
}
