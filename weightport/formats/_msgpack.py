"""msgpack, walked where it lies: tokens with their offsets, no value decoded that is not asked for.

Promise: bounded by the file; a token that does not fit it, or a container that claims more members than bytes are left,
is a :class:`FormatError` with its offset, before anything is allocated. Limit: a timestamp is an ext like any other.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from weightport.errors import FormatError
from weightport.formats._io import ByteFile
from weightport.formats._proto import Readable

NIL, BOOL, INT, FLOAT, TEXT = "nil", "bool", "int", "float", "str"
BINARY, ARRAY, MAP, EXT = "bin", "array", "map", "ext"

_WINDOW = 4096
# First byte -> kind, bytes of the length that follow it (or of the number).
_SIZED = {
    **dict.fromkeys((0xD9, 0xDA, 0xDB), TEXT),
    **dict.fromkeys((0xC4, 0xC5, 0xC6), BINARY),
    **dict.fromkeys((0xC7, 0xC8, 0xC9), EXT),
    **dict.fromkeys((0xDC, 0xDD), ARRAY),
    **dict.fromkeys((0xDE, 0xDF), MAP),
}
_WIDTH = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xDC: 2, 0xDD: 4}
_WIDTH |= {0xDE: 2, 0xDF: 4}
_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_NUMBERS |= {0xCA: ">f", 0xCB: ">d"}


@dataclass(frozen=True, slots=True)
class Token:
    """One value, or the head of a container.

    Attributes:
        kind: ``nil``, ``bool``, ``int``, ``float``, ``str``, ``bin``, ``array``, ``map`` or ``ext``.
        at: its first byte.
        start: where its data begin; of a container, its first member.
        size: bytes of its data (``str``, ``bin``, ``ext``), or its members (``array``, ``map``: pairs).
        value: of a number or a bool.
        code: the type of an ``ext``.
    """

    kind: str
    at: int
    start: int
    size: int = 0
    value: int | float | bool = 0
    code: int = 0

    @property
    def end(self) -> int:
        """The byte after it; of a container, after its head."""
        return self.start if self.kind in (ARRAY, MAP) else self.start + self.size


class Walker:
    """Reads the tokens of a file, or of a range of it. What is passed over is not read.

    Args:
        file: where they lie.
        stop: the end of the range; that of the file by default.
    """

    def __init__(self, file: Readable, stop: int | None = None) -> None:
        self.file, self.stop = file, file.size if stop is None else stop
        self.window, self._base = b"", 0
        self.read = 0

    def token(self, at: int) -> Token:
        """The token at an offset.

        Raises:
            FormatError: it is no msgpack, or reaches beyond the end.
        """
        first = self._bytes(at, 1)[0]
        if first < 0x80 or first >= 0xE0:
            return Token(INT, at, at + 1, value=first if first < 0x80 else first - 256)
        if first < 0xC0:
            kind = MAP if first < 0x90 else ARRAY if first < 0xA0 else TEXT
            return self._fitting(Token(kind, at, at + 1, first & (0x1F if kind == TEXT else 0x0F)))
        if first == 0xC0:
            return Token(NIL, at, at + 1)
        if first in (0xC2, 0xC3):
            return Token(BOOL, at, at + 1, value=first == 0xC3)
        if first in _NUMBERS:
            form = _NUMBERS[first]
            raw = self._bytes(at + 1, struct.calcsize(form))
            kind = FLOAT if first in (0xCA, 0xCB) else INT
            return Token(kind, at, at + 1 + len(raw), value=struct.unpack(form, raw)[0])
        if 0xD4 <= first <= 0xD8:
            code = struct.unpack(">b", self._bytes(at + 1, 1))[0]
            return self._fitting(Token(EXT, at, at + 2, 1 << (first - 0xD4), code=code))
        if first not in _SIZED:
            raise FormatError(self.file.path, "no msgpack begins with the byte 0xc1", offset=at)
        kind, width = _SIZED[first], _WIDTH[first]
        size = int.from_bytes(self._bytes(at + 1, width), "big")
        if kind == EXT:
            code = struct.unpack(">b", self._bytes(at + 1 + width, 1))[0]
            return self._fitting(Token(EXT, at, at + 2 + width, size, code=code))
        return self._fitting(Token(kind, at, at + 1 + width, size))

    def text(self, token: Token) -> str:
        """A string's text.

        Raises:
            FormatError: it is no UTF-8.
        """
        try:
            return self._bytes(token.start, token.size).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(self.file.path, "a string that is no UTF-8", offset=token.at) from None

    def _fitting(self, token: Token) -> Token:
        # Each member of a container takes a byte at least.
        needs = token.size * (2 if token.kind == MAP else 1)
        if token.start + needs > self.stop:
            what = f"truncated or corrupt: {token.kind} of {token.size:,}, {self.stop - token.start:,} bytes are left"
            raise FormatError(self.file.path, what, offset=token.at)
        return token

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > self.stop:
            raise FormatError(self.file.path, "truncated: the data end here", offset=self.stop)
        begin = at - self._base
        if begin < 0 or begin + count > len(self.window):
            size = min(max(count, _WINDOW), self.stop - at)
            self.window, self._base, begin = self.file.read(at, size), at, 0
            self.read += size
        return self.window[begin : begin + count]


def is_map(path: str) -> bool:
    """Whether a file begins as a map of msgpack whose first key is a text. Never raises."""
    try:
        with ByteFile(path) as file:
            walker = Walker(file)
            top = walker.token(0)
            key = walker.token(top.end) if top.kind == MAP and top.size else top
            if key.kind != TEXT or not 0 < key.size <= _WINDOW or not walker.text(key).isprintable():
                return False
            walker.token(key.end)
            return True
    except (FormatError, OSError):
        return False


# -- writing: the shortest form of each, as the msgpack library writes it --------------------------------------------


def head(kind: str, size: int, code: int = 0) -> bytes:
    """The head of a container, a string, bytes or an ext, whose data follow."""
    if kind == EXT:
        if size in (1, 2, 4, 8, 16):
            return bytes([0xD4 + size.bit_length() - 1]) + struct.pack(">b", code)
        return _sized(0xC7, (1, 2, 4), size) + struct.pack(">b", code)
    if kind == BINARY:
        return _sized(0xC4, (1, 2, 4), size)
    if kind == TEXT:
        return bytes([0xA0 | size]) if size < 32 else _sized(0xD9, (1, 2, 4), size)
    if size < 16:
        return bytes([(0x80 if kind == MAP else 0x90) | size])
    return _sized(0xDE if kind == MAP else 0xDC, (2, 4), size)


def _sized(first: int, widths: tuple[int, ...], size: int) -> bytes:
    for k, width in enumerate(widths):
        if size < 1 << 8 * width:
            return bytes([first + k]) + size.to_bytes(width, "big")
    raise OverflowError(f"msgpack holds {1 << 32:,} bytes at most, not {size:,}")


def text(value: str) -> bytes:
    """A string."""
    raw = value.encode("utf-8")
    return head(TEXT, len(raw)) + raw


def number(value: int | float | bool) -> bytes:
    """A number or a bool."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if -32 <= value < 128:
        return struct.pack(">b", value)
    forms = ((0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q")) if value > 0 else ()
    for first, form in forms or ((0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q")):
        try:
            return bytes([first]) + struct.pack(form, value)
        except struct.error:
            continue
    raise OverflowError(f"{value} is beyond msgpack's integers")


def copy(source: Readable, start: int, stop: int, out: BinaryIO, chunk: int = 1 << 20) -> None:
    """The bytes of a range, as they are."""
    for at in range(start, stop, chunk):
        out.write(source.read(at, min(chunk, stop - at)))
