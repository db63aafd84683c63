"""Rules for whole cells: which units pair, what is refused, the forget bias, overrides, users' own layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.plan.stub import Stub, numbers, planned, problems, results
from weightport.layouts import builtin
from weightport.tensors import TensorSpec

UNITS, INPUT = 4, 3
GATES = {"lstm": "ifgo", "gru": "zrn", "rnn": "h"}


def keras(scope: str, seed: int = 0, inputs: int = INPUT, kind: str = "lstm") -> dict[str, np.ndarray]:
    """A Keras cell's tensors (of a GRU: reset before)."""
    width = UNITS * len(GATES[kind])
    shapes = {"kernel": (inputs, width), "recurrent_kernel": (UNITS, width), "bias": (width,)}
    prefix = f"{scope}/" if scope else ""
    return {prefix + n: numbers(*s, seed=seed + k) for k, (n, s) in enumerate(shapes.items())}


def shapes(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {n: a.shape for n, a in arrays.items()}


def blocks(array: np.ndarray) -> list[np.ndarray]:
    return np.split(array, 4, axis=-1)


def tf1(cell: dict[str, np.ndarray], prefix: str = "", bias: float = 0.0) -> dict[str, np.ndarray]:
    """The Keras cell as TensorFlow 1 stores it."""
    kernel, recurrent, b = cell.values()
    i, f, g, o = blocks(np.concatenate([kernel, recurrent]))
    bi, bf, bg, bo = blocks(b)
    return {
        f"{prefix}kernel": np.concatenate([i, g, f, o], -1),
        f"{prefix}bias": np.concatenate([bi, bg, bf - np.float32(bias), bo], -1),
    }


def rule(source: str | dict[str, Any], target: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    """``lstm.keras a/b`` is a layout and a scope."""

    def ref(side: str | dict[str, Any]) -> dict[str, Any]:
        if isinstance(side, dict):
            return side
        layout, _, scope = side.partition(" ")
        return {"layout": layout, "scope": scope}

    return {"from": ref(source), "to": ref(target), **more}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want, err_msg=name)


# Moves ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["", "enc/lstm"])
def test_a_cell_without_a_target(scope: str) -> None:
    cell = keras(scope)
    source = Stub(cell)
    made = planned(source, None, [rule(f"lstm.keras {scope}", "lstm.tf1 rnn/lstm_cell")])
    same(results(made, source), tf1(cell, "rnn/lstm_cell/", 1.0))
    (outcome,) = made.outcomes
    assert outcome.sources == tuple(cell)
    assert outcome.targets == ("rnn/lstm_cell/kernel", "rnn/lstm_cell/bias")
    assert (outcome.classed, outcome.exact) == ("exact", True)
    assert outcome.title == f"lstm.keras {scope or '(root)'} -> lstm.tf1 rnn/lstm_cell"


def test_the_scopes_of_both_sides() -> None:
    cell = keras("old/enc")
    source = Stub(cell)
    made = planned(
        source, None, [rule("lstm.keras enc", "lstm.ifco c")], source={"scope": "old"}, target={"scope": "new/x"}
    )
    assert set(results(made, source)) == {"new/x/c/ifcox", "new/x/c/ifcom", "new/x/c/ifcob"}


def test_as_constant_and_slots_beside_the_cell() -> None:
    cell = keras("l")
    tensors = {**cell, **{f"{n}/Adam": a for n, a in cell.items()}}
    source = Stub(tensors, roles={f"{n}/Adam": "slot" for n in cell})
    made = planned(source, None, [rule("lstm.keras l", "lstm.keras m", **{"as": "constant"})], ignore=["**/Adam"])
    assert set(made.target.values()) == {"constant"}
    assert made.source == {**dict.fromkeys(cell, "moved"), **{f"{n}/Adam": "ignored" for n in cell}}
    made = planned(source, None, [rule("lstm.keras l", "lstm.keras m")])
    assert [p.what.partition(":")[0] for p in made.problems] == ["3 optimizer slots are claimed by no rule"]


def layouts() -> list[tuple[str, str]]:
    names = [n for n in builtin() if n.split(".")[0] in GATES]
    return [(a, b) for a in names for b in names if a.split(".")[0] == b.split(".")[0]]


@pytest.mark.parametrize(("a", "b"), layouts())
def test_without_a_target_every_pair_goes_there_and_back(a: str, b: str) -> None:
    """Keras to a, a to b, b to Keras again: the first and the last are the same numbers, or a rule says why not."""
    kind = a.split(".")[0]
    cell = keras("l", kind=kind)
    reset: dict[str, Any] = {"reset": "before"} if kind == "gru" else {}
    hops = [(f"{kind}.keras", a), (a, b), (b, f"{kind}.keras")]
    arrays = cell
    for number, (mine, other) in enumerate(hops):
        source = Stub(arrays)
        scopes = ("l" if number == 0 else "x/y", "x/y")
        sides = [{"layout": n, "scope": s, **reset} for n, s in zip((mine, other), scopes, strict=True)]
        if builtin()[mine].packed:
            sides[0]["sizes"] = {"input": INPUT, "units": UNITS}
        made = planned(source, None, [rule(*sides)])
        if made.problems:
            assert any(
                reason in str(made.problems[0])
                for reason in ("free", "different functions", "no place", "already has", "is always")
            ), problems(made)
            return
        arrays = results(made, source)
    for name, want in cell.items():
        np.testing.assert_allclose(arrays[name.replace("l/", "x/y/")], want, rtol=0, atol=1e-6)


# Layers and directions -----------------------------------------------------------------------------------------------

STACK = {
    n: a
    for k in range(3)
    for n, a in tf1(keras("k", seed=10 * k, inputs=INPUT if k == 0 else UNITS), f"s/cell_{k}/lstm_cell/").items()
}


def layers(made: Any, source: Stub) -> dict[str, int]:
    """Which layer of the stack each kernel is."""
    kernels = {n: a for n, a in results(made, source).items() if n.endswith("kernel") and "recurrent" not in n}
    found = {}
    for name, kernel in kernels.items():
        for k in range(3):
            original = STACK[f"s/cell_{k}/lstm_cell/kernel"]
            if original.shape == kernel.shape and np.array_equal(original, kernel):
                found[name] = k
    return found


def test_a_stack_moves_layer_by_layer() -> None:
    source = Stub(STACK)
    made = planned(source, None, [rule("lstm.tf1 s", "lstm.tf1 m")])
    assert layers(made, source) == {f"m/cell_{k}/lstm_cell/kernel": k for k in range(3)}
    target = {n.replace("s/", "t/rnn/multi_rnn_cell/"): a.shape for n, a in STACK.items()}
    made = planned(source, target, [rule("lstm.tf1 s", "lstm.tf1 t")])
    assert layers(made, source) == {f"t/rnn/multi_rnn_cell/cell_{k}/lstm_cell/kernel": k for k in range(3)}


def test_picked_layers() -> None:
    source = Stub(STACK)
    sides = {"layout": "lstm.tf1", "scope": "s", "layers": [2, 1]}, {"layout": "lstm.tf1", "scope": "m"}
    made = planned(source, None, [rule(*sides)], ignore=["s/cell_0/**"])
    assert problems(made) == []
    assert layers(made, source) == {"m/cell_0/lstm_cell/kernel": 2, "m/cell_1/lstm_cell/kernel": 1}
    one = {"layout": "lstm.tf1", "scope": "s", "layers": 1}
    target = {f"m/lstm_cell/{n}": STACK[f"s/cell_1/lstm_cell/{n}"].shape for n in ("kernel", "bias")}
    made = planned(source, target, [rule(one, "lstm.tf1 m/lstm_cell")], ignore=["s/cell_0/**", "s/cell_2/**"])
    assert layers(made, source) == {"m/lstm_cell/kernel": 1}


def test_ignored_layers_leave_the_others_their_numbers() -> None:
    source = Stub(STACK)
    made = planned(source, None, [rule("lstm.tf1 s", "lstm.tf1 m")], ignore=["s/cell_0/**"])
    assert layers(made, source) == {"m/cell_1/lstm_cell/kernel": 1, "m/cell_2/lstm_cell/kernel": 2}
    made = planned(source, None, [rule("lstm.tf1 s", "lstm.tf1 m")], ignore=["s/cell_0/**", "s/cell_2/**"])
    assert layers(made, source) == {"m/kernel": 1}


def test_ignored_tensors_that_a_cell_can_lack() -> None:
    peep = {**tf1(keras(""), "l/"), **{f"l/w_{g}_diag": numbers(UNITS) for g in "ifo"}}
    source = Stub(peep)
    made = planned(source, None, [rule("lstm.tf1 l", "lstm.tf1 m")], ignore=["l/w_?_diag"])
    assert set(results(made, source)) == {"m/kernel", "m/bias"}


def test_of_two_cells_one_is_ignored() -> None:
    source = Stub({**keras("e/a"), **keras("e/b", seed=9)})
    made = planned(source, None, [rule("lstm.keras e", "lstm.keras x")], ignore=["e/a/**"])
    same(results(made, source), keras("x", seed=9))


def test_a_layer_picked_on_the_target_names_it() -> None:
    source = Stub({n: a for n, a in STACK.items() if "cell_1" in n})
    made = planned(
        source, None, [rule("lstm.tf1 s/cell_1/lstm_cell", {"layout": "lstm.tf1", "scope": "m", "layers": 2})]
    )
    assert layers(made, source) == {"m/cell_2/lstm_cell/kernel": 1}


def test_layers_that_one_side_lacks_are_left_over() -> None:
    source = Stub(STACK)
    two = {n.replace("s/", "m/"): a.shape for n, a in STACK.items() if "cell_2" not in n}
    made = planned(source, two, [rule("lstm.tf1 s", "lstm.tf1 m")])
    assert {p.what.split("'")[1] for p in made.problems} == {"s/cell_2/lstm_cell/kernel", "s/cell_2/lstm_cell/bias"}
    no_such = {"layout": "lstm.tf1", "scope": "s", "layers": [3]}
    assert problems(planned(source, None, [rule(no_such, "lstm.tf1 m")], ignore=["**"]))[0].startswith(
        "rules[0].from: "
    )
    assert (
        problems(planned(source, None, [rule(no_such, "lstm.tf1 m")]))[0]
        == "rules[0].from: no layer 3 in 's', which has 3"
    )


BOTH = {**keras("b/forward_lstm"), **keras("b/backward_lstm", seed=5)}


def test_directions() -> None:
    source = Stub(BOTH)
    made = planned(source, None, [rule("lstm.keras b", "lstm.tf1 m")])
    found = results(made, source)
    same({n: a for n, a in found.items() if "/fw/" in n}, tf1(keras(""), "m/fw/basic_lstm_cell/", 1.0))
    same({n: a for n, a in found.items() if "/bw/" in n}, tf1(keras("", seed=5), "m/bw/basic_lstm_cell/", 1.0))
    backward = {"layout": "lstm.keras", "scope": "b", "directions": "backward"}
    made = planned(source, None, [rule(backward, "lstm.keras m")], ignore=["b/forward_lstm/**"])
    same(results(made, source), keras("m", seed=5))
    one = Stub(keras("l"))
    target = shapes({n.replace("b/", "m/"): a for n, a in BOTH.items()})
    made = planned(
        one,
        target,
        [rule("lstm.keras l", {"layout": "lstm.keras", "scope": "m", "directions": "backward"})],
        keep=["m/forward_lstm/*"],
    )
    assert problems(made) == []
    same(results(made, one), keras("m/backward_lstm"))


def test_no_unit_on_both_sides() -> None:
    source = Stub(BOTH)
    side = {"layout": "lstm.keras", "scope": "b", "directions": "backward"}
    target = Stub(shapes(keras("m")), path="new")
    assert problems(planned(source, target, [rule(side, "lstm.keras m")], ignore=["b/forward_lstm/**"])) == []
    assert (
        problems(
            planned(
                Stub(keras("l")),
                target,
                [rule("lstm.keras l", {"layout": "lstm.keras", "scope": "m", "directions": ["backward"]})],
            )
        )[0]
        == "rules[0].to: no backward direction in 'm'"
    )


AXES = {
    "layouts": {
        "lstm.axes": {
            "gates": ["i", "f", "g", "o"],
            "tensors": {
                "W": "wx[direction (gate unit) input]",
                "R": "wt[direction (gate unit) hidden]",
                "B": "bi[direction (gate unit)]",
            },
        }
    }
}


def stacked(*cells: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    parts = [list(c.values()) for c in cells]
    return {
        "x/W": np.stack([p[0].T for p in parts]),
        "x/R": np.stack([p[1].T for p in parts]),
        "x/B": np.stack([p[2] for p in parts]),
    }


def test_directions_in_the_shape() -> None:
    one, two = keras("", seed=0), keras("", seed=5)
    source = Stub(BOTH)
    same(results(planned(source, None, [rule("lstm.keras b", "lstm.axes x")], **AXES), source), stacked(one, two))
    back = Stub(stacked(one, two))
    same(results(planned(back, None, [rule("lstm.axes x", "lstm.keras b")], **AXES), back), BOTH)


def test_half_a_tensor_is_neither_left_behind_nor_left_to_chance() -> None:
    both = Stub(stacked(keras(""), keras("", seed=5)))
    made = planned(both, shapes(keras("m")), [rule("lstm.axes x", "lstm.keras m")], **AXES)
    assert problems(made) == [
        "rules[0]: part of 'x/W', layer 0 backward, would be left behind: the target has none; "
        "pick what is to move: layers:, directions:"
    ]
    pick = {"layout": "lstm.axes", "scope": "x", "directions": "backward"}
    same(results(planned(both, shapes(keras("m")), [rule(pick, "lstm.keras m")], **AXES), both), keras("m", seed=5))
    one = Stub(keras("l"))
    made = planned(one, shapes(stacked(keras(""), keras(""))), [rule("lstm.keras l", "lstm.axes x")], **AXES)
    assert problems(made) == [
        f"rules[0]: only a part of target tensor 'x/{n}' would get values: the source lacks some of its layers or "
        "directions; nothing is left to chance"
        for n in "WRB"
    ]


# Refusals ------------------------------------------------------------------------------------------------------------


def refusals(source: Any, target: Any, *rules: Any, **more: Any) -> list[str]:
    made = planned(source, target, list(rules), **more)
    assert {o.disposition for o in made.outcomes} == {"refused"}
    assert not any(o.exact for o in made.outcomes)
    return problems(made)


def test_sizes_that_differ() -> None:
    target = {"m/kernel": (5, 20), "m/recurrent_kernel": (5, 20), "m/bias": (20,)}
    assert refusals(shapes(keras("l")), target, rule("lstm.keras l", "lstm.keras m")) == [
        "rules[0]: l -> m: the source has 3 inputs, the target 5",
        "rules[0]: l -> m: the source has 4 units, the target 5",
        "rules[0]: l -> m: the source has 4 outputs, the target 5",
    ]


def test_kinds_that_differ_in_users_own_layouts() -> None:
    own = {
        "layouts": {
            "odd.own": {
                "gates": ["i", "f", "g", "o"],
                "tensors": {"k": "wx[input (gate unit)]", "r": "wt[hidden (gate unit)]"},
            }
        }
    }
    with pytest.raises(Exception, match="another kind"):
        planned(shapes(keras("l")), None, [rule("lstm.keras l", "odd.own m")], **own)


def test_dtypes_are_never_mixed_or_cast() -> None:
    specs = {n: TensorSpec.of("float32", a.shape) for n, a in keras("l").items()}
    specs["l/kernel"] = TensorSpec.of("float16", specs["l/kernel"].shape)
    assert refusals(specs, None, rule("lstm.keras l", "lstm.tf1 m")) == [
        "rules[0]: l -> m: 'm/kernel' would be made of float32 ('l/recurrent_kernel'), float16 ('l/kernel'); "
        "cast them to one dtype by a transfer of their own first"
    ]
    made = planned(specs, None, [rule("lstm.keras l", "lstm.keras m")])
    assert made.items["m/kernel"].spec.dtype_name == "float16"
    target = {n: TensorSpec.of("float16", a.shape) for n, a in keras("m").items()}
    assert refusals(shapes(keras("l")), target, rule("lstm.keras l", "lstm.keras m"))[0] == (
        "rules[0]: 'm/kernel': dtype float32 for the target's float16; "
        "a cell keeps its dtype: cast its tensors to float16 by a transfer of their own first"
    )


def test_a_cell_that_is_ignored() -> None:
    assert refusals(shapes(keras("l")), None, rule("lstm.keras l", "lstm.keras m"), ignore=["l/**"]) == [
        "rules[0].from: the lstm.keras cell at or below scope 'l' is listed under ignore:"
    ]


def test_both_sides_are_looked_for_at_once() -> None:
    found = refusals(shapes(keras("l")), shapes(keras("m")), rule("lstm.keras k", "lstm.keras n"))
    assert found[:2] == ["rules[0].from: no scope 'k'", "rules[0].to: no scope 'n'"]


FACTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"activation": "relu"}, {"activation": "tanh"}, "the source's activation is relu, the target's tanh"),
    (
        {"recurrent_activation": "hard_sigmoid"},
        {"recurrent_activation": "sigmoid"},
        "the source's recurrent activation is hard_sigmoid, the target's sigmoid",
    ),
    ({"cell_clip": 3.0}, {}, "clipping (cell_clip): source 3, target none"),
]


@pytest.mark.parametrize(("mine", "its", "what"), FACTS)
def test_behaviours_that_both_sides_record(mine: Any, its: Any, what: str) -> None:
    source = Stub(shapes(keras("l")), {"l": mine})
    target = Stub(shapes(keras("m")), {"m": its}, path="new")
    assert refusals(source, target, rule("lstm.keras l", "lstm.keras m")) == [f"rules[0]: l -> m: {what}"]


def test_a_behaviour_that_one_side_records_is_assumed_of_the_other() -> None:
    source = Stub(shapes(keras("l")), {"l": {"activation": "relu"}})
    target = Stub(shapes(keras("m")), path="new")
    (outcome,) = planned(source, target, [rule("lstm.keras l", "lstm.keras m")]).outcomes
    assert (outcome.classed, outcome.exact) == ("assumed", False)
    assert outcome.notes == (
        "the target's activation is not recorded; taken to be relu, as on the other side "
        "(the framework's default is tanh)",
    )
    said = {"layout": "lstm.keras", "scope": "m", "activation": "relu"}
    (outcome,) = planned(source, target, [rule("lstm.keras l", said)]).outcomes
    assert (outcome.classed, outcome.exact, outcome.notes) == ("bijective", True, ())
    said["activation"] = "tanh"
    assert "activation is relu" in refusals(source, target, rule("lstm.keras l", said))[0]


def test_reset_modes() -> None:
    before = keras("l", kind="gru")
    after = {**{n.replace("l/", "m/"): a for n, a in before.items()}, "m/bias": numbers(2, 12)}
    what = "reset before and after the matrix product are different functions"
    assert refusals(shapes(before), shapes(after), rule("gru.keras l", "gru.keras m")) == [
        f"rules[0]: l -> m: the source's reset gate is before, the target's after: {what}; exact whatever its values: "
        "gru.keras (reset before), gru.coreml, gru.scoped-gates, gru.tf1 (reset before)"
    ]
    assert refusals(shapes(after), shapes(before), rule("gru.keras m", "gru.keras l"))[0] == (
        f"rules[0]: m -> l: the source's reset gate is after, the target's before: {what}; exact whatever its values: "
        "gru.keras (reset after), gru.tf1 (reset after), gru.keras-cudnn, gru.flax"
    )


def test_peepholes_and_projections() -> None:
    plain = shapes(tf1(keras(""), "m/"))
    peep = {**shapes(tf1(keras(""), "l/")), **{f"l/w_{g}_diag": (UNITS,) for g in "ifo"}}
    made = planned(peep, plain, [rule("lstm.tf1 l", "lstm.tf1 m")])
    assert (problems(made), made.outcomes[0].classed, made.outcomes[0].exact) == ([], "conditional", True)
    assert {(c.tensor, c.must, c.holds) for c in made.conditions} == {(f"l/w_{g}_diag", "zero", None) for g in "ifo"}
    assert "      exact only where the peepholes are all zero: l/w_i_diag, l/w_f_diag, l/w_o_diag " in str(made)
    source = Stub(tf1(keras(""), "l/"))
    target = {n.replace("l/", "m/"): s for n, s in peep.items()}
    made = planned(source, target, [rule("lstm.tf1 l", "lstm.tf1 m")])
    assert made.outcomes[0].notes[0] == "the target's peepholes are zero"
    assert not results(made, source)["m/w_f_diag"].any()


# The forget bias -----------------------------------------------------------------------------------------------------


def forget(source: Stub, target: Any, mine: dict[str, Any], its: dict[str, Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The target's forget gate's bias minus the source's, and the notes; from TensorFlow to Keras."""
    made = planned(
        source,
        target,
        [rule({"layout": "lstm.tf1", "scope": "l", **mine}, {"layout": "lstm.keras", "scope": "m", **its})],
    )
    assert problems(made) == []
    bias = results(made, source)["m/bias"][UNITS : 2 * UNITS]
    return bias - source.arrays["l/bias"][2 * UNITS : 3 * UNITS], made.outcomes[0].notes


@pytest.mark.parametrize(
    ("facts", "mine", "added", "notes"),
    [
        (
            {},
            {},
            1,
            (
                "the forget bias 1 is folded into the forget gate's bias",
                "the source's forget bias is not recorded: 1, the default of lstm.tf1",
            ),
        ),
        ({"forget_bias": 0.5}, {}, 0.5, ("the forget bias 0.5 is folded into the forget gate's bias",)),
        ({"forget_bias": 0.5}, {"forget_bias": 2}, 2, ("the forget bias 2 is folded into the forget gate's bias",)),
        ({}, {"forget_bias": 0}, 0, ()),
    ],
)
def test_the_forget_bias_is_folded_in(facts: Any, mine: Any, added: float, notes: Any) -> None:
    source = Stub(tf1(keras(""), "l/"), {"l": facts})
    found, said = forget(source, shapes(keras("m")), mine, {})
    np.testing.assert_allclose(found, added, atol=1e-6)
    assert said == notes


def test_the_forget_bias_is_taken_out() -> None:
    cell = keras("l")
    source = Stub(cell)
    made = planned(source, None, [rule("lstm.keras l", {"layout": "lstm.tf1", "scope": "m", "forget_bias": 1.0})])
    same(results(made, source), tf1(cell, "m/", 1.0))
    assert made.outcomes[0].notes == ("the forget bias 1 is taken out of the forget gate's bias",)
    made = planned(source, None, [rule("lstm.keras l", {"layout": "lstm.tf1", "scope": "m", "forget_bias": 0})])
    same(results(made, source), tf1(cell, "m/"))
    assert made.outcomes[0].classed == "bijective"


def test_equal_forget_biases_cancel() -> None:
    cell = tf1(keras(""), "l/")
    source = Stub(cell)
    made = planned(source, None, [rule("lstm.tf1 l", "lstm.tf1 m")])
    same(results(made, source), {n.replace("l/", "m/"): a for n, a in cell.items()})


# Overrides and users' own layouts ------------------------------------------------------------------------------------


def test_gates_in_another_order() -> None:
    cell = keras("l")
    source = Stub(cell)
    made = planned(source, None, [rule({"layout": "lstm.keras", "scope": "l", "gates": list("ofgi")}, "lstm.keras m")])
    bias = blocks(results(made, source)["m/bias"])
    np.testing.assert_array_equal(
        np.concatenate(bias), np.concatenate([blocks(cell["l/bias"])[k] for k in (3, 1, 2, 0)])
    )


def test_gates_under_other_names() -> None:
    cell = keras("l")
    source = Stub(cell)
    names = {"i": "in", "f": "keep", "g": "new", "o": "out"}
    target = {"layout": "lstm.scoped-gates", "scope": "m", "gates": names}
    found = results(planned(source, None, [rule("lstm.keras l", target)]), source)
    np.testing.assert_array_equal(found["m/keep/wx"], blocks(cell["l/kernel"])[1])
    np.testing.assert_array_equal(found["m/out/bi"].reshape(-1), blocks(cell["l/bias"])[3])


OWN = {
    "layouts": {
        "gru.columns": {  # column vectors, and an update gate that replaces instead of keeping
            "gates": {"r": "r", "~z": "u", "n": "h"},
            "reset": "before",
            "tensors": {"W{gate}x": "wx[unit input]", "W{gate}h": "wt[unit hidden]", "b{gate}": "bi[unit 1]"},
        }
    }
}


def test_own_layouts_transpose_and_complement() -> None:
    cell = keras("l", kind="gru")
    source = Stub(cell)
    made = planned(source, None, [rule("gru.keras l", "gru.columns m")], **OWN)
    found = results(made, source)
    kernel, recurrent, bias = (np.split(a, 3, -1) for a in cell.values())
    expected = {}
    for gate, name, sign in ((1, "r", 1), (0, "u", -1), (2, "h", 1)):
        expected[f"m/W{name}x"] = sign * kernel[gate].T
        expected[f"m/W{name}h"] = sign * recurrent[gate].T
        expected[f"m/b{name}"] = sign * bias[gate][:, None]
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want)
    back = Stub(found)
    same(results(planned(back, None, [rule("gru.columns m", "gru.keras l")], **OWN), back), cell)


def test_two_rules_for_two_cells_of_one_kind() -> None:
    source = Stub({**keras("a"), **keras("b", seed=9)})
    made = planned(source, None, [rule("lstm.keras a", "lstm.keras x"), rule("lstm.keras b", "lstm.keras y")])
    same(results(made, source), {**keras("x"), **keras("y", seed=9)})
    made = planned(source, None, [rule("lstm.keras a", "lstm.keras x"), rule("lstm.keras b", "lstm.keras x")])
    assert all("was given another value by rules[0]" in p for p in problems(made))
    made = planned(source, None, [rule("lstm.keras ", "lstm.keras x")])
    assert "2 cells of layout lstm.keras stand below scope ''" in problems(made)[0]
