package collateral

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBundleHasOneReading: a signed bundle in which two readers of tar could see two things.
func TestBundleHasOneReading(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	info := []byte(`{"tcbInfo":{},"signature":"00"}`)
	for name, c := range map[string]struct {
		entries []tar.Header
		ok      bool
	}{
		"one":          {[]tar.Header{{Name: "tdx-tcb-info/a"}}, true},
		"twice":        {[]tar.Header{{Name: "tdx-tcb-info/a"}, {Name: "tdx-tcb-info/a"}}, false},
		"another path": {[]tar.Header{{Name: "tdx-tcb-info/a"}, {Name: "tdx-tcb-info//a"}}, false},
		"here":         {[]tar.Header{{Name: "./tdx-tcb-info/a"}}, false},
		"up":           {[]tar.Header{{Name: "x/../tdx-tcb-info/a"}}, false},
		"a link":       {[]tar.Header{{Name: "tdx-tcb-info/a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}, false},
	} {
		var raw bytes.Buffer
		zw := gzip.NewWriter(&raw)
		tw := tar.NewWriter(zw)
		for _, h := range c.entries {
			content := info
			if h.Typeflag == tar.TypeSymlink {
				content = nil
			}
			h.Size, h.Mode = int64(len(content)), 0o600
			if err := tw.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := tw.Write(content); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		if err := zw.Close(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "b.tar.gz")
		sig := ed25519.Sign(key, append([]byte(bundleSigLabel), raw.Bytes()...))
		if err := os.WriteFile(file, raw.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file+bundleSuffix, []byte(base64.StdEncoding.EncodeToString(sig)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadBundle(file, pub)
		if (err == nil) != c.ok || !c.ok && !strings.Contains(err.Error(), "comes twice, or is an unusual path") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
