"""Whole networks, layers and directions, from framework to framework without a target file: the names that a mapping
makes, and the same outputs all the way. Names and steps are written out here; only the moves are weightport's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layouts._steps import CASES, Arrays, sigmoid
from tests.plan.stub import Stub, planned, problems, results
from weightport.settle import settled

DIRECTIONS = ("fw", "bw")


@dataclass(frozen=True)
class Shape:
    """What the network is."""

    layers: int
    both: bool
    inputs: int
    units: int

    @property
    def places(self) -> list[tuple[int, str]]:
        return [(k, d) for k in range(self.layers) for d in DIRECTIONS[: 1 + self.both]]

    def input(self, layer: int) -> int:
        return self.inputs if layer == 0 else self.units * (1 + self.both)


def tf_scope(shape: Shape, k: int, d: str, cell: str) -> str:
    """MultiRNNCell in bidirectional_dynamic_rnn; a lone cell keeps the scope it is given."""
    parts = [f"cell_{k}"] * (shape.layers > 1) + [d] * shape.both
    return "/".join(["net", *parts, *([cell] * (bool(parts) and bool(cell)))])


def keras_scope(shape: Shape, k: int, d: str, kind: str) -> str:
    side = {"fw": f"forward_{kind}", "bw": f"backward_{kind}"}[d]
    return "/".join(["net", *[f"cell_{k}"] * (shape.layers > 1), *[side] * shape.both])


def torch_locals(arrays: Arrays, scope: str, suffix: str) -> dict[str, np.ndarray]:
    names = [f"{w}_{i}" for w in ("weight", "bias") for i in ("ih", "hh")]
    return {f"{n}_l0": arrays[f"{scope}.{n}_{suffix}"] for n in names}


def under(arrays: Arrays, scope: str, separator: str = "/") -> dict[str, np.ndarray]:
    prefix = scope + separator
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


@dataclass(frozen=True)
class Framework:
    """A layout, the step of its cells, and which of the arrays are the cell of a layer and direction."""

    layout: str
    case: str
    local: Callable[[Arrays, Shape, int, str], Mapping[str, np.ndarray]]
    said: tuple[tuple[str, Any], ...] = ()


def onnx_local(arrays: Arrays, shape: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    scope = "/".join(["net", *[f"cell_{k}"] * (shape.layers > 1)])
    at = DIRECTIONS.index(d)
    return {n: a[at : at + 1] for n, a in under(arrays, scope).items()}


def torch_local(arrays: Arrays, _: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    return torch_locals(arrays, "net", f"l{k}" + ("_reverse" if d == "bw" else ""))


def mxnet_local(arrays: Arrays, _: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    return {f"_l0_{n}": a for n, a in under(arrays, f"net_{'lr'[DIRECTIONS.index(d)]}{k}", "_").items()}


def paddle_local(arrays: Arrays, shape: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    cell = f"cell_{d}" if shape.both else "cell"
    return {f"0/cell_fw/{n}": a for n, a in under(arrays, f"net.{k}.{cell}", ".").items()}


def flax_local(arrays: Arrays, shape: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    return under(arrays, tf_scope(shape, k, d, ""))


def coreml_local(arrays: Arrays, shape: Shape, k: int, d: str) -> dict[str, np.ndarray]:
    scope = "/".join(["net", *[f"cell_{k}"] * (shape.layers > 1), "weightParams"])
    return {
        f"weightParams/{n}": a
        for n, a in under(arrays, f"{scope}/{DIRECTIONS.index(d)}" if shape.both else scope).items()
    }


LSTM = {
    "tf": Framework("lstm.tf1", "tf", lambda a, s, k, d: under(a, tf_scope(s, k, d, "basic_lstm_cell"))),
    "torch": Framework("lstm.torch", "torch", torch_local),
    "onnx": Framework("lstm.onnx", "onnx", onnx_local),
    "keras": Framework("lstm.keras", "keras", lambda a, s, k, d: under(a, keras_scope(s, k, d, "lstm"))),
    "mxnet": Framework("lstm.mxnet", "mx", mxnet_local),
    "paddle": Framework("lstm.paddle-layers", "paddle-both", paddle_local),
    "flax": Framework("lstm.flax", "flax", flax_local),
    "coreml": Framework("lstm.coreml", "coreml", coreml_local),
}
AFTER = (("reset", "after"),)
GRU = {
    "torch": Framework("gru.torch", "g-torch", torch_local),
    "onnx": Framework("gru.onnx", "g-onnx", onnx_local, AFTER),
    "keras": Framework("gru.keras", "g-keras-after", lambda a, s, k, d: under(a, keras_scope(s, k, d, "gru")), AFTER),
    "tf": Framework("gru.tf1", "g-tf-after", lambda a, s, k, d: under(a, tf_scope(s, k, d, ""))),
    "mxnet": Framework("gru.mxnet", "g-mx", mxnet_local),
    "flax": Framework("gru.flax", "g-flax", flax_local),
}
BEFORE = (("reset", "before"),)
GRU_BEFORE = {
    "tf": Framework("gru.tf1", "g-tf", lambda a, s, k, d: under(a, tf_scope(s, k, d, ""))),
    "onnx": Framework("gru.onnx", "g-onnx", onnx_local, BEFORE),
    "keras": Framework("gru.keras", "g-keras-before", lambda a, s, k, d: under(a, keras_scope(s, k, d, "gru")), BEFORE),
    "haiku": Framework("gru.haiku", "g-haiku", flax_local),
    "coreml": Framework("gru.coreml", "g-coreml", flax_local),
}


def outputs(framework: Framework, arrays: Arrays, shape: Shape, reset: str = "after") -> np.ndarray:
    """The network's outputs over time, from zero states; backward cells see time reversed."""
    facts = {"forget_bias": 1.0, "reset": reset, "s": sigmoid, "a": np.tanh}
    step = CASES[framework.case][3]
    x = np.random.default_rng(3).normal(size=(4, 2, shape.inputs))
    for k in range(shape.layers):
        sides = []
        for d in DIRECTIONS[: 1 + shape.both]:
            local = {n: a.astype(np.float64) for n, a in framework.local(arrays, shape, k, d).items()}
            state = (np.zeros((2, shape.units)),) * (2 if framework.layout.startswith("lstm") else 1)
            found = []
            for now in x if d == "fw" else x[::-1]:
                state = step(local, now, state, facts)
                found.append(state[-1])
            sides.append(np.stack(found if d == "fw" else found[::-1]))
        x = np.concatenate(sides, axis=-1)
    return x


def torch_network(shape: Shape, gates: int, seed: int, dtype: Any) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(seed), {}
    rows = gates * shape.units
    for k, d in shape.places:
        suffix = f"l{k}" + ("_reverse" if d == "bw" else "")
        found |= {
            f"net.weight_ih_{suffix}": rng.normal(size=(rows, shape.input(k))),
            f"net.weight_hh_{suffix}": rng.normal(size=(rows, shape.units)),
            f"net.bias_ih_{suffix}": rng.normal(size=rows),
            f"net.bias_hh_{suffix}": rng.normal(size=rows),
        }
    return {n: a.astype(dtype) for n, a in found.items()}


def tf_network(shape: Shape, kind: str, seed: int, dtype: Any) -> dict[str, np.ndarray]:
    rng, found, u = np.random.default_rng(seed), {}, shape.units
    for k, d in shape.places:
        rows = shape.input(k) + u
        if kind == "lstm":
            shapes = {"kernel": (rows, 4 * u), "bias": (4 * u,)}
            scope = tf_scope(shape, k, d, "basic_lstm_cell")
        else:
            shapes = {"gates/kernel": (rows, 2 * u), "gates/bias": (2 * u,)}
            shapes |= {"candidate/kernel": (rows, u), "candidate/bias": (u,)}
            scope = tf_scope(shape, k, d, "")
        found |= {f"{scope}/{n}": rng.normal(size=size) for n, size in shapes.items()}
    return {n: a.astype(dtype) for n, a in found.items()}


def moved(arrays: Arrays, mine: Framework, other: Framework) -> dict[str, np.ndarray]:
    source = Stub(arrays)
    sides = [{"layout": f.layout, "scope": "net", **dict(f.said)} for f in (mine, other)]
    made = planned(source, None, [{"from": sides[0], "to": sides[1]}])
    assert not made.problems, problems(made)
    assert set(made.source.values()) == {"moved"}
    return dict(results(made, source))


CLOSE = {"float16": 3e-2, "float32": 1e-5, "float64": 1e-11}
SHAPES = st.builds(Shape, st.integers(1, 3), st.booleans(), st.integers(1, 5), st.integers(1, 5))


def journey(
    frameworks: Mapping[str, Framework], start: str, hops: list[str], arrays: Arrays, shape: Shape, **more: Any
) -> None:
    """Outputs after every hop are those at the start; and back home again."""
    dtype = str(next(iter(arrays.values())).dtype)
    expected = outputs(frameworks[start], arrays, shape, **more)
    here = start
    for there in [*hops, start]:
        arrays = moved(arrays, frameworks[here], frameworks[there])
        assert {str(a.dtype) for a in arrays.values()} == {dtype}
        found = outputs(frameworks[there], arrays, shape, **more)
        assert np.abs(found - expected).max() < CLOSE[dtype], (here, there)
        here = there


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.permutations(sorted(LSTM)), st.sampled_from(sorted(CLOSE)), st.booleans())
def test_lstm_networks(shape: Shape, order: list[str], dtype: str, from_torch: bool) -> None:
    start = "torch" if from_torch else "tf"
    arrays = torch_network(shape, 4, 1, dtype) if from_torch else tf_network(shape, "lstm", 1, dtype)
    journey(LSTM, start, [n for n in order if n != start][:3], arrays, shape)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.permutations(sorted(GRU)), st.sampled_from(sorted(CLOSE)))
def test_gru_networks(shape: Shape, order: list[str], dtype: str) -> None:
    arrays = torch_network(shape, 3, 2, dtype)
    journey(GRU, "torch", [n for n in order if n != "torch"][:3], arrays, shape)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.permutations(sorted(GRU_BEFORE)), st.sampled_from(sorted(CLOSE)))
def test_gru_networks_that_reset_before(shape: Shape, order: list[str], dtype: str) -> None:
    arrays = tf_network(shape, "gru", 2, dtype)
    journey(GRU_BEFORE, "tf", [n for n in order if n != "tf"][:3], arrays, shape, reset="before")


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.sampled_from(sorted(set(LSTM) - {"tf"})), st.sampled_from(sorted(CLOSE)), st.data())
def test_lstm_networks_with_parts_that_do_nothing(shape: Shape, there: str, dtype: str, data: st.DataObject) -> None:
    """Peepholes of zero and projections that are the identity, in every layer and direction; then one that is not."""
    arrays = tf_network(shape, "lstm", 1, dtype)
    for k, d in shape.places:
        scope = tf_scope(shape, k, d, "basic_lstm_cell")
        arrays |= {f"{scope}/w_{gate}_diag": np.zeros(shape.units, dtype) for gate in "ifo"}
        arrays[f"{scope}/projection/kernel"] = np.eye(shape.units, dtype=dtype)
    source = Stub(arrays)
    rules = [{"from": {"layout": "lstm.tf1", "scope": "net"}, "to": {"layout": LSTM[there].layout, "scope": "net"}}]
    plan = settled(planned(source, None, rules), source).check()
    assert plan.outcomes[0].classed == "conditional"
    assert set(plan.source.values()) == {"moved"}
    found = outputs(LSTM[there], dict(results(plan, source)), shape)
    assert np.abs(found - outputs(LSTM["tf"], arrays, shape)).max() < CLOSE[dtype]

    wrong = data.draw(st.sampled_from(plan.conditions)).tensor
    source.arrays[wrong].reshape(-1)[-1] += 2
    (problem,) = settled(planned(source, None, rules), source).problems
    assert f"and {wrong!r} is {source.arrays[wrong].reshape(-1)[-1]!s} at " in problem.what


def test_the_names_that_a_mapping_makes() -> None:
    shape = Shape(2, True, 3, 4)
    arrays = tf_network(shape, "lstm", 0, np.float32)
    found = {name: moved(arrays, LSTM["tf"], LSTM[name]) for name in LSTM}
    assert list(found["torch"]) == list(torch_network(shape, 4, 0, np.float32))
    assert {n: a.shape for n, a in found["onnx"].items()} == {
        "net/cell_0/W": (2, 16, 3), "net/cell_0/R": (2, 16, 4), "net/cell_0/B": (2, 32),
        "net/cell_1/W": (2, 16, 8), "net/cell_1/R": (2, 16, 4), "net/cell_1/B": (2, 32),
    }  # fmt: skip
    assert sorted(found["mxnet"])[:3] == ["net_l0_h2h_bias", "net_l0_h2h_weight", "net_l0_i2h_bias"]
    assert sorted(found["paddle"])[-1] == "net.1.cell_fw.weight_ih"
    assert sorted(found["coreml"])[0] == "net/cell_0/weightParams/0/blockInputBiasVector"
    assert set(found["tf"]) == set(arrays)


@pytest.mark.parametrize("scope", ["enc/rnn", "enc.rnn"])
def test_a_scope_is_written_either_way(scope: str) -> None:
    arrays = {
        n.replace("net.", "enc.rnn."): a for n, a in torch_network(Shape(1, False, 3, 4), 4, 0, "float32").items()
    }
    source = Stub(arrays)
    made = planned(
        source,
        None,
        [{"from": {"layout": "lstm.torch", "scope": scope}, "to": {"layout": "lstm.torch", "scope": scope}}],
    )
    assert dict(made.target) == dict.fromkeys(arrays, "moved")
    prefixed = planned(
        source,
        None,
        [{"from": {"layout": "lstm.torch", "scope": "rnn"}, "to": {"layout": "lstm.torch", "scope": "rnn"}}],
        source={"scope": "enc"},
        target={"scope": "model.enc"},
    )
    assert set(prefixed.target) == {f"model.{n}" for n in arrays}


def test_a_cell_without_biases_stays_so() -> None:
    arrays = {n: a for n, a in torch_network(Shape(1, False, 3, 4), 4, 0, "float32").items() if "bias" not in n}
    assert list(moved(arrays, LSTM["torch"], LSTM["paddle"])) == ["net.0.cell.weight_ih", "net.0.cell.weight_hh"]
    assert set(moved(arrays, LSTM["torch"], LSTM["keras"])) == {"net/kernel", "net/recurrent_kernel"}
