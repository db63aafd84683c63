"""Orbax' checkpoints that are not trusted: tensorstore reads them in a process that may be lost.

Promise: as :class:`~weightport.formats.orbax_folder.OrbaxSource`, and neither tensorstore nor anything of the folder is
loaded in this process. Limit: memory is bounded by the part asked for, and by what the other process may take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _jax_paths, _strided
from weightport.formats._isolated import Child, spec_of, structure_limit
from weightport.tensors import Array, Budget, Index, TensorSpec

# What the folder's own metadata take is not known here.
_STRUCTURE = 1 << 30


class IsolatedOrbaxSource:
    """An open checkpoint, through another process."""

    format = "orbax"

    def __init__(self, path: str, *, budget: Budget) -> None:
        self.path = _jax_paths.resolve(path).path
        self._specs: dict[str, TensorSpec] = {}
        self._closed = False
        self._child = Child(self.path, "tensorstore", {"kind": "orbax", "path": path}, budget)
        try:
            said = self._child.described(structure_limit(_STRUCTURE, budget))
            entries = said.get("tensors") if isinstance(said, dict) else None
            for entry in entries if isinstance(entries, list) else ():
                name, spec = spec_of(entry, budget, self.path)
                self._specs[name] = spec
        except BaseException:
            self.close()
            raise

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the tree's order."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out."""
        spec = self._specs.get(name)
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if spec is None:
            raise TensorNotFound(name, self._specs, self.path)
        if spec.unread:
            raise FormatError(self.path, f"is {spec.unread}", tensor=name)
        cuts = _strided.bounds(index, spec.shape, f"{self.path}: tensor {name!r}")
        return self._child.values(name, spec, cuts, spec.nbytes)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: a tree of arrays records no cells."""
        return {}

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._child.close()

    def __enter__(self) -> IsolatedOrbaxSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
