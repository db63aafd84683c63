"""Specs that are made when they are asked for, once."""

from __future__ import annotations

import pytest

from tests.support import says
from weightport.errors import FormatError
from weightport.formats._lazy import LazySpecs
from weightport.tensors import TensorSpec


def test_each_is_made_once() -> None:
    made = []

    def make(name: str) -> TensorSpec:
        made.append(name)
        if name == "bad":
            raise FormatError("f", "cannot be told", tensor=name)
        return TensorSpec.of("float32", (len(name),))

    specs = LazySpecs({"b": 1, "bad": 2, "aa": 3}, make)
    assert list(specs) == ["b", "bad", "aa"]
    assert len(specs) == 3
    assert "bad" in specs
    assert "c" not in specs
    assert repr(specs) == "<specs of 3 tensors>"
    assert made == []
    assert specs["aa"] is specs["aa"]
    assert specs["aa"].shape == (2,)
    assert made == ["aa"]
    with pytest.raises(KeyError, match=r"^'c'$"):
        specs["c"]
    for _ in range(2):
        with says(FormatError, "f: tensor 'bad': cannot be told"):
            specs["bad"]
    assert made == ["aa", "bad", "bad"]
