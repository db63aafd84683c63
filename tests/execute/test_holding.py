"""Memory that is used again from box to box."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from weightport.execute import holding
from weightport.execute.holding import LINE, Loader, Scratch
from weightport.execute.tasks import Done, Sizes, Task
from weightport.formats._io import ByteFile
from weightport.tensors import Extent, TensorSpec

FLOAT = np.dtype(np.float32)


def inside(scratch: Scratch, array: np.ndarray) -> bool:
    return np.shares_memory(scratch.memory, array)


def test_what_was_asked_for_is_given_out_in_lines() -> None:
    scratch = Scratch()
    scratch.reset(3 * LINE)
    first, second = scratch.empty((5, 3), FLOAT), scratch.empty((2,), np.dtype(np.int8))
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((5, 3), FLOAT, (2,), np.int8)
    first[:], second[:] = 1.0, 2
    assert (first == 1).all()
    assert scratch.memory[LINE : LINE + 2].tolist() == [2, 2], "at the next line"
    third = scratch.empty((LINE,), np.dtype(np.uint8))
    assert inside(scratch, third)
    for beyond in (scratch.empty((1,), np.dtype(np.uint8)), scratch.empty((100, 100), FLOAT)):
        assert not inside(scratch, beyond), "there is no more of it"
    memory = scratch.memory
    scratch.reset(3 * LINE)
    assert scratch.memory is memory
    assert np.shares_memory(scratch.empty((5, 3), FLOAT), first)
    scratch.reset(3 * LINE + 1)
    assert scratch.memory.nbytes == 3 * LINE + 1
    scratch.reset(scratch.most + 1)
    assert scratch.memory.nbytes == 3 * LINE + 1, "more than is kept is not kept"
    assert not inside(scratch, scratch.empty((scratch.most + 1,), np.dtype(np.uint8)))
    scratch.release()
    assert scratch.memory.nbytes == 0


def test_each_thread_has_its_own() -> None:
    scratch, sizes = Scratch(), []
    scratch.reset(100)

    def other() -> None:
        sizes.append(scratch.memory.nbytes)
        scratch.reset(10)
        sizes.append(scratch.memory.nbytes)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (sizes, scratch.memory.nbytes) == ([0, 10], 100)


def test_one_thread_reads_what_lies_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns, which are a run of bytes for each row; rows that stand together are read by all threads at once."""
    values = np.arange(60, dtype=np.float32).reshape(6, 10)
    (tmp_path / "x").write_bytes(values.tobytes())
    task = Task(
        None,
        (),
        (),
        {(0, "x"): TensorSpec.of("float32", (6, 10))},
        {(0, "x"): Extent(str(tmp_path / "x"), 0, values.nbytes)},
        Sizes(),
    )
    held: list[tuple[int, bool]] = []
    read_rows = ByteFile.read_rows

    def watched(self: ByteFile, offsets: list[int], *given: object, **named: object) -> list[int]:
        held.append((len(offsets), holding.ONE_READS.locked()))
        return read_rows(self, offsets, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ByteFile, "read_rows", watched)
    loader = Loader(task, Done())
    try:
        columns = loader.load(0, "x", (range(6), range(2, 5)))
        rows = loader.load(0, "x", (range(1, 4), range(10)))
    finally:
        loader.close()
    assert columns.tolist() == values[:, 2:5].tolist()
    assert rows.tolist() == values[1:4].tolist()
    assert held == [(6, True), (1, False)]
    assert not holding.ONE_READS.locked()
