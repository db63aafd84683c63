"""Arrays of zarr in Orbax' folders: their headers, and their values through ``tensorstore``.

Promise: a header is JSON that is checked here, sizes before anything is allocated, before tensorstore sees the array; a
chunk that is missing is an error where Orbax stores all of them, not zeros; no key leads out of the folder. Memory:
decoded chunks up to :data:`CACHE`, or those of one array whose chunks are larger, up to :data:`LARGE`. Limits:
tensorstore is needed for values, and where arrays lie in one OCDBT database for headers, too; what it makes of a
damaged database, it says itself. A database's manifest and nodes have checksums, chunks in files of their own do not.

Sources: https://zarr-specs.readthedocs.io (v2, v3 core), https://google.github.io/tensorstore/kvstore/ocdbt and
/driver/zarr, orbax/checkpoint/_src/serialization/tensorstore_utils.py (``ArrayReadSpec``, ``fill_missing_data_reads``).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from weightport.errors import FormatError, MissingPackage
from weightport.formats import _fs, _inside, _strided
from weightport.formats._io import ByteFile
from weightport.formats._jax_paths import MANIFEST, METADATA
from weightport.tensors import Array, Budget, TensorSpec, dtype_named

#: Decoded chunks that are kept between two reads.
CACHE = 256 << 20
#: The same of one array, if a row of its chunks takes more: each part of it that is read would decode them all again.
LARGE = 4 << 30
_OPENED = 64
_MAX_HEADER = 1 << 20
# A chunk may be larger than its array, but not by much: its dimensions divide the array's, rounded up.
_SMALL_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Header:
    """What a zarr array says of itself.

    Attributes:
        spec: dtype and shape.
        chunks: the shape of what is decoded at once.
        driver: ``zarr`` (v2) or ``zarr3``.
    """

    spec: TensorSpec
    chunks: tuple[int, ...]
    driver: str


class ArrayStore:
    """The arrays of one folder.

    Args:
        folder: Orbax' folder.
        ocdbt: whether they lie in an OCDBT database; else each in a folder of its own.
        fill_missing: whether chunks that are missing are zeros: older versions of Orbax store no zeros.
    """

    def __init__(self, folder: str, *, ocdbt: bool, fill_missing: bool, budget: Budget) -> None:
        self.folder, self.ocdbt, self._fill, self._budget = folder, ocdbt, fill_missing, budget
        self._keys: Any = None
        self._opened: dict[str, Any] = {}
        self._large: tuple[str, Any] | None = None
        self._context: Any = None
        self._closed = False
        self._roots: set[str] = set()
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._copied: set[str] = set()
        if ocdbt:
            self._refuse_irregular(folder)
            self._keys = self._ask(import_tensorstore(folder).KvStore.open, self._kvstore(""))

    # Headers ----------------------------------------------------------------------------------------------------------

    def headers(self, names: Mapping[str, str], *, zarr3: bool | None) -> dict[str, Header | str]:
        """Tensor's name -> header, or why the array is not read.

        Args:
            names: tensor's name -> stored name.
            zarr3: whether the arrays are of zarr v3; None if that is not known.
        """
        kinds = {True: ("zarr.json",), False: (".zarray",), None: (".zarray", "zarr.json")}[zarr3]
        found: dict[str, Header | str] = {}
        left = dict(names)
        for kind in kinds:
            raw = self._contents({name: f"{stored}/{kind}" for name, stored in left.items()})
            for name, content in raw.items():
                self._budget.spend("header_bytes", len(content), self.folder)
                found[name] = self._header(name, f"{names[name]}/{kind}", content)
            left = {name: stored for name, stored in left.items() if name not in raw}
        for name, stored in left.items():
            what = f"its array {stored!r} is missing: it has no {' and no '.join(kinds)}"
            hint = "copy the whole folder, hidden files too" if not self.ocdbt else ""
            raise FormatError(self.folder, what, tensor=name, hint=hint)
        return {name: found[name] for name in names}

    def _contents(self, keys: Mapping[str, str]) -> dict[str, bytes]:
        """The small values of keys, of those that are there."""
        found = {}
        if self.ocdbt:
            for name, key in keys.items():
                if any("\ud800" <= c <= "\udfff" for c in key):
                    raise FormatError(self.folder, f"the name {key!r} is no valid text", tensor=name)
            asked = {name: self._keys.read(key) for name, key in keys.items()}  # all of them at once
            for name, future in asked.items():
                answer = self._ask(lambda at=future: at, tensor=name)
                if answer.state == "value":
                    found[name] = bytes(answer.value)
            return found
        for name, key in keys.items():
            path = self._beneath(key, name)
            if _fs.isfile(path):
                with ByteFile(path) as file:
                    self._budget.check("header_bytes", file.size, path)
                    found[name] = file.read(0, min(file.size, _MAX_HEADER + 1), tensor=name)
        return found

    def _header(self, name: str, key: str, raw: bytes) -> Header | str:
        def wrong(what: str) -> FormatError:
            return FormatError(self.folder, f"{key}: {what}", tensor=name)

        if len(raw) > _MAX_HEADER:
            raise wrong(f"a header of {len(raw):,} bytes, at most {_MAX_HEADER:,} are read")
        try:
            doc = json.loads(raw)
        except (ValueError, RecursionError):
            raise wrong("is no JSON") from None
        if not isinstance(doc, dict):
            raise wrong("is no object of JSON")
        second = doc.get("zarr_format") == 2
        if not second and doc.get("zarr_format") != 3:
            raise wrong("is of no version of zarr that is known")
        shape = _sizes(doc.get("shape"))
        chunks = _sizes(doc.get("chunks") if second else _grid(doc))
        if shape is None or chunks is None or len(chunks) != len(shape):
            raise wrong("its shape or its chunks are no sizes")
        dtype = _dtype(doc.get("dtype") if second else doc.get("data_type"))
        if dtype is None:
            return f"of the dtype {doc.get('dtype', doc.get('data_type'))!r}"
        nbytes = _strided.checked(dtype, shape, self._budget, self.folder, name)
        decoded = prod(chunks) * dtype.itemsize
        if 0 in chunks or decoded > max(_SMALL_CHUNK, 4 * nbytes):
            raise wrong(f"chunks of {list(chunks)} for the shape {list(shape)}")
        return Header(TensorSpec(dtype, shape, nbytes), chunks, "zarr" if second else "zarr3")

    # Values -----------------------------------------------------------------------------------------------------------

    def read(self, name: str, stored: str, header: Header, cuts: _strided.Bounds) -> Array:
        """A part of an array, in memory of its own."""
        if self._closed:
            raise FormatError(self.folder, "is closed", tensor=name)
        spec = header.spec
        if not all(_strided.counts(cuts)):
            return np.empty(_strided.counts(cuts), spec.dtype)
        opened = self._array(name, stored, header, _strided.is_whole(cuts, spec.shape))
        part = opened[_strided.as_slices(cuts)] if cuts else opened
        array = np.asarray(self._ask(part.read, tensor=name))
        if array.dtype != spec.dtype or array.shape != _strided.counts(cuts):
            raise FormatError(self.folder, f"{array.dtype.name} {list(array.shape)} was read", tensor=name)
        return np.array(array, order="C", copy=True)

    def _array(self, name: str, stored: str, header: Header, whole: bool) -> Any:
        """The open array, with room for the chunks that its next part needs again."""
        row = prod(header.chunks[:1]) * prod(header.spec.shape[1:]) * header.spec.dtype.itemsize
        ts = import_tensorstore(self.folder)
        if row > CACHE // 2 and whole:
            return self._open(ts, name, stored, header, ts.Context())  # nothing is needed again
        if row > CACHE // 2:
            if self._large is None or self._large[0] != name:
                self._large = None  # and with it, its decoded chunks
                context = ts.Context({"cache_pool": {"total_bytes_limit": min(LARGE, 2 * row)}})
                self._large = name, self._open(ts, name, stored, header, context)
            return self._large[1]
        if self._context is None:
            self._context = ts.Context({"cache_pool": {"total_bytes_limit": CACHE}})
        if name not in self._opened:
            if len(self._opened) == _OPENED:
                self._opened.clear()
            self._opened[name] = self._open(ts, name, stored, header, self._context)
        return self._opened[name]

    def _open(self, ts: Any, name: str, stored: str, header: Header, context: Any) -> Any:
        if not self.ocdbt:
            self._refuse_irregular(self._beneath(stored, name))
        spec = {
            "driver": header.driver,
            "kvstore": self._kvstore(f"{stored}/"),
            "fill_missing_data_reads": self._fill,
            "recheck_cached_metadata": "open",
            "recheck_cached_data": "open",
        }
        opened = self._ask(ts.open, spec, read=True, open=True, context=context, tensor=name)
        if tuple(opened.shape) != header.spec.shape:
            raise FormatError(self.folder, f"its shape became {list(opened.shape)} while it was read", tensor=name)
        return opened

    def _kvstore(self, path: str) -> dict[str, Any]:
        base = {"driver": "file", "path": os.path.join(self._local("" if self.ocdbt else path.rstrip("/")), "")}
        if self.ocdbt:
            return {"driver": "ocdbt", "base": base, "path": path}
        return {**base, "path": base["path"] + path}

    def _local(self, below: str) -> str:
        """The folder where tensorstore finds it: what is read by URL is copied first, with all that is ``below``."""
        if not _fs.is_remote(self.folder):
            return os.path.abspath(self.folder)
        from weightport.formats._remote_file import copy_folder

        if self._copy is None:
            self._copy = tempfile.TemporaryDirectory(prefix="weightport-")
        if below not in self._copied:
            copy_folder(
                os.path.join(self.folder, below) if below else self.folder, os.path.join(self._copy.name, below)
            )
            self._copied.add(below)
        return self._copy.name

    def _ask(self, call: Any, *given: Any, tensor: str | None = None, **options: Any) -> Any:
        """What tensorstore answers; its errors, of whatever class, as one of ours."""
        try:
            return call(*given, **options).result()
        except Exception as error:
            text = str(error).partition(" [source locations")[0]
            raise FormatError(self.folder, f"tensorstore cannot read it: {text}", tensor=tensor) from None

    def _beneath(self, key: str, name: str) -> str:
        """The path of a stored name, which may not lead out of the folder."""
        parts = key.split("/")
        path = os.path.join(self.folder, *parts) if all(parts) and "\0" not in key else ""
        if not path or {".", ".."} & set(parts) or not self._is_inside(path):
            raise FormatError(self.folder, f"the stored name {key!r} leads out of the folder", tensor=name)
        return path

    def _is_inside(self, path: str) -> bool:
        """Whether a path, its links followed, lies in the folder, or beside what the folder's own metadata link to."""
        if not self._roots:
            self._roots = _inside.roots_of(self.folder, METADATA, MANIFEST)
        return _inside.is_inside(path, self._roots)

    def _refuse_irregular(self, folder: str) -> None:
        """Refuse a folder with links that lead out of it, or with what is no file: a pipe would be waited for."""
        if _fs.is_remote(folder):
            return  # what has no links is copied, file by file
        for above, folders, files in _fs.walk(folder):
            for name in (*folders, *files):
                path = os.path.join(above, name)
                if not self._is_inside(path):
                    raise FormatError(path, "is a link that leads out of the folder", hint="copy the file there")
            for name in files:
                path = os.path.join(above, name)
                if _fs.exists(path) and not _fs.isfile(path):
                    raise FormatError(path, "is not a regular file")

    def stored_names(self) -> list[str]:
        """The names of all arrays, where nothing else lists them."""
        if self.ocdbt:
            keys = [bytes(key).decode("utf-8", "surrogateescape") for key in self._ask(self._keys.list)]
        else:
            keys = []
            for above, _, files in _fs.walk(self.folder):
                below = os.path.relpath(above, self.folder).replace(os.sep, "/")
                keys += [f"{below}/{file}" for file in files if file in (".zarray", "zarr.json")]
        found = {key.rpartition("/")[0] for key in keys if key.endswith(("/.zarray", "/zarr.json"))}
        self._budget.check("tensors", len(found), self.folder)
        return sorted(found)

    def close(self) -> None:
        """Forget what is open."""
        self._opened, self._large, self._context, self._keys, self._closed = {}, None, None, None, True
        if self._copy is not None:
            self._copy.cleanup()


def import_tensorstore(path: str) -> Any:
    """tensorstore, or an error that says how to get it."""
    try:
        import tensorstore
    except ImportError:
        raise MissingPackage(f"reading {path}, a checkpoint of Orbax,", "tensorstore", "orbax") from None
    return tensorstore


def _sizes(found: Any) -> tuple[int, ...] | None:
    if not isinstance(found, list) or not all(type(dim) is int and dim >= 0 for dim in found):
        return None
    return tuple(found)


def _grid(doc: Mapping[str, Any]) -> Any:
    grid = doc.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) and grid.get("name") == "regular" else None
    return inner.get("chunk_shape") if isinstance(inner, dict) else None


def _dtype(code: Any) -> np.dtype[Any] | None:
    """A dtype by zarr's code (``<f4``, v2) or name (``float32``; those of ml_dtypes in both versions)."""
    if not isinstance(code, str):
        return None
    try:
        dtype = dtype_named(code)
    except (TypeError, ValueError):
        return None
    return dtype.newbyteorder("=") if dtype.kind not in "OSUMmV" or dtype.name == code else None
