"""How reading files ends: run as a process of its own, which may take so much memory and no more.

``python ended.py CASES REPORT``: CASES is a JSON list of paths, REPORT gets how each ended. A file that takes too much
memory or processor time ends the process, and the report ends before it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import signal
import sys
from pathlib import Path

import weightport as wp
from weightport.errors import Error

#: How far the process may grow beyond what it has when it begins, and the seconds of processor time of one file.
MEMORY, SECONDS = 64 << 20, 20.0


def ended(path: str, *, untrusted: bool = False) -> str:
    """The error of opening a file, or what each tensor of it ends with, or how many could be read."""
    try:
        source = wp.open(path, untrusted=untrusted)
    except Error as error:
        return str(error)
    told = []
    with source:
        try:
            names = list(source.specs())
        except Error as error:
            return str(error)
        for name in names:
            try:
                spec = source.specs()[name]
                value = source.read(name)
                assert (value.dtype, value.shape) == (spec.dtype, spec.shape), name
                source.extent(name)
            except Error as error:
                told.append(str(error))
        try:
            source.facts(names)
            source.provenance()
        except Error as error:
            told.append(str(error))
    return "\n".join(dict.fromkeys(told)) or f"{len(names)} read"


def main(cases: str, report: str) -> None:
    told = json.loads(Path(cases).read_text(encoding="utf-8"))
    for path in told["first"]:  # what reading imports, and libraries allocate once, is not counted
        with contextlib.suppress(Error):
            ended(path)
    gc.collect()
    if told["bounded"]:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with Path(report).open("w", encoding="utf-8") as out:
        for path in told["cases"]:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            out.write(json.dumps(ended(path, untrusted=told["untrusted"])) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
