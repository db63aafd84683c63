"""The benchmark of injection runs, and what it compares is equal: ours, and the one that is the base of each table.

Every contender takes seconds to import its framework; and the file stands alone, since files are dealt out to workers.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import need
from tests.test_benchmarks import bench


def test_injection(tmp_path: Path) -> None:
    for library in ("tensorflow", "keras", "torch", "jax", "flax", "safetensors"):
        need(library)
    ours = ("weightport", "weightport, transposed", "weightport .safetensors")
    out = bench("bench_inject.py", "--mb", "1", "--folder", str(tmp_path), *(p for who in ours for p in ("--who", who)))
    names = re.findall(r"^\| ([\w., +]+) \| \d", out, re.MULTILINE)
    assert names == [
        "Saver.restore", "weightport", "weightport, transposed", "load_weights", "weightport", "weightport, transposed",
        "torch.load", "weightport .safetensors", "load_file", "weightport",
    ]  # fmt: skip
    growth = re.search(r"GraphDef: (\d+) bytes more for each variable", out)
    assert growth is not None
    assert int(growth[1]) <= 1000
