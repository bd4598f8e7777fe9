"""Any agent that speaks the Agent Client Protocol on its stdin.

The agent's `custom_args` are its command line, looked up on the PATH of the run's environment:
`gemini --acp`, `opencode acp`, `claude-agent-acp`. Measured on claude-agent-acp 0.100.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from understudy.core.failures import FailureReason
from understudy.daemon.backends import rpc
from understudy.daemon.backends.acp_reader import PROVIDER, AcpReader
from understudy.daemon.backends.backend import Launch, RunSpec, Unlaunchable

VERSION: Final = 1
# It reads and writes files, and runs its commands, by itself.
CAPABILITIES: Final = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
CLIENT: Final = {"name": "understudy", "version": "1"}


@final
@dataclass(frozen=True)
class Acp:
    provider: str = PROVIDER

    def launch(self, spec: RunSpec) -> Launch:
        if not spec.custom_args:
            error = "custom_args: name the agent's program and its arguments"
            raise Unlaunchable(FailureReason.MISSING_CONFIG, error)
        told = {
            "protocolVersion": VERSION,
            "clientCapabilities": CAPABILITIES,
            "clientInfo": CLIENT,
        }
        return Launch(
            argv=spec.custom_args,
            env=spec.env,
            stdin=rpc.request("initialize", "initialize", told),
            close_stdin=False,
            done=None,  # The reader knows which answer is the last.
        )

    def reader(self, spec: RunSpec) -> AcpReader:
        return AcpReader(spec)
