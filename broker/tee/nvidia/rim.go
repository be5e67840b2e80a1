package nvidia

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Limits of a reference integrity manifest.
const (
	maxRIM          = 1 << 20 // bytes; NVIDIA's have 20 KiB
	maxIndex        = 254     // SPDM's last measurement index, less one
	maxAlternatives = 64
)

// XML namespaces: ISO/IEC 19770-2, and that of the digests.
const (
	nsSWID   = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	nsSHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
)

// indexNVDEC is the index of the firmware of the first video decoder. While
// NVDEC0 is off, what its measurement says is of no use (verifier.py of NVIDIA/nvtrust).
const (
	indexNVDEC    = 35
	nvdecDisabled = 0x55
)

// manifest is a reference integrity manifest: what measurements the vendor
// expects of a driver, or of a VBIOS. It holds what its signer signed, and nothing else.
type manifest struct {
	product string // chip: "GH100", "GB100"
	version string // of the driver, "550.90.07", or VBIOS, "96.00.9F.00.01"
	// golden are the digests to choose from, by index, of active measurements. Index i is block i+1 of a report.
	golden map[int][]string
	// certs are the signer's: the leaf first, the root last. Their dates are for whoever uses the manifest.
	certs []*x509.Certificate
}

// verifyRIM reads a manifest that is signed under one of roots.
func verifyRIM(b []byte, roots []*x509.Certificate) (*manifest, error) {
	content, certs, err := signedContent(b, roots)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(content)
	if err != nil {
		return nil, err
	}
	m.certs = certs
	return m, nil
}

// current says whether the signer's certificates are valid. Those of NVIDIA's signers are for two years.
func (m *manifest) current(now time.Time) error {
	for _, c := range m.certs {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return fmt.Errorf("signed by %s, which is valid from %s to %s, not at %s",
				c.Subject, c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
		}
	}
	return nil
}

// parseManifest reads a manifest: SWID, XML.
func parseManifest(b []byte) (*manifest, error) {
	root, err := parseXML(b)
	if err != nil {
		return nil, err
	}
	if root.space != nsSWID || root.local != "SoftwareIdentity" {
		return nil, fmt.Errorf("root element %.128q", root)
	}
	m := &manifest{golden: map[int][]string{}}
	metas, payloads := root.named("Meta"), root.named("Payload")
	if len(metas) != 1 || len(payloads) != 1 {
		return nil, fmt.Errorf("%d Meta and %d Payload, want one of each", len(metas), len(payloads))
	}
	if m.product, m.version = metas[0].attr("", "product"), metas[0].attr("", "colloquialVersion"); m.product == "" || m.version == "" {
		return nil, errors.New("no product or colloquialVersion in Meta")
	}
	seen := map[int]bool{}
	for _, e := range payloads[0].named("Resource") {
		if err := m.resource(e, seen); err != nil {
			return nil, err
		}
	}
	if len(m.golden) == 0 {
		return nil, errors.New("no active measurement")
	}
	return m, nil
}

// named are the children of that name. What stands deeper is no part of the manifest.
func (e *element) named(local string) (found []*element) {
	for _, c := range e.children {
		if c.elem != nil && c.elem.space == nsSWID && c.elem.local == local {
			found = append(found, c.elem)
		}
	}
	return found
}

func (e *element) attr(space, local string) string {
	for _, a := range e.attrs {
		if a.space == space && a.local == local {
			return a.value
		}
	}
	return ""
}

// resource reads one Resource element, a measurement.
func (m *manifest) resource(e *element, seen map[int]bool) error {
	if typ := e.attr("", "type"); typ != "Measurement" {
		return fmt.Errorf("resource of type %.32q", typ)
	}
	index, err := strconv.Atoi(e.attr("", "index"))
	if err != nil || index < 0 || index > maxIndex || strconv.Itoa(index) != e.attr("", "index") {
		return fmt.Errorf("measurement with index %.32q", e.attr("", "index"))
	}
	if seen[index] {
		return fmt.Errorf("measurement %d twice", index)
	}
	seen[index] = true
	n, err := strconv.Atoi(e.attr("", "alternatives"))
	if err != nil || n < 1 || n > maxAlternatives {
		return fmt.Errorf("measurement %d: %.32q alternatives", index, e.attr("", "alternatives"))
	}
	if size := e.attr("", "size"); size != strconv.Itoa(digestSize) {
		return fmt.Errorf("measurement %d: size %.32q, want %d", index, size, digestSize)
	}
	var hashes []string
	for i := range n {
		h := strings.ToLower(e.attr(nsSHA384, "Hash"+strconv.Itoa(i)))
		if b, err := hex.DecodeString(h); err != nil || len(b) != digestSize {
			return fmt.Errorf("measurement %d: Hash%d is not %d hex digits", index, i, 2*digestSize)
		}
		hashes = append(hashes, h)
	}
	switch active := e.attr("", "active"); active {
	case "True":
		m.golden[index] = hashes
	case "False":
	default:
		return fmt.Errorf("measurement %d: active is %.32q", index, active)
	}
	return nil
}

// ReadRIMs reads a folder of manifests for Config.RIMs, each in a file under its
// name with ".xml" behind it. New verifies them.
func ReadRIMs(folder string) (map[string][]byte, error) {
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	rims := map[string][]byte{}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".xml")
		if !ok {
			continue
		}
		if rims[name], err = os.ReadFile(filepath.Join(folder, f.Name())); err != nil {
			return nil, err
		}
	}
	if len(rims) == 0 {
		return nil, fmt.Errorf("no manifest (*.xml) in %s", folder)
	}
	return rims, nil
}
