"""The limits of runs, as they are set on the command line and in the environment (R4.10)."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from understudy.cli.limits import SETTINGS, Setting, limit_arguments, limit_options
from understudy.core.limits import Limits


def given(*arguments: str, **environment: str) -> Limits:
    got: list[Limits] = []

    @click.command()
    @limit_options
    def command(*, limits: Limits) -> None:
        got.append(limits)

    done = CliRunner(env=environment).invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return got[0]


def test_what_is_not_set_is_as_the_rules_say() -> None:
    """R4.10"""
    assert given() == Limits()
    assert limit_arguments(given()) == []


def test_each_limit_is_a_setting() -> None:
    assert {each.field for each in SETTINGS} == set(Limits.__dataclass_fields__)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.flag)
def test_a_limit_is_set_by_its_flag_or_its_variable_and_handed_on_whole(
    setting: Setting,
) -> None:
    """R4.10"""
    limits = given(setting.flag, "1234567")
    assert getattr(limits, setting.field) == 1234567 * setting.unit
    assert given(**{setting.variable: "1234567"}) == limits
    assert given(*limit_arguments(limits)) == limits


def test_a_patience_below_six_minutes_is_six_minutes() -> None:
    """R4.10"""
    assert given("--stalled-after", "10").silence_s == 360
