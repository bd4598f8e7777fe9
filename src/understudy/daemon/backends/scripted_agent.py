"""An agent without a model: it keeps a note on its issue in the repository and ticks off a list.

A program of its own, standard library only. It prints the frames of the command backend and commits
each step. The note is all its memory: started again, it goes on from the first box that is not
ticked, so nothing is done twice. Where there is no git repository it only writes the note.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLAN = (
    "Read the issue and the code around it",
    "Write down what is asked for",
    "Look for the smallest change that answers it",
    "Make the change",
    "Check it against the issue",
    "Sum up for the reviewer",
)
# No hook, no signature, no question: nobody is there to answer.
GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false")
GIT_S = 60
AUTHOR = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "Scripted agent"), ("EMAIL", "scripted@understudy.invalid"))
}
TOOL_IDS = itertools.count(1)


def main() -> int:
    options = _options(sys.argv[1:])
    prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    key = os.environ.get("UNDERSTUDY_ISSUE") or "task"
    title = os.environ.get("UNDERSTUDY_ISSUE_TITLE") or _first_line(prompt) or key
    session_id = os.environ.get("UNDERSTUDY_PRIOR_SESSION_ID") or str(uuid.uuid4())
    say("session", id=session_id, pid=os.getpid(), resumable=True)
    say("thinking", text=f"The issue is “{title}”. Is there a note on it already?")
    note = _note(key)
    try:
        _begin(note, f"{key}: {title}", options.steps)
        return _work(note, key, options)
    except (OSError, subprocess.SubprocessError) as error:
        say("result", is_error=True, error=str(error))
        return 1


def say(kind: str, **fields: Any) -> None:  # noqa: ANN401  They are JSON.
    sys.stdout.write(json.dumps({"type": kind, **fields}) + "\n")
    sys.stdout.flush()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripted-agent", description=__doc__)
    parser.add_argument("--steps", type=int, default=len(PLAN))
    parser.add_argument("--step-s", type=float, default=1.3, help="seconds before each step")
    parser.add_argument(
        "--fail", nargs="?", const="agent_error", metavar="REASON", help="half-way, with this slug"
    )
    return parser.parse_args(arguments)


def _first_line(prompt: str) -> str:
    return next((line.strip("# ") for line in prompt.splitlines() if line.strip("# ")), "")


def _note(key: str) -> Path:
    """In the work directory, or in the one repository that was checked out into it."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", key).lstrip(".") or "task"
    here = Path.cwd()
    checkouts = [path.parent for path in here.glob("*/.git")]
    is_above = not (here / ".git").exists() and len(checkouts) == 1
    return (checkouts[0] if is_above else here) / "notes" / f"{name}.md"


def _begin(note: Path, heading: str, steps: int) -> None:
    process = f"Process {os.getpid()} is at work"
    if note.exists():
        say("text", text=f"{process}: it goes on from the note, {len(_ticked(note))} steps in.")
        if _is_in_repository(note) and _git(note, "status", "--porcelain", "--", note.name):
            _use("commit", _commit, note, "The step that an earlier run did not live to commit")
        return
    plan = list(itertools.islice(_steps(), steps))
    _use("write", _write, note, "\n".join([f"# {heading}", "", *map("- [ ] {}".format, plan), ""]))
    say("text", text=f"{process}: it has a plan of {steps} steps.")


def _steps() -> Iterator[str]:
    for number in itertools.count(1):
        yield from (f"{step}, once more ({number})" if number > 1 else step for step in PLAN)


def _ticked(note: Path) -> list[str]:
    return re.findall(r"^- \[x\] (.*)$", note.read_text(), re.MULTILINE)


def _unticked(note: Path) -> list[str]:
    return re.findall(r"^- \[ \] (.*)$", note.read_text(), re.MULTILINE)


def _work(note: Path, key: str, options: argparse.Namespace) -> int:
    todo = _unticked(note)
    total = len(_ticked(note)) + len(todo)
    for number, step in enumerate(todo, start=total - len(todo) + 1):
        time.sleep(options.step_s)
        if options.fail and number > total // 2:
            error = f"told to fail before step {number}"
            say("result", is_error=True, reason=options.fail, error=error)
            return 1
        _take(note, step, f"{key}: {step.lower()} ({number}/{total})")
    say("result", output=f"All {total} steps are done: see {_shown(note)}.")
    return 0


def _take(note: Path, step: str, message: str) -> None:
    say("text", text=f"{step}.")
    _use("edit", _write, note, note.read_text().replace(f"- [ ] {step}\n", f"- [x] {step}\n"))
    if _is_in_repository(note):
        _use("commit", _commit, note, message)
    say("usage", model="script", input_tokens=120, output_tokens=40)


def _use(name: str, tool: Callable[[Path, str], str], note: Path, text: str) -> None:
    id_ = f"tool-{next(TOOL_IDS)}"
    say("tool_use", id=id_, name=name, input={"path": _shown(note), "text": text})
    try:
        say("tool_result", id=id_, output=tool(note, text), is_error=False)
    except (OSError, subprocess.SubprocessError) as error:
        say("tool_result", id=id_, output=str(error), is_error=True)
        raise


def _is_in_repository(note: Path) -> bool:
    return (note.parents[1] / ".git").exists()


def _shown(note: Path) -> str:
    return str(note.relative_to(Path.cwd()))


def _write(note: Path, text: str) -> str:
    note.parent.mkdir(exist_ok=True)
    note.write_text(text)
    return f"{len(text)} characters"


def _commit(note: Path, message: str) -> str:
    """The note and nothing else that may lie in the index."""
    _git(note, "add", "--", note.name)
    _git(note, "commit", "--quiet", f"--message={message}", "--", note.name)
    return _git(note, "log", "-1", "--oneline")


def _git(note: Path, *arguments: str) -> str:
    return subprocess.run(
        [*GIT, *arguments],
        cwd=note.parent,
        env={**os.environ, **AUTHOR, "GIT_TERMINAL_PROMPT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=GIT_S,
        check=True,
        text=True,
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
