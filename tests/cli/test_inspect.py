"""``inspect``: the document, the tree, statistics, and names that would like to be commands of the terminal."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import FIXTURES, fixture, fixtures
from weightport.cli.stats import Stats, _tiles
from weightport.cli.tree import Drawing
from weightport.scopes import Scope
from weightport.tensors import TensorSpec

SEED = fixture("a_seed_char_lstm")
KEYS = {"name", "dtype", "shape", "nbytes", "role"}


def safetensors(path: Path, specs: dict[str, list[int]]) -> Path:
    """A file of float32 zeros."""
    header, at = {}, 0
    for name, shape in specs.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return path


def tree(*arguments: object) -> list[str]:
    """What is printed below the header."""
    return weightport("inspect", *arguments).out.splitlines()[1:]


# --- the document -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["checkpoint_v2", "checkpoint_v1", "frozen", "meta_graph", "saved_model"])
def test_the_document(kind: str) -> None:
    ran = weightport("inspect", SEED.path(kind), "--json")
    assert ran.err == ""
    found = ran.json
    assert set(found) == {"format", "tensors", "constants", "cells"}
    assert all(set(t) - {"checksum"} == KEYS for t in (*found["tensors"], *found["constants"]))
    want = {n: (a.dtype.name, list(a.shape), a.nbytes, "weight") for n, a in SEED.variables.items()}
    got = {t["name"]: (t["dtype"], t["shape"], t["nbytes"], t["role"]) for t in found["tensors"]}
    assert got == want
    (cell,) = found["cells"]
    where = {"scope": "LSTMcell", "layout": "lstm.scoped-gates", "input": 27, "units": 32, "layers": 1}
    assert {k: cell[k] for k in where} == where
    assert cell["directions"] == ["forward"]


def test_what_the_file_records_of_a_cell_stands_with_it() -> None:
    found = weightport("inspect", fixture("b_cells/basic_lstm_fb1").path("frozen"), "--json").json
    assert found["cells"][0]["forget_bias"] == 1.0
    assert found["cells"][0]["recurrent_activation"] == "sigmoid"
    assert found["constants"]
    assert not {t["name"] for t in found["constants"]} & {t["name"] for t in found["tensors"]}


def test_a_stack_is_one_cell() -> None:
    model = fixture("b_cells/stack_bidirectional_lstm")
    (cell,) = weightport("inspect", model.path("checkpoint_v2"), "--json").json["cells"]
    assert (cell["layers"], cell["directions"]) == (2, ["forward", "backward"])
    out = weightport("inspect", model.path("checkpoint_v2")).out
    assert f"  cell {cell['scope']}: lstm.tf1, input {cell['input']}, units" in out
    assert "2 layers, forward and backward" in out


@pytest.mark.parametrize("model", fixtures("checkpoint_v2"), ids=repr)
def test_every_checkpoint_can_be_looked_at(model: object) -> None:
    path = model.path("checkpoint_v2")  # type: ignore[attr-defined]
    found = weightport("inspect", path, "--json").json
    out = weightport("inspect", path, "--full").out
    names = {t["name"] for t in found["tensors"]}
    leaves = [line for line in out.splitlines() if line.startswith(("├", "└", "│", " ")) and not line.endswith("/")]
    assert names
    assert len([line for line in leaves if "─ " in line and "/" not in line.split("─ ")[1].split("  ")[0]]) == len(
        names
    )


# --- the text ---------------------------------------------------------------------------------------------------------


def test_the_text() -> None:
    out = weightport("inspect", SEED.path("checkpoint_v2"), "--scope", "LSTMcell/input_gate").out
    assert out.splitlines() == [
        f"{SEED.path('checkpoint_v2')}: tf-checkpoint, 3 tensors, 7.7 kB",
        "LSTMcell/input_gate/",
        "├─ bi  float32 1×32",
        "├─ wt  float32 32×32",
        "└─ wx  float32 27×32",
    ]


def test_a_cell_is_marked_in_the_tree() -> None:
    out = weightport("inspect", SEED.path("checkpoint_v2"), "--scope", "/LSTMcell/").out.splitlines()
    assert out[1].startswith("  cell LSTMcell: lstm.scoped-gates, input 27, units 32; recorded: ")
    assert out[2] == "LSTMcell/  ← lstm.scoped-gates"


def test_a_vector_that_may_be_a_whole_cell_is_said(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "m.safetensors", {"net/opaque_kernel": [648], "w/opaque_kernel": [3, 4]})
    assert tree(path) == [
        "  vector net/opaque_kernel: a cell in one piece (lstm.cudnn-opaque or gru.cudnn-opaque or rnn.cudnn-opaque), "
        "if a rule states its sizes",
        "├─ net/",
        "│  └─ opaque_kernel  float32 648",
        "└─ w/",
        "   └─ opaque_kernel  float32 3×4",
    ]
    assert json.loads(weightport("inspect", path, "--json").out)["cells"] == []


def test_what_is_no_weight_is_counted_and_slots_stand_beside_their_variable() -> None:
    model = fixture("d_checkpoints/train_state_adam_ema")
    out = weightport("inspect", model.path("checkpoint_v2")).out
    counts = "(28 weights, 28 optimizer slots, 2 optimizer values, 1 counter)"
    assert out.splitlines()[0].endswith(f"59 tensors, 137.2 kB {counts}")
    assert "├─ softmax_b  float32 27  + Adam, Adam_1, ExponentialMovingAverage" in out.splitlines()
    assert not any(line.endswith("softmax_b/") for line in out.splitlines())
    assert len(tree(model.path("checkpoint_v2"), "--full")) > len(model.variables)


def test_what_is_alike_is_drawn_once(tmp_path: Path) -> None:
    specs = {f"bert/layer_{k}/{w}": [2, 3] for k in range(12) for w in ("query", "key")}
    specs |= {f"bert/pooler_{k}/w": [k] for k in (1, 2, 3)}
    specs |= {"bert/a_01": [1], "bert/a_02": [1], "bert/a_03": [1], "bert/b_1": [1], "bert/b_01": [1], "bert/b_2": [1]}
    file = safetensors(tmp_path / "model.safetensors", specs)
    assert tree(file) == [
        "└─ bert/",
        "   ├─ layer_{0..11}/  (12 alike)",
        "   │  ├─ query  float32 2×3",
        "   │  └─ key  float32 2×3",
        "   ├─ pooler_1/",
        "   │  └─ w  float32 1",
        "   ├─ pooler_2/",
        "   │  └─ w  float32 2",
        "   ├─ pooler_3/",
        "   │  └─ w  float32 3",
        "   ├─ a_{01..03}  float32 1  (3 alike)",
        "   ├─ b_1  float32 1",
        "   ├─ b_01  float32 1",
        "   └─ b_2  float32 1",
    ]
    assert len(tree(file, "--full")) == 1 + 12 * 3 + 3 * 2 + 6


def test_two_numbers_in_a_name(tmp_path: Path) -> None:
    names = [f"h.{k}.mlp.{j}.weight" for k in range(4) for j in (0, 3, 6, 9)]
    file = safetensors(tmp_path / "model.safetensors", {name: [1] for name in names})
    assert tree(file) == ["└─ h.{0..3}.mlp.{0,3,6,9}.  (16 alike)", "   └─ weight  float32 1"]


def test_names_with_dots_are_scopes_too(tmp_path: Path) -> None:
    names = {f"enc.rnn.weight_{w}_l{k}": [12, 4 if k or w == "hh" else 3] for w in ("ih", "hh") for k in range(2)}
    file = safetensors(tmp_path / "model.safetensors", {**names, "enc.fc.weight": [7, 4], "fc.bias": [2]})
    assert weightport("inspect", file).out.splitlines()[1:] == [
        "  cell enc.rnn: gru.torch, input 3, units 4, 2 layers",
        "├─ enc.",
        "│  ├─ rnn.  ← gru.torch",
        "│  │  ├─ weight_ih_l0  float32 12×3",
        "│  │  ├─ weight_ih_l1  float32 12×4",
        "│  │  ├─ weight_hh_l0  float32 12×4",
        "│  │  └─ weight_hh_l1  float32 12×4",
        "│  └─ fc.",
        "│     └─ weight  float32 7×4",
        "└─ fc.",
        "   └─ bias  float32 2",
    ]
    inside = weightport("inspect", file, "--scope", "enc.fc").out.splitlines()
    assert inside[1:] == ["enc.fc.", "└─ weight  float32 7×4"]
    assert "closest: 'enc.fc'" in weightport("inspect", file, "--scope", "enc.fx", code=1).err


def test_scopes_with_nothing_else_in_them_share_a_line(tmp_path: Path) -> None:
    file = safetensors(tmp_path / "model.safetensors", {"a/b/c/w": [1], "a/b/c/v": [], "d": [2]})
    assert tree(file) == ["├─ a/b/c/", "│  ├─ w  float32 1", "│  └─ v  float32 scalar", "└─ d  float32 2"]


def test_several_cells_in_one_scope() -> None:
    out = weightport("inspect", fixture("c_keras/stacked_cells").folder / "model.h5").out.splitlines()
    assert out[1:3] == [
        "  cell rnn: lstm.keras, input 5, units 6; recorded: activation tanh, recurrent activation hard_sigmoid",
        "  cell rnn: gru.keras, input 6, units 4; recorded: activation tanh, recurrent activation hard_sigmoid, "
        "reset after no",
    ]
    assert out[3] == "└─ rnn/  ← lstm.keras, gru.keras"


def test_slots_of_an_object_based_checkpoint_stand_beside_their_variable() -> None:
    scope = Scope("")
    scope.tensors["w"] = TensorSpec.of("float32", (2,))
    slots = Scope("opt", tensors={n: TensorSpec.of("float32", (3,), "slot") for n in ("m", "v")})
    scope.scopes["w"] = Scope("w", {".OPTIMIZER_SLOT": Scope(".OPTIMIZER_SLOT", {"opt": slots})})
    assert list(Drawing().lines(scope)) == ["└─ w  float32 2  + m, v"]
    assert len(list(Drawing(full=True).lines(scope))) == 6
    slots.tensors["own"] = TensorSpec.of("float32", (2,))
    assert next(Drawing().lines(scope)) == "├─ w/.OPTIMIZER_SLOT/opt/"


def test_a_scope_that_is_not_there() -> None:
    ran = weightport("inspect", SEED.path("checkpoint_v2"), "--scope", "LSTMcel/input_gate", code=1)
    assert ran.out == ""
    path = SEED.path("checkpoint_v2")
    assert ran.told[0].startswith(f"{path}: no scope 'LSTMcel/input_gate'; closest: 'LSTMcell/input_gate'")


def test_a_tensor_as_the_scope() -> None:
    assert tree(SEED.path("checkpoint_v2"), "--scope", "softmax_b") == ["softmax_b  float32 27"]


def test_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    names = ["a\x1b[2J", "b\nweightport: all is well", "c\u202ed/e\rf", "ok\x9b"]
    file = safetensors(tmp_path / "model.safetensors", {name: [1] for name in names})
    ran = weightport("inspect", file)
    assert all(line.isprintable() for line in ran.out.splitlines())
    assert "a\\x1b[2J" in ran.out
    assert "b\\nweightport: all is well" in ran.out
    assert "c\\u202ed/e\\rf"[:8] in ran.out
    assert [t["name"] for t in weightport("inspect", file, "--json").json["tensors"]] == names


def test_deep_scopes_need_no_recursion(tmp_path: Path) -> None:
    name = "/".join(["s"] * 3000)
    file = safetensors(tmp_path / "model.safetensors", {name: [1], "s/other": [1]})
    assert len(tree(file)) == 4


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics(tmp_path: Path) -> None:
    values = {
        "plain": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "holes": np.array([np.nan, np.inf, -np.inf, 5.0]),
        "empty": np.zeros((0, 3), np.float32),
        "whole": np.array([2**62 + 1, -7], np.int64),
        "flags": np.array([True, False]),
        "complex": np.array([1 + 2j, complex(math.nan, 0)]),
    }
    file = tmp_path / "model.npz"
    np.savez(file, **values)
    ran = weightport("inspect", file, "--stats", "--json")
    found = {t["name"]: t["stats"] for t in ran.json["tensors"]}
    nothing = {"min": None, "max": None, "mean": None, "std": None, "nan": 0, "inf": 0}
    assert found["plain"] == {"min": 1.0, "max": 4.0, "mean": 2.5, "std": math.sqrt(1.25), "nan": 0, "inf": 0}
    assert found["holes"] == {"min": 5.0, "max": 5.0, "mean": 5.0, "std": 0.0, "nan": 1, "inf": 2}
    assert found["empty"] == nothing
    assert (found["whole"]["min"], found["whole"]["max"]) == (-7, 2**62 + 1)
    assert (found["flags"]["min"], found["flags"]["max"], found["flags"]["mean"]) == (0.0, 1.0, 0.5)
    assert found["complex"] == {**nothing, "nan": 1}
    assert tree(file, "--stats") == [
        "├─ plain  float32 2×2  1 .. 4, mean 2.5, std 1.118",
        "├─ holes  float64 4  5 .. 5, mean 5, std 0, 1 NaN, 2 infinite",
        "├─ empty  float32 0×3  no value",
        "├─ whole  int64 2  -7 .. 4.612e+18, mean 2.306e+18, std 2.306e+18",
        "├─ flags  bool 2  0 .. 1, mean 0.5, std 0.5",
        "└─ complex  complex128 2  1 NaN",
    ]


def test_statistics_of_tiles_are_those_of_the_whole() -> None:
    values = np.random.default_rng(3).normal(7, 2, (50, 40)).astype(ml_dtypes.bfloat16)
    found = Stats()
    for at in range(0, 50, 7):
        found.add(values[at : at + 7])
    whole = values.astype(np.float64)
    assert (found.min, found.max) == (whole.min(), whole.max())
    assert found.mean == pytest.approx(whole.mean(), rel=1e-12)
    assert found.std == pytest.approx(whole.std(), rel=1e-12)


@pytest.mark.parametrize("shape", [(40 << 20,), (3, 20 << 20), (1, 1, 40 << 20), (40 << 20, 1), (1000, 50_000)])
def test_tiles_cut_every_shape_into_pieces(shape: tuple[int, ...]) -> None:
    spec = TensorSpec.of("uint8", shape)
    seen = 0
    for index in _tiles(spec):
        assert index is not None
        part = math.prod(len(range(*s.indices(n))) for s, n in zip(index, shape, strict=False))
        part *= math.prod(shape[len(index) :])
        assert part <= 4 << 20
        seen += part
    assert seen == spec.nbytes


def test_strings_have_no_statistics() -> None:
    model = fixture("d_checkpoints/dtypes")
    found = weightport("inspect", model.path("checkpoint_v2"), "--stats", "--json").json["tensors"]
    strings = [t for t in found if t["dtype"] == "object"]
    assert strings
    assert all(t["stats"]["min"] is None for t in strings)


# --- what is no model -------------------------------------------------------------------------------------------------


def test_a_missing_file_is_an_error_in_text_and_in_json(tmp_path: Path) -> None:
    path = tmp_path / "nope.ckpt"
    ran = weightport("inspect", path, code=1)
    assert (ran.out, len(ran.told)) == ("", 1)
    assert ran.told[0].startswith(f"{path}: ")
    ran = weightport("inspect", path, "--json", code=1)
    assert set(ran.json) == {"format", "tensors", "cells", "problems"}
    (problem,) = ran.json["problems"]
    assert set(problem) == {"where", "what", "hint"}
    assert problem["where"] == str(path)
    assert len(ran.told) == 1


def test_a_corrupt_tensor_is_an_error_of_stats_alone(tmp_path: Path) -> None:
    for file in FIXTURES.glob("a_seed_char_lstm/model.ckpt.*"):
        data = bytearray(file.read_bytes())
        if "data" in file.name:
            data[100] ^= 1
        (tmp_path / file.name).write_bytes(data)
    weightport("inspect", tmp_path / "model.ckpt")
    ran = weightport("inspect", tmp_path / "model.ckpt", "--stats", "--json", code=1)
    assert ran.json["tensors"] == []
    assert "tensor 'LSTMcell/forget_gate/bi'" in ran.json["problems"][0]["where"]
