"""What of a directory tree a power cut leaves.

An fsync of a file keeps its content, one of a directory keeps its entries; both are remembered by
inode, so a file that was renamed is the same file under another name. What was not kept may have
been written back by the kernel meanwhile, or be lost: who cuts the power says which.

As a file system with a journal would have it: a rename is undone as a whole, and of the removals
from a directory the later ones are undone first. Contents keep no order.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, final

Strikes: TypeAlias = Callable[[str], bool]
"""Whether a change that was never synced is lost. The same answers for the same questions."""
WORK: Final = "work"
"""Such a directory counts as durable, with all below it: the agents' and git's own files."""


class Content(NamedTuple):
    data: bytes
    changed_ns: int


NOTHING: Final = Content(b"", 0)


@final
@dataclass(eq=False)
class File:
    synced: Content | None = None


@final
@dataclass(eq=False)
class Directory:
    synced: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = File | Directory
Remains: TypeAlias = dict[str, "Content | Remains"]


@final
class Tree:
    """Of the regular files and directories below `root`; all that is there at first is durable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.exempt = set[str]()
        self.read()

    def read(self) -> None:
        """From now on all that is there is durable."""
        self._nodes = dict[int, Node]()
        self._order = count()
        self._removals = dict[str, int]()
        self.sources = dict[str, str]()
        """Path of a renamed file, and the name it had in the same directory."""
        self._top = Directory()
        self._nodes[self.root.stat().st_ino] = self._top
        self._read_below(self._top, self.root)

    def _read_below(self, directory: Directory, path: Path) -> None:
        directory.synced = self.listing(path)
        for name, node in directory.synced.items():
            if isinstance(node, File):
                node.synced = read(path / name)
            else:
                self._read_below(node, path / name)

    def listing(self, directory: Path | str) -> dict[str, Node]:
        with os.scandir(directory) as entries:
            found = {e.name: self._nodes.get(e.inode()) or self._meet(e) for e in entries}
        return {name: node for name, node in found.items() if node is not None}

    def _meet(self, entry: os.DirEntry[str]) -> Node | None:
        if self._is_exempt(entry):
            return None
        node = Directory() if entry.is_dir(follow_symlinks=False) else File()
        return self._nodes.setdefault(entry.inode(), node)

    def _is_exempt(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_dir(follow_symlinks=False):
            return entry.name == WORK
        return not entry.is_file(follow_symlinks=False) or entry.path in self.exempt

    def exclude(self, path: str) -> None:
        """From now on that file is not the tree's business."""
        self.exempt.add(path)
        if (inode := inode_of(path)) is not None:
            self._nodes.pop(inode, None)

    def sync(self, descriptor: int, path: str) -> None:
        if f"/{WORK}/" in f"{path}/"[len(str(self.root)) :] or path in self.exempt:
            return
        status = os.fstat(descriptor)
        if status.st_nlink == 0:
            return  # Nothing brings it back.
        if stat.S_ISDIR(status.st_mode):
            node = self._nodes.setdefault(status.st_ino, Directory())
            assert isinstance(node, Directory), path
            node.synced = self.listing(path)
        else:
            node = self._nodes.setdefault(status.st_ino, File())
            assert isinstance(node, File), path
            node.synced = read(f"/proc/self/fd/{descriptor}")

    def removed(self, path: str, inode: int) -> None:
        """Or replaced. The number of the inode may be used again."""
        self._nodes.pop(inode, None)
        self._removals[path] = next(self._order)
        self.sources.pop(path, None)

    def when(self, removed: Path) -> int:
        return self._removals.get(str(removed), -1)

    def cut(self, strikes: Strikes) -> list[str]:
        """Leave what a power cut leaves. Returns what is lost.

        Each file is another one afterwards: what the dead still hold open is nobody's.
        """
        cut = _Cut(self, strikes)
        _lay_all(cut.directory(self.root, self._top, self.root), self.root, self._is_exempt)
        self.read()
        return cut.lost


@final
class _Cut:
    def __init__(self, tree: Tree, strikes: Strikes) -> None:
        self._tree = tree
        self._strikes = strikes
        self.lost = list[str]()

    def directory(self, path: Path, node: Directory, place: Path | None) -> Remains:
        """`place` is where it stands now, if it does."""
        new = self._tree.listing(place) if place is not None else {}
        places = {child: place / name for name, child in new.items()} if place is not None else {}
        remains: Remains = {}
        old = {
            name: child for name, child in node.synced.items() if not self._is_exempt(path / name)
        }
        for name, child in sorted(self._entries(path, old, new).items()):
            if isinstance(child, File):
                remains[name] = self._content(path / name, child, places.get(child))
            else:
                remains[name] = self.directory(path / name, child, places.get(child))
        return remains

    def _entries(self, path: Path, old: dict[str, Node], new: dict[str, Node]) -> dict[str, Node]:
        undone = {
            name: new[name]
            for name in sorted(new)
            if old.get(name) is not new[name] and self._loses("entry", path / name)
        }
        kept = {name: node for name, node in new.items() if name not in undone}
        kept |= {name: old[name] for name in undone if name in old}
        kept |= self._returned(path, old, new, undone)
        for name, node in undone.items():
            source = self._tree.sources.get(str(path / name))
            if source and source not in old.keys() | new.keys():
                # It was created under this name and then renamed; only the second may be undone.
                kept |= {} if self._loses("entry", path / source) else {source: node}
        return kept

    def _returned(
        self, path: Path, old: dict[str, Node], new: dict[str, Node], undone: dict[str, Node]
    ) -> dict[str, Node]:
        moved, moved_back = set(new.values()), set(undone.values())
        gone = sorted(old.keys() - new.keys(), key=lambda name: self._tree.when(path / name))
        removed = [name for name in gone if old[name] not in moved]
        back = [name for name in gone if old[name] in moved_back]
        for number, name in enumerate(removed):
            if self._loses("removal", path / name):
                back += removed[number:]
                break
        return {name: old[name] for name in back}

    def _content(self, path: Path, file: File, place: Path | None) -> Content:
        if place is None:
            return file.synced or NOTHING
        now = read(place)
        if file.synced and file.synced.data == now.data:
            return now
        if not self._loses("content", path):
            return now
        if file.synced:
            return file.synced
        half = now.data[: len(now.data) // 2]
        return now._replace(data=b"" if self._loses("all", path) else half)

    def _is_exempt(self, path: Path) -> bool:
        return str(path) in self._tree.exempt

    def _loses(self, what: str, path: Path) -> bool:
        change = f"{what} of {path.relative_to(self._tree.root)}"
        if is_lost := self._strikes(change):
            self.lost.append(change)
        return is_lost


def inode_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def read(path: Path | str) -> Content:
    with FileIO(path) as file:
        return Content(file.readall(), os.fstat(file.fileno()).st_mtime_ns)


def lay(path: Path, content: Content) -> None:
    """As a new file: who has the one before it open does not write to this one."""
    path.unlink(missing_ok=True)
    with FileIO(path, "xb", opener=_private) as file:
        file.write(content.data)
    os.utime(path, ns=(content.changed_ns, content.changed_ns))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lay_all(remains: Remains, path: Path, is_exempt: Callable[[os.DirEntry[str]], bool]) -> None:
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not is_exempt(entry)]
    for entry in found:
        if not entry.is_dir(follow_symlinks=False):
            Path(entry.path).unlink()
        elif not isinstance(remains.get(entry.name), dict):
            shutil.rmtree(entry.path)
    for name, what in remains.items():
        if isinstance(what, Content):
            lay(path / name, what)
        else:
            (path / name).mkdir(mode=0o700, exist_ok=True)
            _lay_all(what, path / name, is_exempt)
