"""Every TensorFlow checkpoint among the fixtures, bit for bit, and without a framework."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import Fixture, fixture, fixtures
from weightport.formats import tf_bundle, tf_paths, tf_v1
from weightport.tensors import Source

V2 = ("checkpoint_v2", "checkpoint_object_based", "checkpoint_state")
V1 = ("checkpoint_v1", "checkpoint_v1_sharded")
CASES = [(f, kind) for f in fixtures() for kind in f.files if kind in V1 + V2]


def open_checkpoint(path: str) -> Source:
    kind = tf_paths.resolve(path).kind
    return (tf_v1 if kind.startswith("v1") else tf_bundle).open_source(path)


def unhexed(values: Any) -> Any:
    return [unhexed(v) for v in values] if isinstance(values, list) else bytes.fromhex(values.removeprefix("hex:"))


@pytest.mark.parametrize(("model", "kind"), CASES, ids=lambda v: str(v))
def test_bit_for_bit(model: Fixture, kind: str) -> None:
    source = open_checkpoint(model.path(kind))
    assert tf_bundle.sniff(model.path(kind)) == (kind in V2)
    assert tf_v1.sniff(model.path(kind)) == (kind in V1)
    expected = model.variables
    strings = model.doc.get("string_values", {})
    specs = source.specs()
    # The fixture's variables.npz has what was saved by name; Keras' file has its optimizer's state too.
    extra = {name for name in specs if specs[name].role in ("slot", "optimizer")}
    assert set(specs) - extra == (set(expected) | set(strings)) - extra
    assert len(expected) > 0
    for name, want in expected.items():
        got = source.read(name)
        assert got.dtype == specs[name].dtype
        assert got.shape == specs[name].shape == want.shape
        if got.dtype.name == "bfloat16":
            got = got.astype(np.float32)
        assert got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()
        for axis, dim in enumerate(want.shape[:3]):
            index = (slice(None),) * axis + (slice(dim // 3, None, 2),)
            part = source.read(name, index).astype(want.dtype)
            assert part.tobytes() == want[index].tobytes()
    for name, values in strings.items():
        assert specs[name].dtype == object
        assert source.read(name).tolist() == unhexed(values)
    assert source.facts([]) == {}
    source.close()


def test_roles_and_slots() -> None:
    source = tf_bundle.open_source(fixture("d_checkpoints/train_state_adam_ema").path("checkpoint_v2"))
    roles: dict[str, set[str]] = {}
    for name, spec in source.specs().items():
        roles.setdefault(spec.role, set()).add(name)
    assert roles["counter"] == {"global_step"}
    assert roles["optimizer"] == {"beta1_power", "beta2_power"}
    assert all(n.endswith(("/Adam", "/Adam_1")) for n in roles["slot"])
    assert {n for n in roles["weight"] if "ExponentialMovingAverage" in n}
    assert not any("Adam" in n for n in roles["weight"])

    source = tf_bundle.open_source(fixture("c_keras/masked_text_classifier").path("checkpoint_object_based"))
    specs = source.specs()
    assert specs["classifier/kernel/.OPTIMIZER_SLOT/optimizer/m"].role == "slot"
    assert specs["classifier/kernel/.OPTIMIZER_SLOT/optimizer/m"].shape == specs["classifier/kernel"].shape
    assert specs["optimizer/iter"].role == "optimizer"
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" not in specs
    raw = source.raw_names()
    assert set(raw.values()) == set(specs)
    for key, name in raw.items():
        assert source.read(key).tobytes() == source.read(name).tobytes()


def test_saved_model_variables() -> None:
    model = fixture("c_keras/v2_lstm")
    source = tf_bundle.open_source(str(Path(model.path("saved_model")) / "variables" / "variables"))
    assert source.raw_names()["variables/1/.ATTRIBUTES/VARIABLE_VALUE"] == "lstm/recurrent_kernel"
    for name, want in model.variables.items():
        assert source.read(name).tobytes() == want.tobytes()


def test_no_framework_is_imported() -> None:
    paths = [f.path(kind) for f, kind in CASES]
    code = f"""
import sys
for name in ("tensorflow", "keras", "tf_keras", "torch", "jax", "onnx"):
    sys.modules[name] = None  # importing it is an ImportError
from weightport.formats import tf_bundle, tf_paths, tf_v1
for path in {paths!r}:
    v1 = tf_paths.resolve(path).kind.startswith("v1")
    source = (tf_v1 if v1 else tf_bundle).open_source(path)
    for name in source.specs():
        source.read(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["checkpoint_v1", "checkpoint_v2"])
def test_the_graph_beside_a_checkpoint_tells_its_cells(kind: str, tmp_path: Path) -> None:
    model = fixture("b_cells/basic_lstm_fb1")
    names = ["rnn/basic_lstm_cell/kernel", "rnn/basic_lstm_cell/bias"]
    for file in model.folder.iterdir():
        if file.name.startswith(Path(model.path(kind)).name) and not file.name.endswith(".meta"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    prefix = tmp_path / Path(model.path(kind)).name
    meta = Path(model.path("meta_graph")).read_bytes()
    beside = Path(f"{prefix}.meta")

    def facts() -> Any:
        with contextlib.closing(open_checkpoint(str(prefix))) as source:
            return dict(source.facts(names))

    assert facts() == {}
    beside.write_bytes(meta)
    assert facts()["forget_bias"] == 1.0
    assert facts()["activation"] == "tanh"
    beside.write_bytes(meta[: len(meta) // 2])
    assert facts() == {}
    beside.write_bytes(b"")
    assert facts() == {}
