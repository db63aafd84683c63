"""Where an entry of a V2 checkpoint's index says that its bytes lie, and nothing else of it.

Promise: the same as :class:`~weightport.formats.tf_bundle.Entry` says, several times sooner, for who needs it of all
entries. Limit: what is no message lies nowhere here; reading it is an error of its own.

Source: tensorflow/core/protobuf/tensor_bundle.proto (``BundleEntryProto``: shard_id, offset, size, slices).
"""

from __future__ import annotations

from weightport.errors import FormatError
from weightport.formats._proto import BYTES, FIXED32, VARINT, fields

_SHARD, _OFFSET, _SIZE, _SLICES = 3, 4, 5, 7
_CRC = 6 << 3 | FIXED32
_NOWHERE = 0, 0, 0


def place_of(data: bytes) -> tuple[int, int, int]:
    """Shard, offset and size of an entry; size 0 if the tensor is stored in slices."""
    shard = offset = size = at = 0
    end = len(data)
    try:
        while at < end:
            key, value = data[at], data[at + 1]
            wire = key & 7
            if key == _CRC:
                at += 5
                continue
            at += 2
            if key > 0x7F or wire not in (VARINT, BYTES):
                return _as_protobuf_has_it(data)
            if value > 0x7F:
                value, shift = value & 0x7F, 7
                while data[at] > 0x7F:
                    value |= (data[at] & 0x7F) << shift
                    at, shift = at + 1, shift + 7
                value |= data[at] << shift
                at += 1
                if value > 0x7FFFFFFFFFFFFFFF:
                    return _as_protobuf_has_it(data)
            if wire == BYTES:
                at += value
                if key >> 3 == _SLICES:
                    return _NOWHERE
            elif key >> 3 == _OFFSET:
                offset = value
            elif key >> 3 == _SIZE:
                size = value
            elif key >> 3 == _SHARD:
                shard = value
    except IndexError:
        return _NOWHERE
    return (shard, offset, size) if at == end else _NOWHERE


def _as_protobuf_has_it(data: bytes) -> tuple[int, int, int]:
    found = {_SHARD: 0, _OFFSET: 0, _SIZE: 0}
    try:
        for field, wire, value in fields(data, ""):
            if field == _SLICES and wire == BYTES:
                return _NOWHERE
            if wire == VARINT and isinstance(value, int) and field in found:
                found[field] = value
    except FormatError:
        return _NOWHERE
    return found[_SHARD], found[_OFFSET], found[_SIZE]
