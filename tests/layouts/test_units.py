"""Units: names first, then sizes solved from shapes, and nothing else is one."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.layouts._steps import CASES, shapes_of, sizes_of
from weightport.layouts import builtin, find_layout, parse_layout
from weightport.layouts.convert import blocks
from weightport.layouts.units import anchor_name, full_name, match, packed_sizes, spelled


def shapes(case: str, scope: str, sizes: dict[str, int]) -> dict[str, Any]:
    name, number, has, _ = CASES[case]
    layout = find_layout(name)
    return shapes_of(layout, layout.forms[number], scope, has, sizes)


def units_of(case: str, found: dict[str, Any], scope: str, sizes: dict[str, int] | None = None) -> list[dict[str, int]]:
    """The sizes of what is found. ``sizes`` are told only where one vector cannot tell them."""
    name, number, _, _ = CASES[case]
    layout = find_layout(name)
    return [dict(u.sizes) for u in match(layout, layout.forms[number], scope, found, sizes=sizes)]


#: One vector: its length tells no sizes.
PACKED = {case for case, (name, *_) in CASES.items() if find_layout(name).packed}


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(set(CASES) - PACKED)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["", "a", "a/b"]),
)
def test_sizes_are_recovered(case: str, inputs: int, units: int, outputs: int, scope: str) -> None:
    sizes = sizes_of(case, inputs, units, outputs)
    assert units_of(case, shapes(case, scope, sizes), scope) == [sizes]


@pytest.mark.parametrize("case", sorted(set(CASES) - PACKED))
def test_square_matrices_are_no_riddle(case: str) -> None:
    sizes = sizes_of(case, 6, 6, 6)
    assert units_of(case, shapes(case, "s", sizes), "s") == [sizes]


@pytest.mark.parametrize("case", CASES)
def test_no_shape_may_be_off(case: str) -> None:
    """Any single tensor with one more in one dimension, with a dimension more or less: no match, or an honest one."""
    good = shapes(case, "s", sizes_of(case, 3, 4, 2))
    for name, shape in good.items():
        for dim in range(len(shape)):
            longer = (*shape[:dim], shape[dim] + 1, *shape[dim + 1 :])
            for found in units_of(case, {**good, name: longer}, "s"):
                # Rows of a matrix that the input alone decides, or inputs and outputs together.
                assert found["unit"] == 4
                assert shapes(case, "s", found) == {**good, name: longer}
        assert units_of(case, {**good, name: (*shape, 1)}, "s") == []
        assert units_of(case, {**good, name: shape[1:]}, "s") == []
        assert units_of(case, {**good, name: ()}, "s") == []


def test_a_cell_without_inputs_or_units_is_none() -> None:
    assert units_of("tf", {"s/kernel": (4, 16), "s/bias": (16,)}, "s") == []
    assert units_of("tf", {"s/kernel": (5, 16), "s/bias": (16,)}, "s") == [{"unit": 4, "hidden": 4, "input": 1}]
    assert units_of("keras", {"s/kernel": (3, 0), "s/recurrent_kernel": (0, 0), "s/bias": (0,)}, "s") == []


def test_a_required_tensor_may_not_lack() -> None:
    for case in CASES:
        sizes = sizes_of(case, 3, 4, 2)
        good = shapes(case, "s", sizes)
        name, number, _, _ = CASES[case]
        layout = find_layout(name)
        (unit,) = match(layout, layout.forms[number], "s", good, sizes=sizes)
        for stored in unit.tensors:
            if not stored.row.optional:
                assert units_of(case, {n: s for n, s in good.items() if n != stored.name}, "s") == []


# One vector for all layers and directions ----------------------------------------------------------------------------

GATES = {"lstm": 4, "gru": 3, "rnn": 1}


@settings(max_examples=200)
@given(st.sampled_from(sorted(PACKED)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 2))
def test_one_vector_has_as_many_values_as_its_cell(
    case: str, inputs: int, units: int, layers: int, directions: int
) -> None:
    layout = find_layout(CASES[case][0])
    sizes = packed_sizes(inputs, units, layers, directions)
    gates, length = GATES[layout.kind], 0
    for layer in range(layers):
        wide = directions * units if layer else inputs
        length += directions * gates * units * (wide + units + 2)
    found = match(layout, layout.forms[0], "s", {"s/opaque_kernel": (length,)}, sizes=sizes)
    assert [(u.layer, u.direction) for u in found] == [
        (layer, direction) for layer in range(layers) for direction in ("forward", "backward")[:directions]
    ]
    assert [u.sizes["input"] for u in found] == [inputs] * directions + [directions * units] * directions * (layers - 1)
    # Every value belongs to one block.
    held = np.zeros(length, int)
    for unit in found:
        for _, _, block in blocks(unit, unit.tensors[0]):
            assert len(block.ranges[0]) == prod(block.shape)
            held[block.ranges[0].start : block.ranges[0].stop] += 1
    assert (held == 1).all()
    for wrong in ((length + 1,), (length - 1,), (1, length), (length, 1), ()):
        assert match(layout, layout.forms[0], "s", {"s/opaque_kernel": wrong}, sizes=sizes) == []
    assert match(layout, layout.forms[0], "s", {"s/opaque_kernel": (length,)}) == []


def test_layers_that_a_vector_cannot_have_are_not_counted() -> None:
    layout = find_layout("lstm.cudnn-opaque")
    huge = packed_sizes(1, 1, 10**15, 2)
    assert match(layout, layout.forms[0], "", {"opaque_kernel": (10**6,)}, sizes=huge) == []


def test_a_row_of_gates_is_whole_or_absent() -> None:
    good = shapes("scoped", "s", {"input": 3, "unit": 4, "hidden": 4})
    del good["s/forget_gate/bi"]
    assert units_of("scoped", good, "s") == []
    for gate in ("input_gate", "memory_cell", "output_gate"):
        del good[f"s/{gate}/bi"]
    assert units_of("scoped", good, "s") == [{"input": 3, "unit": 4, "hidden": 4}]


def test_a_bias_that_does_not_fit_is_not_the_lack_of_one() -> None:
    cudnn = shapes("g-cudnn", "s", {"input": 3, "unit": 4, "hidden": 4})
    layout = find_layout("gru.keras")
    assert [match(layout, form, "s", cudnn) for form in layout.forms] == [[]] * len(layout.forms)
    del cudnn["s/bias"]
    assert [len(match(layout, form, "s", cudnn)) for form in layout.forms] == [0, 0, 1, 0, 0]


def test_names_decide_before_shapes() -> None:
    """A Dense layer has an LSTM's shapes; only its name tells."""
    for layout in builtin().values():
        for form in layout.forms:
            assert not match(layout, form, "s", {"s/weight": (20, 64), "s/offset": (64,)})


def test_suffixes_tell_cells_of_one_scope_apart() -> None:
    one = shapes("keras", "s", {"input": 3, "unit": 4, "hidden": 4})
    two = {f"{n}_1": s for n, s in shapes("keras", "s", {"input": 4, "unit": 5, "hidden": 5}).items()}
    layout = find_layout("lstm.keras")
    (unit,) = match(layout, layout.forms[0], "s", {**one, **two}, "_1")
    assert (unit.layer, unit.names) == (1, ("s/kernel_1", "s/recurrent_kernel_1", "s/bias_1"))


@pytest.mark.parametrize(
    ("template", "scope", "name"),
    [
        ("kernel", "a/b", "a/b/kernel"),
        ("kernel", "", "kernel"),
        ("{gate}/wx", "a", "a/input/wx"),
        ("W_{GATE}", "a", "a/W_INPUT"),
        ("w_l{layer}{direction}", "a", "a/w_l3_r"),
        ("{scope}_W_{gate}", "lstm_1/lstm_1", "lstm_1/lstm_1_W_input"),
        ("{scope}/W", "a", "a/W"),
    ],
)
def test_names(template: str, scope: str, name: str) -> None:
    directions = {"forward": "", "backward": "_r"}
    tensors = {"W": "wx[input (gate unit)]", "U": "wt[hidden (gate unit)]"}
    gates = {"i": "input", "f": "forget", "g": "new", "o": "out"}
    layout = parse_layout("lstm.x", {"gates": gates, "directions": directions, "tensors": tensors}, "w")
    assert full_name(scope, spelled(layout, template, "i", 3, "backward")) == name


@pytest.mark.parametrize(
    ("name", "scope", "full"),
    [
        ("w_l0", "a.b", "a.b.w_l0"),
        ("w_l0", "", "w_l0"),
        ("0/cell/w", "a", "a.0.cell.w"),
        ("{scope}_l0_w", "a.b", "a.b_l0_w"),
        ("{scope}_l0/w", "", "_l0.w"),
    ],
)
def test_names_with_dots(name: str, scope: str, full: str) -> None:
    assert full_name(scope, name, ".") == full


def test_anchors() -> None:
    names = {name: anchor_name(layout, layout.forms[0]) for name, layout in builtin().items()}
    assert names["lstm.scoped-gates"] == "input_gate/wx"
    assert names["gru.keras1"] == "{scope}_W_z"
    assert names["lstm.tf1"] == "kernel"


def test_an_axis_of_directions_has_two_at_most() -> None:
    tensors = {"W": "wx[direction (gate unit) input]", "R": "wt[direction (gate unit) hidden]"}
    layout = parse_layout("lstm.x", {"tensors": tensors}, "w")
    for directions, count in ((1, 1), (2, 2), (3, 0)):
        found = match(layout, layout.forms[0], "", {"W": (directions, 16, 3), "R": (directions, 16, 4)})
        assert len(found) == count
    assert match(layout, layout.forms[0], "", {"W": (2, 16, 3), "R": (1, 16, 4)}) == []


def test_sizes_that_only_a_product_tells_are_not_guessed() -> None:
    tensors = {"W": "wx[(input unit)]", "U": "wt[(hidden unit)]"}
    layout = parse_layout("rnn.x", {"tensors": tensors}, "w")
    assert match(layout, layout.forms[0], "", {"W": (12,), "U": (16,)}) == []
    with_bias = parse_layout("rnn.x", {"tensors": {**tensors, "b": "bi[unit]"}}, "w")
    (unit,) = match(with_bias, with_bias.forms[0], "", {"W": (12,), "U": (16,), "b": (4,)})
    assert dict(unit.sizes) == {"unit": 4, "hidden": 4, "input": 3}
