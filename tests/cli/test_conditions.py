"""Cells that are exact for some values only: what ``transfer``, ``verify``, ``lint`` and ``diff`` say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import fixture
from weightport.errors import Problem

PEEPHOLES = fixture("b_cells/lstm_peephole")
SOURCE = PEEPHOLES.path("checkpoint_v2")
CELL = "rnn/lstm_cell"
MAPPING = f"""\
weightport: 1
rules:
  - {{from: {{layout: lstm.tf1, scope: {CELL}, forget_bias: 1}}, to: {{layout: lstm.keras, scope: lstm}}}}
"""
NAMES = [f"{CELL}/w_{gate}_diag" for gate in "ifo"]
SAYS = "exact only where the peepholes are all zero"
LOOKED = f"      {SAYS}: {', '.join(NAMES)}"


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(MAPPING, encoding="utf-8")
    return path


@pytest.fixture
def zeros(tmp_path: Path) -> Path:
    """The fixture with peepholes that do nothing."""
    path = tmp_path / "zeros.npz"
    arrays = {n: np.zeros_like(a) if "diag" in n else a for n, a in PEEPHOLES.variables.items()}
    np.savez(path, **arrays)
    return path


def refused(mapping: Path) -> list[str]:
    v = PEEPHOLES.variables
    return [
        f"{mapping}:3 rules[0]: {CELL} -> lstm: the target has no peepholes, and {name!r} is {v[name][0]!s} at [0]: "
        f"{SAYS}; exact whatever its values: lstm.coreml, lstm.onnx, lstm.tf1"
        for name in NAMES
    ]


@pytest.mark.parametrize("dry", [True, False])
def test_values_that_do_something_are_refused(dry: bool, mapping: Path, tmp_path: Path) -> None:
    out = ["--dry-run"] if dry else ["-o", tmp_path / "out.npz"]
    ran = weightport("transfer", SOURCE, "-m", mapping, *out, code=1)
    assert ran.told == [*refused(mapping), "3 problems; nothing was written"]
    assert ran.out.splitlines() == [
        SOURCE,
        f"  rules[0]: refused: lstm.tf1 {CELL} -> lstm.keras lstm",
        f"{LOOKED} (it does not hold)",
        "      the forget bias 1 is folded into the forget gate's bias",
        "source: 5 tensors: 5 unclaimed",
        "target: 0 tensors, 0 bytes",
    ]
    document = weightport("transfer", SOURCE, "-m", mapping, *out, "--json", code=1).json
    (rule,) = document["rules"]
    assert (rule["disposition"], rule["exact"], rule["class"]) == ("refused", False, "conditional")
    assert [c["holds"] for c in rule["conditions"]] == [False] * 3
    assert [str(Problem(**p)) for p in document["problems"]] == refused(mapping)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.yaml"]


def test_values_that_do_nothing_are_left_out(mapping: Path, zeros: Path, tmp_path: Path) -> None:
    ran = weightport("transfer", zeros, "-m", mapping, "--dry-run")
    assert ran.out.splitlines() == [
        str(zeros),
        f"  rules[0]: moved: lstm.tf1 {CELL} -> lstm.keras lstm: 5 tensors -> 3 (conditional)",
        f"{LOOKED} (it holds)",
        "      the forget bias 1 is folded into the forget gate's bias",
        "source: 5 tensors: 5 moved",
        "target: 3 tensors: 3 moved, 1.9 kB",
        "integrity: 5 to be verified (crc32)",
        "dry run: nothing was written",
    ]
    out = tmp_path / "out.npz"
    document = weightport("transfer", zeros, "-m", mapping, "-o", out, "--json").json
    (rule,) = document["rules"]
    assert (rule["disposition"], rule["exact"], rule["class"]) == ("moved", True, "conditional")
    assert rule["conditions"] == [
        {"tensor": name, "must": "zero", "where": "the peepholes are all zero", "holds": True} for name in NAMES
    ]
    assert document["problems"] == []
    ran = weightport("verify", zeros, out, "-m", mapping)
    assert ran.out.splitlines()[0] == "3 of 3 tensors hold what the mapping makes of the source"
    assert f"rules[0]: {CELL} -> lstm: the same function" in ran.out


def test_back_into_the_original(mapping: Path, zeros: Path, tmp_path: Path) -> None:
    """Fine-tuned weights go back, and the peepholes are zeros again."""
    out, back = tmp_path / "out.npz", tmp_path / "back.npz"
    weightport("transfer", zeros, "-m", mapping, "-o", out)
    ran = weightport("transfer", out, zeros, "-m", mapping, "--reverse", "-o", back)
    assert "      the target's peepholes are zero" in ran.out.splitlines()
    with np.load(back) as found, np.load(zeros) as original:
        assert set(found.files) == set(original.files)
        for name in original.files:
            np.testing.assert_allclose(found[name], original[name], rtol=0, atol=1e-6)
    weightport("verify", out, back, "-m", mapping, "--reverse")


def test_verify_refuses_another_source(mapping: Path, zeros: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    weightport("transfer", zeros, "-m", mapping, "-o", out)
    assert weightport("verify", SOURCE, out, "-m", mapping, code=1).told == refused(mapping)
    document = weightport("verify", SOURCE, out, "-m", mapping, "--json", code=1).json
    assert (document["equal"], document["cells"], len(document["problems"])) == (False, [], 3)


def test_diff_refuses_what_it_would_leave_out(mapping: Path, zeros: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    weightport("transfer", zeros, "-m", mapping, "-o", out)
    weightport("diff", zeros, out, "-m", mapping)
    assert weightport("diff", SOURCE, out, "-m", mapping, code=1).told == refused(mapping)


def test_lint_warns(mapping: Path) -> None:
    ran = weightport("lint", mapping, "--source", SOURCE)
    assert ran.told == [
        f"warning: {mapping}:3 rules[0]: {SAYS}: {', '.join(map(repr, NAMES))}; "
        "a transfer looks at the values, also with --dry-run"
    ]


def test_the_report_shows_the_condition(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    weightport("report", SOURCE, "-m", mapping, "-o", out)
    assert f"{SAYS}: {', '.join(NAMES)} (looked at before anything is written)" in out.read_text(encoding="utf-8")


def test_suggest_says_so(zeros: Path, mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    weightport("transfer", zeros, "-m", mapping, "-o", out)
    ran = weightport("suggest", SOURCE, out)
    assert f"  # {SAYS}: a transfer looks" in ran.out.splitlines()
