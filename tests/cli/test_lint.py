"""``lint``: what it prints and how it exits; what it finds is in ``tests/test_lint.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.cli.test_transfer import MAPPING, SOURCE, TEN
from tests.support import fixture

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(MAPPING, encoding="utf-8")
    return file


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    file = tmp_path / "bad.yaml"
    file.write_text(TEN, encoding="utf-8")
    return file


def test_a_good_mapping(good: Path) -> None:
    ran = weightport("lint", good)
    assert (ran.out, ran.err) == (f"{good}: ok\n", "")
    document = weightport("lint", good, "--source", SOURCE, "--json").json
    assert document == {"mappings": [{"path": str(good), "problems": [], "warnings": []}], "problems": []}


def test_every_mapping_is_checked_and_every_problem_told(good: Path, bad: Path) -> None:
    ran = weightport("lint", bad, good, bad.with_name("nope.yaml"), code=1)
    count = len(ran.told) - 1
    assert count >= 10
    assert ran.out.splitlines() == [
        f"{bad}: {count} problems",
        f"{good}: ok",
        f"{bad.with_name('nope.yaml')}: 1 problem",
    ]
    document = weightport("lint", bad, good, "--json", code=1).json
    assert set(document) == {"mappings", "problems"}
    assert all(set(m) == {"path", "problems", "warnings"} for m in document["mappings"])
    assert document["problems"] == document["mappings"][0]["problems"]
    assert all(set(p) == {"where", "what", "hint"} for p in document["problems"])


def test_a_model_that_cannot_be_read_is_a_problem_beside_those_of_the_mappings(bad: Path, tmp_path: Path) -> None:
    own = weightport("lint", bad, code=1).told
    ran = weightport("lint", bad, "--source", tmp_path / "nope", code=1)
    assert ran.told[1:] == own
    assert ran.told[0].startswith(f"{tmp_path / 'nope'}: ")


def test_what_was_not_compared_is_not_called_ok(good: Path, tmp_path: Path) -> None:
    ran = weightport("lint", good, "--target", tmp_path / "nope", code=1)
    assert ran.out == f"{good}: ok; not compared with what cannot be read\n"


def test_a_warning_does_not_fail(good: Path) -> None:
    good.write_text(MAPPING + "ignore: ['**/Adam']\n", encoding="utf-8")
    ran = weightport("lint", good, "--source", SOURCE)
    assert ran.out == f"{good}: 1 warning\n"
    assert ran.told == [f"warning: {good}:11 ignore[0]: ignore: '**/Adam' matches no tensor of {SOURCE}"]


def test_with_a_target(good: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "target.npz", **{"lstm/kernel": np.zeros((27, 128), np.float32)})
    ran = weightport("lint", good, "--target", tmp_path / "target.npz", code=1)
    assert any("no tensor 'dense/kernel'" in line for line in ran.told)


def test_a_digest_is_checked(good: Path) -> None:
    good.write_text(MAPPING + f"source: {{sha256: {'ab' * 32}}}\n", encoding="utf-8")
    weightport("lint", good)
    ran = weightport("lint", good, "--source", fixture("a_seed_char_lstm").path("frozen"), code=1)
    assert len(ran.told) == 1
    assert "its SHA-256 is " in ran.told[0]


def test_the_mappings_that_ship_pass(tmp_path: Path) -> None:
    mappings = sorted((ROOT / "mappings").glob("*.yaml"))
    assert mappings
    assert weightport("lint", *mappings).out.count(": ok\n") == len(mappings)
    assert list(tmp_path.iterdir()) == []


def test_no_mapping_is_a_wrong_command_line() -> None:
    assert "Missing argument 'MAPPING...'" in weightport("lint", code=2).err
