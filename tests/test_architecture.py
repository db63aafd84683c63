"""The rules that hold the house: who may import whom, what ``import weightport`` costs, and how long a module may be.

Each rule is a function over a folder of sources, so that a planted violation shows that it can fail.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "weightport"

ALL = frozenset({"*"})


def _may(*names: str) -> frozenset[str]:
    return frozenset(names)


#: Module or package of weightport -> what of weightport it may import. A package may always import itself; ``errors``
#: is open to all. ``""`` is the package's own ``__init__``.
MAY_IMPORT = {
    "errors": _may(),
    "budget": _may(),
    "tensors": _may("budget"),
    "sizes": _may(),
    "collecting": _may(),
    "checksums": _may("tensors"),
    "ranges": _may("tensors"),
    "strips": _may("tensors"),
    "values": _may("tensors", "ranges", "strips"),
    "initializers": _may("tensors"),
    "formats": _may("budget", "tensors", "sizes", "checksums", "collecting"),
    "layouts": _may("tensors", "ranges", "values"),
    "scopes": _may("tensors", "layouts"),
    "mapping": _may("tensors", "layouts", "initializers"),
    "plan": _may("tensors", "sizes", "collecting", "ranges", "values", "scopes", "layouts", "mapping", "initializers"),
    "integrity": _may(),
    "inputs": _may("tensors", "integrity", "mapping", "formats.files", "formats._fs"),
    "opening": _may(
        "budget",
        "tensors",
        "integrity",
        "ranges",
        "scopes",
        "layouts",
        "mapping",
        "inputs",
        "provenance",
        "formats.detect",
        "formats._fs",
        "targets",
    ),
    "provenance": _may("tensors", "mapping", "formats._beside"),
    "lockfile": _may("provenance", "tensors", "mapping", "inputs", "formats.files", "formats._temporaries"),
    "execute": _may(
        "tensors",
        "checksums",
        "ranges",
        "strips",
        "values",
        "plan",
        "formats._io",
        "formats._fs",
        "formats._temporaries",
    ),
    "resuming": _may("", "tensors", "mapping", "plan", "inputs", "execute", "formats._fs", "formats._temporaries"),
    "cluster": _may("execute", "formats._fs"),
    "settle": _may("tensors", "ranges", "layouts", "plan"),
    "targets": _may("tensors", "formats"),
    "causes": _may("tensors", "layouts"),
    "live": _may("tensors", "layouts", "targets"),
    "losses": _may("tensors", "values", "plan", "execute"),
    "proof": _may(
        "losses",
        "tensors",
        "ranges",
        "values",
        "scopes",
        "layouts",
        "mapping",
        "plan",
        "execute",
        "settle",
        "causes",
        "live",
    ),
    "verify": _may("tensors", "values", "scopes", "layouts", "mapping", "plan", "execute", "causes", "proof"),
    "differences": _may("tensors", "values", "mapping", "plan", "execute", "settle", "proof"),
    "suggest": _may("tensors", "scopes", "layouts", "mapping", "plan"),
    "lint": _may("tensors", "scopes", "layouts", "mapping", "plan"),
    "report": _may("tensors", "sizes", "integrity", "plan"),
    "demo": ALL,
    "api": ALL,
    "tensorflow": ALL,
    "cli": ALL,
    "__main__": ALL,
    "": ALL,
}
#: The one place of each framework. A target's module may import it, and nobody else.
FRAMEWORKS = ("tensorflow", "keras", "tf_keras", "torch", "jax", "flax", "onnx")
#: What ``import weightport`` must leave alone: a command loads only what it uses.
NOT_AT_IMPORT = (
    *FRAMEWORKS,
    "h5py",
    "yaml",
    "pydantic",
    "click",
    "tqdm",
    "ml_dtypes",
    "crc32c",
    "cramjam",
    "tensorstore",
    "fsspec",
    "distributed",
)
LONGEST = 400
#: Longer modules that are one thing all the same, and why.
LONGER = {
    "formats/tf_bundle.py": "one format, read in one pass: index, entries, slices and values share their checks",
    "initializers.py": "a table of named formulas; three constant tables of AS 241 take forty lines",
}


class Import(NamedTuple):
    """One import of a module: where it stands, and the dotted name that it takes."""

    file: Path
    line: int
    name: str


def imports(file: Path, root: Path) -> Iterator[Import]:
    """Every import of a file: at its top, inside functions and under ``TYPE_CHECKING``."""
    here = file.relative_to(root).with_suffix("").parts
    package = here[:-1]
    for node in _statements(file.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        else:
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(file, node.lineno, f"{base}.{alias.name}")


@functools.cache
def _statements(text: str) -> tuple[ast.Import | ast.ImportFrom, ...]:
    return tuple(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom))


def unit(file: Path, root: Path) -> str:
    """Which row of the table a file belongs to."""
    parts = file.relative_to(root / "weightport").parts
    return "" if parts == ("__init__.py",) else parts[0].removesuffix(".py")


def sources(root: Path) -> list[Path]:
    return sorted((root / "weightport").rglob("*.py"))


def _inside(found: Import, root: Path) -> str | None:
    """The part of weightport that an import takes (``formats.detect``), ``""`` for the package itself, else None."""
    name, dot, rest = found.name.partition(".")
    if name != "weightport":
        return None
    if not dot:
        return ""
    at, known = root / "weightport", []
    for part in rest.split("."):
        at = at / part
        if not at.is_dir() and not at.with_suffix(".py").is_file():
            break
        known.append(part)
    return ".".join(known)


def forbidden_imports(root: Path) -> list[str]:
    """What breaks the table, a line each."""
    problems = []
    for file in sources(root):
        me = unit(file, root)
        if me not in MAY_IMPORT:
            problems.append(f"{file.relative_to(root)}: {me!r} has no row in the table of imports")
            continue
        allowed = MAY_IMPORT[me]
        for found in imports(file, root):
            where = f"{file.relative_to(root)}:{found.line}"
            taken = _inside(found, root)
            if taken is None:
                top = found.name.partition(".")[0]
                if top in FRAMEWORKS and me != "targets" and me not in _framework_users():
                    problems.append(f"{where}: imports {top}, which only targets may")
                continue
            other = taken.partition(".")[0]
            open_to_me = other in (me, "errors") or allowed & {"*", other, taken}
            # The version and the error class stand in the package itself; anything else there is made of all the rest.
            if not open_to_me and not (other == "" and found.name == "weightport.__version__"):
                problems.append(f"{where}: {me or 'weightport'} may not import {taken or 'weightport'}")
    return problems


def _framework_users() -> tuple[str, ...]:
    # The demo shows the move into a live variable scope, where TensorFlow is installed.
    return ("demo",)


def cycle(root: Path) -> list[str]:
    """A cycle between the rows of the table, in order; empty if they can be sorted."""
    graph: dict[str, set[str]] = {}
    for file in sources(root):
        me = unit(file, root)
        others = {i.partition(".")[0] for i in (_inside(f, root) for f in imports(file, root)) if i is not None}
        graph.setdefault(me, set()).update(others - {me, ""})
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def too_long(root: Path) -> list[str]:
    """Modules over the limit that are not listed, and listed ones that are not over it any more."""
    lengths = {
        file.relative_to(root / "weightport").as_posix(): len(file.read_text(encoding="utf-8").splitlines())
        for file in sources(root)
    }
    return [f"{name}: {length} lines" for name, length in lengths.items() if (length > LONGEST) != (name in LONGER)]


_IMPORT = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import weightport
loaded = {name.partition(".")[0] for name in sys.modules if sys.modules[name] is not None}
print(weightport.__file__)
print(",".join(sorted(loaded & set(sys.argv[3].split(",")))))
"""


def import_weightport(root: Path) -> tuple[str, list[str]]:
    """What happens in a new process where no framework can be imported: (error or "", modules that are too heavy)."""
    argv = [sys.executable, "-I", "-c", _IMPORT, str(root), ",".join(FRAMEWORKS), ",".join(NOT_AT_IMPORT)]
    run = subprocess.run(argv, capture_output=True, encoding="utf-8", check=False)
    if run.returncode:
        return run.stderr.strip().splitlines()[-1], []
    file, heavy = run.stdout.splitlines()
    assert Path(file).is_relative_to(root), file
    return "", [name for name in heavy.split(",") if name]


# --- the rules --------------------------------------------------------------------------------------------------------


def test_imports_keep_to_the_table() -> None:
    assert forbidden_imports(ROOT) == []


def test_the_packages_have_an_order() -> None:
    assert cycle(ROOT) == []


def test_modules_are_short() -> None:
    assert too_long(ROOT) == []


def test_importing_weightport_imports_numpy_and_nothing_heavier() -> None:
    assert import_weightport(ROOT) == ("", [])


def test_sources_name_no_place_of_a_machine() -> None:
    places = ("/home/", "/root/", "/Users/", "C:\\Users")
    files = [f for folder in ("weightport", "scripts", ".ci", ".github") for f in (ROOT / folder).rglob("*")]
    texts = {f: f.read_text(encoding="utf-8") for f in files if f.suffix in (".py", ".yaml", ".yml", ".md", "")
             and f.is_file()}  # fmt: skip
    assert texts
    assert [(f.name, p) for f, text in texts.items() for p in places if p in text] == []


# --- and that each of them can fail -----------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A root with a copy of the sources, to plant violations in."""
    ignored = shutil.ignore_patterns("__pycache__", "*.yaml", "data")
    shutil.copytree(PACKAGE, tmp_path / "weightport", ignore=ignored)
    return tmp_path


def _plant(copy: Path, module: str, code: str) -> None:
    file = copy / "weightport" / module
    file.parent.mkdir(exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(f"{before}\n{code}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        ("tensors.py", "import weightport.formats.npz", "tensors may not import formats.npz"),
        ("formats/npz.py", "from weightport import layouts", "formats may not import layouts"),
        ("formats/npz.py", "from weightport.layouts.table import Row", "formats may not import layouts.table"),
        ("formats/npz.py", "from .. import targets", "formats may not import targets"),
        ("layouts/table.py", "def f():\n    from weightport.formats import npz", "layouts may not import formats.npz"),
        ("layouts/table.py", "if TYPE_CHECKING:\n    from weightport.plan import Plan", "layouts may not import plan"),
        ("execute/files.py", "from weightport.formats import _io, npz", "execute may not import formats.npz"),
        ("errors.py", "from weightport import Error", "errors may not import weightport"),
        ("formats/npz.py", "def f():\n    import tensorflow.compat.v1", "imports tensorflow, which only targets may"),
        ("oddments.py", "import os", "'oddments' has no row in the table of imports"),
    ],
)
def test_a_forbidden_import_is_seen(copy: Path, module: str, code: str, told: str) -> None:
    if told.endswith("import plan"):
        _plant(copy, "plan.py", "Plan = object")
    before = forbidden_imports(copy)
    _plant(copy, module, code)
    new = [line for line in forbidden_imports(copy) if line not in before]
    assert [line.partition(": ")[2] for line in new] == [told]
    assert new[0].startswith(f"weightport/{module}")


def test_what_the_table_allows_is_not_seen(copy: Path) -> None:
    before = forbidden_imports(copy)
    _plant(copy, "execute/files.py", "from weightport.formats import _io\nfrom weightport.errors import Error")
    _plant(copy, "cli/extra.py", "from weightport import formats, targets")
    _plant(copy, "formats/npz.py", "from weightport import __version__")
    assert forbidden_imports(copy) == before


def test_a_cycle_is_seen(copy: Path) -> None:
    _plant(copy, "tensors.py", "def late():\n    from weightport.targets import keras3")
    assert set(cycle(copy)) >= {"tensors", "targets"}


def test_a_long_module_is_seen(copy: Path) -> None:
    before = set(too_long(copy))
    _plant(copy, "oddments.py", "\n" * LONGEST)
    assert set(too_long(copy)) - before == {f"oddments.py: {LONGEST + 2} lines"}


def test_a_listed_module_that_became_short_is_seen(copy: Path) -> None:
    before, name = set(too_long(copy)), next(iter(LONGER))
    (copy / "weightport" / name).write_text("", encoding="utf-8")
    assert set(too_long(copy)) - before == {f"{name}: 0 lines"}


@pytest.mark.parametrize("heavy", ["h5py", "yaml", "ml_dtypes"])
def test_a_heavy_import_is_seen(copy: Path, heavy: str) -> None:
    _plant(copy, "errors.py", f"import {heavy}")
    error, loaded = import_weightport(copy)
    assert (error, heavy in loaded) == ("", True)


def test_a_framework_at_import_is_seen(copy: Path) -> None:
    _plant(copy, "errors.py", "import tensorflow")
    error, _ = import_weightport(copy)
    assert "tensorflow" in error
