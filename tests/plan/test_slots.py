"""Optimizer slots that go where their variables go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.plan.stub import Stub
from tests.support import fixture, need
from weightport.mapping import load_mapping
from weightport.plan import Plan, plan

SEED = fixture("d_checkpoints/train_state_adam_ema").path("checkpoint_v2")
CELL = {"from": {"layout": "lstm.scoped-gates", "scope": "LSTMcell"}, "to": {"layout": "lstm.keras", "scope": "lstm"}}


def planned(shapes: dict[str, Any], rules: list[dict[str, Any]], target: Stub | None = None, **more: Any) -> Plan:
    roles = {name: "slot" for name in shapes if name.rpartition("/")[2] in ("m", "v")}
    return plan(Stub(shapes, roles=roles), target, load_mapping({"weightport": 1, "rules": rules, **more}))


def told(found: Plan) -> list[str]:
    return [str(problem) for problem in found.problems]


def test_slots_move_as_their_variables_do() -> None:
    shapes = {"a": (2, 3), "a/m": (2, 3), "a/v": (2, 3), "b": (2, 4), "b/m": (2, 4), "b/v": (2, 4)}
    rule = {"from": ["a", "b"], "to": "w", "concat": 1, "rearrange": "i o -> o i", "slots": True}
    found = planned(shapes, [rule])
    assert told(found) == []
    assert {name: item.spec.shape for name, item in found.items.items()} == {"w": (7, 2), "w/m": (7, 2), "w/v": (7, 2)}
    assert found.items["w/v"].expr.leaves() == {"a/v", "b/v"}
    assert set(found.source.values()) == {"moved"}
    (outcome,) = found.as_json()["rules"]
    assert outcome["to"] == ["w", "w/m", "w/v"]
    assert outcome["notes"] == ["slots: 2 carried along"]
    assert told(planned(shapes, [{**rule, "slots": False}])) == [
        "model: 4 optimizer slots are claimed by no rule: 'a/m', 'a/v', 'b/m', ...; leave behind what is not wanted: "
        "ignore: ['**/m', '**/v']"
    ]


def test_a_target_has_to_have_the_slots() -> None:
    shapes = {"a": (2, 3), "a/m": (2, 3)}
    rules = [{"from": "a", "to": "w", "slots": True}]
    target = Stub({"w": (2, 3), "w/m": (2, 3), "w/v": (2, 3)}, roles={"w/m": "slot", "w/v": "slot"})
    found = planned(shapes, rules, target)
    assert told(found) == []
    assert found.target == {"w": "moved", "w/m": "moved", "w/v": "kept"}
    assert told(planned(shapes, rules, Stub({"w": (2, 3)}))) == ["rules[0].to: no tensor 'w/m' in the target"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"scale": 2.0}, "the variable is scaled, and each optimizer scales its slots in its own way"),
        ({"pad": [[0, 1], [0, 0]]}, "a part of the variable is new, and has no slot yet"),
    ],
)
def test_what_is_no_move_has_no_slot(more: dict[str, Any], why: str) -> None:
    found = planned({"a": (2, 3), "a/m": (2, 3)}, [{"from": "a", "to": "w", "slots": True, **more}])
    assert told(found) == [f"rules[0]: 'w': slots: 'm' cannot be carried along: {why}; leave slots out of this rule"]


def test_slots_that_are_not_all_there() -> None:
    rule = {"from": ["a", "b"], "to": "w", "concat": 0, "slots": True}
    shapes: dict[str, Any] = {"a": (2, 3), "a/m": (2, 3), "b": (2, 3)}
    assert told(planned(shapes, [rule])) == ["rules[0]: 'w': slots: 'b' has no slot 'm', the others have"]
    shapes = {"a": (2, 3), "a/m": (), "b": (2, 3), "b/m": ()}
    assert told(planned(shapes, [rule])) == ["rules[0]: 'w': slots: 'a/m' has the shape [], its variable [2, 3]"]
    none = "rules[0]: slots: none of its tensors has an optimizer slot; slots: false, or optional: true"
    assert told(planned({"a": (2,)}, [{"from": "a", "to": "w", "slots": True}])) == [none]
    assert told(planned({"a": (2,)}, [{"from": "a", "to": "w", "slots": True, "optional": True}])) == []
    ignored = planned({"a": (2,), "a/m": (2,)}, [{"from": "a", "to": "w", "slots": True}], ignore=["**/m"])
    assert told(ignored) == [none]


def test_a_cell_with_its_slots(tmp_path: Path) -> None:
    rules = {
        "weightport": 1,
        "rules": [{**CELL, "slots": True}, {"from": "{x}", "to": "head/{x}", "slots": True}],
        "ignore": ["**/ExponentialMovingAverage", "global_step", "beta?_power"],
    }
    out = str(tmp_path / "o.ckpt")
    result = wp.transfer(SEED, None, rules, out=out)
    with wp.open(SEED) as source, wp.open(out) as made:
        assert set(made.specs()) == {
            f"{name}{slot}"
            for name in ("lstm/kernel", "lstm/recurrent_kernel", "lstm/bias", "head/softmax_w", "head/softmax_b")
            for slot in ("", "/Adam", "/Adam_1")
        }
        gates = ("input_gate", "forget_gate", "memory_cell", "output_gate")
        for slot in ("", "/Adam", "/Adam_1"):
            stored = np.concatenate([source.read(f"LSTMcell/{gate}/wt{slot}") for gate in gates], 1)
            assert np.array_equal(made.read(f"lstm/recurrent_kernel{slot}"), stored)
    assert wp.verify(SEED, out, rules).equal
    assert result.plan.outcomes[0].notes[-1] == "slots: 6 carried along"
    # And back again, bit for bit.
    back = str(tmp_path / "back.npz")
    wp.transfer(out, None, load_mapping(rules).reversed(), out=back)
    with wp.open(SEED) as source, wp.open(back) as made:
        assert len(made.specs()) == 42
        for name in made.specs():
            assert np.array_equal(made.read(name), source.read(name)), name


def test_biases_that_are_summed_and_a_forget_bias() -> None:
    shapes: dict[str, Any] = {
        "l/weight_ih_l0": (8, 3),
        "l/weight_hh_l0": (8, 2),
        "l/bias_ih_l0": (8,),
        "l/bias_hh_l0": (8,),
    }
    for name in list(shapes):
        shapes[f"{name}/m"] = shapes[name]
    rule = {"from": {"layout": "lstm.torch", "scope": "l"}, "to": {"layout": "lstm.keras", "scope": "k"}, "slots": True}
    found = planned(shapes, [rule])
    assert told(found) == [
        "rules[0]: 'k/bias': slots: 'm' cannot be carried along: several variables are summed into one, whose slot is "
        "not the sum of theirs; leave slots out of this rule"
    ]
    # A constant that is added to a variable changes nothing about its slots.
    shapes = {"c/kernel": (5, 8), "c/kernel/m": (5, 8), "c/bias": (8,), "c/bias/m": (8,)}
    rule = {
        "from": {"layout": "lstm.tf1", "scope": "c", "forget_bias": 1},
        "to": {"layout": "lstm.keras", "scope": "k"}, "slots": True,
    }  # fmt: skip
    arrays = {name: np.arange(np.prod(shape), dtype="float32").reshape(shape) for name, shape in shapes.items()}
    source = Stub(arrays, roles={name: "slot" for name in arrays if name.endswith("/m")})
    made = plan(source, None, load_mapping({"weightport": 1, "rules": [rule]}))
    assert told(made) == []
    from weightport.execute import Reader

    order = np.r_[0:2, 4:6, 2:4, 6:8]
    bias = Reader(source).value(made.items["k/bias"])
    assert bias.tolist() == (arrays["c/bias"][order] + np.array([0, 0, 1, 1, 0, 0, 0, 0])).tolist()
    assert Reader(source).value(made.items["k/bias/m"]).tolist() == arrays["c/bias/m"][order].tolist()


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Two matrices trained by Adam become one; the next steps of both models give the same weights."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    rng = np.random.default_rng(0)
    data = rng.normal(size=(7, 3)).astype("float32")
    wanted = rng.normal(size=(7, 5)).astype("float32")

    def model(apart: bool) -> tuple[Any, Any]:
        shapes = {"a": [3, 2], "b": [3, 3]} if apart else {"w": [3, 5]}
        parts = [
            v1.get_variable(n, s, initializer=v1.glorot_uniform_initializer(seed=1), use_resource=True)
            for n, s in shapes.items()
        ]
        out = tf.concat([tf.matmul(data, p) for p in parts], 1)
        step = v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum((out - wanted) ** 2))
        return tf.concat(parts, 1), step

    with tf.Graph().as_default(), v1.Session() as session:
        weights, step = model(apart=True)
        session.run(v1.global_variables_initializer())
        for _ in range(3):
            session.run(step)
        first = v1.train.Saver().save(session, str(tmp_path / "a.ckpt"))
        for _ in range(2):
            session.run(step)
        expected = session.run(weights)
    with tf.Graph().as_default(), v1.Session() as session:
        weights, step = model(apart=False)
        session.run(v1.global_variables_initializer())
        new = v1.train.Saver().save(session, str(tmp_path / "b.ckpt"))
        rules = [
            {"from": ["a", "b"], "to": "w", "concat": 1, "slots": True},
            {"from": "{x}_power", "to": "{x}_power"},
        ]
        out = str(tmp_path / "c.ckpt")
        wp.transfer(first, new, {"weightport": 1, "rules": rules}, out=out)
        v1.train.Saver().restore(session, out)
        for _ in range(2):
            session.run(step)
        found = session.run(weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_is_new_has_no_slots() -> None:
    with pytest.raises(wp.MappingError) as error:
        load_mapping({"weightport": 1, "rules": [{"to": "a", "initialize": "zeros", "slots": True}]})
    assert str(error.value) == "rules[0].slots: a rule with initialize has no slots; what is new has none"
