"""What the process that reads an HDF5 file says of it is believed no more than a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.support import says
from weightport.budget import Budget
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _h5_isolated, keras_h5
from weightport.formats._isolated import spec_of
from weightport.formats.keras_h5 import Layer, Weight
from weightport.tensors import TensorSpec, dtype_named

TENSOR = ["d/w", "float32", [2, 3], 24, "weight", ""]
WELL: dict[str, Any] = {
    "keras": True, "nested": False, "layers": [["d", ["w"]]], "attributes": {}, "metadata": {},
    "optimizer": [], "config": None,
    "datasets": [[None, "=", "", ""]], "weights": {"d/w": [0, 0]}, "objects": [[], {}, {}], "tensors": [TENSOR],
}  # fmt: skip


def lies() -> Iterator[tuple[str, dict[str, Any]]]:
    for key in WELL:
        yield f"no {key}", {k: v for k, v in WELL.items() if k != key}
        yield f"{key} is a number", {**WELL, key: 7} if key not in ("keras", "nested", "config") else {}
    for place, values in enumerate(
        [[7], ["float33", "datetime64", "S4", 7], [7, [2.5], [-1], ["2"], [1 << 70]], [23, "24", -24], ["boss"], [7]]
    ):
        for value in values:
            yield f"tensor[{place}] is {value}", {**WELL, "tensors": [[*TENSOR[:place], value, *TENSOR[place + 1 :]]]}
    yield "a tensor of five", {**WELL, "tensors": [TENSOR[:5]]}
    yield "two tensors", {**WELL, "tensors": [TENSOR, TENSOR], "datasets": [[None, "=", "", ""]] * 2}
    yield "more tensors than datasets", {**WELL, "tensors": [TENSOR, ["x", *TENSOR[1:]]]}
    for offset, order, strings in (
        (1 << 60, "=", ""),
        (-1, "=", ""),
        (2.5, "=", ""),
        (None, "<", ""),
        (None, "=", "x"),
    ):
        dataset = [offset, order, strings, ""]
        yield f"dataset {dataset}", {**WELL, "datasets": [dataset]}
    for weight in ([1, 0], [-2, 0], [0, 1], [0, -1], [0.0, 0], ["0", 0], [0]):
        yield f"weight {weight}", {**WELL, "weights": {"d/w": weight}}
    yield "a weight of no tensor", {**WELL, "weights": {"d/x": [0, 0]}}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens a file of which the process says that."""
    path = str(tmp_path / "m.h5")
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(6, dtype=np.float32)

    class Said:
        def __init__(self, *_: Any) -> None: ...

        def described(self, _: int) -> Any:
            return said[0]

        def values(self, *asked: Any) -> Any:
            return asked

        def close(self) -> None: ...

    said: list[Any] = [None]

    def opens(structure: Any) -> keras_h5.KerasH5Source:
        monkeypatch.setattr(_h5_isolated, "Child", Said)
        said[0] = structure
        return keras_h5.open_source(path, budget=Budget(isolated=True))

    return opens


def test_its_word_is_believed_no_more_than_a_file(told: Any) -> None:
    told(WELL).close()
    believed = []
    all_lies = dict(lies())
    for what, structure in all_lies.items():
        try:
            told(structure).close()
            believed.append(what)
        except FormatError:
            pass
    assert believed == []
    assert len(all_lies) > 40


def test_what_it_says(told: Any) -> None:
    said = {
        **WELL,
        "nested": True,
        "layers": [["d", ["w", "b"]], ["e", ["k"]]],
        "attributes": {"backend": "jax"},
        "metadata": {"weightport": "1"},
        "optimizer": ["slot"],
        "config": '{"class_name": "Sequential", "config": {"layers": []}}',
        "datasets": [[None, "=", "", "fletcher32"], [None, ">", "", "other"], [None, "=", "fixed", ""],
                     [None, "=", "variable", ""]],
        "weights": {"d/w": [0, 0], "d/b": [0, 1], "e/k": [1, 0], "slot": [-1, 7]},
        "objects": [["a", "a/vars"], {"a": "Title"}, {"a/vars": ["0", "1"]}],
        "tensors": [TENSOR, ["d/b", "int16", [2], 4, "weight", ""], ["e/k", "object", [1], 2, "constant", ""],
                    ["slot", "object", [1], 5, "slot", ""]],
    }  # fmt: skip
    with told(said) as source:
        assert (source.format, source.nested) == ("keras-h5", True)
        assert source.layers == [Layer("d", ("w", "b")), Layer("e", ("k",))]
        assert (source.attributes, source.metadata) == ({"backend": "jax"}, {"weightport": "1"})
        assert source.optimizer == ("slot",)
        weights = {"d/w": Weight(0, 0), "d/b": Weight(0, 1), "e/k": Weight(1, 0), "slot": Weight(-1, 7)}
        assert source.weights == weights
        assert source.objects() == (["a", "a/vars"], {"a": "Title"}, {"a/vars": ["0", "1"]})
        assert [source.checksum(name) for name in ("d/w", "d/b", "e/k", "none")] == ["fletcher32", "", "", ""]
        datasets = {n: (d.offset, d.dtype.str, d.shape, d.strings) for n, d in source.datasets.items()}
        assert datasets == {
            "d/w": (None, "<f4", (2, 3), ""),
            "d/b": (None, ">i2", (2,), ""),
            "e/k": (None, "|O", (1,), "fixed"),
            "slot": (None, "|O", (1,), "variable"),
        }
        assert {n: (s.dtype.name, s.shape, s.nbytes, s.role) for n, s in source.specs().items()} == {
            "d/w": ("float32", (2, 3), 24, "weight"),
            "d/b": ("int16", (2,), 4, "weight"),
            "e/k": ("object", (1,), 2, "constant"),
            "slot": ("object", (1,), 5, "slot"),
        }
        # Values are asked for by name, what they have to be, the part, and how many bytes may come for them.
        assert source.read("d/w", (slice(1, 2),)) == ("d/w", source.specs()["d/w"], ((1, 2, 1), (0, 3, 1)), 24)
        assert source.read("e/k")[3] == 2
        assert source.read("slot")[3] == source._bytes.size
    with told({**WELL, "keras": False}) as source:
        assert (source.format, source.nested) == ("hdf5", False)


def test_what_lies_in_one_run_is_read_here(told: Any) -> None:
    with told({**WELL, "datasets": [[8, "=", "", ""]]}) as source:
        whole = Path(source.path).read_bytes()
        assert source.read("d/w").tobytes() == whole[8:32]
        assert source.read("d/w", (slice(1, 2),)).tobytes() == whole[20:32]


def test_what_it_is_not_asked(told: Any) -> None:
    source = told(WELL)
    with pytest.raises(TensorNotFound, match="no tensor 'd/x'"):
        source.read("d/x")
    why = "is read by HDF5 in a process of its own, and repeating its structure needs the library in this one"
    with says(Error, f"{source.path}: {why}; write another format; or trust the file, if it is not trusted"):
        _ = source.file
    source.close()
    with says(Error, f"{source.path}: is closed"):
        source.read("d/w")


def test_a_structure_that_is_none(told: Any) -> None:
    for said in (None, [], {}, 7):
        with pytest.raises(FormatError, match=r"m\.h5: corrupt or hostile: what was read of it is no structure$"):
            told(said)


def test_a_tensor_that_it_says() -> None:
    name, spec = spec_of(["x", "bfloat16", [2, 0, 3], 0, "slot", "why"], Budget(), "f")
    assert (name, spec) == ("x", TensorSpec(dtype_named("bfloat16"), (2, 0, 3), 0, "slot", "why"))
    assert spec_of(["t", "object", [2], 77, "constant", ""], Budget(), "f")[1].nbytes == 77
    with says(FormatError, "f: tensor 'x': corrupt or hostile: 25 bytes for 6 values"):
        spec_of(["x", "float32", [2, 3], 25, "weight", ""], Budget(), "f")
    with says(BudgetExceeded, "f: tensor 'x': tensor bytes: 24 asked for, at most 23 allowed"):
        spec_of(["x", "float32", [2, 3], 24, "weight", ""], Budget(tensor_bytes=23), "f")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 7), (1, 7), (1, "float33"), (1, "datetime64"), (2, 7), (2, [2.0]), (2, [True]), (2, [-1]),
        (3, -1), (3, 2.0), (3, True), (4, "boss"), (5, None), (5, 7),
    ],
)  # fmt: skip
def test_a_tensor_that_is_none(place: int, value: Any) -> None:
    said = ["x", "object", [1], 4, "weight", ""]
    for wrong in ([*said[:place], value, *said[place + 1 :]], said[:place], [*said, ""]):
        with says(FormatError, "f: corrupt or hostile: what was read of it is no tensor"):
            spec_of(wrong, Budget(), "f")
