"""What PostgreSQL did for a call of the store: the plan of each statement, inside functions too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from psycopg.pq import DiagnosticField
from psycopg.pq.abc import PGresult

from understudy.store.connection import Connection, open_connection

EXPLAIN: Final = """
    load 'auto_explain';
    set auto_explain.log_nested_statements = on;
    set auto_explain.log_analyze = on;
    set auto_explain.log_buffers = on;
    set auto_explain.log_timing = off;
    set auto_explain.log_format = json;
    set client_min_messages = log;
    set auto_explain.log_min_duration = 0;
"""


@dataclass(frozen=True)
class Scan:
    """`pages` is what the node and those below it touched; `rows` are those it looked at itself."""

    kind: str
    table: str
    index: str | None
    pages: int
    rows: int


@dataclass(frozen=True)
class Plan:
    statement: str
    pages: int
    scans: list[Scan]


@final
@dataclass
class Plans:
    """Of one session: everything since the last `take`."""

    _kept: list[Plan] = field(default_factory=list)

    async def open_connection(self, dsn: str, options: Mapping[str, str]) -> Connection:
        """Raises `UndefinedFile` where the server comes without auto_explain."""
        connection = await open_connection(dsn, options=options)
        await connection.run_script(EXPLAIN)
        connection._pgconn.notice_handler = self._hear  # noqa: SLF001  Nobody else wants notices.
        return connection

    def take(self) -> list[Plan]:
        kept, self._kept = self._kept, []
        return kept

    def _hear(self, notice: PGresult) -> None:
        said = (notice.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"").decode()
        if said.startswith("duration: "):
            found = json.loads(said.partition("plan:")[2])
            plan = found["Plan"]
            self._kept.append(Plan(found["Query Text"], _pages(plan), list(_scans(plan))))


def _scans(node: dict[str, Any]) -> Iterator[Scan]:
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        passed = node["Actual Rows"]
        dropped = sum(value for key, value in node.items() if key.startswith("Rows Removed by"))
        yield Scan(
            kind=node["Node Type"],
            table=node["Relation Name"],
            index=node.get("Index Name"),
            pages=_pages(node),
            rows=round((passed + dropped) * node["Actual Loops"]),
        )
    for below in node.get("Plans", ()):
        yield from _scans(below)


def _pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])
