"""Which constants of a frozen graph are weights, where the way to the read is long, or parts have neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.formats._graphdef import const, function, graph, header, node, write
from tests.support import says
from weightport.errors import BudgetExceeded
from weightport.formats import _tf_constants, tf_frozen

W = np.arange(6, dtype=np.float32).reshape(2, 3)
READ = [const("other", W), node("other/read", "Identity", "other")]
TYPES = {"f": "f"}


def roles(path: Path, data: bytes) -> dict[str, str]:
    with tf_frozen.open_source(write(path / "g.pb", data)) as source:
        return {name: spec.role for name, spec in source.specs().items() if name != "other"}


def chain(length: int) -> list[bytes]:
    """A constant, and what passes it on so many times."""
    return [const("w", W), *(node(f"i{n}", "Identity", f"i{n - 1}" if n else "w") for n in range(length))]


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize(("length", "role"), [(63, "weight"), (64, "constant")])
def test_a_read_is_followed_so_far(tmp_path: Path, called: bool, length: int, role: str) -> None:
    last = f"i{length - 1}"
    if called:
        body = function("f", ["a"], {}, [node("x/ReadVariableOp", "Identity", "a")])
        data = graph(*READ, *chain(length), node("call", "PartitionedCall", last, f="f"), functions=[body])
    else:
        data = graph(*READ, *chain(length), node("x/ReadVariableOp", "Identity", last))
    assert roles(tmp_path, data) == {"w": role}


def parts(*shapes: tuple[int, ...]) -> list[bytes]:
    made = []
    for n, shape in enumerate(shapes):
        made += [const(f"v/part_{n}", np.ones(shape, np.float32)), node(f"v/part_{n}/read", "Identity", f"v/part_{n}")]
    return made


@pytest.mark.parametrize(
    ("joins", "shape"),
    [
        ([node("j", "ConcatV2", "v/part_1/read", "v/part_0/read", "one")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "w", "one")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read")], None),
        ([node("j", "ConcatV2")], None),
        ([node("i", "ConcatV2", "w", "w", "one"), node("j", "ConcatV2", "v/part_0/read", "v/part_1", "one")], (2, 4)),
        ([node("i", "Gather", "w"), node("k", "Gather", "^w"), node("j", "ConcatV2", "w", "w", "one")], None),
        ([node("i", "ResourceGather", "v/part_0/read"), node("j", "Gather", "w")], (4, 2)),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "many")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "float")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "low")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "two")], None),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "first")], (4, 2)),
        ([node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "last")], (2, 4)),
        ([node("j", "Concat", "one", "v/part_0/read", "v/part_1/read")], (2, 4)),
        ([node("j", "Concat", "v/part_0/read", "v/part_1/read", "one")], None),
    ],
)
def test_which_node_says_how_equal_parts_are_joined(
    tmp_path: Path, joins: list[bytes], shape: tuple[int, ...] | None
) -> None:
    numbers = {"one": 1, "two": 2, "last": -1, "first": -2, "low": -3, "many": [1, 1], "float": np.float64(1)}
    named = [const(name, np.asarray(n, None if name == "float" else np.int32)) for name, n in numbers.items()]
    data = graph(*parts((2, 2), (2, 2)), *named, const("w", W), *joins)
    with tf_frozen.open_source(write(tmp_path / "g.pb", data)) as source:
        specs = source.specs()
        assert ("v" in specs, "v/part_0" in specs) == (shape is not None, shape is None)
        assert shape is None or (specs["v"].shape, specs["v"].role) == (shape, "weight")


def test_slots_of_an_optimizer(tmp_path: Path) -> None:
    """A slot is what has the shape of the variable that it is named after; of a joined one, no shape is known."""
    names = ["w", "w/Adam", "w/Adam_1", "b/Adam", "train/w/Adam", "v/Adam"]
    frozen = [n for name in names for n in (const(name, W), node(f"{name}/read", "Identity", name))]
    found = roles(tmp_path, graph(*frozen, *parts((1, 3), (1, 3)), node("look", "Gather", "v/part_0")))
    assert found == {
        "w": "weight",
        "w/Adam": "slot",
        "w/Adam_1": "slot",
        "b/Adam": "weight",
        "train/w/Adam": "slot",
        "v/Adam": "weight",
        "v": "weight",
    }


def test_parts_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is joined is read by any index; values that the file does not hold are bounded over all parts together."""
    one = const("one", np.asarray(0, np.int32))
    join = node("j", "ConcatV2", "v/part_0/read", "v/part_1/read", "one")
    reads = [node(f"v/part_{n}/read", "Identity", f"v/part_{n}") for n in (0, 1)]
    given = [const("v/part_0", W), const("v/part_1", W + 6), *reads]
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    with tf_frozen.open_source(write(tmp_path / "g.pb", graph(*READ, *given, one, join))) as source:
        for index in (None, (slice(1, 3),), (slice(0, 4, 3), slice(1, 2)), (slice(4, 4),)):
            assert source.read("v", index).tolist() == whole[index or ()].tolist()
        assert source.read("v/part_1", (slice(1, 2),)).tolist() == whole[3:].tolist()
        assert source.read("other", (slice(1, 2), slice(0, 2))).tolist() == [[3, 4]]
    splat = header(1, (30, 3)) + b"\x2a\x04" + np.float32(7).tobytes()  # one value, which repeats
    many = [const("v/part_0", splat), const("v/part_1", W), *reads]
    path = write(tmp_path / "s.pb", graph(*many, one, join))
    with tf_frozen.open_source(path) as source:
        assert source.read("v", (slice(29, 31),)).tolist() == [[7, 7, 7], [0, 1, 2]]
        monkeypatch.setattr(_tf_constants, "SPLAT_BYTES", 360)
        source.read("v")
        monkeypatch.setattr(_tf_constants, "SPLAT_BYTES", 359)
        with says(BudgetExceeded, f"{path}: tensor 'v': repeated values of 360 bytes, at most 359 allowed"):
            source.read("v", (slice(3, 4),))


def test_a_read_of_a_resource(tmp_path: Path) -> None:
    """Two of what a framework calls the reading of a variable, and what is none."""
    nodes = [const("w", W), const("v", W), const("u", W), node("x/ReadVariableOp", "ReadVariableOp", "w")]
    nodes += [
        node("v/read", "ReadVariableOp", "v"),
        node("u/read", "Neg", "u"),
        node("y/ReadVariableOp", "ReadVariableOp"),
    ]
    assert roles(tmp_path, graph(*nodes)) == {"w": "weight", "v": "weight", "u": "constant"}


def test_numbers_that_nothing_names(tmp_path: Path) -> None:
    """In a graph without any read, what is there for nobody was saved for its own sake."""
    one = {name: const(name, np.asarray(3, np.int32)) for name in ("lonely", "used", "after", "second")}
    nodes = [node("add", "Add", "used", "used"), node("other", "NoOp", "^after"), node("more", "Neg", "second:0")]
    assert roles(tmp_path, graph(*one.values(), *nodes)) == {
        "lonely": "weight",
        "used": "constant",
        "after": "constant",
        "second": "constant",
    }
