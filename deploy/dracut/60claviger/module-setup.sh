#!/bin/bash
# dracut module: claviger-agent opens the volumes of /etc/claviger/agent.json
# before systemd-cryptsetup is asked to, and serves keys to it.

check() {
  require_binaries claviger-agent cryptsetup || return 1
  [ -e "${dracutsysrootdir-}/etc/claviger/agent.json" ] || return 255
  return 0
}

depends() {
  echo crypt systemd systemd-ask-password
}

installkernel() {
  hostonly='' instmods virtio_net virtio_pci =drivers/char/tpm sev-guest tdx-guest dm_crypt xts ecb algif_skcipher af_alg
}

install() {
  local list kind path
  if ! list=$(claviger-agent boot-files); then
    dfatal "claviger: an initramfs from this configuration would not open the disks"
    exit 1 # dracut goes on after a module that only fails
  fi
  inst_multiple claviger-agent cryptsetup
  while read -r kind path; do
    case "$kind" in
    file)
      # Readable, whatever the mode of the original is: nothing in it is secret.
      if ! inst_simple "$path" || ! chmod 0644 "$(readlink -f "$initdir$path")"; then
        dfatal "claviger: cannot copy $path"
        exit 1
      fi
      ;;
    program) inst_multiple "$path" ;;
    dhcp) dinfo "claviger: something else has to configure the network: rd.neednet=1 ip=dhcp, with dracut's module network" ;;
    esac
  done <<<"$list"
  inst_multiple -o systemd-ask-password
  inst_simple "$systemdsystemunitdir/claviger-keys.socket"
  inst_simple "$systemdsystemunitdir/claviger-keys.service"
  inst_simple "$moddir/claviger-unlock.service" "$systemdsystemunitdir/claviger-unlock.service"
  # cryptsetup-pre.target is there only if something else wants it; cryptsetup.target always is.
  $SYSTEMCTL -q --root "$initdir" add-wants cryptsetup.target claviger-unlock.service
  $SYSTEMCTL -q --root "$initdir" add-wants sockets.target claviger-keys.socket
}
