"""`understudy gc`: the directories that nobody needs any more, removed; and why the others stay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from understudy.cli import credentials
from understudy.cli.client import AWAY, UnspokenProxy, give_up, open_http
from understudy.cli.credentials import MachineKey
from understudy.cli.limits import DAY_S, DEFAULTS
from understudy.cli.output import json_option, show_json, show_table

if TYPE_CHECKING:
    from understudy.daemon.collection import Ask, Judged, Pass
    from understudy.daemon.disk import DiskUse

ANSWER_S: Final = 10.0
GONE: Final = 404
UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
UNIT: Final = 1024


@click.command()
@click.option("--explain", is_flag=True, help="Say of each directory why it goes or stays.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Remove nothing.")
@click.option(
    "--keep-days",
    default=DEFAULTS.kept_s / DAY_S,
    show_default=True,
    type=click.FloatRange(0),
    envvar="UNDERSTUDY_DAEMON_KEEP_DAYS",
    help="Keep the directory of a closed issue for so many days.",
)
@json_option
def gc(*, explain: bool, is_dry: bool, keep_days: float, as_json: bool) -> None:
    """Remove the work directories of closed issues, as the daemon does by itself every hour.

    What they alone hold is kept as a commit first. What is in use, or of an issue that the server
    cannot be asked about, stays. Copies of repositories go that hold nothing of their own.
    """
    import trio

    try:
        done = trio.run(_collect, keep_days * DAY_S, is_dry)
    except UnspokenProxy as unspoken:
        give_up(str(unspoken), AWAY)
    if as_json:
        show_json(_as_json(done, is_dry=is_dry))
        return
    if explain:
        rows = [[_word(each), kind, _amount(each.size), each.path, each.verdict.reason]
                for kind, each in _by_class(done)]  # fmt: skip
        header = ["", "class", "size", "directory", "why"]
        show_table(header, rows, empty="There are no work directories.")
    click.echo(_summary([*done.judged, *done.caches], is_dry=is_dry, is_explained=explain))
    if explain:
        click.echo(in_words(done.disk))


async def _collect(kept_s: float, is_dry: bool) -> Pass:  # noqa: FBT001  trio.run has no keywords.
    import httpx2

    from understudy.daemon.collection import Collection
    from understudy.daemon.git import Git

    machine, home = credentials.load().machine, credentials.home().daemon
    machine = machine or MachineKey(server="http://127.0.0.1", key="", workspace_id="")
    headers = {"Authorization": f"Bearer {machine.key}"}
    client = open_http(httpx2.AsyncClient, machine.server, headers=headers, timeout=ANSWER_S)
    async with client as http:
        git = Git(os.environ)
        collection = Collection(home, git, machine.workspace_id, kept_s, _asking(http))
        return await collection.go(is_dry=is_dry)


def _asking(http: Any) -> Ask:
    import httpx2
    import msgspec

    from understudy.daemon.collection import Deleted
    from understudy.wire.daemon import CALLS, GcCheck, TaskStatus

    async def ask(name: str, subject: UUID) -> GcCheck | TaskStatus | None:
        shape = CALLS[name]
        try:
            answer = await http.get(shape.path.replace("<subject>", str(subject)))
        except httpx2.TransportError:
            return None
        if answer.status_code == GONE:
            raise Deleted
        if not answer.is_success:
            return None
        told: GcCheck | TaskStatus = msgspec.json.decode(answer.content, type=shape.answer)
        return told

    return ask


def _by_class(done: Pass) -> Iterator[tuple[str, Judged]]:
    yield from (("work", each) for each in done.judged)
    yield from (("repository", each) for each in done.caches)


def _word(one: Judged) -> str:
    from understudy.daemon.collection import Keep

    if isinstance(one.verdict, Keep):
        return "keep"
    return "removed" if one.is_removed else "remove"


def _summary(judged: list[Judged], *, is_dry: bool, is_explained: bool) -> str:
    going = [each for each in judged if _word(each) != "keep"]
    gone = going if is_dry else [each for each in going if each.is_removed]
    kept, left = len(judged) - len(going), len(going) - len(gone)
    would = "would be " if is_dry else ""
    size = _amount(sum(each.size for each in gone))
    parts = [f"{len(gone)} {would}removed, {size}", f"{kept} kept"]
    parts += [f"{left} left for the next pass"] if left else []
    hint = "" if is_explained or not kept else " `understudy gc --explain --dry-run` says why."
    return f"Directories: {'; '.join(parts)}.{hint}"


def in_words(disk: DiskUse) -> str:
    """What lies on this machine's disk, by what it is for."""
    return (
        f"On disk: work directories {_amount(disk.work)}, repositories {_amount(disk.caches)},"
        f" output of runs {_amount(disk.spools)}, outbox {_amount(disk.outbox)}."
    )


def _amount(size: float) -> str:
    for unit in UNITS:
        if size < UNIT or unit == UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == UNITS[0] else f"{size:.1f} {unit}"
        size /= UNIT
    raise AssertionError(size)


def _as_json(done: Pass, *, is_dry: bool) -> dict[str, Any]:
    import msgspec

    directories = [
        {
            "class": kind,
            "path": each.path,
            "size": each.size,
            "verdict": "keep" if _word(each) == "keep" else "remove",
            "reason": each.verdict.reason,
            "removed": each.is_removed,
        }
        for kind, each in _by_class(done)
    ]
    disk = msgspec.to_builtins(done.disk)
    return {"dry_run": is_dry, "directories": directories, "disk": disk}
