"""The bounds that every reader keeps to, whatever a file claims.

Promise: what is refused is refused before it is allocated, in Python's integers, and the same file is refused by the
same bound on every machine (but for :attr:`Budget.seconds`, which is set by who wants it). Limits: parts that refer
to each other are bounded only by what they come to in all; what a library that is not ours does with a file is
bounded only from outside (:attr:`Budget.isolated`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightport.errors import BudgetExceeded, FormatError

#: Whether files are not trusted that are opened without a word about it; see :attr:`Budget.isolated`.
ISOLATED: ContextVar[bool] = ContextVar("weightport.isolated", default=False)

#: Bytes of names that are free, whatever the size of the file.
NAMES = 1 << 24


@dataclass(slots=True)
class Budget:
    """The bounds of one reader, or of several that are opened together. Exceeding one is :class:`BudgetExceeded`.

    Attributes:
        header_bytes: bytes of header, index or structure that may be read or decompressed in all.
        tensors: named tensors in one file.
        depth: nesting of messages, groups or objects.
        rank: axes of one tensor.
        spread: bytes of names that are made of one byte of a file: where they share prefixes or scopes, few bytes can
            spell many.
        tensor_bytes: size of one tensor in memory.
        ratio: bytes that one stored byte may decompress to; more than a format can reach is refused anyway.
        seconds: processor time of this process, from when the budget was made, that reading structures may take; it is
            looked at whenever something is counted. 0 is any.
        isolated: whether a library that is not ours (HDF5's, tensorstore) reads the file in a process that may be lost.
    """

    header_bytes: int = 1 << 31
    tensors: int = 20_000_000
    depth: int = 64
    rank: int = 64
    tensor_bytes: int = 1 << 46
    spread: int = 16
    ratio: int = 1032
    seconds: int = 0
    isolated: bool = field(default_factory=ISOLATED.get)
    _spent: dict[str, int] = field(default_factory=dict, repr=False)
    _sizes: dict[object, int] = field(default_factory=dict, repr=False)
    _began: float = field(default=0.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seconds:  # to ask takes longer than to open a small file
            self._began = time.process_time()

    def check(self, kind: str, amount: int, path: object, *, tensor: str | None = None) -> None:
        """Refuse an ``amount`` above the bound ``kind``."""
        limit = getattr(self, kind)
        if amount > limit:
            raise BudgetExceeded(
                path, f"{kind.replace('_', ' ')}: {amount:,} asked for, at most {limit:,} allowed", tensor=tensor
            )

    def name(self, nbytes: int, size: int, path: object) -> None:
        """Count names that were made of a file of ``size`` bytes, and refuse those that come to far more than it has.

        16 MB are always allowed: hundreds of thousands of names of a length that is usual.
        """
        self._sizes[path] = max(size, self._sizes.get(path, 0))
        total = self._spent["names"] = self._spent.get("names", 0) + nbytes
        if total <= NAMES:
            return
        most = max(NAMES, self.spread * sum(self._sizes.values()))
        if total > most:
            what = f"names: {total:,} bytes, at most {most:,} for a file of {size:,}"
            raise BudgetExceeded(path, f"{what}: they multiply by what they share")

    def spend(self, kind: str, amount: int, path: object) -> None:
        """Add to what was used of ``kind`` so far, and refuse what goes over the bound."""
        total = self._spent.get(kind, 0) + amount
        self._spent[kind] = total
        self.check(kind, total, path)
        if self.seconds and time.process_time() - self._began > self.seconds:
            raise BudgetExceeded(
                path, f"seconds: its structure took more than {self.seconds} of processor time to read"
            )


def checked_nbytes(
    dtype: np.dtype[Any], shape: Sequence[int], budget: Budget, path: object, tensor: str | None = None
) -> int:
    """Bytes of a tensor of that dtype and shape, after checking rank, sign and size. Nothing is allocated.

    Raises:
        FormatError: a negative dimension, too many axes, or more bytes than the budget allows.
    """
    budget.check("rank", len(shape), path, tensor=tensor)
    total = dtype.itemsize
    for dim in shape:
        if dim < 0:
            raise FormatError(path, f"negative dimension in shape {list(shape)}", tensor=tensor)
        total *= int(dim)
    budget.check("tensor_bytes", total, path, tensor=tensor)
    return total
