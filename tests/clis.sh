#!/usr/bin/env bash
# Installs the agent CLIs that tests/daemon/test_*_cli.py run, at the versions they were written for,
# under .clis (or the directory given). Without npm it says so and the tests skip themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
into=${1:-${UNDERSTUDY_TEST_CLIS:-.clis}}
packages=(@anthropic-ai/claude-code@2.1.197 @openai/codex@0.169.0)
adapter=@agentclientprotocol/claude-agent-acp@0.100.0

if ! command -v npm >/dev/null; then
    echo "skipped: npm is not on PATH, so the tests against real agent CLIs will be skipped"
    exit 0
fi
mkdir -p "$into"
echo '*' >"$into/.gitignore"
if [ "$(cat "$into/installed" 2>/dev/null)" = "${packages[*]} $adapter" ]; then
    exit 0
fi
install() {
    npm install --silent --no-fund --no-audit "$@" || {
        echo "skipped: npm could not install ${*: -1}"
        exit 0
    }
}
for package in "${packages[@]}"; do
    install --prefix "$into" "$package"
done
# Where npm may not run install scripts, the program is still a placeholder.
"$into/node_modules/.bin/claude" --version >/dev/null 2>&1 ||
    node "$into/node_modules/@anthropic-ai/claude-code/install.cjs"
# Its optional part is a Claude Code of its own: the tests have one.
install --prefix "$into/adapter" --omit=optional "$adapter"
ln -sf ../../adapter/node_modules/.bin/claude-agent-acp "$into/node_modules/.bin/claude-agent-acp"
echo "${packages[*]} $adapter" >"$into/installed"
