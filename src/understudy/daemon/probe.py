"""Which agent CLIs this machine has, and whether they work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Final

import trio

from understudy.daemon.backends import (
    acp_reader,
    claude,
    claude_reader,
    codex_reader,
    command,
    scripted,
)
from understudy.daemon.backends.frames import clean

PROBE_S: Final = 10.0
PROBE_EVERY_S: Final = 300.0
OUTPUT_MAX: Final = 1 << 16
BUILT_IN: Final = (scripted.PROVIDER, command.PROVIDER, acp_reader.PROVIDER)


@dataclass(frozen=True)
class Cli:
    """A program worth looking for; `version` has one group and is found in what it answers."""

    provider: str
    program: str
    arguments: tuple[str, ...]
    version: re.Pattern[str]
    repair: str


CLIS: Final = (
    Cli(
        provider=claude_reader.PROVIDER,
        program="claude",
        arguments=("--version",),
        version=re.compile(r"^(\d+\.\d+\.\d+\S*) \(Claude Code\)", re.MULTILINE),
        repair="reinstall Claude Code: npm install -g @anthropic-ai/claude-code",
    ),
    Cli(
        provider=codex_reader.PROVIDER,
        program="codex",
        arguments=("--version",),
        version=re.compile(r"^codex(?:-cli)? (\d+\.\d+\.\d+\S*)", re.MULTILINE),
        repair="reinstall Codex: npm install -g @openai/codex",
    ),
)


@dataclass(frozen=True)
class Found:
    """`problem`, where there is one, is what is wrong and how to repair it (R9.4)."""

    provider: str
    executable: str
    version: str
    problem: str | None = None


async def probe_forever(
    find: Callable[[], Awaitable[list[Found]]],
    found: Callable[[list[Found]], None],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Tell `found` what is here, before it has started and again every few minutes (R9.4)."""
    found(await find())
    task_status.started()
    while True:
        await trio.sleep(PROBE_EVERY_S)
        found(await find())


async def find_clis(path: str) -> list[Found]:
    """What is on this PATH, in a fixed order, and the built-in providers. Takes `PROBE_S` at most:
    what cannot be asked in time is found with a problem."""
    environment = _environment(path)
    answers: dict[str, Found] = {}

    async def ask(cli: Cli, executable: str) -> None:
        answers[cli.provider] = await _ask(cli, executable, environment)

    async with trio.open_nursery() as nursery:
        for cli in CLIS:
            if executable := shutil.which(cli.program, path=path):
                nursery.start_soon(ask, cli, executable)
    found = [answers[cli.provider] for cli in CLIS if cli.provider in answers]
    ours = version_of("understudy")
    return [*found, *(Found(provider, "", ours) for provider in BUILT_IN)]


def _environment(path: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNDERSTUDY_")}
    return {**inherited, **claude.CAPS, "PATH": path}


async def _ask(cli: Cli, executable: str, environment: Mapping[str, str]) -> Found:
    asked = " ".join([executable, *cli.arguments])

    def broken(what: str) -> Found:
        return Found(cli.provider, executable, "", f"`{asked}` {what}; {cli.repair}")

    try:
        with trio.fail_after(PROBE_S):
            code, output = await _run([executable, *cli.arguments], environment)
    except trio.TooSlowError:
        return broken(f"did not answer within {PROBE_S:.0f} s")
    except OSError as error:
        return broken(f"could not be started: {error.strerror}")
    said = clean(output.decode("utf-8", "replace").strip())
    if code != 0:
        return broken(f"exited with status {code}: {_last_line(said)}")
    match = cli.version.search(said)
    if match is None:
        return broken(f"did not tell its version but: {_last_line(said)}")
    return Found(cli.provider, executable, match[1])


async def _run(argv: list[str], environment: Mapping[str, str]) -> tuple[int, bytes]:
    """The exit status and what was printed. The process group does not outlive the call."""
    process = await trio.lowlevel.open_process(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = b""
    try:
        assert process.stdout
        async for data in process.stdout:
            output = (output + data)[-OUTPUT_MAX:]
        return await process.wait(), output
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


def _last_line(text: str) -> str:
    return text.splitlines()[-1][:200] if text else "(nothing)"
