"""Plans: names, claims, precedence, initial values, accounts; every problem, and no tensor bytes."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.plan.stub import Stub, numbers, planned, problems, results
from weightport.errors import PlanError
from weightport.initializers import initialize
from weightport.mapping.patterns import Glob, Pattern
from weightport.plan import accounts, names, plan
from weightport.plan.names import Names
from weightport.tensors import TensorSpec

# weightport.plan is a function too, so that its modules are named in full.
build = importlib.import_module("weightport.plan.build")
F32 = np.dtype("float32")


def moves(made: Any) -> dict[str, str]:
    """Target -> the one source tensor that it is."""
    return {name: next(iter(item.expr.leaves())) for name, item in made.items.items()}


# Names ---------------------------------------------------------------------------------------------------------------


def test_a_literal_name() -> None:
    made = planned({"a/b": (2,)}, {"c": (2,)}, [{"from": "a/b", "to": "c"}])
    assert moves(made) == {"c": "a/b"}
    assert made.check() is made
    assert made.bytes == 8


def test_captures_and_arithmetic() -> None:
    source = {f"bert/layer_{n}/{role}/kernel": (2,) for n in range(12) for role in ("query", "key")}
    made = planned(source, None, [{"from": "bert/layer_{n}/{role}/kernel", "to": "encoder.{n+1}.{role}.weight"}])
    assert problems(made) == []
    assert moves(made) == {
        f"encoder.{n + 1}.{r}.weight": f"bert/layer_{n}/{r}/kernel" for n in range(12) for r in ("query", "key")
    }


def test_a_wide_capture_takes_whole_scopes() -> None:
    made = planned({"a/b/c": (1,), "a/d": (1,)}, None, [{"from": "a/{rest**}", "to": "new/{rest**}"}])
    assert moves(made) == {"new/b/c": "a/b/c", "new/d": "a/d"}


def test_arithmetic_below_zero_is_a_problem() -> None:
    made = planned({"l0": (1,), "l1": (1,)}, None, [{"from": "l{n}", "to": "m{n-1}"}])
    assert problems(made) == ["rules[0].to: {n-1} is below zero: {n} is '0'"]


def test_several_sources_bind_by_the_first() -> None:
    source = {f"h{n}/{p}": (2, 3) for n in range(2) for p in "qkv"}
    made = planned(source, None, [{"from": ["h{n}/q", "h{n}/k", "h{n}/v"], "to": "h.{n}.qkv", "concat": 1}])
    assert {n: sorted(i.expr.leaves()) for n, i in made.items.items()} == {
        f"h.{n}.qkv": [f"h{n}/k", f"h{n}/q", f"h{n}/v"] for n in range(2)
    }
    assert made.items["h.0.qkv"].spec.shape == (2, 9)


def test_a_second_source_that_is_not_there() -> None:
    made = planned({"h0/q": (2,), "h0/key": (2,)}, None, [{"from": ["h{n}/q", "h{n}/keys"], "to": "m{n}", "concat": 0}])
    assert problems(made) == [
        "rules[0].from[1]: no tensor 'h0/keys' in model; closest: 'h0/key'",
        "model: source tensor 'h0/key' (float32 [2]) is claimed by no rule; "
        "move it by a rule, or list it under ignore:",
    ]


def test_scopes_stand_before_every_name() -> None:
    made = planned(
        {"old/enc/w": (1,), "old/enc/u": (1,), "w": (1,)},
        {"new/w": (1,), "new/u": (1,), "new/x": (1,)},
        [{"from": "enc/{w}", "to": "{w}"}, {"to": "x", "initialize": "zeros"}],
        source={"scope": "old"},
        target={"scope": "new"},
        ignore=["w"],
    )
    assert problems(made) == []
    assert {n: sorted(i.expr.leaves()) for n, i in made.items.items()} == {
        "new/w": ["old/enc/w"],
        "new/u": ["old/enc/u"],
        "new/x": [],
    }


def test_scopes_end_in_a_dot_where_the_names_have_dots() -> None:
    made = planned(
        {"model.a.w": (2,), "model.b.w": (2,), "model.lstm.weight_ih_l0": (8, 3), "model.lstm.weight_hh_l0": (8, 2)},
        {"new.a.w": (2,), "new.b.w": (2,), "new.c": (2,), "new.rnn.kernel": (3, 8), "new.rnn.recurrent_kernel": (2, 8)},
        [
            {"from": {"layout": "lstm.torch", "scope": "lstm"}, "to": {"layout": "lstm.keras", "scope": "rnn"}},
            {"from": "{x}.w", "to": "{x}.w"},
        ],
        source={"scope": "model"},
        target={"scope": "new"},
        ignore=["b.w"],
        keep=["c", "b.w"],
    )
    assert problems(made) == []
    assert made.items["new.a.w"].expr.leaves() == {"model.a.w"}
    assert made.source["model.b.w"] == "ignored"
    assert (made.target["new.c"], made.target["new.b.w"]) == ("kept", "kept")
    slashed = planned({"m/a.w": (2,)}, {"n/a.w": (2,)}, [{"from": "{x**}", "to": "{x**}"}], source={"scope": "m"},
                      target={"scope": "n"})  # fmt: skip
    assert problems(slashed) == []
    new = planned({"a": (2,)}, None, [{"from": "a", "to": "b"}], target={"scope": "encoder."})
    assert list(new.items) == ["encoder.b"]


def test_a_root_that_the_mapping_leaves_out_may_end_in_a_dot() -> None:
    target = Stub({"module.lstm.weight_ih_l0": (8, 3), "module.lstm.weight_hh_l0": (8, 2), "module.head.w": (2,)})
    target.root = "module"
    source = {"l/kernel": (3, 8), "l/recurrent_kernel": (2, 8), "w": (2,)}
    rules = [
        {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.torch", "scope": "lstm"}},
        {"from": "w", "to": "head.w"},
    ]
    assert problems(planned(source, target, rules)) == []
    rules[0]["to"]["scope"], rules[1]["to"] = "module.lstm", "module.head.w"
    assert problems(planned(source, target, rules)) == []


def test_one_name_of_a_tied_tensor_covers_the_others() -> None:
    target = Stub({"a": (2,), "b": (2,), "c": (2,)})
    target.tied = {"a": "a", "b": "a"}
    made = planned({"x": (2,)}, target, [{"from": "x", "to": "b", "as": "constant"}], keep=["c"])
    assert (problems(made), made.target) == ([], {"a": "constant", "b": "constant", "c": "kept"})
    made = planned({"x": (2,)}, target, [{"from": "x", "to": "b"}], keep=["a", "c"])
    assert problems(made) == [
        "new: target tensor 'a' is tied to 'b', which gets a value: it cannot keep its own; take it out of keep:"
    ]
    made = planned({}, target, [{"to": "{n}", "initialize": "zeros"}])
    assert (problems(made), list(made.items), set(made.target.values())) == ([], ["a", "c"], {"initialized"})


def test_a_tensor_that_cannot_be_read_is_refused_in_the_plan_and_may_be_left_behind() -> None:
    specs = {"w": (2,), "q": TensorSpec(np.dtype(np.int8), (2,), 2, unread="quantized (per tensor affine)")}
    made = planned(specs, {"w": (2,), "q": TensorSpec.of("int8", (2,))}, [{"from": "{x}", "to": "{x}"}])
    assert problems(made) == [
        "rules[0]: tensor 'q' of model cannot be read: quantized (per tensor affine); leave it behind: list it under "
        "ignore:",
    ]
    left = planned(specs, {"w": (2,)}, [{"from": "{x}", "to": "{x}"}], ignore=["q"])
    assert problems(left) == []


def test_globs_match_in_full_or_below_the_scope() -> None:
    assert names.matching([Glob("Adam")], ["s/Adam", "Adam", "t/Adam"], "s") == {"s/Adam", "Adam"}


def test_a_source_may_feed_many_targets() -> None:
    made = planned({"a": (2,)}, {"b": (2,), "c": (2,)}, [{"from": "a", "to": "b"}, {"from": "a", "to": "c"}])
    assert problems(made) == []
    assert moves(made) == {"b": "a", "c": "a"}


# Precedence ----------------------------------------------------------------------------------------------------------


def test_patterns_never_take_what_is_ignored_and_a_name_in_full_does() -> None:
    source = {"a/w": (1,), "a/w/Adam": (1,), "b/w/Adam": (1,)}
    rules = [{"from": "{x**}", "to": "m/{x**}"}, {"from": "b/w/Adam", "to": "slot"}]
    made = planned(source, None, rules, ignore=["**/Adam"])
    assert moves(made) == {"m/a/w": "a/w", "slot": "b/w/Adam"}
    assert made.source == {"a/w": "moved", "a/w/Adam": "ignored", "b/w/Adam": "moved"}


def test_patterns_never_take_what_is_kept_and_a_name_in_full_does() -> None:
    source, target = {"e/w": (1,), "e/u": (1,)}, {"d/w": (1,), "d/u": (1,)}
    made = planned(source, target, [{"from": "e/w", "to": "d/w"}], keep=["d/**"], ignore=["e/u"])
    assert made.target == {"d/w": "moved", "d/u": "kept"}
    made = planned(source, target, [{"from": "e/{x}", "to": "d/{x}"}], keep=["d/u"], ignore=["e/u"])
    assert made.target == {"d/w": "moved", "d/u": "kept"}
    made = planned({"e/w": (1,), "e/u": (1,)}, target, [{"from": "e/{x}", "to": "d/{x}"}], keep=["d/u"])
    assert made.source == {"e/w": "moved", "e/u": "unclaimed"}


def test_a_pattern_whose_targets_are_all_kept_says_so() -> None:
    made = planned({"e/w": (1,)}, {"d/w": (1,)}, [{"from": "e/{x}", "to": "d/{x}"}], keep=["d/**"], ignore=["e/w2"])
    assert problems(made)[0] == (
        "rules[0]: everything that 'e/{x}' matches would go to target tensors that keep: lists; "
        "take them out of one of the two"
    )


def test_a_pattern_that_matches_only_ignored_names_says_so() -> None:
    made = planned({"e/w": (1,)}, None, [{"from": "e/{x}", "to": "d/{x}"}], ignore=["e/**"])
    assert problems(made) == ["rules[0]: 'e/{x}' matches only tensors that ignore: lists"]


def test_the_first_claim_wins_and_another_value_is_an_error() -> None:
    source, target = {"a": (2,), "b": (2,)}, {"c": (2,)}
    made = planned(source, target, [{"from": "a", "to": "c"}, {"from": "b", "to": "c"}])
    assert problems(made) == [
        "rules[1]: target tensor 'c' was given another value by rules[0]; "
        "the first rule wins; take it out of one of them"
    ]
    assert moves(made) == {"c": "a"}
    assert [o.disposition for o in made.outcomes] == ["moved", "refused"]


def test_the_same_claim_twice_is_fine() -> None:
    rules = [{"from": "a", "to": "c"}, {"from": "{x}", "to": "c"}]
    assert problems(planned({"a": (2,)}, {"c": (2,)}, rules)) == []
    rules = [{"from": "a", "to": "c"}, {"from": "a", "to": "c", "as": "constant"}]
    assert problems(planned({"a": (2,)}, {"c": (2,)}, rules)) == [
        "rules[1]: target tensor 'c' is constant here and initial by rules[0]; "
        "the first rule wins; take it out of one of them"
    ]


def test_one_rule_with_two_values_for_one_target() -> None:
    made = planned({"a/w": (2,), "b/w": (2,)}, None, [{"from": "{s}/{w}", "to": "new/{w}"}])
    assert problems(made) == [
        "rules[0]: target tensor 'new/w' gets two values from this rule: of 'a/w', and of 'b/w'; "
        "its from has captures that its to lacks"
    ]


def test_constants() -> None:
    made = planned({"a": (2,)}, {"c": (2,)}, [{"from": "a", "to": "c", "as": "constant"}])
    assert made.items["c"].constant
    assert made.target == {"c": "constant"}
    assert made.as_json()["rules"][0]["as"] == "constant"


def test_optional_rules() -> None:
    rules: list[Any] = [
        {"from": "a", "to": "c"},
        {"from": "x", "to": "c", "optional": True},
        {"from": "x/{n}", "to": "c{n}", "optional": True},
        {"to": "y", "initialize": "zeros", "optional": True},
        {"to": "y{n}", "initialize": "zeros", "optional": True},
        {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.tf1", "scope": "m"}, "optional": True},
    ]
    made = planned({"a": (2,)}, {"c": (2,)}, rules)
    assert problems(made) == []
    assert [o.disposition for o in made.outcomes] == ["moved", "unused", "unused", "unused", "unused", "unused"]
    made = planned({"a1": (2,), "a2": (2,)}, {"c1": (2,)}, [{"from": "a{n}", "to": "c{n}", "optional": True}])
    assert made.source == {"a1": "moved", "a2": "unclaimed"}


def test_a_cell_that_the_target_lacks_is_optional_too() -> None:
    cell = {"kernel": (3, 16), "recurrent_kernel": (4, 16), "bias": (16,)}
    rule = {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.keras", "scope": "m"}}
    source = {f"l/{n}": s for n, s in cell.items()}
    made = planned(source, {"x": (1,)}, [{**rule, "optional": True}], ignore=["l/**"], keep=["x"])
    assert made.outcomes[0].disposition == "unused"


# What does not fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "its", "what"),
    [
        (((2, 3), "float32"), ((3, 2), "float32"), "shape [2, 3] for the target's [3, 2]; rearrange: a b -> b a"),
        (
            ((2, 3, 4), "float32"),
            ((4, 2, 3), "float32"),
            "shape [2, 3, 4] for the target's [4, 2, 3]; perhaps rearrange: a b c -> c a b",
        ),
        (((6,), "float32"), ((1, 6), "float32"), "shape [6] for the target's [1, 6]; reshape: [1, 6]"),
        (((6,), "float32"), ((7,), "float32"), "shape [6] for the target's [7]"),
        (((6,), "float32"), ((6,), "float16"), "dtype float32 for the target's float16; cast: float16"),
        (
            ((6,), "float32"),
            ((1, 6), "bfloat16"),
            "shape [6] for the target's [1, 6]; dtype float32 for the target's bfloat16; reshape: [1, 6]",
        ),
    ],
)
def test_misfits_name_the_operation_that_helps(mine: Any, its: Any, what: str) -> None:
    source = {"a": TensorSpec.of(mine[1], mine[0])}
    made = planned(source, {"b": TensorSpec.of(its[1], its[0])}, [{"from": "a", "to": "b"}])
    assert problems(made) == [f"rules[0]: 'b': {what}"]
    assert made.target == {"b": "uncovered"}


def test_names_that_are_not_there_get_the_nearest() -> None:
    made = planned(
        {"encoder/lstm/kernel": (2,)},
        {"enc/kernel": (2,)},
        [{"from": "encoder/lstm/kernal", "to": "enc/kernel"}, {"from": "encoder/lstm/kernel", "to": "enc/kernal"}],
    )
    assert problems(made) == [
        "rules[0].from: no tensor 'encoder/lstm/kernal' in model; closest: 'encoder/lstm/kernel'",
        "rules[1].to: no tensor 'enc/kernal' in new; closest: 'enc/kernel'",
    ]


def test_the_line_is_that_of_the_name(tmp_path: Any) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "weightport: 1\nrules:\n  - to: y\n    from:\n      - a\n      - ax\n    concat: 0\n", encoding="utf-8"
    )
    made = plan(Stub({"a": (1,)}), None, wp.load_mapping(path))
    assert problems(made) == [f"{path}:6 rules[0].from[1]: no tensor 'ax' in model; closest: 'a'"]


def test_a_glob_or_a_narrow_capture_in_a_rule() -> None:
    fix = "* and ? are no wildcards in a rule: write {name}, which stops at / and ., or {name**}, which does not"
    rules = [
        {"from": "a/*", "to": "x"},
        {"from": "a/{w}", "to": "y/{w}"},
        {"to": "*", "initialize": "zeros"},
    ]
    made = planned({"a/b/w": (1,), "a/b/*w": (1,)}, {"c": (1,)}, rules, ignore=["b"], keep=["d"])
    assert problems(made)[:3] == [
        "rules[0].from: no tensor 'a/*' in model; closest: 'a/b/*w'",
        "rules[1]: 'a/{w}' matches no tensor of model; a capture such as {name} stops at / and .; {name**} does not: "
        "'a/{w**}'",
        f"rules[2].to: no tensor '*' in new; {fix}",
    ]


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (
            {"from": "x/{n}", "to": "y{n}"},
            "rules[0]: 'x/{n}' matches no tensor of model; optional: true if it need not",
        ),
        (
            {"from": "aa{n}", "to": "y{n}"},
            "rules[0]: 'aa{n}' matches no tensor of model; optional: true if it need not",
        ),
        (
            {"to": "x/{n}", "initialize": "zeros"},
            "rules[0]: 'x/{n}' matches no tensor of new; optional: true if it need not",
        ),
        ({"to": "cc", "initialize": "zeros"}, "rules[0].to: no tensor 'cc' in new; closest: 'c'"),
    ],
)
def test_a_rule_that_matches_nothing(rule: Any, what: str) -> None:
    made = planned({"a": (1,)}, {"c": (1,)}, [rule], ignore=["a"], keep=["c"])
    assert problems(made) == [what]
    assert made.outcomes[0].disposition == "refused"


def test_every_rule_that_matches_nothing_is_named() -> None:
    """Also the eleventh, whose place begins as the second's does."""
    rules = [{"from": f"x{k}/{{n}}", "to": f"y{k}{{n}}"} for k in range(12)]
    assert len(problems(planned({"a": (1,)}, None, rules, ignore=["a"]))) == 12


UNUSED = [{"from": "not/there", "to": "x", "optional": True}]

# Accounts ------------------------------------------------------------------------------------------------------------


def test_one_source_tensor_left_over() -> None:
    made = planned({"a": (1,), "b": (2, 3)}, {"c": (1,)}, [{"from": "a", "to": "c"}])
    assert problems(made) == [
        "model: source tensor 'b' (float32 [2, 3]) is claimed by no rule; move it by a rule, or list it under ignore:"
    ]
    assert made.source == {"a": "moved", "b": "unclaimed"}


def test_one_target_tensor_left_over() -> None:
    made = planned({"a": (1,)}, {"c": (1,), "d": (2, 3)}, [{"from": "a", "to": "c"}])
    assert problems(made) == [
        "new: target tensor 'd' (float32 [2, 3]) gets no value; "
        "move or initialize: it by a rule, or list it under keep:"
    ]
    assert made.target == {"c": "moved", "d": "uncovered"}
    with pytest.raises(PlanError, match="'d'"):
        made.check()


def test_what_is_left_over_is_counted_from_fifty_on() -> None:
    made = planned({f"a{k}": (1,) for k in range(60)}, {f"c{k}": (1,) for k in range(53)}, UNUSED)
    assert len(made.problems) == 102
    assert str(made.problems[50]) == "model: 10 more source tensors are claimed by no rule; the next is 'a50'"
    assert str(made.problems[-1]) == "new: 3 more target tensors get no value; the next is 'c50'"


def test_the_problems_of_one_rule_are_counted_from_fifty_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hints: list[str] = []
    monkeypatch.setattr(build, "closest", lambda name, _: hints.append(name) or "")
    made = planned({f"a{k}": (1,) for k in range(500)}, {"b": (1,)}, [{"from": "a{n}", "to": "c{n}"}], keep=["b"])
    assert len(made.problems) == accounts.LISTED + 1
    assert str(made.problems[-1]) == (
        "rules[0]: 450 more problems of this kind; the next is rules[0].to: no tensor 'c50' in new"
    )
    assert len(hints) == accounts.LISTED


def test_optimizer_state_is_one_problem_for_each_kind() -> None:
    roles = {"a/Adam": "slot", "b/Adam": "slot", "beta1_power": "optimizer", "global_step": "counter"}
    source = Stub({"a": (1,), **dict.fromkeys(roles, (1,))}, roles=roles)
    made = planned(source, None, [{"from": "a", "to": "a"}])
    assert problems(made) == [
        "model: 2 optimizer slots are claimed by no rule: 'a/Adam', 'b/Adam'; "
        "leave behind what is not wanted: ignore: ['**/Adam']",
        "model: 1 optimizer variable is claimed by no rule: 'beta1_power'; "
        "leave behind what is not wanted: ignore: ['beta1_power']",
        "model: 1 counter is claimed by no rule: 'global_step'; "
        "leave behind what is not wanted: ignore: ['global_step']",
    ]


def test_a_targets_training_state_keeps_its_values_and_is_not_initialized_by_patterns() -> None:
    roles = {"w/Adam": "slot", "step": "counter", "shape": "constant"}
    target = Stub({"w": (1,), "u": (1,), **dict.fromkeys(roles, (1,))}, roles=roles, path="new")
    made = planned({"a": (1,)}, target, [{"from": "a", "to": "w"}, {"to": "{x**}", "initialize": "ones"}])
    assert problems(made) == []
    assert made.target == {"w": "moved", "u": "initialized", "w/Adam": "kept", "step": "kept"}


def test_constants_of_a_source_can_be_moved_and_need_not_be() -> None:
    source = Stub({"w": (1,), "k/axis": (1,), "k/scale": (1,)}, roles={"k/axis": "constant", "k/scale": "constant"})
    made = planned(source, None, [{"from": "{x**}", "to": "m/{x**}"}, {"from": "k/scale", "to": "scale"}])
    assert problems(made) == []
    assert made.source == {"w": "moved", "k/scale": "moved"}


def test_what_a_refused_rule_would_have_moved_is_no_second_problem() -> None:
    made = planned({"a": (2,)}, {"b": (3,)}, [{"from": "a", "to": "b"}])
    assert problems(made) == ["rules[0]: 'b': shape [2] for the target's [3]"]


def test_the_json_document() -> None:
    made = planned(
        {"a": (2,), "s": (1,)},
        {"c": (2,), "d": (1,), "k": (1,)},
        [{"from": "a", "to": "c", "as": "constant"}, {"to": "d", "initialize": "zeros"}],
        ignore=["s"],
        keep=["k"],
    )
    assert made.as_json() == {
        "rules": [
            {
                "rule": "rules[0]",
                "disposition": "moved",
                "from": ["a"],
                "to": ["c"],
                "as": "constant",
                "exact": True,
                "class": "bijective",
                "notes": [],
                "conditions": [],
            },
            {
                "rule": "rules[1]",
                "disposition": "initialized",
                "from": [],
                "to": ["d"],
                "as": "initial",
                "exact": True,
                "class": "bijective",
                "notes": [],
                "conditions": [],
            },
        ],
        "source": {"a": "moved", "s": "ignored"},
        "target": {"c": "constant", "d": "initialized", "k": "kept"},
        "bytes": 12,
        "problems": [],
    }
    assert planned({"a": (2,)}, None, [{"from": "b", "to": "c"}]).as_json()["problems"] == [
        {"where": "rules[0].from", "what": "no tensor 'b' in model", "hint": ""},
        {
            "where": "model",
            "what": "source tensor 'a' (float32 [2]) is claimed by no rule",
            "hint": "move it by a rule, or list it under ignore:",
        },
    ]


def test_ten_mistakes_are_ten_problems() -> None:
    rules: list[Any] = [
        {"from": "no1", "to": "t0"},
        {"from": "s0", "to": "no2"},
        {"from": "s1", "to": "t1"},
        {"from": "s2", "to": "t2", "reshape": [7]},
        {"from": "x/{n}", "to": "y/{n}"},
        {"from": "s3", "to": "t3"},
        {"from": "s4", "to": "t3"},
        {"to": "t4", "initialize": "orthogonal"},
        {"from": {"layout": "lstm.keras", "scope": "no"}, "to": {"layout": "lstm.keras", "scope": "t"}},
        {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.keras", "scope": "no"}},
    ]
    source = {f"s{k}": (4,) for k in range(5)}
    target = {"t0": (4,), "t1": (5,), "t2": (4,), "t3": (4,), "t4": (4,)}
    made = planned(source, target, rules, keep=["t0"])
    found = problems(made)
    assert len({p.partition(":")[0].split(".")[0] for p in found if p.startswith("rules")}) == 9  # rules[5] is fine
    assert [o.disposition for o in made.outcomes].count("refused") == 9


# Initial values ------------------------------------------------------------------------------------------------------

CELL = {"l/kernel": (3, 16), "l/recurrent_kernel": (4, 16), "l/bias": (16,)}


def initial(target: Any, *rules: Any, **more: Any) -> dict[str, np.ndarray]:
    source = Stub({})
    return results(planned(source, target, rules, **more), source)


def test_the_fan_is_that_of_one_gate() -> None:
    found = initial(CELL, {"to": "l/{w}", "initialize": {"glorot_uniform": {"seed": 7}}})
    for name, shape in CELL.items():
        gates = {"seed": 7, "gates": list("ifgo")}
        np.testing.assert_array_equal(found[name], initialize("glorot_uniform", gates, shape, F32, name))
    limit = math.sqrt(6 / (3 + 4))
    assert 0.8 * limit < np.abs(found["l/kernel"]).max() < limit
    alone = initial({"l/kernel": (3, 16)}, {"to": "l/kernel", "initialize": {"glorot_uniform": {"seed": 7}}})
    assert np.abs(alone["l/kernel"]).max() < math.sqrt(6 / (3 + 16))


def test_orthogonal_is_one_matrix_for_each_gate() -> None:
    rules = [{"to": "l/recurrent_kernel", "initialize": "orthogonal"}, {"to": "l/{w}", "initialize": "zeros"}]
    kernel = initial(CELL, *rules)["l/recurrent_kernel"]
    for gate in range(4):
        block = kernel[:, 4 * gate : 4 * gate + 4]
        np.testing.assert_allclose(block.T @ block, np.eye(4), atol=1e-6)


@pytest.mark.parametrize(
    ("names_", "forget"),
    [({"kernel": (7, 16), "bias": (16,)}, slice(8, 12)), ({n[2:]: s for n, s in CELL.items()}, slice(4, 8))],
)
def test_the_forget_bias_stands_where_the_layout_has_it(names_: Any, forget: slice) -> None:
    target = {f"rnn/lstm_cell/{n}": s for n, s in names_.items()}
    rules = [
        {"to": "rnn/lstm_cell/bias", "initialize": "unit_forget_bias"},
        {"to": "rnn/{w**}", "initialize": "zeros"},
    ]
    bias = initial(target, *rules)["rnn/lstm_cell/bias"]
    expected = np.zeros(16, np.float32)
    expected[forget] = 1
    np.testing.assert_array_equal(bias, expected)


def test_values_depend_on_the_tensors_name_and_not_on_the_order() -> None:
    rule = {"to": "{w}", "initialize": {"normal": {"seed": 1}}}
    one = initial({"a": (5,), "b": (5,)}, rule)
    other = initial({"b": (5,), "x": (5,), "a": (5,)}, rule)
    np.testing.assert_array_equal(one["a"], other["a"])
    np.testing.assert_array_equal(one["b"], other["b"])
    assert not np.array_equal(one["a"], one["b"])


def test_a_whole_cell_is_initialized() -> None:
    made = planned({}, CELL, [{"to": {"layout": "lstm.keras", "scope": "l"}, "initialize": "zeros"}])
    assert made.target == dict.fromkeys(CELL, "initialized")
    made = planned({}, {"x": (1,)}, [{"to": {"layout": "lstm.keras", "scope": "l"}, "initialize": "zeros"}], keep=["x"])
    assert problems(made) == ["rules[0].to: no scope 'l'"]


def test_initialize_needs_a_target() -> None:
    made = planned({}, None, [{"to": "a", "initialize": "zeros"}])
    assert problems(made) == ["rules[0]: initialize needs a TARGET: without one, the shapes are not known"]


def test_what_an_initializer_cannot_fill_is_said_before_anything_is_made() -> None:
    made = planned({}, {"a": (4,), "b": TensorSpec.of("int32", (2,))}, [{"to": "{x}", "initialize": "orthogonal"}])
    assert problems(made) == [
        "rules[0]: tensor 'a': orthogonal needs at least two axes, the shape is [4]; use another initializer",
        "rules[0]: tensor 'b': orthogonal makes floating point values, the tensor is int32; use zeros or constant",
    ]


def test_initial_values_go_to_what_no_earlier_rule_covers() -> None:
    rules = [{"from": "a", "to": "head/w"}, {"to": "head/{x}", "initialize": "ones"}]
    made = planned({"a": (1,)}, {"head/w": (1,), "head/b": (1,), "head/k": (1,)}, rules, keep=["head/k"])
    assert made.target == {"head/w": "moved", "head/b": "initialized", "head/k": "kept"}
    made = planned({"a": (1,)}, {"head/w": (1,)}, [rules[0], {"to": "head/w", "initialize": "ones"}])
    assert problems(made) == [
        "rules[1]: target tensor 'head/w' was given another value by rules[0]; "
        "the first rule wins; take it out of one of them"
    ]


def test_rows_of_an_initializer_are_those_of_the_whole() -> None:
    for name in ("zeros", "normal", "truncated_normal", "glorot_uniform", "uniform_unit_scaling", "orthogonal"):
        whole = initialize(name, {}, (40, 6, 3), F32, "t")
        np.testing.assert_array_equal(initialize(name, {}, (40, 6, 3), F32, "t", rows=(7, 23)), whole[7:23])


# Purity and size -----------------------------------------------------------------------------------------------------


def test_planning_reads_no_tensor_bytes() -> None:
    source = Stub({"a": (2,), "l/kernel": (3, 16), "l/recurrent_kernel": (4, 16), "l/bias": (16,)})
    target = Stub({"b": (2,), "m/kernel": (7, 16), "m/bias": (16,), "h": (2,)}, path="new")
    rules: list[Any] = [
        {"from": "a", "to": "b", "scale": 2.0},
        {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.tf1", "scope": "m"}},
        {"to": "h", "initialize": "normal"},
    ]
    made = planned(source, target, rules)
    assert problems(made) == []
    assert made == planned(source, target, rules)
    str(made)
    made.as_json()
    assert source.asked == target.asked == []


@pytest.mark.parametrize("kind", ["prefix", "suffix", "both", "dots", "flat"])
def test_a_hundred_patterns_look_at_each_name_about_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted, not timed: rules times tensors would be 100 times as much."""
    spell = {
        "prefix": ("net/b{r}/l{n}/k", "net/b{r}/l{{n}}/k"),
        "suffix": ("net/l{n}/p{r}/k", "net/l{{n}}/p{r}/k"),
        "both": ("net/l{n}/p{r}/k", "net/{{n}}/p{r}/{{x}}"),
        "dots": ("net.{n}.p{r}.k", "net.{{n}}.p{r}.k"),
        "flat": ("w{n}_p{r}", "w{{n}}_p{r}"),
    }[kind]
    count = 200
    model = {spell[0].format(n=n, r=r): (1,) for n in range(count) for r in range(100)}
    looked = 0
    inner = Names._candidates

    def counted(self: Names, text: str) -> list[int]:
        nonlocal looked
        found = list(inner(self, text))
        looked += len(found)
        return found

    monkeypatch.setattr(Names, "_candidates", counted)
    rules = [{"from": spell[1].format(r=r), "to": "new/" + spell[1].format(r=r)} for r in range(100)]
    made = planned(model, None, rules)
    assert problems(made) == []
    assert len(made.items) == 100 * count
    # p1 is also how p11 begins, and flat names have no parts.
    assert looked <= 2 * len(model) + 100 * 64


WORDS = st.sampled_from(["a", "b", "l1", "l22", "kernel", "x.y"])
CAPTURES = st.sampled_from(["{n}", "l{n}", "{m}", "{n}x", "{w**}", "a{w**}b"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(WORDS, min_size=1, max_size=4).map("/".join), max_size=12, unique=True),
    st.lists(WORDS | CAPTURES, min_size=1, max_size=4).map("/".join),
)
def test_the_index_finds_what_matching_every_name_finds(found: list[str], text: str) -> None:
    try:
        pattern = Pattern(text)
    except wp.MappingError:
        return
    expected = [(n, b) for n in found if (b := pattern.match(n)) is not None]
    index = Names.of(found)
    for few in (64, 0):
        names._FEW, few = few, names._FEW
        try:
            assert list(index.matches(pattern)) == expected
        finally:
            names._FEW = 64


# Text ----------------------------------------------------------------------------------------------------------------


def test_the_plan_as_text() -> None:
    made = planned(
        {"a": (2,), "b1": (1,), "b2": (1,), "b3": (1,), "b4": (1,), "s": (1,)},
        {"c": (2,), "d1": (1,), "d2": (1,), "d3": (1,), "d4": (1,), "h": (1,)},
        [
            {"from": "a", "to": "c", "as": "constant"},
            {"from": "b{n}", "to": "d{n}", "scale": 0.3},
            {"to": "h", "initialize": "zeros"},
            {"from": "z{n}", "to": "y{n}", "optional": True},
        ],
        description="a test",
    )
    assert str(made).splitlines() == [
        "model -> new: a test",
        "  rules[0]: moved as constant: a -> c (bijective)",
        "  rules[1]: moved: b1, b2, b3 and 1 more -> d1, d2, d3 and 1 more (rounded)",
        "  rules[2]: initialized: h",
        "  rules[3]: unused (optional, nothing matched)",
        "source: 6 tensors: 5 moved, 1 unclaimed",
        "target: 6 tensors: 1 constant, 4 moved, 1 initialized, 28 bytes",
        "1 problem; nothing can be written:",
        "  model: source tensor 's' (float32 [1]) is claimed by no rule; move it by a rule, or list it under ignore:",
    ]


def test_strings_move_and_know_their_bytes() -> None:
    words = np.array([b"a", b"bcd"], object)
    source = Stub({"w": TensorSpec(np.dtype(object), (2,), 4)})
    source.arrays["w"] = words
    made = planned(source, None, [{"from": "w", "to": "v"}])
    assert made.bytes == 4
    assert results(made, source)["v"].tolist() == [b"a", b"bcd"]


def test_values_of_a_plan() -> None:
    array = numbers(3, 4)
    source = Stub({"a": array})
    np.testing.assert_array_equal(
        results(planned(source, {"b": (4, 3)}, [{"from": "a", "to": "b", "rearrange": "a b -> b a"}]), source)["b"],
        array.T,
    )
