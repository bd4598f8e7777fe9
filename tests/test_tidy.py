"""The style rules no linter knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    named = {name for path in files for name in _imported(ast.parse(path.read_text()))}
    unused = [path for path in SOURCES if path.stem not in named | {"__init__", "__main__"}]
    assert not unused


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                yield module.rpartition(".")[2]
                yield from (alias.name for alias in names)
            case ast.Import(names=names):
                yield from (alias.name.rpartition(".")[2] for alias in names)
            # The command line names its modules in a table and imports them when they are needed.
            case ast.Constant(value=str(text)) if text.startswith("understudy."):
                yield text.rpartition(".")[2]
