"""The custom getter's lookup, without TensorFlow: values by variable name while the model is being built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.plan.stub import Stub, document, numbers, planned, results
from tests.plan.test_cells import BOTH, STACK, keras, rule, tf1
from weightport.errors import PlanError
from weightport.execute import Reader, value_of
from weightport.initializers import initialize
from weightport.plan import Lookup
from weightport.tensors import TensorSpec

F32 = np.dtype("float32")


def lookup(source: Any, rules: list[Any], **more: Any) -> Lookup:
    return Lookup(source if isinstance(source, Stub) else Stub(source), wp.load_mapping(document(rules, **more)))


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.of(dtype, shape)


def asked(source: Stub, found: Lookup, variables: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray | None]:
    """What a model gets that creates these variables, in this order."""
    reader = Reader(source)
    values = {}
    for name, shape in variables.items():
        item = found(name, spec(*shape))
        values[name] = None if item is None else reader.value(item)
    return values


def as_finished(source: Stub, rules: list[Any], variables: dict[str, tuple[int, ...]], **more: Any) -> None:
    """The getter gives every variable what the finished model would be given."""
    found = lookup(source, rules, **more)
    values = asked(source, found, variables)
    found.check()
    made = planned(source, variables, rules, **more)
    expected = results(made, source)
    for name, value in values.items():
        if value is None:
            assert made.target[name] == "kept"
        else:
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert expected.keys() == {n for n, v in values.items() if v is not None}


def test_tensors_by_name() -> None:
    source = Stub({"emb": numbers(5, 3), "l0/w": numbers(2, 2), "l1/w": numbers(2, 2, seed=1)})
    rules = [
        {"from": "l{n}/w", "to": "m{n+1}/w", "rearrange": "a b -> b a"},
        {"from": "emb", "to": "e", "as": "constant"},
    ]
    found = lookup(source, rules)
    item = found("m1/w", spec(2, 2))
    assert item is not None
    assert not item.constant
    np.testing.assert_array_equal(Reader(source).value(item), source.arrays["l0/w"].T)
    assert found("m1/w", spec(2, 2)) is item
    constant = found("e", spec(5, 3))
    assert constant is not None
    assert constant.constant
    with pytest.raises(PlanError) as caught:
        found.check()
    assert str(caught.value) == "model: the model asked for no variable that takes 'l1/w'"
    found("m2/w", spec(2, 2))
    found.check()


def test_planning_reads_no_bytes() -> None:
    source = Stub({"a": (2,), **{n: a.shape for n, a in keras("l").items()}})
    found = lookup(source, [{"from": "a", "to": "b"}, rule("lstm.keras l", "lstm.tf1 m")])
    found("b", spec(2))
    found("m/kernel", spec(7, 16))
    assert source.asked == []


def test_a_part_of_a_variable_reads_a_part_of_the_source() -> None:
    source = Stub({"a": numbers(6, 4)})
    item = lookup(source, [{"from": "a", "to": "b", "rearrange": "a b -> b a"}])("b", spec(4, 6))
    assert item is not None
    value = value_of(item, Reader(source))
    for start in (0, 2):
        part = value.produce((slice(start, start + 2),))
        np.testing.assert_array_equal(part, source.arrays["a"].T[start : start + 2])


@pytest.mark.parametrize(
    ("name", "variable", "what"),
    [
        ("bb", spec(2), "mapping: variable 'bb' (float32 [2]) gets no value; closest: 'b'"),
        ("b", spec(3), "rules[0]: 'b': shape [2] for the target's [3]"),
        ("b", spec(2, dtype="float16"), "rules[0]: 'b': dtype float32 for the target's float16; cast: float16"),
        (
            "qqqqqqq",
            spec(2),
            "mapping: variable 'qqqqqqq' (float32 [2]) gets no value; "
            "move or initialize: it by a rule, or list it under keep:",
        ),
    ],
)
def test_variables_that_do_not_fit(name: str, variable: TensorSpec, what: str) -> None:
    with pytest.raises(PlanError) as caught:
        lookup({"a": (2,)}, [{"from": "a", "to": "b"}])(name, variable)
    assert str(caught.value) == what


def test_a_mapping_that_does_not_fit_the_source() -> None:
    with pytest.raises(PlanError) as caught:
        lookup({"a": (2,), "c": (1,)}, [{"from": "aa", "to": "b"}, rule("lstm.keras l", "lstm.tf1 m")])
    assert [p.where for p in caught.value.problems] == ["rules[0].from", "rules[1].from", "model", "model"]


def test_what_is_kept_and_what_is_no_weight() -> None:
    rules = [{"from": "e/{x}", "to": "d/{x}"}, {"to": "d/{x}", "initialize": "zeros"}]
    source = Stub({"e/w": numbers(1), "e/u": numbers(1)})
    with pytest.raises(PlanError, match="source tensor 'e/u'"):
        lookup(source, rules, keep=["d/u", "d/k"])
    found = lookup(source, rules, keep=["d/u", "d/k"], ignore=["e/u"])
    assert found("d/u", spec(1)) is None
    assert found("d/k", spec(1)) is None
    assert found("d/new", spec(1)) is not None
    assert found("anything", TensorSpec.of("int64", (), "counter")) is None
    as_finished(source, rules, {"d/w": (1,), "d/u": (1,), "d/new": (1,)}, keep=["d/u"], ignore=["e/u"])


def test_a_second_claim_is_an_error_as_in_a_finished_model() -> None:
    rules = [{"from": "a", "to": "m/kernel"}, rule("lstm.keras l", "lstm.tf1 m")]
    source = {"a": (7, 16), **{n: a.shape for n, a in keras("l").items()}}
    with pytest.raises(PlanError) as caught:
        lookup(source, rules)("m/kernel", spec(7, 16))
    assert str(caught.value).startswith("rules[1]: target tensor 'm/kernel' was given another value by rules[0]")


# Cells ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["m", "m/rnn/lstm_cell", "m/rnn/basic_lstm_cell"])
def test_a_cell_at_or_below_the_scope(scope: str) -> None:
    cell = keras("l")
    variables = {f"{scope}/kernel": (7, 16), f"{scope}/bias": (16,)}
    as_finished(Stub(cell), [rule("lstm.keras l", "lstm.tf1 m", **{"as": "constant"})], variables)
    values = asked(Stub(cell), lookup(Stub(cell), [rule("lstm.keras l", "lstm.tf1 m")]), variables)
    expected = tf1(cell, f"{scope}/", 1.0)
    for name, want in expected.items():
        np.testing.assert_array_equal(values[name], want)


def test_the_form_of_the_cells_own_name() -> None:
    """CudnnCompatibleLSTMCell adds no forget bias, also in a stack."""
    source = Stub({n.replace("s/", "l/"): a for n, a in STACK.items() if "cell_0" in n})
    rules = [rule({"layout": "lstm.tf1", "scope": "l/cell_0", "forget_bias": 0}, "lstm.tf1 m")]
    variables = {
        "m/cell_0/cudnn_compatible_lstm_cell/kernel": (7, 16),
        "m/cell_0/cudnn_compatible_lstm_cell/bias": (16,),
    }
    values = asked(source, lookup(source, rules), variables)
    np.testing.assert_array_equal(
        values["m/cell_0/cudnn_compatible_lstm_cell/bias"], source.arrays["l/cell_0/lstm_cell/bias"]
    )


def test_stacks() -> None:
    variables = {n.replace("s/", "m/rnn/multi_rnn_cell/"): a.shape for n, a in STACK.items()}
    as_finished(Stub(STACK), [rule("lstm.tf1 s", "lstm.tf1 m")], variables)


def test_layers_and_directions_that_the_target_picks() -> None:
    one = Stub({n: a for n, a in STACK.items() if "cell_1" in n})
    keep = ["m/cell_0/**", "m/cell_2/**"]
    variables = {n.replace("s/", "m/"): a.shape for n, a in STACK.items()}
    pick = {"layout": "lstm.tf1", "scope": "m", "layers": 1}
    as_finished(one, [rule("lstm.tf1 s/cell_1/lstm_cell", pick)], variables, keep=keep)
    cell = Stub(keras("l"))
    variables = {n.replace("b/", "m/"): a.shape for n, a in BOTH.items()}
    side = {"layout": "lstm.keras", "scope": "m", "directions": "backward"}
    as_finished(cell, [rule("lstm.keras l", side)], variables, keep=["m/forward_lstm/**"])


def test_bidirectional() -> None:
    source = Stub(BOTH)
    cells = {
        f"m/bidirectional_rnn/{d}/lstm_cell/{n}": s
        for d in ("fw", "bw")
        for n, s in (("kernel", (7, 16)), ("bias", (16,)))
    }
    as_finished(source, [rule("lstm.keras b", "lstm.tf1 m")], cells)


def test_keras_layers_in_a_graph() -> None:
    """Other layers beside the cell have kernels too."""
    source = Stub({**keras("l"), "d/k": numbers(4, 16), "d/b": numbers(16)})
    rules = [
        rule("lstm.keras l", "lstm.keras net"),
        {"from": "d/k", "to": "net/dense/kernel"},
        {"from": "d/b", "to": "net/dense/bias"},
    ]
    variables = {f"net/lstm/lstm_cell/{n[2:]}": a.shape for n, a in keras("l").items()}
    as_finished(source, rules, {**variables, "net/dense/kernel": (4, 16), "net/dense/bias": (16,)})


def test_two_cells_below_one_scope() -> None:
    found = lookup(Stub(keras("l")), [rule("lstm.keras l", "lstm.tf1 m")])
    found("m/a/lstm_cell/kernel", spec(7, 16))
    with pytest.raises(PlanError) as caught:
        found("m/b/lstm_cell/kernel", spec(7, 16))
    assert str(caught.value) == (
        "rules[0].to: two cells of the model, 'm/a/lstm_cell' and 'm/b/lstm_cell', stand below scope 'm'; "
        "name one of them"
    )


def test_a_cell_that_does_not_fit() -> None:
    found = lookup(Stub(keras("l")), [rule("lstm.keras l", "lstm.tf1 m")])
    with pytest.raises(PlanError, match=r"variable 'm/lstm_cell/kernel' \(float32 \[7, 20\]\) gets no value"):
        found("m/lstm_cell/kernel", spec(7, 20))
    with pytest.raises(PlanError, match=r"'m/lstm_cell/bias': dtype float32 for the target's float16; a cell keeps"):
        found("m/lstm_cell/bias", spec(16, dtype="float16"))
    reset = lookup(
        Stub(keras("l", kind="gru")), [rule("gru.keras l", {"layout": "gru.tf1", "scope": "m", "reset": "after"})]
    )
    with pytest.raises(PlanError, match="the source's reset gate is before, the target's after"):
        reset("m/gru_cell/gates/kernel", spec(7, 8))


def test_dtypes_are_not_cast_by_putting_parts_together() -> None:
    found = lookup(Stub(keras("l")), [rule("lstm.keras l", "lstm.tf1 m")])
    with pytest.raises(PlanError, match="dtype float32 for the target's float64"):
        found("m/kernel", spec(7, 16, dtype="float64"))


def test_an_optional_cell() -> None:
    found = lookup({"a": (1,)}, [rule("lstm.keras l", "lstm.tf1 m", optional=True), {"from": "a", "to": "b"}])
    assert found("b", spec(1)) is not None
    found.check()


# Initial values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["n/{w**}", {"layout": "lstm.tf1", "scope": "n"}])
def test_the_fan_is_that_of_one_gate_though_the_cell_is_not_complete(to: Any) -> None:
    source = Stub({"a": numbers(1)})
    rules = [{"from": "a", "to": "b"}, {"to": to, "initialize": {"glorot_uniform": {"seed": 3}}}]
    variables = {"b": (1,), "n/lstm_cell/kernel": (7, 16), "n/lstm_cell/bias": (16,)}
    as_finished(source, rules, variables)
    values = asked(source, lookup(source, rules), variables)
    want = initialize("glorot_uniform", {"seed": 3, "gates": 4}, (7, 16), F32, "n/lstm_cell/kernel")
    np.testing.assert_array_equal(values["n/lstm_cell/kernel"], want)


def test_the_forget_bias_stands_where_the_layout_has_it() -> None:
    rules = [
        {"from": "a", "to": "b"},
        {"to": "n/lstm_cell/bias", "initialize": "unit_forget_bias"},
        {"to": "n/{w**}", "initialize": "zeros"},
    ]
    as_finished(Stub({"a": numbers(1)}), rules, {"b": (1,), "n/lstm_cell/kernel": (7, 16), "n/lstm_cell/bias": (16,)})


def test_patterns_initialize_what_no_other_rule_covers() -> None:
    rules = [{"from": "a", "to": "h/w"}, {"to": "h/{x}", "initialize": "ones"}]
    as_finished(Stub({"a": numbers(1)}), rules, {"h/w": (1,), "h/b": (1,)})


# Users' own layouts --------------------------------------------------------------------------------------------------


def test_layers_in_the_names_of_tensors() -> None:
    own = {
        "lstm.mine": {
            "gates": ["i", "f", "g", "o"],
            "tensors": {
                "x{layer}": "wx[input (gate unit)]",
                "h{layer}": "wt[hidden (gate unit)]",
                "b{layer}": "bi[(gate unit)]",
            },
        }
    }
    source = Stub(STACK)
    variables: dict[str, tuple[int, ...]] = {}
    for k in range(3):
        variables |= {f"m/x{k}": (3 if k == 0 else 4, 16), f"m/h{k}": (4, 16), f"m/b{k}": (16,)}
    as_finished(source, [rule("lstm.tf1 s", "lstm.mine m")], variables, layouts=own)


def test_one_vector_for_all_layers_is_not_made_piece_by_piece() -> None:
    with pytest.raises(PlanError) as caught:
        lookup(STACK, [rule("lstm.tf1 s", "lstm.cudnn-opaque m")])
    assert str(caught.value) == (
        "rules[0].to: lstm.cudnn-opaque holds all layers and directions in one variable, which is not made piece by "
        "piece; transfer into the finished graph"
    )
    # As a source it is as any other.
    vector = {"v/opaque_kernel": numbers(16 * 7 + 32)}
    cell = {"layout": "lstm.cudnn-opaque", "scope": "v", "sizes": {"input": 3, "units": 4}}
    found = lookup(vector, [{"from": cell, "to": {"layout": "lstm.keras", "scope": "m"}}])
    kernel = found("m/kernel", spec(3, 16))
    assert kernel is not None
    np.testing.assert_array_equal(Reader(Stub(vector)).value(kernel), vector["v/opaque_kernel"][:48].reshape(16, 3).T)


def test_what_is_done_and_assumed_is_noted_once() -> None:
    """A graph that is being built does not say what its cell adds: the layout's default is taken, and said."""
    from tests.support import fixture

    source = wp.open(fixture("a_seed_char_lstm").path("frozen"))
    rule = {"from": {"layout": "lstm.scoped-gates", "scope": "LSTMcell"}, "to": {"layout": "lstm.tf1", "scope": "r"}}
    mapping = {"weightport": 1, "rules": [rule], "ignore": ["softmax_*"]}
    lookup = Lookup(source, wp.load_mapping(mapping))
    assert list(lookup.notes) == []
    lookup("r/basic_lstm_cell/kernel", TensorSpec.of("float32", (59, 128)))
    lookup("r/basic_lstm_cell/bias", TensorSpec.of("float32", (128,)))
    lookup("r/basic_lstm_cell/bias", TensorSpec.of("float32", (128,)))
    assert list(lookup.notes) == [
        "rules[0]: r/basic_lstm_cell: the target's forget bias is not recorded: 1, the default of lstm.tf1",
        "rules[0]: r/basic_lstm_cell: the forget bias 1 is taken out of the forget gate's bias",
    ]
    stated = {**mapping, "rules": [{**rule, "to": {**rule["to"], "forget_bias": 0.0}}]}
    lookup = Lookup(source, wp.load_mapping(stated))
    lookup("r/basic_lstm_cell/bias", TensorSpec.of("float32", (128,)))
    assert list(lookup.notes) == []
    source.close()
