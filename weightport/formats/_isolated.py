"""A process that may be lost: it opens a file with a library that is not ours, and gives back plain data.

Promise: whatever the library does - a crash, an endless loop, all memory that it can get - ends as a
:class:`FormatError` that names the file and the tensor, and this process goes on. What comes back is JSON and the bytes
of values, never a pickle; it is checked here like a file's, since a process that was taken over may say anything. The
other side is :mod:`~weightport.formats._isolated_worker`. Limits: it is the same user's process, no sandbox; memory is
bounded where the system bounds address space (Linux); one request at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

import numpy as np

from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats import _strided
from weightport.tensors import ROLES, Array, Budget, TensorSpec, dtype_named

#: Seconds of the processor's time that one answer may take, and of waiting without a byte of it.
SECONDS, PATIENCE = 120, 300.0
# How long a process that answers no more may take to end, so that it can be said how it ended.
_GRACE = 5.0
#: Bytes of address space that it may take beyond what it begins with.
MEMORY = 8 << 30
# Its search path is this process', and nothing of the folder it is started in is imported.
_BOOT = """
import sys
sys.path[:] = sys.argv[2:]
from weightport.formats import _isolated_worker
_isolated_worker.main(sys.argv[1])
"""
_DATA, _ERROR = b"d", b"e"
_FRAME = 9  # kind, and the number of bytes that follow
_MAX_ERROR = 1 << 20
_STRING = np.dtype("<u8")  # the length of a string


class Child:
    """The process.

    Args:
        path: the file that errors name.
        library: what reads it there, as errors call it.
        opens: what the worker is told: see there.
        budget: its bounds.
        files: descriptors that it is given.
    """

    def __init__(
        self, path: str, library: str, opens: Mapping[str, Any], budget: Budget, files: Sequence[int] = ()
    ) -> None:
        self.path, self._library, self._lost = path, library, ""
        self._lock = threading.Lock()
        bounds = {k: v for k, v in asdict(budget).items() if type(v) is int}
        text = json.dumps({**opens, "budget": bounds, "memory": MEMORY, "seconds": SECONDS})
        places = [os.path.abspath(place) for place in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, text, *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=files,
            env=_environment(),
            start_new_session=True,  # what is typed to stop this process is not for that one
        )

    def described(self, limit: int) -> Any:
        """What it says of the file, of at most so many bytes."""
        with self._lock:
            size = self._frame(None)
            if size > limit:
                raise BudgetExceeded(self.path, f"a structure of {size:,} bytes, at most {limit:,} allowed")
            raw = bytearray(size)
            self._fill(memoryview(raw), None)
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            raise self._gone("said what is no answer", None) from None

    def values(self, name: str, spec: TensorSpec, cuts: _strided.Bounds, most: int) -> Array:
        """A part of a tensor; of strings, at most so many bytes."""
        counts = _strided.counts(cuts)
        out = np.empty(counts, spec.dtype)
        if not out.size:
            return out
        with self._lock:
            self._ask({"read": name, "cuts": cuts}, name)
            if spec.dtype.kind == "O":
                self._strings(out.reshape(-1), most, name)
                return out
            view = _strided.byte_view(out)
            while view:
                size = self._frame(name)
                if not 0 < size <= len(view):
                    raise self._gone("gave more values than it was asked for", name)
                self._fill(view[:size], name)
                view = view[size:]
        return out

    def _strings(self, flat: Array, most: int, name: str) -> None:
        at = 0
        while at < len(flat):
            count, rest = divmod(self._frame(name), _STRING.itemsize)
            if rest or not 0 < count <= len(flat) - at:
                raise self._gone("gave more values than it was asked for", name)
            lengths = np.empty(count, _STRING)
            self._fill(_strided.byte_view(lengths), name)
            sizes = lengths.tolist()
            most -= sum(sizes)
            if most < 0 or self._frame(name) != sum(sizes):
                raise self._gone("gave strings that are longer than the file", name)
            for size in sizes:
                text = bytearray(size)
                self._fill(memoryview(text), name)
                flat[at] = bytes(text)
                at += 1

    # The pipe --------------------------------------------------------------------------------------------------------

    def _ask(self, request: Mapping[str, Any], tensor: str | None) -> None:
        if self._lost:
            raise FormatError(self.path, self._lost, tensor=tensor)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone(self._ending(), tensor) from None

    def _frame(self, tensor: str | None) -> int:
        """The size of the next piece of the answer; an error is raised."""
        head = bytearray(_FRAME)
        self._fill(memoryview(head), tensor)
        size = int.from_bytes(head[1:], "little")
        if head[:1] == _DATA:
            return size
        if head[:1] != _ERROR or size > _MAX_ERROR:
            raise self._gone("said what is no answer", tensor)
        raw = bytearray(size)
        self._fill(memoryview(raw), tensor)
        try:
            said = json.loads(raw)
            what, hint, named, offset = (said[key] for key in ("what", "hint", "tensor", "offset"))
            kind = {"FormatError": FormatError, "BudgetExceeded": BudgetExceeded}.get(str(said["kind"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._gone("said what is no answer", tensor) from None
        if kind is None:
            raise Error(f"{self.path}: {what}" + (f"; {hint}" if hint else ""))
        named = named if isinstance(named, str) else tensor
        raise kind(self.path, str(what), tensor=named, offset=offset if type(offset) is int else None, hint=str(hint))

    def _fill(self, view: memoryview, tensor: str | None) -> None:
        if self._lost:
            raise FormatError(self.path, self._lost, tensor=tensor)
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        while view:
            if not waiting.poll(PATIENCE * 1000):
                raise self._gone(f"gave no answer for {PATIENCE:g} seconds", tensor)
            got = os.readv(handle, [view])
            if not got:
                raise self._gone(self._ending(), tensor)
            view = view[got:]

    def _ending(self) -> str:
        """How it ended, in words."""
        try:
            code = self._process.wait(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            return "closed its answer"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"crashed ({signal.Signals(-code).name})"
        return f"ended with the code {code}"

    def _gone(self, what: str, tensor: str | None) -> FormatError:
        self._lost = f"corrupt or hostile: {self._library}, in a process of its own, {what}"
        self._kill()
        return FormatError(self.path, self._lost, tensor=tensor)

    def _kill(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._lost = self._lost or "is closed"
            self._kill()


#: The environment's variables that the process may see; ``LD_LIBRARY_PATH`` is how some systems find the interpreter's.
_NEEDED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def _environment() -> dict[str, str]:
    """What Python and libraries need to be found: no keys and tokens, nothing that makes a library load more code."""
    kept = {k: v for k, v in os.environ.items() if k in _NEEDED or k.startswith("LC_")}
    return {**kept, "HDF5_PLUGIN_PRELOAD": "::", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def structure_limit(size: int, budget: Budget) -> int:
    """Bytes that the description of a file of that size may have."""
    return min(budget.header_bytes, (64 << 20) + 64 * size)


def spec_of(said: Any, budget: Budget, path: str) -> tuple[str, TensorSpec]:
    """A tensor's name and spec from what the process says: ``[name, dtype, shape, nbytes, role, unread]``.

    Raises:
        FormatError: it is none.
    """
    try:
        name, label, dims, nbytes, role, unread = said
        known = isinstance(name, str) and isinstance(label, str) and isinstance(unread, str) and role in ROLES
        shape = tuple(dim if type(dim) is int and dim >= 0 else -1 for dim in dims)
        dtype = dtype_named(label)
        if not known or type(nbytes) is not int or nbytes < 0 or -1 in shape or dtype.kind not in "biufcOV":
            raise ValueError
    except (TypeError, ValueError):
        raise FormatError(path, "corrupt or hostile: what was read of it is no tensor") from None
    checked = _strided.checked(dtype, shape, budget, path, name)
    if dtype.kind != "O" and nbytes != checked:
        raise FormatError(path, f"corrupt or hostile: {nbytes} bytes for {prod(shape)} values", tensor=name)
    return name, TensorSpec(dtype, shape, nbytes, role, unread)
