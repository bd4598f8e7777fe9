"""`docs/simulation.md` lists the laws and the faults that worlds have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from understudy.testing import world
from understudy.testing.auditor import LAWS
from understudy.testing.faults import ALL

PAGE = Path(__file__).parents[2] / "docs" / "simulation.md"


def table(head: str, rows: list[str]) -> str:
    return "\n".join([head, re.sub(r"[^|]+", " --- ", head), *rows])


def written(page: str) -> str:
    assert world.SLOWED  # Who imports the world has all kinds of faults.
    parts = {
        "laws": table(
            "| law | what it says |",
            [f"| {name} | {said[0].upper()}{said[1:]} |" for name, said in LAWS.items()],
        ),
        "faults": table(
            "| fault | rate | what it befalls, and how |",
            [f"| {each.name} | {each.rate:g} | {each.about} |" for each in ALL.values()],
        ),
    }
    for name, part in parts.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = block.search(page)
        assert found is not None
        page = f"{page[: found.end(1)]}{part}\n{page[found.start(2) :]}"
    return page


def test_the_page_lists_the_laws_and_the_faults(request: pytest.FixtureRequest) -> None:
    page = PAGE.read_text()
    if request.config.getoption("--write-docs"):
        PAGE.write_text(written(page))
    assert written(page) == page or request.config.getoption("--write-docs"), (
        "`make docs` writes it again"
    )


def test_there_are_enough_of_both() -> None:
    assert len(LAWS) >= 30
    assert len(ALL) >= 40
