"""Messages put together from bytes, ranges of a file and streams."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.formats import _message
from weightport.formats._message import Field, Message, Span, Stream, fields_of
from weightport.formats._proto import Memory
from weightport.formats._table import put_varint


def written(message: Message) -> bytes:
    out = io.BytesIO()
    message.write(out)
    assert out.getvalue() == bytes(message)
    assert len(out.getvalue()) == message.size
    return out.getvalue()


FILE = Memory(b"0123456789", "f")


def test_pieces_in_their_order() -> None:
    stream = Stream(3, lambda: iter([b"x", memoryview(b"yz")]))
    message = Message(b"a", b"", Span(FILE, 2, 3), stream, Message(b"b", Span(FILE, 0, 1)), Span(FILE, 1, 0), b"c")
    assert written(message) == b"a234xyzb0c"
    assert written(Message()) == b""


def test_pieces_that_meet_are_one() -> None:
    assert len(Message(b"a", b"b", Message(b"c"))._parts) == 1
    joined = Message(Span(FILE, 2, 3), Span(FILE, 5, 2))
    assert joined._parts == [Span(FILE, 2, 5)]
    for apart in (Span(FILE, 6, 2), Span(Memory(b"0123456789", "g"), 5, 2)):
        assert len(Message(Span(FILE, 2, 3), apart)._parts) == 2
    assert written(joined) == b"23456"


def test_a_message_that_grows_leaves_others_as_they_are() -> None:
    inner = Message(b"ab")
    outer = Message(inner)
    outer.add(b"c")
    inner.add(b"d")
    assert (bytes(inner), bytes(outer)) == (b"abd", b"abc")


def test_fields() -> None:
    assert bytes(Message().bytes_field(1, b"ab")) == b"\x0a\2ab"
    assert bytes(Message().bytes_field(20, Message(b"x" * 200))) == b"\xa2\1\xc8\1" + b"x" * 200
    assert bytes(Message().bytes_field(1, Span(FILE, 0, 2))) == b"\x0a\00201"
    assert bytes(Message().bytes_field(1, b"")) == b"\x0a\0"
    assert bytes(Message().number_field(3, 0)) == b"\x18\0"
    assert bytes(Message().number_field(3, -1)) == b"\x18" + b"\xff" * 9 + b"\1"


def test_large_ranges_are_copied_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_message, "CHUNK", 4)
    assert written(Message(Span(FILE, 1, 9))) == b"123456789"
    asked = []
    plain = FILE.read
    monkeypatch.setattr(FILE, "read", lambda at, n: (asked.append((at, n)), plain(at, n))[1])
    Message(Span(FILE, 1, 9)).write(io.BytesIO())
    assert asked == [(1, 4), (5, 4), (9, 1)]


def test_where_fields_lie() -> None:
    data = b"\x0a\2ab\x08\5\x12\1c\x1d\1\2\3\4\x22\0\x0a\x81\0d\x12\1e"
    file = Memory(b".." + data, "f")
    found = list(fields_of(file, 2, 2 + len(data)))
    assert [(f.number, f.wire, f.size) for f in found] == [
        (1, 2, 2), (1, 0, 0), (2, 2, 1), (3, 5, 0), (4, 2, 0), (1, 2, 1), (2, 2, 1),
    ]  # fmt: skip
    first = found[0]
    assert (first.value, first.end, first.read(), first.content) == (4, 6, b"ab", Span(file, 4, 2))
    # The whole of a field is known where its key and its size are as short as they can be.
    assert [f.whole for f in found] == [
        Span(file, 2, 4), None, Span(file, 8, 3), None, Span(file, 16, 2), None, Span(file, 22, 3),
    ]  # fmt: skip


def test_a_first_field_of_which_only_the_content_lies_there() -> None:
    """Behind a number at the very start of a file there may be no room for the shortest head: nothing is read there."""
    assert not _message._canonical(Memory(b"x", "f"), -1, 1, 0)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    def number(value: int) -> bytes:  # as short as can be, or longer
        return put_varint(value) if draw(st.booleans()) else put_varint(value | 1 << 40)[:-1] + b"\0"

    def field() -> Iterator[bytes]:
        wire = draw(st.sampled_from([0, 1, 2, 5]))
        yield number(draw(st.sampled_from([1, 15, 16, 3000])) << 3 | wire)
        if wire == 0:
            yield number(draw(st.sampled_from([0, 127, 128, 1 << 30])))
        elif wire == 2:
            content = draw(st.binary(max_size=140))
            yield number(len(content)) + content
        else:
            yield draw(st.binary(min_size=8 if wire == 1 else 4, max_size=8 if wire == 1 else 4))

    return b"".join(b"".join(field()) for _ in range(draw(st.integers(0, 6))))


def told(data: bytes) -> list[tuple[int, int, int | bytes]]:
    file = Memory(data, "f")
    return [(f.number, f.wire, f.read() if f.wire == 2 else f.value) for f in fields_of(file, 0, file.size)]


@given(messages())
def test_copies_say_the_same(data: bytes) -> None:
    file, copy = Memory(data, "f"), Message()
    found: list[Field] = list(fields_of(file, 0, file.size))
    for field in found:
        copy.copied(field)
        if field.whole is not None:
            assert bytes(Message(field.whole)) == bytes(Message().bytes_field(field.number, field.content))
    assert told(written(copy)) == told(data)
