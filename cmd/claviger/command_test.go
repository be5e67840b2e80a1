package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	sevdata "github.com/google/go-sev-guest/verify/testdata"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"
	"github.com/spf13/cobra"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/broker/tee/teesim"
)

// TestMain lets the test binary be the command itself, so that exit codes are tested.
func TestMain(m *testing.M) {
	if os.Getenv("TEST_AS_COMMAND") == "1" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

type result struct {
	code           int
	stdout, stderr string
}

func command(t *testing.T, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = append([]string{"TEST_AS_COMMAND=1", "PATH=" + os.Getenv("PATH"), "TMPDIR=" + t.TempDir()}, env...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return result{c.ProcessState.ExitCode(), out.String(), errs.String()}
}

// want checks the exit code, and that the texts stand in the output.
func (r result) want(t *testing.T, code int, texts ...string) result {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	for _, s := range texts {
		if !strings.Contains(r.stdout+r.stderr, s) {
			t.Errorf("the output does not say %q:\n%s%s", s, r.stdout, r.stderr)
		}
	}
	return r
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestEvidence looks at recorded evidence of real machines.
func TestEvidence(t *testing.T) {
	dir := t.TempDir()
	report := write(t, filepath.Join(dir, "report.bin"), sevdata.AttestationBytes)
	vcek := write(t, filepath.Join(dir, "vcek.der"), sevdata.VcekBytes)
	const at = "2022-10-20T00:00:00Z"
	base := []string{report, "--endorsements", vcek, "--at", at}
	run := func(verb string, more ...string) result {
		return command(t, nil, append(append([]string{"evidence", verb}, base...), more...)...)
	}
	measurement := hex.EncodeToString(sevdata.AttestationBytes[0x90 : 0x90+48])

	run("show").want(t, 0, "VERIFIED", "real hardware", "WITHOUT revocation", measurement, "skipped")
	var doc struct {
		Verified    bool
		Checks      []map[string]any
		Attestation map[string]any
		Error       map[string]string
	}
	r := run("show", "--output", "json").want(t, 0)
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || !doc.Verified || len(doc.Checks) < 5 || doc.Attestation["type"] != "sev-snp" {
		t.Errorf("%v: %s", err, r.stdout)
	}
	run("verify").want(t, 1, "NOT BELIEVED", "collateral_missing") // as a broker would: no CRL, no belief
	r = run("verify", "--output", "json").want(t, 1)
	doc.Verified = true
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || doc.Verified || doc.Error["reason"] != "collateral_missing" {
		t.Errorf("%v: %s", err, r.stdout)
	}
	run("verify", "--without-revocation").want(t, 0, "VERIFIED")
	data := hex.EncodeToString(sevdata.AttestationBytes[0x50 : 0x50+64])
	run("verify", "--without-revocation", "--report-data", data).want(t, 0)
	run("verify", "--without-revocation", "--report-data", strings.Repeat("00", 64)).want(t, 1, "binding")

	bad := bytes.Clone(sevdata.AttestationBytes)
	bad[0x90] ^= 1
	forged := write(t, filepath.Join(dir, "forged.bin"), bad)
	command(t, nil, "evidence", "show", forged, "--endorsements", vcek, "--at", at).want(t, 1, "NOT BELIEVED", "signature")
	for _, junk := range [][]byte{nil, []byte("x"), bad[:100], bytes.Repeat([]byte{4, 0}, 4000)} {
		command(t, nil, "evidence", "show", write(t, filepath.Join(dir, "junk"), junk)).want(t, 1, "not recognised", "tried")
	}
	// What the bytes say is shown all the same, as nobody's word, and where to get what is missing.
	lone := command(t, nil, "evidence", "show", report).want(t, 0, "UNVERIFIED", "anybody can write such bytes", measurement, "collateral fetch snp-vcek milan/", "snp-vcek genoa/", "--endorsements")
	if strings.Contains(lone.stdout, "VERIFIED: real") || strings.Count(lone.stdout, "collateral_missing") > 2 {
		t.Errorf("got %s", lone.stdout)
	}
	command(t, nil, "evidence", "verify", report).want(t, 1, "NOT BELIEVED", "collateral_missing")
	// Evidence as people have it.
	text := hex.EncodeToString(sevdata.AttestationBytes)
	var lines string
	for chunk := range slices.Chunk([]byte(text), 60) {
		lines += string(chunk) + "\n"
	}
	for name, form := range map[string]string{
		"hex in lines": lines, "0x": "0x" + text, "base64": base64.StdEncoding.EncodeToString(sevdata.AttestationBytes),
		"base64url without padding": base64.RawURLEncoding.EncodeToString(sevdata.AttestationBytes),
		"PEM":                       string(pem.EncodeToMemory(&pem.Block{Type: "ATTESTATION REPORT", Bytes: sevdata.AttestationBytes})),
	} {
		if r := command(t, nil, "evidence", "show", write(t, filepath.Join(dir, "form"), []byte(form)), "--endorsements", vcek, "--at", at); r.code != 0 || !strings.Contains(r.stdout, "VERIFIED: real hardware") {
			t.Errorf("%s: %s%s", name, r.stdout, r.stderr)
		}
	}
	hcl := append(append([]byte("HCLA"), make([]byte, 28)...), sevdata.AttestationBytes...)
	command(t, nil, "evidence", "show", write(t, filepath.Join(dir, "hcl"), append(hcl, "{}"...)), "--endorsements", vcek, "--at", at).want(t, 0, "VERIFIED", measurement)
	wrapped, err := json.Marshal(map[string]string{"quote": base64.StdEncoding.EncodeToString(tdxdata.RawQuote)})
	if err != nil {
		t.Fatal(err)
	}
	command(t, nil, "evidence", "show", write(t, filepath.Join(dir, "quote.json"), wrapped), "--at", "2023-07-01T00:00:00Z").want(t, 0, "tdx")
	command(t, nil, "evidence", "show", vcek).want(t, 1, "not recognised", "certificate")
	// A TPM's quote that anybody can make is nobody's, whatever is looked at or skipped.
	if forged := filepath.Join("..", "..", "..", "shared", "cases", "evidence", "forged-tpm.json"); exists(forged) {
		command(t, nil, "evidence", "verify", forged).want(t, 1, "NOT BELIEVED", "neither certified nor activated")
		command(t, nil, "evidence", "verify", forged, "--without-revocation").want(t, 1, "NOT BELIEVED")
		command(t, nil, "evidence", "show", forged).want(t, 1, "NOT BELIEVED", "UNVERIFIED", "--ak-roots")
	}
	quote := write(t, filepath.Join(dir, "quote.bin"), tdxdata.RawQuote)
	command(t, nil, "evidence", "show", quote, "--at", "2023-07-01T00:00:00Z").want(t, 0, "VERIFIED", "tdx")

	run("show", "--output", "xml").want(t, 2, "xml")
	command(t, nil, "evidence", "show", report, "--at", "noon").want(t, 2, "--at")
	command(t, nil, "evidence", "show", report, "--report-data", "zz").want(t, 2, "--report-data")
	command(t, nil, "evidence", "show", report, "--type", "sgx9").want(t, 2, "sgx9")
	command(t, nil, "evidence", "show").want(t, 2, "FILE")
	command(t, nil, "evidence", "show", filepath.Join(dir, "none")).want(t, 1, "none")
}

func TestPolicy(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	command(t, nil, "policy", "init", dir).want(t, 0, "claviger policy test")
	command(t, nil, "policy", "init", dir).want(t, 1, "nothing was written")
	command(t, nil, "policy", "check", dir).want(t, 0, "no problems")
	command(t, nil, "policy", "reads", dir).want(t, 0, "tdx_strict\n", "  attestation.tdx.tdattributes\n")
	command(t, nil, "policy", "reads", dir, "--output", "json").want(t, 0, `"policy": "tdx_strict"`, `"attestation.tcb.status"`)
	command(t, nil, "policy", "reads", filepath.Join(dir, "none")).want(t, 1, "none")
	command(t, nil, "policy", "reads").want(t, 2)
	command(t, nil, "policy", "test", dir, "--coverage", "--coverage-min", "100").want(t, 0, "0 failed")
	fixture := filepath.Join(dir, "disks", "fixtures", "snp_milan.json")
	command(t, nil, "policy", "eval", dir, "disks", "--input", fixture).want(t, 1, "DENY", "claviger.release.disks")
	r := command(t, nil, "policy", "eval", dir, "disks", "--input", fixture, "--output", "json").want(t, 1)
	if !json.Valid([]byte(r.stdout)) {
		t.Errorf("not JSON: %s", r.stdout)
	}
	command(t, nil, "policy", "eval", dir, "disks", "--input", fixture, "--at", "noon").want(t, 2, "--at")
	command(t, nil, "policy", "eval", dir).want(t, 2)
	command(t, nil, "policy", "test").want(t, 2)
	command(t, nil, "policy", "tset", dir).want(t, 2, "tset")

	out := filepath.Join(t.TempDir(), "bundle.tar.gz")
	command(t, nil, "policy", "build", dir, "--out", out).want(t, 0, "sha256:")

	file := filepath.Join(dir, "disks", "disks.rego")
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, append(src, []byte("\nnonsense {{{\n")...))
	command(t, nil, "policy", "check", dir).want(t, 1, "disks.rego")
	write(t, file, append(src, []byte("\ndeny contains {\"rule\": \"closed\", \"message\": \"closed\"}\n")...))
	command(t, nil, "policy", "test", filepath.Join(dir, "disks")).want(t, 1)
}

// TestAudit: a log that was tampered with does not verify, and says so with its exit code.
func TestAudit(t *testing.T) {
	b := brokertest.Start(t, nil)
	c := b.Client(t, teesim.ReportOptions{})
	for range 3 {
		if _, _, err := c.Get(t.Context(), "db/orders"); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(time.Second) // a checkpoint
	_, admin, _ := b.Server.Addresses()
	file := func(n string) string { return filepath.Join(b.Env.Dir, n) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	command(t, env, "audit", "tail").want(t, 0, "#0 ", "    id ", "RELEASED", "db/orders", "SIMULATED")
	command(t, env, "status").want(t, 0, "SIMULATED", "claviger-dev")
	command(t, env, "revoke", "planet", "x").want(t, 1, "InvalidArgument")
	command(t, env, "unrevoke", "chip", "00").want(t, 1, "NotFound")
	command(t, env, "secret", "list", "--output", "json").want(t, 0, `"db/orders"`)
	command(t, nil, "status").want(t, 2, "CLAVIGER_ADMIN")

	dir, key := t.TempDir(), b.Server.LogVerifierKey()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(b.Env.Dir, "data", "audit"))); err != nil {
		t.Fatal(err)
	}
	verify := []string{"audit", "verify", "--dir", dir, "--key", key}
	command(t, nil, verify...).want(t, 0, "3 entries")
	command(t, nil, "audit", "prove", "1", "--dir", dir, "--key", key).want(t, 0)
	command(t, nil, "audit", "verify").want(t, 2, "--dir or --receipt")
	tampered := 0
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(raw, []byte(`"released"`)) {
			return err
		}
		tampered++
		return os.WriteFile(p, bytes.Replace(raw, []byte(`"released"`), []byte(`"denied__"`), 1), 0o600)
	})
	if err != nil || tampered == 0 {
		t.Fatalf("%d files tampered with: %v", tampered, err)
	}
	command(t, nil, verify...).want(t, 1)
}

// TestHelp: every command that does something shows how.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no short help", c.CommandPath())
		}
		if !c.HasSubCommands() {
			if !strings.Contains(c.Example, "claviger ") {
				t.Errorf("%s: no example", c.CommandPath())
			}
			if len(c.Example) > 0 && !strings.HasPrefix(c.Example, "  ") {
				t.Errorf("%s: example is not indented", c.CommandPath())
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newCommand())
}

func TestCommandLine(t *testing.T) {
	command(t, nil, "completion", "bash").want(t, 0, "__start_claviger")
	command(t, nil, "__complete", "policy", "").want(t, 0, "activate")
	command(t, nil).want(t, 0, "Usage:")
	command(t, nil, "policy").want(t, 0, "Usage:")
	command(t, nil, "nope").want(t, 2, "nope")
	command(t, nil, "audit", "nope").want(t, 2, "nope")
	command(t, nil, "status", "--nope").want(t, 2, "nope")
	command(t, nil, "serve").want(t, 2, "--config")
	bad := write(t, filepath.Join(t.TempDir(), "c.yaml"), []byte("test_root: root.pem\n"))
	command(t, nil, "serve", "--config", bad).want(t, 1, "test_root", "tls.cert")
}

func exists(file string) bool { _, err := os.Stat(file); return err == nil }

// TestCompletion: the shell is offered what the broker knows, and without one what is known anyway.
func TestCompletion(t *testing.T) {
	b := brokertest.Start(t, nil)
	_, admin, _ := b.Server.Addresses()
	file := func(n string) string { return filepath.Join(b.Env.Dir, n) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	command(t, env, "reference", "set", "fleet-1", "--policy", "disks", "--type", "sev-snp", "--value", "measurement="+strings.Repeat("ab", 48)).want(t, 0)
	command(t, env, "revoke", "chip", strings.Repeat("c4", 64), "--force").want(t, 0)
	status := command(t, env, "policy", "status", "--output", "json").want(t, 0)
	var policy struct{ Digest string }
	if err := json.Unmarshal([]byte(status.stdout), &policy); err != nil {
		t.Fatal(err)
	}
	offered := func(env []string, args ...string) []string {
		t.Helper()
		r := command(t, env, append([]string{"__complete"}, args...)...).want(t, 0)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if last := lines[len(lines)-1]; last != ":4" { // no files
			t.Errorf("%v: the shell is told %s", args, last)
		}
		return lines[:len(lines)-1]
	}
	for _, tc := range []struct {
		want string
		args []string
	}{
		{"fleet-1", []string{"reference", "delete", ""}},
		{"fleet-1", []string{"reference", "set", "fl"}},
		{"disks/{vm}", []string{"catalog", "delete", "di"}},
		{"disks", []string{"catalog", "set", "x", "--policy", ""}},
		{policy.Digest, []string{"policy", "activate", "sha256:"}},
		{"newest", []string{"policy", "activate", ""}},
		{policy.Digest, []string{"revoke", "policy", ""}},
		{"measurement", []string{"revoke", "m"}},
		{strings.Repeat("c4", 64), []string{"unrevoke", "chip", "c4"}},
		{"json", []string{"status", "--output", ""}},
	} {
		if got := offered(env, tc.args...); !slices.Contains(got, tc.want) {
			t.Errorf("%v: offered %v, want %q", tc.args, got, tc.want)
		}
	}
	for _, args := range [][]string{{"reference", "delete", "zz"}, {"reference", "delete", "fleet-1", ""}, {"unrevoke", "session", ""}, {"revoke", "planet", ""}} {
		if got := offered(env, args...); len(got) > 0 {
			t.Errorf("%v: offered %v", args, got)
		}
	}
	if got := offered(nil, "revoke", "t"); !slices.Equal(got, []string{"tcb"}) {
		t.Errorf("without a broker: %v", got)
	}
	if got := offered(nil, "reference", "delete", ""); len(got) > 0 {
		t.Errorf("without a broker: %v", got)
	}
}

// TestShowSimulated: the device of a dev broker is believed by show alone, where asked for, and called SIMULATED.
func TestShowSimulated(t *testing.T) {
	b, other := brokertest.Start(t, nil), brokertest.Start(t, nil)
	ev, err := b.Device(teesim.ReportOptions{}).Evidence(t.Context(), attest.Transcript{Nonce: []byte("n")})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "report.bin")
	write(t, file, slices.Concat(ev.Report, ev.Endorsements))
	show := command(t, nil, "evidence", "show", file, "--dev", b.Env.Dir).want(t, 0, "VERIFIED: SIMULATED hardware")
	if strings.Contains(show.stdout, "UNVERIFIED") {
		t.Error(show.stdout)
	}
	command(t, nil, "evidence", "show", file).want(t, 1, "NOT BELIEVED")
	command(t, nil, "evidence", "show", file, "--dev", other.Env.Dir).want(t, 1, "NOT BELIEVED")
	command(t, nil, "evidence", "show", file, "--dev", t.TempDir()).want(t, 1, "--dev")
	command(t, nil, "evidence", "verify", file).want(t, 1, "NOT BELIEVED")
	command(t, nil, "evidence", "verify", file, "--dev", b.Env.Dir).want(t, 2, "--dev")
}
