"""What the code in a TorchScript archive says of its classes: which attributes are weights, and which never change.

Promise: the code is looked through line by line for its declarations; nothing of it is run, or parsed further. Limit:
the classes' own lines ``__parameters__``, ``__buffers__`` and ``NAME : Final[TYPE] = LITERAL``.

Sources: torch/csrc/jit/serialization/python_print.cpp (``printNamedType``), export_module.cpp
(``qualifierToArchivePath``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from weightport.formats._pickle import Global
from weightport.formats._torch_names import ScriptClass

_CLASS = re.compile(r"class (\w+)\(")
_LIST = re.compile(r"  (__parameters__|__buffers__) = \[(.*)\]\s*")
_FINAL = re.compile(r"  (\w+) : Final\[(int|bool|str|float)\] = (.+)")
_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"')


class ScriptClasses:
    """The classes of an archive, by name.

    Args:
        code: the text of a file below ``code/``, or None.
    """

    def __init__(self, code: Callable[[str], str | None]) -> None:
        self._code = code
        self._files: dict[str, dict[str, ScriptClass]] = {}

    def __call__(self, of: Global) -> ScriptClass | None:
        """The class; one without declarations (of an archive that has no such code) has any tensors as weights."""
        file = of.module.replace(".", "/") + ".py"
        known = self._files.get(file)
        if known is None:
            known = self._files[file] = _classes(self._code(file) or "")
        return known.get(of.name, _UNKNOWN)


_UNKNOWN = ScriptClass(None, {})


def _classes(text: str) -> dict[str, ScriptClass]:
    found: dict[str, ScriptClass] = {}
    weights: set[str] = set()
    constants: dict[str, Any] = {}
    listed: set[str] = set()
    name = ""  # what stands before the first class belongs to none
    for line in text.split("\n"):
        hit = _CLASS.match(line)
        if hit:
            weights, constants, listed = set(), {}, set()
            name = hit[1]
        elif line.startswith("  __") and (hit := _LIST.fullmatch(line)):
            listed.add(hit[1])
            weights.update(_NAME.findall(hit[2]))
        elif line.startswith("  ") and (hit := _FINAL.fullmatch(line)):
            constants[hit[1]] = _literal(hit[2], hit[3].strip())
        else:
            continue
        both = {"__parameters__", "__buffers__"} <= listed
        found[name] = ScriptClass(frozenset(weights) if both else None, constants)
    return found


def _literal(kind: str, text: str) -> Any:
    if kind == "str":
        return text.strip("\"'")
    if kind == "bool":
        return text == "True"
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        return None
