"""The benchmarks run, and what they compare is equal. How long anything takes is no test's business."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks import Goal, Run, ratios, table
from tests.support import need

ROOT = Path(__file__).resolve().parents[1]


def bench(script: str, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *arguments], capture_output=True, encoding="utf-8", check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_ratios_are_those_within_a_round() -> None:
    base, other = ([Run(s, 1_000_000) for s in seconds] for seconds in ((1.0, 2.0, 4.0), (2.0, 2.0, 2.0)))
    assert ratios(other, base) == (1.0, 0.5, 2.0)
    text = table("a job", {"cp": base, "ours": other}, "cp", {"ours": [Goal("cp", 1.5), Goal("ours", 0.5)]})
    assert text.splitlines()[-1] == (
        "| ours | 1.00 (0.50 to 2.00) | 2.000 | 1 MB "
        "| at most 1.5x cp: 1.00, met; at most 0.5x ours: 1.00, **not met** |"
    )


def test_transfers(tmp_path: Path) -> None:
    for library in ("tensorflow", "torch", "safetensors"):
        need(library)
    jobs = ("transposed", "torch", "same", "pt-tensors")  # the others differ from these in their mapping only
    out = bench(
        "bench_transfer.py", "--mb", "1", "--folder", str(tmp_path), *(p for job in jobs for p in ("--job", job))
    )
    assert len(re.findall("^### ", out, re.MULTILINE)) == 4
    assert len(re.findall(r"^\| (weightport|cp)\b.*\| \d", out, re.MULTILINE)) == 20
    assert not (tmp_path / "out").exists()


def test_inspecting_and_planning(tmp_path: Path) -> None:
    need("tensorflow")
    out = bench("bench_inspect.py", "--tensors", "50", "--mb", "1", "--folder", str(tmp_path))
    assert re.findall(r"^\| ([\w, ]+) \| \d", out, re.MULTILINE) == [
        "weightport inspect", "import numpy", "import weightport", "TensorFlow", "weightport, one scope",
        "TensorFlow, parsed",
    ]  # fmt: skip
    out = bench("bench_plan.py", "--tensors", "300", "--rules", "10")
    assert re.findall(r"^\| ([\w ]+) \| \d", out, re.MULTILINE) == ["the model", "twice the tensors", "twice the rules"]


def test_simulated_scale(tmp_path: Path) -> None:
    ranges, plot = tmp_path / "ranges", tmp_path / "memory.svg"
    out = bench(
        "simulate_scale.py", "--gb", "0.01", "--share", "3", "--tb", "0.0002", "--shards", "3", "--workers", "4",
        "--folder", str(tmp_path / "data"), "--ranges", str(ranges), "--plot", str(plot),
    )  # fmt: skip
    assert "worker 1: " in out
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    assert list((tmp_path / "data").iterdir()) == []
    # Every byte of the source is read once, and every byte of the result is written once.
    found = [json.loads(line) for line in ranges.read_text(encoding="utf-8").splitlines()]
    for kind in ("read", "write"):
        spans: dict[str, list[tuple[int, int]]] = {}
        for _, what, file, offset, size in found:
            if what == kind:
                spans.setdefault(file, []).append((offset, size))
        for places in spans.values():
            places.sort()
            ends = [offset + size for offset, size in places]
            assert [offset for offset, _ in places[1:]] == ends[:-1]
    # Large tensors and small ones take turns; all the same, no worker has a task more to do than another.
    shares = [sum(size for worker, what, _, _, size in found if (worker, what) == (n, "write")) for n in range(4)]
    assert min(shares) > 0
    assert max(shares) - min(shares) <= 17 << 20


def test_a_contender_that_fails_stops_the_benchmark() -> None:
    from scripts.benchmarks import Failed, run

    with pytest.raises(Failed, match="it is wrong"):
        run("raise SystemExit('it is wrong')")


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    out = bench("bench_open.py", "--gb", "0.6", "--folder", str(tmp_path))
    rows = re.findall(r"^\| \.(\w+) \| [\d.]+ ms \| ([\d,]+) \| ([\d.]+) MB \|$", out, re.MULTILINE)
    assert [ending for ending, _, _ in rows] == [
        "safetensors", "npz", "pt", "ckpt", "pb", "onnx", "h5", "gguf", "msgpack"
    ]  # fmt: skip
    assert max(int(read.replace(",", "")) for _, read, _ in rows) < 2_000_000
    assert max(float(peak) for _, _, peak in rows) < 5
    assert list(tmp_path.iterdir()) == []


def test_reliability_compared() -> None:
    for library in ("h5py", "safetensors"):
        need(library)
    tools = ("weightport, checkpoint", "weightport, .safetensors", "safetensors", "numpy", "h5py")
    out = bench(
        "compare_reliability.py", *(part for tool in tools for part in ("--tool", tool)), "--flips", "8", "--cuts", "6",
        "--kills", "1", "--mb", "0.1", "--mutants", "5",
    )  # fmt: skip
    head, _, *lines = (line.strip("| ").split(" | ") for line in out.splitlines())
    rows = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    assert tuple(rows) == tools
    assert head[2:] == [
        "flipped bits returned", "truncations returned", "destroyed by kills", "left behind", "mode kept", "link kept",
        "synced", "hostile: crashed", "hostile: ran on",
    ]  # fmt: skip
    ours, plain = rows["weightport, checkpoint"], rows["weightport, .safetensors"]
    assert ours["flipped bits returned"] == "0 of 8 (0 pinned)"
    assert plain["flipped bits returned"] == "8 of 8 (0 pinned)"
    for row in (ours, plain):
        assert (row["truncations returned"], row["destroyed by kills"], row["left behind"]) == ("0 of 6", "0 of 1", "0")
        assert (row["mode kept"], row["synced"]) == ("yes", "yes")
        assert (row["hostile: crashed"], row["hostile: ran on"]) == ("0 of 5", "0 of 5")
    assert plain["link kept"] == "yes"
