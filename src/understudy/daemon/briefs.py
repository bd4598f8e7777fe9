"""What the agent is told, in the file its CLI reads by itself (R8.7)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
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
SKILLS_LAST: Final = ".understudy/skills"
SKILL: Final = "SKILL.md"
SKILLS_SAY: Final = "Read what fits your work before you begin it:"


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
    folder = _skills_folder(path, provider)
    tracked: set[str] = set()
    if (path / ".git").exists():
        tracked = set((await git("ls-files", "--", *names, cwd=path)).splitlines())
        exclude = await git("rev-parse", "--git-path", "info/exclude", cwd=path)
        folders = [f"/{each}/understudy-*/" for each in _paths_to(path / folder, path)]
        _exclude(path / exclude, [f"/{name}" for name in names] + folders)
    name = next(name for name in names if name not in tracked or name == LAST_RESORT)
    named_at = None if SKILLS.get(provider) == folder else folder
    _write_block(path / name, render(brief, named_at), beside=INSTEAD_OF.get(name))
    _write_skills((path / folder).resolve(), brief.skills)
    return path / name


def render(brief: Brief, skills_at: str | None = None) -> str:
    """`skills_at`: where they lie, for a CLI that finds none by itself."""
    sections = [f"# {brief.title}", brief.description]
    headed = [("Instructions", brief.instructions), *brief.context]
    if skills_at and brief.skills:
        headed.append(("Skills", "\n".join([SKILLS_SAY, *_named(brief.skills, skills_at)])))
    sections += [f"## {heading}\n\n{text}" for heading, text in headed if text]
    body = "\n\n".join(section.strip() for section in sections if section.strip())
    return f"{BEGIN}\n{body.replace('<!-- understudy:', '<!-- understudy :')}\n{END}"


def _named(skills: Iterable[Skill], place: str) -> Iterator[str]:
    for skill in skills:
        described = " ".join(f"{skill.name}: {skill.description}".split()).removesuffix(":")
        yield f"- {described} (`{place}/{_folder(skill)}/{SKILL}`)"


def _skills_folder(path: Path, provider: str) -> str:
    """Where the CLI looks, unless a link of the repository's leads out of it there."""
    wanted = (SKILLS.get(provider, SKILLS_ELSE), SKILLS_ELSE, SKILLS_LAST)
    return next(folder for folder in wanted if _is_inside(path / folder, path))


def _paths_to(place: Path, path: Path) -> list[str]:
    """As it is named, and where a link leads."""
    real = place.resolve().relative_to(path.resolve())
    return list(dict.fromkeys(map(str, (place.relative_to(path), real))))


def _is_inside(place: Path, path: Path) -> bool:
    return place.resolve().is_relative_to(path.resolve())


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


def _write_skills(place: Path, skills: Iterable[Skill]) -> None:
    """What the agent has no more is not found by its CLI any more; its files stay."""
    current = {_folder(skill) for skill in skills}
    for folder in place.glob("understudy-*"):
        if folder.name not in current and not folder.is_symlink():
            (folder / SKILL).unlink(missing_ok=True)
    for skill in skills:
        _write_skill(place / _folder(skill), skill)


def _write_skill(folder: Path, skill: Skill) -> None:
    for name, text in _skill_files(skill):
        if "\0" in name or not _is_below(folder / name, folder):
            raise BadSkill(f"skill {skill.name!r} has a file outside its folder: {name!r}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, text, mode=0o644)


def _is_below(target: Path, folder: Path) -> bool:
    real = target.resolve()
    return real.is_relative_to(folder) and real != folder


def _skill_files(skill: Skill) -> Iterator[tuple[str, str]]:
    head = ""
    if not skill.content.startswith("---"):
        described = " ".join(skill.description.split()) or skill.name
        quoted = json.dumps(described, ensure_ascii=False)  # A colon would end the description.
        head = f"---\nname: {slugged(skill.name)}\ndescription: {quoted}\n---\n\n"
    yield SKILL, head + skill.content
    yield from (skill.files or {}).items()


def _folder(skill: Skill) -> str:
    return f"understudy-{slugged(skill.name)}"
