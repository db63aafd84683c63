"""What many tests share: the fixture models, and optional packages that skip locally but fail in CI."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FIXTURES = Path(__file__).parent / "data" / "fixtures"


def need(module: str) -> ModuleType:
    """The module; a missing one skips the test locally and fails it in CI."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a framework warns of at import is not ours to mend
            return importlib.import_module(module)
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{module} is not installed")


@contextlib.contextmanager
def says(kind: type[BaseException], message: str) -> Iterator[None]:
    """What is done within raises an error of exactly that class and message."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    assert str(caught.value) == message


class Fixture:
    """One fixture model: its folder, description, variables and reference outputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.relative_to(FIXTURES).as_posix()
        self.doc: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.files: dict[str, Any] = self.doc["files"]

    def __repr__(self) -> str:
        return self.name

    def path(self, kind: str) -> str:
        """The path of one of the files that model.json lists, by its kind (``checkpoint_v2``, ``frozen``, ...)."""
        return str(self.folder / self.files[kind])

    @property
    def variables(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "variables.npz") as archive:
            return {k: archive[k] for k in archive.files}

    @property
    def reference(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "reference.npz") as archive:
            return {k: archive[k] for k in archive.files}


def fixture(name: str) -> Fixture:
    """The fixture model of that relative path, e.g. ``b_cells/gru``."""
    return Fixture(FIXTURES / name)


def fixtures(kind: str | None = None) -> list[Fixture]:
    """All fixture models, or those that have a file of that kind."""
    found = [Fixture(p.parent) for p in sorted(FIXTURES.rglob("model.json"))]
    return [f for f in found if kind is None or kind in f.files]
