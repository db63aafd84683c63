"""Bytes that are nearly right: changes of one kind of content each, for the fuzzers.

Promise: what comes out is a function of the random generator and the input alone. Lengths around a change are made
right again (protobuf's messages, msgpack's extensions, the headers of safetensors and npy), because a reader that stops
at a length is not tested behind it; each is also damaged without that. Limit: what has no structure that is found here
is changed as bytes.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Literal

from weightport.formats._table import put_varint

Mutator = Callable[[Random, bytes], bytes]

_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    31,
    32,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    1000,
    65535,
    65536,
    1 << 24,
    (1 << 31) - 1,
]
_NUMBERS += [1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


# -- any bytes ---------------------------------------------------------------------------------------------------------


def plain(rng: Random, data: bytes) -> bytes:
    """A change that knows nothing: a bit, a byte, an integer, a piece removed, doubled, moved or put in."""
    if not data:
        return rng.randbytes(rng.randrange(1, 9))
    at, kind = rng.randrange(len(data)), rng.randrange(10)
    if kind < 2:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind < 3:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind < 6:
        return _integer(rng, data, at)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 16, 64)))
    if kind == 6:
        return data[:at] + data[end:]
    if kind == 7:
        return data[:end] + data[at:]
    if kind == 8:
        other = rng.randrange(len(data))
        return data[:other] + data[at:end] + data[other:]
    return data[:at] if rng.random() < 0.2 else data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def _integer(rng: Random, data: bytes, at: int) -> bytes:
    """An integer of 2, 4 or 8 bytes replaced, mostly where such ones lie aligned."""
    size = rng.choice((2, 4, 4, 8))
    if rng.random() < 0.7:
        at -= at % size
    old = data[at : at + size]
    order: Literal["big", "little"] = "big" if rng.random() < 0.15 else "little"
    new = other(rng, int.from_bytes(old, order))
    return data[:at] + (new % (1 << 8 * len(old))).to_bytes(len(old), order) + data[at + size :]


def other(rng: Random, old: int) -> int:
    """Another integer: a near one, a multiple, a negative one, or one at which something overflows."""
    kind = rng.randrange(4)
    if kind == 0:
        return old + rng.choice((-8, -4, -2, -1, 1, 2, 4, 8))
    if kind == 1:
        return old * 2 if rng.random() < 0.5 else old >> 1
    if kind == 2:
        return -rng.choice(_NUMBERS[:12])
    return rng.choice(_NUMBERS)


# -- text: JSON, protobuf's text format, the header of .npy ------------------------------------------------------------

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|\'[^\']*\'|-?\d[\d.eE+-]*|\w+|\S')
_WORDS = rb"""0 -1 1.5 1e999 9223372036854775808 99999999999999999999 null true NaN [] {} [[[[[[[[ ,
    "" "\ud800" "../x" "/etc/passwd" "F64" "BF16" "F8_E4M3" """.split()


@lru_cache(maxsize=512)
def _tokens(data: bytes) -> list[tuple[int, int]]:
    return [found.span() for found in _TOKEN.finditer(data)]


def text(rng: Random, data: bytes) -> bytes:
    """A token replaced, removed, doubled, or exchanged with another."""
    tokens = _tokens(data)
    if not tokens:
        return plain(rng, data)
    start, end = tokens[rng.randrange(len(tokens))]
    old, kind = data[start:end], rng.randrange(10)
    low, high = tokens[rng.randrange(len(tokens))]
    another = data[low:high]
    if kind < 6 and (old[:1].isdigit() or old[:1] in b"\"'"):  # what can still be parsed
        if old.isdigit():
            new = b"%d" % other(rng, int(old[:20]))
        elif another[:1] == old[:1] and kind < 3:
            new = another
        else:
            new = old[:1] + plain(rng, old[1:-1]).replace(b'"', b"") + old[-1:]
    elif kind == 6:
        new = rng.choice(_WORDS)
    elif kind == 7:
        new = b""
    elif kind == 8:
        new = old + (b"," if rng.random() < 0.5 else b" ") + old
    elif kind == 9:
        # From here to another token: entries are moved, doubled or lost as wholes.
        return data[:end] + data[low:] if rng.random() < 0.5 else data[:end] + data[start:high] + data[high:]
    else:
        new = another
    return data[:start] + new + data[end:]


def safetensors(rng: Random, data: bytes) -> bytes:
    """The JSON of the header, and mostly its size."""
    size = int.from_bytes(data[:8], "little")
    head = text(rng, data[8 : 8 + size])
    size = len(head) if rng.random() < 0.9 else size
    return size.to_bytes(8, "little") + head + data[8 + int.from_bytes(data[:8], "little") :]


def npy(rng: Random, data: bytes) -> bytes:
    """The array's header, and mostly its size."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        return plain(rng, data)
    wide = 2 if data[6] == 1 else 4
    start = 8 + wide
    end = start + int.from_bytes(data[8:start], "little")
    head = text(rng, data[start:end])[:60_000]
    size = len(head) if rng.random() < 0.9 else end - start
    return data[:8] + size.to_bytes(wide, "little") + head + data[end:]


# -- protobuf ----------------------------------------------------------------------------------------------------------

#: A field: where its tag, its value and what follows it begin; its wire type; the messages around it, outermost first,
#: each as where its length, its content and what follows it begin.
Around = tuple[tuple[int, int, int], ...]
Span = tuple[int, int, int, int, Around]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError


def _fields(data: bytes, start: int, end: int, around: Around, out: list[Span]) -> bool:
    """Appends the fields of a message and of those in it; False if these bytes are no message."""
    mine: list[Span] = []
    inner: list[Span] = []
    at = start
    try:
        while at < end:
            begin = at
            tag, at = _varint(data, at)
            kind = tag & 7
            value = at
            if not tag >> 3 or tag >> 3 > 1000:
                return False
            if kind == 0:
                _, at = _varint(data, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            elif kind == 2:
                size, content = _varint(data, at)
                at = content + size
                if at <= end and size and len(around) < 12:
                    _fields(data, content, at, (*around, (value, content, at)), inner)
            else:
                return False
            if at > end:
                return False
            mine.append((begin, value, at, kind, around))
    except (IndexError, ValueError):
        return False
    out += mine
    out += inner
    return True


@lru_cache(maxsize=512)
def _spans(data: bytes) -> list[Span]:
    found: list[Span] = []
    _fields(data, 0, len(data), (), found)
    return found


def _spliced(data: bytes, start: int, end: int, new: bytes, around: Around) -> bytes:
    """Other bytes for some of a message's, and lengths that fit."""
    out = data[:start] + new + data[end:]
    grown = len(new) - (end - start)
    for length, content, after in reversed(around):
        size = put_varint(max(0, after - content + grown))
        out = out[:length] + size + out[content:]
        grown += len(size) - (content - length)
    return out


def protobuf(rng: Random, data: bytes) -> bytes:
    """A field's value, the field itself, or its place among the others."""
    spans = _spans(data)
    if not spans:
        return plain(rng, data)
    begin, value, end, kind, around = spans[rng.randrange(len(spans))]
    how = rng.randrange(8)
    if how < 4:
        if kind == 0:
            old, _ = _varint(data, value)
            new = put_varint(other(rng, old) % (1 << 64))
        elif kind == 2:
            _, content = _varint(data, value)
            if rng.random() < 0.2:  # the length alone
                return data[:value] + put_varint(other(rng, end - content) % (1 << 64)) + data[content:]
            new = plain(rng, data[content:end])
            new = put_varint(len(new)) + new
        else:
            new = plain(rng, data[value:end])[: end - value].ljust(end - value, b"\0")
        return _spliced(data, value, end, new, around)
    if how == 4:
        return _spliced(data, begin, end, b"", around)
    if how == 5:
        return _spliced(data, begin, end, data[begin:end] * rng.choice((2, 2, 3, 20)), around)
    low, _, high, _, _ = spans[rng.randrange(len(spans))]
    if how == 6:
        return _spliced(data, begin, end, data[low:high], around)
    tag = put_varint(rng.randrange(1, 17) << 3 | kind)
    return _spliced(data, begin, value, tag, around)


# -- pickles -----------------------------------------------------------------------------------------------------------

_OPCODES = [bytes([code]) for code in b"(t)]}usae02N\x88\x93\x94\x85\x86\x87RbQ\x81.1"]
_OPCODES += [b"h\0", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"K\7", b"M\xff\xff", b"J\xff\xff\xff\xff", b"\x82\1"]
_OPCODES += [b"\x8a\x09" + b"\xff" * 8 + b"\0", b"X\xff\xff\xff\x7f", b"cos\nsystem\n"]


@lru_cache(maxsize=512)
def _opcodes(data: bytes) -> list[tuple[int, int]]:
    starts: list[int] = []
    end = 0
    stream = io.BytesIO(data)
    with contextlib.suppress(Exception):
        while True:  # a file of before 1.6 has several
            begin = stream.tell()
            starts += [at for _, _, at in pickletools.genops(stream) if at is not None]
            end = stream.tell()
            if end == begin or end >= len(data):
                break
    return list(zip(starts, [*starts[1:], end], strict=True)) if starts and end else []


def pickle(rng: Random, data: bytes) -> bytes:
    """An opcode lost, doubled, replaced, put in, or another argument of it."""
    found = _opcodes(data)
    if not found:
        return plain(rng, data)
    start, end = found[rng.randrange(len(found))]
    how = rng.randrange(6)
    if how == 0:
        return data[:start] + data[end:]
    if how == 1:
        return data[:end] + data[start:]
    if how == 2:
        return data[:start] + rng.choice(_OPCODES) + data[end:]
    if how == 3:
        return data[:start] + rng.choice(_OPCODES) + data[start:]
    if how == 4:
        low, high = found[rng.randrange(len(found))]
        return data[:start] + data[low:high] + data[end:]
    return data[:start] + data[start : start + 1] + plain(rng, data[start + 1 : end]) + data[end:]


# -- msgpack -----------------------------------------------------------------------------------------------------------

_CODES = [b"\xc0", b"\xc3", b"\x80", b"\x90", b"\xa0", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7, b"\xd4\1\0"]
_CODES += [b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\0\0\1\0\1", b"\x91" * 70]
#: First byte -> how many bytes of a length, or of a number, follow.
_HEADS = dict(zip(range(0xC4, 0xCA), (1, 2, 4, 1, 2, 4), strict=True))
_HEADS |= dict(zip(range(0xD9, 0xE0), (1, 2, 4, 2, 4, 2, 4), strict=True))
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
_FIXED |= {first + n: 1 << n for first in (0xCC, 0xD0) for n in range(4)}
#: A value: where it begins and ends; and the extensions around it, each as where it begins, its content and its end.
Value = tuple[int, int, Around]


def _values(data: bytes, at: int, around: Around, out: list[Value]) -> int:
    """Appends a value and those in it; returns where the next begins."""
    start, head = at, data[at]
    at += 1
    items = 0
    if head < 0x80 or head >= 0xE0:
        pass
    elif head < 0x90:
        items = 2 * (head & 15)
    elif head < 0xA0:
        items = head & 15
    elif head < 0xC0:
        at += head & 31
    elif head == 0xC1:  # never used
        raise IndexError
    elif head in _FIXED:
        at += _FIXED[head]
    elif head in _HEADS:
        wide = _HEADS[head]
        size = int.from_bytes(data[at : at + wide], "big")
        at += wide
        if head in (0xC7, 0xC8, 0xC9):
            at += 1
            if data[at - 1] in (1, 3) and size:
                with contextlib.suppress(IndexError):
                    _values(data[: at + size], at, (*around, (start, at, at + size)), out)
            at += size
        elif head >= 0xDC:
            items = size * (2 if head >= 0xDE else 1)
        else:
            at += size
    else:  # an extension of a fixed size
        at += 1 + (1 << head - 0xD4)
    for _ in range(items):
        at = _values(data, at, around, out)
    if at > len(data):
        raise IndexError
    out.append((start, at, around))
    return at


@lru_cache(maxsize=512)
def _packed(data: bytes) -> list[Value]:
    found: list[Value] = []
    with contextlib.suppress(IndexError, RecursionError):
        _values(data, 0, (), found)
    return found


def msgpack(rng: Random, data: bytes) -> bytes:
    """A value lost, doubled, replaced or changed; the extension that it stands in gets the size that it then has."""
    values = _packed(data)
    if not values:
        return plain(rng, data)
    start, end, around = values[rng.randrange(len(values))]
    how = rng.randrange(6)
    if how == 0:
        new = b""
    elif how == 1:
        new = data[start:end] * 2
    elif how == 2:
        new = rng.choice(_CODES)
    elif how == 3:
        low, high, _ = values[rng.randrange(len(values))]
        new = data[low:high]
    else:
        new = plain(rng, data[start:end])
    out = data[:start] + new + data[end:]
    grown = len(new) - (end - start)
    for begin, content, after in reversed(around):
        size = after - content + grown
        head = b"\xc9" + max(0, size).to_bytes(4, "big") + data[content - 1 : content]
        out = out[:begin] + head + out[content:]
        grown += len(head) - (content - begin)
    return out
