"""PyTorch's modules on either side: fixtures into them and back, and from one module to other frameworks' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping, reference
from tests.oracles.torch_modules import load, module, moved, run, save, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
CASES = [c for c in cases() if c.kind in MODULES]


def refusal(case: Case) -> str:
    """Why PyTorch's modules cannot be this cell, by what its authors say; empty if they can."""
    doc, cell = case.doc, str(case.doc["cell"])
    if doc.get("use_peepholes"):
        return "the target has no peepholes, and"
    if case.layout == "lstm.tf1-group":
        return ""
    if case.kind != "rnn" and (doc.get("activation") == "relu" or doc.get("recurrent_activation") == "hard_sigmoid"):
        return "activation"
    after = "udnn" in cell.lower() or doc.get("reset_after")
    return "different functions" if case.kind == "gru" and not after else ""


SINGLE = [c for c in CASES if isinstance(c.doc.get("units"), int) and not c.doc.get("num_layers")]
SINGLE = [c for c in SINGLE if "idirectional" not in c.doc["cell"]]


def module_of(case: Case, **more: Any) -> Any:
    inputs = reference(case)["x"].shape[-1]
    if case.kind == "lstm" and case.doc.get("num_proj"):
        more["proj_size"] = case.doc["num_proj"]
    if case.kind == "rnn" and case.doc.get("activation") == "relu":
        more["nonlinearity"] = "relu"
    bias = "no_bias" not in case.model.name
    return module(MODULES[case.kind], inputs, case.doc["units"], batch_first=True, bias=bias, **more)


def initial(case: Case, arrays: Any, which: str = "init0") -> list[np.ndarray] | None:
    keys = [f"{which}_h", f"{which}_c"] if case.kind == "lstm" else [f"{which}_state", f"{which}_h"]
    found = [arrays[k][None] for k in keys if k in arrays]
    return found if len(found) == (2 if case.kind == "lstm" else 1) else None


@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_a_fixture_into_a_module(case: Case, tmp_path: Path) -> None:
    arrays, made = reference(case), module_of(case)
    rule = {"from": case.source(), "to": {"layout": f"{case.kind}.torch", "scope": "enc.rnn"}}
    target = state(made, "enc.rnn.")
    if why := refusal(case):
        with pytest.raises(wp.PlanError, match=why):
            moved(tmp_path, case.path, target, mapping(case, [rule]))
        return
    load(made, moved(tmp_path, case.path, target, mapping(case, [rule])), "enc.rnn.")
    outputs, final = run(made, arrays["x"])
    np.testing.assert_allclose(outputs, arrays["full_outputs"], **CLOSE)
    for found, want in zip(final, initial(case, arrays, "full_final") or final, strict=True):
        np.testing.assert_allclose(found, want, **CLOSE)
    if "seqlen_outputs" in arrays:
        valid = np.arange(arrays["x"].shape[1])[None] < arrays["seq_len"][:, None]
        outputs, _ = run(made, arrays["x"], lengths=np.maximum(arrays["seq_len"], 1))
        np.testing.assert_allclose(outputs[valid], arrays["seqlen_outputs"][valid], **CLOSE)
    first = initial(case, arrays)
    if first is not None:
        np.testing.assert_allclose(run(made, arrays["x"], first)[0], arrays["init_outputs"], **CLOSE)


BACK = [c for c in SINGLE if not refusal(c) and c.layout != "lstm.tf1-coupled"]


@pytest.mark.parametrize("case", BACK, ids=str)
def test_there_and_back(case: Case, tmp_path: Path) -> None:
    """Into a module's tensors and back into the fixture's: every bit, but of biases that had a constant added or were
    summed.
    """
    torch_side, own = {"layout": f"{case.kind}.torch", "scope": "rnn"}, case.source()
    there = mapping(case, [{"from": own, "to": torch_side}])
    wp.transfer(case.path, None, there, out=str(tmp_path / "there.npz"))
    with wp.open(case.path) as source:
        original = {n: np.asarray(source.read(n)) for n in source.cells()[0].names}
        facts = source.facts(list(original))
    stated = {k: facts[k] for k in ("forget_bias", "activation", "recurrent_activation") if facts.get(k) is not None}
    back = {"weightport": 1, "rules": [{"from": torch_side, "to": {**stated, **own}}]}
    target = {n: np.zeros_like(a) for n, a in original.items()}
    found = moved(tmp_path, str(tmp_path / "there.npz"), target, back)
    for name, array in original.items():
        if array.ndim > 1 and case.layout != "gru.keras":
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6) if "cudnn" not in case.layout else None


STACKS = [c for c in CASES if c.doc.get("num_layers") and not refusal(c) and c.file == "checkpoint_v2"]
STACKS = [c for c in STACKS if "Residual" not in c.doc["cell"] and "init0_l0_h" in reference(c)]


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_a_stack_into_modules(case: Case, tmp_path: Path) -> None:
    """One module where all layers are of one size, else one for each layer."""
    arrays, count = reference(case), case.doc["num_layers"]
    units = case.doc["units"] if isinstance(case.doc["units"], list) else [case.doc["units"]] * count
    groups = [list(range(count))] if len(set(units)) == 1 else [[k] for k in range(count)]
    x, first, size = arrays["x"], arrays["x"], arrays["x"].shape[-1]
    for group in groups:
        made = module("LSTM", size, units[group[0]], num_layers=len(group), batch_first=True)
        rule = {"from": case.source(layers=group), "to": {"layout": "lstm.torch", "scope": ""}}
        spec = mapping(case, [rule])
        others = [k for k in range(count) if k not in group]
        if others:  # the other layers are left behind
            with wp.open(case.path) as source:
                spec["ignore"] += [n for u in source.cells()[0].units if u.layer in others for n in u.names]
        load(made, moved(tmp_path, case.path, state(made), spec))
        states = [np.stack([arrays[f"init0_l{k}_{letter}"] for k in group]) for letter in "hc"]
        x, final = run(made, x)
        for found, letter in zip(final, "hc", strict=True):
            want = np.stack([arrays[f"full_final_l{k}_{letter}"] for k in group])
            np.testing.assert_allclose(found, want, **CLOSE)
        first, _ = run(made, first, states)
        size = units[group[0]]
    np.testing.assert_allclose(x, arrays["full_outputs"], **CLOSE)
    np.testing.assert_allclose(first, arrays["init_outputs"], **CLOSE)


@pytest.mark.parametrize("case", [c for c in CASES if "stack_bidirectional" in c.model.name], ids=str)
def test_a_bidirectional_stack_of_two_sizes(case: Case, tmp_path: Path) -> None:
    arrays = reference(case)
    x = arrays["x"]
    for k, units in enumerate(case.doc["units"]):
        made = module("LSTM", x.shape[-1], units, batch_first=True, bidirectional=True)
        spec = mapping(case, [{"from": case.source(layers=[k]), "to": {"layout": "lstm.torch", "scope": ""}}])
        with wp.open(case.path) as source:
            spec["ignore"] += [n for u in source.cells()[0].units if u.layer != k for n in u.names]
        load(made, moved(tmp_path, case.path, state(made), spec))
        x, _ = run(made, x)
    np.testing.assert_allclose(x, arrays["full_outputs"], **CLOSE)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.model.name.endswith(("bidirectional_lstm",)) and not refusal(c)], ids=str
)
def test_one_direction_into_a_module_of_its_own(case: Case, tmp_path: Path) -> None:
    if "stack" in case.model.name:
        pytest.skip("both layers have a test of their own")
    arrays, units = reference(case), case.doc["units"]
    for name, short in (("forward", "fw"), ("backward", "bw")):
        made = module(
            "LSTM", arrays["x"].shape[-1], units[short] if isinstance(units, dict) else units, batch_first=True
        )
        spec = mapping(case, [{"from": case.source(directions=[name]), "to": {"layout": "lstm.torch", "scope": ""}}])
        with wp.open(case.path) as source:
            spec["ignore"] += [n for u in source.cells()[0].units if u.direction != name for n in u.names]
        load(made, moved(tmp_path, case.path, state(made), spec))
        x = arrays["x"] if short == "fw" else arrays["x"][:, ::-1]
        outputs, _ = run(made, x)
        outputs = outputs if short == "fw" else outputs[:, ::-1]
        np.testing.assert_allclose(outputs, arrays[f"full_outputs_{short}"], **CLOSE)


# From modules into Keras' layers and back ----------------------------------------------------------------------------

OPTIONS = {"lstm": {}, "gru": {"reset_after": True}, "rnn": {}}
KERAS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", MODULES)
def test_modules_and_keras_layers(kind: str, bias: bool, both: bool, tmp_path: Path) -> None:
    """Two layers: into live Keras layers, their weights changed there, and back into another module."""
    keras = need("keras")
    made = module(MODULES[kind], 3, 5, num_layers=2, batch_first=True, bias=bias, bidirectional=both, seed=3)
    source = save(tmp_path / "torch.npz", state(made, "enc."))
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    options = {"units": 5, "return_sequences": True, "use_bias": bias, **OPTIONS[kind]}
    inputs = keras.Input((None, 3))
    out, rules = inputs, []
    for k in range(2):
        layer = getattr(keras.layers, KERAS[kind])(name="rnn" if both else f"layer_{k}", **options)
        out = keras.layers.Bidirectional(layer, name=f"layer_{k}")(out) if both else layer(out)
        sides = [{"layout": f"{kind}.torch", "scope": "enc"}, {"layout": f"{kind}.keras", "scope": f"layer_{k}"}]
        if kind == "gru" and not bias:
            sides[1]["reset"] = "after"
        rules.append({"from": {**sides[0], "layers": [k]}, "to": sides[1]})
    model = keras.Model(inputs, out)
    wp.transfer(source, model, {"weightport": 1, "rules": rules})
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), run(made, x)[0], **CLOSE)

    for weight in model.weights:
        weight.assign(weight * 0.9)
    names = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    back = {"weightport": 1, "rules": [{"from": r["to"], "to": r["from"]} for r in rules]}
    other = module(MODULES[kind], 3, 5, num_layers=2, batch_first=True, bias=bias, bidirectional=both, seed=4)
    load(other, moved(tmp_path, save(tmp_path / "keras.npz", names), state(other, "enc."), back, "back.npz"), "enc.")
    np.testing.assert_allclose(run(other, x)[0], keras.ops.convert_to_numpy(model(x)), **CLOSE)


@pytest.mark.parametrize("both", [False, True])
def test_projections_into_tensorflows_names(both: bool, tmp_path: Path) -> None:
    """Two projected layers into ``lstm.tf1`` and back: every bit but of the second bias, which is in the first."""
    made = module("LSTM", 3, 6, num_layers=2, proj_size=4, batch_first=True, bidirectional=both, seed=5)
    sides = [{"layout": "lstm.torch", "scope": ""}, {"layout": "lstm.tf1", "scope": "rnn", "forget_bias": 0}]
    rules = [{"from": sides[0], "to": sides[1]}]
    wp.transfer(
        save(tmp_path / "a.npz", state(made)), None, {"weightport": 1, "rules": rules}, out=str(tmp_path / "b.npz")
    )
    other = module("LSTM", 3, 6, num_layers=2, proj_size=4, batch_first=True, bidirectional=both, seed=6)
    back = {"weightport": 1, "rules": [{"from": sides[1], "to": sides[0]}]}
    load(other, moved(tmp_path, str(tmp_path / "b.npz"), state(other), back))
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    for found, want in zip(run(other, x), run(made, x), strict=True):
        for one, two in zip(found, want, strict=True):
            np.testing.assert_allclose(one, two, **CLOSE)
    assert all(np.array_equal(state(other)[n], a) for n, a in state(made).items() if "weight" in n)


@pytest.mark.parametrize("kind", MODULES)
def test_cells_into_layers(kind: str, tmp_path: Path) -> None:
    torch = need("torch")
    cell, layer = module(f"{MODULES[kind]}Cell", 3, 5, seed=1), module(MODULES[kind], 3, 5, batch_first=True, seed=2)
    rules = [{"from": {"layout": f"{kind}.torch", "scope": "cell"}, "to": {"layout": f"{kind}.torch", "scope": ""}}]
    source = save(tmp_path / "cell.npz", state(cell, "cell."))
    load(layer, moved(tmp_path, source, state(layer), {"weightport": 1, "rules": rules}))
    x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    now: Any = None
    found = []
    with torch.no_grad():
        for k in range(6):
            now = cell(torch.from_numpy(x[:, k]), now)
            found.append((now[0] if isinstance(now, tuple) else now).numpy())
    np.testing.assert_allclose(np.stack(found, 1), run(layer, x)[0], **CLOSE)
