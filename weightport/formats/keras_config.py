"""What a Keras file's ``model_config`` says about the layer that owns a weight.

Promise: plain JSON is read, no class is looked up and no code is run; only what really stands there is reported, under
the names of :meth:`~weightport.tensors.Source.facts`. Limit: custom layers are described by their class alone.

Facts of a recurrent cell: ``class`` (``LSTM``, ``GRU``, ``SimpleRNN``, ``CuDNNLSTM`` ...: of a cell the layer's class),
``units``, ``activation``, ``recurrent_activation``, ``use_bias``, ``reset_after``, ``go_backwards`` (of the layer
itself: in a Bidirectional of the wrapped layer, not flipped), of a ConvLSTM ``window`` (:func:`window`) and, in a
Bidirectional, ``direction`` (``forward`` or ``backward``).

``hard_sigmoid`` is not one function: Keras 1 and 2 compute ``clip(0.2 x + 0.5, 0, 1)``, reported as ``hard_sigmoid``;
Keras 3 computes ``relu6(x + 3) / 6``, reported as ``hard_sigmoid_6``.

Sources: keras/engine/topology.py and keras/layers/recurrent.py of Keras 1.2.2 and 2.2.4; tf_keras/src/layers/rnn;
keras/src/layers/rnn and keras/src/activations/activations.py of Keras 3.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import FormatError

Config = Mapping[str, Any]

_MAX_DEPTH = 32
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU")
_CONVOLUTIONAL = re.compile(r"ConvLSTM[123]D")
#: The arguments of a convolutional layer that say how its kernel lies, as TensorFlow 1's cells have them.
WINDOW: Config = {"padding": "same", "strides": 1, "dilation_rate": 1, "data_format": "channels_last"}
_DIRECTION = re.compile(r"(?:^|[/_])(forward|backward)(?=[/_])")


def parse(text: str, path: str) -> Config:
    """The JSON of ``model_config``.

    Raises:
        FormatError: no JSON, or no object.
    """
    return document(text, path, "the attribute 'model_config'")


def document(text: str | bytes, path: str, what: str) -> Config:
    """A JSON object, as plain data.

    Args:
        text: it.
        path: the file that errors name.
        what: what errors call it.

    Raises:
        FormatError: no JSON, or no object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError(path, f"{what} is no JSON") from None
    if not isinstance(found, dict):
        raise FormatError(path, f"{what} is no JSON object")
    return found


def name_of(layer: Config) -> str:
    """A layer's name, as the group of its weights is called."""
    inner = layer.get("config")
    name = inner.get("name") if isinstance(inner, dict) else None
    return str(name if name is not None else layer.get("name", ""))


def sublayers(layer: Config) -> list[Config] | None:
    """The layers of a model; None if it is none. In Keras 1 and 2.0 a Sequential is a bare list."""
    inner = layer.get("config")
    if isinstance(inner, dict):
        inner = inner.get("layers")
    return [item for item in inner if isinstance(item, dict)] if isinstance(inner, list) else None


def facts(model: Config, layer: str, weights: Sequence[str], position: int, major: int) -> dict[str, Any]:
    """What is recorded about the layer or cell that owns one weight.

    Args:
        model: :func:`parse`'s.
        layer: the group in which the weight stands.
        weights: that group's ``weight_names``.
        position: the weight's place in them.
        major: Keras' major version.
    """
    for candidate in sublayers(model) or ():
        if name_of(candidate) == layer:
            return _descend(candidate, list(weights), position, major, 0)
    return {}


def _descend(layer: Config, weights: list[str], position: int, major: int, depth: int) -> dict[str, Any]:
    inner = layer.get("config")
    if depth > _MAX_DEPTH:
        return {}
    subs = sublayers(layer)
    if subs is not None:
        return _into_model(subs, weights, position, major, depth)
    if not isinstance(inner, dict):
        return {}
    kind = str(layer.get("class_name", ""))
    wrapped = inner.get("layer")
    if kind == "Bidirectional" and isinstance(wrapped, dict):
        return _into_bidirectional(inner, weights, position, major, depth)
    if isinstance(wrapped, dict):  # TimeDistributed and its like
        return _descend(wrapped, weights, position, major, depth + 1)
    cell = inner.get("cell")
    if isinstance(cell, dict):
        found = _into_cell(cell, weights, position, major, depth)
        if found and isinstance(inner.get("go_backwards"), bool):
            found["go_backwards"] = inner["go_backwards"]
        return found
    return leaf(kind, inner, major)


def _into_model(subs: list[Config], weights: list[str], position: int, major: int, depth: int) -> dict[str, Any]:
    """The layer of a nested model whose name stands in the weight's name."""
    owners = [_owner(subs, weight) for weight in weights]
    owner = owners[position]
    if owner is None:
        return {}
    # A model inside the model stands under its own name or not at all: then its layers are what is named.
    mine = [at for at, other in enumerate(owners) if other == owner]
    return _descend(subs[owner], [weights[at] for at in mine], mine.index(position), major, depth + 1)


def _owner(subs: list[Config], weight: str) -> int | None:
    best: tuple[int, int] | None = None
    parts = weight.removesuffix(":0").split("/")
    for at, sub in enumerate(subs):
        for name in _known_as(sub, 0):
            # Keras 1 and the other backends have no path: 'lstm_1_W_i'.
            hit = name in parts or (len(parts) == 1 and weight.startswith(name + "_"))
            if hit and (best is None or len(name) > best[0]):
                best = len(name), at
    return best[1] if best else None


def _known_as(layer: Config, depth: int) -> list[str]:
    """The names under which a layer's weights may stand: its own, the wrapped one's, those of a model's layers."""
    names = [name_of(layer)]
    if depth < _MAX_DEPTH:
        inner = layer.get("config")
        wrapped = inner.get("layer") if isinstance(inner, dict) else None
        if isinstance(wrapped, dict):
            below = _known_as(wrapped, depth + 1)
            names += below
            if layer.get("class_name") == "Bidirectional":
                names += [f"{direction}_{name}" for direction in ("forward", "backward") for name in below if name]
        for sub in sublayers(layer) or ():
            names += _known_as(sub, depth + 1)
    return [name for name in names if name]


def _into_bidirectional(inner: Config, weights: list[str], position: int, major: int, depth: int) -> dict[str, Any]:
    said = [_DIRECTION.search(weight) for weight in weights]
    if all(said):
        sides = [match[1] for match in said if match]
    elif len(weights) % 2 == 0:  # the order in which Keras has always stored them
        half = len(weights) // 2
        sides = ["forward"] * half + ["backward"] * half
    else:
        return {}
    mine = [at for at, side in enumerate(sides) if side == sides[position]]
    layer = inner["layer"]
    found = _descend(layer, [weights[at] for at in mine], mine.index(position), major, depth + 1)
    own = inner.get("backward_layer")
    if sides[position] == "backward" and isinstance(own, dict):
        found = _descend(own, [weights[at] for at in mine], mine.index(position), major, depth + 1)
        if isinstance(found.get("go_backwards"), bool):  # one given by hand says what it does, not what it wraps
            found["go_backwards"] = not found["go_backwards"]
    if found:
        found["direction"] = sides[position]
    return found


def _into_cell(cell: Config, weights: list[str], position: int, major: int, depth: int) -> dict[str, Any]:
    inner = cell.get("config")
    if depth > _MAX_DEPTH or not isinstance(inner, dict):
        return {}
    cells = inner.get("cells")
    if isinstance(cells, list) and all(isinstance(item, dict) for item in cells):
        sizes = [_count(item) for item in cells]
        known = [size for size in sizes if size is not None]
        ends = list(itertools.accumulate(known, initial=0))
        if len(known) == len(sizes) and ends[-1] == len(weights):
            number = bisect.bisect_right(ends, position) - 1
            start, end = ends[number : number + 2]
            return _into_cell(cells[number], weights[start:end], position - start, major, depth + 1)
        owner = _owner(cells, weights[position])
        return _into_cell(cells[owner], weights, position, major, depth + 1) if owner is not None else {}
    wrapped = inner.get("cell")
    if isinstance(wrapped, dict):  # DropoutWrapper and its like
        return _into_cell(wrapped, weights, position, major, depth + 1)
    return leaf(str(cell.get("class_name", "")), inner, major)


def _count(cell: Config) -> int | None:
    """How many weights a cell has, for Keras' own cells."""
    kind = str(cell.get("class_name", "")).rsplit(">", 1)[-1].removesuffix("Cell")
    inner = cell.get("config")
    if kind not in _RECURRENT or not isinstance(inner, dict):
        return None
    return 3 if inner.get("use_bias", True) else 2


def leaf(kind: str, inner: Config, major: int) -> dict[str, Any]:
    """The facts of one layer or cell of that class, by its own configuration."""
    kind = kind.rsplit(">", 1)[-1]
    found: dict[str, Any] = {"class": kind.removesuffix("Cell") if kind.removesuffix("Cell") in _RECURRENT else kind}
    units = inner.get("units", inner.get("output_dim"))
    if type(units) is int:
        found["units"] = units
    for key, old in (("activation", "activation"), ("recurrent_activation", "inner_activation")):
        value = _function(inner.get(key, inner.get(old)), major)
        if value is not None:
            found[key] = value
    for key in ("use_bias", "reset_after", "go_backwards"):
        if isinstance(inner.get(key), bool):
            found[key] = inner[key]
    if _CONVOLUTIONAL.fullmatch(found["class"]):
        found["window"] = window(inner)
    if found["class"] == "GRU" and major < 3:
        found.setdefault("reset_after", False)  # before there was the choice
    if kind.startswith("CuDNN"):  # fixed in the kernel: cuDNN's own functions
        found.update(activation="tanh", recurrent_activation="sigmoid", use_bias=True)
        if kind == "CuDNNGRU":
            found["reset_after"] = True
    return found


def window(said: Mapping[str, Any]) -> str:
    """How a convolutional cell's kernel lies on its image, as far as that differs from TensorFlow 1's cells: padded to
    the same size, without strides, channels last; empty if it does not.

    Args:
        said: the layer's arguments by their names in Keras.
    """
    parts = []
    for key, usual in WINDOW.items():
        value = said.get(key, "valid" if key == "padding" else usual)
        each = list(value) if isinstance(value, (list, tuple)) else [value]
        if any(one != usual for one in each if one is not None):
            parts.append(f"{key.replace('_', ' ')} {' '.join(map(str, each))}")
    return ", ".join(parts)


def _function(value: Any, major: int) -> str | None:
    """An activation by its name: a string, or Keras 3's description of one of its own functions."""
    if isinstance(value, dict):
        inner = value.get("config")
        plain = inner.get("name") if isinstance(inner, dict) else inner
        value = plain if value.get("module") in (None, "builtins", "keras.activations") else None
    if not isinstance(value, str):
        return None
    return "hard_sigmoid_6" if value == "hard_sigmoid" and major >= 3 else value
