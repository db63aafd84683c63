"""Layouts that users write: every place where an index can live, moved there and back, judged by running both sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.layouts._steps import Arrays, State, convert, keras_gru, keras_lstm, random_arrays, sigmoid, specs
from weightport import values
from weightport.layouts import Layout, find_layout, parse_layout
from weightport.layouts.convert import BIJECTIVE, EXACT, Conversion
from weightport.layouts.stacks import stacked
from weightport.layouts.units import Unit, match, packed_shape
from weightport.ranges import slices_of, whole

INPUTS, UNITS = 3, 4
Own = Callable[[Arrays, np.ndarray, State], State]


def lstm(pre: Mapping[str, np.ndarray], c: np.ndarray) -> State:
    c = sigmoid(pre["f"]) * c + sigmoid(pre["i"]) * np.tanh(pre["g"])
    return c, sigmoid(pre["o"]) * np.tanh(c)


# Each layout, how its author's code steps, and the tensors it has.


def gate_in_names(t: Arrays, x: np.ndarray, state: State) -> State:
    """Row vectors, one matrix and bias per gate: ``x Wix + h Wih + bi``."""
    c, h = state
    text = {"i": "i", "f": "f", "g": "c", "o": "o"}
    return lstm({g: x @ t[f"W{n}x"] + h @ t[f"W{n}h"] + t[f"b{n}"] for g, n in text.items()}, c)


def columns(t: Arrays, x: np.ndarray, state: State) -> State:
    """Column vectors: ``Wx x + Wh h + b``, the gates above each other, b a column."""
    c, h = state
    z = (t["Wx"] @ x.T + t["Wh"] @ h.T + t["b"]).T
    return lstm(dict(zip("figo", np.split(z, 4, axis=1), strict=True)), c)


def columns_in_one(t: Arrays, x: np.ndarray, state: State) -> State:
    """Column vectors, ``W [h; x] + b``: input columns after the recurrent ones."""
    c, h = state
    pre = {g: (t[f"W_{g.upper()}"] @ np.concatenate([h, x], 1).T + t[f"b_{g.upper()}"][:, None]).T for g in "ifgo"}
    return lstm(pre, c)


def interleaved(t: Arrays, x: np.ndarray, state: State) -> State:
    """The gates of one unit side by side."""
    c, h = state
    z = x @ t["W"] + h @ t["U"] + t["b"]
    return lstm({g: z[:, k::4] for k, g in enumerate("ifog")}, c)


def keeps(t: Arrays, x: np.ndarray, state: State) -> State:
    """A GRU whose update gate replaces: ``h' = (1 - z) h + z n``."""
    (h,) = state
    z = sigmoid(x @ t["Wz"] + h @ t["Uz"] + t["bz"])
    r = sigmoid(x @ t["Wr"] + h @ t["Ur"] + t["br"])
    n = np.tanh(x @ t["Wn"] + (r * h) @ t["Un"] + t["bn"])
    return ((1 - z) * h + z * n,)


def forgets_inversely(t: Arrays, x: np.ndarray, state: State) -> State:
    """``c' = (1 - f) c + i g``."""
    c, h = state
    pre = dict(zip("ifgo", np.split(x @ t["W"] + h @ t["U"] + t["b"], 4, axis=1), strict=True))
    return lstm({**pre, "f": -pre["f"]}, c)


OWN: dict[str, tuple[str, dict[str, Any], Own]] = {
    "gate in names": (
        "lstm.mine",
        {
            "gates": {"i": "i", "f": "f", "g": "c", "o": "o"},
            "tensors": {"W{gate}x": "wx[input unit]", "W{gate}h": "wt[hidden unit]", "b{gate}": "bi[unit]"},
        },
        gate_in_names,
    ),
    "column vectors": (
        "lstm.mine",
        {
            "gates": ["f", "i", "g", "o"],
            "tensors": {"Wx": "wx[(gate unit) input]", "Wh": "wt[(gate unit) hidden]", "b": "bi[(gate unit) 1]"},
        },
        columns,
    ),
    "column vectors in one": (
        "lstm.mine",
        {"tensors": {"W_{GATE}": ["wt[unit hidden]", "wx[unit input]"], "b_{GATE}": "bi[unit]"}},
        columns_in_one,
    ),
    "interleaved": (
        "lstm.mine",
        {
            "gates": ["i", "f", "o", "g"],
            "tensors": {"W": "wx[input (unit gate)]", "U": "wt[hidden (unit gate)]", "b": "bi[(unit gate)]"},
        },
        interleaved,
    ),
    "complemented forget gate": (
        "lstm.mine",
        {
            "gates": ["i", "~f", "g", "o"],
            "tensors": {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]", "b": "bi[(gate unit)]"},
        },
        forgets_inversely,
    ),
    "complemented update gate": (
        "gru.mine",
        {
            "gates": ["~z", "r", "n"],
            "reset": "before",
            "tensors": {"W{gate}": "wx[input unit]", "U{gate}": "wt[hidden unit]", "b{gate}": "bi[unit]"},
        },
        keeps,
    ),
}


def sizes(units: int = UNITS) -> dict[str, int]:
    return {"input": INPUTS, "unit": units, "hidden": units}


def one(layout: Layout, scope: str, number: int = 0, size: Mapping[str, int] | None = None) -> Unit:
    """The unit of a form, every tensor there."""
    from tests.layouts._steps import names_of

    has = frozenset({"bias"})
    stored = names_of(layout, layout.forms[number], scope, has)
    shapes = {s.name: packed_shape(layout, s, size or sizes()) for s in stored}
    (unit,) = match(layout, layout.forms[number], scope, shapes)
    return unit


def states(step: Own, scope: str, arrays: Arrays, kind: str) -> np.ndarray:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(5, 2, INPUTS))
    state: State = tuple(rng.normal(size=(2, UNITS)) for _ in range(2 if kind == "lstm" else 1))
    local = {n.removeprefix(f"{scope}/"): a for n, a in arrays.items()}
    found = []
    for at in x:
        state = step(local, at, state)
        found.append(np.concatenate(state, axis=1))
    return np.concatenate(found)


def keras(kind: str) -> tuple[Unit, Own]:
    if kind == "lstm":
        return one(find_layout("lstm.keras"), "k"), lambda t, x, s: keras_lstm(t, x, s, {"s": sigmoid})
    said = {"s": sigmoid, "reset": "before"}
    return one(find_layout("gru.keras"), "k", 1), lambda t, x, s: keras_gru(t, x, s, said)


@pytest.mark.parametrize("name", OWN)
def test_there_and_back(name: str) -> None:
    full, table, step = OWN[name]
    layout = parse_layout(full, table, "own")
    mine = one(layout, "s")
    other, reference = keras(layout.kind)
    arrays = random_arrays(mine, 1)
    there = Conversion(mine, other, specs(arrays), reset="before")
    assert there.problems() == []
    result = convert(there, arrays)
    assert there.classed == BIJECTIVE
    difference = states(step, "s", arrays, layout.kind) - states(reference, "k", result, layout.kind)
    assert np.abs(difference).max() < 1e-12
    back = Conversion(other, mine, specs(result), reset="before")
    assert {n: a.tobytes() for n, a in convert(back, result).items()} == {n: a.tobytes() for n, a in arrays.items()}
    fresh = random_arrays(other, 2)
    moved = convert(Conversion(other, mine, specs(fresh), reset="before"), fresh)
    difference = states(reference, "k", fresh, layout.kind) - states(step, "s", moved, layout.kind)
    assert np.abs(difference).max() < 1e-12


def test_a_forget_bias_meets_a_complemented_gate() -> None:
    full, table, _ = OWN["complemented forget gate"]
    layout = parse_layout(full, table, "own")
    tf, mine = one(find_layout("lstm.tf1"), "t"), one(layout, "s")
    arrays = {n: np.zeros_like(a) for n, a in random_arrays(tf, 0).items()}
    moved = convert(Conversion(tf, mine, specs(arrays), (1.0, 0.0)), arrays)
    # sigmoid(0 + 1) keeps; 1 - sigmoid(-1) is the same.
    assert moved["s/b"].tolist() == [0.0] * 4 + [-1.0] * 4 + [0.0] * 8


# Layers and directions -----------------------------------------------------------------------------------------------

TORCH = {
    "gates": ["i", "f", "g", "o"],
    "directions": {"forward": "", "backward": "_reverse"},
    "tensors": {
        "weight_ih_l{layer}{direction}": "wx[(gate unit) input]",
        "weight_hh_l{layer}{direction}": "wt[(gate unit) hidden]",
        "bias_ih_l{layer}{direction}": "bi[(gate unit)]",
        "bias_hh_l{layer}{direction}": "bt[(gate unit)]",
    },
}
ONNX = {
    "gates": ["i", "o", "f", "g"],
    "tensors": {
        "W": "wx[direction (gate unit) input]",
        "R": "wt[direction (gate unit) hidden]",
        "B?": ["bi[direction (gate unit)]", "bt[direction (gate unit)]"],
        "P?": "wp[direction (gate unit)]",
    },
}


def torch_shapes(layers: int, directions: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for layer in range(layers):
        inputs = INPUTS if layer == 0 else UNITS * directions
        for end in ("", "_reverse")[:directions]:
            found |= {
                f"e/weight_ih_l{layer}{end}": (4 * UNITS, inputs),
                f"e/weight_hh_l{layer}{end}": (4 * UNITS, UNITS),
                f"e/bias_ih_l{layer}{end}": (4 * UNITS,),
                f"e/bias_hh_l{layer}{end}": (4 * UNITS,),
            }
    return found


def torch_step(t: Arrays, end: str, x: np.ndarray, state: State) -> State:
    c, h = state
    z = x @ t[f"e/weight_ih_l{end}"].T + t[f"e/bias_ih_l{end}"] + h @ t[f"e/weight_hh_l{end}"].T
    return lstm(dict(zip("ifgo", np.split(z + t[f"e/bias_hh_l{end}"], 4, axis=1), strict=True)), c)


def onnx_step(t: Arrays, direction: int, x: np.ndarray, state: State) -> State:
    c, h = state
    w, r, b = t["o/W"][direction], t["o/R"][direction], t["o/B"][direction]
    z = x @ w.T + h @ r.T + b[: 4 * UNITS] + b[4 * UNITS :]
    return lstm(dict(zip("iofg", np.split(z, 4, axis=1), strict=True)), c)


def test_layer_and_direction_in_names() -> None:
    layout = parse_layout("lstm.torchlike", TORCH, "own")
    shapes = torch_shapes(12, 2)
    units = match(layout, layout.forms[0], "e", shapes)
    assert [(u.layer, u.direction) for u in units] == [(k, d) for k in range(12) for d in ("forward", "backward")]
    assert [u.sizes["input"] for u in units] == [INPUTS] * 2 + [2 * UNITS] * 22
    (cell,) = stacked(units)
    assert (cell.scope, cell.layers, cell.directions) == ("e", 12, ("forward", "backward"))
    del shapes["e/bias_hh_l1"]
    found = match(layout, layout.forms[0], "e", shapes)
    assert ("forward", 1) not in {(u.direction, u.layer) for u in found}
    for name in [n for n in shapes if "_l2" in n]:
        del shapes[name]  # what stands behind a hole is not reached
    assert {u.layer for u in match(layout, layout.forms[0], "e", shapes)} == {0, 1}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("end", ["", "_reverse"])
def test_torch_like_there_and_back(layer: int, end: str) -> None:
    layout = parse_layout("lstm.torchlike", TORCH, "own")
    shapes = torch_shapes(2, 2)
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s) for n, s in shapes.items()}
    direction = "backward" if end else "forward"
    units = {(u.layer, u.direction): u for u in match(layout, layout.forms[0], "e", shapes)}
    unit = units[layer, direction]
    inputs = unit.sizes["input"]
    other = one(find_layout("lstm.keras"), "k", size={**sizes(), "input": inputs})
    there = Conversion(unit, other, specs(arrays))
    result = {n.removeprefix("k/"): a for n, a in convert(there, arrays).items()}
    assert there.classed == EXACT
    assert there.notes == ["the two biases are summed into one"]
    x, state = rng.normal(size=(2, inputs)), (rng.normal(size=(2, UNITS)), rng.normal(size=(2, UNITS)))
    before = torch_step(arrays, f"{layer}{end}", x, state)
    np.testing.assert_allclose(keras_lstm(result, x, state, {"s": sigmoid}), before, atol=1e-12)
    fresh = random_arrays(other, 3)
    back = convert(Conversion(other, unit, specs(fresh)), fresh)
    assert set(back) == set(unit.names)
    assert not back[f"e/bias_hh_l{layer}{end}"].any()
    local = {n.removeprefix("k/"): a for n, a in fresh.items()}
    after = torch_step(back, f"{layer}{end}", x, state)
    np.testing.assert_allclose(after, keras_lstm(local, x, state, {"s": sigmoid}), atol=1e-12)


def onnx_units(directions: int, peepholes: bool = False) -> list[Unit]:
    layout = parse_layout("lstm.onnxlike", ONNX, "own")
    shapes: dict[str, tuple[int, ...]] = {
        "o/W": (directions, 4 * UNITS, INPUTS),
        "o/R": (directions, 4 * UNITS, UNITS),
        "o/B": (directions, 8 * UNITS),
    }
    if peepholes:
        shapes["o/P"] = (directions, 3 * UNITS)
    return match(layout, layout.forms[0], "o", shapes)


@pytest.mark.parametrize("directions", [1, 2])
def test_onnx_like_there_and_back(directions: int) -> None:
    units = onnx_units(directions)
    assert [(u.layer, u.direction) for u in units] == [(0, "forward"), (0, "backward")][:directions]
    rng = np.random.default_rng(0)
    arrays = {
        n: rng.normal(size=packed_shape(units[0].layout, s, units[0].sizes)) for s in units[0].tensors for n in [s.name]
    }
    x, state = rng.normal(size=(2, INPUTS)), (rng.normal(size=(2, UNITS)), rng.normal(size=(2, UNITS)))
    parts: dict[str, list[Any]] = {}
    sources = {}
    for number, unit in enumerate(units):
        other = one(find_layout("lstm.keras"), f"k{number}")
        result = convert(Conversion(unit, other, specs(arrays)), arrays)
        local = {n.removeprefix(f"k{number}/"): a for n, a in result.items()}
        before = onnx_step(arrays, number, x, state)
        np.testing.assert_allclose(keras_lstm(local, x, state, {"s": sigmoid}), before, atol=1e-12)
        sources |= result
        back = Conversion(other, unit, specs(result))
        for stored in unit.tensors:
            parts.setdefault(stored.name, []).extend(back.parts(stored))
    returned = {}
    for name, shape in ((n, a.shape) for n, a in arrays.items()):
        expr = values.assemble(shape, np.dtype(np.float64), parts[name])
        returned[name] = expr.read(lambda n, r: sources[n][slices_of(r)], whole(shape))
    for number in range(directions):
        after = onnx_step(returned, number, x, state)
        np.testing.assert_allclose(after, onnx_step(arrays, number, x, state), atol=1e-12)
    assert np.array_equal(returned["o/W"], arrays["o/W"])


def test_onnx_like_peepholes_stand_in_the_layouts_order() -> None:
    (unit,) = onnx_units(1, peepholes=True)
    arrays = {s.name: np.zeros(packed_shape(unit.layout, s, unit.sizes)) for s in unit.tensors}
    arrays["o/P"] = np.arange(12.0).reshape(1, 12)
    tf = find_layout("lstm.tf1")
    shapes: dict[str, tuple[int, ...]] = {"t/kernel": (INPUTS + UNITS, 4 * UNITS), "t/bias": (4 * UNITS,)}
    shapes |= {f"t/w_{g}_diag": (UNITS,) for g in "ifo"}
    (other,) = match(tf, tf.forms[0], "t", shapes)
    result = convert(Conversion(unit, other, specs(arrays)), arrays)
    assert {g: result[f"t/w_{g}_diag"].tolist() for g in "iof"} == {
        "i": [0, 1, 2, 3],
        "o": [4, 5, 6, 7],
        "f": [8, 9, 10, 11],
    }


def test_layers_as_an_axis() -> None:
    table = {
        "tensors": {
            "W": "wx[layer input (gate unit)]",
            "U": "wt[layer hidden (gate unit)]",
            "b": "bi[(layer gate unit)]",
        }
    }
    layout = parse_layout("lstm.stack", table, "own")
    shapes = {"s/W": (3, 4, 16), "s/U": (3, 4, 16), "s/b": (48,)}
    units = match(layout, layout.forms[0], "s", shapes)
    assert [u.layer for u in units] == [0, 1, 2]
    arrays = {n: np.random.default_rng(1).normal(size=s) for n, s in shapes.items()}
    other = one(find_layout("lstm.keras"), "k", size={"input": 4, "unit": 4, "hidden": 4})
    result = convert(Conversion(units[1], other, specs(arrays)), arrays)
    assert np.array_equal(result["k/kernel"], arrays["s/W"][1])
    assert np.array_equal(result["k/bias"], arrays["s/b"][16:32])
    (cell,) = stacked(units)
    assert (cell.layers, cell.names) == (3, ("s/W", "s/U", "s/b"))


# What cannot be told -------------------------------------------------------------------------------------------------


def test_a_kind_of_ones_own_moves_between_its_own_layouts() -> None:
    tensors = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]", "b": "bi[(gate unit)]"}
    a = parse_layout("mgu.a", {"gates": ["f", "h"], "tensors": tensors}, "own")
    b = parse_layout("mgu.b", {"gates": ["h", "f"], "tensors": tensors}, "own")
    two = parse_layout("mgu.two", {"gates": ["f", "h"], "tensors": {**tensors, "b2": "bt[(gate unit)]"}}, "own")
    arrays = random_arrays(one(a, "s"), 1)
    result = convert(Conversion(one(a, "s"), one(b, "t"), specs(arrays)), arrays)
    assert np.array_equal(result["t/W"], np.roll(arrays["s/W"], UNITS, axis=1))
    # What it does with a second bias is not known: it is not summed with the first.
    says = [f"bt of gate {gate} is all zero" for gate in "hf"]
    assert asked(Conversion(one(two, "s"), one(b, "t"), {})) == [("s/b2", "zero", text) for text in says]
    result = convert(Conversion(one(two, "s"), one(a, "t"), specs(random_arrays(one(two, "s"), 1))), arrays)
    assert np.array_equal(result["t/b"], arrays["s/b"])


def asked(conversion: Conversion) -> list[tuple[str, str, str]]:
    """The conditions of a conversion that has no problems."""
    assert conversion.problems() == []
    return [(c.tensor, c.must, c.says) for c in conversion.conditions()]


def test_biases_are_judged_gate_by_gate() -> None:
    tensors = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]"}
    some = parse_layout("lstm.some", {"tensors": {**tensors, "b": "bi{i g o}[(gate unit)]"}}, "own")
    full = one(find_layout("lstm.keras"), "k")
    conversion = Conversion(full, one(some, "s"), {})
    assert asked(conversion) == [("k/bias", "zero", "the bias of gate f is all zero")]
    assert conversion.conditions()[0].ranges == (range(UNITS, 2 * UNITS),)
    what = "the source adds 1 to the forget gate, the target 0 and has no bias to make up for it"
    assert Conversion(one(some, "s"), one(some, "t"), {}, (1.0, 0.0)).problems() == [what]
    arrays = random_arrays(one(some, "s"), 1)
    result = convert(Conversion(one(some, "s"), full, specs(arrays), (1.0, 0.0)), arrays)
    assert result["k/bias"][UNITS : 2 * UNITS].tolist() == [1.0] * UNITS


def test_a_recurrent_bias_alone_takes_the_sum() -> None:
    tensors = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]", "b": "bt[(gate unit)]"}
    layout = parse_layout("lstm.only", {"tensors": tensors}, "own")
    full = one(find_layout("lstm.keras"), "k")
    arrays = random_arrays(full, 1)
    result = convert(Conversion(full, one(layout, "s"), specs(arrays), (1.0, 0.0)), arrays)
    expected = arrays["k/bias"].copy()
    expected[UNITS : 2 * UNITS] += 1
    assert np.array_equal(result["s/b"], expected)


def test_a_peephole_without_a_place_has_to_be_zero() -> None:
    tensors = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]"}
    two = parse_layout("lstm.two", {"tensors": {**tensors, "p": "wp{i f}[(gate unit)]"}}, "own")
    three = parse_layout("lstm.three", {"tensors": {**tensors, "p": "wp[(gate unit)]"}}, "own")
    conversion = Conversion(one(three, "s"), one(two, "t"), {})
    assert asked(conversion) == [("s/p", "zero", "the peephole of gate o is all zero")]
    assert conversion.conditions()[0].ranges == (range(2 * UNITS, 3 * UNITS),)
    assert asked(Conversion(one(two, "s"), one(three, "t"), {})) == []
