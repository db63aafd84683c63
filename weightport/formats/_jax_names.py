"""What the leaves of a JAX training state are, told by their names: weights, optimizer slots, counters.

Promise: only what stands below an optimizer's own key is taken for its state; a name alone never makes a weight a slot
of another. Limit: the keys that flax' ``TrainState``, ``nnx.Optimizer``, T5X and optax' users give; an optimizer state
saved as a tree of its own has no such key, and its leaves are weights.

Sources: flax/training/train_state.py (``step``, ``params``, ``opt_state``), flax/nnx/training/optimizer.py,
optax/_src/transform.py (``ScaleByAdamState``: ``count``, ``mu``, ``nu``), t5x/train_state.py (``param_states``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from weightport.tensors import TensorSpec

_STATE = re.compile(r"opt(?:imizer)?_states?(?:_\d+)?|param_states")
_COUNTERS = {"step", "global_step"}


def role_of(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...], is_weight: Callable[[str], bool]) -> str:
    """What a leaf is, one of :data:`weightport.tensors.ROLES`.

    Args:
        name: its keys, joined by ``/``.
        is_weight: whether a name, below the tree's root or below any key of it, is a leaf outside the optimizer.
    """
    parts = name.split("/")
    state = next((at for at, part in enumerate(parts) if _STATE.fullmatch(part)), None)
    if state is not None:
        below = parts[state + 1 :]
        # A slot repeats the path of its variable: opt_state/0/mu/encoder/kernel.
        owned = any(is_weight("/".join(below[at:])) for at in range(len(below)))
        return "slot" if owned else "optimizer"
    scalar = not shape and dtype.kind in "iu"
    if scalar and parts[-1] in _COUNTERS and (len(parts) == 1 or parts[-2] in ("state", "optimizer")):
        return "counter"
    return "weight"


def with_roles(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The specs of a whole tree, each with its role."""
    outside: set[str] = set()
    for name in specs:
        parts = name.split("/")
        if not any(_STATE.fullmatch(part) for part in parts):
            # Below the root, and below one or two keys of it: params/..., model/params/...
            outside.update("/".join(parts[at:]) for at in range(min(3, len(parts))))
    return {
        name: replace(spec, role=role_of(name, spec.dtype, spec.shape, outside.__contains__))
        for name, spec in specs.items()
    }
