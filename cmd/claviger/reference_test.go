package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker/brokertest"
	"github.com/claviger/claviger/internal/testservers"
)

// testProgram is a PE file without sections, with the setup header of a Linux kernel.
func testProgram(content string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 1024)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x54:], 240)
	le.PutUint16(b[0x58:], 0x20b)
	le.PutUint32(b[0x58+60:], uint32(len(b)))
	le.PutUint32(b[0x58+108:], 16)
	copy(b[0x202:], "HdrS\x0f\x02")
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	return append(b, content...)
}

// TestReferenceCompute takes a release from its files to a broker.
func TestReferenceCompute(t *testing.T) {
	dir := t.TempDir()
	kernel := write(t, filepath.Join(dir, "vmlinuz"), testProgram("kernel"))
	initrd := write(t, filepath.Join(dir, "initrd.img"), []byte("files"))
	recorded := testservers.NewBoot()
	log := recorded.Log(t)
	tpm := func(more ...string) []string { return append([]string{"reference", "compute", "tpm"}, more...) }
	direct := tpm("--kernel", kernel, "--initrd", initrd, "--cmdline", "quiet", "--memory", "512M", "--from-log", log)

	r := command(t, nil, direct...).want(t, 0)
	var set referenceFile
	if err := yaml.UnmarshalStrict([]byte(r.stdout), &set); err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	digest := sha256.Sum256([]byte("files"))
	for claim, want := range map[string]string{"initrd": hex.EncodeToString(digest[:]), "pcr0": recorded.Values()["pcr0"]} {
		if got := set.Values[claim]; len(got) == 0 || got[0] != want { // a PCR has a second one, with os-separator
			t.Errorf("%s is %v, want %s", claim, got, want)
		}
	}
	for _, want := range []string{"initrd.img sha256:" + hex.EncodeToString(digest[:]), "memory 512M", `cmdline "quiet"`, "from-log eventlog sha256:"} {
		if !strings.Contains(set.Provenance.Source, want) {
			t.Errorf("the source does not say %s: %s", want, set.Provenance.Source)
		}
	}
	if want := "computed: boot_chain, cmdline, initrd, pcr4, pcr9; observed in the event log: pcr0, pcr2, pcr7"; set.Provenance.Comment != want {
		t.Errorf("the comment is %q, want %q", set.Provenance.Comment, want)
	}
	j := command(t, nil, append(direct, "--output", "json")...).want(t, 0)
	var same referenceFile
	if err := json.Unmarshal([]byte(j.stdout), &same); err != nil || same.Values["pcr4"][0] != set.Values["pcr4"][0] {
		t.Errorf("%v: %s", err, j.stdout)
	}
	command(t, nil, append(direct, "--output", "table")...).want(t, 0, "CLAIM", "pcr0", "observed", "computed", "memory 512M")
	other := testservers.NewBoot()
	other.Firmware = "firmware 2"
	both := command(t, nil, append(direct, "--from-log", other.Log(t), "--from-log", log)...).want(t, 0, recorded.Values()["pcr0"], other.Values()["pcr0"])
	if n := strings.Count(both.stdout, recorded.Values()["pcr0"]); n != 1 {
		t.Errorf("a value that two logs have stands there %d times", n)
	}
	chain := tpm("--efi", kernel, "--efi", kernel, "--efi", kernel, "--efi", kernel, "--from-log", log, "--observe", "4")
	command(t, nil, chain...).want(t, 0, "computed: boot_chain", "observed in the event log: pcr0, pcr2, pcr4,", recorded.Values()["pcr4"])

	b := brokertest.Start(t, nil)
	_, admin, _ := b.Server.Addresses()
	file := func(n string) string { return filepath.Join(b.Env.Dir, n) }
	env := []string{"CLAVIGER_ADMIN=" + admin, "CLAVIGER_ADMIN_CA=" + file("ca.pem"), "CLAVIGER_ADMIN_CERT=" + file("operator.pem"), "CLAVIGER_ADMIN_KEY=" + file("operator.key")}
	release := write(t, filepath.Join(dir, "release.yaml"), []byte(r.stdout))
	command(t, env, "reference", "add", "release-7", "--policy", "disks", "--file", release, "--state", "canary").want(t, 0)
	command(t, env, "reference", "list").want(t, 0, "release-7", "canary", set.Values["pcr4"][0], set.Values["pcr0"][0], "vmlinuz sha256:")
	narrow := write(t, filepath.Join(dir, "narrow.yaml"), []byte(r.stdout+"resources: [\"disks/{host}\"]\n"))
	command(t, env, "reference", "add", "release-9", "--policy", "disks", "--file", narrow).want(t, 0)
	command(t, env, "reference", "list", "--output", "json").want(t, 0, "disks/{host}")
	command(t, env, "reference", "add", "release-8", "--policy", "disks", "--file", write(t, filepath.Join(dir, "r.json"), []byte(j.stdout))).want(t, 0)
	command(t, env, "reference", "add", "release-9", "--policy", "disks", "--file", write(t, filepath.Join(dir, "c.yaml"), []byte(command(t, nil, chain...).stdout))).want(t, 0)
	command(t, env, "reference", "add", "Release", "--policy", "disks", "--file", release).want(t, 1, "InvalidArgument")
	for text, want := range map[string]string{
		"": "not a reference set", "type: tpm\n": "no values", "type: tpm\nvalues: {pcr4: []}\n": "pcr4 has no values", "type: tpm\nvaluse: {}\n": "valuse",
	} {
		command(t, env, "reference", "add", "bad", "--file", write(t, filepath.Join(dir, "bad.yaml"), []byte(text))).want(t, 1, "bad.yaml", want)
	}
	command(t, env, "reference", "add", "bad", "--file", write(t, filepath.Join(dir, "bad.yaml"), []byte("name: good\ntype: tpm\nvalues: {pcr4: ['00']}\n"))).want(t, 2, `"good"`)
	command(t, env, "reference", "add", "bad").want(t, 2, "--file")
}

// TestReferenceComputeRefuses: the message names the file, and what is wrong with it.
func TestReferenceComputeRefuses(t *testing.T) {
	dir := t.TempDir()
	kernel := write(t, filepath.Join(dir, "vmlinuz"), testProgram("kernel"))
	text := write(t, filepath.Join(dir, "notes.txt"), []byte("hello"))
	empty := write(t, filepath.Join(dir, "empty"), nil)
	for _, c := range []struct {
		code int
		want string
		args string
	}{
		{2, "nothing to compute", "tpm"},
		{2, "nothing to compute", "tdx"},
		{2, "--ovmf", "snp"},
		{2, "different ways", "tpm --kernel " + kernel + " --uki " + kernel},
		{2, "--secure-boot", "tpm --secure-boot --kernel " + kernel},
		{2, "belong to a --kernel", "tpm --initrd " + text},
		{2, "--from-log", "tpm --observe 8 --efi " + kernel},
		{2, "--memory", "tpm --cmdline quiet --memory 1Q --kernel " + kernel},
		{2, "xml", "tpm --output xml --kernel " + kernel},
		{2, "unexpected argument", "tpm file"},
		{1, "--memory: the kernel's", "tpm --cmdline quiet --kernel " + kernel},
		{1, "--cmdline: neither", "tpm --kernel " + kernel + " --memory 1G"},
		{1, "none.img", "tpm --cmdline quiet --kernel " + kernel + " --initrd " + dir + "/none.img"},
		{1, "notes.txt: not a Linux bzImage", "tpm --cmdline quiet --memory 1G --kernel " + text},
		{1, "notes.txt: not a PE file", "tpm --cmdline quiet --raw-kernel --kernel " + text},
		{1, "notes.txt: not a PE file", "tpm --efi " + kernel + " --efi " + text},
		{1, "vmlinuz: not a unified kernel image", "tpm --uki " + kernel},
		{1, "empty: the file is empty", "tpm --uki " + empty},
		{1, "notes.txt: event log header", "tpm --from-log " + text},
		{1, "notes.txt: event log header", "tdx --from-log " + text},
		{1, "notes.txt: 5 bytes are not the size of a firmware image", "tdx --firmware " + text},
		{1, "notes.txt: 5 bytes are not the size of a firmware image", "snp --ovmf " + text},
		{1, "--vcpu-type: \"Xeon\", want one of", "snp --vcpu-type Xeon --ovmf " + text},
	} {
		r := command(t, nil, append([]string{"reference", "compute"}, strings.Fields(c.args)...)...).want(t, c.code, c.want)
		if r.stdout != "" {
			t.Errorf("%s printed %s", c.args, r.stdout)
		}
	}
}
