"""Names for the tensors in an object that PyTorch saved, and what each of them is.

A name is the path to the tensor, its parts joined with dots:

1. of a state dict, its keys, exactly; so of an ``nn.Module`` that was saved whole, whose parameters and persistent
   buffers have the names of its state dict, and of a TorchScript module;
2. of a dict in a dict, the outer key first (``state_dict.encoder.weight``); of a list, the position; of any other
   object, its attribute;
3. values that are no tensors have no names.

What stands beside ``param_groups`` is an optimizer's: below ``state`` a ``slot``, else an ``optimizer`` value. So is
what Lightning keeps of its callbacks, loops and schedulers. States of random generators and ``num_batches_tracked`` are
a ``counter``.

Promise: linear in the objects; objects that contain themselves end, and objects that are reached over very many paths
are refused. Limit: the keys of a dict are text and whole numbers; below another key, a tensor is named by its position.

Sources: torch/nn/modules/module.py (``_save_to_state_dict``), torch/optim/optimizer.py (``state_dict``),
torch/csrc/jit/serialization/python_print.cpp (``__parameters__``, ``__buffers__``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._pickle import Global, Pairs, Thing
from weightport.formats._torch_tensors import Storage, Tensor, tensor_of
from weightport.tensors import Budget

_MODULE = ("_parameters", "_buffers", "_modules")
_LIGHTNING = "pytorch-lightning_version"
_TRAINING = ("callbacks", "loops", "lr_schedulers")
_COUNTER = re.compile(r"(?:.*_)?rng_states?(?:_.*)?|num_batches_tracked")
_HOLDERS = frozenset({Pairs, Thing, list, tuple, Tensor, Storage})
# Paths to the same object beyond which it is a bomb and no model.
_PATHS = 64

#: A child's part of the name, the child, and its role if that is not its parent's.
Child = tuple[str, Any, str]


@dataclass(frozen=True, slots=True)
class ScriptClass:
    """What the code of a TorchScript archive says of a class.

    Attributes:
        weights: its parameters and buffers; None where it does not list them.
        constants: its ``Final`` attributes.
    """

    weights: frozenset[str] | None
    constants: Mapping[str, Any]


@dataclass(slots=True)
class Named:
    """The names of a file.

    Attributes:
        tensors: name -> tensor and role.
        modules: name of a module -> its class, and its attributes that are numbers, text or None.
    """

    tensors: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    modules: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)


def named(
    root: Any,
    path: str,
    budget: Budget,
    *,
    size: int = 0,
    alone: str = "tensor",
    script: Callable[[Global], ScriptClass | None] | None = None,
) -> Named:
    """Every tensor in an object.

    Args:
        path: the file that errors name.
        size: its bytes, which bound what its names may come to.
        alone: the name of a tensor that is the object itself.
        script: asked for the classes of a TorchScript archive.

    Raises:
        FormatError: two tensors of one name, or nested or shared beyond the budget.
    """
    return _Walk(path, budget, size, script).run(root, alone)


def role_of(name: str) -> str:
    """``counter`` for a count of batches and the state of a random generator, else ``weight``."""
    return "counter" if _COUNTER.fullmatch(name.rpartition(".")[2]) else "weight"


class _Walk:
    def __init__(
        self, path: str, budget: Budget, size: int, script: Callable[[Global], ScriptClass | None] | None
    ) -> None:
        self.path, self.budget, self.size, self.script = path, budget, size, script
        self.found = Named()
        self.children: dict[int, list[Child]] = {}
        self.tensors: dict[int, Tensor] = {}
        self.wanted: set[int] = set()
        self.above: set[int] = set()
        self.left = 0
        self.beside: list[tuple[str, Tensor]] = []

    def run(self, root: Any, alone: str) -> Named:
        self._look(root)
        self.left = 10_000 + _PATHS * (len(self.children) + len(self.tensors))
        if id(root) in self.tensors:
            self._add(alone, self.tensors[id(root)], "weight")
        elif id(root) in self.wanted:
            self._visit(root, "", "weight", 0)
        known = {id(tensor) for tensor, _ in self.found.tensors.values()}
        for name, tensor in self.beside:  # attributes of TorchScript that are no weights under another name
            if id(tensor) not in known:
                self._add(name, tensor, "constant")
        return self.found

    def _look(self, root: Any) -> None:
        """All objects once, and which of them lead to a tensor."""
        parents: dict[int, list[int]] = {}
        pending = [root]
        self.children[id(root)] = []
        while pending:
            at = pending.pop()
            tensor = tensor_of(at)
            if tensor is not None:
                self.tensors[id(at)] = tensor
                continue
            here = self.children[id(at)] = list(self._children(at))
            for _, child, _ in here:
                known = parents.setdefault(id(child), [])
                if not known:
                    pending.append(child)
                known.append(id(at))
        up = list(self.tensors)
        self.wanted.update(up)
        while up:
            for parent in parents.get(up.pop(), ()):
                if parent not in self.wanted:
                    self.wanted.add(parent)
                    up.append(parent)

    def _visit(self, at: Any, prefix: str, role: str, depth: int) -> None:
        self.budget.check("depth", depth, self.path)
        self.above.add(id(at))
        if type(at) is Thing:
            self._module(at, prefix)
        for part, child, its in self.children[id(at)]:
            if id(child) not in self.wanted or id(child) in self.above:
                continue
            self.left -= 1
            if self.left < 0:
                raise BudgetExceeded(self.path, "its objects hold each other in too many ways to name them all")
            name = f"{prefix}.{part}" if prefix else part
            self.budget.name(len(name), self.size, self.path)
            tensor = self.tensors.get(id(child))
            its = its or role
            if tensor is None:
                self._visit(child, name, its, depth + 1)
            elif its == "constant":
                self.beside.append((name, tensor))
            else:
                self._add(name, tensor, role_of(part) if its == "weight" else its)
        self.above.discard(id(at))

    def _add(self, name: str, tensor: Tensor, role: str) -> None:
        known = self.found.tensors.get(name)
        if known is not None:
            if known[0] is tensor:
                return
            raise FormatError(self.path, "two tensors have this name", tensor=name)
        self.budget.spend("header_bytes", len(name), self.path)
        self.budget.spend("tensors", 1, self.path)
        self.found.tensors[name] = (tensor, role)

    def _module(self, at: Thing, prefix: str) -> None:
        state = dict(_texts(_pairs(at.state)))
        if isinstance(at.of, Global) and (_is_module(state) or self._script_class(at) is not None):
            known = self._script_class(at)
            attributes = {**state, **(known.constants if known is not None else {})}
            simple = {k: v for k, v in attributes.items() if isinstance(v, (int, float, str, type(None)))}
            self.found.modules[prefix] = (at.of.name, simple)

    # Children --------------------------------------------------------------------------------------------------------

    def _children(self, at: Any) -> Iterator[Child]:
        kind = type(at)
        if kind is Pairs:
            yield from _roles(at)
        elif kind is list or kind is tuple:
            yield from _positions(at)
        elif kind is Thing:
            known = self._script_class(at)
            state = dict(_texts(_pairs(at.state)))
            if known is not None:
                for part, child, _ in _keys(_pairs(at.state)):
                    weight = known.weights is None or part in known.weights or self._script_class(child) is not None
                    yield part, child, "" if weight else "constant"
            elif _is_module(state):
                yield from _state_dict(state)
            else:
                yield from _object(at)

    def _script_class(self, at: Any) -> ScriptClass | None:
        if self.script is None or type(at) is not Thing or type(at.of) is not Global:
            return None
        return self.script(at.of) if at.of.module.startswith("__torch__") else None


def _is_module(state: Mapping[str, Any]) -> bool:
    return all(key in state for key in _MODULE)


def _state_dict(state: Mapping[str, Any]) -> Iterator[Child]:
    """A module's parameters, persistent buffers and modules."""
    hidden = _members(state.get("_non_persistent_buffers_set"))
    yield from _keys(_pairs(state["_parameters"]))
    yield from (child for child in _keys(_pairs(state["_buffers"])) if child[0] not in hidden)
    yield from _keys(_pairs(state["_modules"]))


def _members(found: Any) -> set[str]:
    """The text in a set."""
    if type(found) is not Thing:
        return set()
    given = found.args[0] if isinstance(found.args, tuple) and found.args else ()
    return {v for v in [*found.items, *(given if isinstance(given, list) else ())] if isinstance(v, str)}


def _object(at: Thing) -> Iterator[Child]:
    """Of any other object: its keys, items, arguments and attributes."""
    if at.pairs or (at.named("collections.OrderedDict") and _pairs(at)):
        yield from _roles(_pairs(at))
    yield from _positions(at.items)
    if isinstance(at.args, (tuple, list)) and not at.named("collections.OrderedDict"):
        yield from _positions(at.args)
    for state in at.state if isinstance(at.state, tuple) else (at.state,):
        found = _pairs(state)
        yield from _roles(found) if found else _positions(state if isinstance(state, list) else ())


def _pairs(found: Any) -> Sequence[tuple[Any, Any]]:
    """The keys and values of a dict, or of an object that is one."""
    if type(found) is Pairs:
        return found
    if type(found) is not Thing:
        return ()
    if found.named("collections.OrderedDict") and found.args and isinstance(found.args, tuple):
        given = found.args[0]  # Python 2: a list of lists
        items = given if isinstance(given, list) else ()
        return [*((p[0], p[1]) for p in items if isinstance(p, (list, tuple)) and len(p) == 2), *found.pairs]
    return found.pairs


def _texts(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    return ((k, v) for k, v in pairs if isinstance(k, str))


def _keys(pairs: Iterable[tuple[Any, Any]]) -> Iterator[Child]:
    for number, (key, value) in enumerate(pairs):
        if type(value) in _HOLDERS:
            yield key if isinstance(key, str) else str(key) if type(key) is int else str(number), value, ""


def _positions(values: Iterable[Any]) -> Iterator[Child]:
    return ((str(number), value, "") for number, value in enumerate(values) if type(value) in _HOLDERS)


def _roles(pairs: Sequence[tuple[Any, Any]]) -> Iterator[Child]:
    """The values of a dict, those of an optimizer and of a trainer told apart."""
    keys = {k for k, _ in pairs if isinstance(k, str)}
    optimizer = {"state", "param_groups"} <= keys
    trainer = _LIGHTNING in keys
    for part, value, _ in _keys(pairs):
        if optimizer:
            yield part, value, "slot" if part == "state" else "optimizer"
        else:
            yield part, value, "optimizer" if trainer and part in _TRAINING else ""
