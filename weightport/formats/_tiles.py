"""What every writer does with the tiles of a tensor: they must make up exactly the tensor that its spec promises.

Promise: one tile at a time, C order, native byte order; a tile that does not fit is an error before it is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weightport.errors import Error
from weightport.tensors import Array, TensorSpec, Tiles


def checked(path: str, name: str, spec: TensorSpec, tiles: Tiles) -> Iterator[Array]:
    """The tiles of one tensor, contiguous and in native byte order.

    Raises:
        Error: another dtype than the spec's, rows of another shape, or more or fewer rows.
    """
    rows = 0
    want = spec.shape[0] if spec.shape else 1
    strings = spec.dtype.kind in "OSU"
    for tile in tiles(name):
        if spec.shape:
            fits = tile.ndim == len(spec.shape) and tile.shape[1:] == spec.shape[1:]
            rows += tile.shape[0] if fits else 0
        else:
            fits = tile.shape == ()
            rows += 1
        same = tile.dtype.kind in "OSU" if strings else tile.dtype.name == spec.dtype.name
        if not fits or not same or rows > want:
            raise Error(
                f"{path}: tensor {name!r}: values of {tile.dtype.name}{list(tile.shape)} "
                f"for {spec.dtype.name}{list(spec.shape)}"
            )
        if not strings and not tile.dtype.isnative:
            tile = tile.astype(tile.dtype.newbyteorder("="))
        yield tile if tile.flags.c_contiguous else np.ascontiguousarray(tile)
    if rows != want:
        raise Error(f"{path}: tensor {name!r}: {rows} rows of values for the shape {list(spec.shape)}")


def encoded(path: str, name: str, spec: TensorSpec, tiles: Tiles) -> Iterator[tuple[tuple[int, ...], list[bytes]]]:
    """The tiles of a tensor of strings, each as its shape and its elements' bytes (text as UTF-8)."""
    for tile in checked(path, name, spec, tiles):
        values = []
        for value in tile.reshape(-1).tolist():
            raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            if not isinstance(raw, bytes):
                raise Error(f"{path}: tensor {name!r}: {type(value).__name__} where a string was expected")
            values.append(raw)
        yield tile.shape, values


def width(path: str, name: str, spec: TensorSpec, tiles: Tiles) -> int:
    """The longest element of a tensor of strings, for formats that store them at one width (at least 1).

    Raises:
        Error: an element ends in a NUL byte, which such a format would lose.
    """
    longest = 1
    for _, values in encoded(path, name, spec, tiles):
        for value in values:
            if value.endswith(b"\0"):
                raise Error(f"{path}: tensor {name!r}: a string that ends in a NUL byte cannot be stored here")
            longest = max(longest, len(value))
    return longest
