"""``scripts/kill_writers.py``: the table that docs/reliability.md shows, with a few runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from scripts.kill_writers import row

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run(tmp_path: Path) -> None:
    writers = ["--writer", "npz", "--writer", "checkpoint shards"]
    argv = [sys.executable, "scripts/kill_writers.py", "--kills", "4", *writers, "--folder", str(tmp_path)]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert ran.returncode == 0, ran.stderr
    head, _, *rows = ran.stdout.splitlines()
    assert head == "| writer | runs | killed before the end | new model there | damaged | left over |"
    for writer, line in zip(("npz", "checkpoint shards"), rows, strict=True):
        assert re.fullmatch(rf"\| {writer} \| 4 \| \d \| \d \| 0 \| 0 \|", line)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_is_counted() -> None:
    wrong = [{"at": 1, "state": "mixed"}, {"at": 2, "after": "gone"}, {"at": 3, "left after the next run": ["x"]}]
    assert row("w", {"calls": 1000, "killed": 990, "new": 12, "wrong": wrong}) == "| w | 1,000 | 990 | 12 | 2 | 1 |"
