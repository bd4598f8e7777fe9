"""What the agent is told, in the file its CLI reads by itself (R8.7)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from understudy.daemon.files import replace_file
from understudy.daemon.git import Git
from understudy.daemon.origins import slugged

BEGIN: Final = "<!-- understudy:begin, rewritten at each run: edit outside these lines -->"
END: Final = "<!-- understudy:end -->"
BLOCK: Final = re.compile(
    f"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL
)

# By provider: the usual file, then what to use where the repository has that one itself.
FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "claude": ("CLAUDE.md", "CLAUDE.local.md"),
    "codex": ("AGENTS.md", "AGENTS.override.md"),
    "gemini": ("GEMINI.md",),
}
FILES_ELSE: Final = ("AGENTS.md",)
LAST_RESORT: Final = "UNDERSTUDY.md"  # Read by no CLI: the prompt has to name it.
INSTEAD_OF: Final = {"AGENTS.override.md": "AGENTS.md"}  # codex reads one of the two

SKILLS: Final = {"claude": ".claude/skills", "gemini": ".gemini/skills"}
SKILLS_ELSE: Final = ".agents/skills"


class BadSkill(ValueError):
    """A phrase: which skill, and what is wrong with it."""


@dataclass(frozen=True)
class Skill:
    name: str
    content: str
    description: str = ""
    files: Mapping[str, str] | None = None
    """By path inside the skill's folder."""


@dataclass(frozen=True)
class Brief:
    title: str
    description: str = ""
    instructions: str = ""
    context: tuple[tuple[str, str], ...] = ()
    """Heading and text of whatever else matters: a comment, a hand-over note."""
    skills: tuple[Skill, ...] = ()


async def write_brief(git: Git, path: Path, provider: str, brief: Brief) -> Path:
    """The file written. Nothing that the repository tracks is touched, nothing of ours is seen by
    `git add`; what the file holds outside our markers stays. Raises `BadSkill`."""
    names = (*FILES.get(provider, FILES_ELSE), LAST_RESORT)
    folder = SKILLS.get(provider, SKILLS_ELSE)
    tracked: set[str] = set()
    if (path / ".git").exists():
        tracked = set((await git("ls-files", "--", *names, cwd=path)).splitlines())
        exclude = await git("rev-parse", "--git-path", "info/exclude", cwd=path)
        _exclude(path / exclude, [f"/{name}" for name in names] + [f"/{folder}/understudy-*/"])
    name = next(name for name in names if name not in tracked or name == LAST_RESORT)
    _write_block(path / name, render(brief), beside=INSTEAD_OF.get(name))
    for skill in brief.skills:
        _write_skill(path, path / folder / f"understudy-{slugged(skill.name)}", skill)
    return path / name


def render(brief: Brief) -> str:
    sections = [f"# {brief.title}", brief.description]
    headed = (("Instructions", brief.instructions), *brief.context)
    sections += [f"## {heading}\n\n{text}" for heading, text in headed if text]
    body = "\n\n".join(section.strip() for section in sections if section.strip())
    return f"{BEGIN}\n{body.replace('<!-- understudy:', '<!-- understudy :')}\n{END}"


def _write_block(file: Path, block: str, *, beside: str | None) -> None:
    read = file.with_name(beside) if beside else file
    text = "" if read.is_symlink() or not read.exists() else read.read_text(errors="replace")
    if BLOCK.search(text):
        text = BLOCK.sub(lambda _: block, text, count=1)
    else:
        text = "\n\n".join(part for part in (text.rstrip(), block) if part) + "\n"
    replace_file(file, text, mode=0o644)


def _exclude(file: Path, patterns: list[str]) -> None:
    known = file.read_text().splitlines() if file.exists() else []
    missing = [pattern for pattern in patterns if pattern not in known]
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as excludes:  # In one write: worktrees of one cache share this file.
        excludes.write("".join(f"{pattern}\n" for pattern in missing))


def _write_skill(path: Path, folder: Path, skill: Skill) -> None:
    for name, text in _skill_files(skill):
        target = folder / name
        inside = target.resolve().is_relative_to(path.resolve() / folder.relative_to(path))
        if not inside or target.resolve() == folder.resolve():
            raise BadSkill(f"skill {skill.name!r} has a file outside its folder: {name!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, text, mode=0o644)


def _skill_files(skill: Skill) -> Iterator[tuple[str, str]]:
    head = ""
    if not skill.content.startswith("---"):
        description = " ".join(skill.description.split()) or skill.name
        head = f"---\nname: {slugged(skill.name)}\ndescription: {description}\n---\n\n"
    yield "SKILL.md", head + skill.content
    yield from (skill.files or {}).items()
