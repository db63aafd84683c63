"""Flax' models in several files: an index of shards, as transformers wrote them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import weightport as wp
from tests.formats.test_flax_msgpack import nested, stored
from tests.support import need
from weightport.errors import BudgetExceeded, FormatError
from weightport.formats import flax_index
from weightport.formats.detect import detect
from weightport.formats.files import files_of
from weightport.tensors import Budget

SHARDS = {
    "flax_model-00001-of-00002.msgpack": {"h/0/kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "flax_model-00002-of-00002.msgpack": {"h/0/bias": np.ones(3, np.float32), "wte/embedding": np.zeros((4, 2), "f2")},
}


def model(folder: Path) -> str:
    for name, arrays in SHARDS.items():
        stored(folder / name, nested(dict(arrays)))
    places = {tensor: shard for shard, arrays in SHARDS.items() for tensor in arrays}
    path = folder / "flax_model.msgpack.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 52}, "weight_map": places}, indent=2))
    return str(path)


def test_an_index_and_its_folder(tmp_path: Path) -> None:
    path = model(tmp_path)
    for given in (path, str(tmp_path)):
        assert detect(given) == "flax-msgpack"
        with wp.open(given) as source:
            assert {n: source.read(n).tolist() for n in source.specs()} == {
                n: a.tolist() for arrays in SHARDS.values() for n, a in arrays.items()
            }
            assert source.read("h/0/kernel", (slice(1, 2),)).tolist() == [[3, 4, 5]]
        assert files_of(given) == sorted(str(p) for p in tmp_path.iterdir())


def test_shards_have_to_agree_with_the_index(tmp_path: Path) -> None:
    path = model(tmp_path)
    stored(tmp_path / "flax_model-00001-of-00002.msgpack", {"h": {"0": {"other": np.zeros(1)}}})
    with pytest.raises(FormatError, match=r"tensor 'h/0/kernel': is not in the shard 'flax_model-00001-of"):
        flax_index.open_source(path)
    os.unlink(tmp_path / "flax_model-00001-of-00002.msgpack")
    with pytest.raises(FormatError, match=r"flax_model-00001-of-00002\.msgpack: cannot be opened"):
        flax_index.open_source(path)


def test_into_a_live_tree(tmp_path: Path) -> None:
    jnp = need("jax").numpy
    old = nested({n: jnp.zeros(a.shape, a.dtype) for arrays in SHARDS.values() for n, a in arrays.items()})
    found = wp.transfer(model(tmp_path), old, {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}).target
    assert found["h"]["0"]["kernel"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("opened", ["flax_model-00001-of-00002.msgpack", "flax_model.msgpack.index.json"])
def test_a_budget_is_that_of_every_file(tmp_path: Path, opened: str) -> None:
    model(tmp_path)
    flax_index.open_source(str(tmp_path / opened), budget=Budget(tensor_bytes=24)).close()
    with pytest.raises(BudgetExceeded, match="tensor bytes: 24 asked for, at most 23 allowed"):
        flax_index.open_source(str(tmp_path / opened), budget=Budget(tensor_bytes=23))
