"""The daemon tidies up every hour, and tells how much of the disk it uses (R8.6)."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import trio

from understudy.daemon.collection import Collection, Deleted
from understudy.daemon.link import Link
from understudy.daemon.outcomes import LinkLost, LinkRefused
from understudy.daemon.workshop import Workshop
from understudy.wire.daemon import GcCheck, Nothing, TaskStatus

logger = logging.getLogger(__name__)

FIRST_S: Final = 60.0
"""A daemon that has just come back has more urgent things to do."""
EVERY_S: Final = 3600.0
GONE: Final = 404


async def tidy_forever(home: Path, shop: Workshop, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep(FIRST_S)
    while True:
        await tidy(home, shop)
        await trio.sleep(EVERY_S)


async def tidy(home: Path, shop: Workshop) -> None:
    """`home` is the daemon's own directory."""
    git, ask = shop.repositories.git, partial(_ask, shop.link)
    done = await Collection(home, git, shop.workspace_id, shop.limits.kept_s, ask).go()
    removed = [each for each in (*done.judged, *done.caches) if each.is_removed]
    if removed:
        size = sum(each.size for each in removed)
        logger.info("%s old directories were removed: %s MiB", len(removed), size >> 20)
    shop.disk = done.disk
    shop.changed()


async def _ask(link: Link, name: str, subject: UUID) -> GcCheck | TaskStatus | None:
    try:
        answer = await link.call(name, Nothing(), subject)
    except LinkRefused as refused:
        if refused.refusal.status == GONE:
            raise Deleted from None
        return None
    except LinkLost:
        return None
    assert isinstance(answer, GcCheck | TaskStatus)
    return answer
