"""What must hold of a source's values so that a conversion is exact: what the target has no place for does nothing.

A layout that has no place for a parameter is the same function all the same where that parameter does nothing: where
peepholes or a bias are zero, where a projection is the identity, where recurrent weights are zero off their diagonal.

Promise: every element is judged as it is stored; nothing is rounded, and NaN is nothing that it would have to be.
Limit: the cell's states are finite, since zero times infinity is not zero. No tensor is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.ranges import Ranges, extent
from weightport.tensors import Array

ZERO, IDENTITY, DIAGONAL = "zero", "identity", "diagonal"


@dataclass(frozen=True, slots=True)
class Condition:
    """One parameter, of one gate, that the target has no place for.

    Attributes:
        tensor: the source tensor that holds it.
        ranges: the part of the tensor that it is, one range per dimension.
        axes: its canonical axes in the order in which the part's elements run, of the sizes ``shape``.
        must: ``zero``; ``identity``, or ``diagonal``: zero where its two axes have different places.
        lacking: what the target does not have, for people: ``peepholes``.
        says: the condition as a sentence: ``the peepholes are all zero``.
        where: the rule and the two cells' scopes.
        hint: what can be done where it does not hold.
        holds: None as long as nobody looked.
    """

    tensor: str
    ranges: Ranges
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    must: str
    lacking: str
    says: str
    where: str = ""
    hint: str = ""
    holds: bool | None = None

    def offence(self, part: Array, start: int = 0) -> tuple[tuple[int, ...], Any] | None:
        """The first element that is not as it must be: its index in the tensor, and its value; None if all are.

        Args:
            part: rows of the part of the tensor, all of it on the other dimensions.
            start: the first of these rows.
        """
        flat = part.reshape(-1)
        wrong = flat != np.zeros((), flat.dtype)
        if self.must != ZERO:
            before = start * prod(part.shape[1:])
            places = np.unravel_index(np.arange(before, before + flat.size), self.shape)
            on = places[0] == places[1]
            wrong = np.where(on, flat != np.ones((), flat.dtype), wrong) if self.must == IDENTITY else wrong & ~on
        if not wrong.any():
            return None
        first = int(np.argmax(wrong))
        at = np.unravel_index(first, part.shape)
        index = (start + int(at[0]), *map(int, at[1:]))
        return tuple(r[k] for r, k in zip(self.ranges, index, strict=True)), flat[first]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return prod(extent(self.ranges))


def sentence(conditions: Iterable[Condition]) -> str:
    """All of them in one: ``the peepholes are all zero and the projection is the identity``."""
    return " and ".join(dict.fromkeys(c.says for c in conditions))


def by_tensor(conditions: Iterable[Condition]) -> dict[str, list[Condition]]:
    """Those of each source tensor."""
    found: dict[str, list[Condition]] = {}
    for condition in conditions:
        found.setdefault(condition.tensor, []).append(condition)
    return found
