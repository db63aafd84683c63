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
