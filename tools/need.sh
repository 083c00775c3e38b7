#!/usr/bin/env bash
# need.sh PACKAGE COMMAND [COMMAND …]
# Prints the path of the first COMMAND that is there; installs Debian's PACKAGE when none is.
# Nothing is downloaded from anywhere else.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
package=$1
shift

find_it() {
	local name
	for name in "$@"; do
		if command -v "$name"; then return 0; fi
	done
	return 1
}

find_it "$@" && exit 0

if ! command -v apt-get >/dev/null; then
	echo "$package was not found and this is no Debian: install it so that one of these is in PATH: $*" >&2
	exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "$package was not found and only root may install it. As root: apt-get update && apt-get install $package" >&2
		exit 1
	fi
	as_root=(sudo)
fi
{
	echo "$package was not found: installing Debian's."
	export DEBIAN_FRONTEND=noninteractive
	"$here/retry.sh" "${as_root[@]}" apt-get update -q
	"$here/retry.sh" "${as_root[@]}" apt-get install -y -q --no-install-recommends "$package"
} >&2 </dev/null
find_it "$@" || { echo "$package was installed but none of these is in PATH: $*" >&2; exit 1; }
