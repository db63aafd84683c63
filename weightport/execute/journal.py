"""What of a transfer is done already: the journal beside a destination in the making, from which it is resumed.

Promise: a task that the journal says was done is taken for done only if what it wrote is read back from the file and
has the checksum that its bytes had when they were written; whatever else the journal says, and what follows a record
that is damaged or torn off, costs tasks being done again, and nothing else. It belongs to one transfer, which is told
by everything that decides about its result; one process at a time has it. The checksums of what was read of the source
are not lost. Limit: who can write to the destination's folder can forge it, as he can the destination.

A journal is a line of magic and records: size, crc32c, content. The first record is JSON, which says what transfer it
is; each of the others is one task: a digest that tells it from other tasks, the checksum of what it wrote, and the
pieces of the source's files that it read, with theirs. Nowhere does it say where anything is to be written: that is the
plan's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightport.checksums import CRC32C, combined, crc32c, function
from weightport.errors import Problem, RefusedError
from weightport.execute.boxes import runs
from weightport.execute.ledger import Pieces, pieces, settled
from weightport.execute.mover import run
from weightport.execute.tasks import Done, Piece, Task
from weightport.formats._io import ByteFile
from weightport.formats._temporaries import locked_folder, open_own, remove_kept
from weightport.ranges import whole
from weightport.tensors import Kept

#: After so many bytes, what was written is made durable, and then the journal's lines about it: as much as a crash of
#: the machine may cost. It is written all the same, and the fsync at the end has that much less to do.
SYNC = 1 << 30
_MAGIC = b"weightport journal 1\n"
_FRAME = struct.Struct("<II")
_NOTE = struct.Struct("<16sI")
_READ = np.dtype([("leaf", "<u4"), ("start", "<u8"), ("size", "<u8"), ("crc", "<u4")])
# A task that reads more pieces does not say which: what they are of is read once more, for its checksum.
_MOST_READ = 4096
_MOST_HEAD, _MOST_NOTE = 1 << 16, _NOTE.size + _MOST_READ * _READ.itemsize
# More tasks than a transfer has; what a journal has beyond is not looked at.
_MOST_TASKS = 1 << 20
_FAR = 1 << 62


@dataclass(frozen=True, slots=True)
class Resumed:
    """How much of a transfer was done by an earlier run.

    Attributes:
        found: bytes that were there already, and were read back.
        moved: bytes that were written.
        anew: why nothing of an earlier run could be used; empty if it could, or if there was none.
    """

    found: int
    moved: int
    anew: str = ""

    def as_json(self) -> dict[str, Any]:
        """The part of the document that ``transfer --json`` prints."""
        return {"found": self.found, "moved": self.moved, "anew": self.anew}


class Journal:
    """The journal of one transfer, open and locked; a context, at whose end it is removed or stays to be resumed.

    Args:
        path: where it is, or is to be.
        parts: everything that decides about the result: what it is, and its digest.
        told: called with a sentence about what becomes of an earlier run, and of this one if it fails.

    Attributes:
        kept: what writers need to find their temporaries again.

    Raises:
        RefusedError: another process has it, the file system has no locks, or something else is in its place.
        OSError: it cannot be made.
    """

    def __init__(self, path: str, parts: Mapping[str, str], told: Callable[[str], None] | None = None) -> None:
        self._path, self._folder, self._told = path, os.path.dirname(path), told or (lambda _: None)
        self._anew = ""
        self._moved = self._found = self._unsynced = 0
        self._tasks: dict[bytes, tuple[int, int]] = {}
        with locked_folder(self._folder):  # so that nobody removes it between its creation and its lock
            self._handle = open_own(path)
        try:
            _lock(self._handle, path)
            self._begin(dict(parts))
            if self._anew:
                self._told(f"begins anew: {self._anew}")
            elif self._tasks:
                self._told("goes on where an earlier run ended; what that wrote is read back first")
        except BaseException:
            os.close(self._handle)
            raise

    def _begin(self, parts: dict[str, str]) -> None:
        records = _records(self._handle)
        end, content = next(records, (0, b""))
        head = _head(content)
        if head is None or head[1] != parts:
            if os.fstat(self._handle).st_size:
                self._anew = _why(head, parts)
            if head is not None:
                remove_kept(self._folder, head[0])
            self.kept = Kept(secrets.token_hex(8))
            os.ftruncate(self._handle, 0)
            _write(self._handle, _MAGIC + _framed(json.dumps({"token": self.kept.token, "parts": parts}).encode()))
            return
        for end, content in records:
            if len(content) >= _NOTE.size and len(self._tasks) < _MOST_TASKS:
                self._tasks[content[:16]] = end - len(content), len(content)
        self.kept = Kept(head[0], keep=bool(self._tasks))
        os.ftruncate(self._handle, end)  # what was torn off
        os.lseek(self._handle, end, os.SEEK_SET)

    @property
    def resumed(self) -> Resumed:
        """What was found, and what was done."""
        return Resumed(self._found, self._moved, self._anew)

    # Tasks -----------------------------------------------------------------------------------------------------------

    def call(self, task: Task) -> tuple[Callable[..., Done], tuple[Any, ...]]:
        """What carries out a task, and its arguments: any executor can call it."""
        place = self._tasks.get(_key(task)) if self._tasks else None
        if place is None:
            return noted, (task,)
        return again, (task, os.pread(self._handle, place[1], place[0]))

    def take(self, done: Done, paths: Iterable[str]) -> None:
        """Note a task that was done.

        Args:
            done: what the call returned.
            paths: the files that are written to.
        """
        self._moved += done.nbytes
        self._found += done.kept
        self._unsynced += done.nbytes
        if done.note:
            _write(self._handle, _framed(done.note))
            self.kept.keep = True
        if self._unsynced >= SYNC:
            self.sync(paths)

    def sync(self, paths: Iterable[str]) -> None:
        """Make durable what was written, then what the journal says of it."""
        self._unsynced = 0
        for path in dict.fromkeys(paths):
            handle = os.open(path, os.O_RDWR)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        os.fsync(self._handle)

    def spoil(self) -> None:
        """What is noted is of no use: the source itself is damaged."""
        self.kept.keep = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None or not self.kept.keep:
            with contextlib.suppress(OSError), locked_folder(self._folder):
                os.unlink(self._path)
        else:
            self._told("what was written is kept: run it again with --resume, and it goes on there")
        os.close(self._handle)


def noted(task: Task) -> Done:
    """Carry out a task, with what a journal says of it."""
    done = run(task)
    done.note = _NOTE.pack(_key(task), _sum(task, done)) + _packed(task, done)
    return done


def again(task: Task, note: bytes) -> Done:
    """A task that an earlier run has done: if what it wrote is there, it is not done again."""
    done = _read_back(task)
    if done is None or _sum(task, done) != _NOTE.unpack_from(note)[1]:
        return noted(task)
    done.read = list(_unpacked(task, note))
    return done


def _key(task: Task) -> bytes:
    """What tells a task from others of the same transfer, and of one that is cut into other tasks."""
    found = hashlib.sha256(str(task.checksum).encode())
    for p in task.pieces:
        where = (os.path.basename(p.out), p.offset, p.name, p.spec.dtype_name, p.spec.shape, p.box)
        found.update(repr(where).encode("utf-8", "surrogatepass"))
    return found.digest()[:16]


def _sum(task: Task, done: Done) -> int:
    """One checksum of everything that a task wrote, in whatever pieces that was."""
    assert task.checksum is not None
    places = {piece.name: (piece.out, piece.offset) for piece in task.pieces}
    by_file: dict[str, list[Pieces]] = {piece.out: [pieces([])] for piece in task.pieces}
    for name, (starts, sizes, crcs) in done.written:
        out, offset = places[name]
        by_file[out].append((starts + offset, sizes, crcs))
    joined = [settled(task.checksum, found, 0, _FAR) for found in by_file.values()]
    _, sizes, crcs = (np.concatenate([found[n] for found in joined]) for n in range(3))
    return combined(task.checksum, crcs, sizes)


def _read_back(task: Task) -> Done | None:
    """What a task wrote, as it is in the files now; None if it is not all there."""
    done = Done()
    files: dict[str, ByteFile] = {}
    buffer = np.empty(task.sizes.chunk, np.uint8).data
    checksum = function(task.checksum or CRC32C)
    try:
        for piece in task.pieces:
            if piece.out not in files:
                files[piece.out] = ByteFile(piece.out)
            found = []
            for start, size in _places(piece):
                if piece.offset + start + size > files[piece.out].size:
                    return None
                crc = 0
                for at in range(start, start + size, len(buffer)):
                    view = buffer[: min(len(buffer), start + size - at)]
                    files[piece.out].read_into(piece.offset + at, view, tensor=piece.name)
                    crc = checksum(view, crc)
                found.append((start, size, crc))
                done.kept += size
            done.written.append((piece.name, pieces(found)))
    finally:
        for file in files.values():
            file.close()
    return done


def _places(piece: Piece) -> Iterator[tuple[int, int]]:
    """The byte ranges of a piece, from the beginning of its tensor: where each begins, and its size."""
    starts, length = runs(whole(piece.spec.shape) if piece.box is None else piece.box, piece.spec.shape)
    item = piece.spec.dtype.itemsize
    for start in (starts * item).tolist():
        yield start, length * item


# What was read of the source -------------------------------------------------------------------------------------


def _leaves(task: Task) -> list[tuple[int, str]]:
    return sorted({(piece.side, leaf) for piece in task.pieces for leaf in piece.expr.leaves()})


def _packed(task: Task, done: Done) -> bytes:
    """The pieces of the source's files that a task read, those that meet as one."""
    by_leaf: dict[tuple[int, str], list[Pieces]] = {}
    for side, name, found in done.read:
        by_leaf.setdefault((side, name), []).append(found)
    if not 0 < len(by_leaf) <= _MOST_READ:
        return b""
    read = []
    for leaf, parts in by_leaf.items():
        place = task.extents[leaf]
        assert place.checksum is not None
        read.append(
            settled(place.checksum.kind, parts, 0, _FAR) if len(parts) > 1 or len(parts[0][0]) > 1 else parts[0]
        )
    counts = [len(starts) for starts, _, _ in read]
    if sum(counts) > _MOST_READ:
        return b""
    numbers = {leaf: number for number, leaf in enumerate(_leaves(task))}
    packed = np.empty(sum(counts), _READ)
    packed["leaf"] = np.repeat([numbers[leaf] for leaf in by_leaf], counts)
    for n, column in enumerate(("start", "size", "crc")):
        packed[column] = np.concatenate([each[n] for each in read])
    return packed.tobytes()


def _unpacked(task: Task, note: bytes) -> Iterator[tuple[int, str, Pieces]]:
    """What :func:`_packed` made, and nothing of source tensors of which nothing is said: they are to be proven too."""
    rest = note[_NOTE.size :]
    read = np.frombuffer(rest, _READ, len(rest) // _READ.itemsize)
    read = read[(read["start"] < _FAR) & (read["size"] < _FAR)]
    read = read[np.argsort(read["leaf"], kind="stable")]
    leaves = _leaves(task)
    bounds = np.searchsorted(read["leaf"], np.arange(len(leaves) + 1)).tolist()
    for number, (side, name) in enumerate(leaves):
        place = task.extents.get((side, name))
        if place is None or place.checksum is None:
            continue
        its = read[bounds[number] : bounds[number + 1]]
        found = its["start"].astype(np.int64), its["size"].astype(np.int64), its["crc"].astype(np.uint32)
        offset, size = place.checksum.offset, place.checksum.size
        yield side, name, settled(place.checksum.kind, [found], offset, offset + size) if len(its) else found


# Records -----------------------------------------------------------------------------------------------------------


def _framed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), crc32c(content)) + content


def _record(handle: int, offset: int, most: int) -> bytes | None:
    """The record at a place; None if there is none that is whole."""
    frame = os.pread(handle, _FRAME.size, offset)
    if len(frame) < _FRAME.size:
        return None
    size, crc = _FRAME.unpack(frame)
    if size > most:
        return None
    content = os.pread(handle, size, offset + _FRAME.size)
    return content if len(content) == size and crc32c(content) == crc else None


def _records(handle: int) -> Iterator[tuple[int, bytes]]:
    """All records, up to the first that is damaged: where each ends, and its content."""
    at, most = len(_MAGIC), _MOST_HEAD
    if os.pread(handle, at, 0) != _MAGIC:
        return
    while (content := _record(handle, at, most)) is not None:
        at, most = at + _FRAME.size + len(content), _MOST_NOTE
        yield at, content


def _head(content: bytes) -> tuple[str, dict[str, str]] | None:
    """The token and the parts of a journal; None if it has none."""
    try:
        found = json.loads(content)
        token, parts = found["token"], found["parts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(token, str) and re.fullmatch(r"[0-9a-f]{16}", token) and isinstance(parts, dict)
    return (token, parts) if good else None


def _why(head: tuple[str, dict[str, str]] | None, parts: Mapping[str, str]) -> str:
    if head is None:
        return "the journal of the earlier run is damaged"
    other = [name for name, digest in parts.items() if head[1].get(name) != digest]
    return f"the earlier run had another {', another '.join(other)}" if other else "the earlier run was another"


def _write(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def _lock(handle: int, path: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            what, hint = "another transfer to this destination is at work, and has it", "wait for its end"
        else:
            what, hint = f"cannot be locked here ({error.strerror})", "leave out --resume"
        raise RefusedError(Problem(path, what, hint)) from None
