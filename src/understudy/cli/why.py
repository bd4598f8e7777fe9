"""why: where a task is, and what would change that (R10.4)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import click

from understudy.cli.client import NOT_FOUND, Client, client, give_up
from understudy.cli.output import json_option, show_json, when
from understudy.cli.words import is_active


@click.command()
@click.argument("task")
@json_option
def why(task: str, *, as_json: bool) -> None:
    """Why TASK is where it is, and what would change that.

    TASK is its id, or the key of an issue: then what is active on it, else its newest run. As JSON
    a task is one object, an issue a list.
    """
    known = client()
    if is_id(task):
        found = known.get(f"/api/tasks/{task}/why")
        show_json(found) if as_json else click.echo("\n".join(sentences(found)))
        return
    all_found = why_issue(known, task)
    if as_json:
        show_json(all_found)
        return
    said = ["\n".join(sentences(found)) for found in all_found]
    if len(all_found) > 1:
        said = [f"task {w['task_id']}\n{text}" for w, text in zip(all_found, said, strict=True)]
    click.echo("\n\n".join(said))


def why_issue(known: Client, key: str) -> list[Any]:
    tasks = known.get(f"/api/issues/{key}")["tasks"]
    if not tasks:
        give_up(f"{key} has no run yet: understudy issue assign {key} AGENT", NOT_FOUND)
    return why_active(known, tasks) or [known.get(f"/api/tasks/{tasks[0]['id']}/why")]


def why_active(known: Client, tasks: list[Any]) -> list[Any]:
    """Of those that have not ended."""
    return [known.get(f"/api/tasks/{each['id']}/why") for each in tasks if is_active(each)]


def sentences(found: Any) -> list[str]:
    said = [found["sentence"]]
    if found["changes"]:
        said.append(f"It changes {found['changes']}.")
    if found["changes_at"]:
        said.append(f"At the latest: {when(found['changes_at'])}.")
    return said


def is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
