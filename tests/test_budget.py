"""The bounds that every reader keeps to: what they are, what they count, and what they say."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import weightport as wp
from tests.formats.test_table import build
from tests.support import says
from weightport import budget as module
from weightport.budget import Budget, checked_nbytes
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats._io import ByteFile
from weightport.formats._table import Table


def test_what_is_allowed_by_default() -> None:
    """These are promised: SECURITY.md says what a stranger's file can cost."""
    assert Budget() == Budget(
        header_bytes=2 * 1024**3,
        tensors=20_000_000,
        depth=64,
        rank=64,
        tensor_bytes=64 * 1024**4,
        spread=16,
        ratio=1032,
        seconds=0,
        isolated=False,
    )
    assert module.NAMES == 16 * 1024**2


def test_files_that_are_not_trusted_by_default() -> None:
    token = module.ISOLATED.set(True)
    try:
        assert Budget().isolated
        assert not Budget(isolated=False).isolated
    finally:
        module.ISOLATED.reset(token)


def test_budgets_are_equal_whenever_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Budget(seconds=5)
    monkeypatch.setattr(time, "process_time", lambda: 1e9)
    second = Budget(seconds=5)
    assert first == second
    assert repr(first) == repr(second)
    assert "_" not in repr(first).replace("header_bytes", "").replace("tensor_bytes", "")
    second.spend("tensors", 1, "f")
    assert first != second  # what is left of them is not the same


def test_the_size_of_a_tensor() -> None:
    f4, budget = np.dtype("float32"), Budget(tensor_bytes=100)
    assert checked_nbytes(f4, (25,), budget, "f", "t") == 100
    assert checked_nbytes(f4, (), budget, "f") == 4
    assert checked_nbytes(f4, (0, 1 << 62), budget, "f") == 0
    assert checked_nbytes(f4, (1,) * 64, budget, "f") == 4
    with says(BudgetExceeded, "f: tensor 't': tensor bytes: 104 asked for, at most 100 allowed"):
        checked_nbytes(f4, (26,), budget, "f", "t")
    with says(
        BudgetExceeded, "f: tensor 't': tensor bytes: 4,835,703,278,458,516,698,824,704 asked for, at most 100 allowed"
    ):
        checked_nbytes(f4, (np.int64(1 << 40), np.int64(1 << 40)), budget, "f", "t")
    with says(FormatError, "f: tensor 't': negative dimension in shape [2, -1]"):
        checked_nbytes(f4, (2, -1), budget, "f", "t")
    with says(BudgetExceeded, "f: tensor 't': rank: 65 asked for, at most 64 allowed"):
        checked_nbytes(f4, (1,) * 65, budget, "f", "t")
    with says(BudgetExceeded, "f: rank: 65 asked for, at most 64 allowed"):
        checked_nbytes(f4, (1,) * 65, budget, "f")


def test_names_that_multiply() -> None:
    """What a file can spell without sharing is free; beyond that, and beyond 16 MB, it is refused."""
    budget, size = Budget(spread=2), 40 << 20
    budget.name(80 << 20, size, "f")
    what = "names: 83,886,081 bytes, at most 83,886,080 for a file of 41,943,040: they multiply by what they share"
    with says(BudgetExceeded, f"f: {what}"):
        budget.name(1, size, "f")
    budget.name(1, 1, "g")  # another file of the same model, which has room of its own
    budget = Budget()
    budget.name(1 << 24, 100, "f")
    what = "names: 16,777,217 bytes, at most 16,777,216 for a file of 100: they multiply by what they share"
    with says(BudgetExceeded, f"f: {what}"):
        budget.name(1, 100, "f")


def test_seconds_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when the budget was made; by default, time is no bound."""
    now = [100.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    budget, free = Budget(seconds=5), Budget()
    now[0] = 105.0
    budget.spend("tensors", 1, "f")
    now[0] = 105.1
    free.spend("tensors", 1, "f")
    with says(BudgetExceeded, "f: seconds: its structure took more than 5 of processor time to read"):
        budget.spend("tensors", 1, "f")


def test_ratios(tmp_path: Path) -> None:
    """What was compressed further than the budget allows is refused, in archives, tables and HDF5."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000))
    wp.open(tmp_path / "a.npz").close()
    with pytest.raises(FormatError, match="cannot decompress to 80128"):
        wp.open(tmp_path / "a.npz", budget=Budget(ratio=50))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(10_000_000), compression="gzip", chunks=(1_000_000,))
    wp.open(tmp_path / "a.h5").close()
    with pytest.raises(FormatError, match=r"80,000,000 bytes of values are claimed, [0-9,]+ are stored: refused"):
        wp.open(tmp_path / "a.h5", budget=Budget(ratio=50))
    (tmp_path / "t").write_bytes(build({b"%05d" % n: b"v" * 100 for n in range(1000)}, compress=True))
    with ByteFile(tmp_path / "t") as file:
        assert len(list(Table(file, Budget()).items())) == 1000
        with pytest.raises(FormatError, match="bytes of snappy claim to be 1"):
            list(Table(file, Budget(ratio=5)).items())


def test_a_budget_counts_what_was_spent() -> None:
    budget = Budget(header_bytes=10)
    budget.spend("header_bytes", 6, "f")
    budget.spend("header_bytes", 4, "f")
    with says(BudgetExceeded, "f: header bytes: 11 asked for, at most 10 allowed"):
        budget.spend("header_bytes", 1, "f")
    budget.spend("tensors", 20_000_000, "f")  # each bound counts for itself
