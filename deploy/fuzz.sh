#!/usr/bin/env bash
# Runs every fuzz target of the module for a while.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fuzz() { go test "./$1" -run '^$' -fuzz "^$2\$" -fuzztime "$3" -fuzzminimizetime 1x >"$log" 2>&1; }
for pkg in $(git grep -l '^func Fuzz' -- '*_test.go' | xargs -r -n1 dirname | sort -u); do
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9]*' "$pkg"/*_test.go | sed 's/^func //'); do
    echo "== $pkg $target"
    if fuzz "$pkg" "$target" "${1:-10s}"; then tail -n 1 "$log"; continue; fi
    # `go test -fuzz` now and then reports its own time limit as a failure, with no input to show for it.
    if grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input\|panic' "$log" && fuzz "$pkg" "$target" "${1:-10s}"; then tail -n 1 "$log"; continue; fi
    cat "$log"; exit 1
  done
done
