#!/bin/bash
# dracut module: the clevis pin, where clevis' own module puts clevis.

check() {
  require_binaries claviger-agent clevis-decrypt-claviger || return 1
  [ -e "${dracutsysrootdir-}/etc/claviger/agent.json" ] && [ -d "${dracutbasedir-/usr/lib/dracut}/modules.d/60clevis" ] || return 255
  return 0
}

depends() {
  echo clevis
}

installkernel() {
  hostonly='' instmods virtio_net virtio_pci =drivers/char/tpm sev-guest tdx-guest
}

install() {
  local list kind path
  if ! list=$(claviger-agent boot-files --clevis); then
    dfatal "claviger-clevis: the pin would not work at boot"
    exit 1 # dracut goes on after a module that only fails
  fi
  inst_multiple claviger-agent clevis-decrypt-claviger
  while read -r kind path; do
    case "$kind" in
    file)
      if ! inst_simple "$path" || ! chmod 0644 "$(readlink -f "$initdir$path")"; then
        dfatal "claviger-clevis: cannot copy $path"
        exit 1
      fi
      ;;
    program) inst_multiple "$path" ;;
    esac
  done <<<"$list"
}
