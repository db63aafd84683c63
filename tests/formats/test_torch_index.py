"""Sharded models of PyTorch's: the index, and the files that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import same, specs_of, tiles_of
from weightport.errors import BudgetExceeded, FormatError, TensorNotFound
from weightport.formats import torch_index, torch_write
from weightport.formats.files import digest, files_of
from weightport.tensors import Budget

ARRAYS = {"a.w": np.arange(6, dtype="f4").reshape(2, 3), "a.b": np.ones(3, "f4"), "z": np.arange(3)}
SHARDS = {"a.w": "model-00001-of-00002.bin", "z": "model-00002-of-00002.bin", "a.b": "model-00001-of-00002.bin"}
INDEX = "pytorch_model.bin.index.json"


def sharded(folder: Path, mapped: dict[str, str] = SHARDS, held: dict[str, str] = SHARDS) -> Path:
    for shard in dict.fromkeys(held.values()):
        part = {name: ARRAYS[name] for name, own in held.items() if own == shard}
        torch_write.write(str(folder / shard), specs_of(part), tiles_of(part))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": mapped}), encoding="utf-8")
    return folder / INDEX


@pytest.mark.parametrize("where", ["index", "folder"])
def test_a_sharded_model_is_one_source(tmp_path: Path, where: str) -> None:
    index = sharded(tmp_path)
    path = index if where == "index" else tmp_path
    with wp.open(path) as source:
        assert source.format == "torch"
        assert list(source.specs()) == list(SHARDS)
        assert all(same(source.read(name), ARRAYS[name]) for name in ARRAYS)
        assert same(source.read("a.w", (slice(1, 2),)), ARRAYS["a.w"][1:])
        assert source.facts(["a.w"]) == {}
        with pytest.raises(TensorNotFound):
            source.read("a.v")
    with torch_index.open_source(str(path)) as inner:
        place = inner.extent("z")
        assert place is not None
        assert place.path == str(tmp_path / SHARDS["z"])
    assert [Path(file).name for file in files_of(path)] == [
        "model-00001-of-00002.bin",
        "model-00002-of-00002.bin",
        INDEX,
    ]
    assert digest(path) == digest(index)
    rules = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
    wp.transfer(path, None, rules, out=tmp_path / "one.pt")
    with wp.open(tmp_path / "one.pt") as written:
        assert all(same(written.read(name), ARRAYS[name]) for name in ARRAYS)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    lost = {**SHARDS, "more": "model-00002-of-00002.bin"}
    with pytest.raises(
        FormatError, match=r"tensor 'more': is not in the shard 'model-00002-of-00002.bin' that the index"
    ):
        wp.open(sharded(tmp_path, mapped=lost))
    with pytest.raises(FormatError, match=r"tensor 'a.b': stands in the shard .*, and the index does not list it"):
        wp.open(sharded(tmp_path, mapped={k: v for k, v in SHARDS.items() if k != "a.b"}))


def test_shards_lie_beneath_the_index(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"the shard '../x.bin' is no path below the index' folder: refused"):
        wp.open(sharded(tmp_path, mapped={"a": "../x.bin"}))
    with pytest.raises(FormatError, match=r"cannot be opened: No such file"):
        wp.open(sharded(tmp_path, mapped={"a": "x.bin"}))


def test_a_missing_index(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"is a folder without exactly one file that ends in \.bin\.index\.json"):
        torch_index.open_source(str(tmp_path))
    assert not torch_index.sniff(str(tmp_path))


@pytest.mark.parametrize("opened", ["model-00001-of-00002.bin", "pytorch_model.bin.index.json"])
def test_a_budget_is_that_of_every_file(tmp_path: Path, opened: str) -> None:
    sharded(tmp_path)
    torch_index.open_source(str(tmp_path / opened), budget=Budget(tensor_bytes=24)).close()
    with pytest.raises(BudgetExceeded, match="tensor bytes: 24 asked for, at most 23 allowed"):
        torch_index.open_source(str(tmp_path / opened), budget=Budget(tensor_bytes=23))
