"""Models that exist only as headers, or as arrays, and plans made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import weightport as wp
from weightport.execute import Reader
from weightport.plan import Plan, plan
from weightport.tensors import Array, Index, TensorSpec


class Stub:
    """A source or target of named specs. Reading its bytes is an error unless it was given arrays."""

    format, path = "stub", "model"

    def __init__(
        self,
        tensors: Mapping[str, Any],
        facts: Mapping[str, Any] | None = None,
        roles: Mapping[str, str] | None = None,
        path: str = "model",
    ) -> None:
        self.arrays = {n: t for n, t in tensors.items() if isinstance(t, np.ndarray)}
        self.asked: list[str] = []
        self.path = path
        self._facts = dict(facts or {})
        self._specs = {}
        for name, tensor in tensors.items():
            role = (roles or {}).get(name, "weight")
            if isinstance(tensor, TensorSpec):
                self._specs[name] = tensor
            elif isinstance(tensor, np.ndarray):
                self._specs[name] = TensorSpec.of(tensor.dtype, tensor.shape, role)
            else:
                self._specs[name] = TensorSpec.of("float32", tensor, role)

    def specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        self.asked.append(name)
        if name not in self.arrays:
            raise AssertionError(f"the bytes of {name} were read")
        array = self.arrays[name]
        return np.array(array if index is None else array[index or ...], order="C")

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        for prefix, facts in self._facts.items():
            if all(n.startswith(prefix) for n in names):
                found: Mapping[str, Any] = facts
                return found
        return {}

    def close(self) -> None:
        return


def document(rules: Sequence[Any], **more: Any) -> dict[str, Any]:
    return {"weightport": 1, "rules": list(rules), **more}


def planned(source: Any, target: Any, rules: Sequence[Any], /, **more: Any) -> Plan:
    """The plan of a mapping given as a dict; sources and targets as dicts of arrays or shapes."""
    mine = source if isinstance(source, Stub) else Stub(source)
    other = Stub(target, path="new") if isinstance(target, dict) else target
    return plan(mine, other, wp.load_mapping(document(rules, **more)), target_name="new")


def problems(made: Plan) -> list[str]:
    return [str(p) for p in made.problems]


def results(made: Plan, source: Stub) -> dict[str, Array]:
    """The values that a plan without problems comes to."""
    made.check()
    reader = Reader(source)
    return {name: reader.value(item) for name, item in made.items.items()}


def numbers(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    array: Array = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return array
