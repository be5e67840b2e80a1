package collateral

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/claviger/claviger/broker/attest"
)

const (
	maxBundle      = 64 << 20
	bundleSuffix   = ".sig"
	bundleSigLabel = "claviger/v1/collateral-bundle\x00"
)

// Bundle is collateral for a site without a way to the vendors' services: a
// gzipped tar of a collateral folder with an Ed25519 signature beside it.
type Bundle struct {
	items map[string]attest.CollateralItem
}

// Len is the number of pieces.
func (b *Bundle) Len() int { return len(b.items) }

// WriteBundle packs a folder into path and signs it into path + ".sig"
// (base64 of the Ed25519 signature over the label and the file).
func WriteBundle(path, folder string, key ed25519.PrivateKey) error {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	tw := tar.NewWriter(zw)
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(folder, p)
		if err != nil {
			return err
		}
		data, err := readBounded(p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: filepath.ToSlash(rel), Mode: 0o600, Size: int64(len(data)), ModTime: info.ModTime()}); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	})
	if err = errors.Join(err, tw.Close(), zw.Close()); err != nil {
		return fmt.Errorf("pack %s: %w", folder, err)
	}
	sig := ed25519.Sign(key, append([]byte(bundleSigLabel), buf.Bytes()...))
	if err := writeFile(path, buf.Bytes()); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := writeFile(path+bundleSuffix, []byte(base64.StdEncoding.EncodeToString(sig)+"\n")); err != nil {
		return fmt.Errorf("write bundle signature: %w", err)
	}
	return nil
}

// ReadBundle verifies the signature before it unpacks anything.
func ReadBundle(file string, key ed25519.PublicKey) (*Bundle, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open collateral bundle: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxBundle+1))
	if err != nil {
		return nil, fmt.Errorf("read collateral bundle %s: %w", file, err)
	}
	if len(raw) > maxBundle {
		return nil, fmt.Errorf("read collateral bundle %s: more than %d bytes", file, maxBundle)
	}
	text, err := os.ReadFile(file + bundleSuffix)
	if err != nil {
		return nil, fmt.Errorf("read collateral bundle's signature: %w", err)
	}
	sig, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(bundleSigLabel), raw...), sig) {
		return nil, fmt.Errorf("collateral bundle %s: signature does not verify", file)
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("unpack collateral bundle: %w", err)
	}
	b := &Bundle{items: map[string]attest.CollateralItem{}}
	chains, seen := map[string][]byte{}, map[string]bool{}
	tr := tar.NewReader(io.LimitReader(zr, 4*maxBundle))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("unpack collateral bundle: %w", err)
		}
		// Readers of tar differ in which of two entries counts, and in what a link or an odd path is.
		if h.Typeflag != tar.TypeReg || path.Clean("/"+h.Name) != "/"+h.Name || seen[h.Name] {
			return nil, fmt.Errorf("unpack collateral bundle: %q is no file, comes twice, or is an unusual path", h.Name)
		}
		seen[h.Name] = true
		data, err := io.ReadAll(io.LimitReader(tr, maxPiece+1))
		if err != nil || len(data) > maxPiece {
			return nil, fmt.Errorf("unpack collateral bundle: %s: %w", h.Name, errors.Join(err, errors.New("too large or damaged")))
		}
		name := filepath.FromSlash(h.Name)
		if base, ok := strings.CutSuffix(name, chainSuffix); ok {
			chains[base] = data
			continue
		}
		kind, _, _ := strings.Cut(h.Name, "/")
		if err := plausible(attest.CollateralKind(kind), data); err != nil {
			return nil, fmt.Errorf("collateral bundle: %s: %w", h.Name, err)
		}
		b.items[name] = attest.CollateralItem{Data: data, FetchedAt: h.ModTime.Truncate(time.Second), Source: "bundle"}
	}
	for name, chain := range chains {
		if it, ok := b.items[name]; ok {
			it.IssuerChain = chain
			b.items[name] = it
		}
	}
	return b, nil
}
