from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy.store import binaries
from understudy.store.binaries import NoBinaries, available, find_binaries

Install = Callable[[str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a PostgreSQL that knows no more than its version where the system's would be."""

    def put(place: str, version: str) -> Path:
        directory = tmp_path / place / "bin"
        directory.mkdir(parents=True)
        for program in ("postgres", "initdb"):
            script = f"#!/bin/sh\necho '{program} (PostgreSQL) {version} (Fake 1.2.3)'\n"
            (directory / program).write_text(script)
            (directory / program).chmod(0o755)
        return directory

    monkeypatch.delenv("PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(binaries, "PLACES", (f"{tmp_path.relative_to('/')}/system/*/bin",))
    monkeypatch.setattr(binaries, "WHEEL", "no_such_wheel")
    return put


@pytest.fixture
def wheel(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(binaries, "WHEEL", "a_wheel")
    monkeypatch.syspath_prepend(str(tmp_path))
    install("a_wheel/pginstall", "16.14")
    install("a_wheel/pginstall18", "18.4")
    (tmp_path / "a_wheel" / "__init__.py").write_text("raise ImportError('only to be looked at')")
    return "a_wheel"


def test_the_named_directory_wins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("path", "18.1")
    named = install("named", "15.2")
    monkeypatch.setenv("PG_BINDIR", str(named))
    assert find_binaries().directory == named


def test_a_wrong_name_is_an_error_whatever_else_there_is(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("path", "18.1")
    monkeypatch.setenv("PG_BINDIR", str(tmp_path))
    with pytest.raises(NoBinaries, match="PG_BINDIR is"):
        find_binaries()


def test_the_path_comes_first_then_the_newest_of_the_system_then_the_wheel(
    install: Install, wheel: str
) -> None:
    install("system/9", "15.1")
    install("system/17", "17.1")
    install("path", "16.1")
    install("system/18", "18beta1")
    versions = [found.version for found in available()]
    assert versions == ["16.1", "18", "17.1", "15.1", "18.4", "16.14"]


def test_a_program_on_the_path_leads_to_where_it_really_is(
    install: Install, tmp_path: Path
) -> None:
    real = install("system/15", "15.18")
    (tmp_path / "path" / "bin").mkdir(parents=True)
    (tmp_path / "path" / "bin" / "postgres").symlink_to(real / "postgres")
    assert [found.directory for found in available()] == [real]


def test_what_is_too_old_or_broken_is_passed_over(install: Install) -> None:
    install("path", "14.9")
    (install("system/18", "18.1") / "postgres").write_text("#!/bin/sh\nexit 1\n")
    (install("system/17", "17.1") / "postgres").chmod(0o644)
    (install("system/16", "16.1") / "initdb").unlink()
    fit = install("system/15", "15.1")
    assert find_binaries().directory == fit


def test_the_preferred_version_is_looked_for_to_the_end(install: Install, wheel: str) -> None:
    install("path", "15.1")
    assert find_binaries(16).version == "16.14"
    assert find_binaries(17).version == "15.1"


def test_finding_nothing_says_what_to_do(install: Install) -> None:
    with pytest.raises(NoBinaries, match=r"pip install 'understudy\[local\]'.*DATABASE_URL"):
        find_binaries()


def ask_the_command(bindir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "understudy.store.embedded"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PG_BINDIR": str(bindir)},
    )


def test_the_command_prints_the_directory(install: Install) -> None:
    directory = install("named", "15.2")
    answer = ask_the_command(directory)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"{directory}\n", "")


def test_the_command_fails_with_a_sentence(tmp_path: Path) -> None:
    answer = ask_the_command(tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "or unset it." in answer.stderr
    assert "Traceback" not in answer.stderr
