"""Readers of TensorFlow's files under nearly right ones. How many fits the time that tests may take, all in all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz

EXECUTIONS = {
    "tf-checkpoint": 20_000,
    "tf-checkpoint-v1": 20_000,
    "tf-frozen": 20_000,
    "tf-meta": 10_000,
    "tf-saved-model": 5_000,
}


@pytest.mark.parametrize("reader", EXECUTIONS)
def test_reader(reader: str, tmp_path: Path) -> None:
    fuzz(reader, EXECUTIONS[reader], tmp_path)
