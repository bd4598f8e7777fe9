"""Of many faults the few that matter are found, and found in time (torture, item 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from understudy.testing.shrinking import BOUND_S, Shrunk, shrink
from understudy.testing.trial import Outcome, Trial, kind, law, place

FAULTS = [f"machine-{number % 3}@{number}/kill-{number % 25}#0" for number in range(150)]
MOVED = "machine-0@99/kill-7#0"
"""It strikes only where others do not."""


class Fake:
    """A violation needs all faults of one of the `causes`; some strike only after another did.

    A fault of `cures` prevents it, unless the other one strikes too.
    """

    def __init__(
        self,
        causes: Sequence[set[int]],
        after: Mapping[int, int] | None = None,
        *,
        cures: Mapping[int, int] | None = None,
        takes_s: float = 0,
    ) -> None:
        self.causes = [{FAULTS[number] for number in cause} for cause in causes]
        self.after = {FAULTS[late]: FAULTS[early] for late, early in (after or {}).items()}
        self.cures = {FAULTS[cure]: FAULTS[unless] for cure, unless in (cures or {}).items()}
        self.takes_s = takes_s
        self.tries = 0

    async def conduct(self, trial: Trial) -> Outcome:
        self.tries += 1
        await trio.sleep(self.takes_s)
        struck: list[str] = []
        for fault in FAULTS:
            may = fault not in trial.muted and (trial.kinds is None or kind(fault) in trial.kinds)
            if may and self.after.get(fault, fault) in {fault, *struck}:
                struck.append(fault)
        id_ = f"task-{len(struck)}"
        is_cured = any(cure in struck and it not in struck for cure, it in self.cures.items())
        broken = [cause for cause in self.causes if cause <= set(struck) and not is_cured]
        violations = [f"{id_} is done twice" for _ in broken]
        return Outcome(seed=trial.seed, violations=violations or self.others(), faults=struck)

    def others(self) -> list[str]:
        return []

    async def shrunk(self, lanes: int = 2) -> Shrunk:
        trial = Trial(seed=7)
        return await shrink(trial, await self.conduct(trial), [self.conduct] * lanes)


def run(fake: Fake, lanes: int = 2) -> Shrunk:
    return trio.run(fake.shrunk, lanes, clock=MockClock(autojump_threshold=0))


numbers = st.integers(0, len(FAULTS) - 1)
causes = st.lists(st.sets(numbers, max_size=5), min_size=1, max_size=3)
chains = st.dictionaries(numbers, numbers, max_size=20).map(
    lambda after: {late: early for late, early in after.items() if early < late}
)


@given(causes=causes, after=chains, cures=chains, lanes=st.integers(1, 4))
def test_what_is_left_still_violates_and_none_of_it_can_be_spared(
    causes: list[set[int]], after: dict[int, int], cures: dict[int, int], lanes: int
) -> None:
    fake = Fake(causes, after, cures=cures)
    if not trio.run(fake.conduct, Trial(seed=7)).violations:
        return  # The cause never came about.
    left = run(fake, lanes).outcome.faults
    assert left == [fault for fault in FAULTS if fault in left]
    assert trio.run(fake.conduct, Trial(seed=7, only=tuple(left))).violations
    for spared in left:
        without = tuple(fault for fault in left if fault != spared)
        assert not trio.run(fake.conduct, Trial(seed=7, only=without)).violations


def test_of_150_faults_at_most_four_are_left_within_the_bound_at_a_second_a_try() -> None:
    dice = Random(3)
    for _ in range(30):
        cause = set(dice.sample(range(150), 3))
        left = run(Fake([cause], takes_s=1)).outcome.faults
        assert {FAULTS[number] for number in cause} <= set(left)
        assert len(left) <= 4


def test_what_breaks_without_any_fault_is_found_at_once() -> None:
    shrunk = run(Fake([set()]))
    assert (shrunk.outcome.faults, shrunk.tries) == ([], 2)


def test_faults_of_the_same_kinds_count_though_they_are_not_those_that_struck_before() -> None:
    """To take one away may move what follows."""

    class Moved(Fake):
        async def conduct(self, trial: Trial) -> Outcome:
            outcome = await super().conduct(trial)
            may = MOVED not in trial.muted and (trial.kinds is None or kind(MOVED) in trial.kinds)
            if FAULTS[0] in outcome.faults or not may:
                return outcome
            struck = [*outcome.faults, MOVED]
            return Outcome(seed=7, violations=["task-1 is done twice"], faults=struck)

    assert run(Moved([set(range(150))])).outcome.faults == [MOVED]


def test_when_the_time_is_up_the_shortest_so_far_is_returned() -> None:
    class Clocked(Fake):
        async def shrunk(self, lanes: int = 2) -> Shrunk:
            shrunk = await super().shrunk(lanes)
            assert trio.current_time() <= self.began + BOUND_S + self.takes_s
            return shrunk

        async def conduct(self, trial: Trial) -> Outcome:
            self.began = getattr(self, "began", trio.current_time())
            return await super().conduct(trial)

    left = run(Clocked([set(range(60, 150, 10))], takes_s=1), lanes=1).outcome
    assert left.violations
    assert 9 < len(left.faults) < 150


def test_another_violation_is_not_taken_for_the_same() -> None:
    class Brittle(Fake):
        def others(self) -> list[str]:
            return ["task-1 was never told"]

    left = run(Brittle([{3, 140}])).outcome
    assert left.faults == [FAULTS[3], FAULTS[140]]
    assert law(left.violations[0]) == "is done twice"


def test_a_world_in_which_others_strike_than_were_named_is_not_shortened() -> None:
    class Deaf(Fake):
        async def conduct(self, trial: Trial) -> Outcome:
            return await super().conduct(Trial(seed=trial.seed))

    assert len(run(Deaf([{1, 2}], takes_s=2)).outcome.faults) == 150


def test_a_cure_and_what_undoes_it_are_both_spared() -> None:
    fake = Fake([{5, 100}], cures={40: 20})
    assert run(fake).outcome.faults == [FAULTS[5], FAULTS[100]]


def test_no_candidate_is_tried_twice() -> None:
    fake = Fake([{1, 2, 3, 77}])
    shrunk = run(fake)
    assert fake.tries == shrunk.tries + 1  # The one that found it.


def test_what_does_not_repeat_is_left_alone_and_said_so() -> None:
    class Once(Fake):
        async def conduct(self, trial: Trial) -> Outcome:
            outcome = await super().conduct(trial)
            return outcome if self.tries == 1 else Outcome(seed=7, violations=[])

    shrunk = run(Once([{1}]))
    assert not shrunk.repeats
    assert len(shrunk.outcome.faults) == 150


def test_a_law_is_named_by_its_words_and_not_by_what_it_was_about() -> None:
    one = "580de5e5-4c8d-f622-3354-ba7d2e187c05 is lost after 12.5 s of silence of machine-1"
    other = "0e22dcad-7a0a-4fb2-af12-28eb1d669515 is lost after 7.0 s of silence of machine-0"
    assert law(one) == law(other) == "is lost after s"
    assert law("reader 1: missed [4, 5], 0 twice") != law(one)
    assert (
        law("one live execution: a and b") == law("one live execution: c") == "one live execution"
    )


def test_a_fault_has_a_kind_and_a_place_whenever_it_struck() -> None:
    assert kind("node-0/sql/select a / b from c/answer-502#12") == "answer-502"
    assert place("machine-1>node-0@28/half-open-up#3") == "machine-1>node-0"
    assert place("machine-2/agent 1/agent-fails#0") == "machine-2"
