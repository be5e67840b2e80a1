package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

// TestOneReading: collateral that another reader of the same signed bytes could understand otherwise. The genuine documents
// that are still read are those of TestSharedDocuments and TestCollateral.
func TestOneReading(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"SVN in capitals beside it": {`{"tcbLevels":[{"tcb":{"sgxtcbcomponents":[{"svn":9,"SVN":1}]}}]}`, `in tcbLevels[0].tcb.sgxtcbcomponents[0]: the name "SVN" is not "svn"`},
		"long s":                    {`{"tcbLevelſ":[]}`, `is not "tcbLevels"`},
		"status twice":              {`{"tcbLevels":[{"tcbStatus":"Revoked","tcbStatus":"UpToDate"}]}`, `"tcbStatus" occurs twice`},
		"status twice, escaped":     {`{"tcbLevels":[{"tcbStatus":"Revoked","tcb\u0053tatus":"UpToDate"}]}`, "occurs twice"},
		"NUL in a name":             {`{"tcbLevels":[{"tcbStatus\u0000":"UpToDate"}]}`, "control characters"},
		"twice where nobody looks":  {`{"x":[{"y":1,"y":2}]}`, `in x[0]: the name "y" occurs twice`},
		"invalid UTF-8":             {"{\"id\":\"TDX\xff\"}", "invalid UTF-8"},
		"trailing data":             {`{} {}`, "after top-level value"},
		"nested deeply":             {strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), "nested"},
	} {
		t.Run(name, func(t *testing.T) {
			_, tcb := parseTCBInfo([]byte(c.doc), nil)
			_, qe := parseQEIdentity([]byte(c.doc), nil)
			for _, err := range []error{tcb, qe} {
				if ReasonOf(err) != attest.ReasonCollateralInvalid {
					t.Errorf("got %v", err)
				}
			}
			if !strings.Contains(tcb.Error(), c.want) {
				t.Errorf("got %v, want %q", tcb, c.want)
			}
		})
	}
}

// TestTrailingBytesOfCRL: x509 lets bytes after the list pass, in which another reader may look for a second one.
func TestTrailingBytesOfCRL(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour), SubjectKeyId: []byte{1},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}, ca, key)
	if err != nil {
		t.Fatal(err)
	}
	v := New(Config{})
	if _, err := v.crl(list, ca); err != nil {
		t.Fatal(err)
	}
	if _, err := v.crl(append(list, list...), ca); ReasonOf(err) != attest.ReasonCollateralInvalid || !strings.Contains(err.Error(), "after the CRL") {
		t.Errorf("got %v", err)
	}
}
