"""Everything that goes wrong in a simulated world: each kind has a name, a rate and a sentence.

A rate is the chance at each occasion, and `about` says what the occasion is. `chance.befalls`
draws; a fault that struck is named `place/kind#n`, so it can be muted alone, and whole kinds too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    name: str
    rate: float
    about: str


class InjectedCrash(Exception):
    """A defect that nobody foresaw, in the middle of anything."""


ALL: Final[dict[str, Kind]] = {}


def kind(name: str, rate: float, about: str) -> Kind:
    assert name not in ALL, name
    ALL[name] = made = Kind(name, rate, about)
    return made


# Nodes

NODE_KILLED = kind("node-killed", 0.35, "a node: SIGKILL at some await of this life")
NODE_STOPPED = kind("node-stopped", 0.2, "a node: asked to stop some time in this life")
NODE_FROZEN = kind("node-frozen", 0.15, "a node: stands still for a while, as a starved VM does")
NODE_LATE = kind("node-late", 0.2, "a node that has ended: is not started again for long")

# The database, as a node reaches it

SQL_CRASH = kind("sql-defect", 0.002, "a statement: a defect that nobody foresaw, in its caller")
SQL_LOST_BEFORE = kind("sql-lost-before", 0.004, "a statement: the connection breaks before it")
SQL_LOST_AFTER = kind("sql-lost-after", 0.004, "a statement: the connection breaks after it")
SQL_SLOW = kind("sql-slow", 0.01, "a statement: comes there late, up to a minute")
SQL_ANSWER_LATE = kind("sql-answer-late", 0.005, "a statement: done, answered up to a minute later")
COMMIT_LOST_BEFORE = kind("commit-lost-before", 0.01, "a commit: lost on the way there")
COMMIT_LOST_AFTER = kind("commit-lost-after", 0.01, "a commit: done, its answer lost")
REGISTRATION_TORN = kind(
    "registration-torn", 0.05, "a registration: its connection breaks in the middle"
)
TAKE_OVER_SLOW = kind(
    "take-over-slow", 0.6, "a machine that is heard again: to write that down takes long"
)
SWEEP_SLOW = kind("sweep-slow", 0.05, "a sweep's statement: takes long")
NODE_WITHOUT_DATABASE = kind(
    "database-partition", 0.3, "a node: loses the database alone, and keeps its daemons"
)
DATABASE_RESTART = kind("database-restart", 0.3, "the database: all connections end, none for long")
NOTICE_LOST = kind("notice-lost", 0.3, "a notification between nodes")

# The network between machines, people and nodes

REFUSED = kind("connection-refused", 0.1, "a connection about to be made")
VANISHED = kind("connection-unanswered", 0.05, "a connection about to be made: nobody answers")
CUT = kind("connection-cut", 0.3, "a connection: reset in the middle of something")
HALF_OPEN_UP = kind("half-open-up", 0.1, "a connection: from some byte on nothing gets through up")
HALF_OPEN_DOWN = kind("half-open-down", 0.1, "the same, down")
DELAYED = kind("delayed", 0.5, "a connection: some bytes come seconds later")
LOST_ANSWER = kind("answer-lost", 0.15, "a request: carried out, its answer lost with a reset")
BAD_GATEWAY = kind("answer-502", 0.05, "a request: a proxy answers in the server's place")
UNAVAILABLE = kind("answer-503", 0.05, "the same, with 503")
TOO_MANY = kind("answer-429", 0.05, "the same, with 429")
PARTITION_UP = kind("partition-up", 0.08, "a machine, now and then: what it sends is lost")
PARTITION_DOWN = kind("partition-down", 0.08, "a machine, now and then: it receives nothing")
PARTITION = kind("partition", 0.12, "a machine, now and then: cut off both ways")

# Machines and their daemons

DAEMON_KILLED = kind("daemon-killed", 0.5, "a daemon: SIGKILL at some await of this life")
DAEMON_DRAINED = kind("daemon-drained", 0.1, "a daemon: asked to take nothing more, and to end")
DAEMON_STOPPED_NOW = kind("daemon-stopped-now", 0.1, "a daemon: asked to stop its agents and end")
DAEMON_UPGRADED = kind("daemon-upgraded", 0.15, "a daemon: ends for a newer one, its agents go on")
DAEMON_LATE = kind("daemon-late", 0.25, "a daemon that has ended: nobody starts it for long")
DAEMON_TWICE = kind("daemon-twice", 0.1, "a daemon: a second one is started beside it")
ASLEEP = kind("machine-asleep", 0.2, "a machine, now and then: its lid is closed, up to minutes")
ASLEEP_LONG = kind("machine-asleep-long", 0.04, "the same, for hours")
ASLEEP_AT_WORK = kind(
    "machine-asleep-at-work", 0.1, "a machine that has begun a run: its lid is closed, for minutes"
)
POWER_CUT = kind("power-cut", 0.15, "a machine whose daemon has ended: all that was not synced")
POWER_CUT_AT_END = kind(
    "power-cut-at-an-end", 0.05, "a machine on which an agent has just ended: the same"
)
LOST_ON_DISK = kind("unsynced-lost", 0.5, "a change that was not synced, at a power cut")
TORN_OUTBOX = kind("outbox-torn", 0.5, "an outbox, at a power cut: half of a next commit")
DISK_LOST = kind("disk-lost", 0.04, "a machine whose daemon has ended: comes back empty")
CLONED = kind("machine-cloned", 0.025, "a machine: another one boots from a copy of its disk")
GONE = kind("machine-gone", 0.04, "a machine whose daemon has ended: is never seen again")
DISK_FULL = kind("disk-full", 0.1, "a machine, now and then: no room for some time")
RESTARTED_IN_VAIN = kind(
    "daemon-restarted-in-vain", 0.3, "a daemon that is cut off: killed, and started once more"
)
CHECKOUT_SLOW = kind(
    "checkout-slow", 0.1, "a run: its preparation takes long, up to minutes, whoever prepares it"
)
LOST_AT_CHECKOUT = kind(
    "lost-at-checkout", 0.5, "a run that is slow to prepare: its machine is cut off, or sleeps"
)
CLOCK_DRIFTS = kind("clock-drifts", 0.3, "a machine: its clocks run slow or fast")
CLOCK_JUMPS = kind("clock-jumps", 0.1, "a machine, now and then: its wall clock is set")
KEEPER_KILLED = kind("keeper-killed", 0.08, "a machine, now and then: SIGKILL for a keeper")
AGENT_KILLED = kind("agent-killed", 0.08, "a machine, now and then: SIGKILL for an agent")
