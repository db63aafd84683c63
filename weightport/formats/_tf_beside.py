"""What the graph in ``PREFIX.meta`` says about the cells of the checkpoint beside it.

Promise: the graph is read once, and only when a cell is asked about. Limit: the file is a help, not a part of the
checkpoint: where it is missing or damaged, nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from weightport.errors import FormatError
from weightport.formats import _fs
from weightport.formats._io import ByteFile
from weightport.tensors import Budget

if TYPE_CHECKING:
    from weightport.formats._tf_metagraph import MetaGraph


class GraphBeside:
    """The graph of a checkpoint's prefix."""

    def __init__(self, prefix: str, budget: Budget) -> None:
        self._path, self._budget = f"{prefix}.meta", replace(budget, _spent={})
        self._meta: MetaGraph | None = None
        self._handle: ByteFile | None = None
        self._missing = False

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the graph computes with these variables, see :class:`~weightport.formats._tf_facts.GraphFacts`."""
        if not names or self._missing:
            return {}
        try:
            if self._meta is None:
                self._open()
            return {} if self._meta is None else self._meta.facts(names)
        except FormatError:
            self._missing = True
            return {}

    def _open(self) -> None:
        if not _fs.isfile(self._path):
            self._missing = True
            return
        # The readers of graphs are half of what a start costs, and most checkpoints stand alone.
        from weightport.formats._tf_metagraph import MetaGraph
        from weightport.formats.tf_graph import open_message

        kind, message, self._handle = open_message(self._path, budget=self._budget)
        self._missing = kind != "MetaGraphDef"
        if not self._missing:
            self._meta = MetaGraph(message, 0, message.size, budget=self._budget)

    def close(self) -> None:
        """Release the file handle."""
        if self._handle is not None:
            self._handle.close()
        self._meta, self._missing = None, True
