"""`docs/lifecycle.md` is written from the tables that the program goes by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from understudy.core.failures import POLICIES, policies_markdown
from understudy.core.lifecycle import MOVES, moves_diagram, moves_markdown

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def written(page: str) -> str:
    parts = {
        "diagram": f"```mermaid\n{moves_diagram()}\n```",
        "moves": moves_markdown(),
        "failures": policies_markdown(),
    }
    for name, part in parts.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = block.search(page)
        assert found is not None
        page = f"{page[: found.end(1)]}{part}\n{page[found.start(2) :]}"
    return page


def test_the_page_says_what_the_program_does(request: pytest.FixtureRequest) -> None:
    """R2.2, R5.1"""
    page = PAGE.read_text()
    if request.config.getoption("--write-docs"):
        PAGE.write_text(written(page))
    assert written(page) == page or request.config.getoption("--write-docs"), (
        "`make docs` writes it again"
    )


def test_every_move_and_every_reason_has_its_row() -> None:
    """R2.2, R5.1"""
    assert len(moves_markdown().splitlines()) == 2 + len(MOVES)
    assert len(policies_markdown().splitlines()) == 2 + len(POLICIES)
    arrows = sum(max(1, len(rule.leaves)) for rule in MOVES.values())
    assert len(moves_diagram().splitlines()) == 1 + arrows
