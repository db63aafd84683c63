"""Files of a header and bytes - safetensors, GGUF, TensorFlow Lite, msgpack, zarr - and lists of shards that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping

import msgpack

from tests.formats import _tflite
from tests.formats.test_gguf_file import head, model, pair, text, u
from tests.formats.test_safetensors_file import entry, raw
from tests.hostile.malformed import Family, Files

SAFETENSORS = Family("safetensors", "m.safetensors")
SHARDS = Family("safetensors, sharded", "m.safetensors.index.json")
GGUF = Family("gguf", "m.gguf")
TFLITE = Family("tflite", "m.tflite")
MSGPACK = Family("flax-msgpack", "m.msgpack")
ORBAX = Family("orbax", "m")
FAMILIES = (SAFETENSORS, SHARDS, GGUF, TFLITE, MSGPACK, ORBAX)

# safetensors ----------------------------------------------------------------------------------------------------------


def tensors(data: int = 8, **said: object) -> Callable[[], bytes]:
    return lambda: raw(said, bytes(data))


def words(header: bytes, data: int = 8) -> Callable[[], bytes]:
    return lambda: raw(None, bytes(data), text=header)


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
SAFETENSORS.add(
    "a header beyond the file",
    lambda: struct.pack("<Q", 1000) + b"{}",
)
SAFETENSORS.add(
    "a header of 2**63 bytes",
    lambda: struct.pack("<Q", 1 << 63) + b"{}" + bytes(40),
)
SAFETENSORS.add(
    "a header of 2**64 - 1 bytes",
    lambda: b"\xff" * 8 + b"{}" + bytes(40),
)
SAFETENSORS.add(
    "a header that is a list",
    words(b"[]"),
)
SAFETENSORS.add("a header that is cut off", words(ONE))
SAFETENSORS.add(
    "a header of brackets without end",
    words(b'{"a":' + b"[" * 50_000),
)
SAFETENSORS.add("a header that is no text", words(b'{"\xff":1}'))
SAFETENSORS.add(
    "a name twice",
    words(ONE + b',"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', 16),
)
SAFETENSORS.add(
    "a key twice",
    words(ONE.replace(b'"shape"', b'"shape":[3],"shape"') + b"}"),
)
SAFETENSORS.add("NaN for a size", words(ONE.replace(b"[2]", b"[NaN]") + b"}"))
SAFETENSORS.add(
    "a size of 5,000 digits",
    words(ONE.replace(b"[2]", b"[" + b"9" * 5000 + b"]") + b"}"),
)
SAFETENSORS.add(
    "two tensors of the same bytes",
    tensors(a=entry(), b=entry()),
)
SAFETENSORS.add(
    "tensors that overlap",
    tensors(12, a=entry(), b=entry(span=(4, 12))),
)
SAFETENSORS.add(
    "a gap between two",
    tensors(24, a=entry(), b=entry(span=(16, 24))),
)
SAFETENSORS.add("bytes before the first", tensors(16, a=entry(span=(8, 16))))
SAFETENSORS.add(
    "bytes behind the last",
    tensors(16, a=entry()),
)
SAFETENSORS.add(
    "values beyond the file",
    tensors(7, a=entry()),
)
SAFETENSORS.add(
    "offsets the other way round",
    tensors(a=entry(span=(8, 0))),
)
SAFETENSORS.add("a negative offset", tensors(a=entry(span=(-8, 0))))
SAFETENSORS.add("three offsets", tensors(a=entry(span=(0, 8, 8))))
SAFETENSORS.add("offsets that are text", tensors(a=entry(span=("0", "8"))))
SAFETENSORS.add(
    "another size than the shape",
    tensors(a=entry(shape=(3,))),
)
SAFETENSORS.add(
    "a shape that overflows 64 bits",
    tensors(0, a=entry(shape=(1 << 32, 1 << 32), span=(0, 0))),
)
SAFETENSORS.add("a negative dimension", tensors(a=entry(shape=(-2,))))
SAFETENSORS.add(
    "a dimension that is true",
    tensors(4, a=entry(shape=(True,), span=(0, 4))),
)
SAFETENSORS.add("a dimension of 2.0", tensors(a=entry(shape=(2.0,))))
SAFETENSORS.add("65 axes", tensors(4, a=entry(shape=(1,) * 65, span=(0, 4))))
SAFETENSORS.add("an unknown dtype", tensors(a=entry(dtype="Q9")))
SAFETENSORS.add("a dtype that is a list", tensors(a=entry(dtype=["F32"])))
SAFETENSORS.add(
    "no dtype",
    tensors(a={"shape": [2], "data_offsets": [0, 8]}),
)
SAFETENSORS.add(
    "metadata that is no text",
    tensors(0, __metadata__={"a": 1}),
)


def shards(index: object, **files: bytes) -> Callable[[], Files]:
    whole = index if isinstance(index, bytes) else json.dumps(index).encode()
    return lambda: {
        "m.safetensors.index.json": whole,
        **{f"{name}.safetensors": content for name, content in files.items()},
    }


ROW = raw({"a": entry()}, bytes(8))
SHARDS.add("no JSON", shards(b"{"))
SHARDS.add("no map", shards({"metadata": {}}))
SHARDS.add("a map that is a list", shards({"weight_map": []}))
SHARDS.add(
    "a shard that is a number",
    shards({"weight_map": {"a": 1}}),
)
SHARDS.add(
    "a shard that is missing",
    shards({"weight_map": {"a": "x.safetensors"}}),
)
SHARDS.add(
    "a tensor that its shard lacks",
    shards({"weight_map": {"b": "x.safetensors"}}, x=ROW),
)
SHARDS.add("a tensor that is not listed", shards({"weight_map": {}}, x=ROW))
SHARDS.add(
    "a tensor in two shards",
    shards(
        {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}},
        x=ROW,
        y=raw({"a": entry(), "b": entry(span=(8, 16))}, bytes(16)),
    ),
)
SHARDS.add(
    "a name twice",
    shards(b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', x=ROW),
)
SHARDS.add(
    "a shard that leads out",
    shards({"weight_map": {"a": "../x.safetensors"}}),
)
SHARDS.add("brackets without end", shards(b"[" * 50_000))

# GGUF -----------------------------------------------------------------------------------------------------------------

F32 = head("w", (2,), 0, 0)
GGUF.add(
    "a header that is cut off",
    lambda: b"GGUF" + u(3, 4) + u(1),
)
GGUF.add(
    "the version 99",
    lambda: model(F32, data=bytes(8), version=99),
)
GGUF.add(
    "2**63 tensors",
    lambda: b"GGUF" + u(3, 4) + u(1 << 63) + u(0) + bytes(64),
)
GGUF.add(
    "2**40 tensors",
    lambda: b"GGUF" + u(3, 4) + u(1 << 40) + u(0) + bytes(64),
)
GGUF.add(
    "2**63 pairs of metadata",
    lambda: b"GGUF" + u(3, 4) + u(0) + u(1 << 63) + bytes(64),
)
GGUF.add(
    "a name of 2**63 bytes",
    lambda: model(u(1 << 63) + b"w" + bytes(40)),
)
GGUF.add(
    "a name that is no text",
    lambda: model(u(1) + b"\xff" + u(1, 4) + u(2) + u(0, 4) + u(0), data=bytes(8)),
)
GGUF.add(
    "two tensors of one name",
    lambda: model(F32, head("w", (2,), 0, 32), data=bytes(40)),
)
GGUF.add(
    "2**31 axes",
    lambda: model(text("w") + u(1 << 31, 4) + bytes(64)),
)
GGUF.add(
    "a shape that overflows 64 bits",
    lambda: model(head("w", (1 << 32, 1 << 32), 0, 0), data=bytes(8)),
)
GGUF.add(
    "a dimension of 2**64 - 1",
    lambda: model(head("w", ((1 << 64) - 1,), 0, 0), data=bytes(8)),
)
GGUF.add(
    "an offset that is not aligned",
    lambda: model(head("w", (2,), 0, 8), data=bytes(16)),
)
GGUF.add(
    "an offset of 2**63",
    lambda: model(head("w", (2,), 0, 1 << 63), data=bytes(8)),
)
GGUF.add(
    "values beyond the file",
    lambda: model(head("w", (4,), 0, 0), data=bytes(8)),
)
GGUF.add("tensors that overlap", lambda: model(head("v", (16,), 0, 0), head("w", (16,), 0, 32), data=bytes(96)))
GGUF.add(
    "half a block",
    lambda: model(head("w", (31,), 2, 0), data=bytes(18)),
)
GGUF.add("an alignment of zero", lambda: model(F32, data=bytes(8), metadata=(pair("general.alignment", 4, u(0, 4)),)))
GGUF.add(
    "an alignment of 2**31", lambda: model(F32, data=bytes(8), metadata=(pair("general.alignment", 4, u(1 << 31, 4)),))
)
GGUF.add("an array of 2**60 numbers", lambda: model(F32, data=bytes(8), metadata=(pair("a", 9, u(4, 4) + u(1 << 60)),)))
GGUF.add(
    "arrays in arrays without end", lambda: model(F32, data=bytes(8), metadata=(pair("a", 9, (u(9, 4) + u(1)) * 3000),))
)
GGUF.add("a kind of metadata that nobody has", lambda: model(F32, data=bytes(8), metadata=(pair("a", 77, b""),)))

# TensorFlow Lite ------------------------------------------------------------------------------------------------------


def lite(*found: _tflite.Tensor, buffers: tuple[bytes | tuple[int, int], ...] = (bytes(8),)) -> Callable[[], bytes]:
    return lambda: _tflite.model(found, buffers=buffers)


def changed(at: int, value: int) -> Callable[[], bytes]:
    """A model of one tensor with another number at a place."""

    def made() -> bytes:
        data = bytearray(_tflite.model([_tflite.Tensor("w", 0, (2,), 1)], buffers=[bytes(8)]))
        struct.pack_into("<I", data, at, value)
        return bytes(data)

    return made


TFLITE.add(
    "a root beyond the file",
    changed(0, 1 << 30),
)
TFLITE.add("a root in itself", changed(0, 0))
TFLITE.add(
    "a table whose fields lie before the file",
    lambda: struct.pack("<I", 8) + b"TFL3" + b"\xff\xff\xff\x7f",
)
TFLITE.add(
    "a table of one byte",
    lambda: struct.pack("<I", 12) + b"TFL3" + b"\1\0\1\0" + struct.pack("<i", 4),
)
TFLITE.add("a buffer that is not there", lite(_tflite.Tensor("w", 0, (2,), 7)))
TFLITE.add("an unknown dtype", lite(_tflite.Tensor("w", 99, (2,), 1)))
TFLITE.add("a negative dimension", lite(_tflite.Tensor("w", 0, (-2,), 1)))
TFLITE.add(
    "more bytes than the shape",
    lite(_tflite.Tensor("w", 0, (1,), 1)),
)
TFLITE.add(
    "fewer bytes than the shape",
    lite(_tflite.Tensor("w", 0, (3,), 1)),
)
TFLITE.add(
    "a shape that overflows 64 bits",
    lite(_tflite.Tensor("w", 0, (1 << 30,) * 3, 1)),
)
TFLITE.add(
    "65 axes",
    lite(_tflite.Tensor("w", 0, (1,) * 65, 1), buffers=(bytes(4),)),
)
TFLITE.add(
    "a buffer beyond the file",
    lite(_tflite.Tensor("w", 0, (2,), 1), buffers=((1 << 40, 8),)),
)
PAIR = (_tflite.Tensor("v", 0, (2,), 1), _tflite.Tensor("w", 0, (2,), 2))
TFLITE.add("buffers that overlap", lite(*PAIR, buffers=((64, 8), (68, 8))))
TFLITE.add("a buffer of one place and two sizes", lite(*PAIR, buffers=((64, 12), (64, 8))))
TFLITE.add(
    "a buffer that ends at 2**64",
    lite(_tflite.Tensor("w", 0, (2,), 1), buffers=(((1 << 64) - 8, 8),)),
)
TFLITE.add(
    "strings whose offsets are in disorder",
    lite(_tflite.Tensor("w", 5, (2,), 1), buffers=(struct.pack("<4I", 2, 17, 16, 18) + b"ab",)),
)
TFLITE.add(
    "2**31 strings",
    lite(_tflite.Tensor("w", 5, (2,), 1), buffers=(struct.pack("<3I", 1 << 31, 16, 18),)),
)
TFLITE.add("scales along no axis", lite(_tflite.Tensor("w", 9, (2, 4), 1, scale=(1, 1, 1), zero=(0, 0, 0), axis=0)))

# msgpack --------------------------------------------------------------------------------------------------------------


def array(
    shape: object = (2,), dtype: object = "float32", content: bytes = bytes(8), **more: object
) -> msgpack.ExtType:
    """An array as Flax packs it."""
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, content), **more))


def packed(tree: object) -> Callable[[], bytes]:
    return lambda: msgpack.packb(tree)


MSGPACK.add(
    "a map of 2**32 - 1 entries",
    lambda: b"\xdf\xff\xff\xff\xff",
)
MSGPACK.add(
    "an array of 2**32 - 1 elements",
    lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff",
)
MSGPACK.add(
    "bytes beyond the file",
    lambda: b"\x81\xa1a\xc6\x7f\xff\xff\xff",
)
MSGPACK.add(
    "an array that is cut off",
    lambda: msgpack.packb({"w": array()})[:-1],
)
MSGPACK.add("maps in maps, a thousand deep", lambda: b"\x81\xa1a" * 1000 + b"\xc0")
MSGPACK.add("bytes behind the end", lambda: msgpack.packb({"w": array()}) + b"\xc0")
MSGPACK.add(
    "a byte that begins nothing",
    lambda: b"\x81\xa1a\xc1",
)
MSGPACK.add(
    "a key twice",
    lambda: b"\x82" + (b"\xa1w" + msgpack.packb(array())) * 2,
)
MSGPACK.add(
    "a key that is a list",
    lambda: b"\x81\x90" + msgpack.packb(array()),
)
MSGPACK.add(
    "an extension nobody has",
    packed({"w": msgpack.ExtType(77, b"x")}),
)
MSGPACK.add(
    "an array that is no array",
    packed({"w": msgpack.ExtType(1, b"\x01")}),
)
MSGPACK.add("a negative dimension", packed({"w": array((-2,))}))
MSGPACK.add(
    "a shape that overflows 64 bits",
    packed({"w": array((1 << 32, 1 << 32))}),
)
MSGPACK.add("65 axes", packed({"w": array((1,) * 65, content=bytes(4))}))
MSGPACK.add(
    "another size than the shape",
    packed({"w": array((3,))}),
)
MSGPACK.add(
    "an unknown dtype",
    packed({"w": array(dtype="nonsense")}),
)
MSGPACK.add(
    "a dtype of Python objects",
    packed({"w": array(dtype="object")}),
)
MSGPACK.add(
    "a dtype that is a number",
    packed({"w": array(dtype=5)}),
)
MSGPACK.add(
    "pieces of which one is missing",
    packed({"w": {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array()}}}),
)
MSGPACK.add(
    "text that is none",
    lambda: b"\x81\xa1\xff\xc0",
)

# Arrays in folders ----------------------------------------------------------------------------------------------------


def zarr(data: Mapping[str, bytes] | None = None, **said: object) -> Callable[[], Files]:
    """A checkpoint of Orbax in folders, of one array whose description says something else."""
    told = {
        "chunks": [2],
        "compressor": None,
        "dtype": "<f4",
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": [2],
        "zarr_format": 2,
        "dimension_separator": ".",
        **said,
    }
    tree = {
        "tree_metadata": {
            "('w',)": {
                "key_metadata": [{"key": "w", "key_type": 2}],
                "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
            }
        },
        "use_zarr3": False,
    }
    files = {"m/_METADATA": json.dumps(tree).encode(), "m/w/.zarray": json.dumps(told).encode()}
    return lambda: {**files, **{f"m/{name}": content for name, content in (data or {"w/0": bytes(8)}).items()}}


ORBAX.add("no JSON for a description", lambda: {**zarr()(), "m/w/.zarray": b"{"})
ORBAX.add("a negative dimension", zarr(shape=[-2]))
ORBAX.add(
    "a shape that overflows 64 bits",
    zarr(shape=[1 << 62, 1 << 62]),
)
ORBAX.add("chunks of nothing", zarr(chunks=[0]))
ORBAX.add("chunks of two axes", zarr(chunks=[2, 2]))
ORBAX.add("an unknown dtype", zarr(dtype="<q9"))
ORBAX.add("an unknown compressor", zarr(compressor={"id": "nonsense"}))
ORBAX.add("a chunk that is too short", zarr({"w/0": bytes(7)}))
ORBAX.add(
    "a chunk that is no zstd",
    zarr(compressor={"id": "zstd", "level": 1}),
)
ORBAX.add("a tree that is no JSON", lambda: {**zarr()(), "m/_METADATA": b"{"})
ORBAX.add("a tree that is a list", lambda: {**zarr()(), "m/_METADATA": b"[]"})
