"""Variable-length values of HDF5 attributes and datasets, looked over in the file's own bytes before HDF5 follows them.

Promise: a claimed length that the global heap does not hold, a heap that is no chain of objects, values that share
their bytes and a variable-length type of no known kind are a :class:`FormatError`; HDF5 itself would allocate what is
claimed, walk such a heap for ever, or crash. Limit: attributes that stand in their object's header, as all do of which
there are few; of those in a heap of their own (more than eight, in a newer format), variable-length ones are refused.

Source: HDF5 File Format Specification 3.0, III.E (global heap), IV.A.2.d (datatype message), IV.A.2.m (attribute
message).
"""

from __future__ import annotations

import struct

from weightport.errors import FormatError
from weightport.formats._h5_objects import messages
from weightport.formats._h5_trees import UNDEFINED
from weightport.formats._io import Bytes
from weightport.tensors import Budget

_ATTRIBUTE = 0x0C
_VARIABLE = 9  # class of a variable-length datatype
_SEQUENCE, _STRING = 0, 1  # kinds of it
_REFERENCE = struct.Struct("<IQI")  # length, address of the collection, index in it


class Heap:
    """The global heap of a file: which object of which collection has how many bytes."""

    def __init__(self, file: Bytes, base: int, budget: Budget) -> None:
        self._file, self._base, self._budget = file, base, budget
        self._collections: dict[int, dict[int, int]] = {}
        self._used: set[tuple[int, int]] = set()

    def check_attribute(self, header: int, name: str, where: str) -> bool:
        """Check the references of one attribute, of variable length; whether it stands in its object's header.

        Args:
            header: the address of that header.
        """
        for kind, at, size in messages(self._file, self._base, header):
            if kind != _ATTRIBUTE or size < 8:
                continue
            raw = self._file.read(at, size)
            version = raw[0]
            name_size, type_size, space_size = struct.unpack_from("<HHH", raw, 2)
            start = 8 if version < 3 else 9
            if raw[start : start + name_size].split(b"\0", 1)[0] != name.encode():
                continue
            sizes = [name_size, type_size, space_size]
            if version == 1:
                sizes = [-(-part // 8) * 8 for part in sizes]
            datatype = start + sizes[0]
            if datatype + 1 < size and raw[datatype] & 0x0F == _VARIABLE and not raw[1] & 1:
                if raw[datatype + 1] & 0x0F not in (_SEQUENCE, _STRING):
                    raise FormatError(self._file.path, f"corrupt: {where} is of no known type", offset=at + datatype)
                values = raw[start + sum(sizes) :]
                self._check(values[: len(values) // 16 * 16], where, set())
            return True
        return False

    def check_values(self, raw: bytes, where: str) -> None:
        """Check a run of references of a dataset; none may be one that was checked before."""
        self._check(raw, where, self._used)

    def _check(self, raw: bytes, where: str, used: set[tuple[int, int]]) -> None:
        for length, address, index in _REFERENCE.iter_unpack(raw):
            if not length or address in (0, UNDEFINED):
                continue
            held = self._collection(address, where).get(index)
            if held is None or length > held or (address, index) in used:
                raise FormatError(
                    self._file.path,
                    f"corrupt: {where} refers to {length} bytes that the heap does not hold",
                    offset=min(self._base + address, self._file.size),
                )
            used.add((address, index))

    def _collection(self, address: int, where: str) -> dict[int, int]:
        found = self._collections.get(address)
        if found is not None:
            return found
        at = self._base + address
        head = self._file.read(at, 16) if at + 16 <= self._file.size else b""
        end = at + int.from_bytes(head[8:16], "little")
        if head[:5] != b"GCOL\1" or end > self._file.size:
            raise FormatError(
                self._file.path, f"corrupt: {where} refers to a heap that is none", offset=min(at, self._file.size)
            )
        found = self._collections[address] = {}
        at += 16
        while at + 16 <= end:
            index, _, size = struct.unpack("<HHxxxxQ", self._file.read(at, 16))
            self._budget.spend("header_bytes", 16, self._file.path)
            # Free space counts its own header; of none at all, HDF5 would never come to the end.
            step = 16 + -(-size // 8) * 8 if index else size
            if step < 16 or at + step > end or (index and index in found):
                raise FormatError(self._file.path, f"corrupt: the heap that {where} refers to is no chain", offset=at)
            if index:
                found[index] = size
            at += step
        return found
