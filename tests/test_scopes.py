"""The scope tree, and the cells found in it: by names, at the deepest scope that holds them, never by shapes alone."""
# ruff: noqa: E501 - one model a line

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import weightport as wp
from tests.layouts._steps import CASES, shapes_of, sizes_of
from tests.support import FIXTURES, fixture, fixtures, need
from weightport.errors import LayoutError
from weightport.formats.detect import open_source
from weightport.layouts import Layout, builtin, find_layout, parse_layout
from weightport.layouts.units import packed_sizes
from weightport.scopes import find_cells, is_cell, resolve_cell, separator_of, tree
from weightport.tensors import TensorSpec

Specs = dict[str, TensorSpec]


def specs_of(shapes: dict[str, tuple[int, ...]], role: str = "weight") -> Specs:
    return {n: TensorSpec.of("float32", s, role) for n, s in shapes.items()}


def cell(scope: str, case: str = "tf", inputs: int = 3, units: int = 4) -> Specs:
    """The tensors of a cell."""
    name, number, has, _ = CASES[case]
    layout = find_layout(name)
    sizes = sizes_of(case, inputs, units, units - 1)
    return specs_of(shapes_of(layout, layout.forms[number], scope, has, sizes))


def dense(scope: str, inputs: int = 12, units: int = 16) -> Specs:
    return specs_of({f"{scope}/kernel": (inputs, units), f"{scope}/bias": (units,)})


def merged(parts: Iterable[Specs]) -> Specs:
    return {n: s for part in parts for n, s in part.items()}


def found(specs: Specs, **options: Any) -> list[tuple[str, str]]:
    return [(c.scope, c.layout.name) for c in find_cells(specs, **options)]


# The tree ------------------------------------------------------------------------------------------------------------


def test_the_tree_as_text() -> None:
    shapes = {
        "b": (), "rnn/cell/kernel": (3, 16), "rnn/cell/bias": (16,), "a/x": (1, 2, 3), "rnn/other": (0,), "a/y/z": (4,),
        "rnn/cell/kernel/Adam": (3, 16), "": (2,), "/odd": (1,), "c//d": (1,),
    }  # fmt: skip
    specs = specs_of(shapes)
    specs["rnn/cell/kernel/Adam"] = TensorSpec.of("float64", (3, 16), "slot")
    root = tree(specs)
    assert (
        str(root)
        == """\
├─ rnn/
│  ├─ cell/
│  │  ├─ kernel/
│  │  │  └─ Adam  float64 3×16 (slot)
│  │  ├─ kernel  float32 3×16
│  │  └─ bias  float32 16
│  └─ other  float32 0
├─ a/
│  ├─ y/
│  │  └─ z  float32 4
│  └─ x  float32 1×2×3
├─ /
│  └─ odd  float32 1
├─ c/
│  └─ /
│     └─ d  float32 1
├─ b  float32 scalar
└─   float32 2"""
    )
    noted = list(root.lines({"rnn/cell": "an LSTM", "": "all of it", "a/y": "?"}))
    assert noted[0] == ".  all of it"
    assert noted[2] == "│  ├─ cell/  an LSTM"
    assert noted[9] == "│  ├─ y/  ?"
    assert len(noted) == len(str(root).splitlines()) + 1
    assert [path for path, _ in root.walk()] == ["", "rnn", "rnn/cell", "rnn/cell/kernel", "a", "a/y", "", "c", "c/"]
    assert [path for path, _ in root.scopes["a"].walk("a")] == ["a", "a/y"]
    assert str(tree({})) == ""


def test_names_with_dots_are_a_tree_where_none_has_a_slash() -> None:
    root = tree(specs_of({"enc.rnn.w": (2,), "enc.b": (), "c": (1,)}))
    assert str(root).splitlines() == [
        "├─ enc.", "│  ├─ rnn.", "│  │  └─ w  float32 2", "│  └─ b  float32 scalar", "└─ c  float32 1",
    ]  # fmt: skip
    assert [path for path, _ in root.walk()] == ["", "enc", "enc.rnn"]
    assert list(root.lines({"enc.rnn": "here"}))[1] == "│  ├─ rnn.  here"
    assert [path for path, _ in tree(specs_of({"enc.rnn.w": (2,), "a/b": ()})).walk()] == ["", "a"]


def test_constants_do_not_say_what_separates_scopes() -> None:
    """A graph that was exported has its weights under PyTorch's names, and its constants under others."""
    specs = specs_of({"rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    specs |= specs_of({"/rnn/Constant": (1,), "rnn/weight_ih_l0": (12, 3)}, role="constant")
    assert separator_of(specs) == "."
    assert separator_of(list(specs)) == "/"
    assert found(specs) == [("rnn", "gru.torch")]
    assert resolve_cell(specs, find_layout("gru.torch"), "rnn").names == ("rnn.weight_ih_l0", "rnn.weight_hh_l0")


def test_a_tree_as_deep_as_names_go() -> None:
    name = "/".join("s" * 5000) + "/x"
    root = tree(specs_of({name: (1,)}))
    assert sum(1 for _ in root.walk()) == 5001
    assert len(list(root.lines())) == 5001
    assert find_cells(specs_of({name: (1,)})) == []


# The cells of the fixture models -------------------------------------------------------------------------------------

#: Model -> scope, layout, input, units, layers, directions of each cell, in the order of their tensors.
CELLS: dict[str, list[tuple[str, str, int, int | list[int], int, str]]] = {
    "a_seed_char_lstm": [("LSTMcell", "lstm.scoped-gates", 27, 32, 1, "f")],
    "a_udacity_ifco": [("", "lstm.ifco", 27, 16, 1, "f")],
    "b_cells/attention_wrapper_lstm": [("rnn/attention_cell_wrapper", "attention.tf1", 7, 4, 1, "f"), ("rnn/attention_cell_wrapper/lstm_cell", "lstm.tf1", 7, 6, 1, "f")],
    "b_cells/basic_lstm_concat_state": [("rnn/basic_lstm_cell", "lstm.tf1", 5, 6, 1, "f")],
    "b_cells/basic_lstm_fb0": [("encoder/rnn/basic_lstm_cell", "lstm.tf1", 5, 9, 1, "f")],
    "b_cells/basic_lstm_fb1": [("rnn/basic_lstm_cell", "lstm.tf1", 7, 12, 1, "f")],
    "b_cells/basic_lstm_relu": [("rnn/basic_lstm_cell", "lstm.tf1", 4, 7, 1, "f")],
    "b_cells/basic_lstm_square": [("rnn/basic_lstm_cell", "lstm.tf1", 8, 8, 1, "f")],
    "b_cells/basic_lstm_static": [("rnn/basic_lstm_cell", "lstm.tf1", 5, 6, 1, "f")],
    "b_cells/basic_rnn": [("rnn/basic_rnn_cell", "rnn.tf1", 5, 9, 1, "f")],
    "b_cells/bidirectional_lstm": [("bidirectional_rnn", "lstm.tf1", 6, [7, 5], 1, "f+b")],
    "b_cells/cfn": [("rnn/cfn_cell", "cfn.tf1", 5, 6, 1, "f")],
    "b_cells/conv_1d_lstm": [("rnn/conv_1d_lstm_cell", "conv1d_lstm.tf1", 2, 3, 1, "f")],
    "b_cells/conv_2d_lstm": [("rnn/conv_2d_lstm_cell", "conv2d_lstm.tf1", 2, 3, 1, "f")],
    "b_cells/conv_3d_lstm": [("rnn/conv_3d_lstm_cell", "conv3d_lstm.tf1", 2, 3, 1, "f")],
    "b_cells/coupled_input_forget": [("rnn/coupled_input_forget_gate_lstm_cell", "lstm.tf1-coupled", 5, 8, 1, "f")],
    "b_cells/cudnn_compatible_gru": [("rnn/cudnn_compatible_gru_cell", "gru.tf1", 6, 9, 1, "f")],
    "b_cells/cudnn_compatible_lstm": [("rnn/cudnn_compatible_lstm_cell", "lstm.tf1", 6, 9, 1, "f")],
    "b_cells/cudnn_lstm_stack": [("cudnn_lstm/rnn/multi_rnn_cell", "lstm.tf1", 5, 6, 2, "f")],
    "b_cells/glstm": [("rnn/glstm_cell", "glstm.tf1", 6, 8, 1, "f")],
    "b_cells/glstm_one_group": [("rnn/glstm_cell", "lstm.tf1-group", 5, 7, 1, "f")],
    "b_cells/glstm_proj": [("rnn/glstm_cell", "glstm.tf1", 6, 9, 1, "f")],
    "b_cells/grid_lstm": [("rnn/grid_lstm_cell", "grid_lstm.tf1", 2, 3, 1, "f")],
    "b_cells/grid_lstm_shared_coupled": [("rnn/grid_lstm_cell", "grid_lstm.tf1-coupled", 2, 3, 2, "f")],
    "b_cells/gru": [("rnn/gru_cell", "gru.tf1", 6, 10, 1, "f")],
    "b_cells/gru_block_v2": [("rnn/gru_cell", "gru.tf1", 5, 8, 1, "f")],
    "b_cells/ind_rnn": [("rnn/ind_rnn_cell", "ind_rnn.tf1", 4, 6, 1, "f")],
    "b_cells/indy_gru": [("rnn/indy_gru_cell", "indy_gru.tf1", 4, 6, 1, "f")],
    "b_cells/indy_lstm": [("rnn/indy_lstm_cell", "indy_lstm.tf1", 5, 7, 1, "f")],
    "b_cells/intersection_rnn": [("rnn/intersection_rnn_cell", "intersection.tf1", 4, 6, 1, "f")],
    "b_cells/intersection_rnn_square": [("rnn/intersection_rnn_cell", "intersection.tf1", 5, 5, 1, "f")],
    "b_cells/layer_norm_basic_lstm": [("rnn/layer_norm_basic_lstm_cell", "layer_norm_lstm.tf1", 5, 9, 1, "f")],
    "b_cells/layer_norm_basic_lstm_off": [("rnn/layer_norm_basic_lstm_cell", "lstm.tf1", 5, 6, 1, "f")],
    "b_cells/layer_norm_lstm": [("rnn/layer_norm_lstm_cell", "layer_norm_lstm.tf1", 5, 6, 1, "f")],
    "b_cells/lstm_block": [("rnn/lstm_cell", "lstm.tf1", 6, 10, 1, "f")],
    "b_cells/lstm_block_fused": [("lstm_fused_cell", "lstm.tf1", 6, 8, 1, "f")],
    "b_cells/lstm_block_peephole_clip": [("rnn/lstm_cell", "lstm.tf1", 5, 8, 1, "f")],
    "b_cells/lstm_peephole": [("rnn/lstm_cell", "lstm.tf1", 6, 8, 1, "f")],
    "b_cells/lstm_peephole_proj_clip": [("am/layer/rnn/lstm_cell", "lstm.tf1", 4, 11, 1, "f")],
    "b_cells/lstm_plain": [("rnn/lstm_cell", "lstm.tf1", 6, 10, 1, "f")],
    "b_cells/lstm_proj": [("rnn/lstm_cell", "lstm.tf1", 7, 12, 1, "f")],
    "b_cells/minimal_rnn": [("rnn/minimal_rnn_cell", "minimal.tf1", 4, 6, 1, "f")],
    "b_cells/multi2_residual_dropout": [("decoder/rnn/multi_rnn_cell", "lstm.tf1", 6, 6, 2, "f")],
    "b_cells/multi2_ugrnn": [("rnn/multi_rnn_cell", "ugrnn.tf1", 4, [5, 7], 2, "f")],
    "b_cells/multi3_basic_lstm": [("rnn/multi_rnn_cell", "lstm.tf1", 5, [8, 6, 10], 3, "f")],
    "b_cells/nas": [("rnn/nas_cell", "nas.tf1", 6, 5, 1, "f")],
    "b_cells/nas_plain": [("rnn/nas_cell", "nas.tf1", 4, 5, 1, "f")],
    "b_cells/phased_lstm": [("rnn/phased_lstm_cell", "phased_lstm.tf1", 4, 6, 1, "f")],
    "b_cells/phased_lstm_plain": [("rnn/phased_lstm_cell", "phased_lstm.tf1", 3, 5, 1, "f")],
    "b_cells/sru": [("rnn/sru_cell", "sru.tf1", 5, 6, 1, "f")],
    "b_cells/stack_bidirectional_lstm": [("stack_bidirectional_rnn", "lstm.tf1", 6, [5, 4], 2, "f+b")],
    "b_cells/time_freq_lstm": [("time_freq_lstm_cell", "timefreq_lstm.tf1", 3, 4, 1, "f")],
    "b_cells/ugrnn": [("rnn/ugrnn_cell", "ugrnn.tf1", 5, 8, 1, "f")],
    "b_cells/weight_norm_lstm": [("rnn/wn_lstm_cell/wn_lstm_cell", "weight_norm_lstm.tf1", 5, 6, 1, "f")],
    "b_cells/weight_norm_lstm_off": [("rnn/wn_lstm_cell/wn_lstm_cell", "lstm.tf1", 5, 6, 1, "f")],
    "b_seq2seq/seq2seq_bahdanau": [("decoder/decoder/attention_wrapper/lstm_cell", "lstm.tf1", 11, 8, 1, "f"), ("encoder/rnn/lstm_cell", "lstm.tf1", 5, 8, 1, "f")],
    "c_keras/bidirectional_lstm": [("bidi", "lstm.keras", 5, 6, 1, "f+b")],
    "c_keras/cudnngru_5_h5": [("rnn", "gru.keras-cudnn", 4, 5, 1, "f")],
    "c_keras/cudnnlstm_6_h5": [("rnn", "lstm.keras-cudnn", 4, 6, 1, "f")],
    "c_keras/gru_reset_after": [("gru", "gru.keras", 5, 6, 1, "f")],
    "c_keras/gru_reset_before": [("gru", "gru.keras", 5, 8, 1, "f")],
    "c_keras/lstm_impl1": [("lstm", "lstm.keras", 5, 8, 1, "f")],
    "c_keras/lstm_impl2_sigmoid": [("encoder_lstm", "lstm.keras", 4, 7, 1, "f")],
    "c_keras/lstm_no_bias": [("lstm", "lstm.keras", 4, 6, 1, "f")],
    "c_keras/masked_text_classifier": [("lstm_1", "lstm.keras", 5, 7, 1, "f"), ("lstm_2", "lstm.keras", 7, 6, 1, "f")],
    "c_keras/nested_model": [("inner_lstm", "lstm.keras", 4, 5, 1, "f"), ("top_rnn", "rnn.keras", 5, 4, 1, "f")],
    "c_keras/simple_rnn": [("simple_rnn", "rnn.keras", 5, 8, 1, "f")],
    "c_keras/stacked_cells": [("rnn", "lstm.keras", 5, 6, 1, "f"), ("rnn", "gru.keras", 6, 4, 1, "f")],
    "c_keras/v2_gru": [("gru", "gru.keras", 5, 6, 1, "f")],
    "c_keras/v2_lstm": [("lstm", "lstm.keras", 5, 7, 1, "f")],
    "d_checkpoints/const_encodings": [],
    "d_checkpoints/dtypes": [],
    "d_checkpoints/mixed_network": [("net/rnn/gru_cell", "gru.tf1", 24, 5, 1, "f")],
    "d_checkpoints/partitioned": [("model/rnn/lstm_cell", "lstm.tf1", 4, 6, 1, "f")],
    "d_checkpoints/sharded": [("decoder/basic_lstm_cell", "lstm.tf1", 6, 8, 1, "f"), ("encoder/basic_lstm_cell", "lstm.tf1", 5, 6, 1, "f")],
    "d_checkpoints/state_file_absolute": [],
    "d_checkpoints/train_state_adam_ema": [("LSTMcell", "lstm.scoped-gates", 27, 32, 1, "f")],
    "d_checkpoints/v1_ints_and_zeros": [("rnn/basic_lstm_cell", "lstm.tf1", 5, 8, 1, "f")],
    "e_old_naming/tf_0_12_1/basic_lstm": [("RNN/BasicLSTMCell", "lstm.tf1", 5, 8, 1, "f")],
    "e_old_naming/tf_0_12_1/basic_rnn": [("RNN/BasicRNNCell", "rnn.tf1", 4, 6, 1, "f")],
    "e_old_naming/tf_0_12_1/bidirectional_gru": [("BiRNN", "gru.tf1", 5, 4, 1, "f+b")],
    "e_old_naming/tf_0_12_1/gru": [("RNN/GRUCell", "gru.tf1", 4, 6, 1, "f")],
    "e_old_naming/tf_0_12_1/lstm_peephole_proj": [("RNN/LSTMCell", "lstm.tf1", 5, 7, 1, "f")],
    "e_old_naming/tf_0_12_1/multi2_basic_lstm": [("RNN/MultiRNNCell", "lstm.tf1", 5, [6, 5], 2, "f")],
    "e_old_naming/tf_1_0_1/basic_lstm": [("rnn/basic_lstm_cell", "lstm.tf1", 4, 7, 1, "f")],
    "e_old_naming/tf_1_0_1/basic_rnn": [("rnn/basic_rnn_cell", "rnn.tf1", 5, 5, 1, "f")],
    "e_old_naming/tf_1_0_1/bidirectional_lstm": [("bidirectional_rnn", "lstm.tf1", 4, 5, 1, "f+b")],
    "e_old_naming/tf_1_0_1/gru": [("rnn/gru_cell", "gru.tf1", 5, 7, 1, "f")],
    "e_old_naming/tf_1_0_1/lstm": [("rnn/lstm_cell", "lstm.tf1", 5, 8, 1, "f")],
    "e_old_naming/tf_1_0_1/lstm_block": [("rnn/lstm_cell", "lstm.tf1", 4, 6, 1, "f")],
    "e_old_naming/tf_1_2_1/basic_lstm": [("rnn/basic_lstm_cell", "lstm.tf1", 4, 6, 1, "f")],
}  # fmt: skip
KINDS = (
    "checkpoint_v2", "checkpoint_v1", "checkpoint_object_based", "checkpoint_halfway", "checkpoint_v1_sharded",
    "meta_graph", "frozen", "frozen_text", "saved_model", "keras_h5", "keras_weights_h5",
)  # fmt: skip
FILES = [(f.name, kind) for f in fixtures() for kind in KINDS if kind in f.files]


def test_every_fixture_is_in_the_table() -> None:
    assert sorted(CELLS) == [f.name for f in fixtures()]
    assert FIXTURES.is_dir()


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_the_cells_of_every_file_of_every_fixture(name: str, kind: str) -> None:
    source = open_source(fixture(name).path(kind))
    try:
        specs = dict(source.specs())
    finally:
        source.close()
    cells = find_cells(specs)
    summary = [
        (c.scope, c.layout.name, c.input, c.per_unit("unit"), c.layers, "+".join(d[0] for d in c.directions))
        for c in cells
    ]
    assert sorted(summary, key=str) == sorted(CELLS[name], key=str)
    for one in cells:
        assert all(specs[n].role not in ("slot", "optimizer") for n in one.names)
        assert resolve_cell(specs, one.layout, one.scope) == one


#: Models whose cells do not take all of the input.
OTHER_INPUTS = {
    "b_cells/phased_lstm": "the first of them is the time", "b_cells/phased_lstm_plain": "the first of them is the time",
    "b_cells/conv_1d_lstm": "channels", "b_cells/conv_2d_lstm": "channels", "b_cells/conv_3d_lstm": "channels",
    "b_cells/time_freq_lstm": "feature_size", "b_cells/grid_lstm": "feature_size", "b_cells/grid_lstm_shared_coupled": "blocks",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n, cells in CELLS.items() if len(cells) == 1])
def test_the_table_says_what_the_models_authors_say(name: str) -> None:
    doc = fixture(name).doc
    ((_, layout, inputs, units, layers, _),) = CELLS[name]
    if doc.get("units") is not None:
        said = doc["units"]
        said = [said["fw"], said["bw"]] if isinstance(said, dict) else said
        assert units == (said[0] if isinstance(said, list) and len(set(said)) == 1 else said)
    if doc.get("input_size") is not None and name not in OTHER_INPUTS:
        assert inputs == doc["input_size"]
    if doc.get("num_layers") is not None:
        assert layers == doc["num_layers"]
    described = (doc.get("cell") or "").upper() + name.upper().replace("_", "")
    kind = layout.split(".")[0].upper().replace("_", "")
    assert kind in described.replace("NETWORK", "GRU").replace("V1INTS", "LSTM").replace("NORMBASIC", "NORM")


# Finding -------------------------------------------------------------------------------------------------------------


#: Forms whose names and packing are another layout's too; the first of them is said to be the one.
ALIKE = {
    f"{letter}{case}": f"{kind}.torch"
    for letter, kind in (("", "lstm"), ("g-", "gru"), ("r-", "rnn"))
    for case in ("paddle", "paddle-cell", "eqx-none")
}


#: One vector: its length tells no sizes, and nothing is guessed.
TELLING = [case for case, (name, *_) in CASES.items() if not find_layout(name).packed]


@pytest.mark.parametrize("case", TELLING)
def test_every_form_is_found_under_its_frameworks_names(case: str) -> None:
    name, number, _, _ = CASES[case]
    form = find_layout(name).forms[number]
    scope = f"top/{form.cells[-1]}_3" if form.cells else "top/some"
    specs = merged([dense("top/fc"), cell(scope, case), dense("top")])
    name = ALIKE.get(case, name)
    assert found(specs) == [(scope, name)]
    assert found(specs, below="top") == [(scope, name)]
    assert found(specs, below="other") == []
    if form.cells:
        assert found(merged([cell("top/some", case)])) == []


@pytest.mark.parametrize("case", TELLING)
def test_every_form_is_found_under_names_with_dots(case: str) -> None:
    name, number, _, _ = CASES[case]
    form = find_layout(name).forms[number]
    scope = f"top/{form.cells[-1]}_3" if form.cells else "top/some"
    specs = {n.replace("/", "."): s for n, s in merged([dense("top/fc"), cell(scope, case), dense("top")]).items()}
    (one,) = find_cells(specs)
    assert (one.scope, one.layout.name) == (scope.replace("/", "."), ALIKE.get(case, name))
    assert set(one.names) <= set(specs)
    assert found(specs, below="top") == [(one.scope, one.layout.name)]
    again = resolve_cell(specs, find_layout(name), one.scope)
    assert (again.scope, set(again.names)) == (one.scope, set(one.names))


@pytest.mark.parametrize("case", sorted(set(CASES) - set(TELLING)))
def test_one_vector_is_no_cell_until_its_sizes_are_told(case: str) -> None:
    layout = find_layout(CASES[case][0])
    n = packed_length(layout, 3, 4)
    specs = merged([dense("top/fc"), cell("top/rnn", case)])
    assert find_cells(specs) == []
    for scope in ("top/rnn", "top", ""):
        told = resolve_cell(specs, layout, scope, sizes=packed_sizes(3, 4))
        assert (told.scope, told.input, told.per_unit("unit"), told.layers) == ("top/rnn", 3, 4, 1)
    dotted = {name.replace("/", "."): spec for name, spec in specs.items()}
    assert resolve_cell(dotted, layout, "top", sizes=packed_sizes(3, 4)).names == ("top.rnn.opaque_kernel",)
    kind, name = layout.kind, "'top/rnn/opaque_kernel'"
    for sizes, message in (
        (
            None,
            f"the {n} values of {name} do not tell how large the {kind} is; "
            "state it: sizes: {input: 64, units: 128, layers: 2, directions: 1}",
        ),
        (
            packed_sizes(3, 4, 2),
            f"{name} has {n} values; a {kind} of 3 inputs, 4 units, 2 layers, 1 direction has "
            f"{n + packed_length(layout, 4, 4)}; what would fit: layers: 1, directions: 1",
        ),
        (
            packed_sizes(31, 17, 1, 2),
            f"{name} has {n} values; a {kind} of 31 inputs, 17 units, 1 layer, 2 directions has "
            f"{2 * packed_length(layout, 31, 17)}",
        ),
    ):
        with pytest.raises(LayoutError) as caught:
            resolve_cell(specs, layout, "top", sizes=sizes)
        assert str(caught.value) == message
    two = merged([cell("top/a", case), cell("top/b", case)])
    with pytest.raises(
        LayoutError, match=f"2 vectors of layout {layout.name} stand below scope 'top': 'top/a', 'top/b'"
    ):
        resolve_cell(two, layout, "top", sizes=packed_sizes(3, 4))
    assert resolve_cell(two, layout, "top/b", sizes=packed_sizes(3, 4)).scope == "top/b"
    with pytest.raises(LayoutError, match=f"no {layout.name} cell at or below scope 'top/fc'"):
        resolve_cell(specs, layout, "top/fc", sizes=packed_sizes(3, 4))


def packed_length(layout: Layout, inputs: int, units: int) -> int:
    return len(layout.gates) * units * (inputs + units + 2)


def test_several_libraries_of_one_model() -> None:
    """MXNet's layers are no cells, and what PaddlePaddle stores twice is found twice."""
    gluon = {f"lstm0_{d}{k}": cell(f"lstm0_{d}{k}", "mx-cell", 8 if k else 3, 4) for k in range(2) for d in "lr"}
    (one,) = find_cells(merged(gluon.values()))
    assert (one.scope, one.layout.name, one.layers, len(one.directions)) == ("lstm0", "lstm.mxnet", 2, 2)
    cells = [cell(f"0/cell_{d}", "paddle-cell") for d in ("fw", "bw")]
    paddle = {n.replace("/", "."): s for n, s in merged([cell("", "paddle"), *cells]).items()}
    assert found(paddle) == [("", "lstm.torch"), ("", "lstm.paddle-layers")]


def test_layers_of_other_kinds_are_no_cells() -> None:
    shapes = {
        "dense/kernel": (14, 16), "dense/bias": (16,), "lstm_like/kernel": (20, 16), "lstm_like/bias": (16,),
        "out/weights": (14, 16), "out/biases": (16,), "fc/Matrix": (7, 16), "fc/Bias": (16,), "W": (20, 16), "b": (16,),
        "conv/kernel": (3, 3, 4, 16), "conv/bias": (16,), "bn/gamma": (16,), "bn/beta": (16,),
        "dense_1/dense_1_W": (14, 16), "dense_1/dense_1_b": (16,), "conv_1/conv_1_W": (3, 1, 4, 16), "conv_1/conv_1_b": (16,),
        "my_lstm_cell_x/kernel": (20, 16), "my_lstm_cell_x/bias": (16,),
    }  # fmt: skip
    assert found(specs_of(shapes)) == []


def test_a_gate_of_an_lstm_of_another_make_is_no_plain_rnn() -> None:
    gates = [cell(f"mine/{g}", "r-scoped") for g in ("in", "forget", "new", "out")]
    assert found(merged(gates)) == []
    assert found(merged([cell("mine/RNNcell", "r-scoped")])) == [("mine/RNNcell", "rnn.scoped-gates")]


def test_slots_are_never_part_of_a_cell() -> None:
    real = cell("rnn/lstm_cell")
    slots = {f"slots/{n}": TensorSpec.of("float32", s.shape, role) for n, s in real.items() for role in ("slot",)}
    state = {f"state/{n}": TensorSpec.of("float32", s.shape, "optimizer") for n, s in real.items()}
    specs = {**slots, **state, **real}
    assert found(specs) == [("rnn/lstm_cell", "lstm.tf1")]
    assert resolve_cell(specs, find_layout("lstm.tf1"), "").scope == "rnn/lstm_cell"
    assert find_cells({**slots, **state}) == []


def test_the_order_is_that_of_the_tensors() -> None:
    specs = merged([cell("b/lstm_cell"), cell("a", "g-keras-after"), cell("c/gru_cell", "g-tf")])
    assert [scope for scope, _ in found(specs)] == ["b/lstm_cell", "a", "c/gru_cell"]


def test_ones_own_layouts_are_found_where_they_are_given() -> None:
    table = {"tensors": {"wi": "wx[input (gate unit)]", "wh": "wt[hidden (gate unit)]"}}
    mine = parse_layout("lstm.mine", table, "w")
    specs = specs_of({"a/wi": (3, 16), "a/wh": (4, 16)})
    assert found(specs) == []
    assert found(specs, layouts=[mine]) == [("a", "lstm.mine")]
    assert found(specs, layouts=[*builtin().values(), mine]) == [("a", "lstm.mine")]


def test_is_cell() -> None:
    names = ("lstm_cell", "basic_lstm_cell")
    assert all(is_cell(s, names) for s in ("lstm_cell", "a/lstm_cell", "a/b/lstm_cell_12"))
    assert not any(is_cell(s, names) for s in ("", "a", "lstm_cell/a", "lstm_cell_", "lstm_cell_x", "my_lstm_cell"))


def test_a_hundred_thousand_tensors() -> None:
    """With one look at every tensor for each of the cells, this would take hours."""
    layers = [cell(f"tower/cell_{k}/lstm_cell") for k in range(2000)]
    torch_like = {
        "directions": {"forward": "", "backward": "_r"},
        "tensors": {
            "w_ih_l{layer}{direction}": "wx[(gate unit) input]",
            "w_hh_l{layer}{direction}": "wt[(gate unit) hidden]",
        },
    }
    mine = parse_layout("lstm.torchlike", torch_like, "w")
    shapes = {f"m{k}/{n}": s for k in range(5000) for n, s in (("w_ih_l0", (16, 3)), ("w_hh_l0", (16, 4)))}
    specs = merged([*(dense(f"dense_{k}") for k in range(43_000)), *layers, specs_of(shapes)])
    assert len(specs) == 100_000
    cells = find_cells(specs, [*builtin().values(), mine])
    assert len(cells) == 5001
    assert (cells[0].scope, cells[0].layers) == ("tower", 2000)
    with pytest.raises(LayoutError, match=r"^5000 cells of layout lstm.torchlike stand below scope ''"):
        resolve_cell(specs, mine, "")
    assert resolve_cell(specs, mine, "m77").scope == "m77"


# Naming one ----------------------------------------------------------------------------------------------------------

TF, KERAS = find_layout("lstm.tf1"), find_layout("lstm.keras")


def refusal(specs: Specs, layout: Any, scope: str, **options: Any) -> str:
    with pytest.raises(LayoutError) as caught:
        resolve_cell(specs, layout, scope, **options)
    return str(caught.value)


def test_a_cell_at_or_below_the_scope() -> None:
    specs = merged([dense("enc/fc"), cell("enc/rnn/lstm_cell"), cell("dec/rnn/gru_cell", "g-tf")])
    for scope in ("", "enc", "enc/rnn", "enc/rnn/lstm_cell"):
        assert resolve_cell(specs, TF, scope).scope == "enc/rnn/lstm_cell"


def test_the_root_scope() -> None:
    specs = merged([cell("", "ifco"), specs_of({"w": (4, 5), "b": (5,)})])
    assert resolve_cell(specs, find_layout("lstm.ifco"), "").scope == ""


def test_a_stack_and_its_parts() -> None:
    specs = merged(
        cell(f"rnn/multi_rnn_cell/cell_{k}/lstm_cell", inputs=3 + k) for k in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)
    )
    for scope in ("", "rnn", "rnn/multi_rnn_cell"):
        whole = resolve_cell(specs, TF, scope)
        assert (whole.scope, [u.sizes["input"] for u in whole.units]) == ("rnn/multi_rnn_cell", list(range(3, 14)))
    part = resolve_cell(specs, TF, "rnn/multi_rnn_cell/cell_2")
    assert (part.layers, part.units[0].layer, part.input) == (1, 0, 5)


def test_a_cell_of_a_name_of_its_own() -> None:
    specs = merged([cell("enc/memory"), dense("enc/fc")])
    assert find_cells(specs) == []
    assert resolve_cell(specs, TF, "enc/memory").scope == "enc/memory"
    stack = merged(cell(f"enc/cell_{k}/memory") for k in range(3))
    assert resolve_cell(stack, TF, "enc").layers == 3
    pair = merged(cell(f"enc/{d}/memory") for d in ("bw", "fw"))
    assert resolve_cell(pair, TF, "").directions == ("forward", "backward")


def test_a_dense_layer_is_not_taken_for_a_cell_of_a_name_of_its_own() -> None:
    """It has a kernel and a bias of an LSTM's shapes: a scope above it names it no more than any other layer."""
    names = "expected tensors such as kernel, bias"
    where = "tensors of these names, but in a scope of another name, stand at"
    assert refusal(dense("enc/fc", 20, 16), TF, "enc") == (
        f"no lstm.tf1 cell at or below scope 'enc' ({names}); {where} 'enc/fc': name that scope"
    )
    assert refusal(merged([dense("a", 20, 16), dense("b", 20, 16)]), TF, "") == (
        f"no lstm.tf1 cell at or below scope '' ({names}); {where} 'a', 'b': name that scope"
    )


def test_none() -> None:
    what = "no lstm.keras cell at or below scope 'enc' (expected tensors such as kernel, recurrent_kernel)"
    assert refusal(cell("enc/rnn/lstm_cell"), KERAS, "enc") == f"{what}; found: lstm.tf1 at 'enc/rnn/lstm_cell'"
    assert (
        refusal(specs_of({"enc/a": (2, 3), "enc/b": ()}), KERAS, "enc") == f"{what}; found: 'enc/a' [2, 3], 'enc/b' []"
    )
    assert refusal(cell("encoder/rnn"), KERAS, "enc") == "no scope 'enc'; closest: 'encoder'"
    assert refusal(cell("zzz/rnn"), KERAS, "enc") == "no scope 'enc'"
    assert refusal({}, KERAS, "") == "no scope ''"
    scoped = "expected tensors such as input_gate/wx, input_gate/wt"
    assert scoped in refusal(cell("a"), find_layout("lstm.scoped-gates"), "a")
    assert "expected tensors such as ..._W_i, ..._U_i, ..._b_i" in refusal(cell("a"), find_layout("lstm.keras1"), "a")


def test_a_cudnn_cell_is_not_one_without_a_bias() -> None:
    assert refusal(cell("rnn", "g-cudnn"), find_layout("gru.keras"), "rnn") == (
        "no gru.keras cell at or below scope 'rnn' (expected tensors such as kernel, recurrent_kernel, bias); "
        "found: gru.keras-cudnn at 'rnn'"
    )


def test_several() -> None:
    specs = merged([cell("enc/lstm_cell"), cell("dec/lstm_cell")])
    assert refusal(specs, TF, "") == (
        "2 cells of layout lstm.tf1 stand below scope '': 'enc/lstm_cell', 'dec/lstm_cell'; name one of them"
    )


def test_skipped_tensors_are_not_there() -> None:
    specs = merged([cell("old/lstm_cell"), cell("new/lstm_cell")])
    skip = frozenset(n for n in specs if n.startswith("old/"))
    assert resolve_cell(specs, TF, "", skip=skip).scope == "new/lstm_cell"


def test_the_forms_of_a_cells_own_name_come_first() -> None:
    """CudnnCompatibleLSTMCell has BasicLSTMCell's tensors, but adds no forget bias."""
    for scope, bias in (("rnn/cudnn_compatible_lstm_cell", 0.0), ("rnn/lstm_cell", 1.0), ("rnn/mine", 1.0)):
        assert resolve_cell(cell(scope), TF, scope).units[0].form.forget_bias == bias


def test_scopes_that_begin_alike_are_others() -> None:
    specs = merged(
        [
            cell("enc/lstm_cell"),
            cell("enc_2/lstm_cell"),
            cell("lstm_1/lstm_1", "keras1"),
            cell("lstm_10/lstm_10", "keras1"),
        ]
    )
    assert resolve_cell(specs, TF, "enc").scope == "enc/lstm_cell"
    assert resolve_cell(specs, find_layout("lstm.keras1"), "lstm_1").scope == "lstm_1"


def test_keras1_cells_by_either_scope() -> None:
    layout = find_layout("gru.keras1")
    specs = merged(
        [
            dense("x"),
            cell("gru_1/gru_1", "g-keras1"),
            specs_of({"dense_1/dense_1_W": (3, 4), "dense_1/dense_1_b": (4,)}),
        ]
    )
    assert found(specs) == [("gru_1", "gru.keras1")]
    for scope in ("", "gru_1", "gru_1/gru_1"):
        assert resolve_cell(specs, layout, scope).names == tuple(cell("gru_1/gru_1", "g-keras1"))
    pair = merged(cell(f"bidi/{d}_gru_1", "g-keras1") for d in ("forward", "backward"))
    assert resolve_cell(pair, layout, "bidi").directions == ("forward", "backward")
    assert resolve_cell(pair, layout, "bidi/backward_gru_1").directions == ("forward",)


def test_all_of_keras_stacked_cells() -> None:
    one = cell("rnn", "keras", 3, 4)
    two = {f"{n}_1": s for n, s in cell("rnn", "keras", 4, 5).items()}
    for scope in ("", "rnn"):
        stack = resolve_cell(merged([one, two]), KERAS, scope)
        assert (stack.scope, stack.layers, len(stack.names)) == ("rnn", 2, 6)
    gru = {f"{n}_1": s for n, s in cell("rnn", "g-keras-before", 4, 5).items()}
    mixed = merged([one, gru])
    assert resolve_cell(mixed, KERAS, "rnn").layers == 1
    assert resolve_cell(mixed, find_layout("gru.keras"), "rnn").names == tuple(gru)


# Cells under other names, told by the file ---------------------------------------------------------------------------


def test_a_renamed_cell_is_found_where_the_file_tells_its_gates() -> None:
    specs = merged([dense("rnn/mine"), dense("rnn/other"), dense("out"), cell("rnn/lstm_cell", "tf")])
    asked = []

    def told(order: list[str]) -> Any:
        def facts(names: Sequence[str]) -> dict[str, Any]:
            asked.append(tuple(names))
            return {"gates": order} if "rnn/mine/kernel" in names else {"activation": "tanh"}

        return facts

    assert found(specs) == [("rnn/lstm_cell", "lstm.tf1")]
    assert found(specs, facts=told(["i", "g", "f", "o"])) == [("rnn/mine", "lstm.tf1"), ("rnn/lstm_cell", "lstm.tf1")]
    assert not any("rnn/lstm_cell/kernel" in names for names in asked)
    for other in (["i", "f", "g", "o"], ["h"], []):
        assert found(specs, facts=told(other)) == [("rnn/lstm_cell", "lstm.tf1")]
    plain = merged([dense("rnn/mine", 20, 16), dense("out", 20, 16)])
    assert found(plain, facts=told(["h"])) == [("rnn/mine", "rnn.tf1")]
    assert found(plain, facts=told(["h"]), below="out") == []


@pytest.mark.filterwarnings("ignore")
def test_renamed_cells_of_a_graph(tmp_path: Path) -> None:
    """TensorFlow's cells under names of their own, among dense layers of shapes that would fit."""
    tf = need("tensorflow").compat.v1
    cells = need("tf_keras.src.layers.rnn.legacy_cells")
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, (2, 5, 3), "x")
        stack = cells.MultiRNNCell([cells.LSTMCell(4, name="mine", forget_bias=0.5), cells.BasicRNNCell(6, name="own")])
        outputs, _ = tf.nn.dynamic_rnn(stack, x, dtype=tf.float32, scope="net")
        weights = {"dense/kernel": (6, 4), "dense/bias": (4,), "wide/kernel": (4, 8), "wide/bias": (8,)}
        made = {name: tf.get_variable(name, shape) for name, shape in weights.items()}
        hidden = tf.tanh(tf.matmul(outputs[:, -1], made["dense/kernel"]) + made["dense/bias"])
        result = tf.identity(tf.matmul(hidden, made["wide/kernel"]) + made["wide/bias"], "out")
        with tf.Session(graph=graph) as session:
            session.run(tf.global_variables_initializer())
            frozen = tf.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), [result.op.name])
    path = tmp_path / "g.pb"
    path.write_bytes(frozen.SerializeToString())
    expected = [
        ("net/multi_rnn_cell/cell_0/mine", "lstm.tf1", 3, 4), ("net/multi_rnn_cell/cell_1/own", "rnn.tf1", 4, 6),
    ]  # fmt: skip
    with open_source(path) as source:  # type: ignore[attr-defined]
        assert find_cells(source.specs()) == []
        told = find_cells(source.specs(), facts=source.facts)
        assert [(c.scope, c.layout.name, c.input, c.per_unit("unit")) for c in told] == expected
    with wp.open(path) as model:
        assert [(c.scope, c.layout.name) for c in model.cells()] == [(scope, name) for scope, name, *_ in expected]
    rule = {"from": {"layout": "lstm.tf1", "scope": expected[0][0]}, "to": {"layout": "lstm.keras", "scope": "new"}}
    planned = wp.plan(
        str(path), None, {"weightport": 1, "rules": [rule], "ignore": ["dense/**", "wide/**", "**/own/**"]}
    )
    assert "the forget bias 0.5 is folded into the forget gate's bias" in str(planned.check())
