"""login, agent, tree."""

from __future__ import annotations

from typing import Any

import click

from understudy.cli import credentials
from understudy.cli.client import Client, client, split_link
from understudy.cli.confided import given_link, variables
from understudy.cli.output import json_option, show_json, show_table


@click.command()
@click.argument("link", required=False)
@json_option
def login(link: str | None, *, as_json: bool) -> None:
    """Print a one-time link for the browser; with a LINK, log this command line in by it.

    With - as LINK it is asked for, or read from stdin: out of sight of `ps` (R9.5).
    """
    if link is None:
        known = client()
        made = known.post("/api/login/links")
        url = known.server + made["path"]
        if as_json:
            show_json({"url": url, "valid_s": made["valid_s"]})
        else:
            click.echo(f"{url}\nGood once, for {made['valid_s'] / 60:.0f} minutes.")
        return
    server, code = split_link(given_link(link))
    key = Client(server, None).post("/api/login", {"code": code})["token"]
    import msgspec

    path = credentials.save(msgspec.structs.replace(credentials.load(), server=server, key=key))
    who = Client(server, key).get("/api/me")
    if as_json:
        show_json(who)
    else:
        click.echo(f"Logged in at {server} as {who['user']['name']}; the key is in {path}.")


@click.group()
def agent() -> None:
    """The named workers of the workspace."""


@agent.command("create", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.option("--provider", required=True, help="claude, command, scripted, …")
@click.option("--instructions", default="", help="What the agent always has to know.")
@click.option("--model", help="The model its CLI is to use.")
@click.option(
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="For its runs; repeat it. NAME alone has the value that it has here, which no `ps` shows.",
)
@click.option(
    "--env-file",
    "env_files",
    multiple=True,
    metavar="FILE",
    help="The same from a file, one in a line; - is stdin.",
)
@click.option("--max-concurrent-tasks", default=6, show_default=True, type=click.IntRange(1, 1000))
@json_option
@click.argument("arguments", nargs=-1)
def create_agent(  # click's
    name: str,
    *,
    arguments: tuple[str, ...],
    env: tuple[str, ...],
    env_files: tuple[str, ...],
    as_json: bool,
    **fields: Any,
) -> None:
    """Make an agent. What stands behind `--` goes to its program: for the command provider it is
    the program and its arguments."""
    body = fields | {
        "name": name,
        "custom_args": list(arguments),
        "custom_env": variables(env, env_files),
    }
    made = client().post("/api/agents", {k: v for k, v in body.items() if v is not None})
    if as_json:
        show_json(made)
    else:
        click.echo(f"{made['name']} works with {made['provider']}.")


@agent.command("list")
@json_option
def list_agents(*, as_json: bool) -> None:
    found = client().get("/api/agents")
    if as_json:
        show_json(found)
        return
    show_table(
        ["name", "provider", "model", "at most", "arguments"],
        [
            [a["name"], a["provider"], a["model"], a["max_concurrent_tasks"],
             " ".join(a["custom_args"])]
            for a in found
        ],
        empty="No agents yet: understudy agent create Nia --provider scripted",
    )  # fmt: skip


@click.command()
@json_option
def tree(*, as_json: bool) -> None:
    """What the server runs: actors, restarts, mailboxes, last crash."""
    root = client().get("/api/tree")
    if as_json:
        show_json(root)
        return
    from rich.console import Console
    from rich.tree import Tree

    drawn = Tree(_node_line(root))
    _grow(drawn, root)
    Console().print(drawn)


def _grow(drawn: Any, node: Any) -> None:
    for child in node["children"]:
        _grow(drawn.add(_node_line(child)), child)
    if node["ended"]:
        drawn.add(f"[dim]{node['ended']} ended[/dim]")


def _node_line(node: Any) -> str:
    parts = [f"[bold]{node['name']}[/bold]"]
    if node["kind"] != "group":
        parts.append(node["state"])
    if node["restarts"]:
        parts.append(f"[yellow]{node['restarts']} restarts[/yellow]")
    if box := node["mailbox"]:
        parts.append(f"mailbox {box['depth']}/{box['size']}, {box['handled']} handled")
    if crash := node["last_crash"]:
        parts.append(f"[red]{crash['error']} {crash['ago_s']:.0f} s ago: {crash['message']}[/red]")
    return "  ".join(parts)
