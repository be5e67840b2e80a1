package nvidia

import (
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// RIM is a reference integrity manifest: what measurements the vendor expects of
// a driver, or of a VBIOS. Its signature is NOT verified here: it is as good as the place it comes from.
type RIM struct {
	Product string // chip: "GH100", "GB100"
	Version string // of the driver, "550.90.07", or VBIOS, "96.00.9F.00.01"
	// golden are the digests to choose from, by index, of active measurements. Index i is block i+1 of a report.
	golden map[int][]string
}

// ParseRIM reads a manifest: SWID, XML.
func ParseRIM(b []byte) (*RIM, error) {
	if len(b) > maxRIM {
		return nil, fmt.Errorf("RIM of %d bytes, want at most %d", len(b), maxRIM)
	}
	r := &RIM{golden: map[int][]string{}}
	seen := map[int]bool{}
	count := map[string]int{}
	dec := xml.NewDecoder(strings.NewReader(string(b)))
	var path []string
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("RIM: %w", err)
		}
		switch t := tok.(type) {
		case xml.Directive:
			return nil, errors.New("RIM: has a document type")
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.StartElement:
			name := t.Name.Local
			if t.Name.Space != nsSWID {
				name = "{" + t.Name.Space + "}" + name
			}
			if len(path) == 0 && name != "SoftwareIdentity" {
				return nil, fmt.Errorf("RIM: root element %.64q", name)
			}
			path = append(path, name)
			// What stands elsewhere, in a signature's objects say, is no part of the manifest.
			switch strings.Join(path, "/") {
			case "SoftwareIdentity":
				count[name]++
			case "SoftwareIdentity/Meta":
				count[name]++
				r.Product, r.Version = attr(t, "", "product"), attr(t, "", "colloquialVersion")
			case "SoftwareIdentity/Payload":
				count[name]++
			case "SoftwareIdentity/Payload/Resource":
				if err := r.resource(t, seen); err != nil {
					return nil, fmt.Errorf("RIM: %w", err)
				}
			}
		}
	}
	if count["SoftwareIdentity"] != 1 || count["Meta"] != 1 || count["Payload"] != 1 {
		return nil, fmt.Errorf("RIM: %d SoftwareIdentity, %d Meta and %d Payload, want one of each", count["SoftwareIdentity"], count["Meta"], count["Payload"])
	}
	if r.Product == "" || r.Version == "" {
		return nil, errors.New("RIM: Meta without product or colloquialVersion")
	}
	if len(r.golden) == 0 {
		return nil, errors.New("RIM: no active measurement")
	}
	return r, nil
}

// resource reads one Resource element, a measurement.
func (r *RIM) resource(t xml.StartElement, seen map[int]bool) error {
	if typ := attr(t, "", "type"); typ != "Measurement" {
		return fmt.Errorf("resource of type %.32q", typ)
	}
	index, err := strconv.Atoi(attr(t, "", "index"))
	if err != nil || index < 0 || index > maxIndex {
		return fmt.Errorf("measurement with index %.32q", attr(t, "", "index"))
	}
	if seen[index] {
		return fmt.Errorf("measurement %d twice", index)
	}
	seen[index] = true
	n, err := strconv.Atoi(attr(t, "", "alternatives"))
	if err != nil || n < 1 || n > maxAlternatives {
		return fmt.Errorf("measurement %d: %.32q alternatives", index, attr(t, "", "alternatives"))
	}
	if size := attr(t, "", "size"); size != strconv.Itoa(digestSize) {
		return fmt.Errorf("measurement %d: size %.32q, want %d", index, size, digestSize)
	}
	var hashes []string
	for i := range n {
		h := strings.ToLower(attr(t, nsSHA384, "Hash"+strconv.Itoa(i)))
		if b, err := hex.DecodeString(h); err != nil || len(b) != digestSize {
			return fmt.Errorf("measurement %d: Hash%d is not %d hex digits", index, i, 2*digestSize)
		}
		hashes = append(hashes, h)
	}
	switch active := attr(t, "", "active"); active {
	case "True":
		r.golden[index] = hashes
	case "False":
	default:
		return fmt.Errorf("measurement %d: active is %.32q", index, active)
	}
	return nil
}

func attr(t xml.StartElement, space, name string) string {
	for _, a := range t.Attr {
		if a.Name.Space == space && a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// ReadRIMs reads a folder of manifests, each in a file under its name with ".xml" behind it.
func ReadRIMs(folder string) (map[string]*RIM, error) {
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	rims := map[string]*RIM{}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".xml")
		if !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return nil, err
		}
		if rims[name], err = ParseRIM(b); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	if len(rims) == 0 {
		return nil, fmt.Errorf("no manifest (*.xml) in %s", folder)
	}
	return rims, nil
}
