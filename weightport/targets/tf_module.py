"""Live ``tf.Module`` objects and plain lists of ``tf.Variable``, eager.

Promise: every variable that ``module.variables`` lists, but for those of optimizers and metrics; a constant is left
out of ``module.trainable_variables`` and ``tf.GradientTape`` does not watch it.
Limit: a ``tf.function`` that was traced before the transfer keeps the gradients that it was traced with; a step that
names its variables itself is the user's.

Source: ``tensorflow/python/module/module.py`` (``_flatten``), ``tensorflow/python/ops/resource_variable_ops.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import Problem, RefusedError, TensorNotFound
from weightport.targets._rollback import Kept
from weightport.targets._tf_variables import (
    container_of,
    freeze,
    is_sharded,
    require_eager,
    scoped_name,
    snapshot,
    spec_of,
    taking,
    write,
)
from weightport.targets._variables import all_or_nothing, assign_values, check_values, inherits
from weightport.tensors import TensorSpec, Value

_VARIABLE = "tensorflow.python.ops.variables"


def accepts(obj: object) -> bool:
    """Whether this is a ``tf.Module`` that is no Keras layer, or a list of ``tf.Variable``. Imports nothing."""
    if isinstance(obj, (list, tuple)):
        return bool(obj) and all(inherits(v, "Variable", _VARIABLE) for v in obj)
    return bool(inherits(obj, "Module", "tensorflow.python.module.module")) and not inherits(
        obj, "Layer", "engine.base_layer"
    )


class TfModuleTarget:
    """A ``tf.Module``, or a list or tuple of ``tf.Variable``.

    A tensor is named by its variable's name without ``:0`` if all these names differ. If two are alike (variables made
    without a name are all called ``Variable``), every variable of the module is named by its path of attributes, as in
    ``tf.train.Checkpoint``: ``encoder/layers/0/w``.

    Raises:
        RefusedError: a list whose variables' names are not unique.
    """

    kind = "tf.Module"

    def __init__(self, module: Any) -> None:
        self.module = module
        listed = isinstance(module, (list, tuple))
        self._where = "list of tf.Variable" if listed else f"tf.Module {type(module).__name__}"
        each = module if listed else _variables(module)
        found = list({id(whole): whole for whole in map(container_of, each)}.values())
        names = [scoped_name(v) for v in found]
        alike = sorted(n for n, times in Counter(names).items() if times > 1)
        if alike and listed:
            raise RefusedError(
                [Problem(self._where, f"two variables are named {n!r}", "give them names of their own") for n in alike]
            )
        if alike:
            paths = _paths(module)
            names = [paths[id(v)] for v in found]
        self._variables = dict(zip(names, found, strict=True))
        self._specs = {n: spec_of(v) for n, v in self._variables.items()}

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every variable, in the order of ``module.variables``."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Nothing: a ``tf.Module`` does not record what its variables are for.

        Raises:
            TensorNotFound: no such variable.
        """
        for name in names:
            if name not in self._variables:
                raise TensorNotFound(name, self._variables, self._where)
        return {}

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the variables their values, all or nothing, freeze the constants, and return the module (or the list).

        Raises:
            RefusedError: not executing eagerly.
            Error: names, shapes or dtypes that do not fit (all of them, before anything is touched), or a failure half
                way, after which the variables have their old values again.
        """
        check_values(values, self._specs, self._where)
        require_eager(self._where)
        with Kept() as kept, all_or_nothing(self._where) as undo:
            take = taking(self._variables.__getitem__)
            assign_values(values, self._where, undo, kept, self._snapshot, self._write, take)
            for value in values:
                if value.constant:
                    freeze(self._variables[value.name], undo)
        return self.module

    def _write(self, name: str, value: Any) -> None:
        write(self._variables[name], value, self._where)

    def _snapshot(self, name: str) -> Any:
        return snapshot(self._variables[name])


def _is_variable(obj: object) -> bool:
    return bool(inherits(obj, "Variable", _VARIABLE))


def _variables(module: Any) -> list[Any]:
    """The variables in the order of ``module.variables``, without the state of training."""
    state = {
        id(v)
        for part in module._flatten(predicate=_is_training_state)
        for v in part._flatten(predicate=_is_variable, expand_composites=True)
    }
    return [v for v in module._flatten(predicate=_is_variable, expand_composites=True) if id(v) not in state]


def _paths(module: Any) -> dict[int, str]:
    """The first path of attributes to each variable, by the variable's id."""
    paths: dict[int, str] = {}
    for path, v in module._flatten(predicate=_is_variable, with_path=True, expand_composites=True):
        paths.setdefault(id(v), "/".join(str(key) for key in path))
    for path, v in module._flatten(predicate=is_sharded, with_path=True):
        paths.setdefault(id(v), "/".join(str(key) for key in path))
    return paths


def _is_training_state(obj: object) -> bool:
    names = {c.__name__ for c in type(obj).__mro__}
    return "Module" in names and bool(names & {"Optimizer", "Metric"})
