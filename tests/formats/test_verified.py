"""What is called ``verified`` is: with any bit of it flipped, it is refused, read whole, in part, or moved. What is not
called so is really not covered: a flipped bit in it is another value, and nobody notices.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import same
from tests.formats.test_contract import ARRAYS, READERS, Arrays, Made
from tests.support import fixture, need
from weightport.formats.files import files_of
from weightport.integrity import checksum_of

RULES = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
#: Flips of one format, at most: of more bits, a sample that is the same each time.
FLIPS = 100


def _h5(folder: Path, name: str, **options: object) -> Made:
    with need("h5py").File(folder / name, "w") as file:
        for tensor, array in FULL.items():
            file.create_dataset(tensor, data=array, **(options if array.shape else {}))
    return Made(str(folder / name), FULL)


FULL: Arrays = {n: a for n, a in ARRAYS.items() if a.size and a.shape}


def _unchecked_chunk(folder: Path) -> Made:
    """A filter that a chunk leaves out, which the dataset has."""
    made = _h5(folder, "m.h5", chunks=True, fletcher32=True)
    with need("h5py").File(made.path, "r+") as file:
        for name, array in FULL.items():
            file[name].id.write_direct_chunk((0,) * array.ndim, array.tobytes(), filter_mask=1)
    return made


def _partly_there(folder: Path) -> Made:
    """A chunk that was never written: its values are the header's, which has no checksum."""
    with need("h5py").File(folder / "m.h5", "w") as file:
        data = file.create_dataset("a", (4,), "<f4", chunks=(2,), fletcher32=True, fillvalue=7.125)
        data[:2] = 1.5
    return Made(str(folder / "m.h5"), {"a": np.array([1.5, 1.5, 7.125, 7.125], "<f4")})


def _deflated(folder: Path) -> Made:
    arrays: dict[str, Any] = {n.replace("/", "."): a for n, a in FULL.items()}
    np.savez_compressed(folder / "m.npz", **arrays)
    return Made(str(folder / "m.npz"), arrays)


def _onnx_beside(folder: Path, checksum: bool = True) -> Made:
    import hashlib

    onnx = need("onnx")
    tensors = [onnx.numpy_helper.from_array(a, n) for n, a in FULL.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    if checksum:
        found = hashlib.sha1((folder / "m.data").read_bytes()).hexdigest()
        model = onnx.load(folder / "m.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data.add(key="checksum", value=found)
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    return Made(str(folder / "m.onnx"), FULL)


def _torch(folder: Path, **options: bool) -> Made:
    torch = need("torch")
    arrays = {n: a for n, a in FULL.items() if n != "wide/half"}
    torch.save({n: torch.from_numpy(a.copy()) for n, a in arrays.items()}, folder / "m.pt", **options)
    return Made(str(folder / "m.pt"), arrays)


def _torch_unchecked(folder: Path) -> Made:
    torch = need("torch")
    torch.serialization.set_crc32_options(False)
    try:
        return _torch(folder)
    finally:
        torch.serialization.set_crc32_options(True)


def _shards(folder: Path) -> Made:
    made = READERS["npz"](folder)
    out = folder / "m.safetensors.index.json"
    wp.transfer(made.path, None, RULES, out=out, shard_size=100)
    return Made(str(out), made.arrays)


def _partitioned(_: Path) -> Made:
    found = fixture("d_checkpoints/partitioned")
    return Made(found.path("checkpoint_v2"), found.variables)


def _keras_folder(folder: Path) -> Made:
    made = READERS["keras"](folder)
    shutil.unpack_archive(made.path, folder / "unpacked", "zip")
    return Made(str(folder / "unpacked"), made.arrays)


@dataclass(frozen=True)
class Case:
    """A format, or a way to write one.

    Attributes:
        checksum: what its tensors are verified against.
        make: a small model.
        silent: without a checksum, whether a flipped bit must go unnoticed (compression may notice some).
    """

    checksum: str
    make: Callable[[Path], Made]
    silent: bool = True


CASES = {
    "tf-checkpoint": Case("crc32c", READERS["tf-checkpoint"]),
    "tf-checkpoint, partitioned": Case("crc32c", _partitioned),
    "tf-checkpoint-v1": Case("crc32c", READERS["tf-checkpoint-v1"]),
    "tf-frozen": Case("", READERS["tf-frozen"]),
    "tf-meta": Case("crc32c", READERS["tf-meta"]),
    "tf-saved-model": Case("crc32c", READERS["tf-saved-model"]),
    "keras-h5": Case("", READERS["keras-h5"]),
    "hdf5": Case("", READERS["hdf5"]),
    "hdf5, fletcher32": Case("fletcher32", lambda f: _h5(f, "m.h5", chunks=True, fletcher32=True)),
    "hdf5, fletcher32 and gzip": Case(
        "fletcher32", lambda f: _h5(f, "compressed.h5", chunks=True, compression="gzip", fletcher32=True)
    ),
    "hdf5, a chunk without": Case("", _unchecked_chunk),
    "hdf5, a chunk not there": Case("", _partly_there),
    "keras": Case("crc32", READERS["keras"]),
    "keras, a folder": Case("", _keras_folder),
    "keras-sharded": Case("", READERS["keras-sharded"]),
    "npz": Case("crc32", READERS["npz"]),
    "npz, deflated": Case("crc32", _deflated),
    "npy": Case("", READERS["npy"]),
    "safetensors": Case("", READERS["safetensors"]),
    "safetensors, shards": Case("", _shards),
    "flax-msgpack": Case("", READERS["flax-msgpack"]),
    "orbax": Case("", READERS["orbax"], silent=False),
    "torch": Case("crc32", READERS["torch"]),
    "torch, without CRCs": Case("", _torch_unchecked),
    "torch before 1.6": Case("", lambda f: _torch(f, _use_new_zipfile_serialization=False)),
    "onnx": Case("", READERS["onnx"]),
    "onnx, beside": Case("sha1", _onnx_beside),
    "onnx, beside without": Case("", lambda f: _onnx_beside(f, checksum=False)),
    "tflite": Case("", READERS["tflite"]),
    "gguf": Case("", READERS["gguf"]),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def made(case: Case, tmp_path: Path) -> Made:
    """A model that may be damaged: a copy, if the case is a fixture."""
    found = case.make(tmp_path)
    if tmp_path in Path(found.path).parents:
        return found
    folder = tmp_path / "copy"
    shutil.copytree(Path(found.path).parent, folder)
    return Made(str(folder / Path(found.path).name), found.arrays)


def test_every_reader_has_a_case() -> None:
    assert {name.partition(",")[0] for name in CASES} >= set(READERS)


def stored(made: Made) -> Iterator[tuple[Path, int, str]]:
    """Each byte of the tensors' values that lies in a file as it lies in memory: file, offset, tensor."""
    for path in map(Path, files_of(made.path)):
        data = path.read_bytes()
        for name, array in made.arrays.items():
            raw = array.tobytes()
            at = data.find(raw) if len(raw) > 7 else -1
            yield from ((path, at + n, name) for n in range(len(raw) if at >= 0 else 0))
    if made.path.endswith("compressed.h5"):
        with need("h5py").File(made.path) as file:
            chunks = [(n, file[n].id.get_chunk_info(k)) for n in FULL for k in range(file[n].id.get_num_chunks())]
        yield from ((Path(made.path), c.byte_offset + at, name) for name, c in chunks for at in range(c.size))


def flips(made: Made) -> Iterator[tuple[str, Path, int, int]]:
    """Bits of values to flip, where they can be found; else any bits: tensor or nothing, file, offset, mask."""
    places = list(stored(made)) or [
        (path, at, "") for path in map(Path, files_of(made.path)) for at in range(path.stat().st_size)
    ]
    bits = [(name, path, at, 1 << bit) for path, at, name in places for bit in range(8)]
    yield from bits if len(bits) <= FLIPS else random.Random(0).sample(bits, FLIPS)


def flip(path: Path, at: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ mask]))


def test_what_is_said(case: Case, made: Made) -> None:
    with wp.open(made.path) as source:
        assert {checksum_of(source, name) for name, array in made.arrays.items() if array.size} == {case.checksum}
        for name in made.arrays:
            source.read(name)
        # Also of what was verified already.
        assert {checksum_of(source, name) for name, array in made.arrays.items() if array.size} == {case.checksum}


def test_a_flipped_bit(case: Case, made: Made) -> None:
    """Read whole and in part, each from a source that was just opened."""
    silent = 0
    for name, path, at, mask in flips(made):
        flip(path, at, mask)
        seen = False
        for index in (None, (slice(0, 1),)):
            try:
                with wp.open(made.path) as source:
                    for tensor in [name] if name else made.arrays:
                        cut = index if made.arrays[tensor].shape else None
                        found = source.read(tensor, cut)
                        right = same(found, np.ascontiguousarray(made.arrays[tensor][cut or ()]))
                        if case.checksum:
                            # Only of a part may a flipped bit lie elsewhere: in another slice of the variable.
                            assert right, (tensor, at, mask, index)
                            assert index is not None or not name, (tensor, at, mask)
                        silent += index is None and not right
            except wp.Error:
                seen = True
        assert seen or not (case.checksum and name)
        flip(path, at, mask)
    assert bool(silent) == (not case.checksum) or not case.silent


@pytest.mark.parametrize("out", ["o.npz", "o.safetensors", "o.msgpack"])
def test_a_flipped_bit_is_not_moved(case: Case, made: Made, tmp_path: Path, out: str) -> None:
    """A ranged destination with and without checksums, and a stream."""
    rules = {"weightport": 1, "rules": [{"from": n, "to": f"t{k}"} for k, n in enumerate(made.arrays)],
             "ignore": ["**"]}  # fmt: skip
    result = wp.transfer(made.path, None, rules, out=tmp_path / out)
    assert result.integrity is not None
    by = {name: found for name, found in result.integrity.by.items() if made.arrays[name].size}
    assert set(by.values()) == {(case.checksum,) if case.checksum else ()}
    before = (tmp_path / out).read_bytes()
    last = {}
    for name, path, at, mask in flips(made):
        last[name] = path, at, mask
    for name, (path, at, mask) in last.items():
        if not name:
            continue
        flip(path, at, mask)
        if case.checksum:
            with pytest.raises(wp.Error):
                wp.transfer(made.path, None, rules, out=tmp_path / out)
            assert (tmp_path / out).read_bytes() == before
        flip(path, at, mask)
