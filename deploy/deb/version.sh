#!/usr/bin/env bash
# Prints a Debian version for what `git describe --tags --always --dirty` says: version.sh DESCRIPTION [SECONDS]
# Versions sort as they were made: 1.0.0~rc1 < 1.0.0 < 1.0.0+5.g99e6df3 < 1.0.1. Without a tag the commit's time counts.
set -euo pipefail
version=${1#v} dirty=
[[ $version != *-dirty ]] || { version=${version%-dirty} dirty=dirty; }
commits=
if [[ $version =~ ^(.*)-([0-9]+)-(g[0-9a-f]+)$ ]]; then
  version=${BASH_REMATCH[1]} commits=+${BASH_REMATCH[2]}.${BASH_REMATCH[3]}
fi
if [[ $version =~ ^([0-9]+(\.[0-9]+)+)-?((alpha|beta|pre|rc)[-.]?[0-9]*.*)?$ ]]; then
  version=${BASH_REMATCH[1]}${BASH_REMATCH[3]:+~${BASH_REMATCH[3]//-/.}}
else
  version=0.0.0+$(date -u -d "@${2:-0}" +%Y%m%d%H%M%S).${version//[^0-9A-Za-z.]/.}
fi
version+=$commits
[ -z "$dirty" ] || case $version in *+*) version+=.dirty ;; *) version+=+dirty ;; esac
echo "$version"
