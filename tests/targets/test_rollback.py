"""Old values until a transfer has succeeded: bounded in memory, given back bit for bit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightport.targets import _rollback
from weightport.targets._rollback import Kept


@pytest.fixture(autouse=True)
def nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rollback, "free", lambda: 0)


def arrays() -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(300, 7)).astype("float32"), np.float64(3), np.zeros((0, 4), "float16"),
        np.array([b"a", b"bc"], object), rng.integers(0, 9, (9, 200)).astype("int8")[:, ::2],
        np.array([0x7FA00001], "uint32").view("float32"),
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1 << 30, 100, 0])
def test_values_come_back(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(_rollback, "LIMIT", limit)
    with Kept() as kept:
        back = [kept.put(value) for value in arrays()]
        for get, value in zip(back, arrays(), strict=True):
            found = np.asarray(get())
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert found.tolist() == value.tolist() if value.dtype.hasobject else found.tobytes() == value.tobytes()
            assert np.asarray(get()).shape == value.shape  # as often as one likes


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_rollback, "LIMIT", 1 << 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tracemalloc.start()
    try:
        with Kept() as kept:
            back = [kept.put(np.full(1 << 18, n, "float32")) for n in range(40)]  # 40 MB
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
            assert [float(get()[-1]) for get in back] == list(range(40))
        assert list(tmp_path.iterdir()) == []  # the file has no name
    finally:
        tracemalloc.stop()


def test_a_full_disk_keeps_them_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_rollback, "LIMIT", 0)
    monkeypatch.setattr(_rollback.os, "pwrite", full)
    with Kept() as kept:
        back = [kept.put(value) for value in arrays()]
        assert [np.asarray(get()).tobytes() for get in back[:3]] == [np.asarray(v).tobytes() for v in arrays()[:3]]


def test_what_is_free_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rollback, "LIMIT", 0)
    value = np.zeros(100)
    for room, kept_in_memory in ((4 * value.nbytes, True), (4 * value.nbytes - 4, False)):
        monkeypatch.setattr(_rollback, "free", lambda room=room: room)
        with Kept() as kept:
            assert (kept.put(value)() is value) == kept_in_memory
