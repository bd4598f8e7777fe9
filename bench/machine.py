"""What this machine is, and what its processes have cost so far."""

from __future__ import annotations

import os
from math import nan
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")


def cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Linux only.
        return os.cpu_count() or 1


def load() -> float:
    """Of the last minute: a busy machine shows in every figure."""
    return os.getloadavg()[0]


def cpu_s(pid: int) -> float:
    """User and system time of a process; nan where the kernel does not say (no /proc)."""
    fields = _stat(pid)
    return nan if fields is None else _seconds(fields[11:13])


def family_cpu_s(pid: int) -> float:
    """Of a process and its children, those that have ended too: PostgreSQL and its backends."""
    while (parent := _stat(pid)) is not None:
        children = sum(_seconds(fields[11:13]) for fields in _children(pid))
        again = _stat(pid)
        if again is not None and again[13:15] == parent[13:15]:
            return _seconds(parent[11:15]) + children
        # One ended meanwhile: it may have been counted twice, or not at all.
    return nan


def _children(pid: int) -> list[list[str]]:
    entries = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [fields for each in entries if (fields := _stat(each)) and fields[1] == str(pid)]


def _stat(pid: int) -> list[str] | None:
    """The fields behind the name, which may hold spaces and brackets."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _seconds(ticks: list[str]) -> float:
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
