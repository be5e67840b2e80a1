#!/usr/bin/env bash
# Makes Debian packages in dist/ from bin/ (make build) and deploy/: build.sh VERSION
#   claviger            the broker and the operator's command
#   claviger-agent      the workload's side, with units for systemd
#   claviger-initramfs  for initramfs-tools
#   claviger-dracut     for dracut
#   claviger-clevis     a pin for clevis
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -E 's/^v//; s/[^0-9A-Za-z.+~]+/./g' <<<"${1:-0}")
[[ $version =~ ^[0-9]+\. ]] || version=0.0.0+$version
arch=$(dpkg --print-architecture)
mkdir -p dist
rm -f dist/*.deb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# package NAME ARCH DEPENDS DESCRIPTION, then files as SOURCE:TARGET:MODE
package() {
  local name=$1 arch=$2 depends=$3 description=$4 root=$work/$1
  shift 4
  mkdir -p "$root/DEBIAN"
  for f in "$@"; do
    IFS=: read -r source target mode <<<"$f"
    install -D -m "$mode" "$source" "$root/$target"
  done
  install -D -m 644 LICENSE "$root/usr/share/doc/$name/copyright"
  cat >"$root/DEBIAN/control" <<CONTROL
Package: $name
Version: $version
Architecture: $arch
Maintainer: Claviger maintainers <maintainers@claviger.example>
Section: admin
Priority: optional
Homepage: https://github.com/claviger/claviger
Installed-Size: $(du -sk "$root" | cut -f1)
${depends:+Depends: $depends
}Description: $description
CONTROL
  [ ! -e "deploy/deb/$name.postinst" ] || install -m 755 "deploy/deb/$name.postinst" "$root/DEBIAN/postinst"
  [ ! -e "deploy/deb/$name.triggers" ] || install -m 644 "deploy/deb/$name.triggers" "$root/DEBIAN/triggers"
  dpkg-deb --root-owner-group -Zxz --build "$root" "dist/${name}_${version}_$arch.deb" >/dev/null
  echo "dist/${name}_${version}_$arch.deb"
}

package claviger "$arch" "" "key broker: releases secrets only to workloads that prove what they are" \
  bin/claviger:usr/bin/claviger:755 deploy/claviger.yaml:usr/share/doc/claviger/claviger.yaml:644 \
  deploy/systemd/claviger.service:lib/systemd/system/claviger.service:644
package claviger-agent "$arch" "" "fetches secrets from a Claviger broker by proving what this machine is" \
  bin/claviger-agent:usr/bin/claviger-agent:755 \
  deploy/systemd/claviger-keys.socket:lib/systemd/system/claviger-keys.socket:644 \
  deploy/systemd/claviger-keys.service:lib/systemd/system/claviger-keys.service:644
package claviger-initramfs all "claviger-agent, initramfs-tools, cryptsetup-initramfs" "opens disks with keys from a Claviger broker, from the initramfs" \
  deploy/initramfs-tools/hooks/claviger:usr/share/initramfs-tools/hooks/claviger:755 \
  deploy/initramfs-tools/scripts/local-top/claviger:usr/share/initramfs-tools/scripts/local-top/claviger:755 \
  deploy/initramfs-tools/scripts/local-bottom/claviger:usr/share/initramfs-tools/scripts/local-bottom/claviger:755
package claviger-dracut all "claviger-agent, dracut-core, cryptsetup-bin" "opens disks with keys from a Claviger broker, from a dracut initramfs" \
  deploy/dracut/60claviger/module-setup.sh:usr/lib/dracut/modules.d/60claviger/module-setup.sh:755 \
  deploy/dracut/60claviger/claviger-unlock.service:usr/lib/dracut/modules.d/60claviger/claviger-unlock.service:644
package claviger-clevis all "claviger-agent, clevis" "clevis pin for a Claviger broker" \
  deploy/clevis/clevis-encrypt-claviger:usr/bin/clevis-encrypt-claviger:755 \
  deploy/clevis/clevis-decrypt-claviger:usr/bin/clevis-decrypt-claviger:755
