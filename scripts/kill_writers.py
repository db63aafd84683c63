"""Every writer, killed again and again: ``python scripts/kill_writers.py --kills N [--writer W] [--folder F]``.

A transfer over an older model runs in a process of its own, which is killed (SIGKILL) at a random moment. Then the
destination has to be the old model or the complete new one, and after the next transfer nothing may be left over. The
transfers, and what is looked at, are those of ``tests/faults/breaker.py``, whose other modes kill and fail each call
that changes the file system. The folder should be on the disk that is meant: in memory nothing takes time.

The summary is a Markdown table: how many runs were killed before their end, after how many of these the new model was
there, how many destinations were neither model, and how many files were left over.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults.test_breaker import CASES, make  # noqa: E402


def killed(writer: str, kills: int, folder: Path) -> dict[str, Any]:
    """What came of one writer."""
    out, like, more = CASES[writer]
    if like:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(folder, like)
    argv = [sys.executable, "-m", "tests.faults.breaker", str(folder), out, like, str(kills), json.dumps(more)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, encoding="utf-8", check=False, env=environment)
    if ran.returncode:
        raise SystemExit(f"{writer}: {ran.stderr}")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def row(writer: str, found: dict[str, Any]) -> str:
    """The summary's line."""
    damaged = sum(bool({"state", "after", "resumed"} & wrong.keys()) for wrong in found["wrong"])
    left = len(found["wrong"]) - damaged
    cells = [writer, f"{found['calls']:,}", f"{found.get('killed', 0):,}", f"{found.get('new', 0):,}"]
    return f"| {' | '.join([*cells, str(damaged), str(left)])} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 1 if anything was damaged or left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each writer")
    parser.add_argument("--writer", action="append", choices=list(CASES), help="only this one (repeatable)")
    parser.add_argument("--folder", help="where the models are written; default: the folder for temporary files")
    given = parser.parse_args(arguments)
    print(
        "| writer | runs | killed before the end | new model there | damaged | left over |\n|---|---|---|---|---|---|"
    )
    bad = False
    for writer in given.writer or CASES:
        with tempfile.TemporaryDirectory(prefix="weightport-kills-", dir=given.folder) as folder:
            found = killed(writer, given.kills, Path(folder))
        print(row(writer, found), flush=True)
        for wrong in found["wrong"]:
            print(f"{writer}: {wrong}", file=sys.stderr)
        bad = bad or bool(found["wrong"])
    return int(bad)


if __name__ == "__main__":
    raise SystemExit(main())
