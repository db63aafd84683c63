"""What ``docs/`` says in tables is checked: those made by ``scripts/make_docs.py``, and those written by hand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml

import weightport as wp
from weightport.formats.detect import READERS, SUFFIXES, WRITERS
from weightport.initializers import ARGUMENTS
from weightport.layouts import builtin, table
from weightport.mapping import Glob, Pattern, document, patterns, schema, vocab
from weightport.mapping.rules import OPERATIONS
from weightport.tensors import ROLES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(name: str, marker: str) -> list[list[str]]:
    """The rows of the table below ``<!-- checked: MARKER -->``, a list of cells each."""
    below = text_of(name).split(f"<!-- checked: {marker} -->\n\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in below[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Made by the script --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_made_tables_are_as_the_code_says(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0, "python scripts/make_docs.py"
    assert {m for f in DOCS.glob("*.md") for m in re.findall(r"<!-- made: (\S+) -->", f.read_text("utf-8"))} == set(
        script.TABLES
    )


def test_the_page_of_conversions_is_as_the_tables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from scripts import make_conversions

    assert make_conversions.main(["--check"]) == 0
    stale = tmp_path / "conversions.md"
    stale.write_text(text_of("conversions.md").replace("| = |", "| ~ |", 1), encoding="utf-8")
    monkeypatch.setattr(make_conversions, "PAGE", stale)
    assert make_conversions.main(["--check"]) == 1


def test_a_stale_table_is_seen_and_made_anew(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "mapping.md"
    stale.write_text(text_of("mapping.md").replace("`seed: 0`", "`seed: 1`", 1), encoding="utf-8")
    assert script.main(["--check"], tmp_path) == 1
    assert stale.read_text(encoding="utf-8") != text_of("mapping.md")
    assert script.main([], tmp_path) == 1
    assert capsys.readouterr().out == "mapping.md: stale\nmapping.md: written\n"
    assert stale.read_text(encoding="utf-8") == text_of("mapping.md")


def test_every_layout_and_initializer_has_a_row() -> None:
    assert [n for n in builtin() if f"\n| `{n}` |" not in text_of("layouts.md")] == []
    assert [n for n in ARGUMENTS if f"\n| `{n}` |" not in text_of("mapping.md")] == []


# Written by hand -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "name", "binds"), rows("mapping.md", "patterns"))
def test_patterns(pattern: str, name: str, binds: str) -> None:
    found = Pattern(codes(pattern)[0]).match(codes(name)[0])
    expected = None if binds == "no match" else dict(pair.split("=") for pair in codes(binds))
    assert found == expected


@pytest.mark.parametrize(("glob", "hits", "misses"), rows("mapping.md", "globs"))
def test_globs(glob: str, hits: str, misses: str) -> None:
    made = Glob(codes(glob)[0])
    assert {n: made.matches(n) for n in codes(hits) + codes(misses)} == {
        **dict.fromkeys(codes(hits), True),
        **dict.fromkeys(codes(misses), False),
    }


def shapes(cell: str) -> list[list[int]]:
    return [yaml.safe_load(code) for code in codes(cell)]


@pytest.mark.parametrize(("operation", "before", "after", "_"), rows("mapping.md", "operations"))
def test_operations(
    operation: str, before: str, after: str, _: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.txt").write_text("a\nb\nc\n")
    (tmp_path / "new.txt").write_text("c\nd\na\nb\n")
    sources = {f"s{k}": np.ones(shape, np.float32) for k, shape in enumerate(shapes(before))}
    np.savez(tmp_path / "source.npz", **sources)
    rule = {"from": list(sources), "to": [f"t{k}" for k in range(len(shapes(after)))]}
    plan = wp.plan("source.npz", None, {"weightport": 1, "rules": [{**rule, **yaml.safe_load(codes(operation)[0])}]})
    assert plan.problems == ()
    assert [list(plan.items[name].spec.shape) for name in rule["to"]] == shapes(after)


def test_the_operations_stand_in_the_order_of_application() -> None:
    told = [codes(row[0])[0].partition(":")[0] for row in rows("mapping.md", "operations")]
    assert tuple(dict.fromkeys(told)) == OPERATIONS


def test_the_limits() -> None:
    told = [int(re.sub(r"\D", "", row[1])) for row in rows("mapping.md", "limits")]
    assert told == [
        document.MAX_BYTES,
        document.MAX_VALUES,
        document.MAX_DEPTH,
        patterns.MAX_GAPS,
        document.MAX_PROBLEMS,
        vocab.MAX_BYTES,
        vocab.MAX_WORDS,
    ]


def test_every_key_of_a_mapping_is_told_of() -> None:
    text = text_of("mapping.md")
    shapes = (schema.MappingShape, schema.RuleShape, schema.CellShape, schema.SourceShape, schema.VocabShape)
    keys = {field.alias or name for shape in shapes for name, field in shape.model_fields.items()}
    assert [key for key in sorted(keys) if not re.search(rf"`[^`\n]*\b{key}\b", text)] == []
    assert [role for role in ROLES if f"\n| `{role}` |" not in text] == []


def test_every_key_of_a_layout_is_told_of() -> None:
    text = text_of("layouts.md")
    assert [key for key in sorted(table._KEYS) if f"\n| `{key}`" not in text] == []


def test_every_format_is_told_of() -> None:
    text = text_of("formats.md")
    assert [name for name in (*READERS, *WRITERS, *SUFFIXES) if f"`{name}`" not in text] == []


def test_every_public_name_of_the_package_is_told_of() -> None:
    text = text_of("python.md")
    assert [name for name in wp.__all__ if not re.search(rf"`(wp\.)?{name}\b", text)] == []


def test_links_lead_somewhere() -> None:
    for file in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text("utf-8")):
            target = (file.parent / path) if path else file
            assert target.exists(), f"{file.name}: {path}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
                assert anchor in slugs, f"{file.name}: {path}#{anchor}"
