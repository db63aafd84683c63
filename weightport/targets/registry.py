"""Which live target an object is, told by its classes' names, so that no framework is imported to find out.

Promise: an object of no known framework is one error that lists what is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from weightport.errors import Error
from weightport.targets._variables import inherits
from weightport.tensors import Source, Target

#: module -> class, in the order in which they are asked.
_TARGETS = {
    "keras3": "Keras3Target",
    "tf_keras_model": "TfKerasTarget",
    "tf_module": "TfModuleTarget",
    "torch_module": "TorchModuleTarget",
    "nnx_module": "NnxTarget",
    "jax_tree": "JaxTreeTarget",
}


def is_graph(obj: object) -> bool:
    """Whether this is a ``tf.Graph``. Imports nothing."""
    return bool(inherits(obj, "Graph", "tensorflow.python.framework.ops"))


def is_live(obj: object) -> bool:
    """Whether this is a live model of a known kind. Imports nothing."""
    return is_graph(obj) or any(import_module(f"weightport.targets.{name}").accepts(obj) for name in _TARGETS)


def live_target(obj: Any, **options: Any) -> Target:
    """The target for a live model.

    Args:
        obj: a ``tf.Graph``, a Keras 3 or legacy Keras model or layer, a ``tf.Module``, a list of ``tf.Variable``, a
            ``torch.nn.Module``, an nnx module, or a JAX tree (``params``) of Flax, Haiku or Equinox.
        options: of the graph target only: ``session``, ``large_constants``.

    Raises:
        Error: no known kind of model, or options that it does not take.
        RefusedError: the model cannot take values (not built, names that clash).
    """
    if is_graph(obj):
        made: Target = import_module("weightport.targets.tf_graph").GraphTarget(obj, **options)
        return made
    for module_name, class_name in _TARGETS.items():
        module = import_module(f"weightport.targets.{module_name}")
        accepts: Callable[[object], bool] = module.accepts
        if accepts(obj):
            if options:
                raise Error(f"{', '.join(options)}: for TensorFlow graphs only, not for {type(obj).__name__}")
            target: Target = getattr(module, class_name)(obj)
            return target
    raise Error(
        f"{type(obj).__module__}.{type(obj).__name__} is no model that takes weights: expected a tf.Graph, a Keras "
        "model or layer, a tf.Module, a list of tf.Variable, a torch.nn.Module, an nnx module or a JAX tree of arrays; "
        "a file is given as a path, with out="
    )


def live_source(obj: Any) -> Source:
    """A live model as a source of its own values, for those kinds that show them.

    Raises:
        Error: no known kind of model, or one that does not.
    """
    model: Any = live_target(obj)
    if not isinstance(model, Source):
        raise Error(f"the {model.kind} model does not show its values: write a file, and give that")
    return model
