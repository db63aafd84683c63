"""``weightport diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import fixture

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")


def npz(path: Path, **tensors: Any) -> Path:
    np.savez(path, **tensors)
    return path


def test_by_name(tmp_path: Path) -> None:
    same = np.arange(6, dtype="float32").reshape(2, 3)
    nan = np.array([np.nan, 1], "float32")
    a = npz(tmp_path / "a.npz", same=same, nan=nan, off=same, shape=same, dtype=same, gone=same, text=np.array("x"))
    b = npz(
        tmp_path / "b.npz", same=same, nan=nan, off=same + np.float32(0.5), shape=same.T, dtype=same.astype("float64"),
        new=same, text=np.array("y"),
    )  # fmt: skip
    ran = weightport("diff", a, b)
    assert ran.out.splitlines() == [
        "off: differs by 0.5",
        "shape: shape [2, 3] in A, [3, 2] in B",
        "dtype: dtype float32 in A, float64 in B",
        "gone: only in A",
        "text: values that cannot be subtracted",
        "new: only in B",
        "8 tensors: 2 equal, 4 differ, 1 only in A, 1 only in B",
    ]
    document = weightport("diff", a, b, "--json").json
    assert document["equal"] is False
    assert document["tensors"][:4] == [
        {"name": "same", "status": "equal", "max_abs_diff": 0.0, "what": ""},
        {"name": "nan", "status": "equal", "max_abs_diff": 0.0, "what": ""},
        {"name": "off", "status": "differs", "max_abs_diff": 0.5, "what": ""},
        {"name": "shape", "status": "differs", "max_abs_diff": None, "what": "shape [2, 3] in A, [3, 2] in B"},
    ]
    assert weightport("diff", a, b, "--exit-code", code=1).out == ran.out
    assert weightport("diff", a, a, "--exit-code").out == "7 tensors: 7 equal\n"
    assert weightport("diff", a, a, "--json").json["equal"] is True


def test_a_tensor_larger_than_a_tile(tmp_path: Path) -> None:
    big = np.zeros((3000, 4096), "float32")
    a = npz(tmp_path / "a.npz", big=big)
    big[2999, 4095] = 2
    b = npz(tmp_path / "b.npz", big=big)
    assert weightport("diff", a, b).out.splitlines() == ["big: differs by 2", "1 tensor: 1 differ"]


def test_through_a_mapping(tmp_path: Path) -> None:
    mapping = tmp_path / "m.yaml"
    mapping.write_text(
        "weightport: 1\nrules:\n"
        "  - {from: {layout: lstm.scoped-gates, scope: LSTMcell}, to: {layout: lstm.keras, scope: lstm}}\n"
        "  - {from: softmax_w, to: head/kernel}\n",
        encoding="utf-8",
    )
    full = tmp_path / "full.yaml"
    full.write_text(mapping.read_text(encoding="utf-8") + "ignore: [softmax_b]\n", encoding="utf-8")
    out = tmp_path / "out.npz"
    weightport("transfer", SEED, "-m", full, "-o", out)
    assert weightport("diff", SEED, out, "-m", full).out == "4 tensors: 4 equal\n"
    with np.load(out) as archive:
        arrays = dict(archive)
    arrays["lstm/bias"][3] += 1
    npz(out, **arrays, more=np.zeros(2))
    assert weightport("diff", SEED, out, "-m", mapping).out.splitlines() == [
        "lstm/bias: differs by 1",
        "softmax_b: only in A",
        "more: only in B",
        "6 tensors: 3 equal, 1 differ, 1 only in A, 1 only in B",
    ]
    mapping.write_text("weightport: 1\nrules: [{from: sofmax_w, to: head/kernel}]\n", encoding="utf-8")
    ran = weightport("diff", SEED, out, "-m", mapping, code=1)
    assert ran.told[0].startswith(f"{mapping}:2 rules[0].from: no tensor 'sofmax_w' in {SEED}; closest: 'softmax_w'")


def test_wrong_use(tmp_path: Path) -> None:
    assert "only a mapping names further sources" in weightport("diff", SEED, SEED, "--source", "a=b", code=2).err
    assert weightport("diff", SEED, tmp_path / "none.npz", code=1).told


@pytest.mark.parametrize("file", ["checkpoint_v2", "checkpoint_v1", "frozen"])
def test_one_model_in_several_formats(file: str) -> None:
    """TensorFlow wrote the same variables into each."""
    model = fixture("a_seed_char_lstm")
    found = weightport("diff", SEED, model.path(file), "--json").json["tensors"]
    assert {one["status"] for one in found} <= {"equal", "only in A"}
    assert sum(one["status"] == "equal" for one in found) == 14
