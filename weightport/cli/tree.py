"""The scope tree as ``inspect`` draws it: what is alike is drawn once.

Siblings whose names differ in a number only, and that are the same below (names, dtypes, shapes, notes), are one line
with the numbers in braces: ``layer_{0..11}/``. A scope that holds one scope and nothing else shares its line. What
stands below a tensor's own name, as an optimizer's slots and averages do, is told beside it.

Promise: linear in the number of tensors; nothing that differs is drawn as if it were alike. Limit: only the last
three numbers in a name are looked at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightport.scopes import Scope
from weightport.tensors import TensorSpec

#: So many alike make a group.
ALIKE = 3
_NUMBERS = 3
_RUN = re.compile(r"([0-9]+)")
_RANGES = 4
#: More than this is no variable's slots.
_BESIDE = 16


@dataclass(slots=True)
class Node:
    """A line of the tree.

    Attributes:
        name: cut at its numbers: those stand at the odd places.
        text: what follows the name.
        key: equal for nodes that are alike in all but their name.
        count: so many are drawn as this one.
    """

    name: tuple[str, ...]
    text: str
    key: int
    children: list[Node] = field(default_factory=list)
    count: int = 1

    @property
    def label(self) -> str:
        """Name, text and count."""
        return "".join(self.name) + self.text + (f"  ({self.count:,} alike)" if self.count > 1 else "")


class Drawing:
    """Draws one scope.

    Args:
        notes: what to say beside a tensor (by its path) or a scope (by its path and the separator; the root is ``""``).
        full: a line for every tensor.
    """

    def __init__(self, notes: Mapping[str, str] | None = None, *, full: bool = False) -> None:
        self._notes, self._full = notes or {}, full
        self._keys: dict[object, int] = {}

    def lines(self, scope: Scope, path: str = "") -> Iterator[str]:
        """The tree, line by line."""
        pending = [("", node, last) for node, last in _reversed(self._children(scope, path))]
        while pending:
            indent, node, last = pending.pop()
            yield f"{indent}{'└─ ' if last else '├─ '}{node.label}"
            below = indent + ("   " if last else "│  ")
            pending.extend((below, child, end) for child, end in _reversed(node.children))

    def _key(self, *parts: object) -> int:
        return self._keys.setdefault(parts, len(self._keys))

    def _children(self, root: Scope, path: str) -> list[Node]:
        """The nodes below a scope; depth first, without recursion: names may be as deep as they like."""
        top: list[Node] = []
        prefix = f"{path}{root.separator}" if path else ""
        stack = [(root, prefix, iter(root.scopes.values()), top)]
        while True:
            scope, prefix, inner, done = stack[-1]
            below = next(inner, None)
            if below is not None:
                stack.append((below, f"{prefix}{below.name}{root.separator}", iter(below.scopes.values()), []))
                continue
            children = self._settled(scope, prefix, done)
            stack.pop()
            if not stack:
                return children
            stack[-1][3].append(self._scope(scope, prefix, children))

    def _scope(self, scope: Scope, path: str, children: list[Node]) -> Node:
        note = self._notes.get(path, "")
        if not note and not self._full and len(children) == 1 and children[0].children:
            only = children[0]  # scopes with nothing else in them share a line
            above = _cut(scope.name)
            name = (*above[:-1], f"{above[-1]}{scope.separator}{only.name[0]}", *only.name[1:])
            return Node(name, only.text, only.key, only.children, only.count)
        text = scope.separator + (f"  {note}" if note else "")
        key = self._key(text, tuple((child.name, child.key) for child in children))
        return Node(_cut(scope.name), text, key, children)

    def _settled(self, scope: Scope, prefix: str, scopes: list[Node]) -> list[Node]:
        """A scope's lines: the scopes in it, then its tensors."""
        beside: dict[str, str] = {}
        if not self._full:
            beside = {n: _beside(scope.tensors[n], s) for n, s in scope.scopes.items() if n in scope.tensors}
            scopes = [node for node, name in zip(scopes, scope.scopes, strict=True) if not beside.get(name)]
        nodes = []
        for name, spec in scope.tensors.items():
            text = f"  {described(spec)}{beside.get(name, '')}"
            if note := self._notes.get(prefix + name):
                text += f"  {note}"
            nodes.append(Node(_cut(name), text, self._key(text)))
        return [*scopes, *nodes] if self._full else [*self._folded(scopes), *self._folded(nodes)]

    def _folded(self, nodes: list[Node]) -> list[Node]:
        """Those that are alike as one, where the first of them stands."""
        if len(nodes) < ALIKE:
            return nodes
        for place in range(-2, -2 * _NUMBERS - 1, -2):
            groups: dict[object, list[Node]] = {}
            for number, node in enumerate(nodes):
                name = node.name
                if len(name) <= -place or not name[place].isdigit():
                    groups[number] = [node]
                else:
                    groups.setdefault((node.key, name[:place], name[place + 1 :]), []).append(node)
            if len(groups) < len(nodes):
                nodes = [one for group in groups.values() for one in self._joined(group, place)]
        return nodes

    def _joined(self, group: list[Node], place: int) -> list[Node]:
        if len(group) < ALIKE:
            return group
        numbers = [node.name[place] for node in group]
        if any(n[0] == "0" and len(n) > 1 for n in numbers) and len({len(n) for n in numbers}) > 1:
            return group  # 1 and 01: two names of one number
        first = group[0]
        name = list(first.name)
        name[place] = "{" + ranges(numbers) + "}"
        key = self._key(first.key, name[place])
        return [Node(tuple(name), first.text, key, first.children, sum(node.count for node in group))]


def _beside(spec: TensorSpec, below: Scope) -> str:
    """Slots and averages of a variable, which stand below its name: told in its own line, if they are nothing else."""
    names: list[str] = []
    for number, (_, scope) in enumerate(below.walk()):
        if number > _BESIDE or len(names) + len(scope.tensors) > _BESIDE:
            return ""
        for name, other in scope.tensors.items():
            same = scope is below and (other.dtype, other.shape) == (spec.dtype, spec.shape)
            if other.role != "slot" and not same:
                return ""
            names.append(name)
    return f"  + {', '.join(names)}"


def described(spec: TensorSpec) -> str:
    """Dtype, shape and role in a few words."""
    told = spec.quantized.title if spec.quantized is not None else spec.unread
    return _described(spec.dtype, spec.shape, spec.role, told)


@functools.lru_cache(4096)
def _described(dtype: np.dtype[Any], shape: tuple[int, ...], role: str, told: str) -> str:
    text = "×".join(map(str, shape)) or "scalar"
    return f"{dtype.name} {text}" + ("" if role == "weight" else f" ({role})") + (f" ({told})" if told else "")


def ranges(numbers: Iterable[str]) -> str:
    """Numbers in short: ``0..11``, ``0..3,5``."""
    runs: list[tuple[str, str]] = []
    for text in sorted(numbers, key=int):
        if runs and int(text) == int(runs[-1][1]) + 1:
            runs[-1] = (runs[-1][0], text)
        else:
            runs.append((text, text))
    shown = [a if a == b else f"{a}..{b}" for a, b in runs[:_RANGES]]
    return ",".join(shown) + (f",… {runs[-1][1]}" if len(runs) > _RANGES else "")


@functools.lru_cache(4096)
def _cut(name: str) -> tuple[str, ...]:
    # Python refuses to read numbers of thousands of digits, and nobody counts so far.
    parts = tuple(_RUN.split(name))
    return parts if all(len(p) <= 18 for p in parts[1::2]) else (name,)


def _reversed(nodes: Sequence[Node]) -> Iterator[tuple[Node, bool]]:
    last = len(nodes) - 1
    return ((nodes[k], k == last) for k in range(last, -1, -1))
