package dcap

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"time"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/strictjson"
)

// maxCollateral bounds one piece of collateral, in bytes; Intel's are below 64 KiB.
const maxCollateral = 1 << 20

// tcbInfo is TCB info version 3 as Intel signed it ("Intel SGX and TDX
// Provisioning Certification Service", V4 API).
type tcbInfo struct {
	ID                      string           `json:"id"`
	Version                 int              `json:"version"`
	IssueDate               time.Time        `json:"issueDate"`
	NextUpdate              time.Time        `json:"nextUpdate"`
	FMSPC                   hexBytes         `json:"fmspc"`
	PCEID                   hexBytes         `json:"pceId"`
	TCBType                 int              `json:"tcbType"`
	TCBEvaluationDataNumber uint32           `json:"tcbEvaluationDataNumber"`
	TDXModule               *moduleIdentity  `json:"tdxModule"`
	TDXModuleIdentities     []moduleIdentity `json:"tdxModuleIdentities"`
	TCBLevels               []tcbLevel       `json:"tcbLevels"`

	signer *x509.Certificate
}

type moduleIdentity struct {
	ID             string     `json:"id"`
	MRSigner       hexBytes   `json:"mrsigner"`
	Attributes     hexBytes   `json:"attributes"`
	AttributesMask hexBytes   `json:"attributesMask"`
	TCBLevels      []tcbLevel `json:"tcbLevels"`
}

// tcbLevel serves platforms, TDX modules and QEs; TCB has the fields of its kind.
type tcbLevel struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		PCESVN *uint16     `json:"pcesvn"`
		TDX    []component `json:"tdxtcbcomponents"`
		ISVSVN *uint16     `json:"isvsvn"`
	} `json:"tcb"`
	Date        time.Time `json:"tcbDate"`
	Status      string    `json:"tcbStatus"`
	AdvisoryIDs []string  `json:"advisoryIDs"`
}

type component struct {
	SVN uint8 `json:"svn"`
}

// qeIdentity is the identity of the SGX QE or TD QE, version 2.
type qeIdentity struct {
	ID                      string     `json:"id"`
	Version                 int        `json:"version"`
	IssueDate               time.Time  `json:"issueDate"`
	NextUpdate              time.Time  `json:"nextUpdate"`
	TCBEvaluationDataNumber uint32     `json:"tcbEvaluationDataNumber"`
	MISCSELECT              hexBytes   `json:"miscselect"`
	MISCSELECTMask          hexBytes   `json:"miscselectMask"`
	Attributes              hexBytes   `json:"attributes"`
	AttributesMask          hexBytes   `json:"attributesMask"`
	MRSIGNER                hexBytes   `json:"mrsigner"`
	ISVPRODID               *uint16    `json:"isvprodid"`
	TCBLevels               []tcbLevel `json:"tcbLevels"`

	signer *x509.Certificate
}

// tcbInfo verifies and decodes TCB info.
func (v *Verifier) tcbInfo(it attest.CollateralItem, root *x509.Certificate) (*tcbInfo, error) {
	return v.tcbInfos.Get(memo.Key([]byte("tcb info"), it.Data, it.IssuerChain, root.Raw), func() (*tcbInfo, error) {
		raw, signer, err := openSigned(it, "tcbInfo", root)
		if err != nil {
			return nil, err
		}
		return parseTCBInfo(raw, signer)
	})
}

func parseTCBInfo(raw []byte, signer *x509.Certificate) (*tcbInfo, error) {
	info := &tcbInfo{signer: signer}
	if err := decodeStrict(raw, info); err != nil {
		return nil, err
	}
	if info.Version != 3 || info.TCBType != 0 {
		return nil, unsupported("TCB info version %d, TCB type %d", info.Version, info.TCBType)
	}
	if len(info.FMSPC) != 6 || len(info.PCEID) != 2 || info.IssueDate.IsZero() || info.NextUpdate.IsZero() || len(info.TCBLevels) == 0 {
		return nil, invalid("TCB info lacks a field")
	}
	for i, l := range info.TCBLevels {
		if len(l.TCB.SGX) != 16 || l.TCB.PCESVN == nil || l.Status == "" || l.Date.IsZero() ||
			info.ID == "TDX" && len(l.TCB.TDX) != 16 {
			return nil, invalid("TCB level %d lacks a field", i)
		}
	}
	modules := info.TDXModuleIdentities
	if info.TDXModule != nil {
		modules = append([]moduleIdentity{*info.TDXModule}, modules...)
	} else if info.ID == "TDX" {
		return nil, invalid("TCB info for TDX without a TDX module")
	}
	for _, m := range modules {
		if len(m.MRSigner) != 48 || len(m.Attributes) != 8 || len(m.AttributesMask) != 8 {
			return nil, invalid("TDX module identity %q lacks a field", m.ID)
		}
		if err := checkLevels(m.TCBLevels); err != nil {
			return nil, err
		}
	}
	return info, nil
}

// qeIdentity verifies and decodes a QE identity.
func (v *Verifier) qeIdentity(it attest.CollateralItem, root *x509.Certificate) (*qeIdentity, error) {
	return v.qeIdentities.Get(memo.Key([]byte("qe identity"), it.Data, it.IssuerChain, root.Raw), func() (*qeIdentity, error) {
		raw, signer, err := openSigned(it, "enclaveIdentity", root)
		if err != nil {
			return nil, err
		}
		return parseQEIdentity(raw, signer)
	})
}

func parseQEIdentity(raw []byte, signer *x509.Certificate) (*qeIdentity, error) {
	id := &qeIdentity{signer: signer}
	if err := decodeStrict(raw, id); err != nil {
		return nil, err
	}
	if id.Version != 2 {
		return nil, unsupported("QE identity version %d", id.Version)
	}
	if id.ID == "" || id.ISVPRODID == nil || len(id.MISCSELECT) != 4 || len(id.MISCSELECTMask) != 4 || len(id.Attributes) != 16 || len(id.AttributesMask) != 16 ||
		len(id.MRSIGNER) != 32 || id.IssueDate.IsZero() || id.NextUpdate.IsZero() || len(id.TCBLevels) == 0 {
		return nil, invalid("QE identity lacks a field")
	}
	return id, checkLevels(id.TCBLevels)
}

func checkLevels(levels []tcbLevel) error {
	for i, l := range levels {
		if l.TCB.ISVSVN == nil || l.Status == "" || l.Date.IsZero() {
			return invalid("TCB level %d lacks a field", i)
		}
	}
	return nil
}

// openSigned returns the exact bytes of the member that the TCB signing key
// signed, and the certificate of that key. Only these bytes may be decoded
// further: everything around them is whatever a cache chose to send.
func openSigned(it attest.CollateralItem, member string, root *x509.Certificate) ([]byte, *x509.Certificate, error) {
	if len(it.Data) > maxCollateral {
		return nil, nil, invalid("%s of %d bytes", member, len(it.Data))
	}
	raw, sig, err := splitSigned(it.Data, member)
	if err != nil {
		return nil, nil, err
	}
	signer, err := signerOf(it.IssuerChain, root)
	if err != nil {
		return nil, nil, err
	}
	if signer.IsCA || !hasRole(signer, cnTCBSigning) {
		return nil, nil, invalid("%q may not sign %s", signer.Subject.CommonName, member)
	}
	if !verifyP256(signer.PublicKey.(*ecdsa.PublicKey), raw, sig) {
		return nil, nil, invalid("signature of %s does not verify", member)
	}
	return raw, signer, nil
}

// signerOf is the certificate at the head of an issuer chain, which the root
// issued. The chain may leave the root out.
func signerOf(chain []byte, root *x509.Certificate) (*x509.Certificate, error) {
	certs, err := parseChain(chain)
	if err != nil {
		return nil, invalid("issuer chain: %w", err)
	}
	// The root must be the one that the quote leads to: a test root's word
	// about a real platform counts for nothing.
	if len(certs) == 0 || len(certs) > 2 || len(certs) == 2 && !certs[1].Equal(root) {
		return nil, invalid("issuer chain: want one certificate under %q, and at most that root after it", root.Subject.CommonName)
	}
	if err := checkIssued(certs[0], root); err != nil {
		return nil, invalid("issuer chain: %w", err)
	}
	return certs[0], nil
}

// splitSigned takes {"<member>": …, "signature": "<hex>"} apart. Any other name,
// in whatever case, and any name twice is refused: a lenient decoder could
// otherwise be shown one value and the signature check another.
func splitSigned(data []byte, member string) (raw json.RawMessage, sig []byte, err error) {
	var members map[string]json.RawMessage
	if err := strictjson.Unmarshal(data, &members); err != nil {
		return nil, nil, invalid("read %s: %w", member, err)
	}
	for name := range members {
		if name != member && name != "signature" {
			return nil, nil, invalid("unexpected name %q beside %s", name, member)
		}
	}
	if len(members) != 2 {
		return nil, nil, invalid("%s or its signature is missing", member)
	}
	var sigHex string
	if err := strictjson.Unmarshal(members["signature"], &sigHex); err != nil {
		return nil, nil, invalid("signature of %s: %w", member, err)
	}
	if sig, err = hex.DecodeString(sigHex); err != nil || len(sig) != 64 {
		return nil, nil, invalid("signature of %s is not 64 bytes of hex", member)
	}
	return members[member], sig, nil
}

// decodeStrict decodes one JSON value that has one reading.
func decodeStrict(raw []byte, dst any) error {
	if err := strictjson.Unmarshal(raw, dst); err != nil {
		return invalid("decode: %w", err)
	}
	return nil
}

// hexBytes is a JSON string of hexadecimal digits.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) error {
	v := make([]byte, hex.DecodedLen(len(b)))
	if _, err := hex.Decode(v, b); err != nil {
		return err
	}
	*h = v
	return nil
}

// verifyP256 verifies a signature r || s, 64 bytes, over SHA-256 of data.
func verifyP256(key *ecdsa.PublicKey, data, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	sum := sha256.Sum256(data)
	return ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}
