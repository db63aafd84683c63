"""The files of a model, and their digest: what ``sha256sum`` prints."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tests.formats._arrays import specs_of, tiles_of
from tests.support import FIXTURES, fixture, need, says
from weightport.errors import FormatError
from weightport.formats import detect
from weightport.formats.files import digest, files_of, replaced

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}


def save(folder: Path, name: str, **options: Any) -> str:
    path, write = detect.writer_for(str(folder / name), **options)
    write(path, specs_of(ARRAYS), tiles_of(ARRAYS))
    return path


def names(folder: Path, path: str | os.PathLike[str]) -> list[str]:
    return [os.path.relpath(file, folder) for file in files_of(path)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_file(tmp_path: Path) -> None:
    for name in ("m.npz", "m.safetensors", "m.pt", "m.msgpack"):
        path = save(tmp_path, name)
        assert names(tmp_path, path) == [name]
        assert digest(path) == sha256(tmp_path / name)
    assert files_of(f"npz:{tmp_path / 'm.npz'}") == [str(tmp_path / "m.npz")]
    with says(FormatError, f"{tmp_path / 'none.npz'}: no such file or checkpoint; near: 'm.npz'"):
        digest(tmp_path / "none.npz")


def test_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, "m[1].ckpt", shard_size=12)
    (tmp_path / "m[1].ckpt.meta").write_bytes(b"")
    (tmp_path / "m1.ckpt.data-00000-of-00001").write_bytes(b"")
    expected = ["m[1].ckpt.data-00000-of-00002", "m[1].ckpt.data-00001-of-00002", "m[1].ckpt.index"]
    for path in ("m[1].ckpt", "m[1].ckpt.index"):
        assert names(tmp_path, tmp_path / path) == expected
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m[1].ckpt"\n', encoding="utf-8")
    assert names(tmp_path, tmp_path / "checkpoint") == expected
    assert names(tmp_path, tmp_path) == expected
    lines = "".join(f"{sha256(tmp_path / name)}  {name}\n" for name in expected)
    assert digest(tmp_path / "m[1].ckpt") == hashlib.sha256(lines.encode()).hexdigest()
    folder = fixture("d_checkpoints/sharded").folder
    assert names(folder, folder / "model_v1.ckpt") == [f"model_v1.ckpt-0000{n}-of-00002" for n in range(2)]


def test_folders(tmp_path: Path) -> None:
    shutil.copytree(fixture("a_seed_char_lstm").path("saved_model"), tmp_path / "m")
    found = names(tmp_path, tmp_path / "m")
    assert found == sorted(os.path.relpath(p, tmp_path) for p in (tmp_path / "m").rglob("*") if p.is_file())
    assert len({os.path.dirname(name) for name in found}) > 1
    # Names in the lines are those beneath the folder, in their order.
    lines = sorted((os.path.relpath(name, "m"), sha256(tmp_path / name)) for name in found)
    text = "".join(f"{value}  {name}\n" for name, value in lines)
    assert digest(tmp_path / "m") == hashlib.sha256(text.encode()).hexdigest()


def test_shards_with_an_index_of_their_own(tmp_path: Path) -> None:
    path = save(tmp_path, "m.safetensors.index.json", shard_size=20)
    shards = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"]
    assert sorted(names(tmp_path, path)) == [*shards, "m.safetensors.index.json"]
    torch = tmp_path / "torch"
    torch.mkdir()
    save(torch, "one.bin", format="torch")
    index = {"metadata": {}, "weight_map": dict.fromkeys(ARRAYS, "one.bin")}
    (torch / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    for given in (torch, torch / "pytorch_model.bin.index.json"):
        assert sorted(names(torch, given)) == ["one.bin", "pytorch_model.bin.index.json"]
    flax = tmp_path / "flax"
    flax.mkdir()
    save(flax, "one.msgpack")
    (flax / "flax_model.msgpack.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(ARRAYS, "one.msgpack")}), encoding="utf-8"
    )
    for given in (flax, flax / "flax_model.msgpack.index.json"):
        assert sorted(names(flax, given)) == ["flax_model.msgpack.index.json", "one.msgpack"]


def test_names_in_a_digest(tmp_path: Path) -> None:
    """Beneath the folder of all, where files lie in one folder and where they lie in several."""
    for name in ("one", "other"):
        shutil.copytree(fixture("a_seed_char_lstm").path("saved_model"), tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "variables")
    text = f"{sha256(tmp_path / 'one' / 'saved_model.pb')}"
    assert digest(tmp_path / "one") == text, "one file is its own digest"
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, "m.safetensors.index.json", shard_size=20)
    lines = sorted((p.name, sha256(p)) for p in (tmp_path / "here").iterdir())
    text = "".join(f"{value}  {name}\n" for name, value in lines)
    assert digest(tmp_path / "here" / "m.safetensors.index.json") == hashlib.sha256(text.encode()).hexdigest()
    assert digest(tmp_path / "there" / "m.safetensors.index.json") == hashlib.sha256(text.encode()).hexdigest()


def test_files_in_several_folders_are_named_from_their_common_one(tmp_path: Path) -> None:
    shutil.copytree(fixture("a_seed_char_lstm").path("saved_model"), tmp_path / "model")
    files = [p for p in (tmp_path / "model").rglob("*") if p.is_file()]
    lines = sorted((p.relative_to(tmp_path / "model").as_posix(), sha256(p)) for p in files)
    assert any("/" in name for name, _ in lines)
    text = "".join(f"{value}  {name}\n" for name, value in lines)
    assert digest(tmp_path / "model") == hashlib.sha256(text.encode()).hexdigest()


def onnx_beside(folder: Path) -> Path:
    onnx = need("onnx")
    graph = onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(a, n) for n, a in ARRAYS.items()])
    onnx.save_model(
        onnx.helper.make_model(graph),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    return folder / "m.onnx"


def test_values_beside(tmp_path: Path) -> None:
    assert names(tmp_path, onnx_beside(tmp_path)) == ["m.onnx", "m.data"]


def test_what_is_replaced(tmp_path: Path) -> None:
    def told(path: str) -> set[str]:
        return {os.path.relpath(file, tmp_path) for file in replaced(path)}

    assert told(str(tmp_path / "new")) == {"new", "new.index"}
    assert told(save(tmp_path, "m.npz")) == {"m.npz", "m.npz.index"}
    path = save(tmp_path, "s.safetensors.index.json", shard_size=20)
    assert told(path) == {
        "s.safetensors.index.json",
        "s.safetensors.index.json.index",
        "s-00001-of-00002.safetensors",
        "s-00002-of-00002.safetensors",
    }
    assert told(str(onnx_beside(tmp_path))) == {"m.onnx", "m.onnx.index", "m.data"}
    shutil.copytree(fixture("a_seed_char_lstm").path("saved_model"), tmp_path / "saved")
    inside = {os.path.relpath(p, tmp_path) for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert told(str(tmp_path / "saved")) == {"saved", "saved.index"} | inside
    (tmp_path / "folder").mkdir()
    assert told(str(tmp_path / "folder")) == {"folder", "folder.index"}


def test_an_unpacked_keras_archive(tmp_path: Path) -> None:
    os.rename(save(tmp_path, "w.h5"), tmp_path / "model.weights.h5")
    for name in ("config.json", "metadata.json", "other.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert names(tmp_path, tmp_path) == ["config.json", "metadata.json", "model.weights.h5"]


def test_orbax(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES.parent / "orbax" / "together", tmp_path / "m")
    assert names(tmp_path, tmp_path / "m") == sorted(
        os.path.relpath(p, tmp_path) for p in (tmp_path / "m").rglob("*") if p.is_file()
    )
