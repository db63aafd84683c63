"""A plan's result as a file.

Promise: values are written where they belong, in tasks that run side by side; peak memory is bounded by the number of
threads, not by the model; the result is the same bytes whatever the threads, tiles and executor. Every checksum of the
source is verified before the file appears. Formats that only know streams get their tiles one after the other.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from weightport import values
from weightport.checksums import CRC32C, function
from weightport.errors import FormatError
from weightport.execute import boxes
from weightport.execute.adopt import adopted
from weightport.execute.holding import SCRATCH, TILE
from weightport.execute.ledger import Sheet
from weightport.execute.mover import run
from weightport.execute.reader import Reader
from weightport.execute.rowwise import rowwise
from weightport.execute.tasks import Done, Piece, Side, Task
from weightport.execute.watch import Unchanged
from weightport.formats._io import ByteFile
from weightport.plan.model import KEPT, Item, Plan
from weightport.tensors import Array, Destination, Extent, FileWriter, RangedWriter, Source, TensorSpec, extent_of
from weightport.values import Expr, Leaf

if TYPE_CHECKING:
    from weightport.execute.journal import Journal

#: How much is done at a time.
SIZES = boxes.Sizes()
#: Threads beyond this add nothing: the file system lets one at a time write to a file.
THREADS = 4
# Tasks that are given to an executor before the first of them is done.
_AHEAD = 4
# A task that writes less than one in so many parts of what a task is to write takes the next box along, however large:
# dealt out in turn, tasks are as good as one another.
_LEAST = 4

#: Told the bytes that were produced.
Progress = Callable[[int], None]


def write_file(
    plan: Plan,
    source: Source,
    kept: Source | None,
    path: str,
    write: FileWriter,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    watch: Unchanged | None = None,
    threads: int | None = None,
    executor: Executor | None = None,
    link: bool = False,
    journal: Journal | None = None,
) -> bool:
    """Write the plan's result: its items, and of the target's own tensors those that keep their values.

    Args:
        plan: without problems.
        source: the plan's source.
        kept: the target file, whose kept tensors are copied; None if there is no target.
        path: where to; the old file stays until the new one is complete.
        write: the format's writer.
        metadata: provenance, for formats that have room for it.
        progress: told of the bytes as they are written.
        watch: the files of ``source`` and ``kept``.
        threads: how many; by default as many as there are processors, at most :data:`THREADS`.
        executor: runs the tasks instead of threads of its own. They can be pickled.
        link: where names are all that changes, the result's data files are to be the source's own.
        journal: what an earlier run has done; only for a format that is written by range.

    Returns:
        Whether values were read, and their checksums compared; where names are all that changed, they may not be.

    Raises:
        FormatError: a source is truncated, corrupt, or changed while it was read.
        Error: the destination cannot be written.
        RefusedError: ``link``, and values change or are left behind.
    """
    plan.check()
    items = _items(plan, kept)
    readers = [Reader(s, watch) for s in (source, kept) if s is not None]

    def tiles(name: str) -> Iterator[Array]:
        side, item = items[name]
        for part in readers[side].tiles(item):
            yield part
            if progress is not None:
                progress(part.nbytes)

    specs = {name: item.spec for name, (_, item) in items.items()}
    if adopted(path, write, [r.source for r in readers], items, watch, link=link, metadata=metadata):
        if progress is not None:
            progress(sum(spec.nbytes for spec in specs.values()))
        return False
    begun = None
    if isinstance(write, RangedWriter):
        begun = write.destination(path, specs, tiles, metadata=metadata, kept=journal.kept if journal else None)
    if begun is None:
        write(path, specs, tiles, metadata=metadata, **_told(items))
        return True
    job = Job([r.source for r in readers], items, progress, watch, journal=journal)
    with begun as out:
        job.run(out, threads or min(THREADS, processors()), executor)
    return True


def check_file(plan: Plan, kept: Source | None, path: str, write: FileWriter) -> None:
    """Raise what :func:`write_file` would, as far as a writer can tell without the values. Nothing is written."""
    check = getattr(write, "check", None)
    if check is not None:
        items = _items(plan.check(), kept)
        check(path, {name: item.spec for name, (_, item) in items.items()}, **_told(items))


def _items(plan: Plan, kept: Source | None) -> dict[str, tuple[int, Item]]:
    """All that the result holds, and which source it comes from: the plan's, or the target."""
    items: dict[str, tuple[int, Item]] = {}
    for name, spec in plan.specs.items():
        if name in plan.items:
            items[name] = 0, plan.items[name]
        elif kept is not None and plan.target.get(name) == KEPT:
            items[name] = 1, Item(name, spec, Leaf(name, spec), False, "keep")
    return items


def _told(items: Mapping[str, tuple[int, Item]]) -> dict[str, set[str]]:
    """What a writer is told besides: what becomes constant, and what keeps its value."""
    return {
        "constants": {name for name, (_, item) in items.items() if item.constant},
        "kept": {name for name, (side, _) in items.items() if side},
    }


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class Job:
    """A transfer under way: its tasks, and what they prove."""

    sources: list[Source]
    items: Mapping[str, tuple[int, Item]]
    progress: Progress | None
    watch: Unchanged | None
    sizes: boxes.Sizes = field(default_factory=lambda: SIZES)
    extents: dict[tuple[int, str], Extent | None] = field(default_factory=dict)
    read: dict[tuple[int, str], Sheet] = field(default_factory=dict)
    written: dict[str, Sheet] = field(default_factory=dict)
    journal: Journal | None = None

    def run(self, out: Destination, threads: int, executor: Executor | None) -> None:
        """Write everything that ``out`` has a place for, and prove every checksum of what was read."""
        tasks = self.tasks(out, threads)
        if executor is not None:
            self._spread(tasks, out, executor, getattr(executor, "ahead", 2 * _AHEAD))
        elif threads == 1:
            try:
                for task in tasks:
                    call, arguments = self._call(task)
                    self._take(call(*arguments), out)
            finally:
                SCRATCH.release()
                TILE.release()
        else:
            with ThreadPoolExecutor(threads, "weightport") as pool:
                self._spread(tasks, out, pool, threads + _AHEAD)
        self._prove()
        if self.watch is not None:
            self.watch.check(sure=executor is not None)

    def _extent(self, side: int, name: str) -> Extent | None:
        key = side, name
        if key not in self.extents:
            self.extents[key] = extent_of(self.sources[side], name)
        return self.extents[key]

    # Tasks -----------------------------------------------------------------------------------------------------------

    def tasks(self, out: Destination, threads: int = 1) -> Iterator[Task]:
        """All that is to be done, in the order of the destination, for so many threads that share their memory.

        Raises:
            FormatError: a tensor's bytes are not there. Nothing was written.
        """
        for name in out.places:
            side, item = self.items[name]
            for leaf in item.expr.leaves():
                self._extent(side, leaf)
        sizes = replace(self.sizes, hold=self.sizes.hold // threads)
        key = uuid.uuid4().hex
        sides = tuple(Side(source, key) for source in self.sources)
        batch: list[Piece] = []
        size = 0
        for name, place in out.places.items():
            for piece, nbytes in self._pieces(name, place, sizes):
                if size + nbytes > sizes.task and _LEAST * size >= sizes.task:
                    yield self._task(out, sides, batch, sizes)
                    batch, size = [], 0
                batch.append(piece)
                size += nbytes
        if batch:
            yield self._task(out, sides, batch, sizes)

    def _pieces(self, name: str, place: tuple[str, int], sizes: boxes.Sizes) -> Iterator[tuple[Piece, int]]:
        side, item = self.items[name]
        spec, expr = item.spec, item.expr
        if isinstance(expr, Leaf) and self._extent(side, expr.name) is not None:
            if spec.nbytes <= sizes.task:
                yield Piece(name, expr, spec, None, True, *place, side), spec.nbytes
                return
            cut = boxes.Cut(_rows(spec, sizes.task))
        elif rowwise(expr, {n for n in expr.leaves() if self._extent(side, n) is not None}, sizes.tile) is not None:
            cut = boxes.Cut(_rows(spec, sizes.task))
        else:
            specs = self.sources[side].specs()
            leaves = {leaf: specs[leaf] for leaf in expr.leaves()}
            cut = boxes.cut(expr, spec, leaves, sizes)
        if cut.steps == tuple(max(n, 1) for n in spec.shape) or _is_one(expr):
            yield Piece(name, expr, spec, None, cut.held, *place, side), spec.nbytes
            return
        for box in cut.boxes(spec.shape):
            nbytes = spec.dtype.itemsize
            for r in box:
                nbytes *= len(r)
            yield Piece(name, expr, spec, box, cut.held, *place, side), nbytes

    def _task(self, out: Destination, sides: tuple[Side, ...], batch: list[Piece], sizes: boxes.Sizes) -> Task:
        leaves = {(p.side, leaf) for p in batch for leaf in p.expr.leaves()}
        extents = {key: found for key in leaves if (found := self.extents.get(key)) is not None}
        specs = {(side, name): self.sources[side].specs()[name] for side, name in leaves}
        checksum = out.checksum if self.journal is None else out.checksum or CRC32C
        return Task(checksum, sides, tuple(batch), specs, extents, sizes, getattr(out, "memory", None))

    def _call(self, task: Task) -> tuple[Callable[..., Done], tuple[Any, ...]]:
        """What carries out a task, and its arguments."""
        return (run, (task,)) if self.journal is None else self.journal.call(task)

    def _spread(self, tasks: Iterator[Task], out: Destination, executor: Executor, ahead: int) -> None:
        """Run tasks side by side; only a few wait, so that a transfer of any size takes little memory."""
        waiting: deque[Future[Done]] = deque()
        try:
            for task in tasks:
                call, arguments = self._call(task)
                waiting.append(executor.submit(call, *arguments))
                if len(waiting) >= ahead:
                    self._take(waiting.popleft().result(), out)
            while waiting:
                self._take(waiting.popleft().result(), out)
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:  # what runs still writes: it is waited for, so that nobody writes after the end
                if not future.cancelled():
                    future.exception()

    def _take(self, done: Done, out: Destination) -> None:
        if self.journal is not None:
            self.journal.take(done, (path for path, _ in out.places.values()))
        for side, name, found in done.read:
            place = self.extents[side, name]
            if place is None or place.checksum is None:
                continue  # proven already
            stated = place.checksum
            sheet = self.read.get((side, name))
            if sheet is None:
                sheet = self.read[side, name] = Sheet(stated.kind, stated.offset, stated.size)
            crc = sheet.add(found)
            if crc is not None:
                self._proven(side, name, crc)
        for name, found in done.written if out.checksum is not None else ():
            assert out.checksum is not None
            spec = self.items[name][1].spec
            sheet = self.written.get(name)
            if sheet is None:
                sheet = self.written[name] = Sheet(out.checksum, 0, spec.nbytes)
            crc = sheet.add(found)
            if crc is not None:
                out.done(name, crc)
                del self.written[name]
        if self.watch is not None:
            self.watch.check()
        if self.progress is not None:
            self.progress(done.nbytes + done.kept)

    # Proof -----------------------------------------------------------------------------------------------------------

    def _prove(self) -> None:
        """What of the source was read in part is read whole, for its checksum."""
        for (side, name), sheet in list(self.read.items()):
            place = self.extents[side, name]
            assert place is not None
            assert place.checksum is not None
            self._proven(side, name, sheet.finish(_rest(place.path, place.checksum.kind, name)))
        assert not self.written, "bytes that no task wrote"

    def _proven(self, side: int, name: str, crc: int) -> None:
        """Compare what was read with what the file states.

        Raises:
            FormatError: it is something else.
        """
        place = self.extents[side, name]
        assert place is not None
        if place.checksum is not None and place.checksum.value != crc:
            if self.journal is not None:
                self.journal.spoil()
            # The reader says it in its own words, if it is the file that is wrong and not what was read of it.
            source = self.sources[side]
            source.read(name, (slice(0, 1),) * len(source.specs()[name].shape))
            what = "was read twice with two results: is the disk or the memory damaged?"
            raise FormatError(place.path, what, tensor=name)
        self.extents[side, name] = replace(place, checksum=None)
        del self.read[side, name]


def _rest(path: str, kind: str, tensor: str) -> Callable[[int, int], int]:
    """Reads what of a file was not read yet, for its checksum."""
    checksum = function(kind)

    def read(offset: int, size: int) -> int:
        crc = 0
        with ByteFile(path) as file:
            for chunk in file.chunks(offset, size, tensor=tensor):
                crc = checksum(chunk, crc)
        return crc

    return read


def _rows(spec: TensorSpec, most: int) -> tuple[int, ...]:
    """Steps along one axis, of consecutive bytes."""
    size = spec.nbytes
    steps = [1] * len(spec.shape)
    for axis, n in enumerate(spec.shape):
        size //= n
        if size <= most:
            steps[axis] = max(1, most // max(1, size))
            steps[axis + 1 :] = spec.shape[axis + 1 :]
            break
    return tuple(min(s, n) for s, n in zip(steps, spec.shape, strict=True))


def _is_one(expr: Expr) -> bool:
    """Whether an expression keeps between two boxes what would take long to make again."""
    kept = isinstance(expr, values.Mean) or (isinstance(expr, values.Made) and expr.rows is None)
    return kept or any(map(_is_one, values.operands(expr)))
