"""Folders that appear whole: the destination is the old folder or the complete new one.

Promise: the files are written to a folder beside it and made durable; then one rename puts it in place, or, where there
is a folder already, one exchange of the two, after which the old one is removed. What a killed writer left is removed
by the next. Limit: only Linux and macOS can exchange two folders at once; elsewhere, and on file systems that cannot, a
folder that exists is refused.

Source: renameat2(2) with ``RENAME_EXCHANGE``; renamex_np(2) with ``RENAME_SWAP`` on macOS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from weightport.errors import Error, Problem, RefusedError
from weightport.formats._temporaries import SUFFIX, fsync_folder, locked_folder, mode_of, try_lock

_EXCHANGE, _SWAP, _AT_FDCWD = 2, 2, -100


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary folder to write to, beside ``path``; it takes its place on success, and is removed on failure.

    A symbolic link is written through, and the mode of an existing folder is kept.

    Raises:
        Error: the folder above does not exist or cannot be written to.
        RefusedError: there is a folder already that cannot be exchanged at once.
    """
    final = Path(os.path.realpath(path))
    try:
        with locked_folder(final.parent):  # so that nobody meets it before its lock
            temporary = tempfile.mkdtemp(prefix=f".{final.name}.", suffix=SUFFIX, dir=final.parent)
            lock = os.open(temporary, os.O_RDONLY)
            try_lock(lock)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror}") from None
    try:
        os.chmod(temporary, mode_of(str(final), new=0o777))
        yield temporary
        for folder, _, names in os.walk(temporary):
            before = final / os.path.relpath(folder, temporary)
            for name in names:
                file = os.path.join(folder, name)
                _closed_as(file, before)
                fsync_folder(file)
            fsync_folder(folder)
        if not final.is_dir() or not os.listdir(final):
            os.rename(temporary, final)
        elif not _exchange(temporary, str(final)):
            what = "is there already, and two folders cannot be exchanged at once here"
            raise RefusedError(Problem(str(path), what, "remove it first, or write to another path"))
        fsync_folder(final.parent)
        with locked_folder(final.parent):
            _remove_stale(final)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _closed_as(file: str, before: Path) -> None:
    """A file is no more open than what it replaces: that of its name, or all files that were in that folder."""
    same = before / os.path.basename(file)
    files = [same] if same.is_file() else [f for f in before.glob("*") if f.is_file()]
    if files:
        os.chmod(file, mode_of(*map(str, files)))


def _exchange(one: str, other: str) -> bool:
    """Let two folders change places, in one step; False where that is not possible."""
    library = ctypes.CDLL(None)
    paths = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            return bool(library.renamex_np(*paths, _SWAP) == 0)
        return bool(library.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
    except AttributeError:  # the C library has no such function
        return False


def _remove_stale(final: Path) -> None:
    """Remove what writers of this folder left that were killed: nobody holds a lock of it."""
    # Called with the folder above locked, so that none is met between its creation and its lock.
    pattern = re.compile(rf"\.{re.escape(final.name)}\.\w+{re.escape(SUFFIX)}")
    for name in filter(pattern.fullmatch, os.listdir(final.parent)):
        left = final.parent / name
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if try_lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
