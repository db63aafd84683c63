"""Checksums of pieces, put together to the checksum of the whole.

Promise: exact, in whatever pieces and order the bytes were seen, without seeing them again. Limit: the two cyclic
checksums that model files have, ``crc32`` (zip) and ``crc32c`` (TensorFlow), as plain numbers, not masked.

Source: zlib's crc32_combine (crc32.c): a checksum followed by n zero bytes is a linear map of the checksum over GF(2),
and the checksum of A and B is that of A followed by len(B) zeros, XOR that of B.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.machinery import ExtensionFileLoader, PathFinder
from typing import Any

import numpy as np

from weightport.tensors import Array

CRC32, CRC32C = "crc32", "crc32c"
#: The reflected polynomials.
_POLYNOMIALS = {CRC32: 0xEDB88320, CRC32C: 0x82F63B78}


def _load() -> Callable[..., int]:
    """The C function of the package crc32c, without the package: that looks up its own version when it is imported,
    which takes longer than all else that reading a small checkpoint does.
    """
    if "crc32c" not in sys.modules:
        package = PathFinder.find_spec("crc32c")
        folders = package.submodule_search_locations if package is not None else None
        spec = PathFinder.find_spec("_crc32c", folders) if folders else None
        if spec is not None and isinstance(spec.loader, ExtensionFileLoader):
            module: Any = spec.loader.create_module(spec)
            spec.loader.exec_module(module)
            found: Callable[..., int] = module.crc32c
            return found
    import crc32c as whole

    return whole.crc32c


#: ``crc32c(bytes, crc=0)``.
crc32c = _load()


@lru_cache(maxsize=1)
def _fast() -> Callable[[Any, int], int]:
    """isal's, which is thirty times as fast as zlib's; where there is no wheel of it, zlib's."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib.crc32
    return isal_zlib.crc32


def crc32(data: Any, crc: int = 0) -> int:
    """The checksum of zip archives: of bytes, or of more of them."""
    return _fast()(data, crc)


def function(kind: str) -> Callable[[Any, int], int]:
    """``f(bytes, crc)``, which continues a checksum; without a copy, and without the interpreter's lock."""
    return _fast() if kind == CRC32 else crc32c


def combined(kind: str, crcs: Sequence[int] | Array, sizes: Sequence[int] | Array) -> int:
    """The checksum of consecutive pieces.

    Args:
        kind: :data:`CRC32` or :data:`CRC32C`.
        crcs: of each piece.
        sizes: bytes of each piece.
    """
    if len(crcs) < 2:
        return int(crcs[0]) if len(crcs) else 0
    return int(joined(kind, np.array(crcs, np.uint32), np.asarray(sizes, np.int64), np.zeros(1, np.int64))[0])


def joined(kind: str, crcs: Array, sizes: Array, first: Array) -> Array:
    """The checksums of groups of consecutive pieces.

    Args:
        kind: :data:`CRC32` or :data:`CRC32C`.
        crcs: of each piece, uint32 ``[n]``.
        sizes: bytes of each piece, int64 ``[n]``.
        first: the number of the first piece of each group, int64 ``[groups]``, ascending from 0.
    """
    if len(crcs) == len(first):
        return crcs
    found = crcs.copy()
    ends = np.cumsum(sizes)
    last = np.append(first[1:], len(crcs)) - 1
    after = np.repeat(ends[last], last - first + 1) - ends  # bytes of the group that follow each piece
    for power in range(int(after.max()).bit_length()):
        chosen = (after >> power & 1).astype(bool)
        if chosen.any():
            found[chosen] = _apply(_zeros(kind, power), found[chosen])
    return np.asarray(np.bitwise_xor.reduceat(found, first))


@lru_cache(maxsize=128)
def _zeros(kind: str, power: int) -> Array:
    """The map that appends ``2**power`` zero bytes: its values for each byte of a checksum, uint32 ``[4, 256]``."""
    if power:
        half = _zeros(kind, power - 1)
        return _apply(half, half.reshape(-1)).reshape(4, 256)
    lowest = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        lowest = np.where(lowest & 1, lowest >> 1 ^ np.uint32(_POLYNOMIALS[kind]), lowest >> 1)
    byte = np.arange(256, dtype=np.uint32)
    return np.stack([lowest, byte, byte << 8, byte << 16])


def _apply(tables: Array, crcs: Array) -> Array:
    """A map, applied to each checksum."""
    found = tables[0][crcs & 0xFF]
    for place in (1, 2, 3):
        found = found ^ tables[place][crcs >> np.uint32(8 * place) & 0xFF]
    return np.asarray(found)
