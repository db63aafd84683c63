"""Where model files are: local paths, and paths beneath a URL that somebody typed.

Promise: readers ask here what ``os.path`` answers for local paths, and get the same answers for both. A URL is typed by
a user and placed once (:func:`placed`); beneath its folder paths are joined as usual, and nothing else is remote: what
a model file or a mapping says is never a URL. A path of here holds no user name, password or query of the URL, so that
it may stand in messages and files. Limits: reading only; links are local.

A path is written ``memory://folder/model.npz`` like the URL; one in an archive ``zip://https://host/a.zip!/model.npz``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Protocol

from weightport.errors import FormatError, Problem

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:://|::.*://)", re.DOTALL)
_LOCAL = re.compile(r"(?:file|local)://", re.IGNORECASE)
# What os.path leaves of "memory://" where it cuts a path at its root: "memory:".
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/*")


class Place(Protocol):
    """A folder that is read by URL. Paths are relative to it, without ``.`` and ``..``; itself is ``""``."""

    def isfile(self, path: str) -> bool: ...

    def isdir(self, path: str) -> bool: ...

    def names(self, path: str) -> list[str]: ...

    def mark(self, path: str) -> tuple[object, ...] | None: ...

    def denied(self, path: str) -> FormatError | None: ...

    def fetched(self, path: str) -> int: ...

    def forget(self) -> None: ...


#: Folder, with a slash at its end, or the path of a file that has nothing beside it -> what reads it.
_places: dict[str, Place] = {}
#: What was typed -> its path here; paths of here stand for themselves.
_typed: dict[str, str] = {}


def is_url(text: str) -> bool:
    """Whether a user means a URL by that."""
    return _URL.match(text) is not None


def placed(text: str) -> str:
    """The path of what a user typed: of a URL the one that all functions here take, anything else as it is.

    Raises:
        MissingPackage: fsspec, or what it needs for this kind of URL, is not installed.
        Error: no such kind of URL, or one that cannot be taken apart.
    """
    if _LOCAL.match(text) and "::" not in text:
        return _LOCAL.sub("", text)
    if not is_url(text):
        return text
    if text not in _typed:
        from weightport.formats import _remote  # imports fsspec

        found = _remote.placed(text, _places)
        _typed[text] = _typed[found] = found
    return _typed[text]


def typed(path: str) -> str:
    """What was typed for a path: it can hold secrets, and is for another process that has to place it as well."""
    return next((text for text, found in _typed.items() if found == path and text != path), path)


def place_as(path: str, text: str) -> None:
    """In another process: what was typed there has this path here."""
    if text != path:
        from weightport.formats import _remote

        _remote.placed(text, _places, path)
        _typed[text] = _typed[path] = path


def fresh(path: str) -> None:
    """Forget what is remembered of files there: they are looked at anew."""
    at = find(path)
    if at is not None:
        at[0].forget()


class _Nowhere:
    """Where a path would leave the folder of its URL."""

    def isfile(self, _: str) -> bool:
        return False

    isdir = isfile

    def names(self, path: str) -> list[str]:
        raise FileNotFoundError(path)

    def mark(self, _: str) -> None:
        return None

    def denied(self, _: str) -> None:
        return None

    def fetched(self, _: str) -> int:
        return 0

    def forget(self) -> None:
        pass


def find(path: str) -> tuple[Place, str] | None:
    """What reads a path, and the path relative to it; None for a local one."""
    if not _places:
        return None
    scheme = _SCHEME.match(path)
    if scheme is None:
        return None
    text = f"{scheme[1]}://{path[scheme.end() :]}".rstrip("/")
    if text in _places:
        return _places[text], ""
    end = len(text)
    while end > 0:
        # Of "memory:" or "https://host" the folder is the same with its slashes.
        for folder in (text[:end] + "/", text[:end] + "//"):
            place = _places.get(folder)
            if place is not None:
                parts = [part for part in text[len(folder) :].split("/") if part not in ("", ".")]
                if ".." in parts or any("\\" in part or "\0" in part for part in parts):
                    return _Nowhere(), text
                return place, "/".join(parts)
        end = text.rfind("/", 0, end)
    return None


def is_remote(path: str) -> bool:
    """Whether a path lies beneath a URL."""
    return find(path) is not None


# What os and os.path answer ----------------------------------------------------------------------------------------


def isfile(path: str) -> bool:
    """Whether there is a file, links followed."""
    at = find(path)
    return os.path.isfile(path) if at is None else at[0].isfile(at[1])


def isdir(path: str) -> bool:
    """Whether there is a folder, links followed."""
    at = find(path)
    return os.path.isdir(path) if at is None else at[0].isdir(at[1])


def no_folder(path: str | os.PathLike[str]) -> Problem | None:
    """What is to be said of a local destination whose folder is not there."""
    text = os.fspath(path)
    folder = os.path.dirname(os.path.realpath(text))
    if find(text) is not None or os.path.isdir(folder):
        return None
    return Problem(text, f"cannot be written: there is no folder {folder}", "make it first")


def exists(path: str) -> bool:
    """Whether there is either."""
    at = find(path)
    return os.path.exists(path) if at is None else at[0].isfile(at[1]) or at[0].isdir(at[1])


def lexists(path: str) -> bool:
    """Whether there is either, or a link that leads nowhere."""
    return os.path.lexists(path) if find(path) is None else exists(path)


def listdir(path: str) -> list[str]:
    """The names in a folder.

    Raises:
        OSError: there is no such folder.
    """
    at = find(path)
    return os.listdir(path) if at is None else at[0].names(at[1])


def walk(path: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """What :func:`os.walk` gives: for each folder its path, its folders and its files."""
    at = find(path)
    if at is None:
        yield from os.walk(path)
        return
    place, inner = at
    try:
        names = place.names(inner)
    except OSError:
        return
    folders = [name for name in names if place.isdir(f"{inner}/{name}" if inner else name)]
    yield path, folders, [name for name in names if name not in set(folders)]
    for name in folders:
        yield from walk(os.path.join(path, name))


def islink(path: str) -> bool:
    """Whether a path is a link."""
    return find(path) is None and os.path.islink(path)


def realpath(path: str) -> str:
    """The path, links followed.

    Raises:
        FormatError: no file can have this name (a lone surrogate, a NUL).
    """
    if find(path) is not None:
        return path.rstrip("/")
    try:
        return os.path.realpath(path)
    except ValueError:
        raise FormatError(path, "cannot be opened: no file can have this name") from None


def abspath(path: str) -> str:
    """The path from the root."""
    return os.path.abspath(path) if find(path) is None else path.rstrip("/")


def normpath(path: str) -> str:
    """The path without slashes at its end, and what else is not needed."""
    return os.path.normpath(path) if find(path) is None else path.rstrip("/")


def is_beneath(path: str, folder: str) -> bool:
    """Whether a path lies in a folder, both with their links followed."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def samefile(one: str, other: str) -> bool:
    """Whether two paths lead to one file."""
    if find(one) is None and find(other) is None:
        return os.path.samefile(one, other)
    return realpath(one) == realpath(other)


def denied(path: str) -> FormatError | None:
    """Why nobody may know whether something is there; None if that is known."""
    at = find(path)
    return None if at is None else at[0].denied(at[1])


def mark(path: str) -> tuple[object, ...] | None:
    """What tells a file from another one that takes its place, or from itself with another content; asked anew.

    Of a local file: device, inode, size, time. Of another: its size and whatever the file system says of its content.
    """
    at = find(path)
    if at is not None:
        return at[0].mark(at[1])
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def fetched(path: str) -> int | None:
    """How many times something of a file was fetched; None for a local one, of which that is not counted."""
    at = find(path)
    return None if at is None else at[0].fetched(at[1])
