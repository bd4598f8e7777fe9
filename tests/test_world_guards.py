"""The mutants of the simulated world find their places in the code as it is."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from tests.world_guards import MUTANTS, WorldMutant

SOURCE = Path(__file__).parent.parent / "src" / "understudy"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("mutants") / "understudy"
    return copytree(SOURCE, copy, ignore=ignore_patterns("__pycache__"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_finds_the_guard_that_it_breaks(
    mutant: WorldMutant, package: Path
) -> None:
    path = package / mutant.file
    was = path.read_text()
    try:
        mutant.apply(package)
        broken = path.read_text()
    finally:
        path.write_text(was)
    assert broken != was
    if path.suffix == ".py":
        compile(broken, mutant.file, "exec")


def test_no_two_mutants_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
