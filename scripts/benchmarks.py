"""What the benchmarks share: contenders in processes of their own, interleaved in one run, compared as ratios.

Promise: a contender's time is what it says it took for the job itself (imports left out unless it counts them), its
memory the largest resident set of its whole process; every round runs all contenders, so that a busy machine is busy
for all of them. Limit: ratios, not seconds, are worth comparing between machines; Linux and macOS only (``os.wait4``).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender: seconds of the job, the process's peak in bytes, and what it said beside that."""

    seconds: float
    peak: int
    said: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a contender is to reach: its time against another's, at most."""

    against: str
    ratio: float


class Failed(Exception):
    """A contender ended with an error, or its result was wrong."""


def run(code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
    """Python code in a process of its own. Its last line of output is a JSON object with ``seconds``.

    Args:
        code: gets the arguments as ``sys.argv[1:]``.
        environment: variables beside those of this process.
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        output = process.stdout.read().decode()
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(errors.strip() or output.strip() or f"exit code {process.returncode}")
    said = json.loads(output.strip().splitlines()[-1])
    return Run(float(said.pop("seconds")), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), said)


def interleaved(contenders: Mapping[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Every contender once in each round, in turn; the first to run changes from round to round."""
    found: dict[str, list[Run]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(contenders[name]())
            print(f"  round {number + 1}: {name}: {found[name][-1].seconds:.3f} s", file=sys.stderr, flush=True)
    return found


def ratios(runs: Sequence[Run], base: Sequence[Run]) -> tuple[float, float, float]:
    """Median, smallest and largest of the ratios within each round."""
    found = [a.seconds / max(b.seconds, 1e-9) for a, b in zip(runs, base, strict=True)]
    return statistics.median(found), min(found), max(found)


def table(
    title: str, runs: Mapping[str, Sequence[Run]], base: str, goals: Mapping[str, Sequence[Goal]] | None = None
) -> str:
    """A Markdown table: time against ``base`` as median (min to max), seconds, peak memory, goals with their figure."""
    lines = [f"### {title}", "", f"| who | time / {base} | seconds | peak memory | goal |", "|---|---|---|---|---|"]
    for name, own in runs.items():
        median, least, most = ratios(own, runs[base])
        reached = []
        for goal in (goals or {}).get(name, ()):
            figure = ratios(own, runs[goal.against])[0]
            met = "met" if figure <= goal.ratio else "**not met**"
            reached.append(f"at most {goal.ratio:g}x {goal.against}: {figure:.2f}, {met}")
        peak = max(one.peak for one in own)
        seconds = statistics.median(one.seconds for one in own)
        lines.append(
            f"| {name} | {median:.2f} ({least:.2f} to {most:.2f}) | {seconds:.3f} | {peak / 1e6:,.0f} MB "
            f"| {'; '.join(reached)} |"
        )
    return "\n".join(lines)


def folder(given: str | None, default: str) -> Path:
    """Where the data is made: what was given, or a folder of that name in the system's place for temporary files."""
    import tempfile

    path = Path(given) if given else Path(tempfile.gettempdir()) / default
    path.mkdir(parents=True, exist_ok=True)
    return path
