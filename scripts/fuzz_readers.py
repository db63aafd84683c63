"""Every reader under nearly right files: ``python scripts/fuzz_readers.py --executions N [--reader R] [--seed S]``.

A deterministic mutational fuzzer that knows the formats' structures (``mutants.py``, ``framed.py``) runs each reader in
a process of its own, with a bound on the memory that it may grow by, and a limit on the time of one input. Found is:
what leaves a reader as anything but ``weightport.Error``, a process that dies, a value that is not what its spec says.
The files of a finding are kept in ``--folder``; the exit code is 1. With ``--engine atheris`` (to be installed) the
mutants are guided by coverage instead, one reader at a time, until libFuzzer's own limits end it.

The summary is a Markdown table: executions, how many mutants were refused at opening, how many gave values in part and
as a whole, the number of different ends of one seed, the slowest input and how far memory grew. ``--log FILE`` writes
what came of each reader at the end of FILE, a line of JSON; ``--summary FILE`` prints the table of all that is there,
whatever the number of runs and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specimens import OPENED

HERE = Path(__file__).resolve().parent
READERS = tuple(dict.fromkeys(opened.partition(":")[0] for opened in OPENED.values()))
#: A process works through so many; then the next begins with another corpus.
BATCH = 200_000
#: A reader whose process dies more often than this is given up.
LOSSES = 50


@dataclass
class Summary:
    """What came of one reader."""

    reader: str
    executions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    endings: int = 0
    slowest: float = 0.0
    growth: int = 0
    findings: dict[str, str] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)

    def add(self, said: dict[str, Any]) -> None:
        """Take what a process said at its end."""
        self.executions += said["executions"]
        self.kinds.update(said["kinds"])
        self.endings = max(self.endings, said["endings"])
        self.slowest = max(self.slowest, said["slowest"])
        self.growth = max(self.growth, said["growth"])
        for what, where in said["findings"].items():
            self.findings.setdefault(what, where)

    def join(self, other: Summary) -> None:
        """Take what came of another run."""
        self.executions += other.executions
        self.kinds.update(other.kinds)
        self.endings = max(self.endings, other.endings)
        self.slowest = max(self.slowest, other.slowest)
        self.growth = max(self.growth, other.growth)
        self.findings.update(other.findings)
        self.lost.update(other.lost)

    def row(self) -> str:
        """The summary's line."""
        counts = [f"{self.kinds[kind]:,}" for kind in ("refused", "partly", "read")]
        found = sum(self.lost.values()) + len(self.findings)
        cells = [self.reader, f"{self.executions:,}", *counts, f"{self.endings:,}"]
        cells += [f"{1000 * self.slowest:.0f} ms", f"{self.growth / 1e6:.0f} MB", f"{found}"]
        return f"| {' | '.join(cells)} |"


def table(summaries: Sequence[Summary]) -> str:
    """All of them, as Markdown."""
    head = "| reader | executions | refused | read in part | read | endings | slowest | memory | findings |"
    return "\n".join([head, "|" + "---|" * 9, *(summary.row() for summary in summaries)])


def logged(path: Path) -> list[Summary]:
    """What a log says of each reader, all runs together, in the order of the readers."""
    found = {reader: Summary(reader) for reader in READERS}
    for line in path.read_text().splitlines():
        said = json.loads(line)
        said = {**said, "kinds": Counter(said["kinds"]), "lost": Counter(said["lost"])}
        del said["seed"]
        found[said["reader"]].join(Summary(**said))
    return [summary for summary in found.values() if summary.executions]


def run(reader: str, executions: int, seed: str, folder: Path, limit: float) -> Summary:
    """One reader, in as many processes as it takes."""
    summary, batch = Summary(reader), 0
    while summary.executions < executions and sum(summary.lost.values()) < LOSSES:
        place = Path(tempfile.mkdtemp(prefix=f"{reader}-{seed}-{batch}-", dir=folder))
        count = min(BATCH, executions - summary.executions)
        found = _process(reader, count, f"{seed}-{batch}", place, limit)
        if isinstance(found, dict):
            summary.add(found)
            if not found["findings"]:
                shutil.rmtree(place)
        else:
            done = place / "count"
            (begun,) = struct.unpack("<q", done.read_bytes()) if done.exists() else (0,)
            if not begun:
                raise SystemExit(f"{reader}: the fuzzer itself failed: {found}")
            summary.executions += begun
            summary.lost[found] += 1
            print(f"  {reader}: {found} after {begun:,} executions: {place}", file=sys.stderr, flush=True)
        batch += 1
    return summary


def _process(reader: str, executions: int, seed: str, folder: Path, limit: float) -> dict[str, Any] | str:
    """What a process said, or why it is gone."""
    argv = [sys.executable, str(HERE / "fuzz_worker.py"), reader, str(executions), seed, str(folder), str(limit)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode == 0:
        said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
        return said
    if ran.returncode == -signal.SIGPROF:
        return f"an input took more than {limit:g} s"
    if ran.returncode < 0:
        return signal.Signals(-ran.returncode).name
    return (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=20_000, help="of each reader")
    parser.add_argument("--reader", action="append", choices=READERS, help="only this one (repeatable)")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of processor time an input may take; 0: any")
    parser.add_argument("--folder", help="where findings are kept; default: memory, where the system has such a folder")
    parser.add_argument("--engine", choices=("own", "atheris"), default="own")
    parser.add_argument("--log", type=Path, help="a file that a line is added to for each reader")
    parser.add_argument("--summary", type=Path, help="print what such a file comes to, and run nothing")
    given = parser.parse_args(arguments)
    if given.summary:
        summaries = logged(given.summary)
        print(table(summaries))
        print(f"{sum(summary.executions for summary in summaries):,} executions")
        return
    shared = Path("/dev/shm")
    folder = Path(given.folder or tempfile.mkdtemp(prefix="weightport-fuzz-", dir=shared if shared.is_dir() else None))
    folder.mkdir(parents=True, exist_ok=True)
    readers = given.reader or READERS
    if given.engine == "atheris":
        from fuzz_atheris import guided

        guided(readers[0], given.executions, folder)
        return
    summaries = []
    for reader in readers:
        summaries.append(run(reader, given.executions, given.seed, folder, given.limit))
        print(summaries[-1].row(), file=sys.stderr, flush=True)
        if given.log:
            with given.log.open("a") as log:
                log.write(json.dumps({**vars(summaries[-1]), "seed": given.seed}) + "\n")
    print(table(summaries))
    bad = [s for s in summaries if s.findings or s.lost]
    for summary in bad:
        for what, where in summary.findings.items():
            print(f"{summary.reader}: {what}: {where}")
        for what, count in summary.lost.items():
            print(f"{summary.reader}: {what}: {count} times, in {folder}")
    if bad:
        raise SystemExit(1)
    if not given.folder:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
