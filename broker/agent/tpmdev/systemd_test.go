package tpmdev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

// TestSystemdLog: of systemd's log only what explains PCR 9 is sent, and no more than a broker takes.
func TestSystemdLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if got := systemdLog(path); got != nil {
		t.Errorf("without a log: %q", got)
	}
	nine := "\x1e" + `{"pcr":9,"content":{"string":"os-separator"}}` + "\n"
	login := "\x1e" + `{"nv_index":30474754,"content":{"string":"login:alice:…"}}` + "\n"
	for text, want := range map[string]string{
		login + nine + "\x1e" + `{"pcr":11,"content":{"string":"ready"}}` + "\n" + nine: nine + nine,
		login:                        "",
		nine + "\x1e{\"pcr\":9,\"co": nine, // being written
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := string(systemdLog(path)); got != want {
			t.Errorf("%q is sent of %q", got, text)
		}
	}
	if err := os.WriteFile(path, []byte(strings.Repeat(nine, 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := len(systemdLog(path)); n == 0 || n > attest.MaxSystemdLog {
		t.Errorf("%d bytes are sent", n)
	}
}
