"""Vocabulary files: one word a line, or JSON."""

from __future__ import annotations

import os


def read_vocab(path: str | os.PathLike[str]) -> dict[str, int]:
    """Word -> row, in the order of the file."""
    raise NotImplementedError
