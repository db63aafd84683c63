"""Every LSTM, GRU and plain RNN of the fixtures, from every file, into real Keras layers: the same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import TF1_KINDS, Case, cases, mapping, reference
from tests.support import fixtures, need

CASES = [c for c in cases() if c.kind in ("lstm", "gru", "rnn")]
#: Keras' layers have neither peepholes nor projections.
NOT_IN_KERAS = {
    "b_cells/lstm_peephole": "the target has no peepholes, and",
    "b_cells/lstm_peephole_proj_clip": "the source has an output projection, the target has none",
    "b_cells/lstm_block_peephole_clip": "the target has no peepholes, and",
    "b_cells/lstm_proj": "the source has an output projection, the target has none",
    "b_cells/glstm_one_group": "the source has an output projection, the target has none",
    "e_old_naming/tf_0_12_1/lstm_peephole_proj": "the source has an output projection, the target has none",
}
PLAIN = [c for c in CASES if c.model.name not in NOT_IN_KERAS]
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
#: How far float32 arithmetic in another order may be off.
CLOSE = {"rtol": 0, "atol": 1e-5}


#: Cells of kinds of their own have tests of their own; some that are LSTMs after all are here too.
RARE = (
    "indy", "ind_rnn", "layer_norm", "weight_norm", "phased", "intersection", "minimal", "ugrnn", "seq2seq", "conv_",
    "glstm", "grid", "time_freq", "attention", "cfn", "sru", "nas",
)  # fmt: skip


def test_no_cell_is_left_out() -> None:
    names = {c.model.name for c in CASES}
    expected = {
        f.name
        for f in fixtures()
        if "reference" in f.doc
        and any(k in str(f.doc["cell"]) for k in ("LSTM", "GRU", "RNN"))
        and not any(k in f.name for k in RARE)
    }
    # Models with two cells have tests of their own below.
    two = {"c_keras/masked_text_classifier", "c_keras/nested_model", "c_keras/stacked_cells"}
    assert expected - two == {n for n in names if not any(k in n for k in RARE)}
    assert {c.file for c in CASES} >= {"checkpoint_v2", "checkpoint_v1", "frozen", "frozen_text", "keras_h5"}


def arguments(case: Case, units: int) -> dict[str, Any]:
    """What a Keras layer must be told to be the same function."""
    kwargs: dict[str, Any] = {"return_sequences": True, "return_state": True, "units": units}
    kwargs["activation"] = case.doc.get("activation") or "tanh"
    if case.kind != "rnn":
        kwargs["recurrent_activation"] = case.doc.get("recurrent_activation") or "sigmoid"
    if case.kind == "gru":
        kwargs["reset_after"] = "cudnn" in case.doc["cell"].lower() or bool(case.doc.get("reset_after"))
    if "no_bias" in case.model.name:
        kwargs["use_bias"] = False
    return kwargs


def keras_of(case: Case) -> Any:
    """Keras 3 for what TensorFlow 1 made; for Keras' own models the legacy one, whose ``hard_sigmoid`` is theirs."""
    return need("keras") if case.layout in TF1_KINDS else need("tf_keras")


def states(case: Case, arrays: Mapping[str, np.ndarray], which: str, at: str = "") -> list[np.ndarray] | None:
    """Initial (``init0``) or final (``full_final``) states in Keras' order: h, then c."""
    if case.kind == "lstm":
        keys = [f"{which}{at}_h", f"{which}{at}_c"]
    else:
        keys = next([k] for k in (f"{which}{at}_state", f"{which}{at}_h") if k in arrays or which == "init0")
    return [arrays[k] for k in keys] if all(k in arrays for k in keys) else None


def run(layer: Any, x: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    outputs, *final = (np.asarray(part) for part in layer(x, **kwargs))
    return outputs, final


def mask_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    steps = arrays["x"].shape[1]
    mask: np.ndarray = np.arange(steps)[None] < arrays["seq_len"][:, None]
    return mask


def check(case: Case, arrays: Mapping[str, np.ndarray], prefix: str, outputs: np.ndarray, final: Any) -> None:
    expected = arrays[f"{prefix}_outputs"]
    if prefix == "seqlen":  # beyond the length, TensorFlow writes zeros and Keras the last output again
        mask = mask_of(arrays)
        outputs, expected = outputs[mask], expected[mask]
    np.testing.assert_allclose(outputs, expected, **CLOSE)
    known = states(case, arrays, f"{prefix}_final")
    for found, want in zip(final, known or [], strict=bool(known)):
        np.testing.assert_allclose(found, want, **CLOSE)
    assert np.ptp(expected) > 0.05


SINGLE = [c for c in PLAIN if isinstance(c.doc.get("units"), int) and "idirectional" not in c.doc["cell"]]
SINGLE = [c for c in SINGLE if "MultiRNN" not in c.doc["cell"]]


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_one_layer(case: Case) -> None:
    arrays = reference(case)
    layer = getattr(keras_of(case).layers, LAYERS[case.kind])(name="new", **arguments(case, case.doc["units"]))
    layer.build(arrays["x"].shape)
    rule = {"from": case.source(), "to": {"layout": f"{case.kind}.keras", "scope": ""}}
    result = wp.transfer(case.path, layer, mapping(case, [rule]))
    assert set(result.plan.target.values()) == {"moved"}
    assert all(o.exact for o in result.plan.outcomes), result.plan.outcomes
    assert result.target is layer
    check(case, arrays, "full", *run(layer, arrays["x"]))
    if "seqlen_outputs" in arrays:
        check(case, arrays, "seqlen", *run(layer, arrays["x"], mask=mask_of(arrays)))
    initial = states(case, arrays, "init0")
    if initial is not None:
        check(case, arrays, "init", *run(layer, arrays["x"], initial_state=initial))


STACKS = [c for c in PLAIN if c.doc.get("num_layers") and "idirectional" not in c.doc["cell"]]
STACKS = [c for c in STACKS if "stack_bidirectional" not in c.model.name]


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_a_stack_into_a_list_of_layers(case: Case) -> None:
    arrays, keras = reference(case), need("keras")
    units = case.doc["units"]
    units = units if isinstance(units, list) else [units] * case.doc["num_layers"]
    layers = [
        keras.layers.LSTM(name=f"layer_{k}", return_sequences=True, return_state=True, units=n)
        for k, n in enumerate(units)
    ]
    residual = "Residual" in case.doc["cell"]

    def forward(x: Any, initial: list[Any] | None = None, mask: Any = None) -> tuple[Any, list[Any]]:
        final = []
        for k, layer in enumerate(layers):
            out, *state = layer(x, initial_state=None if initial is None else initial[k], mask=mask)
            x = x + out if residual else out
            final.append(state)
        return np.asarray(x), final

    inputs = keras.Input(arrays["x"].shape[1:])
    x = inputs
    for layer in layers:
        out = layer(x)[0]
        x = keras.layers.Add()([x, out]) if residual else out
    model = keras.Model(inputs, x)
    rules = [
        {"from": case.source(layers=k), "to": {"layout": "lstm.keras", "scope": f"layer_{k}"}}
        for k in range(len(layers))
    ]
    wp.transfer(case.path, model, mapping(case, rules))
    outputs, final = forward(arrays["x"])
    np.testing.assert_allclose(outputs, arrays["full_outputs"], **CLOSE)
    for k, state in enumerate(final):
        for found, letter in zip(state, "hc", strict=True):
            np.testing.assert_allclose(found, arrays[f"full_final_l{k}_{letter}"], **CLOSE)
    if "init0_l0_h" in arrays:
        initial = [[arrays[f"init0_l{k}_{letter}"] for letter in "hc"] for k in range(len(layers))]
        np.testing.assert_allclose(forward(arrays["x"], initial)[0], arrays["init_outputs"], **CLOSE)
    if "seqlen_outputs" in arrays:
        mask = mask_of(arrays)
        outputs, _ = forward(arrays["x"], mask=mask)
        np.testing.assert_allclose(outputs[mask], arrays["seqlen_outputs"][mask], **CLOSE)


BIDIRECTIONAL = [c for c in PLAIN if "idirectional" in c.doc["cell"] and "stack" not in c.model.name]


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=str)
def test_both_directions_into_one_bidirectional(case: Case) -> None:
    arrays, keras = reference(case), keras_of(case)
    units = case.doc["units"]
    units = units if isinstance(units, dict) else {"fw": units, "bw": units}
    make = getattr(keras.layers, LAYERS[case.kind])
    forward = make(name=f"forward_{case.kind}", **arguments(case, units["fw"]))
    backward = make(name=f"backward_{case.kind}", go_backwards=True, **arguments(case, units["bw"]))
    layer = keras.layers.Bidirectional(forward, backward_layer=backward, merge_mode="concat", name="both")
    layer.build(arrays["x"].shape)
    rule = {"from": case.source(), "to": {"layout": f"{case.kind}.keras", "scope": ""}}
    result = wp.transfer(case.path, layer, mapping(case, [rule]))
    assert set(result.plan.target.values()) == {"moved"}
    for prefix, kwargs in (("full", {}), ("seqlen", {"mask": mask_of(arrays)} if "seq_len" in arrays else None)):
        if kwargs is None:
            continue
        outputs, final = run(layer, arrays["x"], **kwargs)
        if f"{prefix}_outputs" in arrays:
            expected = arrays[f"{prefix}_outputs"]
        else:
            expected = np.concatenate([arrays[f"{prefix}_outputs_{d}"] for d in ("fw", "bw")], -1)
        where = mask_of(arrays) if prefix == "seqlen" else np.full(expected.shape[:2], True)
        np.testing.assert_allclose(outputs[where], expected[where], **CLOSE)
        letters = "hc" if case.kind == "lstm" else "h"
        names = [f"{prefix}_final_{d}_{letter}" for d in ("fw", "bw") for letter in letters]
        if all(n in arrays for n in names):
            for found, name in zip(final, names, strict=True):
                np.testing.assert_allclose(found, arrays[name], **CLOSE)


@pytest.mark.parametrize("case", [c for c in PLAIN if "stack_bidirectional" in c.model.name], ids=str)
def test_a_bidirectional_stack(case: Case) -> None:
    arrays, keras = reference(case), need("keras")
    inputs = keras.Input(arrays["x"].shape[1:])
    x, rules = inputs, []
    for k, units in enumerate(case.doc["units"]):
        x = keras.layers.Bidirectional(keras.layers.LSTM(units, return_sequences=True), name=f"layer_{k}")(x)
        rules.append({"from": case.source(layers=[k]), "to": {"layout": "lstm.keras", "scope": f"layer_{k}"}})
    model = keras.Model(inputs, x)
    wp.transfer(case.path, model, mapping(case, rules))
    np.testing.assert_allclose(np.asarray(model(arrays["x"])), arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize("case", [c for c in CASES if c.model.name in NOT_IN_KERAS], ids=str)
def test_what_keras_cannot_hold_is_refused(case: Case) -> None:
    keras = need("keras")
    layer = keras.layers.LSTM(case.doc["units"], name="new")
    layer.build((None, None, case.doc["input_size"]))
    before = [np.asarray(w).copy() for w in layer.weights]
    rule = {"from": case.source(), "to": {"layout": "lstm.keras", "scope": ""}}
    with pytest.raises(wp.PlanError, match=NOT_IN_KERAS[case.model.name]) as refusal:
        wp.transfer(case.path, layer, mapping(case, [rule]))
    assert all(p.where.startswith("rules[0]") for p in refusal.value.problems)  # and nothing that only follows from it
    for old, new in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))


@pytest.mark.parametrize(("framework", "prefix"), [("keras", ""), ("keras", "writer/"), ("tf_keras", "")])
def test_a_sequential_models_own_name_may_be_left_out(framework: str, prefix: str) -> None:
    keras = need(framework)
    (case,) = [c for c in cases("a_seed_char_lstm") if c.file == "checkpoint_v2"]
    model = keras.Sequential(
        [keras.layers.LSTM(32, return_sequences=True, name="lstm"), keras.layers.Dense(27, name="logits")],
        name="writer",
    )
    model.build((None, None, 27))
    rules = [
        {"from": case.source(), "to": {"layout": "lstm.keras", "scope": f"{prefix}lstm"}},
        {"from": "softmax_{w}", "to": f"{prefix}logits/{{w}}", "optional": True},
        {"from": "softmax_w", "to": f"{prefix}logits/kernel"},
        {"from": "softmax_b", "to": f"{prefix}logits/bias"},
    ]
    result = wp.transfer(case.path, model, {"weightport": 1, "rules": rules})
    assert set(result.plan.target.values()) == {"moved"}
    arrays = reference(case)
    np.testing.assert_allclose(np.asarray(model(arrays["x"])), arrays["full_logits"], rtol=0, atol=1e-4)

    kept = [{"to": f"{prefix}logits/{{w}}", "initialize": "zeros"}]
    spec = {"weightport": 1, "rules": kept, "ignore": ["**"], "keep": ["lstm/**"]}
    planned = wp.plan(case.path, model, spec)
    assert not planned.problems
    assert sorted(planned.target.values()) == ["initialized", "initialized", "kept", "kept", "kept"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["lstm", "gru", "gru-before", "rnn"])
@pytest.mark.parametrize("both", [False, True], ids=["one", "bidirectional"])
def test_keras_3s_own_weights_files(kind: str, both: bool, tmp_path: Any) -> None:
    """``.weights.h5`` numbers a cell's variables; as a source and as a TARGET, the cell is found and moved."""
    keras = need("keras")
    name = kind.split("-")[0]
    options = {"reset_after": kind == "gru"} if name == "gru" else {}

    def network(layer: str) -> Any:
        inputs = keras.Input((None, 5))
        made = getattr(keras.layers, LAYERS[name])(6, return_sequences=True, name=layer, **options)
        return keras.Model(inputs, keras.layers.Bidirectional(made)(inputs) if both else made(inputs))

    old, new, other = network("old"), network("new"), network("other")
    for model in (old, other):
        for w in model.weights:
            w.assign(np.random.default_rng(len(w.shape)).normal(0, 0.5, w.shape))
    saved, target, out = (str(tmp_path / f"{n}.weights.h5") for n in ("saved", "target", "out"))
    old.save_weights(saved)
    new.save_weights(target)
    with wp.open(saved) as source:
        (cell,) = source.cells()
        assert cell.layout.name == f"{name}.keras"
        assert len(cell.units) == 1 + both
        scope = cell.scope
    rule = {"from": {"layout": f"{name}.keras", "scope": scope}, "to": {"layout": f"{name}.keras", "scope": ""}}
    x = np.random.default_rng(1).normal(size=(2, 7, 5)).astype(np.float32)
    wp.transfer(saved, new, {"weightport": 1, "rules": [rule]})
    np.testing.assert_allclose(np.asarray(new(x)), np.asarray(old(x)), **CLOSE)

    back = {"from": {"layout": f"{name}.keras", "scope": ""}, "to": {"layout": f"{name}.keras", "scope": scope}}
    wp.transfer(saved, target, {"weightport": 1, "rules": [back]}, out=out)
    other.load_weights(out)
    np.testing.assert_allclose(np.asarray(other(x)), np.asarray(old(x)), **CLOSE)
