"""What the documents say is checked where it can be."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from weightport import __version__
from weightport.layouts.table import parse_layout

ROOT = Path(__file__).resolve().parents[1]


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] == __version__


def test_the_layout_in_contributing_is_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ((name, table),) = yaml.safe_load(block).items()
    layout = parse_layout(name, table, "CONTRIBUTING.md")
    assert (layout.kind, layout.gates, layout.forms[0].forget_bias) == ("lstm", tuple("iofg"), 1.0)
    assert [row.template for row in layout.forms[0].rows] == ["w_in", "w_rec", "b"]


def test_the_fixed_names_of_the_documents_exist() -> None:
    for document in ("CONTRIBUTING.md", "README.md", "SECURITY.md"):
        for name in re.findall(r"`((?:tests|scripts|weightport|\.ci)/[\w./-]*)`", (ROOT / document).read_text("utf-8")):
            assert (ROOT / name).exists(), f"{document}: {name}"
