"""Every example of the README and of the docs runs, and prints what it says it prints.

``yaml`` blocks after a line that names a file are written to that file (and are valid mappings in any case),
``console`` blocks are commands with their output, ``python`` blocks are programs. Each document runs in a folder of its
own, beside the demo's model.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.support import FIXTURES, need

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = re.compile(r"^<!-- needs: (?P<name>\S+) = (?P<fixture>\S+) -->$", re.MULTILINE)
BLOCK = re.compile(r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(document.read_text(encoding="utf-8")))


def line_of(document: Path, match: re.Match[str]) -> str:
    return f"{document.name}:{document.read_text(encoding='utf-8')[: match.start('text')].count(chr(10)) + 1}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the demo's model, and the files that the examples speak of."""
    for file in (ROOT / "weightport" / "demo" / "data").glob("char_lstm.*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def provide(document: Path, folder: Path) -> None:
    """The fixtures that the document needs."""
    for need_ in NEEDS.finditer(document.read_text(encoding="utf-8")):
        wanted = FIXTURES / need_["fixture"]
        if wanted.is_dir():
            shutil.copytree(wanted, folder / need_["name"])
            continue
        found = [f for f in wanted.parent.iterdir() if f.name == wanted.name or f.name.startswith(f"{wanted.name}.")]
        assert found, need_[0]
        for file in found:
            shutil.copy(file, folder / (need_["name"] + file.name.removeprefix(wanted.name)))


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        arguments, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )


def execute(text: str, document: Path, match: re.Match[str], folder: Path) -> None:
    """Run a program in the folder, with names of its own. Here: in a process it would import TensorFlow anew.

    One that has a file name can be imported by the programs after it; one that sets the environment needs a process.
    """
    before, line = Path.cwd(), int(line_of(document, match).rpartition(":")[2])
    if "os.environ[" in text:
        done = run([sys.executable, "-c", text], folder)
        assert done.returncode == 0, f"{line_of(document, match)}: {done.stdout}"
        return
    if match["file"]:
        (folder / match["file"]).write_text(text, encoding="utf-8")
    known = set(sys.modules)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile("\n" * (line - 1) + text, str(document), "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name in {file.stem for file in folder.glob("*.py")} - known:
            sys.modules.pop(name, None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_the_examples(document: Path, folder: Path) -> None:
    import weightport as wp

    provide(document, folder)
    seen = set()
    for match in blocks(document):
        kind, text, where = match["kind"], match["text"], line_of(document, match)
        seen.add(kind)
        if kind == "yaml":
            name = match["file"] or "example.yaml"
            (folder / name).write_text(text, encoding="utf-8")
            if text.startswith("- "):
                (folder / name).write_text(f"weightport: 1\nrules:\n{text}", encoding="utf-8")
            if (folder / name).read_text(encoding="utf-8").startswith("weightport: 1") and "broken" not in name:
                assert wp.load_mapping(folder / name).rules, where
        elif kind == "console":
            for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, expected = command.partition("\n")
                program, *arguments = line.split()
                assert program == "weightport", where
                done = run([sys.executable, "-m", "weightport", *arguments], folder)
                assert done.stdout == expected, where
        elif kind == "python":
            if "tensorflow" in text or "keras" in text:
                need("tensorflow")
                need("keras")
            for package in ("torch", "lightning", "jax", "equinox", "optax"):
                if f"import {package}" in text:
                    need(package)
            if (
                "nnx.Optimizer" in text
                and "model" not in inspect.signature(need("flax.nnx").Optimizer.update).parameters
            ):
                continue  # Flax before 0.11
            execute(text, document, match, folder)
        else:
            assert kind == "sh", f"{where}: what is to be done with {kind!r}?"
    assert seen or document.name in (
        "conversions.md",
        "performance.md",
        "reliability.md",
    )  # tables, and benchmarks that have tests of their own


def test_the_readme_says_how_the_tests_are_run() -> None:
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    install = "pip install -e '.[test]'"
    assert f"{install} && python -m pytest\n" in readme
    assert install in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_layout_stands_in_the_readme() -> None:
    from weightport.layouts import builtin

    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    assert [name for name in builtin() if f"`{name}`" not in readme] == []


def test_a_wrong_example_is_caught(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("```console\n$ weightport layouts show lstm.keras\nnothing\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"wrong\.md:2"):
        test_the_examples(document, tmp_path)


def test_a_wrong_program_is_caught(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("```python\nassert False, 'as it should be'\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="as it should be"):
        test_the_examples(document, tmp_path)
    assert Path.cwd() != tmp_path


def test_a_fixture_that_is_not_there_is_caught(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text("<!-- needs: a.ckpt = b_cells/gru/modell.ckpt -->\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"modell\.ckpt"):
        provide(document, tmp_path)
