"""Where a repository comes from: a URL, or a directory of this machine."""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

REMOTE = re.compile(r"[A-Za-z][\w+.-]*://.|[^/]+:.")  # a scheme, or ssh's `host:path`
PASSWORD = re.compile(r"(?P<scheme>https?://)(?P<user>[^/:@]+):(?P<word>[^/]*)@(?P<host>[^/]+)")
SLUG_MAX = 40  # Characters, without the digest.


class BadOrigin(ValueError):
    """A phrase that follows the address."""


@dataclass(frozen=True)
class Origin:
    url: str
    """Without a password: it goes to argv, to errors and into `git remote -v`."""
    path: Path | None = None
    """Set for a repository on this machine."""
    credential: str | None = None
    """As git-credential-store keeps it."""

    @property
    def slug(self) -> str:
        return f"{slugged(Path(self.url).stem)}-{digest(self.url, 12)}"


def parse_origin(url: str) -> Origin:
    url = url.strip()
    if not url or re.search(r"[\x00-\x1f\x7f]", url):
        raise BadOrigin("the address is empty, or holds control characters. Correct it.")
    path = local_path(url)
    if path is not None:
        return Origin(str(path), path)
    if not REMOTE.match(url):
        raise BadOrigin("this is neither a URL nor an absolute path. Correct it.")
    found = PASSWORD.match(url)
    if found is None:
        return Origin(url)
    scheme, user, word, host = found.groups()
    return Origin(
        f"{scheme}{user}@{host}{url[found.end() :]}",
        credential=f"{scheme}{user}:{word}@{host}\n",
    )


def local_path(url: str) -> Path | None:
    if url.lower().startswith("file://"):
        return Path(unquote(urlsplit(url).path))
    if url.startswith("~/"):
        return Path(url).expanduser()
    return Path(url) if url.startswith("/") else None


def config_lines(origin: Origin, credentials: Path) -> str:
    """The remote, in git's configuration language: what stands in a file stands in no argv."""
    lines = [
        '[remote "origin"]',
        f"url = {_quoted(origin.url)}",
        'fetch = "+refs/heads/*:refs/remotes/origin/*"',
    ]
    if origin.credential is not None:
        # The empty one forgets the user's helpers, lest git hands them a password to keep.
        store = f"store --file {shlex.quote(str(credentials))}"
        lines += ["[credential]", 'helper = ""', f"helper = {_quoted(store)}"]
    return "\n".join(lines) + "\n"


def slugged(text: str) -> str:
    """A name for files and branches. Two texts that read differently never get the same."""
    plain = text.lower().replace(" ", "-")
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:SLUG_MAX].strip("-")
    return slug if slug == plain else f"{slug}-{digest(text, 6)}".strip("-")


def digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
