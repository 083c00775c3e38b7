#!/usr/bin/env bash
# need-node.sh
# The SDK and the web page are built with Node; the Go side never needs it. Ends with one
# sentence when Node is absent or too old.
set -euo pipefail
want=20.19
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
	echo "Node $want or newer with npm is needed for the SDK, the web page and the browser tests, and is not installed. 'go test ./...' needs only Go." >&2
	exit 1
fi
have=$(node -p 'process.versions.node')
if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
	echo "Node $want or newer is needed for the SDK, the web page and the browser tests; this is Node $have. 'go test ./...' needs only Go." >&2
	exit 1
fi
