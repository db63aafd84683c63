"""Runs a transfer again and again, each time killed at, or failed by, another call that changes the file system.

A process of its own: ``python -m tests.faults.breaker FOLDER OUT TARGET MODE OPTIONS``. It forks for each run, which is
quick, since all imports are done. What is printed is one JSON object: how many calls there were, and every run after
which the destination was neither the old model nor the new one, or something was left over. With the option
``resume`` each broken run is resumed: the result has to be that of an undisturbed one, and only what was missing is
moved.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import weightport as wp
from weightport.execute import files, journal

SHAPES = {"a/kernel": (40, 30), "a/bias": (30,), "b/kernel": (30, 5)}
#: What changes a file system.
CALLS = (
    "open", "write", "pwrite", "pwritev", "writev", "fsync", "replace", "rename", "link", "unlink", "truncate",
    "ftruncate", "mkdir", "rmdir", "chmod", "copy_file_range", "sendfile", "posix_fallocate",
)  # fmt: skip
RULES = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG)


def arrays(number: int) -> dict[str, Any]:
    """The values of one of the models."""
    rng = np.random.default_rng(number)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in SHAPES.items()}


def transfer(folder: Path, out: str, number: int, target: Path | None, more: dict[str, Any]) -> None:
    """Write a model with the values of that number."""
    wp.transfer(folder / f"values{number}.npz", target, RULES, out=folder / out, **more)


def state(folder: Path, out: str) -> int | str:
    """Whose values the destination has; or what is wrong with it."""
    try:
        with wp.open(folder / out) as source:
            found = {name: source.read(name) for name in SHAPES}
    except wp.Error as error:
        return str(error)
    for number in (0, 1):
        if all(np.array_equal(found[name], value) for name, value in arrays(number).items()):
            return number
    return "mixed values"


class Broken:
    """Counts calls of ``os`` that change a file system, and breaks one."""

    def __init__(self, at: int, action: Callable[[str], None]) -> None:
        self.at, self.action, self.count = at, action, 0

    def install(self) -> None:
        for name in CALLS:
            if hasattr(os, name):
                setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, call: Any) -> Any:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            reads = name == "open" and not (arguments[1] if len(arguments) > 1 else 0) & (os.O_WRONLY | os.O_RDWR)
            if not reads:
                self.count += 1
                if self.count == self.at:
                    self.action(name)
            return call(*arguments, **more)

        return wrapped


def child(work: Callable[[], None]) -> int:
    """Runs the work in a fork; its wait status."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException), open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            work()
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1]


def kill(_: str) -> None:
    """The end, now."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(at: int) -> Callable[[str], None]:
    def action(name: str) -> None:
        if name in ("unlink", "rmdir"):  # what cannot be removed stays, and is no failure of the transfer
            return
        number = ERRORS[at % len(ERRORS)]
        raise OSError(number, f"{os.strerror(number)} ({name})")

    return action


class Case:
    """One format in one folder."""

    def __init__(self, folder: Path, out: str, like: str, more: dict[str, Any]) -> None:
        self.folder, self.out, self.more = folder, out, more
        for number in (0, 1):
            np.savez(folder / f"values{number}.npz", **arrays(number))
        self.target = folder / like if like else None
        self.destination = folder / "place"
        self.fresh()

    def fresh(self) -> None:
        """The old model, and nothing else."""
        shutil.rmtree(self.destination, ignore_errors=True)
        self.destination.mkdir()
        self.write(0)

    def write(self, number: int) -> None:
        transfer(self.folder, f"place/{self.out}", number, self.target, self.more)

    def files(self) -> set[str]:
        return {str(p.relative_to(self.destination)) for p in self.destination.rglob("*")}

    def look(self) -> int | str:
        return state(self.folder, f"place/{self.out}")

    def broken(self, at: int, action: Callable[[str], None]) -> int:
        def work() -> None:
            Broken(at, action).install()
            self.write(1)

        return child(work)

    def every(self, mode: str) -> Iterator[dict[str, Any]]:
        """What is wrong after each run; the last entry has the number of calls."""
        at, clean = 0, self.clean()
        while True:
            at += 1
            status = self.broken(at, kill if mode == "kill" else fail(at))
            yield from self.judged(at, clean, mode)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                break
            if at > 500:
                raise SystemExit("it does not end")
        yield {"calls": at}

    def clean(self) -> list[set[str]]:
        """The names of files after undisturbed writes over each other: there may be two sets that take turns."""
        found = []
        for number in (1, 0, 1, 0):
            self.write(number)
            found.append(self.files())
        self.fresh()
        return found

    def judged(self, at: int, clean: list[set[str]], mode: str) -> Iterator[dict[str, Any]]:
        now = self.look()
        if now not in (0, 1):
            yield {"at": at, "state": now}
        # After the commit, what fails leaves the removal of the old files to the next run.
        if mode == "fail" and now == 0 and len(self.files()) > max(map(len, clean)):
            yield {"at": at, "left": sorted(self.files())}
        self.write(0)  # the next run cleans up what is left
        if self.look() != 0:
            yield {"at": at, "after": self.look()}
        if len(self.files()) > max(map(len, clean)):
            yield {"at": at, "left after the next run": sorted(self.files())}
            self.fresh()

    def on_small_disks(self) -> Iterator[dict[str, Any]]:
        """On disks with room for the old model and one page more, two, and so on, until the new one is written.

        For this the process has to be allowed to mount something (``unshare --user --map-root-user --mount``).
        """
        saved, page = self.folder / "saved", resource.getpagesize()
        shutil.move(self.destination, saved)
        held = sum(-(-file.stat().st_size // page) for file in saved.rglob("*") if file.is_file())
        self.destination.mkdir()
        more, written = 0, False
        while not written:
            more += 1
            if more > 500:
                raise SystemExit("it does not end")
            options = f"size={(held + more) * page},mode=755"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self.destination], check=True)
            shutil.copytree(saved, self.destination, dirs_exist_ok=True)
            before = self.files()
            said = self.folder / "said"
            status = child(functools.partial(self.told, said))
            written = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
            text = said.read_text(encoding="utf-8")
            if self.look() != int(written):
                yield {"pages": more, "state": self.look(), "said": text}
            if not written and self.files() != before:
                yield {"pages": more, "left": sorted(self.files() - before), "lost": sorted(before - self.files())}
            if not written and (self.out not in text or os.strerror(errno.ENOSPC) not in text):
                yield {"pages": more, "said": text}
            subprocess.run(["umount", self.destination], check=True)
        yield {"calls": more}

    def told(self, said: Path) -> None:
        """Write the new model; what is wrong goes into a file."""
        said.write_text("", encoding="utf-8")
        try:
            self.write(1)
        except wp.Error as error:
            said.write_text(str(error), encoding="utf-8")
            raise
        except BaseException:
            said.write_text(traceback.format_exc(), encoding="utf-8")
            raise

    def at_random(self, runs: int) -> Iterator[dict[str, Any]]:
        """Killed from outside, at some time."""
        clean, begun = self.clean(), time.monotonic()
        assert child(lambda: self.write(1)) == 0
        whole = time.monotonic() - begun
        rng, found = random.Random(runs), Counter[str]()
        for at in range(runs):
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    self.write(1)
                os._exit(0)
            time.sleep(rng.random() * whole)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            found["killed" if killed else "too late"] += 1
            found["new"] += self.look() == 1
            yield from self.judged(at, clean, "kill")
        yield {"calls": runs, **found}


class Resumed(Case):
    """Each run that was broken is resumed. There are many small tasks, and what they wrote is made durable often."""

    def __init__(self, folder: Path, out: str, like: str, more: dict[str, Any]) -> None:
        files.SIZES = replace(files.SIZES, task=1200, tile=600, chunk=256)
        journal.SYNC = 3000
        self.noted = folder / "noted"
        super().__init__(folder, out, like, more)
        self.old = self.files()
        self.write(1)
        self.contents = self.content()
        self.fresh()

    def fresh(self) -> None:
        """The old model, and nothing else; nothing is noted of a run that has not begun."""
        super().fresh()
        self.noted.unlink(missing_ok=True)

    def content(self) -> list[bytes]:
        """Of all files but indices, which name the others, and what has their checksum."""
        indices = (".index", ".index.json", ".weightport.json")
        found = (self.destination / name for name in self.files() if not name.endswith(indices))
        return sorted(path.read_bytes() for path in found)

    def write(self, number: int) -> None:
        """Each task that is done and noted is another byte in a file of its own."""
        with open(self.noted, "wb", buffering=0) as noted:
            write = type(noted).write  # which nobody breaks
            transfer(
                self.folder, f"place/{self.out}", number, self.target,
                {**self.more, "progress": lambda _: write(noted, b".")},
            )  # fmt: skip

    def judged(self, at: int, clean: list[set[str]], mode: str) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        now, begun = self.look(), self.noted.stat().st_size if self.noted.exists() else 0
        if now not in (0, 1):
            yield {"at": at, "state": now}
        named = {name for name in self.files() if not name.endswith(".weightport-tmp")} - self.old
        ran: list[int] = []
        inner = journal.run
        journal.run = lambda task: ran.append(1) or inner(task)  # type: ignore[func-returns-value]
        told: list[str] = []
        self.more["resume"] = told.append
        try:
            self.write(1)
        finally:
            journal.run = inner
            self.more["resume"] = True
        tasks = self.noted.stat().st_size
        if self.look() != 1 or self.content() != self.contents:
            yield {"at": at, "resumed": self.look(), "same bytes": self.content() == self.contents}
        if len(self.files()) > max(map(len, clean)):
            yield {"at": at, "left after it was resumed": sorted(self.files())}
        # One task may be noted and not counted yet; what already has its last name is not found again.
        if now == 0 and not named and len(ran) not in (tasks - begun - 1, tasks - begun):
            yield {"at": at, "tasks": tasks, "done before": begun, "done again": len(ran), "told": told}
        self.fresh()


def main(folder: str, out: str, like: str, mode: str, options: str) -> None:
    more = json.loads(options)
    case = (Resumed if "resume" in more else Case)(Path(folder), out, like, more)
    if mode == "full":
        found = list(case.on_small_disks())
    else:
        found = list(case.at_random(int(mode)) if mode.isdecimal() else case.every(mode))
    print(json.dumps({**found[-1], "wrong": found[:-1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
