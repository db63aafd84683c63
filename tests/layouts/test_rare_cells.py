"""The rarer cells: every table of a kind of its own is found, moved onto itself and kept apart from the other kinds.

TensorFlow 1.15's own outputs (the fixtures) say what each computes. A new table is picked up by every test here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.layouts._recorded import apart
from tests.layouts._steps import convert, random_arrays, specs
from tests.support import Fixture, fixture, fixtures, need
from weightport.errors import PlanError
from weightport.layouts import Form, Layout, builtin, find_layout, parse_layout
from weightport.layouts.behaviour import behaviour
from weightport.layouts.convert import BIJECTIVE, Conversion
from weightport.layouts.layout import KIND_GATES
from weightport.layouts.notation import base, parse_term
from weightport.layouts.reference import KINDS, parameters, why_not_run
from weightport.layouts.stacks import Cell
from weightport.layouts.units import Stored, Unit, full_name, match, packed_shape, spelled, stored_rows
from weightport.ranges import slices_of
from weightport.scopes import find_cells

#: These are tried on live layers.
KERAS = ("conv1d_lstm.keras", "conv2d_lstm.keras", "conv3d_lstm.keras")
RARE = [layout for layout in builtin().values() if layout.kind not in KIND_GATES]
#: Every form, with all of its optional tensors or without them.
FORMS = [
    (layout, number, full)
    for layout in RARE
    for number, form in enumerate(layout.forms)
    for full in (True, False)
    if full or any(row.optional for row in form.rows)
]
IDS = [f"{la.name}-{number}{'' if full else '-least'}" for la, number, full in FORMS]


def own_axes(form: Form) -> set[str]:
    terms = [t for row in form.rows for t in row.packing.terms]
    return {base(a) for t in terms for a in t.names()} - {"gate", "layer", "direction"}


def rows_of(layout: Layout, form: Form, full: bool) -> Iterator[tuple[Any, str | None]]:
    return ((row, gate) for row, gate in stored_rows(layout, form) if full or not row.optional)


def sizes_of(layout: Layout, number: int, full: bool, drawn: Mapping[str, int]) -> dict[str, int]:
    """Sizes that a cell may have: one output for each unit unless it is projected, as many groups as kernels."""
    sizes = {axis: drawn[axis] for axis in own_axes(layout.forms[number]) | {"unit"}}
    params = {t.param for row, _ in rows_of(layout, layout.forms[number], full) for t in row.packing.terms}
    sizes["hidden"] = drawn["hidden"] if "wr" in params else sizes["unit"]
    if "group" in sizes:
        sizes["group"] = sum(row.template.startswith("group") for row in layout.forms[number].rows)
    return sizes


def shapes_of(layout: Layout, number: int, full: bool, scope: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    found = {}
    for row, gate in rows_of(layout, layout.forms[number], full):
        name = full_name(scope, spelled(layout, row.template, gate, 0, "forward"))
        found[name] = packed_shape(layout, Stored(row, gate, name), sizes)
    return found


SIZES = {"input": 3, "unit": 4, "hidden": 2}


def unit_of(layout: Layout, number: int, full: bool, scope: str, drawn: Mapping[str, int] | None = None) -> Unit:
    plain = {axis: SIZES.get(axis, 5 + k) for k, axis in enumerate(sorted(own_axes(layout.forms[number])))}
    sizes = sizes_of(layout, number, full, {**SIZES, **plain, **(drawn or {})})
    (unit,) = match(layout, layout.forms[number], scope, shapes_of(layout, number, full, scope, sizes))
    return unit


# The tables ----------------------------------------------------------------------------------------------------------


def test_the_tables_say_where_they_come_from() -> None:
    assert len(RARE) >= 19
    for layout in RARE:
        assert layout.title
        assert layout.source
        own = layout.name.endswith((".tf1", ".tf1-coupled")) or layout.name in KERAS
        assert own, "a framework of its own needs a test against it"


def test_where_a_forget_bias_is_declared_its_gates_are() -> None:
    for layout in RARE:
        if "forget_bias" not in layout.fixed:
            assert bool(layout.forget_gates) == any(form.forget_bias for form in layout.forms)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FORMS), st.lists(st.integers(1, 9), min_size=12, max_size=12))
def test_sizes_follow_from_shapes(which: tuple[Layout, int, bool], numbers: list[int]) -> None:
    layout, number, full = which
    axes = sorted(own_axes(layout.forms[number]) | {"input", "unit", "hidden"})
    sizes = sizes_of(layout, number, full, dict(zip(axes, numbers, strict=False)))
    shapes = shapes_of(layout, number, full, "a/b", sizes)
    found = match(layout, layout.forms[number], "a/b", shapes)
    wanted = {a: n for a, n in sizes.items() if a in found[0].sizes}
    assert [dict(u.sizes) for u in found] == [wanted]
    assert set(sizes) - set(wanted) <= {"hidden", *own_axes(layout.forms[number])}
    name = sorted(shapes)[sum(numbers) % len(shapes)]
    assert match(layout, layout.forms[number], "a/b", {**shapes, name: (*shapes[name], 1)}) == []
    assert match(layout, layout.forms[number], "a/b", {**shapes, name: (0,) * len(shapes[name])}) == []


@pytest.mark.parametrize(("layout", "number", "full"), FORMS, ids=IDS)
def test_every_form_is_found_by_its_names(layout: Layout, number: int, full: bool) -> None:
    form = layout.forms[number]
    for cell in form.cells or ("some",):
        unit = unit_of(layout, number, full, f"top/{cell}")
        arrays = random_arrays(unit, 0)
        (found,) = find_cells(specs({**arrays, "top/fc/kernel": np.zeros((5, 16)), "top/fc/bias": np.zeros(16)}))
        assert (found.scope, set(found.names)) == (f"top/{cell}", set(arrays))
        # Without peepholes only its sizes tell a grid cell's coupled gates.
        assert found.layout.name == layout.name or found.layout.kind == layout.kind == "grid_lstm"


@pytest.mark.parametrize(("layout", "number", "full"), FORMS, ids=IDS)
def test_onto_itself_bit_for_bit(layout: Layout, number: int, full: bool) -> None:
    source, target = unit_of(layout, number, full, "a/x"), unit_of(layout, number, full, "b/y")
    rng = np.random.default_rng(2)
    arrays = {
        name: rng.integers(0, 1 << 32, size=a.shape, dtype=np.uint32).view(np.float32)
        for name, a in random_arrays(source, 0).items()
    }
    does = behaviour(layout, source.form, {}, {})
    moved = Conversion(source, target, specs(arrays), (does.forget_bias.value, does.forget_bias.value))
    assert moved.problems() == []
    found = convert(moved, arrays)
    assert {n: a.tobytes() for n, a in found.items()} == {
        n.replace("a/x", "b/y"): a.tobytes() for n, a in arrays.items()
    }
    assert (moved.classed, moved.notes) == (BIJECTIVE, [])


@pytest.mark.parametrize(("layout", "number", "full"), FORMS, ids=IDS)
def test_every_parameter_has_a_place_or_is_missed(layout: Layout, number: int, full: bool) -> None:
    """Into the same layout with one tensor less, or from it: refused, but for what may be zero."""
    whole = unit_of(layout, number, full, "a/x")
    arrays = random_arrays(whole, 0)
    for left in range(len(whole.tensors)):
        stored = whole.tensors[left]
        less = Unit(layout, whole.form, "a/x", 0, "forward", (*whole.tensors[:left], *whole.tensors[left + 1 :]),
                    whole.sizes, whole.index)  # fmt: skip
        there, back = Conversion(whole, less, specs(arrays)), Conversion(less, whole, specs(arrays))
        if {t.param for t in stored.row.packing.terms} <= {"bi", "bt", "wp"}:
            assert there.problems() == []
            assert {(c.tensor, c.must) for c in there.conditions()} == {(stored.name, "zero")}
            assert (back.problems(), back.conditions()) == ([], [])
        else:
            assert there.problems()
            assert back.problems()


# The fixtures --------------------------------------------------------------------------------------------------------


def rare_fixtures() -> list[Fixture]:
    found = []
    for model in fixtures("checkpoint_v2"):
        with wp.open(model.path("checkpoint_v2")) as source:
            if any(cell.layout in RARE or cell.layout.name == "lstm.tf1-group" for cell in source.cells()):
                found.append(model)
    return found


FIXTURES = rare_fixtures()


def test_every_table_has_a_fixture() -> None:
    names = set()
    for model in FIXTURES:
        with wp.open(model.path("checkpoint_v2")) as source:
            names |= {cell.layout.name for cell in source.cells()}
    assert {layout.name for layout in RARE} - set(KERAS) <= names


def cells_of(model: Fixture) -> list[Cell]:
    with wp.open(model.path("checkpoint_v2")) as source:
        return source.cells()


def units_of(model: Fixture) -> list[Unit]:
    """The units of a model's one cell, or of an attention and the cell in it."""
    return [unit for cell in cells_of(model) for unit in cell.units]


#: A stack is run layer by layer elsewhere (tests/test_proof.py).
RUN = [m for m in FIXTURES if not m.doc.get("num_layers")]


def test_every_reference_step_is_checked() -> None:
    kinds = {unit.layout.kind for model in RUN for unit in units_of(model)}
    assert set(KINDS) - set(KIND_GATES) <= kinds
    assert {layout.kind for layout in RARE} <= set(KINDS)


@pytest.mark.parametrize("model", RUN, ids=str)
def test_reference_steps_give_what_tensorflow_gave(model: Fixture) -> None:
    assert apart(model, units_of(model)) < 2e-6


def rules(model: Fixture, scope: str | None) -> dict[str, Any]:
    """Every cell onto its own layout, at its own scope or below another."""
    with wp.open(model.path("checkpoint_v2")) as source:
        cells = [(c.layout.name, c.scope) for c in source.cells()]
    listed = [
        {
            "from": {"layout": name, "scope": at},
            "to": {"layout": name, "scope": at if scope is None else f"{scope}/{at}"},
        }
        for name, at in cells
    ]
    return {"weightport": 1, "rules": listed}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("model", FIXTURES, ids=str)
def test_a_model_moves_onto_itself(model: Fixture, suffix: str, tmp_path: Path) -> None:
    for scope in (None, "new/place"):
        mapping = rules(model, scope)
        out = str(tmp_path / f"{'same' if scope is None else 'other'}{suffix}")
        wp.transfer(model.path("checkpoint_v2"), None, mapping, out=out)
        with wp.open(out) as made:
            found = {name: made.read(name) for name in made.specs()}
            inside = [(c.layout.name, c.input, c.per_unit("unit"), c.layers) for c in made.cells()]
        proof = wp.verify(model.path("checkpoint_v2"), out, mapping)
        assert proof.equal, proof
        assert proof.notes == ()
        assert len(proof.cells) == len(units_of(model))
        assert all(cell.steps > 100 for cell in proof.cells)
        with wp.open(model.path("checkpoint_v2")) as source:
            assert inside == [(c.layout.name, c.input, c.per_unit("unit"), c.layers) for c in source.cells()]
        expected = {n if scope is None else f"{scope}/{n}": a for n, a in model.variables.items()}
        assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in expected.items()}


@pytest.mark.parametrize("model", FIXTURES, ids=str)
def test_other_kinds_refuse_it(model: Fixture) -> None:
    with wp.open(model.path("checkpoint_v2")) as source:
        cell = source.cells()[0]
    for other in ("lstm.keras", "gru.tf1", "rnn.keras", "ugrnn.tf1"):
        kind = find_layout(other).kind
        if find_layout(other).related(cell.layout):
            continue
        mapping = {
            "weightport": 1,
            "rules": [
                {"from": {"layout": cell.layout.name, "scope": cell.scope}, "to": {"layout": other, "scope": "x"}}
            ],
        }
        with pytest.raises(wp.Error) as caught:
            wp.load_mapping(mapping)
        assert f"{cell.layout.name} is a cell of another kind than {other}" in str(caught.value)
        assert f"one is {cell.layout.kind}, the other {kind}: no conversion is exact" in str(caught.value)


@pytest.mark.parametrize("name", ["glstm_one_group", "layer_norm_basic_lstm_off", "weight_norm_lstm_off"])
def test_cells_that_are_plain_lstms_move_as_such(name: str, tmp_path: Path) -> None:
    (model,) = [m for m in fixtures("checkpoint_v2") if m.name == f"b_cells/{name}"]
    path, out = model.path("checkpoint_v2"), str(tmp_path / "out.npz")
    with wp.open(path) as source:
        (cell,) = source.cells()
    target = "lstm.tf1" if model.doc.get("num_proj") else "lstm.keras"
    rule = {"from": {"layout": cell.layout.name, "scope": cell.scope}, "to": {"layout": target, "scope": "new"}}
    mapping = {"weightport": 1, "rules": [rule]}
    wp.transfer(path, None, mapping, out=out)
    proof = wp.verify(path, out, mapping)
    assert proof.equal
    assert len(proof.cells) == 1
    with wp.open(out) as made:
        (unit,) = made.cells()[0].units if made.cells() else (None,)
        assert unit is None or unit.layout.name == target


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolutional_cell_into_a_live_keras_layer(dims: int) -> None:
    keras = need("keras")
    model = fixture(f"b_cells/conv_{dims}d_lstm")
    shape, expected = model.doc["input_shape"], model.reference
    inputs = keras.Input((None, *shape))
    options = {"padding": "same", "return_sequences": True, "name": "conv", "recurrent_activation": "sigmoid"}
    layer = getattr(keras.layers, f"ConvLSTM{dims}D")(model.doc["units"], model.doc["kernel_shape"], **options)
    network = keras.Model(inputs, layer(inputs))
    rule = {
        "from": {"layout": f"conv{dims}d_lstm.tf1", "scope": ""},
        "to": {"layout": f"conv{dims}d_lstm.keras", "scope": "conv"},
    }
    result = wp.transfer(model.path("checkpoint_v2"), network, {"weightport": 1, "rules": [rule]})
    assert "the forget bias 1 is folded into the forget gate's bias" in str(result)
    x = expected["x"].reshape(*expected["x"].shape[:2], *shape)
    np.testing.assert_allclose(np.asarray(network(x)), expected["full_outputs"], atol=2e-6)


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({"padding": "valid"}, "padding valid"),
        ({}, "padding valid"),  # Keras' default
        ({"padding": "same", "strides": 2}, "strides 2 2"),
        ({"padding": "valid", "dilation_rate": (1, 2)}, "padding valid, dilation rate 1 2"),
    ],
)
def test_a_keras_layer_with_another_window_is_another_function(
    options: dict[str, Any], window: str, tmp_path: Path
) -> None:
    keras = need("keras")
    inputs = keras.Input((None, 8, 8, 2))
    layer = keras.layers.ConvLSTM2D(3, (3, 2), name="conv", recurrent_activation="sigmoid", **options)
    network = keras.Model(inputs, layer(inputs))
    tf1, live = {"layout": "conv2d_lstm.tf1", "scope": ""}, {"layout": "conv2d_lstm.keras", "scope": "conv"}
    model = fixture("b_cells/conv_2d_lstm").path("checkpoint_v2")
    with pytest.raises(PlanError) as caught:
        wp.transfer(model, network, {"weightport": 1, "rules": [{"from": tf1, "to": live}]})
    assert f"the source's convolution has padding same, no strides, the target's {window}: another function" in str(
        caught.value
    )
    # A file with the configuration says so, too; onto a layer of its own kind it goes all the same.
    path = str(tmp_path / "model.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the format is an old one
        network.save(path)
    with pytest.raises(PlanError, match=f"source's convolution has {window}, the target's padding same, no strides"):
        wp.plan(path, None, {"weightport": 1, "rules": [{"from": live, "to": {**tf1, "scope": "x"}}]}).check()
    for target in (None, network):
        there = {**live, "scope": "conv" if target is not None else "new"}
        assert wp.plan(path, target, {"weightport": 1, "rules": [{"from": live, "to": there}]}).check()


def test_an_unrecorded_activation_of_keras_is_not_taken_to_be_sigmoid(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2, 12), "recurrent_kernel": (3, 3, 12), "bias": (12,)}
    np.savez(tmp_path / "conv.npz", **{f"conv/{n}": rng.normal(size=s) for n, s in shapes.items()})
    source = {"layout": "conv1d_lstm.keras", "scope": "conv"}
    mapping = {"weightport": 1, "rules": [{"from": source, "to": {"layout": "conv1d_lstm.tf1", "scope": "x"}}]}
    with pytest.raises(PlanError, match="by default it is hard_sigmoid, the other side's is always sigmoid"):
        wp.plan(str(tmp_path / "conv.npz"), None, mapping).check()
    source["recurrent_activation"] = "sigmoid"
    assert wp.plan(str(tmp_path / "conv.npz"), None, mapping).check()


def verified(own: Mapping[str, Any], name: str, arrays: Mapping[str, Any], tmp_path: Path) -> Any:
    """A cell of a mapping's own layout onto itself."""
    path, out = str(tmp_path / "in.npz"), str(tmp_path / "out.npz")
    np.savez(path, **arrays)
    rule = {"from": {"layout": name, "scope": ""}, "to": {"layout": name, "scope": ""}}
    mapping = {"weightport": 1, "layouts": {name: dict(own)}, "rules": [rule]}
    wp.transfer(path, None, mapping, out=out)
    return wp.verify(path, out, mapping)


def test_verify_says_which_cells_it_cannot_run(tmp_path: Path) -> None:
    more = {**UGRNN, "parameters": {"s": ["unit"]}, "tensors": {**UGRNN["tensors"], "s": "s[unit]"}}
    arrays = {"W": np.ones((8, 3)), "U": np.ones((8, 4)), "b": np.ones(8)}
    less = {key: value for key, value in UGRNN.items() if key != "tensors"}
    less["tensors"] = {"W": "wx[(gate unit) input]"}
    other = {"gates": ["k"], "tensors": {"W": "wx{k}[input unit]"}}
    lstm = {"parameters": {"s": ["unit"]}, "tensors": {"W": "wx[(gate unit) input]", "U": "wt[(gate unit) hidden]"}}
    lstm["tensors"]["s"] = "s[unit]"
    for name, own, has, why in (
        ("ugrnn.mine", more, {**arrays, "s": np.ones(4)}, "what a ugrnn does with ugrnn.mine is not known here"),
        ("ugrnn.mine", less, {"W": arrays["W"]}, "what a ugrnn does with ugrnn.mine is not known here"),
        ("new.mine", other, {"W": arrays["W"]}, "new cells are compared by their values only"),
        ("lstm.mine", lstm, {"W": np.ones((16, 3)), "U": np.ones((16, 4)), "s": np.ones(4)},
         "what a lstm does with s is not known here"),
    ):  # fmt: skip
        proof = verified(own, name, has, tmp_path)
        assert (proof.equal, proof.cells) == (True, ())
        (note,) = proof.notes
        assert note.startswith(f"rules[0]: . -> .: {why}")


def test_a_layout_of_a_mapping_is_run_where_it_stores_what_a_shipped_one_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"W": (8, 3), "U": (8, 4), "b": (8,)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    proof = verified(UGRNN, "ugrnn.mine", arrays, tmp_path)
    assert (proof.equal, len(proof.cells), proof.notes) == (True, 1, ())
    # Without a bias, too; and with an own parameter's axes in another order.
    del arrays["b"]
    bare = {**UGRNN, "tensors": {k: v for k, v in UGRNN["tensors"].items() if k != "b"}}
    assert len(verified(bare, "ugrnn.mine", arrays, tmp_path).cells) == 1
    turned = {
        "gates": ["z", "u"],
        "parameters": {"wz": ["unit", "unit'", "gate"]},
        "tensors": {"W": "wx{z}[input unit]", "Z": "wz{u}[unit unit']", "U": "wt{u}[hidden unit]"},
    }
    layout = parse_layout("minimal.mine", turned, "mine")
    mine = {"W": rng.normal(size=(3, 4)), "Z": rng.normal(size=(4, 4)), "U": rng.normal(size=(4, 4))}
    (unit,) = match(layout, layout.forms[0], "", {n: a.shape for n, a in mine.items()})
    assert why_not_run(unit) == ""
    read = parameters(unit, specs(mine), lambda name, ranges: mine[name][slices_of(ranges)])
    np.testing.assert_array_equal(read["wz", "u"], mine["Z"].T)


# Between layouts of a kind -------------------------------------------------------------------------------------------

UGRNN = {
    "gates": ["c", "g"],
    "forget_gates": ["g"],
    "tensors": {"W": "wx[(gate unit) input]", "U": "wt[(gate unit) hidden]", "b": "bi[(gate unit)]"},
}


def mine(changes: Mapping[str, Any], name: str = "ugrnn.mine") -> Layout:
    return parse_layout(name, {**UGRNN, **changes}, "mine")


def small(layout: Layout, scope: str, **sizes: int) -> Unit:
    return unit_of(layout, 0, True, scope, sizes)


def test_a_forget_bias_is_folded_into_the_gate_that_has_it() -> None:
    source, target = small(find_layout("ugrnn.tf1"), "a"), small(mine({}), "b")
    arrays = random_arrays(source, 1)
    moved = Conversion(source, target, specs(arrays), (1.0, 0.0))
    assert moved.problems() == []
    bias = convert(moved, arrays)["b/b"]
    np.testing.assert_array_equal(bias, np.concatenate([arrays["a/bias"][4:], arrays["a/bias"][:4] + 1]))
    assert moved.notes == ["the forget bias 1 is folded into the forget gate's bias"]
    back = Conversion(target, source, specs(convert(moved, arrays)), (0.0, 1.0))
    np.testing.assert_allclose(convert(back, convert(moved, arrays))["a/bias"], arrays["a/bias"])


def test_a_layout_that_knows_no_forget_gate_gets_it_all_the_same() -> None:
    plain = mine({"forget_gates": []})
    source, target = small(find_layout("ugrnn.tf1"), "a"), small(plain, "b")
    arrays = random_arrays(source, 1)
    moved = Conversion(source, target, specs(arrays), (1.0, 0.0))
    np.testing.assert_array_equal(convert(moved, arrays)["b/b"][4:], arrays["a/bias"][:4] + 1)


def test_own_parameters_move_under_their_name_whatever_the_order_of_their_axes() -> None:
    one = mine(
        {"parameters": {"s": ["gate", "unit", "lag"]}, "tensors": {**UGRNN["tensors"], "s": "s[lag (gate unit)]"}}
    )
    two = mine(
        {"parameters": {"s": ["lag", "unit", "gate"]}, "tensors": {**UGRNN["tensors"], "s": "s[(gate unit) lag]"}}
    )
    source, target = small(one, "a", lag=3), small(two, "b", lag=3)
    arrays = random_arrays(source, 1)
    moved = Conversion(source, target, specs(arrays))
    assert moved.problems() == []
    np.testing.assert_array_equal(convert(moved, arrays)["b/s"], arrays["a/s"].T)
    assert moved.classed == BIJECTIVE
    other = small(two, "b", lag=4)
    assert Conversion(source, other, specs(arrays)).problems() == [
        "the axis lag is of size 3 in the source, 4 in the target"
    ]
    three = mine({"parameters": {"s": ["unit", "lag"]}, "tensors": {**UGRNN["tensors"], "s": "s[lag unit]"}})
    assert "the source's s has the axes gate unit lag, the target's unit lag" in (
        Conversion(source, small(three, "b", lag=3), specs(arrays)).problems()
    )
    assert Conversion(source, small(mine({}), "b"), specs(arrays)).problems() == [
        "the target has no place for s of gate c",
        "the target has no place for s of gate g",
    ]
    plain = small(mine({}), "b")
    assert Conversion(plain, source, specs(random_arrays(plain, 1))).problems() == [
        "the source has no s of gate c",
        "the source has no s of gate g",
    ]


def test_coupled_grids_are_no_free_ones() -> None:
    free, coupled = (find_layout(f"grid_lstm.tf1{end}") for end in ("", "-coupled"))
    source, target = small(free, "a"), small(coupled, "b")
    assert "the target's gate f follows from its gate i, the source's is free" in (
        Conversion(source, target, specs(random_arrays(source, 1)), (1.0, 0.0)).problems()
    )
    # Its biases are the table's own parameters: a forget bias could not be taken out of them.
    assert Conversion(target, source, specs(random_arrays(target, 1)), (0.0, 1.0)).problems()


# Mistakes in tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": []}, "mine.parameters: expected parameter -> axes, found []"),
        ({"parameters": {1: ["unit"]}}, "mine.parameters: expected parameter -> axes, found {1: ['unit']}"),
        ({"parameters": {"s": 3}}, "mine.parameters.s: expected a list of texts, found 3"),
        ({"parameters": {"s": []}}, "mine.parameters.s: expected the names of its axes, such as [gate, unit]"),
        ({"parameters": {"s t": ["unit"]}}, "mine.parameters.s t: a parameter has a name of letters, digits and _"),
        (
            {"parameters": {"s": ["unit", "unit"]}},
            "mine.parameters.s: an axis stands twice; a second one of the same size has a prime: unit'",
        ),
        (
            {"parameters": {"s": ["unit", "layer"]}},
            "mine.parameters.s: 'layer' is no axis; every parameter has layers and directions besides",
        ),
        ({"parameters": {"s": ["unit", "7"]}}, "mine.parameters.s: '7' is no axis; every parameter has"),
        ({"parameters": {"s": ["unit"]}}, "mine.parameters: no tensor holds 's'"),
        ({"forget_gates": ["x"]}, "mine.forget_gates: no gate 'x'; the gates are c, g"),
        (
            {"forget_gates": [], "forget_bias": 1.0},
            "mine.forget_bias: a ugrnn has no gate to add it to; forget_gates: [GATE]",
        ),
        (
            {"tensors": {"W": "ws[unit]"}},
            "mine.tensors.W: no parameter 'ws' in 'ws[unit]'; one of wx, wt, bi, bt, wp, wr",
        ),
        (
            {"parameters": {"s": ["lag", "unit"]}, "tensors": {"W": "s[unit]"}},
            "mine.tensors.W: 's[unit]' lacks the axis 'lag' of s",
        ),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(wp.Error) as caught:
        mine(changes)
    assert message in str(caught.value)


def test_the_known_kinds_keep_their_meaning() -> None:
    table = {"tensors": {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]", "s": "s[unit]"}}
    assert parse_layout("lstm.mine", {**table, "parameters": {"s": ["unit"]}}, "m").forms[0].params == {"wx", "wt", "s"}
    for more, message in (
        (
            {"parameters": {"wx": ["input", "unit"], "s": ["unit"]}},
            "m.parameters.wx: the axes of a lstm's wx are gate input unit",
        ),
        ({"parameters": {"s": ["unit"]}, "forget_gates": ["i"]}, "m.forget_gates: a lstm has a meaning of its own"),
    ):
        with pytest.raises(wp.Error) as caught:
            parse_layout("lstm.mine", {**table, **more}, "m")
        assert message in str(caught.value)


def test_an_own_layout_of_a_mapping_may_declare_parameters(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ours = {
        "W": rng.normal(size=(8, 3)),
        "U": rng.normal(size=(8, 4)),
        "b": rng.normal(size=8),
        "s": rng.normal(size=(2, 4)),
    }
    np.savez(tmp_path / "ours.npz", **ours)
    table = {**UGRNN, "parameters": {"s": ["gate", "unit"]}, "tensors": {**UGRNN["tensors"], "s": "s[gate unit]"}}
    flat = {**table, "tensors": {**table["tensors"], "s": "s[(unit gate)]"}}
    mapping = {
        "weightport": 1,
        "layouts": {"ugrnn.ours": table, "ugrnn.flat": flat},
        "rules": [{"from": {"layout": "ugrnn.ours", "scope": ""}, "to": {"layout": "ugrnn.flat", "scope": "flat"}}],
    }
    out = str(tmp_path / "flat.npz")
    result = wp.transfer(str(tmp_path / "ours.npz"), None, mapping, out=out)
    assert "bijective" in str(result)
    with np.load(out) as made:
        np.testing.assert_array_equal(made["flat/s"], ours["s"].T.reshape(-1))
    mapping["rules"] = [{"from": {"layout": "ugrnn.ours", "scope": ""}, "to": {"layout": "ugrnn.tf1", "scope": "x"}}]
    with pytest.raises(PlanError, match="the target has no place for s of gate c"):
        wp.plan(str(tmp_path / "ours.npz"), None, mapping).check()


def test_an_axis_with_a_prime_is_one_of_the_same_size() -> None:
    own = {"wz": ("gate", "unit'", "unit")}
    term = parse_term("wz{u}[unit' (gate unit)]", "w", own)
    assert (term.axes, str(term)) == ((("unit'",), ("gate", "unit")), "wz{u}[unit' (gate unit)]")
    with pytest.raises(wp.Error, match=r"""wx has no axis "unit'" in "wx\[unit' unit\]"; closest: 'unit'"""):
        parse_term("wx[unit' unit]", "w")
    square = parse_layout(
        "mixed.mine", {"parameters": {"m": ["unit", "unit'"]}, "tensors": {"m": "m[unit unit']"}}, "w"
    )
    assert [dict(u.sizes) for u in match(square, square.forms[0], "", {"m": (3, 3)})] == [{"unit": 3, "hidden": 3}]
    assert match(square, square.forms[0], "", {"m": (3, 4)}) == []
