from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats.keras_zoo import ZOO, randomized
from tests.support import need
from weightport.errors import BudgetExceeded, FormatError, TensorNotFound
from weightport.formats import files, keras_sharded
from weightport.tensors import Budget

# What Keras does with numpy's arrays, as it saves them, is its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in several files, and beside them the same in one."""
    keras = need("keras")
    keras.backend.clear_session()
    folder = tmp_path_factory.mktemp("sharded")
    model = randomized(ZOO["cells_in_a_row"](keras))
    model.save_weights(folder / "m.weights.json", max_shard_size=600 / 1024**3)
    (folder / "whole").mkdir()
    model.save_weights(folder / "whole" / "m.weights.h5")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    for file in saved.glob("m*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "m.weights.json"


def changed(index: Path, **entries: Any) -> Path:
    document = json.loads(index.read_text())
    for name, shards in entries.items():
        key = f"/{name.replace('__', '/')}/vars"
        document["weight_map"].pop(key, None)
        if shards is not None:
            document["weight_map"][key] = shards
    index.write_text(json.dumps(document))
    return index


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        keras_sharded.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}")


def test_the_same_as_in_one_file(saved: Path) -> None:
    assert len(list(saved.glob("*.h5"))) > 2
    assert any(isinstance(v, list) for v in json.loads((saved / "m.weights.json").read_text())["weight_map"].values())
    with wp.open(saved / "m.weights.json") as source, wp.open(saved / "whole" / "m.weights.h5") as whole:
        assert source.format == "keras-sharded"
        assert dict(source.specs()) == dict(whole.specs())
        for name in whole.specs():
            assert np.array_equal(source.read(name), whole.read(name))
            assert np.array_equal(source.read(name, (slice(0, 1),)), whole.read(name, (slice(0, 1),)))
        assert {c.scope: c.layout.name for c in source.cells()} == {c.scope: c.layout.name for c in whole.cells()}
        assert source.facts(list(source.specs())) == {}
        with pytest.raises(TensorNotFound, match="closest: 'layers/dense/vars/0'"):
            source.read("layers/dense/vars/9")
    assert files.files_of(str(saved / "m.weights.json")) == sorted(str(p) for p in saved.glob("m*"))


def test_index_and_shards_must_agree(copy: Path) -> None:
    shards = sorted(p.name for p in copy.parent.glob("*.h5"))
    with keras_sharded.open_source(str(copy)) as source:
        home = dict(source._home)
    dense = home["layers/dense_1/vars/0"]
    other = next(s for s in shards if s not in home.values() or s != dense)
    original = copy.read_text()
    assert refused(changed(copy, layers__dense_1=None)) == (
        f": tensor 'layers/dense_1/vars/0': stands in the shard '{dense}', and the index does not say so"
    )
    copy.write_text(original)
    assert refused(changed(copy, layers__dense_1=[dense, other])) == (
        f": the shard '{other}' has no variables in 'layers/dense_1/vars', which the index has there"
    )
    copy.write_text(original)
    (copy.parent / other).write_bytes((copy.parent / dense).read_bytes())
    document = json.loads(original)
    document["weight_map"] = {key: [dense, other] for key in document["weight_map"]}
    copy.write_text(json.dumps(document))
    assert f"stands in the shards '{dense}' and '{other}'" in refused(copy)
    os.unlink(copy.parent / dense)
    assert "cannot be opened: No such file or directory" in refused(copy)


@pytest.mark.parametrize("shard", ["../x.weights.h5", "/etc/x.weights.h5", "a//b", "."])
def test_no_shard_outside_the_folder(copy: Path, shard: str) -> None:
    assert refused(changed(copy, layers__dense=shard)) == (
        f": the shard {shard!r} of '/layers/dense/vars' is no path below the index' folder: refused"
    )


def test_no_index(copy: Path) -> None:
    assert refused(changed(copy, layers__dense=[])) == ": the index has no files for '/layers/dense/vars'"
    assert refused(changed(copy, layers__dense=7)) == ": the index has no files for '/layers/dense/vars'"
    copy.write_text('{"weight_map": [".weights.h5"]}')
    assert refused(copy) == ": the index has no 'weight_map' of tensors to files"
    assert not keras_sharded.sniff(str(copy.parent / "none"))


def test_bounded(copy: Path) -> None:
    with pytest.raises(BudgetExceeded, match="header bytes"):
        keras_sharded.open_source(str(copy), budget=Budget(header_bytes=copy.stat().st_size - 1))
