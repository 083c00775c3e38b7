#!/usr/bin/env bash
# retry.sh COMMAND…
# For steps that use the network: one more try after a short pause, then the failure stands.
set -uo pipefail
"$@" && exit 0
printf 'failed, one more try in 5 s: %s\n' "$*" >&2
sleep 5
exec "$@"
