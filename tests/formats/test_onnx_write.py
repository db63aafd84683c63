from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import same, specs_of, tiles_of
from tests.formats._onnx import attribute, field, fixed32, graph, model, node, raw, tensor, written
from tests.support import need
from weightport.errors import Error
from weightport.formats import detect, onnx_file, onnx_write

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def arrays_in(path: str) -> dict[str, np.ndarray]:
    with onnx_file.open_source(path) as source:
        return {name: source.read(name) for name, spec in source.specs().items() if not spec.unread}


def write(path: Path, arrays: Mapping[str, np.ndarray], like: str, **options: Any) -> str:
    onnx_write.write(str(path), specs_of(arrays), tiles_of(arrays), like=like, **options)
    return str(path)


def sample(folder: Path, **options: Any) -> str:
    """Raw and typed values, in the graph, a subgraph, a node and a function; a small network that runs."""
    onnx = need("onnx")
    helper, of = onnx.helper, onnx.numpy_helper.from_array
    branch = [
        helper.make_graph(
            [helper.make_node("Add", ["h", "b"], ["out"])], name, [], [value("out", [2, 3])], [of(X + k, "b")]
        )
        for k, name in enumerate(("one", "two"))
    ]
    nodes = [
        helper.make_node("Constant", [], ["c"], value=of(X)),
        helper.make_node("Constant", [], ["f"], value_float=0.5),
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "typed"], ["m"]),
        helper.make_node("Add", ["m", "c"], ["n"]),
        helper.make_node("Scale", ["n"], ["h0"], domain="own"),
        helper.make_node("Mul", ["h0", "f"], ["h"]),
        helper.make_node("If", ["yes"], ["y"], name="branch", then_branch=branch[0], else_branch=branch[1]),
    ]
    held = [of(X, "w"), helper.make_tensor("typed", 1, [2, 3], X.reshape(-1)), of(np.array(True), "yes")]
    made = helper.make_graph(nodes, "g", [value("x", [2, 3])], [value("y", [2, 3])], held)
    inner = [helper.make_node("Constant", [], ["k"], value=of(X)), helper.make_node("Mul", ["p", "k"], ["q"])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    scale = helper.make_function("own", "Scale", ["p"], ["q"], inner, opsets[:1])
    whole = helper.make_model(made, opset_imports=opsets, functions=[scale], ir_version=8, doc_string="kept")
    whole.metadata_props.add(key="author", value="someone")
    path = str(folder / "like.onnx")
    onnx.save(whole, path, **options)
    return path


def value(name: str, shape: list[int]) -> Any:
    onnx = need("onnx")
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def run(path: str) -> np.ndarray:
    session = need("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": np.ones((2, 3), np.float32)})[0]
    return found


WEIGHTS = ["w", "typed", "c", "branch/else_branch/b", "branch/then_branch/b", "Scale/k"]


def expected(w: Mapping[str, np.ndarray]) -> np.ndarray:
    found: np.ndarray = ((1 + w["w"]) * w["typed"] + w["c"]) * w["Scale/k"] * w["f"] + w["branch/then_branch/b"]
    return found


def fresh() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found = {name: rng.normal(size=(2, 3)).astype(np.float32) for name in WEIGHTS}
    return {**found, "f": np.array(-2, np.float32)}


def test_values_are_replaced_and_the_model_runs(tmp_path: Path) -> None:
    onnx = need("onnx")
    like = sample(tmp_path)
    arrays = fresh()
    path = write(tmp_path / "o.onnx", arrays, like, metadata={"weightport.version": "1"})
    onnx.checker.check_model(path, full_check=True)
    np.testing.assert_allclose(run(path), expected(arrays), rtol=1e-6)
    found = arrays_in(path)
    assert all(same(found[name], array) for name, array in arrays.items())
    made = onnx.load(path)
    assert [(p.key, p.value) for p in made.metadata_props] == [("author", "someone"), ("weightport.version", "1")]
    back = write(
        tmp_path / "back.onnx", {n: arrays_in(like)[n] for n in arrays}, path, metadata={"weightport.version": "2"}
    )
    made, before = onnx.load(back), onnx.load(like)
    assert [(p.key, p.value) for p in made.metadata_props] == [("author", "someone"), ("weightport.version", "2")]
    del made.metadata_props[1:]
    made.graph.initializer[1].CopyFrom(before.graph.initializer[1])  # its typed values became raw ones
    assert made == before
    assert sorted(os.listdir(tmp_path)) == ["back.onnx", "like.onnx", "o.onnx"]


def test_nothing_else_changes_by_a_byte(tmp_path: Path) -> None:
    """What protobuf's own writers would not leave as it is: unknown fields, another order, sizes spelt longer."""
    odd = field(900, "unknown") + b"\x2a\x88\x80\x00" + raw("", X[:0])[:8]
    body = field(2, "g") + field(5, raw("w", X)) + field(901, 7) + field(5, raw("v", X + 1)) + odd
    data = field(7, body) + field(1, 8) + field(902, "end")
    like = written(tmp_path, data)
    path = write(tmp_path / "o.onnx", {"w": X * 2}, like)
    assert Path(path).read_bytes() == data.replace(X.tobytes(), (X * 2).tobytes())
    path = write(tmp_path / "o.onnx", {"w": X * 2, "v": X}, like, kept=["w", "v"])
    assert Path(path).read_bytes() == data


def test_golden_bytes_of_a_typed_value(tmp_path: Path) -> None:
    floats = fixed32(4, 1.0) + fixed32(4, 2.0)
    like = written(tmp_path, model(graph(tensor("w", 1, (2,), floats, field(12, "doc")))))
    path = write(tmp_path / "o.onnx", {"w": np.array([3, 4], np.float32)}, like)
    values = field(9, np.array([3, 4], "<f4").tobytes())
    expected_tensor = field(1, 2) + field(2, 1) + field(12, "doc") + field(8, "w") + values
    assert Path(path).read_bytes() == model(graph(expected_tensor))


def test_a_message_in_two_parts(tmp_path: Path) -> None:
    parts = field(5, field(1, 2) + fixed32(4, 1.0)) + field(5, field(2, 1) + fixed32(4, 2.0))
    constant = node("Constant", (), ("c",), "", attribute("value", parts))
    like = written(tmp_path, model(graph(nodes=(constant,))))
    assert arrays_in(like)["c"].tolist() == [1, 2]
    path = write(tmp_path / "o.onnx", {"c": np.array([3, 4], np.float32)}, like)
    assert arrays_in(path)["c"].tolist() == [3, 4]


def test_every_dtype_and_encoding(tmp_path: Path) -> None:
    onnx = need("onnx")
    rng = np.random.default_rng(1)
    held, old, new = [], {}, {}
    for number, name in onnx_file_dtypes():
        dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
        for encoding in ("raw", "typed"):
            low = int(name == "float8_e8m0fnu")  # whose 0 onnx itself does not put into a typed field
            pair = [rng.integers(low, 2, 15 * dtype.itemsize, np.uint8).view(dtype).reshape(3, 5) for _ in range(2)]
            key = f"{name}.{encoding}"
            old[key], new[key] = pair
            made = onnx.numpy_helper.from_array(pair[0], key)
            if encoding == "typed":
                made = onnx.helper.make_tensor(key, number, (3, 5), pair[0].reshape(-1))
            held.append(made)
    like = written(tmp_path, onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], held)))
    assert all(same(arrays_in(like)[k], a) for k, a in old.items())
    found = arrays_in(write(tmp_path / "o.onnx", new, like))
    assert all(same(found[k], a) for k, a in new.items())
    for one in onnx.load(tmp_path / "o.onnx").graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one).astype("c16"), new[one.name].astype("c16"))


def onnx_file_dtypes() -> Iterator[tuple[int, str]]:
    from weightport.formats._onnx_tensor import DTYPES

    return ((number, name) for number, name in DTYPES.items() if name != "object")


def test_text_and_literals(tmp_path: Path) -> None:
    onnx = need("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Constant", [], ["floats"], value_floats=[0.1, 2.0]),
        make("Constant", [], ["int"], value_int=-3),
        make("Constant", [], ["ints"], value_ints=[1 << 40, -1]),
        make("Constant", [], ["string"], value_string="é"),
        make("Constant", [], ["strings"], value_strings=["a", "bc"]),
    ]
    held = [onnx.helper.make_tensor("t", 8, [2], [b"x", b"yz"])]
    like = written(tmp_path, onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], held)))
    arrays = {
        "floats": np.array([3.5, -1], np.float32),
        "int": np.array(9),
        "ints": np.array([-5, 1 << 60]),
        "string": np.array(b"new", object),
        "strings": np.array([b"", b"\xff"], object),
        "t": np.array([b"longer", b""], object),
    }
    path = write(tmp_path / "o.onnx", arrays, like)
    found = arrays_in(path)
    assert all(same(found[k], a) for k, a in arrays.items())
    ints = onnx.load(path).graph.node[2].attribute[0]
    assert onnx.helper.get_attribute_value(ints) == [-5, 1 << 60]


# Data beside the model -----------------------------------------------------------------------------------------------


def files(folder: Path, name: str = "o.onnx") -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.name.startswith((name, f".{name}")))


def test_external_data_goes_beside_the_new_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = need("onnx")
    like = sample(tmp_path, save_as_external_data=True, location="like.bin", size_threshold=0)
    data = (tmp_path / "like.bin").read_bytes()
    arrays = fresh()
    folder = tmp_path / "out"
    folder.mkdir()
    path = write(folder / "o.onnx", {k: a for k, a in arrays.items() if k != "c"}, like)
    assert files(folder) == ["o.onnx", "o.onnx.data"]
    onnx.checker.check_model(path)
    monkeypatch.chdir(folder)  # where onnxruntime looks for the data of subgraphs
    found = arrays_in(path)
    assert same(found["c"], X)
    assert all(same(found[k], a) for k, a in arrays.items() if k != "c")
    np.testing.assert_allclose(run(path), expected(found), rtol=1e-6)
    # Over itself: another name, and the old data goes with the old model.
    for name in ("o.onnx.1.data", "o.onnx.data"):
        for file in folder.iterdir():
            file.chmod(0o600)
        write(folder / "o.onnx", arrays, like)
        assert files(folder) == ["o.onnx", name]
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}, "it is as private"
        assert same(arrays_in(path)["c"], arrays["c"])
    like = sample(tmp_path, save_as_external_data=True, location="more.bin", size_threshold=0, convert_attribute=True)
    write(folder / "o.onnx", arrays, like)  # which onnxruntime cannot run
    assert all(same(arrays_in(path)[k], a) for k, a in arrays.items())
    write(folder / "o.onnx", {}, sample(tmp_path))
    assert files(folder) == ["o.onnx"]
    assert (tmp_path / "like.bin").read_bytes() == data


def test_a_model_that_is_too_large_for_one_file(tmp_path: Path) -> None:
    onnx = need("onnx")
    of = onnx.numpy_helper.from_array
    rng = np.random.default_rng(2)
    large = rng.normal(size=(600, 600)).astype(np.float32)  # above a megabyte: aligned to a page
    nodes = [onnx.helper.make_node("MatMul", ["x", "large"], ["a"]), onnx.helper.make_node("Add", ["a", "b"], ["y"])]
    held = [of(X, "small"), of(large[0], "b"), of(large, "large")]
    made = onnx.helper.make_graph(nodes, "g", [value("x", [1, 600])], [value("y", [1, 600])], held)
    whole = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    like = written(tmp_path, whole)
    path = write(tmp_path / "o.onnx", {"large": large * 2, "small": X * 2}, like, limit=100_000)
    assert files(tmp_path) == ["o.onnx", "o.onnx.data"]
    assert os.path.getsize(path) < 1000
    with onnx_file.open_source(path) as source:
        places = {n: source.ref(n).external for n in source.specs()}
        assert places["small"] is None
        assert [(e.offset, e.size, e.checksum) for n in ("b", "large") if (e := places[n])] == [
            (0, 2400, ""), (4096, 1440000, "")
        ]  # fmt: skip
        assert same(source.read("large"), large * 2)
        assert same(source.read("b"), large[0])
        assert same(source.read("small"), X * 2)
    onnx.checker.check_model(path)
    session = need("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": large[:1]})
    np.testing.assert_allclose(found, large[:1] @ (large * 2) + large[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(Error) as caught:
        write(tmp_path / "p.onnx", {"large": large}, like, limit=100)
    assert str(caught.value).endswith("bytes without the values that can lie beside it; protobuf holds 100")
    assert files(tmp_path, "p.onnx") == []


def test_a_checksum_stays_one(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "w.bin").write_bytes(X.tobytes() * 2)
    digest = hashlib.sha1(X.tobytes() * 2).hexdigest()

    def entries(offset: int) -> bytes:
        pairs = {"location": "w.bin", "offset": str(offset), "length": "24", "checksum": digest}
        return b"".join(field(13, field(1, k) + field(2, v)) for k, v in pairs.items()) + field(14, 1)

    like = written(tmp_path, model(graph(tensor("w", 1, (2, 3), entries(0)), tensor("v", 1, (2, 3), entries(24)))))
    path = write(tmp_path / "o.onnx", {"w": X + 1}, like)
    assert same(arrays_in(path)["w"], X + 1)
    assert same(arrays_in(path)["v"], X)
    changed = bytearray((tmp_path / "o.onnx.data").read_bytes())
    changed[0] ^= 1
    (tmp_path / "o.onnx.data").write_bytes(changed)
    with pytest.raises(Error, match=r"the SHA-1 of its external data 'o.onnx.data' is not the one"):
        arrays_in(path)


@pytest.mark.parametrize("limit", [1 << 31, 50])
def test_a_failure_leaves_the_old_model(tmp_path: Path, limit: int) -> None:
    large = np.zeros((300, 4), np.float32)
    like = written(tmp_path, model(graph(raw("w", large), raw("v", X))))
    (tmp_path / "o.onnx").write_bytes(b"old")

    def tiles(name: str) -> Iterator[np.ndarray]:
        yield large[:100]
        raise Error(f"{name} broke")

    with pytest.raises(Error, match=r"^w broke$"):
        onnx_write.write(str(tmp_path / "o.onnx"), specs_of({"w": large}), tiles, like=like, limit=limit)
    assert files(tmp_path) == ["o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("limit", [1 << 31, 200])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_model(
    tmp_path: Path, limit: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.zeros((300, 4), np.float32)
    like = written(tmp_path, model(graph(raw("w", large), raw("v", X))))
    (tmp_path / "o.onnx").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(Error, match=r"o.onnx: cannot be written: No space left on device$"):
        write(tmp_path / "o.onnx", {"w": large}, like, limit=limit)
    assert files(tmp_path) == ["o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == b"old"


def test_through_a_link(tmp_path: Path) -> None:
    """The model stands where the link leads, and so does its data."""
    (tmp_path / "there").mkdir()
    (tmp_path / "o.onnx").symlink_to("there/real.onnx")
    like = written(tmp_path, model(graph(raw("w", np.ones((300, 4))), raw("v", X))))
    path = write(tmp_path / "o.onnx", {"v": X + 1}, like, limit=50 + 200)
    assert sorted(os.listdir(tmp_path / "there")) == ["real.onnx", "real.onnx.data"]
    for way in (path, str(tmp_path / "there" / "real.onnx")):
        assert same(arrays_in(way)["v"], X + 1)
        assert arrays_in(way)["w"].sum() == 1200
    assert Path(path).is_symlink()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_is_refused(tmp_path: Path) -> None:
    six = tensor("six", 27, (4,), field(9, b"abc"))
    like = written(tmp_path, model(graph(raw("lstm/W", X), six)))
    arrays = {"lstm/V": X, "lstm/W": X.astype(np.float64), "six": np.full(4, b"", object)}
    with pytest.raises(Error) as caught:
        write(tmp_path / "o.onnx", arrays, like)
    out = tmp_path / "o.onnx"
    assert str(caught.value).splitlines() == [
        f"{out}: {like} has no tensor 'lstm/V'; closest: 'lstm/W'",
        f"{out}: 'lstm/W' is float64[2, 3], in {like} float32[2, 3]",
        f"{out}: 'six' of {like} cannot be replaced: of the type FLOAT6E2M3",
    ]
    with pytest.raises(Error) as dry:
        onnx_write.check(str(out), specs_of(arrays), like=like)
    assert str(dry.value) == str(caught.value)
    onnx_write.check(str(out), specs_of({"lstm/W": X}), like=like)
    with pytest.raises(Error) as caught:
        write(out, {"w": X}, None)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"{out}: an ONNX model is more than its weights: it is written from one; give as TARGET the .onnx whose "
        "weights are to be replaced"
    )
    with pytest.raises(Error, match=r"cannot be written: there is no folder .*/none; make it first$"):
        write(tmp_path / "none" / "o.onnx", {"lstm/W": X}, like)
    assert files(tmp_path) == []


def test_in_a_transfer(tmp_path: Path) -> None:
    like = sample(tmp_path)
    arrays = fresh()
    np.savez(tmp_path / "a.npz", **{n: a for n, a in arrays.items() if n in ("w", "typed")})
    rules = [{"from": "{x**}", "to": "{x**}"}]
    mapping = {"weightport": 1, "rules": rules, "keep": ["c", "branch/**", "Scale/k"]}
    result = wp.transfer(tmp_path / "a.npz", like, mapping, out=tmp_path / "o.onnx")
    assert result.path is not None
    found = arrays_in(result.path)
    assert same(found["w"], arrays["w"])
    assert same(found["c"], X)
    assert wp.verify(tmp_path / "a.npz", result.path, mapping).equal
    for target, given in ((None, "there is none"), (tmp_path / "a.npz", "npz")):
        with pytest.raises(Error, match=f"onnx is written as a TARGET of that kind with other values in it.*{given}"):
            wp.transfer(tmp_path / "a.npz", target, {**mapping, "keep": []}, out=tmp_path / "p.onnx", dry_run=True)
    assert detect.writer_for("m.onnx", like=like)[0] == "m.onnx"


def test_data_of_an_input_is_not_replaced(tmp_path: Path) -> None:
    """A TARGET whose values lie in the file that the old model at the destination would take with it."""
    like = sample(tmp_path, save_as_external_data=True, location="like.bin", size_threshold=0)
    out = write(tmp_path / "o.onnx", {}, like)
    other = tmp_path / "other.onnx"
    other.write_bytes(Path(out).read_bytes())
    mapping = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
    with pytest.raises(wp.Error, match="which is only read"):
        wp.transfer(other, like, mapping, out=out)


def test_what_moves_out_of_a_model_that_is_too_large(tmp_path: Path) -> None:
    """Values of every kind of field; what is no plain initializer of the main graph stays."""
    large = np.arange(1200, dtype=np.float32).reshape(300, 4)
    typed = tensor("typed", 1, (300, 4), field(4, (large + 1).tobytes()))
    text = tensor("text", 8, (2,), field(6, b"t" * 2000), field(6, b"u"))
    empty = raw("empty", np.zeros((0, 4)))
    beside = b"".join(field(13, field(1, k) + field(2, v)) for k, v in {"location": "w.bin"}.items()) + field(14, 1)
    (tmp_path / "w.bin").write_bytes((large + 2).tobytes())
    constant = node("Constant", (), ("k",), "", attribute("value_int", field(3, 5)))
    held = (raw("w", large), typed, text, empty, tensor("out", 1, (300, 4), beside))
    like = written(tmp_path, model(graph(*held, nodes=(constant,))))
    path = write(tmp_path / "o.onnx", {"w": large * 2, "empty": np.zeros((0, 4), np.float32)}, like, limit=3000)
    with onnx_file.open_source(path) as source:
        outside = {n for n in source.specs() if n != "k" and source.ref(n).external is not None}
    assert outside == {"w", "typed", "out"}
    found = arrays_in(path)
    for name, expected in (("w", large * 2), ("typed", large + 1), ("out", large + 2), ("empty", large[:0])):
        assert same(found[name], expected), name
    assert (found["text"].tolist(), found["k"].tolist()) == ([b"t" * 2000, b"u"], 5)
    # Without values that are new, tensors of no elements move, too, where they lay outside before.
    (tmp_path / "w.bin").write_bytes(b"")
    like = written(tmp_path, model(graph(tensor("w", 1, (0,), beside), tensor("b", 22, (3,), field(9, b"\x21\x03")))))
    path = write(tmp_path / "p.onnx", {"w": np.zeros(0, np.float32)}, like)
    assert arrays_in(path)["w"].shape == (0,)


def test_a_failure_over_a_file_that_is_damaged(tmp_path: Path) -> None:
    large = np.zeros((300, 4), np.float32)
    like = written(tmp_path, model(graph(raw("w", large))))
    damaged = model(graph(raw("w", X), raw("w", X)))
    (tmp_path / "o.onnx").write_bytes(damaged)

    def tiles(name: str) -> Iterator[np.ndarray]:
        yield large[:100]
        raise Error(f"{name} broke")

    with pytest.raises(Error, match=r"^w broke$"):
        onnx_write.write(str(tmp_path / "o.onnx"), specs_of({"w": large}), tiles, like=like, limit=200)
    assert files(tmp_path) == ["o.onnx"]
    assert (tmp_path / "o.onnx").read_bytes() == damaged


def test_no_room_for_the_values_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.zeros((300, 4), np.float32)
    like = written(tmp_path, model(graph(raw("w", large))))
    real = open

    def refuse(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "xb":
            raise PermissionError(13, "Permission denied")
        return real(path, mode, *args, **options)

    monkeypatch.setattr(onnx_write, "open", refuse, raising=False)
    with pytest.raises(Error) as caught:
        write(tmp_path / "o.onnx", {"w": large}, like, limit=200)
    assert str(caught.value) == f"{tmp_path / 'o.onnx'}: cannot be written: Permission denied"
    assert files(tmp_path) == []
