#!/usr/bin/env python
"""Write the tables in ``docs/`` that are made from the code: layouts and initializers. And what is kept of the tables
of layouts (:mod:`weightport.layouts.compiled`).

    python scripts/make_docs.py [--check]

A table stands between ``<!-- made: NAME -->`` and ``<!-- end -->``; what is between the two is replaced.

Exit codes: 0 every table is as the code says; 1 one was not (with ``--check`` it is left as it is).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightport.initializers import ARGUMENTS
from weightport.layouts import builtin
from weightport.layouts.compiled import encode
from weightport.layouts.layout import Form, Layout
from weightport.layouts.shipped import TABLES as FOLDER
from weightport.layouts.shipped import parsed

DOCS = Path(__file__).resolve().parents[1] / "docs"
_PLACE = re.compile(r"(?P<head><!-- made: (?P<name>[\w-]+) -->\n).*?(?P<foot><!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def layouts() -> Iterator[str]:
    """A row for each layout that ships with weightport."""
    rows = ([f"`{la.name}`", gates(la), said(la), tensors(la), la.title] for la in builtin().values())
    yield from table(["layout", "gates", "what it says", "tensors (first form)", "what it is"], rows)


def gates(layout: Layout) -> str:
    """The gates in stored order, with their names where these differ."""
    texts = []
    for gate in layout.gates:
        name = layout.gate_names.get(gate, gate)
        sign = "~" if gate in layout.complemented else ""
        texts.append(f"`{sign}{gate}`" + (f" {name}" if name != gate else ""))
    texts += [f"(`{gate}` = {of.replace('~', '1 - ')})" for gate, of in layout.derived.items()]
    return (", " if any(layout.gate_names.get(g, g) != g for g in layout.gates) else " ").join(texts)


def said(layout: Layout) -> str:
    """What the layout says beside the packing."""
    parts = []
    if layout.forget_gates:
        biases = sorted({form.forget_bias for form in layout.forms}, reverse=True)
        parts.append("forget bias " + " or ".join(f"{b:g}" for b in biases) + always(layout, "forget_bias"))
    if layout.kind == "gru":
        resets = dict.fromkeys(form.reset or "not told" for form in layout.forms)
        parts.append("reset " + ", ".join(resets))
    for key in ("activation", "recurrent_activation"):
        value = getattr(layout, key)
        if value is not None:
            parts.append(value + always(layout, key))
    return "; ".join(parts)


def always(layout: Layout, key: str) -> str:
    """A mark on what the framework always has so."""
    return " (always)" if key in layout.fixed else ""


def tensors(layout: Layout) -> str:
    """The tensors of the first form."""
    form: Form = layout.forms[0]
    return ", ".join(f"`{row.template}{'?' * row.optional}`" for row in form.rows)


def initializers() -> Iterator[str]:
    """A row for each initializer."""
    yield from table(
        ["initializer", "arguments and their defaults"],
        ([f"`{name}`", arguments(args)] for name, args in ARGUMENTS.items()),
    )


def arguments(args: Mapping[str, Any]) -> str:
    """Arguments with their defaults, as a mapping spells them."""
    return ", ".join(f"`{k}: {default(v)}`" if v is not None else f"`{k}`" for k, v in args.items()) or "none"


def default(value: Any) -> str:
    """A default as YAML."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {"layouts": layouts, "initializers": initializers}


def made(text: str) -> str:
    """A document with its tables as the code says."""
    return _PLACE.sub(lambda m: m["head"] + "\n".join(TABLES[m["name"]]()) + "\n" + m["foot"], text)


def main(arguments: Sequence[str] | None = None, docs: Path = DOCS, tables: Path = Path(FOLDER)) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description="Write the tables in docs/ that are made from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    check = parser.parse_args(arguments).check
    stale = 0
    for document in sorted(docs.glob("*.md")):
        text = document.read_text(encoding="utf-8")
        new = made(text)
        if new != text:
            stale = 1
            print(f"{document.name}: {'stale' if check else 'written'}")
            if not check:
                document.write_text(new, encoding="utf-8")
    for source in sorted(tables.glob("*.yaml")):
        kept, content = source.with_suffix(".json"), source.read_bytes()
        new = encode(content, parsed(source.name, content))
        if not kept.exists() or kept.read_text(encoding="utf-8") != new:
            stale = 1
            print(f"{kept.name}: {'stale' if check else 'written'}")
            if not check:
                kept.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
