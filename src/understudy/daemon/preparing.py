"""The wait for a run's directory, under a claim that is renewed meanwhile (R3.4)."""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from understudy.daemon import workspace
from understudy.daemon.hold import Hold
from understudy.daemon.kept import Kept
from understudy.daemon.orders import work_order
from understudy.daemon.rundir import Standing
from understudy.daemon.workshop import Workshop
from understudy.daemon.workspace import WorkDir, WorkDirBusy
from understudy.supervisor import sole
from understudy.wire.daemon import ClaimedTask

BUSY_S: Final = 15.0
"""For a keeper that an earlier daemon has just started to show, or to be gone."""
BUSY_AGAIN_S: Final = 0.1


async def wait_prepared(task: ClaimedTask, hold: Hold, kept: Kept, workshop: Workshop) -> WorkDir:
    """Raises `Disowned`, `PrepareFailed` or `WorkDirBusy`, and never a group."""
    renew = partial(hold.renew_forever, every_s=workshop.leases.renew_every_s)
    work: WorkDir | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            work = await _wait_free(task, kept, workshop)
            nursery.cancel_scope.cancel()
    except BaseException as error:
        if work is not None:
            work.claim.close()
        if isinstance(error, ExceptionGroup):
            raise sole(error) from None
        raise
    return work


async def _wait_free(task: ClaimedTask, kept: Kept, workshop: Workshop) -> WorkDir:
    give_up_at = trio.current_time() + BUSY_S
    while True:
        try:
            return await workspace.prepare(work_order(task), workshop.repositories)
        except WorkDirBusy:
            if kept.look() is not Standing.UNBORN or trio.current_time() > give_up_at:
                raise
        await trio.sleep(BUSY_AGAIN_S)
