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
from weightport.layouts import find_layout, parse_layout
from weightport.layouts.convert import BIJECTIVE, EXACT, Conversion, canonical
from weightport.layouts.units import Unit, match

KINDS = ("lstm", "gru", "rnn")


def cases(kind: str) -> list[str]:
    return [case for case, (layout, *_) in CASES.items() if layout.startswith(kind + ".")]


PAIRS = [(a, b) for kind in KINDS for a in cases(kind) for b in cases(kind)]


def test_every_form_of_these_layouts_is_a_case() -> None:
    names = {layout for layout, *_ in CASES.values()}
    forms = {(name, number) for name in names for number in range(len(find_layout(name).forms))}
    assert forms == {(layout, number) for layout, number, _, _ in CASES.values()}


def facts(unit: Unit, reset: str | None, s: Any = sigmoid) -> dict[str, Any]:
    return {"forget_bias": unit.form.forget_bias, "reset": reset, "s": s}


def outputs(cell: Made, arrays: Arrays, said: dict[str, Any], seed: int = 5) -> np.ndarray:
    """Every state after each of several steps, from a random state."""
    rng = np.random.default_rng(seed)
    sizes = cell.unit.sizes
    x = rng.normal(size=(5, 3, sizes["input"]))
    state = (rng.normal(size=(3, sizes["hidden"])),)
    if cell.unit.layout.kind == "lstm":
        state = (rng.normal(size=(3, sizes["unit"])), *state)
    return np.concatenate([np.concatenate(s, axis=1) for s in cell.forward(arrays, x, state, said)])


def worst(a: str, b: str, s: Any = sigmoid, stated: dict[str, Any] | None = None) -> float:
    """The largest difference between the two cells' states, the second moved from the first."""
    source, target = made(a, "a/x"), made(b, "b/y")
    arrays = random_arrays(source.unit, 11)
    moved, problems, _ = conversion(source.unit, target.unit, arrays, _steps.SIGMOID if stated is None else stated)
    assert not problems
    reset = moved.reset or "after"  # without biases and records: either, if it is the same on both sides
    before = outputs(source, arrays, facts(source.unit, reset, s))
    after = outputs(target, convert(moved, arrays), facts(target.unit, reset, s))
    return float(np.abs(before - after).max())


# Why pairs are refused -----------------------------------------------------------------------------------------------

REASONS = {
    "b": "the source has biases, the target has none",
    "o": "the source has 4 outputs, the target 2",
    "O": "the source has 2 outputs, the target 4",
    "p": "the target has an output projection, the source has none",
    "P": "the source has an output projection, the target has none",
    "W": "the source has peepholes, the target has none",
    "i": "the target's gate i follows from its gate f, the source's is free",
    "a": "the source's reset gate is before, the target's after: "
    "reset before and after the matrix product are different functions",
    "A": "the source's reset gate is after, the target's before: "
    "reset before and after the matrix product are different functions",
    "n": "the source keeps the candidate's recurrent bias apart (reset after), the target has no place for it",
}

#: Row: source; columns in the same order: target. "=" bijective, "~" exact, else why it is refused.
MATRIX = {
    "lstm": """
scoped      =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
scoped-flat =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
scoped-none ~    ~    =    ~    ~    ~    ~    op   op   ~    op   ~    ~    op   ~    i    iop  ~    =    ~    ~    ~
ifco        =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
ifco-flat   =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
tf          ~    ~    b    ~    ~    =    ~    op   op   ~    op   ~    =    op   ~    i    iop  ~    b    ~    ~    ~
tf-peep     W    W    W    W    W    W    =    Wop  op   W    op   W    W    op   =    Wi   iop  W    W    W    W    W
tf-proj     OP   OP   OP   OP   OP   OP   OP   =    ~    OP   ~    OP   OP   ~    OP   OPi  i    OP   OP   OP   OP   OP
tf-all      OPW  OPW  OPW  OPW  OPW  OPW  OP   W    =    OPW  =    OPW  OPW  =    OP   OPWi i    OPW  OPW  OPW  OPW  OPW
tf-cudnn    =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
tf10-proj   OPW  OPW  OPW  OPW  OPW  OPW  OP   W    =    OPW  =    OPW  OPW  =    OP   OPWi i    OPW  OPW  OPW  OPW  OPW
tf10-cudnn  =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
tf012-basic ~    ~    b    ~    ~    =    ~    op   op   ~    op   ~    =    op   ~    i    iop  ~    b    ~    ~    ~
tf012       OPW  OPW  OPW  OPW  OPW  OPW  OP   W    =    OPW  =    OPW  OPW  =    OP   OPWi i    OPW  OPW  OPW  OPW  OPW
tf012-block W    W    W    W    W    W    =    Wop  op   W    op   W    W    op   =    Wi   iop  W    W    W    W    W
coupled     ~    ~    b    ~    ~    ~    ~    op   op   ~    op   ~    ~    op   ~    =    op   ~    b    ~    ~    ~
coupled-all OPW  OPW  OPW  OPW  OPW  OPW  OP   W    ~    OPW  ~    OPW  OPW  ~    OP   OPW  =    OPW  OPW  OPW  OPW  OPW
keras       =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
keras-none  ~    ~    =    ~    ~    ~    ~    op   op   ~    op   ~    ~    op   ~    i    iop  ~    =    ~    ~    ~
keras1      =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
keras1-gpu  =    =    b    =    =    ~    ~    op   op   =    op   =    ~    op   ~    i    iop  =    b    =    =    ~
cudnn       ~    ~    b    ~    ~    ~    ~    op   op   ~    op   ~    ~    op   ~    i    iop  ~    b    ~    ~    =
""",
    "gru": """
g-scoped       =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-scoped-flat  =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-scoped-none  ~  ~  =  ~  a  ~  ~  ~  ~  a  ~  =  ~  ~  a
g-tf           =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-tf-after     An An Ab An =  An An An An ~  An b  An An ~
g-tf-block     =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-tf-swapped   =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-tf10         =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-tf012        =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-keras-after  An An Ab An ~  An An An An =  An b  An An =
g-keras-before =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-keras-none   ~  ~  =  ~  ~  ~  ~  ~  ~  ~  ~  =  ~  ~  ~
g-keras1       =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-keras1-gpu   =  =  b  =  a  =  =  =  =  a  =  b  =  =  a
g-cudnn        An An Ab An ~  An An An An =  An b  An An =
""",
    "rnn": """
r-scoped      = = = = = = b =
r-scoped-flat = = = = = = b =
r-tf          = = = = = = b =
r-tf10        = = = = = = b =
r-tf012       = = = = = = b =
r-keras       = = = = = = b =
r-keras-none  ~ ~ ~ ~ ~ ~ = ~
r-keras1      = = = = = = b =
""",
}


def cell_of_the_matrix(a: str, b: str) -> str:
    source, target = made(a, "a/x"), made(b, "b/y")
    arrays = random_arrays(source.unit, 1)
    moved, problems, _ = conversion(source.unit, target.unit, arrays)
    if problems:
        codes = {text: code for code, text in REASONS.items()}
        return "".join(sorted(codes[p] for p in problems))
    convert(moved, arrays)
    return {BIJECTIVE: "=", EXACT: "~"}[moved.classed]


def expected(a: str, b: str) -> str:
    for table in MATRIX.values():
        rows = {line.split()[0]: line.split()[1:] for line in table.strip().splitlines()}
        if a in rows and b in rows:
            return rows[a][list(rows).index(b)]
    raise AssertionError((a, b))


def test_the_table_of_classes_and_refusals() -> None:
    found = {(a, b): cell_of_the_matrix(a, b) for a, b in PAIRS}
    assert found == {(a, b): expected(a, b) for a, b in PAIRS}


EXACT_PAIRS = [(a, b) for a, b in PAIRS if expected(a, b) in "=~"]


@pytest.mark.parametrize("source", CASES)
def test_both_sides_step_alike(source: str) -> None:
    for a, b in EXACT_PAIRS:
        if a == source:
            assert worst(a, b) < 1e-12, (a, b)


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


@pytest.mark.parametrize(("a", "b"), [pair for pair in EXACT_PAIRS if expected(*pair) == "="])
def test_a_bijection_returns_every_bit(a: str, b: str) -> None:
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
    assert {n: a.tobytes() for n, a in returned.items()} == {n: a.tobytes() for n, a in arrays.items()}
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

    def problems(reset: str | None) -> list[str]:
        return Conversion(source, target, _steps.specs(arrays), reset=reset).problems()

    kept = "the source keeps the candidate's recurrent bias apart"
    assert problems(None) == [f"{kept} (where the reset gate acts is not known), the target has no place for it"]
    assert problems("after") == [f"{kept} (reset after), the target has no place for it"]
    assert problems("before") == []


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
