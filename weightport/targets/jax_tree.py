"""JAX trees: parameters of Flax linen, Haiku and Equinox, training states, any pytree of arrays.

Promise: a new tree of the same structure comes back, the old one is untouched; what gets no value is the very leaf of
the old one. An array keeps dtype, weak type, devices and sharding; each device's part of a sharded one is read for
itself. Abstract leaves (``jax.eval_shape``) become arrays. What is constant stands in :attr:`JaxTreeTarget.frozen`, a
tree of bools: nothing in a pytree itself can say so.
Limits: leaves that are no arrays - Python numbers, functions, typed random keys - are not listed and stay. Haiku's
``FlatMap`` does not name its keys: give the dict of it. A tree whose paths are alike, joined, is refused.

Sources: jax/_src/tree_util.py (``tree_flatten_with_path``, key types), flax/core/meta.py (``AxisMetadata``),
flax/nnx/variablelib.py (``Variable`` as a pytree node), equinox/nn/_rnn.py (``LSTMCell``, ``GRUCell``).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import Problem, RefusedError, TensorNotFound
from weightport.formats._jax_names import with_roles
from weightport.targets import _jax_arrays as arrays
from weightport.targets._variables import check_values, inherits
from weightport.tensors import Array, Index, TensorSpec, Value

#: Variables of nnx that are no weights: where random numbers stand, and what a run leaves behind.
_PASSING = ("RngState", "Cache", "Intermediate", "Perturbation")


def accepts(obj: object) -> bool:
    """Whether this is a tree that holds arrays of numpy or JAX. Imports nothing."""
    seen: set[int] = set()
    nodes = [obj] if obj is not None else []
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            nodes.extend(node.values())
        elif isinstance(node, (list, tuple)):
            nodes.extend(node)
        elif node is obj:
            # A class that JAX takes for a node was registered with it, so that it is imported.
            jax = sys.modules.get("jax")
            return jax is not None and not jax.tree_util.all_leaves([node])
        elif isinstance(node, (np.ndarray, np.generic)) or is_box(node) or _is_of_jax(node):
            return True
    return False


def _is_of_jax(node: object) -> bool:
    """Whether it is an array of JAX, or of a class that JAX takes for a node of a tree."""
    jax = sys.modules.get("jax")
    if jax is None or node is None:
        return False
    return isinstance(node, (jax.Array, jax.ShapeDtypeStruct)) or not jax.tree_util.all_leaves([node])


class JaxTreeTarget:
    """A pytree of arrays; also a :class:`~weightport.tensors.Source` of its values, for ``verify``.

    A tensor is named by its keys, joined by ``/``: ``params/encoder/kernel``, ``layers/0/weight`` (attributes and
    indices are keys, too). Where all names begin with ``params/``, a mapping may leave that out. The boxes of
    partitioned parameters (``nn.Partitioned``, ``nnx.Param``) add nothing to a name.

    Attributes:
        hollow: the names of abstract leaves, which have no value to keep.
        frozen: after :meth:`assign`, a tree of the same structure: True where the value is a constant, and at leaves
            that are no arrays, which nothing can train.

    Raises:
        RefusedError: no arrays, two leaves of one name, traced arrays, arrays of another library.
        MissingPackage: JAX is not installed.
    """

    kind = format = "jax"
    path = "the jax model"

    def __init__(self, tree: Any) -> None:
        jax = arrays.import_jax("a tree of arrays as a target")
        self._where = f"JAX tree {type(tree).__name__}"
        try:
            flat, self._structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_box)
        except Exception as exc:  # keys that cannot be sorted, a class' own flatten
            raise RefusedError(Problem(self._where, f"is no tree for JAX: {exc}")) from exc
        self._leaves: list[Any] = [leaf for _, leaf in flat]
        self._tree = tree
        self._at: dict[str, int] = {}
        self._keys: dict[str, tuple[Any, ...]] = {}
        count: Counter[str] = Counter()
        for position, (keys, leaf) in enumerate(flat):
            name = "/".join(key_name(key) for key in keys)
            if is_passing(leaf) or not arrays.is_array(_value(leaf), f"{self._where}: leaf {name!r}"):
                continue
            count[name] += 1
            self._at[name], self._keys[name] = position, tuple(keys)
        alike = [name for name, times in count.items() if times > 1]
        if alike:
            raise RefusedError([Problem(self._where, f"two leaves are named {n!r}", "rename a key") for n in alike])
        if not self._at:
            raise RefusedError(Problem(self._where, "has no arrays", "give the parameters, as init returns them"))
        self._specs = with_roles({n: arrays.spec_of(_value(self._leaves[at])) for n, at in self._at.items()})
        self.hollow = [n for n, at in self._at.items() if arrays.is_abstract(_value(self._leaves[at]))]
        self.root = "params" if all(n.startswith("params/") for n in self._at) else ""
        self.frozen: Any = None

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every array, in the order of ``jax.tree_util.tree_flatten``."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the tree records about the RNN cell that owns these arrays: of a cell of Equinox, what its class does.

        Keys: ``class``, ``units``, ``use_bias``, ``activation``, ``recurrent_activation``, ``forget_bias`` of an LSTM,
        ``reset_after`` of a GRU. Empty for all else: dicts do not record what their arrays are for.

        Raises:
            TensorNotFound: no such leaf.
        """
        for name in names:
            self._leaf(name)
        owners = {self._keys[name][:-1] for name in names}
        return _equinox_facts(_at(self._tree, owners.pop())) if len(owners) == 1 else {}

    def read(self, name: str, index: Index = None) -> Array:
        """The values of a leaf, or the part that ``index`` cuts out.

        Raises:
            TensorNotFound: no such leaf.
            RefusedError: it is abstract, deleted, or lies on other machines.
        """
        return arrays.read_part(self._leaf(name), index, f"{self._where}: leaf {name!r}")

    def close(self) -> None:
        """Nothing to release."""

    def assign(self, values: Sequence[Value]) -> Any:
        """A new tree with the values; constants are told in :attr:`frozen`.

        Raises:
            RefusedError: abstract leaves that get no value (their keys are listed).
            Error: names, shapes or dtypes that do not fit (all of them, before anything is read), or a value that JAX
                refuses.
        """
        check_values(values, self._specs, self._where)
        given = {v.name for v in values}
        refuse_abstract({n: self._leaf(n) for n in self._at if n not in given}, self._where)
        leaves = list(self._leaves)
        listed = set(self._at.values())
        frozen = [at not in listed and not is_passing(leaf) for at, leaf in enumerate(leaves)]
        for value in values:
            at = self._at[value.name]
            leaves[at] = _boxed(leaves[at], arrays.made(_value(leaves[at]), value, self._where))
            frozen[at] = value.constant
        import jax

        told = [_boxed(leaf, flag) for leaf, flag in zip(self._leaves, frozen, strict=True)]
        self.frozen = jax.tree_util.tree_unflatten(self._structure, told)
        return jax.tree_util.tree_unflatten(self._structure, leaves)

    def _leaf(self, name: str) -> Any:
        if name not in self._at:
            raise TensorNotFound(name, self._at, self._where)
        return _value(self._leaves[self._at[name]])


def key_name(key: Any) -> str:
    """One key of a path: of a dict, an index, an attribute."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _at(tree: Any, keys: tuple[Any, ...]) -> Any:
    """The node at a path; None where a key does not say how it is reached."""
    for key in keys:
        if hasattr(key, "name"):
            tree = getattr(tree, key.name, None)
        elif hasattr(key, "idx") or isinstance(tree, Mapping):
            tree = tree[key.idx if hasattr(key, "idx") else key.key]
        else:
            return None
    return tree


def _equinox_facts(node: Any) -> dict[str, Any]:
    """Of Equinox' own cells; a subclass may compute something else."""
    kind = type(node)
    if kind.__module__ != "equinox.nn._rnn" or kind.__name__ not in ("LSTMCell", "GRUCell"):
        return {}
    always = {"forget_bias": 0.0} if kind.__name__ == "LSTMCell" else {"reset_after": True}
    facts = {"class": kind.__name__, "units": node.hidden_size, "use_bias": node.use_bias}
    return {**facts, "activation": "tanh", "recurrent_activation": "sigmoid", **always}


def is_box(node: object) -> bool:
    """Whether a node only wraps one array: parameters with names for their axes, variables of nnx."""
    return _is_variable(node) or bool(inherits(node, "AxisMetadata", "flax.core.meta"))


def is_passing(node: object) -> bool:
    """Whether it is a variable of nnx that is no weight."""
    state: Any = node
    kind = state.type if inherits(node, "VariableState", "flax.nnx.variablelib") else type(node)
    return any(cls.__name__ in _PASSING and cls.__module__.startswith("flax.nnx.") for cls in kind.__mro__)


def raw_value(variable: Any) -> Any:
    """The array that a variable of nnx holds, without its hooks."""
    return variable.get_raw_value() if hasattr(variable, "get_raw_value") else variable.raw_value


def _is_variable(node: object) -> bool:
    # VariableState: what states of Flax before 0.11 hold.
    return any(inherits(node, name, "flax.nnx.variablelib") for name in ("Variable", "VariableState"))


def _value(leaf: Any) -> Any:
    if not is_box(leaf):
        return leaf
    return raw_value(leaf) if _is_variable(leaf) else leaf.value


def _boxed(leaf: Any, value: Any) -> Any:
    if not is_box(leaf):
        return value
    return leaf.replace(value) if _is_variable(leaf) else leaf.replace_boxed(value)


def refuse_abstract(left: Mapping[str, Any], where: str) -> None:
    """Refuse to leave leaves without values: nothing is there that they could keep."""
    empty = [name for name, leaf in left.items() if arrays.is_abstract(leaf)]
    if empty:
        hint = "move or initialize it by a rule, or give an initialized tree"
        raise RefusedError(
            [Problem(where, f"leaf {n!r} is abstract and gets no value: it has none to keep", hint) for n in empty[:50]]
        )
