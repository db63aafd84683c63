"""Flax' msgpack files: what Flax writes is read, part by part, and what no file may do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.formats._arrays import EXTRA, NUMPY, indexed, of_every_dtype, same, specs_of, tiles_of
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import _msgpack as mp
from weightport.formats import flax_msgpack as fm
from weightport.formats.detect import detect
from weightport.formats.flax_msgpack_write import write
from weightport.tensors import Budget, TensorSpec


def nested(arrays: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, leaf = name.split("/")
        at = tree
        for part in above:
            at = at.setdefault(part, {})
        at[leaf] = array
    return tree


def stored(path: Path, tree: Any) -> str:
    """A file as Flax writes it."""
    path.write_bytes(need("flax.serialization").msgpack_serialize(tree, in_place=True))
    return str(path)


def array(shape: list[int], dtype: str, data: bytes, code: int = fm.NDARRAY) -> bytes:
    inside = mp.head(mp.ARRAY, 3) + mp.head(mp.ARRAY, len(shape)) + b"".join(map(mp.number, shape))
    inside += mp.text(dtype) + mp.head(mp.BINARY, len(data)) + data
    return mp.head(mp.EXT, len(inside), code) + inside


def tree_of(**members: bytes) -> bytes:
    return mp.head(mp.MAP, len(members)) + b"".join(mp.text(k) + v for k, v in members.items())


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        fm.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}")


def test_reads_what_flax_writes(tmp_path: Path) -> None:
    arrays = of_every_dtype(NUMPY + EXTRA)
    path = stored(tmp_path / "a", nested(arrays))
    assert detect(path) == "flax-msgpack"
    with fm.open_source(path) as source:
        assert dict(source.specs()) == {n: TensorSpec(a.dtype, a.shape, a.nbytes) for n, a in arrays.items()}
        for name, value in arrays.items():
            assert same(source.read(name), value)
        assert source.facts(list(arrays)) == {}


def test_numbers_lists_and_what_is_no_tensor(tmp_path: Path) -> None:
    tree = {
        "list": [np.arange(2), [np.float32(2.5), 3]],
        "numbers": {"i": -5, "u": 1 << 63, "f": 0.1, "b": True, "c": 1 + 2j, "big": 70000, "neg": -(1 << 40)},
        "text": "hello",
        "nothing": None,
        "empty": {},
        7: np.int8(7),
    }
    with fm.open_source(stored(tmp_path / "a", tree)) as source:
        found = {n: (s.dtype_name, source.read(n).tolist()) for n, s in source.specs().items()}
    assert found == {
        "list/0": ("int64", [0, 1]),
        "list/1/0": ("float32", 2.5),
        "list/1/1": ("int64", 3),
        "numbers/i": ("int64", -5),
        "numbers/u": ("uint64", 1 << 63),
        "numbers/f": ("float64", 0.1),
        "numbers/b": ("bool", True),
        "numbers/c": ("complex128", 1 + 2j),
        "numbers/big": ("int64", 70000),
        "numbers/neg": ("int64", -(1 << 40)),
        "7": ("int8", 7),
    }


@pytest.mark.parametrize("limit", [4, 10, 16, 64])
def test_arrays_in_chunks(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need("flax.serialization"), "MAX_CHUNK_SIZE", limit)
    value = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with fm.open_source(stored(tmp_path / "a", {"x": {"y": value}, "z": np.int16(3)})) as source:
        assert source.specs()["x/y"] == TensorSpec.of("float32", (2, 3, 4))
        assert same(source.read("x/y"), value)
        for index in [(slice(1, 2),), (slice(0, 2), slice(1, 3), slice(0, 4, 3))]:
            assert same(source.read("x/y", index), np.ascontiguousarray(value[index]))
        assert source.read("z") == 3


def test_roles_of_a_training_state(tmp_path: Path) -> None:
    jax, optax, serialization = need("jax"), need("optax"), need("flax.serialization")
    train_state = need("flax.training.train_state")
    params = {"dense": {"kernel": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones(2)}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    path = tmp_path / "checkpoint_3"
    path.write_bytes(serialization.to_bytes(state))
    (tmp_path / "checkpoint_20").write_bytes(serialization.to_bytes(state.replace(step=20)))
    (tmp_path / "checkpoint_100.orbax-checkpoint-tmp-5").mkdir()
    with wp.open(tmp_path) as source:  # of a folder, the latest
        assert source.format == "flax-msgpack"
        assert source.path == str(tmp_path / "checkpoint_20")
        assert source.read("step") == 20
        assert {n: s.role for n, s in source.specs().items()} == {
            "step": "counter",
            "params/dense/kernel": "weight",
            "params/dense/bias": "weight",
            "opt_state/0/count": "optimizer",
            "opt_state/0/mu/dense/bias": "slot",
            "opt_state/0/mu/dense/kernel": "slot",
            "opt_state/0/nu/dense/bias": "slot",
            "opt_state/0/nu/dense/kernel": "slot",
        }
    with wp.open(path) as source:
        assert source.read("step") == 0
    (tmp_path / "other_7").write_bytes(path.read_bytes())
    with pytest.raises(
        FormatError, match="several checkpoints, of 2 kinds: 'checkpoint_3', 'checkpoint_20', 'other_7'"
    ):
        fm.open_source(str(tmp_path))


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "notes_1").write_text("text")
    with pytest.raises(FormatError) as caught:
        fm.open_source(str(tmp_path))
    assert str(caught.value) == f"{tmp_path}: no checkpoint of Flax or Orbax in this folder; it has 'notes_1'"


@settings(max_examples=60, deadline=None)
@given(indexed())
def test_partial_reads_are_slices(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    value, index = case
    path = str(tmp_path_factory.mktemp("fm") / "a")
    arrays = {"pad": np.zeros(3, np.uint8), "x": value}
    write(path, specs_of(arrays), tiles_of(arrays))
    with fm.open_source(path) as source:
        assert same(source.read("x", index), np.array(value[index], order="C"))


def test_only_the_bytes_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path / "a", {k: np.zeros((512, 512), np.float32) for k in "abc"})
    seen = []
    real = fm.ByteFile.read
    monkeypatch.setattr(fm.ByteFile, "read", lambda *a, **k: seen.append(a[2]) or real(*a, **k))
    source = fm.open_source(path)
    assert sum(seen) < 64 << 10  # of 3 MiB
    seen.clear()
    source.read("b", (slice(3, 5),))
    assert sum(seen) <= 4096
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read("b")


def test_extents_are_where_the_values_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(need("flax.serialization"), "MAX_CHUNK_SIZE", 16)
    path = stored(tmp_path / "a", {"a": np.arange(3, dtype=np.float32), "long": np.arange(9), "n": 5})
    with wp.open(path) as source:
        found = source.extent("a")
        assert found is not None
        assert found.path == path
        raw = Path(path).read_bytes()[found.offset : found.offset + found.nbytes]
        assert np.frombuffer(raw, np.float32).tolist() == [0, 1, 2]
        assert source.extent("long") is None
        assert source.extent("n") is None
        with pytest.raises(TensorNotFound):
            source.extent("m")


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with fm.open_source(stored(tmp_path / "a", {"lstm": {"kernel": np.zeros(2)}})) as source:
        with pytest.raises(TensorNotFound, match="closest: 'lstm/kernel'"):
            source.read("lstm/kernal")
        with pytest.raises(Error, match="an index of 2 axes for a tensor of 1"):
            source.read("lstm/kernel", (slice(1), slice(1)))


def test_reading_imports_no_framework(tmp_path: Path) -> None:
    path = stored(tmp_path / "a", {"w": np.ones(2, np.float32)})
    code = (
        f"import sys, weightport as wp\nwith wp.open({path!r}) as s:\n    print(s.read('w').tolist())\n"
        "assert not {'jax', 'flax', 'msgpack', 'tensorflow'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[1.0, 1.0]\n"


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    tree = {"a": {"b": np.arange(3, dtype=np.float32)}, "n": 1000, "c": np.float16(2), "s": "text"}
    whole = Path(stored(tmp_path / "a", tree)).read_bytes()
    for size in range(len(whole)):
        assert "truncated" in refused(tmp_path / "cut", whole[:size])
    assert refused(tmp_path / "cut", whole + b"\xc0") == f" at byte {len(whole)}: 1 bytes follow the tree"


F4 = array([2], "float32", b"\0" * 8)
CHUNK = array([1], "float32", b"\0" * 4)


def chunked(shape: bytes, chunks: bytes, flag: bytes = b"\xc3") -> bytes:
    return tree_of(x=tree_of(**{fm.CHUNKED: flag, "shape": shape, "chunks": chunks}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x05", " at byte 0: no tree of Flax: it begins with int"),
        (b"\xc1", " at byte 0: no msgpack begins with the byte 0xc1"),
        (b"\x81\xc0\xc0", " at byte 1: a key that is nil, not a short text"),
        (b"\x81\xa1\xff\xc0", " at byte 1: a string that is no UTF-8"),
        (b"\x82\xa1a\xc0\xa1a\xc0", " at byte 4: the key 'a' stands twice in one map"),
        (
            b"\xdf\xff\xff\xff\xff" + b"\xc0" * 9,
            " at byte 0: truncated or corrupt: map of 4,294,967,295, 9 bytes are left",
        ),
        (b"\xdd\xff\xff\xff\xff", " at byte 0: truncated or corrupt: array of 4,294,967,295, 0 bytes are left"),
        (tree_of(a=tree_of(b=F4), **{"a/b": F4}), ": tensor 'a/b' at byte 34: another tensor has the same name"),
        (
            tree_of(a=array([3], "float32", b"\0" * 8)),
            ": tensor 'a' at byte 3: float32 of shape [3] takes 12 bytes, it has 8",
        ),
        (tree_of(a=array([2], "float31", b"\0" * 8)), ": tensor 'a' at byte 3: the dtype 'float31' is unknown"),
        (tree_of(a=array([2], "object", b"\0" * 16)), ": tensor 'a' at byte 3: the dtype 'object' is unknown"),
        (tree_of(a=array([2], ">f4", b"\0" * 8)), ": tensor 'a' at byte 3: the dtype '>f4' is unknown"),
        (tree_of(a=array([-2], "float32", b"\0" * 8)), ": tensor 'a' at byte 3: its shape is no list of sizes"),
        (tree_of(a=b"\xd4\x01\xc0"), ": tensor 'a' at byte 3: its array is no shape, dtype and bytes"),
        (
            tree_of(a=mp.head(mp.EXT, 5, fm.NDARRAY) + b"\x93\x90\x05\xc4\x00"),
            ": tensor 'a' at byte 3: its array is no shape, dtype and bytes",
        ),
        (
            tree_of(a=mp.head(mp.EXT, 5, fm.NDARRAY) + b"\x93\x90\xa1b\x05"),
            ": tensor 'a' at byte 3: its array is no shape, dtype and bytes",
        ),
        (
            tree_of(a=mp.head(mp.EXT, 7, fm.NDARRAY) + b"\x93\x90\xa1b\xc4\x00\xc0"),
            ": tensor 'a' at byte 3: its bytes end at 12, its array at 13",
        ),
        (tree_of(a=array([True], "int8", b"")), ": tensor 'a' at byte 3: its shape is no list of sizes"),
        (tree_of(a=b"\xd5\x02\x91\x01"), " at byte 3: a complex number that is no pair of numbers"),
        (tree_of(a=b"\xd6\x02\x92\xa1x\x01"), " at byte 3: a complex number that is no pair of numbers"),
        (tree_of(a=b"\xd6\x02\x92\x01\x01\x01"), " at byte 3: a complex number that is no pair of numbers"),
        (chunked(tree_of(**{"0": b"\x02"}), tree_of(**{"0": CHUNK})), "takes 8 bytes, its chunks have 4"),
        (chunked(tree_of(**{"1": b"\x01"}), tree_of(**{"0": CHUNK})), "its shape are not numbered"),
        (chunked(tree_of(**{"0": b"\xff"}), tree_of(**{"0": CHUNK})), "its shape is no list of sizes, or its chunks"),
        (chunked(tree_of(**{"0": b"\x01"}), b"\x80"), "its shape is no list of sizes, or its chunks are not flat"),
        (chunked(tree_of(**{"0": b"\x01"}), tree_of(**{"0": b"\x01"})), "its chunks are no arrays"),
        (chunked(b"\x01", tree_of(**{"0": CHUNK})), "its chunks are no flag, shape and chunks"),
        (chunked(b"\x80", tree_of(**{"0": CHUNK}), b"\xc2"), "its chunks are no flag, shape and chunks"),
        (tree_of(x=tree_of(a=F4, **{fm.CHUNKED: b"\xc3"})), "a chunked array that does not begin as one"),
    ],
)
def test_hostile(tmp_path: Path, content: bytes, message: str) -> None:
    found = refused(tmp_path / "x", content)
    assert found == message or (message in found and not message.startswith((" at", ": tensor")))


def test_hostile_sizes_are_refused_by_arithmetic(tmp_path: Path) -> None:
    huge = (1 << 62) + 1
    assert "tensor bytes" in refused(tmp_path / "x", tree_of(a=array([huge, huge], "float32", b"")))
    assert "no array can have the shape" in refused(tmp_path / "x", tree_of(a=array([0, huge], "float32", b"")))
    assert "rank" in refused(tmp_path / "x", tree_of(a=array([1] * 65, "int8", b"\0")))
    deep = b"\x81\xa1a" * 70 + b"\xc0"
    assert "depth: 65 asked for, at most 64 allowed" in refused(tmp_path / "x", deep)
    assert "depth" in refused(tmp_path / "x", b"\x91" * 100_000 + b"\xc0")


def test_budget(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(tree_of(a=F4, b=F4))
    for budget in (Budget(tensors=2), Budget(rank=0), Budget(tensor_bytes=4), Budget(depth=0)):
        with pytest.raises(BudgetExceeded):
            fm.open_source(str(tmp_path / "x"), budget=budget)


def test_what_is_walked_over_is_bounded(tmp_path: Path) -> None:
    """Of the file's heads, not of its values: a budget of what is read of them."""
    path = stored(tmp_path / "x", {f"k{n:06}": n for n in range(8_000)})
    with fm.open_source(path) as source:
        assert len(source.specs()) == 8_000
    with pytest.raises(BudgetExceeded, match=r"header bytes: .* asked for, at most 50,000 allowed"):
        fm.open_source(path, budget=Budget(header_bytes=50_000))


def test_a_folder_of_two_kinds_is_none(tmp_path: Path) -> None:
    assert not fm.sniff(str(tmp_path))
    stored(tmp_path / "checkpoint_3", {"a": 1})
    assert fm.sniff(str(tmp_path))
    stored(tmp_path / "other_7", {"a": 1})
    assert not fm.sniff(str(tmp_path))


def test_what_flax_does_not_know_is_listed_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tree_of(a=F4, b=b"\xd4\x09\x01", c=mp.head(mp.BINARY, 2) + b"xy"))
    with fm.open_source(str(tmp_path / "a")) as source:
        assert {n: s.unread for n, s in source.specs().items()} == {
            "a": "",
            "b": "ext of type 9, not of Flax",
            "c": "bytes, not of Flax",
        }
        with pytest.raises(FormatError, match="tensor 'b' at byte 29: is ext of type 9, not of Flax"):
            source.read("b")


QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
SMALL = Budget(tensor_bytes=1 << 24, header_bytes=1 << 24)


def read_all(path: Path) -> None:
    """Whatever a file says, reading it ends in values or in errors of our own."""
    with contextlib.suppress(Error), fm.open_source(str(path), budget=SMALL) as source:
        for name, spec in source.specs().items():
            with contextlib.suppress(Error):
                assert source.read(name).shape == spec.shape


@QUICK
@given(st.binary(max_size=80))
def test_anything_is_a_source_or_an_error(tmp_path: Path, content: bytes) -> None:
    for prefix in (b"", b"\x81\xa1a", b"\x81\xa1a\xc7\x20\x01\x93"):
        (tmp_path / "x").write_bytes(prefix + content)
        read_all(tmp_path / "x")
        fm.sniff(str(tmp_path / "x"))


def test_keys_that_multiply(tmp_path: Path) -> None:
    path = stored(tmp_path / "m.msgpack", {"k" * 500_000: {str(n): 1.0 for n in range(200)}})
    with pytest.raises(BudgetExceeded, match="names: 17,000,092 bytes, at most 16,777,216 for a file of 502,499: "):
        fm.open_source(path)


# -- arrays in chunks, exactly -----------------------------------------------------------------------------------------

NO_PARTS = "its chunks are no flag, shape and chunks"
ONE = tree_of(**{"0": b"\x01"})
HELD = tree_of(**{"0": CHUNK})


def in_chunks(*members: tuple[bytes, bytes], flag: bytes = b"\xc3", count: int = 0) -> bytes:
    """Members of any keys and number behind the flag."""
    inside = b"".join(key + value for key, value in members)
    head = mp.head(mp.MAP, count or 1 + len(members)) + mp.text(fm.CHUNKED) + flag
    return tree_of(x=head + inside)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (in_chunks((mp.text("shape"), ONE), (mp.text("chunks"), HELD), count=2), NO_PARTS),
        (in_chunks((mp.text("shape"), ONE), (mp.text("chunks"), HELD), flag=b"\xc2"), NO_PARTS),
        (in_chunks((mp.text("shape"), ONE), (mp.text("chunks"), HELD), flag=b"\x01"), NO_PARTS),
        (in_chunks((mp.text("shape"), ONE), (mp.text("shape"), ONE)), NO_PARTS),
        (in_chunks((mp.text("other"), ONE), (mp.text("chunks"), HELD)), NO_PARTS),
        (in_chunks((b"\x07", ONE), (mp.text("chunks"), HELD)), NO_PARTS),
        (in_chunks((mp.text("shape" + "x" * 100), ONE), (mp.text("chunks"), HELD)), NO_PARTS),
        (in_chunks((mp.text("shape"), b"\x01"), (mp.text("chunks"), HELD)), NO_PARTS),
        (chunked(tree_of(**{"0": b"\xa1x"}), HELD), "its shape are no sizes"),
        (chunked(ONE, tree_of(**{"0": b"\x01"})), "its chunks are no arrays"),
        (chunked(mp.head(mp.MAP, 1) + b"\x00\x01", HELD), "its shape are not numbered"),
        (chunked(tree_of(**{"0" * 21: b"\x01"}), HELD), "its shape are not numbered"),
        (chunked(tree_of(**{"0": b"\xff"}), HELD), "its shape is no list of sizes, or its chunks are not flat"),
        (chunked(ONE, b"\x80"), "its shape is no list of sizes, or its chunks are not flat"),
        (
            chunked(ONE, tree_of(**{"0": array([1, 1], "float32", b"\0" * 4)})),
            "its shape is no list of sizes, or its chunks are not flat",
        ),
        (
            chunked(tree_of(**{"0": b"\x02"}), tree_of(**{"0": CHUNK, "1": array([1], "int32", b"\0" * 4)})),
            "float32 of shape [2] takes 8 bytes, its chunks have 8",
        ),
        (chunked(tree_of(**{"0": b"\x02"}), HELD), "float32 of shape [2] takes 8 bytes, its chunks have 4"),
        (chunked(b"\x80", HELD), ""),
    ],
)
def test_what_is_no_array_in_chunks(tmp_path: Path, content: bytes, message: str) -> None:
    if message:
        assert refused(tmp_path / "x", content) == f": tensor 'x' at byte 3: {message}"
        return
    (tmp_path / "x").write_bytes(content)
    with fm.open_source(str(tmp_path / "x")) as source:  # a scalar
        assert source.read("x").tolist() == 0.0


def test_of_chunks_that_are_wrong_the_array_is_named(tmp_path: Path) -> None:
    found = refused(tmp_path / "x", chunked(ONE, tree_of(**{"0": array([1], "float31", b"\0" * 4)})))
    assert found.startswith(": tensor 'x' at byte ")
    assert found.endswith(": the dtype 'float31' is unknown")
    huge = refused(tmp_path / "x", chunked(tree_of(**{"0": mp.number(1 << 62), "1": mp.number(1 << 62)}), HELD))
    assert huge.startswith(": tensor 'x': tensor bytes: ")
    many = tree_of(**{str(n): b"\x01" for n in range(3)})
    (tmp_path / "x").write_bytes(chunked(many, HELD))
    for budget, told in (
        (Budget(rank=2), ": tensor 'x': rank: 3 asked for, at most 2 allowed"),
        (Budget(tensors=3), ""),
    ):
        if not told:
            with fm.open_source(str(tmp_path / "x"), budget=budget) as source:
                assert source.specs()["x"].shape == (1, 1, 1)
            continue
        with pytest.raises(BudgetExceeded) as caught:
            fm.open_source(str(tmp_path / "x"), budget=budget)
        assert str(caught.value) == f"{tmp_path / 'x'}{told}"
    none = array([0], "float32", b"")
    (tmp_path / "x").write_bytes(chunked(ONE, tree_of(**{"0": none, "1": none, "2": CHUNK})))
    with pytest.raises(BudgetExceeded) as caught:
        fm.open_source(str(tmp_path / "x"), budget=Budget(tensors=2))
    assert str(caught.value) == f"{tmp_path / 'x'}: tensor 'x': tensors: 3 asked for, at most 2 allowed"


def test_empty_arrays_in_chunks(tmp_path: Path) -> None:
    none = array([0], "float32", b"")
    (tmp_path / "x").write_bytes(chunked(tree_of(**{"0": b"\x00", "1": b"\x05"}), tree_of(**{"0": none})))
    with fm.open_source(str(tmp_path / "x")) as source:
        assert source.read("x").shape == (0, 5)


@pytest.mark.parametrize("pair", [b"\x01\x02", b"\x01\xca\x40\x00\x00\x00", b"\xca\x3f\x80\x00\x00\x02"])
def test_complex_numbers_of_any_numbers(tmp_path: Path, pair: bytes) -> None:
    inside = b"\x92" + pair
    (tmp_path / "x").write_bytes(tree_of(a=mp.head(mp.EXT, len(inside), fm.COMPLEX) + inside))
    with fm.open_source(str(tmp_path / "x")) as source:
        assert source.read("a") == pytest.approx(1 + 2j)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_runs_are_read_as_if_they_were_one(sizes: list[int], draw: st.DataObject) -> None:
    """The bytes of the runs one after the other, and none in between."""
    asked: list[tuple[int, int, str | None]] = []
    held = bytes(range(200))

    class Held:
        path = "held"

        def read(self, offset: int, count: int, *, tensor: str | None = None) -> bytes:
            asked.append((offset, count, tensor))
            return held[offset : offset + count]

        def read_into(self, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
            buffer[:] = self.read(offset, len(buffer), tensor=tensor)

        def check(self, offset: int, count: int, *, tensor: str | None = None) -> None:
            asked.append((offset, count, tensor))

    runs = [(10 + 20 * n, size) for n, size in enumerate(sizes)]
    whole = b"".join(held[start : start + size] for start, size in runs)
    joined: Any = fm._Runs(Held(), runs)  # type: ignore[arg-type]
    assert joined.size == len(whole)
    offset = draw.draw(st.integers(0, len(whole)))
    count = draw.draw(st.integers(0, len(whole) - offset))
    assert joined.read(offset, count, tensor="w") == whole[offset : offset + count]
    spans = asked.copy()
    assert all(size and name == "w" for _, size, name in spans)
    into = bytearray(count)
    joined.read_into(offset, memoryview(into), tensor="w")
    assert bytes(into) == whole[offset : offset + count]
    joined.check(offset, count, tensor="w")
    assert asked == spans * 3
