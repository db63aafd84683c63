from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import says
from weightport.checksums import crc32c
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._io import ByteFile
from weightport.formats._table import (
    FOOTER,
    MAGIC,
    Table,
    TableWriter,
    _BlockBuilder,
    has_magic,
    mask,
    put_varint,
    unmask,
)
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
SNAPPY_TAIL = b"\x08\x1c" + TAIL  # a size, and a literal of that size


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", ": truncated or no checkpoint: 0 bytes, a table has at least 48"),
        (b"x" * 47, ": truncated or no checkpoint: 47 bytes, a table has at least 48"),
        (b"x" * 48, " at byte 40: truncated or no checkpoint: the table's magic number is missing"),
        (b"x" * 100, " at byte 92: truncated or no checkpoint: the table's magic number is missing"),
        (b"\x80" * 40 + MAGIC.to_bytes(8, "little"), " at byte 0: malformed varint"),
        (b"..\1\x80" + b"\x80" * 38 + MAGIC.to_bytes(8, "little"), " at byte 3: malformed varint"),
        (raw_table([b"\0\0"]), " at byte 0: corrupt table: a block's restart points do not fit"),
        (raw_table([TAIL, b"\0\0\0"]), " at byte 13: corrupt table: a block's restart points do not fit"),
        (raw_table([TAIL, b"\0\0\0\0\1\0\0"]), " at byte 13: corrupt table: a block's restart points do not fit"),
        (raw_table([TAIL, b"\1\0\0\0"]), " at byte 13: corrupt table: a block's restart points do not fit"),
        (raw_table([b"\0\0\0\0\xff\xff\xff\xff"]), " at byte 0: corrupt table: a block's restart points do not fit"),
        (raw_table([b"\0\0\0\0\2\0\0\0"]), " at byte 0: corrupt table: a block's restart points do not fit"),
        (raw_table([TAIL, b"\x05\x01\x00a" + TAIL]), " at byte 13: corrupt table: an entry does not fit its block"),
        (raw_table([TAIL, b"\0\1\0a\2\1\0b" + TAIL]), " at byte 13: corrupt table: an entry does not fit its block"),
        (raw_table([b"\x00\x01\x7fa" + TAIL]), " at byte 0: corrupt table: an entry does not fit its block"),
        (raw_table([b"\x00\x02\x00a" + TAIL]), " at byte 0: corrupt table: an entry does not fit its block"),
        (raw_table([b"\x00\x01\x01a" + TAIL]), " at byte 0: corrupt table: an entry does not fit its block"),
        (
            raw_table([b"\0\xff\xff\xff\xff\x0f\0a" + TAIL]),
            " at byte 0: corrupt table: an entry does not fit its block",
        ),
        (raw_table([TAIL, b"\x80" * 11 + b"\x01" + TAIL]), " at byte 13: malformed varint"),
        (raw_table([TAIL, b"\0\1\0a\x80" + TAIL]), " at byte 17: malformed varint"),
        (raw_table([TAIL, b"\0\1\0a\0\x80" + TAIL]), " at byte 18: malformed varint"),
        (raw_table([TAIL, b"\0\1\0a\0\0\x80" + TAIL]), " at byte 19: malformed varint"),
        (raw_table([TAIL, b"\0\1\0b\0\1\0a" + TAIL]), " at byte 13: corrupt table: its keys are not in order"),
        (raw_table([b"\0\1\0b\0\1\0b" + TAIL]), " at byte 0: corrupt table: its keys are not in order"),
        (raw_table([b"\0\1\0b" + TAIL, b"\0\1\0b" + TAIL]), " at byte 17: corrupt table: its keys are not in order"),
        (raw_table([TAIL], kind=7), " at byte 0: unknown compression 7 of a block"),
        (
            raw_table([TAIL], index=b"\0\1\2a\x00\x08" + b"\0\1\2b\x0c\x01" + TAIL),
            " at byte 26: corrupt table: its blocks are not in order",
        ),
        (
            raw_table([TAIL, TAIL], index=b"\0\1\2a\x00\x08" + b"\0\1\2a\x0d\x08" + TAIL),
            " at byte 39: corrupt table: its blocks are not in order",
        ),
        (
            raw_table([TAIL], index=b"\0\1\2a\x0d\x7f" + TAIL),
            ": truncated or corrupt: a block of 127 bytes at 13 in 93",
        ),
        (
            raw_table([TAIL], index=b"\0\1\2a\x0d\x09" + TAIL),
            " at byte 26: corrupt table: a block lies beyond the index",
        ),
        (raw_table([TAIL], index=b"\0\1\2a\x80\x80" + TAIL), " at byte 26: malformed varint"),
        (raw_table([TAIL], index=b"\0\1\3a\x0d\x80\x80" + TAIL), " at byte 27: malformed varint"),
        (
            raw_table([SNAPPY_TAIL, b"\xff\xff\xff\xff\x0f" + b"x" * 20], kind=1),
            " at byte 15: corrupt: 25 bytes of snappy claim to be 4294967295",
        ),
        (raw_table([SNAPPY_TAIL, b"\x80"], kind=1), " at byte 15: malformed varint"),
        (raw_table([b"\x41\0"], kind=1), " at byte 0: corrupt: 2 bytes of snappy claim to be 65"),
        (raw_table([b""], kind=1), " at byte 0: malformed varint"),
    ],
    ids=itertools.count(),
)
def test_hostile(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "t").write_bytes(data)
    with says(FormatError, f"{tmp_path / 't'}{what}"):
        items_of(tmp_path / "t")


@pytest.mark.parametrize(
    "packed", [b"\x40" + b"\xff" * 20, b"\x09\x1c" + TAIL, b"\x07\x1c" + TAIL, b"\x40\x10abc", b"\x40\0"]
)
def test_damaged_snappy(tmp_path: Path, packed: bytes) -> None:
    """Not what snappy writes, or of another size than it claims."""
    (tmp_path / "t").write_bytes(raw_table([SNAPPY_TAIL, packed], kind=1))
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path / 't'))} at byte 15: corrupt: snappy: "):
        items_of(tmp_path / "t")


def test_a_flipped_block_is_told_by_its_offset(tmp_path: Path) -> None:
    data = bytearray(raw_table([TAIL, b"\0\1\1ax" + TAIL]))
    data[16] ^= 1
    path = tmp_path / "t"
    path.write_bytes(data)
    what = f"{path} at byte 13: corrupt: the checksum of a block does not match"
    with says(FormatError, what):
        items_of(path)
    with ByteFile(path) as file:
        table = Table(file, Budget())
        assert len(table) == 2
        block = table.block(1)
        assert not block.verified
        for _ in range(2):
            with says(FormatError, what):
                table.verify(block)
        assert not block.verified
        table.verify(first := table.block(0))
        assert first.verified


def test_a_block_is_verified_once(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(build({b"a": b"1", b"b": b"2"}))
    with ByteFile(path) as file:
        table = Table(file, Budget())
        table.verify(block := table.block(0))
        with open(path, "r+b") as handle:
            handle.write(b"\xff" * 8)
        table.verify(block)  # nothing is read again
        with says(FormatError, f"{path} at byte 0: corrupt: the checksum of a block does not match"):
            table.verify(table.block(0))


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (b"\x05\1\0a", "corrupt table: an entry does not fit its block"),
        (b"\0\x7f\0a", "corrupt table: an entry does not fit its block"),
        (b"\0\2\0a", "corrupt table: an entry does not fit its block"),
        (b"\0\1\1a", "corrupt table: an entry does not fit its block"),
        (b"\0\1\0a\2\1\0a", "corrupt table: an entry does not fit its block"),
        (b"\x80", "malformed varint"),
        (b"\0\x80", "malformed varint"),
        (b"\0\0\x80", "malformed varint"),
    ],
    ids=itertools.count(),
)
def test_hostile_in_place(tmp_path: Path, entry: bytes, what: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(raw_table([TAIL, entry + TAIL]))
    at = 13 + (entry.index(b"\x80") if "varint" in what else 0)
    with ByteFile(path) as file, says(FormatError, f"{path} at byte {at}: {what}"):
        list(Table(file, Budget()).block(1).places())


def test_places_are_found_in_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = {b"k%05d" % n: b"v" * (n % 7) for n in range(3000)}
    items[b"k01500"] = b"x" * 100_000
    path = tmp_path / "t"
    path.write_bytes(build(items))
    with ByteFile(path) as file:
        block = Table(file, Budget()).block(0)
        asked: list[tuple[int, int]] = []
        plain = file.read
        monkeypatch.setattr(file, "read", lambda at, n: (asked.append((at, n)), plain(at, n))[1])
        places = list(block.places())
        assert [k for k, _, _ in places] == sorted(items)
        big = {k: (o, n) for k, o, n in places}[b"k01500"]
        assert not any(at < big[0] + 90_000 and at + n > big[0] + 10_000 for at, n in asked), "no value is read"
        size = block.end - block.start - 100_000
        assert len(asked) <= size // 4066 + 3
        assert all(n <= 4096 for _, n in asked)


def test_block_of(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(build({b"b": b"1", b"d": b"2", b"f": b"3"}, block_size=1))
    with ByteFile(tmp_path / "t") as file:
        table = Table(file, Budget())
        assert [table.block_of(k) for k in (b"", b"a", b"b", b"c", b"d", b"e", b"f", b"g")] == [
            0, 0, 0, 1, 1, 2, 2, None,
        ]  # fmt: skip
        assert len(table) == 3


@given(st.integers(0, 0xFFFFFFFF))
def test_unmask_is_the_way_back(crc: int) -> None:
    assert unmask(mask(crc)) == crc
    assert 0 <= mask(crc) <= 0xFFFFFFFF


def test_masks() -> None:
    # crc32c::Mask(crc32c::Value("123456789")), by TensorFlow's formula.
    assert mask(0xE3069283) == 0xC78AB0E5
    assert unmask(0xC78AB0E5) == 0xE3069283


def test_restart_points_and_shared_prefixes() -> None:
    data = build({b"aa": b"1", b"aab": b"2", b"ab": b"3", b"b": b""}, restart_interval=2)
    entries = b"\0\2\1aa1\2\1\1b2\0\2\1ab3\0\1\0b"
    assert data.startswith(entries + bytes.fromhex("00000000 0b000000 02000000") + b"\0")


def test_a_block_is_closed_once_it_is_full() -> None:
    entry = 3 + 1 + 6  # three lengths, a key, a value
    whole, cut = (build({b"a": b"v" * 6, b"b": b"w" * 6}, block_size=size) for size in (entry + 1, entry))
    assert len(whole) < len(cut)


def test_what_snappy_does_not_make_smaller_stays_raw() -> None:
    noise = {b"k": bytes(range(256))}
    assert build(noise, compress=True) == build(noise)


def test_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(build({}))
    assert items_of(tmp_path / "t") == {}


def test_budget(tmp_path: Path) -> None:
    items = {b"k%05d" % n: b"v" * 100 for n in range(100)}
    path = tmp_path / "t"
    sizes = {}
    for compress in (False, True):
        path.write_bytes(build(items, compress=compress))
        with ByteFile(path) as file:
            block = Table(file, Budget()).block(0)
            sizes[compress] = block.handle.size
            index = file.size - FOOTER - 5 - (block.handle.size + 5 + len(TAIL) + 5)
    # What is stored of the index and of the block, and what the block comes to: each is counted once.
    for compress, spent in ((False, index + sizes[False]), (True, index + sizes[True] + sizes[False])):
        path.write_bytes(build(items, compress=compress))
        assert items_of(path, Budget(header_bytes=spent)) == items
        with says(BudgetExceeded, f"{path}: header bytes: {spent:,} asked for, at most {spent - 1:,} allowed"):
            items_of(path, Budget(header_bytes=spent - 1))


def test_budget_of_one_block(tmp_path: Path) -> None:
    """A block that is looked into alone is not counted, but it has to fit by itself."""
    path = tmp_path / "t"
    path.write_bytes(build({b"k": b"v" * 1000}, compress=True))
    with ByteFile(path) as file:
        table = Table(file, Budget(header_bytes=1013))
        for _ in range(3):
            assert table.block(0).end == 1005
        table = Table(file, Budget(header_bytes=1012))
        with says(BudgetExceeded, f"{path}: header bytes: 1,013 asked for, at most 1,012 allowed"):
            table.block(0)


def test_has_magic(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(build({b"": b""}))
    (tmp_path / "u").write_bytes(b"x" * 60)
    assert has_magic(str(tmp_path / "t"))
    assert not has_magic(str(tmp_path / "u"))
    assert not has_magic(str(tmp_path))
    assert not has_magic(str(tmp_path / "nothing"))


def test_keys_that_share_a_long_beginning(tmp_path: Path) -> None:
    """Few bytes spell many; the memory that they would take is refused."""
    start = b"k" * 65_000
    items = {start + n.to_bytes(2, "big"): b"" for n in range(1100)}
    (tmp_path / "t").write_bytes(build(items, block_size=1 << 30, restart_interval=1 << 30))
    assert (tmp_path / "t").stat().st_size < 150_000
    with pytest.raises(BudgetExceeded, match=r"t: names: 17,\d{3},\d{3} bytes, at most 16,777,216 for a file of 13"):
        items_of(tmp_path / "t")
    assert len(items_of(tmp_path / "t", Budget(spread=10_000))) == 1100
    with ByteFile(tmp_path / "t") as file:
        table = Table(file, Budget())
        with pytest.raises(BudgetExceeded, match=r"t: names: 17,\d{3},\d{3} bytes"):
            list(table.places(table.block(0)))
        table = Table(file, Budget(spread=1000))
        for _ in range(20):  # counted the first time only
            assert len(list(table.places(table.block(0)))) == 1100


def test_an_index_whose_keys_share_a_long_beginning(tmp_path: Path) -> None:
    """One entry to a block: the last keys of all blocks are held in memory."""
    start = b"k" * 65_000
    items = {start + n.to_bytes(2, "big"): b"" for n in range(300)}
    data = bytearray()
    index = _BlockBuilder(1 << 30)
    for key in items:
        one = _BlockBuilder(1)
        contents = one.contents()
        index.add(key, put_varint(len(data)) + put_varint(len(contents)))
        data += contents + b"\0" + mask(crc32c(contents + b"\0")).to_bytes(4, "little")
    contents = index.contents()
    handle = put_varint(len(data)) + put_varint(len(contents))
    data += contents + b"\0" + mask(crc32c(contents + b"\0")).to_bytes(4, "little")
    data += (b"\0\0" + handle).ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")
    (tmp_path / "t").write_bytes(data)
    with ByteFile(tmp_path / "t") as file:
        with pytest.raises(BudgetExceeded, match=r"t: names: 17,\d{3},\d{3} bytes, at most 16,777,216 for a file of 7"):
            Table(file, Budget())
        assert len(Table(file, Budget(spread=10_000))) == 300
