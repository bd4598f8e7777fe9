"""Every move of `schema.sql`, 7.1 to 7.5 and 7.7, interrupted at each of its writes (R2.3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from psycopg.errors import RaiseException

from understudy.core.records import Usage
from understudy.store import issues, tasks
from understudy.testing.story import TABLES, Story, held
from understudy.wire.daemon import ClaimedTask

Act = Callable[[], Awaitable[Any]]

INTERRUPT = """
    create or replace function public.interrupt() returns trigger language plpgsql as $$
    declare
      writes_left int := nullif(current_setting('test.writes_left', true), '')::int;
    begin
      if writes_left = 0 then
        raise exception 'interrupted after % of %', tg_op, tg_table_name;
      end if;
      perform set_config('test.writes_left', (writes_left - 1)::text, false);
      return null;
    end $$;
""" + "".join(
    f"create or replace trigger zz_interrupt after insert or update or delete"
    f" on understudy.{table} for each row execute function public.interrupt();"
    for table in TABLES
)
FREE = "".join(f"drop trigger zz_interrupt on understudy.{table};" for table in TABLES)
INTERRUPT_AT = "select set_config('test.writes_left', $1, false)"


@pytest.fixture
async def interrupted(story: Story) -> AsyncIterator[Story]:
    async with story.database.pool.connection() as connection:
        await connection.run_script(INTERRUPT)
    yield story
    async with story.database.pool.connection() as connection:
        await connection.run_script(FREE)


async def called_while_it_runs(story: Story) -> ClaimedTask:
    """A run of Nia: told one comment, with another that waits for its end."""
    await story.board.agent("Zed")
    issue = await story.assigned()
    await story.says(issue, "@Nia one")
    await story.later(1)
    claim = await story.running(issue)
    await story.says(issue, "@Nia two")
    await story.later(1)
    return claim


async def issue_of(story: Story, claim: ClaimedTask) -> Any:
    assert claim.issue_id is not None
    return await issues.get(story.database, claim.workspace_id, claim.issue_id)


async def assign(story: Story) -> Act:
    return partial(story.board.assign, await story.board.issue("A thing"))


async def leave_the_backlog(story: Story) -> Act:
    issue = await story.board.issue("A thing", status="backlog")
    await story.board.assign(issue)
    return partial(issues.set_status, story.database, issue.workspace_id, issue.id, "todo")


async def comment(story: Story) -> Act:
    """One joins, one waits, one starts."""
    claim = await called_while_it_runs(story)
    await story.board.agent("Yan")
    issue = await issue_of(story, claim)
    await story.says(issue, "@Yan go")
    return partial(story.says, issue, "@Nia @Zed @Yan look")


async def claim_and_requeue(story: Story) -> Act:
    await story.board.agent("Zed")
    issue = await story.assigned()
    await story.claimed()
    await story.says(issue, "@Zed go")
    await story.later(61)
    return partial(story.claim, slots=5)


async def start(story: Story) -> Act:
    await story.assigned()
    return partial(tasks.start, story.database, held(await story.claimed()))


async def complete(story: Story) -> Act:
    """With a comment that calls another, and the answer to who called meanwhile."""
    return partial(story.complete, await called_while_it_runs(story), "Done. @Zed, look.")


async def complete_late(story: Story) -> Act:
    claim = await called_while_it_runs(story)
    await story.give_up()
    await story.claimed()
    return partial(story.complete, claim, "Done. @Zed, look.")


async def keep_a_late_result(story: Story) -> Act:
    claim = await called_while_it_runs(story)
    await story.give_up()
    await story.running(await issue_of(story, claim))
    return partial(story.complete, claim)


async def fail_with_a_retry(story: Story) -> Act:
    claim = await called_while_it_runs(story)
    told: dict[str, Any] = {"session_id": "s2", "refused_session": "s1", "retry_after_s": 60.0}
    return partial(story.fail, claim, "quota_exhausted", **told)


async def fail_without(story: Story) -> Act:
    return partial(story.fail, await called_while_it_runs(story), "auth")


async def recover(story: Story) -> Act:
    await called_while_it_runs(story)
    await story.assigned("Another")
    await story.claimed()
    await story.later(1)
    return story.give_up


async def cancel_at_once(story: Story) -> Act:
    issue = await story.assigned()
    claim = await story.claimed()
    await story.says(issue, "@Nia two")
    return partial(story.cancel, claim.id)


async def request_to_stop(story: Story) -> Act:
    return partial(story.cancel, (await story.running()).id)


async def confirm_stop(story: Story) -> Act:
    claim = await called_while_it_runs(story)
    await story.cancel(claim.id)
    return partial(story.stop, claim)


async def cancel_issue(story: Story) -> Act:
    claim = await called_while_it_runs(story)
    issue = await issue_of(story, claim)
    await story.says(issue, "@Zed go")
    by = story.board.user_id
    return partial(tasks.cancel_issue, story.database, issue.workspace_id, issue.id, by=by)


async def rerun(story: Story) -> Act:
    """What waits behind a run is replaced; and there is quota again."""
    claim = await called_while_it_runs(story)
    issue = await issue_of(story, claim)
    await story.rerun(issue, after=True)
    await story.database.pool.execute("update understudy.runtimes set quota_resets_at = '2099-1-1'")
    return partial(story.rerun, issue)


async def refuse_a_session(story: Story) -> Act:
    claim = await story.running()
    pin = partial(tasks.pin_session, story.database, held(claim), work_dir="/w")
    await pin(session_id="s1")
    return partial(pin, session_id="s2", refused_session="s1")


async def speak(story: Story) -> Act:
    return partial(story.tell, await story.running(), "x")


async def bill(story: Story) -> Act:
    bill = [Usage(provider="p", model=model, input_tokens=1) for model in ("a", "b")]
    return partial(tasks.report_usage, story.database, held(await story.running()), bill)


ACTS: dict[str, tuple[Callable[[Story], Awaitable[Act]], int]] = {
    "assign": (assign, 4),
    "leave_the_backlog": (leave_the_backlog, 4),
    "comment": (comment, 7),
    "claim_and_requeue": (claim_and_requeue, 7),
    "start": (start, 4),
    "complete": (complete, 11),
    "complete_late": (complete_late, 13),
    "keep_a_late_result": (keep_a_late_result, 1),
    "fail_with_a_retry": (fail_with_a_retry, 9),
    "fail_without": (fail_without, 6),
    "recover": (recover, 9),
    "cancel_at_once": (cancel_at_once, 5),
    "request_to_stop": (request_to_stop, 2),
    "confirm_stop": (confirm_stop, 6),
    "cancel_issue": (cancel_issue, 6),
    "rerun": (rerun, 8),
    "refuse_a_session": (refuse_a_session, 3),
    "speak": (speak, 1),
    "bill": (bill, 2),
}
"""Each with the least number of its writes: a test that interrupts nothing proves nothing."""


@pytest.mark.parametrize("name", ACTS)
async def test_a_move_that_is_interrupted_at_any_write_leaves_nothing_half_done(
    interrupted: Story, name: str
) -> None:
    """R2.3, R2.4, R5.4"""
    story, (arrange, writes_least) = interrupted, ACTS[name]
    act = await arrange(story)
    before = await story.everything()
    writes = 0
    while await is_interrupted(story, act, writes):
        writes += 1
        assert await story.everything() == before
    assert writes >= writes_least
    assert await story.everything() != before


async def is_interrupted(story: Story, act: Act, writes: int) -> bool:
    await story.database.pool.fetchval(INTERRUPT_AT, str(writes))
    try:
        await act()
    except RaiseException as error:
        assert "interrupted" in str(error)  # noqa: PT017  # The loop goes on with the next write.
        return True
    finally:
        await story.database.pool.fetchval(INTERRUPT_AT, "")
    return False
