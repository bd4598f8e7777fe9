"""What simulated agents do: they work, call one another, and go wrong in every way we have met.

An agent is an honest worker with quirks, of which several may meet in one, and at most one bad end.
Each is a kind of fault (`faults.py`), drawn once for each agent that a machine starts.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from signal import SIGHUP, SIGINT, SIGKILL, SIGSEGV, SIGTERM
from typing import Final, TypeVar, final
from uuid import UUID

from understudy.daemon.rundir import Spec
from understudy.testing.chance import Chance
from understudy.testing.faults import Kind, kind
from understudy.testing.simulated_keepers import Fate
from understudy.testing.simulated_process import PRIOR_SESSION, Agent, Script
from understudy.wire.daemon import ClaimedTask

T = TypeVar("T")

PAUSES_S: Final = (0.0, 1.0, 5.0, 15.0, 60.0, 120.0)
TOOL_S: Final = (0.0, 0.0, 1.0, 15.0)
STEPS: Final = (1, 1, 2, 3)
AGENTS: Final = ("Agent 0", "Agent 1", "Agent 2", "Agent 3")
REASONS: Final = (
    "agent_error", "provider_network", "provider_network", "provider_overloaded", "agent_stalled",
    "runtime_shutdown", "auth", "quota_exhausted", "a reason of its own",
)  # fmt: skip
ASKED_S: Final = (None, 10, 40)
"""What an overloaded provider asks for."""
QUOTA_S: Final = (20, 70)
NOISE_S: Final = 20.0
LONG_STEPS: Final = 20
TURNS: Final = 12
TURN: Final = re.compile(r", turn (\d+)\.")
FLOOD_MAX: Final = 4 << 20
LONG_LINE: Final = 2 << 20
GARBAGE: Final = (
    b"\x00\x01\xff\xfe\n", b"{not json\n", b'[1, 2]\n{"type": 7}\n', b'{"type": "unheard of"}\n',
    b"   \n\r\n\n", b'{"type": "text", "text": "\xff\xfe\x00"}\n', b'{"a":' * 3000 + b"\n",
    b'{"type": "text", "text": "cut',
)  # fmt: skip
POISON: Final = (
    "\0", "\x1b[31mred\x07\x08", "\ud800", "\udfff\ud800", "\u202egnp.exe", "@" + "A" * 10_000,
    "@Agent", "'; drop table tasks; --", "\r\n\x85\u2028", "<script>alert(1)</script>",
)  # fmt: skip

# How it ends, but for well

FAILS = kind("agent-fails", 0.3, "an agent: fails, with a reason of the taxonomy or its own")
HANGS = kind("agent-hangs", 0.03, "an agent: falls silent for ever")
HANGS_IN_TOOL = kind("agent-hangs-in-tool", 0.02, "an agent: a tool never returns")
REPEATS = kind("agent-repeats-itself", 0.02, "an agent: prints for ever what is no progress")
LOOPS = kind("agent-loops", 0.01, "an agent: uses one tool after another for ever")
FLOODS = kind("agent-floods", 0.01, "an agent: prints until its spool is full, if that is small")
EXITS_EARLY = kind("agent-exits-early", 0.03, "an agent: exits with status 0 and no result")
EXITS_BADLY = kind("agent-exits-badly", 0.03, "an agent: exits with a status of its own")
OUT_OF_MEMORY = kind("agent-out-of-memory", 0.03, "an agent: a signal ends it")
MISSING = kind("agent-missing", 0.01, "an agent: its program cannot be started")

CRASHES_HOST = kind(
    "agent-crashes-host", 0.02, "an agent: its machine goes down and is made anew; its heirs' too"
)

# Quirks

CALLS = kind("agent-calls", 0.15, "an agent: its output mentions another one")
CALLS_IN_TURN = kind(
    "agent-calls-in-turn", 0.01, "an agent: calls the next one, who calls the next, twelve times"
)
TAKES_LONG = kind("agent-takes-long", 0.03, "an agent: works for minutes, and shows it")
NEVER_LEAVES = kind("agent-never-leaves", 0.05, "an agent: stays when its result is out")
TALKS_ON = kind("agent-talks-on", 0.04, "an agent: says more after its result")
FORKS = kind("agent-forks", 0.12, "an agent: a child outlives it and ignores SIGTERM")
DEAF = kind("agent-deaf", 0.05, "an agent: ignores SIGINT and SIGTERM")
SLOW_TO_STOP = kind("agent-slow-to-stop", 0.04, "an agent: ignores SIGINT, not SIGTERM")
GARBLED = kind("agent-garbled", 0.06, "an agent: prints NUL, invalid UTF-8, broken JSON")
HALF_A_LINE = kind("agent-half-a-line", 0.04, "an agent: its last line has no end")
LONG_WINDED = kind("agent-long-line", 0.005, "an agent: prints a line of 2 MB")
POISONED = kind("agent-poisoned", 0.08, "an agent: control characters, ANSI, lone surrogates")
RESULT_TWICE = kind("agent-result-twice", 0.05, "an agent: a second result, which contradicts")
USAGE_TWICE = kind("agent-usage-twice", 0.05, "an agent: a result with a usage of its own")
SESSION_LATE = kind("agent-session-late", 0.1, "an agent: tells its session just before its end")
SESSION_NEVER = kind("agent-session-never", 0.1, "an agent: tells no session")
SESSION_REFUSED = kind(
    "agent-session-refused", 0.5, "an agent that is to continue a session: refuses to"
)
COMPLAINS = kind("agent-complains", 0.05, "an agent: prints on stderr")

QUIRKS: Final = (
    CALLS, CALLS_IN_TURN, TAKES_LONG, NEVER_LEAVES, TALKS_ON, FORKS, DEAF, SLOW_TO_STOP, GARBLED,
    HALF_A_LINE, LONG_WINDED, POISONED, RESULT_TWICE, USAGE_TWICE, SESSION_LATE, SESSION_NEVER,
    COMPLAINS,
)  # fmt: skip


def fate_of(
    chance: Chance,
    machine: str,
    *,
    poison: set[UUID] | None = None,
    take_down: Callable[[], object] = lambda: None,
) -> Fate:
    """For `Keepers`: what becomes of each agent that this machine starts.

    `poison`: the tasks that have taken a machine down, anywhere.
    """
    ordinals, fatal = count(), set[UUID]() if poison is None else poison

    def fate(task: ClaimedTask, spec: Spec, _earlier: int) -> Script:
        place = f"{machine}/agent {next(ordinals)}"
        is_fatal, is_to_resume = task.parent_task_id in fatal, PRIOR_SESSION in spec.env
        script = draw(chance, place, take_down, is_fatal=is_fatal, is_to_resume=is_to_resume)
        if CRASHES_HOST.name in script.kind:
            fatal.add(task.id)
        return script

    return fate


def draw(
    chance: Chance,
    place: str,
    take_down: Callable[[], object] = lambda: None,
    *,
    is_fatal: bool = False,
    is_to_resume: bool = False,
) -> Script:
    # Each site is visited once, so to mute one kind moves no other.
    drawn = (*ENDS, MISSING, *QUIRKS, *([SESSION_REFUSED] if is_to_resume else []))
    struck = [each for each in drawn if chance.befalls(place, each)]
    struck += [CRASHES_HOST] if is_fatal and CRASHES_HOST not in struck else []
    worker = Worker(chance, place, frozenset(struck), take_down)
    play = worker.refuse if SESSION_REFUSED in struck else worker.play
    name = ", ".join(each.name for each in struck) or "honest"
    error = f"[Errno 2] No such file or directory: {place!r}" if MISSING in struck else None
    return Script(name, play, cannot_start=error)


@final
@dataclass(frozen=True)
class Worker:
    chance: Chance
    place: str
    quirks: frozenset[Kind]
    take_down: Callable[[], object]
    """Its machine."""

    async def play(self, agent: Agent) -> int:
        if turn := TURN.search(agent.run.brief):
            return self._call_next(agent, int(turn[1]) + 1)
        if CRASHES_HOST in self.quirks:
            return await self.crash_host(agent)
        self._arm(agent)
        if not self.quirks & {SESSION_LATE, SESSION_NEVER}:
            _tell_session(agent)
        for number in range(self.pick("steps", STEPS)):
            await self._step(agent, number)
        if TAKES_LONG in self.quirks:
            await self._take_long(agent)
        if SESSION_LATE in self.quirks:
            _tell_session(agent)
        for end, play in ENDS.items():
            if end in self.quirks:
                return await play(self, agent)
        if CALLS_IN_TURN in self.quirks:
            return self._call_next(agent, 1)
        return await self._succeed(agent)

    def pick(self, what: str, options: Sequence[T]) -> T:
        return self.chance.pick(f"{self.place}/{what}", options)

    def _arm(self, agent: Agent) -> None:
        if DEAF in self.quirks:
            agent.ignore(SIGINT, SIGTERM)
        if SLOW_TO_STOP in self.quirks:
            agent.ignore(SIGINT)
        if FORKS in self.quirks:
            agent.fork("sleep", ignores=(SIGINT, SIGTERM, SIGHUP))
            agent.fork("node")

    async def _step(self, agent: Agent, number: int) -> None:
        agent.say("thinking", text=f"What about step {number}?")
        await agent.sleep(self.pick("thinks for", PAUSES_S))
        agent.say("text", text=f"Step {number}.{self._poison()}")
        agent.say("tool_use", id=f"{number}", name="write", input={"path": "notes.md"})
        self._babble(agent)
        await agent.sleep(self.pick("tool takes", TOOL_S))
        agent.say("tool_result", id=f"{number}", output=f"written{self._poison()}", is_error=False)
        agent.say("usage", model="script", input_tokens=120, output_tokens=40)

    def _babble(self, agent: Agent) -> None:
        if GARBLED in self.quirks:
            agent.raw(self.pick("garbage", GARBAGE))
        if LONG_WINDED in self.quirks:
            agent.say("text", text="long " * (LONG_LINE // 5))
        if COMPLAINS in self.quirks:
            agent.complain(b"warning: \xff\x00 is deprecated\n")

    def _poison(self) -> str:
        return self.pick("poison", POISON) if POISONED in self.quirks else ""

    async def _take_long(self, agent: Agent) -> None:
        for number in range(LONG_STEPS):
            agent.say("text", text=f"Still at it ({number}).")
            await agent.sleep(NOISE_S)

    def _call_next(self, agent: Agent, turn: int) -> int:
        """As agents do that were told to hand over; it ends, if nobody ends it before."""
        output = f"{agent.run.machine} did {agent.run.task.id}, turn {turn}."
        if turn <= TURNS:
            output += f" @{AGENTS[turn % len(AGENTS)]}."
        agent.say("result", output=output)
        return 0

    async def _succeed(self, agent: Agent) -> int:
        output = f"{agent.run.machine} did {agent.run.task.id}{self._poison()}"
        if CALLS in self.quirks:
            output += f" @{self.pick('callee', AGENTS)}."
        agent.say("result", output=output, **self._bill())
        return await self._leave(agent, 0)

    async def fail(self, agent: Agent) -> int:
        reason = self.pick("reason", REASONS)
        fields = {"reason": reason, "error": f"it is a case of {reason}{self._poison()}"}
        agent.say("result", is_error=True, **fields, **self._retry(reason), **self._bill())
        return await self._leave(agent, 1)

    async def refuse(self, agent: Agent) -> int:
        self._arm(agent)
        await agent.sleep(self.pick("looks for", TOOL_S))
        fields = {"reason": "resume_refused", "error": f"no such session{self._poison()}"}
        agent.say("result", is_error=True, **fields, **self._bill())
        return await self._leave(agent, 1)

    def _retry(self, reason: str) -> dict[str, int | None]:
        if reason == "provider_overloaded":
            return {"retry_after_s": self.pick("asked for", ASKED_S)}
        if reason == "quota_exhausted":
            return {"retry_after_s": self.pick("quota", QUOTA_S)}
        return {}

    def _bill(self) -> dict[str, object]:
        usage = {"model": "script", "input_tokens": 700, "output_tokens": 70}
        return {"usage": usage} if USAGE_TWICE in self.quirks else {}

    async def _leave(self, agent: Agent, status: int) -> int:
        """With its result behind it."""
        if RESULT_TWICE in self.quirks:
            agent.say("result", output="It was somebody else.", is_error=status == 0)
        if TALKS_ON in self.quirks:
            await agent.sleep(1.0)
            agent.say("text", text="By the way,")
        if HALF_A_LINE in self.quirks:
            agent.raw(b'{"type": "text", "text": "and anoth')
        if NEVER_LEAVES in self.quirks:
            await agent.hang()
        return status

    async def crash_host(self, agent: Agent) -> int:
        await agent.sleep(self.pick("lasts", TOOL_S))
        self.take_down()
        await agent.hang()

    async def hang(self, agent: Agent) -> int:
        await agent.hang()

    async def hang_in_tool(self, agent: Agent) -> int:
        agent.say("tool_use", id="forever", name="bash", input={"command": "tail -f log"})
        await agent.hang()

    async def repeat_itself(self, agent: Agent) -> int:
        while True:
            _tell_session(agent)
            await agent.sleep(NOISE_S)

    async def loop(self, agent: Agent) -> int:
        for number in count(100):
            agent.say("tool_use", id=f"{number}", name="read", input={})
            agent.say("tool_result", id=f"{number}", output="", is_error=False)
            await agent.sleep(NOISE_S)
        raise AssertionError

    async def flood(self, agent: Agent) -> int:
        """A spool that may be large is spared: all that is printed is stored."""
        while agent.spec.spool_max <= FLOOD_MAX:
            agent.say("text", text="flood " * (agent.spec.spool_max // 60))
            await agent.sleep(1.0)
        return await self.loop(agent)

    async def exit_early(self, agent: Agent) -> int:
        return self._break_off(agent, 0)

    async def exit_badly(self, agent: Agent) -> int:
        agent.complain(b"Traceback (most recent call last): no\n")
        return self._break_off(agent, self.pick("status", (1, 2, 126, 137, 255)))

    async def run_out_of_memory(self, agent: Agent) -> int:
        return self._break_off(agent, -self.pick("signal", (SIGKILL, SIGSEGV, SIGHUP)))

    def _break_off(self, agent: Agent, status: int) -> int:
        if HALF_A_LINE in self.quirks:
            agent.raw(b'{"type": "result", "output": "almost')
        return status


ENDS: Final[dict[Kind, Callable[[Worker, Agent], Awaitable[int]]]] = {
    CRASHES_HOST: Worker.crash_host,
    FAILS: Worker.fail,
    HANGS: Worker.hang,
    HANGS_IN_TOOL: Worker.hang_in_tool,
    REPEATS: Worker.repeat_itself,
    LOOPS: Worker.loop,
    FLOODS: Worker.flood,
    EXITS_EARLY: Worker.exit_early,
    EXITS_BADLY: Worker.exit_badly,
    OUT_OF_MEMORY: Worker.run_out_of_memory,
}


def _tell_session(agent: Agent) -> None:
    identity = agent.prior_session or f"session-{agent.run.task.id}"
    agent.say("session", id=identity, resumable=True)
