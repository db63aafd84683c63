"""TensorFlow checkpoints of both versions, with good checksums, that lie about tables, tensors and slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.formats import test_tf_v1 as v1
from tests.formats.test_table import raw_table
from tests.formats.test_tf_bundle import HEADER, bytes_field, entry, index_bytes, number_field, slice_proto
from tests.hostile.malformed import Family, Files
from weightport.checksums import crc32c
from weightport.formats import _slices
from weightport.formats._table import FOOTER, MAGIC, _BlockBuilder, mask, put_varint

DATA = bytes(range(64))
_V = "_CHECKPOINTABLE_OBJECT_GRAPH"

V2 = Family("tf-checkpoint", "c.index")
V1 = Family("tf-checkpoint-v1", "c")
FAMILIES = (V2, V1)


def good(size: int, offset: int = 0) -> int:
    """The stored checksum of a part of the data."""
    return mask(crc32c(DATA[offset : offset + size]))


def bundle(entries: dict[str, bytes], *, header: bytes | None = HEADER, data: bytes = DATA) -> Callable[[], Files]:
    """A checkpoint with those entries."""
    keys = {key.encode(): value for key, value in entries.items()}
    return lambda: {"c.index": index_bytes(keys, header), "c.data-00000-of-00001": data}


def one(shape: Sequence[int] = (2,), **said: int) -> Callable[[], Files]:
    """A checkpoint of one float32 tensor ``v``."""
    given = {"size": 8, "crc": good(8), **said}
    return bundle({"v": entry(tuple(shape), **given)})  # type: ignore[arg-type]


def sliced(shape: tuple[int, ...], *cuts: _slices.Slice, **said: dict[_slices.Slice, bytes]) -> Callable[[], Files]:
    """A tensor in slices of 4 bytes for each value; ``parts`` are entries of slices that lie."""
    parts = said.get("parts", {})

    def made() -> Files:
        entries, offset = {b"v": entry(shape, slices=cuts)}, 0
        for cut in cuts:
            extent = tuple(dim if length == -1 else length for (_, length), dim in zip(cut, shape, strict=False))
            size = 4
            for length in extent:
                size *= max(0, length)
            size = min(size, 64)
            whole = entry(extent, size=size, offset=offset, crc=good(size, offset))
            entries[_slices.slice_key(b"v", cut)] = parts.get(cut, whole)
            offset += size
        return {"c.index": index_bytes(entries), "c.data-00000-of-00001": DATA}

    return made


def framed(contents: bytes, kind: int = 0) -> bytes:
    """A block with its trailer."""
    body = contents + bytes([kind])
    return body + mask(crc32c(body)).to_bytes(4, "little")


def table(index: bytes, *, blocks: bytes = b"", footer: Callable[[bytes], bytes] = lambda handles: handles) -> bytes:
    """A table of that index block behind those blocks."""
    handles = b"\0\0" + put_varint(len(blocks)) + put_varint(len(index))
    return blocks + framed(index) + footer(handles).ljust(FOOTER - 8, b"\0") + MAGIC.to_bytes(8, "little")


def block(*entries: tuple[bytes, bytes]) -> bytes:
    built = _BlockBuilder(16)
    for key, value in entries:
        built.add(key, value)
    return built.contents()


def handle(offset: int, size: int) -> bytes:
    return put_varint(offset) + put_varint(size)


def in_block(contents: bytes, kind: int = 0) -> Callable[[], Files]:
    """A checkpoint whose only block has those contents."""
    return lambda: {
        "c.index": raw_table([contents], kind=kind)
        if kind
        else table(block((b"z", handle(0, len(contents)))), blocks=framed(contents)),
        "c.data-00000-of-00001": DATA,
    }


def files(index: bytes) -> Callable[[], Files]:
    return lambda: {"c.index": index, "c.data-00000-of-00001": DATA}


# The index as a table ------------------------------------------------------------------------------------------------

EMPTY = _BlockBuilder(1).contents()
V2.add(
    "no footer",
    files(b"x" * 47),
)
V2.add(
    "another magic",
    files(table(EMPTY)[:-1] + b"\0"),
)
V2.add(
    "an index beyond the file",
    files(table(EMPTY, footer=lambda _: b"\0\0" + handle(1 << 40, 4))),
)
V2.add(
    "an index of 2**63 bytes",
    files(table(EMPTY, footer=lambda _: b"\0\0" + handle(0, 1 << 63))),
)
V2.add("a handle that never ends", files(table(EMPTY, footer=lambda _: b"\xff" * 40)))
V2.add("no block at all", files(table(EMPTY)))
V2.add(
    "restart points beyond the block",
    files(table(b"\xff\xff\xff\x7f")),
)
V2.add(
    "a negative count of restart points",
    files(table(b"\0\0\0\0\xff\xff\xff\xff")),
)
V2.add(
    "blocks out of order",
    files(table(block((b"a", handle(30, 4)), (b"b", handle(0, 4))), blocks=bytes(60))),
)
V2.add(
    "a block twice",
    files(table(block((b"a", handle(0, 4)), (b"b", handle(0, 4))), blocks=bytes(60))),
)
V2.add(
    "a block that is the index",
    files(table(block((b"a", handle(0, 4))), blocks=b"")),
)
V2.add(
    "keys of blocks out of order", files(table(block((b"b", handle(0, 4)), (b"a", handle(30, 4))), blocks=bytes(60)))
)
V2.add("a compression nobody has", in_block(block((b"", HEADER)), 7))
V2.add("zstd", in_block(block((b"", HEADER)), 2))
V2.add("snappy that is none", in_block(b"\x04\xff\xff\xff", 1))
V2.add(
    "snappy of 2**40 bytes",
    in_block(put_varint(1 << 40) + b"\0" * 20, 1),
)
V2.add(
    "snappy that claims too much",
    in_block(put_varint(4000) + b"\0" * 20, 1),
)
V2.add("snappy that claims too little", in_block(put_varint(1) + b"\x0c" + b"abcd", 1))
V2.add(
    "a key with a longer beginning than there was",
    in_block(b"\x05\x01\x00a" + bytes(4) + b"\1\0\0\0"),
)
V2.add(
    "a key beyond its block",
    in_block(b"\x00\x7f\x00a" + bytes(4) + b"\1\0\0\0"),
)
V2.add(
    "a value beyond its block",
    in_block(b"\x00\x01\x7fa" + bytes(4) + b"\1\0\0\0"),
)
V2.add(
    "a value of 2**63 bytes",
    in_block(b"\x00\x01" + put_varint(1 << 63) + b"a" + bytes(4) + b"\1\0\0\0"),
)
V2.add(
    "keys out of order",
    in_block(b"\0\0\x02\x08\x01\0\1\0b\0\1\0a" + bytes(4) + b"\1\0\0\0"),
)
V2.add(
    "a key twice",
    in_block(b"\0\0\x02\x08\x01\0\1\0b\0\1\0b" + bytes(4) + b"\1\0\0\0"),
)
V2.add("a length of eleven bytes", in_block(b"\x80" * 11 + b"\0" * 8 + b"\1\0\0\0"))

# The header -----------------------------------------------------------------------------------------------------------

V2.add("no header", bundle({"v": entry((2,))}, header=None))
V2.add("no shards", bundle({}, header=b""))
V2.add(
    "minus one shards",
    bundle({}, header=number_field(1, (1 << 64) - 1)),
)
V2.add(
    "an unknown order of bytes",
    bundle({}, header=number_field(1, 1) + number_field(2, 2)),
)
V2.add(
    "for later readers",
    bundle({}, header=number_field(1, 1) + bytes_field(3, number_field(2, 9))),
)
V2.add("a header that is cut off", bundle({}, header=b"\x08"))
V2.add("a header of groups", bundle({}, header=b"\x0b\x0c"))
V2.add("a header of field zero", bundle({}, header=b"\x00\x01"))
V2.add(
    "2**40 shards",
    bundle({"v": entry((2,), size=8, crc=1)}, header=number_field(1, 1 << 40)),
)

# Tensors --------------------------------------------------------------------------------------------------------------

V2.add("an unknown dtype", one(dtype=99))
V2.add("the dtype -1", one(dtype=(1 << 64) - 1))
V2.add("a negative dimension", one((-2,)))
V2.add(
    "a shape that overflows 64 bits",
    one((1 << 32, 1 << 32)),
)
V2.add(
    "a shape whose product is 2**64 + 2",
    one((2, (1 << 63) + 1)),
)
V2.add("65 axes", one((1,) * 65))
V2.add("more bytes than the shape", one((2,), size=12))
V2.add("fewer bytes than the shape", one((2,), size=4))
V2.add("a negative size", one((2,), size=(1 << 64) - 8))
V2.add(
    "a terabyte",
    one((1 << 38,), size=1 << 40),
)
V2.add(
    "behind the end",
    one((2,), offset=60),
)
V2.add(
    "a negative offset",
    one((2,), offset=(1 << 64) - 8),
)
V2.add(
    "an offset of 2**62",
    one((2,), offset=1 << 62),
)
V2.add("a shard that is not there", one((2,), shard=7))
V2.add("the shard -1", one((2,), shard=(1 << 64) - 1))
V2.add(
    "another checksum",
    one((2,), crc=1),
)
V2.add(
    "an unknown rank",
    bundle({"v": number_field(1, 1) + bytes_field(2, number_field(3, 1))}),
)
V2.add("an entry that is cut off", bundle({"v": b"\x08"}))
V2.add(
    "an entry with a length beyond it",
    bundle({"v": b"\x12\x7f"}),
)
V2.add(
    "strings whose lengths come to more",
    bundle({"v": entry((2,), dtype=7, size=8, crc=good(8))}),
)
V2.add(
    "strings in no bytes",
    bundle({"v": entry((2,), dtype=7, size=0)}),
)
V2.add(
    "a terabyte of strings",
    bundle({"v": entry((1 << 38,), dtype=7, size=8, crc=good(8))}),
)
V2.add(
    "a resource",
    bundle({"v": entry((), dtype=20)}),
)
V2.add(
    "two names that are one text",
    lambda: {
        "c.index": index_bytes({b"\\xff": entry((2,), size=8, crc=good(8)), b"\xff": entry((2,), size=8, crc=good(8))}),
        "c.data-00000-of-00001": DATA,
    },
)
V2.add(
    "an object graph that is no string",
    bundle({_V: entry((2,), size=8, crc=good(8))}),
)
V2.add(
    "an object graph that is none",
    bundle({_V: entry((), dtype=7, size=64, crc=good(64)), "v": entry(())}),
)

# Slices ---------------------------------------------------------------------------------------------------------------

V2.add(
    "slices that leave a gap",
    sliced((4,), ((0, 1),), ((2, 2),)),
)
V2.add(
    "slices that overlap",
    sliced((4,), ((0, 3),), ((2, 2),)),
)
V2.add(
    "slices that overlap and leave a gap",
    sliced((4,), ((0, 2),), ((1, 2),)),
)
V2.add("a slice twice", sliced((4,), ((0, 2),), ((0, 2),)))
V2.add(
    "slices that cross",
    sliced((2, 2), ((0, 2), (0, 1)), ((0, 1), (0, 2))),
)
V2.add("a slice outside", sliced((4,), ((2, 4),)))
V2.add("a slice that begins before zero", sliced((4,), ((-2, 4),)))
V2.add("a slice of a negative length", sliced((4,), ((0, -3),)))
V2.add("a slice of another rank", sliced((4,), ((0, 2), (0, 2))))
V2.add(
    "a slice of 2**62",
    sliced((4,), ((0, 1 << 62),)),
)
V2.add(
    "a slice whose data is missing",
    bundle({"v": entry((4,), slices=(((0, 2),), ((2, 2),)))}),
)
V2.add(
    "a slice that is smaller than it says", sliced((4,), ((0, 4),), parts={((0, 4),): entry((2,), size=8, crc=good(8))})
)
V2.add(
    "a slice of another dtype", sliced((4,), ((0, 4),), parts={((0, 4),): entry((4,), dtype=3, size=16, crc=good(16))})
)
V2.add(
    "a slice in slices",
    sliced((4,), ((0, 4),), parts={((0, 4),): entry((4,), slices=(((0, 4),),))}),
)
ROWS: list[_slices.Slice] = [((n, 1), (0, -1)) for n in range(20)]
V2.add(
    "slices that share more bytes than there are",
    sliced((20, 4), *ROWS, parts={row: entry((1, 4), size=16, crc=good(16)) for row in ROWS}),
)
V2.add(
    "slices that overlap in the data",
    sliced((4,), ((0, 2),), ((2, 2),), parts={((2, 2),): entry((2,), size=8, offset=4, crc=good(8, 4))}),
)
V2.add(
    "values that overlap",
    bundle({"v": entry((2,), size=8, crc=good(8)), "w": entry((2,), size=8, offset=7, crc=good(8, 7))}),
)
V2.add(
    "values within others",
    bundle({"v": entry((16,), size=64, crc=good(64)), "w": entry((2,), size=8, offset=56, crc=good(8, 56))}),
)
V2.add(
    "values of one place and two sizes",
    bundle({"v": entry((3,), size=12, crc=good(12)), "w": entry((2,), size=8, crc=good(8))}),
)
V2.add(
    "slices of a tensor without values",
    sliced((0, 4), ((0, 0), (0, 4)), ((0, 0), (0, 2))),
)

# Version 1 ------------------------------------------------------------------------------------------------------------


def floats(count: int = 2) -> bytes:
    """A TensorProto of floats."""
    return bytes_field(5, DATA[: 4 * count])


def first(shape: tuple[int, ...] = (2,), proto: bytes | None = None, number: int = 1) -> Callable[[], bytes]:
    return lambda: v1.table(v1.one(number, shape, floats() if proto is None else proto))


def cut(shape: tuple[int, ...], *cuts: _slices.Slice) -> Callable[[], bytes]:
    parts = {}
    for one in cuts:
        size = 1
        for (_, length), dim in zip(one, shape, strict=False):
            size *= max(0, min(16, dim if length == -1 else length))
        parts[one] = floats(size)
    return lambda: v1.table({"v": (1, shape, parts)})


def listed(*heads: bytes) -> Callable[[], bytes]:
    """A table that has a list of tensors and nothing else."""
    meta = bytes_field(1, b"".join(bytes_field(1, head) for head in heads))
    return lambda: raw_table([block((b"", meta))])


def name(text: bytes, shape: bytes, number: int = 1, *cuts: _slices.Slice) -> bytes:
    head = bytes_field(1, text) + bytes_field(2, shape) + number_field(3, number)
    return head + b"".join(bytes_field(4, slice_proto(one)) for one in cuts)


V1.add(
    "an empty table",
    lambda: raw_table([EMPTY]),
)
V1.add(
    "no list of tensors",
    lambda: raw_table([block((b"", b"\x10\x01"))]),
)
V1.add(
    "a list that is cut off",
    lambda: raw_table([block((b"", b"\x0a\x7f"))]),
)
V1.add(
    "a first key that is none",
    lambda: raw_table([block((b"k", b""))]),
)
V1.add("an unknown dtype", first(number=99))
V1.add("a negative dimension", first((-2,)))
V1.add(
    "a shape that overflows 64 bits",
    first((1 << 32, 1 << 32)),
)
V1.add("65 axes", first((1,) * 65))
V1.add(
    "65 axes in 65 shapes", listed(bytes_field(1, b"v") + bytes_field(2, b"\x12\x02\x08\x01") * 65 + number_field(3, 1))
)
V1.add("an unknown rank", listed(name(b"v", number_field(3, 1))))
V1.add(
    "a tensor without slices",
    listed(name(b"v", b"\x12\x02\x08\x02")),
)
V1.add(
    "a slice whose data is missing",
    listed(name(b"v", b"\x12\x02\x08\x02", 1, ((0, -1),))),
)
V1.add("fewer values than the shape", first((4,), floats(3)))
V1.add("no values", first((4,), b""))
V1.add("more values than the shape", first((2,), floats(3)))
V1.add(
    "a value that is cut off",
    first((2,), b"\x2a\x07" + DATA[:7]),
)
V1.add(
    "a terabyte that repeats one value",
    first((1 << 38,), floats(1)),
)
V1.add(
    "values of another dtype",
    first((2,), number_field(1, 3) + floats()),
)
V1.add(
    "a dtype of varints that are too long",
    first((1,), bytes_field(7, b"\xff" * 11), 3),
)
V1.add("strings that are fewer", first((2,), bytes_field(8, b"a"), 7))
V1.add(
    "slices that leave a gap",
    cut((4,), ((0, 1),), ((2, 2),)),
)
V1.add(
    "slices that overlap",
    cut((4,), ((0, 3),), ((2, 2),)),
)
V1.add(
    "slices that cross",
    cut((2, 2), ((0, 2), (0, 1)), ((0, 1), (0, 2))),
)
V1.add("a slice outside", cut((4,), ((2, 4),)))
V1.add("a slice of a negative length", cut((4,), ((0, -3),)))
V1.add("a slice of another rank", cut((4,), ((0, 2), (0, 2))))
V1.add(
    "a slice without data in it",
    lambda: v1.build(
        {
            b"": bytes_field(1, bytes_field(1, name(b"v", b"\x12\x02\x08\x02", 1, ((0, -1),)))),
            _slices.slice_key(b"v", ((0, -1),)): b"\x12\0",
        }
    ),
)
V1.add(
    "two shapes in two shards",
    lambda: {
        "c-00000-of-00002": v1.table(v1.one(1, (2,), floats())),
        "c-00001-of-00002": v1.table(v1.one(1, (3,), floats(3))),
    },
    opened="c-?????-of-00002",
)
V1.add(
    "a shard that is missing",
    lambda: {"c-00000-of-00003": v1.table(v1.one(1, (2,), floats()))},
    opened="c-?????-of-00003",
)
