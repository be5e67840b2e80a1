package policy

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"

	"github.com/claviger/claviger/broker/strictjson"
	"github.com/claviger/claviger/internal/strictyaml"
)

// oneReading refuses files of a bundle that OPA's bundle reader, OPA's other
// readers and a person's eyes could take for different things: OPA keeps the
// last of two members of one name, ignores what follows the document, and finds
// a manifest or signatures in any folder.
func oneReading(raw rawBundle) error {
	dataOf := map[string]string{} // by folder
	for _, f := range raw.files {
		dir, base := path.Split(f.path)
		var err error
		switch {
		case base == "data.json" || base == "data.yaml" || base == "data.yml":
			if other := dataOf[dir]; other != "" {
				return fmt.Errorf("%s: %s: data of this folder is also in %s", raw.name, f.path, other)
			}
			dataOf[dir] = base
			err = checkData(f)
		case strings.HasSuffix(base, ".manifest") || base == ".signatures.json":
			err = checkControl(f)
		case strings.HasSuffix(base, ".manifest.pb"):
			err = errors.New("a manifest in protobuf is not accepted")
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", raw.name, f.path, err)
		}
	}
	return nil
}

func checkData(f rawFile) error {
	for dir := range strings.SplitSeq(path.Dir(f.path), "/") {
		if strings.HasPrefix(dir, ".") && dir != "." {
			return fmt.Errorf("the folder %q begins with a dot, which OPA leaves out of the data's path", dir)
		}
	}
	var doc map[string]any
	if path.Ext(f.path) != ".json" {
		return strictyaml.Unmarshal(f.data, &doc)
	}
	if err := strictjson.Check(f.data); err != nil {
		return err
	}
	if !bytes.HasPrefix(bytes.TrimSpace(f.data), []byte("{")) {
		return errors.New("not a JSON object")
	}
	return nil
}

// checkControl checks the manifest or the signatures.
func checkControl(f rawFile) error {
	switch f.path {
	case ".manifest":
		return strictjson.UnmarshalKnown(f.data, new(bundle.Manifest))
	case ".signatures.json":
		var s bundle.SignaturesConfig
		if err := strictjson.UnmarshalKnown(f.data, &s); err != nil {
			return err
		}
		for i, token := range s.Signatures {
			if err := checkToken(token); err != nil {
				return fmt.Errorf("signatures[%d]: %w", i, err)
			}
		}
		return nil
	}
	return errors.New("it belongs in the bundle's own folder")
}

func checkToken(token string) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("%d parts between dots, want 3", len(parts))
	}
	for i, name := range []string{"header", "payload"} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(parts[i])
		if err == nil {
			err = strictjson.Check(b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
