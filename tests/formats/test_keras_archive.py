from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats.keras_zoo import ZOO, custom_block, custom_model, functional, randomized
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _zipmember, detect, files, keras_archive
from weightport.tensors import Budget

# What Keras does with numpy's arrays, as it saves them, is its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def keras() -> Any:
    """Keras, whose names begin to count anew."""
    module = need("keras")
    module.backend.clear_session()
    return module


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras = need("keras")
    keras.backend.clear_session()
    path = tmp_path_factory.mktemp("archive") / "m.keras"
    randomized(ZOO["cells_in_a_row"](keras)).save(path)
    return path


def live(model: Any) -> dict[str, np.ndarray]:
    """Name -> value, as the live target names them."""
    from weightport.targets.keras3 import Keras3Target

    return {name: np.asarray(owned.variable) for name, owned in Keras3Target(model)._owned.items()}


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(path: Path, content: dict[str, bytes] | list[tuple[str, bytes]], **kwargs: Any) -> Path:
    pairs = list(content.items()) if isinstance(content, dict) else content
    with zipfile.ZipFile(path, "w", **kwargs) as file:
        for name, data in pairs:
            file.writestr(name, data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        keras_archive.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ZOO.values(), ids=list(ZOO))
def test_names_and_values_are_those_of_the_live_model(keras: Any, make: Callable[[Any], Any], tmp_path: Path) -> None:
    model = randomized(make(keras))
    model.save(tmp_path / "m.keras")
    expected = live(model)
    with wp.open(tmp_path / "m.keras") as source:
        assert source.format == "keras"
        assert set(source.specs()) == set(expected)
        for name, value in expected.items():
            assert source.read(name).dtype == value.dtype
            assert np.array_equal(source.read(name), value), name
            assert np.array_equal(source.read(name, (slice(0, 1),) * value.ndim), value[(slice(0, 1),) * value.ndim])


KERAS_2 = ("cells_in_a_row", "sequential", "sequential_built_later", "nested", "bidirectional", "cells", "convolutions")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [ZOO[name] for name in KERAS_2], ids=KERAS_2)
def test_archives_of_keras_2(make: Callable[[Any], Any], tmp_path: Path) -> None:
    """Its paths, what its functions are, and an archive of other values that it loads."""
    from weightport.targets.tf_keras_model import TfKerasTarget

    tf_keras = need("tf_keras")
    tf_keras.backend.clear_session()
    model = make(tf_keras)
    rng = np.random.default_rng(3)
    model.set_weights([rng.random(w.shape).astype(w.dtype) for w in model.get_weights()])
    model.save(tmp_path / "m.keras")
    expected = {name: owned.variable.numpy() for name, owned in TfKerasTarget(model)._owned.items()}
    with wp.open(tmp_path / "m.keras") as source:
        assert set(source.specs()) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(source.read(name), value)
        if make.__name__ == "convolutions":
            assert source.facts(source.cells()[0].names)["recurrent_activation"] == "hard_sigmoid"
        rules = [{"from": "{x**}", "to": "{x**}", "scale": -1.0}]
        wp.transfer(source, str(tmp_path / "m.keras"), {"weightport": 1, "rules": rules}, out=tmp_path / "o.keras")
    loaded = tf_keras.models.load_model(tmp_path / "o.keras")
    assert all(np.array_equal(a, -b) for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True))


def test_order_is_the_models(archive: Path) -> None:
    with wp.open(archive) as source:
        scopes = list(dict.fromkeys(name.split("/")[0] for name in source.specs()))
        assert scopes == ["encoder", "gru", "simple_rnn", "dense", "head"]
        assert [name for name in source.specs() if name.startswith("encoder")] == [
            f"encoder/lstm_cell/{leaf}" for leaf in ("kernel", "recurrent_kernel", "bias")
        ]


def test_a_custom_layers_own_parts(keras: Any, tmp_path: Path) -> None:
    """What Keras' own classes are is known by their default names; what nobody says keeps its place in the file."""
    model = randomized(functional(keras, (None, 3), custom_block(keras)(4), keras.layers.Dense(1)))
    model.save(tmp_path / "m.keras")
    expected = live(model)
    with wp.open(tmp_path / "m.keras") as source:
        unknown = {"layers/block/vars/0": "block/scale"}
        unknown |= {f"layers/block/project/vars/{n}": f"block/project/{k}" for n, k in enumerate(("kernel", "bias"))}
        assert set(source.specs()) == set(expected) - set(unknown.values()) | set(unknown)
        for name in source.specs():
            assert np.array_equal(source.read(name), expected[unknown.get(name, name)])
        (cell,) = source.cells()
        assert (cell.scope, cell.layout.name) == ("block/lstm", "lstm.keras")
        assert source.facts(cell.names) == {"keras_version": keras.__version__}  # the configuration does not have it


def test_a_subclassed_model(keras: Any, tmp_path: Path) -> None:
    model = randomized(custom_model(keras))
    model.save(tmp_path / "m.keras")
    expected = live(model)
    with wp.open(tmp_path / "m.keras") as source:
        assert source.root == "tagger"
        assert set(source.specs()) == set(expected)
        for name, value in expected.items():
            assert np.array_equal(source.read(name), value)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`:UserWarning")
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantized_layers(keras: Any, tmp_path: Path, mode: str) -> None:
    at = keras.layers
    model = functional(keras, (6,), at.Dense(4), at.Dense(4, use_bias=False), at.EinsumDense("ab,bc->ac", 3))
    model.quantize(mode)
    model.save(tmp_path / "m.keras")
    expected = live(model)
    with wp.open(tmp_path / "m.keras") as source:
        assert set(source.specs()) == set(expected)
        for name, value in expected.items():
            assert source.specs()[name].dtype == value.dtype
            assert np.array_equal(source.read(name), value)


def test_names_in_the_file_are_read_too(archive: Path) -> None:
    with keras_archive.open_source(str(archive)) as source:
        raw = source.raw_names()
        assert raw["layers/lstm/cell/vars/1"] == "encoder/lstm_cell/recurrent_kernel"
        assert set(raw.values()) == set(source.specs())
        for stored, name in raw.items():
            assert np.array_equal(source.read(stored), source.read(name))
        with pytest.raises(TensorNotFound, match="closest: 'encoder/lstm_cell/kernel'"):
            source.read("encoder/lstm_cell/kernal")


def test_what_is_recorded_of_cells(keras: Any, archive: Path, tmp_path: Path) -> None:
    with wp.open(archive) as source:
        found = {cell.scope: source.facts(cell.names) for cell in source.cells()}
    version = {"keras_version": keras.__version__}
    lstm = {"class": "LSTM", "units": 4, "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True}
    gru = {"class": "GRU", "units": 5, "activation": "relu", "recurrent_activation": "sigmoid", "use_bias": True}
    rnn = {"class": "SimpleRNN", "units": 2, "activation": "tanh", "use_bias": False}
    assert found == {
        "encoder": {**lstm, "go_backwards": False, **version},
        "gru": {**gru, "reset_after": False, "go_backwards": False, **version},
        "simple_rnn": {**rnn, "go_backwards": False, **version},
    }
    ZOO["bidirectional"](keras).save(tmp_path / "b.keras")
    keras.backend.clear_session()
    ZOO["cells"](keras).save(tmp_path / "c.keras")
    with wp.open(tmp_path / "b.keras") as source:
        one = source.facts(["bidirectional/backward_lstm/lstm_cell/kernel"])
        assert (one["class"], one["direction"], one["go_backwards"]) == ("LSTM", "backward", False)
        own = source.facts(["both/other/gru_cell/kernel"])
        assert (own["recurrent_activation"], own["direction"], own["go_backwards"]) == ("tanh", "backward", False)
        other = source.facts(["both/forward_mine/gru_cell/kernel"])
        assert (other["recurrent_activation"], other["direction"]) == ("sigmoid", "forward")
        assert "activation" not in source.facts([*source.cells()[0].names, "no/such/tensor"])
    with wp.open(tmp_path / "c.keras") as source:
        assert source.facts(["rnn/stacked_rnn_cells/gru_cell/kernel"])["go_backwards"] is True
        assert source.facts(["rnn_1/mine/kernel"])["class"] == "SimpleRNN"


def test_optimizer_state_is_told_apart(keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)
    model.save(tmp_path / "m.keras")
    with wp.open(tmp_path / "m.keras") as source:
        roles = {name: spec.role for name, spec in source.specs().items()}
    assert roles == {
        "sequential/dense/kernel": "weight",
        "sequential/dense/bias": "weight",
        **{f"optimizer/vars/{n}": "optimizer" for n in (0, 1)},
        **{f"optimizer/vars/{n}": "slot" for n in (2, 3, 4, 5)},
    }


def test_a_mapping_may_leave_the_models_name_out(keras: Any, tmp_path: Path) -> None:
    model = randomized(ZOO["sequential"](keras))
    model.save(tmp_path / "m.keras")
    cell = {"layout": "lstm.keras", "scope": "lstm"}
    for below in ("", "sequential/"):
        from_cell = {**cell, "scope": f"{below}lstm"}
        rules: list[Any] = [{"from": from_cell, "to": {"layout": "lstm.torch", "scope": "rnn"}}]
        rules += [{"from": f"{below}dense/kernel", "to": "kernel"}]
        mapping = {"weightport": 1, "rules": rules, "ignore": [f"{below}dense/b*"]}
        result = wp.transfer(tmp_path / "m.keras", None, mapping, out=tmp_path / "o.npz")
        assert set(result.plan.target) == {"kernel", *(f"rnn.{k}" for k in ("weight_ih_l0", "weight_hh_l0"))} | {
            name for name in result.plan.target if name.startswith("rnn.bias")
        }
        assert wp.verify(tmp_path / "m.keras", tmp_path / "o.npz", mapping).equal
    mapping = {"weightport": 1, "rules": [{"from": "dense/{x}", "to": "{x}"}], "ignore": ["lstm/**"]}
    assert set(wp.plan(tmp_path / "m.keras", None, mapping).target) == {"kernel", "bias"}


def test_a_mapping_may_use_names_in_the_file(archive: Path) -> None:
    rules = [{"from": "layers/dense_1/vars/1", "to": "bias"}]
    mapping = {"weightport": 1, "rules": rules, "ignore": ["layers/dense/vars/0", "encoder/**", "gru/**", "*rnn/**"]}
    plan = wp.plan(archive, None, mapping)
    assert plan.source["head/bias"] == "moved"
    assert plan.source["dense/kernel"] == "ignored"


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_folder_with_the_same_files(archive: Path, tmp_path: Path) -> None:
    content = members(archive)
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with wp.open(tmp_path) as source, wp.open(archive) as packed:
        assert source.format == "keras"
        assert source.specs() == packed.specs()
        assert all(np.array_equal(source.read(name), packed.read(name)) for name in source.specs())
    assert files.files_of(str(tmp_path)) == sorted(str(tmp_path / name) for name in content)
    assert files.files_of(str(archive)) == [str(archive)]
    (tmp_path / "config.json").write_text("[]")
    assert refused(tmp_path) == ": config.json is no JSON object"
    (tmp_path / "model.weights.h5").unlink()
    (tmp_path / "config.json").write_text("{}")
    assert refused(tmp_path) == ": has no model.weights.h5"


def test_a_folder_with_weights_in_several_files(keras: Any, tmp_path: Path) -> None:
    """As KerasHub saves its large presets."""
    model = randomized(ZOO["nested"](keras))
    model.save(tmp_path / "m.keras")
    folder = tmp_path / "preset"
    folder.mkdir()
    (folder / "config.json").write_bytes(members(tmp_path / "m.keras")["config.json"])
    model.save_weights(folder / "model.weights.json", max_shard_size=600 / 1024**3)
    with wp.open(folder) as source, wp.open(tmp_path / "m.keras") as whole:
        assert source.format == "keras"
        assert dict(source.specs()) == dict(whole.specs())
        assert all(np.array_equal(source.read(name), whole.read(name)) for name in whole.specs())
        assert [cell.scope for cell in source.cells()] == [cell.scope for cell in whole.cells()]
    names = sorted(str(path) for path in folder.iterdir())
    assert len(names) > 3
    assert files.files_of(str(folder)) == names
    rules = [{"from": "{x**}", "to": "{x**}"}]
    with pytest.raises(Error, match=r"has its weights in several files.*; give a \.keras archive"):
        wp.transfer(tmp_path / "m.keras", folder, {"weightport": 1, "rules": rules}, out=tmp_path / "o.keras")


def test_compressed_by_somebody(archive: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "m.keras", members(archive), compression=zipfile.ZIP_DEFLATED)
    with wp.open(path) as source, wp.open(archive) as plain:
        assert source.specs() == plain.specs()
        assert all(np.array_equal(source.read(name), plain.read(name)) for name in source.specs())
    with pytest.raises(BudgetExceeded, match="header bytes"):
        wp.open(path, budget=Budget(header_bytes=10_000))


@pytest.mark.parametrize("make", ["cells_in_a_row", "nested", "bidirectional", "cells", "attention"])
def test_older_files_without_names_in_the_weights(keras: Any, tmp_path: Path, make: str) -> None:
    """Before Keras 3.6 only the configuration has the layers' names, and private attributes hold some parts."""
    h5py = need("h5py")
    ZOO[make](keras).save(tmp_path / "new.keras")
    content = members(tmp_path / "new.keras")
    (tmp_path / "w.h5").write_bytes(content["model.weights.h5"])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        file.visititems(lambda _, item: item.attrs.pop("name", None) and None)
        for attention in [name for name in file["layers"] if "multi_head" in name or "grouped" in name]:
            group = file["layers"][attention]
            for part in [name for name in group if name.endswith("_dense")]:
                group.move(part, f"_{part}")
    path = zipped(tmp_path / "old.keras", {**content, "model.weights.h5": (tmp_path / "w.h5").read_bytes()})
    with wp.open(path) as source, wp.open(tmp_path / "new.keras") as newer:
        assert source.specs() == newer.specs()
        for cell, other in zip(source.cells(), newer.cells(), strict=True):
            assert source.facts(cell.names) == newer.facts(other.names)


def test_configuration_of_another_model(archive: Path, tmp_path: Path) -> None:
    """Weights that the configuration does not speak of keep their places in the file; nothing is lost."""
    for config in (b"{}", b'{"class_name": 7, "config": [1]}', b'{"config": {"layers": {"a": 1}, "name": ["x"]}}'):
        path = zipped(tmp_path / "m.keras", {**members(archive), "config.json": config})
        with keras_archive.open_source(str(path)) as source, keras_archive.open_source(str(archive)) as whole:
            assert set(source.raw_names()) == set(whole.raw_names())
            for raw in source.raw_names():
                assert np.array_equal(source.read(raw), whole.read(raw))


def test_metadata_may_be_missing(archive: Path, tmp_path: Path) -> None:
    content = members(archive)
    del content["metadata.json"]
    with wp.open(zipped(tmp_path / "m.keras", content)) as source, wp.open(archive) as whole:
        assert source.specs() == whole.specs()


def test_nothing_in_the_configuration_is_run(archive: Path, tmp_path: Path) -> None:
    config = json.loads(members(archive)["config.json"])
    config["config"]["layers"].insert(1, {"class_name": "Lambda", "config": {"function": {"code": "4wEAAAA"}}})
    config["config"]["layers"].insert(1, {"module": "os", "class_name": "system", "config": "touch x"})
    path = zipped(tmp_path / "m.keras", {**members(archive), "config.json": json.dumps(config).encode()})
    with wp.open(path) as source, wp.open(archive) as plain:
        assert source.specs() == plain.specs()


def test_what_is_no_archive_of_keras(archive: Path, tmp_path: Path) -> None:
    content = members(archive)
    path = tmp_path / "m.keras"
    weights = content.pop("model.weights.h5")
    assert refused(zipped(path, content)) == ": has no model.weights.h5"
    assert refused(zipped(path, {**content, "model.weights.npz": b""})) == (
        ": its weights are pickled (model.weights.npz): never loaded here; "
        "load it where you trust it and save it again, in the format that Keras has by default"
    )
    with pytest.raises(FormatError, match="its weights are pickled"):
        wp.open(path)
    assert refused(zipped(path, {"model.weights.h5": weights})) == ": is no .keras archive: it has no config.json"
    assert refused(zipped(path, {**content, "config.json": b"{", "model.weights.h5": weights})) == (
        ": config.json is no JSON"
    )
    assert refused(zipped(path, {**content, "model.weights.h5": b"no HDF5"})) == (
        " at byte 0: is no HDF5 file: its signature is missing"
    )
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(path, [*content.items(), ("model.weights.h5", weights), ("model.weights.h5", weights)])
    assert ": two members are called 'model.weights.h5'" in refused(path)
    assert not keras_archive.sniff(str(tmp_path / "none"))


def test_bombs(archive: Path, tmp_path: Path) -> None:
    content = members(archive)
    path = zipped(tmp_path / "m.keras", {**content, "config.json": b" " * (1 << 22)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BudgetExceeded, match="header bytes: 4,194,304 asked for, at most 1,048,576 allowed"):
        wp.open(path, budget=Budget(header_bytes=1 << 20))
    nested = b'{"config":' * 100_000 + b"1" + b"}" * 100_000
    assert refused(zipped(path, {**content, "config.json": nested})) == ": config.json is no JSON"


def test_weights_that_lead_out_of_the_archive(archive: Path, tmp_path: Path) -> None:
    h5py = need("h5py")
    (tmp_path / "w.h5").write_bytes(members(archive)["model.weights.h5"])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        file["layers/x"] = h5py.ExternalLink("/etc/passwd", "/")
    path = zipped(tmp_path / "m.keras", {**members(archive), "model.weights.h5": (tmp_path / "w.h5").read_bytes()})
    assert refused(path) == ": 'layers/x' is an external link, which may lead out of the file: refused"


def test_left_open_at_the_end_of_the_process(archive: Path) -> None:
    """HDF5 closes its files after Python is gone; what lies in an archive has to be closed before."""
    import subprocess
    import sys

    code = f"import weightport as wp; s = wp.open({str(archive)!r}); s.read('head/bias')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_reading_imports_no_framework(archive: Path) -> None:
    import subprocess
    import sys

    code = (
        f"import sys, weightport as wp\nwith wp.open({str(archive)!r}) as s: s.read('head/bias'); s.cells()\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_read_by_several_threads(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive's checksum is checked once, whoever reads first."""
    checked = []
    verify = _zipmember.Stored.verify
    monkeypatch.setattr(_zipmember.Stored, "verify", lambda self, name: (checked.append(name), verify(self, name))[1])
    with wp.open(archive) as source, wp.open(archive) as alone, ThreadPoolExecutor(8) as pool:
        names = list(source.specs()) * 20
        checked.clear()
        for name, value in zip(names, pool.map(source.read, names), strict=True):
            assert np.array_equal(value, alone.read(name))
    assert checked == ["model.weights.h5"] * 2


def test_closed(archive: Path) -> None:
    source = keras_archive.open_source(str(archive))
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("head/bias")


def test_format_is_told_by_content(archive: Path, tmp_path: Path) -> None:
    os.symlink(archive, tmp_path / "m.zip")
    assert detect.detect(str(tmp_path / "m.zip")) == "keras"
    with wp.open(f"keras:{archive}") as source:
        assert source.format == "keras"
