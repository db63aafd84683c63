"""From a mapping to tidy YAML: one key a line, short tables and lists in braces and brackets.

Promise: what comes out loads to the same document, whatever text is in it. Limit: comments are not kept.
"""

from __future__ import annotations

import collections.abc
import io
import json
import re
from typing import Any

from weightport.mapping.rules import Mapping

#: Line breaks of Unicode: YAML's readers disagree about them too, and in double quotes they are escaped.
_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")
#: Longer tables and lists are written one entry a line.
_WIDTH = 100
#: The tables and lists that are never written in one line, by the keys that lead to them ("*" is any).
_OPEN = {
    (),
    ("rules",),
    ("rules", "*"),
    ("layouts",),
    ("layouts", "*"),
    ("layouts", "*", "tensors"),
    ("layouts", "*", "variants"),
    ("layouts", "*", "variants", "*"),
    ("layouts", "*", "variants", "*", "tensors"),
}


def dump_mapping(mapping: Mapping | collections.abc.Mapping[str, Any]) -> str:
    """The mapping, or its plain data, as YAML. The data is not checked to be a mapping.

    Raises:
        MappingError: a value that is no plain data, or more of it than a mapping may have.
    """
    import yaml

    from weightport.mapping._yaml import resolve
    from weightport.mapping.document import plain_document

    document = plain_document(mapping.document if isinstance(mapping, Mapping) else mapping)
    if document.problems:
        raise document.stop()

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the same value twice is written twice
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
            super().increase_indent(flow, False)

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # YAML 1.1, in which PyYAML writes, and 1.2 disagree on what is a number: quotes settle it for both.
        style = None if isinstance(resolve(value), str) and value != "<<" else "'"
        if _BREAKS.search(value):
            style = '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    dumper = Dumper(io.StringIO(), sort_keys=False)
    node = dumper.represent_data(document.data)
    _style(node, document.data, ())
    result: str = yaml.serialize(node, Dumper=Dumper, allow_unicode=True, width=1 << 20)
    return result


def _style(node: Any, value: Any, place: tuple[str, ...]) -> None:
    if not isinstance(value, (dict, list)):
        return
    children = value.items() if isinstance(value, dict) else enumerate(value)
    named = place in {("rules",), ("layouts",), ("layouts", "*", "variants")}
    node.flow_style = place not in _OPEN and len(json.dumps(value)) <= _WIDTH
    for entry, (key, child) in zip(node.value, children, strict=True):
        inner = entry[1] if isinstance(value, dict) else entry
        _style(inner, child, (*place, "*" if named else str(key)))
