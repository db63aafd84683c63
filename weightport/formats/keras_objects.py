"""Names a person recognises for what Keras 3 stores by its objects, and what is recorded of their RNN cells.

A ``.keras`` archive, and a ``.weights.h5``, keep variables under the path through the attributes of the model's objects
(``layers/bidirectional/forward_layer/cell/vars/0``). :func:`named` gives each the path that the variable has in the
model (``bidirectional/forward_lstm/lstm_cell/kernel``):

1. the names of the layers that it lies in: stored beside the variables since Keras 3.6, before that in the
   configuration. Layers of a Functional model are built on their own, so its name is not part of their variables'
   paths; a Sequential's is, and what stands around a Sequential that knows its input is not;
2. its own name, which is stored nowhere: what the layer's class calls the variable in that place
   (:mod:`~weightport.formats.keras_variables`). The class is in the configuration; for a part of a custom layer it is
   told by the path, where Keras puts the class, or by the name that Keras gave the part after its class;
3. paths that clash are told apart by the names of all layers that lead to them.

Keras 2.12 and later write the same kind of archive, and give their variables other paths in places: a Sequential's name
is not part of them, nor is that of a layer inside a TimeDistributed, nor that of a ConvLSTM's cell.

What cannot be told so, a custom layer's own variables above all, keeps the stored path; so do optimizers. Promise: the
configuration is plain data; no class is looked up, nothing is run. Limit: a path that depends on when a layer was
built (a layer that is shared, or built by hand) may differ from the live model's.

Sources: keras/src/saving/saving_lib.py (``_save_state``, ``_save_container_state``, ``H5IOStore``), keras/src/layers/
layer.py (``build_wrapper``), keras/src/layers/rnn/{rnn,bidirectional,stacked_rnn_cells}.py, keras/src/layers/attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightport.formats import keras_config
from weightport.formats.keras_config import Config
from weightport.formats.keras_variables import class_of, snake, variables

VARS = "vars"
#: The attributes of a model under which nothing of the model itself is stored.
OPTIMIZER = "optimizer"
_RECURRENT = {name: f"{name}Cell" for name in ("LSTM", "GRU", "SimpleRNN")}
_RECURRENT |= {f"ConvLSTM{n}D": "ConvLSTMCell" for n in (1, 2, 3)}
_ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")
#: The one class that Keras exports, and so serializes, under another name than its own.
_RENAMED = {"GroupQueryAttention": "GroupedQueryAttention"}
_PROJECTIONS = {"query_dense": "query", "key_dense": "key", "value_dense": "value", "output_dense": "attention_output"}

#: The groups of a file: name -> the groups in it.
Tree = dict[str, "Tree"]


@dataclass(frozen=True, slots=True)
class Named:
    """What :func:`named` found.

    Attributes:
        names: stored path -> name, in the model's order where that is known.
        facts: stored path -> what is recorded of the RNN cell that owns the variable.
        root: the scope of the model's own that stands before all names; empty if there is none.
    """

    names: dict[str, str]
    facts: dict[str, dict[str, Any]]
    root: str


@dataclass(frozen=True, slots=True)
class _Object:
    """A layer: its class and settings, as far as they are known.

    Attributes:
        name: None: nothing says it, and so no variable below has a name.
        scope: the path that its variables have.
        layers: the names of the layers that lead to it, the model's left out.
        behaves: facts that what stands around it adds to its own.
        major: the version of Keras that the configuration is of.
    """

    kind: str
    settings: Config | None
    name: str | None
    scope: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    behaves: Mapping[str, Any] = field(default_factory=dict)
    major: int = 3


def named(
    groups: Sequence[str],
    titles: Mapping[str, str],
    stored: Mapping[str, Sequence[str]],
    config: Config | None,
    major: int = 3,
) -> Named:
    """Names and facts of stored variables.

    Args:
        groups: the path of every group.
        titles: path of an object -> its name, where the file has it.
        stored: path of an object -> the keys of its variables (``0``, ``1`` ...), in the file's order.
        config: the model's configuration.
        major: the version of Keras that it is of.
    """
    tree: Tree = {}
    for path in groups:
        here = tree
        for part in path.split("/"):
            here = here.setdefault(part, {})
    walk = _Walk(titles, stored)
    model = walk.top(config, major)
    walk.visit(model, "", tree)
    return Named(walk.told_apart(), walk.facts, model.scope[0] if model.scope else "")


class _Walk:
    def __init__(self, titles: Mapping[str, str], stored: Mapping[str, Sequence[str]]) -> None:
        self._titles, self._stored = titles, stored
        self.facts: dict[str, dict[str, Any]] = {}
        #: stored path -> the variable's path, and the same with all layers' names
        self._wished: dict[str, tuple[str, str] | None] = {}

    def top(self, config: Config | None, major: int) -> _Object:
        """The model itself."""
        found = replace(_described(config, self._titles.get("")), major=major)
        return replace(found, scope=() if found.name is None or _is_alone(found) else (found.name,))

    def visit(self, owner: _Object, path: str, tree: Tree) -> None:
        """An object: its variables, then its parts, those that the configuration lists first and in its order."""
        self._variables(owner, path)
        for attribute in _ordered(tree):
            below = f"{path}/{attribute}" if path else attribute
            if not path and attribute == OPTIMIZER:
                self._leave(below, tree[attribute])
            elif VARS in tree[attribute]:
                part = _part(owner, attribute, self._titles.get(below))
                if not part.kind and {name.lstrip("_") for name in tree[attribute]} >= _PROJECTIONS.keys():
                    part = replace(part, kind=_ATTENTION[0])  # what a layer calls its parts says what it is
                self.visit(_placed(part, owner), below, tree[attribute])
            else:
                self._container(owner, _listed(owner, attribute), below, tree[attribute])

    def _container(self, owner: _Object, items: Sequence[Config], path: str, tree: Tree) -> None:
        """A list of objects: each under its class' name, numbered (``dense``, ``dense_1``)."""
        seen: Counter[str] = Counter()
        known: dict[str, Config] = {}
        for item in items:
            name = snake(_class_name(item))
            known[f"{name}_{seen[name]}" if seen[name] else name] = item
            seen[name] += 1
        for key in [*(k for k in known if k in tree), *(k for k in tree if k not in known)]:
            below = f"{path}/{key}"
            if VARS in tree[key]:
                title = self._titles.get(below)
                found = _described(known[key], title) if key in known else _Object(class_of(key), None, title)
                self.visit(_placed(_inside(found, owner), owner), below, tree[key])
            else:
                self._container(owner, (), below, tree[key])

    def _variables(self, owner: _Object, path: str) -> None:
        keys = self._stored.get(path, ())
        base = f"{path}/{VARS}" if path else VARS
        numbered = [str(number) for number in range(len(keys))]
        names = None
        if owner.name is not None and sorted(keys) == sorted(numbered):
            names = variables(owner.kind, owner.settings, len(keys), owner.major)
        if names is None:
            self._wished.update((f"{base}/{key}", None) for key in keys)
            return
        facts = _facts(owner)
        for number, name in zip(numbered, names, strict=True):
            full = "/".join((*owner.scope, name)), "/".join((*owner.layers, name))
            self._wished[f"{base}/{number}"] = full
            if facts:
                self.facts[f"{base}/{number}"] = facts

    def _leave(self, path: str, tree: Tree) -> None:
        """An optimizer: its variables keep their stored paths."""
        for key in self._stored.get(path, ()):
            self._wished[f"{path}/{VARS}/{key}"] = None
        for name in tree:
            self._leave(f"{path}/{name}", tree[name])

    def told_apart(self) -> dict[str, str]:
        """Stored path -> name; names are unique."""
        first = Counter(w[0] for w in self._wished.values() if w is not None)
        names = {p: w[0] if first[w[0]] == 1 else w[1] for p, w in self._wished.items() if w is not None}
        count = Counter([*names.values(), *self._wished])
        return {p: names[p] if p in names and count[names[p]] == 1 else p for p in self._wished}


# -- objects ---------------------------------------------------------------------------------------------------------


def _described(config: Any, title: str | None) -> _Object:
    """An object by its serialized form."""
    settings = config.get("config") if isinstance(config, Mapping) else None
    settings = settings if isinstance(settings, Mapping) else None
    said = (settings or {}).get("name")
    name = title if title is not None else said if isinstance(said, str) else None
    return _Object(_class_name(config), settings, name)


def _class_name(config: Any) -> str:
    kind = str(config.get("class_name", "")) if isinstance(config, Mapping) else ""
    kind = kind.rsplit(">", 1)[-1]
    return _RENAMED.get(kind, kind)


def _is_functional(found: _Object) -> bool:
    return found.kind == "Functional" or bool(found.settings and "input_layers" in found.settings)


def _is_alone(found: _Object) -> bool:
    """Whether a model's name is no part of its variables' paths."""
    return _is_functional(found) or (found.kind == "Sequential" and found.major < 3)


def _placed(found: _Object, owner: _Object) -> _Object:
    """A part with its place in the variables' paths and among the layers."""
    found = replace(found, major=owner.major)
    if found.name is None or owner.name is None:
        return replace(found, name=None)
    layers = (*owner.layers, found.name)
    if _is_alone(found):
        return replace(found, scope=(), layers=layers)
    if owner.major < 3 and (owner.kind == "TimeDistributed" or found.kind == "ConvLSTMCell"):
        return replace(found, scope=owner.scope, layers=layers)
    first = next(iter(_items(found.settings, "layers")), {})
    if first.get("class_name") == "InputLayer":  # a Sequential that was built before it was called
        return replace(found, scope=(found.name,), layers=layers)
    return replace(found, scope=(*owner.scope, found.name), layers=layers)


def _part(owner: _Object, attribute: str, title: str | None) -> _Object:
    """The object that an attribute of another one holds."""
    settings = owner.settings or {}
    plain = attribute.lstrip("_")
    if owner.kind in _RECURRENT and attribute == "cell":
        kind = _RECURRENT[owner.kind]
        name = title if title is not None else snake(kind)
        return _Object(kind, owner.settings, name, behaves=owner.behaves)
    if owner.kind == "Bidirectional" and attribute in ("forward_layer", "backward_layer"):
        return _direction(owner, settings, attribute.removesuffix("_layer"), title)
    if owner.kind in _ATTENTION and plain in _PROJECTIONS:
        # Axes of the bias stand for use_bias here.
        known = {} if owner.settings is None else {"bias_axes": settings.get("use_bias", True)}
        policy = settings.get("dtype")
        inner = {**known, "dtype": policy} if policy is not None else known
        return _Object("EinsumDense", inner or None, title if title is not None else _PROJECTIONS[plain])
    found = settings.get(attribute, settings.get(plain))
    if isinstance(found, Mapping) and "class_name" in found:
        return _inside(_described(found, title), owner)
    return _Object(class_of(title or ""), None, title)


def _inside(found: _Object, owner: _Object) -> _Object:
    """What a layer around others says of them: an RNN layer its direction in time."""
    behaves = dict(owner.behaves)
    backwards = (owner.settings or {}).get("go_backwards")
    if owner.kind == "RNN" and isinstance(backwards, bool):
        behaves["go_backwards"] = backwards
    return replace(found, behaves=behaves)


def _direction(owner: _Object, settings: Config, side: str, title: str | None) -> _Object:
    own = settings.get("backward_layer") if side == "backward" else None
    found = _described(own if isinstance(own, Mapping) else settings.get("layer"), None)
    behaves: dict[str, Any] = {**owner.behaves, "direction": side}
    name = found.name
    given = isinstance(own, Mapping)
    if given:
        backwards = (found.settings or {}).get("go_backwards")
        if isinstance(backwards, bool):  # one given by hand says what it does, not what it wraps
            behaves["go_backwards"] = not backwards
    if name is not None and (not given or owner.major < 3):
        name = f"{side}_{name.removeprefix(f'{side}_')}"
    kind = found.kind or class_of((title or "").removeprefix(f"{side}_"))
    return replace(found, kind=kind, name=title if title is not None else name, behaves=behaves)


def _listed(owner: _Object, attribute: str) -> list[Config]:
    """The serialized layers in a list that an attribute holds, as far as the configuration has them."""
    found = _items(owner.settings, attribute) or _items(owner.settings, attribute.lstrip("_"))
    # Of a Functional model's operations, only the layers are stored; of a Sequential, not its input.
    if not _is_functional(owner):
        found = [item for item in found if item.get("class_name") != "InputLayer"]
    return [item for item in found if not str(item.get("module") or "").startswith(("keras.src.ops", "keras.ops"))]


def _items(settings: Config | None, key: str) -> list[Config]:
    found = settings.get(key) if settings is not None else None
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []


def _ordered(tree: Tree) -> Iterator[str]:
    """The parts of an object, its layers first; the optimizer last."""
    first = [name for name in ("layers", "forward_layer", "cells") if name in tree]
    yield from first
    yield from (name for name in tree if name not in first and name not in (VARS, OPTIMIZER))
    if OPTIMIZER in tree:
        yield OPTIMIZER


def _facts(owner: _Object) -> dict[str, Any]:
    """What is recorded of an RNN cell; nothing of anything else, or where there is no configuration."""
    if owner.settings is None or owner.kind not in _RECURRENT.values():
        return {}
    return {**keras_config.leaf(owner.kind, owner.settings, owner.major), **owner.behaves}
