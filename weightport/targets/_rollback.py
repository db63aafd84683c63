"""Old values of variables, kept until a transfer has succeeded, so that a failure can be taken back.

Promise: what is kept stays within a quarter of the memory that is free, or :data:`LIMIT` bytes; the rest is written to
an unnamed temporary file, by a thread of its own, while the next values are read. Limit: where that file cannot be
written, the values stay in memory: a roll-back is worth more than the bound.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

import numpy as np

from weightport.tensors import Array

#: What is kept in memory where little is free, and what may wait to be written.
LIMIT = 32 << 20


def free() -> int:
    """Bytes of memory that nobody uses, not even for files; 0 where that is not known."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


class Kept:
    """A store of old values; closing it forgets them."""

    def __init__(self) -> None:
        self._memory = self._waiting = self._end = 0
        self._most = max(LIMIT, free() // 4)
        self._file: IO[bytes] | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._room = threading.Condition()

    def put(self, value: Any) -> Callable[[], Any]:
        """Keep a value, which nobody changes from now on. Returns what gives it back.

        Args:
            value: an array of numpy, or of a framework that numpy can look at without a copy.
        """
        array = np.asarray(value)
        if array.dtype.hasobject or self._memory + array.nbytes <= self._most:
            self._memory += 0 if array.dtype.hasobject else array.nbytes
            return lambda: value
        with self._room:
            self._room.wait_for(lambda: not self._waiting or self._waiting + array.nbytes <= LIMIT)
            self._waiting += array.nbytes
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "weightport-rollback")
        at, self._end = self._end, self._end + array.nbytes
        failed: list[Any] = []
        done = self._writer.submit(self._write, [value], at, failed)
        dtype, shape = array.dtype, array.shape  # not the array: it would hold the value
        return lambda: self._read(done, at, dtype, shape, failed)

    def _write(self, held: list[Any], at: int, failed: list[Any]) -> None:
        """Write the one value of a list, which is taken out of it, so that nothing else holds it."""
        value = held.pop()
        array = np.ascontiguousarray(value)
        nbytes = array.nbytes
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=_folder(), buffering=0)  # noqa: SIM115 - closed by close()
            view = array.reshape(-1).view(np.uint8).data
            while len(view):
                count = os.pwrite(self._file.fileno(), view, at)
                view, at = view[count:], at + count
        except OSError:
            failed.append(value)
        finally:
            with self._room:
                self._waiting -= nbytes
                self._room.notify_all()

    def _read(
        self, done: Future[None], at: int, dtype: np.dtype[Any], shape: tuple[int, ...], failed: list[Any]
    ) -> Any:
        done.result()
        if failed:
            return failed[0]
        assert self._file is not None
        array: Array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8).data
        while len(view):
            count = os.preadv(self._file.fileno(), [view], at)
            if not count:
                raise OSError("the temporary file of old values is shorter than what was written")
            view, at = view[count:], at + count
        return array

    def close(self) -> None:
        """Forget all values."""
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _folder() -> str | None:
    """Where the file is: a disk rather than memory, unless the user says otherwise."""
    if os.environ.get("TMPDIR"):
        return None
    return "/var/tmp" if os.access("/var/tmp", os.W_OK | os.X_OK) else None
