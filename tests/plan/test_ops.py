"""Operations of tensor rules against numpy: the fixed order, partial reads, and every misfit's message."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.plan.stub import Stub, document, numbers, planned, problems, results
from weightport.execute import Reader
from weightport.formats._quantized import Affine, Blocks
from weightport.initializers import initialize
from weightport.mapping.rules import TensorRule
from weightport.plan import ops
from weightport.ranges import slices_of, whole
from weightport.tensors import TensorSpec
from weightport.values import Leaf

M, N, C = numbers(4, 6), numbers(4, 6, seed=1), numbers(2, 3, 4, seed=2)


def moved(array: np.ndarray, **operations: Any) -> np.ndarray:
    source = Stub({"a": array})
    return results(planned(source, None, [{"from": "a", "to": "b", **operations}]), source)["b"]


CASES: list[tuple[np.ndarray, dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = [
    (M, {"slice": "1:3"}, lambda a: a[1:3]),
    (M, {"slice": "::2, 1:-1"}, lambda a: a[::2, 1:-1]),
    (M, {"slice": "-2:, :0"}, lambda a: a[-2:, :0]),
    (M, {"reshape": [3, 8]}, lambda a: a.reshape(3, 8)),
    (M, {"reshape": [2, -1, 3]}, lambda a: a.reshape(2, 4, 3)),
    (M, {"reshape": [1, 24, 1]}, lambda a: a.reshape(1, 24, 1)),
    (M, {"rearrange": "a b -> b a"}, lambda a: a.T),
    (C, {"rearrange": "a b c -> c (a b)"}, lambda a: a.transpose(2, 0, 1).reshape(4, 6)),
    (C, {"rearrange": "a b c -> b 1 (c a)"}, lambda a: a.transpose(1, 2, 0).reshape(3, 1, 8)),
    (
        M,
        {"rearrange": {"pattern": "(h d) i -> i h d", "h": 2}},
        lambda a: a.reshape(2, 2, 6).transpose(2, 0, 1),
    ),
    (
        M,
        {"rearrange": {"pattern": "a (h d) -> h a d", "d": 2}},
        lambda a: a.reshape(4, 3, 2).transpose(1, 0, 2),
    ),
    (M, {"pad": [[1, 0], [0, 2]]}, lambda a: np.pad(a, [(1, 0), (0, 2)])),
    (
        M,
        {"pad": {"widths": [[0, 1], [2, 3]], "value": -1.5}},
        lambda a: np.pad(a, [(0, 1), (2, 3)], constant_values=-1.5),
    ),
    (M[:0], {"pad": [[1, 1], [0, 0]]}, lambda a: np.pad(a, [(1, 1), (0, 0)])),
    (M, {"scale": 0.3}, lambda a: a * np.float32(0.3)),
    (M, {"scale": -1}, lambda a: -a),
    (M, {"cast": "float16"}, lambda a: a.astype(np.float16)),
    (M, {"cast": "bfloat16"}, lambda a: a.astype(ml_dtypes.bfloat16)),
    (M, {"cast": "int8"}, lambda a: a.astype(np.int8)),
    (np.array([0, 3, 0]), {"cast": "bool"}, lambda a: a.astype(bool)),
    (np.array([1 + 2j], np.complex64), {"cast": "complex128"}, lambda a: a.astype(np.complex128)),
    (
        M,
        {"cast": "float16", "scale": 2.0, "pad": [[0, 1], [0, 0]], "rearrange": "a b -> b a", "slice": "1:"},
        lambda a: (np.pad(a[1:].T, [(0, 1), (0, 0)]) * np.float32(2)).astype(np.float16),
    ),
    (
        M,
        {"rearrange": "a b c -> c a b", "reshape": [2, 3, 4]},
        lambda a: a.reshape(2, 3, 4).transpose(2, 0, 1),
    ),
]


@pytest.mark.parametrize(("array", "operations", "expected"), CASES, ids=[str(c[1]) for c in CASES])
def test_one_tensor(array: np.ndarray, operations: dict[str, Any], expected: Callable[..., np.ndarray]) -> None:
    want = expected(array)
    found = moved(array, **operations)
    assert found.dtype == want.dtype
    assert found.shape == want.shape
    assert found.tobytes() == np.ascontiguousarray(want).tobytes()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_a_part_is_the_part_of_the_whole(case: Any, data: st.DataObject) -> None:
    array, operations, expected = case
    source = Stub({"a": array})
    item = planned(source, None, [{"from": "a", "to": "b", **operations}]).items["b"]
    ranges = []
    for size in item.spec.shape:
        start = data.draw(st.integers(0, size))
        ranges.append(range(size)[start : data.draw(st.integers(start, size)) : data.draw(st.integers(1, 3))])
    index = slices_of(tuple(ranges))
    np.testing.assert_array_equal(Reader(source).value(item, index), expected(array)[index])


def test_concat_and_split() -> None:
    source = Stub({"a": M, "b": N, "c": M[:, :2]})
    made = planned(
        source,
        None,
        [
            {"from": ["a", "b"], "to": "rows", "concat": 0},
            {"from": ["a", "b", "c"], "to": "columns", "concat": -1},
            {"from": "a", "to": ["x", "y"], "split": 1},
            {"from": ["a", "b"], "to": ["p", "q"], "concat": 0, "split": {"axis": -2, "sizes": [3, 5]}},
            {"from": ["c", "c"], "to": "twice", "concat": 1},
        ],
    )
    found = results(made, source)
    both = np.concatenate([M, N])
    expected = {
        "rows": both,
        "columns": np.concatenate([M, N, M[:, :2]], 1),
        "x": M[:, :3],
        "y": M[:, 3:],
        "p": both[:3],
        "q": both[3:],
        "twice": np.concatenate([M[:, :2], M[:, :2]], 1),
    }
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want)
    assert [o.classed for o in made.outcomes] == ["bijective"] * 5


def test_a_concat_that_puts_a_split_together_again_is_the_tensor_itself() -> None:
    source = Stub({"a": M})
    leaf = Leaf("a", source.specs()["a"])
    parts, _ = ops.apply(rule({"from": "a", "to": ["x", "y", "z"], "split": 1}).ops, [leaf], "xyz")
    (whole_again,), _ = ops.apply(rule({"from": ["x", "y", "z"], "to": "b", "concat": 1}).ops, parts, ["b"])
    assert whole_again == leaf


def rule(document_: dict[str, Any]) -> TensorRule:
    (found,) = wp.load_mapping(document([document_])).rules
    assert isinstance(found, TensorRule)
    return found


def test_what_the_operations_are_called() -> None:
    made = planned(
        {"a": M.shape, "h": TensorSpec.of("float16", (3,))},
        None,
        [
            {"from": "a", "to": "b"},
            {"from": "a", "to": "c", "slice": "1:"},
            {"from": "a", "to": "d", "scale": 0.3},
            {"from": "a", "to": "e", "scale": 0.25},
            {"from": "a", "to": ["f", "g"], "cast": "float16", "split": 0},
            {"from": "h", "to": "i", "cast": "float32"},
        ],
    )
    assert [(o.classed, o.exact) for o in made.outcomes] == [
        ("bijective", True),
        ("exact", True),
        ("rounded", False),
        ("exact", True),
        ("rounded", False),
        ("exact", True),
    ]


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"slice": "0:1, :, :"}, "slice: 3 slices for a tensor with 2 axes"),
    ({"slice": ":, 0:7"}, "slice: 7 is outside axis 1 of [4, 6]"),
    ({"slice": "-5:"}, "slice: -5 is outside axis 0 of [4, 6]"),
    ({"reshape": [5, -1]}, "reshape: [4, 6] cannot become [5, -1]"),
    ({"reshape": [5, 5]}, "reshape: [4, 6] has 24 elements, [5, 5] has 25"),
    ({"rearrange": "a b c -> c b a"}, "rearrange: 'a b c -> c b a' is for 3 axes, the tensor has [4, 6]"),
    (
        {"rearrange": {"pattern": "(h d) i -> i h d", "h": 3}},
        "rearrange: '(h d) i -> i h d': 4 is no multiple of 3 in [4, 6]",
    ),
    (
        {"rearrange": {"pattern": "(h d) i -> i h d", "h": 3, "d": 2}},
        "rearrange: '(h d) i -> i h d': h d is 6, the axis has 4",
    ),
    ({"rearrange": "1 a -> a 1"}, "rearrange: '1 a -> a 1': 1 is 1, the axis has 4"),
    ({"pad": [[0, 1]]}, "pad: 1 pairs of widths for a tensor with 2 axes"),
]
SPLITS: list[tuple[dict[str, Any], str]] = [
    ({"split": 2}, "split: axis 2 of a tensor with 2 axes"),
    ({"split": 1, "slice": ":, 1:"}, "split: axis 1 of [4, 5] cannot be cut into 2 equal parts"),
    ({"split": {"axis": 0, "sizes": [1, 2]}}, "split: the sizes add up to 3, axis 0 of [4, 6] has 4"),
]


@pytest.mark.parametrize(("operations", "what"), MISFITS, ids=[m[1] for m in MISFITS])
def test_misfits(operations: dict[str, Any], what: str) -> None:
    made = planned({"a": (4, 6)}, None, [{"from": "a", "to": "b", **operations}])
    assert problems(made) == [f"rules[0]: 'a': {what}"]
    assert made.outcomes[0].disposition == "refused"
    assert made.source == {"a": "unclaimed"}


@pytest.mark.parametrize(("operations", "what"), SPLITS, ids=[m[1] for m in SPLITS])
def test_splits_that_do_not_fit(operations: dict[str, Any], what: str) -> None:
    assert problems(planned({"a": (4, 6)}, None, [{"from": "a", "to": ["b", "c"], **operations}])) == [
        f"rules[0]: 'a': {what}"
    ]


@pytest.mark.parametrize(
    ("other", "axis", "what"),
    [
        (TensorSpec.of("float32", (4, 5)), 0, "concat along axis 0: [4, 6] and [4, 5] differ elsewhere too"),
        (TensorSpec.of("float32", (4,)), 0, "concat along axis 0: [4, 6] and [4] differ elsewhere too"),
        (TensorSpec.of("float32", (4, 6)), -3, "concat: axis -3 of a tensor with 2 axes"),
        (TensorSpec.of("float16", (4, 6)), 0, "concat: float32 and float16; cast them by rules of their own"),
    ],
)
def test_concats_that_do_not_fit(other: TensorSpec, axis: int, what: str) -> None:
    made = planned({"a": (4, 6), "b": other}, None, [{"from": ["a", "b"], "to": "c", "concat": axis}])
    assert problems(made) == [f"rules[0]: 'a', 'b': {what}"]


@pytest.mark.parametrize(
    ("dtype", "operations", "what"),
    [
        ("int32", {"scale": 2.0}, "scale: int32 cannot be scaled"),
        ("int4", {"scale": 2.0}, "scale: int4 cannot be scaled"),
        ("object", {"cast": "float32"}, "cast: object cannot become float32"),
        ("object", {"pad": [[1, 1]]}, "pad: object cannot hold the value 0"),
        ("uint8", {"pad": {"widths": [[1, 1]], "value": -1}}, "pad: uint8 cannot hold the value -1"),
        ("int32", {"pad": {"widths": [[1, 1]], "value": 0.5}}, "pad: int32 cannot hold the value 0.5"),
        ("bool", {"pad": {"widths": [[1, 1]], "value": 2}}, "pad: bool cannot hold the value 2"),
        ("float16", {"pad": {"widths": [[1, 1]], "value": 1e6}}, "pad: float16 cannot hold the value 1e+06"),
        (
            "complex64",
            {"cast": "float32"},
            "cast: complex64 cannot become float32: its imaginary part would be lost",
        ),
    ],
)
def test_dtypes_that_do_not_fit(dtype: str, operations: dict[str, Any], what: str) -> None:
    spec = TensorSpec(np.dtype(object), (3,), 9) if dtype == "object" else TensorSpec.of(dtype, (3,))
    assert problems(planned({"a": spec}, None, [{"from": "a", "to": "b", **operations}])) == [f"rules[0]: 'a': {what}"]


@pytest.mark.parametrize(
    ("array", "dtype", "value"),
    [
        (np.array([1, 70000], np.float32), "float16", "70000.0"),
        (np.array([1, -1e39], np.float64), "float32", "-1e+39"),
        (np.array([1, 500], np.float32), "float8_e4m3fn", "500.0"),
        (np.array([1, 1e10], np.float32), "int32", "10000000000.0"),
        (np.array([1, np.nan], np.float32), "int32", "nan"),
        (np.array([1, 300]), "uint8", "300"),
        (np.array([1, -1]), "uint64", "-1"),
        (np.array([1, 1 << 63], np.uint64), "int64", "9223372036854775808"),
    ],
)
def test_a_cast_never_makes_another_value(array: np.ndarray, dtype: str, value: str) -> None:
    with pytest.raises(wp.Error) as caught:
        moved(array, cast=dtype)
    assert str(caught.value) == (
        f"cast of 'a': {value} is outside the range of {dtype}; cast to a wider dtype, or keep this one"
    )


def test_a_cast_keeps_infinities_and_nans() -> None:
    found = moved(np.array([np.inf, -np.inf, np.nan], np.float32), cast="float16")
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, np.nan], np.float16))


# Vocabularies --------------------------------------------------------------------------------------------------------


def vocabulary(folder: Path, old: Any, new: Any, missing: Any = None, **more: Any) -> dict[str, Any]:
    """A mapping with two vocabulary files beside it."""
    for name, words in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps(words), encoding="utf-8")
    vocab = {"from": "old.json", "to": "new.json", **({} if missing is None else {"missing": missing}), **more}
    rules = [{"from": "a", "to": "b", "vocab": vocab}]
    path = folder / "mapping.yaml"
    path.write_text(json.dumps(document(rules)), encoding="utf-8")
    return {"path": str(path)}


def moved_words(folder: Path, array: np.ndarray, old: Any, new: Any, missing: Any = None, **more: Any) -> Any:
    from weightport.plan import plan

    path = vocabulary(folder, old, new, missing, **more)["path"]
    source = Stub({"a": array})
    return plan(source, None, wp.load_mapping(path)), source


def test_rows_move_by_their_words(tmp_path: Path) -> None:
    made, source = moved_words(tmp_path, M, ["w", "x", "y", "z"], ["z", "w", "y"])
    np.testing.assert_array_equal(results(made, source)["b"], M[[3, 0, 2]])
    assert made.outcomes[0].notes == (
        "vocab: 3 of 3 rows found by their words",
        "vocab: 1 of 4 old words are left behind",
    )


def test_columns_move_by_their_words(tmp_path: Path) -> None:
    made, source = moved_words(tmp_path, M, list("abcdef"), list("fa"), axis=1)
    np.testing.assert_array_equal(results(made, source)["b"], M[:, [5, 0]])


def test_new_words_get_an_initializer(tmp_path: Path) -> None:
    made, source = moved_words(
        tmp_path, M, list("wxyz"), ["new", "x", "newer"], {"truncated_normal": {"stddev": 0.02, "seed": 3}}
    )
    found = results(made, source)["b"]
    drawn = initialize("truncated_normal", {"stddev": 0.02, "seed": 3}, (3, 6), np.dtype("float32"), "b")
    np.testing.assert_array_equal(found, np.stack([drawn[0], M[1], drawn[2]]))
    assert made.outcomes[0].notes[0] == "vocab: 1 of 3 rows found by their words, 2 get truncated_normal"
    part = Reader(source).value(made.items["b"], (slice(2, 3), slice(1, 4)))
    np.testing.assert_array_equal(part, found[2:3, 1:4])


def test_new_words_get_the_mean(tmp_path: Path) -> None:
    made, source = moved_words(tmp_path, M, list("wxyz"), ["new", "x"], "mean")
    mean = M.astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_array_equal(results(made, source)["b"], np.stack([mean, M[1]]))


def test_rows_without_a_word_are_said(tmp_path: Path) -> None:
    """As Keras' tokenizers number their words: from 1, row 0 is for padding."""
    made, source = moved_words(tmp_path, M, {"w": 1, "x": 2}, {"x": 1}, "zeros")
    np.testing.assert_array_equal(results(made, source)["b"], np.stack([np.zeros(6, np.float32), M[2]]))
    assert made.outcomes[0].notes == (
        "vocab: 1 of 2 rows found by their words, 1 get zeros",
        "vocab: 1 of 2 old words and 2 of 4 rows, which have no old word, are left behind",
    )


@pytest.mark.parametrize(
    ("old", "new", "missing", "what"),
    [
        (
            list("wxyz"),
            ["n1", "n2", "w", "n3", "n4", "n5", "n6"],
            None,
            "6 of 7 words are not in the old vocabulary: 'n1', 'n2', 'n3', 'n4', 'n5', ...; say what they get: "
            "missing: {truncated_normal: {stddev: 0.02}} or missing: mean",
        ),
        (
            {"w": 0},
            {"w": 2},
            None,
            "2 of 3 rows have no word; say what they get: missing: {truncated_normal: {stddev: 0.02}} or missing: mean",
        ),
        (list("vwxyz"), ["w"], None, "old.json has 5 rows, axis 0 of [4, 6] has 4"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, old: Any, new: Any, missing: Any, what: str) -> None:
    made, _ = moved_words(tmp_path, M, old, new, missing)
    assert problems(made) == [f"{tmp_path}/mapping.yaml:1 rules[0]: 'a': vocab: {what}"]


def test_there_is_no_mean_of_integers(tmp_path: Path) -> None:
    made, _ = moved_words(tmp_path, np.arange(4), list("wxyz"), ["new"], "mean")
    assert problems(made) == [
        f"{tmp_path}/mapping.yaml:1 rules[0]: 'a': vocab: there is no mean of int64 [4]; missing: zeros"
    ]


def test_a_tile_of_words_reads_near_rows_only(tmp_path: Path) -> None:
    old = [f"w{k}" for k in range(400)]
    made, source = moved_words(tmp_path, numbers(400, 256), old, ["w399", "w0", "w1"])
    rows: list[int] = []
    leaf = source.arrays["a"]

    def fetch(_: str, ranges: Any) -> np.ndarray:
        rows.append(len(ranges[0]))
        return leaf[slices_of(ranges)]

    found = made.items["b"].expr.read(fetch, whole((3, 256)))
    np.testing.assert_array_equal(found, leaf[[399, 0, 1]])
    assert rows == [2, 1]


# Quantized -----------------------------------------------------------------------------------------------------------

CODES = np.random.default_rng(5).integers(-128, 128, (4, 6), np.int8)
SCALES = Affine((4, 6), (0.5, 0.25, 2.0, 1.0), (1, 0, -3, 7))
FLOATS = (CODES.astype(np.float32) - np.array([[1], [0], [-3], [7]], np.float32)) * np.array(
    [[0.5], [0.25], [2], [1]], np.float32
)


def quantized(**roles: str) -> Stub:
    """``q`` is quantized, ``f`` is not."""
    source = Stub({"q": CODES, "f": M}, roles=roles)
    source._specs["q"] = replace(source._specs["q"], quantized=SCALES)
    return source


def test_quantized_tensors_become_floats_where_that_is_asked_for() -> None:
    source = quantized()
    made = planned(source, None, [{"from": "{x}", "to": "new/{x}", "dequantize": True}])
    found = results(made, source)
    assert found["new/q"].dtype == np.float32
    np.testing.assert_array_equal(found["new/q"], FLOATS)
    np.testing.assert_array_equal(found["new/f"], M)
    assert [(o.classed, o.exact) for o in made.outcomes] == [("exact", True)]


def test_the_other_operations_see_the_floats() -> None:
    source = quantized()
    rule = {"from": ["q", "f"], "to": "b", "dequantize": True, "concat": 0, "slice": "1:6:2, :3", "scale": 2}
    made = planned(source, None, [rule, {"from": "q", "to": "h", "dequantize": True, "cast": "float16"}])
    found = results(made, source)
    np.testing.assert_array_equal(found["b"], np.concatenate([FLOATS, M])[1:6:2, :3] * 2)
    np.testing.assert_array_equal(found["h"], FLOATS.astype(np.float16))


@settings(max_examples=60)
@given(st.data())
def test_parts_of_quantized_tensors_are_parts_of_the_whole(draw: st.DataObject) -> None:
    source = quantized()
    made = planned(source, None, [{"from": "q", "to": "b", "dequantize": True}, {"from": "f", "to": "f"}])
    ranges = tuple(range(n)[draw.draw(st.slices(n))] for n in (4, 6))
    cut = tuple(slice(min(r), max(r) + 1, abs(r.step)) if r else slice(0) for r in ranges)
    part = Reader(source).value(made.items["b"], cut)
    np.testing.assert_array_equal(part, FLOATS[cut])


def test_quantized_tensors_can_move_as_they_are_stored() -> None:
    source = quantized(f="constant")
    made = planned(source, None, [{"from": "q", "to": "b", "dequantize": False}])
    np.testing.assert_array_equal(results(made, source)["b"], CODES)
    assert made.outcomes[0].classed == "bijective"


def test_quantized_tensors_are_refused_where_nothing_is_said() -> None:
    title = "quantized: 4 scales along axis 0"
    made = planned(quantized(f="constant"), None, [{"from": "q", "to": "b"}])
    hint = "say dequantize: true, or false to move the numbers as they are stored"
    assert problems(made) == [f"rules[0]: 'q': 'q' is {title}; {hint}"]
    made = planned({"f": M}, quantized(), [{"from": "f", "to": "f"}], keep=["q"])
    assert problems(made) == [f"new: 'q' is {title}; it cannot be kept in another file"]


def test_quantized_cells_are_refused() -> None:
    source = Stub({"a/kernel": numbers(7, 16), "a/bias": numbers(16)})
    source._specs["a/kernel"] = replace(source._specs["a/kernel"], quantized=SCALES)
    rule = {"from": {"layout": "lstm.tf1", "scope": "a"}, "to": {"layout": "lstm.keras", "scope": "b"}}
    (problem,) = problems(planned(source, None, [rule]))
    assert problem == (
        "rules[0]: a -> b: 'a/kernel' is quantized: 4 scales along axis 0: move it by its name, with dequantize: true"
    )


def test_what_cannot_be_dequantized_here_is_said_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    source = Stub({"q": np.zeros((2, 18), np.uint8)})
    source._specs["q"] = replace(source._specs["q"], quantized=Blocks("Q4_0", 2, (2, 32), 32, 18))
    made = planned(source, None, [{"from": "q", "to": "b", "dequantize": True}])
    assert problems(made)[0] == "dequantizing Q4_0 needs gguf; pip install 'weightport[gguf]'"
