"""``.meta`` files: the graph that a checkpoint's variables belong to, and the values through the checkpoint beside it.

Promise: with the checkpoint beside it (``PREFIX.meta`` and ``PREFIX.index``, or a V1 file ``PREFIX``), a ``.meta``
reads exactly as the checkpoint does, and knows besides what the graph computes with the variables
(:meth:`MetaSource.facts`); alone it still lists names, types and shapes. Nothing is executed. Limit: the constants of a
training graph (initial values, axes, learning rates) are not listed; a SavedModel or a frozen graph lists its own.

Source: tensorflow/python/framework/meta_graph.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightport.checksums import CRC32C
from weightport.errors import Error, FormatError
from weightport.formats import _fs, tf_bundle, tf_graph, tf_paths, tf_v1
from weightport.formats._io import ByteFile
from weightport.formats._proto import Readable
from weightport.formats._tf_metagraph import MetaGraph
from weightport.formats._tf_tensors import GraphTensors
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
        self.meta = MetaGraph(file, 0, file.size, budget=budget)
        self._prefix = path.removesuffix(SUFFIX)
        self._beside = _beside(path, budget)
        self._values: Source | GraphTensors = self._beside or self.tensors()

    def tensors(self) -> GraphTensors:
        """What the graph has of its own: the variables, and what was one before it became a constant."""
        prefix = self._prefix
        where = f"they would be in {prefix + '.index'!r} and its data, or in the V1 file {prefix!r}"
        return GraphTensors(self.meta.graph, plain=False, hint=where)

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec: the checkpoint's if there is one, else as the graph describes its variables."""
        return self._values.specs()

    def read(self, name: str, index: Index = None) -> Array:
        """The variable or a part of it, from the checkpoint.

        Raises:
            FormatError: there is no checkpoint beside the file.
        """
        if self._closed:
            raise Error(f"{self.path}: is closed")
        return self._values.read(name, index)

    def checksum(self, name: str) -> str:
        """What the checkpoint has; a graph has none."""
        return CRC32C if self._beside is not None and name in self._beside.specs() else ""

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these variables, see :class:`~weightport.formats._tf_facts.GraphFacts`."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if isinstance(self._values, GraphTensors):
            return self.meta.graph_facts.of(*self._values.places(names))
        return self.meta.facts(names)

    def close(self) -> None:
        """Release the file handles."""
        self._closed = True
        self._handle.close()
        if self._beside is not None:
            self._beside.close()

    def __enter__(self) -> MetaSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _beside(path: str, budget: Budget | None) -> Source | None:
    """The checkpoint that a ``.meta`` belongs to."""
    prefix = path.removesuffix(SUFFIX)
    if prefix == path:
        return None
    if _fs.isfile(prefix + ".index"):
        return tf_bundle.open_source(prefix, budget=budget)
    if _fs.isdir(prefix):
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
    return tf_graph.opened(path, "MetaGraphDef", MetaSource, budget=budget)
