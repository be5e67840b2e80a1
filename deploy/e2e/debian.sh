#!/usr/bin/env bash
# Makes the root file system of a whole Debian guest, once: debian.sh FOLDER
# It has what a user's machine has; our packages are installed by the test.
set -euo pipefail
out=$1
[ -e "$out" ] && exit 0
mkdir -p "$(dirname "$out")"
packages=systemd-sysv,udev,kmod,dbus,iproute2,zstd,cryptsetup,cryptsetup-initramfs,initramfs-tools,linux-image-cloud-amd64,dracut-core,clevis,clevis-luks
mmdebstrap --mode=root --variant=minbase --include="$packages" --aptopt='APT::Install-Recommends "false"' \
  --customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/var/cache/apt/*' bookworm "$out.part"
mv "$out.part" "$out"
