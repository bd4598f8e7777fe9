"""task list, show, logs."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import click

from understudy.cli.client import Client, client, quiet_interrupt
from understudy.cli.output import json_option, one_line, show_json, show_table, when

ENDS: Final = {"completed": 0, "failed": 10, "cancelled": 11}


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
            [t["id"], t["status"], t["attempt"], t["provider"], when(t["created_at"]),
             when(t["completed_at"]), t["failure_reason"]]
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
    its, issue = found["task"], found["issue"]
    lines = {
        "issue": issue and f"{issue['key']} {issue['title']}",
        "agent": found["agent"]["name"],
        "runtime": found["runtime"] and found["runtime"]["name"],
        "status": its["status"],
        "attempt": its["attempt"],
        "started": when(its["started_at"]),
        "ended": when(its["completed_at"]),
        "why": its["failure_reason"],
        "error": its["error"],
        "branch": (its["result"] or {}).get("branch_name"),
        "directory": its["work_dir"],
        "session": its["session_id"],
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:>10}  {value}")
    for used in found["usage"]:
        click.echo(f"{'tokens':>10}  {used['model']}: {used['input_tokens']} in, "
                   f"{used['output_tokens']} out")  # fmt: skip


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
