"""How the quantized tensors of files stand for floats: by a scale and a zero point, or in ggml's blocks.

Promise: a part of the values is computed from the stored part that it needs; values are float32, computed as the
formats' own kernels do. Limit: ggml's blocks are decoded by the gguf package, in the kinds that it knows.

Sources: tensorflow/lite/schema/schema.fbs (``QuantizationParameters``),
tensorflow/lite/kernels/internal/reference/dequantize.h; ggml/src/ggml-quants.h, gguf/quants.py (``dequantize``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from weightport.errors import Error, MissingPackage
from weightport.tensors import Array, Ranges

_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Affine:
    """``scale * (stored - zero point)``.

    Attributes:
        scales, zeros: one for all, or one for each position on ``axis``.
    """

    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zeros: tuple[int, ...]
    axis: int = 0

    @property
    def title(self) -> str:
        """The numbers, where they are the same everywhere."""
        if len(self.scales) > 1:
            return f"quantized: {len(self.scales):,} scales along axis {self.axis}"
        return f"quantized: scale {self.scales[0]:g}, zero point {self.zeros[0]}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """``float32``."""
        return _FLOAT

    def stored(self, ranges: Ranges) -> Ranges:
        """The same part."""
        return ranges

    def decode(self, stored: Array, ranges: Ranges) -> Array:
        """The part in floats."""
        scale, zero = (np.array(v) for v in (self.scales, self.zeros))
        if len(self.scales) > 1:
            along = [1] * stored.ndim
            along[self.axis] = -1
            picked = ranges[self.axis]
            at = slice(picked.start, picked.stop, picked.step)
            scale, zero = scale[at].reshape(along), np.broadcast_to(zero, len(self.scales))[at].reshape(along)
        else:
            scale, zero = scale[0], zero[0]
        centred = stored.astype(np.int64) - zero
        with np.errstate(all="ignore"):  # of damaged scales
            return np.asarray(centred.astype(np.float32) * scale.astype(np.float32), np.float32)

    def check(self) -> None:
        """Nothing is needed."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """ggml's blocks along the last axis: each of ``elements`` values takes ``size`` bytes.

    Attributes:
        kind: the type's name: ``Q4_0``.
        number: ggml's number of the type.
    """

    kind: str
    number: int
    shape: tuple[int, ...]
    elements: int
    size: int

    @property
    def title(self) -> str:
        """The type, and the shape of the values."""
        return f"quantized: {self.kind} of {'×'.join(map(str, self.shape))}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """``float32``."""
        return _FLOAT

    def _cover(self, last: range) -> range:
        """The blocks, by number, that a part of the last axis lies in."""
        if not last:
            return range(0)
        low, high = min(last[0], last[-1]), max(last[0], last[-1])
        return range(low // self.elements, high // self.elements + 1)

    def stored(self, ranges: Ranges) -> Ranges:
        """The bytes of the blocks that the part touches."""
        blocks = self._cover(ranges[-1])
        return (*ranges[:-1], range(blocks.start * self.size, blocks.stop * self.size))

    def decode(self, stored: Array, ranges: Ranges) -> Array:
        """The part in floats."""
        last = ranges[-1]
        count = tuple(map(len, ranges))
        if not all(count):
            return np.empty(count, np.float32)
        rows = np.ascontiguousarray(stored).reshape(-1, stored.shape[-1])
        values = self._dequantize(rows).reshape((*stored.shape[:-1], -1))
        begin = self._cover(last).start * self.elements
        return np.array(values[..., last.start - begin : last.stop - begin : last.step], np.float32, order="C")

    def _dequantize(self, rows: Array) -> Array:
        try:
            from gguf import GGMLQuantizationType, quants
        except ImportError:
            raise MissingPackage(f"dequantizing {self.kind}", "gguf", "gguf") from None
        with np.errstate(all="ignore"):  # of damaged blocks
            found: Array = quants.dequantize(rows, GGMLQuantizationType(self.number))
        return found

    def check(self) -> None:
        """Decode a block of zeros.

        Raises:
            MissingPackage: the gguf package is not there.
            Error: it cannot decode this kind.
        """
        try:
            self._dequantize(np.zeros((1, self.size), np.uint8))
        except (NotImplementedError, ValueError, KeyError):
            raise Error(f"the installed gguf package cannot dequantize {self.kind}") from None
