"""The tables of torch.export's archives, entry by entry; dtypes are numbered as PyTorch numbers them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import need, says
from weightport.formats import _torch_export
from weightport.formats._pickle import Malformed
from weightport.formats._torch_tensors import Tensor


def entry(dtype: int = 7, sizes: Any = (2, 3), strides: Any = (3, 1), offset: int = 0, **more: Any) -> dict[str, Any]:
    meta = {
        "dtype": dtype,
        "sizes": [{"as_int": n} for n in sizes],
        "strides": [{"as_int": n} for n in strides],
        "storage_offset": {"as_int": offset},
        "layout": 7,
        **more.pop("meta", {}),
    }
    return {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta, **more}


def table(**entries: Any) -> dict[str, Tensor]:
    return dict(_torch_export.table(json.dumps({"config": entries}).encode(), "m/data/weights/"))


def test_an_entry() -> None:
    found = table(a=entry(), b=entry(5, (4, 2), (1, 4), 3, path_name="weight_9"), none={"tensor_meta": None})
    assert list(found) == ["a", "b"]
    a, b = found.values()
    assert (a.dtype, a.offset, a.shape, a.stride, a.unread) == ("float32", 0, (2, 3), (3, 1), "")
    assert (b.dtype, b.offset, b.shape, b.stride, b.unread) == ("int64", 3, (4, 2), (1, 4), "")
    assert a.storage is not None
    assert b.storage is not None
    # Nothing but the path says where the bytes are: the storage is as large as the view needs.
    assert (a.storage.key, a.storage.dtype, a.storage.numel) == ("m/data/weights/weight_0", "float32", 6)
    assert (a.storage.start, a.storage.total) == (0, 24)
    assert (b.storage.key, b.storage.numel, b.storage.start, b.storage.total) == ("m/data/weights/weight_9", 11, 0, 88)
    (empty,) = table(e=entry(6, (0, 3), (3, 1))).values()
    assert empty.storage is not None
    assert (empty.shape, empty.storage.numel, empty.storage.total) == ((0, 3), 0, 0)


def test_what_is_not_read() -> None:
    found = table(
        p=entry(use_pickle=True), s=entry(meta={"layout": 1}), both=entry(use_pickle=True, meta={"layout": 1})
    )
    told = {name: (t.storage, t.dtype, t.offset, t.shape, t.stride, t.unread) for name, t in found.items()}
    assert told == {
        "p": (None, "float32", 0, (2, 3), (), "pickled by itself"),
        "s": (None, "float32", 0, (2, 3), (), "sparse"),
        "both": (None, "float32", 0, (2, 3), (), "pickled by itself"),
    }


def without(key: str) -> dict[str, Any]:
    made = entry()
    del (made if key in made else made["tensor_meta"])[key]
    return made


@pytest.mark.parametrize(
    "config",
    [
        {"a": entry(dtype=0)},
        {"a": entry(dtype=99)},
        {"a": entry(meta={"sizes": [3]})},
        {"a": entry(meta={"sizes": None})},
        {"a": 3},
        {"a": None},
        [],
        *({"a": without(key)} for key in ("tensor_meta", "dtype", "sizes", "strides", "storage_offset", "path_name")),
        *({"a": without(key)} for key in ("use_pickle", "layout")),
    ],
)
def test_no_such_table(config: Any) -> None:
    with says(Malformed, "the table of weights is not as torch.export writes it"):
        _torch_export.table(json.dumps({"config": config}).encode(), "")


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]", b"3", b"\xff", b'{"config": ' + b"[" * 100_000])
def test_no_json(text: bytes) -> None:
    with says(Malformed, "the table of weights is not as torch.export writes it"):
        _torch_export.table(text, "")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (entry(sizes=(2,)), "a shape of 1 axes with 2 strides"),
        (entry(sizes=(1 << 60, 1 << 60), strides=(1 << 60, 1)), None),
        (entry(sizes=(-1, 3)), "a dimension that is no size"),
    ],
)
def test_a_view_that_is_none(made: Any, said: str | None) -> None:
    with pytest.raises(Malformed) as caught:
        table(a=made)
    assert said is None or str(caught.value) == said


def test_dtypes_are_numbered_as_pytorch_does() -> None:
    torch = need("torch")
    schema = pytest.importorskip("torch._export.serde.schema")
    serialize = pytest.importorskip("torch._export.serde.serialize")
    numbers = {int(kind): serialize._SERIALIZE_TO_TORCH_DTYPE[int(kind)] for kind in schema.ScalarType if int(kind)}
    names = {number: str(dtype).removeprefix("torch.") for number, dtype in numbers.items()}
    ours = {number: name for number, name in _torch_export._DTYPES.items() if hasattr(torch, name)}
    assert {number: names.get(number) for number in ours if number in names} == {n: ours[n] for n in ours if n in names}
    assert set(names) <= set(ours)
    assert int(schema.Layout.Strided) == _torch_export._STRIDED
