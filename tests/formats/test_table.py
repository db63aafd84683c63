from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._io import ByteFile
from weightport.formats._table import FOOTER, MAGIC, Table, TableWriter, has_magic, mask, put_varint
from weightport.tensors import Budget


def build(items: dict[bytes, bytes], **options: Any) -> bytes:
    handle = io.BytesIO()
    writer = TableWriter(handle, **options)
    for key in sorted(items):
        writer.add(key, items[key])
    writer.finish()
    return handle.getvalue()


def items_of(path: Path, budget: Budget | None = None) -> dict[bytes, bytes]:
    with ByteFile(path) as file:
        return dict(Table(file, budget or Budget()).items())


def test_golden(tmp_path: Path) -> None:
    data = build({b"": b"h", b"abc": b"1", b"abd": b"2"})
    block = bytes.fromhex("00000168 000301616263 31 02010164 32 00000000 01000000".replace(" ", ""))
    assert data.startswith(block + b"\0")
    assert data[-8:] == bytes.fromhex("57fb808b247547db")
    (tmp_path / "t").write_bytes(data)
    assert items_of(tmp_path / "t") == {b"": b"h", b"abc": b"1", b"abd": b"2"}


def test_mask_is_tensorflows() -> None:
    assert mask(0) == 0xA282EAD8
    assert mask(0xFFFFFFFF) == 0xA282EAD7


@given(
    st.dictionaries(st.binary(max_size=20), st.binary(max_size=300), max_size=60),
    st.sampled_from([1, 16, 200, 262_144]),
    st.sampled_from([1, 2, 16]),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_round_trip(
    tmp_path: Path, items: dict[bytes, bytes], block_size: int, restart_interval: int, compress: bool
) -> None:
    path = tmp_path / "t"
    path.write_bytes(build(items, block_size=block_size, restart_interval=restart_interval, compress=compress))
    assert items_of(path) == items
    with ByteFile(path) as file:
        table = Table(file, Budget())
        for key, value in items.items():
            number = table.block_of(key)
            assert number is not None
            block = table.block(number)
            table.verify(block)
            assert block.verified
            places = {k: (offset, size) for k, offset, size in block.places()}
            assert block.data.read(*places[key]) == value


def test_long_keys_in_place(tmp_path: Path) -> None:
    items = {bytes([n]) * 9000: b"v" * n for n in range(1, 20)}
    (tmp_path / "t").write_bytes(build(items))
    with ByteFile(tmp_path / "t") as file:
        block = Table(file, Budget()).block(0)
        assert {k: block.data.read(o, n) for k, o, n in block.places()} == items


def test_snappy_blocks_are_smaller(tmp_path: Path) -> None:
    items = {b"k%05d" % n: b"value" * 20 for n in range(2000)}
    packed = build(items, block_size=4096, compress=True)
    assert len(packed) < len(build(items, block_size=4096)) / 3
    (tmp_path / "t").write_bytes(packed)
    assert items_of(tmp_path / "t") == items


def test_writer_wants_order() -> None:
    writer = TableWriter(io.BytesIO())
    writer.add(b"b", b"")
    with pytest.raises(ValueError, match="key b'b' after b'b'"):
        writer.add(b"b", b"")


def test_every_truncation_and_flip(tmp_path: Path) -> None:
    items = {b"": b"head", b"name/a": b"1" * 30, b"name/b": b"2" * 30, b"other": b""}
    data = build(items, block_size=40)
    path = tmp_path / "t"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(FormatError):
            items_of(path)
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            got = items_of(path)
        except FormatError:
            continue
        # Only where it does not matter: the handle of the empty meta-index, and the footer's padding.
        assert got == items
        assert len(data) - FOOTER <= at // 8 < len(data) - 8 or at // 8 >= len(data) - FOOTER - 60


def raw_table(blocks: list[bytes], index: bytes | None = None, kind: int = 0) -> bytes:
    """A table of those blocks' contents, with good checksums; the index may be given too."""
    import crc32c

    out = b""
    handles = []

    def put(contents: bytes, kind: int) -> bytes:
        nonlocal out
        handle = put_varint(len(out)) + put_varint(len(contents))
        body = contents + bytes([kind])
        out += body + mask(crc32c.crc32c(body)).to_bytes(4, "little")
        return handle

    for block in blocks:
        handles.append(put(block, kind))
    if index is None:
        index = b"".join(bytes([0, 1, len(h), 97 + n]) + h for n, h in enumerate(handles)) + TAIL
    footer = put(TAIL, 0) + put(index, 0)
    return out + footer.ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")


TAIL = bytes.fromhex("0000000001000000")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "truncated or no checkpoint: 0 bytes"),
        (b"x" * 100, "the table's magic number is missing"),
        (raw_table([b"\0\0"]), "restart points do not fit"),
        (raw_table([b"\0\0\0\0\xff\xff\xff\xff"]), "restart points do not fit"),
        (raw_table([b"\x05\x01\x00a" + TAIL]), "an entry does not fit its block"),
        (raw_table([b"\x00\x01\x7fa" + TAIL]), "an entry does not fit its block"),
        (raw_table([b"\x00\xff\xff\xff\xff\x0f\x00a" + TAIL]), "an entry does not fit its block"),
        (raw_table([b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" + TAIL]), "malformed varint"),
        (raw_table([b"\0\1\0b\0\1\0a" + TAIL]), "its keys are not in order"),
        (raw_table([b"\0\1\0b\0\1\0b" + TAIL]), "its keys are not in order"),
        (raw_table([TAIL], kind=7), "unknown compression 7"),
        (raw_table([TAIL], index=b"\0\1\2a\x00\x08" + b"\0\1\2b\x00\x08" + TAIL), "its blocks are not in order"),
        (raw_table([TAIL], index=b"\0\1\2a\x0d\x7f" + TAIL), "truncated or corrupt: a block of 127 bytes"),
        (raw_table([TAIL], index=b"\0\1\2a\x0d\x10" + TAIL), "a block lies beyond the index"),
        (raw_table([b"\xff\xff\xff\xff\x0f" + b"x" * 20], kind=1), "of snappy claim to be 4294967295"),
        (raw_table([b"\x40" + b"\xff" * 20], kind=1), "corrupt"),
        (raw_table([b""], kind=1), "malformed varint"),
    ],
    ids=itertools.count(),
)
def test_hostile(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(FormatError, match=what):
        items_of(tmp_path / "t")


def test_budget(tmp_path: Path) -> None:
    items = {b"k%05d" % n: b"v" * 100 for n in range(100)}
    (tmp_path / "t").write_bytes(build(items, compress=True))
    with pytest.raises(BudgetExceeded, match="header bytes"):
        items_of(tmp_path / "t", Budget(header_bytes=5000))
    assert items_of(tmp_path / "t", Budget(header_bytes=50_000)) == items


def test_has_magic(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(build({b"": b""}))
    (tmp_path / "u").write_bytes(b"x" * 60)
    assert has_magic(str(tmp_path / "t"))
    assert not has_magic(str(tmp_path / "u"))
    assert not has_magic(str(tmp_path))
    assert not has_magic(str(tmp_path / "nothing"))
