package nsm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/broker/attest"
)

func respond(t *testing.T, v any) []byte {
	t.Helper()
	b, err := cbor.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEvidence: the request is what the module expects, byte for byte, and its document is the report.
func TestEvidence(t *testing.T) {
	transcript := attest.Transcript{Nonce: []byte("nonce")}
	digest := transcript.Digest64()
	document := []byte{0x84, 0x44, 0xa1, 0x01, 0x38, 0x22}
	d := &Device{exchange: func(request []byte) ([]byte, error) {
		var got map[string]map[string]*[]byte
		if err := cbor.Unmarshal(request, &got); err != nil {
			return nil, err
		}
		a := got["Attestation"]
		if len(got) != 1 || len(a) != 3 || a["user_data"] == nil || !bytes.Equal(*a["user_data"], digest[:]) || a["nonce"] != nil || a["public_key"] != nil {
			t.Errorf("request %x", request)
		}
		// A byte string, not an array of numbers.
		if !bytes.Contains(request, append([]byte("user_data\x58\x40"), digest[:]...)) {
			t.Errorf("user_data is not a byte string of 64 bytes: %x", request)
		}
		if len(request) > maxRequest {
			t.Errorf("request of %d bytes", len(request))
		}
		return respond(t, map[string]any{"Attestation": map[string]any{"document": document}}), nil
	}}
	ev, err := d.Evidence(t.Context(), transcript)
	if err != nil {
		t.Fatal(err)
	}
	if ev.Type != attest.TypeNitro || !bytes.Equal(ev.Report, document) || ev.Endorsements != nil || ev.EventLog != nil {
		t.Errorf("evidence %+v", ev)
	}
}

func TestFailures(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx      context.Context
		response []byte
		err      error
		want     string
	}{
		"device":      {err: errors.New("no such device"), want: "no such device"},
		"error":       {response: respond(t, map[string]any{"Error": "InvalidArgument"}), want: "InvalidArgument"},
		"bare word":   {response: respond(t, "InvalidResponse"), want: "response of the Nitro Secure Module"},
		"no document": {response: respond(t, map[string]any{"Attestation": map[string]any{}}), want: "no document"},
		"another":     {response: respond(t, map[string]any{"GetRandom": map[string]any{"random": []byte{1}}}), want: "no document"},
		"nothing":     {want: "EOF"},
		"cut":         {response: respond(t, map[string]any{"Attestation": map[string]any{"document": []byte{1, 2}}})[:20], want: "EOF"},
		"cancelled":   {ctx: cancelled, want: "canceled"},
	} {
		ctx := tc.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		d := &Device{exchange: func([]byte) ([]byte, error) { return tc.response, tc.err }}
		if _, err := d.Raw(ctx, [64]byte{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestIoctl: the layout is the kernel's; what is no module says so.
func TestIoctl(t *testing.T) {
	if unsafe.Sizeof(raw{}) != 32 || unsafe.Offsetof(raw{}.response) != 16 {
		t.Error("struct nsm_raw has another layout")
	}
	if ioctlRaw != 3<<30|uint(unsafe.Sizeof(raw{}))<<16|0x0a<<8 {
		t.Errorf("command %#x", ioctlRaw)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file).Raw(t.Context(), [64]byte{}); err == nil || !strings.Contains(err.Error(), "ioctl") {
		t.Errorf("a file for a module: %v", err)
	}
	if _, err := Open(file+"2").Raw(t.Context(), [64]byte{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no module: %v", err)
	}
	if _, err := ioctl(file, make([]byte, maxRequest+1)); err == nil {
		t.Error("an oversized request was sent")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("\xa1kAttestation\xa1hdocumentB\x01\x02"))
	f.Add([]byte("\xa1eErroroInvalidArgument"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if document, err := parse(b); err == nil && (len(document) == 0 || len(document) > len(b)) {
			t.Errorf("a document of %d bytes in a response of %d", len(document), len(b))
		}
	})
}
