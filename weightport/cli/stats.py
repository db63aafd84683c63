"""What ``inspect --stats`` says of a tensor's values.

Promise: values are read in tiles, whole tensors only where they are small; sums are kept in float64 (Chan, Golub and
LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"). Limit: strings have no
statistics, complex numbers only counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightport.tensors import Array, Index, Source, TensorSpec

#: A tensor of at most so many bytes is read whole, so that its checksum is verified on the way.
WHOLE_BYTES = 32 << 20
TILE_BYTES = 4 << 20


@dataclass(slots=True)
class Stats:
    """Of the finite values: ``min``, ``max``, ``mean``, ``std`` (of the population); and the number of the others."""

    count: int = 0
    min: float | int | None = None
    max: float | int | None = None
    mean: float = 0.0
    _squares: float = 0.0
    nan: int = 0
    inf: int = 0
    numeric: bool = True

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def add(self, tile: Array) -> None:
        """Take in more values."""
        if tile.dtype.kind in "OSU":
            self.numeric = False
            return
        if tile.dtype.kind == "c":
            self.numeric = False
            self.nan += int(np.isnan(tile).sum())
            self.inf += int(np.isinf(tile).sum())
            return
        exact = tile.dtype.kind in "iu"
        values = tile.astype(np.float64).reshape(-1)  # bfloat16 and its like have no arithmetic of their own
        finite = np.isfinite(values)
        if not finite.all():
            self.nan += int(np.isnan(values).sum())
            self.inf += int(np.isinf(values).sum())
            values = values[finite]
        if not values.size:
            return
        low, high = (int(tile.min()), int(tile.max())) if exact else (float(values.min()), float(values.max()))
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
        total = self.count + values.size
        delta = mean - self.mean
        self._squares += squares + delta * delta * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total

    def as_json(self) -> dict[str, Any]:
        """``min``, ``max``, ``mean``, ``std`` (null where there are none), ``nan`` and ``inf``."""
        some = self.numeric and self.count > 0
        mean, std = (_number(self.mean), _number(self.std)) if some else (None, None)
        return {"min": self.min, "max": self.max, "mean": mean, "std": std, "nan": self.nan, "inf": self.inf}

    def __str__(self) -> str:
        if not self.numeric or not self.count:
            text = "" if not self.numeric else "no finite value" if self.nan or self.inf else "no value"
        else:
            text = f"{self.min:.4g} .. {self.max:.4g}, mean {self.mean:.4g}, std {self.std:.4g}"
        counts = [f"{n:,} {what}" for n, what in ((self.nan, "NaN"), (self.inf, "infinite")) if n]
        return ", ".join([*([text] if text else []), *counts])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # float64 at its ends


def stats(source: Source, name: str, spec: TensorSpec, progress: Callable[[int], None]) -> Stats:
    """The statistics of one tensor.

    Raises:
        FormatError: its values are truncated or corrupt.
    """
    found = Stats(numeric=spec.dtype.kind not in "OSU")
    for index in _tiles(spec):
        tile = source.read(name, index)
        found.add(tile)
        progress(tile.nbytes)
    return found


def _tiles(spec: TensorSpec) -> Iterator[Index]:
    """Indices that cut a tensor into tiles of about :data:`TILE_BYTES`."""
    if spec.nbytes <= WHOLE_BYTES or spec.dtype.kind in "OSU":
        yield None
        return
    axis, inner = 0, spec.nbytes // spec.shape[0]
    while inner > TILE_BYTES and axis + 1 < len(spec.shape):
        axis += 1
        inner //= spec.shape[axis]
    step = max(1, TILE_BYTES // inner)
    for outer in np.ndindex(spec.shape[:axis]):
        lead = tuple(slice(i, i + 1) for i in outer)
        for start in range(0, spec.shape[axis], step):
            yield (*lead, slice(start, min(start + step, spec.shape[axis])))
