"""Specs that are decoded when they are asked for, so that opening a file costs its names only.

Promise: each spec is made once. Limit: a spec that cannot be made is an error when it is asked for, not before; the
rest of the file stays usable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from weightport.tensors import TensorSpec


class LazySpecs(Mapping[str, TensorSpec]):
    """Name -> spec.

    Args:
        names: in the file's order, quick to look up in (a dict or its keys).
        make: the spec of one of them.
    """

    def __init__(self, names: Collection[str], make: Callable[[str], TensorSpec]) -> None:
        self._names, self._make = names, make
        self._made: dict[str, TensorSpec] = {}

    def __getitem__(self, name: str) -> TensorSpec:
        spec = self._made.get(name)
        if spec is None:
            if name not in self._names:
                raise KeyError(name)
            spec = self._made[name] = self._make(name)
        return spec

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"<specs of {len(self)} tensors>"
