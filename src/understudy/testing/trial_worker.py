"""The process that conducts trials: orders on stdin, outcomes on stdout, a line of JSON each.

`python -m understudy.testing.trial_worker DSN WORLD LIMIT_S`. When stdin closes, whoever gave the
orders is gone, and it ends at once. A trial that takes longer than the limit ends it too, and its
stack is on stderr.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import traceback
from queue import SimpleQueue

import msgspec

from understudy.testing.trial import Outcome, Trial, conduct


def main(dsn: str, world: str, limit_s: float) -> None:
    logging.disable()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # What anybody prints is no answer.
    orders: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    while True:
        trial = msgspec.json.decode(orders.get(), type=Trial)
        faulthandler.dump_traceback_later(limit_s, exit=True)
        outcome = _conduct(dsn, trial, world)
        faulthandler.cancel_dump_traceback_later()
        answers.write(msgspec.json.encode(outcome) + b"\n")


def _read(orders: SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(0)


def _conduct(dsn: str, trial: Trial, world: str) -> Outcome:
    """A world that raises is a finding like any other."""
    try:
        return conduct(dsn, trial, world=world)
    except Exception as error:  # noqa: BLE001  # It is contained, and told.
        said = str(error).partition("\n")[0]
        return Outcome(
            seed=trial.seed,
            violations=[f"the world raised {type(error).__name__}: {said}"],
            log=traceback.format_exc().splitlines(),
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
