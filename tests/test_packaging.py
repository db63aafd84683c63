"""The wheel: what is in it, and that what is in it is found when it is installed."""

from __future__ import annotations

import email.parser
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "weightport"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as an installation builds it, with the build backend of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing of the source tree."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    run = subprocess.run(
        [*command, "--target", str(folder), str(wheel)], capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def run_installed(installed: Path, where: Path, code: str) -> list[str]:
    """Lines printed by code that finds weightport in the installed files and its dependencies here."""
    paths = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # Inserted, not PYTHONPATH: a .pth file of an editable installation would come first then.
    head = f"import sys\nsys.path[:0] = {[str(installed)]!r}\nsys.path += {list(paths)!r}\n"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", head + code], cwd=where, capture_output=True, encoding="utf-8", check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def tree(folder: Path, *suffixes: str) -> set[str]:
    files = (f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return {f.relative_to(folder.parent).as_posix() for f in files if not suffixes or f.suffix in suffixes}


def test_the_wheel_holds_the_package_whole(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = tree(SOURCE) | {f"weightport/{name}" for name in tree(ROOT / "mappings")}
    assert expected - names == set()
    assert "weightport/py.typed" in names
    assert any(name.startswith("weightport/mappings/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("weightport/layouts/tables/") and name.endswith(".yaml") for name in names)
    assert any(name.startswith("weightport/demo/") and not name.endswith(".py") for name in names)
    rest = {name for name in names - expected if ".dist-info/" not in name}
    assert rest == set(), "files that are not the package's"


def test_the_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = {name.rsplit("/", 1)[-1]: archive.read(name).decode() for name in archive.namelist() if "info/" in name}
    meta = email.parser.Parser().parsestr(info["METADATA"])
    assert (meta["Name"], meta["License-Expression"]) == ("weightport", "Apache-2.0")
    assert "Apache License" in info["LICENSE"]
    assert "weightport = weightport.cli:main" in info["entry_points.txt"]
    wanted = meta.get_all("Requires-Dist") or []
    assert wanted
    unbounded = [
        r for r in wanted if not r.startswith("weightport[") and not re.search(r"[><=~]=?\s*\d", r.split(";")[0])
    ]
    assert unbounded == [], "a requirement says from which version on it works"
    extras = set(meta.get_all("Provides-Extra") or [])
    assert {"tensorflow", "keras", "torch", "onnx", "jax", "test", "all"} <= extras
    core = [re.split(r"[><=~ ]", r)[0] for r in wanted if "extra ==" not in r]
    assert not {"tensorflow", "keras", "tf_keras", "torch", "jax", "onnx"} & set(core)


def test_an_installation_finds_its_data(installed: Path, tmp_path: Path) -> None:
    code = """
import os.path, weightport
from importlib import resources
from weightport.layouts import builtin
print(os.path.dirname(weightport.__file__))
print(len(builtin()))
print(len([f for f in (resources.files("weightport") / "mappings").iterdir() if f.name.endswith(".yaml")]))
"""
    where, layouts, mappings = run_installed(installed, tmp_path, code)
    assert Path(where) == installed / "weightport"
    assert int(layouts) > 0
    assert int(mappings) == len(list((ROOT / "mappings").glob("*.yaml"))) > 0


def test_an_installation_reads_a_model(installed: Path, tmp_path: Path) -> None:
    model = ROOT / "tests" / "data" / "fixtures" / "a_seed_char_lstm" / "model.ckpt"
    code = f"""
from weightport.formats.detect import open_source
source = open_source({os.fspath(model)!r})
print(source.read("LSTMcell/input_gate/wx").dtype.name)
"""
    assert run_installed(installed, tmp_path, code) == ["float32"]


def test_an_installation_has_its_command(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "tf_keras", "torch", "jax", "onnx"]))
from weightport.cli import main
sys.argv = ["weightport", "demo"]
main()
"""
    assert run_installed(installed, tmp_path, code)
    assert list(tmp_path.iterdir()) == [], "the demo leaves nothing behind"
