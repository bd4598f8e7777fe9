"""Call git: no prompts, no hooks, an end to every call, and nothing left running after it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, final

import trio

SAID_LINES_MAX: Final = 4
SAID_CHARS_MAX: Final = 600

SETTINGS: Final = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",  # It starts a daemon of its own.
    "safe.directory": "*",  # A daemon run by root works on repositories of users.
    "safe.bareRepository": "all",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "commit.gpgSign": "false",  # gpg asks for a passphrase.
    "log.showSignature": "false",
    "advice.detachedHead": "false",
}

# What git's own children see of the call they belong to; inherited, it would send ours astray.
ASTRAY: Final = re.compile(
    r"GIT_(DIR|WORK_TREE|IMPLICIT_WORK_TREE|COMMON_DIR|INDEX_FILE|OBJECT_DIRECTORY|PREFIX|NAMESPACE"
    r"|ALTERNATE_OBJECT_DIRECTORIES|CONFIG|CONFIG_PARAMETERS|GRAFT_FILE|SHALLOW_FILE|REPLACE_REF_BASE"
    r"|NO_REPLACE_OBJECTS|QUARANTINE_PATH|INTERNAL_SUPER_PREFIX|TRACE.*|CURL_VERBOSE|SSH_VARIANT)"
)
OURS: Final = "UNDERSTUDY_"  # R9.5: a credential helper is a program like any other.

QUIET: Final = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "false",  # Fails, and git says which password it missed.
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_EDITOR": "false",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}


# Lines that push the one which matters out of the last few.
NOISE: Final = re.compile(
    r"|Please make sure you have the correct access rights|and the repository exists\."
    r"|Another git process seems to be running.*|an editor opened by.*|are terminated then try.*"
    r"|may have crashed in this repository.*|remove the file manually to continue\."
)


class GitFailed(Exception):
    """`said` is git's own last lines, without credentials; `status` None means out of time."""

    def __init__(self, verb: str, said: str, status: int | None) -> None:
        super().__init__(f"git {verb}: {said}")
        self.said = said
        self.status = status


@dataclass(frozen=True)
class GitConfig:
    local_s: float = 120.0
    network_s: float = 600.0
    grace_s: float = 3.0
    """From SIGTERM, on which git removes its lock files, to SIGKILL."""
    patience_s: float = 10.0
    """With somebody else's git, which may hold a lock that we have to get past."""


@final
class Git:
    def __init__(self, env: Mapping[str, str], config: GitConfig = GitConfig()) -> None:
        kept = {k: v for k, v in env.items() if not ASTRAY.fullmatch(k) and not k.startswith(OURS)}
        self._env = kept | QUIET
        self.config = config

    async def __call__(
        self,
        *argv: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        within_s: float | None = None,
    ) -> str:
        """What git printed, stripped. Raises `GitFailed`."""
        within_s = within_s or self.config.local_s
        # Files, not pipes: a pipe stays open as long as any child of git does.
        with TemporaryFile() as out, TemporaryFile() as err:
            with trio.move_on_after(within_s) as deadline:
                status = await self._run(argv, cwd, env or {}, out=out, err=err)
            if deadline.cancelled_caught:
                raise GitFailed(argv[0], f"gave no answer within {within_s:g} s", None)
            if status != 0:
                said = last_lines(_read(err)) or f"exit status {status}"
                raise GitFailed(argv[0], said, status)
            return _read(out).strip()

    async def ask(self, *argv: str, cwd: Path) -> str | None:
        """None for exit 1, which is how git says no: no such ref, no such setting, no ancestor."""
        try:
            return await self(*argv, cwd=cwd)
        except GitFailed as failure:
            if failure.status != 1:
                raise
            return None

    async def ssh(self, *, cwd: Path) -> dict[str, str]:
        """The user's ssh command, told to ask nothing."""
        command = self._env.get("GIT_SSH_COMMAND") or await self.ask(
            "config", "--get", "core.sshCommand", cwd=cwd
        )
        return {"GIT_SSH_COMMAND": f"{command or 'ssh'} -oBatchMode=yes"}

    async def _run(
        self,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        *,
        out: IO[bytes],
        err: IO[bytes],
    ) -> int:
        # A directory that lost its `.git` must not be taken for a part of the user's home.
        ceiling = {"GIT_CEILING_DIRECTORIES": str(cwd.parent)}
        try:
            done = await trio.run_process(
                ["git", *(word for k, v in SETTINGS.items() for word in ("-c", f"{k}={v}")), *argv],
                cwd=cwd,
                env={**self._env, **ceiling, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
                deliver_cancel=self._end_group,
                start_new_session=True,
            )
        except FileNotFoundError:
            missing = "git is not on PATH" if cwd.is_dir() else f"{cwd} is gone"  # noqa: ASYNC240
            raise GitFailed(argv[0], missing, None) from None
        return done.returncode

    async def _end_group(self, process: trio.Process) -> None:
        try:
            _signal_group(process, signal.SIGTERM)
            with trio.move_on_after(self.config.grace_s):
                await process.wait()
        finally:
            _signal_group(process, signal.SIGKILL)


def redact(text: str) -> str:
    """Without the credentials in URLs: a name is one too where the scheme is http(s)."""
    text = re.sub(r"(?i)(https?://)[^/\s]*@", r"\1***@", text)
    return re.sub(r"([a-z][\w+.-]*://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)


def last_lines(text: str) -> str:
    lines = [line.strip() for line in redact(text).splitlines()]
    lines = [line for line in lines if not NOISE.fullmatch(line)]
    return " / ".join(lines[-SAID_LINES_MAX:])[-SAID_CHARS_MAX:]


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _signal_group(process: trio.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
