#!/usr/bin/env bash
# Unpacks (does not install) what machines boot from a disk with: efi.sh FOLDER leaves
# shimx64.efi and grubx64.efi (signed for Microsoft's and Debian's keys) and linuxx64.efi.stub there.
set -euo pipefail
out=$1
again=$(cd "$(dirname "$0")/.." && pwd)/again.sh
[ -e "$out/linuxx64.efi.stub" ] && exit 0
mkdir -p "$out"
work=$(mktemp -d "$out/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
[ -n "$(apt-cache policy shim-signed 2>/dev/null)" ] || "$again" apt-get update -qq
"$again" apt-get download -qq shim-signed grub-efi-amd64-signed systemd-boot-efi
for deb in *.deb; do dpkg -x "$deb" root; done
mv root/usr/lib/shim/shimx64.efi.signed "$out/shimx64.efi"
mv root/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed "$out/grubx64.efi"
mv root/usr/lib/systemd/boot/efi/linuxx64.efi.stub "$out/"
