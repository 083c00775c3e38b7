#!/usr/bin/env bash
# step.sh NAME COMMAND…
# Runs one step of a build, names it first and says afterwards how long it took.
# The command's output is left as it is.
set -uo pipefail
name=$1
shift
start=$(date +%s)
printf '\n== %s\n' "$name"
"$@"
status=$?
took=$(($(date +%s) - start))
if [ $status -eq 0 ]; then
	printf '== %s: passed in %d s\n' "$name" "$took"
else
	printf '== %s: FAILED after %d s (exit %d): %s\n' "$name" "$took" "$status" "$*"
fi
exit $status
