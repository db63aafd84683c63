"""The sample of mutants is the same for a seed, and the table counts what was noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import mutation_score


def made(folder: Path, **modules: dict[str, int | None]) -> Path:
    for name, codes in modules.items():
        path = folder / "weightport" / f"{name}.py.meta"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"exit_code_by_key": codes}), encoding="utf-8")
    return folder


def test_a_sample_is_the_same_for_a_seed_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"weightport.a.x_f__mutmut_{n}" for n in range(100)]
    made(tmp_path, a=dict.fromkeys(names), b={"weightport.b.x_g__mutmut_1": None}, c={})
    first = mutation_score.sample(tmp_path, 10, 1)
    assert len(set(first)) == len(first) == 11
    assert set(first) <= {*names, "weightport.b.x_g__mutmut_1"}
    assert mutation_score.sample(tmp_path, 10, 1) == first != mutation_score.sample(tmp_path, 10, 2)
    made(tmp_path, a={name: 1 if name in first else None for name in names})
    assert mutation_score.sample(tmp_path, 10, 1) == ["weightport.b.x_g__mutmut_1"]
    more = mutation_score.sample(tmp_path, 12, 1)
    assert len(more) == 3
    assert not set(more) & (set(first) - {"weightport.b.x_g__mutmut_1"})
    mutation_score.main(["names", "--of", "12", "--folder", str(tmp_path)])
    assert capsys.readouterr().out.split() == more


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, a={"1": 1, "2": -24, "3": 0, "4": 33, "5": 5, "6": None}, b={"1": 1}, c={"1": None})
    mutation_score.main(["scores", "--folder", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "| module | mutants | run | noticed | score |",
        "|---|---|---|---|---|",
        "| `weightport/a.py` | 6 | 5 | 2 | 40.0% |",
        "| `weightport/b.py` | 1 | 1 | 1 | 100.0% |",
        "| all of these | 7 | 6 | 3 | 48.6% ± 15.0 |",
    ]
    assert len(mutation_score.table(tmp_path / "none").splitlines()) == 2


def test_an_estimate_counts_modules_by_their_size() -> None:
    share, off = mutation_score.estimate([(900, 10, 9), (100, 10, 5)])
    assert share == pytest.approx(0.9 * 0.9 + 0.1 * 0.5)
    assert off == pytest.approx(1.96 * (0.81 * 0.09 / 10 * (1 - 1 / 90) + 0.01 * 0.25 / 10 * 0.9) ** 0.5)
    assert mutation_score.estimate([(10, 10, 9)]) == (0.9, 0.0)  # all of them ran
