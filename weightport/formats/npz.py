"""NumPy's files: ``.npz`` archives read and written, single ``.npy`` arrays read.

Promise: nothing is unpickled; the archive's directory and the arrays' headers are read at opening, values by position
(stored members) or as a bounded stream (deflated ones); a member's CRC is checked the first time it is read; writing
streams and gives the same bytes for the same input. Limit: no structured, date or pickled arrays; members stored or
deflated only, not encrypted.

Dtypes that numpy does not have (ml_dtypes): ``np.save`` writes them as raw void, ``<V2`` for bfloat16. A void of two
bytes is therefore read as bfloat16, the one extension dtype of that size. One byte could be any float8 or int4:
:func:`write` stores such a tensor as ``|V1`` and says the dtype in the member's comment, which ``np.load`` ignores;
without that comment it is refused, not guessed. ``<f1``, which ``np.save`` writes and ``np.load`` cannot read, is
float8_e5m2. Strings (``S``, ``U``) are arrays of bytes (UTF-8).

Sources: numpy/lib/format.py (NEP 1), numpy/lib/_npyio_impl.py, APPNOTE.TXT 6.3.9 (PKWARE).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.checksums import CRC32, combined, crc32
from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _strided, _tiles
from weightport.formats._io import ByteFile
from weightport.formats._ranged import Place, Ranged
from weightport.formats._temporaries import atomic_path
from weightport.formats._zipmember import LOCAL, Deflated, Stored, directory, member_of, metadata_of
from weightport.tensors import Array, Budget, Extent, Index, Kept, TensorSpec, Tiles, dtype_named

_MAGIC = b"\x93NUMPY"
_EMPTY = b"PK\x05\x06"
_SUFFIX = ".npy"
_COMMENT = "weightport dtype="
_MAX_HEADER = 1 << 16  # of one array; numpy itself stops at 10,000 unless it trusts the file
_ENTRY = re.compile(
    r"""\s*['"](\w+)['"]\s*:\s*(['"][^'"]*['"]|True|False|\([\d,L\s]*\)|\[.*\])\s*(,|(?=\}))""", re.DOTALL
)
_DESCR = re.compile(r"([<>|=]?)([biufcSUVOmM])(\d{0,9})(\[.*\])?|([?])", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where and how the values of one array lie: ``start`` counts from the array's first byte."""

    dtype: np.dtype[Any]  # as stored, in native byte order
    shape: tuple[int, ...]
    fortran: bool
    swap: bool
    start: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def spec(self) -> TensorSpec:
        dtype = np.dtype(object) if self.dtype.kind in "SU" else self.dtype
        return TensorSpec(dtype, self.shape, self.nbytes)


_FEW = 1 << 28  # what an array of empty strings may take in memory


class NpzSource:
    """An open ``.npz`` archive, or a ``.npy`` file as a source of one tensor named like the file."""

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self.format = "npz"
        self.metadata: dict[str, str] = {}
        self._budget = budget or Budget()
        self._members: dict[str, tuple[Stored | Deflated, _Layout]] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._file = ByteFile(path)
        try:
            if self._file.size >= 6 and self._file.read(0, 6) == _MAGIC:
                self.format = "npy"
                name = os.path.basename(path).removesuffix(_SUFFIX) or "array"
                self._add(name, Stored(self._file, 0, self._file.size, None), "")
            else:
                self._open_archive()
        except BaseException:
            self._file.close()
            raise

    def _open_archive(self) -> None:
        infos, comment = directory(self._file)
        self._budget.check("tensors", len(infos), self.path)
        self.metadata = metadata_of(comment)
        self._file.expect_near(info.header_offset for info in infos)
        for info in infos:
            name = info.filename.removesuffix(_SUFFIX)
            if name in self._members:
                raise FormatError(self.path, "two members have this name", tensor=name, offset=info.header_offset)
            member = member_of(self._file, info, name, ratio=self._budget.ratio)
            self._add(name, member, info.comment.decode("utf-8", "replace"))

    def _add(self, name: str, member: Stored | Deflated, comment: str) -> None:
        head = member.read(0, min(member.size, 12), tensor=name)
        if head[:6] != _MAGIC:
            hint = "is this a zip archive of something else?"
            raise FormatError(self.path, "the member is no .npy array", tensor=name, offset=member.offset, hint=hint)
        if len(head) < 12 or head[6] not in (1, 2, 3):
            raise FormatError(
                self.path, "truncated, or an unknown version of .npy", tensor=name, offset=member.offset + 6
            )
        wide = 2 if head[6] == 1 else 4
        size = int.from_bytes(head[8 : 8 + wide], "little")
        if size > _MAX_HEADER:
            what = f"an array header of {size:,} bytes, at most {_MAX_HEADER:,} are read"
            raise FormatError(self.path, what, tensor=name, offset=member.offset + 8)
        self._budget.spend("header_bytes", size, self.path)
        raw = member.read(8 + wide, size, tensor=name)
        layout = self._layout(
            name, raw.decode("utf-8" if head[6] == 3 else "latin-1", "replace"), comment, member, 8 + wide + size
        )
        held, at = member.size - layout.start, member.offset + layout.start
        if held < layout.nbytes:
            what = f"truncated or corrupt: {layout.nbytes} bytes of values are announced, {held} are there"
            raise FormatError(self.path, what, tensor=name, offset=at)
        if held > layout.nbytes:
            what, hint = f"{held - layout.nbytes} bytes follow the values of the array", "save several arrays as .npz"
            raise FormatError(self.path, what, tensor=name, offset=at + layout.nbytes, hint=hint)
        self._members[name] = (member, layout)
        self._specs[name] = layout.spec

    def _layout(self, name: str, header: str, comment: str, member: Stored | Deflated, start: int) -> _Layout:
        def wrong(what: str, hint: str = "") -> FormatError:
            return FormatError(self.path, what, tensor=name, offset=member.offset, hint=hint)

        text = header.strip()
        entries: dict[str, str] = {}
        at = 1
        while text.startswith("{") and (match := _ENTRY.match(text, at)):
            if match[1] in entries:
                raise wrong(f"the array's header says {match[1]!r} twice")
            entries[match[1]] = match[2]
            at = match.end()
        if text[at:].strip() != "}" or set(entries) != {"descr", "fortran_order", "shape"}:
            raise wrong("the array's header is not as .npy files have it")
        descr, order, dims = entries["descr"], entries["fortran_order"], entries["shape"]
        if descr[0] not in "'\"" or order not in ("True", "False") or dims[0] != "(":
            structured = descr[0] == "["
            raise wrong("structured arrays are not supported" if structured else "the array's header is corrupt")
        try:
            shape = tuple(int(part.strip().rstrip("L")) for part in dims[1:-1].split(",") if part.strip())
        except ValueError:
            raise wrong("the array's shape is no tuple of sizes") from None
        dtype, swap = self._dtype(descr[1:-1], comment, wrong)
        _strided.checked(dtype, shape, self._budget, self.path, name)
        return _Layout(dtype, shape, order == "True", swap, start)

    def _dtype(self, descr: str, comment: str, wrong: Any) -> tuple[np.dtype[Any], bool]:
        match = _DESCR.fullmatch(descr)
        if match is None:
            raise wrong(f"the dtype {descr!r} is not supported")
        order, kind, size = match[1], match[2], int(match[3] or 0)
        if match[5]:
            return np.dtype(bool), False
        if kind == "O":
            raise wrong(
                "a pickled object array: weightport runs no code of a model file",
                "load it where you trust it and save its arrays without pickle",
            )
        if kind in "mM" or match[4]:
            raise wrong(f"the dtype {descr!r} is not supported")
        swap = order == ">" and kind in "iufcU" and not (kind != "U" and size == 1)
        if kind == "V":
            said = comment.removeprefix(_COMMENT) if comment.startswith(_COMMENT) else ""
            name = said or ("bfloat16" if size == 2 else "")
            try:
                dtype = dtype_named(name) if re.fullmatch(r"(b?float|u?int)\d\w*", name) else None
            except TypeError:
                dtype = None
            if dtype is None or dtype.itemsize != size:
                raise wrong(f"the dtype {descr!r} could be several and nothing says which")
            return dtype, False
        if (kind, size) == ("f", 1):
            return dtype_named("float8_e5m2"), False
        if not size and kind not in "SU":
            raise wrong(f"the dtype {descr!r} is not supported")
        try:
            return np.dtype(f"{kind}{size}"), swap
        except (TypeError, ValueError):
            raise wrong(f"the dtype {descr!r} is not supported") from None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the archive's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out. The member's CRC is checked before its first values."""
        found = self._members.get(name)
        if found is None:
            raise TensorNotFound(name, self._members, self.path)
        member, layout = found
        cuts = _strided.bounds(index, layout.shape, f"{self.path}: tensor {name!r}")
        member.verify(name)
        if not layout.dtype.itemsize:  # strings of no characters, for which no byte of the file stands
            few, counts = Budget(tensor_bytes=min(_FEW, self._budget.tensor_bytes)), _strided.counts(cuts)
            _strided.checked(np.dtype(object), counts, few, self.path, name)
            return np.full(counts, b"", object)
        shape = layout.shape
        if layout.fortran:
            shape, cuts = shape[::-1], cuts[::-1]
        if isinstance(member, Deflated):
            out = self._read_deflated(member, layout, shape, cuts, name)
        else:
            out = _strided.read_part(
                member, layout.start, layout.dtype, shape, cuts, tensor=name,
                big_endian=layout.swap and layout.dtype.kind != "U",
            )  # fmt: skip
        if layout.fortran:
            out = np.ascontiguousarray(out.T) if out.ndim else out
        return self._strings(out, layout.swap, name) if layout.dtype.kind in "SU" else out

    def extent(self, name: str) -> Extent | None:
        """Where an array lies that is stored as it is in memory; the member's CRC is over its header, too."""
        found = self._members.get(name)
        if found is None:
            raise TensorNotFound(name, self._members, self.path)
        member, layout = found
        swapped = layout.swap and layout.dtype.itemsize > 1
        plain = not layout.fortran or len([n for n in layout.shape if n != 1]) < 2
        if isinstance(member, Deflated) or swapped or not plain or layout.dtype.kind in "SU" or not layout.nbytes:
            return None
        whole = member.extent()
        return Extent(self.path, whole.offset + layout.start, layout.nbytes, whole.checksum)

    def checksum(self, name: str) -> str:
        """The CRC-32 of its member; a ``.npy`` file has none."""
        return self._members[name][0].checksum if name in self._members else ""

    def _read_deflated(
        self, member: Deflated, layout: _Layout, shape: tuple[int, ...], cuts: _strided.Bounds, name: str
    ) -> Array:
        """The covering rows of the first axis in one pass of the stream, then the part of them."""
        if not prod(_strided.counts(cuts)):
            return np.empty(_strided.counts(cuts), layout.dtype)
        if not shape:
            rows = np.empty((), layout.dtype)
            pick: tuple[slice, ...] = ()
            first = 0
        else:
            start, stop, step = cuts[0]
            rows = np.empty((stop - start, *shape[1:]), layout.dtype)
            pick = (slice(None, None, step), *_strided.as_slices(cuts[1:]))
            first = start * prod(shape[1:]) * layout.dtype.itemsize
        member.read_into(layout.start + first, _strided.byte_view(rows), tensor=name)
        if layout.swap and layout.dtype.kind != "U":
            _strided.swapped(rows)
        part = rows[pick] if shape else rows
        return part if part is rows or part.base is None else np.array(part, order="C")

    def _strings(self, values: Array, swap: bool, name: str) -> Array:
        out = np.empty(values.shape, object)
        flat, given = out.reshape(-1), values.reshape(-1)
        if values.dtype.kind == "U":
            if swap:
                given = given.view(given.dtype.newbyteorder())
            # numpy lets Python fail on these with a SystemError, where the value is taken out.
            if (given.view(np.dtype("u4").newbyteorder(">" if swap else "=")) > sys.maxunicode).any():
                raise FormatError(self.path, "corrupt: a string has a character that does not exist", tensor=name)
        for at, value in enumerate(given):
            flat[at] = bytes(value) if values.dtype.kind == "S" else str(value).encode("utf-8", "surrogatepass")
        return out

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: the format stores no cells."""
        return {}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> NpzSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether the file is a ``.npy`` array, or a zip archive whose first member is one (an empty archive counts)."""
    try:
        with ByteFile(path) as file:
            head = file.read(0, min(30, file.size))
            if head[:6] == _MAGIC or head[:4] == _EMPTY:
                return True
            if head[:4] != LOCAL or len(head) < 30:
                return False
            size = int.from_bytes(head[26:28], "little")
            return size <= file.size - 30 and file.read(30, size).endswith(b".npy")
    except (FormatError, OSError):
        return False


def open_source(path: str, *, budget: Budget | None = None) -> NpzSource:
    """Open a ``.npz`` archive or a ``.npy`` array.

    Raises:
        FormatError: truncated, corrupt, pickled, or neither of the two.
    """
    return NpzSource(path, budget=budget)


@contextlib.contextmanager
def _destination(
    path: str, specs: Mapping[str, TensorSpec], tiles: Tiles, *, metadata: Mapping[str, str] | None = None,
    kept: Kept | None = None,
) -> Iterator[Place]:  # fmt: skip
    """Write an uncompressed ``.npz`` that ``np.load`` reads without pickle. ``metadata`` is its comment (JSON).

    Raises:
        Error: a name or string that the format cannot hold, or values that are not as their spec says.
    """
    if len(comment := json.dumps(dict(sorted(metadata.items()))).encode() if metadata else b"") > 0xFFFF:
        raise Error(f"{path}: {len(comment)} bytes of metadata, a .npz holds 65535")
    for name in specs:
        if not name or "\0" in name or len(name.encode("utf-8", "surrogatepass")) > 0xFFFF - 4 or _surrogate(name):
            raise Error(f"{path}: tensor {name!r}: a .npz cannot hold a tensor of this name")
        if name.endswith(_SUFFIX):
            raise Error(f"{path}: tensor {name!r}: a name that ends in .npy would lose its ending")
    with atomic_path(path, kept) as temporary, open(temporary, "r+b") as out:
        members: dict[str, zipfile.ZipInfo] = {}
        places: dict[str, tuple[str, int]] = {}
        for name, spec in specs.items():
            strings = spec.dtype.kind in "OSU"
            dtype = np.dtype(f"S{_tiles.width(path, name, spec, tiles)}") if strings else np.dtype(spec.dtype)
            head = _header(dtype, spec.shape)
            info = members[name] = _member(name, dtype, len(head) + prod(spec.shape) * dtype.itemsize, out.tell())
            out.seek(len(_local(info)), os.SEEK_CUR)
            out.write(head)
            info.CRC = crc32(head)
            if not strings:
                places[name] = temporary, out.tell()
            for shape, values in _tiles.encoded(path, name, spec, tiles) if strings else ():
                piece = _strided.byte_view(np.array(values, dtype).reshape(shape)) if values else b""
                info.CRC = crc32(piece, info.CRC)
                out.write(piece)
            out.seek(info.header_offset + len(_local(info)) + info.file_size)
        end = out.truncate()
        out.flush()
        place = Place(places, CRC32)
        yield place
        for name, info in members.items():
            if name in places:
                nbytes = specs[name].dtype.itemsize * prod(specs[name].shape)
                crcs = info.CRC, place.checksums[name]
                info.CRC = combined(CRC32, crcs, (info.file_size - nbytes, nbytes))
            out.seek(info.header_offset)
            out.write(_local(info))
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.filelist, archive.start_dir = list(members.values()), end  # it has the directory left to write
            archive.comment = comment


write = Ranged(_destination)


def _member(name: str, dtype: np.dtype[Any], size: int, offset: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name + _SUFFIX, (1980, 1, 1, 0, 0, 0))
    info.external_attr, info.create_system = 0o600 << 16, 3
    info.CRC = 0
    info.file_size = info.compress_size = size
    info.header_offset = offset
    if _header(dtype, ()).find(b"'|V") >= 0:
        info.comment = f"{_COMMENT}{dtype.name}".encode()
    return info


def _local(info: zipfile.ZipInfo) -> bytes:
    """What stands before a member."""
    return info.FileHeader(info.file_size >= zipfile.ZIP64_LIMIT)


def _surrogate(name: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in name)


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """An array's header as numpy/lib/format.py writes it: the values begin at a multiple of 64."""
    native = dtype.kind in "biufcS" and dtype.isbuiltin != 2
    descr = dtype.newbyteorder("<").str if native else f"|V{dtype.itemsize}"
    dims = "(" + ", ".join(map(str, shape)) + (",)" if len(shape) == 1 else ")")
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {dims}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text
