"""Mutants are those of functions, each alone in a module; the nearest tests run; the table counts what was noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import mutation_score
from scripts.mutation_score import Outcome
from tests.support import need

SOURCE = """
from functools import cache

LIMIT = 3

@cache
def more(a: int) -> int:
    return a + 1

class Box:
    def unused(self, left: int, right: int) -> bool:
        return left < right
"""


def project(root: Path, test: str) -> Path:
    """A repository of one module and its tests."""
    for path, text in {
        "weightport/__init__.py": "",
        "weightport/formats/__init__.py": "",
        "weightport/formats/_tiny.py": SOURCE,
        "tests/formats/test_tiny.py": test,
        "tests/formats/.hidden": "is copied",
        ".git/config": "is not",
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def test_mutants_are_those_of_functions_decorated_ones_too() -> None:
    need("mutmut")
    (tree, nothing), *found = mutation_score.mutants(SOURCE)
    assert nothing is None
    assert tree.code == SOURCE
    changes = [mutation_score.difference(SOURCE, tree.deep_replace(*change).code) for change in found]
    assert changes[:2] == [
        "@@ -8 +8 @@\n-    return a + 1\n+    return a - 1",
        "@@ -8 +8 @@\n-    return a + 1\n+    return a + 2",
    ]
    assert changes[2] == "@@ -12 +12 @@\n-        return left < right\n+        return left <= right"
    assert not any("LIMIT" in change or "cache" in change for change in changes)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("mutmut")
    test = """
from pathlib import Path
from weightport.formats._tiny import more
import weightport.formats._tiny

def test_more():
    assert Path(__file__).with_name(".hidden").exists()
    assert not Path(__file__).parent.parent.parent.joinpath(".git").exists()
    assert more(1) == 2
"""
    root = project(tmp_path / "it", test)
    record = tmp_path / "scores.jsonl"
    arguments = ["--root", str(root), "--record", str(record), "--jobs", "1", "--load", "pytest"]
    mutation_score.main(["run", *arguments, "--of", "2"])
    first = mutation_score.read(record)[1]
    assert len(first) == 2
    mutation_score.main(["run", *arguments, "--of", "99"])
    outcomes = mutation_score.read(record)[1]
    assert outcomes[:2] == first
    assert sorted(o.number for o in outcomes) == list(range(outcomes[0].of))
    assert {o.change.splitlines()[1].strip(): o.noticed for o in outcomes} == {
        "-    return a + 1": True,
        "-        return left < right": False,
    }
    capsys.readouterr()
    mutation_score.main(["missed", *arguments])
    assert capsys.readouterr().out.startswith("weightport/formats/_tiny.py ")
    more = test + "\ndef test_box():\n    assert not weightport.formats._tiny.Box().unused(1, 1)\n"
    (root / "tests/formats/test_tiny.py").write_text(more, encoding="utf-8")
    mutation_score.main(["run", *arguments, "--of", "99"])
    assert mutation_score.read(record)[1] == outcomes
    mutation_score.main(["run", *arguments, "--of", "99", "--again"])
    assert {o.number for o in mutation_score.read(record)[1]} == {o.number for o in outcomes}
    assert all(o.noticed for o in mutation_score.read(record)[1])
    assert (root / "weightport/formats/_tiny.py").read_text(encoding="utf-8") == SOURCE
    mutation_score.main(["table", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| `weightport/formats/_tiny.py` | ")
    assert lines[3].startswith("| all of these | ")


def test_tests_that_fail_without_any_change_tell_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("mutmut")
    root = project(tmp_path / "it", "import weightport.formats._tiny\n\ndef test_it():\n    assert False, 'as it is'\n")
    record = tmp_path / "scores.jsonl"
    mutation_score.main(["run", "--root", str(root), "--record", str(record), "--jobs", "1", "--load", "pytest"])
    error = capsys.readouterr().err
    assert error.startswith("tests/formats/test_tiny.py: left out, fails without any change:\n")
    assert "AssertionError: as it is" in error
    assert error.endswith("weightport/formats/_tiny.py: no tests\n")
    assert mutation_score.read(record) == ({}, [])


def test_tests_that_do_not_end_are_ended(tmp_path: Path) -> None:
    root = project(tmp_path, "import time\n\ndef test_it():\n    time.sleep(600)\n")
    assert mutation_score.run_tests(root, ["tests/formats/test_tiny.py"], 0.5) == -1
    assert Outcome("m", 0, 1, -1, "").noticed


def test_the_nearest_tests(tmp_path: Path) -> None:
    root = project(tmp_path, "")
    for path, text in {
        "weightport/formats/user.py": "from weightport.formats import _tiny\n",
        "tests/formats/test_user.py": "",
        "tests/formats/test_another.py": "import weightport.formats._tiny\n",
        "tests/fuzz/test_fuzz.py": "import weightport.formats._tiny\n",
    }.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    assert mutation_score.nearest(root, ["weightport/formats/_tiny.py", "weightport/formats/user.py"]) == {
        "weightport/formats/_tiny.py": [f"tests/formats/test_{name}.py" for name in ("tiny", "another", "user")],
        "weightport/formats/user.py": ["tests/formats/test_user.py"],
    }


def test_the_first_tests_run_whatever_they_take_and_others_if_they_fit() -> None:
    times = {"own": 30.0, "b": 9.0, "c": 2.0, "d": 12.0}
    assert mutation_score.affordable(["failing", "own", "b", "c"], times, 20) == ["own"]
    assert mutation_score.affordable(["c", "d", "b", "own"], times, 20) == ["c", "b"]
    assert mutation_score.affordable(["failing"], times, 20) == []


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "scores.jsonl"
    found = [("a", 6, 1), ("a", 6, -1), ("a", 6, 0), ("a", 6, 5), ("a", 6, 2), ("b", 1, 1)]
    lines = [json.dumps({"test": "t", "code": 0, "seconds": 1.5})]
    for number, (module, of, code) in enumerate(found):
        entry = {"module": f"weightport/{module}.py", "number": number, "of": of, "code": code, "change": "@@"}
        lines.append(json.dumps(entry))
    record.write_text("\n".join(lines), encoding="utf-8")
    assert mutation_score.read(record)[0] == {"t": 1.5}
    mutation_score.main(["table", "weightport/a.py", "weightport/b.py", "--record", str(record)])
    assert capsys.readouterr().out.splitlines() == [
        "| module | mutants | run | noticed | score |",
        "|---|---|---|---|---|",
        "| `weightport/a.py` | 6 | 5 | 3 | 60.0% |",
        "| `weightport/b.py` | 1 | 1 | 1 | 100.0% |",
        "| all of these | 7 | 6 | 4 | 65.7% ± 15.0 |",
    ]
    mutation_score.main(["table", "weightport/a.py", "--record", str(tmp_path / "none")])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_estimate_counts_modules_by_their_size() -> None:
    share, off = mutation_score.estimate([(900, 10, 9), (100, 10, 5)])
    assert share == pytest.approx(0.9 * 0.9 + 0.1 * 0.5)
    assert off == pytest.approx(1.96 * (0.81 * 0.09 / 10 * (1 - 1 / 90) + 0.01 * 0.25 / 10 * 0.9) ** 0.5)
    assert mutation_score.estimate([(10, 10, 9)]) == (0.9, 0.0)  # all of them ran
