"""``.meta`` files: names and shapes from the graph alone, values through the checkpoint beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.formats._graphdef import const, graph, meta_graph, node, shape_proto, write
from tests.formats.test_tf_bundle import bytes_field, number_field
from tests.support import Fixture, fixture, fixtures, says
from weightport.budget import Budget
from weightport.errors import BudgetExceeded, Error, FormatError, TensorNotFound
from weightport.formats import detect, tf_meta

MODELS = fixtures("meta_graph")


def texts(*values: str) -> np.ndarray:
    return np.array([v.encode() for v in values], object)


def variable(name: str, shape: tuple[int, ...], op: str = "VariableV2", dtype: int = 1) -> bytes:
    return node(name, op, dtype=number_field(6, dtype), shape=bytes_field(7, shape_proto(shape)))


def saving(names: tuple[str, ...], slices: tuple[str, ...], *tensors: str) -> list[bytes]:
    return [
        const("save/Const", texts("model")),
        const("save/SaveV2/tensor_names", texts(*names)),
        const("save/SaveV2/shape_and_slices", texts(*slices)),
        node(
            "save/SaveV2", "SaveV2", "save/Const", "save/SaveV2/tensor_names", "save/SaveV2/shape_and_slices", *tensors
        ),
    ]


def opened(folder: Path, *nodes: bytes) -> tf_meta.MetaSource:
    return tf_meta.open_source(write(folder / "m.meta", meta_graph(graph(*nodes))))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_beside_its_checkpoint(model: Fixture) -> None:
    path = model.path("meta_graph")
    assert tf_meta.sniff(path)
    with tf_meta.open_source(path) as source:
        assert detect.detect(path) == source.format == "tf-meta"
        expected = model.variables
        assert set(source.specs()) == set(expected)
        for name, want in expected.items():
            assert source.read(name).tobytes() == want.tobytes()
            assert source.read(name, (slice(1, None, 2),)).tobytes() == want[1::2].tobytes()
    with pytest.raises(Error, match="is closed"):
        source.read(next(iter(expected)))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_alone(model: Fixture, tmp_path: Path) -> None:
    path = shutil.copy(model.path("meta_graph"), tmp_path / "model.ckpt-7.meta")
    with tf_meta.open_source(str(path)) as source, tf_meta.open_source(model.path("meta_graph")) as beside:
        specs = source.specs()
        assert dict(specs) == dict(beside.specs())
        name = next(iter(specs))
        assert source.facts(list(specs)) == beside.facts(list(specs))
        with pytest.raises(FormatError) as caught:
            source.read(name)
        prefix = str(tmp_path / "model.ckpt-7")
        assert str(caught.value) == (
            f"{path}: tensor {name!r}: is a variable, whose value is not in a graph; "
            f"they would be in {prefix + '.index'!r} and its data, or in the V1 file {prefix!r}"
        )
        with pytest.raises(TensorNotFound, match="closest"):
            source.read(name + "x")


def test_what_became_a_constant_is_a_weight(tmp_path: Path) -> None:
    """Alone, a graph has those of its variables that are constants, and the initial values that weightport gave."""
    value, given = np.float32([1, 2]), np.float32([3, 4])
    nodes = [const("v", value), node("v/read", "Identity", "v"), const("zeros", np.zeros(2, np.float32))]
    kind = {"dtype": number_field(6, 1), "shape": bytes_field(7, shape_proto([2]))}
    for n, start in (("w", "w/Initializer/pretrained_1"), ("x", "zeros"), ("y", "w/Initializer/pretrained_1")):
        nodes += [node(n, "VariableV2", **kind), node(f"{n}/Assign", "Assign", n, start)]
    path = write(tmp_path / "m.meta", meta_graph(graph(*nodes, const("w/Initializer/pretrained_1", given))))
    with tf_meta.open_source(path) as source:
        assert list(source.specs()) == ["w", "x", "y", "v"]
        assert source.read("v").tolist() == [1, 2]
        assert source.read("w", (slice(1, None),)).tolist() == [4]
        for other in ("x", "y"):  # a value that it starts from is not what it was trained to
            with pytest.raises(FormatError, match=f"{other}.: is a variable, whose value is not in a graph"):
                source.read(other)


def test_an_initial_value_of_another_shape(tmp_path: Path) -> None:
    kind = {"dtype": number_field(6, 1), "shape": bytes_field(7, shape_proto([2]))}
    start = const("w/Initializer/pretrained", np.zeros(3, np.float32))
    nodes = [node("w", "VariableV2", **kind), node("w/Assign", "Assign", "w", "w/Initializer/pretrained"), start]
    path = write(tmp_path / "m.meta", meta_graph(graph(*nodes)))
    with (
        tf_meta.open_source(path) as source,
        pytest.raises(FormatError, match=r"tensor 'w' at byte \d+: its initial value is float32\[3\]$"),
    ):
        source.read("w")


def test_beside_a_v1_checkpoint(tmp_path: Path) -> None:
    model = fixture("b_cells/basic_lstm_fb1")
    shutil.copy(model.path("meta_graph"), tmp_path / "m.meta")
    shutil.copy(model.path("checkpoint_v1"), tmp_path / "m")
    with tf_meta.open_source(str(tmp_path / "m.meta")) as source:
        for name, want in model.variables.items():
            assert source.read(name).tobytes() == want.tobytes()
        assert source.facts(list(model.variables))["forget_bias"] == 1.0
    with pytest.raises(BudgetExceeded, match=r"/m: header bytes: [\d,]+ asked for, at most 1 allowed"):
        tf_meta._beside(str(tmp_path / "m.meta"), Budget(header_bytes=1))


def test_a_folder_of_the_same_name_is_no_checkpoint(tmp_path: Path) -> None:
    model = fixture("b_cells/basic_lstm_fb1")
    shutil.copy(model.path("meta_graph"), tmp_path / "m.meta")
    shutil.copytree(model.folder, tmp_path / "m")
    with (
        tf_meta.open_source(str(tmp_path / "m.meta")) as source,
        pytest.raises(FormatError, match="whose value is not in a graph"),
    ):
        source.read(next(iter(model.variables)))


def test_names_are_those_that_are_saved(tmp_path: Path) -> None:
    source = opened(
        tmp_path,
        *(variable("v/part_0", (2, 3)), variable("v/part_1", (1, 3)), variable("w", (4,), "VarHandleOp", 14)),
        *(node("w/Read/ReadVariableOp", "ReadVariableOp", "w"), variable("step", (), dtype=9), variable("not", (1,))),
        *(variable("w/Adam", (4,), dtype=14), const("unsaved", 1.0)),
        *saving(
            ("ema/w", "global_step", "v", "v", "ema/w/Adam"),
            ("", "", "3 3 0,2:0,3", "3 3 2,1:0,3", ""),
            *("w/Read/ReadVariableOp", "step", "v/part_0", "v/part_1", "w/Adam"),
        ),
    )
    found = {n: (s.dtype_name, s.shape, s.nbytes, s.role) for n, s in source.specs().items()}
    assert found == {
        "ema/w": ("bfloat16", (4,), 8, "weight"),
        "global_step": ("int64", (), 8, "counter"),
        "v": ("float32", (3, 3), 36, "weight"),
        "ema/w/Adam": ("bfloat16", (4,), 8, "slot"),
    }


def test_without_a_save_operation(tmp_path: Path) -> None:
    source = opened(tmp_path, variable("w", (2,)), variable("s", (3,), dtype=7), const("c", 1.0))
    assert {n: (s.shape, s.nbytes) for n, s in source.specs().items()} == {"w": ((2,), 8), "s": ((3,), 0)}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (saving(("a", "b"), ("", ""), "w"), "the save operation 'save/SaveV2' has 2 names and 2 slices for 1 tensors"),
        (saving(("a",), ("3 x 0,2:-",), "w"), "tensor 'a': '3 x 0,2:-' is no shape and slice"),
        ([node("save", "SaveV2", "w", "w", "w", "w")], "has 0 names and 0 slices for 1 tensors"),
        ([node("save", "SaveV2")], None),
        ([const("n", 1.0), node("save", "SaveV2", "n", "n", "n", "w")], "the save operation 'save' has no names"),
    ],
)
def test_malformed(tmp_path: Path, nodes: list[bytes], message: str | None) -> None:
    if message is None:
        assert set(opened(tmp_path, variable("w", (2,)), *nodes).specs()) == {"w"}
        return
    with pytest.raises(FormatError, match=message):
        opened(tmp_path, variable("w", (2,)), *nodes)


def test_shapes_that_the_graph_does_not_know(tmp_path: Path) -> None:
    open_shape = bytes_field(7, bytes_field(2, number_field(1, -1)))
    source = opened(tmp_path, node("w", "VarHandleOp", dtype=number_field(6, 1), shape=open_shape), variable("v", (1,)))
    spec = source.specs()["w"]
    assert (spec.role, spec.unread) == ("constant", "a variable whose type and shape the graph does not say")
    assert source.specs()["v"].shape == (1,)
    with pytest.raises(FormatError, match="tensor 'w': is a variable, whose value is not in a graph"):
        source.read("w")


def test_another_message(tmp_path: Path) -> None:
    path = write(tmp_path / "g.meta", graph(const("a", 1.0)))
    assert not tf_meta.sniff(path)
    with pytest.raises(FormatError, match="is a GraphDef, not a MetaGraphDef"):
        tf_meta.open_source(path)
    path = write(tmp_path / "g.meta", meta_graph(graph(const("a", 1.0))) + bytes_field(2, graph(const("b", 1.0))))
    with pytest.raises(FormatError, match="two graphs in one MetaGraphDef"):
        tf_meta.open_source(path)


def test_a_graph_that_says_nothing_of_its_cells(tmp_path: Path) -> None:
    with opened(tmp_path, variable("w", (2, 3)), *saving(("w",), ("",), "w")) as source:
        assert source.facts(["w"]) == {}
        assert source.checksum("w") == ""
    with says(Error, f"{tmp_path / 'm.meta'}: is closed"):
        source.facts(["w"])
    with says(Error, f"{tmp_path / 'm.meta'}: is closed"):
        source.read("w")


def test_beside_a_checkpoint_it_is_only_a_help(tmp_path: Path) -> None:
    """A graph that is damaged, of another kind, or cannot be asked tells nothing, and nothing fails."""
    model = fixture("a_seed_char_lstm")
    prefix = tmp_path / "m"
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(model.path("checkpoint_v2") + suffix, f"{prefix}{suffix}")
    names = list(model.variables)
    good = Path(model.path("meta_graph")).read_bytes()
    for data, known in (
        (good, True),
        (good[: len(good) // 2], False),
        (b"no graph", False),
        (graph(const("a", 1.0)), False),
        (None, False),
    ):
        if data is None:
            (tmp_path / "m.meta").unlink()
        else:
            (tmp_path / "m.meta").write_bytes(data)
        with detect.open_source(str(prefix)) as source:
            assert source.facts([]) == {}
            for _ in range(2):  # asked again, it says the same
                assert bool(source.facts(names)) == known
        assert source.facts(names) == {}, "it is closed"


def test_shared_names(tmp_path: Path) -> None:
    """A variable of another node's name in a session is that node's variable."""
    shared = bytes_field(2, b"w")
    nodes = [
        node("a", "VarHandleOp", dtype=number_field(6, 1), shape=bytes_field(7, shape_proto((2,))), shared_name=shared)
    ]
    nodes += [variable("b", (2,)), node("c", "VariableV2", shared_name=bytes_field(2, b"c")), const("w2", 1.0)]
    meta = tf_meta.open_source(write(tmp_path / "m.meta", meta_graph(graph(*nodes)))).meta
    assert meta._shared == {"w": ["a"]}
    assert [list(meta._nodes(name)) for name in ("w", "b", "w2", "x")] == [["a"], ["b"], ["w2"], []]


def test_two_graphs_in_one(tmp_path: Path) -> None:
    data = meta_graph(graph(variable("a", (2,))))
    second = graph(variable("b", (2,)))
    path = write(tmp_path / "m.meta", data + bytes_field(2, second))
    with says(FormatError, f"{path} at byte {len(data) + 2}: two graphs in one MetaGraphDef"):
        tf_meta.open_source(path)


def test_a_graph_under_another_name(tmp_path: Path) -> None:
    """Only a ``.meta`` file has a checkpoint beside it."""
    path = write(tmp_path / "m.graph", meta_graph(graph(variable("a", (2,)))))
    with tf_meta.open_source(path) as source:
        assert list(source.specs()) == ["a"]


def test_tensors_that_are_saved_and_are_no_variables(tmp_path: Path) -> None:
    nodes = [
        variable("w", (1,)),
        node("sum", "AddN", T=number_field(6, 9)),
        node("one", "Identity", "two"),
        node("two", "Identity", "one"),
        node("lost", "Identity", "nowhere"),
        *saving(("s", "round", "lost"), ("3 0,3", "", ""), "sum", "one", "lost"),
    ]
    with opened(tmp_path, *nodes) as source:
        assert {n: (s.dtype.name, s.shape) for n, s in source.specs().items()} == {"s": ("int64", (3,))}


def test_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "m.meta", meta_graph(graph(variable("a", (2,)), variable("b", (2,)))))
    tf_meta.open_source(path, budget=Budget(tensors=2)).close()
    with pytest.raises(BudgetExceeded, match="tensors: 2 asked for, at most 1 allowed"):
        tf_meta.open_source(path, budget=Budget(tensors=1))
