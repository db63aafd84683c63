# ruff: noqa: E501 - one case a line
"""The notation: what every term means, and what every mistake is called."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightport.errors import LayoutError
from weightport.layouts.notation import AXES, INDEXED, PARAMETERS, Packing, Term, parse_packing, parse_term


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("wx[input unit]", Term("wx", None, (("input",), ("unit",)))),
        (" wx [ input   unit ] ", Term("wx", None, (("input",), ("unit",)))),
        ("wx[input (gate unit)]", Term("wx", None, (("input",), ("gate", "unit")))),
        ("wx[input(gate unit)]", Term("wx", None, (("input",), ("gate", "unit")))),
        ("wx{r z}[input (gate unit)]", Term("wx", ("r", "z"), (("input",), ("gate", "unit")))),
        ("wx {r,z} [input (gate unit)]", Term("wx", ("r", "z"), (("input",), ("gate", "unit")))),
        ("wt[(unit gate) hidden]", Term("wt", None, (("unit", "gate"), ("hidden",)))),
        ("bi[1 unit]", Term("bi", None, ((), ("unit",)))),
        ("bi[() unit 1]", Term("bi", None, ((), ("unit",), ()))),
        ("bi[(1 gate unit)]", Term("bi", None, (("gate", "unit"),))),
        ("wx[layer direction (gate unit) input]", Term("wx", None, (("layer",), ("direction",), ("gate", "unit"), ("input",)))),
        ("wt[(layer direction) hidden gate unit]", Term("wt", None, (("layer", "direction"), ("hidden",), ("gate",), ("unit",)))),
        ("wx[(input unit)]", Term("wx", None, (("input", "unit"),))),
        (
            "wx{i}[unit input] as [input unit]",
            Term("wx", ("i",), (("unit",), ("input",)), (("input",), ("unit",))),
        ),
        ("wx{i}[unit input]as[(input unit)]", Term("wx", ("i",), (("unit",), ("input",)), (("input", "unit"),))),
        ("wr[unit hidden]", Term("wr", None, (("unit",), ("hidden",)))),
    ],
)  # fmt: skip
def test_terms(text: str, term: Term) -> None:
    assert parse_term(text, "w") == term


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a term; expected PARAMETER[AXES] such as 'wx[input (gate unit)]'"),
        ("wx", "'wx' is not a term; expected PARAMETER[AXES] such as 'wx[input (gate unit)]'"),
        ("wx[input", "'wx[input' is not a term; expected PARAMETER[AXES] such as 'wx[input (gate unit)]'"),
        ("wx[a][b]", "'wx[a][b]' is not a term; expected PARAMETER[AXES] such as 'wx[input (gate unit)]'"),
        ("ww[input unit]", "no parameter 'ww' in 'ww[input unit]'; one of wx, wt, bi, bt, wp, wr"),
        ("wx{}[input unit]", "'wx{}[input unit]' must name each gate once"),
        ("wx{i i}[input unit]", "'wx{i i}[input unit]' must name each gate once"),
        ("wr{i}[unit hidden]", "wr has no gates, but 'wr{i}[unit hidden]' names some"),
        ("wx[inputs unit]", "wx has no axis 'inputs' in 'wx[inputs unit]'; closest: 'input'"),
        ("wx[input zzz]", "wx has no axis 'zzz' in 'wx[input zzz]'; one of direction, gate, input, layer, unit"),
        ("wt[input unit]", "wt has no axis 'input' in 'wt[input unit]'; one of direction, gate, hidden, layer, unit"),
        ("wr[unit hidden gate]", "wr has no axis 'gate' in 'wr[unit hidden gate]'; one of direction, hidden, layer, unit"),
        ("bi[2 unit]", "bi has no axis '2' in 'bi[2 unit]'; one of direction, gate, layer, unit"),
        ("bi[11 unit]", "bi has no axis '11' in 'bi[11 unit]'; one of direction, gate, layer, unit"),
        ("bi[unit1]", "bi has no axis 'unit1' in 'bi[unit1]'; closest: 'unit'"),
        ("wx[input unit unit]", "an axis stands twice in 'wx[input unit unit]'"),
        ("wx[input (unit gate) gate]", "an axis stands twice in 'wx[input (unit gate) gate]'"),
        ("wx[unit]", "'wx[unit]' lacks the axis 'input' of wx"),
        ("bi[]", "'bi[]' lacks the axis 'unit' of bi"),
        ("bi[1]", "'bi[1]' lacks the axis 'unit' of bi"),
        ("wx[(input gate unit)]", "in 'wx[(input gate unit)]' gate, layer and direction must stand at an end of their parenthesis"),
        ("wx[(layer input gate) unit]", "in 'wx[(layer input gate) unit]' gate, layer and direction must stand at one end of their parenthesis"),
        ("wx[input (gate unit]", "a parenthesis is not closed in 'wx[input (gate unit]'"),
        ("wx[input gate unit)]", "a parenthesis is closed that was not opened in 'wx[input gate unit)]'"),
        ("wx[((input) unit)]", "a parenthesis inside a parenthesis in 'wx[((input) unit)]'"),
        ("wx[input, unit]", "', unit' in 'wx[input, unit]' is not an axis"),
        ("wx[input gate unit] as [input unit gate]", "'as' in 'wx[input gate unit] as [input unit gate]' must rearrange the same axes, without gate, layer and direction"),
        ("wx[input unit] as [input]", "'as' in 'wx[input unit] as [input]' must rearrange the same axes, without gate, layer and direction"),
    ],
)  # fmt: skip
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        parse_term(text, "here")
    assert str(caught.value) == f"here: {message}"


WX, WT = "wx[input (gate unit)]", "wt[hidden (gate unit)]"


@pytest.mark.parametrize(
    ("value", "axis", "rank"),
    [
        (WX, 1, 2),
        ([WX, WT], 0, 2),
        (["wx[(gate unit) input]", "wt[(gate unit) hidden]"], 1, 2),
        (["bi[(gate unit)]", "bt[(gate unit)]"], 0, 1),
        (["bi[direction (gate unit)]", "bt[direction (gate unit)]"], 1, 2),
        (["bi[gate unit]", "bt[gate unit]"], 1, 2),
        ({"concat": 0, "of": ["bi[1 (gate unit)]", "bt[1 (gate unit)]"]}, 0, 2),
        ({"concat": -2, "of": ["bi[1 (gate unit)]", "bt[1 (gate unit)]"]}, 0, 2),
        ({"concat": 1, "of": WX}, 1, 2),
        (["wx{i}[unit input] as [(input unit)]", "wt{i}[(hidden unit)]"], 0, 1),
    ],
)
def test_packings(value: Any, axis: int, rank: int) -> None:
    packing = parse_packing(value, "w")
    assert (packing.axis, packing.rank) == (axis, rank)


RUNS = [["wx[(gate unit input)]", "wt[(gate unit hidden)]"], ["bi[(gate unit)]"]]


def test_lists_that_stand_once_for_each_layer_and_direction() -> None:
    packing = parse_packing({"runs": RUNS}, "w")
    assert (packing.axis, packing.rank, packing.runs, len(packing.terms)) == (0, 1, (2, 1), 3)
    assert packing.as_data() == {"runs": RUNS}
    assert parse_packing(packing.as_data(), "w") == packing
    assert parse_packing([term for run in RUNS for term in run], "w") != packing


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a term such as 'wx[input (gate unit)]' or a list of terms, found None"),
        (3, "expected a term such as 'wx[input (gate unit)]' or a list of terms, found 3"),
        ([], "expected a term such as 'wx[input (gate unit)]' or a list of terms, found []"),
        ([WX, 3], f"expected a term such as 'wx[input (gate unit)]' or a list of terms, found ['{WX}', 3]"),
        ({"of": [WX]}, f"expected {{concat: AXIS, of: [TERM, ...]}}, found {{'of': ['{WX}']}}"),
        ({"concat": True, "of": [WX]}, f"expected {{concat: AXIS, of: [TERM, ...]}}, found {{'concat': True, 'of': ['{WX}']}}"),
        ({"concat": 0, "off": 1, "of": WX}, f"expected {{concat: AXIS, of: [TERM, ...]}}, found {{'concat': 0, 'off': 1, 'of': '{WX}'}}"),
        ({"runs": []}, "expected {runs: [[TERM, ...], ...]}, found {'runs': []}"),
        ({"runs": ["wx[(gate unit input)]"]}, "expected {runs: [[TERM, ...], ...]}, found {'runs': ['wx[(gate unit input)]']}"),
        ({"runs": [[]]}, "expected {runs: [[TERM, ...], ...]}, found {'runs': [[]]}"),
        ({"runs": "wx"}, "expected {runs: [[TERM, ...], ...]}, found {'runs': 'wx'}"),
        ({"runs": [["bi[unit]"]], "concat": 0}, "expected {runs: [[TERM, ...], ...]}, found {'runs': [['bi[unit]']], 'concat': 0}"),
        ({"runs": [["bi[unit]", 3]]}, "expected a term such as 'wx[(gate unit input)]', found 3"),
        ({"runs": [[WX]]}, f"'{WX}' stands in one vector with all layers and directions: it has one axis, such as wx[(gate unit input)], and no layer or direction"),
        ({"runs": [["bi[(layer unit)]"]]}, "'bi[(layer unit)]' stands in one vector with all layers and directions: it has one axis, such as wx[(gate unit input)], and no layer or direction"),
        ({"runs": [["wx{i}[(unit input)] as [(input unit)]"]]}, "'wx{i}[(unit input)] as [(input unit)]' stands in one vector with all layers and directions: it has one axis, such as wx[(gate unit input)], and no layer or direction"),
        ({"concat": 0}, "expected {concat: AXIS, of: [TERM, ...]}, found {'concat': 0}"),
        ({"concat": 2, "of": [WX, WT]}, "concat axis 2 of a tensor with 2 dimensions"),
        ({"concat": -3, "of": [WX, WT]}, "concat axis -3 of a tensor with 2 dimensions"),
        ([WX, "bi[(gate unit)]"], f"the terms of one tensor have different numbers of dimensions: ['{WX}', 'bi[(gate unit)]']"),
        ([WX, "wt[nope]"], "wt has no axis 'nope' in 'wt[nope]'; one of direction, gate, hidden, layer, unit"),
    ],
)  # fmt: skip
def test_mistakes_of_packings(value: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=re.escape(f"here: {message}") + r"\Z"):
        parse_packing(value, "here")


@st.composite
def terms(draw: st.DrawFn) -> Term:
    param = draw(st.sampled_from(sorted(PARAMETERS)))
    needed = [a for a in PARAMETERS[param] if a != "gate"]
    indexed = draw(st.lists(st.sampled_from(INDEXED), unique=True))
    indexed = [a for a in indexed if a != "gate" or "gate" in PARAMETERS[param]]
    groups: list[list[str]] = [[a] for a in draw(st.permutations(needed))]
    if len(groups) == 2 and draw(st.booleans()):
        groups = [groups[0] + groups[1]]
    ends = [draw(st.booleans()) for _ in groups]
    for axis in indexed:
        at = draw(st.integers(0, len(groups)))
        if at == len(groups):
            groups.append([axis])
            ends.append(True)
        elif ends[at]:
            groups[at].append(axis)
        else:
            groups[at].insert(0, axis)
    for _ in range(draw(st.integers(0, 2))):
        groups.insert(draw(st.integers(0, len(groups))), [])
    gates = (
        draw(st.none() | st.lists(st.sampled_from("ifgo"), min_size=1, unique=True))
        if "gate" in PARAMETERS[param]
        else None
    )
    return Term(param, tuple(gates) if gates is not None else None, tuple(map(tuple, groups)))


def written(term: Term, space: str) -> str:
    gates = "{" + " ".join(term.gates) + "}" if term.gates is not None else ""
    dims = [g[0] if len(g) == 1 else "1" if not g else f"({space.join(g)})" for g in term.axes]
    return f"{term.param}{gates}[{space}{space.join(dims)}{space}]"


@given(terms(), st.sampled_from([" ", "  ", "\t ", "\n"]))
def test_what_is_written_is_read(term: Term, space: str) -> None:
    assert parse_term(written(term, space), "w") == term
    assert parse_packing([written(term, space)], "w") == Packing((term,), len(term.axes) - 1)


@given(st.text(alphabet="wxtbipr[](){}1 ,asgateunithiddenlayerdirectoq_~", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        term = parse_term(text, "here")
    except LayoutError as error:
        refused = str(error)
    else:
        refused = "here: "
        assert set(term.names()) <= set(AXES)
        assert len([a for g in term.axes for a in g]) == len(term.names())
    assert refused.startswith("here: ")


@pytest.mark.parametrize(
    "text", ["wx" + " " * 200_000, "wx[" + "(" * 200_000, "wx[" + " " * 200_000 + ",", "w" * 200_000]
)
def test_long_nonsense_is_refused_in_linear_time(text: str) -> None:
    # With one step more per character for each character, this would take minutes.
    with pytest.raises(LayoutError):
        parse_term(text, "here")
