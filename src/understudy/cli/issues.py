"""issue create, list, show, assign, comment, move, rerun, cancel, watch."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from understudy.cli.client import NOT_FOUND, Client, client, give_up, quiet_interrupt
from understudy.cli.output import json_option, one_line, show_json, show_table, when
from understudy.cli.tasks import follow, say_cancelled
from understudy.cli.why import is_id, sentences, why_active
from understudy.cli.words import CALLED, history_of, line_of

PRIORITIES: Final = {"none": 0, "low": 1, "medium": 2, "high": 3, "urgent": 4}
STATUSES: Final = ["backlog", "todo", "in_progress", "in_review", "done", "cancelled"]
OUTCOMES: Final = {
    "created": "{key} is on the board.",
    "enqueued": "{key} is assigned to {who}; task {task} is queued.",
    "assigned": "{key} is assigned to {who}. It starts when the issue leaves the backlog.",
    "unchanged": "{who} is on {key} already; nothing was started.",
    "pending": "{key} is assigned to {who}; a task of theirs waits already.",
    "self": "{key} is assigned to {who}, whose run this is; nothing was started.",
    "too_many_hops": "{key} is assigned to {who}; nothing was started:"
    " agents have called one another too often.",
}


@click.group()
def issue() -> None:
    """Pieces of work."""


@issue.command()
@click.argument("title")
@click.option(
    "-d", "--description", default="", help="What is to be done; `-` reads it from stdin."
)
@click.option("--repository", help="A path or URL; the workspace's by default.")
@click.option("--agent", help="Assign at once.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), default="none")
@click.option("--status", type=click.Choice(STATUSES), default="todo")
@click.option("--watch", "is_watched", is_flag=True, help="Follow its run; needs --agent.")
@json_option
def create(
    *, as_json: bool, is_watched: bool, priority: str, description: str, **fields: Any
) -> None:
    """Put an issue on the board."""
    from understudy.cli.paths import as_repository

    if description == "-":
        description = sys.stdin.read()
    fields["repository"] = as_repository(fields["repository"])
    body = fields | {"priority": PRIORITIES[priority], "description": description}
    known = client()
    made = known.post("/api/issues", {k: v for k, v in body.items() if v is not None})
    _tell(made, as_json=as_json)
    if is_watched and made["task"]:
        with quiet_interrupt():
            sys.exit(follow(known, made["task"]["id"], as_json=as_json))


def _tell(made: Any, *, as_json: bool) -> None:
    if as_json:
        show_json(made)
        return
    task = made["task"] or {}
    sentence = OUTCOMES[made["outcome"]].format(
        key=made["issue"]["key"], who=made["issue"]["assignee_name"], task=task.get("id")
    )
    click.echo(sentence)


@issue.command("list")
@json_option
def list_issues(*, as_json: bool) -> None:
    found = client().get("/api/issues")
    if as_json:
        show_json(found)
        return
    show_table(
        ["key", "status", "title", "assignee", "changed"],
        [
            [i["key"], i["status"], one_line(i["title"], 60), i["assignee_name"],
             when(i["updated_at"])]
            for i in found
        ],
        empty='No issues yet: understudy issue create "Write it down" --agent Nia',
    )  # fmt: skip


@issue.command()
@click.argument("key")
@json_option
def show(key: str, *, as_json: bool) -> None:
    """One issue, its runs and what was said."""
    known = client()
    found = known.get(f"/api/issues/{key}")
    found["why"] = why_active(known, found["tasks"])
    if as_json:
        show_json(found)
        return
    its = found["issue"]
    click.echo(f"{its['key']}  {its['title']}\n{its['status']}, {its['assignee_name'] or 'nobody'}")
    if its["description"]:
        click.echo(f"\n{its['description']}")
    why = {each["task_id"]: each for each in found["why"]}
    for task in reversed(found["tasks"]):
        click.echo(f"\n{line_of(task)}")
        said = [f"{name} {what}" for name, what in history_of(task)]
        for line in said + (sentences(why[task["id"]]) if task["id"] in why else []):
            click.echo(f"  {line}")
    for comment in found["comments"]:
        click.echo(f"\n{comment['author_name']}, {when(comment['created_at'])}:\n{comment['body']}")


@issue.command()
@click.argument("key")
@click.argument("agent")
@json_option
def assign(key: str, agent: str, *, as_json: bool) -> None:
    """Give the issue KEY to AGENT, which starts a task."""
    _tell(client().post(f"/api/issues/{key}/assign", {"agent": agent}), as_json=as_json)


@issue.command()
@click.argument("key")
@click.argument("text")
@json_option
def comment(key: str, text: str, *, as_json: bool) -> None:
    """Say TEXT on the issue KEY; `-` reads it from stdin.

    `@Name` calls that agent; a person who names none calls the agent that is assigned.
    """
    body = sys.stdin.read() if text == "-" else text
    said = client().post(f"/api/issues/{key}/comments", {"body": body})
    if as_json:
        show_json(said)
        return
    click.echo(f"{said['author_name']} said it on {key}.")
    for called in said["called"]:
        click.echo(CALLED[called["outcome"]].format_map(called))


@issue.command()
@click.argument("key")
@click.option("--fresh", is_flag=True, help="In a new session of its CLI.")
@click.option("--after", is_flag=True, help="Behind what runs now, instead of cancelling it.")
@click.option("--task", "task_id", help="The agent of this run, not the one that is assigned.")
@json_option
def rerun(key: str, *, fresh: bool, after: bool, task_id: str | None, as_json: bool) -> None:
    """Run the issue KEY again; what its agent has in hand there is cancelled first."""
    if task_id is not None and not is_id(task_id):
        raise click.BadParameter(f"{task_id} is not the id of a task", param_hint="--task")
    body = {"fresh": fresh, "after": after, "task_id": task_id}
    made = client().post(f"/api/issues/{key}/rerun", body)
    if as_json:
        show_json(made)
    else:
        click.echo(f"{key} runs again; task {made['id']} is {made['status']}.")


@issue.command()
@click.argument("key")
@json_option
def cancel(key: str, *, as_json: bool) -> None:
    """Cancel the issue KEY and everything that runs or waits on it."""
    done = client().post(f"/api/issues/{key}/cancel")
    if as_json:
        show_json(done)
        return
    click.echo(f"{done['issue']['key']} is {done['issue']['status']}.")
    for each in done["tasks"]:
        say_cancelled(each)


@issue.command()
@click.argument("key")
@click.argument("status", type=click.Choice(STATUSES), metavar="COLUMN")
@json_option
def move(key: str, status: str, *, as_json: bool) -> None:
    """Move the issue KEY to another COLUMN; leaving the backlog starts its agent.

    The columns are backlog, todo, in_progress, in_review, done and cancelled.
    """
    moved = client().patch(f"/api/issues/{key}", {"status": status})
    if as_json:
        show_json(moved)
    else:
        click.echo(f"{moved['issue']['key']} is {moved['issue']['status']}.")


@issue.command()
@click.argument("key")
@json_option
def watch(key: str, *, as_json: bool) -> None:
    """Follow the newest run of KEY to its end; the exit code is how it ended."""
    known = client()
    task = _newest_task(known, key)
    with quiet_interrupt():
        sys.exit(follow(known, task, as_json=as_json))


def _newest_task(known: Client, key: str) -> str:
    found = known.get(f"/api/issues/{key}")["tasks"]
    if not found:
        give_up(f"{key} has no run yet: understudy issue assign {key} AGENT", NOT_FOUND)
    newest: str = found[0]["id"]
    return newest
