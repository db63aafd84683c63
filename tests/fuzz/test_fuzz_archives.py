"""Readers of zip archives under nearly right ones. How many fits the time that tests may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzzing import fuzz

EXECUTIONS = {"npz": 200_000, "torch": 200_000, "keras": 10_000, "keras-sharded": 5_000}


@pytest.mark.parametrize("reader", EXECUTIONS)
def test_reader(reader: str, tmp_path: Path) -> None:
    fuzz(reader, EXECUTIONS[reader], tmp_path)
