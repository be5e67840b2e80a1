package e2e

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/internal/testservers"
)

// The guest's own programs are busybox, cryptsetup, mkfs.ext4 and the agent. At
// its first boot the agent formats the blank disk, and the script fills it.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs -o mode=755 run /run
mount -t securityfs none /sys/kernel/security
exec </dev/console >/dev/console 2>&1
echo "INIT up $(cut -d' ' -f1 /proc/uptime)"
for m in virtio_pci virtio_net virtio_blk virtio_rng dm_crypt xts ecb aes_generic; do modprobe $m; done
if [ "$(head -c 6 /dev/vda)" = GOLDEN ]; then
  echo "LOG $(base64 -w0 /sys/kernel/security/tpm0/binary_bios_measurements) END"; poweroff -f
fi
read a b c < /proc/uptime; echo "UNLOCK starts $a"
claviger-agent unlock --verbose
code=$?
read a b c < /proc/uptime; echo "UNLOCK exit=$code at $a"
grep -E 'VmHWM|VmPeak' /run/agent.status 2>/dev/null
if [ $code != 0 ]; then echo "REFUSED $code"; poweroff -f; fi
if ! mount -t ext4 /dev/mapper/root /mnt 2>/dev/null; then
  mkfs.ext4 -q -d /rootfs /dev/mapper/root && mount -t ext4 /dev/mapper/root /mnt || poweroff -f
  echo "FILLED the new disk"
fi
mount --move /dev /mnt/dev; mount --move /proc /mnt/proc; mount --move /sys /mnt/sys; mount --move /run /mnt/run
exec switch_root /mnt /sbin/init
`

// agentConfig is /etc/claviger/agent.json of the guest.
func (w *world) agentConfig(t *testing.T, more map[string]any) string {
	t.Helper()
	c := map[string]any{
		"broker": "10.0.2.2:" + w.port, "server_name": "localhost", "ca": "/etc/claviger/ca.pem", "identity": w.identity,
		"evidence": "tpm", "timeout": "60s",
		"network": map[string]any{"address": "10.0.2.15/24", "gateway": "10.0.2.2"},
		"volumes": []any{map[string]any{"name": "root", "device": "/dev/vda", "resource": "disks/{chip}", "format": "blank"}},
		"unlock":  map[string]any{"close_pcr": 15, "passphrase_fallback": false},
	}
	for k, v := range more {
		c[k] = v
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// initrd builds the initial RAM disk; mark makes it another one.
func (w *world) initrd(t *testing.T, name, mark string, more map[string]any) string {
	t.Helper()
	tree := testservers.NewTree(t)
	tree.Copy(t, "/bin/busybox", "bin/busybox", 0o755)
	for _, p := range []string{"cryptsetup", "mkfs.ext4"} {
		tree.Program(t, p)
	}
	tree.Write(t, "sbin/modprobe", "#!/bin/busybox sh\nexec /bin/busybox modprobe \"$@\"\n", 0o755) // the kernel calls it for crypto
	tree.Copy(t, w.bin("claviger-agent"), "bin/claviger-agent", 0o755)
	tree.Modules(t, w.modules, "virtio_pci", "virtio_net", "virtio_blk", "virtio_rng", "dm_crypt", "xts", "ecb", "aes_generic",
		"cbc", "sha256_generic", "algif_skcipher", "af_alg")
	tree.Write(t, "init", initScript, 0o755)
	tree.Write(t, "etc/claviger/agent.json", w.agentConfig(t, more), 0o600)
	tree.Copy(t, w.ca, "etc/claviger/ca.pem", 0o644)
	tree.Write(t, "etc/mark", mark, 0o644)
	tree.Write(t, "etc/mke2fs.conf", "[defaults]\n\tbase_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr\n\tblocksize = 4096\n\tinode_size = 256\n\tinode_ratio = 16384\n[fs_types]\n\text4 = {\n\t\tfeatures = has_journal,extent\n\t}\n", 0o644)
	// The root file system: a busybox with a login prompt.
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root"} {
		tree.Write(t, filepath.Join("rootfs", d, ".keep"), "", 0o644)
	}
	tree.Copy(t, "/bin/busybox", "rootfs/bin/busybox", 0o755)
	tree.Copy(t, w.bin("claviger-agent"), "rootfs/bin/claviger-agent", 0o755)
	tree.Write(t, "rootfs/etc/claviger/agent.json", w.agentConfig(t, more), 0o600)
	tree.Copy(t, w.ca, "rootfs/etc/claviger/ca.pem", 0o644)
	tree.Write(t, "rootfs/sbin/init", "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexec /bin/busybox init\n", 0o755)
	tree.Write(t, "rootfs/etc/inittab", "::sysinit:/bin/hostname claviger-guest\nttyS0::respawn:/bin/getty -L ttyS0 115200 vt100\n", 0o644)
	tree.Write(t, "rootfs/etc/passwd", "root::0:0:root:/root:/bin/sh\n", 0o644)
	tree.Write(t, "rootfs/etc/group", "root:x:0:\n", 0o644)
	tree.Write(t, "rootfs/etc/issue", "claviger guest\n", 0o644)
	path := w.path(name)
	tree.Pack(t, path)
	return path
}
