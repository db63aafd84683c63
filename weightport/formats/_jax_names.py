"""What stored leaves of JAX trees are called, and what they are: weights, optimizer slots, counters.

Promise: only what stands below an optimizer's own key is taken for its state; a name alone never makes a weight a slot
of another. A box of one array (``nnx.Variable``, ``nn.Partitioned``) adds nothing to a name, as in live trees. Limit:
the keys that flax' ``TrainState``, ``nnx.Optimizer``, T5X and optax' users give; an optimizer state saved as a tree of
its own has no such key, and its leaves are weights.

Sources: flax/training/train_state.py (``step``, ``params``, ``opt_state``), flax/nnx/training/optimizer.py,
flax/nnx/rnglib.py (``RngStream``: ``key``, ``count``), flax/nnx/variablelib.py and flax/core/meta.py (the one child
``value``), optax/_src/transform.py (``ScaleByAdamState``: ``count``, ``mu``, ``nu``), t5x/train_state.py
(``param_states``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from weightport.tensors import TensorSpec

_STATE = re.compile(r"opt(?:imizer)?_states?(?:_\d+)?|param_states")
_COUNTERS = {"step", "global_step"}
#: Parameters that no module is called after: below them, ``value`` is a box.
_PARAMETERS = {"kernel", "bias", "scale", "embedding", "mean", "var"}


def unboxed(names: Collection[str]) -> dict[str, str]:
    """Stored name -> name without the box around it.

    ``value`` is a box if it is an only child, and if either all leaves of the tree, or below the same key of its root,
    have one (a state of nnx), or what is in it is called as parameters are (a partitioned parameter of linen).
    """
    below = Counter(above for name in names for above in scopes_of(name))
    inside = ((n, n.removesuffix("/value")) for n in names if n.endswith("/value"))
    boxed = {name for name, inner in inside if below[inner] == 1 and inner not in names}
    tops = Counter(name.partition("/")[0] for name in boxed)
    everything = len(boxed) == len(names) > 1
    whole = {top for top, count in tops.items() if everything or count == below[top] > 1}
    found = {}
    for name in names:
        inner = name.removesuffix("/value")
        bare = name in boxed and (name.partition("/")[0] in whole or inner.rpartition("/")[2] in _PARAMETERS)
        found[name] = inner if bare else name
    return found


def with_roles(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The specs of a whole tree, each with its role."""
    trained = {above.rpartition("/")[0] for name in specs for above in scopes_of(name) if above.endswith("opt_state")}
    roles = {name: _outside(name, spec, trained) for name, spec in specs.items()}
    weights = {tail for name, role in roles.items() if role == "weight" for tail in _tails(name)}
    return {name: replace(spec, role=roles[name] or _inside(name, weights)) for name, spec in specs.items()}


def _outside(name: str, spec: TensorSpec, trained: Collection[str]) -> str:
    """The role of a leaf; empty if it is an optimizer's state.

    Args:
        trained: scopes that have an optimizer's state.
    """
    parts = name.split("/")
    if any(_STATE.fullmatch(part) for part in parts):
        return ""
    counts = spec.dtype.kind in "iu"
    if counts and not spec.shape and parts[-1] in _COUNTERS:
        beside = "/".join(parts[:-1])
        if not beside or beside in trained or parts[-2] in ("state", "optimizer"):
            return "counter"
    if counts and "rngs" in parts[:-1] and parts[-1] in ("key", "count"):
        return "counter"  # where random numbers stand
    return "weight"


def _inside(name: str, weights: Collection[str]) -> str:
    """What a leaf of an optimizer's state is: a slot repeats the path of its variable.

    ``opt_state/0/mu/a/kernel``, or with what it is at the end: ``param_states/a/kernel/v_row``.
    """
    parts = name.split("/")
    start = next(at for at, part in enumerate(parts) if _STATE.fullmatch(part)) + 1
    paths = (parts[at:end] for at in range(start, len(parts)) for end in (len(parts), -1))
    return "slot" if any("/".join(path) in weights for path in paths) else "optimizer"


def _tails(name: str) -> Iterator[str]:
    """The name, and what it is below one or two keys: ``params/...``, ``model/params/...``."""
    parts = name.split("/")
    for at in range(min(3, len(parts))):
        yield "/".join(parts[at:])


def scopes_of(name: str) -> Iterator[str]:
    """Every scope that a name stands in."""
    at = name.find("/")
    while at >= 0:
        yield name[:at]
        at = name.find("/", at + 1)
