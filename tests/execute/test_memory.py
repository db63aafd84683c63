"""Values straight into memory: the same bytes as those that are made, whole and in part, with checksums verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.plan.stub import document, numbers
from weightport.execute import Reader, live_values, memory
from weightport.tensors import Source

RULES: list[dict[str, Any]] = [
    {"from": "a", "to": "same"},
    {"from": "a", "to": "turned", "rearrange": "i j -> j i"},
    {"from": ["a", "b"], "to": "joined", "concat": 1},
    {"from": "a", "to": "cast", "cast": "float64"},
    {"from": "c", "to": "small"},
    {"from": "a", "to": "cut", "slice": "1:50, 3:40"},
    {"from": {"layout": "lstm.tf1", "scope": "k"}, "to": {"layout": "lstm.torch", "scope": "cell"}},
]
ARRAYS = {
    "a": numbers(60, 48), "b": numbers(60, 20, seed=1), "c": numbers(3),
    "k/kernel": numbers(11, 20), "k/bias": numbers(20),
}  # fmt: skip


@pytest.fixture(params=["npz", "safetensors", "ckpt"])
def source(tmp_path: Path, request: pytest.FixtureRequest) -> Source:
    np.savez(tmp_path / "s.npz", **ARRAYS)
    path = tmp_path / f"s.{request.param}"
    if request.param != "npz":
        rules = [{"from": "{x**}", "to": "{x**}"}]
        wp.transfer(tmp_path / "s.npz", None, document(rules), out=path)
    return wp.open(path)


@pytest.mark.parametrize("index", [None, (slice(1, 7),), (slice(0, 3), slice(2, 9, 2))])
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_every_kind_of_value(source: Source, monkeypatch: pytest.MonkeyPatch, index: Any, small: int) -> None:
    monkeypatch.setattr(memory, "SMALL", small)
    plan = wp.plan(source, None, document(RULES)).check()
    reader = Reader(source)
    for value, item in zip(live_values(plan, source), plan.items.values(), strict=True):
        cut = None if index is None else index[: len(item.spec.shape)]
        wanted = reader.value(item, cut)
        out = np.full(wanted.shape, 7, wanted.dtype)
        value.fill(out, cut)
        assert out.tobytes() == wanted.tobytes(), item.name


def test_a_checksum_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALL", 0)
    np.savez(tmp_path / "s.npz", **ARRAYS)
    wp.transfer(tmp_path / "s.npz", None, document([{"from": "{x**}", "to": "{x**}"}]), out=tmp_path / "s.ckpt")
    data = tmp_path / "s.ckpt.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[100] ^= 1
    data.write_bytes(raw)
    with wp.open(tmp_path / "s.ckpt") as source:
        plan = wp.plan(source, None, document([{"from": "a", "to": "t", "rearrange": "i j -> j i"}], ignore=["**"]))
        (value,) = live_values(plan, source)
        with pytest.raises(wp.FormatError, match="checksum"):
            value.fill(np.empty(value.spec.shape, value.spec.dtype))
