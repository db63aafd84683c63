"""Tensors go to their places in the order of the places, a chunk at a time, and their checksums are told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.formats._arrays import specs_of, tiles_of
from tests.support import says
from weightport.checksums import crc32, crc32c
from weightport.errors import Error
from weightport.formats import _ranged
from weightport.formats._ranged import Place, Ranged

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(6, 2),
    "b": np.arange(3, dtype=np.uint8),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "c": np.arange(8, dtype=">i2").astype(np.int16).reshape(2, 2, 2),
}
SUMS = {"crc32": crc32, "crc32c": crc32c}


class Begun:
    """A destination of two files, and what it was begun with."""

    def __init__(self, folder: Path, checksum: str | None = None) -> None:
        self.given: list[Any] = []
        one, two = (str(folder / name) for name in ("one", "two"))
        places = {"a": (one, 10), "scalar": (one, 60), "b": (two, 3), "empty": (two, 0), "c": (one, 70)}
        self.place = Place(places, checksum)
        for name in (one, two):
            Path(name).write_bytes(b"." * 90)

    @contextmanager
    def __call__(self, *args: Any, **options: Any) -> Iterator[Place]:
        self.given.append((args, options))
        yield self.place


@pytest.mark.parametrize("checksum", [None, "crc32", "crc32c"])
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_every_tensor_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checksum: str | None, chunk: int
) -> None:
    monkeypatch.setattr(_ranged, "CHUNK", chunk)
    begun = Begun(tmp_path, checksum)
    specs, tiles = specs_of(ARRAYS), tiles_of(ARRAYS)
    Ranged(begun)("path", specs, tiles, metadata={"k": "v"}, order="C")
    assert begun.given == [(("path", specs, tiles), {"metadata": {"k": "v"}, "kept": None, "order": "C"})]
    one, two = bytearray(b"." * 90), bytearray(b"." * 90)
    one[10:58], one[60:68], one[70:86] = (ARRAYS[name].tobytes() for name in ("a", "scalar", "c"))
    two[3:6] = ARRAYS["b"].tobytes()
    assert ((tmp_path / "one").read_bytes(), (tmp_path / "two").read_bytes()) == (one, two)
    sums = {name: SUMS[checksum](value.tobytes()) for name, value in ARRAYS.items()} if checksum else {}
    assert begun.place.checksums == sums


def test_a_destination_is_what_was_begun(tmp_path: Path) -> None:
    begun = Begun(tmp_path)
    writer = Ranged(begun)
    assert writer.__doc__ == begun.__doc__
    kept: Any = object()
    specs, tiles = specs_of(ARRAYS), tiles_of(ARRAYS)
    with writer.destination("path", specs, tiles, metadata=None, kept=kept, how=1) as place:
        assert place is begun.place
    assert begun.given == [(("path", specs, tiles), {"metadata": None, "kept": kept, "how": 1})]


def test_a_file_is_opened_once_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its bytes are not held back: what counts them again would not see them."""
    opened: list[tuple[str, Any]] = []
    real = open

    def watched(file: str, *how: Any, **more: Any) -> Any:
        opened.append((os.path.basename(file), (*how, more)))
        return real(file, *how, **more)

    monkeypatch.setattr(_ranged, "open", watched, raising=False)
    Ranged(Begun(tmp_path))("path", specs_of(ARRAYS), tiles_of(ARRAYS))
    unbuffered = ("r+b", {"buffering": 0})
    assert opened == [("one", unbuffered), ("two", unbuffered), ("one", unbuffered)]


def test_writes_that_take_a_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, view, offset: real(handle, view[:5], offset))
    begun = Begun(tmp_path, "crc32c")
    Ranged(begun)("path", specs_of(ARRAYS), tiles_of(ARRAYS))
    assert (tmp_path / "one").read_bytes()[10:58] == ARRAYS["a"].tobytes()
    assert begun.place.checksums["a"] == crc32c(ARRAYS["a"].tobytes())


def test_tiles_that_do_not_fit(tmp_path: Path) -> None:
    few = {**ARRAYS, "a": ARRAYS["a"][:4]}
    with pytest.raises(Error) as caught:
        Ranged(Begun(tmp_path))("path", specs_of(ARRAYS), tiles_of(few))
    assert str(caught.value).startswith("path: tensor 'a': ")
    with says(KeyError, "'a'"):
        Ranged(Begun(tmp_path))("path", {}, tiles_of(ARRAYS))
