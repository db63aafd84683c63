"""Memory that is used again from box to box."""

from __future__ import annotations

import threading

import numpy as np

from weightport.execute.holding import LINE, Scratch

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
