package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/internal/testservers"
)

// TestClevis has Debian's clevis use the pin, as deploy/clevis installs it.
func TestClevis(t *testing.T) {
	if _, err := exec.LookPath("clevis"); err != nil {
		t.Skipf("clevis is not installed (Debian: apt-get install clevis): %v", err)
	}
	_, flags := start(t)
	dir := t.TempDir()
	agent := fmt.Sprintf("#!/bin/sh\nTEST_AS_COMMAND=1 exec '%s' \"$@\" '%s'\n", os.Args[0], strings.Join(flags, "' '"))
	if err := os.WriteFile(filepath.Join(dir, "claviger-agent"), []byte(agent), 0o755); err != nil {
		t.Fatal(err)
	}
	path := dir + ":" + filepath.Join(testservers.Root(t), "deploy", "clevis") + ":" + os.Getenv("PATH")
	clevis := func(stdin []byte, args ...string) ([]byte, error) {
		c := exec.CommandContext(t.Context(), "clevis", args...)
		c.Env = append(os.Environ(), "PATH="+path)
		c.Stdin = bytes.NewReader(stdin)
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("clevis %v: %w\n%s", args, err, errs.String())
		}
		return out, err
	}
	plain := []byte("a disk's passphrase\x00\xff\n")
	token, err := clevis(plain, "encrypt", "claviger", `{"resource":"disks/vm-1"}`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := clevis(token, "decrypt")
	if err != nil || !bytes.Equal(got, plain) {
		t.Errorf("got %q, %v", got, err)
	}
	changed := bytes.Replace(token, []byte(".."), []byte("..A"), 1)
	if _, err := clevis(changed, "decrypt"); err == nil {
		t.Error("a changed JWE was decrypted")
	}
	if _, err := clevis(plain, "encrypt", "claviger", `{"resource":"no/such"}`); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("an unknown resource: %v", err)
	}
	if _, err := clevis(plain, "encrypt", "claviger", `{"url":"x"}`); err == nil || !strings.Contains(err.Error(), "resource") {
		t.Errorf("a wrong configuration: %v", err)
	}
}
