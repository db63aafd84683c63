"""Where a file's values came from: every format that is written says it, and ``inspect`` shows it."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.faults.breaker import SHAPES
from tests.faults.test_breaker import CASES, make
from weightport.provenance import tables_digest

RULES = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}


def values(path: Path, number: int = 0) -> Path:
    rng = np.random.default_rng(number)
    np.savez(path, **{name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()})
    return path


def written(folder: Path, case: str, source: Path, **more: Any) -> Path:
    out, like, options = CASES[case]
    if like and not (folder / like).exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(folder, like)
    wp.transfer(source, folder / like if like else None, RULES, out=folder / out, **options, **more)
    return folder / out


@pytest.mark.parametrize("case", [case for case in CASES if "resumed" not in case])
def test_every_writer_says_it(tmp_path: Path, case: str) -> None:
    source = values(tmp_path / "values.npz")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / "1").mkdir()
    path = written(tmp_path / "1", case, source, expect_sha256=digest)
    with wp.open(path) as model:
        assert model.provenance() == {
            "version": wp.__version__,
            "source": "values.npz",
            "source_sha256": digest,
            "mapping_sha256": wp.load_mapping(RULES).digest,
            "layouts_sha256": tables_digest(),
        }
        assert set(model.specs()) >= set(SHAPES)
        for name, value in np.load(source).items():
            assert np.array_equal(model.read(name), value)
    for text in (str(tmp_path).encode(), os.uname().nodename.encode()):
        for file in path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*"):
            assert file.is_dir() or text not in file.read_bytes(), "no place and no machine"


@pytest.mark.parametrize("case", ["checkpoint", "msgpack", "saved model"])
def test_beside_the_file_that_has_no_room(tmp_path: Path, case: str) -> None:
    """Written over by a transfer of something else, it says so; by another program, nothing is said."""
    path = written(tmp_path, case, values(tmp_path / "values.npz"))
    main = {"checkpoint": "m.ckpt.index", "msgpack": "m.msgpack", "saved model": "m/saved_model.pb"}[case]
    assert (tmp_path / f"{main}.weightport.json").is_file()
    written(tmp_path, case, values(tmp_path / "others.npz", 1))
    with wp.open(path) as model:
        assert model.provenance()["source"] == "others.npz"
    (tmp_path / f"{main}.weightport.json").write_bytes(b"{}")
    with wp.open(path) as model:
        assert model.provenance() == {}


def test_the_same_transfer_says_the_same(tmp_path: Path) -> None:
    source = values(tmp_path / "values.npz")
    for case in ("safetensors", "safetensors shards", "checkpoint", "torch", "npz"):
        found = []
        for name in ("1", "2"):
            folder = tmp_path / f"{case}{name}"
            folder.mkdir()
            written(folder, case, source)
            found.append({file.name: file.read_bytes() for file in folder.iterdir()})
        assert found[0] == found[1]


def test_several_sources(tmp_path: Path) -> None:
    one, two = values(tmp_path / "one.npz"), values(tmp_path / "two.npz")
    rules = {
        "weightport": 1,
        "sources": {"other": {}},
        "rules": [{"from": "a/kernel", "to": "a"}, {"from": "other/b/kernel", "to": "b"}],
        "ignore": ["**"],
    }
    out = tmp_path / "m.safetensors"
    wp.transfer(one, None, rules, out=out, sources={"other": two})
    with wp.open(out) as model:
        said = model.provenance()
    assert (said["source"], said["source.other"]) == ("one.npz", "two.npz")


def test_names_only(tmp_path: Path) -> None:
    """A transfer that takes the source's files says it, too."""
    path = written(tmp_path, "checkpoint", values(tmp_path / "values.npz"))
    wp.transfer(
        path, None, {"weightport": 1, "rules": [{"from": "{x**}", "to": "n/{x**}"}]}, out=tmp_path / "n.ckpt", link=True
    )
    with wp.open(tmp_path / "n.ckpt") as model:
        assert model.provenance()["source"] == "m.ckpt"


def test_of_another_tool(tmp_path: Path) -> None:
    with wp.open(values(tmp_path / "values.npz")) as model:
        assert model.provenance() == {}


def test_inspect_shows_it(tmp_path: Path) -> None:
    path = written(tmp_path, "safetensors", values(tmp_path / "values.npz"))
    mapping = wp.load_mapping(RULES).digest
    assert (
        f"\n  written by weightport {wp.__version__} from values.npz (mapping {mapping[:12]})\n"
        in weightport("inspect", path).out
    )
    assert weightport("inspect", path, "--json").json["provenance"] == {
        "version": wp.__version__, "source": "values.npz", "mapping_sha256": mapping, "layouts_sha256": tables_digest(),
    }  # fmt: skip
    assert "provenance" not in weightport("inspect", tmp_path / "values.npz", "--json").json
