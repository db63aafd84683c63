"""Runs every command over a list of files, and tells what Python and the kernel saw it do. A program of its own.

``python watch.py CASES.json REPORT.json``. The cases are ``{"name", "folder", "model" or "mapping"}``; a harmless model
and mapping are given besides. First all commands run over the harmless files, so that what they need is imported; then
an audit hook hears everything that Python does, and inotify all that anybody does in the folder outside, the C
libraries included. An event is a violation unless it is known to be harmless: see :meth:`Watch._judged`. A case that is
``untrusted`` is read with ``--untrusted``; what happens in the process that reads it is heard there, and told here.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from typing import Any

_IN_ALL = 0x00000FFF  # IN_ACCESS, IN_MODIFY, IN_OPEN, IN_CREATE, IN_DELETE, ...
#: Events that change or read files: audit event -> which of its arguments are paths.
_PATHS = {
    "open": (0,), "os.listdir": (0,), "os.scandir": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.mkdir": (0,),
    "os.rmdir": (0,), "os.chmod": (0,), "os.link": (0, 1), "os.symlink": (0, 1), "os.truncate": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "tempfile.mkstemp": (0,), "tempfile.mkdtemp": (0,), "glob.glob": (0,), "glob.glob/2": (0,),
    "os.walk": (0,), "fcntl.flock": (), "os.chown": (0,), "os.setxattr": (0,),
}  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate")
# What says nothing of what a file asked for.
_QUIET = {
    "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "builtins.id", "os.fstat",
    "gc.get_objects", "sys.setprofile", "sys.settrace", "builtins.input", "fcntl.fcntl", "os.urandom", "time.sleep",
    "signal.signal", "gc.disable", "code.__new__", "array.__new__",
}  # fmt: skip


class Watch:
    """Hears what happens between :meth:`begin` and :meth:`end`."""

    def __init__(self, outside: Path | None, shared: list[Path]) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.on = False
        self.starts: tuple[str, ...] = ()  # how the program may begin that alone may be started
        self.known: list[Any] = []
        self.shared = [path.resolve() for path in shared]
        libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(libc, "inotify_init1") else -1
        if self.inotify >= 0 and outside is not None:
            for folder in [outside, *(p for p in outside.rglob("*") if p.is_dir())]:
                assert libc.inotify_add_watch(self.inotify, os.fsencode(folder), _IN_ALL) >= 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "exec" and not self.on:
            self.known.append(args[0])  # the page of weightport report, which is a template of its own
        if self.on and event not in _QUIET:
            self.heard.append((event, args))

    def begin(self) -> None:
        self.heard.clear()
        self._drain()
        self.on = True

    def end(self, folder: Path) -> list[str]:
        """The violations, for a file in that folder."""
        self.on = False
        found = [said for event, args in self.heard for said in self._judged(event, args, folder.resolve())]
        return [*dict.fromkeys(found), *(f"the kernel saw {name!r} opened or changed" for name in self._drain())]

    def _drain(self) -> list[str]:
        found = []
        while self.inotify >= 0:
            try:
                raw = os.read(self.inotify, 1 << 16)
            except BlockingIOError:
                break
            while raw:
                mask, size = int.from_bytes(raw[4:8], "little"), int.from_bytes(raw[12:16], "little")
                name = raw[16 : 16 + size].rstrip(b"\0").decode()
                # Looking whether a path is there opens a folder for nobody.
                if not (mask & 0x40000000 and mask & 0x20 and not name):
                    found.append(f"{name} ({mask:#x})")
                raw = raw[16 + size :]
        return found

    def _judged(self, event: str, args: tuple[Any, ...], folder: Path) -> Iterator[str]:
        if event in _PATHS:
            for at in _PATHS[event]:
                path = args[at] if at < len(args) else None
                if isinstance(path, (str, bytes, os.PathLike)) and not self._allowed(event, args, path, folder):
                    yield f"{event} {os.fsdecode(path)}"
        elif event == "import":
            if args[0].partition(".")[0] not in _IMPORTABLE:
                yield f"import {args[0]}"
        elif event == "exec":
            if not _is_ours(getattr(args[0], "co_filename", "")) and args[0] not in self.known:
                yield f"exec of {args[0]!r}"
        elif event == "compile":
            # A template of our own; dataclasses and their like come with an import.
            if args[1] not in ("<template>", "<unknown>", None) and not _is_ours(os.fsdecode(args[1] or "")):
                yield f"compile of {args[0]!r}"
        elif event == "subprocess.Popen" and self.starts:
            if args[0] != sys.executable or tuple(args[1])[: len(self.starts)] != self.starts:
                yield f"{event} {args!r}"
        elif event == "os.kill" and self.starts:
            if args[1] != signal.SIGKILL:
                yield f"{event} {args!r}"
        elif event == "marshal.loads":
            if not isinstance(args[0], bytes):
                yield event
        else:
            yield f"{event} {args!r}"

    def _allowed(self, event: str, args: tuple[Any, ...], path: Any, folder: Path) -> bool:
        text = os.fsdecode(path)
        real = Path(os.path.realpath(text))
        flags = args[2] if event == "open" and len(args) > 2 and isinstance(args[2], int) else 0
        writes = event in _CHANGES or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if real.is_relative_to(folder):
            return not writes or real.is_relative_to(folder / "out")
        if writes:
            return text == os.devnull
        return any(real.is_relative_to(place) for place in self.shared) or _is_ours(text)


class Inside(Watch):
    """Hears what happens in the process that reads an untrusted file, and says at once what is a violation."""

    def __init__(self, folder: Path, shared: list[Path], told: int) -> None:
        self.folder, self.told = folder.resolve(), told
        super().__init__(None, shared)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event not in _QUIET and event != "resource.setrlimit":
            self.on = False
            for said in self._judged(event, args, self.folder):
                os.write(self.told, f"{said}\n".encode())
            self.on = True


#: Where a process that reads an untrusted file begins: with the watch, and with what is to be done there besides.
_INSIDE = """
import json
import sys
sys.path[:] = sys.argv[2:]
from tests.hostile import watch
watch.begin_inside({folder!r}, {shared!r}, {pipe!r})
try:
    exec(compile({plant!r}, json.__file__, "exec"), {{"told": {told!r}}})
except Exception:
    pass
from weightport.formats import _isolated_worker
_isolated_worker.main(sys.argv[1])
"""


def begin_inside(folder: str, shared: str, pipe: str) -> None:
    """Hear what happens in this process from now on; what it needs is imported before."""
    import h5py  # noqa: F401

    from weightport.formats import _isolated_worker, orbax_folder  # noqa: F401

    if json.loads(sys.argv[1])["kind"] == "orbax":
        import tensorstore  # noqa: F401

    Inside(Path(folder), [Path(shared)], os.open(pipe, os.O_WRONLY)).on = True


_ROOTS = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_ROOTS += [
    Path(__file__).resolve().parents[2] / "weightport",
    Path(sys.prefix).resolve(),
    Path(sys.base_prefix).resolve(),
]
#: What the commands may import when they meet a file: themselves, and what reads its format.
_IMPORTABLE = {*sys.stdlib_module_names, "weightport", "h5py", "numpy", "tensorstore", "ml_dtypes", "yaml", "crc32c",
               "cramjam", "jinja2", "click", "tqdm", "markupsafe", "pydantic", "pydantic_core", "typing_extensions",
               "annotated_types", "typing_inspection", "gguf", "rpds"}  # fmt: skip
_IMPORTABLE -= {"antigravity", "this", "pickle", "webbrowser", "pty", "runpy", "socketserver", "http", "ftplib"}


def _is_ours(path: str) -> bool:
    """Whether a path is of Python, of a package, or of the machine's own description."""
    if path.startswith(("<frozen ", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys/")):
        return True
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(root) for root in _ROOTS) or str(real) in ("/dev/null", "/dev/urandom")


MAPPING = "weightport: 1\nrules:\n  - {from: '{x**}', to: '{x**}', optional: true}\n"


def commands(case: dict[str, str], harmless: str, mapping: str) -> Iterator[list[str]]:
    """Every command that reads a file, over that one."""
    out = f"{case['folder']}/out"
    if "mapping" in case:
        model, rules = harmless, case["mapping"]
    else:
        model, rules = case["model"], mapping
    yield ["inspect", model, "--stats", "--full"]
    yield ["transfer", model, "-m", rules, "-o", f"{out}/o.npz"]
    yield ["transfer", harmless, model, "-m", rules, "-o", f"{out}/t.npz"]
    yield ["verify", model, harmless, "-m", rules]
    yield ["suggest", harmless, model, "-o", f"{out}/s.yaml"]
    yield ["diff", model, harmless]
    yield ["report", model, "-m", rules, "-o", f"{out}/r.html"]
    yield ["lint", rules, "--source", model, "--target", harmless]
    yield ["lock", model, "-m", rules, "-o", f"{out}/x.lock"]


def run(arguments: list[str]) -> tuple[int, str, str]:
    """One command in this process: its exit code, and what it printed."""
    from weightport.cli import main

    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    code = 0
    before = sys.argv
    sys.argv = ["weightport", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = before
    texts = []
    for stream in (out, err):
        stream.flush()
        raw = stream.buffer
        assert isinstance(raw, io.BytesIO)
        texts.append(raw.getvalue().decode("utf-8"))
    return code, texts[0], texts[1]


def main() -> None:
    """See the module."""
    cases, report = Path(sys.argv[1]), Path(sys.argv[2])
    told = json.loads(cases.read_text(encoding="utf-8"))
    shared = Path(told["shared"])
    mapping = shared / "any.yaml"
    mapping.write_text(MAPPING, encoding="utf-8")
    from weightport.formats import _isolated

    watch = Watch(Path(told["outside"]), [shared])
    for model in told["harmless"]:  # one of each format
        case = {"folder": str(shared), "model": model}
        for arguments in commands(case, told["target"], str(mapping)):
            code, _, err = run(arguments)
            assert "a bug in weightport" not in err, (arguments, err)
            assert code in (0, 1), (arguments, err)
    run(["inspect", str(shared / "h.h5"), "--untrusted"])
    found = {}
    os.mkfifo(shared / "inside")
    inside = os.open(shared / "inside", os.O_RDWR | os.O_NONBLOCK)
    for case in told["cases"]:
        folder = Path(case["folder"])
        plant = compile(case.get("plant", ""), str(_ROOTS[0] / "planted.py"), "exec")
        before = _listed(folder)
        ran, violations = [], []
        watch.starts, more = (), []
        if case.get("untrusted"):
            more = ["--untrusted"]
            _isolated._BOOT = _INSIDE.format(
                folder=case["folder"], shared=told["shared"], pipe=str(shared / "inside"), plant=case.get("inside", ""),
                told=told,
            )  # fmt: skip
            watch.starts = (sys.executable, "-I", "-c", _isolated._BOOT)
        for arguments in islice(commands(case, told["target"], str(mapping)), case.get("commands")):
            watch.begin()
            with suppress(Exception):
                exec(plant, {"told": told, "case": case})
            code, out, err = run(arguments + more)
            violations += [f"{arguments[0]}: {said}" for said in watch.end(folder)]
            ran.append({"command": arguments[0], "code": code, "out": out, "err": err})
        with suppress(BlockingIOError):
            while said := os.read(inside, 1 << 16):
                violations += [f"inside: {line}" for line in said.decode().splitlines()]
        violations += [f"left {name} in the current folder" for name in os.listdir()]
        violations += [f"left {name}" for name in sorted(_listed(folder) - before) if not name.startswith("out")]
        found[case["name"]] = {"ran": ran, "violations": violations}
    report.write_text(json.dumps(found), encoding="utf-8")


def _listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


if __name__ == "__main__":
    main()
