"""Folders that are read through fsspec: what a URL means, what is there, and byte ranges of it.

Promise: a file is looked at once until it is opened anew; what was fetched is counted; whatever a file system raises is
one of weightport's errors, without user names, passwords and queries, which no path here holds either. Requests that a
network lost are made again. Limits: file systems that run no event loop of their own are asked one thing at a time.

Source: fsspec/spec.py (``AbstractFileSystem``), fsspec/core.py (``url_to_fs``), fsspec/implementations/http.py.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from weightport.errors import Error, FormatError, MissingPackage
from weightport.formats import _fs
from weightport.formats._fs import Place
from weightport.formats._remote_errors import kind_of, lost, wrong

if TYPE_CHECKING:
    from weightport.formats._remote_file import Shared

T = TypeVar("T")

#: What may stand before an ``@`` and is no user: the container of Azure's URLs.
_CONTAINERS = ("abfs", "abfss", "adl", "az", "wasb", "wasbs")
_HTTP = ("http", "https")
#: What file systems call that which changes with a file's content.
_MARKS = (
    "etag", "e_tag", "content-md5", "content_md5", "md5hash", "md5", "digest", "checksum", "sha", "crc", "generation",
    "version_id", "versionid", "lastmodified", "last-modified", "last_modified", "mtime", "updated", "modified",
    "created", "date_time",
)  # fmt: skip
#: How often a request is made that the network lost, and how long is waited before the second time.
TRIES, WAIT = 3, 0.2
#: How much is copied at a time.
PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a path: a folder, or a file with its size (None where nobody says) and marks."""

    folder: bool
    size: int | None = None
    marks: tuple[str, ...] = ()
    #: Reading from the middle is impossible, or costs as much as reading all before it.
    stream: bool = False


def import_fsspec(url: str) -> Any:
    """The package, for a URL.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingPackage(f"reading {url}", "fsspec", "remote") from None
    return fsspec


def placed(url: str, places: MutableMapping[str, Place], path: str | None = None) -> str:
    """See :func:`weightport.formats._fs.placed`.

    Args:
        places: gets the folder, or the file, of the URL.
        path: what it is to be called; by default the URL without its secrets.
    """
    shown = path or label(url)
    core = import_fsspec(shown).core
    text = url.partition("#")[0] if url.lower().startswith(_HTTP) else url
    fs, at = _made(core, text, shown)
    alone = "?" in text.partition("::")[0]  # a query is for one file: nothing beside it is looked for
    whole = "::" in text and "://" in text.partition("::")[0] and not at.strip("/")  # an archive itself
    number = 1
    while True:
        called = shown if number == 1 else shown.replace("://", f".{number}://", 1)
        key, name = (called, "") if alone else (called + "/", "") if whole else _parted(called)
        base = at.rstrip("/")
        if not base.endswith(name):
            key, name = called, ""
        base = base.removesuffix(name).rstrip("/") if name else base
        there = None if path is not None else _fs.find(called)
        if there is None:
            places[key] = Remote(text, fs, base, key)
            return called
        place, inner = there
        if isinstance(place, Remote) and place.fs == fs and place.at(inner).rstrip("/") == at.rstrip("/"):
            return called
        number += 1  # the same path, for another user or with another query


def label(url: str) -> str:
    """A URL without user, password and query, so that names can be joined to its end."""
    first, chained, rest = url.partition("::")
    scheme, is_url, tail = first.partition("://")
    if chained and not is_url:
        return f"{first}+{label(rest)}"
    if not is_url:
        return first  # a path, as the archive in a chain
    if chained:
        return f"{scheme}://{label(rest)}!/{tail.strip('/')}".rstrip("/")
    tail = re.split(r"[?#]", tail, maxsplit=1)[0] if scheme.lower() in _HTTP else tail.partition("?")[0]
    host, slash, inner = tail.partition("/")
    user, at, bare = host.rpartition("@")
    if at and not (scheme.lower() in _CONTAINERS and ":" not in user):
        host = bare
    tail = (host + slash + inner).rstrip("/")
    return f"{scheme}://{tail.lstrip('/') if not host else tail}"


def _parted(shown: str) -> tuple[str, str]:
    """The folder of a path, with its slash, and the name in it."""
    scheme, _, rest = shown.partition("://")
    folder, slash, name = rest.rpartition("/")
    return f"{scheme}://{folder}{slash}", name


def _made(core: Any, url: str, shown: str) -> tuple[Any, str]:
    try:
        # Of an archive a new one each time: its directory may be another one by now.
        fs, at = core.url_to_fs(url, **({"skip_instance_cache": True} if "::" in url else {}))
    except ImportError as error:
        said = str(error)  # "Install s3fs to access S3"
        match = re.search(r"[Ii]nstall (?:the )?[\"'`]?([A-Za-z][\w.-]*)", said) or re.search(r"named '([\w.]+)'", said)
        package = match[1].partition(".")[0] if match else ""
        raise MissingPackage(f"reading {shown}", package or "another package", install=package) from None
    except Exception as error:
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            raise Error(f"{shown}: no kind of URL that fsspec knows") from None
        raise wrong(error, shown, url) from None
    return fs, at


class Remote:
    """A folder, or a file alone.

    Args:
        url: one in it, to make the file system anew in another process.
        base: its path in the file system.
        key: its path here.
    """

    def __init__(self, url: str, fs: Any, base: str, key: str) -> None:
        self._url, self._fs, self._pid = url, fs, os.getpid()
        self.base, self.key = base, key
        self.http = not set(_HTTP).isdisjoint([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)
        chained, _, outer = url.partition("::")
        #: The archive that it is in: a change of that is a change of all in it.
        self._outer = _fs.placed(outer) if outer and "://" in chained else ""
        self._reset()

    def _reset(self) -> None:
        self._entries: dict[str, Entry | None] = {}
        self._listed: dict[str, list[str]] = {}
        self._denied: dict[str, FormatError] = {}
        self._turn = threading.Lock()
        self._count: Counter[str] = Counter()
        #: What was read of a file, for all who open it.
        self.shared: dict[str, Shared] = {}

    @property
    def fs(self) -> Any:
        """The file system. Their event loops do not survive a fork."""
        if self._pid != os.getpid():
            self._fs, _ = _made(import_fsspec(self.key).core, self._url, self.key)
            self._pid = os.getpid()
            self._reset()
        return self._fs

    def at(self, path: str) -> str:
        """The file system's own path."""
        return f"{self.base}/{path}" if path and self.base else path or self.base

    def shown(self, path: str) -> str:
        """The path as errors call it."""
        return f"{self.key}{path}"

    def forget(self) -> None:
        """Look at everything anew."""
        with contextlib.suppress(Exception):
            self.fs.invalidate_cache()
        if self._outer:  # an archive's directory was read when it was opened
            _fs.fresh(self._outer)
            self._fs, _ = _made(import_fsspec(self.key).core, self._url, self.key)
        self._entries, self._listed, self._denied = {}, {}, {}

    # What is there --------------------------------------------------------------------------------------------------

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        entry = self.entry(path)
        return entry is not None and not entry.folder

    def isdir(self, path: str) -> bool:
        """Whether there is a folder."""
        entry = self.entry(path)
        return entry is not None and entry.folder

    def names(self, path: str) -> list[str]:
        """The names in a folder.

        Raises:
            FileNotFoundError: there is none.
            FormatError: it cannot be listed.
        """
        if path not in self._listed:
            self._list(path)
        return list(self._listed[path])

    def _list(self, path: str) -> None:
        at = self.at(path) + ("/" if self.http else "")
        try:
            found = self.ask(lambda fs: fs.ls(at, detail=True), path)
        except FormatError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise FileNotFoundError(self.shown(path)) from None
            raise
        names = []
        for info in found:
            full = str(info["name"])
            name = posixpath.basename(full.partition("?")[0].rstrip("/"))
            if not name or full.rstrip("/") == at.rstrip("/") or name in (".", "..") or "?" in full:
                continue
            names.append(name)
            entry = _entry(info)
            if entry.folder or entry.size is not None:
                self._entries.setdefault(f"{path}/{name}" if path else name, entry)
        self._listed[path] = sorted(set(names))

    def entry(self, path: str, *, anew: bool = False) -> Entry | None:
        """What is known of a path, looked at once; None if there is nothing, or nothing that one may see."""
        if not anew and path in self._entries:
            return self._entries[path]
        above, _, name = path.rpartition("/")
        if not anew and path and above in self._listed and name not in self._listed[above]:
            return None
        found: Entry | None
        try:
            if anew:
                with contextlib.suppress(Exception):
                    self.fs.invalidate_cache()
            info = self.ask(lambda fs: fs.info(self.at(path)), path)
            found = self._page(path, info) if self.http else _entry(info)
        except FormatError as error:
            if not isinstance(error.__cause__, FileNotFoundError | PermissionError):
                raise
            found = None
            if isinstance(error.__cause__, PermissionError):
                self._denied[path] = error
        if not anew:
            self._entries[path] = found
        return found

    def _page(self, path: str, info: Any) -> Entry:
        """To HTTP all is a file; a folder is a page that lists what is beneath it."""
        page = info.get("mimetype") == "text/html"
        if page and (urlsplit(str(info.get("url", ""))).path or "/").endswith("/"):
            with contextlib.suppress(OSError, FormatError):
                if self.names(path):
                    return Entry(folder=True)
        return _entry(info)

    def denied(self, path: str) -> FormatError | None:
        """Why nothing is known of a path, where it may be there."""
        return self._denied.get(path)

    def mark(self, path: str) -> tuple[object, ...] | None:
        """See :func:`weightport.formats._fs.mark`."""
        entry = self.entry(path, anew=True)
        outer = _fs.mark(self._outer) if self._outer else None
        return None if entry is None else (entry.size, *entry.marks, outer)

    def fetched(self, path: str) -> int:
        """How many times something of a file was fetched."""
        return self._count[path]

    def count(self, path: str) -> None:
        """Something of a file is fetched."""
        self._count[path] += 1

    # Bytes ----------------------------------------------------------------------------------------------------------

    def fetch(self, path: str, ranges: Sequence[tuple[int, int]], **options: Any) -> list[bytes]:
        """Byte ranges ``(start, end)`` of a file, all at once where the file system can.

        Raises:
            FormatError: it cannot be read.
        """
        at = self.at(path)
        self.count(path)

        def get(fs: Any) -> list[bytes]:
            if len(ranges) == 1:
                return [fs.cat_file(at, start=ranges[0][0], end=ranges[0][1], **options)]
            starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
            found: list[bytes] = fs.cat_ranges([at] * len(ranges), starts, ends, on_error="raise", **options)
            return found

        return self.ask(get, path)

    @property
    def writes(self) -> bool:
        """Whether files can be put there."""
        return not self.http and "::" not in self._url

    def put(self, files: Sequence[tuple[str, str]]) -> None:
        """Copy local files there, in this order; all of them are there in the end, or none.

        Raises:
            FormatError: they cannot be written.
        """
        fs, made = self.fs, set[str]()
        try:
            with fs.transaction:
                for local, path in files:
                    at = self.at(path)
                    above = at.rpartition("/")[0]
                    if above and above not in made:
                        fs.makedirs(above, exist_ok=True)
                        made.add(above)
                    with open(local, "rb") as source, fs.open(at, "wb") as out:
                        shutil.copyfileobj(source, out, PIECE)
        except Exception as error:
            raise wrong(error, self.shown(files[-1][1]), self._url, "written") from None
        self.forget()

    def ask(self, call: Callable[[Any], T], path: str) -> T:
        """What the file system answers, asked again where the network failed.

        Raises:
            FormatError: the path, and what was said; its cause is the error itself only in its kind.
        """
        fs = self.fs
        alone = contextlib.nullcontext() if getattr(fs, "async_impl", False) else self._turn
        tried = 0
        while True:
            tried += 1
            try:
                with alone:
                    return call(fs)
            except Error:
                raise
            except Exception as raised:
                # HTTP says "not found" of whatever went wrong, and gives that as the cause.
                cause = raised.__cause__
                error = cause if isinstance(raised, FileNotFoundError) and isinstance(cause, Exception) else raised
                if tried == TRIES or not lost(error):
                    raise wrong(error, self.shown(path), self._url) from kind_of(error)
                time.sleep(WAIT * 2 ** (tried - 1))


def _entry(info: Any) -> Entry:
    folder = info.get("type") == "directory"
    size = info.get("size")
    lower = {str(key).lower(): value for key, value in info.items()}
    marks = tuple(f"{key}={lower[key]}" for key in _MARKS if lower.get(key) not in (None, ""))
    stream = bool(info.get("compress_type")) or info.get("partial") is False
    return Entry(folder, size if isinstance(size, int) and not folder else None, () if folder else marks, stream)
