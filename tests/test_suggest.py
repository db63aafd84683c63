"""Proposals: what is proposed fits, what is not certain is said, what is left over stays a person's business."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightport as wp
from tests.cli.command import weightport
from tests.plan.stub import Stub
from tests.support import fixture, says
from weightport.mapping import load_mapping, parse_mapping
from weightport.plan import plan
from weightport.suggest import Suggestion, suggest

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")
ROOT = Path(__file__).resolve().parents[1]


def proposed(source: dict[str, Any], target: dict[str, Any], roles: dict[str, str] | None = None) -> Suggestion:
    """Of two models of these shapes; the text says what the document says, and the rules fit."""
    mine, its = Stub(source, roles=roles), Stub(target)
    found = suggest(mine, its)
    assert parse_mapping(str(found)).document == found.document
    rules = {**found.document, "ignore": [*found.document.get("ignore", []), *map(glob, found.sources)]}
    rules["keep"] = list(map(glob, found.targets))
    assert plan(mine, its, load_mapping(rules)).problems == ()
    return found


def lstms(sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """TensorFlow 1's cells by their scopes, of (inputs, units)."""
    kernels = {f"{scope}/kernel": (i + u, 4 * u) for scope, (i, u) in sizes.items()}
    return kernels | {f"{scope}/bias": (4 * u,) for scope, (_, u) in sizes.items()}


def keras_lstm(scope: str, inputs: int, units: int) -> dict[str, Any]:
    shapes = {"kernel": (inputs, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
    return {f"{scope}/{name}": shape for name, shape in shapes.items()}


def glob(name: str) -> str:
    return "".join(f"{{{c}" if c == "{" else f"}}{c}" if c == "}" else "?" if c in "*?" else c for c in name)


def test_a_transformer_of_another_framework() -> None:
    """From transformers' names, without what weightport's own mapping says, to the very same pairs."""
    rules = load_mapping(ROOT / "mappings" / "bert.yaml")
    source: dict[str, Any] = {"bert/embeddings/word_embeddings": (50, 8), "bert/embeddings/LayerNorm/gamma": (8,)}
    source |= {"bert/embeddings/LayerNorm/beta": (8,), "bert/embeddings/position_embeddings": (16, 8)}
    for n in range(12):
        scope = f"bert/encoder/layer_{n}"
        for role in ("query", "key", "value"):
            source |= {f"{scope}/attention/self/{role}/kernel": (8, 8), f"{scope}/attention/self/{role}/bias": (8,)}
        source |= {f"{scope}/intermediate/dense/kernel": (8, 32), f"{scope}/intermediate/dense/bias": (32,)}
        source |= {f"{scope}/output/dense/kernel": (32, 8), f"{scope}/output/dense/bias": (8,)}
        source |= {f"{scope}/output/LayerNorm/gamma": (8,), f"{scope}/output/LayerNorm/beta": (8,)}
    lenient = {**rules.document, "rules": [{**rule, "optional": True} for rule in rules.document["rules"]]}
    by_hand = plan(Stub(source), None, load_mapping(lenient))
    target = {name: item.spec.shape for name, item in by_hand.items.items()}
    found = proposed(source, target)
    assert (found.sources, found.targets) == ([], [])
    made = plan(Stub(source), Stub(target), load_mapping(found.document))
    assert {n: i.expr for n, i in made.items.items()} == {n: i.expr for n, i in by_hand.items.items()}
    assert len(found.document["rules"]) == 16  # the numbers are captures
    assert "bert/encoder/layer_{n}/attention/self/query/kernel" in [r["from"] for r in found.document["rules"]]
    # A square matrix is proposed by what its names say, and said to be.
    assert set(found.notes.values()) == {"the shapes do not tell which axis is which: kernel -> weight transposes"}


def test_cells_before_tensors() -> None:
    with wp.open(SEED) as source:
        target = {
            "model/lstm/lstm_cell/kernel": (27, 128), "model/lstm/lstm_cell/recurrent_kernel": (32, 128),
            "model/lstm/lstm_cell/bias": (128,), "model/softmax/w": (32, 27), "model/softmax/b": (27,),
        }  # fmt: skip
        found = suggest(source, Stub(target))
    assert str(found) == (
        "weightport: 1\nrules:\n"
        "  - from: {layout: lstm.scoped-gates, scope: LSTMcell}\n"
        "    to: {layout: lstm.keras, scope: model/lstm}\n"
        "  - from: softmax_w\n    to: model/softmax/w\n"
        "  - from: softmax_b\n    to: model/softmax/b\n"
    )


def test_which_of_several_cells() -> None:
    lstm = {"kernel": (5, 8), "bias": (8,)}
    keras = {"kernel": (3, 8), "recurrent_kernel": (2, 8), "bias": (8,)}
    source = {f"{scope}/lstm_cell/{n}": s for scope in ("decoder", "encoder") for n, s in lstm.items()}
    target = {f"{scope}/lstm/{n}": s for scope in ("encoder", "decoder") for n, s in keras.items()}
    found = proposed(source, target)
    pairs = {(rule["from"]["scope"], rule["to"]["scope"]) for rule in found.document["rules"]}
    assert pairs == {("encoder/lstm_cell", "encoder/lstm"), ("decoder/lstm_cell", "decoder/lstm")}
    assert set(found.notes.values()) == {"2 cells of the target are of this kind and size: is this the one?"}


def test_cells_that_cannot_be_exact() -> None:
    source = {"rnn/gru_cell/gates/kernel": (5, 4), "rnn/gru_cell/gates/bias": (4,)}
    source |= {"rnn/gru_cell/candidate/kernel": (5, 2), "rnn/gru_cell/candidate/bias": (2,)}
    target = {"gru/weight_ih_l0": (6, 3), "gru/weight_hh_l0": (6, 2), "gru/bias_ih_l0": (6,), "gru/bias_hh_l0": (6,)}
    source["head/kernel"] = target["head/kernel"] = (2, 4)
    found = proposed(source, target)
    assert [rule["from"] for rule in found.document["rules"]] == ["head/kernel"]
    why = (
        "gru.tf1 'rnn/gru_cell' -> gru.torch 'gru': the source's reset gate is before, the target's after: reset "
        "before and after the matrix product are different functions; exact whatever its values: gru.coreml, "
        "gru.scoped-gates, gru.keras (reset before), gru.haiku"
    )
    assert found.refused == [why]
    text = str(found)
    assert "# Cells that are not moved, and why:\n#   gru.tf1 'rnn/gru_cell'" in text
    assert "# Source tensors without a counterpart; move them by a rule, or list them under ignore:\n#   rnn/" in text
    assert (
        "# Target tensors without a value; move or initialize them by a rule, or list them under keep:\n#   gru/"
        in text
    )
    del source["head/kernel"], target["head/kernel"]
    with says(wp.Error, f"model: no cell and no tensor that fits the target was found\nmodel: {why}"):
        proposed(source, target)


def test_why_cells_are_not_moved() -> None:
    tf1 = {"a/lstm_cell": (3, 2), "b/lstm_cell": (3, 2), "c/lstm_cell": (4, 5)}
    stack = {"multi_rnn_cell/cell_0": (7, 8), "multi_rnn_cell/cell_1": (8, 6)}
    source = lstms(tf1 | {f"stack/{scope}/lstm_cell": sizes for scope, sizes in stack.items()})
    found = proposed(source, keras_lstm("a/lstm", 3, 2))
    assert [rule["from"]["scope"] for rule in found.document["rules"]] == ["a/lstm_cell"]
    taken = "each lstm cell of the target is moved into already"
    assert found.refused == [
        f"lstm.tf1 'b/lstm_cell' (input 3, units 2): {taken}",
        f"lstm.tf1 'c/lstm_cell' (input 4, units 5): {taken}",
        f"lstm.tf1 'stack/multi_rnn_cell' (input 7, units 8/6, 2 layers): {taken}",
    ]
    mine = lstms({f"rnn/{way}/lstm_cell": (3, 2) for way in ("fw", "bw")})
    its = {name: shape for n in range(4) for name, shape in keras_lstm(f"l{n}/lstm", 5, 2).items()}
    text = "lstm.tf1 'rnn' (input 3, units 2, forward and backward): "
    with pytest.raises(wp.Error) as caught:
        proposed(mine, its)
    sizes = [f"lstm.keras 'l{n}/lstm' (input 5, units 2)" for n in range(3)]
    assert caught.value.problems[1].what == f"{text}the target's are of other sizes: {'; '.join(sizes)} and 1 more"
    with pytest.raises(wp.Error) as caught:
        proposed(mine, {"w": (9,)})
    assert caught.value.problems[1].what == f"{text}no lstm cell was found in the target"


def test_gates_of_two_layouts_are_no_pair() -> None:
    mine, its = lstms({"lstm_cell": (3, 2)}), keras_lstm("lstm_cell", 5, 2)
    with pytest.raises(wp.Error, match="no cell and no tensor"):
        proposed(mine, its)
    same = proposed(mine, lstms({"lstm_cell": (5, 2)}))
    assert same.document["rules"] == [{"from": "lstm_cell/bias", "to": "lstm_cell/bias"}]


def test_what_a_training_left() -> None:
    roles = {"w/Adam": "slot", "w/Adam_1": "slot", "beta1_power": "optimizer", "global_step": "counter"}
    shapes: dict[str, Any] = {"w": (2, 3), "w/Adam": (2, 3), "w/Adam_1": (2, 3), "beta1_power": (), "global_step": ()}
    found = proposed(shapes, {"w": (2, 3)}, roles)
    assert found.document["ignore"] == ["**/Adam", "**/Adam_1", "beta1_power", "global_step"]


@pytest.mark.parametrize(
    ("source", "target", "rule"),
    [
        ({"conv/kernel": (3, 5, 2, 4)}, {"conv.weight": (4, 2, 3, 5)}, {"rearrange": "a b c d -> d c a b"}),
        ({"conv.weight": (4, 2, 3, 5)}, {"conv/kernel": (3, 5, 2, 4)}, {"rearrange": "a b c d -> c d b a"}),
        ({"conv/kernel": (3, 3, 3, 3)}, {"conv.weight": (3, 3, 3, 3)}, {"rearrange": "a b c d -> d c a b"}),
        ({"d/kernel": (4, 4)}, {"e/kernel": (4, 4)}, {}),
        ({"h_0/w": (4,), "h_1/w": (4,)}, {"block.1.w": (4,), "block.2.w": (4,)}, {}),
    ],
)
def test_axes_and_numbers(source: dict[str, Any], target: dict[str, Any], rule: dict[str, Any]) -> None:
    found = proposed(source, target)
    (first, *_) = found.document["rules"]
    assert {key: value for key, value in first.items() if key == "rearrange"} == rule


def test_numbers_that_are_off_by_one() -> None:
    source = {f"layer_{n}/w": (4,) for n in range(3)}
    target = {f"block/{n}/w": (4,) for n in range(1, 4)}
    (rule,) = proposed(source, target).document["rules"]
    assert rule == {"from": "layer_{n}/w", "to": "block/{n+1}/w"}


def test_a_pattern_that_would_take_more_is_not_proposed() -> None:
    source = {"layer_0/w": (4,), "layer_1/w": (4,), "layer_x/w": (9,)}
    target = {"layer_0/v/w": (4,), "layer_1/v/w": (4,)}
    found = proposed(source, target)
    assert [rule["from"] for rule in found.document["rules"]] == ["layer_0/w", "layer_1/w"]
    assert found.sources == ["layer_x/w"]


def test_names_with_little_in_common() -> None:
    found = proposed({"one/kernel": (2, 3)}, {"two/three/kernel": (2, 3)})
    assert found.notes == {0: "unsure: the names have little in common (40%)"}
    with pytest.raises(wp.Error, match="no cell and no tensor that fits the target was found"):
        suggest(Stub({"a": (2,)}), Stub({"b": (3,)}))


names = st.text(st.sampled_from("ab{}*/._0129\u202e\n é"), min_size=1, max_size=8)


@given(st.dictionaries(names, st.sampled_from([(2,), (2, 2), (3, 2), ()]), min_size=1, max_size=6), st.data())
def test_any_names(shapes: dict[str, Any], data: st.DataObject) -> None:
    renamed = {data.draw(names): shape for shape in shapes.values()}
    try:
        found = suggest(Stub(shapes), Stub(renamed))
    except wp.Error:
        return
    assert parse_mapping(str(found)).document == found.document
    planned = plan(Stub(shapes), Stub(renamed), load_mapping(found.document))
    assert {outcome.disposition for outcome in planned.outcomes} == {"moved"}


def test_the_command(tmp_path: Path) -> None:
    target, out = tmp_path / "t.npz", tmp_path / "m.yaml"
    keras = {"kernel": (27, 128), "recurrent_kernel": (32, 128), "bias": (128,)}
    arrays = {f"lstm/{name}": np.zeros(shape, "float32") for name, shape in keras.items()}
    np.savez(target, **arrays, softmax_w=np.zeros((32, 27), "float32"), more=np.zeros(3))
    ran = weightport("suggest", SEED, target, "-o", out)
    assert ran.out == f"wrote {out}\n"
    assert ran.told == ["2 rules, 0 to look at; 1 source tensor and 1 target tensor left to you"]
    assert weightport("suggest", SEED, target).out == out.read_text(encoding="utf-8")
    again = weightport("suggest", SEED, target, "-o", out, code=1)
    assert again.told == [f"{out}: is there already; --force overwrites it", "1 problem; nothing was written"]
    weightport("suggest", SEED, target, "-o", out, "--force")
    # What is left over is refused until a person decides.
    refused = weightport("transfer", SEED, target, "-m", out, "-o", tmp_path / "o.npz", code=1)
    assert [line.split(" (")[0] for line in refused.told[:-1]] == [
        f"{SEED}: source tensor 'softmax_b'", f"{target}: target tensor 'more'"
    ]  # fmt: skip
    text = out.read_text(encoding="utf-8")
    out.write_text(f"{text}ignore: [softmax_b]\nkeep: [more]\n", encoding="utf-8")
    weightport("transfer", SEED, target, "-m", out, "-o", tmp_path / "o.npz")
    weightport("verify", SEED, tmp_path / "o.npz", "-m", out)
    document = weightport("suggest", SEED, target, "--json").json
    assert document["left"] == {"source": ["softmax_b"], "target": ["more"]}
    assert document["refused"] == []
    assert load_mapping(document["mapping"])
