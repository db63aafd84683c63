"""Frozen graphs: every fixture bit for bit, every encoding, what is a weight and what a constant, and damage."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.formats._graphdef import attr, const, function, graph, header, node, shape_proto, tensor, write
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import Fixture, fixture, fixtures
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, tf_frozen
from weightport.tensors import Budget, Source

CASES = [(f, kind) for f in fixtures() for kind in ("frozen", "frozen_text") if kind in f.files]
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def opened(path: Path, data: bytes, budget: Budget | None = None) -> tf_frozen.FrozenSource:
    return tf_frozen.open_source(write(path / "g.pb", data), budget=budget)


def roles(source: Source) -> dict[str, str]:
    return {name: spec.role for name, spec in source.specs().items()}


@pytest.mark.parametrize(("model", "kind"), CASES, ids=lambda v: str(v))
def test_bit_for_bit(model: Fixture, kind: str) -> None:
    path = model.path(kind)
    assert tf_frozen.sniff(path)
    source = detect.open_source(path)
    assert (source.format, source.path) == ("tf-frozen", path)
    expected = model.variables
    specs = source.specs()
    assert {name for name, spec in specs.items() if spec.role == "weight"} == set(expected)
    assert set(roles(source).values()) <= {"weight", "constant"}
    for name, want in expected.items():
        got = source.read(name)
        assert (got.dtype, got.shape) == (specs[name].dtype, specs[name].shape) == (want.dtype, want.shape)
        assert got.tobytes() == want.tobytes()
        assert specs[name].nbytes == want.nbytes
        for axis, dim in enumerate(want.shape[:3]):
            index = (slice(None),) * axis + (slice(dim // 3, None, 2),)
            assert source.read(name, index).tobytes() == want[index].tobytes()
    for name in specs:
        assert source.read(name).shape == specs[name].shape
    source.close()
    with pytest.raises(Error, match="is closed"):
        source.read(next(iter(expected)))
    with pytest.raises(Error, match="is closed"):
        source.facts(list(expected))


def test_no_framework_is_imported() -> None:
    paths = [f.path(kind) for f, kind in CASES]
    code = f"""
import sys
for name in ("tensorflow", "keras", "tf_keras", "torch", "jax", "onnx", "google.protobuf"):
    sys.modules[name] = None  # importing it is an ImportError
from weightport.formats import detect
for path in {paths!r}:
    source = detect.open_source(path)
    for name in source.specs():
        source.read(name)
    source.facts([name for name, spec in source.specs().items() if spec.role == "weight"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr


def test_strings_of_the_fixture() -> None:
    source = tf_frozen.open_source(fixture("d_checkpoints/const_encodings").path("frozen"))
    assert source.read("strings").tolist() == [b"alpha", b"", b"\xff\x00"]
    assert source.specs()["strings"].role == "constant"


# Encodings -----------------------------------------------------------------------------------------------------------

F16 = np.array([1.5, -2, np.inf], np.float16)


def typed(number: int, field: int, *varints: int, shape: tuple[int, ...] = (3,)) -> bytes:
    return header(number, shape) + b"".join(number_field(field, v) or bytes([field << 3, 0]) for v in varints)


ENCODINGS = {
    "content f32": (tensor(W), W),
    "content f64": (tensor(W.astype(np.float64)), W.astype(np.float64)),
    "content bool": (tensor(W > 2), W > 2),
    "float_val": (header(1, (2,)) + b"\x2d" + np.float32(1.5).tobytes() + b"\x2d" + np.float32(2).tobytes(), [1.5, 2]),
    "float_val packed": (header(1, (2, 3)) + bytes_field(5, W.tobytes()), W),
    "double_val": (header(2, ()) + b"\x31" + np.float64(0.1).tobytes(), np.float64(0.1)),
    "splat": (header(1, (2, 2)) + b"\x2d" + np.float32(7).tobytes(), np.full((2, 2), 7, np.float32)),
    "last repeats": (header(1, (4,)) + bytes_field(5, np.array([1, 2], np.float32).tobytes()), [1, 2, 2, 2]),
    "no values": (header(1, (2,)), [0, 0]),
    "int_val": (typed(3, 7, 1, -2 & (1 << 64) - 1, 3), np.array([1, -2, 3], np.int32)),
    "int_val i8": (typed(6, 7, 1, -2 & (1 << 64) - 1, 3), np.array([1, -2, 3], np.int8)),
    "int_val u8": (typed(4, 7, 1, 254, 3), np.array([1, 254, 3], np.uint8)),
    "int64_val": (typed(9, 10, 1, -2 & (1 << 64) - 1, 3), np.array([1, -2, 3], np.int64)),
    "int64_val packed": (header(9, (3,)) + bytes_field(10, b"\1\2\3"), np.array([1, 2, 3], np.int64)),
    "bool_val": (typed(10, 11, 1, 0, 1), np.array([True, False, True])),
    "half_val": (typed(19, 13, *F16.view(np.uint16).tolist()), F16),
    "complex": (header(8, (1,)) + bytes_field(9, np.complex64(1 + 2j).tobytes()), np.array([1 + 2j], np.complex64)),
    "string_val": (header(7, (2,)) + bytes_field(8, b"a") + bytes_field(8, b""), np.array([b"a", b""], object)),
    "empty": (header(1, (0, 3)), np.zeros((0, 3), np.float32)),
    "scalar": (header(1, ()) + b"\x2d" + np.float32(1.5).tobytes(), np.float32(1.5)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(tmp_path: Path, name: str) -> None:
    proto, expected = ENCODINGS[name]
    want = np.asarray(expected, None if isinstance(expected, np.ndarray | np.generic) else np.float32)
    source = opened(tmp_path, graph(const("w", proto)))
    got = source.read("w")
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert got.tolist() == want.tolist()
    assert source.specs()["w"].shape == want.shape
    if want.ndim:
        assert source.read("w", (slice(1, None),)).tolist() == want[1:].tolist()


def test_big_constants_are_not_read(tmp_path: Path) -> None:
    size = 1 << 30
    small = graph(const("a", 1.0))
    proto = header(1, (size // 4,))
    # The bytes of the constant are a hole in the file.
    content = b"\x22" + _varint(size)
    value = (
        bytes_field(1, b"value")
        + b"\x12"
        + _varint(1 + len(_varint(len(proto) + len(content) + size)) + len(proto) + len(content) + size)
        + b"\x42"
        + _varint(len(proto) + len(content) + size)
        + proto
        + content
    )
    body = bytes_field(1, b"big") + bytes_field(2, b"Const") + b"\x2a" + _varint(len(value) + size) + value
    path = tmp_path / "g.pb"
    with path.open("wb") as file:
        file.write(small + b"\x0a" + _varint(len(body) + size) + body)
        at = file.tell()
        file.seek(at + 400)
        file.write(np.float32(2.5).tobytes())
        file.truncate(at + size)
    source = tf_frozen.open_source(str(path))
    assert source.specs()["big"].nbytes == size
    assert source.read("big", (slice(99, 103),)).tolist() == [0, 2.5, 0, 0]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# Weights and constants -----------------------------------------------------------------------------------------------


def test_reads_tell_variables(tmp_path: Path) -> None:
    inner = function(
        "body",
        ["v", "k"],
        {"out": "m:product:0"},
        [
            node("cell/MatMul/ReadVariableOp", "Identity", "v"),
            node("m", "MatMul", "k", "cell/MatMul/ReadVariableOp:output:0"),
            const("inner", W),
        ],
    )
    outer = function("outer", ["p", "q"], {"out": "w:output:0"}, [node("w", "While", "q", "p", cond="c", body="body")])
    data = graph(
        *(const("ref", W), node("ref/read", "Identity", "ref"), const("mean", W), node("sub", "Sub", "mean", "mean")),
        *(const("resource", W), node("in", "Enter", "resource"), node("l/ReadVariableOp_2", "Identity", "in")),
        *(const("passed", W), const("other", W), node("call", "PartitionedCall", "other", "passed", f="outer")),
        *(const("folded/read", W), const("cell/ReadVariableOp", W), const("global_step", np.array(3, np.int64))),
        *(node("global_step/read", "Identity", "global_step"), node("elsewhere/read", "Identity", "mean")),
        functions=[inner, outer],
    )
    source = opened(tmp_path, data)
    assert roles(source) == {
        **dict.fromkeys(("ref", "resource", "folded", "cell/ReadVariableOp", "passed"), "weight"),
        **dict.fromkeys(("mean", "other", "body/inner"), "constant"),
        "global_step": "counter",
    }
    assert list(source.specs())[:2] == ["ref", "mean"]  # the file's own order
    assert source.read("body/inner").tolist() == W.tolist()
    assert source.read("folded").tolist() == W.tolist()


def test_without_reads_numbers_in_use_are_weights(tmp_path: Path) -> None:
    data = graph(
        *(const("kernel", W), const("axis", np.array(1, np.int32)), const("shape", np.array([1, 2], np.int32))),
        *(const("epsilon", 0.001), const("text", np.array([b"a", b"b"], object)), const("alone", 3.0)),
        const("flags", np.array([True, False])),
        node("use", "Op", "kernel", "axis", "shape", "epsilon", "text", "flags:0"),
    )
    source = opened(tmp_path, data)
    weights = {name for name, role in roles(source).items() if role == "weight"}
    assert weights == {"kernel", "alone"}
    assert set(roles(source)) == {"kernel", "axis", "shape", "epsilon", "text", "flags", "alone"}


def parts(*shapes: tuple[int, ...], read: bool = True) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for n, shape in enumerate(shapes):
        found.append(const(f"v/part_{n}", rng.normal(size=shape).astype(np.float32)))
        if read:
            found.append(node(f"v/part_{n}/read", "Identity", f"v/part_{n}"))
    return found


AXIS = const("axis", np.array(1, np.int32))
JOIN = node("join", "ConcatV2", "v/part_0/read", "v/part_1/read", "axis")


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        (parts((2, 3), (1, 3)), (3, 3)),
        (parts((2, 3), (2, 1)), (2, 4)),
        (parts((2,), (2,)), (4,)),
        (parts((2, 2), (2, 2)), None),
        (parts((2, 2), (3, 1)), None),
        (parts((2, 2), (2,)), None),
        (parts((2, 2)), (2, 2)),
        ([*parts((2, 2), (2, 2)), AXIS, JOIN], (2, 4)),
        ([*parts((2, 2), (2, 2)), const("axis", np.array(-2, np.int32)), JOIN], (4, 2)),
        ([*parts((2, 2), (2, 2)), const("axis", np.array(2, np.int32)), JOIN], None),
        ([*parts((2, 2), (2, 2)), node("axis", "Placeholder"), JOIN], None),
        ([*parts((2, 2), (2, 2)), node("look", "GatherV2", "v/part_1/read")], (4, 2)),
        ([*parts((2, 2), (2, 2)), AXIS, node("j", "Concat", "axis", "v/part_0/read", "v/part_1/read")], (2, 4)),
        ([*parts((1, 2), (3, 2)), const("v", 1.0)], None),
        (parts((1, 2), (3, 2))[2:], None),
    ],
)
def test_partitioned_variables(tmp_path: Path, nodes: list[bytes], shape: tuple[int, ...] | None) -> None:
    source = opened(tmp_path, graph(*nodes))
    specs = source.specs()
    if shape is None:
        assert {"v/part_1"} <= set(specs)
        assert not specs.get("v") or specs["v"].shape == ()
        return
    assert specs["v"].shape == shape
    assert specs["v"].role == "weight"
    assert not [name for name in specs if "part_" in name]
    whole = source.read("v")
    names = [f"v/part_{n}" for n in range(2) if f"v/part_{n}".encode() in b"".join(nodes)]
    pieces = [source.read(name) for name in names]
    if len(pieces) > 1:
        axis = next(a for a in range(len(shape)) if sum(p.shape[a] for p in pieces) == shape[a])
        assert whole.tobytes() == np.concatenate(pieces, axis).tobytes()
    for index in ((slice(1, None),), (slice(None), slice(1, 4, 2))):
        if len(index) <= len(shape):
            assert source.read("v", index).tobytes() == whole[index].tobytes()


def test_ten_parts_and_more_are_in_order(tmp_path: Path) -> None:
    nodes = []
    for n in range(12):
        nodes += [const(f"v/part_{n}", np.array([n], np.float32)), node(f"v/part_{n}/read", "Identity", f"v/part_{n}")]
    assert opened(tmp_path, graph(*reversed(nodes))).read("v").tolist() == list(range(12))


def test_names_that_meet(tmp_path: Path) -> None:
    data = graph(const("f/k", 1.0), functions=[function("f", [], {}, [const("k", 2.0)])])
    source = opened(tmp_path, data)
    assert {name: float(source.read(name)) for name in source.specs()} == {"f/k": 1.0, "f/k'": 2.0}


# Mistakes and damage -------------------------------------------------------------------------------------------------


def test_not_frozen(tmp_path: Path) -> None:
    """Variables that are left are listed; the values are elsewhere."""
    kind = {"dtype": number_field(6, 1), "shape": bytes_field(7, shape_proto(W.shape))}
    read = [node("w/read", "Identity", "w"), node("v/read", "Identity", "v")]
    data = graph(node("w", "VariableV2", **kind), *read, const("v", W), const("w/init", W))
    source = opened(tmp_path, data)
    assert {n: (s.shape, s.role) for n, s in source.specs().items()} == {
        "w": (W.shape, "weight"), "v": (W.shape, "weight"), "w/init": (W.shape, "constant"),
    }  # fmt: skip
    assert source.read("v").tolist() == W.tolist()
    with pytest.raises(FormatError) as caught:
        source.read("w")
    assert str(caught.value) == (
        f"{tmp_path / 'g.pb'}: tensor 'w': is a variable, whose value is not in a graph; "
        "open the checkpoint that belongs to it"
    )


def test_a_variable_inside_a_function(tmp_path: Path) -> None:
    data = graph(const("v", W), functions=[function("f", [], {}, [node("w", "VarHandleOp")])])
    with pytest.raises(FormatError) as caught:
        opened(tmp_path, data)
    assert str(caught.value) == (
        f"{tmp_path / 'g.pb'}: is a graph that was not frozen: the values of its variables ('f/w', ...) are not in it; "
        "open the checkpoint that belongs to it"
    )


def test_variables_that_are_left(tmp_path: Path) -> None:
    """A graph that is not frozen, with a constant of the name under which a variable is saved."""
    names = const("names", np.array([b"k"], object))
    save = node("save", "SaveV2", "prefix", "names", "slices", "v")
    slices = const("slices", np.array([b""], object))
    shape = bytes_field(7, shape_proto((2, 3)))
    variable = node("v", "VariableV2", dtype=number_field(6, 1), shape=shape)
    prefix = const("prefix", np.array([b"m"], object))
    with opened(tmp_path, graph(variable, const("k", W), names, slices, prefix, save)) as source:
        assert (source.specs()["k"].shape, source.specs()["k"].role) == ((2, 3), "weight")
        assert source.read("k'").tobytes() == W.tobytes()
        assert source.facts(["k"]) == source.facts(["k'"]) == {}


def test_unknown_names(tmp_path: Path) -> None:
    source = opened(tmp_path, graph(const("lstm/kernel", W)))
    with pytest.raises(TensorNotFound, match=r"no tensor 'lstm/kernal'; closest: 'lstm/kernel'$"):
        source.read("lstm/kernal")
    assert source.facts(["nothing"]) == {}


def test_another_message() -> None:
    path = fixture("b_cells/basic_lstm_fb1").path("meta_graph")
    assert not tf_frozen.sniff(path)
    with pytest.raises(FormatError, match="is a MetaGraphDef, not a GraphDef"):
        tf_frozen.open_source(path)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (header(1, (2,)) + bytes_field(4, bytes(7)), "7 bytes of content for float32.2., which needs 8"),
        (header(1, (1 << 40, 1 << 40)), "tensor bytes"),
        (header(1, (-1,)), "negative dimension"),
        (header(99, ()), "unknown dtype number 99"),
        (header(1, (1,) * 70), "rank"),
        (header(1, (1 << 32,)), "a repeated value of"),
        (header(20, ()), "a resource handle has no values to read"),
    ],
)
def test_bad_constants_are_errors_of_their_own(tmp_path: Path, proto: bytes, message: str) -> None:
    source = opened(tmp_path, graph(const("bad", proto), node("bad/read", "Identity", "bad"), const("good", W)))
    with pytest.raises(FormatError, match=rf"^{tmp_path}/g.pb: tensor 'bad'.*: .*{message}"):
        source.read("bad")
    assert source.read("good").tolist() == W.tolist()
    source.facts(["bad", "good"])


def test_parts_that_repeat_their_values_are_bounded(tmp_path: Path) -> None:
    huge = header(1, (1 << 28, 2)) + b"\x2d" + np.float32(1).tobytes()
    nodes = []
    for n in range(3):
        nodes += [const(f"v/part_{n}", huge), node(f"v/part_{n}/read", "Identity", f"v/part_{n}")]
    source = opened(tmp_path, graph(*nodes, node("g", "Gather", "v/part_0/read")))
    with pytest.raises(BudgetExceeded, match="repeated values of 6,442,450,944 bytes"):
        source.read("v", (slice(0, 1),))


def small_graph() -> bytes:
    inner = function("f", ["a"], {"o": "k:output:0"}, [const("k", W)])
    return graph(
        *(const("w", W), node("w/read", "Identity", "w"), const("half", ENCODINGS["half_val"][0])),
        *(*parts((1, 2), (2, 2)), node("call", "PartitionedCall", "w", f="f"), node("m", "MatMul", "w", "w/read")),
        functions=[inner],
    )


def read_all(source: Source) -> dict[str, bytes]:
    found = {}
    for name in source.specs():
        with contextlib.suppress(Error):
            spec = source.specs()[name]
            value = source.read(name)
            assert (value.dtype, value.shape) == (spec.dtype, spec.shape)
            found[name] = value.tobytes()
            if spec.shape:
                source.read(name, (slice(0, 1),))
    with contextlib.suppress(Error):
        source.facts(list(source.specs()))
    return found


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    data = small_graph()
    whole = read_all(opened(tmp_path, data))
    assert {"w", "half", "v", "f/k"} <= set(whole)
    for end in range(len(data)):
        try:
            found = read_all(opened(tmp_path, data[:end]))
        except FormatError:
            continue
        # What is left are whole nodes: each value is the one that the whole file has, under the same name, but for the
        # variable whose parts are not all there.
        rest = {name: value for name, value in found.items() if not name.startswith("v")}
        assert rest.items() <= whole.items()
        assert found.get("v", b"") in whole["v"]


def test_inputs_that_are_cut_off(tmp_path: Path) -> None:
    data = graph(const("w", W), node("merge", "Merge", "w", "next:0", "^w"))
    with pytest.raises(FormatError) as caught:
        opened(tmp_path, data)
    at = len(graph(const("w", W))) + 2
    message = "the input 'next:0' of node 'merge' is not there: cut off, or edited"
    assert str(caught.value) == f"{tmp_path / 'g.pb'} at byte {at}: {message}"


def test_a_loop_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    data = Path(fixture("b_cells/gru").path("frozen")).read_bytes()
    loop = data.index(b"rnn/while/NextIteration") + 30, data.rindex(b"NextIteration")
    for end in range(*loop, 7):
        with pytest.raises(FormatError):
            opened(tmp_path, data[:end])


def test_functions_that_call_each_other_end(tmp_path: Path) -> None:
    calls = [
        function(f"f{n}", ["a"], {"o": "c:output:0"}, [node("c", "PartitionedCall", "a", f=f"f{(n + 1) % 50}")])
        for n in range(50)
    ]
    data = graph(const("w", W), node("c", "PartitionedCall", "w", f="f0"), functions=calls)
    source = opened(tmp_path, data)
    assert source.facts(["w"]) == {}
    # Each calls the next twice: 2**40 places.
    calls = [
        function(
            f"f{n}",
            ["a"],
            {"o": "d:output:0"},
            [node("c", "PartitionedCall", "a", f=f"f{n + 1}"), node("d", "PartitionedCall", "c", f=f"f{n + 1}")],
        )
        for n in range(40)
    ]
    source = opened(tmp_path, graph(const("w", W), node("c", "PartitionedCall", "w", f="f0"), functions=calls))
    assert source.facts(["w"]) == {}


def test_attributes_that_are_none(tmp_path: Path) -> None:
    data = graph(const("w", W) + attr("value", b""), const("v", W))
    source = opened(tmp_path, data)
    with pytest.raises(FormatError, match="tensor 'w'"):
        source.read("w")
    assert source.read("v").tolist() == W.tolist()
