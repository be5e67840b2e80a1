#!/usr/bin/env bash
# Runs every fuzz target of the module for a while.
set -euo pipefail
cd "$(dirname "$0")/.."
for pkg in $(grep -rl --include='*_test.go' '^func Fuzz' broker policy cmd internal 2>/dev/null | xargs -r -n1 dirname | sort -u); do
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9]*' "$pkg"/*_test.go | sed 's/^func //'); do
    echo "== $pkg $target"
    go test "./$pkg" -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10s}" -fuzzminimizetime 1x
  done
done
