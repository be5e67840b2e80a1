package snp

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/google/go-sev-guest/verify/trust"

	"github.com/claviger/claviger/broker/certs"
	"github.com/claviger/claviger/broker/pemfile"
)

// anchor is a root that a chain may end at.
type anchor struct {
	cert      *x509.Certificate
	simulated bool
}

// allows says which signatures count below this root: AMD uses RSA-PSS alone.
func (r anchor) allows(alg x509.SignatureAlgorithm) bool {
	return alg == x509.SHA384WithRSAPSS || (r.simulated && alg == x509.ECDSAWithSHA384)
}

// issuerKey selects a certificate that issues leaves.
type issuerKey struct {
	line line
	kind signingKey
}

// amdRoot is a root of AMD with the issuers below it.
type amdRoot struct {
	line       line
	arkSHA256  string // of the certificate, DER
	vcek, vlek []byte // PEM: ASK or ASVK, then ARK
}

// amdRoots takes the certificates from go-sev-guest, whose package variables
// anybody can change, and therefore pins the roots here.
func amdRoots() []amdRoot {
	return []amdRoot{
		{milan, "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd", trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		{genoa, "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1", trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		{turin, "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a", trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	}
}

// addAMD makes a root of AMD an anchor, after comparing it with its pin.
func (v *Verifier) addAMD(r amdRoot) error {
	for kind, bundle := range map[signingKey][]byte{keyVCEK: r.vcek, keyVLEK: r.vlek} {
		chain, err := parsePEM(bundle)
		if err != nil {
			return fmt.Errorf("AMD bundle of %s %s: %w", r.line, kind, err)
		}
		if len(chain) != 2 {
			return fmt.Errorf("AMD bundle of %s %s: %d certificates, want 2", r.line, kind, len(chain))
		}
		ark := chain[1]
		if d := sha256.Sum256(ark.Raw); hex.EncodeToString(d[:]) != r.arkSHA256 {
			return fmt.Errorf("AMD bundle of %s %s: the root has digest %x, pinned is %s", r.line, kind, d, r.arkSHA256)
		}
		v.issuers[issuerKey{r.line, kind}] = chain[0]
		if kind == keyVCEK {
			v.anchors[r.line] = append(v.anchors[r.line], anchor{cert: ark})
		}
	}
	return nil
}

// addTest makes a test root an anchor of its product line, or of all.
func (v *Verifier) addTest(t TestRoot) error {
	if t.ARK == nil {
		return fmt.Errorf("test root of %q: no certificate", t.Product)
	}
	lines := slices.DeleteFunc([]line{milan, genoa, turin}, func(l line) bool {
		return t.Product != "" && t.Product != l.name()
	})
	if len(lines) == 0 {
		return fmt.Errorf("test root: unknown product %q", t.Product)
	}
	for _, l := range lines {
		v.anchors[l] = append(v.anchors[l], anchor{cert: t.ARK, simulated: true})
	}
	return nil
}

// parsePEM reads certificates one after the other, and nothing else.
func parsePEM(b []byte) ([]*x509.Certificate, error) {
	list, err := pemfile.BareCertificates(b, certs.RSA, certs.P384)
	if err != nil {
		return nil, err
	}
	if len(list) > 4 {
		return nil, fmt.Errorf("%d certificates, want at most 4", len(list))
	}
	return list, nil
}
