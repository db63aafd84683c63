from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats._arrays import EXTRA, NUMPY, of_every_dtype, same, specs_of, tiles_of
from tests.support import need, says
from weightport.errors import Error
from weightport.formats import keras_h5, keras_h5_write
from weightport.tensors import TensorSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def write(path: Path, arrays: dict[str, np.ndarray], **options: Any) -> None:
    keras_h5_write.write(str(path), specs_of(arrays), tiles_of(arrays), **options)


def read(path: Path) -> dict[str, np.ndarray]:
    with keras_h5.open_source(str(path)) as source:
        return {name: source.read(name) for name in source.specs()}


def randomized(model: Any) -> Any:
    rng = np.random.default_rng(11)
    model.set_weights([rng.uniform(0.1, 0.7, w.shape).astype("float32") for w in model.get_weights()])
    return model


def flat(keras: Any) -> Any:
    layers = keras.layers
    start = layers.Input((5,), dtype="int32")
    y = layers.Embedding(11, 4, name="words")(start)
    y = layers.LSTM(6, return_sequences=True, name="z_lstm")(y)
    y = layers.Dropout(0.1)(y)
    y = layers.GRU(5, return_sequences=True, name="a_gru")(y)
    y = layers.Bidirectional(layers.LSTM(3), name="both")(y)
    y = layers.BatchNormalization(name="bn")(y)
    return randomized(keras.Model(start, layers.Dense(2, name="head")(y)))


def nested(keras: Any) -> Any:
    layers = keras.layers
    inside = layers.Input((None, 4))
    encoder = keras.Model(
        inside, layers.GRU(3, name="g")(layers.LSTM(5, return_sequences=True, name="l")(inside)), name="encoder"
    )
    start = layers.Input((5,), dtype="int32")
    y = encoder(layers.Embedding(11, 4, name="words")(start))
    return randomized(keras.Model(start, layers.Dense(2, name="head")(y)))


def sequential(keras: Any) -> Any:
    layers = keras.layers
    return randomized(
        keras.Sequential([layers.Input((5,), dtype="int32"), layers.Embedding(11, 4), layers.LSTM(3), layers.Dense(2)])
    )


def named(model: Any) -> dict[str, np.ndarray]:
    names = [str(getattr(w, "path", w.name)).removesuffix(":0") for w in model.weights]
    return dict(zip(names, model.get_weights(), strict=True))


def output(model: Any) -> np.ndarray:
    return np.asarray(model(TEXT, training=False))  # called, not predicted with: nothing is traced


PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=4)
TEXT = np.array([[1, 2, 3, 4, 10], [5, 5, 0, 1, 9]], "int32")


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_keras_loads_a_flat_model(tmp_path: Path, package: str) -> None:
    keras = need(package)
    model = flat(keras)
    path = tmp_path / "w.h5"
    write(path, named(model), metadata={"source_sha256": "0" * 64})
    expected = output(model)
    keras.backend.clear_session()
    other = flat(keras)
    other.set_weights([w * 0 for w in other.get_weights()])
    other.load_weights(path)
    assert np.array_equal(output(other), expected)
    with h5py.File(path) as file:
        assert file.attrs["weightport.source_sha256"] == "0" * 64
    assert list(read(path)) == list(named(model))


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("build", [flat, nested, sequential])
@pytest.mark.parametrize("full", [False, True])
def test_keras_loads_what_is_like_its_own(tmp_path: Path, package: str, build: Any, full: bool) -> None:
    keras = need(package)
    model = build(keras)
    expected = output(model)
    values = model.get_weights()
    model.compile("adam", "mse")
    model.set_weights([w * 0 for w in values])
    like, path = tmp_path / "like.h5", tmp_path / "w.h5"
    if full or package == "keras":
        model.save(like)
    else:
        model.save_weights(like)
    before = like.read_bytes()
    names = list(named(model))
    arrays = dict(zip(names, values, strict=True))
    write(path, dict(reversed(arrays.items())), like=str(like))  # their order does not matter
    assert like.read_bytes() == before
    if full:
        assert np.array_equal(output(keras.models.load_model(path, compile=False)), expected)
        with h5py.File(path) as file:
            assert "optimizer_weights" not in file
    else:
        model.load_weights(path)
        assert np.array_equal(output(model), expected)
    with keras_h5.open_source(str(path)) as got, keras_h5.open_source(str(like)) as source:
        assert list(got.specs()) == [n for n, s in source.specs().items() if s.role == "weight"]
        assert [x.name for x in got.layers] == [x.name for x in source.layers]


def test_tf_1_loads_it(tmp_path: Path) -> None:
    """A file of tf.keras 1.15 as ``like``: the same groups, attributes and datasets, with other values."""
    from tests.support import fixture

    model = fixture("c_keras/nested_model")
    like = model.path("keras_weights_h5")
    arrays = {k: v * 2 for k, v in model.variables.items()}
    write(tmp_path / "w.h5", arrays, like=like)

    def outline(path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: (getattr(item, "shape", None), sorted(item.attrs))}))
            found["/"] = [v.tolist() if isinstance(v, np.ndarray) else v for v in file.attrs.values()]
        return found

    assert outline(str(tmp_path / "w.h5")) == outline(like)
    got = read(tmp_path / "w.h5")
    assert all(same(got[k], arrays[k]) for k in arrays)


def test_an_optimizers_values_go_where_like_has_them(tmp_path: Path) -> None:
    like, path = tmp_path / "like.h5", tmp_path / "w.h5"
    with h5py.File(like, "w") as file:
        file.create_dataset("model_weights/a/a/kernel:0", data=np.zeros((2, 3), "f4"))
        file["model_weights"].attrs["layer_names"] = [b"a"]
        file["model_weights/a"].attrs["weight_names"] = [b"a/kernel:0"]
        state = file.create_group("optimizer_weights")
        state.attrs["weight_names"] = np.array([b"adam/iter:0", b"adam/a/kernel/m:0"])
        state["adam/iter:0"] = np.array(0, "i8")
        state["adam/a/kernel/m:0"] = np.zeros((2, 3), "f4")
    kernel = np.arange(6, dtype="f4").reshape(2, 3)
    with keras_h5.open_source(str(like)) as source:
        iterations, slot = (n for n, s in source.specs().items() if s.role != "weight")
    write(path, {"a/kernel": kernel, slot: kernel + 6, iterations: np.array(7, "i8")}, like=str(like))
    with h5py.File(path) as file:
        assert np.array_equal(file["model_weights/a/a/kernel:0"], kernel)
        assert file["optimizer_weights"].attrs["weight_names"].tolist() == [b"adam/iter:0", b"adam/a/kernel/m:0"]
        assert np.array_equal(file["optimizer_weights/adam/a/kernel/m:0"], kernel + 6)
        assert file["optimizer_weights/adam/iter:0"][()] == 7
    with says(Error, f"{path}: no values for {slot!r} of {like}; closest: {iterations!r}"):
        write(path, {"a/kernel": kernel, iterations: np.array(7, "i8")}, like=str(like))


def test_weights_of_keras_3(tmp_path: Path) -> None:
    keras = need("keras")
    model = flat(keras)
    expected, values = output(model), model.get_weights()
    model.save_weights(tmp_path / "a.weights.h5")
    arrays = read(tmp_path / "a.weights.h5")
    model.set_weights([w * 0 for w in values])
    model.save_weights(tmp_path / "like.weights.h5")
    write(tmp_path / "b.weights.h5", arrays, like=str(tmp_path / "like.weights.h5"))
    model.load_weights(tmp_path / "b.weights.h5")
    assert np.array_equal(output(model), expected)


def test_round_trip_of_every_dtype_and_odd_names(tmp_path: Path) -> None:
    arrays = of_every_dtype([*NUMPY, "complex128", *EXTRA])
    arrays |= {"scope": np.zeros(2), "scope/a:0": np.ones(2), "words": np.array([b"a", b"", b"\xff"], object)}
    arrays |= {
        "optimizer_weights/iter": np.array(3),
        "top_level_model_weights/m/w": np.zeros(1),
        "top_level_model_weights/w": np.zeros(1),
    }
    path = tmp_path / "w.h5"
    write(path, arrays)
    got = read(path)
    assert set(got) == set(arrays)
    for name, array in arrays.items():
        assert same(got[name], array), name
    with keras_h5.open_source(str(path)) as source:
        assert source.specs()["optimizer_weights/iter"].role == "optimizer"


def test_notes_are_named_once(tmp_path: Path) -> None:
    path = str(tmp_path / "m.h5")
    write(path, {"a": np.zeros(2, np.float32)}, metadata={"source": "x", "weightport.mapping": "y"})
    with h5py.File(path) as file:
        notes = {key: value for key, value in file.attrs.items() if "weightport" in key}
    assert notes == {"weightport.source": "x", "weightport.mapping": "y"}


def test_same_input_same_bytes(tmp_path: Path) -> None:
    arrays = {"a/kernel": np.arange(12.0).reshape(4, 3), "a/bias": np.zeros(3), "b/kernel": np.ones((3, 2), "f4")}
    for name, rows in (("a", 1), ("b", 3)):
        keras_h5_write.write(str(tmp_path / name), specs_of(arrays), tiles_of(arrays, rows), metadata={"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_layers_in_the_order_of_the_names(tmp_path: Path) -> None:
    arrays = {n: np.zeros(1, "f4") for n in ("z/kernel", "a/kernel", "z/bias", "m/f/kernel")}
    write(tmp_path / "w.h5", arrays)
    with h5py.File(tmp_path / "w.h5") as file:
        assert file.attrs["layer_names"].tolist() == [b"z", b"a", b"m"]
        assert file["z"].attrs["weight_names"].tolist() == [b"z/kernel:0", b"z/bias:0"]
        assert file.attrs["backend"] == "tensorflow"
        assert "z/z/kernel:0" in file


def test_many_names_are_chunked_as_keras_does(tmp_path: Path) -> None:
    keras = need("tf_keras.src.saving.legacy.hdf5_format")
    arrays = {f"layer_{n}/{'x' * 50}": np.array(n, "f4") for n in range(200)}
    arrays |= {f"big/{n}/{'x' * 50}": np.array(n, "f4") for n in range(1200)}
    write(tmp_path / "w.h5", arrays)
    with h5py.File(tmp_path / "w.h5") as file:
        assert "layer_names0" not in file.attrs
        assert "weight_names1" in file["big"].attrs
        assert keras.load_attributes_from_hdf5_group(file, "layer_names") == [
            *(f"layer_{n}" for n in range(200)),
            "big",
        ]
        assert len(keras.load_attributes_from_hdf5_group(file["big"], "weight_names")) == 1200
    assert list(read(tmp_path / "w.h5")) == list(arrays)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), unique=True, max_size=6))
def test_any_names_come_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("h5") / "w.h5"
    arrays = {name: np.array(n, "i4") for n, name in enumerate(names)}
    try:
        write(path, arrays)
    except Error:
        assert any(part == "." for name in names for part in name.split("/")) or any(":0" in name for name in names)
        return
    assert read(path) == arrays


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/./b", "a\0", "\ud800"])
def test_names_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(Error, match="tensor "):
        write(tmp_path / "w.h5", {name: np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_like_lists_all_that_differs(tmp_path: Path) -> None:
    write(tmp_path / "like.h5", {"d/kernel": np.zeros((2, 3)), "d/bias": np.zeros(3), "e/w": np.zeros(1)})
    path, like = tmp_path / "w.h5", tmp_path / "like.h5"
    with pytest.raises(Error) as caught:
        write(path, {"d/kernal": np.zeros((2, 3)), "d/bias": np.zeros(4), "e/w": np.zeros(1)}, like=str(like))
    assert str(caught.value).split("\n") == [
        f"{path}: no values for 'd/kernel' of {like}; closest: 'd/kernal'",
        f"{path}: {like} has no weight 'd/kernal'; closest: 'd/kernel'",
        f"{path}: 'd/bias' is [4], in {like} [3]",
    ]
    assert not path.exists()


def test_like_may_be_the_destination(tmp_path: Path) -> None:
    write(tmp_path / "w.h5", {"d/kernel": np.zeros((2, 3))})
    write(tmp_path / "w.h5", {"d/kernel": np.ones((2, 3))}, like=str(tmp_path / "w.h5"))
    assert read(tmp_path / "w.h5")["d/kernel"].sum() == 6


def test_values_that_are_not_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    path.write_bytes(b"old")
    with pytest.raises(Error, match="1 rows of values for the shape"):
        keras_h5_write.write(
            str(path), {"a/b": TensorSpec.of("float32", (2, 2))}, lambda _: iter([np.zeros((1, 2), "f4")])
        )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(Error, match=r"cannot be written: there is no folder .*/no; make it first"):
        write(tmp_path / "no" / "w.h5", {})


def test_weights_of_keras_3_without_a_target(tmp_path: Path) -> None:
    keras = need("keras")
    model = flat(keras)
    expected, values = output(model), model.get_weights()
    model.save_weights(tmp_path / "a.weights.h5")
    arrays = read(tmp_path / "a.weights.h5")
    write(tmp_path / "b.weights.h5", arrays)
    model.set_weights([w * 0 for w in values])
    model.load_weights(tmp_path / "b.weights.h5")
    assert np.array_equal(output(model), expected)
    assert list(read(tmp_path / "b.weights.h5")) == list(arrays)


def test_a_suffix_that_keras_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    layers, objects = {"lstm/kernel": np.zeros((2, 4))}, {"layers/lstm/cell/vars/0": np.zeros((2, 4))}
    write(tmp_path / "layers.h5", layers)
    write(tmp_path / "objects.weights.h5", objects)
    before = sorted(tmp_path.iterdir())
    for like in (None, "layers.h5"):
        with pytest.raises(Error, match=r"by the model's objects, and '.*' is not named like .*; give a \.weights\.h5"):
            write(tmp_path / "a.weights.h5", layers, like=like and str(tmp_path / like))
    for like in (None, "objects.weights.h5"):
        with pytest.raises(Error, match=r"named by a model's objects, .*; name it \.weights\.h5"):
            write(tmp_path / "a.h5", objects, like=like and str(tmp_path / like))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("tensor", "error", "told"),
    [
        ("w", OSError("Unable to write (errno = 28, error message = 'x')"), "f: tensor 'w': cannot be written: "),
        (None, OSError("Unable to flush (errno = 28, error message = 'x')"), "f: cannot be written: "),
    ],
)
def test_what_the_system_says(tensor: str | None, error: Exception, told: str) -> None:
    with says(Error, f"{told}{os.strerror(28)}"), keras_h5_write._translated("f", tensor):
        raise error
    with says(Error, f"{told}no such thing"), keras_h5_write._translated("f", tensor):
        raise RuntimeError("no such thing\nin detail")


def test_a_name_that_no_attribute_holds(tmp_path: Path) -> None:
    name = "lstm/" + "x" * 65_000
    with says(Error, f"{tmp_path / 'm.h5'}: a name of 65007 bytes, HDF5 holds 64512"):
        write(tmp_path / "m.h5", {name: np.zeros(2, np.float32)})
    assert list(tmp_path.iterdir()) == []
