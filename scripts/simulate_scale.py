"""What a very large transfer takes, without its disk: ``python scripts/simulate_scale.py``.

Two checkpoints of zeros, in sparse files that take no room. One of ``--tb`` TB in ``--shards`` shards is planned and
cut into tasks: how long that takes, in how much memory, and which bytes each of ``--workers`` workers would read and
write (``--ranges FILE`` lists all of them). Another of ``--gb`` GB is transposed for real, until ``--share`` MB are
written: the process's memory over time, as text and with ``--plot FILE.svg`` as a picture. All is removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from benchmarks import folder

import weightport as wp
from weightport.checksums import CRC32C, combined, crc32c
from weightport.execute.boxes import hulls, runs
from weightport.execute.files import Job
from weightport.execute.tasks import Piece, Task
from weightport.formats._table import mask
from weightport.formats._tensorproto import NUMBERS
from weightport.formats.safetensors_file import write
from weightport.formats.tf_bundle_write import _write_index
from weightport.ranges import whole
from weightport.tensors import Array

_TURNED = [
    {"from": "encoder/layer_{n}/kernel", "to": "layers.{n}.weight", "rearrange": "i o -> o i"},
    {"from": "encoder/layer_{n}/bias", "to": "layers.{n}.bias"},
]


class Enough(Exception):
    """The share is done."""


def zeros(size: int) -> int:
    """The checksum of so many zero bytes."""
    piece = 1 << 20
    known = crc32c(bytes(min(piece, size)))
    whole_pieces, rest = divmod(size, piece)
    if not whole_pieces:
        return known
    while whole_pieces > 1 and whole_pieces % 2 == 0:
        known, piece, whole_pieces = combined(CRC32C, [known, known], [piece, piece]), 2 * piece, whole_pieces // 2
    found = combined(CRC32C, [known] * whole_pieces, [piece] * whole_pieces)
    return combined(CRC32C, [found, crc32c(bytes(rest))], [size - rest, rest])


def make(prefix: Path, total: int, shards: int) -> int:
    """A checkpoint of zeros: square matrices of 64 MB and a bias each. Returns how many tensors it has."""
    side = 4096 if total >= 1 << 31 else 256
    shapes = {"kernel": (side, side), "bias": (side,)}
    crcs = {name: mask(zeros(4 * side ** len(shape))) for name, shape in shapes.items()}
    each = total // shards
    entries = {}
    layer = 0
    for shard in range(shards):
        at = 0
        while at == 0 or at + 4 * side * side <= each:
            for name, shape in shapes.items():
                size = 4 * side ** len(shape)
                key = f"encoder/layer_{layer}/{name}".encode()
                entries[key] = (NUMBERS["float32"], shape, shard, at, size, crcs[name])
                at += size
            layer += 1
        with open(f"{prefix}.data-{shard:05d}-of-{shards:05d}", "wb") as file:
            file.truncate(at)
    with open(f"{prefix}.index", "wb") as index:
        _write_index(entries, index, shards, 0)
    return len(entries)


#: Byte ranges of one file: its name, where each begins, and how long each is.
Ranges = tuple[str, list[int], int]


def reads(task: Task, piece: Piece) -> Iterator[Ranges]:
    """The byte ranges that a piece reads."""
    box = whole(piece.spec.shape) if piece.box is None else piece.box
    specs = {name: task.specs[piece.side, name] for name in piece.expr.leaves()}
    parts = hulls(piece.expr, box, specs, task.sizes.small)
    for name, hull in ((name, hull) for name, found in parts.items() for hull in found):
        place = task.extents[piece.side, name]
        starts, length = runs(hull, specs[name].shape)
        yield os.path.basename(place.path), (place.offset + starts * 4).tolist(), length * 4


def writes(piece: Piece) -> Iterator[Ranges]:
    """The byte ranges that a piece writes."""
    starts, length = runs(whole(piece.spec.shape) if piece.box is None else piece.box, piece.spec.shape)
    yield "out", (piece.offset + starts * 4).tolist(), length * 4


def shared(where: Path, tb: float, shards: int, workers: int, ranges: TextIO | None) -> None:
    """Plan a large checkpoint, cut it into tasks, and deal these out."""
    tensors = make(where / "large", int(tb * 1e12), shards)
    start, cpu = time.perf_counter(), time.process_time()
    with wp.open(where / "large") as source:
        opened = time.process_time() - cpu
        plan = wp.plan(source, None, {"weightport": 1, "rules": _TURNED}).check()
        planned = time.process_time() - cpu - opened
        items = {name: (0, item) for name, item in plan.items.items()}
        specs = {name: item.spec for name, item in plan.items.items()}
        told: list[list[int]] = [[0, 0, 0, 0, 0] for _ in range(workers)]
        destination = write.destination(str(where / "out.safetensors"), specs, _nothing)
        with contextlib.suppress(Enough), destination as out:
            for worker, task in dealt(Job([source], items, None, None).tasks(out), workers):
                _account(task, told[worker], worker, ranges)
            raise Enough  # so that the file does not appear
    cut = time.process_time() - cpu - opened - planned
    print(f"{tb:g} TB in {shards:,} shards, {tensors:,} tensors, {plan.bytes / 1e12:.2f} TB to write")
    print(f"  opened in {opened:.2f} s, planned in {planned:.2f} s, cut into tasks in {cut:.2f} s (processor time)")
    print(f"  {time.perf_counter() - start:.2f} s in all; peak memory {peak() / 1e6:.0f} MB")
    for worker, (tasks, read, reading, written, writing) in enumerate(told):
        print(
            f"  worker {worker}: {tasks:,} tasks, reads {read / 1e9:,.1f} GB in {reading:,} ranges, "
            f"writes {written / 1e9:,.1f} GB in {writing:,} ranges"
        )


def dealt(tasks: Iterable[Task], workers: int) -> Iterator[tuple[int, Task]]:
    """Each task in its order, for the worker that has the least to write so far; that is who would be free first."""
    busy = [(0, worker) for worker in range(workers)]
    for task in tasks:
        written, worker = busy[0]
        size = sum(length * len(starts) for piece in task.pieces for _, starts, length in writes(piece))
        heapq.heapreplace(busy, (written + size, worker))
        yield worker, task


def _nothing(name: str) -> Iterator[Array]:
    raise AssertionError(f"{name} is no string")


def _account(task: Task, told: list[int], worker: int, ranges: TextIO | None) -> None:
    told[0] += 1
    for piece in task.pieces:
        for at, found in ((1, reads(task, piece)), (3, writes(piece))):
            for file, starts, size in found:
                told[at] += size * len(starts)
                told[at + 1] += len(starts)
                kind = "read" if at == 1 else "write"
                for start in starts if ranges else ():
                    assert ranges is not None
                    ranges.write(json.dumps([worker, kind, file, start, size]) + "\n")


def peak() -> int:
    """The largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident() -> int:
    """The resident set now, in bytes (Linux; the largest so far elsewhere)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        return peak()


def turned(where: Path, gb: float, share: int, plot: str | None) -> None:
    """Transpose a share of a large checkpoint, and watch the memory."""
    tensors = make(where / "turned", int(gb * 1e9), max(1, int(gb // 10)))
    seen: list[tuple[int, int]] = []
    done = 0

    def progress(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        seen.append((done, resident()))
        if done >= share * 1_000_000:
            raise Enough

    idle = resident()
    start = time.perf_counter()
    with contextlib.suppress(Enough):
        out = where / "turned.safetensors"
        wp.transfer(where / "turned", None, {"weightport": 1, "rules": _TURNED}, out=out, progress=progress)
    print(f"{gb:g} GB, {tensors:,} tensors, transposed for {done / 1e6:,.0f} MB: {time.perf_counter() - start:.1f} s")
    least, most = min(r for _, r in seen[len(seen) // 4 :]), max(r for _, r in seen)
    print(f"  memory: {idle / 1e6:.0f} MB before, {least / 1e6:.0f} to {most / 1e6:.0f} MB while it ran")
    for nbytes, now in seen[:: max(1, len(seen) // 16)]:
        print(f"  {nbytes / 1e6:8,.0f} MB written  {now / 1e6:5.0f} MB  {'#' * (now // 4_000_000)}")
    if plot is not None:
        Path(plot).write_text(picture(seen, idle), encoding="utf-8")


def picture(seen: Sequence[tuple[int, int]], idle: int) -> str:
    """Memory over what was written, as SVG."""
    across, high = seen[-1][0], max(r for _, r in seen) * 1.2
    points = " ".join(f"{60 + 520 * n / across:.1f},{260 - 240 * r / high:.1f}" for n, r in seen)
    texts: Mapping[str, tuple[float, float]] = {
        "0": (50, 275), f"{across / 1e9:.1f} GB written": (500, 275), f"{high / 1e6:.0f} MB resident": (5, 15),
        f"idle: {idle / 1e6:.0f} MB": (64, 255 - 240 * idle / high),
    }  # fmt: skip
    labels = "".join(f'<text x="{x:.0f}" y="{y:.0f}" font-size="11">{text}</text>' for text, (x, y) in texts.items())
    level = f'<path d="M60 {260 - 240 * idle / high:.1f}H580" stroke="#999" stroke-dasharray="4"/>'
    line = f'<polyline points="{points}" fill="none" stroke="#06c"/>'
    axes = '<path d="M60 20V260H580" fill="none" stroke="black"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 285" font-family="sans-serif">'
    return f"{head}{axes}{level}{line}{labels}</svg>\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tb", type=float, default=1.0)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--ranges", help="a file for every byte range, a JSON list in each line")
    parser.add_argument("--gb", type=float, default=100.0)
    parser.add_argument("--share", type=int, default=2000, help="MB that are transposed (default: 2000)")
    parser.add_argument("--plot", help="a file for the picture of the memory")
    parser.add_argument("--folder", help="where the sparse files are made and removed again")
    given = parser.parse_args(arguments)
    where = folder(given.folder, "weightport-simulate") / f"scale-{os.getpid()}"
    where.mkdir()
    try:
        turned(where, given.gb, given.share, given.plot)
        if given.ranges:
            with open(given.ranges, "w", encoding="utf-8") as ranges:
                shared(where, given.tb, given.shards, given.workers, ranges)
        else:
            shared(where, given.tb, given.shards, given.workers, None)
    finally:
        shutil.rmtree(where)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
