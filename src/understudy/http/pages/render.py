"""Templates to HTML: one environment, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import final

import jinja2

from understudy.core.records import Agent, Priority
from understudy.core.words import time_of_day
from understudy.http.pages import words
from understudy.http.pages.assets import load_templates
from understudy.http.pages.prose import marked, prose


@final
class Renderer:
    def __init__(self) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.DictLoader(load_templates()),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "count": words.count,
            "initials": words.initials,
            "prose": prose,
            "marked": marked,
            "opening": words.opening,
            "priority": lambda number: Priority(number).name.lower(),
            "tint": words.tint,
            "tokens": words.tokens,
            "duration": words.duration,
            "age": lambda then, now: words.age(_seconds(then, now)),
            "elapsed": lambda then, now: words.duration(_seconds(then, now)),
            "limit": _limit,
            "moment": lambda then, now: time_of_day(then, today=now),
        }

    def render(self, template: str, context: Mapping[str, object]) -> str:
        return self._environment.get_template(template).render(context)


def _seconds(then: datetime, now: datetime) -> float:
    return (now - then).total_seconds()


def _limit(agent: Agent) -> str:
    return words.count(agent.max_concurrent_tasks, "run") + " at once"
