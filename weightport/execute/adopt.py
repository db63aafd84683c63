"""A transfer that changes names only: the files of the source become those of the result, and no value is read.

Promise: only where every byte of the files is a tensor of the result, unchanged and with a checksum that goes along:
who reads the result proves it as he would have proven the source. Limit: checkpoints of TensorFlow; clones where the
file system has them, links to the very files only where that is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from weightport.errors import Problem, RefusedError
from weightport.execute.watch import Unchanged
from weightport.formats import _fs
from weightport.plan.model import Item
from weightport.tensors import Extent, Source, TensorSpec, extent_of
from weightport.values import Leaf


@runtime_checkable
class Adopting(Protocol):
    """A writer that can take files that are there for the new model's."""

    @property
    def adopts(self) -> bool:
        """Whether there is any use in asking."""
        ...

    def adopt(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        extents: Mapping[str, Extent],
        *,
        link: bool,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Do it. Returns ``""``, or the reason why it cannot be done."""
        ...


def adopted(
    path: str,
    write: object,
    sources: list[Source],
    items: Mapping[str, tuple[int, Item]],
    watch: Unchanged | None = None,
    *,
    link: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bool:
    """Whether the files of the source could be taken for those of the result.

    Args:
        path: the destination.
        write: the format's writer.
        sources: the source, and the target whose tensors are kept.
        items: name -> which source it comes from, and the plan's item.
        watch: the files of the sources.
        link: take the very files, and nothing else will do.
        metadata: provenance, where there is room for it.

    Raises:
        FormatError: the source changed since it was opened.
        RefusedError: with ``link``, the reason why not.
    """
    if not link and not (isinstance(write, Adopting) and write.adopts):
        return False
    extents: dict[str, Extent] = {}
    reason = ""
    if not isinstance(write, Adopting):
        reason = "this writer copies"
    else:
        reason = _unchanged(sources, items, extents) or _all_used(extents)
    if not reason:
        assert isinstance(write, Adopting)
        if watch is not None:
            watch.check()
        specs = {name: item.spec for name, (_, item) in items.items()}
        reason = write.adopt(path, specs, extents, link=link, metadata=metadata)
    if reason and link:
        raise RefusedError(Problem(path, f"cannot be linked: {reason}", "leave out --link: it is copied then"))
    return not reason


def _unchanged(sources: list[Source], items: Mapping[str, tuple[int, Item]], extents: dict[str, Extent]) -> str:
    """Fill in where the tensors lie; the reason if one of them does not lie anywhere as it is to be."""
    for name, (side, item) in items.items():
        place = extent_of(sources[side], item.expr.name) if isinstance(item.expr, Leaf) else None
        if place is None or place.checksum is None or place.checksum.kind != "crc32c":
            return f"{name!r} is not stored as it is to be"
        if (place.checksum.offset, place.checksum.size) != (place.offset, place.nbytes):
            return f"the checksum of {name!r} is over more than its values"
        extents[name] = place
    return ""


def _all_used(extents: Mapping[str, Extent]) -> str:
    """The reason if there are bytes that are nobody's: what is left behind must not come along."""
    used: dict[str, dict[int, int]] = {}
    for place in extents.values():
        used.setdefault(place.path, {})[place.offset] = place.nbytes
    for path, places in used.items():
        if _fs.is_remote(path):
            return f"{path} lies elsewhere"
        if sum(places.values()) != os.stat(path).st_size:
            return f"{path} has values that are left behind"
    return ""
