"""What a target tensor is computed from: small expressions over source tensors, read whole or in part.

An expression knows its shape and dtype and can deliver any part of itself; it holds no tensor bytes. Layouts and
mapping operations compile to these, so that one mechanism moves a file tile by tile and hands a framework the slice it
asks for.

Promise: reading a part reads only the parts of the source that it needs (where axes are regrouped, whole rows of the
group), and the parts put together are the bytes of the whole. Limit: arithmetic (sums, added constants, scaling) rounds
once in the tensor's own dtype.
"""

from __future__ import annotations

from weightport.values.building import add, assemble, concat, cut, negate, permute, replaced, reshape
from weightport.values.diagonals import Diagonal, OnDiagonal
from weightport.values.moves import (
    Assemble,
    Cut,
    Expr,
    Fetch,
    Leaf,
    Permute,
    Reshape,
    crossed,
    operands,
    read_into,
    turned,
)
from weightport.values.numbers import Cast, Dequantized, Fill, Made, Mean, Scale, Sum, Take

__all__ = [
    "Assemble",
    "Cast",
    "Cut",
    "Dequantized",
    "Diagonal",
    "Expr",
    "Fetch",
    "Fill",
    "Leaf",
    "Made",
    "Mean",
    "OnDiagonal",
    "Permute",
    "Reshape",
    "Scale",
    "Sum",
    "Take",
    "add",
    "assemble",
    "concat",
    "crossed",
    "cut",
    "negate",
    "operands",
    "permute",
    "read_into",
    "replaced",
    "reshape",
    "turned",
]
