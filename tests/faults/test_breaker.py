"""Writers that are killed at every call that changes the file system, or failed by it: the destination is the old model
or the complete new one, and nothing is left over after the next run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.breaker import SHAPES
from tests.support import need

ROOT = Path(__file__).resolve().parents[2]
#: Runs a command that may mount what only it sees.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
#: Output, the TARGET file that it needs, and options.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "npz": ("m.npz", "", {}),
    "safetensors": ("m.safetensors", "", {}),
    "safetensors shards": ("m.safetensors.index.json", "", {"shard_size": 4000}),
    "checkpoint": ("m.ckpt", "", {}),
    "checkpoint shards": ("m.ckpt", "", {"shard_size": 4000}),
    "torch": ("m.pt", "", {}),
    "h5": ("m.h5", "", {}),
    "keras": ("m.keras", "like.keras", {}),
    "msgpack": ("m.msgpack", "", {}),
    "onnx": ("m.onnx", "like.onnx", {}),
    "onnx beside": ("m.onnx", "beside.onnx", {}),
    "saved model": ("m", "like", {"format": "tf-saved-model"}),
    "npz resumed": ("m.npz", "", {"resume": True, "threads": 1}),
    "safetensors resumed": ("m.safetensors", "", {"resume": True, "threads": 1}),
    "safetensors shards resumed": ("m.safetensors.index.json", "", {"resume": True, "threads": 1, "shard_size": 4000}),
    "checkpoint resumed": ("m.ckpt", "", {"resume": True, "threads": 1}),
    "checkpoint shards resumed": ("m.ckpt", "", {"resume": True, "threads": 1, "shard_size": 4000}),
    "torch resumed": ("m.pt", "", {"resume": True, "threads": 1}),
    "safetensors resumed by threads": ("m.safetensors", "", {"resume": True, "threads": 3}),
}


def broken(folder: Path, case: str, mode: str) -> dict[str, Any]:
    out, like, more = CASES[case]
    if like:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what frameworks warn of while they save is not ours to mend
            make(folder, like)
    mounts = UNSHARE if mode == "full" else ()
    ran = subprocess.run(
        [*mounts, sys.executable, "-m", "tests.faults.breaker", str(folder), out, like, mode, json.dumps(more)],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def make(folder: Path, name: str) -> None:
    """A target file of those variables."""
    zeros = {tensor: np.zeros(shape, "float32") for tensor, shape in SHAPES.items()}
    if name.endswith(".onnx"):
        onnx = need("onnx")
        initializers = [onnx.numpy_helper.from_array(value, tensor) for tensor, value in zeros.items()]
        graph = onnx.helper.make_graph([], "g", [], [], initializers)
        beside = {"save_as_external_data": True, "location": "beside.onnx.data", "size_threshold": 0}
        onnx.save_model(onnx.helper.make_model(graph), folder / name, **(beside if name == "beside.onnx" else {}))
        return
    if name.startswith("like."):
        keras = need("keras")
        inputs = keras.Input((40,))
        hidden = keras.layers.Dense(30, name="a")(inputs)
        keras.Model(inputs, keras.layers.Dense(5, use_bias=False, name="b")(hidden), name="m").save(folder / name)
        return
    tf = need("tensorflow")
    module = tf.Module()
    module.variables_ = [tf.Variable(value, name=tensor) for tensor, value in zeros.items()]
    tf.saved_model.save(module, str(folder / name))


@pytest.mark.parametrize("case", [case for case in CASES if "threads" not in case])
@pytest.mark.parametrize("mode", ["kill", "fail"])
def test_every_call(tmp_path: Path, case: str, mode: str) -> None:
    found = broken(tmp_path, case, mode)
    assert found["wrong"] == []
    assert found["calls"] >= 3, "the calls are not seen"


@pytest.mark.parametrize("case", ["h5", "keras", "npz", "safetensors", "safetensors resumed by threads"])
def test_at_random(tmp_path: Path, case: str) -> None:
    """HDF5 writes by itself, and threads in another order each time: there kills come at some time."""
    assert broken(tmp_path, case, "25")["wrong"] == []


def may_mount(folder: Path) -> bool:
    """Whether this system lets us mount a file system that only we see."""
    try:
        return not subprocess.run(
            [*UNSHARE, "mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("case", [case for case in CASES if "resumed" not in case])
def test_a_disk_that_is_too_small(tmp_path: Path, case: str) -> None:
    """Page by page larger, until the new model fits: the old one stays, nothing is left over, and the error says so."""
    if not may_mount(tmp_path):
        pytest.skip("this system does not let a user mount a tmpfs of his own (unshare --user --mount)")
    found = broken(tmp_path, case, "full")
    assert found["wrong"] == []
    assert found["calls"] >= 2, "the disk was never full"
