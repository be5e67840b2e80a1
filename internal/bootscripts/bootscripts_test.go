// Package bootscripts runs the scripts of deploy/ that build and boot initial RAM
// disks, in a root of their own with stand-ins for what is around them. What is real
// is the scripts and the shell. `make e2e-packages` builds real images from them.
package bootscripts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const deploy = "../../deploy/"

// root is a tree with busybox in which scripts run as at boot.
type root struct {
	dir     string
	prelude string // runs before each script: functions, which busybox's shell prefers to its own programs
}

func newRoot(t *testing.T) root {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to change the root folder")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skipf("needs a static busybox (Debian: apt-get install busybox-static): %v", err)
	}
	r := root{dir: t.TempDir()}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "bin/busybox", string(b), 0o755)
	if out, err := r.command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		t.Skipf("busybox does not run alone: %v\n%s", err, out)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(r.dir, "dev"), 0o755), syscall.Mknod(filepath.Join(r.dir, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3)); err != nil {
		t.Skipf("cannot make devices: %v", err)
	}
	// initramfs-tools' own, as far as the scripts need them. Its configure_networking ends with ". FILE", which ends
	// the shell where there is no such file.
	r.write(t, "scripts/functions", `
wait_for_udev() { :; }
log_begin_msg() { echo "$*"; }
log_end_msg() { :; }
configure_networking() { echo configured >>/run/configured; . /network; . /run/net-eth0.conf; }
`, 0o644)
	r.write(t, "network", "", 0o644)
	r.write(t, "etc/claviger/agent.json", "{}", 0o644)
	r.write(t, "sys/class/net/lo/flags", "0x9\n", 0o644)
	r.write(t, "sys/class/net/eth0/flags", "0x1002\n", 0o644)
	r.write(t, "sys/class/net/san0/flags", "0x1003\n", 0o644)
	r.write(t, "proc/mounts", "rootfs / rootfs rw 0 0\n", 0o644)
	r.agent(t, "echo opened")
	return r
}

func (r root) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func (r root) read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// agent stands in for claviger-agent. It notes how it was called.
func (r root) agent(t *testing.T, does string) {
	t.Helper()
	r.write(t, "usr/bin/claviger-agent", "#!/bin/sh\necho \"$@\" >/called\nset >/environment\n"+does+"\n", 0o755)
}

func (r root) command(args ...string) *exec.Cmd {
	c := exec.Command(args[0], args[1:]...)
	c.Dir, c.Env = "/", []string{"PATH=/bin:/usr/bin", "ROUNDTTT=1"}
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir, Setpgid: true}
	return c
}

// run runs a script of deploy/ and returns what it says. A script that does not end fails the test.
func (r root) run(t *testing.T, script string, env ...string) (string, error) {
	t.Helper()
	b, err := os.ReadFile(deploy + script)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "script", r.prelude+"\n"+string(b), 0o755)
	c := r.command("/bin/sh", "/script")
	c.Env = append(c.Env, env...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }() // what it left behind
	timer := time.AfterFunc(time.Minute, func() { _ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	err = c.Wait()
	if !timer.Stop() {
		t.Errorf("%s does not end", script)
	}
	return out.String(), err
}

const localTop, localBottom = "initramfs-tools/scripts/local-top/claviger", "initramfs-tools/scripts/local-bottom/claviger"

// TestLocalTop: the disks are tried whatever becomes of the network.
func TestLocalTop(t *testing.T) {
	for name, c := range map[string]struct {
		network string // what configuring does
		static  bool
		agent   string
		resolv  string
	}{
		"nothing came of it, as with ip=none": {network: ":"},
		"it ends the shell":                   {network: "exit 1"},
		"it takes for ever":                   {network: "sleep 3600"},
		"the agent has its own":               {static: true},
		"DHCP names name servers": {
			network: `printf "DEVICE='eth0'\nIPV4DNS0='192.0.2.53'\nIPV4DNS1='0.0.0.0'\nDNSDOMAIN='x'\n" >/run/net-eth0.conf`,
			agent:   "for i in $(seq 300); do [ ! -s /etc/resolv.conf ] || break; sleep 0.1; done", resolv: "nameserver 192.0.2.53\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t)
			r.agent(t, c.agent)
			r.write(t, "network", c.network+"\n", 0o644)
			if !c.static {
				r.write(t, "conf/claviger-dhcp", "", 0o644)
			}
			out, err := r.run(t, localTop, "CLAVIGER_IDENTITY=evil", "GODEBUG=evil", "SSL_CERT_FILE=/evil", "root=/dev/evil")
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := r.read(t, "called"); got != "unlock --boot\n" {
				t.Errorf("the agent was called with %q\n%s", got, out)
			}
			if got := r.read(t, "environment"); strings.Contains(got, "evil") || got == "" {
				t.Errorf("words of the kernel's command line reach the agent: %s", got)
			}
			if got := r.read(t, "etc/resolv.conf"); got != c.resolv {
				t.Errorf("resolv.conf is %q, want %q", got, c.resolv)
			}
			if c.static && r.read(t, "run/configured") != "" {
				t.Error("the network is configured though the agent does it")
			}
		})
	}
}

// TestLocalTopWithoutEnv: the environment is clean also where the image has no env.
func TestLocalTopWithoutEnv(t *testing.T) {
	r := newRoot(t)
	r.prelude = `command() { [ "$2" != env ]; }`
	out, err := r.run(t, localTop, "CLAVIGER_IDENTITY=evil")
	if got := r.read(t, "environment"); err != nil || strings.Contains(got, "evil") || got == "" {
		t.Errorf("%v, environment %s\n%s", err, got, out)
	}
}

// TestLocalBottom: what local-top found up stays up, and so does all where a disk comes over the network.
func TestLocalBottom(t *testing.T) {
	r := newRoot(t)
	r.agent(t, "echo 0x1003 >/sys/class/net/eth0/flags") // it configures an address
	if out, err := r.run(t, localTop); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := r.read(t, "run/claviger/up-by-us"); got != "eth0\n" {
		t.Fatalf("brought up by us: %q", got)
	}
	r.prelude = `ip() { echo "$@" >>/downed; }`
	r.write(t, "sys/class/iscsi_session/session1", "", 0o644)
	if out, err := r.run(t, localBottom); err != nil || r.read(t, "downed") != "" {
		t.Errorf("with a disk by iSCSI: %v\n%s", err, out)
	}
	if err := os.Remove(filepath.Join(r.dir, "sys/class/iscsi_session/session1")); err != nil {
		t.Fatal(err)
	}
	for _, fs := range []string{"nfs", "nfs4", "cifs"} {
		r.write(t, "proc/mounts", "server:/x /root "+fs+" rw 0 0\n", 0o644)
		if out, err := r.run(t, localBottom); err != nil || r.read(t, "downed") != "" {
			t.Errorf("with a root by %s: %v\n%s", fs, err, out)
		}
	}
	r.write(t, "proc/mounts", "/dev/mapper/root /root ext4 rw 0 0\n", 0o644)
	if out, err := r.run(t, localBottom); err != nil || strings.Contains(r.read(t, "downed"), "san0") || !strings.Contains(r.read(t, "downed"), "link set eth0 down") {
		t.Errorf("%v, taken down: %s\n%s", err, r.read(t, "downed"), out)
	}
}

const hook = "initramfs-tools/hooks/claviger"

// TestHook: an image has what the configuration names, readable, or is not built.
func TestHook(t *testing.T) {
	const functions = `
DESTDIR=/image
copy_exec() { [ -f "$1" ] || return 1; mkdir -p "$DESTDIR${1%/*}"; cp "$1" "$DESTDIR$1"; }
manual_add_modules() { :; }
`
	for name, c := range map[string]struct {
		agent string // "": none
		lines string
		fails bool
		says  string
	}{
		"all":                  {agent: "cat /lines", lines: "file /etc/claviger/agent.json\nfile /srv/our ca.crt\nprogram /usr/bin/gpu\ndhcp\n"},
		"no agent":             {fails: true, says: "E: claviger"},
		"a refusal":            {agent: "echo 'ca: holds a private key' >&2; exit 1", fails: true, says: "private key"},
		"a file is missing":    {agent: "cat /lines", lines: "file /srv/none.crt\n", fails: true, says: "/srv/none.crt"},
		"a program is missing": {agent: "cat /lines", lines: "program /no/such\n", fails: true, says: "/no/such"},
		"a newer agent":        {agent: "cat /lines", lines: "firmware /x\n", fails: true, says: "firmware"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t)
			r.write(t, "usr/share/initramfs-tools/hook-functions", functions, 0o644)
			r.write(t, "sbin/cryptsetup", "", 0o755)
			r.write(t, "usr/bin/gpu", "", 0o755)
			r.write(t, "etc/claviger/agent.json", "{}", 0o600)
			r.write(t, "etc/claviger/server.pem", "a private key", 0o600)
			r.write(t, "srv/our ca.crt", "roots", 0o600)
			r.write(t, "lines", c.lines, 0o644)
			r.agent(t, c.agent)
			if c.agent == "" {
				if err := os.Remove(filepath.Join(r.dir, "usr/bin/claviger-agent")); err != nil {
					t.Fatal(err)
				}
			}
			old := syscall.Umask(0o077)
			out, err := r.run(t, hook)
			syscall.Umask(old)
			if (err != nil) != c.fails || !strings.Contains(out, c.says) {
				t.Fatalf("%v, it says %q", err, out)
			}
			if c.fails {
				return
			}
			for _, f := range []string{"etc/claviger/agent.json", "srv/our ca.crt"} {
				if fi, err := os.Stat(filepath.Join(r.dir, "image", f)); err != nil || fi.Mode().Perm() != 0o644 {
					t.Errorf("%s: %v", f, err)
				}
			}
			for _, f := range []string{"usr/bin/claviger-agent", "usr/bin/gpu", "sbin/cryptsetup", "conf/claviger-dhcp"} {
				if _, err := os.Stat(filepath.Join(r.dir, "image", f)); err != nil {
					t.Error(err)
				}
			}
			if r.read(t, "image/etc/claviger/server.pem") != "" {
				t.Error("a file that the configuration does not name is in the image")
			}
		})
	}
	t.Run("no configuration", func(t *testing.T) { // as when the package has just been installed
		r := newRoot(t)
		r.write(t, "usr/share/initramfs-tools/hook-functions", functions, 0o644)
		if err := os.Remove(filepath.Join(r.dir, "etc/claviger/agent.json")); err != nil {
			t.Fatal(err)
		}
		if out, err := r.run(t, hook); err != nil || !strings.Contains(out, "W: claviger") {
			t.Errorf("%v, it says %q", err, out)
		}
	})
}

// TestVersions: packages sort as their commits do.
func TestVersions(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("needs dpkg")
	}
	version := func(describe, seconds string) string {
		out, err := exec.Command(deploy+"deb/version.sh", describe, seconds).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", describe, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	before := "0~"
	for _, v := range []string{
		version("ffffff0", "1790000000"), version("0886632", "1790000001"), version("0000001", "1796073416"), version("0000001-dirty", "1796073416"),
		version("v1.0.0-beta.2", "1"), version("v1.0.0-rc1", "1"), version("v1.0.0-rc1-3-gabcdef0", "1"), version("v1.0.0-rc10", "1"), version("v1.0.0", "1"),
		version("v1.0.0-9-gffffff0", "1"), version("v1.0.0-10-g0000001", "1"), version("v1.0.1", "1"), version("v1.10.0", "1"),
	} {
		if err := exec.Command("dpkg", "--compare-versions", before, "lt", v).Run(); err != nil {
			t.Errorf("%s does not sort before %s: %v", before, v, err)
		}
		before = v
	}
}
