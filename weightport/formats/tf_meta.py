"""``.meta`` files: the graph that a checkpoint's variables belong to, and the values through the checkpoint beside it.

Promise: with the checkpoint beside it (``PREFIX.meta`` and ``PREFIX.index``, or a V1 file ``PREFIX``), a ``.meta``
reads exactly as the checkpoint does, and knows besides what the graph computes with the variables
(:meth:`MetaSource.facts`); alone it still lists names, types and shapes. Nothing is executed. Limit: the constants of a
training graph (initial values, axes, learning rates) are not listed; a SavedModel or a frozen graph lists its own.

Source: tensorflow/python/framework/meta_graph.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import tf_bundle, tf_graph, tf_paths, tf_v1
from weightport.formats._io import ByteFile
from weightport.formats._proto import Readable
from weightport.formats._tf_metagraph import MetaGraph
from weightport.tensors import Array, Budget, Index, Source, TensorSpec

SUFFIX = ".meta"


class MetaSource:
    """An open ``.meta`` file.

    Args:
        path: the file.
        file: its MetaGraphDef in binary.
        handle: what to close.
        budget: the bounds to keep to.
    """

    format = "tf-meta"

    def __init__(self, path: str, file: Readable, handle: ByteFile, *, budget: Budget | None = None) -> None:
        self.path, self._handle = path, handle
        self._closed = False
        self._meta = MetaGraph(file, 0, file.size, budget=budget)
        self._prefix = path.removesuffix(SUFFIX)
        self._values = _beside(path, budget)
        if self._values is None:
            _ = self._meta.variables  # what is wrong with the graph shows now

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec: the checkpoint's if there is one, else as the graph describes its variables."""
        return self._meta.specs if self._values is None else self._values.specs()

    def read(self, name: str, index: Index = None) -> Array:
        """The variable or a part of it, from the checkpoint.

        Raises:
            FormatError: there is no checkpoint beside the file.
        """
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if self._values is not None:
            return self._values.read(name, index)
        if name not in self._meta.variables:
            raise TensorNotFound(name, self._meta.variables, self.path)
        raise FormatError(
            self.path,
            "a .meta file holds the graph, not the values of its variables",
            tensor=name,
            hint=f"they would be in {self._prefix + '.index'!r} and its data, or in the V1 file {self._prefix!r}",
        )

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these variables, see :class:`~weightport.formats._tf_facts.GraphFacts`."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        return self._meta.facts(names)

    def close(self) -> None:
        """Release the file handles."""
        self._closed = True
        self._handle.close()
        if self._values is not None:
            self._values.close()

    def __enter__(self) -> MetaSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beside(path: str, budget: Budget | None) -> Source | None:
    """The checkpoint that a ``.meta`` belongs to."""
    prefix = path.removesuffix(SUFFIX)
    if prefix == path:
        return None
    if os.path.isfile(prefix + ".index"):
        return tf_bundle.open_source(prefix, budget=budget)
    if os.path.isdir(prefix):
        return None
    try:
        kind = tf_paths.resolve(prefix).kind
    except FormatError:
        return None
    return tf_v1.open_source(prefix, budget=budget) if kind in ("v1", "v1-sharded") else None


def sniff(path: str) -> bool:
    """Whether a file is a MetaGraphDef, in binary or as text."""
    return tf_graph.sniff_kind(path) == "MetaGraphDef"


def open_source(path: str, *, budget: Budget | None = None) -> MetaSource:
    """Open a ``.meta`` file, and the checkpoint beside it.

    Raises:
        FormatError: it is no MetaGraphDef, or it or the checkpoint is malformed.
    """
    kind, file, handle = tf_graph.open_message(path, budget=budget)
    try:
        if kind != "MetaGraphDef":
            raise FormatError(path, f"is a {kind}, not a MetaGraphDef")
        return MetaSource(path, file, handle, budget=budget)
    except BaseException:
        handle.close()
        raise
