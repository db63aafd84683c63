"""The command as a process: exit codes, streams, what it imports, and what it does when it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.support import FIXTURES, fixture
from weightport.cli import output
from weightport.cli.app import COMMANDS
from weightport.cli.output import Progress, json_parts

ROOT = Path(__file__).resolve().parents[2]
REPORT = "please report it with what --debug prints"
SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")


def process(
    *arguments: str, code: int = 0, env: dict[str, str] | None = None, head: str = ""
) -> subprocess.CompletedProcess[str]:
    """``python -m weightport``, or the same after some code."""
    command = ["-m", "weightport"] if not head else ["-c", f"{head}\nfrom weightport.cli import main\nmain()"]
    ran = subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


# --- help and the command line ----------------------------------------------------------------------------------------


def test_the_version() -> None:
    assert process("--version").stdout == f"weightport {wp.__version__}\n"


def test_the_help_lists_the_commands() -> None:
    text = weightport("--help").out
    assert "Usage: weightport [OPTIONS] COMMAND [ARGS]..." in text
    assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["layouts", "list"], ["layouts", "show"]])
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    text = weightport(*command, "--help").out
    assert f"Usage: weightport {' '.join(command)}" in text
    assert "Example:" in text
    assert f"weightport {' '.join(command)}" in text.split("Example:")[1]
    assert "--json" in text
    assert "--debug" in text


def test_an_unknown_command() -> None:
    ran = weightport("inspct", code=2)
    assert "No such command 'inspct'; closest: 'inspect'" in ran.err


def test_no_command_is_a_wrong_command_line() -> None:
    assert "Usage: weightport" in process(code=2).stderr


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_a_line_and_with_debug_a_traceback(tmp_path: Path) -> None:
    path = str(tmp_path / "nope.npz")
    plain = process("inspect", path, code=1)
    assert plain.stdout == ""
    assert plain.stderr.startswith(f"weightport: {path}: ")
    assert plain.stderr.count("\n") == 1
    for arguments in (["inspect", path, "--debug"], ["--debug", "inspect", path]):
        traced = process(*arguments, code=1).stderr
        assert "Traceback (most recent call last)" in traced
        assert traced.endswith(plain.stderr)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ZeroDivisionError('by')", f"a bug in weightport: ZeroDivisionError: by; {REPORT}"),
        ("MemoryError()", "out of memory"),
        ("PermissionError(13, 'Permission denied', 'model.npz')", "model.npz: Permission denied"),
        ("OSError(28, 'No space left on device')", "No space left on device"),
        ("wp.Error('a\\x1b[2Jb\\nc')", "a\\x1b[2Jb\\nc"),
    ],
)  # fmt: skip
def test_whatever_is_raised_is_told(raised: str, told: str) -> None:
    head = (
        f"import weightport as wp\nfrom weightport import opening\ndef no(*a, **k): raise {raised}\nopening.open = no"
    )
    ran = process("inspect", "m.npz", "--json", code=1, head=head)
    assert ran.stderr == f"weightport: {told}\n"
    assert set(json.loads(ran.stdout)) == {"format", "tensors", "cells", "problems"}


def test_an_interrupt() -> None:
    head = "from weightport import opening\ndef no(*a, **k): raise KeyboardInterrupt\nopening.open = no"
    ran = process("inspect", "m.npz", code=130, head=head)
    assert (ran.stdout, ran.stderr) == ("", "weightport: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("number", "code", "told"), [(signal.SIGINT, 130, b"weightport: interrupted\n"), (signal.SIGTERM, 143, b"")]
)
def test_a_real_signal_while_it_works(number: int, code: int, told: bytes, tmp_path: Path) -> None:
    """What was begun is cleaned up; a background process of a shell ignores SIGINT until it is told not to."""
    begun = f"tempfile.TemporaryDirectory(dir={str(tmp_path)!r})"
    slow = f"def slow(*a, **k):\n with {begun}:\n  print('in', flush=True)\n  time.sleep(60)\nopening.open = slow"
    text = "import signal, tempfile, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    text += f"from weightport import opening\n{slow}\nfrom weightport.cli import main\nmain()"
    with subprocess.Popen(
        [sys.executable, "-c", text, "inspect", "m"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"in\n"
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (code, told)
    assert list(tmp_path.iterdir()) == []


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("arguments", [["inspect", SEED], ["inspect", SEED, "--json"], ["layouts"], ["schema"]])
def test_a_reader_that_leaves_is_no_error_worth_a_word(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "weightport", *arguments], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "weightport", "inspect", SEED],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False,
        )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (1, "weightport: No space left on device\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_tree_fits_the_encoding_of_the_stream(encoding: str) -> None:
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    ran = subprocess.run(
        [sys.executable, "-m", "weightport", "inspect", SEED, "--scope", "LSTMcell/input_gate"],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, check=True,
    )  # fmt: skip
    last = ran.stdout.decode(encoding).splitlines()[-1]
    assert last == ("└─ wx  float32 27×32" if encoding == "utf-8" else "`- wx  float32 27x32")


def test_no_colour_and_no_bar_in_a_pipe(tmp_path: Path) -> None:
    ran = process("inspect", SEED)
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "\x1b" not in process("inspect", str(tmp_path / "x"), code=1).stderr


@pytest.mark.skipif(os.name != "posix", reason="terminals")
@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_on_a_terminal(env: dict[str, str], coloured: bool) -> None:
    ours, theirs = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | env
    command = [sys.executable, "-m", "weightport", "inspect", SEED]
    subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 65536)
    os.close(ours)
    assert (b"\x1b[1m" in text) == coloured


def test_a_bar_is_drawn_on_a_terminal_if_the_work_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> str:
        with Progress("writing", 100) as progress:
            for _ in range(10):
                progress(10)
        return capsys.readouterr().err

    monkeypatch.setattr(output, "_PATIENCE", 0.0)
    assert work() == ""
    monkeypatch.setattr(output, "on_terminal", lambda _: True)
    drawn = work()
    assert "writing:  10%" in drawn
    assert "10.0/100 [" in drawn
    monkeypatch.setattr(output, "_PATIENCE", 60.0)
    assert work() == ""


def test_documents_are_json_whatever_is_in_them() -> None:
    document = {"a": [{"b": 1}, {"c": None}], "d": {}, "e": "\ud800 \x1b", "f": iter([1, 2]), "g": [], "h": 1.5}
    text = "".join(json_parts(document))
    assert json.loads(text) == {**document, "f": [1, 2]}
    assert text.isascii()
    assert json.loads("".join(json_parts({}))) == {}


# --- what it costs ----------------------------------------------------------------------------------------------------

_LOADED = """
import sys
sys.modules.update(dict.fromkeys(["tensorflow", "keras", "tf_keras", "torch", "jax", "onnx"]))
import atexit
def told():
    print(*{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}, file=sys.stderr)
atexit.register(told)
"""


def loaded(*arguments: str) -> set[str]:
    return set(process(*arguments, head=_LOADED).stderr.split())


def test_a_command_loads_what_it_uses() -> None:
    heavy = {"h5py", "pydantic", "tqdm", "yaml", "ml_dtypes", "jinja2"}
    # And what is not heavy but adds up: all together they take longer than numpy.
    slow = {"email", "tempfile", "difflib", "hashlib", "asyncio", "concurrent", "multiprocessing", "crc32c", "cramjam"}
    assert (heavy | slow) & loaded("--version") == set()
    assert (heavy | slow | {"zipfile"}) & loaded("inspect", SEED) == set()
    assert heavy & loaded("inspect", SEED, "--stats", "--json") == set()
    assert heavy & loaded("layouts") == set()
    assert heavy & loaded("--help") == set()
    h5 = next(FIXTURES.glob("c_keras/*/*.h5"))
    assert heavy & loaded("inspect", str(h5)) == {"h5py"}


def test_a_transfer_needs_no_framework(tmp_path: Path) -> None:
    mapping = tmp_path / "m.yaml"
    mapping.write_text(
        "weightport: 1\nrules:\n  - from: {layout: lstm.scoped-gates, scope: LSTMcell}\n"
        "    to: {layout: lstm.keras, scope: lstm}\n  - {from: 'softmax_{x}', to: 'dense/{x}'}\n",
        encoding="utf-8",
    )
    found = loaded("transfer", SEED, "-m", str(mapping), "-o", str(tmp_path / "out.safetensors"))
    assert found & {"tensorflow", "keras", "torch", "jax", "onnx", "tqdm", "h5py"} == set()
    assert (tmp_path / "out.safetensors").stat().st_size > 34_284
