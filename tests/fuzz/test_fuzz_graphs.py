"""Readers of graphs under nearly right ones. How many fits the time that tests may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz

EXECUTIONS = {"tf-frozen": 50_000, "tf-meta": 20_000, "tf-saved-model": 5_000, "onnx": 50_000}


@pytest.mark.parametrize("reader", EXECUTIONS)
def test_reader(reader: str, tmp_path: Path) -> None:
    fuzz(reader, EXECUTIONS[reader], tmp_path)
