"""The writer of a format, by the name of its module, with what it is told besides: made before anything is loaded.

Promise: the module is loaded when something is written, or asked for; what it cannot do is told by None or a reason.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from weightport.tensors import Destination, Extent, Kept, RangedWriter, TensorSpec, Tiles


def module(name: str) -> ModuleType:
    """A module of the formats."""
    return importlib.import_module(f"weightport.formats.{name}")


@dataclass(frozen=True, slots=True)
class Writer:
    """A :class:`~weightport.tensors.FileWriter`: the ``write`` of a module, and what this module is told besides."""

    module: str
    told: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        constants: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> None:
        """Write the file; see the ``write`` of the module, which is told what it takes."""
        write = module(self.module).write
        write(path, specs, tiles, metadata=metadata, **self._told(write, constants, kept))

    def check(
        self, path: str, specs: Mapping[str, TensorSpec], *, constants: Collection[str], kept: Collection[str]
    ) -> None:
        """Raise what writing the file would, as far as its values play no role."""
        check = getattr(module(self.module), "check", None)
        if check is not None:
            check(path, specs, **self._told(check, constants, kept))

    def _told(self, function: Any, constants: Collection[str], kept: Collection[str]) -> dict[str, Any]:
        takes = inspect.signature(function).parameters
        return {
            **self.told,
            **{key: value for key, value in (("constants", constants), ("kept", kept)) if key in takes},
        }

    @property
    def ranged(self) -> bool:
        """Whether the format can be written by range."""
        return isinstance(module(self.module).write, RangedWriter)

    @property
    def adopts(self) -> bool:
        """Whether the format can have its values in files that are there already."""
        return hasattr(module(self.module), "adopt") and not self.told

    def adopt(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        extents: Mapping[str, Extent],
        *,
        link: bool,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Take files that are there for the new model's, if the module can: ``""``, or the reason why not.

        Args:
            path: the destination.
            specs: name -> dtype and shape.
            extents: where each tensor's bytes lie already.
            link: the very files, instead of clones.
            metadata: provenance, where there is room for it.
        """
        adopt = getattr(module(self.module), "adopt", None)
        if adopt is None:
            return "the format of the new file has its values and its header in one file"
        if self.told:
            return "the new file is to be as another one, or in shards of a size"
        try:
            adopt(path, specs, extents, link=link, metadata=metadata)
        except OSError as error:
            return f"the file system cannot do it: {error.strerror or error}"
        return ""

    def final(self, path: str) -> str:
        """The file that temporaries of that destination are named after."""
        final = getattr(module(self.module), "final", os.path.realpath)
        return str(final(path))

    def destination(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        kept: Kept | None = None,
    ) -> AbstractContextManager[Destination] | None:
        """Files to write to by range, if the module can; see :class:`~weightport.tensors.RangedWriter`."""
        write = module(self.module).write
        if not isinstance(write, RangedWriter):
            return None
        more: Any = self.told
        return write.destination(path, specs, tiles, metadata=metadata, kept=kept, **more)
