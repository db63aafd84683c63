"""Files by ranges: the same bytes whatever the tiles, threads and executor; every checksum proven; memory bounded."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import tracemalloc
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.plan.stub import Stub, document, numbers, planned
from tests.support import need, says
from weightport.checksums import crc32c
from weightport.errors import FormatError
from weightport.execute import files, mover
from weightport.execute.boxes import Sizes
from weightport.formats import npz, safetensors_file, tf_bundle, tf_bundle_write
from weightport.formats._io import CHUNK, ByteFile
from weightport.plan import plan
from weightport.tensors import Array, TensorSpec
from weightport.values import Cast, Leaf, Made, Mean

WRITE = {".ckpt": tf_bundle_write.write, ".safetensors": safetensors_file.write, ".npz": npz.write}
ARRAYS: dict[str, Array] = {
    "a": numbers(60, 48),
    "b": numbers(60, 48, seed=1),
    "c": numbers(12, 10, 9, dtype=np.float64),
    "v": np.arange(700, dtype=np.int16),
    "s": np.array(2.5, np.float32),
    "e": np.zeros((0, 4), np.float32),
    "t0": numbers(3),
    "t1": numbers(5),
    "t2": numbers(7),
}
RULES: list[dict[str, Any]] = [
    {"from": "{n}", "to": "same/{n}"},
    {"from": "a", "to": "turned", "rearrange": "i j -> j i"},
    {"from": "c", "to": "turned3", "rearrange": "i j k -> k i j"},
    {"from": "a", "to": "heads", "rearrange": {"pattern": "i (h d) -> h i d", "h": 4}},
    {"from": "a", "to": "shaped", "reshape": [48, 60]},
    {"from": "a", "to": "sliced", "slice": "3:57:2, 5:40:3"},
    {"from": "a", "to": "cast", "scale": 0.3, "cast": "float16"},
    {"from": "a", "to": "padded", "pad": [[3, 5], [1, 0]]},
    {"from": ["a", "b"], "to": "joined", "concat": 1},
    {"from": ["a", "b", "a"], "to": "joined turned", "concat": 0, "rearrange": "i j -> j i"},
    {"from": "a", "to": ["p", "q", "r"], "split": {"axis": 1, "sizes": [8, 24, 16]}},
    {"from": "v", "to": "every third", "slice": "::3"},
    {"from": "e", "to": "nothing turned", "rearrange": "i j -> j i"},
    {"from": ["e", "e"], "to": "nothing joined", "concat": 1},
]

#: A fork of a process in which a framework has threads may hang; and frameworks warn of it.
SPAWN = multiprocessing.get_context("spawn")


def save(path: Path, arrays: Mapping[str, Array], suffix: str = ".ckpt") -> str:
    def tiles(name: str) -> Iterator[Array]:
        yield arrays[name]

    target = str(path.with_suffix(suffix))
    WRITE[suffix](target, {n: TensorSpec.of(a.dtype, a.shape) for n, a in arrays.items()}, tiles)
    return target


def content(path: str) -> bytes:
    """All files of a model, one after the other."""
    folder, base = os.path.split(path)
    names = sorted(n for n in os.listdir(folder) if n == base or n.startswith(f"{base}."))
    return b"".join(Path(folder, n).read_bytes() for n in names)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sources")
    return {suffix: save(folder / "model", ARRAYS, suffix) for suffix in WRITE}


@pytest.fixture(scope="module")
def expected() -> dict[str, Array]:
    """What the rules make, by numpy."""
    a, b, c, v = (ARRAYS[n] for n in "abcv")
    joined = np.concatenate([a, b], 1)
    padded = np.pad(a, [(3, 5), (1, 0)])
    return {
        **{f"same/{n}": array for n, array in ARRAYS.items()},
        "turned": a.T,
        "turned3": c.transpose(2, 0, 1),
        "heads": a.reshape(60, 4, 12).transpose(1, 0, 2),
        "shaped": a.reshape(48, 60),
        "sliced": a[3:57:2, 5:40:3],
        "cast": (a * np.float32(0.3)).astype(np.float16),
        "padded": padded,
        "joined": joined,
        "joined turned": np.concatenate([a, b, a]).T,
        "p": a[:, :8],
        "q": a[:, 8:32],
        "r": a[:, 32:],
        "every third": v[::3],
        "nothing turned": ARRAYS["e"].T,
        "nothing joined": np.zeros((0, 8), np.float32),
    }


@contextlib.contextmanager
def sizes(**changed: int) -> Iterator[None]:
    before, files.SIZES = files.SIZES, Sizes(**changed)
    try:
        yield
    finally:
        files.SIZES = before


def test_rows_that_are_longer_than_what_may_be_held(tmp_path: Path) -> None:
    """Tensors side by side, cut across the rows that they are put together from."""
    a = np.arange(8000, dtype=np.float32).reshape(8, 1000)
    source, out = save(tmp_path / "m", {"a": a, "b": a + 0.5}), str(tmp_path / "o.safetensors")
    with sizes(task=4000, tile=9000, hold=2000, chunk=512):
        wp.transfer(source, None, document([{"from": ["a", "b"], "to": "x", "concat": 1}]), out=out)
    with wp.open(out) as made:
        np.testing.assert_array_equal(made.read("x"), np.concatenate([a, a + np.float32(0.5)], 1))


@pytest.mark.parametrize("source", WRITE)
@pytest.mark.parametrize("suffix", WRITE)
def test_every_operation(
    source: str, suffix: str, sources: dict[str, str], expected: dict[str, Array], tmp_path: Path
) -> None:
    out = str(tmp_path / f"out{suffix}")
    wp.transfer(sources[source], None, document(RULES), out=out)
    with wp.open(out) as made:
        assert set(made.specs()) == set(expected)
        for name, array in expected.items():
            found = made.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == np.ascontiguousarray(array).tobytes(), name


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_same_bytes_whatever_the_tiles_and_threads(
    data: st.DataObject, sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = sources[data.draw(st.sampled_from(sorted(WRITE)))]
    suffix = data.draw(st.sampled_from(sorted(WRITE)))
    folder = tmp_path_factory.mktemp("out")
    rules = data.draw(st.lists(st.sampled_from(RULES), min_size=1, unique_by=lambda r: str(r["to"])))
    mapping = document(rules, ignore=["*"] if RULES[0] not in rules else [])
    if mapping.get("ignore"):
        mapping["ignore"] = [n for n in ARRAYS if not any(n == f or n in f for r in rules for f in [r["from"]])]
    plain, other = str(folder / f"plain{suffix}"), str(folder / f"other{suffix}")
    wp.transfer(source, None, mapping, out=plain, threads=1)
    drawn = {
        name: data.draw(st.integers(200, most), label=name)
        for name, most in [
            ("hold", 1 << 15),
            ("task", 1 << 14),
            ("tile", 1 << 13),
            ("chunk", 1 << 12),
            ("small", 1 << 15),
        ]
    }
    with sizes(**drawn):
        wp.transfer(source, None, mapping, out=other, threads=data.draw(st.integers(1, 5), label="threads"))
    assert content(plain) == content(other)


def test_any_executor(sources: dict[str, str], tmp_path: Path) -> None:
    class Inline(Executor):
        """Tasks that go through pickle, twice each."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            fn, args = pickle.loads(pickle.dumps((fn, args)))
            future: Future[Any] = Future()
            fn(*args)
            future.set_result(pickle.loads(pickle.dumps(fn(*args, **kwargs))))
            return future

    plain = str(tmp_path / "plain.ckpt")
    rules = [*RULES, {"to": "new", "initialize": {"truncated_normal": {"stddev": 0.5}}}]
    target = save(tmp_path / "target", {"new": numbers(40, 30), **_made(sources, tmp_path)}, ".npz")
    wp.transfer(sources[".ckpt"], target, document(rules), out=plain, threads=1)
    for number, executor in enumerate([Inline(), ThreadPoolExecutor(3), ProcessPoolExecutor(2, SPAWN)]):
        out = str(tmp_path / f"{number}.ckpt")
        with executor:
            wp.transfer(sources[".ckpt"], target, document(rules), out=out, executor=executor)
        assert content(out) == content(plain)


def _made(sources: dict[str, str], folder: Path) -> dict[str, Array]:
    out = str(folder / "shapes.npz")
    wp.transfer(sources[".npz"], None, document(RULES), out=out)
    with wp.open(out) as made:
        return {name: made.read(name) for name in made.specs()}


def test_a_worker_in_another_process_says_what_is_wrong(tmp_path: Path) -> None:
    source = save(tmp_path / "m", {"a": numbers(4, 4)})
    with ProcessPoolExecutor(1, SPAWN) as pool, pytest.raises(wp.Error) as caught:
        wp.transfer(source, None, document([{"from": "a", "to": "b", "scale": 1e300, "cast": "int8"}]),
                    out=str(tmp_path / "o.npz.safetensors"), executor=pool)  # fmt: skip
    assert "is outside the range of int8" in str(caught.value)
    assert caught.value.problems[0].hint == "cast to a wider dtype, or keep this one"
    assert not list(tmp_path.glob("*o.npz*"))


# Proof ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [r for r in RULES if "nothing" not in r["to"]], ids=lambda r: str(r["to"]))
@pytest.mark.parametrize("tile", [1 << 20, 1 << 8])
def test_a_flipped_bit_is_found_wherever_it_is(rule: dict[str, Any], tile: int, tmp_path: Path) -> None:
    small = {} if tile == 1 << 20 else dict.fromkeys(("hold", "task", "tile", "small"), tile)
    path = save(tmp_path / "m", {n: ARRAYS[n] for n in "abcv"})
    with tf_bundle.open_source(path) as source:
        name = rule["from"] if isinstance(rule["from"], str) and rule["from"] in ARRAYS else "a"
        place = source.extent(name)
    assert place is not None
    mapping = document([rule], ignore=[n for n in "abcv" if RULES[0] is not rule and n not in rule["from"]])
    out = tmp_path / "o.safetensors"
    for at in (0, place.nbytes // 2, place.nbytes - 1):
        before = Path(place.path).read_bytes()
        broken = bytearray(before)
        broken[place.offset + at] ^= 4
        Path(place.path).write_bytes(broken)
        with sizes(**small), pytest.raises(FormatError) as caught:
            wp.transfer(path, None, mapping, out=str(out))
        told = (
            f"{place.path}: tensor {name!r} at byte {place.offset}: corrupt: the checksum of its {place.nbytes} bytes"
        )
        assert str(caught.value).startswith(told)
        assert sorted(f.name for f in tmp_path.iterdir()) == ["m.ckpt.data-00000-of-00001", "m.ckpt.index"]
        Path(place.path).write_bytes(before)


def test_a_shard_that_is_too_short(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {"a": numbers(100, 100), "b": numbers(100, 100)})
    data = tmp_path / "m.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(FormatError, match="tensor 'b' at byte 40000: truncated or corrupt"):
        wp.transfer(path, None, document([{"from": "{x}", "to": "{x}"}]), out=str(tmp_path / "o.safetensors"))
    assert not list(tmp_path.glob("*o.safetensors*"))


def test_a_source_that_changes_is_an_error_and_nothing_is_left(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {"a": numbers(100, 100)})
    data = tmp_path / "m.ckpt.data-00000-of-00001"
    out = tmp_path / "o.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(FormatError, match="the file changed while it was read"):
        wp.transfer(
            path, None, document([{"from": "a", "to": "a"}]), out=str(out), on_plan=lambda _: os.utime(data, ns=(1, 1))
        )
    assert out.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 3


def test_the_frameworks_read_what_was_written_out_of_order(
    sources: dict[str, str], expected: dict[str, Array], tmp_path: Path
) -> None:
    tf = need("tensorflow")
    numpy = need("safetensors.numpy")
    for suffix in (".ckpt", ".safetensors"):
        wp.transfer(sources[".ckpt"], None, document(RULES), out=str(tmp_path / f"out{suffix}"), threads=3)
    reader = tf.train.load_checkpoint(str(tmp_path / "out.ckpt"))
    tensors = numpy.load_file(str(tmp_path / "out.safetensors"))
    for name, array in expected.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)
        np.testing.assert_array_equal(tensors[name], array)


def test_two_readings_with_two_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read does not have its checksum, but the file has: it was not the file."""
    path = save(tmp_path / "m", {"a": numbers(100, 100)})
    plain = files.run

    def flipping(task: Any) -> Any:
        done = plain(task)
        done.read = [(side, name, (at, size, crc ^ 1)) for side, name, (at, size, crc) in done.read]
        return done

    monkeypatch.setattr(files, "run", flipping)
    what = "was read twice with two results: is the disk or the memory damaged?"
    for threads in (1, 2):
        with says(FormatError, f"{path}.data-00000-of-00001: tensor 'a': {what}"):
            wp.transfer(path, None, document([{"from": "a", "to": "b"}]), out=str(tmp_path / "o.ckpt"), threads=threads)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("threads", [1, 3])
def test_a_job_of_which_nobody_is_told(threads: int, tmp_path: Path) -> None:
    with wp.open(save(tmp_path / "m", {"a": ARRAYS["a"], "v": ARRAYS["v"]})) as source:
        made = plan(source, None, wp.load_mapping(document([{"from": "{n}", "to": "new/{n}"}])))
        out = str(tmp_path / "o.safetensors")
        assert files.write_file(made, source, None, out, safetensors_file.write, threads=threads)
    with wp.open(out) as found:
        assert found.read("new/a").tobytes() == ARRAYS["a"].tobytes()
        assert found.read("new/v").tobytes() == ARRAYS["v"].tobytes()


def test_values_that_are_not_what_the_source_says(tmp_path: Path) -> None:
    class Lying(Stub):
        def read(self, name: str, index: Any = None) -> Array:
            return super().read(name, index).astype(np.float64)

    source = Lying({"a": ARRAYS["a"]})
    made = planned(source, None, [{"from": "a", "to": "b"}])
    with says(wp.Error, "'b': float64[60, 48] was made for float32[60, 48]"):
        files.write_file(made, source, None, str(tmp_path / "o.ckpt"), tf_bundle_write.write)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_has_a_place(tmp_path: Path) -> None:
    """Texts are written at once: no task is left."""
    path = save(tmp_path / "m", {"t": np.array([b"ab", b"c"], object)})
    wp.transfer(path, None, document([{"from": "t", "to": "u"}]), out=str(tmp_path / "o.ckpt"))
    with wp.open(str(tmp_path / "o.ckpt")) as made:
        assert made.read("u").tolist() == [b"ab", b"c"]


def test_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert files.processors() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert files.processors() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert files.processors() == 1


@pytest.mark.parametrize(
    ("shape", "most", "steps"),
    [
        ((6, 5), 1000, (6, 5)),
        ((6, 5), 120, (6, 5)),
        ((6, 5), 119, (5, 5)),
        ((6, 5), 40, (2, 5)),
        ((6, 5), 20, (1, 5)),
        ((6, 5), 19, (1, 4)),
        ((6, 5), 4, (1, 1)),
        ((6, 5), 3, (1, 1)),
        ((3, 4, 5), 45, (1, 2, 5)),
        ((7,), 8, (2,)),
    ],
)
def test_rows_at_a_time(shape: tuple[int, ...], most: int, steps: tuple[int, ...]) -> None:
    """Of a large tensor that is copied as it is: consecutive bytes, as many as may be."""
    assert files._rows(TensorSpec.of("float32", shape), most) == steps


def test_what_was_not_read_yet_is_read_for_its_checksum(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(2 * CHUNK + 5)
    (tmp_path / "f").write_bytes(data)
    read = files._rest(str(tmp_path / "f"), "crc32c", "t")
    assert read(3, len(data) - 3) == crc32c(data[3:])
    what = f"truncated or corrupt: bytes 3..{len(data) + 3} asked for, the file has {len(data)}"
    with says(FormatError, f"{tmp_path / 'f'}: tensor 't' at byte 3: {what}"):
        read(3, len(data))


def test_what_is_made_whole_is_not_cut() -> None:
    """An average, and what an initializer makes at once, would be made again for every piece."""
    spec = TensorSpec.of("float32", (4, 3))
    leaf = Leaf("a", spec)
    made = Made(spec.shape, spec.dtype, lambda: np.zeros((4, 3), np.float32))
    by_rows = replace(made, rows=lambda start, stop: np.zeros((stop - start, 3), np.float32))
    mean = Mean(leaf, 0, 4)
    assert [files._is_one(e) for e in (leaf, by_rows, mean, made)] == [False, False, True, True]
    assert [files._is_one(Cast(e, np.dtype(np.float64))) for e in (leaf, by_rows, mean, made)] == [
        False, False, True, True,
    ]  # fmt: skip


def test_what_a_writer_checks_before() -> None:
    class Checking:
        asked: Any = None

        def check(self, path: str, specs: Any, *, constants: set[str], kept: set[str]) -> None:
            self.asked = path, specs, constants, kept

    source, target = Stub({"a": (2,), "b": (3,)}), Stub({"x": (2,), "y": (3,), "z": (4,)})
    made = planned(source, target, [{"from": "a", "to": "x"}, {"from": "b", "to": "y", "as": "constant"}], keep=["z"])
    writer: Any = Checking()
    files.check_file(made, target, "o", writer)
    assert writer.asked == ("o", dict(target.specs()), {"y"}, {"z"})
    files.check_file(made, None, "o", writer)
    assert writer.asked[1:] == ({n: target.specs()[n] for n in "xy"}, {"y"}, set())
    files.check_file(made, target, "o", print)


# Counters ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every read of a file by position: its path, the offset and the size."""
    found: list[tuple[str, int, int]] = []
    paths: dict[int, str] = {}
    opened, scattered, plain = ByteFile.__init__, os.preadv, os.pread

    def noted(self: ByteFile, path: str) -> None:
        opened(self, path)
        paths[self._fd] = self.path

    def into(handle: int, buffers: Any, offset: int) -> int:
        found.append((paths[handle], offset, sum(map(len, buffers))))
        return scattered(handle, buffers, offset)

    def read(handle: int, count: int, offset: int) -> bytes:
        found.append((paths[handle], offset, count))
        return plain(handle, count, offset)

    monkeypatch.setattr(ByteFile, "__init__", noted)
    monkeypatch.setattr(os, "preadv", into)
    monkeypatch.setattr(os, "pread", read)
    return found


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all writes by position."""
    found: list[int] = []
    plain, gathered = os.pwrite, os.pwritev

    def counted(handle: int, view: memoryview, offset: int) -> int:
        found.append(len(view))
        return plain(handle, view, offset)

    def together(handle: int, parts: Any, offset: int) -> int:
        found.append(sum(map(len, parts)))
        return gathered(handle, parts, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    monkeypatch.setattr(os, "pwritev", together)
    return found


BIG = numbers(2000, 1500)
LARGE: dict[str, tuple[dict[str, Any], int]] = {
    # the rule, and how often each byte is read at most, in hundredths
    "same": ({"from": "w", "to": "o"}, 100),
    "turned": ({"from": "w", "to": "o", "rearrange": "i j -> j i"}, 100),
    "gates": ({"from": "w", "to": "o", "rearrange": {"pattern": "i (g u) -> g i u", "g": 3}}, 100),
    "cast": ({"from": "w", "to": "o", "cast": "float64"}, 100),
    "joined": ({"from": ["w", "w"], "to": "o", "concat": 1}, 100),
    "halves": ({"from": "w", "to": ["o", "p"], "split": 1}, 200),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_tensor_larger_than_memory_is_read_once_and_proven(
    name: str, reads: list[tuple[str, int, int]], writes: list[int], tmp_path: Path
) -> None:
    rule, most = LARGE[name]
    path = save(tmp_path / "m", {"w": BIG})
    wp.transfer(path, None, document([rule]), out=str(tmp_path / "o.ckpt"), dry_run=True)  # imports what it needs
    reads.clear()
    writes.clear()
    tracemalloc.start()
    try:
        with sizes(hold=1 << 20, task=1 << 18, tile=1 << 16, small=1 << 16):
            wp.transfer(path, None, document([rule]), out=str(tmp_path / "o.ckpt"), threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    data = [size for file, _, size in reads if ".data-" in file]
    assert sum(data) <= BIG.nbytes * most // 100
    assert peak < 4 << 20
    assert min(len(data), len(writes)) >= 12
    # System calls: of tens of kilobytes, or of a kilobyte where rows and columns change places in so little memory.
    least = {"turned": 1000, "gates": 1000, "joined": 15_000}
    assert (sum(data) + sum(writes)) / (len(data) + len(writes)) >= least.get(name, 30_000)
    with tf_bundle.open_source(str(tmp_path / "o.ckpt")) as made:
        assert all(made.read(n).size for n in made.specs())  # verified against the checksums that were written


@pytest.mark.parametrize("units", [64, 1100])
def test_gates_in_another_order_are_read_in_whole_rows_and_written_in_few_calls(
    units: int, reads: list[tuple[str, int, int]], writes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel, bias = numbers(500_000 // units + units, 4 * units), numbers(4 * units)
    path = save(tmp_path / "m", {"rnn/lstm_cell/kernel": kernel, "rnn/lstm_cell/bias": bias})
    reads.clear()
    writes.clear()
    tiles: list[int] = []  # which the general way makes
    general = mover.read_into
    monkeypatch.setattr(mover, "read_into", lambda *given: (tiles.append(given[-1].nbytes), general(*given)))
    rule = {"from": {"layout": "lstm.tf1", "scope": "rnn"}, "to": {"layout": "lstm.keras", "scope": "lstm"}}
    wp.transfer(path, None, document([rule]), out=str(tmp_path / "o.ckpt"), threads=1)
    data = [size for file, _, size in reads if ".data-" in file]
    assert sum(data) == sum(writes) == kernel.nbytes + bias.nbytes
    assert tiles == [bias.nbytes]
    assert len(data) <= kernel.nbytes // (256 << 10) * 1.3
    assert len(writes) <= kernel.nbytes // (1 << 20) * 1.3 + 4  # the ends of both kernels, and the bias
    assert max(writes) <= 1 << 20
    with tf_bundle.open_source(str(tmp_path / "o.ckpt")) as made:
        (cell,) = (name.removesuffix("/bias") for name in made.specs() if name.endswith("/bias"))
        i, j, f, o = np.split(kernel, 4, 1)
        moved = np.concatenate([i, f, j, o], 1)
        np.testing.assert_array_equal(made.read(f"{cell}/kernel"), moved[:-units])
        np.testing.assert_array_equal(made.read(f"{cell}/recurrent_kernel"), moved[-units:])


def test_rows_and_columns_change_places_with_few_calls_and_little_memory(
    reads: list[tuple[str, int, int]], writes: list[int], tmp_path: Path
) -> None:
    array = numbers(1500, 3000)
    path = save(tmp_path / "m", {"w": array})
    rule = {"from": "w", "to": "o", "rearrange": "i j -> j i"}
    wp.transfer(path, None, document([rule]), out=str(tmp_path / "warm.ckpt"), threads=1)
    reads.clear()
    writes.clear()
    tracemalloc.start()
    try:
        wp.transfer(path, None, document([rule]), out=str(tmp_path / "o.ckpt"), threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    data = [size for file, _, size in reads if ".data-" in file]
    assert sum(data) == sum(writes) == array.nbytes
    assert min(data[:-1]) == 256 << 10
    assert len(writes) <= 2 * (array.nbytes // (1 << 20) + 1)
    assert max(writes) <= 1 << 20
    assert array.nbytes < peak < array.nbytes + (4 << 20)  # the source, a tile and a block


def test_a_system_that_writes_less_than_it_was_asked_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, view, offset: plain(handle, view[:70_000], offset))
    monkeypatch.setattr(os, "pwritev", lambda handle, parts, offset: plain(handle, parts[0][:3000], offset))
    left, right = numbers(90, 4400), numbers(90, 2200, seed=1)
    path = save(tmp_path / "m", {"a": left, "b": right})
    rules = [{"from": ["b", "a"], "to": "o", "concat": 1}, {"from": "a", "to": "t", "rearrange": "i j -> j i"}]
    wp.transfer(path, None, document(rules), out=str(tmp_path / "o.ckpt"))
    with tf_bundle.open_source(str(tmp_path / "o.ckpt")) as made:
        np.testing.assert_array_equal(made.read("o"), np.concatenate([right, left], 1))
        np.testing.assert_array_equal(made.read("t"), left.T)


def test_small_tensors_side_by_side_are_copied_together(
    reads: list[tuple[str, int, int]], writes: list[int], tmp_path: Path
) -> None:
    path = save(tmp_path / "m", {f"layer/{n:04d}": numbers(5, 3, seed=n) for n in range(1000)})
    reads.clear()
    writes.clear()
    wp.transfer(path, None, document([{"from": "layer/{x}", "to": "l/{x}"}]), out=str(tmp_path / "o.ckpt"))
    assert len([r for r in reads if ".data-" in r[0]]) == 1
    assert writes == [60_000]
    with tf_bundle.open_source(str(tmp_path / "o.ckpt")) as made:
        for n in (0, 1, 999):
            np.testing.assert_array_equal(made.read(f"l/{n:04d}"), numbers(5, 3, seed=n))


def test_no_task_is_small_but_the_last(tmp_path: Path) -> None:
    # Kernels and biases alternate: a bias goes along with the kernel behind it.
    arrays = {f"l{n}/{kind}": numbers(*shape) for n in range(4) for kind, shape in (("b", (64,)), ("k", (64, 64)))}
    rules = [{"from": "{l}/k", "to": "{l}/k", "rearrange": "i o -> o i"}, {"from": "{l}/b", "to": "{l}/b"}]
    with tf_bundle.open_source(save(tmp_path / "m", arrays)) as source:
        items = files._items(plan(source, None, wp.load_mapping(document(rules))), None)

        class Out:
            places: Mapping[str, tuple[str, int]] = dict.fromkeys(sorted(items), ("file", 0))
            checksum = None

        sizes = Sizes(task=9000, tile=4096, chunk=1024, hold=20_000)
        tasks = list(files.Job([source], items, None, None, sizes).tasks(Out()))  # type: ignore[arg-type]
    names = [[piece.name for piece in task.pieces] for task in tasks]
    assert names == [["l0/b", "l0/k"], ["l1/b", "l1/k"], ["l2/b", "l2/k"], ["l3/b", "l3/k"]]


def test_progress_is_all_bytes(sources: dict[str, str], tmp_path: Path) -> None:
    for suffix in WRITE:
        told: list[int] = []
        result = wp.transfer(
            sources[".ckpt"], None, document(RULES), out=str(tmp_path / f"o{suffix}"), progress=told.append
        )
        assert sum(told) == sum(spec.nbytes for spec in result.plan.specs.values())


def test_a_failed_task_stops_the_others(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m", {f"w{n:02d}": np.full((100, 100), 1e9 if n == 50 else 1, np.float32) for n in range(100)}
    )
    told: list[int] = []
    with sizes(task=1), pytest.raises(wp.Error, match=r"cast of 'w50': 1000000000\.0 is outside"):
        wp.transfer(path, None, document([{"from": "{x}", "to": "{x}", "cast": "int8"}]),
                    out=str(tmp_path / "o.safetensors"), threads=2, progress=told.append)  # fmt: skip
    assert len(told) == 50
    assert not list(tmp_path.glob("*o.safetensors*"))


# Copies inside the system --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, errno.EXDEV, errno.ENOSYS])
def test_bytes_that_nobody_has_to_see_are_copied_inside_the_system(
    error: int | None, reads: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copied: list[int] = []
    plain = os.copy_file_range

    def counted(source: int, target: int, count: int, *places: int) -> int:
        if error is not None:
            raise OSError(error, "no")
        copied.append(min(count, 100_000))
        return plain(source, target, min(count, 100_000), *places)

    monkeypatch.setattr(os, "copy_file_range", counted)
    path = save(tmp_path / "m", {"w": BIG}, ".safetensors")
    reads.clear()
    out = str(tmp_path / "o.safetensors")
    with sizes(task=5 << 20):
        wp.transfer(path, None, document([{"from": "w", "to": "o"}]), out=out, threads=1)
    assert sum(copied) == (BIG.nbytes if error is None else 0)
    assert sum(size for _, offset, size in reads if offset and size > 1000) == (0 if error is None else BIG.nbytes)
    with wp.open(out) as made:
        np.testing.assert_array_equal(made.read("o"), BIG)


# Every format that says where its tensors lie ------------------------------------------------------------------------


def test_a_flipped_bit_of_an_npz_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "m", {"a": ARRAYS["a"], "v": ARRAYS["v"]}, ".npz")
    with npz.open_source(path) as source:
        place = source.extent("a")
    assert place is not None
    raw = bytearray(Path(path).read_bytes())
    for at in (place.offset, place.offset + place.nbytes - 1):
        raw[at] ^= 1
        Path(path).write_bytes(raw)
        with pytest.raises(FormatError, match=r"tensor 'a' at byte \d+: corrupt: the member's CRC is"):
            wp.transfer(path, None, document([{"from": "{x}", "to": "{x}"}]), out=str(tmp_path / "o.ckpt"), threads=1)
        raw[at] ^= 1


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(3, dtype=">f4"), np.array(["a", "b"]), np.zeros((0, 3))]
)
def test_arrays_that_do_not_lie_as_they_are(array: Array, tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=array, b=np.arange(3))
    with npz.open_source(str(tmp_path / "m.npz")) as source:
        assert source.extent("a") is None
        assert source.extent("b") is not None
    wp.transfer(tmp_path / "m.npz", None, document([{"from": "{x}", "to": "{x}"}]), out=tmp_path / "o.ckpt")
    with wp.open(tmp_path / "o.ckpt") as made:
        want = [s.encode() for s in array] if array.dtype.kind == "U" else array.tolist()
        assert made.read("a").tolist() == want


def test_keras_files_are_read_by_position(tmp_path: Path, reads: list[tuple[str, int, int]]) -> None:
    import h5py

    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"] = ARRAYS["a"]
        file.create_dataset("c", data=ARRAYS["c"], chunks=(4, 5, 3))
        file["big-endian"] = ARRAYS["b"].astype(">f4")
    reads.clear()
    wp.transfer(tmp_path / "m.h5", None, document([{"from": "{x}", "to": "{x}"}]), out=tmp_path / "o.safetensors")
    assert ARRAYS["a"].nbytes in [size for _, _, size in reads]
    with wp.open(tmp_path / "o.safetensors") as made:
        for name, array in (("a", ARRAYS["a"]), ("c", ARRAYS["c"]), ("big-endian", ARRAYS["b"])):
            np.testing.assert_array_equal(made.read(name), array)
