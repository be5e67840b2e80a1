#!/usr/bin/env bash
# Installs, upgrades and purges the packages of dist/ in a Debian, and builds both kinds of
# initial RAM disk there: packages.sh ROOTFS (made by debian.sh). It changes a copy of it. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 077 # administrators have it, and packages must not depend on it
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
root=$work/root
cp -a "$1" "$root"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { echo "packages: $*"; }
die() { say "FAIL: $*" >&2; exit 1; }
in_root() { chroot "$root" "$@"; }
quiet() { "$@" >"$work/out" 2>&1 || { cat "$work/out"; die "$*"; }; }
version=$(basename "$root"/boot/vmlinuz-*); version=${version#vmlinuz-}
image=boot/initrd.img-$version
contents() { lsinitramfs "$root/$1" 2>/dev/null || in_root lsinitramfs "/$1"; }
has() { contents "$1" >"$work/list"; grep -qx "$2" "$work/list"; }

names="claviger claviger-agent claviger-initramfs claviger-dracut"
[ ! -e "$root/usr/bin/clevis-luks-bind" ] || names+=" claviger-clevis"
mkdir -p "$root/debs"
for n in $names; do cp dist/"${n}"_*.deb "$root/debs/$n.deb"; done
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$root/etc/initramfs-tools/conf.d/claviger"

say "install, without a configuration"
# shellcheck disable=SC2046,SC2086
quiet in_root dpkg -i $(printf '/debs/%s.deb ' $names)
grep -q 'W: claviger: no /etc/claviger/agent.json' "$work/out" || die "nothing is said of the missing configuration"
in_root getent passwd claviger >/dev/null || die "no user claviger"
[ -d "$root/etc/claviger" ] || die "no /etc/claviger"
for n in $names; do
  ! in_root dpkg -L "$n" | grep -E '^/(lib|bin|sbin)(/|$)' || die "$n ships files in an aliased folder"
  quiet in_root dpkg --verify "$n"
done
in_root su -s /bin/sh claviger -c 'test -x /usr/bin/claviger && test -r /usr/share/doc/claviger/claviger.yaml && cd /etc/claviger' || die "the user cannot read what is installed"
quiet in_root systemd-analyze verify --man=no /usr/lib/systemd/system/claviger.service

say "an image has what the configuration names, and no private key"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=test -days 30 -keyout "$root/etc/claviger/server.pem" -out "$root/srv/roots.crt" 2>/dev/null
cat >"$root/etc/claviger/agent.json" <<JSON
{"broker": "192.0.2.1:7443", "ca": "/srv/roots.crt", "identity": "$(head -c 44 /dev/zero | base64 -w0)",
 "volumes": [{"name": "root", "device": "/dev/vda", "resource": "disks/vm-1"}]}
JSON
quiet in_root update-initramfs -u -k "$version"
for f in usr/bin/claviger-agent etc/claviger/agent.json srv/roots.crt conf/claviger-dhcp scripts/local-top/claviger scripts/local-bottom/claviger; do
  has "$image" "$f" || die "the image lacks $f"
done
! has "$image" etc/claviger/server.pem || die "the image has a private key"
before=$(sha256sum <"$root/$image")
touch "$root/usr/bin/claviger-agent" "$root/srv/roots.crt"
quiet in_root update-initramfs -u -k "$version"
[ "$before" = "$(sha256sum <"$root/$image")" ] || die "the same files make another image"

say "an image that would not work is not built"
mv "$root/srv/roots.crt" "$root/srv/away"
! in_root update-initramfs -u -k "$version" >"$work/out" 2>&1 || die "an image without the CA is built"
grep -q 'E: claviger' "$work/out" || die "nobody is told why: $(cat "$work/out")"
[ "$before" = "$(sha256sum <"$root/$image")" ] || die "the old image is gone"
dracut_image() {
  in_root dracut --quiet --force --no-hostonly --no-hostonly-cmdline --add claviger \
    --omit "lvm mdraid dmraid multipath btrfs plymouth nvdimm" --add-drivers "virtio_pci virtio_blk virtio_net" "/$1" "$version"
}
! dracut_image boot/dracut.img >"$work/out" 2>&1 || die "dracut builds an image without the CA"
grep -q 'claviger' "$work/out" || die "dracut does not say why: $(cat "$work/out")"
mv "$root/srv/away" "$root/srv/roots.crt"

say "dracut"
quiet dracut_image boot/dracut.img
dracut_before=$(sha256sum <"$root/boot/dracut.img")
quiet dracut_image boot/dracut.img
[ "$dracut_before" = "$(sha256sum <"$root/boot/dracut.img")" ] || die "the same files make another image"
in_root lsinitrd /boot/dracut.img >"$work/list" 2>/dev/null
for f in usr/bin/claviger-agent etc/claviger/agent.json srv/roots.crt usr/bin/systemd-ask-password claviger-unlock.service claviger-keys.socket; do
  grep -q "$f" "$work/list" || die "dracut's image lacks $f"
done
! grep -q etc/claviger/server.pem "$work/list" || die "dracut's image has a private key"

say "an upgrade of the agent alone rebuilds the image"
dpkg-deb -R "$root/debs/claviger-agent.deb" "$work/agent"
sed -i 's/^Version: .*/&+later/' "$work/agent/DEBIAN/control"
echo later >>"$work/agent/usr/bin/claviger-agent"
dpkg-deb --root-owner-group -Znone -b "$work/agent" "$root/debs/later.deb" >/dev/null
quiet in_root dpkg -i /debs/later.deb
[ "$before" != "$(sha256sum <"$root/$image")" ] || die "the image still has the old agent"

say "purge"
# shellcheck disable=SC2046,SC2086
quiet in_root dpkg --purge $names
! has "$image" usr/bin/claviger-agent || die "the image still has the agent"
for n in $names; do ! in_root dpkg -s "$n" >/dev/null 2>&1 || die "$n is still known"; done
left=$(find "$root/usr" "$root/var/lib/systemd" -name '*claviger*' -not -path '*/dpkg/*')
[ -z "$left" ] || die "left behind: $left"
say "passed"
