"""A short run of ``scripts/fuzz_readers.py``: what it has to come to, for the tests of each group of readers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_readers.py"
MEGABYTES = 64


def fuzz(reader: str, executions: int, folder: Path) -> None:
    """No finding, no process lost, no more memory than the bound; and mutants get past the first look."""
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--reader", reader, "--executions", str(executions), "--limit", "0",
         "--folder", str(folder)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    row = re.search(
        rf"^\| {reader} \| (?P<executions>[\d,]+) \| (?P<refused>[\d,]+) \| (?P<partly>[\d,]+) \| (?P<read>[\d,]+) "
        r"\| (?P<endings>[\d,]+) \| \d+ ms \| (?P<memory>\d+) MB \| 0 \|$",
        ran.stdout,
        re.MULTILINE,
    )
    assert row is not None, ran.stdout
    found = {name: int(text.replace(",", "")) for name, text in row.groupdict().items()}
    assert found["executions"] == executions == found["refused"] + found["partly"] + found["read"]
    assert found["memory"] <= MEGABYTES
    assert found["read"] + found["partly"] > executions // 100
    assert found["endings"] >= 10
