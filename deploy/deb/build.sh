#!/usr/bin/env bash
# Makes Debian packages in dist/ from bin/ (make build) and deploy/: build.sh VERSION, as `git describe` says it
#   claviger            the broker and the operator's command
#   claviger-agent      the workload's side, with units for systemd
#   claviger-initramfs  for initramfs-tools
#   claviger-dracut     for dracut
#   claviger-clevis     a pin for clevis
# The same binaries at the same commit make the same packages, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)} LC_ALL=C TZ=UTC
version=$(deploy/deb/version.sh "${1:-dev}" "$SOURCE_DATE_EPOCH")

# What the binaries were built for, which need not be this machine.
goarch=$(go version -m bin/claviger-agent | sed -n 's/.*GOARCH=//p')
[ "$goarch" = "$(go version -m bin/claviger | sed -n 's/.*GOARCH=//p')" ] || { echo "build.sh: bin/claviger and bin/claviger-agent are for different machines" >&2; exit 1; }
case $goarch in
amd64 | arm64 | riscv64 | s390x) arch=$goarch ;;
386) arch=i386 ;;
arm) arch=armhf ;;
ppc64le) arch=ppc64el ;;
*) echo "build.sh: Debian's name for GOARCH=$goarch is not known here" >&2; exit 1 ;;
esac
mkdir -p dist
rm -f dist/*.deb
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

copyright() {
  cat <<TEXT
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: claviger
Source: https://github.com/claviger/claviger

Files: *
Copyright: 2026 The Claviger authors
License: Apache-2.0
 On Debian systems, the text of the license is in /usr/share/common-licenses/Apache-2.0.
TEXT
}

changelog() { # NAME
  printf 'claviger (%s) unstable; urgency=medium\n\n  * See https://github.com/claviger/claviger/blob/main/CHANGELOG.md\n\n -- Claviger maintainers <maintainers@claviger.example>  %s\n' \
    "$version" "$(date -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$work/$1/usr/share/doc/$1/changelog.gz"
}

# package NAME ARCH DEPENDS DESCRIPTION LONG, then files as SOURCE:TARGET:MODE
package() {
  local name=$1 arch=$2 depends=$3 description=$4 long=$5 root=$work/$1 script
  shift 5
  mkdir -p "$root/DEBIAN" "$root/usr/share/doc/$name"
  for f in "$@"; do
    IFS=: read -r source target mode <<<"$f"
    if [ "$source" = / ]; then install -d -m "$mode" "$root/$target"; else install -D -m "$mode" "$source" "$root/$target"; fi
  done
  copyright >"$root/usr/share/doc/$name/copyright"
  changelog "$name"
  if [ -e "deploy/deb/$name.lintian-overrides" ]; then install -D -m 644 "deploy/deb/$name.lintian-overrides" "$root/usr/share/lintian/overrides/$name"; fi
  cat >"$root/DEBIAN/control" <<CONTROL
Package: $name
Source: claviger
Version: $version
Architecture: $arch
Maintainer: Claviger maintainers <maintainers@claviger.example>
Section: admin
Priority: optional
Homepage: https://github.com/claviger/claviger
Installed-Size: $(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' -o -type d -printf '1\n' | awk '{n += int(($1 + 1023) / 1024)} END {print n}')
${depends:+Depends: $depends
}Description: $description
$(fold -s -w 75 <<<"$long" | sed 's/^/ /; s/ *$//')
CONTROL
  for script in postinst prerm postrm; do
    [ ! -e "deploy/deb/$name.$script" ] || install -m 755 "deploy/deb/$name.$script" "$root/DEBIAN/$script"
  done
  [ ! -e "deploy/deb/$name.triggers" ] || install -m 644 "deploy/deb/$name.triggers" "$root/DEBIAN/triggers"
  (cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs -d '\n' md5sum >DEBIAN/md5sums)
  find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
  dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$root" "dist/${name}_${version}_$arch.deb" >/dev/null
  echo "dist/${name}_${version}_$arch.deb"
}

units=usr/lib/systemd/system # not /lib, which is an alias
package claviger "$arch" "passwd" "key broker for attested workloads" \
  "Releases secrets only to workloads that prove with attestation evidence what they are." \
  bin/claviger:usr/bin/claviger:755 deploy/claviger.yaml:usr/share/doc/claviger/claviger.yaml:644 \
  /:etc/claviger:755 deploy/deb/claviger.sysusers:usr/lib/sysusers.d/claviger.conf:644 \
  deploy/systemd/claviger.service:$units/claviger.service:644
package claviger-agent "$arch" "" "agent that fetches secrets from a Claviger broker" \
  "Proves to the broker what this machine is, and gets secrets and disk keys for it." \
  bin/claviger-agent:usr/bin/claviger-agent:755 /:etc/claviger:755 \
  deploy/systemd/claviger-keys.socket:$units/claviger-keys.socket:644 \
  deploy/systemd/claviger-keys.service:$units/claviger-keys.service:644
package claviger-initramfs all "claviger-agent (>= $version), initramfs-tools, cryptsetup-initramfs" "disk keys from a Claviger broker in the initramfs" \
  "Hooks for initramfs-tools: disks are opened before the root file system is mounted." \
  deploy/initramfs-tools/conf-hooks.d/claviger:usr/share/initramfs-tools/conf-hooks.d/claviger:644 \
  deploy/initramfs-tools/hooks/claviger:usr/share/initramfs-tools/hooks/claviger:755 \
  deploy/initramfs-tools/scripts/local-top/claviger:usr/share/initramfs-tools/scripts/local-top/claviger:755 \
  deploy/initramfs-tools/scripts/local-bottom/claviger:usr/share/initramfs-tools/scripts/local-bottom/claviger:755
package claviger-dracut all "claviger-agent (>= $version), dracut-core, cryptsetup-bin" "disk keys from a Claviger broker in a dracut initramfs" \
  "A module for dracut with systemd: disks are opened before the root file system is mounted." \
  deploy/dracut/60-claviger.conf:usr/lib/dracut/dracut.conf.d/60-claviger.conf:644 \
  deploy/dracut/60claviger/module-setup.sh:usr/lib/dracut/modules.d/60claviger/module-setup.sh:755 \
  deploy/dracut/60claviger/claviger-unlock.service:usr/lib/dracut/modules.d/60claviger/claviger-unlock.service:644
package claviger-clevis all "claviger-agent (>= $version), clevis, clevis-luks" "clevis pin for a Claviger broker" \
  "Binds LUKS volumes to keys from the broker; also in an initramfs, where clevis-initramfs or clevis-dracut is." \
  deploy/clevis/clevis-encrypt-claviger:usr/bin/clevis-encrypt-claviger:755 \
  deploy/clevis/clevis-decrypt-claviger:usr/bin/clevis-decrypt-claviger:755 \
  deploy/clevis/initramfs-tools/claviger-clevis:usr/share/initramfs-tools/hooks/claviger-clevis:755 \
  deploy/clevis/dracut/module-setup.sh:usr/lib/dracut/modules.d/61claviger-clevis/module-setup.sh:755
