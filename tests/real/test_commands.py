"""The commands on the real models, in a process where no framework can be imported: files in, files out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.real import models

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
NEW_MODELS: dict[str, Callable[[], Any]] = {
    "cutkum": models.word_segmenter,
    "textgenrnn": models.char_generator,
    "g2p-en": models.pronouncer,
    "basic-pitch": models.transcriber,
}
#: The layouts of the cells that ``inspect`` finds. The arrays of g2p-en have names of their own.
CELLS: dict[str, set[str]] = {
    "cutkum": {"gru.tf1"},
    "textgenrnn": {"lstm.keras-cudnn"},
    "g2p-en": set(),
    "basic-pitch": set(),
}
BARE = """
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "tf_keras", "torch", "jax", "onnx"]))
from weightport.cli import main
main()
"""


def weightport(*arguments: str) -> str:
    """The command's standard output."""
    result = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", NEW_MODELS)
def test_inspect_finds_the_cells(name: str, real_model: Callable[[str], Path]) -> None:
    found = json.loads(weightport("inspect", str(real_model(name)), "--json"))
    assert {cell["layout"] for cell in found["cells"]} == CELLS[name]


@pytest.mark.parametrize("name", NEW_MODELS)
def test_the_mapping_passes_lint(name: str, real_model: Callable[[str], Path], mappings: Path) -> None:
    weightport("lint", str(mappings / f"{name}.yaml"), "--source", str(real_model(name)))


@pytest.mark.parametrize("name", NEW_MODELS)
def test_a_file_gets_what_a_live_model_gets(
    name: str, real_model: Callable[[str], Path], mappings: Path, tmp_path: Path
) -> None:
    source, mapping = str(real_model(name)), str(mappings / f"{name}.yaml")
    model = NEW_MODELS[name]()
    target, out = tmp_path / "target.npz", tmp_path / "out.npz"
    before = {w.path: np.asarray(w) for w in model.weights}
    np.savez(target, **before)
    report = json.loads(weightport("transfer", source, str(target), "-m", mapping, "-o", str(out), "--json"))
    assert report["problems"] == []
    assert set(report["target"]) == set(before)
    assert set(report["target"].values()) <= {"moved", "constant"}

    wp.transfer(source, model, mapping)
    with np.load(out) as archive:
        assert set(archive.files) == set(before)
        for weight in model.weights:
            np.testing.assert_array_equal(archive[weight.path], np.asarray(weight), err_msg=weight.path)
    constant = {n for n, disposition in report["target"].items() if disposition == "constant"}
    assert {w.path for w in model.weights if w.path.startswith("cqt/")} == constant
    trainable = {w.path for w in model.trainable_weights}
    assert not trainable & constant
