"""What agents do in stories (`scenario.py`): a play says what its agent prints, and when."""

from __future__ import annotations

from understudy.testing.simulated_process import Agent, Play


def works(seconds: float, *, says: str = "Done.") -> Play:
    async def play(agent: Agent) -> int:
        tell_session(agent)
        await agent.sleep(seconds)
        agent.say("result", output=says)
        return 0

    return play


def fails(reason: str, *, after_s: float = 0.0, retry_after_s: float | None = None) -> Play:
    async def play(agent: Agent) -> int:
        tell_session(agent)
        await agent.sleep(after_s)
        told = {} if retry_after_s is None else {"retry_after_s": retry_after_s}
        agent.say("result", is_error=True, reason=reason, error=f"it is {reason}", **told)
        return 1

    return play


def tell_session(agent: Agent) -> None:
    identity = agent.prior_session or f"session-{agent.run.task.id}"
    agent.say("session", id=identity, resumable=True)
