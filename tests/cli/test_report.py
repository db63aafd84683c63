"""``weightport report``: the page says what the plan says, and is safe whatever names are in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import fixture
from weightport.formats.files import digest
from weightport.report import html as page

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")
VOID = {"meta"}


class Reader(HTMLParser):
    """The text of a page; every element is closed in order, and there is nothing to run or to load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object", "a")
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.text.append(" ".join(data.split()))


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(
        "weightport: 1\ndescription: letters <b>&amp;\nrules:\n"
        "  - from: {layout: lstm.scoped-gates, scope: LSTMcell}\n    to: {layout: lstm.keras, scope: lstm}\n"
        "    as: constant\n  - {from: softmax_w, to: head/kernel}\n",
        encoding="utf-8",
    )
    return path


def test_a_plan_with_a_problem(tmp_path: Path, mapping: Path) -> None:
    out = tmp_path / "r.html"
    ran = weightport("report", SEED, "-m", mapping, "-o", out)
    assert ran.out == f"wrote {out}: 1 problem\n"
    text = Reader(out.read_text(encoding="utf-8")).text
    assert text.count("letters <b>&amp;") == 2  # the title and the heading
    assert "1 problem; nothing can be written." in text
    assert "source tensor 'softmax_b' (float32 [27]) is claimed by no rule" in " ".join(text)
    assert "moved : lstm.scoped-gates LSTMcell -> lstm.keras lstm, 12 → 3" in " ".join(text)
    assert text[text.index("softmax_b") :][:5] == ["softmax_b", "float32", "27", "108 bytes", "unclaimed"]
    assert digest(SEED) in text
    ran = weightport("report", SEED, "-m", mapping, "-o", out, "--json")
    assert ran.json["path"] == str(out)
    assert len(ran.json["problems"]) == 1


def test_a_plan_without_problems_with_a_target_and_a_further_source(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "weightport: 1\nsources: {more: {}}\nrules: [{from: 'softmax_{p}', to: '{p}'}, {from: more/v, to: v}]\n"
        "ignore: ['LSTMcell/**']\n",
        encoding="utf-8",
    )
    more, target, out = tmp_path / "more.npz", tmp_path / "target.npz", tmp_path / "r.html"
    np.savez(more, v=np.zeros(2, "float32"))
    np.savez(target, v=np.zeros(2, "float32"), b=np.zeros(27, "float32"), w=np.zeros((32, 27), "float32"))
    arguments = ("report", SEED, target, "-m", path, "-o", out, "--source", f"more={more}")
    assert weightport(*arguments).out == f"wrote {out}: everything is accounted for\n"
    first = out.read_bytes()
    text = Reader(first.decode()).text
    for file in (more, target):
        assert digest(file) in text
    weightport(*arguments)
    assert out.read_bytes() == first


def test_a_page_in_the_place_of_a_model(tmp_path: Path, mapping: Path) -> None:
    source = tmp_path / "s.npz"
    np.savez(source, w=np.zeros(1))
    before = source.read_bytes()
    for out in (source, mapping):
        ran = weightport("report", source, "-m", mapping, "-o", out, code=1)
        assert ran.told == [f"{out}: is read itself; write to another path", "1 problem; nothing was written"]
    assert source.read_bytes() == before


def test_hostile_names(tmp_path: Path) -> None:
    source, path, out = tmp_path / "s.npz", tmp_path / "m.yaml", tmp_path / "r.html"
    names = ["<script>alert(1)</script>", '" onload="x', "\u202eabc", "\x1b[31m", "{{ 7*7 }}", "&lt;"]
    np.savez(source, **{name: np.zeros(1) for name in names})
    path.write_text("weightport: 1\nrules: [{from: '{x**}', to: '{x**}'}]\n", encoding="utf-8")
    weightport("report", source, "-m", path, "-o", out)
    content = out.read_text(encoding="utf-8")
    text = Reader(content).text
    assert "<script>" not in content
    assert {names[0], names[1], "\\u202eabc", "\\x1b[31m", "{{ 7*7 }}", "&lt;"} <= set(text)
    assert re.search(r"[\u202e\x1b]", content) is None


def test_long_lists_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHOWN", 3)
    source, path, out = tmp_path / "s.npz", tmp_path / "m.yaml", tmp_path / "r.html"
    np.savez(source, **{f"t{k}": np.zeros(1) for k in range(5)})
    path.write_text("weightport: 1\nrules: [{from: '{x**}', to: '{x**}'}]\n", encoding="utf-8")
    weightport("report", source, "-m", path, "-o", out)
    text = Reader(out.read_text(encoding="utf-8")).text
    assert text.count("and 2 more") == 4
    assert "t4" not in text
