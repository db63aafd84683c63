"""SavedModels, of TensorFlow 1 and 2: the variables of their checkpoint, and the constants of their graph.

Variables have the names of the checkpoint in ``variables/``: for TensorFlow 1 those of the graph, for TensorFlow 2
those that :mod:`~weightport.formats.tf_objects` gives (``lstm/lstm_cell/kernel``). Constants have the role ``constant``
and the names of their nodes, inside functions ``FUNCTION/NODE``; in a SavedModel without variables, which was frozen,
they are told apart as in any frozen graph. Of several graphs (tags), which share their variables, the constants are
those of the one for serving: tagged ``serve`` and nothing else, else one that is tagged so, else the first.

Promise: opening reads structure only; nothing is executed or imported, neither the functions nor the assets. Limit: the
constants of the other graphs are not listed (:attr:`SavedModelSource.tags` says which there are).

Sources: tensorflow/core/protobuf/saved_model.proto, tensorflow/python/saved_model/{constants,loader_impl}.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from weightport.checksums import CRC32C
from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _fs, _inside, tf_bundle, tf_graph, tf_paths
from weightport.formats._io import ByteFile
from weightport.formats._lazy import LazySpecs
from weightport.formats._proto import BYTES, Readable, spans
from weightport.formats._tf_constants import Constant, Constants
from weightport.formats._tf_metagraph import MetaGraph
from weightport.tensors import Array, Budget, Index, TensorSpec

FILES = tf_paths.SAVED_MODEL
_SERVE = "serve"


class SavedModelSource:
    """An open SavedModel.

    Args:
        folder: where it lies.
        described: the file that describes it.
        file: its SavedModel message in binary.
        handle: what to close.
        budget: the bounds to keep to.
    """

    format = "tf-saved-model"

    def __init__(
        self, folder: str, described: str, file: Readable, handle: ByteFile, *, budget: Budget | None = None
    ) -> None:
        self.path, self.described, self.file, self._handle = folder, described, file, handle
        self._closed = False
        budget = Budget() if budget is None else budget
        self.graphs = [
            MetaGraph(file, value, value + size, budget=budget)
            for number, wire, value, size in spans(file, 0, file.size)
            if number == 2 and wire == BYTES
        ]
        if not self.graphs:
            raise FormatError(file.path, "is a SavedModel without a graph")
        #: The tags of every graph, in the file's order.
        self.tags = tuple(tuple(graph.tags) for graph in self.graphs)
        self.meta = min(self.graphs, key=lambda graph: (_SERVE not in graph.tags, len(graph.tags) > 1))
        self.variables = self._checkpoint(budget)
        try:
            # An object-based checkpoint keeps the values of what is a constant in the graph.
            keeps = self.variables is not None and self.variables.object_based
            left = self.variables is not None
            self._constants = Constants(self.meta.graph, frozen=not keeps, variables=left)
            # Name -> the name among the constants, None for a variable.
            self._names: dict[str, str | None] = {}
            if self.variables is not None:
                self._names.update(dict.fromkeys(self.variables.specs()))
            for name in self._constants.named:
                listed = name
                while listed in self._names:
                    listed += "'"
                self._names[listed] = name
        except BaseException:
            if self.variables is not None:
                self.variables.close()
            raise
        self._specs = LazySpecs(self._names, self._spec)

    def _checkpoint(self, budget: Budget) -> tf_bundle.BundleSource | None:
        prefix = os.path.join(self.path, "variables", "variables")
        if _fs.isfile(prefix + ".index"):
            _inside.refuse_outside(prefix + ".index", _inside.folders_of(self.described))
            return tf_bundle.BundleSource(prefix, budget=budget)
        for body in self.meta.graph.bodies():
            for node in body.nodes.values():
                if node.op in tf_graph.VARIABLES:
                    raise FormatError(prefix + ".index", f"is not there: the graph has variables ({node.name!r}, ...)")
        return None

    @property
    def constants(self) -> dict[str, Constant]:
        """Name -> constant of the graph, as they are listed."""
        return {listed: self._constants.named[name] for listed, name in self._names.items() if name is not None}

    def _spec(self, name: str) -> TensorSpec:
        constant = self._names[name]
        if constant is not None:
            return self._constants.specs[constant]
        assert self.variables is not None
        return self.variables.specs()[name]

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec: the variables in the checkpoint's order, then the constants in the graph's."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it; variables also by their keys in the checkpoint."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        constant = self._names.get(name)
        if constant is not None:
            return self._constants.read(constant, index)
        if name in self._constants.parts and name not in self._names:
            return self._constants.read(name, index)
        if self.variables is not None and (name in self._names or name in self.variables.raw_names()):
            return self.variables.read(name, index)
        raise TensorNotFound(name, self._names, self.path)

    def checksum(self, name: str) -> str:
        """What the variables' checkpoint has; the graph's constants have none."""
        if self.variables is None or self._names.get(name) is not None:
            return ""
        return CRC32C if name in self._names or name in self.variables.raw_names() else ""

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these tensors, see :class:`~weightport.formats._tf_facts.GraphFacts`."""
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if self.variables is not None:
            keys: dict[str, list[str]] = {}
            for key, name in self.variables.raw_names().items():
                keys.setdefault(name, []).append(key)
            return self.meta.facts(names, keys)
        constants = [self._names.get(name) or name for name in names]
        return self.meta.graph_facts.of(*self._constants.places(constants))

    def close(self) -> None:
        """Release the file handles."""
        self._closed = True
        self._handle.close()
        if self.variables is not None:
            self.variables.close()

    def __enter__(self) -> SavedModelSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _file(path: str) -> str | None:
    """The file that describes the SavedModel of a folder, or the path if it is such a file."""
    if not _fs.isdir(path):
        return path
    found = [os.path.join(path, name) for name in FILES if _fs.isfile(os.path.join(path, name))]
    return found[0] if found else None


def sniff(path: str) -> bool:
    """Whether a folder, or a file, is a SavedModel."""
    file = _file(path)
    return file is not None and tf_graph.sniff_kind(file) == "SavedModel"


def open_source(path: str, *, budget: Budget | None = None) -> SavedModelSource:
    """Open a SavedModel by its folder or its ``saved_model.pb``.

    Raises:
        FormatError: it is none, is malformed, or its variables are missing.
    """
    described = _file(path)
    if described is None:
        raise FormatError(path, f"is no SavedModel: it has neither {FILES[0]} nor {FILES[1]}")
    folder = path if _fs.isdir(path) else os.path.dirname(path) or "."
    return tf_graph.opened(described, "SavedModel", partial(SavedModelSource, folder), budget=budget)
