"""Keras 3's weights in several files: ``NAME.weights.json`` and the ``NAME_00000.weights.h5`` that it names.

Promise: opening reads the index and the structure of each shard; a group of variables that a shard lacks, a variable
that no entry lists, and one that stands in two shards are errors; no shard lies outside the index' folder. Names are
those in the files (``layers/dense/vars/0``), as in a ``.weights.h5``. Limit: read only.

Source: keras/src/saving/saving_lib.py (``ShardedH5IOStore``, ``save_weights_only``), since Keras 3.10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import keras_h5
from weightport.formats._io import ByteFile
from weightport.formats.keras_h5 import KerasH5Source
from weightport.formats.safetensors_index import beside, is_below, read_map
from weightport.tensors import Array, Budget, Index, TensorSpec

_MAPPED = re.compile(rb'"weight_map"\s*:.*\.weights\.h5"', re.DOTALL)
_HEAD = 1 << 16


class KerasShardedSource:
    """Open weights. ``metadata`` is the index' own."""

    format = "keras-sharded"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self._shards: dict[str, KerasH5Source] = {}
        self._home: dict[str, str] = {}
        self._specs: dict[str, TensorSpec] = {}
        budget = budget or Budget()
        try:
            listed, self.metadata = read_index(path, budget)
            for shard in dict.fromkeys(shard for shards in listed.values() for shard in shards):
                self._open(shard, listed, budget)
            for group, shards in listed.items():
                for shard in shards:
                    if not any(self._home[name] == shard for name in self._home if name.rpartition("/")[0] == group):
                        what = f"the shard {shard!r} has no variables in {group!r}, which the index has there"
                        raise FormatError(path, what)
        except BaseException:
            self.close()
            raise

    def _open(self, shard: str, listed: Mapping[str, Sequence[str]], budget: Budget) -> None:
        source = self._shards[shard] = keras_h5.open_source(beside(self.path, shard), budget=budget)
        for name, spec in source.specs().items():
            if shard not in listed.get(name.rpartition("/")[0], ()):
                raise FormatError(
                    self.path, f"stands in the shard {shard!r}, and the index does not say so", tensor=name
                )
            if name in self._home:
                raise FormatError(self.path, f"stands in the shards {self._home[name]!r} and {shard!r}", tensor=name)
            self._home[name], self._specs[name] = shard, spec

    def objects(self) -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
        """What is stored by a model's objects, of all shards together; see :meth:`.keras_h5.KerasH5Source.objects`."""
        groups: dict[str, None] = {}
        titles: dict[str, str] = {}
        stored: dict[str, list[str]] = {}
        for source in self._shards.values():
            more_groups, more_titles, more_stored = source.objects()
            groups.update(dict.fromkeys(more_groups))
            titles.update(more_titles)
            for owner, keys in more_stored.items():
                stored.setdefault(owner, []).extend(keys)
        return list(groups), titles, stored

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, shard after shard."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out."""
        if name not in self._home:
            raise TensorNotFound(name, self._specs, self.path)
        return self._shards[self._home[name]].read(name, index)

    def checksum(self, name: str) -> str:
        """What its shard has: HDF5's fletcher32 filter, where it is used."""
        return self._shards[self._home[name]].checksum(name) if name in self._home else ""

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: weights have no configuration."""
        return {}

    def close(self) -> None:
        """Release the files."""
        for shard in self._shards.values():
            shard.close()

    def __enter__(self) -> KerasShardedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_index(path: str, budget: Budget) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """Group of variables -> the shards that it lies in, and the index' metadata.

    Raises:
        FormatError: no such index, or a shard that could lie outside its folder.
    """
    found: dict[str, tuple[str, ...]] = {}
    weights, metadata = read_map(path, budget)
    for group, said in weights.items():
        shards = said if isinstance(said, list) else [said]
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise FormatError(path, f"the index has no files for {group!r}")
        for shard in shards:
            if not is_below(shard):
                what = f"the shard {shard!r} of {group!r} is no path below the index' folder: refused"
                raise FormatError(path, what)
        found[group.strip("/")] = tuple(dict.fromkeys(shards))
    return found, metadata


def files_of(path: str) -> list[str]:
    """The index and its shards, in the order of their names."""
    listed, _ = read_index(path, Budget())
    return sorted({path, *(beside(path, shard) for shards in listed.values() for shard in shards)})


def sniff(path: str) -> bool:
    """Whether the file is JSON with a ``weight_map`` to ``.weights.h5`` files."""
    try:
        with ByteFile(path) as file:
            head = file.read(0, min(_HEAD, file.size))
    except FormatError:
        return False
    return head.lstrip().startswith(b"{") and _MAPPED.search(head) is not None


def open_source(path: str, *, budget: Budget | None = None) -> KerasShardedSource:
    """Open sharded weights by their index.

    Raises:
        FormatError: index and shards do not agree, or one of them is truncated or corrupt.
    """
    return KerasShardedSource(path, budget=budget)
