#!/bin/bash
# dracut module: claviger-agent opens the volumes of /etc/claviger/agent.json
# before systemd-cryptsetup is asked to, and serves keys to it.

check() {
  require_binaries claviger-agent cryptsetup || return 1
  [ -e "${dracutsysrootdir-}/etc/claviger/agent.json" ] || return 255
  return 0
}

depends() {
  echo crypt systemd
}

installkernel() {
  hostonly='' instmods virtio_net virtio_pci =drivers/char/tpm sev-guest tdx-guest dm_crypt xts ecb algif_skcipher af_alg
}

install() {
  inst_multiple claviger-agent cryptsetup
  inst_simple /etc/claviger/agent.json
  for f in "${dracutsysrootdir-}"/etc/claviger/*.pem; do
    [ ! -e "$f" ] || inst_simple "${f#"${dracutsysrootdir-}"}"
  done
  inst_simple "$systemdsystemunitdir/claviger-keys.socket"
  inst_simple "$systemdsystemunitdir/claviger-keys.service"
  inst_simple "$moddir/claviger-unlock.service" "$systemdsystemunitdir/claviger-unlock.service"
  # cryptsetup-pre.target is there only if something else wants it; cryptsetup.target always is.
  $SYSTEMCTL -q --root "$initdir" add-wants cryptsetup.target claviger-unlock.service
  $SYSTEMCTL -q --root "$initdir" add-wants sockets.target claviger-keys.socket
}
