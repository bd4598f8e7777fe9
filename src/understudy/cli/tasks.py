"""task list, show, logs, cancel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from understudy.cli.client import Client, client, quiet_interrupt
from understudy.cli.output import json_option, one_line, show_json, show_table, when
from understudy.cli.words import attempt_of, history_of, is_active, reason_of, status_of

ENDS: Final = {"completed": 0, "failed": 10, "cancelled": 11}
CANCELLED: Final = {
    ("moved", "cancelled"): "Task {id} is cancelled.",
    ("requested", "running"): "Task {id} is being cancelled: its machine stops the agent first.",
    ("replayed", "running"): "Task {id} is being cancelled already.",
    ("replayed", "cancelled"): "Task {id} was cancelled already.",
}


@click.group()
def task() -> None:
    """Runs: one attempt of one agent at one trigger each."""


@task.command("list")
@json_option
def list_tasks(*, as_json: bool) -> None:
    found = client().get("/api/tasks")
    if as_json:
        show_json(found)
        return
    show_table(
        ["task", "status", "attempt", "provider", "created", "ended", "why"],
        [
            [t["id"], status_of(t), attempt_of(t), t["provider"], when(t["created_at"]),
             when(t["completed_at"]), reason_of(t)]
            for t in found
        ],
        empty="No runs yet: assign an issue to an agent.",
    )  # fmt: skip


@task.command()
@click.argument("task_id")
@json_option
def show(task_id: str, *, as_json: bool) -> None:
    """One run: where it is, what it cost, how it ended."""
    found = client().get(f"/api/tasks/{task_id}")
    if as_json:
        show_json(found)
        return
    for name, value in _facts(found):
        if value:
            click.echo(f"{name:>10}  {value}")
    for used in found["usage"]:
        click.echo(f"{'tokens':>10}  {used['model']}: {used['input_tokens']} in, "
                   f"{used['output_tokens']} out")  # fmt: skip


def _facts(found: Any) -> Iterator[tuple[str, str | None]]:
    its, issue, why = found["task"], found["issue"], found["why"]
    yield "issue", issue and f"{issue['key']} {issue['title']}"
    yield "agent", found["agent"]["name"]
    yield "runtime", found["runtime"] and found["runtime"]["name"]
    yield "status", status_of(its)
    yield "attempt", attempt_of(its)
    yield from history_of(its)
    yield "started", when(its["started_at"])
    yield "ended", when(its["completed_at"])
    if is_active(its):
        yield "why", why["sentence"]
        yield "changes", why["changes"]
    yield "reason", reason_of(its)
    yield "error", its["error"]
    yield "branch", (its["result"] or {}).get("branch_name")
    yield "directory", its["work_dir"]
    yield "session", its["session_id"]


@task.command()
@click.argument("task_id")
@json_option
def cancel(task_id: str, *, as_json: bool) -> None:
    """Stop a run, or keep one that waits from starting."""
    done = client().post(f"/api/tasks/{task_id}/cancel")
    show_json(done) if as_json else say_cancelled(done)


def say_cancelled(done: Any) -> None:
    click.echo(CANCELLED[done["outcome"], done["task"]["status"]].format_map(done["task"]))


@task.command()
@click.argument("task_id")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Until the run ends.")
@json_option
def logs(task_id: str, *, is_followed: bool, as_json: bool) -> None:
    """What the agent said and did."""
    known = client()
    if is_followed:
        with quiet_interrupt():
            sys.exit(follow(known, task_id, as_json=as_json))
    after = -1
    while found := known.get(f"/api/tasks/{task_id}/messages", after=after):
        for message in found:
            _say(message, as_json=as_json)
        after = found[-1]["seq"]


def follow(known: Client, task_id: str, *, as_json: bool) -> int:
    """Print the run's messages as they come; the exit code that tells how it ended."""
    for kind, data in known.events(f"/api/tasks/{task_id}/stream"):
        if kind == "task:message":
            _say(data, as_json=as_json)
        elif kind == "end":
            return _end(data, as_json=as_json)
    return 1


def _end(ended: Any, *, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(ended))
    else:
        why = ", ".join(filter(None, [ended["failure_reason"], ended["error"]]))
        click.echo(f"{ended['status']}: {why}" if why else ended["status"])
    return ENDS[ended["status"]]


def _say(message: Any, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(message, ensure_ascii=False))
        return
    match message["type"]:
        case "tool_use":
            click.secho(f"▸ {message['tool']} {one_line(json.dumps(message['input']))}", fg="cyan")
        case "tool_result":
            click.secho(f"  {one_line(message['output'] or '')}", dim=True)
        case "thinking":
            click.secho(message["content"], dim=True, italic=True)
        case "error":
            click.secho(message["content"], fg="red")
        case _:
            click.echo(message["content"])
