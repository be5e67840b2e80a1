package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

// TestCommandDevice: a program makes the evidence, over the digest of the request.
func TestCommandDevice(t *testing.T) {
	script := func(body string) []string {
		path := filepath.Join(t.TempDir(), "evidence")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
			t.Fatal(err)
		}
		return []string{path, "an argument"}
	}
	tr := attest.Transcript{Nonce: []byte("nonce")}
	d := commandDevice{"nvidia-gpu", script(`printf '{"report":"%s","endorsements":"AQI="}' "$(printf "$CLAVIGER_DIGEST_32 ${#CLAVIGER_DIGEST_48} ${#CLAVIGER_DIGEST_64} $1" | base64 -w0)"`)}
	ev, err := d.Evidence(t.Context(), tr)
	if want := fmt.Sprintf("%x 96 128 an argument", tr.Digest32()); err != nil || ev.Type != "nvidia-gpu" || string(ev.Report) != want || len(ev.Endorsements) != 2 {
		t.Errorf("evidence %q of type %s, %v; want %q", ev.Report, ev.Type, err, want)
	}
	for want, body := range map[string]string{
		"exit status 3": "exit 3", "did not print JSON": "echo hello", "with a report": "echo '{}'", "printed": "head -c 2000000 /dev/zero",
	} {
		if _, err := (commandDevice{"tpm", script(body)}).Evidence(t.Context(), tr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := (commandDevice{"tpm", []string{"/no/such/program"}}).Evidence(t.Context(), tr); err == nil {
		t.Error("a program that is not there made evidence")
	}
}

func TestDevices(t *testing.T) {
	s := settings{Devices: []deviceConfig{{Evidence: "tsm"}, {Type: "nvidia-gpu", Command: []string{"x"}}}}
	if d, err := s.devices(); err != nil || len(d) != 2 {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []deviceConfig{{}, {Type: "tpm"}, {Command: []string{"x"}}, {Evidence: "tsm", Type: "tpm", Command: []string{"x"}}, {Evidence: "gpu"}} {
		s.Devices = []deviceConfig{{Evidence: "tsm"}, bad}
		if _, err := s.devices(); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), "devices[1]") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
