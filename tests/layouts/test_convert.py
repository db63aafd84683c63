"""Conversions between any two shipped layouts of a kind, judged by reference steps that know no layouts.

A round trip proves a bijection, not a meaning: so both sides are run, and planted faults show that running them tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from tests.layouts import _steps
from tests.layouts._steps import CASES, Arrays, Made, conversion, convert, hard_sigmoid, made, random_arrays, sigmoid
from weightport.layouts import builtin, find_layout, parse_layout
from weightport.layouts.conditions import Condition
from weightport.layouts.convert import BIJECTIVE, CONDITIONAL, EXACT, Conversion, canonical
from weightport.layouts.units import Unit, match
from weightport.ranges import slices_of

KINDS = ("lstm", "gru", "rnn")


def cases(kind: str) -> list[str]:
    return [case for case, (layout, *_) in CASES.items() if find_layout(layout).family == kind]


PAIRS = [(a, b) for kind in KINDS for a in cases(kind) for b in cases(kind)]


def test_every_form_is_a_case() -> None:
    known = {name: layout for name, layout in builtin().items() if layout.family in KINDS}
    forms = {(name, number) for name, layout in known.items() for number in range(len(layout.forms))}
    assert forms == {(layout, number) for layout, number, _, _ in CASES.values()}


def facts(unit: Unit, reset: str | None, s: Any = sigmoid, a: Any = np.tanh) -> dict[str, Any]:
    return {"forget_bias": unit.form.forget_bias, "reset": reset, "s": s, "a": a}


def outputs(cell: Made, arrays: Arrays, said: dict[str, Any], seed: int = 5) -> np.ndarray:
    """Every state after each of several steps, from a random state."""
    rng = np.random.default_rng(seed)
    sizes = cell.unit.sizes
    x = rng.normal(size=(5, 3, sizes["input"]))
    state = (rng.normal(size=(3, sizes["hidden"])),)
    if cell.unit.layout.family == "lstm":
        state = (rng.normal(size=(3, sizes["unit"])), *state)
    return np.concatenate([np.concatenate(s, axis=1) for s in cell.forward(arrays, x, state, said)])


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def meeting(arrays: Arrays, conditions: list[Condition]) -> dict[str, np.ndarray]:
    """The arrays with what the conditions ask for."""
    met = {name: array.copy() for name, array in arrays.items()}
    for condition in conditions:
        part = met[condition.tensor][slices_of(condition.ranges)]
        if condition.must == "zero":
            part[...] = -0.0
            continue
        rows, columns = condition.shape
        eye = np.eye(rows, columns)
        matrix = eye if condition.must == "identity" else part.reshape(rows, columns) * eye
        part[...] = matrix.reshape(part.shape)
    return met


def worst(a: str, b: str, s: Any = sigmoid, stated: dict[str, Any] | None = None, outputs_: int = 2) -> float:
    """The largest difference between the two cells' states, the second moved from the first, whose values meet the
    conditions.
    """
    source, target = made(a, "a/x", outputs=outputs_), made(b, "b/y", outputs=outputs_)
    arrays = random_arrays(source.unit, 11)
    moved, problems, _ = conversion(source.unit, target.unit, arrays, _steps.SIGMOID if stated is None else stated)
    assert not problems
    arrays = meeting(arrays, moved.conditions())
    reset = moved.reset or "after"  # without biases and records: either, if it is the same on both sides
    act = relu if "r-haiku" in a + b else np.tanh  # Haiku's plain RNN knows no other
    before = outputs(source, arrays, facts(source.unit, reset, s, act))
    after = outputs(target, convert(moved, arrays), facts(target.unit, reset, s, act))
    return float(np.abs(before - after).max())


# Which pairs are exact, and why others are refused -------------------------------------------------------------------

REASONS = {
    "o": "the source has 4 outputs, the target 2",
    "O": "the source has 2 outputs, the target 4",
    "p": "the target has an output projection, the source has none",
    "P": "the source has an output projection, the target has none",
    "i": "the target's gate i follows from its gate f, the source's is free",
    "a": "the source's reset gate is before, the target's after: "
    "reset before and after the matrix product are different functions",
    "A": "the source's reset gate is after, the target's before: "
    "reset before and after the matrix product are different functions",
    "f": "the source adds 1 to the forget gate, the target 0 and has no bias to make up for it",
    "t": "the source's activation is not recorded: by default it is tanh, the other side's is always relu "
    "(if it is that here too, the mapping can say so: activation: relu)",
    "T": "the target's activation is not recorded: by default it is tanh, the other side's is always relu "
    "(if it is that here too, the mapping can say so: activation: relu)",
}
#: What has to hold of the values, after a question mark.
CONDITIONS = {
    "b": "the biases are all zero",
    "n": "the candidate's recurrent bias is all zero",
    "D": "the recurrent weights are zero off their diagonals",
    "P": "the output projection is the identity",
    "W": "the peepholes are all zero",
}

#: What the cases are, by what they store and do:
#: 0, 1, 2 biases, or n: one, and the candidate's recurrent one; W peepholes; P projection; F adds 1 to the forget gate;
#: C coupled gates; D recurrent weights that are diagonal; < or > reset before or after, ? unknown, | no difference;
#: R always relu, r relu by default.
CLASSES = {
    "0": "scoped-none keras-none torch-none onnx-none eqx-none coreml-none",
    "1": "scoped scoped-flat ifco ifco-flat tf-cudnn tf10-cudnn keras keras-vars keras1 keras1-gpu flax nnx "
    "nnx-opt eqx coreml coreml-both coreml-flat coreml-flat-both",
    "1F": "tf tf012-basic tf-group haiku",
    "2": "cudnn opaque torch torch-cell onnx paddle paddle-cell paddle-layers paddle-both "
    "mx mx-saved mx-unfused mx-both mx-cell mx-cell-saved",
    "1W": "coreml-peep",
    "1WF": "tf-peep tf012-block",
    "2W": "onnx-peep",
    "0P": "torch-none-proj",
    "1PF": "tf-proj tf-group-proj",
    "2P": "torch-proj paddle-cell-proj paddle-both-proj mx-proj "
    "paddle-layers-proj mx-saved-proj mx-unfused-proj mx-both-proj",
    "1WPF": "tf-all tf10-proj tf012",
    "1FC": "coupled",
    "1WPFC": "coupled-all",
    "1FD": "indy",
    "g0<": "g-scoped-none g-coreml-none",
    "g0>": "g-torch-none g-eqx-none",
    "g0?": "g-keras-none g-onnx-none",
    "g1<": "g-scoped g-scoped-flat g-tf g-tf-block g-tf-swapped g-tf10 g-tf012 g-keras-before "
    "g-keras-vars-before g-keras1 g-keras1-gpu g-haiku g-coreml g-coreml-flat",
    "g1>": "g-nnx",
    "gn>": "g-tf-after g-flax g-eqx",
    "g2>": "g-keras-after g-keras-vars-after g-cudnn g-opaque g-torch g-torch-cell g-paddle g-paddle-cell "
    "g-paddle-layers g-paddle-both g-mx g-mx-saved g-mx-unfused g-mx-both g-mx-cell g-mx-cell-saved",
    "g2?": "g-onnx",
    "g1|D": "g-indy",
    "r0": "r-keras-none r-torch-none r-onnx-none r-coreml-none",
    "r1": "r-scoped r-scoped-flat r-tf r-tf10 r-tf012 r-keras r-keras-vars r-keras1 r-flax r-nnx r-coreml "
    "r-coreml-flat",
    "r2": "r-opaque r-torch r-torch-cell r-onnx r-paddle r-paddle-cell r-paddle-layers r-paddle-both "
    "r-mx-cell r-mx-cell-saved",
    "r2r": "r-mx r-mx-saved r-mx-unfused r-mx-both",
    "r1R": "r-haiku-one",
    "r2R": "r-haiku",
    "r1D": "r-indy",
}
CLASS_OF = {case: name for name, listed in CLASSES.items() for case in listed.split()}

#: Row: source; columns in the same order: target. "=" bijective, "~" exact, "?" exact on conditions, else why it is
#: refused. A projection has fewer outputs than units.
MATRIX = """
0     =   ~  ~  ~  ~  ~  ~  op op op op i   iop ?D
1     ?b  =  ~  ~  ~  ~  ~  op op op op i   iop ?D
1F    f   ~  =  ~  ~  ~  ~  op op op op i   iop ?D
2     ?b  ~  ~  =  ~  ~  ~  op op op op i   iop ?D
1W    ?Wb ?W ?W ?W =  ~  ~  op op op op i   iop ?DW
1WF   f   ?W ?W ?W ~  =  ~  op op op op i   iop ?DW
2W    ?Wb ?W ?W ?W ~  ~  =  op op op op i   iop ?DW
0P    OP  OP OP OP OP OP OP =  ~  ~  ~  OPi i   OP
1PF   OP  OP OP OP OP OP OP f  =  ~  ~  OPi i   OP
2P    OP  OP OP OP OP OP OP ?b ~  =  ~  OPi i   OP
1WPF  OP  OP OP OP OP OP OP f  ?W ?W =  OPi i   OP
1FC   f   ~  ~  ~  ~  ~  ~  op op op op =   op  ?D
1WPFC OP  OP OP OP OP OP OP f  ?W ?W ~  OP  =   OP
1FD   f   ~  ~  ~  ~  ~  ~  op op op op i   iop =

g0<  =  a  =  ~ a  a a ~ ?D
g0>  A  =  =  A ~  ~ ~ ~ ?D
g0?  =  =  =  ~ ~  ~ ~ ~ ?D
g1<  ?b a  ?b = a  a a ~ ?D
g1>  A  ?b ?b A =  ~ ~ ~ ?D
gn>  A  ?b ?b A ?n = ~ ~ ?Dn
g2>  A  ?b ?b A ?n ~ = = ?Dn
g2?  ?b ?b ?b ~ ?n ~ = = ?Dn
g1|D ?b ?b ?b ~ ~  ~ ~ ~ =

r0  =  ~ ~ ~ t t ?D
r1  ?b = ~ ~ t t ?D
r2  ?b ~ = = t t ?D
r2r ?b ~ = = ~ = ?D
r1R T  T T ~ = ~ T
r2R T  T T = ~ = T
r1D ?b ~ ~ ~ t t =
"""
#: The LSTMs once more, with as many outputs as units.
SQUARE = """
0     =   ~   ~   ~   ~  ~  ~  ~   ~  ~  ~ i   i ?D
1     ?b  =   ~   ~   ~  ~  ~  ?b  ~  ~  ~ i   i ?D
1F    f   ~   =   ~   ~  ~  ~  f   ~  ~  ~ i   i ?D
2     ?b  ~   ~   =   ~  ~  ~  ?b  ~  ~  ~ i   i ?D
1W    ?Wb ?W  ?W  ?W  =  ~  ~  ?Wb ?W ?W ~ i   i ?DW
1WF   f   ?W  ?W  ?W  ~  =  ~  f   ?W ?W ~ i   i ?DW
2W    ?Wb ?W  ?W  ?W  ~  ~  =  ?Wb ?W ?W ~ i   i ?DW
0P    ?P  ?P  ?P  ?P  ?P ?P ?P =   ~  ~  ~ i   i ?DP
1PF   f   ?P  ?P  ?P  ?P ?P ?P f   =  ~  ~ i   i ?DP
2P    ?Pb ?P  ?P  ?P  ?P ?P ?P ?b  ~  =  ~ i   i ?DP
1WPF  f   ?PW ?PW ?PW ?P ?P ?P f   ?W ?W = i   i ?DPW
1FC   f   ~   ~   ~   ~  ~  ~  f   ~  ~  ~ =   ~ ?D
1WPFC f   ?PW ?PW ?PW ?P ?P ?P f   ?W ?W ~ ?PW = ?DPW
1FD   f   ~   ~   ~   ~  ~  ~  f   ~  ~  ~ i   i =
"""


def rule(a: str, b: str, square: bool = False) -> str:
    """What the matrix has to say, from what the two classes store and do."""
    biases_a, biases_b = (next(c for c in name if c in "012n") for name in (a, b))
    refused = "i" * ("C" in b and "C" not in a)
    if "<" in a and ">" in b:
        refused += "a"
    if ">" in a and "<" in b:
        refused += "A"
    tanh_a, tanh_b = (name[0] == "r" and name[-1] not in "rR" for name in (a, b))
    refused += "t" * ("R" in b and tanh_a) + "T" * ("R" in a and tanh_b)
    if not square:
        refused += "op" * ("P" in b and "P" not in a) + "OP" * ("P" in a and "P" not in b)
    if set(refused) <= set("aAtT"):  # of activations and reset gates the biases know nothing
        refused += "f" * ("F" in a and biases_b == "0")
    if refused:
        return "".join(sorted(refused))
    conditions = [code for code in "PW" if code in a and code not in b]
    conditions += ["D"] if "D" in b and "D" not in a else []
    if biases_a != "0" and biases_b == "0":
        conditions.append("b")
    elif a[0] == "g" and biases_a in "2n" and biases_b not in "2n" and "<" not in a + b:
        conditions.append("n")
    if conditions:
        return "?" + "".join(sorted(conditions))
    same = biases_a == biases_b and all((c in a) == (c in b) for c in "WFCPD")
    return "=" if same else "~"


def golden(matrix: str) -> dict[tuple[str, str], str]:
    found = {}
    for block in matrix.strip().split("\n\n"):
        rows = {line.split()[0]: line.split()[1:] for line in block.splitlines()}
        for a, row in rows.items():
            found |= {(a, b): text for b, text in zip(rows, row, strict=True)}
    return found


def test_every_case_is_of_one_class() -> None:
    assert sorted(CLASS_OF) == sorted(CASES)
    assert sum(len(listed.split()) for listed in CLASSES.values()) == len(CASES)


def test_the_matrix_follows_from_what_the_classes_are() -> None:
    kinds = {"lstm": [n for n in CLASSES if n[0] not in "gr"], "gru": [n for n in CLASSES if n[0] == "g"]}
    kinds["rnn"] = [n for n in CLASSES if n[0] == "r"]
    assert golden(MATRIX) == {(a, b): rule(a, b) for names in kinds.values() for a in names for b in names}
    assert golden(SQUARE) == {(a, b): rule(a, b, square=True) for a in kinds["lstm"] for b in kinds["lstm"]}


GOLDEN = golden(MATRIX)


def expected(a: str, b: str) -> str:
    return GOLDEN[CLASS_OF[a], CLASS_OF[b]]


def cell_of_the_matrix(a: str, b: str, outputs_: int) -> str:
    source, target = made(a, "a/x", outputs=outputs_), made(b, "b/y", outputs=outputs_)
    arrays = random_arrays(source.unit, 1)
    moved, problems, _ = conversion(source.unit, target.unit, arrays)
    if problems:
        codes = {text: code for code, text in REASONS.items()}
        return "".join(sorted(codes[p] for p in problems))
    convert(moved, arrays)
    codes = {text: code for code, text in CONDITIONS.items()}
    asked = "".join(sorted({codes[c.says] for c in moved.conditions()}))
    assert bool(asked) == (moved.classed == CONDITIONAL)
    return {BIJECTIVE: "=", EXACT: "~", CONDITIONAL: "?"}[moved.classed] + asked


def test_classes_and_refusals_of_every_pair() -> None:
    found = {(a, b): cell_of_the_matrix(a, b, 2) for a, b in PAIRS}
    assert found == {(a, b): expected(a, b) for a, b in PAIRS}


SQUARE_PAIRS = [(a, b) for a, b in PAIRS if "P" in (CLASS_OF[a] + CLASS_OF[b])]
SQUARES = golden(SQUARE)


def test_classes_and_refusals_of_every_pair_with_a_square_projection() -> None:
    found = {(a, b): cell_of_the_matrix(a, b, 4) for a, b in SQUARE_PAIRS}
    assert found == {(a, b): SQUARES[CLASS_OF[a], CLASS_OF[b]] for a, b in SQUARE_PAIRS}


EXACT_PAIRS = [(a, b) for a, b in PAIRS if expected(a, b)[0] in "=~?"]


@pytest.mark.parametrize("source", CASES)
def test_both_sides_step_alike(source: str) -> None:
    """Where there are conditions, with values that meet them."""
    for a, b in EXACT_PAIRS:
        if a == source:
            assert worst(a, b) < 1e-12, (a, b)
    for a, b in SQUARE_PAIRS:
        if a == source and SQUARES[CLASS_OF[a], CLASS_OF[b]][0] in "=~?":
            assert worst(a, b, outputs_=4) < 1e-12, (a, b)


CONDITIONAL_PAIRS = [(a, b, 2) for a, b in PAIRS if expected(a, b)[0] == "?"]
CONDITIONAL_PAIRS += [(a, b, 4) for a, b in SQUARE_PAIRS if SQUARES[CLASS_OF[a], CLASS_OF[b]][0] == "?"]


@pytest.mark.parametrize("source", sorted({a for a, _, _ in CONDITIONAL_PAIRS}))
def test_values_that_do_not_meet_a_condition_are_found(source: str) -> None:
    """One wrong element at a time, anywhere in what a condition is on: that element, and no other."""
    rng = np.random.default_rng(4)
    for a, b, outputs_ in CONDITIONAL_PAIRS:
        if a != source:
            continue
        unit, target = made(a, "a/x", outputs=outputs_).unit, made(b, "b/y", outputs=outputs_).unit
        arrays = random_arrays(unit, 1)
        asked = conversion(unit, target, arrays)[0].conditions()
        met = meeting(arrays, asked)
        assert [c.offence(met[c.tensor][slices_of(c.ranges)]) for c in asked] == [None] * len(asked)
        wrong = asked[rng.integers(len(asked))]
        part = met[wrong.tensor][slices_of(wrong.ranges)]
        at = tuple(int(rng.integers(n)) for n in part.shape)
        before = part[at]
        if wrong.must == "diagonal" and before:
            continue  # on the diagonal, which is free
        part[at] = np.nan if rng.integers(2) else before + 0.5
        found = {c: c.offence(met[c.tensor][slices_of(c.ranges)]) for c in asked}
        index, value = found.pop(wrong) or ((), 0)
        assert np.array_equal(met[wrong.tensor][index], value, equal_nan=True)
        assert index == tuple(r[k] for r, k in zip(wrong.ranges, at, strict=True))
        assert not any(found.values())


@pytest.mark.parametrize(
    ("a", "b"), [("tf-peep", "keras"), ("g-torch", "g-nnx"), ("torch", "torch-none"), ("keras", "indy")]
)
def test_without_its_condition_it_is_another_function(a: str, b: str) -> None:
    source, target = made(a, "a/x"), made(b, "b/y")
    arrays = random_arrays(source.unit, 11)
    moved, _, _ = conversion(source.unit, target.unit, arrays)
    before = outputs(source, arrays, facts(source.unit, moved.reset))
    assert np.abs(before - outputs(target, convert(moved, arrays), facts(target.unit, moved.reset))).max() > 1e-2


@pytest.mark.parametrize(
    "pair",
    [
        ("keras1", "keras"),
        ("keras1-gpu", "keras"),
        ("keras", "scoped"),
        ("g-keras1", "g-keras-before"),
        ("g-keras1-gpu", "g-keras-before"),
        ("g-keras-after", "g-keras-after"),
    ],
)
def test_other_activations_go_along(pair: tuple[str, str]) -> None:
    assert worst(*pair, s=hard_sigmoid, stated={"recurrent_activation": "hard_sigmoid"}) < 1e-12


@pytest.mark.parametrize("source", CASES)
def test_a_bijection_returns_every_bit(source: str) -> None:
    for a, b in EXACT_PAIRS:
        if a == source and expected(a, b) == "=":
            returned_bits(a, b)


def returned_bits(a: str, b: str) -> None:
    source, target = made(a, "a/x").unit, made(b, "b/y").unit
    rng = np.random.default_rng(2)
    arrays = {  # any bits: NaNs with payloads, infinities, negative zeros
        name: rng.integers(0, 1 << 32, size=array.shape, dtype=np.uint32).view(np.float32)
        for name, array in random_arrays(source, 0).items()
    }
    for array in arrays.values():
        array.reshape(-1)[:1] = -0.0
    there = convert(conversion(source, target, arrays)[0], arrays)
    back, problems, _ = conversion(target, source, there)
    assert not problems
    returned = convert(back, there)
    assert {n: v.tobytes() for n, v in returned.items()} == {n: v.tobytes() for n, v in arrays.items()}, (a, b)
    assert back.classed == BIJECTIVE


def test_an_exact_conversion_is_the_same_function_in_single_precision() -> None:
    for a, b in [("tf", "keras"), ("cudnn", "keras"), ("coupled", "tf-peep"), ("g-cudnn", "g-tf-after")]:
        source, target = made(a, "a/x"), made(b, "b/y")
        arrays = random_arrays(source.unit, 3, np.float32)
        moved, _, _ = conversion(source.unit, target.unit, arrays)
        result = convert(moved, arrays)
        assert {array.dtype for array in result.values()} == {np.dtype(np.float32)}
        said = facts(source.unit, "after"), facts(target.unit, "after")
        assert np.abs(outputs(source, arrays, said[0]) - outputs(target, result, said[1])).max() < 1e-5


# What is said of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "notes"),
    [
        ("scoped", "keras", []),
        ("tf", "keras", ["the forget bias 1 is folded into the forget gate's bias"]),
        ("keras", "tf", ["the forget bias 1 is taken out of the forget gate's bias"]),
        ("cudnn", "keras", ["the two biases are summed into one"]),
        ("keras", "tf-peep", ["the target's peepholes are zero", "the forget bias 1 is taken out of"]),
        ("keras", "cudnn", []),
        ("g-cudnn", "g-keras-after", []),
        ("g-cudnn", "g-tf-after", ["the two biases are summed into one"]),
    ],
)
def test_notes(a: str, b: str, notes: list[str]) -> None:
    source = made(a, "a/x").unit
    arrays = random_arrays(source, 1)
    moved, _, _ = conversion(source, made(b, "b/y").unit, arrays)
    convert(moved, arrays)
    assert len(moved.notes) == len(notes)
    for note in notes:
        assert any(found.startswith(note) for found in moved.notes)


def test_a_missing_recurrent_bias_mode_is_not_guessed() -> None:
    source = made("g-keras-after", "a/x").unit
    target = made("g-keras-before", "b/y").unit
    arrays = random_arrays(source, 1)

    def asked(reset: str | None) -> list[tuple[str, str]]:
        moved = Conversion(source, target, _steps.specs(arrays), reset=reset)
        assert moved.problems() == []
        return [(c.says, c.lacking) for c in moved.conditions()]

    bias = "the candidate's recurrent bias"
    assert asked(None) == asked("after") == [(f"{bias} is all zero", f"place for {bias}")]
    assert asked("before") == []


def test_sizes_must_agree() -> None:
    source = made("keras", "a/x").unit
    target = made("keras", "b/y", inputs=5, units=6).unit
    assert Conversion(source, target, {}).problems() == [
        "the source has 3 inputs, the target 5",
        "the source has 4 units, the target 6",
        "the source has 4 outputs, the target 6",
    ]


def test_a_forget_bias_needs_a_bias_to_go_into() -> None:
    source, target = made("keras-none", "a/x").unit, made("keras-none", "b/y").unit
    what = "the source adds 1 to the forget gate, the target 0 and has no bias to make up for it"
    assert Conversion(source, target, {}, (1.0, 0.0)).problems() == [what]
    assert Conversion(source, target, {}, (1.0, 1.0)).problems() == []


# Golden bytes --------------------------------------------------------------------------------------------------------


def stored(shape: tuple[int, ...], start: int = 0) -> np.ndarray:
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def moved(a: str, b: str, arrays: dict[str, np.ndarray], **sizes: int) -> dict[str, list[Any]]:
    source, target = made(a, "s", **sizes).unit, made(b, "t", **sizes).unit
    result = convert(conversion(source, target, arrays)[0], arrays)
    return {name: array.tolist() for name, array in result.items()}


def test_golden_tf_to_keras_lstm() -> None:
    # i j f o of 2 units each; one input row, then two recurrent ones.
    arrays = {"s/kernel": stored((3, 8)), "s/bias": stored((8,), 100)}
    assert moved("tf", "keras", arrays, inputs=1, units=2) == {
        "t/kernel": [[0, 1, 4, 5, 2, 3, 6, 7]],
        "t/recurrent_kernel": [[8, 9, 12, 13, 10, 11, 14, 15], [16, 17, 20, 21, 18, 19, 22, 23]],
        "t/bias": [100, 101, 105, 106, 102, 103, 106, 107],
    }


def test_golden_tf_to_keras_gru() -> None:
    # r u, and c apart.
    arrays = {
        "s/gates/kernel": stored((3, 4)),
        "s/gates/bias": stored((4,), 100),
        "s/candidate/kernel": stored((3, 2), 50),
        "s/candidate/bias": stored((2,), 200),
    }
    assert moved("g-tf", "g-keras-before", arrays, inputs=1, units=2) == {
        "t/kernel": [[2, 3, 0, 1, 50, 51]],
        "t/recurrent_kernel": [[6, 7, 4, 5, 52, 53], [10, 11, 8, 9, 54, 55]],
        "t/bias": [102, 103, 100, 101, 200, 201],
    }


def test_golden_cudnn_to_keras_lstm() -> None:
    # Each gate's block of the kernel is [3 inputs, 2 units] by its shape and [2 units, 3 inputs] by its bytes.
    arrays = {"s/kernel": stored((3, 8)), "s/recurrent_kernel": stored((2, 8), 100), "s/bias": stored((16,), 1000)}
    assert moved("cudnn", "keras", arrays, inputs=3, units=2) == {
        "t/kernel": [[0, 9, 2, 11, 4, 13, 6, 15], [1, 16, 3, 18, 5, 20, 7, 22], [8, 17, 10, 19, 12, 21, 14, 23]],
        "t/recurrent_kernel": [[100, 108, 102, 110, 104, 112, 106, 114], [101, 109, 103, 111, 105, 113, 107, 115]],
        "t/bias": [2008 + 2 * k for k in range(8)],
    }


def test_golden_scoped_to_tf_lstm() -> None:
    gates = ("input_gate", "forget_gate", "memory_cell", "output_gate")
    arrays = {}
    for number, gate in enumerate(gates):
        arrays |= {
            f"s/{gate}/wx": stored((1, 1), 10 * number),
            f"s/{gate}/wt": stored((1, 1), 10 * number + 1),
            f"s/{gate}/bi": stored((1, 1), 10 * number + 2),
        }
    assert moved("scoped", "tf", arrays, inputs=1, units=1) == {
        "t/kernel": [[0, 20, 10, 30], [1, 21, 11, 31]],
        "t/bias": [2, 22, 11, 32],
    }


# The canonical parameters --------------------------------------------------------------------------------------------


def read_canonical(case: str, forget_bias: float = 0.0) -> tuple[Arrays, dict[Any, np.ndarray]]:
    unit = made(case, "s").unit
    arrays = random_arrays(unit, 6)
    found = canonical(unit, _steps.specs(arrays), forget_bias)
    whole = {k: e.read(lambda n, r: arrays[n][_steps.slices_of(r)], _steps.whole(e.shape)) for k, e in found.items()}
    return arrays, whole


def test_canonical_parameters() -> None:
    arrays, found = read_canonical("tf-all")
    assert set(found) == {(p, g) for p in ("wx", "wt", "bi") for g in "ifgo"} | {("wp", g) for g in "ifo"} | {
        ("wr", None)
    }
    kernel = arrays["s/kernel"]
    for number, gate in enumerate("igfo"):
        assert np.array_equal(found["wx", gate], kernel[:3, 4 * number : 4 * number + 4])
        assert np.array_equal(found["wt", gate], kernel[3:, 4 * number : 4 * number + 4])
    assert np.array_equal(found["wr", None], arrays["s/projection/kernel"])
    _, found = read_canonical("g-cudnn")
    assert set(found) == {(p, g) for p in ("wx", "wt", "bi", "bt") for g in "zrn"}


def test_canonical_parameters_of_a_gate_that_follows_from_another() -> None:
    _, found = read_canonical("coupled-all", forget_bias=1.0)
    for param in ("wx", "wt", "wp"):
        assert np.array_equal(found[param, "i"], -found[param, "f"])
    # i = 1 - s(f + 1) = s(-f - 1)
    assert np.array_equal(found["bi", "i"], -found["bi", "f"] - 1)


# Planted faults ------------------------------------------------------------------------------------------------------


def table_of(name: str) -> dict[str, Any]:
    """The shipped table as plain data, to be changed."""
    from importlib import resources

    text = (resources.files("weightport.layouts") / "tables" / f"{name.split('.')[0]}.yaml").read_text("utf-8")
    table: dict[str, Any] = yaml.safe_load(text)[name]
    return table


def planted(a: str, table: dict[str, Any], name: str, b: str, bias: tuple[float, float] | None = None) -> float:
    """The difference if the target's layout is that table, but its framework's step is the true one."""
    source, target = made(a, "a/x", inputs=4), made(b, "b/y", inputs=4)
    layout = parse_layout(name, table, "planted")
    (wrong,) = match(layout, layout.forms[0], "b/y", _steps.shapes(target.unit))
    arrays = random_arrays(source.unit, 11)
    true, problems, _ = conversion(source.unit, target.unit, arrays)
    assert not problems
    biases = true.forget_bias if bias is None else bias
    result = convert(Conversion(source.unit, wrong, _steps.specs(arrays), biases, true.reset), arrays)
    before = outputs(source, arrays, facts(source.unit, true.reset))
    return float(np.abs(before - outputs(target, result, facts(target.unit, true.reset))).max())


def test_the_steps_see_planted_faults() -> None:
    keras = table_of("lstm.keras")
    assert planted("tf", keras, "lstm.keras", "keras") < 1e-12
    assert planted("tf", keras | {"gates": ["i", "f", "o", "g"]}, "lstm.keras", "keras") > 1e-2
    assert planted("tf", keras | {"gates": ["i", "g", "f", "o"]}, "lstm.keras", "keras") > 1e-2
    assert planted("tf", keras, "lstm.keras", "keras", bias=(0.0, 0.0)) > 1e-2
    assert planted("tf", keras | {"gates": ["i", "~f", "g", "o"]}, "lstm.keras", "keras") > 1e-2
    for key, packing in (("recurrent_kernel", "wt[unit (gate hidden)]"), ("kernel", "wx[unit (gate input)]")):
        transposed = keras | {"tensors": keras["tensors"] | {key: packing}}
        assert planted("tf", transposed, "lstm.keras", "keras") > 1e-2, key

    gru = table_of("gru.keras") | {"variants": [table_of("gru.keras")["variants"][1]]}
    assert planted("g-tf", gru, "gru.keras", "g-keras-before") < 1e-12
    assert planted("g-tf", gru | {"gates": ["r", "z", "n"]}, "gru.keras", "g-keras-before") > 1e-2
    assert planted("g-tf", gru | {"complement": ["z"]}, "gru.keras", "g-keras-before") > 1e-2


# Overrides of a rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "gates"), [("g-tf", "zrn"), ("cudnn", "gifo"), ("keras", "ofgi"), ("g-cudnn", "nrz")])
def test_gates_in_another_order(case: str, gates: str) -> None:
    """Also in tables that name the gates one by one."""
    name, number, _, _ = CASES[case]
    layout = find_layout(name).with_gates(list(gates))
    cell = made(case, "a/x")
    (other,) = match(layout, layout.forms[number], "a/x", _steps.shapes(cell.unit))
    arrays = random_arrays(cell.unit, 4)
    target = made({"l": "keras", "g": "g-keras-after"}[name[0]] if "cudnn" in case else case, "b/y").unit
    changed = convert(conversion(other, target, arrays)[0], arrays)
    usual = convert(conversion(cell.unit, target, arrays)[0], arrays)
    # What is gate k of one order is gate k of the other, in every tensor whose gates lie side by side.
    order = list(find_layout(name).gates)
    if case == "g-tf":
        order, gates = ["r", "z"], "zr"
    swap = dict(zip(gates, order, strict=True))
    where = {"lstm": "ifgo", "gru": "zrn" if case != "g-tf" else "rz"}[target.layout.kind]
    for tensor in usual:
        if case == "g-tf" and "candidate" in tensor:
            assert np.array_equal(usual[tensor], changed[tensor])
            continue
        parts = dict(zip(where, np.split(usual[tensor], len(where), axis=-1), strict=True))
        expected_ = np.concatenate([parts[swap[g]] for g in where], axis=-1)
        assert np.array_equal(changed[tensor], expected_), tensor
