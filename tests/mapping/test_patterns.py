from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from weightport.errors import MappingError
from weightport.mapping import Glob, Pattern
from weightport.mapping._matching import MAX_STEPS
from weightport.mapping.patterns import literal as the_name
from weightport.mapping.patterns import misread


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(MappingError) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "name", "bound"),
    [
        ("a/b", "a/b", {}),
        ("a/b", "a/b/", None),
        ("layer_{n}/kernel", "layer_3/kernel", {"n": "3"}),
        ("layer_{n}/kernel", "layer_/kernel", None),
        ("layer_{n}/kernel", "layer_3/4/kernel", None),
        ("layer_{n}/kernel", "layer_3.4/kernel", None),
        ("{w}", "kernel", {"w": "kernel"}),
        ("{w}", "lstm/kernel", None),
        ("{w**}", "lstm/kernel.0", {"w": "lstm/kernel.0"}),
        ("{w**}", "", None),
        ("lstm/{w**}", "lstm/", None),
        ("{x**}/kernel", "a/kernel/kernel", {"x": "a/kernel"}),
        ("{x**}/{y**}", "a/b/c", {"x": "a", "y": "b/c"}),
        ("{x}_{y}", "a_b_c", {"x": "a", "y": "b_c"}),
        ("{x**}_{n}", "a/b_c/d_5", {"x": "a/b_c/d", "n": "5"}),
        ("encoder.layer.{n}.{role}.weight", "encoder.layer.11.query.weight", {"n": "11", "role": "query"}),
        ("{n}/x_{n}", "3/x_3", {"n": "3"}),
        ("{n}/x_{n}", "3/x_4", None),
        ("{x**}/{x**}", "a/b/a/b", {"x": "a/b"}),
        ("{x**}_{n}/lstm_cell_{n}/kernel", "bi_lstm_3/lstm_cell_3/kernel", {"x": "bi_lstm", "n": "3"}),
        ("h.{n-1}", "h.0", {"n": "1"}),
        ("h.{n+1}", "h.1", {"n": "0"}),
        ("h.{n+1}", "h.0", None),
        ("h.{n+1}", "h.01", None),
        ("h.{n+1}", "h.x", None),
        ("h.{n+1}", "h.1000000000000000000000", None),
        ("{n}/{n+1}", "1/2", {"n": "1"}),
        ("{n}/{n+1}", "1/3", None),
        ("{n+1}/{n}", "2/1", {"n": "1"}),
        ("a{{{n}}}", "a{3}", {"n": "3"}),
        ("a{{n}}", "a{n}", {}),
        ("ü/{n}", "ü/é", {"n": "é"}),
        ("{n}", "a\nb", {"n": "a\nb"}),
    ],
)
def test_matching(pattern: str, name: str, bound: dict[str, str] | None) -> None:
    assert Pattern(pattern).match(name) == bound


def test_what_failed_once_is_not_tried_again() -> None:
    """Two ways for the first captures to end in the same place: the rest is the same for both."""
    assert Pattern("{a}-{b}-{x}/{x}").match("1-1-1-1/2") is None
    assert Pattern("{a}-{b}-{x}/{x}").match("1-1-1-1/1") == {"a": "1", "b": "1-1", "x": "1"}
    assert str(Glob("**/a_*")) == "**/a_*"


def test_what_a_pattern_says_of_itself() -> None:
    pattern = Pattern("a_{{/{n}/{x**}/{m-1}", "rules[0].from")
    assert pattern.names == {"n", "x", "m"}
    assert (pattern.prefix, pattern.is_literal, pattern.wide, pattern.computed) == ("a_{/", False, {"x"}, {"m"})
    assert (pattern.where, str(pattern)) == ("rules[0].from", "a_{{/{n}/{x**}/{m-1}")
    literal = Pattern("a{{}}/b")
    assert (literal.prefix, literal.is_literal, literal.names) == ("a{}/b", True, set())
    assert Pattern("a", "here") == Pattern("a", "there") != Pattern("b", "here")
    assert len({Pattern("a", "here"), Pattern("a", "there")}) == 1


@pytest.mark.parametrize(
    ("pattern", "bindings", "name"),
    [
        ("a/b", {}, "a/b"),
        ("h.{n-1}.{w}", {"n": "3", "w": "bias"}, "h.2.bias"),
        ("h.{n+10}", {"n": "0"}, "h.10"),
        ("h.{n+1}", {"n": "007"}, "h.8"),
        ("{x**}{{}}", {"x": "a/b", "unused": "c"}, "a/b{}"),
    ],
)
def test_formatting(pattern: str, bindings: dict[str, str], name: str) -> None:
    assert Pattern(pattern).format(bindings) == name


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        ({"n": "0"}, "m.yaml:3: {n-1} is below zero: {n} is '0'"),
        ({"n": "x"}, "m.yaml:3: {n-1} needs a whole number: {n} is 'x'"),
        ({"n": "²"}, "m.yaml:3: {n-1} needs a whole number: {n} is '²'"),
        ({"n": "-1"}, "m.yaml:3: {n-1} needs a whole number: {n} is '-1'"),
        ({"n": "1" * 5000}, f"m.yaml:3: {{n-1}} needs a whole number: {{n}} is '{'1' * 40}'...'{'1' * 20}'"),
        ({}, "m.yaml:3: {n} in 'h.{n-1}' is not bound"),
    ],
)
def test_formatting_refused(bindings: dict[str, str], message: str) -> None:
    assert refused(lambda: Pattern("h.{n-1}", "m.yaml:3").format(bindings)) == message


WILD = "* and ? are no wildcards in a rule: write {name}, which stops at / and ., or {name**}, which does not"
WIDE = "a capture such as {name} stops at / and .; {name**} does not: "


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a/*", WILD), ("a/?", WILD), ("**/w", WILD), ("{n}/*", WILD),
        ("{x}/w", WIDE + "'{x**}/w'"), ("a/{x}w", WIDE + "'a/{x**}w'"),
        ("b/*", ""), ("{{x}}/*", ""), ("b/{x}", ""), ("{n}/{n+1}", ""), ("a/w", ""),
    ],
)  # fmt: skip
def test_what_was_meant(text: str, hint: str) -> None:
    assert misread(Pattern(text), ["a/w", "a/b/w"]) == hint


def test_a_literal_name() -> None:
    assert the_name("{x}/*").match("{x}/*") == {}


def test_joined_to_a_scope() -> None:
    pattern = Pattern("{w}", "here")
    assert pattern.joined("") is pattern
    joined = pattern.joined("a{b}/c")
    assert (joined.text, joined.where) == ("a{{b}}/c/{w}", "here")
    assert joined.match("a{b}/c/kernel") == {"w": "kernel"}
    assert joined.format({"w": "kernel"}) == "a{b}/c/kernel"
    glob = Glob("**/Adam", "here")
    assert glob.joined("") is glob
    assert glob.joined("a").matches("a/Adam")
    assert glob.joined("a").matches("a/b/Adam")
    assert not glob.joined("a").matches("Adam")


EXPECTED = "; expected {name}, {name**}, {name+1} or {name-1}; a brace itself is written twice: {{ or }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p: an empty name"),
        ("a{", "p: '{' in 'a{' is no capture" + EXPECTED),
        ("a}", "p: '}' in 'a}' is no capture" + EXPECTED),
        ("{}", "p: '{}' in '{}' is no capture" + EXPECTED),
        ("{1a}", "p: '{1a}' in '{1a}' is no capture" + EXPECTED),
        ("{n + 1}", "p: '{n + 1}' in '{n + 1}' is no capture" + EXPECTED),
        ("{n*2}", "p: '{n*2}' in '{n*2}' is no capture" + EXPECTED),
        ("{n+12345678901}", "p: '{n+12345678901}' in '{n+12345678901}' is no capture" + EXPECTED),
        ("{a}{b}", "p: nothing stands between {a} and {b} in '{a}{b}'; capture both as one"),
        ("{a}/{a**}", "p: '{a}/{a**}' has both {a} and {a**}; use one of them, or two names"),
        ("/".join(f"{{a{k}}}" for k in range(33)), "p: more than 32 captures and wildcards in '{a0}/{a1}/{a2}"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    assert refused(lambda: Pattern(text, "p")).startswith(message)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("global_step", ["global_step"], ["global_step_1", "a/global_step"]),
        ("**/Adam", ["Adam", "a/Adam", "a/b/Adam"], ["xAdam", "a/xAdam", "Adam/m"]),
        ("decoder/**", ["decoder/a", "decoder/a/b", "decoder/"], ["decoder", "decoders/a", "a/decoder/b"]),
        ("decoder.**", ["decoder.a.b", "decoder."], ["decoder"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("a**/b", ["a/b", "axx/b", "a/x/b"], ["b", "ab"]),
        ("a**/**/b", ["a/b", "ax/b", "ax/y/b"], ["ab", "a/xb"]),
        ("**/**/b", ["b", "a/b", "a/a/b"], ["ab"]),
        ("**", ["", "a", "a/b"], []),
        ("*", ["", "a", "a.b"], ["a/b"]),
        ("total*", ["total", "total_1"], ["total/1", "atotal"]),
        ("beta?_power", ["beta1_power", "beta2_power"], ["beta_power", "beta12_power", "beta/_power"]),
        ("*/w", ["a/w", "/w"], ["a/b/w", "w"]),
        ("?", ["a"], ["", "/", "ab"]),
        ("*?", ["a", "ab"], ["", "a/"]),
        ("layer_{n}/*", ["layer_0/w"], ["layer_/w", "layer_0.1/w", "layer_0/1/w"]),
        ("{n}/x_{n}", ["1/x_1"], ["1/x_2"]),
        ("{x**}/Adam", ["a/b/Adam"], ["Adam", "/Adam"]),
        ("a{{b}}", ["a{b}"], ["a{{b}}"]),
        ("[ab].$", ["[ab].$"], ["a.$", "[ab]x$"]),
        ("**/", ["", "a/", "a/b/"], ["a"]),
    ],
)
def test_globs(glob: str, yes: list[str], no: list[str]) -> None:
    assert [n for n in yes + no if Glob(glob).matches(n)] == yes


def test_what_is_no_glob() -> None:
    assert refused(lambda: Glob("", "ignore[0]")) == "ignore[0]: an empty name"
    expected = "ignore[0]: arithmetic in 'a_{n+1}'; ignore and keep take {name} and {name**}"
    assert refused(lambda: Glob("a_{n+1}", "ignore[0]")) == expected
    assert refused(lambda: Glob("*a" * 33, "g")).startswith("g: more than 32 captures and wildcards in '*a*a")


# --- against a backtracking regular expression ------------------------------------------------------------------------

LITERALS = st.text("ab/._1", min_size=1, max_size=3)
NAMES = st.text("ab/._1", max_size=12)
CAPTURES = st.tuples(st.sampled_from("xyz"), st.booleans())
PARTS = st.lists(st.tuples(LITERALS, CAPTURES), max_size=3)


def pattern_and_regex(parts: list[tuple[str, tuple[str, bool]]], end: str, lead: bool) -> tuple[str, str]:
    """The same pattern twice. The first form of a name holds for all its places."""
    forms: dict[str, bool] = {}
    text = regex = ""
    for k, (literal, (name, wide)) in enumerate(parts):
        if k or not lead:
            text, regex = text + literal, regex + re.escape(literal)
        again = name in forms
        wide = forms.setdefault(name, wide)
        text += f"{{{name}**}}" if wide else f"{{{name}}}"
        regex += f"(?P={name})" if again else f"(?P<{name}>{'.' if wide else '[^/.]'}+?)"
    return text + end, regex + re.escape(end)


@settings(max_examples=400)
@given(PARTS, st.text("ab/._1", max_size=2), st.booleans(), st.data())
def test_a_pattern_finds_what_a_regular_expression_finds(
    parts: list[tuple[str, tuple[str, bool]]], end: str, lead: bool, data: st.DataObject
) -> None:
    text, regex = pattern_and_regex(parts, end, lead)
    assume(text)
    pattern = Pattern(text)
    likely = st.lists(st.sampled_from([*(p[0] for p in parts), end, "a", "b", "1", "/", "_"]), max_size=8)
    name = data.draw(NAMES | likely.map("".join))
    found = re.fullmatch(regex, name, re.DOTALL)
    assert pattern.match(name) == (found.groupdict() if found else None)


@settings(max_examples=200)
@given(PARTS, st.text("ab/._1", max_size=2), st.booleans(), st.dictionaries(st.sampled_from("xyz"), NAMES))
def test_a_pattern_matches_what_it_formats(
    parts: list[tuple[str, tuple[str, bool]]], end: str, lead: bool, texts: dict[str, str]
) -> None:
    pattern = Pattern(pattern_and_regex(parts, end, lead)[0] or "a")
    bindings = {n: texts.get(n, "") or "a" for n in pattern.names}
    bindings = {n: t if n in pattern.wide else re.sub("[/.]", "_", t) for n, t in bindings.items()}
    name = pattern.format(bindings)
    found = pattern.match(name)
    assert found is not None
    assert pattern.format(found) == name


@given(st.integers(0, 10**9), st.integers(-50, 50))
def test_arithmetic_runs_both_ways(n: int, shift: int) -> None:
    assume(n + shift >= 0)
    pattern = Pattern(f"layer_{{n{shift:+d}}}/w")
    assert pattern.format({"n": str(n)}) == f"layer_{n + shift}/w"
    assert pattern.match(f"layer_{n + shift}/w") == {"n": str(n)}


def glob_regex(glob: str) -> str:
    out = re.sub(r"(^|/)(?:\*\*+/)+", lambda m: m[1] + "\0", glob)
    tokens = re.findall(r"\0|\*\*+|\*|\?|[^*?\0]+", out)
    known = {"\0": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(t) or (".*" if t.startswith("**") else re.escape(t)) for t in tokens)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(["a", "b", "/", "*", "**", "?", "**/", "/**"]), min_size=1, max_size=8), NAMES)
def test_a_glob_finds_what_a_regular_expression_finds(tokens: list[str], name: str) -> None:
    glob = "".join(tokens)
    assert Glob(glob).matches(name) == (re.fullmatch(glob_regex(glob), name, re.DOTALL) is not None), glob


# --- hostile patterns and names ---------------------------------------------------------------------------------------

LONG = 100_000


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("a".join(f"{{b{k}**}}" for k in range(30)) + "b{z**}q", "a" * LONG + "q"),
        ("a".join(f"{{b{k}}}" for k in range(30)) + "b{z}q", "a" * LONG + "q"),
        ("a".join(f"{{b{k}{'**' * (k % 2)}}}" for k in range(30)) + "b{z}q", "a/" * (LONG // 2) + "q"),
        ("*a" * 30 + "b?q", "a" * LONG + "q"),
        ("*a?" * 30 + "b*q", "a" * LONG + "q"),
        ("?*" * 30 + "b*q", "a/" * (LONG // 2) + "q"),
        ("**/a/" * 30 + "b/*q", "a/" * (LONG // 2) + "q"),
        ("**/*/" * 15 + "b/*q", "a/" * (LONG // 2) + "q"),
        ("**a*" * 16 + "b", "a" * LONG + "b/b"),
        ("?" * 1000 + "*b", "a" * LONG),
        ("{x}_" + "a" * 1000, "_a" * (LONG // 2)),
    ],
)
def test_matching_is_linear(glob: str, name: str) -> None:
    for length in (len(name) // 2, len(name)):
        assert not Glob(glob).matches(name[-length:])


def test_a_search_that_cannot_be_linear_gives_up() -> None:
    pattern = Pattern("{x**}a{y**}a{x**}a{y**}b", "m.yaml:2 rules[0].from")
    message = refused(lambda: pattern.match("a" * LONG + "b"))
    shown = f"'{'a' * 40}'...'{'a' * 19}b'"
    hint = "put more literal text between its captures, or give each capture a name of its own"
    what = f"'{pattern}' can match {shown} in too many ways: gave up after {MAX_STEPS:,}"
    assert message == f"m.yaml:2 rules[0].from: {what}; {hint}"
    # A name of usual length is no trouble.
    assert pattern.match("a" * 80 + "cb") is None
