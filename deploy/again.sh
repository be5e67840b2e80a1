#!/usr/bin/env bash
# Runs a command that asks the network, again while it fails: again.sh COMMAND…
# Six times in about a minute; then it fails as the command did.
set -u
for wait in 2 4 8 16 32 0; do
  "$@" && exit 0
  code=$?
  [ "$wait" = 0 ] && break
  echo "again.sh: \"$*\" failed (exit code $code), trying again in $wait s" >&2
  sleep "$wait"
done
echo "again.sh: \"$*\" failed six times: is there a network, and does the name resolve?" >&2
exit "$code"
