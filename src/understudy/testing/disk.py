"""The disk of a simulated machine: it keeps what was synced, may lose what was not, and fills up.

The files are real ones in a directory of the machine's own, best on /dev/shm, and the code that
writes them is the real one; only calls of the operating system are watched.

    disk = Disk(path)
    with disks(disk):
        write_order(disk.root / "runs" / "one", order)
        disk.power_cut(strikes)
        disk.fill()
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any, Final, TypeAlias, final

from understudy.daemon import locks
from understudy.testing.durable import Content, Strikes, Tree, inode_of, lay, read

READING: Final = {"select", "pragma", "begin", "rollback", "explain"}
DATABASE_FILES: Final = ("", "-wal", "-journal")
SYNCHRONOUS_FULL: Final = 2
WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24
READ_ONLY: Final = {"r", "rb", "rt", "br"}
NO_LAYERS: Final = str.maketrans("", "", "bt")

Hook: TypeAlias = Callable[..., Any]
Place: TypeAlias = int | str | os.PathLike[str]


@final
class Disk:
    def __init__(self, root: Path) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root.resolve()
        """What is below is known by this path: use it for all the machine's files."""
        self.is_full = False
        self._tree = Tree(self.root)
        self._connections: list[Connection] = []
        self._is_synced: dict[str, bool] = {}
        """Of each database: whether its commits were, by the last process that had it open."""

    def power_cut(self, strikes: Strikes) -> list[str]:
        """To be called when nobody runs on the machine any more. Returns what is lost.

        `strikes` is asked about each change that was not synced: "entry of runs/one/state.json",
        "removal of …", "content of …", "all of …" (and not just the second half of a file that
        never was), "wal of outbox.db", and "torn wal of outbox.db", which is a half-written commit.
        """
        was_full, self.is_full = self.is_full, False
        for connection in self._connections:
            connection.die()
        self._connections.clear()
        lost = [loss for path in sorted(self._is_synced) for loss in self._cut_wal(path, strikes)]
        lost += self._tree.cut(strikes)
        self._is_synced = dict.fromkeys(self._is_synced, True)
        self.is_full = was_full
        return lost

    def wipe(self) -> None:
        """As it was delivered."""
        for connection in self._connections:
            connection.die()
        self._connections.clear()
        self._is_synced.clear()
        for entry in self.root.iterdir():
            rmtree(entry) if entry.is_dir() else entry.unlink()
        self._tree = Tree(self.root)
        self.is_full = False

    def fill(self) -> None:
        """From now on what needs room fails; to create an empty file does not."""
        self.is_full = True

    def free(self) -> None:
        self.is_full = False

    def check_room(self, path: str) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _cut_wal(self, path: str, strikes: Strikes) -> list[str]:
        wal, name = Path(f"{path}-wal"), os.path.relpath(path, self.root)
        if not wal.exists():
            return []
        if not self._is_synced[path] and strikes(loss := f"wal of {name}"):
            wal.unlink()
            return [loss]
        if strikes(loss := f"torn wal of {name}"):
            content = read(wal)
            lay(wal, content._replace(data=content.data + _torn_frame(content.data)))
            return [loss]
        return []

    # What the hooks tell

    def sync(self, descriptor: int, path: str) -> None:
        self._tree.sync(descriptor, path)

    def removed(self, path: str, inode: int) -> None:
        self._tree.removed(path, inode)

    def renamed(self, source: str, target: str, replaced: int | None) -> None:
        if replaced is not None:
            self._tree.removed(target, replaced)
        (before, _, name), (after, _, _) = source.rpartition("/"), target.rpartition("/")
        if before == after:
            self._tree.sources[target] = name

    def connected(self, connection: Connection) -> None:
        self._connections.append(connection)
        self._is_synced.setdefault(connection.path, True)
        for suffix in (*DATABASE_FILES, "-shm"):
            self._tree.exclude(f"{connection.path}{suffix}")

    def abandoned(self, connection: Connection, *, is_synced: bool) -> None:
        self._is_synced[connection.path] = is_synced


def _torn_frame(wal: bytes) -> bytes:
    """The last frame again, its second half not written."""
    size = FRAME_HEADER + int.from_bytes(wal[8:12])
    if len(wal) < WAL_HEADER + size:
        return b""
    return wal[-size:][: size // 2] + bytes(size - size // 2)


@final
class Connection(sqlite3.Connection):
    disk: Disk
    path: str

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:  # noqa: ANN401
        if self.disk.is_full and sql.split(maxsplit=1)[0].lower() not in READING:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode, full.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise full
        return super().execute(sql, parameters)

    def die(self) -> None:
        """With its process: its files stay as they are, its locks are free, its use fails."""
        try:
            (synchronous,) = super().execute("pragma synchronous").fetchone()
        except sqlite3.ProgrammingError:
            return  # It is closed.
        files = self._files()
        self.close()
        for path, content in files.items():
            lay(path, content)
        self.disk.abandoned(self, is_synced=synchronous >= SYNCHRONOUS_FULL)

    def _files(self) -> dict[Path, Content]:
        paths = (Path(f"{self.path}{suffix}") for suffix in DATABASE_FILES)
        return {path: read(path) for path in paths if path.exists()}


@final
class Limited(io.FileIO):
    """A file open for writing, for which there is room while the disk has any."""

    disk: Disk
    path: str

    def write(self, data: Any, /) -> int:  # noqa: ANN401
        self.disk.check_room(self.path)
        return super().write(data)


@contextmanager
def disks(*each: Disk) -> Iterator[None]:
    """While it lasts, what happens to files below their roots is known to them, nothing there is
    really synced, and who finds a lock taken does not wait for it."""
    with ExitStack() as stack:
        for module, name, hook in HOOKS:
            replacement = hook(_Finder(each), getattr(module, name))
            stack.enter_context(replaced(module, name, replacement))
        stack.enter_context(replaced(locks, "PATIENCE_S", 0.0))
        yield


@contextmanager
def replaced(module: object, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@final
class _Finder:
    def __init__(self, each: tuple[Disk, ...]) -> None:
        self._each = [(f"{disk.root}/", disk) for disk in each]

    def __call__(self, path: Place, directory: int | None = None) -> tuple[Disk | None, str]:
        """On which disk it lies, and its full path."""
        full = _full_path(path, directory)
        for root, disk in self._each:
            if full.startswith(root) or full == root[:-1]:
                return disk, full
        return None, full

    def is_any_full(self) -> bool:
        return any(disk.is_full for _, disk in self._each)


def _full_path(path: Place, directory: int | None) -> str:
    if isinstance(path, int):
        return _opened(path)
    text = os.fsdecode(path)
    # Not Path.resolve: the link itself is meant, and each call of the world comes through here.
    return os.path.abspath(text if directory is None else f"{_opened(directory)}/{text}")  # noqa: PTH100


def _opened(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
    except FileNotFoundError:
        return ""  # The call itself will say that it is closed.


def _syncing(find: _Finder, real: Hook) -> Hook:
    def fsync(file: Any) -> None:  # noqa: ANN401
        descriptor = file if isinstance(file, int) else file.fileno()
        disk, path = find(descriptor)
        if disk is None:
            real(descriptor)
        else:
            disk.sync(descriptor, path)

    return fsync


def _removing(find: _Finder, real: Hook) -> Hook:
    def remove(path: Place, *, dir_fd: int | None = None) -> None:
        disk, full = find(path, dir_fd)
        inode = inode_of(full) if disk else None
        real(path, dir_fd=dir_fd)
        if disk and inode is not None:
            disk.removed(full, inode)

    return remove


def _renaming(find: _Finder, real: Hook) -> Hook:
    def rename(source: Place, target: Place, **directories: int | None) -> None:
        disk, old = find(source, directories.get("src_dir_fd"))
        _, new = find(target, directories.get("dst_dir_fd"))
        inode = inode_of(new) if disk else None
        real(source, target, **directories)
        if disk:
            disk.renamed(old, new, inode)

    return rename


def _making(find: _Finder, real: Hook) -> Hook:
    def mkdir(path: Place, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        disk, full = find(path, dir_fd)
        if disk and not os.path.lexists(full):
            disk.check_room(full)
        real(path, mode, dir_fd=dir_fd)

    return mkdir


def _writing(find: _Finder, real: Hook) -> Hook:
    def write(descriptor: int, *arguments: object) -> int:
        if find.is_any_full():
            disk, path = find(descriptor)
            if disk:
                disk.check_room(path)
        written: int = real(descriptor, *arguments)
        return written

    return write


def _opening(find: _Finder, real: Hook) -> Hook:
    def open(file: Place, mode: str = "r", *layers: Any, **more: Any) -> Any:  # noqa: A001, ANN401
        disk, path = (None, "") if mode in READ_ONLY else find(file)
        if disk is None:
            return real(file, mode, *layers, **more)
        raw = Limited(file, mode.translate(NO_LAYERS), **_taken(more, "closefd", "opener"))
        raw.disk, raw.path = disk, path
        return _layered(raw, mode, *layers, **more)

    return open


def _taken(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: arguments.pop(name) for name in names if name in arguments}


def _layered(
    raw: Limited,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> io.IOBase:
    """As `open` lays them."""
    if buffering == 0:
        return raw
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
    if "b" in mode:
        return buffer
    return io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)


def _connecting(find: _Finder, real: Hook) -> Hook:
    def connect(database: Place, *arguments: object, **named: object) -> sqlite3.Connection:
        disk, path = find(database)
        if disk is None:
            plain: sqlite3.Connection = real(database, *arguments, **named)
            return plain
        connection: Connection = real(database, *arguments, factory=Connection, **named)
        connection.disk, connection.path = disk, path
        disk.connected(connection)
        return connection

    return connect


HOOKS: Final[list[tuple[object, str, Callable[[_Finder, Hook], Hook]]]] = [
    (os, "fsync", _syncing),
    (os, "unlink", _removing),
    (os, "remove", _removing),
    (os, "rmdir", _removing),
    (os, "rename", _renaming),
    (os, "replace", _renaming),
    (os, "mkdir", _making),
    (os, "write", _writing),
    (os, "sendfile", _writing),
    (io, "open", _opening),
    (builtins, "open", _opening),
    (sqlite3, "connect", _connecting),
]
