"""What becomes of damaged files and killed writers, tool by tool: ``python scripts/compare_reliability.py``.

Makes its own data in a temporary folder, and prints a Markdown table for weightport's formats and for TensorFlow,
safetensors, torch, h5py, numpy and onnx, those of them that are installed:

- bits of tensor data that were flipped, and came back as values without an error; for weightport also with the digest
  of the file pinned (``--expect-sha256``);
- lengths at which a truncated file was read without an error, and gave something else;
- kills (SIGKILL at a random moment of a save over an older file) after which the destination could not be read, or was
  a mixture; and files that were left beside it, by all of them;
- whether the mode and a symbolic link of the destination were kept, and whether anything was synced to the disk (as
  ``strace`` sees it where that works, else as Python's ``os.fsync`` does);
- nearly right files, with checksums that fit (``framed.py``), on which the process crashed, or ran for more than
  ``--limit`` seconds of processor time.

Each job runs in processes that may be lost, forked where the library is imported and has done nothing yet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from framed import mutated
from reliability_tools import TOOLS, Arrays, Tool
from specimens import FOLDER

COLUMNS = (
    "tool", "version", "flipped bits returned", "truncations returned", "destroyed by kills", "left behind",
    "mode kept", "link kept", "synced", "hostile: crashed", "hostile: ran on",
)  # fmt: skip
#: 76 bytes, 608 bits.
SMALL: Arrays = {"w": np.arange(16, dtype="f4").reshape(4, 4) + 0.5, "b": np.arange(3, dtype="f4") - 1.5}


@dataclass(frozen=True)
class Sizes:
    """How much is tried of each kind."""

    flips: int
    cuts: int
    kills: int
    mutants: int
    megabytes: float
    limit: float


def survey(count: int, act: Callable[[int], str], limit: float) -> Counter[str]:
    """What each of so many acts comes to, in processes of their own: what it says, ``crashed`` or ``ran on``."""
    found: Counter[str] = Counter()
    number = 0
    while number < count:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                os.close(read)
                for n in range(number, count):
                    signal.setitimer(signal.ITIMER_PROF, limit)
                    os.write(write, f"{act(n)}\n".encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as said:
            told = said.read().split("\n")[:-1]
        _, status = os.waitpid(child, 0)
        found.update(told)
        number += len(told)
        if number < count:
            found["ran on" if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF else "crashed"] += 1
            number += 1
    return found


def silent(tool: Tool, path: Path, whole: Arrays) -> bool:
    """Whether a file is read without an error, and gives something else."""
    try:
        found = tool.load(path)
    except Exception:  # whatever a tool raises, it has noticed
        return False
    if set(found) != set(whole):
        return True
    return any(found[n].dtype != a.dtype or found[n].tobytes() != a.tobytes() for n, a in whole.items())


def spread(places: Sequence[Any], most: int) -> list[Any]:
    """All of them, or that many, evenly."""
    return [places[n * len(places) // most] for n in range(most)] if len(places) > most else list(places)


def flips(tool: Tool, folder: Path, sizes: Sizes) -> str:
    path = folder / tool.file
    tool.save(path, SMALL)
    places = []
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        data = file.read_bytes()
        for array in SMALL.values():
            at = data.find(array.tobytes())
            places += [(file, 8 * at + bit) for bit in range(8 * array.nbytes)] if at >= 0 else []
    chosen, pin = spread(places, sizes.flips), tool.digest(path)

    def act(number: int) -> str:
        file, bit = chosen[number]
        data = bytearray(file.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        end = "returned" if silent(tool, path, SMALL) else "seen"
        if end == "returned" and pin and tool.digest(path) == pin:
            end = "pinned, returned"
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        return end

    found = survey(len(chosen), act, sizes.limit)
    pinned = f" ({found['pinned, returned']} pinned)" if pin else ""
    return f"{found['returned'] + found['pinned, returned']} of {len(chosen)}{pinned}"


def cuts(tool: Tool, folder: Path, sizes: Sizes) -> str:
    path = folder / tool.file
    tool.save(path, SMALL)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    chosen = spread([(file, size) for file in files for size in range(file.stat().st_size)], sizes.cuts)

    def act(number: int) -> str:
        file, size = chosen[number]
        data = file.read_bytes()
        file.write_bytes(data[:size])
        end = "returned" if silent(tool, path, SMALL) else "seen"
        file.write_bytes(data)
        return end

    return f"{survey(len(chosen), act, sizes.limit)['returned']} of {len(chosen)}"


def kills(tool: Tool, folder: Path, sizes: Sizes) -> tuple[str, str]:
    """Destroyed of killed, and files left behind. A whole file has one value throughout."""
    path, rng = folder / tool.file, random.Random(1)
    size = max(1, int(sizes.megabytes * (1 << 20) / 8))

    def arrays(value: int) -> Arrays:
        return {name: np.full(size, value, "f4") for name in ("w", "b")}

    def saving() -> int:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                for value in range(2, 1_000_000):
                    made = arrays(value)
                    os.write(write, b".")
                    tool.save(path, made)
            os._exit(0)
        os.read(read, 1)
        began = time.perf_counter()
        os.read(read, 1)  # the first save is done: whatever is loaded late is there
        duration = time.perf_counter() - began
        time.sleep(rng.random() * 2 * min(duration, 2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        return 0

    def sound(_: int) -> str:
        values = {value for array in tool.load(path).values() for value in np.unique(array).tolist()}
        return "sound" if len(values) == 1 else "mixed"

    destroyed = 0
    for _ in range(sizes.kills):
        shutil.rmtree(folder)
        folder.mkdir()
        survey(1, lambda _: str(tool.save(path, arrays(1))), 60)
        before = len(list(folder.rglob("*")))
        saving()
        destroyed += survey(1, sound, 60)["sound"] == 0
    survey(1, lambda _: str(tool.save(path, arrays(1))), 60)  # which may clean up
    return f"{destroyed} of {sizes.kills}", str(max(0, len(list(folder.rglob("*"))) - before)) if sizes.kills else "-"


def kept(tool: Tool, folder: Path) -> tuple[str, str]:
    """Mode and link of the destination, or of the one of its files that the others hang on."""
    path = folder / tool.file
    survey(1, lambda _: str(tool.save(path, SMALL)), 60)
    main = folder / tool.main
    main.chmod(0o640)
    survey(1, lambda _: str(tool.save(path, SMALL)), 60)
    mode = main.stat().st_mode & 0o777 == 0o640
    (folder / "elsewhere").mkdir()
    main.rename(folder / "elsewhere" / "real")
    main.symlink_to(folder / "elsewhere" / "real")
    survey(1, lambda _: str(tool.save(path, SMALL)), 60)
    return "yes" if mode else "no", "yes" if main.is_symlink() else "no"


SYNC = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import numpy as np
from reliability_tools import TOOLS
seen = []
for name in ("fsync", "fdatasync"):
    def called(handle, name=name, real=getattr(os, name)):
        seen.append(name)
        return real(handle)
    setattr(os, name, called)
TOOLS[sys.argv[1]].load_library()
TOOLS[sys.argv[1]].save(Path(sys.argv[2]), {"w": np.ones((4, 4), "f4")})
print("synced" if seen else "not synced")
"""


def synced(name: str, folder: Path) -> str:
    here = Path(__file__).resolve().parent
    argv = [sys.executable, "-c", SYNC, name, str(folder / TOOLS[name].file), str(here), str(here.parent)]
    trace, strace = folder / "trace", shutil.which("strace")
    if strace:
        watched = [strace, "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync,msync,sync_file_range", *argv]
        ran = subprocess.run(watched, capture_output=True, text=True, check=False)
        if ran.returncode == 0 and "exited" in trace.read_text():
            return "yes" if any("sync" in line for line in trace.read_text().splitlines()) else "no"
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    # What a library does below Python is not seen without strace.
    return "yes" if ran.stdout.split() == ["synced"] else ("no" if TOOLS[name].pure else "not by Python")


def hostile(tool: Tool, folder: Path, sizes: Sizes) -> tuple[str, str]:
    """Nearly right files of the tool's format."""
    source = FOLDER / tool.specimen
    files = {str(f.relative_to(source)): f.read_bytes() for f in sorted(source.rglob("*")) if f.is_file()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = [name for name in files if ".data-" not in name]

    def act(number: int) -> str:
        rng = random.Random(number)
        name = rng.choice(names)
        (folder / name).write_bytes(mutated(rng, tool.format, name, files[name]))
        with contextlib.suppress(Exception):
            tool.load(folder / tool.hostile)
        (folder / name).write_bytes(files[name])
        return "ended"

    found = survey(sizes.mutants, act, sizes.limit)
    return f"{found['crashed']} of {sizes.mutants}", f"{found['ran on']} of {sizes.mutants}"


@contextlib.contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    path = root / name
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def compared(name: str, root: Path, sizes: Sizes) -> list[str]:
    """A tool's row."""
    tool = TOOLS[name]
    version = tool.load_library()
    row = [name, version]
    with scratch(root, "flips") as folder:
        row.append(flips_of(tool, folder, sizes))
    with scratch(root, "cuts") as folder:
        row.append(cuts_of(tool, folder, sizes))
    with scratch(root, "kills") as folder:
        row += kills(tool, folder, sizes)
    with scratch(root, "kept") as folder:
        row += kept(tool, folder)
    with scratch(root, "sync") as folder:
        row.append(synced(name, folder))
    with scratch(root, "hostile") as folder:
        row += hostile(tool, folder, sizes)
    return row


def _apart(job: Callable[[Tool, Path, Sizes], str]) -> Callable[[Tool, Path, Sizes], str]:
    """The job in a process of its own, so that the library has done nothing yet in this one."""

    def run(tool: Tool, folder: Path, sizes: Sizes) -> str:
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(write, job(tool, folder, sizes).encode())
            except BaseException as error:
                os.write(write, f"failed: {error!r}".encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as said:
            told = said.read()
        os.waitpid(child, 0)
        if not told or told.startswith("failed"):
            raise SystemExit(f"{tool.file}: {told or 'the process is gone'}")
        return told

    return run


flips_of, cuts_of = _apart(flips), _apart(cuts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", action="append", choices=TOOLS, help="only this one (repeatable)")
    parser.add_argument("--flips", type=int, default=608, help="at most so many bits")
    parser.add_argument("--cuts", type=int, default=10_000, help="at most so many lengths")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--mb", type=float, default=16.0, help="size of what is saved under kills")
    parser.add_argument("--mutants", type=int, default=1000, help="nearly right files")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds of processor time for one of them")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    given = parser.parse_args(arguments)
    sizes = Sizes(given.flips, given.cuts, given.kills, given.mutants, given.mb, given.limit)
    rows: list[Mapping[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="weightport-compare-") as root:
        for name in given.tool or TOOLS:
            if not TOOLS[name].is_there():
                print(f"  {name}: not installed", file=sys.stderr)
                continue
            rows.append(dict(zip(COLUMNS, compared(name, Path(root), sizes), strict=True)))
            print(f"  {' | '.join(rows[-1].values())}", file=sys.stderr, flush=True)
    print(json.dumps(rows) if given.json else table([list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
