"""The operations of a tensor rule, from the values that the mapping file gives them.

Promise: each value is looked at as far as it can be without a tensor; the shape has been checked already.
Limit: whether an axis exists and sizes fit is the plan's question.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from weightport.errors import closest
from weightport.mapping.patterns import shown
from weightport.mapping.rules import Pad, Rearrange, Slices, Split
from weightport.tensors import dtype_named

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_TOKEN = re.compile(r"\s*(?:(?P<mark>[()])|(?P<axis>[A-Za-z_][A-Za-z0-9_]*)|(?P<one>1)(?![A-Za-z0-9_]))", re.ASCII)
_NUMPY = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


class Wrong(Exception):
    """(what, hint): a value that cannot be."""


def wrong(what: str, hint: str = "") -> Wrong:
    """The exception with its two parts."""
    return Wrong(what, hint)


def parse_slices(value: str | list[str]) -> Slices:
    """One slice for each axis, from ``"0:10, :"`` or ``["0:10", ":"]``."""
    texts = value.split(",") if isinstance(value, str) else value
    return tuple(_slice(text) for text in texts)


def _slice(text: str) -> slice:
    if "," in text:
        raise wrong(f"{shown(text)} is for several axes", "write one slice for each entry of the list")
    parts = [part.strip() for part in text.split(":")]
    if len(parts) > 3 or parts == [""] or not all(_INTEGER.fullmatch(part) for part in parts if part):
        raise wrong(
            f"{shown(text.strip())} is no slice", "expected START:STOP or START:STOP:STEP, each may be left out"
        )
    if len(parts) == 1:
        start = int(parts[0])
        stop = "" if start == -1 else str(start + 1)
        raise wrong(f"{start} would drop its axis", f"{start}:{stop} keeps it; reshape drops it")
    numbers = [int(p) if p else None for p in parts]
    step = numbers[2] if len(numbers) == 3 else None
    if step is not None and step < 1:
        raise wrong(f"the step of {shown(text.strip())} is not above zero")
    return slice(numbers[0], numbers[1], step)


def parse_reshape(value: list[int]) -> tuple[int, ...]:
    """The shape; at most one -1, and no 0 beside it."""
    if value.count(-1) > 1:
        raise wrong(f"{value} has more than one -1", "only one size can be worked out")
    if -1 in value and 0 in value:
        raise wrong(f"{value} has a 0 and a -1", "nothing can be worked out of an empty tensor")
    return tuple(value)


def parse_rearrange(value: str | dict[str, Any]) -> Rearrange:
    """The groups of both sides of ``(h d) in -> in h d``."""
    text = value if isinstance(value, str) else value["pattern"]
    sizes = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "pattern"}
    sides = text.split("->")
    if len(sides) != 2:
        raise wrong(f"{shown(text)} has {len(sides) - 1} arrows", "expected one: in out -> out in")
    left, right = (_groups(side, text) for side in sides)
    names = [[axis for group in side for axis in group] for side in (left, right)]
    for axes in names:
        twice = sorted({a for a in axes if axes.count(a) > 1})
        if twice:
            raise wrong(f"the axis {twice[0]!r} stands twice on one side of {shown(text)}")
    for axis in [*names[0], *names[1]]:
        if axis not in names[0] or axis not in names[1]:
            side = "left" if axis in names[1] else "right"
            raise wrong(
                f"the axis {axis!r} is missing on the {side} of {shown(text)}", closest(axis, names[side == "right"])
            )
    for axis in sizes:
        if axis not in names[0]:
            raise wrong(f"no axis {shown(axis)} in {shown(text)}", closest(axis, names[0]) if len(axis) <= 100 else "")
    for group in left:
        open_axes = [axis for axis in group if axis not in sizes]
        if len(open_axes) > 1:
            hint = f"say how long one is: {{pattern: {text.strip()}, {open_axes[0]}: SIZE}}"
            raise wrong(f"the sizes of {' and '.join(open_axes)} cannot be worked out", hint)
    return Rearrange(text, left, right, sizes)


def _groups(side: str, text: str) -> tuple[tuple[str, ...], ...]:
    groups: list[tuple[str, ...]] = []
    inner: list[str] | None = None
    position, side = 0, side.strip()
    while position < len(side):
        token = _TOKEN.match(side, position)
        if token is None:
            found = side[position:].split()[0]
            raise wrong(f"{shown(found)} in {shown(text)} is no axis", "expected names, 1 and parentheses")
        position = token.end()
        if token["mark"] == "(" and inner is None:
            inner = []
        elif token["mark"] == ")" and inner is not None:
            groups.append(tuple(inner))
            inner = None
        elif token["mark"]:
            raise wrong(f"the parentheses of {shown(text)} do not match")
        elif inner is None:
            groups.append((token["axis"],) if token["axis"] else ())
        elif token["axis"]:
            inner.append(token["axis"])
    if inner is not None:
        raise wrong(f"the parentheses of {shown(text)} do not match")
    return tuple(groups)


def parse_pad(value: list[list[int]] | dict[str, Any]) -> Pad:
    """The widths and the value."""
    widths = value if isinstance(value, list) else value["widths"]
    fill = 0.0 if isinstance(value, list) else float(value.get("value", 0.0))
    return Pad(tuple((before, after) for before, after in widths), fill)


def parse_split(value: int | dict[str, Any]) -> Split:
    """The axis and the sizes."""
    if isinstance(value, int):
        return Split(value)
    sizes = value.get("sizes")
    return Split(value["axis"], None if sizes is None else tuple(sizes))


def parse_cast(value: str) -> str:
    """The name of a dtype that holds numbers, spelled as numpy and ml_dtypes spell it."""
    try:
        dtype = dtype_named(value) if value.isascii() and value.isidentifier() and len(value) <= 40 else None
    except TypeError:
        dtype = None
    if dtype is not None and dtype.name == value and _holds_numbers(dtype):
        return value
    if dtype is not None and _holds_numbers(dtype):
        raise wrong(f"no dtype {value!r}", f"closest: {dtype.name!r}")
    known = [*_NUMPY, *_extensions()]
    raise wrong(f"no dtype {shown(value)}", closest(value[:100], known) or "such as float32, float16, bfloat16")


def _holds_numbers(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _NUMPY or dtype.type.__module__.partition(".")[0] == "ml_dtypes"


def _extensions() -> list[str]:
    import ml_dtypes

    return [name for name in ml_dtypes.__all__ if not name.endswith("info")]
