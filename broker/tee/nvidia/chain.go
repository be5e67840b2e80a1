package nvidia

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/memo"
	"github.com/claviger/claviger/broker/p384"
	"github.com/claviger/claviger/broker/pemfile"
)

// Limits of Endorsements.
const (
	maxCertificates = 8
	maxAnswers      = 16
	maxBlock        = 8 << 10 // bytes, of one certificate or answer
)

// PEM types of Endorsements.
const (
	pemCertificate  = "CERTIFICATE"
	pemOCSPResponse = "OCSP RESPONSE"
)

type kind int

const (
	gpu kind = iota
	nvSwitch
)

// models are the chips that we know, by the first word of the common name that
// the device's certificates have. Others, and what their reports mean, are not known.
var models = map[string]struct {
	name string
	kind kind
}{
	"GH100": {"Hopper", gpu},
	"GB100": {"Blackwell", gpu},
	"LS_10": {"LS10", nvSwitch},
}

// device is a verified chain and what it says.
type device struct {
	certs []*x509.Certificate // the leaf first, the root last
	model string              // "Hopper"
	kind  kind
	chip  string // "GH100"
	// pdi is the Per-Device Identifier, fused into the chip: 16 hex digits.
	pdi string
	// fwid is the digest of the firmware that holds the leaf's key.
	fwid [digestSize]byte
	// flags are the DICE operational flags, where the leaf has them.
	flags *asn1.BitString
}

func (d *device) leaf() *x509.Certificate { return d.certs[0] }
func (d *device) root() *x509.Certificate { return d.certs[len(d.certs)-1] }

// endorsements takes PEM apart into certificates and OCSP answers. What is not
// PEM has no place in it.
func endorsements(b []byte) (certs, answers [][]byte, err error) {
	blocks, err := pemfile.Bare(b)
	if err != nil {
		return nil, nil, err
	}
	for _, block := range blocks {
		if n := len(block.Bytes); n > maxBlock {
			return nil, nil, fmt.Errorf("line %d: a PEM block of %d bytes", block.Line, n)
		}
		switch block.Type {
		case pemCertificate:
			certs = append(certs, block.Bytes)
		case pemOCSPResponse:
			answers = append(answers, block.Bytes)
		default:
			return nil, nil, fmt.Errorf("line %d: a PEM block of type %.32q", block.Line, block.Type)
		}
	}
	if len(certs) > maxCertificates || len(answers) > maxAnswers {
		return nil, nil, fmt.Errorf("%d certificates and %d OCSP answers, want at most %d and %d", len(certs), len(answers), maxCertificates, maxAnswers)
	}
	return certs, answers, nil
}

// device verifies certificates up to a root, except for their dates: chains are
// remembered. They stand in order: the leaf, the device's own, the issuers, the root.
func (v *Verifier) device(ders [][]byte) (*device, attest.Reason, error) {
	reason := attest.ReasonMalformed
	d, err := v.chains.Get(memo.Key(ders...), func() (*device, error) {
		if len(ders) < 3 {
			return nil, fmt.Errorf("%d certificates, want the leaf, the device's, its issuers, and the root", len(ders))
		}
		d := new(device)
		for i, der := range ders {
			c, err := p384.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("certificate %d: %w", i, err)
			}
			d.certs = append(d.certs, c)
		}
		reason = attest.ReasonChain
		if err := checkChain(d.certs, v.roots); err != nil {
			return nil, err
		}
		if err := d.read(); err != nil {
			return nil, err
		}
		return d, nil
	})
	return d, reason, err
}

// checkChain verifies certificates, in order, up to one of roots, except for their dates.
func checkChain(certs, roots []*x509.Certificate) error {
	root := certs[len(certs)-1]
	if !slices.ContainsFunc(roots, root.Equal) {
		return fmt.Errorf("the chain ends at %s, which is not the pinned root", root.Subject)
	}
	// From the root down, so that no stranger's key is ever used to verify.
	for i := len(certs) - 2; i >= 0; i-- {
		c, issuer := certs[i], certs[i+1]
		// CheckSignatureFrom wants a CA that may sign certificates.
		if err := c.CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("certificate %d (%s) is not issued by certificate %d (%s): %w", i, c.Subject, i+1, issuer.Subject, err)
		}
		if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
			return fmt.Errorf("certificate %d is issued by %s, and followed by %s", i, c.Issuer, issuer.Subject)
		}
		// Between an issuer and the leaf stand i CAs. x509 reads an absent length as -1.
		if n := issuer.MaxPathLen; n >= 0 && i > n {
			return fmt.Errorf("certificate %d (%s) allows %d CAs below it", i+1, issuer.Subject, n)
		}
		if len(c.UnhandledCriticalExtensions) > 0 {
			return fmt.Errorf("certificate %d (%s) has critical extensions %s", i, c.Subject, c.UnhandledCriticalExtensions)
		}
	}
	return nil
}

// read takes what the leaf and the device's certificate say.
func (d *device) read() error {
	leaf, own := d.certs[0], d.certs[1]
	// A CA above the device that signs a report with its own key.
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return errors.New("the leaf is a CA's, or not for signatures")
	}
	chip, _, _ := strings.Cut(leaf.Subject.CommonName, " ")
	m, ok := models[chip]
	if !ok || !strings.HasPrefix(own.Subject.CommonName, chip+" ") {
		return fmt.Errorf("certificates of %.32q and %.32q: not a device that is known", leaf.Subject.CommonName, own.Subject.CommonName)
	}
	d.chip, d.model, d.kind = chip, m.name, m.kind
	// One byte of type, then the PDI: a switch reports the same, a GPU's peers do.
	id, err := hex.DecodeString(own.Subject.SerialNumber)
	if err != nil || len(id) != 1+pdiSize {
		return fmt.Errorf("the device's certificate has serialNumber %.32q, want %d hex digits", own.Subject.SerialNumber, 2+2*pdiSize)
	}
	d.pdi = hex.EncodeToString(id[1:])
	return d.readDICE()
}

// OIDs of TCG's DICE attestation architecture, §6.1.
var (
	oidCompositeDeviceID = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1} // as in early drafts: Hopper, LS10
	oidTCBInfo           = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
	oidSHA384            = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
)

type fwid struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

// readDICE reads the firmware's digest, and its flags, from the leaf.
func (d *device) readDICE() error {
	var ids []fwid
	found := 0
	for _, e := range d.leaf().Extensions {
		switch {
		case e.Id.Equal(oidCompositeDeviceID):
			found++
			var v struct {
				Version int
				Key     asn1.RawValue
				FWID    fwid
			}
			if rest, err := asn1.Unmarshal(e.Value, &v); err != nil || len(rest) > 0 {
				return fmt.Errorf("the leaf's composite device id: %d bytes left, %w", len(rest), err)
			}
			ids = []fwid{v.FWID}
		case e.Id.Equal(oidTCBInfo):
			found++
			var v struct {
				Vendor     asn1.RawValue  `asn1:"optional,tag:0"`
				Model      asn1.RawValue  `asn1:"optional,tag:1"`
				Version    asn1.RawValue  `asn1:"optional,tag:2"`
				SVN        asn1.RawValue  `asn1:"optional,tag:3"`
				Layer      asn1.RawValue  `asn1:"optional,tag:4"`
				Index      asn1.RawValue  `asn1:"optional,tag:5"`
				FWIDs      []fwid         `asn1:"optional,tag:6"`
				Flags      asn1.BitString `asn1:"optional,tag:7"`
				VendorInfo asn1.RawValue  `asn1:"optional,tag:8"`
				Type       asn1.RawValue  `asn1:"optional,tag:9"`
			}
			if rest, err := asn1.Unmarshal(e.Value, &v); err != nil || len(rest) > 0 {
				return fmt.Errorf("the leaf's TCB info: %d bytes left, %w", len(rest), err)
			}
			ids, d.flags = v.FWIDs, &v.Flags
		}
	}
	// Blackwell's second one is of a layer that does not exist yet: zeros.
	if found != 1 || len(ids) == 0 || !ids[0].Algorithm.Equal(oidSHA384) || len(ids[0].Digest) != digestSize {
		return errors.New("the leaf does not name one firmware digest (SHA-384)")
	}
	copy(d.fwid[:], ids[0].Digest)
	return nil
}

// unsafeFlags are those of OperationalFlags that say notSecure, recovery or
// debug (bits 1 to 3). notConfigured (bit 0) is set on devices in the field.
func (d *device) unsafeFlags() bool {
	return d.flags != nil && d.flags.At(1)|d.flags.At(2)|d.flags.At(3) != 0
}
