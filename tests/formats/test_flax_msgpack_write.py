"""Flax' msgpack files, written: Flax loads them, and they are the bytes that it would write."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import EXTRA, NUMPY, of_every_dtype, same, specs_of, tiles_of
from tests.formats.test_flax_msgpack import nested, stored
from tests.support import need
from weightport.errors import Error
from weightport.formats import flax_msgpack_write as writer
from weightport.formats.flax_msgpack import open_source


def test_the_bytes_that_flax_writes(tmp_path: Path) -> None:
    arrays = of_every_dtype(NUMPY + EXTRA)
    stored(tmp_path / "theirs", nested(arrays))
    for rows in (1, 2):
        writer.write(str(tmp_path / "ours"), specs_of(arrays), tiles_of(arrays, rows), metadata={"a": "b"})
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("limit", [4, 10, 16, 64])
def test_arrays_in_chunks(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flax = need("flax.serialization")
    arrays = {"x/y": np.arange(24, dtype=np.float32).reshape(6, 4), "z": np.arange(7, dtype=np.int8)}
    monkeypatch.setattr(flax, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(writer, "MAX_CHUNK", limit)
    stored(tmp_path / "theirs", nested(arrays))
    writer.write(str(tmp_path / "ours"), specs_of(arrays), tiles_of(arrays))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    restored = flax.msgpack_restore((tmp_path / "ours").read_bytes())
    assert same(np.ascontiguousarray(restored["x"]["y"]), arrays["x/y"])


def test_golden_bytes(tmp_path: Path) -> None:
    arrays = {"a/b": np.array([1, 2], "<i2"), "a/c": np.array(1.0, "<f4")}
    writer.write(str(tmp_path / "a"), specs_of(arrays), tiles_of(arrays))
    assert (tmp_path / "a").read_bytes() == (
        b"\x81\xa1a\x82"
        b"\xa1b\xc7\x0f\x01\x93\x91\x02\xa5int16\xc4\x04\x01\x00\x02\x00"
        b"\xa1c\xd8\x01\x93\x90\xa7float32\xc4\x04\x00\x00\x80?"
    )


def test_like_a_training_state(tmp_path: Path) -> None:
    """With a TARGET, Flax restores it into the same state: empty states, the step as a number, lists stay."""
    jax, optax, flax = need("jax"), need("optax"), need("flax.serialization")
    train_state = need("flax.training.train_state")
    params = {"dense": {"kernel": jax.numpy.zeros((2, 3)), "bias": jax.numpy.ones(3)}, "name": {}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    (tmp_path / "target.msgpack").write_bytes(flax.to_bytes(state.replace(step=7)))
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", w=w)
    mapping = {
        "weightport": 1,
        "rules": [{"from": "w", "to": "params/dense/kernel"}],
        "keep": ["params/dense/bias"],
    }
    out = tmp_path / "out.msgpack"
    wp.transfer(str(tmp_path / "a.npz"), str(tmp_path / "target.msgpack"), mapping, out=str(out))
    assert wp.verify(str(tmp_path / "a.npz"), str(out), mapping).equal
    found = flax.from_bytes(state, out.read_bytes())
    assert found.step == 7
    assert type(found.step) is int
    assert np.array_equal(found.params["dense"]["kernel"], w)
    assert found.params["dense"]["bias"].tolist() == [1, 1, 1]
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert len(out.read_bytes()) == os.path.getsize(tmp_path / "target.msgpack")


def test_like_keeps_what_is_no_array(tmp_path: Path) -> None:
    tree = {"t": "text", "l": [1.5, None, {"x": np.zeros(2, np.float32)}], "c": 1 + 2j, "k/y": True}
    like = stored(tmp_path / "like", tree)
    with open_source(like) as source:
        arrays = {n: source.read(n) for n in source.specs()}
    writer.write(str(tmp_path / "same"), specs_of(arrays), tiles_of(arrays), like=like)
    assert (tmp_path / "same").read_bytes() == (tmp_path / "like").read_bytes()
    arrays["l/0"] = np.array([1, 2], np.int8)  # another dtype and shape: no number any more
    writer.write(str(tmp_path / "other"), specs_of(arrays), tiles_of(arrays), like=like)
    restored = need("flax.serialization").msgpack_restore((tmp_path / "other").read_bytes())
    assert restored["l"][0].tolist() == [1, 2]
    assert restored["t"] == "text"
    assert restored["k/y"] is True


def test_like_another_tree(tmp_path: Path) -> None:
    """What is not among the new tensors stays; a tensor that the tree does not have makes the file a new tree."""
    old = {"a": np.zeros(2, np.float32), "b": 5, "c": [np.ones(1, np.int8)]}
    like = stored(tmp_path / "like", dict(old))
    new = {"c/0": np.array([7, 8], np.int8), "b": np.array(6)}
    writer.check(str(tmp_path / "x"), specs_of(new), like=like)
    writer.write(str(tmp_path / "x"), specs_of(new), tiles_of(new), like=like)
    restored = need("flax.serialization").msgpack_restore((tmp_path / "x").read_bytes())
    assert (restored["a"].tolist(), restored["b"], restored["c"][0].tolist()) == ([0, 0], 6, [7, 8])
    new["d/e"] = np.array([1.5])
    writer.check(str(tmp_path / "x"), specs_of(new), like=like)
    writer.write(str(tmp_path / "x"), specs_of(new), tiles_of(new), like=like)
    restored = need("flax.serialization").msgpack_restore((tmp_path / "x").read_bytes())
    assert (list(restored), restored["c"]["0"].tolist(), restored["d"]["e"].tolist()) == (
        ["c", "b", "d"],
        [7, 8],
        [1.5],
    )


def test_numbers_that_stay_numbers(tmp_path: Path) -> None:
    tree = {"c": 1 - 2j, "f": 0.5, "i": -7, "u": 1 << 63, "b": True}
    like = stored(tmp_path / "like", dict(tree))
    with open_source(like) as source:
        new = {name: source.read(name) for name in source.specs()}
    new |= {"c": np.array(3.5 + 4j), "f": np.array(-1.5), "i": np.array(70_000), "u": np.array((1 << 64) - 1, "u8")}
    new["b"] = np.array(False)
    writer.write(str(tmp_path / "x"), specs_of(new), tiles_of(new), like=like)
    restored = need("flax.serialization").msgpack_restore((tmp_path / "x").read_bytes())
    assert restored == {"c": 3.5 + 4j, "f": -1.5, "i": 70_000, "u": (1 << 64) - 1, "b": False}
    assert {type(value) for value in restored.values()} == {complex, float, int, bool}


def test_the_size_at_which_arrays_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flax = need("flax.serialization")
    assert writer.MAX_CHUNK == flax.MAX_CHUNK_SIZE
    for limit in (7, 8, 9, 23, 24, 25):
        monkeypatch.setattr(flax, "MAX_CHUNK_SIZE", limit)
        monkeypatch.setattr(writer, "MAX_CHUNK", limit)
        arrays = {"x": np.arange(6, dtype=np.int32), "s": np.arange(3, dtype=np.float64).reshape(1, 3)}
        stored(tmp_path / "theirs", dict(arrays))
        writer.write(str(tmp_path / "ours"), specs_of(arrays), tiles_of(arrays, 1))
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_folder_as_the_target(tmp_path: Path) -> None:
    stored(tmp_path / "checkpoint_5", {"params": {"w": np.zeros(2, np.float32)}})
    np.savez(tmp_path / "a.npz", w=np.ones(2, np.float32))
    mapping = {"weightport": 1, "rules": [{"from": "w", "to": "params/w"}]}
    wp.transfer(str(tmp_path / "a.npz"), str(tmp_path), mapping, out=str(tmp_path / "out.msgpack"))
    restored = need("flax.serialization").msgpack_restore((tmp_path / "out.msgpack").read_bytes())
    assert restored["params"]["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.array([b"x"], object)}, "tensor 'a': Flax' msgpack cannot hold strings"),
        ({"a": np.zeros(2, "M8[s]")}, "tensor 'a': Flax' msgpack cannot hold the dtype datetime64[s]"),
        ({"a": np.zeros(1), "a/b/c": np.zeros(1)}, "'a' is a tensor, and 'a/b/c' would stand below it"),
        ({"a/b": np.zeros(1), "a": np.zeros(1)}, "'a' is a tensor, and other tensors would stand below it"),
        ({"\ud800": np.zeros(2)}, "the name '\\ud800' is no valid text"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, arrays: dict, message: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(Error) as caught:
        writer.write(str(path), specs_of(arrays), tiles_of(arrays))
    assert str(caught.value) == f"{path}: {message}"
    with pytest.raises(Error) as caught:
        writer.check(str(path), specs_of(arrays))
    assert str(caught.value) == f"{path}: {message}"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
