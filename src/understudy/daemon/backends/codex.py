"""Codex as a server on its own stdin: `codex app-server`. Measured on 0.169.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import frames, rpc
from understudy.daemon.backends.backend import Launch, RunSpec, Unlaunchable
from understudy.daemon.backends.codex_reader import PROVIDER, CodexReader

# The agent's custom_args come later and may override these.
CAPS: Final = (
    "analytics.enabled=false",  # Without a network each run would end five seconds late.
    "check_for_update_on_startup=false",
)
# Nobody is there to answer, and the result is the end: no goal may begin another turn.
FORCED: Final = ("tools.experimental_request_user_input.enabled=false", "features.goals=false")
RESERVED_FLAGS: Final = {"--listen", "--stdio", "daemon", "proxy"}
STRIPPED: Final = {"CODEX_THREAD_ID", "CODEX_SANDBOX", "CODEX_SANDBOX_NETWORK_DISABLED"}
CLIENT: Final = {"name": "understudy", "version": "1"}


@final
@dataclass(frozen=True)
class Codex:
    """It works unasked and outside a sandbox, as Claude Code does: its machine is the limit."""

    provider: str = PROVIDER

    def launch(self, spec: RunSpec) -> Launch:
        settings = [*_settings(CAPS), *_custom_args(spec), *_settings(FORCED)]
        return Launch(
            argv=(spec.executable, "app-server", *settings),
            env={name: value for name, value in spec.env.items() if name not in STRIPPED},
            stdin="".join([*_greeting(), _thread(spec)]),
            close_stdin=False,  # It ends at once when stdin does, whatever it is doing.
            done=None,  # A subagent's turn ends in the same words as the run's: the reader knows.
        )

    def reader(self, spec: RunSpec) -> CodexReader:
        return CodexReader(spec)


def _settings(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("-c", setting)]


def _custom_args(spec: RunSpec) -> tuple[str, ...]:
    for argument in spec.custom_args:
        if argument.partition("=")[0] in RESERVED_FLAGS:
            error = f"custom_args: {argument} is Understudy's own to set"
            raise Unlaunchable(FailureReason.MISSING_CONFIG, error)
    return spec.custom_args


def _greeting() -> list[str]:
    told = {"clientInfo": CLIENT, "capabilities": {"experimentalApi": True}}
    return [rpc.request("initialize", "initialize", told), rpc.notification("initialized", {})]


def _thread(spec: RunSpec) -> str:
    wanted: dict[str, Any] = {
        "cwd": spec.work_dir,
        "approvalPolicy": "never",
        "sandbox": "danger-full-access",
        "config": _mcp_servers(spec.mcp_config),
    }
    if spec.model:
        wanted["model"] = spec.model  # On resume too (R9.2).
    if spec.instructions:
        wanted["developerInstructions"] = frames.encodable(spec.instructions)
    if spec.resume:
        # Without the history, which may be larger than a line can be.
        continued = {"threadId": spec.resume, "excludeTurns": True, **wanted}
        return rpc.request("thread", "thread/resume", continued)
    return rpc.request("thread", "thread/start", wanted)


def _mcp_servers(mcp_config: dict[str, Any] | None) -> dict[str, Any]:
    """Beside those of the user's own config.toml: Codex merges, and forgets none of them."""
    servers = (mcp_config or {}).get("mcpServers") or {}
    return {"mcp_servers": {name: _mcp_server(given) for name, given in servers.items()}}


def _mcp_server(given: dict[str, Any]) -> dict[str, Any]:
    renamed = {"headers": "http_headers"}
    return {renamed.get(name, name): value for name, value in given.items() if name != "type"}
