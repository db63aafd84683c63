"""Cells of frameworks too large or too old to install for a test: what they gave is recorded beside their weights.

``tests/data/cells/make_mxnet.py`` and ``make_paddle.py`` made the files, with the frameworks' own layers and cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracles.torch_modules import load, module, moved, run, save, state

CLOSE = {"rtol": 0, "atol": 1e-6}
CELLS = Path(__file__).parents[1] / "data" / "cells"
FILES = [p for p in sorted(CELLS.glob("*.npz")) if not p.stem.endswith("_run")]


def layouts_of(name: str) -> list[str]:
    """What the file is, by its name: its maker's word."""
    framework, kind, *rest = name.split("_")
    if framework == "mxnet":
        return ["rnn.mxnet-cell"] if kind == "rnn" and "cell" in rest else [f"{kind}.mxnet"]
    if "cell" in rest:
        return [f"{kind}.paddle"]
    # PaddlePaddle has every tensor twice; of projected layers one of the two names is wrong.
    return [f"{kind}.paddle-layers"] if "proj" in rest else [f"{kind}.paddle-layers", f"{kind}.paddle"]


def torch_module(name: str, x: np.ndarray) -> Any:
    _, kind, *rest = name.split("_")
    options: dict[str, Any] = {"bidirectional": "both" in rest, "num_layers": 1 if "cell" in rest else 2}
    if "proj" in rest:
        options["proj_size"] = 3
    if name.startswith("mxnet_rnn") and "cell" not in rest:
        options["nonlinearity"] = "relu"  # the default of gluon.rnn.RNN
    return module({"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}[kind], x.shape[-1], 5, batch_first=True, **options)


def recorded(path: Path) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    with np.load(path.with_name(f"{path.stem}_run.npz")) as run_:
        states = [run_[f"state{k}"] for k in range(2) if f"state{k}" in run_.files]
        return run_["x"], run_["y"], [s if s.ndim == 3 else s[None] for s in states]


CASES = [(path, layout) for path in FILES for layout in layouts_of(path.stem)]


def test_all_of_them_are_there() -> None:
    assert len(FILES) == 34
    assert {layout.partition(".")[2] for _, layout in CASES} == {"mxnet", "mxnet-cell", "paddle", "paddle-layers"}


@pytest.mark.parametrize(("path", "layout"), CASES, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_into_a_module_and_back(path: Path, layout: str, tmp_path: Path) -> None:
    x, y, states = recorded(path)
    made, kind = torch_module(path.stem, x), layout.split(".")[0]
    # collect_params puts the block's prefix before every name.
    scope = "net" if path.stem.startswith("mxnet") and not path.stem.endswith("saved") else ""
    said = {"activation": "relu"} if getattr(made, "nonlinearity", "tanh") == "relu" else {}
    sides = [{"layout": layout, "scope": scope}, {"layout": f"{kind}.torch", "scope": "rnn", **said}]
    with np.load(path) as archive:
        original = {n: archive[n] for n in archive.files}
    ignore = []
    if path.stem.startswith("paddle") and "cell" not in path.stem:  # the other names of the same tensors
        ignore = [n for n in original if n[0].isdigit() != layout.endswith("layers")]
    there = {"weightport": 1, "rules": [{"from": sides[0], "to": sides[1]}], "ignore": ignore}
    load(made, moved(tmp_path, str(path), state(made, "rnn."), there), "rnn.")
    outputs, _ = run(made, x, states)
    np.testing.assert_allclose(outputs, y, **CLOSE)
    assert np.ptp(y) > 0.1

    target = {n: np.zeros_like(a) for n, a in original.items() if n not in ignore}
    back = {"weightport": 1, "rules": [{"from": sides[1], "to": {**sides[0], **said}}]}
    found = moved(tmp_path, save(tmp_path / "torch.npz", state(made, "rnn.")), target, back)
    assert all(np.array_equal(found[n], original[n]) for n in target)
