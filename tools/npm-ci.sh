#!/usr/bin/env bash
# npm-ci.sh FOLDER
# Installs exactly what FOLDER/package-lock.json names, unless that was done already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
"$here/need-node.sh"
cd "$1"
if [ node_modules/.package-lock.json -nt package-lock.json ] && [ node_modules/.package-lock.json -nt package.json ]; then
	exit 0
fi
# Browsers come from Debian, not from a package (need-chromium.sh).
export PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1
"$here/retry.sh" npm ci --no-audit --no-fund --loglevel=error </dev/null
