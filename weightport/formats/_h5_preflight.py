"""HDF5 files looked over before anything in them is believed: every link and every dataset's header, no values.

Promise: external and user-defined links, external storage, virtual datasets, filters that would have to be loaded and
shapes that the stored bytes cannot fill are refused before a value is read, and so are datasets that share bytes; the
walk is bounded by the budget and goes through every group once; HDF5's own errors become :class:`FormatError`. Soft
links are resolved only after the whole file was found to have no link that leaves it. Limit: the structures below the
links are the HDF5 library's to parse; a file made to attack the library itself is not stopped here.

Sources: HDF5 File Format Specification 3.0; H5Lpublic.h, H5Zpublic.h; h5py/_hl/group.py.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.errors import FormatError
from weightport.formats import _h5_chunks, _strided
from weightport.formats._h5_file import opened
from weightport.formats._h5_heap import Heap
from weightport.formats._h5_objects import Objects
from weightport.formats._h5_values import Values
from weightport.formats._io import Bytes
from weightport.tensors import Budget, dtype_named

MAGIC = b"\x89HDF\r\n\x1a\n"
#: deflate, shuffle, fletcher32, szip, nbit, scale-offset, and h5py's own lzf. Any other is a library that HDF5 would
#: look for and load.
_FILTERS = (1, 2, 3, 4, 5, 6, 32000)
#: Bytes of a float -> where its sign, exponent and mantissa lie (place and size of the last two), and the bias.
_FLOATS = {2: ((15, 10, 5, 0, 10), 15), 4: ((31, 23, 8, 0, 23), 127), 8: ((63, 52, 11, 0, 52), 1023)}
# Datasets of less than this are not asked how little is stored of them.
_FLOOR = 64 << 20
_FOREIGN = (
    OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, SystemError,
    NotImplementedError, MemoryError, RecursionError,
)  # fmt: skip
_STORED_EOF = re.compile(r"truncated file: eof = (\d+).*stored_eof = (\d+)")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset's header. ``dtype`` is as stored, byte order included; ``offset`` only where it is one run of bytes."""

    handle: Any  # h5py.h5d.DatasetID
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None
    strings: str  # "": no strings; "fixed"; "variable"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def translated(path: str, tensor: str | None = None, what: str = "corrupt") -> Iterator[None]:
    """HDF5's and h5py's exceptions as one :class:`FormatError` that names the file."""
    try:
        yield
    except _FOREIGN as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).split("\n", 1)[0]
        cut = _STORED_EOF.search(text)
        if cut:
            raise FormatError(
                path, f"truncated: the file should have {cut[2]} bytes, it has {cut[1]}", offset=int(cut[1])
            ) from None
        raise FormatError(path, f"{what}: {text or type(error).__name__}", tensor=tensor) from None


def superblock(file: Bytes) -> int | None:
    """Where the HDF5 signature stands: at 0, 512, 1024, 2048 ...; None if the file is no HDF5."""
    at = 0
    while at + len(MAGIC) <= file.size and at <= 1 << 30:
        if file.read(at, len(MAGIC)) == MAGIC:
            return at
        at = at * 2 or 512
    return None


class Preflight:
    """An HDF5 file, opened read-only and looked over.

    Args:
        base: where its signature stands.
        alone: whether this process may be lost; see :class:`~weightport.formats._h5_objects.Crashes`.

    Attributes:
        root: the root group (``h5py.h5g.GroupID``).
        file: it, as h5py has it.
        values: where the values lie.
        paths: path -> dataset, for all that hard links, and soft links to datasets, reach, in the file's order.
        groups: the path of every group but the root, in the file's order.
    """

    def __init__(self, file: Bytes, base: int, budget: Budget, *, alone: bool = False) -> None:
        path = file.path
        self.path, self._size, self._budget = path, file.size, budget
        self.heap = Heap(file, base, budget)
        self._objects = Objects(file, base, budget, alone=alone)
        self._objects.check_root()
        self.paths: dict[str, Dataset] = {}
        self.groups: list[str] = []
        self._checked: dict[Any, Dataset] = {}
        self._soft: list[str] = []
        self.values = Values(path, base)
        with translated(path, what="is no readable HDF5 file"):
            self.file = opened(file)
        try:
            self.root = self.file.id
            with translated(path):
                self._walk()
                self._resolve_soft()
            self.values.compare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file, and all that was opened in it."""
        self.paths.clear()
        self._checked.clear()
        self.values.close()
        with contextlib.suppress(*_FOREIGN):
            self.file.close()

    # -- the walk ---------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        import h5py

        seen = {_address(self.root)}
        waiting: list[tuple[str, Any, int]] = [("", h5py.Group(self.root), 0)]
        while waiting:
            prefix, group, depth = waiting.pop()
            self._budget.check("depth", depth, self.path)
            inner = []
            for name in _names(group):
                path = f"{prefix}/{name}" if prefix else name
                raw = name.encode("utf-8", "surrogateescape")
                self._budget.spend("tensors", 1, self.path)
                self._budget.spend("header_bytes", len(path), self.path)
                self._budget.name(len(path), self._size, self.path)
                link = group.id.links.get_info(raw)
                kind = link.type
                if kind == h5py.h5l.TYPE_SOFT:
                    self._soft.append(path)
                    continue
                if kind != h5py.h5l.TYPE_HARD:
                    what = (
                        "an external link" if kind == h5py.h5l.TYPE_EXTERNAL else f"a link of the unknown type {kind}"
                    )
                    raise FormatError(self.path, f"{path!r} is {what}, which may lead out of the file: refused")
                self._objects.check(link.u)
                found = h5py.h5o.open(group.id, raw)
                if isinstance(found, h5py.h5g.GroupID):
                    address = _address(found)
                    if address not in seen:
                        seen.add(address)
                        self.groups.append(path)
                        inner.append((path, h5py.Group(found), depth + 1))
                elif isinstance(found, h5py.h5d.DatasetID):
                    self.paths[path] = self._dataset(found, path)
            waiting.extend(reversed(inner))

    def _resolve_soft(self) -> None:
        """Soft links to datasets are further names of theirs. They cannot leave the file any more."""
        import h5py

        for path in self._soft:
            with translated(self.path, what=f"the soft link {path!r} leads nowhere, or in a circle"):
                found = h5py.h5o.open(self.root, path.encode("utf-8", "surrogateescape"))
            if isinstance(found, h5py.h5d.DatasetID):
                self.paths[path] = self._dataset(found, path)

    def group(self, start: Any, name: str) -> Any | None:
        """The group of that relative path below a group, or None."""
        import h5py

        found = self._open(start, name)
        return found if isinstance(found, h5py.h5g.GroupID) else None

    def dataset(self, start: Any, name: str) -> Dataset | None:
        """The dataset of that relative path below a group, or None."""
        import h5py

        found = self._open(start, name)
        return self._dataset(found, name) if isinstance(found, h5py.h5d.DatasetID) else None

    def _open(self, start: Any, name: str) -> Any | None:
        import h5py

        relative = "/".join(part for part in name.split("/") if part and part != ".")
        if not relative or "\0" in relative:
            return None
        try:
            return h5py.h5o.open(start, relative.encode("utf-8", "surrogateescape"))
        except _FOREIGN:
            return None

    # -- a dataset's header -------------------------------------------------------------------------------------------

    def _dataset(self, handle: Any, path: str) -> Dataset:
        address = _address(handle)
        found = self._checked.get(address)
        if found is None:
            with translated(self.path, path):
                found = self._checked[address] = self._header(handle, path)
        return found

    def _header(self, handle: Any, path: str) -> Dataset:
        import h5py

        def refuse(what: str) -> FormatError:
            return FormatError(self.path, what, tensor=path)

        plist = handle.get_create_plist()
        layout = plist.get_layout()
        if layout == h5py.h5d.VIRTUAL:
            raise refuse("a virtual dataset, whose values lie in other files: refused")
        if layout == h5py.h5d.CONTIGUOUS and plist.get_external_count():
            raise refuse("external storage: its values lie in another file: refused")
        pipeline = _h5_chunks.pipeline_of(plist)
        for code, _ in pipeline:
            if code not in _FILTERS:
                raise refuse(f"the filter {code} is not built in: refused, rather than to load a library for it")
        space = handle.get_space()
        if space.get_simple_extent_type() == h5py.h5s.NULL:
            raise refuse("a dataset without values (null dataspace)")
        shape = tuple(int(dim) for dim in space.get_simple_extent_dims())
        dtype, strings = self._dtype(handle, path)
        nbytes = _strided.checked(dtype, shape, self._budget, self.path, path)
        stored = handle.get_storage_size()
        offset = handle.get_offset() if layout == h5py.h5d.CONTIGUOUS else None
        if offset is not None and offset + nbytes > self._size:
            raise refuse(f"truncated or corrupt: {nbytes} bytes of values at byte {offset}, the file has {self._size}")
        if offset is not None and stored < nbytes:
            raise refuse(f"corrupt: {nbytes} bytes of values, of which {stored} are stored")
        if offset is not None:
            self.values.add_run(offset, stored if dtype.kind == "O" else nbytes, path)
        if stored > self._size:
            raise refuse(f"{stored} bytes are said to be stored, the file has {self._size}")
        claims = nbytes
        if layout == h5py.h5d.CHUNKED:
            elements = prod(int(dim) for dim in plist.get_chunk())
            claims = max(claims, elements * dtype.itemsize)
            self.values.add_chunked(handle, path)
            if not _h5_chunks.is_sound(pipeline, elements, dtype):
                raise refuse("corrupt: the parameters of its filter are not those of such values")
        if claims > _FLOOR and claims > (stored + 1024) * self._budget.ratio:
            raise refuse(f"{claims:,} bytes of values are claimed, {stored:,} are stored: refused")
        return Dataset(handle, dtype, shape, offset, strings)

    def _dtype(self, handle: Any, path: str) -> tuple[np.dtype[Any], str]:
        import h5py

        kind = handle.get_type()
        try:
            dtype = np.dtype(handle.dtype)
        except _FOREIGN:
            raise FormatError(self.path, "a data type that numpy does not have", tensor=path) from None
        if dtype.kind in "biufc" and _is_exactly(kind, dtype):
            return np.dtype(dtype.str), ""  # without what h5py attaches to enumerations
        if dtype.kind == "S":
            return dtype, "fixed"
        if dtype.kind == "O" and h5py.check_string_dtype(dtype) is not None:
            return dtype, "variable"
        if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
            said = self.text(handle, "dtype")
            # h5py stores what numpy does not have as opaque bytes: of two bytes, that is bfloat16 alone.
            name = said if said is not None else ("bfloat16" if dtype.itemsize == 2 else "")
            if kind.get_class() == h5py.h5t.OPAQUE and not kind.get_tag() and re.fullmatch(r"\w{1,30}", name):
                with contextlib.suppress(TypeError):
                    resolved = dtype_named(name)
                    if resolved.itemsize == dtype.itemsize and resolved.kind not in "OSUmM":
                        return resolved, ""
        raise FormatError(self.path, f"the data type {dtype.str} is not supported", tensor=path)

    # -- attributes ---------------------------------------------------------------------------------------------------

    def attribute(self, owner: Any, name: str) -> Any | None:
        """An attribute's value, or None if there is none of this name."""
        import h5py

        raw = name.encode("utf-8")
        where = os.fsdecode(h5py.h5i.get_name(owner) or b"/")
        with translated(self.path, what=f"the attribute {name!r} of {where!r} is corrupt"):
            if not h5py.h5a.exists(owner, raw):
                return None
            checked = self.heap.check_attribute(_address(owner)[1], name, f"the attribute {name!r} of {where!r}")
            handle = h5py.h5a.open(owner, raw)
            size = prod(handle.shape or (0,)) * handle.dtype.itemsize
            if size > self._size:
                raise ValueError(f"{size:,} bytes are claimed")
            self._budget.spend("header_bytes", size, self.path)
            if handle.dtype.kind == "O" and not checked:
                what = (
                    f"the attribute {name!r} of {where!r} cannot be checked: its length varies, and it is stored apart"
                )
                raise FormatError(self.path, what, hint="keep at most 8 attributes, or text of fixed length")
            value = h5py.AttributeManager(_Owner(owner))[name]
        if isinstance(value, str | bytes):
            self._budget.spend("header_bytes", len(value), self.path)
        return value

    def text(self, owner: Any, name: str) -> str | None:
        """An attribute that is one string, bytes or text; None if it is not there."""
        value = self.attribute(owner, name)
        if isinstance(value, np.ndarray) and value.shape in ((), (1,)):
            value = value.reshape(-1)[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return value if isinstance(value, str) else None

    def strings(self, owner: Any, name: str) -> list[str] | None:
        """An attribute that is a list of names, whole or in chunks (``name0``, ``name1`` ...); None if absent."""
        import h5py

        whole = self.attribute(owner, name)
        pieces = [whole] if whole is not None else []
        while whole is None and (piece := self.attribute(owner, f"{name}{len(pieces)}")) is not None:
            pieces.append(piece)
        if not pieces:
            return None
        found: list[str] = []
        for piece in pieces:
            values = piece.reshape(-1).tolist() if isinstance(piece, np.ndarray) else None
            if values is None or not all(isinstance(value, str | bytes) for value in values):
                where = os.fsdecode(h5py.h5i.get_name(owner) or b"/")
                raise FormatError(self.path, f"the attribute {name!r} of {where!r} is no list of names")
            for value in values:
                self._budget.spend("header_bytes", len(value), self.path)
                found.append(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
        self._budget.check("tensors", len(found), self.path)
        return found


def _is_exactly(kind: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a stored number's bytes are those of numpy's: h5py names the nearest that HDF5 could convert it to."""
    if kind.get_size() != dtype.itemsize:
        return False
    if dtype.kind == "f" and dtype.itemsize in _FLOATS:
        fields, bias = _FLOATS[dtype.itemsize]
        return tuple(kind.get_fields()) == fields and kind.get_ebias() == bias and not kind.get_offset()
    if dtype.kind in "iu" and hasattr(kind, "get_precision"):  # an enumeration's integers are those it has
        return kind.get_precision() == 8 * dtype.itemsize and not kind.get_offset()
    if dtype.kind == "c":
        half = np.dtype(f"f{dtype.itemsize // 2}")
        return [kind.get_member_offset(n) for n in range(2)] == [0, half.itemsize] and all(
            _is_exactly(kind.get_member_type(n), half) for n in range(2)
        )
    return True


@dataclass(frozen=True, slots=True)
class _Owner:
    """What h5py's attribute manager wants of an object: its id."""

    id: Any


def _address(handle: Any) -> Any:
    import h5py

    info = h5py.h5o.get_info(handle)
    return info.fileno, info.addr


def _names(group: Any) -> list[str]:
    """The names in a group, in its order; numbers by value (``vars/2`` before ``vars/10``)."""
    names = list(group)
    return (
        sorted(names, key=int) if names and all(n.isascii() and n.isdigit() and len(n) < 10 for n in names) else names
    )
