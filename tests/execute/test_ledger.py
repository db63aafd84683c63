"""Checksums of pieces: in any order, with gaps and doubles, they come to that of the whole."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.checksums import CRC32
from weightport.execute import ledger
from weightport.execute.ledger import Sheet, pieces

DATA = np.random.default_rng(0).bytes(500)


def piece(start: int, stop: int) -> tuple[int, int, int]:
    return start, stop - start, zlib.crc32(DATA[start:stop])


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=12), st.integers(0, 100), st.integers(1, 400)
)
def test_any_pieces(found: list[tuple[int, int]], offset: int, size: int) -> None:
    sheet = Sheet(CRC32, offset, size)
    whole = zlib.crc32(DATA[offset : offset + size])
    for low, high in map(sorted, found):
        assert sheet.add(pieces([piece(low, high)])) in (None, whole)
    assert sheet.finish(lambda at, n: zlib.crc32(DATA[at : at + n])) == whole


def test_the_last_piece_gives_the_checksum_and_nothing_is_read() -> None:
    sheet = Sheet(CRC32, 0, 500)
    order = np.random.default_rng(1).permutation(100)
    for n in order[:-1]:
        assert sheet.add(pieces([piece(5 * n, 5 * n + 5)])) is None
    last = int(order[-1])
    assert sheet.add(pieces([piece(5 * last, 5 * last + 5)])) == zlib.crc32(DATA)


def test_only_what_is_in_no_piece_is_read() -> None:
    sheet = Sheet(CRC32, 0, 500)
    sheet.add(pieces([piece(10, 100), piece(90, 200), piece(100, 150)]))
    asked = []

    def read(at: int, size: int) -> int:
        asked.append((at, size))
        return zlib.crc32(DATA[at : at + size])

    assert sheet.finish(read) == zlib.crc32(DATA)
    assert asked == [(0, 10), (150, 350)]


def test_pieces_that_meet_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_MANY", 8)
    sheet = Sheet(CRC32, 0, 500)
    for n in range(0, 400, 2):
        sheet.add(pieces([piece(n, n + 2)]))
    assert len(sheet._kept[0]) == 1
    assert len(sheet._new) <= 9


def test_nothing_at_all() -> None:
    assert Sheet(CRC32, 7, 0).add(pieces([])) == 0
    assert Sheet(CRC32, 7, 0).finish(lambda at, n: at + n) == 0


def rest(sheet: Sheet) -> list[tuple[int, int]]:
    """What is read of the file in the end."""
    asked = []

    def read(at: int, size: int) -> int:
        asked.append((at, size))
        return zlib.crc32(DATA[at : at + size])

    assert sheet.finish(read) == zlib.crc32(DATA)
    return asked


def test_of_pieces_that_begin_together_the_longest_counts() -> None:
    sheet = Sheet(CRC32, 0, 500)
    sheet.add(pieces([piece(0, 10), piece(0, 300), piece(0, 20)]))
    assert rest(sheet) == [(300, 200)]


def test_pieces_of_one_byte_and_of_none() -> None:
    sheet = Sheet(CRC32, 0, 500)
    sheet.add(pieces([piece(7, 7), piece(0, 1), piece(1, 2), piece(0, 0)]))
    assert rest(sheet) == [(2, 498)]
