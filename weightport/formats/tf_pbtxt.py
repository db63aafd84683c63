"""Protobuf's text format, as TensorFlow writes graphs in it: parsed into the binary message that it stands for.

Promise: one pass without recursion, bounded by the text and by the budget's depth; every mistake is a
:class:`FormatError` with its line. Fields that readers here do not need, or do not know, are checked for their syntax
and left out. Limit: the text is held in memory; extensions and expanded ``Any`` messages are left out.

Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from weightport.errors import FormatError
from weightport.formats._proto import Readable
from weightport.tensors import Budget

_DATA_TYPES = (  # noqa: SIM905 - a column of names would be a page
    "INVALID FLOAT DOUBLE INT32 UINT8 INT16 INT8 STRING COMPLEX64 INT64 BOOL QINT8 QUINT8 QINT32 BFLOAT16 QINT16 "
    "QUINT16 UINT16 COMPLEX128 HALF RESOURCE VARIANT UINT32 UINT64 FLOAT8_E5M2 FLOAT8_E4M3FN FLOAT8_E4M3FNUZ "
    "FLOAT8_E4M3B11FNUZ FLOAT8_E5M2FNUZ INT4 UINT4 INT2 UINT2 FLOAT4_E2M1FN"
).split()
_ENUM = {f"DT_{name}": number for number, name in enumerate(_DATA_TYPES)}
_ENUM |= {f"{name}_REF": number + 100 for name, number in _ENUM.items() if number}

# Message -> field -> (number, what it is): int, enum, bool, float, double, text, or the name of a message.
_Schema = dict[str, tuple[int, str]]
_SCHEMAS: dict[str, _Schema] = {
    "GraphDef": {"node": (1, "NodeDef"), "library": (2, "Library"), "version": (3, "int")},
    "NodeDef": {"name": (1, "text"), "op": (2, "text"), "input": (3, "text"), "attr": (5, "AttrEntry")},
    "AttrEntry": {"key": (1, "text"), "value": (2, "AttrValue")},
    "AttrValue": {
        "s": (2, "text"),
        "i": (3, "int"),
        "f": (4, "float"),
        "b": (5, "bool"),
        "type": (6, "enum"),
        "shape": (7, "Shape"),
        "tensor": (8, "Tensor"),
        "func": (10, "NameAttrList"),
        "placeholder": (9, "text"),
    },
    "NameAttrList": {"name": (1, "text")},
    "Shape": {"dim": (2, "Dim"), "unknown_rank": (3, "bool")},
    "Dim": {"size": (1, "int")},
    "Tensor": {
        "dtype": (1, "enum"),
        "tensor_shape": (2, "Shape"),
        "version_number": (3, "int"),
        "tensor_content": (4, "text"),
        "float_val": (5, "float"),
        "double_val": (6, "double"),
        "int_val": (7, "int"),
        "string_val": (8, "text"),
        "scomplex_val": (9, "float"),
        "int64_val": (10, "int"),
        "bool_val": (11, "bool"),
        "dcomplex_val": (12, "double"),
        "half_val": (13, "int"),
        "uint32_val": (16, "int"),
        "uint64_val": (17, "int"),
        "float8_val": (18, "text"),
    },
    "Library": {"function": (1, "Function")},
    "Function": {"signature": (1, "OpDef"), "node_def": (3, "NodeDef"), "ret": (4, "TextEntry")},
    "TextEntry": {"key": (1, "text"), "value": (2, "text")},
    "OpDef": {"name": (1, "text"), "input_arg": (2, "ArgDef"), "output_arg": (3, "ArgDef")},
    "ArgDef": {"name": (1, "text")},
    "MetaGraphDef": {
        "meta_info_def": (1, "MetaInfo"),
        "graph_def": (2, "GraphDef"),
    },
    "MetaInfo": {"tags": (4, "text")},
    "SavedModel": {"saved_model_schema_version": (1, "int"), "meta_graphs": (2, "MetaGraphDef")},
}
# What the first field of a text says about it.
_FIRST = {
    **dict.fromkeys((b"node", b"library", b"versions", b"version"), "GraphDef"),
    **dict.fromkeys((b"meta_info_def", b"graph_def", b"saver_def", b"collection_def"), "MetaGraphDef"),
    **dict.fromkeys((b"saved_model_schema_version", b"meta_graphs"), "SavedModel"),
}

_BLANK = rb"(?:[ \t\r\n\f\v]+|\#[^\n]*)*"
_TOKEN = re.compile(
    _BLANK
    + rb"""(?:
    (?P<string> "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*' )
  | (?P<word> [-+]?[ \t]*[A-Za-z0-9_.][A-Za-z0-9_.]*(?:(?<=[eE])[-+][0-9]+[fF]?)? )
  | (?P<mark> [{}<>\[\],:;/] )
  | (?P<end> \Z )
  )""",
    re.VERBOSE | re.DOTALL,
)
_HEAD = re.compile(rb"(?:\xef\xbb\xbf)?" + _BLANK + rb"([a-z_]+)" + _BLANK + rb"([:{<])", re.DOTALL)
_LOOK = 64 * 1024
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_LETTERS |= {c: c for c in (b"\\", b"'", b'"', b"?")}
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_CLOSING = {"{": "}", "<": ">"}


def kind_of(file: Readable) -> str | None:
    """Which message a text file holds (``GraphDef``, ``MetaGraphDef``, ``SavedModel``), by its first field."""
    try:
        match = _HEAD.match(file.read(0, min(_LOOK, file.size)))
    except FormatError:
        return None
    return _FIRST.get(match[1]) if match else None


def parse(data: bytes, message: str, path: object, budget: Budget) -> bytes:
    """The binary form of a text message; ``message`` is what :func:`kind_of` says."""
    return _Parser(data, path, budget).run(message)


class _Frame:
    """A message that is open: where its bytes go, and what closes it. ``schema`` is None for what is left out."""

    __slots__ = ("closing", "number", "out", "schema")

    def __init__(self, schema: _Schema | None, number: int, closing: str) -> None:
        self.schema, self.number, self.closing, self.out = schema, number, closing, bytearray()


class _Parser:
    def __init__(self, data: bytes, path: object, budget: Budget) -> None:
        self.data, self.path, self.budget = data, path, budget
        self.position = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        self.kind, self.value = "", b""
        self.start = 0
        self.advance()

    def advance(self) -> None:
        match = _TOKEN.match(self.data, self.position)
        if match is None:
            blank = re.compile(_BLANK).match(self.data, self.position)
            self.start = blank.end() if blank else self.position
            raise self.error(f"cannot read what begins with {self.data[self.start : self.start + 12]!r}")
        self.kind = match.lastgroup or ""
        self.value, self.start, self.position = match[self.kind], match.start(self.kind), match.end()

    def error(self, what: str) -> FormatError:
        line = self.data.count(b"\n", 0, self.start) + 1
        return FormatError(self.path, f"line {line}: {what}", offset=self.start)

    def shown(self) -> str:
        return "the end" if self.kind == "end" else repr(self.value[:40].decode("utf-8", "replace"))

    def mark(self, marks: str) -> str:
        """The current token if it is one of those marks, else nothing."""
        text = self.value.decode("ascii") if self.kind == "mark" else ""
        return text if text and text in marks else ""

    def run(self, message: str) -> bytes:
        stack = [_Frame(_SCHEMAS[message], 0, "")]
        lists: list[tuple[int, str, str] | None] = [None]  # per frame: the list of messages that it is an item of
        while True:
            frame = stack[-1]
            if self.kind == "end":
                if len(stack) > 1:
                    raise self.error(f"the text ends where {frame.closing!r} is expected")
                return bytes(frame.out)
            if frame.closing and self.mark("}>") == frame.closing:
                self.advance()
                stack.pop()
                if frame.schema is not None and stack[-1].schema is not None:
                    stack[-1].out += _key(frame.number, 2) + _varint(len(frame.out))
                    stack[-1].out += frame.out
                item = lists.pop()
                if item is not None:
                    if self.mark(","):
                        self.advance()
                        self.open(stack, lists, *item, listed=True)
                        continue
                    self.expect("]")
                self.separator()
                continue
            number, kind = self.field(frame.schema)
            colon = self.mark(":")
            if colon:
                self.advance()
            if self.mark("{<"):
                self.open(stack, lists, number, kind, frame.closing, listed=False)
            elif self.mark("["):
                self.advance()
                if self.mark("{<"):
                    self.open(stack, lists, number, kind, frame.closing, listed=True)
                    continue
                if not colon and not self.mark("]"):
                    raise self.error(f"a message expected, found {self.shown()}")
                self.scalars(frame, number, kind)
                self.separator()
            elif not colon:
                raise self.error(f"':' or a message expected, found {self.shown()}")
            else:
                self.scalar(frame, number, kind)
                self.separator()

    def separator(self) -> None:
        if self.mark(",;"):
            self.advance()

    def expect(self, mark: str) -> None:
        if self.mark(mark) != mark:
            raise self.error(f"{mark!r} expected, found {self.shown()}")
        self.advance()

    def field(self, schema: _Schema | None) -> tuple[int, str]:
        """Number and kind of the field that is named here; the kind of what is left out is empty."""
        if self.mark("["):
            while not self.mark("]"):
                if self.kind == "end" or self.mark("{}<>"):
                    raise self.error("the name of an extension does not end")
                self.advance()
            self.advance()
            return 0, ""
        if self.kind != "word" or not re.fullmatch(rb"[A-Za-z_][A-Za-z0-9_]*", self.value):
            raise self.error(f"the name of a field expected, found {self.shown()}")
        name = self.value.decode("ascii")
        self.advance()
        return schema.get(name, (0, "")) if schema else (0, "")

    def open(
        self,
        stack: list[_Frame],
        lists: list[tuple[int, str, str] | None],
        number: int,
        kind: str,
        closing: str,
        *,
        listed: bool,
    ) -> None:
        opening = self.mark("{<")
        if not opening:
            raise self.error(f"a message expected, found {self.shown()}")
        if kind and kind not in _SCHEMAS:
            raise self.error(f"a value expected, found {self.shown()}")
        self.budget.check("depth", len(stack), self.path)
        self.advance()
        stack.append(_Frame(_SCHEMAS[kind] if kind else None, number, _CLOSING[opening]))
        lists.append((number, kind, closing) if listed else None)

    def scalars(self, frame: _Frame, number: int, kind: str) -> None:
        while not self.mark("]"):
            self.scalar(frame, number, kind)
            if self.mark(","):
                self.advance()
                if self.mark("]"):
                    raise self.error("a value expected, found ']'")
            elif not self.mark("]"):
                raise self.error(f"',' or ']' expected, found {self.shown()}")
        self.advance()

    def scalar(self, frame: _Frame, number: int, kind: str) -> None:
        if kind in _SCHEMAS:
            raise self.error(f"a message expected, found {self.shown()}")
        if self.kind == "string":
            if kind not in ("text", ""):
                raise self.error(f"a number expected, found {self.shown()}")
            parts = list(self.strings())
            if kind:
                size = sum(map(len, parts))
                frame.out += _key(number, 2) + _varint(size)
                for part in parts:
                    frame.out += part
            return
        if self.kind != "word" or kind == "text":
            raise self.error(f"a value expected, found {self.shown()}")
        word = re.sub(r"[ \t]", "", self.value.decode("ascii"))
        if kind:
            frame.out += self.number(word, number, kind)
        self.advance()

    def strings(self) -> Iterator[bytes]:
        """Neighbouring strings are one."""
        while self.kind == "string":
            body = self.value[1:-1]
            yield _ESCAPE.sub(self.unescaped, body) if b"\\" in body else body
            self.advance()

    def unescaped(self, match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, short, long, letter = match.groups()
        if octal is not None:
            value = int(octal, 8)
            if value > 255:
                raise self.error(f"the escape {match[0].decode()} is no byte")
            return bytes((value,))
        if hexadecimal is not None:
            return bytes((int(hexadecimal, 16),))
        if letter is not None:
            if letter not in _LETTERS:
                raise self.error(f"unknown escape {match[0]!r} in a string")
            return _LETTERS[letter]
        try:
            return chr(int(short or long, 16)).encode("utf-8")
        except (ValueError, OverflowError):
            raise self.error(f"the escape {match[0].decode()} is no character") from None

    def number(self, word: str, number: int, kind: str) -> bytes:
        if kind in ("float", "double"):
            return _key(number, 5 if kind == "float" else 1) + self.real(word, kind)
        if kind == "bool" and word in ("true", "True", "t", "false", "False", "f"):
            return _key(number, 0) + (b"\1" if word[0] in "tT" else b"\0")
        if kind == "enum" and word in _ENUM:
            return _key(number, 0) + _varint(_ENUM[word])
        match = _INTEGER.fullmatch(word)
        # Python refuses to convert very long numbers by itself; none is longer than 64 bits anyway.
        if match is None or len(word) > 32:
            raise self.error(f"{'a known name or ' if kind == 'enum' else ''}an integer expected, found {self.shown()}")
        digits = match[2]
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" and len(digits) > 1 else 10
        value = int(digits, base) * (-1 if match[1] == "-" else 1)
        if not -(1 << 63) <= value < 1 << 64 or (kind == "bool" and value not in (0, 1)):
            raise self.error(f"{self.shown()} is out of range")
        return _key(number, 0) + _varint(value & 0xFFFFFFFFFFFFFFFF)

    def real(self, word: str, kind: str) -> bytes:
        plain = word.lower()
        if plain.endswith("f") and not plain.endswith("inf"):
            plain = plain[:-1]
        if "_" in plain:
            raise self.error(f"a number expected, found {self.shown()}")
        try:
            value = float(plain)
        except ValueError:
            raise self.error(f"a number expected, found {self.shown()}") from None
        if kind == "double":
            return struct.pack("<d", value)
        try:
            return struct.pack("<f", value)
        except OverflowError:
            return struct.pack("<f", math.copysign(math.inf, value))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)
