"""B-trees of HDF5 files - of a group's names, of a dataset's chunks - looked over before HDF5 follows them.

Promise: nodes that are no tree (a node that is below itself, levels that do not end, neighbours in a circle) are a
:class:`FormatError`; HDF5 itself would run until its stack is full, or for ever. Each node is read once, its head only
if it is a leaf. Limit: trees of version 1; what the leaves refer to is not looked at, and nor are the keys.

Source: HDF5 File Format Specification 3.0, III.A.1; H5B.c (H5B__iterate_helper, H5B__get_info_helper).
"""

from __future__ import annotations

import struct

from weightport.errors import FormatError
from weightport.formats._io import Bytes
from weightport.tensors import Budget

UNDEFINED = (1 << 64) - 1
#: Signature, type, level, entries, and the neighbours.
_NODE = struct.Struct("<4sBBHQQ")


class Trees:
    """The trees of a file."""

    def __init__(self, file: Bytes, base: int, budget: Budget) -> None:
        self._file, self._base, self._budget = file, base, budget
        self._seen: set[int] = set()

    def check(self, address: int, key: int) -> None:
        """One tree.

        Args:
            address: its root.
            key: bytes of a key.

        Raises:
            FormatError: it is none.
        """
        root = None if address in self._seen else self._node(address)
        if root is None:  # HDF5 refuses what is no node; one that was looked at is a group of two names
            return
        self._seen.add(address)
        level, here = root[0], {address: root}
        while True:
            self._neighbours(here)
            if not level:
                return
            level -= 1
            below: dict[int, tuple[int, int, int]] = {}
            for parent, (_, entries, _) in here.items():
                for child in self._children(parent, entries, key):
                    node = self._node(child)
                    if node is None:
                        continue
                    if node[0] != level or child in self._seen:
                        raise self._refused(child, "a tree of it leads back, or its levels are in disorder")
                    self._seen.add(child)
                    below[child] = node
            if not below:
                return
            here = below

    def _node(self, address: int) -> tuple[int, int, int] | None:
        """Level, entries and right neighbour; None if no node is there, which HDF5 refuses itself."""
        at = self._base + address
        if at + _NODE.size > self._file.size:
            return None
        signature, _, level, entries, _, right = _NODE.unpack(self._file.read(at, _NODE.size))
        self._budget.spend("header_bytes", _NODE.size, self._file.path)
        return (level, entries, right) if signature == b"TREE" else None

    def _children(self, address: int, entries: int, key: int) -> list[int]:
        begin, size = self._base + address + _NODE.size, entries * (key + 8)
        if begin + size > self._file.size:
            return []
        self._budget.spend("header_bytes", size, self._file.path)
        raw = self._file.read(begin, size)
        return [int.from_bytes(raw[n - 8 : n], "little") for n in range(key + 8, size + 1, key + 8)]

    def _neighbours(self, level: dict[int, tuple[int, int, int]]) -> None:
        """HDF5 goes along a level, from its first node to the neighbour: that has to end, within what is there."""
        at, left = next(iter(level)), len(level)
        while (following := level[at][2]) != UNDEFINED:
            left -= 1
            if not left or following not in level:
                raise self._refused(at, "the nodes of a tree of it are in a circle, or belong to another")
            at = following

    def _refused(self, address: int, what: str) -> FormatError:
        return FormatError(self._file.path, f"corrupt: {what}", offset=min(self._base + address, self._file.size))
