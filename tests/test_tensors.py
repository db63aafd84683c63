"""Dtypes by name, and the bounds that every reader keeps to."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import weightport as wp
from tests.formats.test_table import build
from weightport.errors import BudgetExceeded, Error, FormatError
from weightport.formats._io import ByteFile
from weightport.formats._table import Table
from weightport.sizes import bytes_of
from weightport.tensors import Budget, TensorSpec, checked_nbytes, dtype_named


def test_dtypes_of_numpy_and_ml_dtypes_by_name() -> None:
    assert dtype_named("float32") == np.float32
    assert dtype_named("bfloat16").itemsize == 2
    assert TensorSpec.of("float8_e4m3fn", (3, 5)).nbytes == 15
    assert TensorSpec.of("bfloat16", ()).dtype_name == "bfloat16"


def test_a_dtype_that_does_not_exist() -> None:
    with pytest.raises(TypeError):
        dtype_named("float33")


@pytest.mark.parametrize("name", ["2f4", "f4,i1", ",", "", "(2,)f4", "<f4" + "x" * 60, "f4\0", "<a4", "a"])
def test_expressions_are_no_names(name: str) -> None:
    with pytest.raises(TypeError, match="no dtype "):
        dtype_named(name)


def test_a_dtype_of_a_newer_ml_dtypes_says_so() -> None:
    with pytest.raises(
        Error, match=r"ml_dtypes \d.* has no dtype float8_e9m9; pip install --upgrade ml_dtypes"
    ) as found:
        dtype_named("float8_e9m9")
    assert isinstance(found.value, TypeError), "as for any other name that is none"


def test_sizes_do_not_overflow() -> None:
    assert TensorSpec.of("float32", (1 << 40, 1 << 40)).nbytes == 1 << 82
    with pytest.raises(BudgetExceeded, match=r"f: tensor 't': tensor bytes: .* asked for, at most 100 allowed"):
        checked_nbytes(np.dtype("float32"), (26,), Budget(tensor_bytes=100), "f", "t")
    assert checked_nbytes(np.dtype("float32"), (25,), Budget(tensor_bytes=100), "f", "t") == 100
    with pytest.raises(FormatError, match=r"negative dimension in shape \[2, -1\]"):
        checked_nbytes(np.dtype("float32"), (2, -1), Budget(), "f")
    with pytest.raises(BudgetExceeded, match="rank: 65 asked for, at most 64 allowed"):
        checked_nbytes(np.dtype("float32"), (1,) * 65, Budget(), "f")


def test_names_that_multiply() -> None:
    """What a file can spell without sharing is free; beyond that, and beyond 16 MB, it is refused."""
    budget, size = Budget(spread=2), 40 << 20
    budget.name(80 << 20, size, "f")
    with pytest.raises(BudgetExceeded) as caught:
        budget.name(1, size, "f")
    what = "names: 83,886,081 bytes, at most 83,886,080 for a file of 41,943,040: they multiply by what they share"
    assert str(caught.value) == f"f: {what}"
    budget.name(1, 1, "g")  # another file of the same model, which has room of its own
    budget = Budget()
    budget.name(1 << 24, 100, "f")
    with pytest.raises(BudgetExceeded, match="at most 16,777,216 for a file of 100: "):
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
    with pytest.raises(BudgetExceeded) as caught:
        budget.spend("tensors", 1, "f")
    assert str(caught.value) == "f: seconds: its structure took more than 5 of processor time to read"


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
    with pytest.raises(BudgetExceeded, match="header bytes: 11 asked for, at most 10 allowed"):
        budget.spend("header_bytes", 1, "f")


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2 * 10**9), ("500 MB", 500 * 10**6), ("1.5kb", 1500), ("1KiB", 1024), ("2 GiB", 2 << 30),
        ("3T", 3 * 10**12), ("4096", 4096), (" 7 B ", 7), (12, 12),
    ],
)  # fmt: skip
def test_sizes_of_people(text: str | int, amount: int) -> None:
    assert bytes_of(text) == amount


@pytest.mark.parametrize("text", ["", "GB", "-1", "2 PB", "1iB", "1e9", "0x10", "2GBs", "1,5GB", -3])
def test_what_is_no_size(text: str | int) -> None:
    with pytest.raises(Error, match=rf"^{text!r} is no size: expected a number of bytes such as 2GB, 500MB or 1GiB$"):
        bytes_of(text)


def test_a_size_of_nothing() -> None:
    with pytest.raises(Error, match=r"^'0.1B' is less than one byte$"):
        bytes_of("0.1B")
