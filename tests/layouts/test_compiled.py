"""What is kept of the layout tables: the same layouts as their text gives, and not used once that has changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from weightport.layouts import Layout, compiled, shipped
from weightport.layouts.compiled import decode, encode
from weightport.layouts.shipped import TABLES, builtin, parsed

NAMES = sorted(name for name in os.listdir(TABLES) if name.endswith(".yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_the_table_says(name: str) -> None:
    text = Path(TABLES, name).read_bytes()
    layouts = parsed(name, text)
    kept = Path(TABLES, name).with_suffix(".json").read_bytes()
    assert kept.decode() == encode(text, layouts), "python scripts/make_docs.py"
    found = decode(text, kept)
    assert found == layouts
    assert list(map(shown, found or [])) == list(map(shown, layouts))  # tuples are tuples


def shown(layout: Layout) -> str:
    """All of a layout but its sets, whose order in a text is not told."""
    none: frozenset[str] = frozenset()
    return repr(replace(layout, complemented=none, fixed=none))


def test_what_is_kept_of_another_text_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = Path(TABLES, "gru.yaml").read_bytes()
    kept = Path(TABLES, "gru.json").read_bytes()
    assert decode(text + b"#", kept) is None
    assert decode(text, b"{" + kept) is None  # a merge that is not done yet
    monkeypatch.setattr(compiled, "VERSION", compiled.VERSION + 1)
    assert decode(text, kept) is None
    monkeypatch.undo()
    changed = text.replace(b"title: ", b"title: new ", 1)
    (tmp_path / "gru.yaml").write_bytes(changed)
    (tmp_path / "rnn.yaml").write_bytes(Path(TABLES, "rnn.yaml").read_bytes())  # nothing is kept of it
    (tmp_path / "gru.json").write_bytes(kept)
    monkeypatch.setattr(shipped, "TABLES", str(tmp_path))
    builtin.cache_clear()
    try:
        found = builtin()
    finally:
        builtin.cache_clear()
    texts = {name: (tmp_path / name).read_bytes() for name in ("gru.yaml", "rnn.yaml")}
    assert list(found) == [layout.name for name, read in texts.items() for layout in parsed(name, read)]
    assert any(layout.title.startswith("new ") for layout in found.values())
