"""``weightport verify``, and ``transfer --reverse``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.support import fixture
from weightport.cli.app import cli

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")
MAPPING = """weightport: 1
rules:
  - {from: {layout: lstm.scoped-gates, scope: LSTMcell}, to: {layout: lstm.keras, scope: lstm}}
  - {from: "softmax_{part}", to: "logits/{part}"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mapping.yaml").write_text(MAPPING)
    assert run("transfer", SEED, "-m", "mapping.yaml", "-o", "out.npz").exit_code == 0
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.usefixtures("folder")
def test_equal() -> None:
    result = run("verify", SEED, "out.npz", "-m", "mapping.yaml")
    assert result.exit_code == 0
    assert result.stdout == (
        "5 of 5 tensors hold what the mapping makes of the source\n"
        "  rules[0]: LSTMcell -> lstm: the same function: at most 0 apart in 496 steps\n"
    )
    assert result.stderr == ""
    document = json.loads(run("verify", SEED, "out.npz", "-m", "mapping.yaml", "--json").stdout)
    assert document["equal"] is True
    assert set(document) == {"equal", "tensors", "cells", "notes", "losses", "problems"}
    assert {tuple(sorted(t)) for t in document["tensors"]} == {("max_abs_diff", "name")}
    assert {"rule", "max_abs_diff", "steps"} <= set(document["cells"][0])


@pytest.mark.usefixtures("folder")
def test_different() -> None:
    with np.load("out.npz") as archive:
        arrays = {n: archive[n].copy() for n in archive.files}
    arrays["lstm/bias"][32:64] -= 1
    np.savez("out.npz", **arrays)
    result = run("verify", SEED, "out.npz", "-m", "mapping.yaml")
    assert result.exit_code == 1
    assert "NOT the same function" in result.stdout
    first, second = result.stderr.splitlines()
    assert first.startswith("weightport: rules[0]: LSTMcell -> lstm: outputs differ by ")
    assert first.endswith("a forget bias of 1 is lost: the forget gate's bias is off by a constant")
    assert second == "weightport: lstm/bias: differs by 1 from what the mapping makes of the source"
    again = run("verify", SEED, "out.npz", "-m", "mapping.yaml", "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["equal"] is False


@pytest.mark.usefixtures("folder")
def test_there_and_back() -> None:
    result = run("transfer", "out.npz", SEED, "-m", "mapping.yaml", "--reverse", "-o", "back.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "lstm.keras lstm -> lstm.scoped-gates LSTMcell: 3 tensors -> 12 (bijective)" in result.stdout
    assert run("verify", "out.npz", "back.safetensors", "-m", "mapping.yaml", "--reverse").exit_code == 0
    assert run("verify", "out.npz", "back.safetensors", "-m", "mapping.yaml").exit_code == 1


@pytest.mark.usefixtures("folder")
def test_what_cannot_go_back() -> None:
    Path("mapping.yaml").write_text(MAPPING.replace('logits/{part}"', 'logits/{part}", cast: float16'))
    result = run("transfer", "out.npz", SEED, "-m", "mapping.yaml", "--reverse", "-o", "back.npz", "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert problem["where"] == "mapping.yaml:4 rules[1] backwards"
    assert problem["what"] == "cast cannot be undone: it rounds"
    assert not Path("back.npz").exists()


@pytest.mark.usefixtures("folder")
def test_errors_before_a_proof_are_documents_too() -> None:
    result = run("verify", SEED, "nothing.npz", "-m", "mapping.yaml", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["equal"] is False
    assert document["problems"][0]["what"].startswith("no such file")
