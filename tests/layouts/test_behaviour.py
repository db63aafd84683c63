"""What a cell does beside its weights: who says it, and what is refused or assumed for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from weightport.layouts import find_layout
from weightport.layouts.behaviour import ALWAYS, ASSUMED, FILE, MAPPING, Behaviour, Said, behaviour, conflicts


def of(
    name: str, facts: Mapping[str, Any] | None = None, stated: Mapping[str, Any] | None = None, form: int = 0
) -> Behaviour:
    layout = find_layout(name)
    return behaviour(layout, layout.forms[form], facts or {}, stated or {})


COUPLED = {"variant": "couples its gates"}


def test_whose_word_counts() -> None:
    assert of("lstm.tf1").forget_bias == Said(1.0, ASSUMED)
    assert of("lstm.tf1", form=1).forget_bias == Said(0.0, ASSUMED)
    assert of("lstm.tf1", {"forget_bias": 0.0}).forget_bias == Said(0.0, FILE)
    assert of("lstm.tf1", {"forget_bias": 0.0}, {"forget_bias": 2.0}).forget_bias == Said(2.0, MAPPING)
    assert of("lstm.tf1", {"forget_bias": 0.0}, {"forget_bias": None}).forget_bias == Said(0.0, FILE)
    assert of("lstm.keras").forget_bias == Said(0.0, ALWAYS)
    assert of("gru.tf1").forget_bias == Said(0.0, ASSUMED)
    assert of("lstm.tf1").recurrent_activation == Said("sigmoid", ALWAYS)
    assert of("lstm.keras1").recurrent_activation == Said("hard_sigmoid", ASSUMED)
    assert of("lstm.keras").cell_clip == Said(None, ALWAYS)
    assert of("rnn.keras").recurrent_activation == Said(None, ASSUMED)


def test_resets() -> None:
    assert of("gru.tf1").reset == Said("before", ALWAYS)
    assert of("gru.keras").reset == Said("after", ALWAYS)
    assert of("gru.keras", form=2).reset == Said(None, ASSUMED)
    assert of("gru.keras", {"reset_after": True}, form=2).reset == Said("after", FILE)
    assert of("gru.keras", {"reset_after": False}, form=2).reset == Said("before", FILE)
    assert of("gru.keras", {"reset_after": False}, {"reset": "after"}, form=2).reset == Said("after", MAPPING)


def test_known() -> None:
    assert [Said(1, by).known for by in (MAPPING, FILE, ALWAYS, ASSUMED)] == [True, True, True, False]
    assert not Said(None, FILE).known


RELU, HARD = {"activation": "relu"}, {"recurrent_activation": "hard_sigmoid"}


@pytest.mark.parametrize(
    ("source", "target", "problems", "notes"),
    [
        (of("lstm.tf1"), of("lstm.keras"), [], []),
        (of("lstm.tf1", {"forget_bias": 0.0}), of("lstm.keras"), [], []),
        (
            of("lstm.keras", HARD),
            of("lstm.tf1"),
            ["the source's recurrent activation is hard_sigmoid, the target's sigmoid"],
            [],
        ),
        (
            of("lstm.keras", HARD),
            of("lstm.keras", {"recurrent_activation": "hard_sigmoid_6"}),
            ["the source's recurrent activation is hard_sigmoid, the target's hard_sigmoid_6"],
            [],
        ),
        (
            of("lstm.keras", HARD),
            of("lstm.keras"),
            [],
            [
                "the target's recurrent activation is not recorded; taken to be hard_sigmoid, as on the other side "
                "(the framework's default is sigmoid)"
            ],
        ),
        (
            of("lstm.tf1"),
            of("lstm.keras", RELU),
            [],
            [
                "the source's activation is not recorded; taken to be relu, as on the other side "
                "(the framework's default is tanh)"
            ],
        ),
        (
            of("lstm.keras1"),
            of("lstm.keras"),
            [],
            [
                "neither side's recurrent activation is recorded; they are taken to be the same, though the "
                "frameworks' defaults are hard_sigmoid and sigmoid"
            ],
        ),
        (
            of("lstm.keras1"),
            of("lstm.tf1"),
            [
                "the source's recurrent activation is not recorded: by default it is hard_sigmoid, the other side's is "
                "always sigmoid (if it is that here too, the mapping can say so: recurrent_activation: sigmoid)"
            ],
            [],
        ),
        (of("lstm.keras1", stated={"recurrent_activation": "sigmoid"}), of("lstm.tf1"), [], []),
        (
            of("gru.tf1"),
            of("gru.keras"),
            [
                "the source's reset gate is before, the target's after: "
                "reset before and after the matrix product are different functions"
            ],
            [],
        ),
        (of("gru.tf1"), of("gru.keras", form=1), [], []),
        (
            of("gru.keras", form=2),
            of("gru.tf1"),
            [],
            ["the source's reset gate is not recorded; taken to be before, as on the other side"],
        ),
        (
            of("gru.tf1", form=1),
            of("gru.keras", form=2),
            [],
            ["the target's reset gate is not recorded; taken to be after, as on the other side"],
        ),
        (of("gru.keras", form=2), of("gru.keras", form=2), [], []),
        (
            of("lstm.tf1", {"cell_clip": 3.0}),
            of("lstm.keras"),
            ["clipping (cell_clip): source 3, target none"],
            [],
        ),
        (of("lstm.tf1", {"cell_clip": 3.0}), of("lstm.tf1", {"cell_clip": 3.0}), [], []),
        (of("lstm.onnx", COUPLED), of("lstm.onnx", COUPLED), [], []),
        (of("lstm.onnx", COUPLED), of("lstm.onnx"), ["the source's cell couples its gates: another function"], []),
        (of("lstm.onnx"), of("lstm.onnx", COUPLED), ["the target's cell couples its gates: another function"], []),
        (
            of("lstm.tf1", {"cell_clip": 3.0, "proj_clip": 0.5}),
            of("lstm.tf1"),
            [],
            ["clipping (cell_clip): source 3, target none", "clipping (proj_clip): source 0.5, target none"],
        ),
    ],
)
def test_conflicts(source: Behaviour, target: Behaviour, problems: list[str], notes: list[str]) -> None:
    assert conflicts(source, target) == (problems, notes)
