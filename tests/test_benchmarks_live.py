"""The benchmark of injection runs, and what it compares is equal. Of its own, since files are dealt out to workers."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support import need
from tests.test_benchmarks import bench


def test_injection(tmp_path: Path) -> None:
    for library in ("tensorflow", "keras", "torch", "jax", "flax", "safetensors"):
        need(library)
    out = bench("bench_inject.py", "--mb", "1", "--folder", str(tmp_path))
    names = re.findall(r"^\| ([\w., +]+) \| \d", out, re.MULTILINE)
    assert names == [
        "Saver.restore", "init_from_checkpoint", "weightport",
        "RestoreV2 + tf.transpose, transposed", "weightport, transposed", "an assign each",
        "load_weights", "weightport", "weightport, transposed",
        "torch.load", "torch.load, mapped", "weightport .pt", "load_file", "weightport .safetensors",
        "load_file", "weightport",
    ]  # fmt: skip
    growth = re.search(r"GraphDef: (\d+) bytes more for each variable", out)
    assert growth is not None
    assert int(growth[1]) <= 1000
