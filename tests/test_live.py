"""Proofs by real cells: both sides run in their own frameworks, and a table that is wrong shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.cells import Case, cases, mapping
from tests.support import need
from weightport import live
from weightport.layouts import builtin, parse_layout
from weightport.layouts import shipped as tables
from weightport.proof import Verification
from weightport.targets import live_cells

CASES = [
    c
    for c in cases()
    if c.layout in ("lstm.tf1", "gru.tf1", "rnn.tf1")
    and c.file == "checkpoint_v2"
    and c.model.name.startswith("b_cells")
    and c.model.name != "b_cells/cudnn_compatible_gru"
]
KERAS = ("basic_lstm_relu", "gru", "basic_rnn", "bidirectional_lstm")
IN_KERAS = [c for c in CASES if c.model.name.removeprefix("b_cells/") in KERAS]
BEYOND = [c for c in CASES if c.model.name in ("b_cells/lstm_peephole_proj_clip", "b_cells/lstm_block_peephole_clip")]


def moved(case: Case, to: str, path: Path) -> dict[str, Any]:
    """The mapping, after it was carried out."""
    spec = mapping(case, [{"from": case.source(), "to": {"layout": to, "scope": "new"}}])
    wp.transfer(case.path, None, spec, out=path)
    return spec


@pytest.mark.parametrize("case", IN_KERAS, ids=str)
def test_tensorflow_and_keras_run_the_same_function(case: Case, tmp_path: Path) -> None:
    need("tensorflow")
    spec = moved(case, f"{case.kind}.keras", tmp_path / "out.npz")
    proof = wp.verify(case.path, tmp_path / "out.npz", spec, live=True)
    assert proof.equal, str(proof)
    by = [c.by for c in proof.cells]
    assert by == ["numpy", "tensorflow and keras"] * (len(by) // 2)
    assert proof.notes == ()
    assert all(c.steps > 100 for c in proof.cells)


@pytest.mark.parametrize("case", BEYOND, ids=str)
def test_peepholes_and_projections_run_too(case: Case, tmp_path: Path) -> None:
    need("tensorflow")
    spec = moved(case, case.layout, tmp_path / "out.npz")
    proof = wp.verify(case.path, tmp_path / "out.npz", spec, live=True)
    assert proof.equal, str(proof)
    assert [c.by for c in proof.cells] == ["numpy", "tensorflow and tensorflow"]


def written(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    rng = np.random.default_rng(7)
    np.savez(path, **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    return path


def torch_cell(kind: str, units: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a module of five inputs; with fewer outputs than units, it projects."""
    wide = {"lstm": 4, "gru": 3, "rnn": 1}[kind] * units
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (wide, 5), "weight_hh": (wide, outputs)}
    shapes |= {"bias_ih": (wide,), "bias_hh": (wide,)}
    if outputs != units:
        shapes["weight_hr"] = (outputs, units)
    return {f"cell.{name}_l0": shape for name, shape in shapes.items()}


def proven(folder: Path, shapes: dict[str, tuple[int, ...]], cell: dict[str, Any], new: dict[str, Any]) -> Verification:
    """A cell of random values, moved, and run on both sides."""
    source, out = written(folder / "m.npz", shapes), folder / "o.npz"
    spec = {"weightport": 1, "rules": [{"from": cell, "to": new}]}
    wp.transfer(source, None, spec, out=out)
    proof = wp.verify(source, out, spec, live=True)
    assert proof.equal, str(proof)
    return proof


FRAMEWORKS = {"flax": "flax", "onnx": "onnxruntime", "keras": "keras", "tf1": "tensorflow"}


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("flavour", FRAMEWORKS)
def test_pytorch_and_others_run_the_same_function(tmp_path: Path, kind: str, flavour: str) -> None:
    need("torch")
    package = FRAMEWORKS[flavour]
    need(package)
    says = {"activation": "relu"} if (kind, flavour) in (("rnn", "onnx"), ("rnn", "flax")) else {}
    cell = {"layout": f"{kind}.torch", "scope": "cell", **says}
    new = {"layout": f"{kind}.{flavour}", "scope": "new", **says}
    proof = proven(tmp_path, torch_cell(kind, 6, 6), cell, new)
    if (kind, flavour) == ("gru", "tf1"):  # TensorFlow's cell resets before its product: the values are of another
        assert [c.by for c in proof.cells] == ["numpy", "torch and numpy"]
        assert len(proof.notes) == 1
        assert "new: tensorflow cannot run it" in proof.notes[0]
        return
    assert [c.by for c in proof.cells] == ["numpy", f"torch and {package}"]
    assert proof.notes == ()


PEEPHOLES = {"cell/W": (1, 24, 5), "cell/R": (1, 24, 6), "cell/B": (1, 48), "cell/P": (1, 18)}


@pytest.mark.parametrize(
    ("layout", "package", "shapes"),
    [("lstm.torch", "torch", torch_cell("lstm", 6, 4)), ("lstm.onnx", "onnxruntime", PEEPHOLES)],
    ids=["projection", "peepholes"],
)
def test_others_and_tensorflow(tmp_path: Path, layout: str, package: str, shapes: dict[str, tuple[int, ...]]) -> None:
    need(package)
    need("tensorflow")
    proof = proven(tmp_path, shapes, {"layout": layout, "scope": "cell"}, {"layout": "lstm.tf1", "scope": "new"})
    assert [c.by for c in proof.cells] == ["numpy", f"{package} and tensorflow"]


def test_keras_hard_sigmoids(tmp_path: Path) -> None:
    """Of Keras 2 and of Keras 3, which are not the same function."""
    need("keras")
    shapes = {"a/kernel": (5, 24), "a/recurrent_kernel": (6, 24), "a/bias": (24,)}
    for name in ("hard_sigmoid", "hard_sigmoid_6"):
        cell = {"layout": "lstm.keras", "recurrent_activation": name}
        proof = proven(tmp_path, shapes, {**cell, "scope": "a"}, {**cell, "scope": "b"})
        assert [c.by for c in proof.cells] == ["numpy", "keras and keras"]


def test_a_wrong_table_is_caught_by_the_real_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With f and i exchanged in a table, values and reference steps agree with themselves; the frameworks do not."""
    need("tensorflow")
    table = {
        "gates": ["f", "i", "g", "o"],
        "inner": "lstm_cell",
        "tensors": {
            "kernel": "wx[input (gate unit)]",
            "recurrent_kernel": "wt[hidden (gate unit)]",
            "bias": "bi[(gate unit)]",
        },
    }
    wrong = {**builtin(), "lstm.keras": parse_layout("lstm.keras", table, "wrong")}
    monkeypatch.setattr(tables, "builtin", lambda: wrong)
    (case,) = [c for c in CASES if c.model.name == "b_cells/basic_lstm_fb1"]
    spec = wp.load_mapping(mapping(case, [{"from": case.source(), "to": {"layout": "lstm.keras", "scope": "new"}}]))
    wp.transfer(case.path, None, spec, out=tmp_path / "out.npz")
    assert wp.verify(case.path, tmp_path / "out.npz", spec).equal
    proof = wp.verify(case.path, tmp_path / "out.npz", spec, live=True)
    assert not proof.equal
    assert [c.equal for c in proof.cells] == [True, False]


def test_what_no_framework_runs_is_said(tmp_path: Path) -> None:
    (case,) = [c for c in cases("a_udacity_ifco") if c.file == "checkpoint_v2"]
    spec = moved(case, "lstm.scoped-gates", tmp_path / "out.npz")
    proof = wp.verify(case.path, tmp_path / "out.npz", spec, live=True)
    assert proof.equal
    assert [c.by for c in proof.cells] == ["numpy", "numpy and numpy"]
    assert [n.rpartition(": no ")[2] for n in proof.notes] == [
        "framework that is installed runs lstm.ifco: run by the reference steps",
        "framework that is installed runs lstm.scoped-gates: run by the reference steps",
    ]


def test_a_framework_that_fails_is_said_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise ValueError("no such cell")

    monkeypatch.setattr(live, "runner", lambda _: (broken, "keras"))
    (case,) = [c for c in cases("b_cells/basic_rnn") if c.file == "checkpoint_v2"]
    spec = moved(case, "rnn.keras", tmp_path / "out.npz")
    proof = wp.verify(case.path, tmp_path / "out.npz", spec, live=True)
    assert proof.equal
    assert [c.by for c in proof.cells] == ["numpy", "numpy and numpy"]
    assert all("keras cannot run it (ValueError: no such cell): run by the reference steps" in n for n in proof.notes)


def test_a_package_that_is_missing_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_cells.importlib.util, "find_spec", lambda _: None)
    assert live_cells.runner("lstm.keras") is None
    assert live_cells.runner("lstm.scoped-gates") is None
    assert live_cells.runner("ugrnn.tf1") is None
