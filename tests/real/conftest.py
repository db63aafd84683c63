"""Where the real models come from: the folder WEIGHTPORT_MODELS (else ``models`` beside the sources), fetched in CI.

Locally a test skips where its model is not there: ``python scripts/fetch_models.py`` fetches them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.fetch_models import PACKAGES, fetch, is_here

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """A function: the package's name -> the path of its model."""
    folder = Path(os.environ.get("WEIGHTPORT_MODELS") or ROOT / "models")

    def find(name: str) -> Path:
        package = PACKAGES[name]
        if os.environ.get("CI"):
            return fetch(package, folder)
        if not is_here(package, folder):
            pytest.skip(f"python scripts/fetch_models.py {name} --into {folder}")
        return folder / package.model

    return find


@pytest.fixture(scope="session")
def mappings() -> Path:
    """The folder of the mappings that weightport ships."""
    return ROOT / "mappings"
