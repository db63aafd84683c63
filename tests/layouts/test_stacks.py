# ruff: noqa: E501 - one case a line
"""Stacks: which cells are layers and directions of one, by the names of the scopes that hold them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.layouts._steps import CASES, shapes_of
from weightport.layouts import find_layout
from weightport.layouts.stacks import Cell, describe, is_place, place_of, stacked
from weightport.layouts.units import Unit, match

F, B = "forward", "backward"


def unit(scope: str, case: str = "tf", inputs: int = 3, units: int = 3, suffix: str = "") -> Unit:
    name, number, has, _ = CASES[case]
    layout = find_layout(name)
    sizes = {"input": inputs, "unit": units, "hidden": units}
    shapes = {n + suffix: s for n, s in shapes_of(layout, layout.forms[number], scope, has, sizes).items()}
    (found,) = match(layout, layout.forms[number], scope, shapes, suffix)
    return found


def summary(cells: list[Cell]) -> list[tuple[str, list[tuple[int, str, str]]]]:
    return [(c.scope, [(u.layer, u.direction, u.scope) for u in c.units]) for c in cells]


def scopes_of(cells: list[Cell]) -> list[tuple[str, int, tuple[str, ...]]]:
    return [(c.scope, c.layers, c.directions) for c in cells]


def test_layers_are_in_numeric_order() -> None:
    names = [f"rnn/multi_rnn_cell/cell_{k}/lstm_cell" for k in range(12)]
    (cell,) = stacked(unit(name) for name in sorted(names))  # cell_10 before cell_2, as in a checkpoint
    assert cell.scope == "rnn/multi_rnn_cell"
    assert [(u.layer, u.scope) for u in cell.units] == list(enumerate(names))
    assert (cell.layers, cell.directions, cell.input, cell.hidden) == (12, (F,), 3, 3)


@pytest.mark.parametrize(
    ("names", "scope", "places"),
    [
        (["rnn/lstm_cell"], "rnn/lstm_cell", [(0, F)]),
        (["lstm_cell"], "lstm_cell", [(0, F)]),
        ([""], "", [(0, F)]),
        (["bi/fw/lstm_cell", "bi/bw/lstm_cell"], "bi", [(0, F), (0, B)]),
        (["bi/bw/lstm_cell", "bi/fw/lstm_cell"], "bi", [(0, F), (0, B)]),
        (["fw/lstm_cell", "bw/lstm_cell"], "", [(0, F), (0, B)]),
        (
            [f"stack_bidirectional_rnn/cell_{k}/bidirectional_rnn/{d}/lstm_cell" for k in range(2) for d in ("bw", "fw")],
            "stack_bidirectional_rnn",
            [(0, F), (0, B), (1, F), (1, B)],
        ),
        (
            [f"bidirectional_rnn/{d}/multi_rnn_cell/cell_{k}/lstm_cell" for d in ("bw", "fw") for k in range(2)],
            "bidirectional_rnn",
            [(0, F), (0, B), (1, F), (1, B)],
        ),
        (["RNN/MultiRNNCell/Cell1/LSTMCell", "RNN/MultiRNNCell/Cell0/LSTMCell"], "RNN/MultiRNNCell", [(0, F), (1, F)]),
        (["BiRNN/BW/GRUCell", "BiRNN/FW/GRUCell"], "BiRNN", [(0, F), (0, B)]),
        (["enc/cell_1/mine", "enc/cell_0/mine"], "enc", [(0, F), (1, F)]),
        # Keras-like numbers at the end of the cells' own scopes, under places that tell.
        (["a/fw/lstm_cell", "a/bw/lstm_cell_1"], "a", [(0, F), (0, B)]),
    ],
)  # fmt: skip
def test_stacks(names: list[str], scope: str, places: list[tuple[int, str]]) -> None:
    (cell,) = stacked(unit(name) for name in names)
    assert cell.scope == scope
    assert [(u.layer, u.direction) for u in cell.units] == places


@pytest.mark.parametrize(
    "names",
    [
        ["m/cell_0/c", "m/cell_2/c"],  # a hole
        ["m/cell_1/c", "m/cell_2/c"],  # no first layer
        ["m/cell_0/fw/c", "m/cell_0/bw/c", "m/cell_1/fw/c"],  # one direction short
        ["m/bw/c"],  # no forward
        ["m/cell_0/a", "m/cell_1/b"],  # cells of different names
        ["m/a/cell_0/c", "m/b/cell_1/c"],
        ["m/cell_0/c", "m/cell_0/d"],
        ["rnn/lstm_cell", "rnn_1/lstm_cell"],
        ["a", "b"],
    ],
)
def test_what_is_no_stack_stays_apart(names: list[str]) -> None:
    cells = stacked(unit(name) for name in names)
    assert summary(cells) == [(name, [(0, F, name)]) for name in names]


def test_two_stacks_stay_two() -> None:
    names = [f"{top}/multi_rnn_cell/cell_{k}/lstm_cell" for top in ("enc", "dec") for k in range(2)]
    assert scopes_of(stacked(map(unit, names))) == [("enc/multi_rnn_cell", 2, (F,)), ("dec/multi_rnn_cell", 2, (F,))]


def test_the_deepest_scope_tells() -> None:
    """Two models of a pair, each bidirectional: two cells, not one of four."""
    names = [f"{top}_model/bidi/{d}_lstm" for top in (F, B) for d in (F, B)]
    cells = stacked(unit(name, "keras") for name in names)
    assert scopes_of(cells) == [("forward_model/bidi", 1, (F, B)), ("backward_model/bidi", 1, (F, B))]


def test_only_scopes_below_count() -> None:
    units = [unit("m/cell_1/fw/c"), unit("m/cell_1/bw/c")]
    assert scopes_of(stacked(units, "m/cell_1")) == [("m/cell_1", 1, (F, B))]
    assert scopes_of(stacked(units[:1], "m/cell_1/fw")) == [("m/cell_1/fw/c", 1, (F,))]


def test_layers_of_different_layouts_are_no_stack() -> None:
    cells = stacked([unit("m/cell_0/c"), unit("m/cell_1/c", "g-tf")])
    assert scopes_of(cells) == [("m/cell_0/c", 1, (F,)), ("m/cell_1/c", 1, (F,))]


# Keras ---------------------------------------------------------------------------------------------------------------


def test_keras_bidirectional() -> None:
    for names, scope in (
        (["bidi/forward_lstm", "bidi/backward_lstm"], "bidi"),
        (["bidi/forward_lstm/lstm_cell_1", "bidi/backward_lstm/lstm_cell_2"], "bidi"),
        (["bidi/forward_lstm/lstm_cell", "bidi/backward_lstm_1/lstm_cell"], "bidi"),  # a backward_layer of its own
        (["forward_lstm_3/lstm_cell_4", "backward_lstm_3/lstm_cell_5"], ""),
    ):
        (cell,) = stacked(unit(name, "keras") for name in names)
        assert (cell.scope, cell.layers, cell.directions) == (scope, 1, (F, B))


def test_two_keras_bidirectionals_in_one_scope() -> None:
    names = ["forward_a", "backward_a", "forward_b", "backward_b"]
    cells = stacked(unit(name, "keras") for name in names)
    assert [[u.scope for u in c.units] for c in cells] == [names[:2], names[2:]]


def test_keras_layers_are_not_layers_of_a_stack() -> None:
    names = ["lstm_1", "lstm_2", "model/lstm_1/lstm_cell_1", "model/lstm_2/lstm_cell_2"]
    cells = stacked(unit(name, "keras") for name in names)
    assert [c.scope for c in cells] == ["lstm_1", "lstm_2", "model/lstm_1", "model/lstm_2"]
    assert all(u.layer == 0 for c in cells for u in c.units)


@pytest.mark.parametrize("first", [0, 4])
def test_stacked_cells_of_keras_are_counted_through_the_model(first: int) -> None:
    names = [f"rnn/lstm_cell_{k}" if k else "rnn/lstm_cell" for k in range(first, first + 3)]
    units = [unit(name, "keras", *sizes) for name, sizes in zip(names, [(3, 4), (4, 5), (5, 5)], strict=True)]
    (cell,) = stacked(units[::-1])
    assert (cell.scope, [u.scope for u in cell.units]) == ("rnn", names)
    assert (cell.per_unit("unit"), cell.per_unit("input")) == ([4, 5, 5], [3, 4, 5])


def test_counted_cells_that_do_not_follow_each_other_are_apart() -> None:
    apart = stacked([unit("m/lstm_cell", "keras", 3, 4), unit("m/lstm_cell_1", "keras", 7, 4)])
    assert [c.scope for c in apart] == ["m/lstm_cell", "m/lstm_cell_1"]
    gap = stacked([unit("m/lstm_cell", "keras"), unit("m/lstm_cell_2", "keras")])
    assert [c.scope for c in gap] == ["m/lstm_cell", "m/lstm_cell_2"]
    mixed = stacked([unit("m/lstm_cell", "keras"), unit("m/gru_cell", "g-keras-after"), unit("m/lstm_cell_1", "keras")])
    assert [c.scope for c in mixed] == ["m/lstm_cell", "m/lstm_cell_1", "m/gru_cell"]


def test_bidirectional_over_stacked_cells_of_keras() -> None:
    names = [f"bidi/{d}_rnn/lstm_cell{n}" for d, pair in ((F, ("", "_1")), (B, ("_2", "_3"))) for n in pair]
    (cell,) = stacked(unit(name, "keras") for name in names)
    assert (cell.scope, cell.layers, cell.directions) == ("bidi", 2, (F, B))
    assert [u.scope for u in cell.units] == [names[0], names[2], names[1], names[3]]


def test_stacked_cells_with_numbered_tensors() -> None:
    units = [unit("rnn", "keras", 3, 4), unit("rnn", "keras", 4, 6, "_1")]
    (cell,) = stacked(units)
    assert (cell.scope, cell.layers, cell.per_unit("unit")) == ("rnn", 2, [4, 6])
    mixed = stacked([unit("rnn", "keras", 3, 4), unit("rnn", "g-keras-after", 4, 6, "_1")])
    assert [(c.scope, c.layout.name) for c in mixed] == [("rnn", "lstm.keras"), ("rnn", "gru.keras")]


def test_keras1_names_hold_the_cells_own_scope() -> None:
    assert [c.scope for c in stacked([unit("lstm_1/lstm_1", "keras1")])] == ["lstm_1"]
    assert [c.scope for c in stacked([unit("encoder/lstm_1", "keras1")])] == ["encoder/lstm_1"]
    (cell,) = stacked([unit("bidi/forward_lstm_1", "keras1"), unit("bidi/backward_lstm_1", "keras1")])
    assert (cell.scope, cell.directions) == ("bidi", (F, B))


# Sizes, places, JSON -------------------------------------------------------------------------------------------------


def test_sizes_by_layer_and_direction() -> None:
    layers = [unit(f"m/cell_{k}/c", units=size) for k, size in enumerate((8, 6, 10))]
    assert stacked(layers)[0].per_unit("unit") == [8, 6, 10]
    pair = [unit("m/fw/c", units=7), unit("m/bw/c", units=5)]
    assert stacked(pair)[0].per_unit("unit") == [7, 5]
    grid = [unit(f"m/cell_{k}/{d}/c", units=4 + k) for k in range(2) for d in ("fw", "bw")]
    assert stacked(grid)[0].per_unit("unit") == [4, 5]
    uneven = [unit(f"m/cell_{k}/{d}/c", units=4 + k + (d == "bw")) for k in range(2) for d in ("fw", "bw")]
    assert stacked(uneven)[0].per_unit("unit") == [4, 5, 5, 6]
    same = [unit(f"m/cell_{k}/c") for k in range(2)]
    assert stacked(same)[0].per_unit("unit") == 3


def test_describe() -> None:
    (cell,) = stacked([unit("a/fw/lstm_cell", units=4), unit("a/bw/lstm_cell", units=4)])
    assert describe(cell) == {
        "scope": "a",
        "layout": "lstm.tf1",
        "input": 3,
        "units": 4,
        "layers": 1,
        "directions": [F, B],
    }


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cell_0", True), ("cell_12", True), ("Cell0", True), ("fw", True), ("BW", True), ("forward", True),
        ("forward_lstm", True), ("backward_lstm_1", True),
        ("cell", False), ("cell_", False), ("cell_x", False), ("lstm_cell_0", False), ("forwards", False), ("", False),
        ("cell_1/x", False), ("cell_1\n", False), ("fw\n", False),
    ],
)  # fmt: skip
def test_is_place(name: str, place: bool) -> None:
    assert is_place(name) == place


@pytest.mark.parametrize(
    ("scope", "below", "layout", "place"),
    [
        ("a/cell_2/lstm_cell", "a", "lstm.tf1", (2, F)),
        ("a/cell_2/lstm_cell", "a/cell_2", "lstm.tf1", (0, F)),
        ("a/cell_2/bi/bw/lstm_cell", "", "lstm.tf1", (2, B)),
        ("a/bw/cell_3/lstm_cell", "a", "lstm.tf1", (3, B)),
        ("a", "a", "lstm.tf1", (0, F)),
        ("rnn/lstm_cell_1", "rnn", "lstm.keras", (1, F)),
        ("bidi/backward_lstm", "bidi", "lstm.keras", (0, B)),
    ],
)
def test_place_of(scope: str, below: str, layout: str, place: tuple[int, str]) -> None:
    assert place_of(scope, below, find_layout(layout)) == place


def test_nothing() -> None:
    empty: list[Any] = []
    assert stacked(empty) == []
