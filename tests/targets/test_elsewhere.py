from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import need
from tests.targets.elsewhere import CHECKS

ENVIRONMENT = {
    "torch": {"KERAS_BACKEND": "torch"},
    "jax": {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    "tensorflow": {"KERAS_BACKEND": "tensorflow"},
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", CHECKS)
def test_in_a_process_of_its_own(name: str) -> None:
    """Keras on PyTorch and JAX; layouts and strategies over several devices; mixed precision. See elsewhere.py."""
    need("keras")
    need(name)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.targets.elsewhere", name],
        cwd=ROOT, env={**os.environ, **ENVIRONMENT[name]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
