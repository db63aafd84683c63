from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.formats.test_tf_bundle import bytes_field, entry, number_field
from weightport.errors import FormatError
from weightport.formats._proto import VARINT, fields
from weightport.formats._tf_place import place_of
from weightport.formats.tf_bundle import Entry
from weightport.tensors import Budget

NUMBER = st.one_of(st.integers(0, 300), st.integers(0, (1 << 63) - 1))


@given(NUMBER, NUMBER, st.lists(st.integers(0, 300), max_size=3), st.integers(0, (1 << 32) - 1))
def test_as_an_entry_has_it(shard: int, offset: int, dims: list[int], crc: int) -> None:
    size = 4
    for dim in dims:
        size *= dim
    data = entry(tuple(dims), shard=shard, offset=offset, size=size, crc=crc)
    parsed = Entry.parse(data, "f", "t", Budget(), {})
    assert place_of(data) == (parsed.shard, parsed.offset, parsed.size) == (shard, offset, size)


def test_slices_lie_elsewhere() -> None:
    assert place_of(entry((4,), offset=8, size=16, slices=(((0, 4),),))) == (0, 0, 0)
    far = b"\xa0\x06\1"  # a field of number 100
    assert place_of(far + entry((4,), offset=8, size=16, slices=(((0, 4),),))) == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"", (0, 0, 0)),
        (b"\xa0\x06\1" + number_field(4, 8) + number_field(5, 16), (0, 8, 16)),  # a field of number 100
        (b"\xa0\x06\1" + entry((4,), offset=8, size=16), (0, 8, 16)),  # its shape is no slice
        (b"\xa0\x06\1" + bytes_field(4, b"x") + number_field(5, 1), (0, 0, 1)),
        (b"\xa0\x06\1" + number_field(5, 1) + number_field(8, 3), (0, 0, 1)),
        (b"\x09" + bytes(8) + number_field(3, 2) + number_field(5, 16), (2, 0, 16)),  # eight bytes
        (b"\x20" + b"\xff" * 9 + b"\1" + number_field(5, 16), (0, (1 << 64) - 1, 16)),  # -1
        (number_field(4, 8) + number_field(4, 9) + number_field(5, 1), (0, 9, 1)),  # the last counts
        (bytes_field(4, b"x") + number_field(5, 1), (0, 0, 1)),  # a field of another type
        (number_field(5, 16) + b"\x20", (0, 0, 0)),
        (number_field(5, 16) + b"\x20\x80", (0, 0, 0)),
        (number_field(5, 16) + b"\x12\5a", (0, 0, 0)),
        (number_field(5, 16) + b"\x35ab", (0, 0, 0)),
        (number_field(5, 16) + b"\x0f", (0, 0, 0)),
        (number_field(5, 16) + b"\x0f\0", (0, 0, 0)),
        (number_field(5, 16) + b"\x20" + b"\xff" * 10 + b"\1", (0, 0, 0)),
    ],
)
def test_unusual_and_broken(data: bytes, place: tuple[int, int, int]) -> None:
    assert place_of(data) == place


@given(st.lists(st.sampled_from([b"\x18", b"\x20", b"\x28", b"\x35", b"\x12", b"\x3a", b"\1", b"\x80", b"\7"])))
@example([b"\x28", b"\1", b"\x3d", b"\0\0\0\0"])
def test_as_protobuf_has_it(pieces: list[bytes]) -> None:
    data, found = b"".join(pieces), {3: 0, 4: 0, 5: 0}
    try:
        for field, wire, value in fields(data, "f"):
            if field == 7 and wire == 2:
                found = {3: 0, 4: 0, 5: 0}
                break
            if wire == VARINT and isinstance(value, int) and field in found:
                found[field] = value
    except FormatError:
        found = {3: 0, 4: 0, 5: 0}
    assert place_of(data) == (found[3], found[4], found[5])
