"""Dtypes by name, and the bounds that every reader keeps to."""

from __future__ import annotations

import numpy as np
import pytest

from weightport.errors import Error
from weightport.sizes import bytes_of
from weightport.tensors import TensorSpec, dtype_named


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
