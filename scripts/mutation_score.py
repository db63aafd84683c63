"""How many small changes of the code its tests notice: the mutation score of parsers and writers.

``python scripts/mutation_score.py run`` changes one place at a time in a random sample of each module (the same for a
``--seed``) and runs the tests nearest to that module; ``table`` prints what came of it in Markdown, the last row being
an estimate for all modules, each counted by its size; ``missed`` prints the changes that no test noticed. ``run`` goes
on where it was stopped, or tries ``--again`` what was not noticed, by other tests or with more ``--seconds``. Its
record is a file of JSON lines, of one state of the package. The changes are those of ``mutmut.mutation`` in functions
and methods, decorated ones included.

Nearest are the tests of the module's name, those that import it and those named after what imports it, as long as they
take less than ``--seconds`` together. A change is noticed if a test fails or they do not end. Each is made in a copy of
the repository, so that processes that tests start have it too, and its tests run in a fork of a process that has
everything but weightport loaded already. Limits: Unix; a change that makes no difference counts as not noticed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from random import Random
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
#: Parsers of bytes that nobody has looked at before, and what makes new files appear.
MUTATED = ("execute/*.py", "formats/*.py", "budget.py", "checksums.py", "integrity.py", "provenance.py", "resuming.py")
#: Tests that repeat one thing thousands of times, or look at the sources.
LEFT_OUT = ("tests/fuzz/", "tests/faults/", "tests/real/", "tests/formats/test_corruption.py", "tests/test_benchmarks")
#: What is slow to load, and may be loaded before a fork.
LOADED = (
    *("numpy", "h5py", "yaml", "pytest", "hypothesis.strategies", "hypothesis.extra.numpy"),
    *("onnx", "torch", "jax", "tensorflow", "keras"),
)
MEMORY = 8 << 30
#: What the last tests printed, in the copy.
SAID = "said.txt"


@dataclass(frozen=True)
class Outcome:
    """One change, and what its tests said: ``code`` is pytest's exit code, or -1 if they did not end."""

    module: str
    number: int
    of: int
    code: int
    change: str

    @property
    def noticed(self) -> bool:
        """A test failed or did not end."""
        return self.code not in (0, 5)


def mutants(source: str) -> list[tuple[Any, Any]]:
    """The syntax tree and None; then pairs of a node of it and what to put in its place, in the order of the source."""
    libcst, operators = importlib.import_module("libcst"), importlib.import_module("mutmut.mutation.mutators")
    mutation = importlib.import_module("mutmut.mutation.file_mutation")
    nothing = importlib.import_module("mutmut.mutation.pragma_handling").IgnoredCode(set(), set(), set())

    class Visitor(mutation.MutationVisitor):  # type: ignore[name-defined, misc]
        def _skip_node_and_children(self, node: Any) -> bool:
            # mutmut leaves decorated functions out: its mutants stand side by side in one module. Here they do not.
            bare = node.with_changes(decorators=()) if isinstance(node, libcst.FunctionDef) else node
            return cast(bool, super()._skip_node_and_children(bare))

    wrapper = importlib.import_module("libcst.metadata").MetadataWrapper(libcst.parse_module(source))
    visitor = Visitor(operators.mutation_operators, nothing)
    wrapper.visit(visitor)
    inside = [found for found in visitor.mutations if found.contained_by_top_level_function is not None]
    return [(wrapper.module, None), *((found.original_node, found.mutated_node) for found in inside)]


def difference(before: str, after: str) -> str:
    """The lines that a change removes and adds, with their numbers."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    return "\n".join(lines)


def imported(path: Path) -> set[str]:
    """Names of what a Python file imports from weightport, as dotted modules (a name that is none does no harm)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.startswith("weightport.")}


def nearest(root: Path, modules: Iterable[str]) -> dict[str, list[str]]:
    """For each module (``weightport/formats/npz.py``) the test files to run, the nearest first."""
    tests = {
        path.relative_to(root).as_posix(): imported(path)
        for path in sorted((root / "tests").rglob("test_*.py"))
        if not path.relative_to(root).as_posix().startswith(LEFT_OUT)
    }
    package = {path.relative_to(root).as_posix(): imported(path) for path in (root / "weightport").rglob("*.py")}

    def named(module: str) -> list[str]:
        where, _, name = module.removesuffix(".py").rpartition("/")
        own = f"tests{where.removeprefix('weightport')}/test_{name.lstrip('_')}.py"
        return [own] if own in tests else []

    found = {}
    for module in modules:
        dotted = module.removesuffix(".py").replace("/", ".")
        importing = [test for test, names in tests.items() if dotted in names]
        users = [test for user, names in package.items() if dotted in names for test in named(user)]
        found[module] = list(dict.fromkeys([*named(module), *importing, *users]))
    return found


def affordable(tests: Sequence[str], times: Mapping[str, float], seconds: float) -> list[str]:
    """The first test file that passes, and as many of the others as take less than ``seconds`` together."""
    first, *others = [test for test in tests if test in times] or [""]
    chosen = [first] if first else []
    for test in sorted(others, key=times.__getitem__):
        if sum(times[other] for other in chosen) + times[test] < seconds:
            chosen.append(test)
    return chosen


def run_tests(root: Path, tests: Sequence[str], limit: float) -> int:
    """pytest's exit code in a fork of this process; -1 if it takes more than ``limit`` seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads of frameworks, which have done nothing yet
        child = os.fork()
    if not child:
        code = 3
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            said = os.open(root / SAID, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            for stream in (0, 1, 2):
                os.dup2(said, stream)
            os.chdir(root)
            sys.path.insert(0, str(root))
            options = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is loaded before is not rewritten
            code = int(importlib.import_module("pytest").main([*options, *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
    else:
        code = -1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what its tests have started
    if code == -1:
        os.waitpid(child, 0)
    return code


def copied(root: Path, to: Path) -> Path:
    """A copy of the repository without version control and environments, which are hidden folders in its root."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or (Path(folder) == root and name.startswith("."))]

    shutil.copytree(root, to, ignore=ignored)
    return to


@contextlib.contextmanager
def changed(path: Path, source: str) -> Iterator[None]:
    """Another source in a file; afterwards the old one with its old times, by which its bytecode is still good."""
    before, status = path.read_bytes(), path.stat()
    path.write_text(source, encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


#: Where a worker's copy of the repository is, and what was parsed last: consecutive jobs are of the same module.
_copy = ROOT
_parsed = lru_cache(maxsize=2)(mutants)


def prepare(root: Path, folder: str, load: Sequence[str]) -> None:
    """A worker's copy of the repository; and what tests would load is loaded once, before all forks."""
    global _copy
    sys.dont_write_bytecode = True
    _copy = copied(root, Path(tempfile.mkdtemp(dir=folder)) / "copy")
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_copy)}
    os.environ |= {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name in load:
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)


def timed(test: str) -> dict[str, Any]:
    """How long a test file takes in the worker's copy, and what it says if it fails."""
    started = time.monotonic()
    code = run_tests(_copy, [test], 900)
    seconds = round(time.monotonic() - started, 2)
    said = (_copy / SAID).read_text(encoding="utf-8", errors="replace")[-1500:] if code else ""
    return {"test": test, "code": code, "seconds": seconds, "said": said}


def tried(module: str, number: int, tests: Sequence[str], limit: float) -> dict[str, Any]:
    """What the tests say of one mutant, made in the worker's copy."""
    path = _copy / module
    source = path.read_text(encoding="utf-8")
    (tree, _), *found = _parsed(source)
    after = tree.deep_replace(*found[number]).code
    with changed(path, after):
        code = run_tests(_copy, tests, limit)
    return asdict(Outcome(module, number, len(found), code, difference(source, after)))


def read(record: Path) -> tuple[dict[str, float], list[Outcome]]:
    """Seconds of each test file that passes, and the last outcome of each change so far."""
    times: dict[str, float] = {}
    outcomes: dict[tuple[str, int], Outcome] = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else ():
        entry = json.loads(line)
        if "module" in entry:
            outcomes[entry["module"], entry["number"]] = Outcome(**entry)
        elif entry["code"] == 0:
            times[entry["test"]] = entry["seconds"]
    return times, list(outcomes.values())


def run(root: Path, record: Path, modules: Sequence[str], given: argparse.Namespace) -> None:
    """Runs as many mutants of each module as are missing to ``given.of``; ``record`` gets what came of them."""
    tests = nearest(root, modules)
    times, outcomes = read(record)
    done = {(outcome.module, outcome.number) for outcome in outcomes if outcome.noticed or not given.again}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(record.open("a", encoding="utf-8"))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        start = (root, folder, given.load)
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(given.jobs, context, initializer=prepare, initargs=start))

        def kept(jobs: Iterable[Future[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
            for job in as_completed(list(jobs)):
                file.write(json.dumps(job.result()) + "\n")
                file.flush()
                yield job.result()

        untimed = sorted({test for chosen in tests.values() for test in chosen} - set(times))
        for result in kept(pool.submit(timed, test) for test in untimed):
            if result["code"]:
                print(f"{result['test']}: left out, fails without any change:\n{result['said']}", file=sys.stderr)
            else:
                times[result["test"]] = result["seconds"]
        jobs = []
        for module in modules:
            total = len(mutants((root / module).read_text(encoding="utf-8"))) - 1
            chosen = affordable(tests[module], times, given.seconds)
            if not chosen:
                print(f"{module}: no tests", file=sys.stderr)
                continue
            limit = 30 + 5 * sum(times[test] for test in chosen)
            for number in Random(f"{given.seed} {module}").sample(range(total), min(given.of, total)):
                if (module, number) not in done:
                    jobs.append(pool.submit(tried, module, number, chosen, limit))
        for _ in kept(jobs):
            pass


def estimate(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """The share of all mutants that would be noticed, and how far off that may be (1.96 standard errors).

    Args:
        counts: of each module its mutants, those that ran, and those that were noticed.
    """
    everything = sum(total for total, _, _ in counts)
    share = variance = 0.0
    for total, ran, noticed in counts:
        weight, here = total / everything, noticed / ran
        share += weight * here
        variance += weight**2 * here * (1 - here) / ran * (1 - ran / total)
    return share, 1.96 * sqrt(variance)


def table(outcomes: Sequence[Outcome]) -> str:
    """All modules of which mutants ran, and the estimate for all of them."""
    lines = ["| module | mutants | run | noticed | score |", "|---|---|---|---|---|"]
    counts = []
    for module in sorted({outcome.module for outcome in outcomes}):
        here = [outcome for outcome in outcomes if outcome.module == module]
        total, ran, noticed = here[-1].of, len(here), sum(outcome.noticed for outcome in here)
        counts.append((total, ran, noticed))
        lines.append(f"| `{module}` | {total:,} | {ran:,} | {noticed:,} | {noticed / ran:.1%} |")
    if counts:
        share, off = estimate(counts)
        everything, ran_of_all, noticed_of_all = (sum(column) for column in zip(*counts, strict=True))
        score = f"{share:.1%} ± {100 * off:.1f}"
        lines.append(f"| all of these | {everything:,} | {ran_of_all:,} | {noticed_of_all:,} | {score} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "missed"])
    parser.add_argument(
        "modules", nargs="*", help="paths such as weightport/formats/npz.py (default: parsers and writers)"
    )
    parser.add_argument("--of", type=int, default=10, help="mutants of each module (default: 10)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once (default: one for each core)")
    parser.add_argument("--seconds", type=float, default=20, help="of tests for each mutant (default: 20)")
    parser.add_argument("--again", action="store_true", help="also those that were not noticed before")
    parser.add_argument("--load", nargs="*", default=LOADED, help="modules to load before each fork")
    parser.add_argument("--record", type=Path, default=Path("mutation_score.jsonl"))
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository (default: this one)")
    given = parser.parse_args(arguments)
    package = given.root / "weightport"
    found = sorted(path for pattern in MUTATED for path in package.glob(pattern) if path.name != "__init__.py")
    modules = given.modules or [path.relative_to(given.root).as_posix() for path in found]
    if given.what == "run":
        run(given.root, given.record, modules, given)
    outcomes = [outcome for outcome in read(given.record)[1] if outcome.module in modules]
    if given.what == "missed":
        print("\n".join(f"{o.module} {o.number}\n{o.change}" for o in outcomes if not o.noticed))
    else:
        print(table(outcomes))


if __name__ == "__main__":
    main()
