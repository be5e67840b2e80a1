#!/usr/bin/env bash
# The demo: a broker, a workload that gets its secrets, one that does not and why,
# a receipt that anyone can verify, and real hardware evidence appraised.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/bin
dir=$(mktemp -d)
trap '[ -n "${pid:-}" ] && kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; rm -rf "$dir"' EXIT
say() { if [ -t 1 ]; then printf '\n\033[1m── %s\033[0m\n' "$*"; else printf '\n── %s\n' "$*"; fi; }
run() { printf '$ %s\n' "${*/$dir/\$DEMO}"; "$@"; }

say "1. Start a broker: embedded store, example policies. The TEE in this demo is SIMULATED, under a test root made just now."
"$bin/claviger" dev --dir "$dir/dev" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --metrics-listen off >"$dir/out" 2>"$dir/log" &
pid=$!
for _ in $(seq 100); do grep -q 'In a second terminal' "$dir/out" && break; kill -0 "$pid" || { cat "$dir/log"; exit 1; }; sleep 0.1; done
. "$dir/dev/env"
export PATH="$bin:$PATH"
device=$dir/dev/device.json
run claviger status
run claviger catalog list

say "2. A workload with the registered image gets a database password and a disk key, and keeps the receipt"
run claviger-agent get db/orders --simulated-device "$device" --receipt "$dir/receipt.json" --prove; echo
run claviger-agent get disks/vm-17 --simulated-device "$device" --out "$dir/disk.key"
run stat -c 'disk key: %s bytes, mode %a' "$dir/disk.key"

say "3. A workload with another measurement gets nothing, and is not told why"
if run claviger-agent get disks/vm-17 --simulated-device "$device" --simulated-measurement evil; then echo "released to the wrong image!" >&2; exit 1; fi

say "4. The operator sees why"
run sleep 0.5
run claviger audit tail --limit 3

say "5. Anyone can verify the receipt and the log"
key=$(cat "$dir/dev/data/audit/log.vkey")
run claviger audit verify --receipt "$dir/receipt.json" --key "$key" --identity "$dir/dev/identity.pem"
run claviger audit verify --dir "$dir/dev/data/audit" --key "$key"

say "6. Stop"
kill "$pid"; wait "$pid"; pid=
tail -n 1 "$dir/log"

module() { go mod download "$1" && go list -m -f '{{.Dir}}' "$1"; } # not every module with evidence is part of the build
snp=$(module github.com/google/go-sev-guest)/verify/testdata
tdx=$(module github.com/google/go-tdx-guest)/testing/testdata
say "7. REAL evidence: an AMD Milan SEV-SNP report (ships inside go-sev-guest). No revocation list is at hand: a broker refuses it for that, here it is listed as skipped"
run claviger evidence verify "$snp/attestation.bin" --endorsements "$snp/vcek.testcer" --at 2023-06-01T00:00:00Z --without-revocation
say "8. REAL evidence: an Intel TDX quote (ships inside go-tdx-guest)"
run claviger evidence verify "$tdx/tdx_prod_quote_SPR_E4.dat" --at 2023-07-01T00:00:00Z --without-revocation
say "done: release, denial with its reason, receipt and log verified with a SIMULATED device; two pieces of REAL evidence appraised"
