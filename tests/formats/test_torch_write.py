"""State dicts written without PyTorch: PyTorch loads them, and finds the same bits."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import EXTRA, NUMPY, of_every_dtype, same, specs_of, tiles_of
from tests.formats._torch import array
from tests.support import need
from weightport.errors import Error
from weightport.formats import torch_file, torch_write
from weightport.tensors import TensorSpec


def written(path: Path, arrays: dict[str, np.ndarray], rows: int = 2, **options: Any) -> str:
    torch_write.write(str(path), specs_of(arrays), tiles_of(arrays, rows), **options)
    return str(path)


def samples() -> dict[str, np.ndarray]:
    arrays = of_every_dtype([*NUMPY, "complex128", *EXTRA])
    arrays["nan"] = np.array([0x7FA00001, 0xFFC00000], np.uint32).view(np.float32)
    arrays["hollow"] = np.zeros((3, 0, 2), np.float32)
    arrays["long"] = np.zeros((300, 2), np.int8)  # sizes of one, two and four bytes in the pickle
    arrays["longer"] = np.zeros(70_000, np.int8)
    arrays[""] = np.ones(1, np.float32)
    return arrays


@pytest.mark.parametrize("mmap", [False, True])
def test_pytorch_loads_it(tmp_path: Path, mmap: bool) -> None:
    torch = need("torch")
    arrays = samples()
    path = written(tmp_path / "m.pt", arrays, metadata={"k": "é"})
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert (type(loaded).__name__, list(loaded)) == ("OrderedDict", list(arrays))
    for name, tensor in loaded.items():
        assert same(array(tensor), arrays[name]), name
        assert tensor.stride() == torch.empty(tensor.shape).stride()
        assert not tensor.requires_grad
        if mmap and tensor.numel():
            assert tensor.data_ptr() % 64 == 0


def test_round_trip(tmp_path: Path) -> None:
    arrays = samples()
    with torch_file.open_source(written(tmp_path / "m.bin", arrays, metadata={"k": "é"})) as source:
        assert (source.format, source.metadata) == ("torch", {"k": "é"})
        assert list(source.specs()) == list(arrays)
        for name, values in arrays.items():
            assert same(source.read(name), values), name


def test_a_module_loads_it(tmp_path: Path) -> None:
    torch = need("torch")
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.nn.BatchNorm1d(2))
    arrays = {name: array(tensor) for name, tensor in model.state_dict().items()}
    other = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.nn.BatchNorm1d(2))
    other.load_state_dict(torch.load(written(tmp_path / "m.pt", arrays)))
    assert all(same(array(tensor), arrays[name]) for name, tensor in other.state_dict().items())


def test_same_input_same_bytes(tmp_path: Path) -> None:
    arrays = samples()
    for name, rows in (("a.pt", 1), ("other.bin", 5)):
        written(tmp_path / name, arrays, rows, metadata={"k": "v"})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.bin").read_bytes()


def test_golden_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "m.pt", {"w": np.array([1, 2], np.float32)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert members == {
        "archive/data.pkl": b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(X\x01\x00\x00\x00w"
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuq\x05K\x02tQK\x00(K\x02t(K\x01t\x89h\x00)RtRu.",
        "archive/byteorder": b"little",
        "archive/data/0": b"\0\0\x80?\0\0\0@",
        "archive/version": b"3\n",
    }


@pytest.mark.parametrize("count", [255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, 5 << 30])
def test_sizes_as_pytorch_reads_them(tmp_path: Path, count: int) -> None:
    """In the form of each size; the file is a hole that takes no room."""
    torch = need("torch")
    path = str(tmp_path / "m.pt")
    with torch_write.write.destination(path, {"w": TensorSpec.of("int8", (count, 1))}, lambda _: iter(())):
        pass
    tensor = torch.load(path, weights_only=True, mmap=True)["w"]
    assert (tensor.shape, tensor.stride(), int(tensor[-1, 0])) == ((count, 1), (1, 1), 0)


def test_a_scalar_and_axes_without_elements(tmp_path: Path) -> None:
    torch = need("torch")
    arrays = {"s": np.array(2.5), "e": np.zeros((2, 0, 3)), "f": np.zeros((0,)), "t": np.zeros((2, 3, 4))}
    found = torch.load(written(tmp_path / "m.pt", arrays))
    assert {n: t.stride() for n, t in found.items()} == {"s": (), "e": (3, 3, 1), "f": (1,), "t": (12, 4, 1)}


def test_every_storage_begins_at_a_multiple_of_64(tmp_path: Path) -> None:
    path = written(tmp_path / "m.pt", {f"w{n}": np.zeros(n, np.uint8) for n in range(1, 80, 7)})
    data = Path(path).read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            head = info.header_offset
            sizes = (int.from_bytes(data[head + at : head + at + 2], "little") for at in (26, 28))
            assert (head + 30 + sum(sizes)) % 64 == 0


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    spec = {"w": TensorSpec.of("float32", (2,))}
    with pytest.raises(Error, match=r"1 rows of values for the shape \[2\]"):
        torch_write.write(str(path), spec, lambda _: iter([np.zeros(1, np.float32)]))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("w", np.dtype(object), "tensor 'w': a file of PyTorch cannot hold strings"),
        ("w", np.dtype("longdouble"), f"tensor 'w': a file of PyTorch cannot hold the dtype {np.dtype('longdouble')}"),
        ("w", np.dtype(ml_dtypes.int4), "tensor 'w': a file of PyTorch cannot hold the dtype int4"),
        ("\ud800", np.dtype("f4"), "tensor '\\ud800': its name is no valid text"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, dtype: Any, message: str) -> None:
    with pytest.raises(Error) as caught:
        torch_write.write(str(tmp_path / "m.pt"), {name: TensorSpec(dtype, (1,), 1)}, lambda _: iter(()))
    assert str(caught.value) == f"{tmp_path / 'm.pt'}: {message}"
    assert list(tmp_path.iterdir()) == []


def test_too_much_metadata(tmp_path: Path) -> None:
    path = str(tmp_path / "m.pt")
    torch_write.write(path, {}, lambda _: iter(()), metadata={"k": "x" * (65_535 - 9)})
    with zipfile.ZipFile(path) as archive:
        assert len(archive.comment) == 65_535
    with pytest.raises(Error) as caught:
        torch_write.write(path, {}, lambda _: iter(()), metadata={"k": "x" * (65_536 - 9)})
    assert str(caught.value) == f"{path}: 65536 bytes of metadata, a zip archive holds 65535"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_a_transfer_into_it(tmp_path: Path, suffix: str) -> None:
    torch = need("torch")
    lstm = torch.nn.LSTM(3, 4)
    np.savez(tmp_path / "keras.npz", **{
        "l/kernel": np.random.default_rng(0).normal(size=(3, 16)).astype("f4"),
        "l/recurrent_kernel": np.random.default_rng(1).normal(size=(4, 16)).astype("f4"),
        "l/bias": np.random.default_rng(2).normal(size=16).astype("f4"),
    })  # fmt: skip
    rules = [{"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.torch", "scope": ""}}]
    mapping = {"weightport": 1, "rules": rules}
    out = tmp_path / f"lstm{suffix}"
    wp.transfer(tmp_path / "keras.npz", None, mapping, out=out)
    lstm.load_state_dict(torch.load(out))
    assert wp.verify(tmp_path / "keras.npz", out, mapping).equal
    torch.save(lstm.state_dict(), tmp_path / "target.pt")
    back = wp.load_mapping(mapping).reversed()
    wp.transfer(tmp_path / "target.pt", tmp_path / "keras.npz", back, out=tmp_path / "again.npz")
    with np.load(tmp_path / "keras.npz") as first, np.load(tmp_path / "again.npz") as second:
        assert all(same(first[name], second[name]) for name in first.files)


@pytest.mark.parametrize("threads", [1, 3])
def test_tasks_write_the_same_bytes_as_a_stream(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(700, 900)), "b": rng.normal(size=(40, 30)).astype("f4"), "e": np.zeros((0, 3))}
    source = written(tmp_path / "source.pt", arrays)
    rules = [{"from": "a", "to": "turned", "rearrange": "x y -> y x"}, {"from": "{x}", "to": "same.{x}"}]
    mapping = {"weightport": 1, "rules": rules}
    wp.transfer(source, None, mapping, out=tmp_path / "out.pt", threads=threads)
    expected = {"turned": np.ascontiguousarray(arrays["a"].T)} | {f"same.{n}": a for n, a in arrays.items()}
    with torch_file.open_source(str(tmp_path / "out.pt")) as found, zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None
        streamed = written(tmp_path / "streamed.pt", expected, metadata=found.metadata)
    assert (tmp_path / "out.pt").read_bytes() == Path(streamed).read_bytes()


def test_a_flipped_bit_of_the_source_is_seen_while_tasks_write(tmp_path: Path) -> None:
    path = Path(written(tmp_path / "source.pt", {"a": np.arange(4000.0), "b": np.arange(3.0)}))
    data = bytearray(path.read_bytes())
    data[data.index(np.arange(1, 4.0).tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    mapping = {"weightport": 1, "rules": [{"from": "{x}", "to": "{x}"}]}
    with pytest.raises(wp.FormatError, match=r"tensor 'a' at byte \d+: corrupt: the member's CRC is"):
        wp.transfer(path, None, mapping, out=tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
