"""Live Keras 3 models and layers, on any backend.

Promise: every weight of the model, seen through Keras' own interface only; a constant is frozen by itself, the other
variables of its layer train on, and neither ``compile``, ``fit`` nor ``layer.trainable = True`` moves or thaws it. On
PyTorch the parameters are filled in place; of a variable that ``keras.distribution`` spreads over devices, each device
gets its part, of which alone the source's bytes are read; under a ``tf.distribute`` strategy every replica gets the
value.
Limits: state that is no weight (seed generators, metrics, optimizers, the states of stateful RNNs) is not listed.
Keras does not save which variables are frozen: a model that is loaded or cloned has to be frozen again. An optimizer
of another model that trains this one as a part cannot be seen from here: compile it after the transfer. Setting
``layer.trainable = True`` on a batch normalization with constant statistics makes Keras update them again.

Sources: ``keras/src/layers/layer.py`` (``weights``, ``trainable``), ``keras/src/backend/common/variables.py``,
``keras/src/optimizers/base_optimizer.py``, ``keras/src/activations/activations.py`` (``hard_sigmoid``),
``keras/src/backend/{jax,torch}/core.py``, ``keras/src/distribution/distribution_lib.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import new_class
from typing import Any

import numpy as np

from weightport.targets._buffers import produced
from weightport.targets._rollback import Kept
from weightport.targets._variables import (
    Owned,
    all_or_nothing,
    assign_values,
    cell_facts,
    check_values,
    inherits,
    layers_to_freeze,
    owned_variables,
    refuse_trained,
    require_built,
)
from weightport.tensors import TensorSpec, Value

# Keras 3: relu6(x + 3) / 6; Keras 2: clip(0.2 x + 0.5, 0, 1). The same name, two functions.
_HARD_SIGMOID = "hard_sigmoid_6"


def accepts(obj: object) -> bool:
    """Whether this is a Keras 3 layer or model. Imports nothing."""
    return bool(inherits(obj, "Layer", "src.layers.layer"))


class Keras3Target:
    """A built (or buildable) Keras 3 model or layer.

    A tensor is named by its variable's path (``lstm/lstm_cell/kernel``; a Sequential or subclassed model puts its own
    name before it, as in ``sequential/lstm/lstm_cell/kernel``; it is the target's ``root``, which a mapping may leave
    out). Paths that clash are told apart by the layers that lead to them.

    Raises:
        RefusedError: the model is not built and does not say its input shape, or variables cannot be told apart.
    """

    kind = "keras"

    def __init__(self, model: Any) -> None:
        self.model = model
        self._where = f"keras model {model.name!r}"
        require_built(model, ("_input_shape_arg",))
        self._owned: dict[str, Owned] = owned_variables(model, lambda v: str(v.path))
        self._specs = {
            n: TensorSpec.of(str(o.variable.dtype), tuple(int(d) for d in o.variable.shape))
            for n, o in self._owned.items()
        }

        self.root = model.name if all(n.startswith(f"{model.name}/") for n in self._specs) else ""

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every weight, in the order of ``model.weights``."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the model records about the RNN cell that owns these variables.

        Keys: ``class``, ``units``, ``use_bias``, ``activation``, ``recurrent_activation`` (``hard_sigmoid_6`` is Keras
        3's ``hard_sigmoid``; an unknown callable is left out), ``reset_after``, ``go_backwards`` (true for the
        backward layer of a Bidirectional), and ``forget_bias`` 0.0 for an LSTM. Empty if the variables are not those
        of one RNN cell.

        Raises:
            TensorNotFound: no such variable.
        """
        return cell_facts(self._owned, names, self._where, _HARD_SIGMOID)

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the variables their values, all or nothing, freeze the constants, and return the model.

        Raises:
            RefusedError: a constant that the model's optimizer already trains, or one that its layer keeps updating.
            Error: names, shapes or dtypes that do not fit (all of them, before anything is touched), or a failure half
                way, after which the variables have their old values again.
        """
        check_values(values, self._specs, self._where)
        constants = [self._owned[v.name].variable for v in values if v.constant]
        refuse_trained(self.model, [v for v in constants if v.trainable], _held, self._where)
        resting = layers_to_freeze(self.model, constants, self._where)
        with Kept() as kept, all_or_nothing(self._where) as undo:
            assign_values(values, self._where, undo, kept, self._snapshot, self._write, self._take)
            for variable in constants:
                was, cls = variable.trainable, type(variable)
                undo.append(lambda v=variable, was=was, cls=cls: _thaw(v, cls, was))  # type: ignore[misc]
                _freeze(variable)
            for layer in resting:
                undo.append(lambda at=layer, was=layer.trainable: setattr(at, "trainable", was))  # type: ignore[misc]
                layer.trainable = False
        return self.model

    def _write(self, name: str, value: Any) -> None:
        variable = self._owned[name].variable
        if isinstance(value, Value):
            from weightport.targets import _torch_tensors

            _torch_tensors.fill(variable.value, value, self._where)
        else:
            variable.assign(value)

    def _take(self, value: Value) -> Any:
        """The value in the form in which the backend takes it over, without a copy where it can.

        On PyTorch nothing yet: it is read to where it lies. Of a variable that lies on several devices of JAX, each
        device's part alone is read.
        """
        import keras

        backend = keras.backend.backend()
        if backend == "torch":
            return value
        if backend == "tensorflow":
            from weightport.targets._tf_variables import owned

            return owned(produced(value))
        if backend != "jax":
            return produced(value)
        import jax

        sharding = getattr(self._owned[value.name].variable.value, "sharding", None)
        if sharding is None or sharding.is_fully_replicated:
            return jax.device_put(produced(value))

        read: dict[str, Any] = {}  # devices may hold the same part

        def part(index: tuple[slice, ...]) -> Any:
            if str(index) not in read:
                read[str(index)] = produced(value, index)
            return read[str(index)]

        return jax.make_array_from_callback(value.spec.shape, sharding, part)

    def _snapshot(self, name: str) -> Any:
        import keras

        value = self._owned[name].variable.value
        if hasattr(value, "read_value"):
            return value.read_value()  # TensorFlow copies on write: no byte is copied, the old buffer just lives on
        if keras.backend.backend() == "jax":
            return value  # immutable
        return np.array(keras.ops.convert_to_numpy(value), copy=True)


def _held(optimizer: Any, variable: Any) -> bool:
    """Whether the optimizer (or the one inside a loss scaling one) was built on the variable."""
    if not getattr(optimizer, "built", False):
        return False
    trained = getattr(optimizer, "_trainable_variables", None)
    inner = getattr(optimizer, "inner_optimizer", None)
    # Without the list there is no telling: then a built optimizer counts as holding it.
    return trained is None or any(v is variable for v in trained) or (inner is not None and _held(inner, variable))


_frozen_classes: dict[type, type] = {}


def _freeze(variable: Any) -> None:
    """Make one variable non-trainable for good.

    ``layer.trainable = True`` sets the flag of every variable below the layer, so a flag alone would not last. Moving
    the variable to the layer's list of non-trainable ones would last, but Keras saves a layer's variables by their
    position in these lists, and a file saved after the move would load in another order, silently. So the variable
    keeps its place and gets a class whose flag stays down.
    """
    variable.trainable = False
    cls = type(variable)
    if cls in _frozen_classes.values():
        return
    if cls not in _frozen_classes:
        stays = property(lambda _self: False, lambda _self, _value: None, doc="False: the variable is a constant.")
        body = {"trainable": stays, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _frozen_classes[cls] = new_class(cls.__name__, (cls,), exec_body=lambda namespace: namespace.update(body))
    variable.__class__ = _frozen_classes[cls]


def _thaw(variable: Any, cls: type, trainable: bool) -> None:
    variable.__class__ = cls
    variable.trainable = trainable
