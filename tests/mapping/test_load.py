from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weightport.errors import MappingError, closest
from weightport.layouts import builtin
from weightport.mapping import (
    CellRef,
    CellRule,
    Initializer,
    InitRule,
    Mapping,
    Ops,
    Pad,
    Split,
    TensorRule,
    Vocab,
    load_mapping,
    parse_mapping,
)
from weightport.mapping.patterns import shown
from weightport.mapping.rules import Columns

ROOT = Path(__file__).resolve().parents[2]


def problems(text: str, path: str = "m.yaml") -> list[str]:
    with pytest.raises(MappingError) as caught:
        parse_mapping(text, path)
    return [str(p) for p in caught.value.problems]


def rule_problems(rule: str) -> list[str]:
    """The problems of one rule in flow style, without their common place."""
    return [p.removeprefix("m.yaml:3 rules[0]") for p in problems(f"weightport: 1\nrules:\n  - {{{rule}}}\n")]


def rule_of(rule: str) -> Any:
    return parse_mapping(f"weightport: 1\nrules:\n  - {{{rule}}}\n").rules[0]


WHOLE = """\
weightport: 1
description: everything at once
source: {scope: old, sha256: ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789}
target: {scope: encoder/new}

layouts:
  lstm.mine:
    gates: [i, f, g, o]
    tensors:
      k: wx[input (gate unit)]
      r: wt[hidden (gate unit)]
      b: bi[(gate unit)]

rules:
  - from: {layout: lstm.scoped-gates, scope: LSTMcell, forget_bias: 1, layers: 0, directions: backward}
    to:
      layout: lstm.mine
      scope: ""
      gates: [i, g, f, o]
      activation: relu
      recurrent_activation: hard_sigmoid
      layers: [2]
      directions: [forward]
    as: constant
  - from: {layout: gru.tf1, scope: g, reset: before, gates: {r: a, z: b, n: c}}
    to: {layout: gru.keras, scope: g}
  - from: ["block_{n}/query/kernel", "block_{n}/key/kernel"]
    to: h.{n-1}.attn.qkv.weight
    concat: 1
    optional: true
  - from: a
    to: [b, c]
    slice: "0:10, :"
    reshape: [-1, 4]
    pad: [[0, 2], [1, 0]]
    scale: 2
    cast: bfloat16
    split: {axis: 0, sizes: [3, 9]}
  - to: head/{w}
    initialize: {glorot_uniform: {seed: 7}}
    as: initial
  - to: {layout: lstm.keras, scope: new}
    initialize: orthogonal

ignore: ["**/Adam", global_step]
keep: ["decoder/**"]
"""


def test_everything_at_once() -> None:
    mapping = parse_mapping(WHOLE, "maps/asr.yaml")
    assert (mapping.path, mapping.version, mapping.description) == ("maps/asr.yaml", 1, "everything at once")
    assert mapping.source.sha256 == "abcdef0123456789" * 4
    assert (mapping.source.scope, mapping.target.scope) == ("old", "encoder/new")
    assert list(mapping.layouts) == ["lstm.mine"]
    assert ([g.text for g in mapping.ignore], [g.text for g in mapping.keep]) == (
        ["**/Adam", "global_step"],
        ["decoder/**"],
    )
    assert (mapping.ignore[1].where, mapping.keep[0].where) == (
        "maps/asr.yaml:45 ignore[1]",
        "maps/asr.yaml:46 keep[0]",
    )
    assert [r.where for r in mapping.rules] == [
        f"maps/asr.yaml:{line} rules[{k}]" for k, line in enumerate((15, 25, 27, 31, 39, 42))
    ]
    assert [r.name for r in mapping.rules] == [f"rules[{k}]" for k in range(6)]
    assert [r.constant for r in mapping.rules] == [True, False, False, False, False, False]
    assert [r.optional for r in mapping.rules] == [False, False, True, False, False, False]

    cell, gru, joined, cut, head, whole = mapping.rules
    assert isinstance(cell, CellRule)
    assert cell.source == CellRef(
        "maps/asr.yaml:15 rules[0].from", "lstm.scoped-gates", "LSTMcell", 1.0, layers=(0,), directions=("backward",)
    )
    assert cell.target == CellRef(
        where="maps/asr.yaml:16 rules[0].to",
        layout="lstm.mine",
        scope="",
        gates=("i", "g", "f", "o"),
        activation="relu",
        recurrent_activation="hard_sigmoid",
        layers=(2,),
        directions=("forward",),
    )
    assert isinstance(gru, CellRule)
    assert (gru.source.gates, gru.source.reset, gru.target.reset) == ({"r": "a", "z": "b", "n": "c"}, "before", None)
    assert isinstance(joined, TensorRule)
    assert [p.where for p in joined.sources] == [f"maps/asr.yaml:27 rules[2].from[{k}]" for k in (0, 1)]
    assert [p.text for p in joined.targets] == ["h.{n-1}.attn.qkv.weight"]
    assert (joined.targets[0].where, joined.ops) == ("maps/asr.yaml:28 rules[2].to", Ops(concat=1))
    assert isinstance(cut, TensorRule)
    assert cut.ops == Ops(
        slice=(slice(0, 10), slice(None)),
        reshape=(-1, 4),
        pad=Pad(((0, 2), (1, 0))),
        scale=2.0,
        cast="bfloat16",
        split=Split(0, (3, 9)),
    )
    assert cut.ops.given() == ("slice", "reshape", "pad", "scale", "cast", "split")
    assert isinstance(head, InitRule)
    assert (head.initializer, head.target_cell) == (Initializer("glorot_uniform", {"seed": 7}), None)
    assert [p.text for p in head.targets] == ["head/{w}"]
    assert isinstance(whole, InitRule)
    assert (whole.targets, whole.initializer) == ((), Initializer("orthogonal", {}))
    assert whole.target_cell == CellRef("maps/asr.yaml:42 rules[5].to", "lstm.keras", "new")


def test_the_digest_is_that_of_the_data() -> None:
    first = parse_mapping("weightport: 1\nrules: [{from: a, to: b}]\nkeep: [c]")
    other = load_mapping({"keep": ["c"], "rules": [{"to": "b", "from": "a"}], "weightport": 1})
    assert first.digest == other.digest
    assert first.digest != parse_mapping("weightport: 1\nrules: [{from: a, to: b}]\nkeep: [d]").digest
    assert len(first.digest) == 64


@pytest.mark.parametrize("path", sorted((ROOT / "mappings").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_mappings_that_ship_load(path: Path) -> None:
    mapping = load_mapping(path)
    assert isinstance(mapping, Mapping)
    assert mapping.rules
    assert all(r.where.startswith(f"{path}:") for r in mapping.rules)


ELEVEN = """\
weightport: 1
sorce: {scope: a}
target: {scope: /encoder}
rules:
  - from: {layout: lstm.kears, scope: a}
    to: {layout: lstm.tf1, scop: b}
    as: constent
  - from: a/{n}
    to: b/{name}
    rearange: a b -> b a
  - from: [a, b]
    to: c
  - from: a
    to: 0
    cast: flaot32
  - to: x
    initialize: {gloro_uniform: {}}
"""


def test_ten_mistakes_and_one_are_eleven_messages() -> None:
    assert closest("lstm.kears", builtin()).startswith("closest: 'lstm.keras'")
    assert problems(ELEVEN, "maps/asr.yaml") == [
        "maps/asr.yaml:2: unknown key 'sorce'; closest: 'source', 'sources'",
        "maps/asr.yaml:3 target.scope: expected a scope such as encoder/lstm: no / at either end, no braces, "
        "found '/encoder'; closest: 'encoder'",
        f"maps/asr.yaml:5 rules[0].from.layout: no layout 'lstm.kears'; {closest('lstm.kears', builtin())}",
        "maps/asr.yaml:6 rules[0].to: unknown key 'scop'; closest: 'scope'",
        "maps/asr.yaml:7 rules[0].as: expected initial or constant, found 'constent'; closest: 'constant'",
        "maps/asr.yaml:9 rules[1].to: {name} is not bound in from; from binds {n}",
        "maps/asr.yaml:10 rules[1]: unknown key 'rearange'; closest: 'rearrange'",
        "maps/asr.yaml:11 rules[2].from: 2 names and no concat; say along which axis they are joined: concat: 0",
        f"maps/asr.yaml:14 rules[3].to: {NAME_OR_CELL}, found 0; write '0' if it is a name",
        "maps/asr.yaml:15 rules[3].cast: no dtype 'flaot32'; closest: 'float32', 'float6_e3m2fn'",
        "maps/asr.yaml:17 rules[4].initialize: unknown initializer 'gloro_uniform'; "
        "closest: 'glorot_uniform', 'glorot_normal', 'uniform'",
    ]


@pytest.mark.parametrize(
    ("said", "name", "args"),
    [
        ("xavier", "glorot_uniform", {}),
        ({"xavier": {"seed": 3}}, "glorot_uniform", {"seed": 3}),
        ({"random_normal": {"stddev": 0.02}}, "normal", {"stddev": 0.02}),
        ("random_uniform", "uniform", {}),
        ("zero", "zeros", {}),
        ("one", "ones", {}),
        ({"constant": 2.5}, "constant", {"value": 2.5}),
        ({"constant": 2}, "constant", {"value": 2}),
    ],
)
def test_initializers_have_other_names(said: Any, name: str, args: dict[str, Any]) -> None:
    mapping = load_mapping({"weightport": 1, "rules": [{"to": "a", "initialize": said}]})
    (rule,) = mapping.rules
    assert isinstance(rule, InitRule)
    assert rule.initializer == Initializer(name, args)
    assert mapping.document["rules"][0]["initialize"] == said


def test_sizes_of_a_cell() -> None:
    told = rule_of(
        "from: {layout: lstm.cudnn-opaque, scope: a, sizes: {input: 3, units: 4}}, to: {layout: lstm.tf1, scope: b}"
    )
    assert told.source.sizes == {"input": 3, "units": 4, "layers": 1, "directions": 1}
    assert told.target.sizes is None


CELL = "{layout: lstm.tf1, scope: a}"
NAME_OR_CELL = "expected a name pattern, a list of them, or a cell such as {layout: lstm.keras, scope: encoder}"
ARGUMENTS = "expected a table of arguments, or the number of a constant"
INITIALIZER = "expected an initializer such as zeros or {glorot_uniform: {seed: 7}}"
SCOPE = "expected a scope such as encoder/lstm: no / at either end, no braces"
CAPTURE = "expected {name}, {name**}, {name+1} or {name-1}; a brace itself is written twice: {{ or }}"
MOVED = "operations are for tensors that are moved by name"
KEYS = (
    "from, to, as, optional, slots, initialize, dequantize, concat, slice, reshape, rearrange, vocab, pad, scale, "
    "cast, split"
)
TF1 = "from: {layout: lstm.tf1, scope: a}, to: {layout: lstm.tf1, scope: a"


@pytest.mark.parametrize(
    ("rule", "messages"),
    [
        # what a rule is
        ("from: a", [": no key 'to'"]),
        ("to: a", [": no key 'from' or 'initialize'; a rule moves with from, or fills with initialize"]),
        ("frm: a, to: a", [": unknown key 'frm'; closest: 'from'"]),
        ("from: a, too: a", [": unknown key 'too'; closest: 'to'"]),
        (
            "from: a, to: b, initialize: zeros",
            [".initialize: a rule with from has no initialize; make two rules of it"],
        ),
        (f"from: {CELL}, to: b", [": a cell in from only; both sides name a layout, or neither"]),
        (f"from: [a], to: {CELL}", [": a cell in to only; both sides name a layout, or neither"]),
        ("from: a, to: b, xyz: 1", [f": unknown key 'xyz'; known: {KEYS}"]),
        ("from: a, to: b, optional: 1", [".optional: expected true or false, found 1"]),
        ("from: a, to: b, as: 1", [".as: expected initial or constant, found 1"]),
        ("from: '', to: b", [".from: expected text, found nothing between the quotes"]),
        ("from: [], to: b", [".from: expected at least 1 entry, found none"]),
        ("from: [a, 1.50], to: b, concat: 0", [".from[1]: expected text, found 1.5; write '1.50' if it is a name"]),
        ("from: ~, to: b", [f".from: {NAME_OR_CELL}, found null"]),
        # several names
        ("from: [a, b], to: c", [".from: 2 names and no concat; say along which axis they are joined: concat: 0"]),
        ("from: a, to: c, concat: 0", [".concat: concat with one name in from; concat needs several"]),
        ("from: [a], to: c, concat: 0", [".concat: concat with one name in from; concat needs several"]),
        ("from: a, to: [b, c]", [".to: 2 names and no split; say along which axis it is cut: split: 0"]),
        ("from: a, to: b, split: 0", [".split: split with one name in to; split needs several"]),
        ("from: a, to: [b, c], split: {axis: 0, sizes: [1]}", [".split.sizes: 1 sizes for 2 names in to"]),
        # captures
        ("from: 'a/{n', to: b", [f".from: '{{n' in 'a/{{n' is no capture; {CAPTURE}"]),
        ("from: 'a/{role}', to: 'b/{rolle}'", [".to: {rolle} is not bound in from; closest: 'role'"]),
        ("from: a, to: 'b/{n}'", [".to: {n} is not bound in from; from binds nothing"]),
        ("from: ['a/{n}', 'b/{m}'], to: c, concat: 0", [".from[1]: {m} is not bound in from[0]; from[0] binds {n}"]),
        (
            "from: 'a/{n+1}', to: 'b/{n}'",
            [".from: arithmetic with {n} in 'a/{n+1}'; bind the number itself here, and compute in to"],
        ),
        ("from: 'a/{x**}', to: 'b/{x}'", [".to: 'b/{x}' has {x} in another form; from has {x**}"]),
        (
            "to: 'b/{n+1}', initialize: zeros",
            [".to: arithmetic with {n} in 'b/{n+1}'; nothing is bound that could be computed with"],
        ),
        # cells
        (f"from: {CELL}, to: {{layout: lstm.tf1}}", [".to: no key 'scope'"]),
        (f"from: {CELL}, to: {{scope: a}}", [".to: no key 'layout'"]),
        (f"from: {CELL}, to: {{layout: lstm.tf1, scope: a/}}", [f".to.scope: {SCOPE}, found 'a/'; closest: 'a'"]),
        (f"from: {CELL}, to: {{layout: lstm.tf1, scope: 'a_{{n}}'}}", [f".to.scope: {SCOPE}, found 'a_{{n}}'"]),
        (
            f"from: {CELL}, to: {{layout: gru.tf1, scope: a}}",
            [": lstm.tf1 is a cell of another kind than gru.tf1; one is lstm, the other gru: no conversion is exact"],
        ),
        (
            f"from: {CELL}, to: {{layout: xyz, scope: a}}",
            [".to.layout: no layout 'xyz'; weightport layouts lists them"],
        ),
        (
            f"from: {CELL}, to: {{layout: 1, scope: a}}",
            [".to.layout: expected text, found 1; write '1' if it is a name"],
        ),
        (
            f"{TF1}, gates: [i, f, g]}}",
            [".to.gates: layout lstm.tf1: gates ['i', 'f', 'g'] are not ['f', 'g', 'i', 'o']"],
        ),
        (f"{TF1}, gates: i f}}", [".to.gates: expected a list of gates, or a table gate: name, found 'i f'"]),
        (f"{TF1}, reset: after}}", [".to.reset: lstm.tf1 is no cell with a reset gate"]),
        (f"{TF1}, forget_bias: x}}", [".to.forget_bias: expected a number, found 'x'"]),
        (
            "from: {layout: gru.tf1, scope: a, forget_bias: 1}, to: {layout: gru.tf1, scope: a}",
            [".from.forget_bias: gru.tf1 is no cell with a forget gate"],
        ),
        (f"{TF1}, layers: [0, 0]}}", [".to.layers: 0, 0 has an entry twice"]),
        (f"{TF1}, layers: -1}}", [".to.layers: expected at least 0, found -1"]),
        (f"{TF1}, layers: x}}", [".to.layers: expected a layer's number, or a list of them, found 'x'"]),
        (
            f"{TF1}, directions: foward}}",
            [".to.directions: expected forward or backward, found 'foward'; closest: 'forward'"],
        ),
        (
            "from: {layout: lstm.tf1, scope: a, layers: [0, 1]}, to: {layout: lstm.tf1, scope: a, layers: 0}",
            [": 2 layers in from and 1 in to"],
        ),
        (
            f"{TF1}, sizes: {{input: 3, units: 4, layers: 0, directions: 3}}}}",
            [
                ".to.sizes.layers: expected at least 1, found 0",
                ".to.sizes.directions: expected 1 or 2, found 3",
            ],
        ),
        (f"{TF1}, sizes: {{input: 3, unit: 4}}}}", [".to.sizes: unknown key 'unit'; closest: 'units'"]),
        (f"{TF1}, sizes: {{input: 3}}}}", [".to.sizes: no key 'units'"]),
        (f"from: {CELL}, to: {CELL}, cast: float32", [f".cast: a rule for a cell has no cast; {MOVED}"]),
        # initializers
        ("to: a, initialize: zeroes", [".initialize: unknown initializer 'zeroes'; closest: 'zeros', 'ones'"]),
        ("to: a, initialize: {normal: {stdev: 1}}", [".initialize: normal has no argument 'stdev'; closest: 'stddev'"]),
        ("to: a, initialize: {normal: {stddev: -1}}", [".initialize: normal.stddev: -1 is negative"]),
        ("to: a, initialize: {zeros: ~}", [f".initialize.zeros: {ARGUMENTS}, found null"]),
        ("to: a, initialize: {constant: true}", [f".initialize.constant: {ARGUMENTS}, found true"]),
        (
            "to: a, initialize: {normal: 0.02}",
            [".initialize: normal: expected arguments by name, found 0.02; normal: {mean: 0.0, stddev: 0.05, seed: 0}"],
        ),
        ("to: a, initialize: {zeros: 3}", [".initialize: zeros: expected arguments by name, found 3; it takes none"]),
        ("to: a, initialize: HeNormal", [".initialize: unknown initializer 'HeNormal'; closest: 'he_normal'"]),
        (
            "to: a, initialize: xavier_initializer",
            [".initialize: unknown initializer 'xavier_initializer'; closest: 'glorot_uniform'"],
        ),
        ("to: a, initialize: {zeros: {}, ones: {}}", [".initialize: expected 1 entry, found 2"]),
        ("to: a, initialize: {}", [".initialize: expected at least 1 entry, found none"]),
        ("to: a, initialize: 0", [f".initialize: {INITIALIZER}, found 0"]),
        ("to: a, initialize: zeros, scale: 2", [f".scale: a rule with initialize has no scale; {MOVED}"]),
        (
            "to: a, initialize: zeros, slots: true",
            [".slots: a rule with initialize has no slots; what is new has none"],
        ),
        (
            "from: {layout: lstm.keras, scope: a}, to: {layout: lstm.keras, scope: b}, "
            "vocab: {from: a.txt, to: b.txt, axis: 0}",
            [
                ".vocab.from: no file 'a.txt'; looked for in .",
                ".vocab.to: no file 'b.txt'; looked for in .",
                ".vocab.axis: a cell's words are its inputs; leave the axis out",
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_rule(rule: str, messages: list[str]) -> None:
    assert rule_problems(rule) == messages


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("rules: []", ["m.yaml:1: no key 'weightport'; a mapping begins with weightport: 1",
                       "m.yaml:1 rules: expected at least 1 entry, found none"]),
        ("wightport: 1\nrules: [{from: a, to: b}]", ["m.yaml:1: unknown key 'wightport'; closest: 'weightport'"]),
        ("weightport: 1", ["m.yaml:1: no key 'rules'"]),
        ("weightport: '1'\nrules: [{from: a, to: b}]", ["m.yaml:1 weightport: expected a whole number, found '1'"]),
        ("weightport: true\nrules: [{from: a, to: b}]", ["m.yaml:1 weightport: expected a whole number, found true"]),
        ("weightport: 1\nrules: {from: a, to: b}", ["m.yaml:2 rules: expected a list, found a table"]),
        ("weightport: 1\nrules:\n- 17\n-\n", ["m.yaml:3 rules[0]: expected a table, found 17",
                                            "m.yaml:4 rules[1]: expected a table, found null"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\nignore: a", ["m.yaml:3 ignore: expected a list, found 'a'"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\nignore: [1, 'a{']\nkeep:\n - 'b_{n+1}'",
         ["m.yaml:3 ignore[0]: expected text, found 1; write '1' if it is a name",
          f"m.yaml:3 ignore[1]: '{{' in 'a{{' is no capture; {CAPTURE}",
          "m.yaml:5 keep[0]: arithmetic in 'b_{n+1}'; ignore and keep take {name} and {name**}"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\nsource:\n  sha256: 12ab\n",
         ["m.yaml:4 source.sha256: expected 64 hexadecimal digits, found '12ab'"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\nsource:\n  sha256: 12\n",
         ["m.yaml:4 source.sha256: expected text, found 12; write '12' if it is a name"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\ntarget:\n  sha256: 12\n",
         ["m.yaml:4 target: unknown key 'sha256'; known: scope"]),
        ("weightport: 1\nrules: [{from: a, to: b}]\nsource: {scope: a//b}\n",
         ["m.yaml:3 source.scope: expected a scope such as encoder/lstm: no / at either end, no braces, found 'a//b'"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mapping(text: str, messages: list[str]) -> None:
    assert problems(text) == messages


def test_layouts_of_the_mappings_own() -> None:
    table = (
        "layouts:\n  lstm.mine:\n    tensors: {k: 'wx[input (gate unit)]', q: 'wt[hiden (gate unit)]'}\n    gatez: 1\n"
    )
    rule = "rules: [{from: {layout: lstm.mine, scope: a}, to: {layout: lstm.min, scope: b}}]\n"
    found = problems(f"weightport: 1\n{table}{rule}")
    assert found[0].startswith("m.yaml:3 layouts.lstm.mine: unknown key 'gatez'; closest: 'gates'")
    assert found[1].startswith(
        "m.yaml:3 layouts.lstm.mine.tensors.q: wt has no axis 'hiden' in 'wt[hiden (gate unit)]'"
    )
    # 'lstm.mine' is wrong, and said to be so once; 'lstm.min' does not exist.
    assert [p.split(";")[0] for p in found[2:]] == ["m.yaml:6 rules[0].to.layout: no layout 'lstm.min'"]
    shape = problems("weightport: 1\nlayouts: {lstm.a: 3, lstm.b: {gates: 3, derived: 5}}\nrules: [{from: a, to: b}]\n")
    assert shape == [
        "m.yaml:2 layouts.lstm.a: expected a table, found 3",
        "m.yaml:2 layouts.lstm.b.gates: expected a list of gates, or a table gate: name, found 3",
        "m.yaml:2 layouts.lstm.b.derived: expected a table, found 5",
    ]


def test_a_mistake_in_a_dict_has_its_place_without_a_line() -> None:
    with pytest.raises(MappingError) as caught:
        load_mapping({"weightport": 1, "rules": [{"from": "a", "to": "b", "scale": "x", "cats": "int8"}]})
    assert str(caught.value) == (
        "rules[0].scale: expected a number, found 'x'\nrules[0]: unknown key 'cats'; closest: 'cast', 'as', 'concat'"
    )


def test_every_layout_that_ships_can_be_named() -> None:
    for name in builtin():
        rule = rule_of(f"from: {{layout: {name}, scope: a}}, to: {{layout: {name}, scope: b}}")
        assert (rule.source.layout, rule.target.layout) == (name, name)


# --- vocabularies -----------------------------------------------------------------------------------------------------


def vocab_problems(folder: Path, value: str) -> list[str]:
    text = f"weightport: 1\nrules:\n  - {{from: a, to: b, vocab: {value}}}\n"
    return [p.partition(" rules[0].vocab")[2] for p in problems(text, str(folder / "m.yaml"))]


def test_vocabularies_lie_beneath_the_mappings_folder(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    (folder / "words").mkdir(parents=True)
    for name in ("old.txt", "words/new.json"):
        (folder / name).write_text("a")
    (tmp_path / "outside.txt").write_text("a")
    (folder / "out.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "in.txt").symlink_to("old.txt")
    (folder / "loop.txt").symlink_to("loop.txt")
    (folder / "up").symlink_to("..")

    value = "{from: in.txt, to: words/new.json, axis: -1, missing: mean}"
    text = f"weightport: 1\nrules:\n  - {{from: a, to: b, vocab: {value}}}"
    rule = parse_mapping(text, str(folder / "m.yaml")).rules[0]
    assert isinstance(rule, TensorRule)
    assert rule.ops.vocab == Vocab(
        source=str((folder / "old.txt").resolve()),
        target=str((folder / "words/new.json").resolve()),
        axis=-1,
        missing="mean",
        source_text="in.txt",
        target_text="words/new.json",
    )
    text = text.replace("missing: mean", "missing: {truncated_normal: {stddev: 0.02}}")
    rule = parse_mapping(text, str(folder / "m.yaml")).rules[0]
    assert isinstance(rule, TensorRule)
    assert rule.ops.vocab is not None
    assert rule.ops.vocab.missing == Initializer("truncated_normal", {"stddev": 0.02})

    outside = "is outside the mapping's folder; a mapping names files in its own folder, by relative paths"
    for name in ("../outside.txt", str(folder / "old.txt"), "out.txt", "up/outside.txt", "words/../old.txt"):
        assert vocab_problems(folder, f"{{from: {name}, to: old.txt}}") == [f".from: {shown(name)} {outside}"]
    assert vocab_problems(folder, "{from: old.txt, to: new.txt}") == [f".to: no file 'new.txt'; looked for in {folder}"]
    assert vocab_problems(folder, "{from: words, to: old.txt}") == [f".from: no file 'words'; looked for in {folder}"]
    assert len(vocab_problems(folder, "{from: loop.txt, to: old.txt}")) == 1
    assert vocab_problems(folder, '{from: "a\\0b", to: old.txt}') == [".from: 'a\\x00b' is no path: embedded null byte"]
    assert len(vocab_problems(folder, f"{{from: {'x' * 5000}, to: old.txt}}")) == 1
    assert vocab_problems(folder, "{from: old.txt, to: old.txt, missing: men}")[0].startswith(
        ".missing: unknown initializer 'men'"
    )
    table = "{from: {file: in.txt, word: 1, row: 0, header: true}, to: old.txt}"
    rule = parse_mapping(f"weightport: 1\nrules: [{{from: a, to: b, vocab: {table}}}]", str(folder / "m.yaml")).rules[0]
    assert isinstance(rule, TensorRule)
    assert rule.ops.vocab is not None
    assert rule.ops.vocab.source_columns == Columns(1, 0, True)
    assert vocab_problems(folder, "{from: {file: in.txt, word: 1, row: 1}, to: old.txt}") == [
        ".from.row: column 1 has the words"
    ]
    assert vocab_problems(folder, "{from: {file: new.txt}, to: old.txt}") == [
        f".from.file: no file 'new.txt'; looked for in {folder}"
    ]
    assert vocab_problems(folder, "{from: [a], to: old.txt}") == [
        ".from: expected a file of words, or {file: ..., word: COLUMN, row: COLUMN}, found a list"
    ]
    assert vocab_problems(folder, "{form: old.txt, to: old.txt}") == [": unknown key 'form'; closest: 'from'"]


def test_a_dicts_vocabularies_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    rule = load_mapping(
        {"weightport": 1, "rules": [{"from": "a", "to": "b", "vocab": {"from": "w.txt", "to": "w.txt"}}]}
    ).rules[0]
    assert isinstance(rule, TensorRule)
    assert rule.ops.vocab is not None
    assert rule.ops.vocab.source == os.path.realpath(tmp_path / "w.txt")


# --- imports ----------------------------------------------------------------------------------------------------------


def test_the_package_is_light_until_a_mapping_is_loaded() -> None:
    code = (
        "import sys, weightport.mapping as m; assert not {'yaml', 'pydantic'} & set(sys.modules); "
        "m.parse_mapping('weightport: 1\\nrules: [{from: a, to: b}]'); assert {'yaml', 'pydantic'} <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
