"""What contradicts a cell: sizes that a rule states, and the order of gates that a graph shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plan.stub import Stub, planned, problems
from weightport.layouts import find_layout
from weightport.plan import told
from weightport.scopes import resolve_cell
from weightport.tensors import TensorSpec

TF1 = {"s/kernel": np.ones((7, 16), np.float32), "s/bias": np.ones(16, np.float32)}
SCOPED = {f"s/{g}_gate/{w}": (3 if w == "wx" else 4, 4) for g in ("input", "forget", "output") for w in ("wx", "wt")}
SCOPED |= {f"s/memory_cell/{w}": (3 if w == "wx" else 4, 4) for w in ("wx", "wt")}
TABLE = ["i", "g", "f", "o"]
OTHER = ["i", "f", "g", "o"]


def moved(facts: dict[str, Any], **more: Any) -> list[str]:
    source = {"layout": "lstm.tf1", "scope": "s", "forget_bias": 0, **more}
    rule = {"from": source, "to": {"layout": "lstm.keras", "scope": "t"}}
    return problems(planned(Stub(TF1, facts={"s/": facts}), None, [rule]))


def test_a_graph_that_splits_the_gates_in_another_order() -> None:
    assert moved({}) == moved({"gates": TABLE}) == []
    assert moved({"gates": OTHER}) == [
        "rules[0].from: the graph has the gates of 's' in the order i, f, g, o, lstm.tf1 has i, g, f, o; "
        "if it is that layout all the same: gates: [i, f, g, o]"
    ]
    assert moved({"gates": OTHER}, gates=OTHER) == moved({"gates": OTHER}, gates=TABLE) == []  # the mapping's word


def test_the_target_s_graph_is_listened_to() -> None:
    keras = {"t/kernel": (3, 16), "t/recurrent_kernel": (4, 16), "t/bias": (16,)}
    rule = {
        "from": {"layout": "lstm.tf1", "scope": "s", "forget_bias": 0},
        "to": {"layout": "lstm.keras", "scope": "t"},
    }
    assert problems(planned(Stub(TF1), Stub(keras, facts={"t/": {"gates": OTHER}}), [rule])) == []
    (problem,) = problems(planned(Stub(TF1), Stub(keras, facts={"t/": {"gates": TABLE}}), [rule]))
    assert problem.startswith(
        "rules[0].to: the graph has the gates of 't' in the order i, g, f, o, lstm.keras has i, f"
    )


def test_gates_in_names_have_no_order() -> None:
    rule = {"from": {"layout": "lstm.scoped-gates", "scope": "s"}, "to": {"layout": "lstm.keras", "scope": "t"}}
    assert problems(planned(Stub(SCOPED, facts={"s/": {"gates": ["o", "g", "f", "i"]}}), None, [rule])) == []


def test_the_sizes_that_a_vector_is_taken_to_have() -> None:
    specs = {n: TensorSpec.of(a.dtype, a.shape) for n, a in TF1.items()}
    cell = resolve_cell(specs, find_layout("lstm.tf1"), "s")
    assert told.of(cell) == {"input": 3, "units": 4, "layers": 1, "directions": 1}
    assert told.sizes_of(None, None) is None
    found = told.sizes_of(None, cell)
    assert found == {"input": 3, "unit": 4, "hidden": 4, "layer": 1, "direction": 1, "first": 3}
    stated = {"input": 5, "units": 6, "layers": 2, "directions": 2}
    assert told.sizes_of(stated, cell) == {"input": 5, "unit": 6, "hidden": 6, "layer": 2, "direction": 2, "first": 5}


def test_layers_of_different_sizes_tell_none() -> None:
    layers = {
        f"s/cell_{k}/lstm_cell/{n}": s for k in range(2) for n, s in (("kernel", (7 + 2 * k, 16)), ("bias", (16,)))
    }
    layers |= {"s/cell_1/lstm_cell/kernel": (9, 20), "s/cell_1/lstm_cell/bias": (20,)}
    specs = {n: TensorSpec.of("float32", s) for n, s in layers.items()}
    cell = resolve_cell(specs, find_layout("lstm.tf1"), "s")
    assert told.of(cell)["units"] == [4, 5]
    assert told.sizes_of(None, cell) is None


@pytest.mark.parametrize(
    ("unsized", "order"),
    [((False, False), (0, 1)), ((False, True), (0, 1)), ((True, False), (1, 0)), ((True, True), (0, 1))],
)
def test_which_side_is_looked_for_first(unsized: tuple[bool, bool], order: tuple[int, int]) -> None:
    assert told.order(*unsized) == order


def test_a_graph_that_gives_the_vector_to_cudnn_as_something_else() -> None:
    length = 2 * (16 * 7 + 32)

    def moved(cudnn: list[Any], **sizes: int) -> list[str]:
        source = {"layout": "lstm.cudnn-opaque", "scope": "v", "sizes": {"input": 3, "units": 4, **sizes}}
        rule = {"from": source, "to": {"layout": "lstm.torch", "scope": "t"}}
        vector = {"v/opaque_kernel": np.ones(length, np.float32)}
        return problems(planned(Stub(vector, facts={"v/": {"cudnn": cudnn}}), None, [rule]))

    assert moved(["lstm", 2], directions=2) == []
    taken = "the rule takes it as a lstm of 2 directions"
    assert moved(["lstm", 1], directions=2) == [
        f"rules[0].from: the graph gives 'v/opaque_kernel' to cuDNN as a lstm of 1 direction, {taken}"
    ]
    assert moved(["gru", 2], directions=2) == [
        f"rules[0].from: the graph gives 'v/opaque_kernel' to cuDNN as a gru of 2 directions, {taken}"
    ]
