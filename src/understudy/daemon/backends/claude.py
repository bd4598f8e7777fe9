"""Claude Code, headless: `claude -p` with JSON lines both ways. Measured on 2.1.197."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import frames
from understudy.daemon.backends.backend import Launch, RunSpec, Unlaunchable
from understudy.daemon.backends.claude_reader import PROVIDER, ClaudeReader

# The agent's own environment may override these.
CAPS: Final = {
    "CLAUDE_CODE_MAX_RETRIES": "4",  # Ten take three minutes; the server retries more patiently.
    "API_TIMEOUT_MS": "300000",
    "DISABLE_AUTOUPDATER": "1",
}
# Without a background shell the result is the end of the work, not the beginning of a wait.
FORCED: Final = {"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1"}
# A daemon started from within Claude Code must not make its agents believe they are nested.
STRIPPED: Final = {
    "CLAUDECODE",
    "CLAUDE_CODE_ENTRYPOINT",
    "CLAUDE_CODE_EXECPATH",
    "CLAUDE_CODE_SESSION_ID",
    "CLAUDE_CODE_SSE_PORT",
}
# Nobody is there to answer, and nothing to wake up: the result is the end of the process.
UNATTENDED_TOOLS: Final = "AskUserQuestion,EnterPlanMode,ExitPlanMode,ScheduleWakeup,CronCreate"
RESERVED_FLAGS: Final = {
    "-p", "--print", "--input-format", "--output-format", "--session-id", "-r", "--resume",
    "-c", "--continue", "--fork-session", "--no-session-persistence", "--replay-user-messages",
    "--permission-prompt-tool", "--bg", "--background",
}  # fmt: skip
INTERRUPT: Final = {
    "type": "control_request",
    "request_id": "understudy-interrupt",
    "request": {"subtype": "interrupt"},
}


@final
@dataclass(frozen=True)
class Claude:
    """`is_root`: Claude Code refuses to work unasked as root unless it is told of a sandbox."""

    is_root: bool
    provider: str = PROVIDER

    def launch(self, spec: RunSpec) -> Launch:
        files: dict[str, str] = {}
        argv = [spec.executable, "-p", *_arguments(spec, files), *_custom_args(spec)]
        prompt = {"type": "user", "message": {"role": "user", "content": spec.prompt}}
        return Launch(
            argv=tuple(argv),
            env=self._environment(spec.env),
            stdin=_line(prompt),
            close_stdin=False,
            files=files,
            interrupt=_line(INTERRUPT),
            done=frames.RESULT_LINE,
        )

    def reader(self, spec: RunSpec) -> ClaudeReader:
        return ClaudeReader(spec.resume)

    def _environment(self, env: dict[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in env.items() if name not in STRIPPED}
        sandbox = {"IS_SANDBOX": "1"} if self.is_root else {}
        return {**CAPS, **kept, **FORCED, **sandbox}


def _arguments(spec: RunSpec, files: dict[str, str]) -> list[str]:
    arguments = []
    if spec.mcp_config is not None:
        path = f"{spec.run_dir}/mcp.json"  # A file: its headers and environment hold secrets.
        files[path] = json.dumps(spec.mcp_config or {"mcpServers": {}})
        arguments += ["--mcp-config", path, "--strict-mcp-config"]
    if spec.instructions:
        path = f"{spec.run_dir}/instructions.md"
        files[path] = frames.encodable(spec.instructions)
        arguments += ["--append-system-prompt-file", path]
    if spec.model:
        arguments += ["--model", spec.model]  # On resume too: it is forgotten otherwise.
    if spec.resume:
        arguments += ["--resume", spec.resume]
    elif spec.session_id:
        arguments += ["--session-id", spec.session_id]
    if spec.requests_max:
        arguments += ["--max-turns", str(spec.requests_max)]
    return [
        *arguments,
        *("--disallowedTools", UNATTENDED_TOOLS),
        *("--permission-mode", "bypassPermissions"),
        *("--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
    ]


def _custom_args(spec: RunSpec) -> tuple[str, ...]:
    for argument in spec.custom_args:
        if argument.partition("=")[0] in RESERVED_FLAGS:
            error = f"custom_args: {argument} is Understudy's own to set"
            raise Unlaunchable(FailureReason.MISSING_CONFIG, error)
    return spec.custom_args


def _line(frame: dict[str, Any]) -> str:
    return json.dumps(frame) + "\n"
