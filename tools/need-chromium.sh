#!/usr/bin/env bash
# need-chromium.sh
# Prints the path of a Chromium for the browser tests; installs Debian's when there is none. $CHROMIUM names another one.
set -euo pipefail
exec bash "$(dirname "$0")/need.sh" chromium ${CHROMIUM:+"$CHROMIUM"} chromium chromium-browser google-chrome
