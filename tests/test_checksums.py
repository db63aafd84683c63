"""Checksums of pieces are the checksum of the whole, as the C libraries compute it."""

from __future__ import annotations

import subprocess
import sys
import zlib
from pathlib import Path

import crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import need
from weightport import checksums
from weightport.checksums import CRC32, CRC32C, combined, function

PLAIN = {CRC32: zlib.crc32, CRC32C: crc32c.crc32c}


@pytest.mark.parametrize("kind", PLAIN)
@given(st.lists(st.binary(max_size=200), max_size=12))
def test_pieces_are_the_whole(kind: str, pieces: list[bytes]) -> None:
    plain = PLAIN[kind]
    assert combined(kind, [plain(p) for p in pieces], [len(p) for p in pieces]) == plain(b"".join(pieces))


@pytest.mark.parametrize("kind", PLAIN)
def test_many_long_pieces(kind: str) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)
    sizes = np.full(3000, 1000)
    sizes[-2:] = 1500, 500
    ends = np.cumsum(sizes)
    crcs = np.array([function(kind)(data[e - s : e], 0) for s, e in zip(sizes, ends, strict=True)], np.uint32)
    assert combined(kind, crcs, sizes) == PLAIN[kind](data)


def test_zeros_beyond_memory() -> None:
    # 2**40 zero bytes after "a": by halves, which is another way to the same number.
    zero = halves = crc32c.crc32c(bytes(1 << 20))
    for power in range(20, 40):
        zero = combined(CRC32C, [zero, zero], [1 << power, 1 << power])
        halves = zero if power == 38 else halves
    once = combined(CRC32C, [crc32c.crc32c(b"a"), zero], [1, 1 << 40])
    assert once == combined(CRC32C, [crc32c.crc32c(b"a"), halves, halves], [1, 1 << 39, 1 << 39])
    assert once != zero


def test_functions_continue() -> None:
    for kind, plain in PLAIN.items():
        assert function(kind)(memoryview(b"bc"), plain(b"a")) == plain(b"abc")


def test_the_function_is_that_of_the_package_without_the_package() -> None:
    code = "import sys; from weightport.checksums import crc32c; print(crc32c(b'abc'), *sorted(sys.modules))"
    told, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[1]
    ).stdout.split()
    assert int(told) == crc32c.crc32c(b"abc")
    assert {"crc32c", "importlib.metadata", "email"} & set(modules) == set()


def test_without_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no wheel of isal, zlib computes the same."""
    data = np.arange(1000, dtype=np.uint8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "isal", None)
        checksums._fast.cache_clear()
        assert checksums.function(CRC32) is zlib.crc32
        plain = checksums.crc32(data, 7)
    checksums._fast.cache_clear()
    need("isal")
    assert checksums.function(CRC32).__module__ == "isal.isal_zlib"
    assert checksums.crc32(data, 7) == plain == zlib.crc32(data, 7)
    assert (
        checksums.crc32(data[100:], checksums.crc32(data[:100]))
        == checksums.crc32(memoryview(data))
        == zlib.crc32(data)
    )
