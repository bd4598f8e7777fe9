#!/usr/bin/env bash
# Installs Chromium for tests/browser from Debian's packages, where we may; else it says so and the
# tests skip themselves.
set -euo pipefail

for name in chromium chromium-browser google-chrome chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "skipped: no Chromium here and no leave to install it; the browser's tests will be skipped"
    exit 0
fi
{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium; } >/dev/null ||
    echo "skipped: Chromium could not be installed; the browser's tests will be skipped"
