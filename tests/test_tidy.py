"""The style rules no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "understudy").rglob("*.py"))
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 400
FILLER = re.compile(
    r"\b(robust|seamless\w*|comprehensive|leverag\w+|ensure[sd]? that)\b", re.IGNORECASE
)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_file_fits_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_docstrings_do_not_echo_the_name(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            words = set(re.findall(r"[a-z]+", (ast.get_docstring(node) or "").lower()))
            said_already = {*node.name.lower().split("_"), "a", "an", "the", "this", "of", "to"}
            assert not words or words - said_already, node.name


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_prose_has_no_filler(path: Path) -> None:
    assert not FILLER.search(path.read_text())


def test_every_module_is_imported_somewhere() -> None:
    text = "\n".join(path.read_text() for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")])
    for path in SOURCES:
        if path.stem not in {"__init__", "__main__"}:
            assert re.search(rf"\b{path.stem} import\b|import {path.stem}\b", text), path
