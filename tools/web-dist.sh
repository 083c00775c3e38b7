#!/usr/bin/env bash
# web-dist.sh
# Builds the web page and fails when the result differs from what lay in web/dist: that folder
# is committed, so that `go install` gives a binary with a page in it, and must be what the
# sources make. Compares files, not git, so that it says the same before and after a commit.
set -euo pipefail
cd "$(dirname "$0")/../web"
sums() { if [ -d dist ]; then find dist -type f -print0 | sort -z | xargs -0 -r sha256sum; fi; }
before=$(sums)
npm run build </dev/null
if [ "$before" != "$(sums)" ]; then
	diff <(printf '%s\n' "$before") <(sums) || true
	echo "web/dist was not what the sources make. It is now: look at the difference and commit it." >&2
	exit 1
fi
