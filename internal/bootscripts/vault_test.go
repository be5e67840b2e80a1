package bootscripts

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fakeVault notes arguments and input, keeps what is written by path, and fails to read what is named in "broken".
// What it says on standard error is what Vault 1.21 says.
const fakeVault = `#!/bin/bash
cd "$(dirname "$0")"
echo "$*" >>calls
command=$1 path=; shift
for a; do case $a in -*) ;; *) path=$a; break ;; esac; done
file=store/${path//\//_}
case $command in
read | list)
  if [ "$path" = "$(cat broken 2>/dev/null)" ]; then echo "Error reading $path: connection reset" >&2; exit 2; fi
  if [ ! -e "$file" ]; then
    case $path in sys/mounts/*) echo "* No secret engine mount at x/" >&2 ;; sys/auth/*) echo "* No auth engine at x/" >&2 ;; *) echo "No value found at $path" >&2 ;; esac
    exit 2
  fi
  cat "$file" ;;
secrets) echo '{version:2}' >"store/sys_mounts_$(sed -n 's/.*-path=\([^ ]*\).*/\1/p' <<<"$*")"; case "$*" in *kv*) echo 'map[version:2]' >store/sys_mounts_secret ;; esac ;;
auth) : >store/sys_auth_approle ;;
write)
  case "$*" in *=-*) cat >>input ;; esac
  case $path in
  pki/root/generate/internal) echo root >>roots; : >store/pki_issuers ;;
  auth/approle/role/claviger) sed -n 's/.*token_policies=\([^ ]*\).*/[\1]/p' <<<"$*" | tr , ' ' >"$file" ;;
  *) : >"$file" ;;
  esac ;;
esac
`

// TestVaultSetup: run again, setup.sh takes nothing away; a read that fails ends it; the password is in no argument.
func TestVaultSetup(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("needs bash")
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	write("vault", fakeVault)
	write("secret-id", "there already")
	write("store/auth_approle_role_claviger_role-id", "id")
	setup := func(kinds ...string) (string, error) {
		c := exec.Command(deploy+"vault/setup.sh", kinds...)
		c.Env = append(os.Environ(), "VAULT="+filepath.Join(dir, "vault"), "VAULT_ADDR=http://192.0.2.1:8200", "VAULT_TOKEN=t", "SECRET_ID_FILE="+filepath.Join(dir, "secret-id"),
			"POSTGRES=db:5432/app", "POSTGRES_USER=admin", "POSTGRES_PASSWORD=open sesame")
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := setup("database", "pki", "transit"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(read("calls"), "sesame") || read("input") != "open sesame" {
		t.Errorf("the password is an argument, or not given: %q", read("input"))
	}
	want := read("store/auth_approle_role_claviger")
	for _, p := range []string{"claviger-broker-database", "claviger-broker-pki", "claviger-broker-transit"} {
		if !strings.Contains(want, p) {
			t.Fatalf("policies %s", want)
		}
	}
	for _, kinds := range [][]string{nil, {"pki"}} {
		if out, err := setup(kinds...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		got := strings.Fields(strings.Trim(read("store/auth_approle_role_claviger"), "[]\n"))
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("after another run with %v: policies %s, before %s", kinds, got, want)
		}
	}
	for _, broken := range []string{"pki/issuers", "sys/mounts/pki", "auth/approle/role/claviger"} {
		write("broken", broken)
		if out, err := setup("pki"); err == nil || !strings.Contains(out, "cannot tell whether "+broken) {
			t.Errorf("%s cannot be read: %v\n%s", broken, err, out)
		}
	}
	if got := read("roots"); got != "root\n" {
		t.Errorf("root CAs: %q", got)
	}
}
