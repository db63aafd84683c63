"""The graph beside a checkpoint tells of its cells; where it is missing or damaged, nothing is known."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.formats._graphdef import const, graph
from tests.support import fixture
from weightport.errors import Error
from weightport.formats import tf_graph, tf_meta
from weightport.formats._tf_beside import GraphBeside
from weightport.tensors import Budget


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    model = fixture("b_cells/basic_lstm_fb1")
    shutil.copy(model.path("meta_graph"), tmp_path / "m.meta")
    return str(tmp_path / "m")


def names(prefix: str) -> list[str]:
    with tf_meta.open_source(prefix + ".meta") as source:
        return list(source.specs())


def test_as_the_graph_itself_says(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(prefix)
    with tf_meta.open_source(prefix + ".meta") as source:
        expected = source.meta.facts(asked)
    assert expected["gates"] == ["i", "g", "f", "o"]
    opened = []
    real = tf_graph.open_message

    def watched(path: str, *, budget: Budget) -> Any:
        opened.append((path, budget.header_bytes, dict(budget._spent)))
        return real(path, budget=budget)

    monkeypatch.setattr(tf_graph, "open_message", watched)
    budget = Budget(header_bytes=1 << 20)
    budget.spend("header_bytes", (1 << 20) - 1, "the checkpoint")  # the graph has a budget of its own, as large
    beside = GraphBeside(prefix, budget)
    assert beside.facts([]) == {}
    assert opened == []  # nobody asked about a cell
    assert beside.facts(asked) == beside.facts(asked) == expected
    assert beside.facts(["none"]) == {}
    assert opened == [(prefix + ".meta", 1 << 20, {})]
    assert budget._spent == {"header_bytes": (1 << 20) - 1}


def test_none(prefix: str) -> None:
    beside = GraphBeside(prefix + "x", Budget())
    assert beside.facts(names(prefix)) == {}
    shutil.copy(prefix + ".meta", prefix + "x.meta")
    assert beside.facts(names(prefix)) == {}  # looked for once
    beside.close()


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"cut"])
def test_damaged(prefix: str, content: bytes) -> None:
    asked, path = names(prefix), Path(prefix + ".meta")
    path.write_bytes(path.read_bytes()[:-7] if content == b"cut" else content)
    beside = GraphBeside(prefix, Budget())
    assert beside.facts(asked) == beside.facts(asked) == {}
    beside.close()


def test_another_message(prefix: str) -> None:
    asked = names(prefix)
    Path(prefix + ".meta").write_bytes(graph(const("a", 1.0)))
    beside = GraphBeside(prefix, Budget())
    assert beside.facts(asked) == beside.facts(asked) == {}
    beside.close()


def test_closed(prefix: str) -> None:
    asked = names(prefix)
    beside = GraphBeside(prefix, Budget())
    assert beside.facts(asked)
    handle = beside._handle
    assert handle is not None
    beside.close()
    beside.close()
    assert beside.facts(asked) == {}
    with pytest.raises(Error, match="is closed"):
        handle.read(0, 1)
