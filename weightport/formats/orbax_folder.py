"""Checkpoints of Orbax: a folder with the tree's metadata in JSON, and its arrays in zarr.

Promise: neither Orbax nor JAX is imported; names, shapes and dtypes are read from small headers, values by the chunks
that a part needs. A folder with one checkpoint for each step means the latest that was finished. Limits: values need
``tensorstore`` (``pip install 'weightport[orbax]'``), and so does everything where the arrays lie in an OCDBT database,
as they do by default; text and empty containers are no tensors and are not listed.

Sources: orbax/checkpoint/_src/metadata/tree.py (``InternalTreeMetadata``), orbax/checkpoint/_src/tree/utils.py
(``param_name_from_keypath``); of older versions, which keep small values together in a file of msgpack,
orbax/checkpoint/{aggregate_handlers,utils}.py (``MsgpackHandler``, ``PLACEHOLDER://``); of T5X, whose folders are the
same but for that file, t5x/checkpoints.py (``_get_spec``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _fs, _jax_paths, _strided
from weightport.formats._io import ByteFile
from weightport.formats._jax_names import scopes_of, unboxed, with_roles
from weightport.formats._msgpack import is_map
from weightport.formats._orbax_store import ArrayStore, Header
from weightport.formats.flax_msgpack import FlaxSource
from weightport.tensors import Array, Budget, Index, Source, TensorSpec

_PLACEHOLDER = "PLACEHOLDER://"
#: A tensor's keys, and the name that its array is stored under.
_Entry = tuple[tuple[str, ...], str | None]
_NO_ARRAYS = ("string", "None", "Dict", "List", "Tuple", "NamedTuple")


class OrbaxSource:
    """An open checkpoint. A tensor is named by its keys, joined by ``/``."""

    format = "orbax"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        resolved = _jax_paths.resolve(path)
        if resolved.kind != "orbax":
            raise FormatError(path, "is no checkpoint of Orbax")
        self.path = resolved.path
        self._budget = budget or Budget()
        self._small: FlaxSource | None = None
        self._told: set[str] = set()
        meta = self._metadata()
        ocdbt = _fs.isfile(os.path.join(self.path, _jax_paths.MANIFEST))
        # Before Orbax noted that it stores all chunks, it did not store those of zeros.
        fill = not meta.get("store_array_data_equal_to_fill_value", False)
        self._store = ArrayStore(self.path, ocdbt=ocdbt, fill_missing=fill, budget=self._budget)
        try:
            self._stored = self._names(meta)
            bare = unboxed(self._stored)
            self._stored = {bare[name]: stored for name, stored in self._stored.items()}
            zarr3 = meta.get("use_zarr3")
            stored = {name: label for name, label in self._stored.items() if label is not None}
            found = self._store.headers(stored, zarr3=zarr3 if isinstance(zarr3, bool) else None)
            self._headers = {name: found.get(name, "not stored here") for name in self._stored}
            specs = {name: _spec(header) for name, header in self._headers.items()}
            if self._small is not None:
                specs = {**self._numbers(), **specs}
            self._specs = with_roles(specs)
        except BaseException:
            self.close()
            raise

    def _metadata(self) -> dict[str, Any]:
        path = os.path.join(self.path, _jax_paths.METADATA)
        if not _fs.isfile(path):
            return {}
        with ByteFile(path) as file:
            self._budget.spend("header_bytes", file.size, path)
            raw = file.read(0, file.size)
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            raise FormatError(path, "is no JSON, truncated or corrupt") from None
        if not isinstance(found, dict) or not isinstance(found.get("tree_metadata"), dict):
            raise FormatError(path, "has no tree_metadata")
        return found

    def _names(self, meta: Mapping[str, Any]) -> dict[str, str | None]:
        """Tensor's name -> the name that its array is stored under; None if it has none."""
        tree = meta.get("tree_metadata")
        aggregate = os.path.join(self.path, _jax_paths.AGGREGATE)
        if is_map(aggregate):
            self._small = FlaxSource(aggregate, budget=self._budget)
        entries = _leaves(tree, os.path.join(self.path, _jax_paths.METADATA)) if tree is not None else self._older()
        found: dict[str, str | None] = {}
        for keys, stored in entries:
            name = "/".join(keys)
            small = self._small is not None and name in self._small.specs()
            if small and stored is None:
                continue
            if name in found or small:
                raise FormatError(self.path, "another tensor has the same name", tensor=name)
            found[name] = stored
        self._budget.check("tensors", len(found), self.path)
        return found

    def _older(self) -> Iterator[_Entry]:
        """The arrays of a checkpoint without ``_METADATA``: its tree is a file of msgpack, if it has that."""
        if self._small is not None:
            texts = self._small.texts
            for name, text in texts.items():
                if text.startswith(_PLACEHOLDER):
                    yield (name,), text.removeprefix(_PLACEHOLDER)
                elif text == "zarr" and name.endswith("/driver"):
                    # A leaf of T5X is what tensorstore is told of an array; of a bucket, the path stands outside.
                    leaf = name.removesuffix("/driver")
                    path = texts.get(f"{leaf}/kvstore/path", texts.get(f"{leaf}/path"))
                    if path is not None:
                        self._told.add(leaf)
                        yield (leaf,), path.rstrip("/")
            return
        for stored in self._store.stored_names():
            yield tuple(stored.split(".")), stored

    def _numbers(self) -> dict[str, TensorSpec]:
        """The values in the file of msgpack, without the sizes and the version that T5X tells there."""
        assert self._small is not None
        found = self._small.specs().items()
        if not self._told:
            return dict(found)
        return {n: s for n, s in found if n != "version" and not self._told & set(scopes_of(n))}

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the tree's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out.

        Raises:
            TensorNotFound: no such tensor.
            FormatError: truncated or corrupt, chunks that are missing, or a dtype that is not known.
            MissingPackage: tensorstore is not installed.
        """
        header, stored = self._headers.get(name), self._stored.get(name)
        if header is None:
            if self._small is not None and name in self._specs:
                return self._small.read(name, index)
            raise TensorNotFound(name, self._specs, self.path)
        if isinstance(header, str) or stored is None:
            raise FormatError(self.path, f"is {header}", tensor=name)
        cuts = _strided.bounds(index, header.spec.shape, f"{self.path}: tensor {name!r}")
        return self._store.read(name, stored, header, cuts)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: a tree of arrays records no cells."""
        return {}

    def close(self) -> None:
        """Release what is open."""
        self._store.close()
        if self._small is not None:
            self._small.close()

    def __enter__(self) -> OrbaxSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[_Entry]:
    """Every array that the metadata list; without a stored name, if it has no place of its own."""
    for label, entry in tree.items():
        try:
            keys = tuple(key["key"] for key in entry["key_metadata"])
            value = entry["value_metadata"]
            kind, skipped = value["value_type"], value.get("skip_deserialize", False)
        except (TypeError, KeyError, AttributeError):
            raise FormatError(path, f"the entry {label[:200]!r} is no leaf of a tree") from None
        if not keys or not all(isinstance(key, str) for key in keys):
            raise FormatError(path, f"the entry {label[:200]!r} has no keys")
        if kind not in _NO_ARRAYS:
            yield keys, None if skipped else ".".join(keys)


def _spec(header: Header | str) -> TensorSpec:
    return TensorSpec(np.dtype(object), (), 0, unread=header) if isinstance(header, str) else header.spec


def sniff(path: str) -> bool:
    """Whether a folder is a checkpoint of Orbax, or has some; never raises."""
    try:
        found = _jax_paths.find(path)
    except FormatError:
        return True  # of several, which open_source says
    return found is not None and found.kind == "orbax"


def open_source(path: str, *, budget: Budget | None = None) -> Source:
    """Open a checkpoint of Orbax: its folder, that of a step, or one with many steps.

    Raises:
        FormatError: missing, truncated, corrupt, or several and nothing says which.
        MissingPackage: tensorstore is not installed, and the arrays lie in an OCDBT database.
    """
    budget = budget or Budget()
    if budget.isolated and _fs.is_remote(path):
        raise FormatError(path, "is not trusted, and such a checkpoint of Orbax is read from a local path only")
    if budget.isolated:
        from weightport.formats._orbax_isolated import IsolatedOrbaxSource

        return IsolatedOrbaxSource(path, budget=budget)
    return OrbaxSource(path, budget=budget)
