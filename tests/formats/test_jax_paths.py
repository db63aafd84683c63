"""Which checkpoint of Flax or Orbax a path means, told by folders that have nothing else in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import says
from weightport.errors import FormatError
from weightport.formats._jax_paths import Found, find, is_checkpoint, resolve

MAP = b"\x81\xa1a\xc0"  # a map of msgpack: {"a": None}


def tree(folder: Path, *files: str, content: bytes = b"") -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("mark", ["_METADATA", "manifest.ocdbt", "params.w/.zarray", "params.w/zarr.json"])
def test_one_tree(tmp_path: Path, mark: str) -> None:
    tree(tmp_path, mark)
    assert is_checkpoint(str(tmp_path))
    assert find(f"{tmp_path}/") == resolve(str(tmp_path)) == Found("orbax", str(tmp_path))


@pytest.mark.parametrize("other", ["_CHECKPOINT_METADATA", "checkpoint", "a/b/.zarray", "zarr.json", "a/.zgroup"])
def test_what_is_no_tree(tmp_path: Path, other: str) -> None:
    assert not is_checkpoint(str(tree(tmp_path, other)))
    assert not is_checkpoint(str(tmp_path / "not there"))


def test_a_file_is_itself(tmp_path: Path) -> None:
    path = str(tree(tmp_path, "m.msgpack") / "m.msgpack")
    assert resolve(path) == Found("flax-msgpack", path)
    assert find(path) is None
    assert resolve(path + "x") == Found("flax-msgpack", path + "x")  # opening it says that it is not there


@pytest.mark.parametrize("step", ["3", "step_3", "checkpoint-3"])
def test_the_tree_of_a_step(tmp_path: Path, step: str) -> None:
    """Of a step, or of what says of itself that it is a checkpoint, the items are looked at."""
    folder = tree(tmp_path, f"{step}/default/_METADATA", f"{step}/metrics/metrics") / step
    found = Found("orbax", str(folder / "default"))
    assert find(str(folder)) == find(str(tmp_path)) == found
    tree(
        folder, "default.orbax-checkpoint-tmp/_METADATA", "default.orbax-checkpoint-tmp-12/_METADATA", "tmp1/_METADATA"
    )
    assert find(str(folder)) == found
    tree(folder, "another/manifest.ocdbt", "x.orbax-checkpoint-tmp-a/_METADATA")
    listed = "a checkpoint of 3 trees: 'another', 'default', 'x.orbax-checkpoint-tmp-a'; name one"
    with says(FormatError, f"{folder}: {listed}: {folder}/another"):
        find(str(folder))


def test_items_of_what_is_no_step(tmp_path: Path) -> None:
    assert find(str(tree(tmp_path / "model", "default/_METADATA"))) is None
    tree(tmp_path / "model", "_CHECKPOINT_METADATA")
    assert find(str(tmp_path / "model")) == Found("orbax", str(tmp_path / "model" / "default"))


def test_a_checkpoint_without_a_tree(tmp_path: Path) -> None:
    said = f"{tmp_path}: a checkpoint of Orbax without a tree of arrays; it has "
    tree(tmp_path, "_CHECKPOINT_METADATA")
    with says(FormatError, said + "'_CHECKPOINT_METADATA'"):
        resolve(str(tmp_path))
    tree(tmp_path, *(f"item{n}/x" for n in range(10, 20)))
    with says(FormatError, said + ", ".join(["'_CHECKPOINT_METADATA'", *(f"'item{n}'" for n in range(10, 19))])):
        resolve(str(tmp_path))


def test_the_latest_step_that_is_one(tmp_path: Path) -> None:
    tree(tmp_path, "checkpoint_9", "checkpoint_10", "other", content=MAP)
    assert find(str(tmp_path)) == Found("flax-msgpack", str(tmp_path / "checkpoint_10"))
    tree(tmp_path, "checkpoint_11", content=b"text")  # no map of msgpack
    tree(tmp_path, "checkpoint_12.orbax-checkpoint-tmp-3", "tmp_13", content=MAP)  # not finished
    tree(tmp_path, "checkpoint_14/other", "15x", "step")
    assert find(str(tmp_path)) == Found("flax-msgpack", str(tmp_path / "checkpoint_10"))
    tree(tmp_path, "checkpoint_16/_METADATA")
    assert find(str(tmp_path)) == Found("orbax", str(tmp_path / "checkpoint_16"))
    tree(tmp_path, "checkpoint_17/default/manifest.ocdbt")
    assert find(str(tmp_path)) == Found("orbax", str(tmp_path / "checkpoint_17" / "default"))
    tree(tmp_path, "checkpoint_18/_CHECKPOINT_METADATA")  # says that it is one, and is empty
    with pytest.raises(FormatError, match="without a tree of arrays"):
        find(str(tmp_path))


def test_steps_of_several_kinds(tmp_path: Path) -> None:
    tree(tmp_path, *(f"run_{n}" for n in range(12)), "3", "a-b_4", content=MAP)
    listed = "'3', 'a-b_4', 'run_0', 'run_1', 'run_2', 'run_3', 'run_4', 'run_5', 'run_6', 'run_7'"
    with says(FormatError, f"{tmp_path}: several checkpoints, of 3 kinds: {listed}; name one of them"):
        find(str(tmp_path))


def test_nothing_of_jax(tmp_path: Path) -> None:
    said = f"{tmp_path}: no checkpoint of Flax or Orbax in this folder; it has "
    with says(FormatError, said + "nothing"):
        resolve(str(tmp_path))
    tree(tmp_path, "b", *(f"c{n}" for n in range(10)), "a/x")
    with says(FormatError, said + "'a', 'b', 'c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7'"):
        resolve(str(tmp_path))
