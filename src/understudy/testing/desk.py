"""A user's repository and an agent's place to work, in one temporary directory."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, final

import trio

from understudy.daemon.briefs import Brief
from understudy.daemon.git import Git, GitConfig
from understudy.daemon.repositories import Repositories
from understudy.daemon.workspace import Order

GITCONFIG: Final = """
[user]
  name = Ada
  email = ada@example.org
[init]
  defaultBranch = main
"""

# Stands for the network: speaks ssh's command line and runs the other side here.
SSH: Final = """#!/bin/sh
echo "$@" >> {log}
for command; do :; done
exec sh -c "$command"
"""


@final
@dataclass(frozen=True)
class Clone:
    """A directory with a `.git`, driven as its user would."""

    path: Path
    env: Mapping[str, str]

    def git(self, *argv: str) -> str:
        done = subprocess.run(
            ["git", *argv], cwd=self.path, env=dict(self.env), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def commit(self, name: str, text: str) -> str:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.git("add", "--", name)
        self.git("commit", "--quiet", "-m", f"Write {name}")
        return self.git("rev-parse", "HEAD")

    def has(self, ref: str) -> bool:
        return ref in self.git("for-each-ref", "--format=%(refname)").splitlines()


@final
class Desk:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        home = directory / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(GITCONFIG)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}
        self.ssh_log = directory / "ssh.log"
        self.git = Git(self.env)
        self.repositories = Repositories(directory / "root", self.git)
        self.ids = {name: uuid.uuid4() for name in ("workspace", "agent", "issue")}

    def configure(self, config: GitConfig, **env: str) -> None:
        self.git = Git(self.env | env, config)
        self.repositories = Repositories(self.directory / "root", self.git)

    def repository(self, name: str = "project", *, empty: bool = False) -> Clone:
        path = self.directory / name
        path.mkdir()
        clone = self.clone(path)
        clone.git("init", "--quiet")
        if not empty:
            clone.commit("README", "hello\n")
        return clone

    def clone(self, path: Path) -> Clone:
        return Clone(path, self.env)

    def ssh_url(self, clone: Clone) -> str:
        """The same repository, as if it stood on another machine. Ends every `configure`."""
        program = self.program("ssh", SSH.format(log=self.ssh_log))
        self.configure(self.git.config, GIT_SSH_COMMAND=str(program))
        return f"ssh://elsewhere{clone.path}"

    def program(self, name: str, script: str) -> Path:
        path = self.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
        return path

    def git_at_work(self, path: Path) -> AbstractAsyncContextManager[trio.Process]:
        """A process that looks like a git in this directory, and does nothing."""
        return alive(str(self.program("git-idle", "#!/bin/sh\nread word\n")), cwd=path)

    def order(self, repository: Clone | None = None, *, prior: Path | None = None) -> Order:
        """Another task of the same agent for the same issue."""
        return Order(
            workspace_id=self.ids["workspace"],
            task_id=uuid.uuid4(),
            agent_id=self.ids["agent"],
            agent_name="Nia",
            issue_id=self.ids["issue"],
            issue_key="UND-7",
            provider="claude",
            brief=Brief("UND-7: Fix the login page", "It is broken."),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            repository=str(repository.path) if repository else None,
            prior_work_dir=str(prior) if prior else None,
        )


@asynccontextmanager
async def alive(
    program: str, *, cwd: Path | None = None, **variables: str
) -> AsyncIterator[trio.Process]:
    """A program that ends with its stdin. It is there when this is entered, and gone after."""
    process = await trio.lowlevel.open_process(
        [program],
        stdin=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, **variables},
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.kill()
        await process.wait()
        await process.stdin.aclose()
