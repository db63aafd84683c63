from __future__ import annotations

import gzip
import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.formats._arrays import same, specs_of, tiles_of
from tests.support import Fixture, fixture, fixtures, says
from weightport.errors import Error, FormatError
from weightport.formats import detect
from weightport.tensors import Source

ARRAYS = {"lstm/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "lstm/bias": np.zeros(3, np.float32)}
RESAVE = "save its tensors as .safetensors or .npz where you trust it"
OUTPUTS = ["w.npz", "w.safetensors", "w.h5", "w.hdf5", "w.ckpt", "tf-checkpoint:some/prefix", "npz:w.h5", "hdf5:x"]
OUTPUTS += ["w.pt", "w.pth", "w.bin", "torch:x"]


def said(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        detect.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("out", OUTPUTS)
def test_what_is_written_is_found_again_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    path, write = detect.writer_for(out)
    write(path, specs_of(ARRAYS), tiles_of(ARRAYS), metadata={"k": "v"})
    source = detect.open_source(path)
    assert isinstance(source, Source)
    assert set(source.specs()) == set(ARRAYS)
    assert all(same(source.read(name), array) for name, array in ARRAYS.items())
    source.close()
    if (tmp_path / path).is_file():
        shutil.copy(path, "model.bin")  # whatever it is called
        assert detect.detect("model.bin") == source.format
    assert detect.open_source(f"{source.format}:{path}").format == source.format


@pytest.mark.parametrize("model", fixtures("keras_h5")[:2], ids=str)
def test_keras_fixtures(model: Fixture) -> None:
    assert detect.detect(model.path("keras_h5")) == "keras-h5"
    assert detect.open_source("hdf5:" + model.path("keras_h5")).format == "keras-h5"


def test_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    assert detect.open_source(tmp_path / "a.npy").format == "npy"
    assert detect.open_source(f"npy:{tmp_path / 'a.npy'}").format == "npy"


@pytest.mark.parametrize("model", fixtures("checkpoint_v2")[:2], ids=str)
def test_checkpoints(model: Fixture) -> None:
    prefix = model.path("checkpoint_v2")
    for path in (prefix, prefix + ".index", prefix + ".data-00000-of-00001"):
        source = detect.open_source(path)
        assert source.format == "tf-checkpoint"
        source.close()


def test_v1_checkpoint() -> None:
    model = fixtures("checkpoint_v1")[0]
    assert detect.open_source(model.path("checkpoint_v1")).format == "tf-checkpoint-v1"


def test_seed_model_by_folder(tmp_path: Path) -> None:
    model = fixture("a_seed_char_lstm")
    for file in Path(model.path("checkpoint_v2")).parent.glob(Path(model.path("checkpoint_v2")).name + ".*"):
        shutil.copy(file, tmp_path)
    assert detect.open_source(tmp_path).format == "tf-checkpoint"


def test_wrong_format(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(FormatError) as caught:
        detect.open_source(f"npz:{tmp_path / 'a.npy'}")
    assert str(caught.value) == f"{tmp_path / 'a.npy'}: is npy, not npz"


def test_unknown_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Error) as caught:
        detect.open_source("safetensor:x")
    known = ", ".join(detect.READERS)
    assert str(caught.value) == f"safetensor:x: unknown format 'safetensor'; known: {known}; closest: 'safetensors'"
    monkeypatch.chdir(tmp_path)
    np.savez("odd:name", a=np.zeros(1))
    assert detect.open_source("odd:name.npz").format == "npz"
    assert detect.split_format("C:\\models\\a.npz") == (None, "C:\\models\\a.npz")


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return out.getvalue()


OLD = "this is a model of llama.cpp's, of before GGUF: not supported"
PICKLE = "this is a pickle, which can run code when it is loaded: never loaded here"
TAGS = (b"<!doctype html", b"<HTML", b"<head", b"<?xml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "this is a Git LFS pointer; fetch the real file: git lfs pull",
        ),
        (b"\n<!DOCTYPE html><p>", "this is a web page, maybe an error instead of the download; download it again"),
        (gzip.compress(b"x", mtime=0), "this is compressed with gzip; unpack it first"),
        (pickle.dumps({"a": 1}), "this is a pickle, which can run code when it is loaded: never loaded here; @"),
        (
            archive("version", "serialized_exported_program.json", "serialized_state_dict.pt"),
            "this is a torch.export archive of before PyTorch 2.7; its serialized_state_dict.pt can be unpacked and "
            "read",
        ),
        (
            archive("metadata.json", "model.weights.h5"),
            "this is a .keras archive without its config.json",
        ),
        (archive("a.txt"), "this is a zip archive that begins with 'a.txt'"),
        (b"PK\3\4 and then nothing", "this is a zip archive, truncated or corrupt"),
        (b"PK\3\4" + bytes(30) + b"PK\5\6" + bytes(18), "this is a zip archive"),
        (b"BZh91AY&SY", "this is compressed with bzip2; unpack it first"),
        (b"\xfd7zXZ\0\0", "this is compressed with xz; unpack it first"),
        (b"\x28\xb5\x2f\xfd\4", "this is compressed with zstd; unpack it first"),
        (bytes(257) + b"ustar\0", "this is a tar archive; unpack it first"),
        (b"\x80\6", "it begins with the bytes 80 06"),
        (b"\x80", "it begins with the bytes 80"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>', "this is a web page, maybe an error instead of the download; @AGAIN"),
        (b"GGML\1\0\0\0", "this is a model of llama.cpp's, of before GGUF: not supported; convert it to GGUF"),
        (b"[1, 2]", "this is JSON"),
        (b'{"a": 1}', "this is JSON"),
        (b"hello there", "this is text that begins with 'hello there'"),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "this may be an ONNX model, cut off or damaged; get the file again"),
        (b"lmgg\1\0\0\0", "this is a model of llama.cpp's, of before GGUF: not supported; convert it to GGUF"),
        *((name + b"\1\0\0\0", f"{OLD}; convert it to GGUF") for name in (b"fmgg", b"tjgg")),
        *((tag + b">", "this is a web page, maybe an error instead of the download; @AGAIN") for tag in TAGS),
        (b"\xef\xbb\xbf[1, 2", "this is JSON"),
        (b"\x80\0", "it begins with the bytes 80 00"),
        *((b"\x80" + bytes([n]), f"{PICKLE}; @") for n in (1, 5)),
        (b"\x08\x01\x12 torn", "this may be an ONNX model, cut off or damaged; get the file again"),
        (b"\x08\x0f\x12 torn", "this may be an ONNX model, cut off or damaged; get the file again"),
        (b"\x08\x10\x12 torn", "it begins with the bytes 08 10 12 20 74 6f 72 6e"),
        (b"\0 onnx", "this may be an ONNX model, cut off or damaged; get the file again"),
        (b"\0 pytorch", "this may be an ONNX model, cut off or damaged; get the file again"),
        (b"the first of many letters", "this is text that begins with 'the first of many letter'"),
        (b"t" * 512 + b"\0", f"this is text that begins with {'t' * 24!r}"),
        (b"t" * 511 + b"\0", f"it begins with the bytes {' '.join(['74'] * 8)}"),
        (b"\xfe\xed\xfa\xce\0\1\2\3\4", "it begins with the bytes fe ed fa ce 00 01 02 03"),
    ],
    ids=lambda given: given if isinstance(given, str) else "file",  # the archives have the time in them
)
def test_what_it_looks_like(tmp_path: Path, content: bytes, message: str) -> None:
    told = said(tmp_path / "model.ckpt", content)
    message = message.replace("@AGAIN", "download it again").replace("@", RESAVE)
    assert told == f"is no model file that weightport reads: {message}"


def test_files_of_checkpoints_that_are_damaged(tmp_path: Path) -> None:
    """What a file is called, and what stands beside it, say what it was meant to be."""
    (tmp_path / "m.index").write_bytes(b"cut off")
    (tmp_path / "m.data-00000-of-00001").write_bytes(b"")
    (tmp_path / "checkpoint").write_bytes(b"cut off")
    for name, what in (
        ("m.index", "is no model file that weightport reads: this is text that begins with 'cut off'"),
        ("checkpoint", "line 1 is no entry of a checkpoint state file"),
    ):
        path = tmp_path / name
        with pytest.raises(FormatError) as caught:
            detect.open_source(path)
        assert caught.value.problems[0].what == what
    assert detect.detect(str(tmp_path / "m.data-00000-of-00001")) == "tf-checkpoint"
    (tmp_path / "m").write_bytes(b"not what was meant")
    assert detect.detect(str(tmp_path / "m")) == "tf-checkpoint"
    lines = tmp_path / "two\nlines"
    lines.mkdir()
    (lines / "m.index").write_bytes(b"cut off")
    (lines / "m.data-00000-of-00001").write_bytes(b"")
    assert detect.detect(str(lines / "m.data-00000-of-00001")) == "tf-checkpoint"
    (tmp_path / "n.data-00000-of-00001").write_bytes(b"alone")
    with says(
        FormatError,
        f"{tmp_path / 'n.data-00000-of-00001'}: is no model file that weightport reads: "
        "this is text that begins with 'alone'",
    ):
        detect.open_source(tmp_path / "n.data-00000-of-00001")


def test_colons_in_output_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ab:c").mkdir()
    assert detect.writer_for("ab:c/m.npz") == ("ab:c/m.npz", detect.Writer("npz"))
    with pytest.raises(Error, match=r"^npx:m: the format 'npx' cannot be written; known: .*; closest: 'npz'$"):
        detect.writer_for("npx:m")
    with pytest.raises(Error, match=r"^zzzzzz:m: the format 'zzzzzz' cannot be written; known: [^;]*$"):
        detect.writer_for("zzzzzz:m")
    with says(Error, f"zzzzzz:m: unknown format 'zzzzzz'; known: {', '.join(detect.READERS)}"):
        detect.split_format("zzzzzz:m")


def test_empty_and_missing(tmp_path: Path) -> None:
    assert said(tmp_path / "empty", b"") == "is an empty file"
    with pytest.raises(FormatError, match="no such file or checkpoint"):
        detect.open_source(tmp_path / "nothing")
    with pytest.raises(Error, match="is no path"):
        detect.open_source("")


def test_pickles_are_not_run(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    for protocol in range(6):
        said(tmp_path / "m.pt", pickle.dumps(Boom(), protocol))
    assert not (tmp_path / "ran").exists()


def test_writers(tmp_path: Path) -> None:
    assert detect.writer_for("a/b.NPZ") == ("a/b.NPZ", detect.Writer("npz"))
    assert detect.writer_for("b.safetensors", format="npz") == ("b.safetensors", detect.Writer("npz"))
    assert detect.writer_for("tf-checkpoint:d/model") == ("d/model", detect.Writer("tf_bundle_write"))
    assert detect.writer_for("model.ckpt") == ("model.ckpt", detect.Writer("tf_bundle_write"))
    assert detect.writer_for("m", format="safetensors") == ("m", detect.Writer("safetensors_file"))
    assert detect.writer_for("m.h5", like=str(tmp_path / "no.npz")) == ("m.h5", detect.Writer("keras_h5_write"))
    assert detect.writer_for("m.ckpt", like=str(tmp_path / "no.npz")) == ("m.ckpt", detect.Writer("tf_bundle_write"))
    assert detect.writer_for("m.ckpt", shard_size=5) == ("m.ckpt", detect.Writer("tf_bundle_write", {"shard_size": 5}))
    graph, meta = fixture("a_seed_char_lstm").path("frozen"), fixture("a_seed_char_lstm").path("meta_graph")
    saved, writer = fixture("a_seed_char_lstm").path("saved_model"), "tf_saved_model_write"
    assert detect.writer_for("o.pb", like=graph) == ("o.pb", detect.Writer("tf_graph_write", {"like": graph}))
    assert detect.writer_for("o.meta", like=meta) == ("o.meta", detect.Writer("tf_graph_write", {"like": meta}))
    for out in ("out", "out.v2", "out/saved_model.pb", "tf-saved-model:out"):
        path = "out.v2" if out == "out.v2" else "out"
        for like in (saved, saved + "/saved_model.pb"):
            assert detect.writer_for(out, like=like) == (path, detect.Writer(writer, {"like": like}))
    fix = "give the new model in that format as the TARGET, or write another format"
    for out, like, told in (
        ("o.pb", meta, f"tf-frozen is written as a TARGET of that kind with other values in it: {meta} is tf-meta"),
        (
            "o.pb",
            saved,
            f"tf-frozen is written as a TARGET of that kind with other values in it: {saved} is tf-saved-model",
        ),
        ("o.meta", None, "tf-meta is written as a TARGET of that kind with other values in it: there is none"),
        (
            "tf-saved-model:o",
            None,
            "tf-saved-model is written as a TARGET of that kind with other values in it: there is none",
        ),
    ):
        with pytest.raises(Error) as caught:
            detect.writer_for(out, like=like)
        assert str(caught.value) == f"{out}: {told}; {fix}"
    with pytest.raises(Error, match=r"^m.npz: npz is not written in shards; known: .*tf-checkpoint"):
        detect.writer_for("m.npz", shard_size=5)
    with pytest.raises(Error) as caught:
        detect.writer_for("model.xyz")
    assert str(caught.value) == (
        f"model.xyz: the suffix says no format to write; known: {', '.join(detect.SUFFIXES)}, "
        f"or --format with one of {', '.join(detect.WRITERS)}"
    )
    with pytest.raises(Error, match=r"^a.npz: the format 'npy' cannot be written; known: npz, .*; closest: 'npz'$"):
        detect.writer_for("a.npz", format="npy")


def test_like_keeps_the_structure(tmp_path: Path) -> None:
    like = fixture("c_keras/nested_model").path("keras_h5")
    path, write = detect.writer_for(str(tmp_path / "w.h5"), like="keras-h5:" + like)
    arrays = fixture("c_keras/nested_model").variables
    write(path, specs_of(arrays), tiles_of(arrays))
    assert list(detect.open_source(path).specs()) == list(detect.open_source(like).specs())


def test_a_target_s_objects_are_written_again(tmp_path: Path) -> None:
    like = fixture("c_keras/v2_lstm").path("checkpoint_object_based")
    out, write = detect.writer_for(str(tmp_path / "m.ckpt"), like=like)
    with detect.open_source(like) as model:
        specs = {n: s for n, s in model.specs().items() if s.role == "weight"}
        write(out, specs, lambda name: iter([model.read(name)]))
        with detect.open_source(out) as written:
            assert list(written.specs()) == list(model.specs())
