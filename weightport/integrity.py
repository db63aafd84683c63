"""What stands for a tensor's bytes: a checksum of its file's format, a digest of the whole file, or nothing.

Promise: ``verified`` is said of a source tensor only where a changed bit in its stored values would have been an error
of this very read. That is so where the file has a checksum over all of them, which every read of the tensor compares
(``checksum`` of the source says which), and where the file as a whole was compared with a digest before
(``--expect-sha256``, a mapping's ``sha256``, a lock) and nothing wrote to it since. Limits: it is about the values'
bytes; that a header says what its writer meant, no checksum proves. What was linked or cloned without being read was
not verified by its checksum, which goes along.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERIFIED, UNVERIFIED = "verified", "unverified"
#: A digest of the whole file, as the name of what verified.
SHA256 = "sha256"


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256, in hexadecimal of either case."""
    return len(text) == 64 and not set(text.lower()) - set("0123456789abcdef")


def checksum_of(source: Any, name: str) -> str:
    """The checksum that a source's file has over a tensor's values, and that each read of it, whole or in part,
    compares: ``crc32c``, ``crc32``, ``sha1``, ``fletcher32``; empty where there is none, or nobody knows.

    Args:
        source: a :class:`weightport.tensors.Source`; one whose format has checksums has a method ``checksum(name)``.
        name: one of its tensors.
    """
    checksum: Callable[[str], str] | None = getattr(source, "checksum", None)
    return "" if checksum is None else checksum(name)


@dataclass(frozen=True, slots=True)
class Integrity:
    """Of each source tensor that a transfer moves, what its bytes are, or were, verified against.

    Attributes:
        by: tensor -> the names of it, best first; empty for one that is unverified.
        done: whether they were read; else it is what a transfer will do.
    """

    by: Mapping[str, tuple[str, ...]]
    done: bool = True

    def as_json(self) -> dict[str, Any]:
        """Tensor -> ``{"status": "verified" or "unverified", "by": [...]}``."""
        return {
            name: {"status": VERIFIED if found else UNVERIFIED, "by": list(found)} for name, found in self.by.items()
        }

    def __str__(self) -> str:
        count = Counter(self.by.values())
        parts = [f"{number:,} {_said(found, self.done)}" for found, number in count.most_common()]
        return f"integrity: {', '.join(parts) or 'nothing is read'}"


def _said(found: tuple[str, ...], done: bool) -> str:
    if not found:
        return f"{UNVERIFIED} (no checksum)"
    return f"{VERIFIED if done else 'to be verified'} ({' and '.join(found)})"


def integrity(
    names: Collection[str], source: Any, pinned: Collection[str] = (), *, read: bool = True, done: bool = True
) -> Integrity:
    """What the tensors' bytes are verified against.

    Args:
        names: of the tensors that are moved.
        source: what :func:`weightport.inputs.gathered` gave.
        pinned: the names of its sources whose files were compared with a digest; ``""`` is the first one.
        read: whether the values are read at all, so that their checksums are compared.
        done: see :class:`Integrity`.
    """
    return Integrity(dict(_each(names, source, pinned, read)), done)


def _each(
    names: Collection[str], source: Any, pinned: Collection[str], read: bool
) -> Iterator[tuple[str, tuple[str, ...]]]:
    others: Mapping[str, Any] = getattr(source, "others", {})
    known: dict[tuple[str, bool], tuple[str, ...]] = {}  # a million tensors have a few of them
    for name in names:
        first = name.partition("/")[0] if others else ""
        key = checksum_of(source, name) if read else "", (first if first in others else "") in pinned
        found = known.get(key)
        if found is None:
            found = known[key] = (*filter(None, (key[0],)), *((SHA256,) if key[1] else ()))
        yield name, found
