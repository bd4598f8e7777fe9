"""runtime list, ping, remove."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from understudy.cli.client import AWAY, NOT_FOUND, USAGE, Client, client, give_up
from understudy.cli.output import json_option, show_json, show_table, when

PING_S: Final = 30.0
"""A daemon that only asks hears of a ping with its next heartbeat, 15 s later at most."""
POLL_S: Final = 0.05
POLL_S_MAX: Final = 1.0
CALLED_ALIKE: Final = "{count} runtimes are called {name}: give an id, one of {ids}"


@click.group()
def runtime() -> None:
    """The machines, and the agent CLIs they offer."""


@runtime.command("list")
@json_option
def list_runtimes(*, as_json: bool) -> None:
    found = client().get("/api/runtimes")
    if as_json:
        show_json(found)
        return
    show_table(
        ["runtime", "provider", "version", "status", "since", "problem"],
        [
            [r["name"], r["provider"], r["device_info"], r["status"],
             when(r["offline_since"] or r["online_since"] or r["last_seen_at"]), _problem(r)]
            for r in found
        ],
        empty="No machines yet: `understudy up` starts a daemon here, `understudy join` on others.",
    )  # fmt: skip


def _problem(row: Any) -> str | None:
    quota = row["quota_resets_at"]
    return row["problem"] or (quota and f"quota is used up until {when(quota)}")


@runtime.command()
@click.argument("name")
@json_option
def ping(name: str, *, as_json: bool) -> None:
    """How long the daemon of a runtime takes to answer; NAME is its name or id, or mac/claude."""
    known = client()
    row = _find(known, name)
    asked = f"/api/runtimes/{row['id']}/pings"
    sent = known.post(asked)
    round_trip_s = _answer(known, f"{asked}/{sent['ping_id']}")
    if round_trip_s is None:
        give_up(f"{row['name']} did not answer within {PING_S:.0f} s", AWAY)
    if as_json:
        show_json({"runtime_id": row["id"], "name": row["name"], "round_trip_s": round_trip_s})
    else:
        click.echo(f"{row['name']} answered in {round_trip_s * 1000:.0f} ms.")


def _answer(known: Client, path: str) -> float | None:
    """None when the time is over."""
    deadline, pause_s = time.monotonic() + PING_S, POLL_S
    while time.monotonic() < deadline:
        found = known.get(path)
        if found["is_answered"] and found["round_trip_s"] is not None:
            return float(found["round_trip_s"])
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, POLL_S_MAX)
    return None


@runtime.command()
@click.argument("name")
@json_option
def remove(name: str, *, as_json: bool) -> None:
    """Take a runtime off the list; NAME is its name or id. Its runs stay in the history."""
    known = client()
    removed = known.delete(f"/api/runtimes/{_find(known, name)['id']}")
    if as_json:
        show_json(removed)
    else:
        click.echo(f"{removed['name']} is removed. It is back when its daemon registers again.")


def _find(known: Client, name: str) -> Any:
    rows = known.get("/api/runtimes")
    meant = [row for row in rows if name.lower() in _names(row)]
    if not meant:
        give_up(f"runtime {name} not found: understudy runtime list", NOT_FOUND)
    if len(meant) > 1:
        ids = ", ".join(row["id"] for row in meant)
        give_up(CALLED_ALIKE.format(count=len(meant), name=name, ids=ids), USAGE)
    return meant[0]


def _names(row: Any) -> set[str]:
    """`mac/claude` is what `understudy why` calls it."""
    place = f"{row['device_name']}/{row['provider']}"
    return {row["id"], row["name"].lower(), place.lower()}
