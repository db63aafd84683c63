"""Checkpoints of Orbax, as Orbax writes them: every way it stores arrays, folders of steps, and damage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.formats._arrays import same
from tests.formats.test_flax_msgpack import stored
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, MissingPackage, TensorNotFound
from weightport.formats import _jax_paths, _orbax_store
from weightport.formats import orbax_folder as of
from weightport.formats.detect import detect
from weightport.formats.files import digest, files_of
from weightport.tensors import Budget, TensorSpec

KERNEL = np.arange(60, dtype=np.float32).reshape(5, 12)
NAN = np.array([0x7FA00001, 0xFFC12345, 0x80000000, 1], np.uint32).view(np.float32)
BF16 = np.array([0x7F81, 0x8000, 1], np.uint16).view(ml_dtypes.bfloat16)


def tree() -> dict[str, Any]:
    return {
        "params": {"enc": {"kernel": KERNEL, "bias": NAN}, "heads": [BF16, np.zeros((2, 2), np.float16)]},
        "ops": {
            "int": np.arange(3, dtype=np.int8),
            "flag": np.array([True, False]),
            "big": np.array([1 << 63], np.uint64),
        },
        "complex": np.array([1 + 2j], np.complex64),
        "step": np.int64(7),
        "rate": 0.5,
        "text": "hello",
        "nothing": None,
        "empty": {},
        "déjà/vu.x": np.ones(1, np.float32),
    }


ARRAYS = {
    "params/enc/kernel": KERNEL,
    "params/enc/bias": NAN,
    "params/heads/0": BF16,
    "params/heads/1": np.zeros((2, 2), np.float16),
    "ops/int": np.arange(3, dtype=np.int8),
    "ops/flag": np.array([True, False]),
    "ops/big": np.array([1 << 63], np.uint64),
    "complex": np.array([1 + 2j], np.complex64),
    "step": np.array(7, np.int64),
    "rate": np.array(0.5),
    "déjà/vu.x": np.ones(1, np.float32),
}
KINDS = {
    "ocdbt": {"use_ocdbt": True},
    "folders": {"use_ocdbt": False},
    "ocdbt-zarr3": {"use_ocdbt": True, "use_zarr3": True},
    "folders-zarr3": {"use_ocdbt": False, "use_zarr3": True},
}


def saved(path: Path, found: Any, **options: Any) -> str:
    """A checkpoint that Orbax writes; the kernel in chunks of 5 x 4."""
    ocp, jax = need("orbax.checkpoint"), need("jax")
    args = jax.tree.map(lambda x: ocp.SaveArgs(chunk_byte_size=80 if np.shape(x) == (5, 12) else None), found)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(found, save_args=args))
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("orbax")
    return {kind: saved(folder / kind, tree(), **options) for kind, options in KINDS.items()}


@pytest.fixture
def copied(checkpoints: dict[str, str], tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(checkpoints[kind], tmp_path / kind))

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_orbax_writes(kind: str, checkpoints: dict[str, str]) -> None:
    path = checkpoints[kind]
    assert detect(path) == "orbax"
    with wp.open(path) as source:
        assert source.format == "orbax"
        assert {n: (s.dtype, s.shape, s.nbytes) for n, s in source.specs().items()} == {
            n: (a.dtype, a.shape, a.nbytes) for n, a in ARRAYS.items()
        }
        for name, array in ARRAYS.items():
            found = source.read(name)
            assert same(found, array), name
            assert found.flags.owndata
        assert source.specs()["step"].role == "counter"
        assert source.facts(["rate"]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_partial_reads_are_slices(kind: str, checkpoints: dict[str, str]) -> None:
    cuts = st.tuples(
        st.builds(slice, st.integers(0, 5), st.integers(0, 5), st.sampled_from([None, 1, 2, 3])),
        st.builds(slice, st.integers(0, 12), st.integers(0, 12), st.sampled_from([None, 1, 2, 5])),
    )
    with of.open_source(checkpoints[kind]) as source:

        @settings(max_examples=25, deadline=None)
        @given(cuts)
        def check(index: tuple[slice, slice]) -> None:
            assert same(source.read("params/enc/kernel", index), np.array(KERNEL[index], order="C"))
            assert same(source.read("params/enc/kernel", index[:1]), np.array(KERNEL[index[0]], order="C"))

        check()
        assert same(source.read("params/enc/bias", (slice(1, 3),)), NAN[1:3].copy())
        with pytest.raises(Error, match="an index of 1 axes for a tensor of 0"):
            source.read("step", (slice(1),))
        with pytest.raises(TensorNotFound, match="closest: 'params/enc/kernel'"):
            source.read("params/enc/kernal")
    with pytest.raises(FormatError, match="is closed"):
        source.read("step")


def test_only_the_chunks_that_are_needed_are_read(copied: Callable[[str], Path]) -> None:
    """The kernel's chunks: without the last, the first ones still give their columns."""
    folder = copied("folders")
    (folder / "params.enc.kernel" / "0.2").unlink()
    with of.open_source(str(folder)) as source:
        assert same(source.read("params/enc/kernel", (slice(0, 5), slice(0, 8))), KERNEL[:, :8].copy())
        with pytest.raises(FormatError, match=r"tensor 'params/enc/kernel': tensorstore cannot read it: .*is missing"):
            source.read("params/enc/kernel")


@pytest.mark.parametrize("kind", ["folders", "ocdbt"])
def test_chunks_are_kept_within_bounds(kind: str, checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that are small, large, or forgotten in between: the same values, and at most one that is large."""
    monkeypatch.setattr(_orbax_store, "CACHE", 300)
    monkeypatch.setattr(_orbax_store, "_OPENED", 2)
    source = of.open_source(checkpoints[kind])
    for _ in range(2):
        for name, array in ARRAYS.items():
            for row in range(len(array) if array.ndim else 0):
                assert same(source.read(name, (slice(row, row + 1),)), array[row : row + 1])
            assert same(source.read(name), array)
    store = source._store
    assert store._large is not None
    assert store._large[0] == "params/enc/kernel"
    assert len(store._opened) <= 2
    source.close()
    assert store._large is None
    assert not store._opened


def test_before_orbax_stored_all_chunks_missing_ones_are_zeros(copied: Callable[[str], Path]) -> None:
    folder = copied("folders")
    meta = json.loads((folder / "_METADATA").read_text())
    del meta["store_array_data_equal_to_fill_value"]
    (folder / "_METADATA").write_text(json.dumps(meta))
    (folder / "params.enc.kernel" / "0.2").unlink()
    with of.open_source(str(folder)) as source:
        assert source.read("params/enc/kernel")[:, 8:].tolist() == [[0] * 4] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_without_metadata(kind: str, copied: Callable[[str], Path]) -> None:
    """Orbax before it had ``_METADATA``: the tree is a file of msgpack with placeholders; or only arrays are left."""
    folder = copied(kind)
    (folder / "_METADATA").unlink()
    with of.open_source(str(folder)) as source:
        assert set(source.specs()) == {n.replace("vu.x", "vu/x") for n in ARRAYS}
        assert same(source.read("params/enc/kernel"), KERNEL)
    held = "PLACEHOLDER://"
    stored(
        folder / "checkpoint",
        {
            "params": {"enc": {"kernel": f"{held}params.enc.kernel"}, "inline": np.arange(3)},
            "déjà/vu.x": f"{held}déjà/vu.x",
            "note": "text",
        },
    )
    with wp.open(folder) as source:
        assert source.format == "orbax"
        assert set(source.specs()) == {"params/inline", "params/enc/kernel", "déjà/vu.x"}
        assert same(source.read("params/enc/kernel"), KERNEL)
        assert same(source.read("params/inline", (slice(1, 3),)), np.array([1, 2]))


@pytest.mark.parametrize("bucket", [False, True])
def test_checkpoints_of_t5x(copied: Callable[[str], Path], bucket: bool) -> None:
    """Its tree of msgpack has what tensorstore is told in the place of an array, and small values themselves."""
    folder = copied("folders")
    (folder / "_METADATA").unlink()

    def told(path: str) -> dict[str, Any]:
        store = {"driver": "gcs", "bucket": "dummy"} if bucket else {"driver": "file", "path": f"{path}/"}
        inside = {"chunks": [5, 4], "compressor": {"id": "gzip"}, "shape": [5, 12], "dtype": "<f4"}
        more = {"path": path} if bucket else {}
        return {"driver": "zarr", "dtype": "float32", "kvstore": store, "metadata": inside, **more}

    optimizer = {
        "target": {"encoder": {"kernel": told("params.enc.kernel"), "scale": NAN}},
        "state": {"step": 9, "param_states": {"encoder": {"kernel": {"v": told("params.enc.bias")}}}},
    }
    nowhere = {"driver": "zarr", "kvstore": {"driver": "memory"}}  # no path: nothing of it is stored here
    stored(folder / "checkpoint", {"version": 3, "optimizer": optimizer, "cache": nowhere})
    with wp.open(folder) as source:
        assert {n: (s.shape, s.role) for n, s in source.specs().items()} == {
            "optimizer/target/encoder/kernel": ((5, 12), "weight"),
            "optimizer/target/encoder/scale": ((4,), "weight"),
            "optimizer/state/param_states/encoder/kernel/v": ((4,), "slot"),
            "optimizer/state/step": ((), "counter"),
        }
        assert same(source.read("optimizer/target/encoder/kernel"), KERNEL)
        assert same(source.read("optimizer/target/encoder/scale"), NAN)
        with pytest.raises(TensorNotFound):
            source.read("version")


def test_values_that_older_versions_keep_together(copied: Callable[[str], Path]) -> None:
    """``SaveArgs(aggregate=True)``, and all numbers: in a file of msgpack, and not to be read as arrays."""
    folder = copied("folders")
    meta = json.loads((folder / "_METADATA").read_text())
    for key, name in (("('params', 'enc', 'bias')", "params.enc.bias"), ("('rate',)", "rate")):
        meta["tree_metadata"][key]["value_metadata"]["skip_deserialize"] = True
        shutil.rmtree(folder / name)
    (folder / "_METADATA").write_text(json.dumps(meta))
    held = "PLACEHOLDER://params.enc.kernel"
    stored(folder / "checkpoint", {"params": {"enc": {"bias": NAN, "kernel": held}}, "rate": 0.5, "text": "hello"})
    with wp.open(folder) as source:
        assert set(source.specs()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            assert same(source.read(name), array)
    (folder / "checkpoint").unlink()
    with wp.open(folder) as source:
        assert {n: s.unread for n, s in source.specs().items() if s.unread} == {
            "params/enc/bias": "not stored here",
            "rate": "not stored here",
        }
        with pytest.raises(FormatError, match="tensor 'rate': is not stored here"):
            source.read("rate")


@pytest.mark.parametrize("kind", ["ocdbt", "folders", "together"])
def test_what_orbax_0_4_wrote(kind: str) -> None:
    """In ``tests/data/orbax``: numbers, or all values, in a file of msgpack."""
    need("tensorstore")
    found = Path(__file__).parents[1] / "data" / "orbax" / kind
    wanted = {
        "params/enc/kernel": KERNEL,
        "params/enc/bias": np.full(12, 0.5, np.float32),
        "params/l/0": np.ones(2, ml_dtypes.bfloat16),
        "params/l/1": np.array(3),
        "step": np.array(7),
        "rate": np.array(1.5),
    }
    with wp.open(found) as source:
        assert source.format == "orbax"
        assert set(source.specs()) == set(wanted)
        for name, array in wanted.items():
            assert same(source.read(name), array)
        assert same(source.read("params/enc/kernel", (slice(1, 3),)), KERNEL[1:3].copy())


def test_standard_checkpointer_and_training_state(tmp_path: Path) -> None:
    ocp, jax, optax = need("orbax.checkpoint"), need("jax"), need("optax")
    train_state = need("flax.training.train_state")
    params = {"dense": {"kernel": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones(2)}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "a").absolute(), state)
    with wp.open(tmp_path / "a") as source:
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


def test_states_of_nnx(tmp_path: Path) -> None:
    """The boxes of variables are no part of the names: those of the live module."""
    ocp, nnx = need("orbax.checkpoint"), need("flax.nnx")

    def made(seed: int) -> Any:
        return nnx.RNN(nnx.LSTMCell(2, 3, rngs=nnx.Rngs(seed)), rngs=nnx.Rngs(seed))

    old, new = made(0), made(1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "a").absolute(), nnx.state(old))
    with wp.open(tmp_path / "a") as source:
        assert {n for n, s in source.specs().items() if s.role == "counter"} == {"rngs/key", "rngs/count"}
        assert [(c.scope, c.layout.name) for c in source.cells()] == [("cell", "lstm.flax")]
    mapping = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}], "ignore": ["rngs/*"]}
    wp.transfer(tmp_path / "a", new, mapping)
    x = np.ones((1, 4, 2), np.float32)
    assert np.array_equal(old(x), new(x))


def test_managers_of_steps(tmp_path: Path) -> None:
    ocp = need("orbax.checkpoint")
    folder = tmp_path / "run"
    with ocp.CheckpointManager(folder.absolute()) as manager:
        for step in (5, 40, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(2, step, np.float32)}), force=True)
            manager.wait_until_finished()
    there = sorted(int(n) for n in os.listdir(folder) if n.isdigit())
    shutil.copytree(folder / "5", folder / "99.orbax-checkpoint-tmp")
    latest = str(folder / str(there[-1]) / "default")
    for path in (folder, folder / str(there[-1]), Path(latest)):
        with wp.open(path) as source:
            assert source.path == latest
            assert source.read("w").tolist() == [there[-1]] * 2
    assert files_of(folder) == sorted(str(p) for p in Path(latest).rglob("*") if p.is_file())
    assert digest(folder) == digest(latest)
    with wp.open(f"orbax:{folder}/5") as source:
        assert source.read("w").tolist() == [5, 5]


def test_items_of_one_step(tmp_path: Path) -> None:
    ocp = need("orbax.checkpoint")
    folder = tmp_path / "run"
    with ocp.CheckpointManager(folder.absolute(), item_names=("ema", "params", "extra")) as manager:
        args = {name: ocp.args.StandardSave({"w": np.ones(2, np.float32)}) for name in ("ema", "params")}
        manager.save(3, args=ocp.args.Composite(**args, extra=ocp.args.JsonSave({"a": 1})))
        manager.wait_until_finished()
    with pytest.raises(FormatError) as caught:
        wp.open(folder)
    assert str(caught.value) == (f"{folder}/3: a checkpoint of 2 trees: 'ema', 'params'; name one: {folder}/3/ema")
    with wp.open(folder / "3" / "params") as source:
        assert list(source.specs()) == ["w"]
    shutil.rmtree(folder / "3" / "ema")
    with wp.open(folder) as source:
        assert source.path == f"{folder}/3/params"
    shutil.rmtree(folder / "3" / "params")
    with pytest.raises(
        FormatError, match="a checkpoint of Orbax without a tree of arrays; it has '_CHECKPOINT_METADATA'"
    ):
        of.open_source(str(folder))


@pytest.mark.filterwarnings("ignore:Flax Checkpointing will soon be deprecated")
def test_flax_training_checkpoints(tmp_path: Path) -> None:
    checkpoints = need("flax.training.checkpoints")
    config = need("flax").config
    for orbax in (False, True):
        folder = tmp_path / str(orbax)
        before = config.flax_use_orbax_checkpointing
        config.update("flax_use_orbax_checkpointing", orbax)
        try:
            for step in (9, 10):
                checkpoints.save_checkpoint(folder, {"w": np.full(2, step, np.float32)}, step=step, keep=3)
        finally:
            config.update("flax_use_orbax_checkpointing", before)
        with wp.open(folder) as source:
            assert source.format == ("orbax" if orbax else "flax-msgpack")
            assert source.read("w").tolist() == [10, 10]


def test_a_moved_cell_from_a_folder(tmp_path: Path) -> None:
    nn, jax = need("flax.linen"), need("jax")
    made = nn.RNN(nn.OptimizedLSTMCell(4))
    x = np.ones((1, 3, 2), np.float32)
    old, new = (made.init(jax.random.key(k), x) for k in range(2))
    path = saved(tmp_path / "a", old)
    cell = {"layout": "lstm.flax", "scope": "params/cell"}
    mapping = {"weightport": 1, "rules": [{"from": cell, "to": cell}]}
    found = wp.transfer(path, new, mapping).target
    assert np.array_equal(made.apply(found, x), made.apply(old, x))
    assert wp.verify(path, found, mapping).equal
    out = tmp_path / "out.msgpack"
    wp.transfer(path, path, mapping, out=str(out))
    restored = need("flax.serialization").from_bytes(new, out.read_bytes())
    assert np.array_equal(made.apply(restored, x), made.apply(old, x))


def test_without_tensorstore(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    path = checkpoints["ocdbt"]
    with pytest.raises(MissingPackage) as caught:
        wp.open(path)
    assert str(caught.value) == (
        f"reading {path}, a checkpoint of Orbax, needs tensorstore; pip install 'weightport[orbax]'"
    )
    with of.open_source(checkpoints["folders"]) as source:  # headers are plain files
        assert source.specs()["params/enc/kernel"] == TensorSpec.of("float32", (5, 12))
        with pytest.raises(MissingPackage):
            source.read("params/enc/kernel")


def test_reading_imports_no_framework(checkpoints: dict[str, str]) -> None:
    code = (
        f"import sys, weightport as wp\nwith wp.open({checkpoints['ocdbt']!r}) as s:\n    print(s.read('rate'))\n"
        "assert not {'jax', 'flax', 'orbax', 'tensorflow'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "0.5\n"


# -- damage ---------------------------------------------------------------------------------------------------------


def changed(folder: Path, **more: Any) -> str:
    """The metadata of the kernel's array, changed; the message of what becomes of it."""
    path = folder / "params.enc.kernel" / ".zarray"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    with pytest.raises(FormatError) as caught:
        of.open_source(str(folder))
    return str(caught.value).removeprefix(f"{folder}: tensor 'params/enc/kernel': ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shape": [5, -1]}, "params.enc.kernel/.zarray: its shape or its chunks are no sizes"),
        ({"shape": [5]}, "params.enc.kernel/.zarray: its shape or its chunks are no sizes"),
        ({"chunks": None}, "params.enc.kernel/.zarray: its shape or its chunks are no sizes"),
        ({"chunks": [5, 0]}, "params.enc.kernel/.zarray: chunks of [5, 0] for the shape [5, 12]"),
        ({"chunks": [1 << 40, 12]}, "params.enc.kernel/.zarray: chunks of [1099511627776, 12] for the shape [5, 12]"),
        ({"zarr_format": 4}, "params.enc.kernel/.zarray: is of no version of zarr that is known"),
        (
            {"shape": [1 << 60, 12]},
            "tensor bytes: 55,340,232,221,128,654,848 asked for, at most 70,368,744,177,664 allowed",
        ),
    ],
)
def test_hostile_headers(copied: Callable[[str], Path], more: dict[str, Any], message: str) -> None:
    assert changed(copied("folders"), **more) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (" " * ((1 << 20) + 1), "a header of 1,048,577 bytes, at most 1,048,576 are read"),
        ("[1, 2]", "is no object of JSON"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_headers_that_are_none(copied: Callable[[str], Path], content: str, message: str) -> None:
    folder = copied("folders")
    (folder / "params.enc.kernel" / ".zarray").write_text(content)
    with pytest.raises(FormatError) as caught:
        of.open_source(str(folder))
    assert str(caught.value) == f"{folder}: tensor 'params/enc/kernel': params.enc.kernel/.zarray: {message}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shape": [5, 11]}, "its shape became [5, 11] while it was read"),
        ({"dtype": "<i4", "fill_value": 0}, "int32 [5, 12] was read"),
    ],
)
def test_headers_that_change_after_they_were_read(
    copied: Callable[[str], Path], more: dict[str, Any], message: str
) -> None:
    folder = copied("folders")
    path = folder / "params.enc.kernel" / ".zarray"
    with of.open_source(str(folder)) as source:
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
        with pytest.raises(FormatError) as caught:
            source.read("params/enc/kernel")
    assert str(caught.value) == f"{folder}: tensor 'params/enc/kernel': {message}"


def test_another_kind_of_checkpoint(tmp_path: Path) -> None:
    stored(tmp_path / "checkpoint", {"w": np.arange(3)})
    with pytest.raises(FormatError) as caught:
        of.open_source(str(tmp_path / "checkpoint"))
    assert str(caught.value) == f"{tmp_path / 'checkpoint'}: is no checkpoint of Orbax"


def test_dtypes_that_are_not_known_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("folders")
    path = folder / "params.enc.kernel" / ".zarray"
    for dtype in ([["a", "<f4"]], "<M8[s]", "|S5", "|V4"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": dtype}))
        with of.open_source(str(folder)) as source:
            assert source.specs()["params/enc/kernel"].unread == f"of the dtype {dtype!r}"
            assert same(source.read("params/enc/bias"), NAN)
            with pytest.raises(FormatError, match="tensor 'params/enc/kernel': is of the dtype"):
                source.read("params/enc/kernel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON, truncated or corrupt"),
        ("[" * 100_000, "is no JSON, truncated or corrupt"),
        ("{}", "has no tree_metadata"),
        ('{"tree_metadata": {"(1,)": {}}}', "the entry '(1,)' is no leaf of a tree"),
        (
            '{"tree_metadata": {"x": {"key_metadata": [], "value_metadata": {"value_type": "scalar"}}}}',
            "the entry 'x' has no keys",
        ),
    ],
)
def test_hostile_metadata(copied: Callable[[str], Path], content: str, message: str) -> None:
    folder = copied("folders")
    (folder / "_METADATA").write_text(content)
    with pytest.raises(FormatError) as caught:
        of.open_source(str(folder))
    assert str(caught.value) == f"{folder}/_METADATA: {message}"


def entry(*keys: str) -> dict[str, Any]:
    return {"key_metadata": [{"key": k, "key_type": 2} for k in keys], "value_metadata": {"value_type": "jax.Array"}}


@pytest.mark.parametrize("kind", ["folders", "ocdbt"])
def test_names_that_are_not_there_or_lead_out(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    shutil.copytree(folder, folder.parent / "other")
    if kind == "folders":
        os.symlink(folder.parent / "other" / "rate", folder / "link")
    for keys in (("../other/rate",), ("/etc",), ("",), ("a\0b",), ("params", "enc", "no"), ("link",)):
        (folder / "_METADATA").write_text(json.dumps({"tree_metadata": {"x": entry(*keys)}}))
        with pytest.raises(FormatError, match=r"leads out of the folder|is missing"):
            of.open_source(str(folder))
    if kind == "ocdbt":
        (folder / "_METADATA").write_text(json.dumps({"tree_metadata": {"x": entry("a", "\ud800")}}))
        with pytest.raises(FormatError, match=r"the name 'a\.\\ud800/\.zarray' is no valid text"):
            of.open_source(str(folder))
    twice = {"tree_metadata": {"x": entry("params", "enc.kernel"), "y": entry("params/enc.kernel")}}
    (folder / "_METADATA").write_text(json.dumps(twice))
    with pytest.raises(FormatError, match=r"tensor 'params/enc\.kernel': another tensor has the same name"):
        of.open_source(str(folder))


def test_pipes_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("ocdbt")
    os.mkfifo(folder / "d" / "pipe")
    with pytest.raises(FormatError, match="pipe: is not a regular file"):
        of.open_source(str(folder))
    folder = copied("folders")
    chunk = folder / "params.enc.kernel" / "0.0"
    chunk.unlink()
    os.mkfifo(chunk)
    with of.open_source(str(folder)) as source, pytest.raises(FormatError, match=r"0\.0: is not a regular file"):
        source.read("params/enc/kernel")


@pytest.mark.parametrize("kind", ["folders", "ocdbt"])
def test_links_of_a_hubs_cache_are_followed_and_others_refused(copied: Callable[[str], Path], kind: str) -> None:
    folder = copied(kind)
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    files = [p for p in folder.rglob("*") if p.is_file()]
    for number, file in enumerate(files):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    with of.open_source(str(folder)) as source:
        assert same(source.read("params/enc/kernel"), KERNEL)
    mark = folder / "params.enc.kernel" / "0.0" if kind == "folders" else next((folder / "d").iterdir())
    (folder.parent / "other").write_bytes(mark.read_bytes())
    mark.unlink()
    mark.symlink_to(folder.parent / "other")

    def read() -> None:
        with of.open_source(str(folder)) as source:
            source.read("params/enc/kernel")

    with pytest.raises(FormatError, match="is a link that leads out of the folder; copy the file there"):
        read()


def test_budget(checkpoints: dict[str, str]) -> None:
    for budget in (Budget(tensors=3), Budget(header_bytes=100), Budget(rank=1), Budget(tensor_bytes=100)):
        with pytest.raises(BudgetExceeded):
            of.open_source(checkpoints["ocdbt"], budget=budget)


QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_in_values_or_errors(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)

    @QUICK
    @given(st.sampled_from(files), st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans())
    def check(file: Path, where: float, bit: int, cut: bool) -> None:
        raw = file.read_bytes()
        at = int(where * len(raw))
        try:
            file.write_bytes(raw[:at] if cut else raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            with contextlib.suppress(Error), of.open_source(str(folder)) as source:
                for name, spec in source.specs().items():
                    with contextlib.suppress(Error):
                        assert source.read(name).shape == spec.shape
        finally:
            file.write_bytes(raw)

    check()


# -- paths ----------------------------------------------------------------------------------------------------------


def test_folders_that_are_nothing_of_jax(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "a-1"')
    (tmp_path / "a-1.index").write_bytes(b"x")
    assert _jax_paths.find(str(tmp_path)) is None
    assert _jax_paths.find(str(tmp_path / "no")) is None
    assert not of.sniff(str(tmp_path))
    with pytest.raises(FormatError, match=r"no checkpoint of Flax or Orbax in this folder; it has '1', 'a-1\.index'"):
        of.open_source(str(tmp_path))


def test_steps_of_several_names_are_unclear(checkpoints: dict[str, str], tmp_path: Path) -> None:
    for name in ("run_1", "run_20", "other_3"):
        shutil.copytree(checkpoints["ocdbt"], tmp_path / name)
    with pytest.raises(FormatError) as caught:
        wp.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: several checkpoints, of 2 kinds: 'other_3', 'run_1', 'run_20'; name one of them"
    )
    shutil.rmtree(tmp_path / "other_3")
    with wp.open(tmp_path) as source:
        assert source.path == str(tmp_path / "run_20")
