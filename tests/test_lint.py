"""What ``lint`` finds in a mapping, with a source, a target, both or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.support import fixture
from weightport.errors import Problem
from weightport.lint import Findings, lint
from weightport.tensors import Array, Index, TensorSpec


class Model:
    """Named shapes, and facts about any cell."""

    format = "test"

    def __init__(self, path: str, shapes: dict[str, tuple[int, ...]], facts: dict[str, Any] | None = None) -> None:
        self.path, self._facts = path, facts or {}
        self._specs = {name: TensorSpec.of("float32", shape) for name, shape in shapes.items()}

    def specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        raise AssertionError(f"lint read {name} {index}")

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        del names
        return self._facts

    def close(self) -> None:
        return


KERAS = {"lstm/kernel": (3, 16), "lstm/recurrent_kernel": (4, 16), "lstm/bias": (16,)}
SOURCE = {
    **{f"cell/{g}/wx": (3, 4) for g in ("input_gate", "forget_gate", "memory_cell", "output_gate")},
    **{f"cell/{g}/wt": (4, 4) for g in ("input_gate", "forget_gate", "memory_cell", "output_gate")},
    **{f"cell/{g}/bi": (1, 4) for g in ("input_gate", "forget_gate", "memory_cell", "output_gate")},
    "w": (4, 2),
}
RULES = [
    {"from": {"layout": "lstm.scoped-gates", "scope": "cell"}, "to": {"layout": "lstm.keras", "scope": "lstm"}},
    {"from": "w", "to": "dense/kernel"},
]


def found(old: Model | None = None, new: Model | None = None, *, sha: str | None = None, **document: Any) -> Findings:
    mapping = wp.load_mapping({"weightport": 1, "rules": RULES, **document})
    return lint(mapping, old, new, target_name="new.h5", source_sha256=sha)


def test_a_glob_in_to() -> None:
    new = Model("new.h5", {"dense/kernel": (4, 2)})
    (problem,) = found(None, new, rules=[{"from": "w", "to": "dense/*"}]).problems
    assert (problem.where, problem.what) == ("rules[0].to", "no tensor 'dense/*' in new.h5")
    assert problem.hint.startswith("* and ? are no wildcards in a rule: write {name}")


def test_alone_a_loaded_mapping_has_no_fault() -> None:
    assert found() == Findings()
    assert found().as_json() == {"problems": [], "warnings": []}


def test_a_source_and_a_target_that_fit() -> None:
    assert found(Model("old", SOURCE), Model("new", {**KERAS, "dense/kernel": (4, 2)})) == Findings()


def test_with_both_the_problems_are_the_plan_s() -> None:
    source, target = Model("old", {**SOURCE, "more": (1,)}), Model("new", {**KERAS, "dense/kernel": (2, 4), "b": (2,)})
    findings = found(source, target)
    planned = wp.plan(source, target, {"weightport": 1, "rules": RULES})
    assert {p.what for p in findings.problems} == {p.what for p in planned.problems}
    assert len(findings.problems) == 3


def test_with_a_source_alone_initialize_is_not_checked() -> None:
    rules = [*RULES, {"to": "head/w", "initialize": "zeros"}]
    assert found(Model("old", SOURCE), rules=rules, keep=["decoder/**"]) == Findings()
    told = found(Model("old", {**SOURCE, "more": (1,)}), rules=rules).problems
    assert [p.what for p in told] == ["source tensor 'more' (float32 [1]) is claimed by no rule"]


def test_with_a_target_alone_its_names_are_checked() -> None:
    rules = [
        *RULES,
        {"from": "x/{n}", "to": "y/{n}"},
        {"from": "a", "to": "gone", "optional": True},
        {"to": "haed/w", "initialize": "zeros"},
    ]
    target = Model("new", {"lstm/kernel": (3, 16), "dense/kernels": (4, 2), "head/w": (1,)})
    cell, tensor, initial = found(None, target, rules=rules).problems
    assert cell.where == "rules[0].to"
    assert "no lstm.keras cell at or below scope 'lstm'" in cell.what
    assert (tensor.where, tensor.what) == ("rules[1].to", "no tensor 'dense/kernel' in new.h5")
    assert tensor.hint.startswith("closest: 'dense/kernels'")
    assert "'haed/w'" in initial.what
    assert initial.hint == "closest: 'head/w'"


def test_sizes_that_only_the_source_tells_are_not_missed() -> None:
    target = {"layout": "lstm.cudnn-opaque", "scope": "v"}
    rules = [{"from": {"layout": "lstm.scoped-gates", "scope": "cell"}, "to": target}, RULES[1]]
    vector, dense = {"v/opaque_kernel": (16 * 7 + 32,)}, {"dense/kernel": (4, 2)}
    assert found(None, Model("new", {**vector, **dense}), rules=rules) == Findings()
    assert found(Model("old", SOURCE), Model("new", {**vector, **dense}), rules=rules) == Findings()
    target["sizes"] = {"input": 3, "units": 5}  # type: ignore[assignment]
    (problem,) = found(None, Model("new", {**vector, **dense}), rules=rules).problems
    assert problem.what == "'v/opaque_kernel' has 144 values; a lstm of 3 inputs, 5 units, 1 layer, 1 direction has 200"


@pytest.mark.parametrize("key", ["ignore", "keep"])
def test_a_pattern_that_matches_nothing_is_a_warning(key: str) -> None:
    source = Model("old", {**SOURCE, "w/Adam": (1,)})
    target = Model("new", {**KERAS, "dense/kernel": (4, 2), "w/Adam": (1,)})
    document = {"ignore": ["**/Adam"], "keep": ["**/Adam"]}
    document[key] = [*document[key], "**/Adm"]
    findings = found(source, target, **document)
    assert findings.problems == ()
    (warning,) = findings.warnings
    name = "old" if key == "ignore" else "new.h5"
    assert (warning.where, warning.what) == (f"{key}[1]", f"{key}: '**/Adm' matches no tensor of {name}")


def test_an_assumption_is_a_warning() -> None:
    source = Model("old", SOURCE)
    target = Model("new", {**KERAS, "dense/kernel": (4, 2)}, {"recurrent_activation": "hard_sigmoid"})
    findings = found(source, target)
    assert findings.problems == ()
    (warning,) = findings.warnings
    assert warning.where == "rules[0]"
    assert warning.what.startswith(
        "assumed: the source's recurrent activation is not recorded; taken to be hard_sigmoid"
    )


def test_a_forget_bias_that_is_not_recorded_is_a_warning_until_the_mapping_says_it() -> None:
    with wp.open(fixture("b_cells/basic_lstm_fb0").path("checkpoint_v2")) as source:

        def warnings(**said: float) -> list[str]:
            cell = {"layout": "lstm.tf1", "scope": "encoder", **said}
            rules = [{"from": cell, "to": {"layout": "lstm.keras", "scope": "lstm"}}]
            findings = lint(wp.load_mapping({"weightport": 1, "rules": rules}), source)
            assert findings.problems == ()
            return [str(w) for w in findings.warnings]

        what = "the source's forget bias is not recorded: 1, the default of lstm.tf1"
        assert warnings() == [f"rules[0]: assumed: {what}"]
        assert warnings(forget_bias=0.0) == []


def test_another_digest_is_a_problem() -> None:
    mine, theirs = "ab" * 32, "cd" * 32
    document = {"source": {"sha256": mine}}
    assert found(Model("old", SOURCE), sha=mine, **document) == Findings()
    (problem,) = found(Model("old", SOURCE), sha=theirs, **document).problems
    what = f"its SHA-256 is {theirs}; the mapping is for {mine}"
    assert problem == Problem("old", what, "this is another file, or a damaged one")


def test_a_real_model() -> None:
    with wp.open(fixture("a_seed_char_lstm").path("frozen")) as source:
        rules = [
            {"from": {"layout": "lstm.scoped-gates", "scope": ""}, "to": {"layout": "lstm.keras", "scope": "lstm"}},
            {"from": "softmax_{x}", "to": "dense/{x}"},
        ]
        assert lint(wp.load_mapping({"weightport": 1, "rules": rules}), source) == Findings()
        assert np.prod(source.specs()["softmax_w"].shape) == 32 * 27
