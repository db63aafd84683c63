"""Live Flax nnx modules.

Promise: variables get their values in place, all or nothing, each with the dtype and sharding that it has; abstract
ones (``nnx.eval_shape``) become arrays. What is constant is told by :attr:`NnxTarget.frozen`, a filter for
``nnx.Optimizer(..., wrt=...)`` and ``nnx.DiffState``: a variable cannot itself say that it is not trained, and one that
changed its class would be missing where ``nnx.Param`` is saved.
Limits: random state, caches and intermediates are not listed; those of an abstract module stay abstract
(``nnx.reseed`` makes random state). The filter goes by paths, those of the module that was given.

Sources: flax/nnx/graphlib.py (``iter_graph``), flax/nnx/variablelib.py, flax/nnx/filterlib.py (a callable of path and
value is a filter), flax/nnx/nn/recurrent.py (``gate_fn``, ``activation_fn``, ``residual``, ``RNN.reverse``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.errors import Error, Problem, RefusedError, TensorNotFound
from weightport.formats._jax_names import with_roles
from weightport.targets import _jax_arrays as arrays
from weightport.targets._variables import all_or_nothing, check_values, inherits
from weightport.targets.jax_tree import is_passing, raw_value, refuse_abstract
from weightport.tensors import Array, Index, TensorSpec, Value

Path = tuple[Any, ...]


def accepts(obj: object) -> bool:
    """Whether this is an nnx module. Imports nothing."""
    return bool(inherits(obj, "Module", "flax.nnx.module"))


class NnxTarget:
    """An nnx module; also a :class:`~weightport.tensors.Source` of its values, for ``verify``.

    A tensor is named by its path, joined by ``/``: ``rnn/cell/ii/kernel``, ``layers/0/bias``. A variable that is held
    in several places has the first of its paths.

    Attributes:
        hollow: the names of abstract variables, which have no value to keep.
        frozen: after :meth:`assign`, an nnx filter: whether the variable at a path is a constant.

    Raises:
        RefusedError: no variables, two of one name, traced values.
    """

    kind = format = "nnx"
    path = "the nnx model"

    def __init__(self, module: Any) -> None:
        from flax import nnx

        self.module = module
        self._where = f"nnx module {type(module).__name__}"
        self._variables: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        count: Counter[str] = Counter()
        for path, node in nnx.iter_graph(module):
            if not isinstance(node, nnx.Variable) or is_passing(node):
                continue
            name = "/".join(str(key) for key in path)
            if not arrays.is_array(_array(node), f"{self._where}: variable {name!r}"):
                continue
            count[name] += 1
            self._variables[name], self._paths[name] = node, tuple(path)
        alike = [name for name, times in count.items() if times > 1]
        if alike:
            raise RefusedError([Problem(self._where, f"two variables are named {n!r}") for n in alike])
        if not self._variables:
            raise RefusedError(Problem(self._where, "has no variables"))
        self._specs = with_roles({n: arrays.spec_of(_array(v)) for n, v in self._variables.items()})
        self.hollow = [n for n, v in self._variables.items() if arrays.is_abstract(_array(v))]
        self.frozen: Any = None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every variable, in the order of ``nnx.iter_graph``."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the module records about the RNN cell that owns these variables.

        Keys: ``class``, ``units``, ``activation``, ``recurrent_activation`` (functions of JAX by their names; a
        function of your own is left out), ``go_backwards`` where an ``nnx.RNN`` says so. Empty if they are not one
        cell's.

        Raises:
            TensorNotFound: no such variable.
        """
        for name in names:
            self._variable(name)
        shared = _shared([self._paths[n] for n in names])
        chain = [self.module]
        for key in shared:
            chain.append(chain[-1][key] if isinstance(key, int) else getattr(chain[-1], key))
        at = next((k for k in reversed(range(len(chain))) if hasattr(chain[k], "hidden_features")), None)
        return _cell_facts(chain[at], chain[at - 1] if at else None) if at is not None else {}

    def read(self, name: str, index: Index = None) -> Array:
        """The values of a variable, or the part that ``index`` cuts out.

        Raises:
            TensorNotFound: no such variable.
            RefusedError: it is abstract, deleted, or lies on other machines.
        """
        return arrays.read_part(_array(self._variable(name)), index, f"{self._where}: variable {name!r}")

    def close(self) -> None:
        """Nothing to release."""

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the variables their values, all or nothing, and return the module; constants are told by :attr:`frozen`.

        Raises:
            RefusedError: abstract variables that get no value.
            Error: names, shapes or dtypes that do not fit (all of them, before anything is touched), or a failure half
                way, after which the variables have their old values again.
        """
        check_values(values, self._specs, self._where)
        given = {v.name for v in values}
        refuse_abstract({n: _array(v) for n, v in self._variables.items() if n not in given}, self._where)
        with all_or_nothing(self._where) as undo:
            for value in values:
                variable = self._variables[value.name]
                old = _array(variable)
                new = arrays.made(old, value, self._where)
                undo.append(lambda v=variable, old=old: _set(v, old))  # type: ignore[misc]
                try:
                    _set(variable, new)
                except Exception as exc:
                    what = f"nnx refused the value: {exc}"
                    raise Error(Problem(f"{self._where}: variable {value.name!r}", what)) from exc
        self.frozen = _frozen(frozenset(self._paths[v.name] for v in values if v.constant))
        return self.module

    def _variable(self, name: str) -> Any:
        if name not in self._variables:
            raise TensorNotFound(name, self._variables, self._where)
        return self._variables[name]


def _frozen(paths: frozenset[Path]) -> Any:
    def frozen(path: Path, value: Any) -> bool:  # noqa: ARG001
        """Whether the variable at a path of the module is a constant."""
        return tuple(path) in paths

    return frozen


def _is_ref(raw: object) -> bool:
    """Whether a variable holds its array by reference (``nnx.use_refs``)."""
    return type(raw).__name__ in ("Ref", "ArrayRef", "MutableArray")


def _array(variable: Any) -> Any:
    raw = raw_value(variable)
    return raw[...] if _is_ref(raw) else raw


def _set(variable: Any, value: Any) -> None:
    """Put an array into a variable as it is, without its hooks: values are moved as they are stored."""
    raw = raw_value(variable)
    if _is_ref(raw):
        raw[...] = value
    elif hasattr(variable, "set_raw_value"):
        variable.set_raw_value(value)
    else:
        variable.raw_value = value


# --- facts ------------------------------------------------------------------------------------------------------------


def _shared(paths: Sequence[Path]) -> Path:
    """What paths begin with, all of them."""
    if not paths:
        return ()
    low, high = min(paths, key=str), max(paths, key=str)
    length = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    while any(p[:length] != low[:length] for p in paths):
        length -= 1
    return low[:length]


def _cell_facts(cell: Any, owner: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"class": type(cell).__name__, "units": cell.hidden_features}
    for key, attribute in (("activation", "activation_fn"), ("recurrent_activation", "gate_fn")):
        name = _function_name(getattr(cell, attribute, None))
        if name:
            facts[key] = name
    if getattr(cell, "residual", False) is True:
        # Another function of the same weights: the old state is added once more.
        facts["activation"] = f"{facts.get('activation', 'a function')} of a sum with the state (residual=True)"
    if isinstance(getattr(owner, "reverse", None), bool):
        facts["go_backwards"] = owner.reverse
    return facts


#: weightport's name of an activation -> that of JAX, in ``jax.nn``.
_FUNCTIONS = {
    "linear": "identity",
    "hard_sigmoid_6": "hard_sigmoid",
    "softsign": "soft_sign",
    **{n: n for n in ("tanh", "sigmoid", "relu", "relu6", "elu", "selu", "softplus", "silu")},
}


def _function_name(function: Any) -> str:
    """The name of one of JAX' own activation functions; empty for any other."""
    import jax

    if function is jax.numpy.tanh:
        return "tanh"
    return next((n for n, own in _FUNCTIONS.items() if getattr(jax.nn, own, None) is function), "")
