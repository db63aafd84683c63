"""What the live targets share: naming variables, checking values, assigning all or nothing, facts of an RNN cell.

Promise: nothing is touched before every value is found to fit, and a failure half way restores what was assigned; the
old values that this takes are kept by :mod:`._rollback`, not in memory. Limit: no framework is imported here; Keras 3
and the legacy Keras are close enough (``name``, ``weights``, ``_flatten_layers``) to share the walk.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from weightport.errors import Error, Problem, RefusedError, TensorNotFound, closest
from weightport.formats.keras_config import WINDOW, window
from weightport.targets._buffers import produced
from weightport.targets._rollback import Kept
from weightport.tensors import TensorSpec, Value

Undo = Callable[[], None]


def inherits(obj: object, class_name: str, *module_ends: str) -> str:
    """The module of the class of that name among the object's classes whose module ends so, or an empty string.

    Looks at names only, so that an object of a framework is recognised without importing the framework.
    """
    for cls in type(obj).__mro__:
        module = getattr(cls, "__module__", "") or ""
        if cls.__name__ == class_name and any(module == end or module.endswith("." + end) for end in module_ends):
            return module
    return ""


# --- layers and the names of their variables --------------------------------------------------------------------------


class Owned:
    """A variable of a model, with the layers that lead to it (the model first, the owner last)."""

    __slots__ = ("chain", "name", "variable")

    def __init__(self, variable: Any, chain: tuple[Any, ...], name: str) -> None:
        self.variable, self.chain, self.name = variable, chain, name


def _sublayers(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(recursive=False, include_self=False))


def walk_layers(layer: Any, chain: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The chain of layers to every layer below and including this one; a layer that is met again inside itself ends."""
    if any(layer is above for above in chain):
        return
    chain = (*chain, layer)
    yield chain
    for child in _sublayers(layer):
        yield from walk_layers(child, chain)


def owned_variables(model: Any, name_of: Callable[[Any], str]) -> dict[str, Owned]:
    """The model's weights by name, in the model's own order. Names that clash are told apart, or refused.

    A name is ``name_of(variable)``. Variables that share one get the names of the layers that lead to them instead
    (``encoder/dense/kernel``), and if that is not enough, the attribute that holds them instead of their own name.
    """
    chains: dict[int, tuple[Any, ...]] = {}
    for chain in walk_layers(model):
        below = {id(w) for child in _sublayers(chain[-1]) for w in child.weights}
        for w in chain[-1].weights:
            if id(w) not in below:
                chains.setdefault(id(w), chain)
    owned = [Owned(w, chains.get(id(w), (model,)), name_of(w)) for w in model.weights]
    for rename in (_by_layers, _by_attribute):
        count = Counter(o.name for o in owned)
        for o in owned:
            if count[o.name] > 1:
                o.name = rename(o, name_of)
    clashing = sorted(name for name, n in Counter(o.name for o in owned).items() if n > 1)
    if clashing:
        raise RefusedError([Problem(f"model {model.name!r}", *_clash(name)) for name in clashing])
    return {o.name: o for o in owned}


def _clash(name: str) -> tuple[str, str]:
    return f"two variables are named {name!r}", "give the layers, or the variables of the layer, names of their own"


def _by_layers(owned: Owned, name_of: Callable[[Any], str]) -> str:
    return "/".join([layer.name for layer in owned.chain[1:]] + [name_of(owned.variable).rsplit("/", 1)[-1]])


def _by_attribute(owned: Owned, name_of: Callable[[Any], str]) -> str:
    held = [k for k, v in vars(owned.chain[-1]).items() if v is owned.variable]
    leaf = min(held, key=lambda k: (k.startswith("_"), k)) if held else name_of(owned.variable).rsplit("/", 1)[-1]
    return "/".join([layer.name for layer in owned.chain[1:]] + [leaf])


def require_built(model: Any, hints: Sequence[str]) -> None:
    """Build the model if it says how, else refuse it: an unbuilt layer has no variables to give values to.

    Args:
        hints: attributes that may hold the input shape that the model was made for.
    """
    if model.built and not (_unbuilt(model) and not model.weights):
        return
    shape = next((s for s in (getattr(model, h, None) for h in hints) if s is not None), None)
    try:
        if shape is not None:
            model.build(shape)
        elif _builds_without_shape(model):
            model.build()
    except Exception as exc:
        raise RefusedError(_unbuilt_problem(model, f"cannot be built: {exc}")) from exc
    missing = _unbuilt(model)
    if missing and not model.built:
        raise RefusedError(_unbuilt_problem(model, f"has layers without variables: {', '.join(missing[:5])}"))
    if missing and not model.weights:
        raise RefusedError(_unbuilt_problem(model, "has no variables yet"))


def _unbuilt_problem(model: Any, what: str) -> Problem:
    hint = "build the model first: call it once on an input or model.build(input_shape)"
    return Problem(f"model {model.name!r}", what, hint)


def _unbuilt(model: Any) -> list[str]:
    """Layers that have no variables yet; a container is judged by what it contains, unless it is empty."""
    return [c[-1].name for c in walk_layers(model) if not c[-1].built and not _sublayers(c[-1])]


def _builds_without_shape(model: Any) -> bool:
    """Whether ``build()`` makes the variables whatever the input is, as an embedding's does.

    The build of a framework's base class takes anything and makes nothing: only named parameters with defaults count.
    """
    named = list(inspect.signature(type(model).build).parameters.values())[1:]
    own = type(model).build.__module__.split(".")[0] not in ("keras", "tf_keras")
    fixed = all(p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in named)
    return fixed and (own or not hasattr(model, "layers"))


# --- facts ------------------------------------------------------------------------------------------------------------


def cell_facts(owned: Mapping[str, Owned], names: Sequence[str], where: str, hard_sigmoid: str) -> dict[str, Any]:
    """What the layers record about the one RNN cell that owns all these variables; empty if it is not one cell.

    Args:
        hard_sigmoid: the name of this framework's ``hard_sigmoid``, which is not the same function in Keras 2 and 3.
    """
    for name in names:
        if name not in owned:
            raise TensorNotFound(name, owned, where)
    chains = [owned[n].chain for n in names]
    if not chains or any(c[-1] is not chains[0][-1] for c in chains):
        return {}
    chain = chains[0]
    cell = chain[-1]
    if not hasattr(cell, "recurrent_initializer"):
        return {}
    facts: dict[str, Any] = {"class": type(cell).__name__}
    for key in ("units", "use_bias", "reset_after"):
        if hasattr(cell, key):
            facts[key] = getattr(cell, key)
    for key in ("activation", "recurrent_activation"):
        known = _activation_name(getattr(cell, key, None))
        if known:
            facts[key] = hard_sigmoid if known == "hard_sigmoid" else known
    if hasattr(cell, "kernel_size"):
        facts["window"] = window({key: getattr(cell, key) for key in WINDOW if hasattr(cell, key)})
    backwards = [layer.go_backwards for layer in chain if isinstance(getattr(layer, "go_backwards", None), bool)]
    if backwards:
        facts["go_backwards"] = backwards[-1]
    if "LSTM" in type(cell).__name__ and type(cell).__module__.split(".")[0] in ("keras", "tf_keras"):
        facts["forget_bias"] = 0.0  # unit_forget_bias is an initial value; nothing is added at run time
    return facts


def _activation_name(function: Any) -> str:
    """The framework's own name of an activation function; empty for any function that is not the framework's."""
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    home = module.split(".")[0]
    if home in ("keras", "tf_keras"):
        # Not the module of that name: in Keras 3.0 to 3.6 the package takes it from keras.api.
        public = getattr(sys.modules.get(home), "activations", None)
        return name if getattr(public, name, None) is function else ""
    nn = getattr(sys.modules.get("tensorflow"), "nn", None)
    return name if home == "tensorflow" and getattr(nn, name, None) is function else ""


# --- assigning --------------------------------------------------------------------------------------------------------


def check_values(values: Sequence[Value], specs: Mapping[str, TensorSpec], where: str) -> None:
    """Refuse values that do not fit, all problems at once. Nothing is read and nothing is touched."""
    problems = []
    count = Counter(v.name for v in values)
    for name, times in count.items():
        if times > 1:
            problems.append(Problem(where, f"{times} values for the variable {name!r}"))
    for value in values:
        spec = specs.get(value.name)
        if spec is None:
            problems.append(Problem(where, f"no variable {value.name!r}", closest(value.name, specs)))
            continue
        at = f"{where}: variable {value.name!r}"
        if value.spec.shape != spec.shape:
            problems.append(Problem(at, f"shape {list(value.spec.shape)} for a variable of {list(spec.shape)}"))
        if value.spec.dtype != spec.dtype:
            problems.append(Problem(at, f"dtype {value.spec.dtype_name} for a variable of {spec.dtype_name}"))
    if problems:
        raise Error(problems)


@contextmanager
def all_or_nothing(where: str) -> Iterator[list[Undo]]:
    """A list to put the way back of every change into; on any failure, Ctrl-C included, it is walked in reverse."""
    undo: list[Undo] = []
    try:
        yield undo
    except BaseException as failure:
        stuck = []
        for step in reversed(undo):
            try:
                step()
            except Exception as exc:
                stuck.append(str(exc))
        if stuck:
            what = f"{len(stuck)} of {len(undo)} changes could not be taken back after a failure: {stuck[0]}"
            raise Error(Problem(where, what, "build the model anew")) from failure
        raise


def assign_values(
    values: Sequence[Value],
    where: str,
    undo: list[Undo],
    kept: Kept,
    snapshot: Callable[[str], Any],
    write: Callable[[str, Any], None],
    take: Callable[[Value], Any] = produced,
) -> None:
    """Assign one value after the other, each released before the next is read; the ways back go into ``undo``.

    Args:
        kept: holds the old values; it stays open until the transfer has succeeded or was taken back.
        snapshot: a variable's old value, which a later ``write`` does not change, for ``write`` to put back.
        write: gives a variable a value.
        take: reads a value, in the form that ``write`` takes; what is still a value then, ``write`` reads.
    """
    for value in values:
        taken = take(value)
        with refusal(where, value.name):
            old = kept.put(snapshot(value.name))
        undo.append(lambda name=value.name, old=old: write(name, old()))  # type: ignore[misc]
        with nullcontext() if isinstance(taken, Value) else refusal(where, value.name):
            write(value.name, taken)
        del taken


@contextmanager
def refusal(where: str, name: str) -> Iterator[None]:
    """Around what a framework does with a variable: its own exceptions become an error that names the variable."""
    try:
        yield
    except Error:
        raise
    except Exception as exc:
        raise Error(Problem(f"{where}: variable {name!r}", f"the framework refused the value: {exc}")) from exc


# --- constants of layers ----------------------------------------------------------------------------------------------


def layers_to_freeze(model: Any, constants: Sequence[Any], where: str) -> list[Any]:
    """Layers that must stop training as a whole for these constants to stay: those that move their own statistics.

    Batch normalization updates its moving mean and variance in every training step, although they are not trainable;
    only ``layer.trainable = False`` (inference mode) stops it, and that stops its ``gamma`` and ``beta`` too.

    Raises:
        RefusedError: such a layer with constant statistics and something else that is to train.
    """
    frozen = {id(v) for v in constants}
    found: list[Any] = []
    problems = []
    for chain in walk_layers(model):
        layer = chain[-1]
        if not any("BatchNormalization" in c.__name__ for c in type(layer).__mro__) or any(layer is f for f in found):
            continue
        moving = [getattr(layer, k, None) for k in ("moving_mean", "moving_variance")]
        if not any(id(v) in frozen for v in moving):
            continue
        rest = [w for w in [*layer.trainable_weights, *moving] if w is not None and id(w) not in frozen]
        if rest and layer.trainable:
            what = f"layer {layer.name!r} keeps moving its statistics while it trains, so they cannot be constant alone"
            problems.append(Problem(where, what, "make all of the layer's variables constant, or none"))
        found.append(layer)
    if problems:
        raise RefusedError(problems)
    return found


def refuse_trained(model: Any, constants: Sequence[Any], held: Callable[[Any, Any], bool], where: str) -> None:
    """Refuse constants that a compiled model already trains: its traced step and its optimizer would go on moving them.

    Args:
        constants: the variables to freeze that are trainable now.
        held: whether an optimizer holds state for a variable.
    """
    optimizer = getattr(model, "optimizer", None)
    traced = getattr(model, "train_function", None) is not None
    if constants and (traced or (optimizer is not None and any(held(optimizer, v) for v in constants))):
        raise RefusedError(
            Problem(
                where,
                "the model has been trained, and its optimizer holds state for variables that are to become constants",
                "call model.compile(...) with a new optimizer before the transfer",
            )
        )
