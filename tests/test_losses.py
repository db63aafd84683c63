"""What casts lose, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport


def losses(folder: Path, values: Any, cast: str, **more: Any) -> list[dict[str, Any]]:
    np.savez(folder / "s.npz", w=values)
    rules = {"weightport": 1, "rules": [{"from": "w", "to": "v", "cast": cast, **more}]}
    wp.transfer(folder / "s.npz", None, rules, out=folder / "o.npz")
    proof = wp.verify(folder / "s.npz", folder / "o.npz", rules)
    assert proof.equal
    found: list[dict[str, Any]] = proof.as_json()["losses"]
    return found


def test_to_half(tmp_path: Path) -> None:
    values = np.array([1, 1 + 2.0**-11, 1e-9, -0.0, np.nan, np.inf, 1e-7, 3], "float32")
    (found,) = losses(tmp_path, values, "float16")
    largest = found.pop("largest")
    assert found == {"name": "v", "dtype": "float16", "values": 8, "rounded": 3, "zeroed": 1}
    half = float(np.float16(1e-7))
    assert largest == pytest.approx(abs(half - float(values[6])) / float(values[6]))


@pytest.mark.parametrize(
    ("values", "cast", "rounded", "zeroed"),
    [
        (np.array([1.5, -2.5, 0.25]), "int32", 3, 1),
        (np.array([1, 2**24 + 1], "int32"), "float32", 1, 0),
        (np.array([1.0, 1.001], "float32"), "bfloat16", 1, 0),
        (np.array([1 + 1j, 1 + 1e-12j]), "complex64", 1, 0),
        (np.array([[1.0, 2.0], [3.0, 4.0]], "float32"), "float16", 0, 0),
        (np.array(0.1), "float32", 1, 0),
        (np.zeros((0, 3)), "float32", 0, 0),
    ],
)
def test_kinds(tmp_path: Path, values: Any, cast: str, rounded: int, zeroed: int) -> None:
    (found,) = losses(tmp_path, values, cast)
    assert (found["values"], found["rounded"], found["zeroed"]) == (values.size, rounded, zeroed)


def test_casts_that_lose_nothing_are_not_listed(tmp_path: Path) -> None:
    assert losses(tmp_path, np.ones(3, "float32"), "float64") == []
    assert losses(tmp_path, np.ones(3, ml_dtypes.bfloat16).astype("float32"), "float32") == []


def test_parts_of_a_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", w=np.array([[1.0, 0.1], [2.0, 3.0]]))
    rules = {"weightport": 1, "rules": [{"from": "w", "to": ["a", "b"], "cast": "float32", "split": 1}]}
    wp.transfer(tmp_path / "s.npz", None, rules, out=tmp_path / "o.npz")
    found = wp.verify(tmp_path / "s.npz", tmp_path / "o.npz", rules).losses
    assert [(loss.name, loss.rounded) for loss in found] == [("a", 0), ("b", 1)]


def test_the_command(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", w=np.array([0.1, 1e-9, 1.0], "float32"))
    (tmp_path / "m.yaml").write_text("weightport: 1\nrules: [{from: w, to: v, cast: float16}]\n", encoding="utf-8")
    weightport("transfer", tmp_path / "s.npz", "-m", tmp_path / "m.yaml", "-o", tmp_path / "o.npz")
    ran = weightport("verify", tmp_path / "s.npz", tmp_path / "o.npz", "-m", tmp_path / "m.yaml")
    assert ran.out.splitlines() == [
        "1 of 1 tensors hold what the mapping makes of the source",
        "  v: cast to float16: 2 of 3 values rounded, by 0.00024 of the value at most; 1 became zero",
    ]
