from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.errors import MappingError
from weightport.mapping import Ops, Pad, Rearrange, Split, TensorRule, load_mapping
from weightport.mapping.rules import OPERATIONS


def ops(**given: Any) -> Ops:
    sides = {"from": ["a", "b"] if "concat" in given else "a", "to": ["c", "d"] if "split" in given else "c"}
    rule = load_mapping({"weightport": 1, "rules": [{**sides, **given}]}).rules[0]
    assert isinstance(rule, TensorRule)
    return rule.ops


def wrong(**given: Any) -> str:
    with pytest.raises(MappingError) as caught:
        ops(**given)
    (problem,) = caught.value.problems
    return str(problem).removeprefix(f"rules[0].{next(iter(given))}")


@pytest.mark.parametrize(
    ("value", "slices"),
    [
        ("0:10, :", (slice(0, 10), slice(None))),
        ("0:10,:", (slice(0, 10), slice(None))),
        (" : , ::2 , -5:-1:1 ", (slice(None), slice(None, None, 2), slice(-5, -1, 1))),
        (["0:10", ":"], (slice(0, 10), slice(None))),
        ("3:", (slice(3, None),)),
        ("3::", (slice(3, None),)),
        ("+1:", (slice(1, None),)),
    ],
)
def test_slices(value: Any, slices: tuple[slice, ...]) -> None:
    assert ops(slice=value).slice == slices


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3, :", ": 3 would drop its axis; 3:4 keeps it; reshape drops it"),
        ("-1", ": -1 would drop its axis; -1: keeps it; reshape drops it"),
        ("", ": expected text, found nothing between the quotes"),
        ("0:2,", ": '' is no slice; expected START:STOP or START:STOP:STEP, each may be left out"),
        ("a:b", ": 'a:b' is no slice; expected START:STOP or START:STOP:STEP, each may be left out"),
        ("...", ": '...' is no slice; expected START:STOP or START:STOP:STEP, each may be left out"),
        ("1:2:3:4", ": '1:2:3:4' is no slice; expected START:STOP or START:STOP:STEP, each may be left out"),
        ("::0", ": the step of '::0' is not above zero"),
        ("::-1", ": the step of '::-1' is not above zero"),
        (["0:1, :"], ": '0:1, :' is for several axes; write one slice for each entry of the list"),
        ([0], "[0]: expected text, found 0; write '0' if it is a name"),
        (3, ": expected slices such as '0:10, :', or a list of them, one for each axis, found 3"),
        (":" + " " * 100_000 + "x", f": ':{' ' * 39}'...'{' ' * 19}x' is no slice; expected START:STOP or "
         "START:STOP:STEP, each may be left out"),
    ],
)  # fmt: skip
def test_what_is_no_slice(value: Any, message: str) -> None:
    assert wrong(slice=value) == message


PARTS = st.tuples(st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9), st.none() | st.integers(1, 4)).map(
    lambda t: slice(*t)
)


@given(st.lists(PARTS, min_size=1, max_size=3))
def test_a_slice_is_numpys(slices: list[slice]) -> None:
    text = ", ".join(":".join("" if v is None else str(v) for v in (s.start, s.stop, s.step)) for s in slices)
    array = np.arange(60).reshape(3, 4, 5)
    found = ops(slice=text).slice
    assert found is not None
    np.testing.assert_array_equal(array[found], array[tuple(slices)])
    assert array[found].ndim == 3


@pytest.mark.parametrize(
    ("value", "left", "right", "sizes"),
    [
        ("in out -> out in", (("in",), ("out",)), (("out",), ("in",)), {}),
        ("a b->b a", (("a",), ("b",)), (("b",), ("a",)), {}),
        ("a b -> (b a)", (("a",), ("b",)), (("b", "a"),), {}),
        ("a 1 b -> a b", (("a",), (), ("b",)), (("a",), ("b",)), {}),
        ("a -> a 1 ()", (("a",),), (("a",), (), ()), {}),
        ("(a 1) -> a", (("a",),), (("a",),), {}),
        (" -> 1", (), ((),), {}),
        ({"pattern": "(h d) in -> in h d", "h": 8}, (("h", "d"), ("in",)), (("in",), ("h",), ("d",)), {"h": 8}),
        ({"pattern": "a -> a", "a": 3}, (("a",),), (("a",),), {"a": 3}),
    ],
)
def test_rearrange(value: Any, left: Any, right: Any, sizes: dict[str, int]) -> None:
    text = value if isinstance(value, str) else value["pattern"]
    assert ops(rearrange=value).rearrange == Rearrange(text, left, right, sizes)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a b", ": 'a b' has 0 arrows; expected one: in out -> out in"),
        ("a -> b -> a", ": 'a -> b -> a' has 2 arrows; expected one: in out -> out in"),
        ("a a -> a", ": the axis 'a' stands twice on one side of 'a a -> a'"),
        ("unit in -> in unitt", ": the axis 'unit' is missing on the right of 'unit in -> in unitt'; closest: 'unitt'"),
        ("a -> a b", ": the axis 'b' is missing on the left of 'a -> a b'"),
        ("(a b) -> a b", ": the sizes of a and b cannot be worked out; say how long one is: {pattern: (a b) -> a b, "
         "a: SIZE}"),
        ("a ... -> ... a", ": '...' in 'a ... -> ... a' is no axis; expected names, 1 and parentheses"),
        ("a 2 -> a 2", ": '2' in 'a 2 -> a 2' is no axis; expected names, 1 and parentheses"),
        ("a 1x -> a", ": '1x' in 'a 1x -> a' is no axis; expected names, 1 and parentheses"),
        ("((a) -> a", ": the parentheses of '((a) -> a' do not match"),
        ("(a -> a", ": the parentheses of '(a -> a' do not match"),
        ("a) -> a", ": the parentheses of 'a) -> a' do not match"),
        ({"pattern": "head -> head", "haed": 2}, ": no axis 'haed' in 'head -> head'; closest: 'head'"),
        ({"pattern": "a -> a", "a": 0}, ".a: expected at least 1, found 0"),
        ({"pattern": "a -> a", "a": "x"}, ".a: expected a whole number, found 'x'"),
        ({"a": 2}, ": no key 'pattern'"),
        (3, ": expected a pattern such as 'in out -> out in', or {pattern: ..., AXIS: SIZE}, found 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_rearranged(value: Any, message: str) -> None:
    assert wrong(rearrange=value) == message


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"dequantize": True}, "dequantize", True),
        ({"concat": -1}, "concat", -1),
        ({"reshape": [-1, 3]}, "reshape", (-1, 3)),
        ({"reshape": []}, "reshape", ()),
        ({"reshape": [0, 3]}, "reshape", (0, 3)),
        ({"pad": [[0, 2], [1, 0]]}, "pad", Pad(((0, 2), (1, 0)), 0.0)),
        ({"pad": {"widths": [[0, 2]], "value": -1}}, "pad", Pad(((0, 2),), -1.0)),
        ({"scale": 2}, "scale", 2.0),
        ({"scale": -0.5}, "scale", -0.5),
        ({"cast": "float16"}, "cast", "float16"),
        ({"cast": "bfloat16"}, "cast", "bfloat16"),
        ({"cast": "float8_e4m3fn"}, "cast", "float8_e4m3fn"),
        ({"cast": "bool"}, "cast", "bool"),
        ({"split": 1}, "split", Split(1)),
        ({"split": {"axis": -1, "sizes": [1, 2]}}, "split", Split(-1, (1, 2))),
        ({"split": {"axis": 0}}, "split", Split(0)),
    ],
)
def test_the_other_operations(given: dict[str, Any], field: str, value: Any) -> None:
    found = ops(**given)
    assert getattr(found, field) == value
    assert found.given() == (field,)


DTYPES = "; such as float32, float16, bfloat16"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"concat": 64}, ": expected less than 64, found 64"),
        ({"concat": "0"}, ": expected a whole number, found '0'"),
        ({"concat": True}, ": expected a whole number, found true"),
        ({"concat": 1.0}, ": expected a whole number, found 1.0"),
        ({"reshape": [-1, -1]}, ": [-1, -1] has more than one -1; only one size can be worked out"),
        ({"reshape": [-1, 0]}, ": [-1, 0] has a 0 and a -1; nothing can be worked out of an empty tensor"),
        ({"reshape": [-2]}, "[0]: expected at least -1, found -2"),
        ({"reshape": 3}, ": expected a list, found 3"),
        ({"pad": [[1]]}, "[0]: expected 2 entries, found 1"),
        ({"pad": [[1, 2, 3]]}, "[0]: expected 2 entries, found 3"),
        ({"pad": [[-1, 0]]}, "[0][0]: expected at least 0, found -1"),
        ({"pad": []}, ": expected at least 1 entry, found none"),
        ({"pad": {"width": [[0, 1]]}}, ": unknown key 'width'; closest: 'widths'"),
        ({"scale": "2"}, ": expected a number, found '2'"),
        ({"scale": None}, ": expected a number, found null"),
        ({"scale": True}, ": expected a number, found true"),
        ({"cast": "float"}, ": no dtype 'float'; closest: 'float64'"),
        ({"cast": "half"}, ": no dtype 'half'; closest: 'float16'"),
        ({"cast": "f4"}, ": no dtype 'f4'; closest: 'float32'"),
        ({"cast": "object"}, ": no dtype 'object'" + DTYPES),
        ({"cast": "U5"}, ": no dtype 'U5'" + DTYPES),
        ({"cast": "finfo"}, ": no dtype 'finfo'" + DTYPES),
        ({"cast": "f4,f4"}, ": no dtype 'f4,f4'" + DTYPES),
        ({"cast": "bflaot16"}, ": no dtype 'bflaot16'; closest: 'bfloat16', 'float16', 'float64'"),
        ({"cast": 16}, ": expected text, found 16; write '16' if it is a name"),
        ({"split": "0"}, ": expected an axis, or {axis: ..., sizes: [...]}, found '0'"),
        ({"split": {"axis": 0, "sizes": [0, 1]}}, ".sizes[0]: expected at least 1, found 0"),
        ({"split": {"sizes": [0, 1]}}, ".axis"),
    ],
)
def test_what_is_no_operation(given: dict[str, Any], message: str) -> None:
    if message == ".axis":  # two mistakes
        with pytest.raises(MappingError) as caught:
            ops(**given)
        assert (
            str(caught.value) == "rules[0].split: no key 'axis'\nrules[0].split.sizes[0]: expected at least 1, found 0"
        )
    else:
        assert wrong(**given) == message


def test_operations_are_given_in_the_order_of_application() -> None:
    found = ops(
        split=0, cast="float16", scale=2, slice=":", concat=0, reshape=[4], pad=[[0, 0]], rearrange="a->a",
        dequantize=True,
    )  # fmt: skip
    assert found.given() == tuple(name for name in OPERATIONS if name != "vocab")
    assert ops(scale=0, dequantize=False).given() == ("scale",)  # what is moved as it is stored is moved
    assert Ops().given() == ()
