"""Live models and layers of the legacy Keras 2 API (``tf_keras``), eager.

Promise: every weight of the model under its own name; a constant is frozen by itself, the other variables of its layer
train on, and neither ``compile``, ``fit`` nor ``layer.trainable = True`` moves or thaws it.
Limits: Keras 2 lists and saves a layer's weights by position, the trainable ones first. Where only a part of a layer
becomes constant, its weights change places (as they do in Keras when a part is frozen by hand), and a weights file
saved before or after does not fit the other: :meth:`TfKerasTarget.assign` warns before it does that. Setting
``layer.trainable = True`` on a batch normalization with constant statistics makes Keras update them again.

Sources: ``tf_keras/src/engine/base_layer.py`` (``trainable_weights``, ``save_own_variables``),
``tf_keras/src/saving/legacy/hdf5_format.py`` (``_legacy_weights``), ``tf_keras/src/optimizers/optimizer.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from weightport.errors import Problem, RefusedError
from weightport.targets._rollback import Kept
from weightport.targets._tf_variables import (
    container_of,
    freeze,
    require_eager,
    scoped_name,
    shards_of,
    snapshot,
    spec_of,
    taking,
    write,
)
from weightport.targets._variables import (
    Owned,
    Undo,
    all_or_nothing,
    assign_values,
    cell_facts,
    check_values,
    inherits,
    layers_to_freeze,
    owned_variables,
    refuse_trained,
    require_built,
    walk_layers,
)
from weightport.tensors import TensorSpec, Value


def accepts(obj: object) -> bool:
    """Whether this is a layer or model of the Keras 2 API. Imports nothing."""
    return bool(inherits(obj, "Layer", "engine.base_layer"))


class TfKerasTarget:
    """A built (or buildable) legacy Keras model or layer.

    A tensor is named by its variable's name without ``:0`` (``lstm/lstm_cell/kernel``). Names that clash, as in nested
    models with layers of equal names, are told apart by the layers that lead to them (``encoder/dense/kernel``).

    Raises:
        RefusedError: the model is not built and does not say its input shape, or variables cannot be told apart.
    """

    kind = "tf_keras"

    def __init__(self, model: Any) -> None:
        self.model = model
        self._where = f"tf_keras model {model.name!r}"
        require_built(model, ("_build_input_shape", "_batch_input_shape"))
        self._owned = _whole(owned_variables(model, scoped_name))
        self._specs = {n: spec_of(o.variable) for n, o in self._owned.items()}

        self.root = model.name if all(n.startswith(f"{model.name}/") for n in self._specs) else ""

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every weight, in the order of ``model.weights``."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the model records about the RNN cell that owns these variables.

        Keys: ``class``, ``units``, ``use_bias``, ``activation``, ``recurrent_activation`` (``hard_sigmoid`` is Keras
        2's, ``clip(0.2 x + 0.5, 0, 1)``; an unknown callable is left out), ``reset_after``, ``go_backwards`` (true for
        the backward layer of a Bidirectional), and ``forget_bias`` 0.0 for an LSTM. Empty if the variables are not
        those of one RNN cell.

        Raises:
            TensorNotFound: no such variable.
        """
        return cell_facts(self._owned, names, self._where, "hard_sigmoid")

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the variables their values, all or nothing, freeze the constants, and return the model.

        Warns (``UserWarning``, before anything is touched) if a layer's weights change their order; see the module.

        Raises:
            RefusedError: a constant that the model's optimizer already trains, one that its layer keeps updating, or a
                model built in graph mode.
            Error: names, shapes or dtypes that do not fit (all of them, before anything is touched), or a failure half
                way, after which the variables have their old values again.
        """
        check_values(values, self._specs, self._where)
        require_eager(self._where)
        constants = [shard for v in values if v.constant for shard in shards_of(self._owned[v.name].variable)]
        training = {id(w) for w in self.model.trainable_weights}
        refuse_trained(self.model, [v for v in constants if id(v) in training], _held, self._where)
        resting = layers_to_freeze(self.model, constants, self._where)
        self._warn_of_order(constants)
        with Kept() as kept, all_or_nothing(self._where) as undo:
            take = taking(lambda name: self._owned[name].variable)
            assign_values(values, self._where, undo, kept, self._snapshot, self._write, take)
            for variable in constants:
                freeze(variable, undo)
            _move(self.model, constants, undo)
            for layer in resting:
                undo.append(lambda at=layer, was=layer.trainable: setattr(at, "trainable", was))  # type: ignore[misc]
                layer.trainable = False
            self._require_frozen(constants)
        return self.model

    def _write(self, name: str, value: Any) -> None:
        write(self._owned[name].variable, value, self._where)

    def _snapshot(self, name: str) -> Any:
        return snapshot(self._owned[name].variable)

    def _warn_of_order(self, constants: Sequence[Any]) -> None:
        before = _orders(self.model)
        with _taken_back() as undo:
            _move(self.model, constants, undo)
            after = _orders(self.model)
        changed = [repr(name) for (name, old), (_, new) in zip(before, after, strict=True) if old != new]
        if changed:
            what = (
                f"{self._where}: only a part of layer {', '.join(changed)} becomes constant; Keras 2 saves weights by "
                "position, the trainable ones first: weights files saved before and after do not fit each other"
            )
            warnings.warn(what, UserWarning, stacklevel=3)

    def _require_frozen(self, constants: Sequence[Any]) -> None:
        training = {id(w) for w in self.model.trainable_weights}
        stuck = [
            name
            for name, owned in self._owned.items()
            for shard in shards_of(owned.variable)
            if id(shard) in training and _in(shard, constants)
        ]
        if stuck:
            raise RefusedError(
                [
                    Problem(f"{self._where}: variable {n!r}", "its layer lists it as trainable all the same")
                    for n in stuck
                ]
            )


def _whole(owned: Mapping[str, Owned]) -> dict[str, Owned]:
    """The variables, those that are shards of one (parameter servers) as that one."""
    found: dict[str, Owned] = {}
    for name, part in owned.items():
        variable = container_of(part.variable)
        if variable is part.variable:
            found[name] = part
        else:
            found.setdefault(scoped_name(variable), Owned(variable, part.chain, scoped_name(variable)))
    return found


def _in(variable: Any, variables: Sequence[Any]) -> bool:
    return any(variable is v for v in variables)  # == of variables compares their values


@contextmanager
def _taken_back() -> Iterator[list[Undo]]:
    undo: list[Undo] = []
    try:
        yield undo
    finally:
        for step in reversed(undo):
            step()


def _orders(model: Any) -> list[tuple[str, list[int]]]:
    """The order in which Keras saves the weights of each layer: top layers whole in .h5, every layer in .keras."""
    tops = list(getattr(model, "layers", None) or [model])
    orders = [(at.name, [id(w) for w in [*at.trainable_weights, *at.non_trainable_weights]]) for at in tops]
    for i, top in enumerate(tops):
        for chain in walk_layers(top):
            orders[i][1].extend(id(w) for w in [*chain[-1]._trainable_weights, *chain[-1]._non_trainable_weights])
    return orders


def _move(model: Any, constants: Sequence[Any], undo: list[Undo]) -> None:
    """Move variables from their layers' list of trainable weights to the front of the list of the others.

    Keras 2 reads trainability off these lists and off nothing else. At the front, in their old order, the weights of a
    layer that becomes constant as a whole keep their places in every file.
    """
    for chain in walk_layers(model):
        layer = chain[-1]
        trainable, others = layer._trainable_weights, layer._non_trainable_weights
        moving = [w for w in trainable if _in(w, constants)]
        if not moving:
            continue

        def back(trainable: Any = trainable, others: Any = others, t: Any = (*trainable,), o: Any = (*others,)) -> None:
            trainable[:], others[:] = t, o

        undo.append(back)
        trainable[:] = [w for w in trainable if not _in(w, moving)]
        others[:0] = moving


def _held(optimizer: Any, variable: Any) -> bool:
    """Whether the optimizer (new, legacy, or the one inside a loss scaling one) holds state for the variable."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return _held(inner, variable)
    # Both kinds key a variable by its unique id: the new ones in _index_dict, the legacy ones in _slots.
    key = getattr(variable, "_unique_id", None)
    return any(key in (getattr(optimizer, held, None) or {}) for held in ("_index_dict", "_slots"))
