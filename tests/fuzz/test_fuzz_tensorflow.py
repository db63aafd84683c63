"""Readers of TensorFlow's checkpoints under nearly right ones: how many fits the time that tests may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz

EXECUTIONS = {"tf-checkpoint": 50_000, "tf-checkpoint-v1": 50_000}


@pytest.mark.parametrize("reader", EXECUTIONS)
def test_reader(reader: str, tmp_path: Path) -> None:
    fuzz(reader, EXECUTIONS[reader], tmp_path)
