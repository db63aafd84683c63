"""What every reader and every writer keeps to, whatever the format: the same tests over one table for each.

A format that is new has no row yet, and fails :func:`test_every_format_has_a_row`.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats import _graphdef, _onnx, _tflite, test_gguf_file
from tests.formats._arrays import same, specs_of, tiles_of
from tests.support import fixture, need
from weightport.errors import Error, TensorNotFound
from weightport.formats import detect
from weightport.tensors import Index, Located, Source, TensorSpec, extent_of

Arrays = dict[str, np.ndarray]
#: Signalling and quiet NaNs with payloads, infinities, -0.0, denormals.
BITS = np.array([0x7F800001, 0xFFC12345, 0x7FC00000, 0x7F800000, 0x80000000, 1, 0x807FFFFF, 0x3F800000], np.uint32)
ARRAYS: Arrays = {
    "layer/kernel": np.concatenate([BITS, BITS[::-1], BITS]).view(np.float32).reshape(4, 3, 2),
    "layer/bias": np.arange(7, dtype=np.float32),
    "wide/half": np.arange(12, dtype=np.float16).reshape(3, 4),
    "wide/number": np.arange(-3, 3, dtype=np.int32).reshape(2, 3),
    "déjà/vu": np.array([[1.5]], np.float32),
    "one/scalar": np.array(2.5, np.float32),
    "none/left": np.zeros((0, 4), np.float32),
}


@dataclass(frozen=True)
class Made:
    """A file, and what is in it."""

    path: str
    arrays: Arrays


def _written(writer: str, out: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        path, write = detect.writer_for(str(folder / out), format=writer)
        write(path, specs_of(ARRAYS), tiles_of(ARRAYS))
        return Made(path, ARRAYS)

    return make


def _npy(folder: Path) -> Made:
    np.save(folder / "kernel.npy", ARRAYS["layer/kernel"])
    with detect.open_source(folder / "kernel.npy") as source:
        (name,) = source.specs()
    return Made(str(folder / "kernel.npy"), {name: ARRAYS["layer/kernel"]})


def _hdf5(folder: Path) -> Made:
    h5py = need("h5py")
    with h5py.File(folder / "m.bin", "w") as file:
        for name, array in ARRAYS.items():
            file.create_dataset(name, data=array)
    return Made(str(folder / "m.bin"), ARRAYS)


def _frozen(folder: Path, arrays: Mapping[str, np.ndarray] = ARRAYS) -> Made:
    nodes = [_graphdef.const(name, array) for name, array in arrays.items()]
    return Made(_graphdef.write(folder / "m.pb", _graphdef.graph(*nodes)), dict(arrays))


def _onnx_model(folder: Path, arrays: Mapping[str, np.ndarray] = ARRAYS) -> Made:
    kinds = {"float32": 1, "float16": 10, "int32": 6}
    held = [_onnx.tensor(n, kinds[a.dtype.name], a.shape, _onnx.field(9, a.tobytes())) for n, a in arrays.items()]
    return Made(_onnx.written(folder, _onnx.model(_onnx.graph(*held))), dict(arrays))


def _tflite_model(folder: Path) -> Made:
    kinds = {"float32": 0, "float16": 1, "int32": 2}
    arrays = {n: a for n, a in ARRAYS.items() if a.size}  # what has no bytes is computed
    tensors = [_tflite.Tensor(n, kinds[a.dtype.name], a.shape, k + 1) for k, (n, a) in enumerate(arrays.items())]
    data = _tflite.model(tensors, buffers=[a.tobytes() for a in arrays.values()])
    return Made(_tflite.written(folder, data), arrays)


def _gguf(folder: Path) -> Made:
    kinds = {"float32": 0, "float16": 1, "int32": 26}
    heads, data = [], b""
    for name, array in ARRAYS.items():
        heads.append(test_gguf_file.head(name, array.shape[::-1], kinds[array.dtype.name], len(data)))
        data += array.tobytes()
        data += bytes(-len(data) % 32)
    return Made(test_gguf_file.written(folder, test_gguf_file.model(*heads, data=data)), ARRAYS)


def _keras_model(save: Callable[[Any], None]) -> dict[str, np.ndarray]:
    """Saves a model of two layers; its variables by their paths."""
    keras = need("keras")
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(2, name="two")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy's, about TensorFlow
        model = keras.Sequential(layers)
        save(model)
        return {v.path: keras.ops.convert_to_numpy(v.value) for v in model.weights}


def _keras(folder: Path) -> Made:
    path = folder / "m.keras"
    return Made(str(path), _keras_model(lambda model: model.save(path)))


def _keras_sharded(folder: Path) -> Made:
    path = folder / "m.weights.json"
    arrays = _keras_model(lambda model: model.save_weights(path, max_shard_size=60 / 1024**3))
    names = [f"layers/{layer}/vars/{k}" for layer in ("dense", "dense_1") for k in range(2)]
    return Made(str(path), dict(zip(names, arrays.values(), strict=True)))


def _orbax(folder: Path) -> Made:
    checkpoint = need("orbax.checkpoint")
    arrays = {n: a for n, a in ARRAYS.items() if "left" not in n}
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        above, _, leaf = name.partition("/")
        tree.setdefault(above, {})[leaf] = array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.PyTreeCheckpointer().save(folder / "m", tree)
    return Made(str(folder / "m"), arrays)


def _fixture(kind: str) -> Callable[[Path], Made]:
    def make(_: Path) -> Made:
        found = fixture("a_seed_char_lstm")
        return Made(str(found.folder / "model.ckpt.meta") if kind == "meta" else found.path(kind), found.variables)

    return make


#: A file of each format that is read. Formats that are made of others' parts are checked on a fixture.
READERS: dict[str, Callable[[Path], Made]] = {
    "tf-checkpoint": _written("tf-checkpoint", "m"),
    "tf-checkpoint-v1": _fixture("checkpoint_v1"),
    "tf-frozen": _frozen,
    "tf-meta": _fixture("meta"),
    "tf-saved-model": _fixture("saved_model"),
    "keras-h5": _written("keras-h5", "m.h5"),
    "hdf5": _hdf5,
    "keras": _keras,
    "keras-sharded": _keras_sharded,
    "npz": _written("npz", "m"),
    "npy": _npy,
    "safetensors": _written("safetensors", "m"),
    "flax-msgpack": _written("flax-msgpack", "m"),
    "orbax": _orbax,
    "torch": _written("torch", "m"),
    "onnx": _onnx_model,
    "tflite": _tflite_model,
    "gguf": _gguf,
}
_made: dict[str, Made] = {}


@pytest.fixture(params=sorted(READERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The file of one format, made once."""
    name: str = request.param
    if name not in _made:
        _made[name] = READERS[name](tmp_path_factory.mktemp(name))
    return _made[name]


@pytest.fixture
def opened(made: Made) -> Iterator[Source]:
    with detect.open_source(made.path) as source:  # type: ignore[attr-defined]
        yield source


def test_every_format_has_a_row() -> None:
    assert set(READERS) == set(detect.READERS)
    assert set(WRITERS) | set(EDITED) == set(detect.WRITERS)


# Readers -------------------------------------------------------------------------------------------------------------


def test_values_bit_for_bit(made: Made, opened: Source) -> None:
    assert opened.path == made.path
    assert set(made.arrays) <= set(opened.specs())
    for name, array in made.arrays.items():
        spec = opened.specs()[name]
        assert (spec.dtype, spec.shape, spec.nbytes) == (array.dtype, array.shape, array.nbytes)
        for _ in range(2):  # nothing is kept that a caller could spoil
            found = opened.read(name)
            assert same(found, array)
            assert found.flags.writeable
            assert found.dtype.isnative
            found[...] = 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_parts_are_slices(made: Made, draw: st.DataObject) -> None:
    name = draw.draw(st.sampled_from(sorted(made.arrays)))
    array = made.arrays[name]
    index = []
    for dim in array.shape[: draw.draw(st.integers(0, array.ndim))]:
        low = draw.draw(st.integers(0, dim))
        index.append(slice(low, draw.draw(st.integers(low, dim)), draw.draw(st.sampled_from([None, 1, 2]))))
    cut: Index = tuple(index)
    with detect.open_source(made.path) as source:  # type: ignore[attr-defined]
        assert same(source.read(name, cut), np.array(array[cut], order="C"))


def test_names_that_are_not_there(made: Made, opened: Source) -> None:
    name = max(made.arrays, key=len)
    with pytest.raises(TensorNotFound) as caught:
        opened.read(name + "x")
    assert repr(name + "x") in str(caught.value)
    assert repr(name) in str(caught.value)  # the closest
    with pytest.raises(TensorNotFound):
        opened.read("\0\ud800{}")
    assert name + "x" not in opened.specs()


def test_parts_that_cannot_be(made: Made, opened: Source) -> None:
    name, array = next(iter(made.arrays.items()))
    with pytest.raises(Error, match="axes"):
        opened.read(name, (slice(None),) * (array.ndim + 1))
    if array.ndim:
        with pytest.raises(Error, match="step"):
            opened.read(name, (slice(None, None, -1),))


def test_facts_of_nothing_and_of_anything(made: Made, opened: Source) -> None:
    for names in ([], list(made.arrays)[:1], ["nothing/like/it"]):
        facts = opened.facts(names)
        assert isinstance(facts, Mapping)
        assert all(isinstance(key, str) for key in facts)


def test_closed_is_an_error_and_closing_twice_is_none(made: Made) -> None:
    source = detect.open_source(made.path)
    name = next(iter(made.arrays))
    source.close()
    source.close()
    with pytest.raises(Error, match="closed"):
        source.read(name)


def test_where_tensors_lie(made: Made, opened: Source) -> None:
    for name, array in made.arrays.items():
        place = extent_of(opened, name)
        if place is not None and array.size:
            raw = Path(place.path).read_bytes()[place.offset :][: place.nbytes]
            assert raw == array.tobytes()
    if isinstance(opened, Located):
        with pytest.raises(TensorNotFound):
            opened.extent("nothing/like/it")


_OPEN = """
import sys
for name in ("tensorflow", "keras", "tf_keras", "torch", "jax", "flax", "onnx", "gguf", "safetensors", "orbax"):
    sys.modules[name] = None
import weightport as wp
for path in sys.argv[1:]:
    with wp.open(path) as source:
        for name, spec in source.specs().items():
            if not spec.unread and spec.role == "weight":
                source.read(name)
"""


def test_no_framework_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, make in READERS.items():
        if name not in _made:
            _made[name] = make(tmp_path_factory.mktemp(name))
    paths = [made.path for made in _made.values()]
    run = subprocess.run(
        [sys.executable, "-c", _OPEN, *paths],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


# Writers -------------------------------------------------------------------------------------------------------------

#: Formats that are written of names and values alone: what an output is called.
WRITERS = {
    "npz": "o.npz",
    "safetensors": "o.safetensors",
    "safetensors-index": "o.safetensors.index.json",
    "keras-h5": "o.h5",
    "tf-checkpoint": "o.ckpt",
    "flax-msgpack": "o.msgpack",
    "torch": "o.pt",
}
#: Formats that are a TARGET with other values in it; their own tests have what is particular to them.
EDITED = ("keras", "onnx", "tf-frozen", "tf-meta", "tf-saved-model")


#: Those of them that take a TARGET of any names: what an output is called, and what makes a TARGET.
LIKE: dict[str, tuple[str, Callable[[Path, Arrays], Made]]] = {
    "onnx": ("o.onnx", _onnx_model),
    "tf-frozen": ("o.pb", _frozen),
}
NAMES = {**WRITERS, **{writer: name for writer, (name, _) in LIKE.items()}}


def zeros(arrays: Arrays) -> Arrays:
    return {n: np.zeros_like(a) for n, a in arrays.items()}


def like_of(writer: str, folder: Path, arrays: Arrays) -> str | None:
    """A TARGET that holds other values, for formats that need one."""
    return LIKE[writer][1](folder, zeros(arrays)).path if writer in LIKE else None


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def wrote(folder: Path, writer: str, arrays: Arrays, **options: Any) -> str:
    folder.mkdir(exist_ok=True)
    like = like_of(writer, folder.parent, arrays)
    path, write = detect.writer_for(str(folder / NAMES[writer]), format=writer, like=like)
    write(path, specs_of(arrays), tiles_of(arrays, **options), metadata={"weightport.version": "1"})
    return path


@pytest.fixture(params=NAMES)
def writer(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_what_is_written_is_read_bit_for_bit(writer: str, tmp_path: Path) -> None:
    path = wrote(tmp_path / "a", writer, ARRAYS)
    with detect.open_source(path) as source:  # type: ignore[attr-defined]
        assert {n for n, s in source.specs().items() if s.role != "optimizer"} == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert same(source.read(name), array)


def test_the_same_input_gives_the_same_bytes(writer: str, tmp_path: Path) -> None:
    for folder, rows in (("a", 1), ("b", 3)):
        wrote(tmp_path / folder, writer, ARRAYS, rows=rows)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_failure_leaves_what_was_there(writer: str, tmp_path: Path) -> None:
    path = wrote(tmp_path / "a", writer, ARRAYS)
    before = files(tmp_path / "a")

    def tiles(name: str) -> Iterator[np.ndarray]:
        if name == "wide/number":
            raise RuntimeError("no more")
        yield ARRAYS[name]

    like = like_of(writer, tmp_path, ARRAYS)
    _, write = detect.writer_for(path, format=writer, like=like)
    with pytest.raises(RuntimeError, match="no more"):
        write(path, specs_of(ARRAYS), tiles)
    wrong: Mapping[str, TensorSpec] = specs_of(ARRAYS)
    with pytest.raises(Error, match="'layer/bias'"):
        write(path, wrong, lambda name: iter([ARRAYS[name][:-1] if name == "layer/bias" else ARRAYS[name]]))
    assert files(tmp_path / "a") == before


def test_an_output_in_no_folder(writer: str, tmp_path: Path) -> None:
    like = like_of(writer, tmp_path, ARRAYS)
    out = str(tmp_path / "none" / NAMES[writer])
    path, write = detect.writer_for(out, format=writer, like=like)
    with pytest.raises(Error, match="cannot be written"):
        write(path, specs_of(ARRAYS), tiles_of(ARRAYS))
    assert not (tmp_path / "none").exists()


def test_over_an_older_one(writer: str, tmp_path: Path) -> None:
    wrote(tmp_path / "a", writer, ARRAYS)
    other = {n: a[:0] if a.ndim > 1 else a for n, a in ARRAYS.items()}
    if writer in LIKE:
        other = zeros(ARRAYS)
    path = wrote(tmp_path / "a", writer, other)
    wrote(tmp_path / "b", writer, other)
    assert len(files(tmp_path / "a")) == len(files(tmp_path / "b"))  # nothing is left of the first
    with detect.open_source(path) as source:  # type: ignore[attr-defined]
        assert all(same(source.read(n), a) for n, a in other.items())
