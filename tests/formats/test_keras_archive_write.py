from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats.keras_zoo import ZOO, custom_block, custom_model, functional, randomized
from tests.support import need
from weightport.errors import Error, FormatError
from weightport.formats import detect, keras_archive_write

# What Keras does with numpy's arrays, as it saves them, is its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def keras() -> Any:
    """Keras, whose names begin to count anew."""
    module = need("keras")
    module.backend.clear_session()
    return module


def negated(target: Path, out: Path) -> None:
    """The target's weights times -1 (of what is no float: the same), through a mapping of every name to itself."""
    rules: list[Any] = [{"from": "{x**}", "to": "{x**}", "scale": -1.0}]
    with wp.open(target) as source:
        fixed = [name for name, spec in source.specs().items() if spec.dtype.kind not in "fV"]
    mapping = {"weightport": 1, "rules": rules, "ignore": [*fixed, "optimizer/**"], "keep": fixed}
    wp.transfer(target, target, mapping, out=out)


def weights(model: Any) -> list[np.ndarray]:
    return [np.asarray(w) for w in model.weights]


def assert_negated(loaded: Any, model: Any) -> None:
    assert len(loaded.weights) == len(model.weights) > 0
    for new, old in zip(weights(loaded), weights(model), strict=True):
        assert np.array_equal(new, -old if old.dtype.kind == "f" else old)


@pytest.mark.parametrize("make", ZOO.values(), ids=list(ZOO))
def test_keras_loads_it(keras: Any, make: Callable[[Any], Any], tmp_path: Path) -> None:
    model = randomized(make(keras))
    model.save(tmp_path / "m.keras")
    negated(tmp_path / "m.keras", tmp_path / "o.keras")
    assert_negated(keras.saving.load_model(tmp_path / "o.keras"), model)
    negated(tmp_path / "m.keras", tmp_path / "o.weights.h5")
    again = keras.saving.load_model(tmp_path / "m.keras")
    again.load_weights(tmp_path / "o.weights.h5")
    assert_negated(again, model)


def test_models_of_their_own_classes(keras: Any, tmp_path: Path) -> None:
    for number, model in enumerate((custom_model(keras), functional(keras, (None, 3), custom_block(keras)(4)))):
        path, out = tmp_path / f"{number}.keras", tmp_path / f"o{number}.keras"
        randomized(model).save(path)
        negated(path, out)
        assert_negated(keras.saving.load_model(out), model)


def trained(keras: Any) -> Any:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
    model.compile("adam", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0, epochs=3)
    return model


def test_a_trained_model_starts_anew(keras: Any, tmp_path: Path) -> None:
    model = trained(keras)
    assert int(np.asarray(model.optimizer.iterations)) == 3
    for name in ("m.keras", "m.weights.h5"):
        path, out = tmp_path / name, tmp_path / f"o.{name}"
        (model.save if name == "m.keras" else model.save_weights)(path)
        negated(path, out)
        with wp.open(out) as source:
            assert {spec.role for spec in source.specs().values()} == {"weight"}
        if name == "m.keras":
            with pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'adam'"):
                loaded = keras.saving.load_model(out)
        else:
            loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
            loaded.load_weights(out)
        assert_negated(loaded, model)
        if name == "m.keras":
            assert int(np.asarray(loaded.optimizer.iterations)) == 0
            loaded.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
            assert int(np.asarray(loaded.optimizer.iterations)) == 1


def test_optimizer_state_that_is_given_is_written(keras: Any, tmp_path: Path) -> None:
    model = trained(keras)
    path, out = tmp_path / "m.keras", tmp_path / "o.keras"
    model.save(path)
    np.savez(tmp_path / "s.npz", steps=np.array(7, str(model.optimizer.iterations.dtype)))
    mapping = {"weightport": 1, "rules": [{"from": "steps", "to": "optimizer/vars/0"}], "keep": ["**"]}
    wp.transfer(tmp_path / "s.npz", path, mapping, out=out)
    loaded = keras.saving.load_model(out)
    assert int(np.asarray(loaded.optimizer.iterations)) == 7
    for new, old in zip(loaded.optimizer.variables[1:], model.optimizer.variables[1:], strict=True):
        assert np.array_equal(np.asarray(new), np.asarray(old))


def test_a_legacy_file_with_an_optimizer_is_a_target_too(keras: Any, tmp_path: Path) -> None:
    model = trained(keras)
    model.save(tmp_path / "m.h5")
    mapping: dict[str, Any] = {
        "weightport": 1,
        "rules": [{"from": "{x**}", "to": "{x**}", "scale": -1.0}],
        "ignore": ["optimizer_weights/**"],
    }
    wp.transfer(tmp_path / "m.h5", tmp_path / "m.h5", mapping, out=tmp_path / "o.h5")
    with wp.open(tmp_path / "o.h5") as source:
        assert {spec.role for spec in source.specs().values()} == {"weight"}
    assert_negated(keras.saving.load_model(tmp_path / "o.h5", compile=False), model)
    np.savez(tmp_path / "s.npz", steps=np.array(7, str(model.optimizer.iterations.dtype)))
    mapping = {"weightport": 1, "rules": [{"from": "steps", "to": "optimizer_weights/adam/iteration"}], "keep": ["**"]}
    wp.transfer(tmp_path / "s.npz", tmp_path / "m.h5", mapping, out=tmp_path / "s.h5")
    with wp.open(tmp_path / "m.h5") as old, wp.open(tmp_path / "s.h5") as new:
        assert list(new.specs()) == list(old.specs())
        assert new.read("optimizer_weights/adam/iteration") == 7
        assert all(
            np.array_equal(old.read(name), new.read(name))
            for name in old.specs()
            if name != "optimizer_weights/adam/iteration"
        )


def test_everything_else_is_taken_over(keras: Any, tmp_path: Path) -> None:
    """Configuration, metadata and assets byte for byte; the same input gives the same bytes."""
    words = keras.layers.StringLookup()
    words.adapt(["a", "b"])
    inputs = keras.Input((1,), dtype="string")
    keras.Model(inputs, keras.layers.Embedding(4, 2)(words(inputs))).save(tmp_path / "m.keras")
    for out in ("o.keras", "again.keras"):
        negated(tmp_path / "m.keras", tmp_path / out)
    assert (tmp_path / "o.keras").read_bytes() == (tmp_path / "again.keras").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.keras") as old, zipfile.ZipFile(tmp_path / "o.keras") as new:
        assert new.testzip() is None
        assert {i.compress_type for i in new.infolist()} == {zipfile.ZIP_STORED}
        assert sorted(new.namelist()) == sorted(old.namelist())
        assert any(name.startswith("assets/") for name in new.namelist())
        for name in old.namelist():
            assert name == "model.weights.h5" or new.read(name) == old.read(name)
    loaded = keras.saving.load_model(tmp_path / "o.keras")
    assert np.asarray(loaded(np.array([["b"]]))).shape == (1, 1, 2)


def test_of_a_folder(keras: Any, tmp_path: Path) -> None:
    model = randomized(ZOO["sequential"](keras))
    model.save(tmp_path / "m.keras")
    (tmp_path / "folder" / "assets").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "m.keras") as file:
        file.extractall(tmp_path / "folder")
    (tmp_path / "folder" / "assets" / "x").write_text("y")
    (tmp_path / "folder" / "README.md").write_text("not of the model")
    negated(tmp_path / "folder", tmp_path / "o.keras")
    assert_negated(keras.saving.load_model(tmp_path / "o.keras"), model)
    with zipfile.ZipFile(tmp_path / "o.keras") as file:
        assert set(file.namelist()) == {"assets/x", "config.json", "metadata.json", "model.weights.h5"}


def test_bfloat16(keras: Any, tmp_path: Path) -> None:
    model = randomized(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")]))
    model.save(tmp_path / "m.keras")
    negated(tmp_path / "m.keras", tmp_path / "o.keras")
    with wp.open(tmp_path / "o.keras") as source:
        assert {spec.dtype_name for spec in source.specs().values()} == {"bfloat16"}
    loaded = keras.saving.load_model(tmp_path / "o.keras")
    for new, old in zip(loaded.weights, model.weights, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(new), -keras.ops.convert_to_numpy(old))


def test_provenance(keras: Any, tmp_path: Path) -> None:
    h5py = need("h5py")
    ZOO["sequential"](keras).save(tmp_path / "m.keras")
    negated(tmp_path / "m.keras", tmp_path / "o.keras")
    with zipfile.ZipFile(tmp_path / "o.keras") as file:
        file.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert file.attrs["weightport.source"] == "m.keras"


def test_what_is_refused(keras: Any, tmp_path: Path) -> None:
    model = ZOO["sequential"](keras)
    model.save(tmp_path / "m.keras")
    np.savez(tmp_path / "s.npz", a=np.zeros(2, "f4"))
    mapping: dict[str, Any] = {"weightport": 1, "rules": [{"from": "a", "to": "dense/bias"}], "keep": ["**"]}
    for target in (None, tmp_path / "s.npz"):
        rules = mapping if target is None else {**mapping, "rules": [{"from": "a", "to": "a"}], "keep": []}
        with pytest.raises(Error) as caught:
            wp.transfer(tmp_path / "s.npz", target, rules, out=tmp_path / "o.keras")
        assert str(caught.value) == (
            f"{tmp_path / 'o.keras'}: a .keras archive holds a model's configuration, which no mapping makes; "
            "give a .keras archive of the new model as the target, or write a .weights.h5"
        )
    assert not (tmp_path / "o.keras").exists()
    with zipfile.ZipFile(tmp_path / "m.keras", "a") as file:
        file.writestr("assets/../../x", b"")
    with pytest.raises(FormatError, match="would lead out of the archive's folder: refused"):
        wp.transfer(tmp_path / "s.npz", tmp_path / "m.keras", mapping, out=tmp_path / "o.keras")
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "s.npz"]


def test_the_old_archive_stays_until_the_new_one_is_complete(keras: Any, tmp_path: Path) -> None:
    ZOO["sequential"](keras).save(tmp_path / "m.keras")
    (tmp_path / "o.keras").write_text("old")

    def tiles(name: str) -> Any:
        raise RuntimeError(f"no {name}")

    with wp.open(tmp_path / "m.keras") as source, pytest.raises(RuntimeError, match="no sequential/"):
        keras_archive_write.write(str(tmp_path / "o.keras"), source.specs(), tiles, like=str(tmp_path / "m.keras"))
    assert (tmp_path / "o.keras").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "o.keras"]


def test_chosen_by_the_outputs_name() -> None:
    assert detect.writer_for("m.keras") == ("m.keras", detect.Writer("keras_archive_write"))
