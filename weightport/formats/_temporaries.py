"""Destinations that are the old file or the complete new one: what is written under another name until it is whole.

Promise: a file appears by one rename after fsync, and several by the rename of the one that refers to the others, last;
what is replaced keeps its mode, and what is new beside it is no more open than that; of several writers of one
destination one wins, whole; what a killed writer left is removed by the next. Limit: what is written is local, and the
folder's file system must support rename. Where it has no locks, two writers are not kept apart, and what a killed one
left stays.

A temporary is named ``.NAME.RANDOM.weightport-tmp`` after the file that it becomes. Its writer holds a lock of it from
its creation to its end: what nobody has locked was left. Parts of a model of several files go by the temporary that
will refer to them: ``.NAME.RANDOM.00000.weightport-tmp``. Where a transfer can be resumed, its journal is named
``.NAME.journal.weightport-tmp`` and says what RANDOM is: what a writer that failed or was killed left is found by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import BinaryIO

from weightport.errors import Error, Problem, RefusedError
from weightport.formats._fs import no_folder
from weightport.tensors import Kept

SUFFIX = ".weightport-tmp"


# One file ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], kept: Kept | None = None) -> Iterator[str]:
    """A temporary path beside ``path`` to write to; renamed over it on success, removed on failure.

    A symbolic link is written through, the mode of an existing file is kept, and file and folder are fsynced. For
    ``kept`` see :func:`temporary`.

    Raises:
        Error: the folder does not exist or cannot be written to.
    """
    final = os.path.realpath(path)
    folder, name = os.path.split(final)
    try:
        with temporary(path, kept=kept) as (handle, made):
            yield made
            os.fsync(handle)
            os.replace(made, final)
            fsync_folder(folder)
            with contextlib.suppress(OSError), locked_folder(folder):
                remove_stale(folder, re.escape(name))
    except OSError as error:
        raise Error(no_folder(path) or f"{path}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Like :func:`atomic_path`, as an open binary file."""
    with atomic_path(path) as made, open(made, "r+b") as handle:
        yield handle
        handle.flush()


@contextlib.contextmanager
def temporary(
    path: str | os.PathLike[str], *, follow: bool = True, kept: Kept | None = None
) -> Iterator[tuple[int, str]]:
    """A new file beside ``path``, with its mode, open and locked; removed at the end unless it was renamed.

    Args:
        path: the destination.
        follow: whether it is beside the file that a symbolic link leads to.
        kept: it is the one that an earlier writer left, if there is one, and may be left again.

    Raises:
        Error: it is a folder.
        RefusedError: what an earlier writer left is not this user's.
        OSError: the folder above does not exist or cannot be written to.
    """
    import tempfile  # only where something is written

    final = os.path.realpath(path) if follow else os.path.abspath(path)
    folder, name = os.path.split(final)
    if os.path.isdir(final):
        raise Error(f"{path}: is a directory, not a file to write")
    with locked_folder(folder):  # so that nobody meets it before its lock
        if kept is None:
            handle, made = tempfile.mkstemp(prefix=f".{name}.", suffix=SUFFIX, dir=folder)
        else:
            made = os.path.join(folder, f".{name}.{kept.token}{SUFFIX}")
            handle = open_own(made)
        try_lock(handle)
    try:
        os.chmod(made, mode_of(final))
        yield handle, made
    finally:
        os.close(handle)
        if kept is None or not kept.keep:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)


def open_own(path: str, mode: int = 0o600) -> int:
    """A descriptor of a file to read and write: a new one, or one of this user that is there.

    Raises:
        RefusedError: what is there is anything else, or has other names.
        OSError: it cannot be made.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    refused = RefusedError(Problem(path, "is in the way: it is no file of this user alone", "remove it"))
    if os.path.islink(path):
        raise refused
    handle = os.open(path, flags)
    info = os.fstat(handle)
    if stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and info.st_nlink == 1:
        return handle
    os.close(handle)
    raise refused


# Several files -------------------------------------------------------------------------------------------------------


class Parts:
    """Files under temporary names that go by the temporary of the file that will refer to them.

    What was not renamed by :func:`commit` is removed at the end.

    Args:
        made: that temporary, which is locked.
        kept: they are those that an earlier writer left, where there are some, and may be left again.
    """

    def __init__(self, made: str, kept: Kept | None = None) -> None:
        self._stem = made.removesuffix(SUFFIX)
        self._kept = kept
        self.paths: list[str] = []

    def new(self) -> str:
        """The path of the next part, which nobody has created yet."""
        self.paths.append(f"{self._stem}.{len(self.paths):05d}{SUFFIX}")
        return self.paths[-1]

    def create(self) -> str:
        """The path of the next part, which is empty, or as it was left."""
        path = self.new()
        if self._kept is not None:
            os.close(open_own(path, 0o666))
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        return path

    def sync(self) -> None:
        """Make all of them durable."""
        for path in self.paths:
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self.paths if self._kept is None or not self._kept.keep else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def commit(
    path: str,
    index: BinaryIO,
    made: str,
    parts: Sequence[str],
    *,
    old: Callable[[], Collection[str]],
    names: Callable[[], Sequence[str]],
    write: Callable[[BinaryIO, Sequence[str]], None],
) -> None:
    """Give the parts names that are free, put the file that refers to them in its place, remove the old parts.

    All of it with the folder locked: two writers do not choose the same names, and none removes what another needs.

    Args:
        path: the file that refers to the others: the real one, where it is reached through a link.
        index, made: its temporary, open, and that path; not written yet.
        parts: the temporary paths of the parts, which are durable.
        old: names, in the folder, of the parts that will be nobody's.
        names: names for the parts, of which none is in use by the model that is replaced.
        write: writes the file, given the names.

    Raises:
        OSError: something cannot be written; the old model is whole.
    """
    folder, name = os.path.split(path)
    folder = folder or "."
    with locked_folder(folder):
        replaced, chosen = old(), names()
        index.truncate(0)  # an earlier writer may have left something
        write(index, chosen)
        index.flush()
        os.fsync(index.fileno())
        os.chmod(made, mode_of(path))  # it may be another one than when this began
        mode = mode_of(path, *(os.path.join(folder, part) for part in replaced))
        finals = [os.path.join(folder, part) for part in chosen]
        try:
            for part, final in zip(parts, finals, strict=True):
                if os.stat(part).st_nlink == 1:  # else it is another model's file, too
                    os.chmod(part, mode)
                os.replace(part, final)
            fsync_folder(folder)
            os.replace(made, path)
        except BaseException:
            if os.path.lexists(made):
                for part, final in zip(parts, finals, strict=True):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(final, part)
            raise
        fsync_folder(folder)
        remove_stale(folder, re.escape(name))
        for part in set(replaced).difference(chosen):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, part))


@contextlib.contextmanager
def atomic_set(path: str | os.PathLike[str], parts: str, stale: Callable[[str], bool]) -> Iterator[BinaryIO]:
    """A file that refers to others beside it, where it has to name them before it is whole.

    It is begun before the others, which have their final names from the beginning, and committed after them. Its
    temporary is locked, so that others see that somebody is at work. When it is committed and nobody else is, stale
    parts are removed: those of the old model, and what killed writers left.

    Args:
        path: the file.
        parts: pattern of the names that the others may have.
        stale: whether a part of that name is nobody's any more; asked after the file was committed.
    """
    with atomic_file(path) as out:
        yield out
    folder, name = os.path.split(os.path.realpath(path))
    with contextlib.suppress(OSError), locked_folder(folder):
        if remove_stale(folder, re.escape(name)):
            for part in filter(re.compile(parts).fullmatch, os.listdir(folder)):
                if stale(part):
                    with contextlib.suppress(OSError):
                        os.unlink(os.path.join(folder, part))


def journal_of(final: str) -> str:
    """The journal of a transfer that can be resumed.

    Args:
        final: the file, links followed, that the temporaries are named after.
    """
    folder, name = os.path.split(os.path.abspath(final))
    return os.path.join(folder, f".{name}.journal{SUFFIX}")


def remove_kept(folder: str, token: str) -> None:
    """Remove the temporaries of a transfer that nobody resumes any more."""
    pattern = re.compile(rf"\..*\.{re.escape(token)}(\.\d{{5,}})?{re.escape(SUFFIX)}", re.DOTALL)
    for name in filter(pattern.fullmatch, os.listdir(folder)):
        os.unlink(os.path.join(folder, name))


# What they share -----------------------------------------------------------------------------------------------------


def mode_of(*paths: str, new: int = 0o666) -> int:
    """The mode of what replaces these: none of those that are there is more closed. Without any, what the umask says.

    Args:
        paths: files or folders.
        new: what the umask is taken from, where there is none of them.
    """
    found = None
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(os.stat(path).st_mode)
            found = mode if found is None else found & mode
    if found is not None:
        return found
    umask = os.umask(0)
    os.umask(umask)
    return new & ~umask


def remove_stale(folder: str, names: str) -> bool:
    """Remove temporaries that nobody has locked, and their parts; whether there are none that somebody has.

    Called with the folder locked, so that none is met between its creation and its lock.

    Args:
        folder: where they are.
        names: pattern of the final names.
    """
    pattern = re.compile(rf"(\.(?:{names})\.\w+)(\.\d{{5,}})?{re.escape(SUFFIX)}")
    alone = True
    for match in filter(None, map(pattern.fullmatch, os.listdir(folder))):
        with contextlib.suppress(OSError):
            if is_locked(os.path.join(folder, match[1] + SUFFIX)):
                alone = False
            else:
                os.unlink(os.path.join(folder, match[0]))
    return alone


def is_locked(path: str) -> bool:
    """Whether somebody has locked a file, or may have: there are no locks here. What is not there, nobody has.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames in that folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """One writer at a time in a folder. Where locks are not supported, nobody waits."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file or folder for this process; False if another one has, or the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
