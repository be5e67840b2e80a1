package agent

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

// fakeTSM is one entry of configfs-tsm, with the files that Linux shows for a provider.
type fakeTSM struct {
	files      map[string]string
	inblob     []byte
	generation int
	removed    bool
}

func (f *fakeTSM) MkdirTemp(dir, pattern string) (string, error) {
	return path.Join(dir, pattern+"1"), nil
}
func (f *fakeTSM) ReadDir(string) ([]os.DirEntry, error) { return nil, os.ErrInvalid }
func (f *fakeTSM) RemoveAll(string) error                { f.removed = true; return nil }

func (f *fakeTSM) ReadFile(name string) ([]byte, error) {
	if path.Base(name) == "generation" {
		return fmt.Appendf(nil, "%d\n", f.generation), nil
	}
	b, ok := f.files[path.Base(name)]
	if !ok {
		return nil, os.ErrNotExist
	}
	return []byte(b), nil
}

func (f *fakeTSM) WriteFile(name string, b []byte) error {
	if path.Base(name) != "inblob" {
		return os.ErrNotExist
	}
	f.inblob, f.generation = bytes.Clone(b), f.generation+1
	return nil
}

// TestCollect: each provider has evidence of its type, and only SNP has certificates beside it.
func TestCollect(t *testing.T) {
	var data [64]byte
	copy(data[:], "report data")
	for provider, tc := range map[string]struct {
		files        map[string]string
		want         attest.Type
		endorsements string
	}{
		"sev_guest":     {map[string]string{"outblob": "report", "auxblob": "table"}, attest.TypeSNP, "table"},
		"tdx_guest":     {map[string]string{"outblob": "report"}, attest.TypeTDX, ""},
		"arm_cca_guest": {map[string]string{"outblob": "report", "auxblob": ""}, attest.TypeCCA, ""},
	} {
		f := &fakeTSM{files: tc.files}
		f.files["provider"] = provider + "\n"
		ev, err := collect(f, data)
		if err != nil {
			t.Errorf("%s: %v", provider, err)
			continue
		}
		if ev.Type != tc.want || string(ev.Report) != "report" || string(ev.Endorsements) != tc.endorsements || !bytes.Equal(f.inblob, data[:]) || !f.removed {
			t.Errorf("%s: %+v, asked with %q", provider, ev, f.inblob)
		}
	}
	_, err := collect(&fakeTSM{files: map[string]string{"provider": "pkvm", "outblob": "x"}}, data)
	if err == nil || !strings.Contains(err.Error(), `"pkvm"`) {
		t.Errorf("unknown provider: %v", err)
	}
	if _, err := collect(&fakeTSM{files: map[string]string{"provider": "sev_guest", "outblob": "x"}}, data); err == nil {
		t.Error("SNP without its certificates")
	}
}
