"""How a target tensor is cut into boxes: what is made in one go from parts of the source that are held in memory.

Promise: boxes tile the tensor; what a box holds stays below a bound wherever any cut allows it; among the cuts, the one
that costs least is taken - long runs of bytes on both sides, little read twice, small boxes while that is free. Limit:
boxes are cut along one axis or two; the costs are those of a machine as they were measured, good to a factor of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, prod

import numpy as np

from weightport.ranges import Ranges, extent, whole
from weightport.tensors import Array, TensorSpec
from weightport.values import Expr, crossed


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done at a time, in bytes. The result does not depend on it.

    Attributes:
        hold: what all threads together hold of the source.
        task: what a task writes: enough that starting one costs nothing, little enough that all threads end together.
        tile: what is made at once, and stays in the cache from the read to the write; twice as much where it is only
            moved in blocks.
        chunk: what is copied at once.
        small: source tensors up to this are held whole where what is needed of them is not told.
        scattered: whether runs that are written apart from one another cost no more than others, as in memory.
    """

    hold: int = 48 << 20
    task: int = 16 << 20
    tile: int = 2 << 20
    chunk: int = 256 << 10
    small: int = 16 << 20
    scattered: bool = False

    def tile_of(self, expr: Expr) -> int:
        """The size of a tile of this expression."""
        return self.tile if crossed(expr) else 2 * self.tile


# Parts are read as one if that is so much more at most.
_LITTLE_MORE = 1.25
# Nanoseconds: of one system call with what Python needs around it, of one byte that is copied, and of one box.
_CALL, _BYTE, _BOX = 1500.0, 0.25, 30_000.0


def runs(ranges: Ranges, shape: tuple[int, ...]) -> tuple[Array, int]:
    """A part of a dense tensor as runs of consecutive elements: where each begins (int64), and how long each is.

    They come in the order of the part's own elements.
    """
    at, length, stride = len(shape), 1, 1
    while at and (length == stride):  # all axes behind are taken whole
        at -= 1
        if len(ranges[at]) > 1 and ranges[at].step != 1:
            at += 1
            break
        length *= len(ranges[at])
        stride *= shape[at]
    starts = np.zeros((1,), np.int64)
    stride = 1
    for axis in reversed(range(len(shape))):
        r = ranges[axis]
        if axis >= at:
            starts = starts + r.start * stride
        else:
            steps = np.arange(r.start, r.start + len(r) * r.step, r.step, dtype=np.int64)[: len(r)] * stride
            starts = (steps[:, None] + starts[None, :]).reshape(-1)
        stride *= shape[axis]
    return starts, length


def count_runs(ranges: Ranges, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many :func:`runs` there are, and how long each is."""
    at, length, stride = len(shape), 1, 1
    while at and (length == stride):
        at -= 1
        if len(ranges[at]) > 1 and ranges[at].step != 1:
            at += 1
            break
        length *= len(ranges[at])
        stride *= shape[at]
    return prod(len(r) for r in ranges[:at]), length


def hulls(expr: Expr, ranges: Ranges, specs: Mapping[str, TensorSpec], small: int) -> dict[str, list[Ranges]]:
    """Of each source tensor, the parts to read for a part of a target: what that needs, without short gaps.

    Parts that lie side by side are one; parts that lie far from each other stay apart.
    """
    found: dict[str, dict[Ranges, None]] = {}
    for name, part in expr.needs(ranges):
        found.setdefault(name, {})[part] = None
    for name in expr.leaves():  # of which single rows are picked, or that is gone through piece by piece
        if name not in found and specs[name].nbytes <= small:
            found[name] = {whole(specs[name].shape): None}
    return {
        name: [_without_short_gaps(part, specs[name]) for part in _joined(list(parts))] for name, parts in found.items()
    }


def _joined(parts: list[Ranges]) -> list[Ranges]:
    """Fewer parts, that hold little more than these."""
    if len(parts) > 1 and _worth(parts):
        return [_covering(parts)]
    joined: list[Ranges] = []
    for part in sorted(parts, key=lambda p: [r.start for r in p]):
        if joined and _worth([joined[-1], part]):
            joined[-1] = _covering([joined[-1], part])
        else:
            joined.append(part)
    return joined


def _worth(parts: list[Ranges]) -> bool:
    return prod(extent(_covering(parts))) <= _LITTLE_MORE * sum(prod(extent(p)) for p in parts)


def _covering(parts: list[Ranges]) -> Ranges:
    axes = zip(*parts, strict=True)
    return tuple(range(min(r.start for r in those), max(r[-1] for r in those) + 1) for those in axes)


def _without_short_gaps(ranges: Ranges, spec: TensorSpec) -> Ranges:
    """The part, or a larger one if reading what lies between its runs takes less than the calls that it saves."""
    wide = list(ranges)
    inner = spec.dtype.itemsize
    for axis in reversed(range(len(wide))):
        r, n = wide[axis], spec.shape[axis]
        if r.step > 1 and len(r) > 1:
            if (r.step - 1) * inner * _BYTE > _CALL:
                break
            r = wide[axis] = range(r.start, r[-1] + 1)
        if not axis or (n - len(r)) * inner * _BYTE > _CALL:
            break
        wide[axis] = range(n)
        inner *= n
    return tuple(wide)


@dataclass(frozen=True, slots=True)
class Cut:
    """How many elements of each axis a box has (the last ones may have fewer).

    Attributes:
        held: whether a box's parts of the source are read once and held, instead of being read for each tile.
    """

    steps: tuple[int, ...]
    held: bool = True

    def boxes(self, shape: tuple[int, ...]) -> Iterator[Ranges]:
        """All boxes, in the order of the tensor's elements."""
        axes = [
            [range(at, min(at + step, n)) for at in range(0, n, step)] if n else [range(0)]
            for step, n in zip(self.steps, shape, strict=True)
        ]
        return product(*axes)


def cut(expr: Expr, spec: TensorSpec, specs: Mapping[str, TensorSpec], sizes: Sizes) -> Cut:
    """The cut that costs least among those whose boxes hold no more of the source than ``sizes`` allow.

    Args:
        expr: what the target tensor is computed from.
        spec: the target tensor's.
        specs: of the source tensors that it is computed from.
        sizes: whose ``hold`` is one thread's.
    """
    shape, hold, tile = spec.shape, sizes.hold, sizes.tile_of(expr)
    costs = _Costs(expr, spec, specs, sizes)
    all_of_it = tuple(max(n, 1) for n in shape)
    held = costs.held(all_of_it)
    if not prod(shape) or (held <= tile and spec.nbytes <= tile):
        return Cut(all_of_it)
    candidates = [all_of_it] if held <= hold else []
    for axis, n in enumerate(shape):
        if n > 1:
            for most in (hold, tile):
                step = max(1, min(n, n * most // max(held, spec.nbytes if most == tile else 1)))
                step = ceil(n / ceil(n / step))  # boxes of one size
                candidates.append((*all_of_it[:axis], step, *all_of_it[axis + 1 :]))
    best = min(((costs.of(c), c) for c in candidates), default=(inf, all_of_it))
    # A cut that reads and writes in long runs costs no more than copying does: nothing else is looked at.
    if best[0] > 1.5 * costs.ideal(held):
        best = min([best, *((costs.of(c), c) for c in _pairs(costs, shape, all_of_it, hold))])
    if best[0] == inf:
        return Cut(all_of_it, held=False)
    return Cut(best[1])


def _pairs(costs: _Costs, shape: tuple[int, ...], full: tuple[int, ...], hold: int) -> Iterator[tuple[int, ...]]:
    for a, b in product(range(len(shape)), repeat=2):
        step = shape[b] // 2
        while a != b and step:
            if step > 1024:
                step -= step % 1024  # whole pages
            steps = list(full)
            steps[b] = step
            held = costs.held(tuple(steps))
            if held > hold:
                steps[a] = max(1, shape[a] * hold // held)
                if steps[a] > 1024:
                    steps[a] -= steps[a] % 1024
                yield tuple(steps)
            step //= 2


@dataclass(frozen=True, slots=True)
class _Costs:
    """What cuts cost, in nanoseconds, judged by their first box."""

    expr: Expr
    spec: TensorSpec
    specs: Mapping[str, TensorSpec]
    sizes: Sizes

    def _parts(self, steps: tuple[int, ...]) -> tuple[Ranges, list[tuple[str, Ranges]]]:
        box = tuple(map(range, steps)) if prod(self.spec.shape) else whole(self.spec.shape)
        found = hulls(self.expr, box, self.specs, self.sizes.small) if prod(self.spec.shape) else {}
        return box, [(name, part) for name, parts in found.items() for part in parts]

    def held(self, steps: tuple[int, ...]) -> int:
        """Bytes of the source that a box holds."""
        return sum(prod(extent(p)) * self.specs[n].dtype.itemsize for n, p in self._parts(steps)[1])

    def of(self, steps: tuple[int, ...]) -> float:
        box, parts = self._parts(steps)
        boxes = prod(ceil(n / step) for n, step in zip(self.spec.shape, steps, strict=True))
        calls = nbytes = 0
        for name, part in parts:
            number, length = count_runs(part, self.specs[name].shape)
            size = length * self.specs[name].dtype.itemsize
            calls += number * ceil(size / self.sizes.tile)
            nbytes += number * size
        if nbytes > self.sizes.hold:
            return inf
        number, length = count_runs(box, self.spec.shape)
        tiles = number * length * self.spec.dtype.itemsize // self.sizes.tile
        # Where runs are written apart to a file, the pages that they begin and end in are touched twice.
        calls += max(1 if self.sizes.scattered else number if number == 1 else 2 * number, tiles)
        hot = 0.6 if nbytes <= 2 * self.sizes.tile else 1.0
        return boxes * (_BOX + calls * _CALL + nbytes * hot * _BYTE)

    def ideal(self, held: int) -> float:
        return max(held, self.spec.nbytes) * _BYTE
