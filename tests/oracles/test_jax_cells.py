"""Flax (linen and nnx), Haiku and Equinox: their own cells on both sides, under the names of their parameter trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.torch_modules import load, module, run, save, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
INPUTS, UNITS, STEPS, BATCH = 3, 5, 6, 2
Arrays = Mapping[str, np.ndarray]


def leaves(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """A tree of dicts as names with slashes."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else str(key)
        found |= leaves(value, name) if isinstance(value, Mapping) else {name: np.asarray(value)}
    return found


def nested(arrays: Arrays) -> dict[str, Any]:
    """Names with slashes as a tree of dicts."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, leaf = name.split("/")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
        at[leaf] = array
    return tree


@dataclass(frozen=True)
class Library:
    """A cell of one library: its layout, its parameters as it makes them, and a run over time from given states.

    Attributes:
        make: -> name -> array, under the scope ``cell``.
        run: arrays, inputs ``[batch, time, input]``, states (``h``, and ``c`` of an LSTM) -> outputs.
    """

    layout: str
    make: Callable[[], Arrays]
    run: Callable[[Arrays, np.ndarray, list[np.ndarray]], np.ndarray]
    package: str
    relu: bool = False


def steps(step: Callable[[np.ndarray, Any], tuple[Any, Any]], x: np.ndarray, state: Any) -> np.ndarray:
    found = []
    for k in range(x.shape[1]):
        state, out = step(x[:, k], state)
        found.append(np.asarray(out))
    return np.stack(found, 1)


def linen(name: str, **options: Any) -> tuple[Any, Any]:
    def cell() -> Any:
        return getattr(need("flax.linen"), name)(features=UNITS, **options)

    def make() -> Arrays:
        jax = need("jax")
        x = np.zeros((BATCH, INPUTS), np.float32)
        carry = cell().initialize_carry(jax.random.key(0), x.shape)
        return leaves(cell().init(jax.random.key(1), carry, x)["params"], "cell")

    def forward(arrays: Arrays, x: np.ndarray, states: list[np.ndarray]) -> np.ndarray:
        params = {"params": nested(arrays)["cell"]}
        carry = (states[1], states[0]) if len(states) == 2 else states[0]
        return steps(lambda now, at: cell().apply(params, at, now), x, carry)

    return make, forward


def nnx_cell(name: str, arrays: Arrays | None = None) -> Any:
    nnx = need("flax.nnx")
    cell = getattr(nnx, name)(in_features=INPUTS, hidden_features=UNITS, rngs=nnx.Rngs(0))
    if arrays is not None:
        for path, parameter in nnx.to_flat_state(nnx.state(cell, nnx.Param)):
            parameter[...] = arrays["cell/" + "/".join(map(str, path))]
            target = cell
            for part in path[:-1]:
                target = getattr(target, part)
            getattr(target, path[-1])[...] = parameter[...]
    return cell


def nnx(name: str) -> tuple[Any, Any]:
    def make() -> Arrays:
        flat = need("flax.nnx").to_flat_state(need("flax.nnx").state(nnx_cell(name), need("flax.nnx").Param))
        return {"cell/" + "/".join(map(str, path)): np.asarray(p[...]) for path, p in flat}

    def forward(arrays: Arrays, x: np.ndarray, states: list[np.ndarray]) -> np.ndarray:
        cell = nnx_cell(name, arrays)
        carry = (states[1], states[0]) if len(states) == 2 else states[0]
        return steps(lambda now, at: cell(at, now), x, carry)

    return make, forward


HAIKU_NAMES = {"LSTM": "lstm", "GRU": "gru", "VanillaRNN": "vanilla_rnn"}


def haiku(name: str, **options: Any) -> tuple[Any, Any]:
    def transformed() -> Any:
        hk = need("haiku")

        def forward(x: Any, h: Any, c: Any) -> Any:
            core = getattr(hk, name)(UNITS, **options)
            first = hk.LSTMState(h, c) if name == "LSTM" else h
            return hk.dynamic_unroll(core, x, first, time_major=False)[0]

        return hk.without_apply_rng(hk.transform(forward))

    def renamed(arrays: Arrays, old: str, new: str) -> dict[str, np.ndarray]:
        return {new + n.removeprefix(old): a for n, a in arrays.items()}

    def make() -> Arrays:
        zeros = np.zeros((BATCH, UNITS), np.float32)
        params = transformed().init(
            need("jax").random.key(0), np.zeros((BATCH, STEPS, INPUTS), np.float32), zeros, zeros
        )
        return renamed(leaves(params), HAIKU_NAMES[name], f"net/{HAIKU_NAMES[name]}_1")

    def forward(arrays: Arrays, x: np.ndarray, states: list[np.ndarray]) -> np.ndarray:
        own = renamed(arrays, f"net/{HAIKU_NAMES[name]}_1", HAIKU_NAMES[name])
        params: dict[str, Any] = {}
        for full, array in own.items():
            scope, _, leaf = full.rpartition("/")
            params.setdefault(scope, {})[leaf] = array
        return np.asarray(transformed().apply(params, x, states[0], states[-1]))

    return make, forward


def equinox(name: str, bias: bool) -> tuple[Any, Any]:
    def cell() -> Any:
        return getattr(need("equinox").nn, name)(INPUTS, UNITS, use_bias=bias, key=need("jax").random.key(0))

    def make() -> Arrays:
        made = cell()
        names = ("weight_ih", "weight_hh", "bias", "bias_n")
        return {f"cell/{n}": np.asarray(getattr(made, n)) for n in names if getattr(made, n, None) is not None}

    def forward(arrays: Arrays, x: np.ndarray, states: list[np.ndarray]) -> np.ndarray:
        eqx, jax = need("equinox"), need("jax")
        made = cell()
        for full, array in arrays.items():
            leaf = full.rpartition("/")[2]
            made = eqx.tree_at(lambda m, leaf=leaf: getattr(m, leaf), made, jax.numpy.asarray(array))

        def step(now: Any, at: Any) -> Any:
            after = jax.vmap(made)(now, at)
            return after, after[0] if isinstance(after, tuple) else after

        return steps(step, x, tuple(states) if len(states) == 2 else states[0])

    return make, forward


LIBRARIES = {
    "linen-lstm": Library("lstm.flax", *linen("LSTMCell"), "flax"),
    "linen-lstm-optimized": Library("lstm.flax", *linen("OptimizedLSTMCell"), "flax"),
    "linen-gru": Library("gru.flax", *linen("GRUCell"), "flax"),
    "linen-rnn": Library("rnn.flax", *linen("SimpleCell"), "flax"),
    "nnx-lstm": Library("lstm.flax", *nnx("LSTMCell"), "flax"),
    "nnx-lstm-optimized": Library("lstm.flax", *nnx("OptimizedLSTMCell"), "flax"),
    "nnx-gru": Library("gru.flax", *nnx("GRUCell"), "flax"),
    "nnx-rnn": Library("rnn.flax", *nnx("SimpleCell"), "flax"),
    "haiku-lstm": Library("lstm.haiku", *haiku("LSTM"), "haiku"),
    "haiku-gru": Library("gru.haiku", *haiku("GRU"), "haiku"),
    "haiku-rnn": Library("rnn.haiku", *haiku("VanillaRNN"), "haiku", relu=True),
    "haiku-rnn-one-bias": Library("rnn.haiku", *haiku("VanillaRNN", double_bias=False), "haiku", relu=True),
    "equinox-lstm": Library("lstm.equinox", *equinox("LSTMCell", True), "equinox"),
    "equinox-lstm-no-bias": Library("lstm.equinox", *equinox("LSTMCell", False), "equinox"),
    "equinox-gru": Library("gru.equinox", *equinox("GRUCell", True), "equinox"),
    "equinox-gru-no-bias": Library("gru.equinox", *equinox("GRUCell", False), "equinox"),
}


def filled(arrays: Arrays, seed: int) -> dict[str, np.ndarray]:
    """Random weights, biases too (which libraries begin with zeros)."""
    rng = np.random.default_rng(seed)
    return {n: (0.5 * rng.normal(size=a.shape)).astype(np.float32) for n, a in arrays.items()}


def scope_of(arrays: Arrays) -> str:
    first = next(iter(arrays))
    return "cell" if first.startswith("cell/") else "/".join(first.split("/")[:2])


def transferred(folder: Path, arrays: Arrays, mine: Any, target: Arrays, other: Any) -> dict[str, np.ndarray]:
    spec = {"weightport": 1, "rules": [{"from": mine, "to": other}]}
    out = folder / "moved.npz"
    result = wp.transfer(save(folder / "from.npz", arrays), save(folder / "to.npz", target), spec, out=str(out))
    assert set(result.plan.target.values()) == {"moved"}
    with np.load(out) as archive:
        return {n: archive[n] for n in archive.files}


def inputs(kind: str) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    return x, [rng.normal(size=(BATCH, UNITS)).astype(np.float32) for _ in range(2 if kind == "lstm" else 1)]


@pytest.mark.parametrize("name", [n for n in LIBRARIES if n != "haiku-gru"])
def test_into_modules_and_back(name: str, tmp_path: Path) -> None:
    """A library's cell into PyTorch's module; PyTorch's into the library's, where what has no place there is zero."""
    library = LIBRARIES[name]
    need(library.package)
    kind = library.layout.split(".")[0]
    arrays = filled(library.make(), 2)
    options: dict[str, Any] = {"nonlinearity": "relu"} if library.relu else {}
    bias = not name.endswith("no-bias")
    made = module(MODULES[kind], INPUTS, UNITS, batch_first=True, bias=bias, seed=3, **options)
    stated = {"activation": "relu"} if library.relu else {}
    mine = {"layout": library.layout, "scope": scope_of(arrays)}
    theirs = {"layout": f"{kind}.torch", "scope": "rnn", **stated}
    x, states = inputs(kind)

    load(made, transferred(tmp_path, arrays, mine, state(made, "rnn."), theirs), "rnn.")
    expected = library.run(arrays, x, states)
    np.testing.assert_allclose(run(made, x, [s[None] for s in states])[0], expected, **CLOSE)
    assert np.ptp(expected) > 0.1

    other = module(MODULES[kind], INPUTS, UNITS, batch_first=True, bias=bias, seed=4, **options)
    if name == "nnx-gru":
        with pytest.raises(wp.ConditionError, match="the target has no place for the candidate's recurrent bias, and"):
            transferred(tmp_path, state(other, "rnn."), theirs, arrays, mine)
        import torch

        with torch.no_grad():  # what it can hold
            other.bias_hh_l0[2 * UNITS :] = 0
    back = transferred(tmp_path, state(other, "rnn."), theirs, arrays, mine)
    found = library.run(back, x, states)
    np.testing.assert_allclose(found, run(other, x, [s[None] for s in states])[0], **CLOSE)


def test_haikus_gru_replaces_where_others_keep(tmp_path: Path) -> None:
    """Its gate z has the other sign; it resets before the product, as Keras' GRU does with ``reset_after=False``."""
    need("haiku")
    keras = need("keras")
    library = LIBRARIES["haiku-gru"]
    arrays = filled(library.make(), 5)
    x, states = inputs("gru")
    layer = keras.layers.GRU(UNITS, reset_after=False, return_sequences=True, name="gru")
    layer.build((None, None, INPUTS))
    mine = {"layout": "gru.haiku", "scope": scope_of(arrays)}
    spec = {"weightport": 1, "rules": [{"from": mine, "to": {"layout": "gru.keras", "scope": ""}}]}
    wp.transfer(save(tmp_path / "from.npz", arrays), layer, spec)
    expected = library.run(arrays, x, states)
    found = keras.ops.convert_to_numpy(layer(x, initial_state=states))
    np.testing.assert_allclose(found, expected, **CLOSE)
    refused = {"weightport": 1, "rules": [{"from": mine, "to": {"layout": "gru.torch", "scope": ""}}]}
    with pytest.raises(wp.PlanError, match="different functions"):
        wp.transfer(str(tmp_path / "from.npz"), None, refused, out=str(tmp_path / "x.npz"))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("linen-lstm", "nnx-lstm-optimized"),
        ("nnx-lstm", "linen-lstm-optimized"),
        ("haiku-lstm", "nnx-lstm"),
        ("linen-lstm", "haiku-lstm"),
        ("equinox-lstm", "linen-lstm"),
        ("linen-gru", "equinox-gru"),
        ("equinox-gru", "linen-gru"),
        ("nnx-gru", "linen-gru"),
        ("linen-rnn", "nnx-rnn"),
        ("haiku-rnn-one-bias", "haiku-rnn"),
    ],
)
def test_from_library_to_library(a: str, b: str, tmp_path: Path) -> None:
    one, two = LIBRARIES[a], LIBRARIES[b]
    for library in (one, two):
        need(library.package)
    arrays, target = filled(one.make(), 6), two.make()
    sides = [{"layout": lib.layout, "scope": scope_of(made)} for lib, made in ((one, arrays), (two, target))]
    found = transferred(tmp_path, arrays, sides[0], target, sides[1])
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in target.items()}
    x, states = inputs(one.layout.split(".")[0])
    np.testing.assert_allclose(two.run(found, x, states), one.run(arrays, x, states), **CLOSE)
