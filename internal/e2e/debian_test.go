package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/internal/testservers"
)

// UUIDs of the two LUKS2 disks.
const (
	rootUUID = "0c1a7165-0000-4000-8000-000000000001"
	dataUUID = "0c1a7165-0000-4000-8000-000000000002"
)

// TestDebian boots a whole Debian with our packages: root on LUKS2, opened from
// the initramfs; then systemd-cryptsetup opens a data disk, and a service gets a
// credential, both with keys from the socket. The image builder encrypts root
// with a key that the operator put into Vault.
func TestDebian(t *testing.T) {
	need(t, "full")
	if os.Getuid() != 0 {
		t.Skip("needs root, to install packages into the guest's file system")
	}
	w := newWorld(t)
	observer := w.initrd(t, "observer", "", nil)
	for _, kind := range []string{"initramfs", "dracut"} {
		t.Run(kind, func(t *testing.T) {
			m := w.newMachine(t, kind, w.maker, 0)
			m.memoryMB = 1024
			key := make([]byte, 32)
			if _, err := rand.Read(key); err != nil {
				t.Fatal(err)
			}
			chip := m.chip(t)
			w.putSecret(t, "disks/"+chip, key)
			w.commandWith(t, key, "claviger", "secret", "put", "later/"+chip+"/data")
			kernel, initrd := w.debian(t, m, kind, key)
			cmdline := "console=ttyS0 panic=-1 root=/dev/mapper/root"
			golden := w.newMachine(t, kind+"-golden", w.maker, 1)
			golden.memoryMB = m.memoryMB
			release := m.direct(kernel, initrd, cmdline)
			w.register(t, golden, golden.direct(w.kernel, observer, "console=ttyS0"), release)
			g := m.boot(t, release)
			g.Await(t, 2*bootLimit, "claviger-guest login:")
			g.Type(t, "root\n")
			g.Await(t, bootLimit, "root@claviger-guest:~# ")
			out := g.Run(t, "for i in $(seq 100); do systemctl is-active -q systemd-cryptsetup@data && break; sleep 1; done; findmnt -no SOURCE /; systemctl is-active systemd-cryptsetup@data credtest; ls /dev/mapper; cat /run/credtest")
			for _, want := range []string{"/dev/mapper/root", "active\nactive", "data", "a credential of 32 bytes"} {
				if !strings.Contains(out, want) {
					t.Errorf("the guest does not say %q:\n%s", want, out)
				}
			}
			g.Type(t, "poweroff\n")
			g.Off(t, bootLimit)
			t.Logf("QEMU used %s of CPU; the guest said:\n%s\n%s", g.CPUTime(), out, timings(g))
		})
	}
}

// chip is the id of the machine's TPM, as its maker's list would have it.
func (m *machine) chip(t *testing.T) (chip string) {
	t.Helper()
	t.Run("chip", func(t *testing.T) { // the emulator ends with the subtest
		var d struct {
			ChipID string `json:"chip_id"`
		}
		out := m.w.command(t, "claviger-agent", "tpm", "--tpm", m.w.maker.StartTPM(t, m.tpm, m.name), "--output", "json")
		if err := json.Unmarshal([]byte(out), &d); err != nil || d.ChipID == "" {
			t.Fatalf("chip id: %v\n%s", err, out)
		}
		chip = d.ChipID
	})
	return chip
}

// putSecret is what an operator does who makes keys before machines: `vault kv put`.
func (w *world) putSecret(t *testing.T, path string, value []byte) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"data": map[string]string{"value": "base64:" + base64.StdEncoding.EncodeToString(value)}})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.vault.Address+"/v1/secret/data/"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", w.vault.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("put secret: %s", resp.Status)
	}
}

// debian builds the machine's disks, and returns its kernel and initrd.
func (w *world) debian(t *testing.T, m *machine, kind string, key []byte) (kernel, initrd string) {
	t.Helper()
	base := filepath.Join(w.root, ".cache", "debian", "rootfs")
	if _, err := os.Stat(base); err != nil {
		t.Fatalf("no Debian in .cache/debian: run `make e2e-boot-full`, which builds it: %v", err)
	}
	root := w.path(m.name, "root")
	run(t, nil, "cp", "-a", base, root)
	tree := testservers.Tree{Dir: root}
	tree.Write(t, "etc/claviger/agent.json", w.agentConfig(t, map[string]any{
		"volumes": []any{
			map[string]any{"name": "root", "device": "UUID=" + rootUUID, "resource": "disks/{chip}"},
			map[string]any{"name": "data", "device": "UUID=" + dataUUID, "resource": "later/{chip}/data", "systemd": true},
		},
		"keys": map[string]any{"credentials": map[string]string{"credtest.service/diskkey": "later/{chip}/credential"}},
	}), 0o600)
	tree.Copy(t, w.ca, "etc/claviger/ca.pem", 0o644)
	tree.Write(t, "etc/hostname", "claviger-guest\n", 0o644)
	tree.Write(t, "etc/fstab", "/dev/mapper/root / ext4 defaults 0 1\n", 0o644)
	crypttab := "data UUID=" + dataUUID + " /run/claviger/keys.sock luks,nofail\n"
	if kind == "initramfs" {
		crypttab = "root UUID=" + rootUUID + " none luks,initramfs\n" + crypttab
	}
	tree.Write(t, "etc/crypttab", crypttab, 0o644)
	tree.Write(t, "etc/initramfs-tools/conf.d/claviger", "MODULES=list\nCOMPRESS=zstd\n", 0o644)
	tree.Write(t, "etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\nvirtio_net\n", 0o644)
	tree.Write(t, "etc/systemd/system/credtest.service", `[Unit]
Description=A service that wants a credential
[Service]
Type=oneshot
RemainAfterExit=yes
LoadCredential=diskkey:/run/claviger/keys.sock
ExecStart=/bin/sh -c 'echo "a credential of $(wc -c < "$$CREDENTIALS_DIRECTORY/diskkey") bytes" > /run/credtest'
[Install]
WantedBy=multi-user.target
`, 0o644)
	debs, err := filepath.Glob(filepath.Join(w.root, "dist", "claviger-*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	install := []string{root, "dpkg", "-i"}
	for _, d := range debs {
		name := filepath.Base(d)
		if strings.HasPrefix(name, "claviger-agent_") || strings.HasPrefix(name, "claviger-"+kind+"_") {
			tree.Copy(t, d, filepath.Join("tmp", name), 0o644)
			install = append(install, "/tmp/"+name)
		}
	}
	if len(install) != 5 {
		t.Fatalf("packages in dist: %v; run `make e2e-boot-full`, which builds them", debs)
	}
	run(t, nil, "chroot", install...)
	run(t, nil, "chroot", root, "systemctl", "enable", "claviger-keys.socket", "credtest.service")
	run(t, nil, "chroot", root, "passwd", "-d", "root")
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels: %v, %v", kernels, err)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	if kind == "dracut" {
		run(t, nil, "chroot", root, "dracut", "--quiet", "--force", "--no-hostonly", "--no-hostonly-cmdline", "--add", "claviger", "--omit", "lvm mdraid dmraid multipath btrfs plymouth nvdimm",
			"--add-drivers", "virtio_pci virtio_blk virtio_net", "/boot/initrd.img-"+version, version)
	} else {
		run(t, nil, "chroot", root, "update-initramfs", "-c", "-k", version)
	}
	kernel, initrd = w.path(m.name, "vmlinuz"), w.path(m.name, "initrd")
	copyFile(t, kernels[0], kernel)
	copyFile(t, filepath.Join(root, "boot", "initrd.img-"+version), initrd)

	// An encrypted disk with contents, without device-mapper or mounts.
	run(t, nil, "truncate", "-s", "900M", m.disk)
	run(t, nil, "mkfs.ext4", "-q", "-d", root, m.disk)
	run(t, nil, "truncate", "-s", "+32M", m.disk)
	run(t, key, "cryptsetup", "reencrypt", "--encrypt", "--batch-mode", "--type", "luks2", "--uuid", rootUUID, "--reduce-device-size", "32M",
		"--cipher", "aes-xts-plain64", "--key-size", "512", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", m.disk)
	data := w.path(m.name, "data.img")
	run(t, nil, "truncate", "-s", "64M", data)
	run(t, key, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--uuid", dataUUID, "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", data)
	m.more = []string{data}
	run(t, nil, "rm", "-rf", root)
	return kernel, initrd
}

func run(t *testing.T, stdin []byte, name string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Stdin = bytes.NewReader(stdin)
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
