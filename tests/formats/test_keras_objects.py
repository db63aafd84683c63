from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightport.formats.keras_objects import named
from weightport.formats.keras_variables import VARIABLES, class_of, snake, variables


def layer(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    return {"class_name": kind, "module": "keras.layers", "config": {"name": name, **settings}}


def model(*layers: dict[str, Any], kind: str = "Functional", name: str = "m") -> dict[str, Any]:
    ends = {"input_layers": []} if kind == "Functional" else {}
    return layer(kind, name, layers=list(layers), **ends)


def found(config: Any, titles: dict[str, str] | None = None, **stored: int) -> dict[str, str]:
    """Names of objects with so many variables each; a path's slashes are written as two underscores."""
    paths = {path.replace("__", "/"): count for path, count in stored.items()}
    groups: dict[str, None] = {}
    for path in paths:
        parts = [*path.split("/"), "vars"] if path else ["vars"]
        groups.update(dict.fromkeys("/".join(parts[: n + 1]) for n in range(len(parts))))
    counted = {path: [str(n) for n in range(count)] for path, count in paths.items() if count}
    return named(list(groups), titles or {}, counted, config).names


@pytest.mark.parametrize(
    ("config", "stored", "names"),
    [
        (model(layer("Dense", "d")), {"layers__dense": 2}, ["d/kernel", "d/bias"]),
        (model(layer("Dense", "d", use_bias=False)), {"layers__dense": 1}, ["d/kernel"]),
        (model(layer("Dense", "d"), kind="Sequential"), {"layers__dense": 2}, ["m/d/kernel", "m/d/bias"]),
        (model(layer("Dense", "d"), kind="Mine>Net"), {"layers__dense": 2}, ["m/d/kernel", "m/d/bias"]),
        # Another number of variables than the class has: nobody knows which is which.
        (model(layer("Dense", "d")), {"layers__dense": 3}, [f"layers/dense/vars/{n}" for n in range(3)]),
        (model(layer("Other", "d")), {"layers__other": 1}, ["layers/other/vars/0"]),
        # The second of a class, in the model's order; an operation that is no layer takes no number.
        (
            model(
                layer("Dense", "first"),
                {"class_name": "Dense", "module": "keras.src.ops.numpy", "config": {}},
                layer("Dense", "second"),
            ),
            {"layers__dense_1": 2, "layers__dense": 2},
            ["first/kernel", "first/bias", "second/kernel", "second/bias"],
        ),
        # Two layers of one name, in models of their own.
        (
            model(model(layer("Dense", "d"), name="a"), model(layer("Dense", "d"), name="b")),
            {"layers__functional__layers__dense": 2, "layers__functional_1__layers__dense": 2,
             "layers__functional": 0, "layers__functional_1": 0},
            ["a/d/kernel", "a/d/bias", "b/d/kernel", "b/d/bias"],
        ),
        # Both of one name in one model: the places in the file tell them apart.
        (
            model(layer("Dense", "d"), layer("Dense", "d")),
            {"layers__dense": 1, "layers__dense_1": 2},
            ["layers/dense/vars/0", "d/kernel", "d/bias"],
        ),
        # Without a configuration the path says the class, and nothing says the name.
        ({}, {"layers__dense": 2}, ["layers/dense/vars/0", "layers/dense/vars/1"]),
    ],
)  # fmt: skip
def test_names(config: Any, stored: dict[str, int], names: list[str]) -> None:
    assert list(found(config, **stored).values()) == names


@pytest.mark.parametrize(
    ("given", "backwards"), [({"go_backwards": False}, True), ({"go_backwards": True}, False), ({}, None)]
)
def test_a_backward_layer_of_its_own(given: dict[str, bool], backwards: bool | None) -> None:
    """Its ``go_backwards`` is what it does, not what it wraps; what says nothing is not guessed at."""
    both = layer("Bidirectional", "b", layer=layer("LSTM", "l"), backward_layer=layer("LSTM", "k", units=1, **given))
    groups: dict[str, None] = {}
    stored = {f"layers/bidirectional/{side}_layer/cell": ["0", "1", "2"] for side in ("forward", "backward")}
    for path in ("layers/bidirectional", *(p.removesuffix("/cell") for p in stored), *stored):
        parts = [*path.split("/"), "vars"]
        groups.update(dict.fromkeys("/".join(parts[: n + 1]) for n in range(len(parts))))
    made = named(list(groups), {}, stored, model(both))
    forward, backward = (made.facts[f"{path}/vars/0"] for path in stored)
    assert forward == {"class": "LSTM", "direction": "forward"}
    assert backward.pop("go_backwards", None) is backwards
    assert backward == {"class": "LSTM", "direction": "backward", "units": 1}


def test_names_that_the_file_has_win() -> None:
    config = model(layer("Dense", "d"))
    assert found(config, {"layers/dense": "renamed"}, layers__dense=1) == {"layers/dense/vars/0": "layers/dense/vars/0"}
    assert set(found(config, {"layers/dense": "renamed"}, layers__dense=2).values()) == {
        "renamed/kernel",
        "renamed/bias",
    }


def test_classes_by_the_names_that_keras_gives() -> None:
    titles = {"": "net", "block": "my_block", "block/a": "dense_7", "block/b": "projection", "block/c": "lstm"}
    titles |= {"block/c/cell": "lstm_cell"}
    assert found({}, titles, block=1, block__a=2, block__b=2, block__c=0, block__c__cell=3) == {
        "block/vars/0": "block/vars/0",
        "block/a/vars/0": "net/my_block/dense_7/kernel",
        "block/a/vars/1": "net/my_block/dense_7/bias",
        "block/b/vars/0": "block/b/vars/0",
        "block/b/vars/1": "block/b/vars/1",
        "block/c/cell/vars/0": "net/my_block/lstm/lstm_cell/kernel",
        "block/c/cell/vars/1": "net/my_block/lstm/lstm_cell/recurrent_kernel",
        "block/c/cell/vars/2": "net/my_block/lstm/lstm_cell/bias",
    }


def test_attention_by_the_names_of_its_parts() -> None:
    projections = {f"block__mine__{part}_dense": 2 for part in ("_query", "_key", "_value", "_output")}
    titles = {"": "net", "block": "block", "block/mine": "mine"}
    titles |= {f"block/mine/_{part}_dense": name for part, name in (("query", "query"), ("output", "attention_output"))}
    names = found({}, titles, block=0, block__mine=0, **projections)
    assert names["block/mine/_query_dense/vars/0"] == "net/block/mine/query/kernel"
    assert names["block/mine/_key_dense/vars/1"] == "net/block/mine/key/bias"
    assert names["block/mine/_output_dense/vars/1"] == "net/block/mine/attention_output/bias"
    del projections["block__mine___key_dense"]
    assert "block/mine/_query_dense/vars/0" in found({}, titles, block=0, block__mine=0, **projections).values()


def test_optimizers_keep_their_places() -> None:
    assert found(model(), {"optimizer": "adam"}, optimizer=2) == {
        f"optimizer/vars/{n}": f"optimizer/vars/{n}" for n in (0, 1)
    }


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("LSTM", "lstm"), ("GRUCell", "gru_cell"), ("Conv2DTranspose", "conv2d_transpose"), ("PReLU", "p_re_lu"),
     ("ConvLSTM2D", "conv_lstm2d"), ("EinsumDense", "einsum_dense"), ("RMSNormalization", "rms_normalization")],
)  # fmt: skip
def test_snake_case(name: str, spelled: str) -> None:
    assert snake(name) == spelled
    assert class_of(f"{spelled}_12") == class_of(spelled) == name
    assert class_of(f"my_{spelled}") == ""


@pytest.mark.parametrize(
    ("kind", "settings", "count", "names"),
    [
        ("Dense", None, 1, ("kernel",)),
        ("Dense", None, 3, None),
        ("Dense", {"use_bias": False}, 2, None),
        ("BatchNormalization", None, 4, ("gamma", "beta", "moving_mean", "moving_variance")),
        ("BatchNormalization", None, 3, None),  # without gamma, or without beta
        ("BatchNormalization", {"center": False}, 3, ("gamma", "moving_mean", "moving_variance")),
        ("LayerNormalization", None, 1, None),
        ("EinsumDense", {"bias_axes": "d"}, 2, ("kernel", "bias")),
        ("EinsumDense", {"bias_axes": None}, 1, ("kernel",)),
        ("ReversibleEmbedding", {"tie_weights": False}, 2, ("embeddings", "reverse_embeddings")),
        ("ReversibleEmbedding", {}, 1, ("embeddings",)),
        ("Dense", {"dtype": {"config": {"mode": "int8"}}}, 3, ("kernel", "bias", "kernel_scale")),
        ("Dense", {"dtype": {"config": {"mode": "int4/64"}}}, 5,
         ("kernel", "bias", "kernel_scale", "kernel_zero", "g_idx")),
        ("Dense", {"dtype": {"config": {"mode": "int4/-1"}}, "use_bias": False}, 2, ("kernel", "kernel_scale")),
        ("Dense", {"dtype": {"config": {"mode": "int3"}}}, 2, None),
        ("Dense", {"dtype": {"config": {"name": "float32"}}}, 2, ("kernel", "bias")),
        ("Dense", {"dtype": "float16"}, 2, ("kernel", "bias")),
        ("Nothing", {}, 0, None),
    ],
)  # fmt: skip
def test_variables(kind: str, settings: Any, count: int, names: tuple[str, ...] | None) -> None:
    assert variables(kind, settings, count) == names


@pytest.mark.parametrize(
    ("count", "names"), [(0, None), (1, ("depthwise_kernel",)), (2, ("depthwise_kernel", "bias")), (3, None)]
)
def test_keras_2_calls_a_kernel_otherwise(count: int, names: tuple[str, ...] | None) -> None:
    for kind in ("DepthwiseConv1D", "DepthwiseConv2D"):
        assert variables(kind, {"use_bias": True}, count, major=2) == names
        assert variables(kind, None, 2) == ("kernel", "bias")


NAMES = st.sampled_from(
    ["a", "dense", "lstm", "dense_1", "functional", "cell", "vars", "optimizer", "layers", "x/y", ""]
)
KEYS = st.sampled_from(
    ["class_name", "config", "layers", "cell", "cells", "layer", "name", "dtype", "input_layers", "mode"]
)
CLASSES = st.sampled_from(
    [*VARIABLES, "LSTM", "Bidirectional", "Sequential", "Functional", "RNN", "MultiHeadAttention"]
)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), NAMES, CLASSES)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=30
)


@settings(deadline=None, max_examples=300)
@given(
    config=st.none() | st.dictionaries(KEYS, JSON, max_size=6),
    paths=st.lists(st.lists(NAMES.filter(bool).map(lambda n: n.replace("/", "_")), max_size=4), max_size=6),
    count=st.integers(0, 4),
    titles=st.dictionaries(NAMES, NAMES, max_size=3),
)
def test_every_variable_has_one_name_whatever_the_configuration_says(
    config: Any, paths: list[list[str]], count: int, titles: dict[str, str]
) -> None:
    groups: dict[str, None] = {}
    stored = {}
    for parts in paths:
        full = [*parts, "vars"]
        groups.update(dict.fromkeys("/".join(full[: n + 1]) for n in range(len(full))))
        stored["/".join(parts)] = [str(n) for n in range(count)]
    names = named(list(groups), titles, {path: keys for path, keys in stored.items() if keys}, config).names
    assert len(set(names.values())) == len(names)
    assert set(names) <= {f"{path}/vars/{n}" if path else f"vars/{n}" for path in stored for n in range(count)}
