"""Cells whose inputs are words: moved to another vocabulary, they do the same for every word that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.plan.stub import Stub
from tests.plan.stub import document as of_rules
from tests.support import fixture
from weightport.execute import Reader
from weightport.mapping import load_mapping
from weightport.plan import plan

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")
OLD, NEW = "abcde", "xcaz"
#: Layouts of every way to hold wx: a name for each gate, stacked on the recurrent rows, transposed, a direction's axis.
LAYOUTS = ("lstm.scoped-gates", "lstm.tf1", "lstm.keras", "lstm.torch", "lstm.onnx", "lstm.flax")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("old.txt").write_text("\n".join(OLD) + "\n", encoding="utf-8")
    Path("new.txt").write_text("\n".join(NEW) + "\n", encoding="utf-8")
    return tmp_path


def document(*rules: dict[str, Any]) -> dict[str, Any]:
    return of_rules(rules)


def keras(inputs: int = len(OLD), units: int = 3, scope: str = "k") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (inputs, 4 * units), "recurrent_kernel": (units, 4 * units), "bias": (4 * units,)}
    return {f"{scope}/{name}": rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def rule(source: str, target: str, missing: Any = "zeros", **more: Any) -> dict[str, Any]:
    words = {"from": "old.txt", "to": "new.txt", **({"missing": missing} if missing else {})}
    return {"from": {"layout": source, "scope": "k"}, "to": {"layout": target, "scope": "k"}, "vocab": words, **more}


def made(source: Stub, rules: dict[str, Any]) -> dict[str, Any]:
    found = plan(source, None, load_mapping(rules)).check()
    return {name: Reader(source).value(item) for name, item in found.items.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_through_every_layout(layout: str) -> None:
    """To a layout, then with other words back to Keras': row by row what it was."""
    start = keras()
    there = document({"from": {"layout": "lstm.keras", "scope": "k"}, "to": {"layout": layout, "scope": "k"}})
    through = made(Stub(start), there)
    for source, rules in ((through, rule(layout, "lstm.keras")), (start, rule("lstm.keras", layout))):
        found = made(Stub(source), document(rules))
        if rules["to"]["layout"] != "lstm.keras":
            back = {"from": rules["to"], "to": {"layout": "lstm.keras", "scope": "k"}}
            found = made(Stub(found), document(back))
        kernel = found["k/kernel"]
        assert kernel.shape == (len(NEW), 12)
        for row, word in enumerate(NEW):
            wanted = start["k/kernel"][OLD.index(word)] if word in OLD else np.zeros(12, "float32")
            assert kernel[row].tolist() == wanted.tolist()
        assert np.array_equal(found["k/recurrent_kernel"], start["k/recurrent_kernel"])


def test_what_is_said_and_proven(folder: Path) -> None:
    np.savez(folder / "s.npz", **keras())
    rules = document(rule("lstm.keras", "lstm.torch", "mean"))
    result = wp.transfer("s.npz", None, rules, out="o.npz")
    (outcome,) = result.as_json()["rules"]
    assert outcome["class"] == "exact"
    assert outcome["notes"][:2] == [
        "vocab: 2 of 4 rows found by their words, 2 get mean", "vocab: 3 of 5 old words are left behind"
    ]  # fmt: skip
    with wp.open("o.npz") as source:
        mean = keras()["k/kernel"].mean(0, dtype="float64").astype("float32")
        assert source.read("k.weight_ih_l0")[:, 0].tolist() == mean.tolist()
    proof = wp.verify("s.npz", "o.npz", rules)
    assert proof.equal
    assert [cell.equal for cell in proof.cells] == [True]
    with np.load("o.npz") as archive:
        broken = dict(archive)
    broken["k.weight_ih_l0"] = broken["k.weight_ih_l0"][:, ::-1]
    np.savez("o.npz", **broken)
    assert not wp.verify("s.npz", "o.npz", rules).cells[0].equal
    # The word whose row is new may be anything: the function is compared on words that both have.
    broken["k.weight_ih_l0"] = broken["k.weight_ih_l0"][:, ::-1].copy()
    broken["k.weight_ih_l0"][:, 0] = 7
    np.savez("o.npz", **broken)
    assert wp.verify("s.npz", "o.npz", rules).cells[0].equal


def test_the_first_layer_only_and_both_directions() -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    for direction in ("", "_reverse"):
        for layer, inputs in enumerate((len(OLD), 6)):
            for name, shape in (
                ("weight_ih", (12, inputs)),
                ("weight_hh", (12, 3)),
                ("bias_ih", (12,)),
                ("bias_hh", (12,)),
            ):
                tensors[f"k.{name}_l{layer}{direction}"] = rng.normal(size=shape).astype("float32")
    found = made(Stub(tensors), document(rule("lstm.torch", "lstm.torch", {"constant": {"value": 5}})))
    for name, value in tensors.items():
        if "weight_ih_l0" not in name:
            assert np.array_equal(found[name], value), name
            continue
        wanted = [value[:, OLD.index(word)] if word in OLD else np.full(12, 5, "float32") for word in NEW]
        assert np.array_equal(found[name], np.stack(wanted, 1)), name


def test_a_target_decides_about_sizes() -> None:
    rules = load_mapping(document(rule("lstm.keras", "lstm.keras")))
    assert plan(Stub(keras()), Stub(keras(len(NEW))), rules).problems == ()
    (problem,) = plan(Stub(keras()), Stub(keras(len(OLD))), rules).problems
    assert problem.what == "the source has 4 inputs, the target 5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"missing": None},
            "rules[0]: vocab: 2 of 4 words are not in the old vocabulary: 'x', 'z'; say what they get: "
            "missing: {truncated_normal: {stddev: 0.02}} or missing: mean",
        ),
        ({"inputs": 4}, "rules[0]: vocab: old.txt has 5 rows, k has 4"),
    ],
)
def test_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    source = Stub(keras(change.get("inputs", len(OLD))))
    rules = load_mapping(document(rule("lstm.keras", "lstm.tf1", change.get("missing", "zeros"))))
    assert [str(p) for p in plan(source, None, rules).problems] == [message]


def test_what_a_mapping_cannot_say() -> None:
    axis = rule("lstm.keras", "lstm.tf1")
    axis["vocab"]["axis"] = 0
    with pytest.raises(wp.MappingError) as error:
        load_mapping(document(axis))
    assert str(error.value) == "rules[0].vocab.axis: a cell's words are its inputs; leave the axis out"
    with pytest.raises(wp.MappingError) as error:
        load_mapping(document(rule("lstm.keras", "lstm.tf1"))).reversed()
    assert str(error.value) == (
        "rules[0] backwards: vocab cannot be undone: rows of words that only one side has are not there any more; "
        "leave the rule out of the mapping that goes back"
    )


def test_the_letters_of_a_pretrained_model(folder: Path) -> None:
    (folder / "letters.txt").write_text("".join(f"{c}\n" for c in " abcdefghijklmnopqrstuvwxyz"), encoding="utf-8")
    (folder / "fewer.txt").write_text("a\n<new>\nz\n", encoding="utf-8")
    words = {"from": "letters.txt", "to": "fewer.txt", "missing": {"glorot_uniform": {"seed": 3}}}
    rules = {
        "weightport": 1,
        "rules": [
            {
                "from": {"layout": "lstm.scoped-gates", "scope": "LSTMcell"},
                "to": {"layout": "lstm.tf1", "scope": "rnn", "forget_bias": 0},
                "vocab": words,
            }
        ],
        "ignore": ["softmax_*"],
    }
    wp.transfer(SEED, None, rules, out="o.ckpt")
    with wp.open(SEED) as source, wp.open("o.ckpt") as found:
        kernel = found.read("rnn/kernel")
        assert kernel.shape == (3 + 32, 128)
        gate = source.read("LSTMcell/input_gate/wx")
        assert np.array_equal(kernel[[0, 2], :32], gate[[1, 26]])
        new = kernel[1].reshape(4, 32)
        assert len({row.tobytes() for row in new}) == 4  # each gate has values of its own
        assert 0 < abs(new).max() <= np.sqrt(6 / (3 + 32))  # of one gate's fans
    assert wp.verify(SEED, "o.ckpt", rules).equal
