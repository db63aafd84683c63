"""Values straight into memory: the same bytes as those that are made, whole and in part, with checksums verified."""

from __future__ import annotations

import gc
import os
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
@pytest.mark.parametrize(("small", "least", "threads"), [(1 << 20, 1, 3), (0, 1 << 20, 3), (0, 1000, 3), (0, 1000, 1)])
def test_every_kind_of_value(
    source: Source, monkeypatch: pytest.MonkeyPatch, index: Any, small: int, least: int, threads: int
) -> None:
    for name, value in (("SMALL", small), ("LEAST", least), ("CHUNK", 777), ("processors", lambda: threads)):
        monkeypatch.setattr(memory, name, value)
    plan = wp.plan(source, None, document(RULES)).check()
    reader = Reader(source)
    for value, item in zip(live_values(plan, source), plan.items.values(), strict=True):
        cut = None if index is None else index[: len(item.spec.shape)]
        wanted = reader.value(item, cut)
        out = np.full(wanted.shape, 7, wanted.dtype)
        value.fill(out, cut)
        assert out.tobytes() == wanted.tobytes(), item.name


@pytest.mark.parametrize("name", ["same", "turned", "cast"])
def test_bytes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for known, value in (("SMALL", 0), ("LEAST", 1000), ("CHUNK", 777), ("processors", lambda: 3)):
        monkeypatch.setattr(memory, known, value)
    np.savez(tmp_path / "s.npz", **ARRAYS)
    wp.transfer(tmp_path / "s.npz", None, document([{"from": "{x**}", "to": "{x**}"}]), out=tmp_path / "s.ckpt")
    with wp.open(tmp_path / "s.ckpt") as source:
        rules = [rule for rule in RULES if rule["to"] == name]
        (value,) = live_values(wp.plan(source, None, document(rules, ignore=["**"])).check(), source)
        out = np.empty(value.spec.shape, value.spec.dtype)
        read: list[int] = []
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda *given: read.append(real(*given)) or read[-1])
        value.fill(out)
    assert sum(read) == ARRAYS["a"].nbytes


def test_values_share_their_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for known, number in (("SMALL", 0), ("LEAST", 1000), ("processors", lambda: 2)):
        monkeypatch.setattr(memory, known, number)
    made: list[Any] = []
    real = memory.ThreadPoolExecutor
    monkeypatch.setattr(memory, "ThreadPoolExecutor", lambda *given: made.append(real(*given)) or made[-1])
    np.savez(tmp_path / "s.npz", a=ARRAYS["a"], b=ARRAYS["b"])
    wp.transfer(tmp_path / "s.npz", None, document([{"from": "{x**}", "to": "{x**}"}]), out=tmp_path / "s.ckpt")
    with wp.open(tmp_path / "s.ckpt") as source:
        values = live_values(wp.plan(source, None, document([{"from": "{x}", "to": "{x}"}])).check(), source)
        assert made == []
        for value in values:
            value.fill(np.empty(value.spec.shape, value.spec.dtype))
    (pool,) = made
    threads = list(pool._threads)
    assert 1 <= len(threads) <= 2
    del values, value, pool
    made.clear()
    gc.collect()
    for thread in threads:  # nobody holds the values any more
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_checksum_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    for known, number in (("SMALL", 0), ("LEAST", 1000), ("processors", lambda: threads)):
        monkeypatch.setattr(memory, known, number)
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
