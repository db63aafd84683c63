"""A protobuf file written anew with other payloads in some of its fields: all else is copied byte for byte.

Promise: only sizes change, of what is replaced and of the messages around it; a header whose size stays is copied, too;
the file streams through. Limit: a field is replaced whole.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from weightport.formats._io import ByteFile
from weightport.formats._proto import BYTES, located, varint
from weightport.formats._table import put_varint

#: Yields the bytes of a payload.
Chunks = Callable[[], Iterable[bytes | memoryview]]


@dataclass(slots=True)
class _Field:
    """A field of bytes that changes, or that holds one that does.

    Attributes:
        began: where its key begins.
        payload: what takes its place; None where only what it holds changes.
    """

    start: int
    end: int
    began: int = -1
    inner: dict[int, _Field] = field(default_factory=dict)
    payload: tuple[int, Chunks] | None = None
    header: bytes = b""
    size: int = 0


class Edit:
    """Changes to one file.

    Args:
        file: the file as it is.
    """

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._root = _Field(0, file.size)
        self._drops: list[tuple[int, int]] = []
        self._tail = b""

    def replace(self, above: Iterable[tuple[int, int]], span: tuple[int, int], size: int, chunks: Chunks) -> None:
        """Give the field whose payload lies at ``span`` another one, of ``size`` bytes.

        Args:
            above: the payloads of the messages that hold it, from the outermost on.
        """
        at = self._root
        for start, end in (*above, span):
            at = at.inner.setdefault(start, _Field(start, end))
        at.payload = size, chunks

    def drop(self, start: int, end: int) -> None:
        """Leave out a field of the file itself, from its key to its end."""
        self._drops.append((start, end))

    def append(self, data: bytes) -> None:
        """Put fields at the file's end."""
        self._tail += data

    def size(self) -> int:
        """How large the file will be."""
        self._measure(self._root)
        return self._root.size + len(self._tail) - sum(end - start for start, end in self._drops)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The new file; the sizes are worked out first."""
        self.size()
        at = 0
        for start, end in sorted(self._drops):
            yield from self._inside(self._root, at, start)
            at = end
        yield from self._inside(self._root, at, self._file.size)
        yield self._tail

    def _measure(self, message: _Field) -> None:
        if message.payload is not None:
            message.size = message.payload[0]
            return
        message.size = message.end - message.start
        if not message.inner:
            return
        # Where the keys of the fields stand that change: only the message around them says.
        for _, wire, offset, _, began, end in located(self._file, message.start, message.end):
            one = message.inner.get(offset) if wire == BYTES else None
            if one is not None and one.end == end:
                one.began = began
        for one in message.inner.values():
            self._measure(one)
            head = self._file.read(one.began, one.start - one.began)
            if one.size != one.end - one.start:
                _, key_end = varint(head, 0, len(head), self._file.path)
                head = head[:key_end] + put_varint(one.size)
            one.header = head
            message.size += len(head) + one.size - (one.end - one.began)

    def _inside(self, message: _Field, start: int, end: int) -> Iterator[bytes | memoryview]:
        """What becomes of the bytes ``start:end`` of a message."""
        at = start
        for one in sorted(message.inner.values(), key=lambda one: one.start):
            if not start <= one.began < end:
                continue
            yield from self._file.chunks(at, one.began - at)
            yield one.header
            if one.payload is not None:
                yield from one.payload[1]()
            else:
                yield from self._inside(one, one.start, one.end)
            at = one.end
        yield from self._file.chunks(at, end - at)
