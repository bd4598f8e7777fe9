#!/usr/bin/env bash
# Installs the agent CLIs that tests/daemon/test_*_cli.py run, at the versions they were written for,
# under .clis (or the directory given). Without npm it says so and the tests skip themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
into=${1:-${UNDERSTUDY_TEST_CLIS:-.clis}}
packages=(@anthropic-ai/claude-code@2.1.197)

if ! command -v npm >/dev/null; then
    echo "skipped: npm is not on PATH, so the tests against real agent CLIs will be skipped"
    exit 0
fi
mkdir -p "$into"
echo '*' >"$into/.gitignore"
if [ "$(cat "$into/installed" 2>/dev/null)" = "${packages[*]}" ]; then
    exit 0
fi
npm install --silent --no-fund --no-audit --prefix "$into" "${packages[@]}" || {
    echo "skipped: npm could not install ${packages[*]}"
    exit 0
}
# Where npm may not run install scripts, the program is still a placeholder.
"$into/node_modules/.bin/claude" --version >/dev/null 2>&1 ||
    node "$into/node_modules/@anthropic-ai/claude-code/install.cjs"
echo "${packages[*]}" >"$into/installed"
