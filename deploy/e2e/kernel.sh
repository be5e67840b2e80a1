#!/usr/bin/env bash
# Unpacks (does not install) Debian's cloud kernel for test guests: kernel.sh FOLDER
# leaves FOLDER/vmlinuz and FOLDER/lib/modules/VERSION.
set -euo pipefail
out=$1
again=$(cd "$(dirname "$0")/.." && pwd)/again.sh
[ -e "$out/vmlinuz" ] && exit 0
mkdir -p "$out"
work=$(mktemp -d "$out/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
[ -n "$(apt-cache policy linux-image-cloud-amd64 2>/dev/null)" ] || "$again" apt-get update -qq
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -1)
[ -n "$package" ] || { echo "kernel.sh: apt knows no linux-image-cloud-amd64" >&2; exit 1; }
"$again" apt-get download -qq "$package"
dpkg -x linux-image-*.deb root
version=${package#linux-image-}
depmod -b root "$version"
mkdir -p "$out/lib/modules"
rm -rf "$out/lib/modules/$version"
mv "root/lib/modules/$version" "$out/lib/modules/"
mv "root/boot/vmlinuz-$version" "$out/vmlinuz"
