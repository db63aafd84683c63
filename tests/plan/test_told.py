"""What contradicts a cell: sizes that a rule states, and the order of gates that a graph shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plan.stub import Stub, planned, problems
from tests.support import need
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


def layers(*sizes: tuple[int, int], way: str = "") -> dict[str, np.ndarray]:
    """Keras cells of (inputs, units) under the scopes of layers."""
    found = {}
    for number, (inputs, units) in enumerate(sizes):
        scope = f"s/cell_{number}{way}"
        found |= {f"{scope}/kernel": np.ones((inputs, 4 * units), np.float32)}
        found |= {f"{scope}/recurrent_kernel": np.ones((units, 4 * units), np.float32)}
        found |= {f"{scope}/bias": np.ones(4 * units, np.float32)}
    return found


KERAS = {"layout": "lstm.keras", "scope": "s"}
ONE_MODULE = "a module for each of them: a rule for each layer (layers: [0]), each into a scope of its own"


@pytest.mark.parametrize("layout", ["lstm.torch", "lstm.paddle", "lstm.mxnet"])
def test_layers_that_are_no_one_module(layout: str) -> None:
    rule = {"from": KERAS, "to": {"layout": layout, "scope": "t"}}
    assert problems(planned(Stub(layers((3, 4), (4, 4))), None, [rule])) == []
    unequal = Stub(layers((3, 8), (8, 6), (6, 10)))
    assert problems(planned(unequal, None, [rule])) == [
        f"rules[0]: {layout} is one module of layers that have as many units each; these have 8, 6, 10; {ONE_MODULE}"
    ]
    assert problems(planned(Stub(layers((3, 4), (7, 4), (4, 4))), None, [rule])) == [
        f"rules[0]: {layout} is one module in which each layer takes what the one before it gives, here 4 values; "
        f"layer 1 takes 7; {ONE_MODULE}"
    ]
    # As the hint says; and into a layout whose layers are modules of their own.
    each = [{"from": {**KERAS, "layers": [n]}, "to": {"layout": layout, "scope": f"t{n}"}} for n in range(3)]
    assert problems(planned(unequal, None, each)) == []
    assert problems(planned(unequal, None, [{"from": KERAS, "to": {"layout": "lstm.keras", "scope": "t"}}])) == []
    there = layers((3, 8), (8, 6), (6, 10))
    target = Stub({name.replace("s/", "t/"): value.shape for name, value in there.items()})
    assert problems(planned(unequal, target, [{"from": KERAS, "to": {"layout": "lstm.keras", "scope": "t"}}])) == []


def test_directions_that_are_no_one_module() -> None:
    rule = {"from": KERAS, "to": {"layout": "lstm.torch", "scope": "t"}}

    def both(back: int, second: int = 8) -> Stub:
        ahead, behind = layers((3, 4), (second, 4), way="/fw"), layers((3, back), (second, back), way="/bw")
        return Stub(ahead | behind)

    assert problems(planned(both(4), None, [rule])) == []
    (problem,) = problems(planned(both(5), None, [rule]))
    assert "one module of layers that have as many units each; these have 4, 5, 4, 5;" in problem
    wrong = problems(planned(both(4, 4), None, [rule]))
    assert len(wrong) == 2
    assert all("here 8 values; layer 1 takes 4;" in problem for problem in wrong)


def test_a_rule_for_each_direction_of_one_module() -> None:
    ahead, behind = layers((3, 4), (8, 4), way="/fw"), layers((3, 4), (8, 4), way="/bw")
    rules = [
        {"from": {**KERAS, "directions": [way]}, "to": {"layout": "lstm.torch", "scope": "t", "directions": [way]}}
        for way in ("forward", "backward")
    ]
    made = planned(Stub(ahead | behind), None, rules)
    assert problems(made) == []
    assert {name: made.specs[f"t.weight_ih_{name}"].shape for name in ("l1", "l1_reverse")} == {
        "l1": (16, 8),
        "l1_reverse": (16, 8),
    }


def test_layers_that_pytorch_has() -> None:
    torch = need("torch")
    rule = {"from": KERAS, "to": {"layout": "lstm.torch", "scope": "t"}}
    plan = planned(Stub(layers((3, 4), (4, 4))), None, [rule])
    state = torch.nn.LSTM(3, 4, 2).state_dict()
    made = {name.removeprefix("t."): spec.shape for name, spec in plan.specs.items()}
    assert made == {name: tuple(value.shape) for name, value in state.items() if name in made}
    assert {name for name in state if name not in made} <= {"bias_hh_l0", "bias_hh_l1"}
