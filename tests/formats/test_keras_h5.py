from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings

from tests.formats._arrays import indexed, same
from tests.support import Fixture, fixtures, need
from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import keras_h5
from weightport.tensors import Budget, TensorSpec

H5 = [(f, kind) for kind in ("keras_h5", "keras_weights_h5") for f in fixtures(kind)]


@pytest.mark.parametrize(("model", "kind"), H5, ids=str)
def test_fixtures_bit_for_bit(model: Fixture, kind: str) -> None:
    expected = {k: v for k, v in model.variables.items() if not k.startswith("converted/")}
    with keras_h5.open_source(model.path(kind)) as source:
        assert source.format == "keras-h5"
        weights = [name for name, spec in source.specs().items() if spec.role == "weight"]
        assert weights == [v["name"] for v in model.doc["variables"] if not v["name"].startswith("converted/")]
        assert set(weights) == set(expected)
        for name in weights:
            assert same(source.read(name), expected[name])
            assert source.specs()[name] == TensorSpec.of(expected[name].dtype, expected[name].shape)


def test_no_framework_is_imported() -> None:
    paths = [f.path(kind) for f, kind in H5]
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras', 'tf_keras', 'torch', 'jax', 'safetensors'): sys.modules[name] = None\n"
        "from weightport.formats.keras_h5 import open_source\n"
        "for path in sys.argv[1:]:\n"
        "    source = open_source(path)\n"
        "    for name in source.specs(): source.read(name), source.facts([name])\n"
    )
    subprocess.run([sys.executable, "-c", code, *paths], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(("model", "kind"), [(f, k) for f, k in H5 if k == "keras_h5"], ids=str)
def test_facts_of_fixtures(model: Fixture, kind: str) -> None:
    with keras_h5.open_source(model.path(kind)) as source:
        name = next(n for n in source.specs() if n.endswith("recurrent_kernel"))
        facts = source.facts([name, name.replace("recurrent_kernel", "kernel")])
    assert facts["activation"] == model.doc.get("activation", "tanh")
    if "recurrent_activation" in model.doc:
        assert facts["recurrent_activation"] == model.doc["recurrent_activation"]
    if "reset_after" in model.doc:
        assert facts["reset_after"] == model.doc["reset_after"]
    assert facts["units"] == model.doc["units"] or model.name.endswith(("stacked_cells", "masked_text_classifier"))
    assert facts["keras_version"] == "2.2.4-tf"
    assert facts["backend"] == "tensorflow"


def test_facts_of_wrapped_cells() -> None:
    models = {f.name: f for f in fixtures("keras_h5")}
    with keras_h5.open_source(models["c_keras/stacked_cells"].path("keras_h5")) as source:
        assert source.facts(["rnn/kernel", "rnn/bias"])["class"] == "LSTM"
        second = source.facts(["rnn/kernel_1", "rnn/recurrent_kernel_1", "rnn/bias_1"])
        assert (second["class"], second["units"], second["reset_after"]) == ("GRU", 4, False)
        assert "class" not in source.facts(["rnn/kernel", "rnn/kernel_1"])
    with keras_h5.open_source(models["c_keras/bidirectional_lstm"].path("keras_h5")) as source:
        assert source.facts(["bidi/forward_lstm/kernel"])["direction"] == "forward"
        assert source.facts(["bidi/backward_lstm/kernel"])["direction"] == "backward"
    with keras_h5.open_source(models["c_keras/nested_model"].path("keras_h5")) as source:
        assert source.facts(["inner_lstm/bias"])["class"] == "LSTM"
        assert source.facts(["top_rnn/bias"])["activation"] == "relu"
    with keras_h5.open_source(models["c_keras/nested_model"].path("keras_weights_h5")) as source:
        assert source.facts(["top_rnn/bias"]) == {"keras_version": "2.2.4-tf", "backend": "tensorflow"}


# -- written on the spot by Keras 2 and 3 --------------------------------------------------------------------------


def zoo(keras: Any) -> Any:
    """A model with everything nested in everything."""
    layers = keras.layers
    start = layers.Input((6, 4), name="x")
    inside = layers.Input((6, 4), name="inside")
    deep = layers.Dense(3, name="d")(layers.LSTM(5, return_sequences=True, name="inner")(inside))
    y = keras.Model(inside, layers.BatchNormalization(name="inner_bn")(deep), name="encoder")(start)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True, name="g"), name="both")(y)
    y = layers.TimeDistributed(layers.Dense(2, name="dd"), name="each")(y)
    cells = [layers.LSTMCell(3, recurrent_activation="hard_sigmoid"), layers.GRUCell(2, use_bias=False)]
    y = layers.RNN(layers.StackedRNNCells(cells), return_sequences=True, go_backwards=True, name="stack")(y)
    y = layers.Dropout(0.5, name="drop")(y)
    y = layers.Bidirectional(layers.RNN(layers.LSTMCell(3, name="cell")), name="other")(y)
    model = keras.Model(start, layers.Dense(1, name="head")(y))
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape).astype("float32") * 0.3 for w in model.get_weights()])
    return model


def plain_names(model: Any) -> list[str]:
    return [str(getattr(w, "path", w.name)).removesuffix(":0") for w in model.weights]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_written_by_keras(tmp_path: Path, package: str) -> None:
    keras = need(package)
    keras.backend.clear_session()  # Keras counts layers without a name, in all models of the process
    model = zoo(keras)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path / "full.h5"
    model.save(path)
    with keras_h5.open_source(str(path)) as source:
        values = dict(zip(plain_names(model), model.get_weights(), strict=True))
        weights = {n for n, s in source.specs().items() if s.role == "weight"}
        assert weights == set(values)
        for name in weights:
            assert same(source.read(name), values[name])
        rest = {n: s.role for n, s in source.specs().items() if s.role != "weight"}
        assert all(n.startswith("optimizer_weights/") for n in rest)
        assert sorted(rest.values()).count("slot") == 2 * len(model.trainable_weights)
        assert {n.rsplit("/", 1)[-1] for n, r in rest.items() if r == "optimizer"} <= {
            "iteration",
            "learning_rate",
            "iter",
        }

        def fact(part: str) -> dict:
            return dict(source.facts([n for n in weights if part in n]))

        inner = fact("inner/")
        assert (inner["class"], inner["units"], inner["recurrent_activation"]) == ("LSTM", 5, "sigmoid")
        assert fact("both/forward")["direction"] == "forward"
        assert (fact("both/backward")["class"], fact("both/backward")["reset_after"]) == ("GRU", True)
        assert fact("each/")["class"] == "Dense"
        first = fact("stack/stacked_rnn_cells/lstm_cell")
        assert first["recurrent_activation"] == ("hard_sigmoid_6" if package == "keras" else "hard_sigmoid")
        second = fact("stack/stacked_rnn_cells/gru_cell")
        assert (second["class"], second["use_bias"]) == ("GRU", False)
        assert fact("other/backward")["direction"] == "backward"
        assert fact("stack/")["go_backwards"] is True


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_weights_of_keras_3_by_path(tmp_path: Path) -> None:
    keras = need("keras")
    model = zoo(keras)
    model.save_weights(tmp_path / "a.weights.h5")
    with keras_h5.open_source(str(tmp_path / "a.weights.h5")) as source:
        assert source.format == "hdf5"
        stored = sorted(source.read(n).tobytes() for n in source.specs())
        assert stored == sorted(w.tobytes() for w in model.get_weights())
        assert "layers/dense/vars/0" in source.specs()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_two_nested_models_with_equal_names(tmp_path: Path) -> None:
    keras = need("tf_keras")

    def encoder(name: str) -> Any:
        inside = keras.layers.Input((4,))
        return keras.Model(inside, keras.layers.Dense(4, name="d")(inside), name=name)

    start = keras.layers.Input((4,))
    model = keras.Model(start, encoder("b")(encoder("a")(start)))
    model.save_weights(tmp_path / "w.h5")
    with keras_h5.open_source(str(tmp_path / "w.h5")) as source:
        assert list(source.specs()) == ["a/d/kernel", "a/d/bias", "b/d/kernel", "b/d/bias"]
        for name, value in zip(source.specs(), model.get_weights(), strict=True):
            assert same(source.read(name), value)


def test_chunked_names(tmp_path: Path) -> None:
    keras = need("tf_keras.src.saving.legacy.hdf5_format")
    weights = [f"dense_{n}/{'x' * 60}/kernel:0" for n in range(1500)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        keras.save_attributes_to_hdf5_group(file, "layer_names", [b"big"])
        group = file.create_group("big")
        keras.save_attributes_to_hdf5_group(group, "weight_names", [w.encode() for w in weights])
        assert "weight_names" not in group.attrs
        assert "weight_names1" in group.attrs
        for number, name in enumerate(weights):
            group[name] = np.float32(number)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == [w.removesuffix(":0") for w in weights]
        assert source.read(f"dense_1499/{'x' * 60}/kernel") == 1499


# -- the documented layouts of older ones --------------------------------------------------------------------------


def keras_1(path: Path, weights: dict[str, list[str]], *, version: str | None = "1.2.2", config: Any = None) -> None:
    """As Keras 1.2.2's ``save_model`` and ``save_weights`` lay files out."""
    with h5py.File(path, "w") as file:
        root: Any = file
        if config is not None:
            file.attrs["keras_version"] = version.encode()
            file.attrs["model_config"] = json.dumps(config).encode()
            root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in weights]
        value = 0.0
        for layer, names in weights.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group.create_dataset(name, data=np.full((2, 3), value, "float32"))
                value += 1


GATES = [f"{w}_{g}" for g in "ifco" for w in "WUb"]


def test_keras_1_with_its_config(tmp_path: Path) -> None:
    cell = {
        "name": "lstm_1",
        "output_dim": 3,
        "activation": "tanh",
        "inner_activation": "hard_sigmoid",
        "go_backwards": False,
    }
    inner = {"class_name": "LSTM", "config": cell}
    wrapped = {"class_name": "Bidirectional", "config": {"name": "bidirectional_1", "layer": inner}}
    config = {"class_name": "Sequential", "config": [inner, wrapped]}
    both = [f"{d}_lstm_1_{w}" for d in ("forward", "backward") for w in GATES]
    keras_1(tmp_path / "a.h5", {"lstm_1": [f"lstm_1_{w}" for w in GATES], "bidirectional_1": both}, config=config)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs())[:3] == ["lstm_1/lstm_1_W_i", "lstm_1/lstm_1_U_i", "lstm_1/lstm_1_b_i"]
        facts = source.facts(["lstm_1/lstm_1_W_i", "lstm_1/lstm_1_b_o"])
        assert facts == {
            "class": "LSTM", "units": 3, "activation": "tanh", "recurrent_activation": "hard_sigmoid",
            "go_backwards": False, "keras_version": "1.2.2",
        }  # fmt: skip
        assert source.facts(["bidirectional_1/backward_lstm_1_W_i"])["direction"] == "backward"
        assert source.read("lstm_1/lstm_1_U_i").tolist() == [[1.0] * 3] * 2


def test_names_of_other_backends(tmp_path: Path) -> None:
    keras_1(
        tmp_path / "a.h5", {"dense_1": ["param_0", "param_1"], "dense_2": ["param_0"], "bn": ["bn_gamma:0", "x/y:0"]}
    )
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == ["dense_1/param_0", "dense_1/param_1", "dense_2/param_0", "bn/bn_gamma", "x/y"]
        assert source.facts(["x/y"]) == {}


def test_layout_before_keras_1(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["nb_layers"] = 2
        for number, count in enumerate((2, 0)):
            group = file.create_group(f"layer_{number}")
            group.attrs["nb_params"] = count
            for param in range(count):
                group[f"param_{param}"] = np.arange(3)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == ["layer_0/param_0", "layer_0/param_1"]


# -- any HDF5 ------------------------------------------------------------------------------------------------------


def test_roles_in_plain_hdf5(tmp_path: Path) -> None:
    """What an optimizer of Keras 3 keeps, wherever it stands: of a shape, a slot of something."""
    names = {"optimizer/vars/0": (), "optimizer/vars/1": (2,), "m/optimizer/vars/2": (2,), "w": (2,)}
    names |= {"my_optimizer/vars/3": (2,), "optimizer/vars_/4": (2,), "optimizer/learning_rate": ()}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, shape in names.items():
            file.create_dataset(name, shape, "f4")
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert {name: spec.role for name, spec in source.specs().items()} == {
            "optimizer/vars/0": "optimizer",
            "optimizer/vars/1": "slot",
            "m/optimizer/vars/2": "slot",
            "w": "weight",
            "my_optimizer/vars/3": "weight",
            "optimizer/vars_/4": "weight",
            "optimizer/learning_rate": "weight",
        }


def test_plain_hdf5(tmp_path: Path) -> None:
    import ml_dtypes

    arrays = {
        "a/b": np.arange(6, dtype=">f4").reshape(2, 3), "a/c": np.array(True), "half": np.arange(3, dtype="f2"),
        "c": np.array([1 + 2j]), "vars/2": np.zeros(2, "u1"), "vars/10": np.zeros(0, "i8"),
    }  # fmt: skip
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array
        file["zip"] = h5py.SoftLink("/packed")
        file.create_dataset(
            "packed", data=np.arange(600.0).reshape(20, 30), chunks=(7, 7), compression="gzip", shuffle=True
        )
        file.create_dataset("lzf", data=np.arange(60, dtype=">i4"), compression="lzf", fletcher32=True)
        file.create_dataset("bf", data=np.arange(4).astype(ml_dtypes.bfloat16))
        file.create_dataset("f8", data=np.arange(4).astype(ml_dtypes.float8_e4m3fn))
        file["f8"].attrs["dtype"] = "float8_e4m3fn"
        file.create_dataset("text", data=["é", "b"])
        file.create_dataset("fixed", data=np.array([b"x", b"yz"]))
        file.create_dataset("one", data="word")
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert source.format == "hdf5"
        assert list(source.specs()) == [
            "bf", "c", "f8", "fixed", "half", "lzf", "one", "packed", "text", "a/b", "a/c", "vars/2", "vars/10", "zip",
        ]  # fmt: skip
        for name, array in arrays.items():
            assert same(source.read(name), array.astype(array.dtype.newbyteorder("=")))
        packed = np.arange(600.0).reshape(20, 30)
        assert same(source.read("zip", (slice(3, 18, 4), slice(5, 30))), np.ascontiguousarray(packed[3:18:4, 5:30]))
        assert same(source.read("lzf", (slice(2, 9),)), np.arange(2, 9, dtype="i4"))
        assert same(source.read("bf"), np.arange(4).astype(ml_dtypes.bfloat16))
        assert same(source.read("f8"), np.arange(4).astype(ml_dtypes.float8_e4m3fn))
        assert source.read("text").tolist() == ["é".encode(), b"b"]
        assert source.read("fixed", (slice(1, 2),)).tolist() == [b"yz"]
        assert source.read("one")[()] == b"word"
        assert source.specs()["text"].dtype == object


@settings(max_examples=40, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    array, index = case
    path = tmp_path_factory.mktemp("h5") / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = array
        file["big"] = array.astype(array.dtype.newbyteorder(">"))
        if array.ndim and array.size:
            file.create_dataset("packed", data=array, chunks=True, compression="gzip")
    with keras_h5.open_source(str(path)) as source:
        for name in source.specs():
            assert same(source.read(name, index), np.array(array[index], order="C"))


# -- what is wrong -------------------------------------------------------------------------------------------------


def broken(tmp_path: Path, change: Any) -> str:
    keras_1(tmp_path / "a.h5", {"d": ["d/kernel:0", "d/bias:0"]})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        change(file)
    with pytest.raises(FormatError) as caught:
        keras_h5.open_source(str(tmp_path / "a.h5"))
    return str(caught.value).removeprefix(f"{tmp_path / 'a.h5'}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["d"].attrs.pop("weight_names"), "the group 'd' has no attribute 'weight_names'"),
        (lambda f: f["d"].attrs.create("weight_names", 3), "the attribute 'weight_names' of '/d' is no list of names"),
        (
            lambda f: f["d"].attrs.create("weight_names", [1.5]),
            "the attribute 'weight_names' of '/d' is no list of names",
        ),
        (lambda f: f.attrs.create("layer_names", [b"d", b"e"]), "the layer 'e' that 'layer_names' lists has no group"),
        (lambda f: f.attrs.create("layer_names", [b"d", b"d"]), "the attribute 'layer_names' has 'd' twice"),
        (lambda f: f["d"].attrs.create("weight_names", [b"d/x"]), "the weight 'd/x' that 'd' lists has no dataset"),
        (lambda f: f["d"].attrs.create("weight_names", [b"d"]), "the weight 'd' that 'd' lists has no dataset"),
        (
            lambda f: f["d"].attrs.create("weight_names", [b"d/bias:0"] * 2),
            "the attribute 'weight_names' of 'd' has 'd/bias:0' twice",
        ),
        (lambda f: f.attrs.create("model_config", b"{"), "the attribute 'model_config' is no JSON"),
        (lambda f: f.attrs.create("model_config", b"[]"), "the attribute 'model_config' is no JSON object"),
        (
            lambda f: f.create_group("optimizer_weights"),
            "the group 'optimizer_weights' has no attribute 'weight_names'",
        ),
        (
            lambda f: f.create_group("optimizer_weights").attrs.create("weight_names", [b"x"]),
            "the weight 'x' that 'optimizer_weights' lists has no dataset",
        ),
        (
            lambda f: (
                f.create_group("optimizer_weights").attrs.create("weight_names", [b"x", b"x"]),
                f["optimizer_weights"].create_dataset("x", data=np.zeros(2)),
            ),
            "tensor 'optimizer_weights/x': two tensors come to this name",
        ),
        (
            lambda f: (f.attrs.pop("layer_names"), f.attrs.create("nb_layers", 1.5)),
            "the attribute 'nb_layers' is no number of groups",
        ),
        (
            lambda f: (f.attrs.pop("layer_names"), f.attrs.create("nb_layers", -1)),
            "the attribute 'nb_layers' is no number of groups",
        ),
        (
            lambda f: (f["d"].attrs.pop("weight_names"), f["d"].attrs.create("nb_params", 1 << 40)),
            "the attribute 'nb_params' is no number of groups",
        ),
    ],
)
def test_missing_and_corrupt_attributes(tmp_path: Path, change: Any, message: str) -> None:
    assert broken(tmp_path, change) == message


def test_hostile_config_is_data(tmp_path: Path) -> None:
    deep: Any = {"class_name": "LSTM", "config": {"name": "d", "activation": {"module": "os", "config": "system"}}}
    for _ in range(200):
        deep = {"class_name": "TimeDistributed", "config": {"name": "d", "layer": deep}}
    for config in (deep, {"class_name": "Lambda", "config": {"name": "d", "function": ["evil"]}}):
        keras_1(
            tmp_path / "a.h5", {"d": ["d/kernel:0"]}, config={"class_name": "Sequential", "config": [config, 3, {}]}
        )
        with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
            assert set(source.facts(["d/kernel"])) <= {"class", "keras_version"}


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    keras_1(tmp_path / "a.h5", {"d": ["d/kernel:0"]})
    whole = (tmp_path / "a.h5").read_bytes()
    for size in [*range(200), *range(200, len(whole), 37), len(whole) - 1]:
        (tmp_path / "cut.h5").write_bytes(whole[:size])
        with pytest.raises(FormatError) as caught:
            keras_h5.open_source(str(tmp_path / "cut.h5"))
        if size >= 200:
            told = f"truncated: the file should have {len(whole)} bytes, it has {size}"
            assert str(caught.value) == f"{tmp_path / 'cut.h5'} at byte {size}: {told}"


def test_not_there_and_closed(tmp_path: Path) -> None:
    keras_1(tmp_path / "a.h5", {"d": ["d/kernel:0"]})
    source = keras_h5.open_source(str(tmp_path / "a.h5"))
    with pytest.raises(TensorNotFound, match="closest: 'd/kernel'"):
        source.read("d/kernal")
    source.close()
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("d/kernel")
    with pytest.raises(FormatError, match="cannot be opened: No such file"):
        keras_h5.open_source(str(tmp_path / "b.h5"))
    assert not keras_h5.sniff(str(tmp_path / "b.h5"))
    (tmp_path / "b.h5").write_bytes(b"nothing of the kind")
    with pytest.raises(FormatError, match="at byte 0: is no HDF5 file: its signature is missing"):
        keras_h5.open_source(str(tmp_path / "b.h5"))


def test_budget(tmp_path: Path) -> None:
    keras_1(tmp_path / "a.h5", {"d": ["d/kernel:0", "d/bias:0"]})
    for budget in (Budget(tensors=2), Budget(depth=0), Budget(rank=1), Budget(tensor_bytes=8), Budget(header_bytes=9)):
        with pytest.raises(FormatError, match="asked for, at most"):
            keras_h5.open_source(str(tmp_path / "a.h5"), budget=budget)


def test_two_names_that_become_one(tmp_path: Path) -> None:
    """Where ``:0`` falls away, and the path in the file is another weight's."""
    keras_1(tmp_path / "a.h5", {"d": ["k", "k:0"], "d/d": ["k"]})
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        names = list(source.specs())
    assert names == ["d/k", "d/k:0", "d/d/k"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = [b"a", b"b"]
        for layer, weight in (("a", "/b/x"), ("b", "b/x")):
            file.create_group(layer).attrs["weight_names"] = [weight.encode()]
            file[f"{layer}/{weight.strip('/')}"] = np.zeros(2)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert list(source.specs()) == ["a/b/x", "b/b/x"]


def test_after_it_was_closed(tmp_path: Path) -> None:
    keras_1(tmp_path / "a.h5", {"d": ["d/kernel:0"]})
    source = keras_h5.open_source(str(tmp_path / "a.h5"))
    assert source.file.filename == str(tmp_path / "a.h5")
    assert source.checksum("d/kernel") == source.checksum("nowhere") == ""
    with pytest.raises(TensorNotFound) as missing:
        source.extent("d/kernal")
    assert str(missing.value) == f"{tmp_path / 'a.h5'}: no tensor 'd/kernal'; closest: 'd/kernel'"
    source.close()
    for act in (lambda: source.file, source.objects, lambda: source.read("d/kernel")):
        with pytest.raises(Error) as caught:
            act()
        assert str(caught.value) == f"{tmp_path / 'a.h5'}: is closed"


def test_objects_and_their_variables(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/dense/vars/0"] = np.zeros(2)
        file["layers/dense/vars"].attrs["name"] = "mine"
        file["layers/lstm/vars/10"] = file["layers/lstm/vars/2"] = np.zeros(3)
        file["elsewhere"] = np.zeros(1)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        groups, titles, stored = source.objects()
    assert set(groups) == {"layers", "layers/dense", "layers/dense/vars", "layers/lstm", "layers/lstm/vars"}
    assert titles == {"layers/dense": "mine"}
    assert stored == {"layers/dense": ["0"], "layers/lstm": ["2", "10"]}


def test_strings_that_repeat_beyond_the_size_of_the_file(tmp_path: Path) -> None:
    """References in a chunk that is compressed, all of them to one string."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        texts = ["x" * 1000, *("" for _ in range(999))]
        chunk = file.create_dataset("t", data=texts, dtype=h5py.string_dtype(), chunks=(1000,), compression="gzip").id
        _, packed = chunk.read_direct_chunk((0,))
        chunk.write_direct_chunk((0,), zlib.compress(zlib.decompress(packed)[:16] * 1000))
    with keras_h5.open_source(str(path)) as source:
        assert source.read("t", (slice(0, 2),)).tolist() == [b"x" * 1000] * 2
        with pytest.raises(FormatError) as caught:
            source.read("t")
        assert str(caught.value) == f"{path}: tensor 't': its strings are longer than the file"


@pytest.mark.parametrize("fixed", [False, True])
def test_text_of_every_shape(tmp_path: Path, fixed: bool) -> None:
    kind = "S9" if fixed else h5py.string_dtype()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("many", data=[[b"a", b""], ["é".encode(), b"b"], [b"c", b"d"]], dtype=kind)
        file.create_dataset("none", (0, 2), kind)
        file.create_dataset("one", data="text" if not fixed else np.bytes_(b"text"), dtype=kind)
    with keras_h5.open_source(str(tmp_path / "a.h5")) as source:
        assert source.read("many").tolist() == [[b"a", b""], ["é".encode(), b"b"], [b"c", b"d"]]
        assert source.read("many", (slice(0, 3, 2), slice(1, 2))).tolist() == [[b""], [b"d"]]
        assert source.read("many", (slice(1, 1),)).shape == (0, 2)
        assert source.read("none").shape == (0, 2)
        assert source.read("one").tolist() == b"text"
        assert source.extent("many") is None
