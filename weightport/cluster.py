"""A transfer's tasks on the workers of a cluster, by ``dask.distributed``.

Promise: before anything is written, every worker has shown that it runs this weightport, sees the folder of the
destination and sees the sources as they are here; each task is done by whichever worker is free, and again by another
one if that is lost. What is written is the same bytes as by one process. Limits: the workers write into one file, so
they need a file system that they share with this process; formats that are written as a stream are refused. A worker
that was given up may still write for a moment: the same bytes, to the same places.

Source: distributed/client.py (``Client``), distributed/cfexecutor.py (``ClientExecutor``), distributed/scheduler.py
(``allowed-failures``: how many workers may die of one task).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from weightport.errors import Error, MissingPackage, Problem, RefusedError
from weightport.execute.tasks import Task
from weightport.formats import _fs

#: Seconds that a scheduler, and its first worker, may take to answer.
PATIENCE = 15
#: How often a task may fail for another reason than the values or the files.
RETRIES = 3
_LOCAL = re.compile(r"local(?::([1-9][0-9]{0,3}))?")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What every worker is asked.

    Attributes:
        token: a file in the destination's folder, and its content.
        typed: paths of URLs here, and what was typed for them.
        files: of the sources, and what tells them from others.
    """

    token: tuple[str, bytes]
    typed: tuple[tuple[str, str], ...]
    files: Mapping[str, tuple[object, ...]]


class Cluster(Executor):
    """The workers, as an executor.

    Attributes:
        ahead: how many tasks are given out before the first of them is done.
    """

    def __init__(self, client: Any, address: str, version: str) -> None:
        self._client, self.address, self._version = client, address, version
        self._pool = client.get_executor(pure=False, retries=RETRIES)
        threads = sum(client.nthreads().values())
        self.ahead = 2 * threads + 4

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function on some worker. It goes there as bytes: dask would look for objects of its own in it."""
        args = tuple(_anywhere(arg) if isinstance(arg, Task) else arg for arg in args)
        found: Future[Any] = self._pool.submit(_carry_out, pickle.dumps((fn, args, kwargs)))
        return found

    def check(self, path: str, sources: Sequence[str], files: Sequence[str]) -> None:
        """See that every worker can do what it will be asked for.

        Args:
            path: the destination.
            sources: paths of the models that are read.
            files: all files of these.

        Raises:
            Error: the workers that cannot, and why.
        """
        self._versions()
        folder = os.path.dirname(os.path.realpath(path))
        token = os.path.join(folder, f".weightport-{secrets.token_hex(8)}"), secrets.token_hex(16).encode()
        typed = tuple((source, _fs.typed(source)) for source in sources if _fs.is_remote(source))
        marks = {_fs.abspath(file): found for file in files if (found := _mark(file)) is not None}
        try:
            with open(token[0], "xb") as file:
                file.write(token[1])
                file.flush()
                os.fsync(file.fileno())
            answers = self._client.run(_probe, _Asked(token, typed, marks), on_error="return")
        except OSError as error:
            raise Error(f"{path}: cannot be written: {error.strerror or error}") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(token[0])
        self._refuse(answers, lambda said: said if isinstance(said, str) else f"failed: {type(said).__name__}")

    def _versions(self) -> None:
        # By its name alone: what the workers lack could not be sent to them.
        found = self._client.run(eval, "__import__('weightport').__version__", on_error="return")

        def wrong(said: Any) -> str:
            if not isinstance(said, str):
                return "cannot import weightport"
            return "" if said == self._version else f"has weightport {said}, here it is {self._version}"

        self._refuse(found, wrong)

    def _refuse(self, answers: Mapping[str, Any], wrong: Callable[[Any], str]) -> None:
        problems = [Problem(f"worker {name}", what) for name, said in sorted(answers.items()) if (what := wrong(said))]
        if problems:
            raise Error(problems)


def _carry_out(data: bytes) -> Any:
    function, args, kwargs = pickle.loads(data)
    return function(*args, **kwargs)


def _anywhere(task: Task) -> Task:
    """The same task in whatever folder a worker was started."""
    pieces = tuple(replace(piece, out=os.path.abspath(piece.out)) for piece in task.pieces)
    extents = {key: replace(place, path=_fs.abspath(place.path)) for key, place in task.extents.items()}
    return replace(task, pieces=pieces, extents=extents)


def _mark(path: str) -> tuple[object, ...] | None:
    """What a file is known by on any machine: of a local one size and time, device and inode being each machine's."""
    found = _fs.mark(path)
    return found if found is None or _fs.is_remote(path) else found[2:]


def _probe(asked: _Asked) -> str:
    """Run by a worker: what is amiss, or nothing."""
    path, content = asked.token
    try:
        with open(path, "r+b") as file:
            seen = file.read()
    except OSError as error:
        return f"cannot write to {os.path.dirname(path)}, the destination's folder: {error.strerror}"
    if seen != content:
        return f"sees another folder under {os.path.dirname(path)} than this process"
    try:
        for place, typed in asked.typed:
            _fs.place_as(place, typed)
            _fs.fresh(place)
        for file_, mark in asked.files.items():
            found = _mark(file_)
            if found != mark:
                return f"{'does not see' if found is None else 'sees another file under'} {file_}"
    except Error as error:
        return str(error)
    return ""


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A cluster, as long as the block lasts.

    Args:
        address: a scheduler's (``tcp://host:8786``), the path of a scheduler's file, ``local`` or ``local:N`` for N
            processes of this machine.

    Raises:
        MissingPackage: distributed is not installed.
        Error: nobody answers there, there are no workers, or they were lost while they worked.
    """
    try:
        import distributed
    except ImportError:
        raise MissingPackage("a cluster", "distributed", "cluster") from None
    from weightport import __version__

    with _client(distributed, address) as client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise Error(f"{address}: the scheduler has no workers") from None
        try:
            yield Cluster(client, address, __version__)
        except distributed.scheduler.KilledWorker:
            what = "its workers end again and again: do they have the memory?"
            raise Error(Problem(address, what, "nothing was written")) from None
        except (CancelledError, distributed.comm.CommClosedError, TimeoutError):
            raise Error(Problem(address, "the cluster went away", "nothing was written")) from None


@contextmanager
def _client(distributed: Any, address: str) -> Iterator[Any]:
    local = _LOCAL.fullmatch(address)
    if local is not None:
        options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
        with (
            distributed.LocalCluster(n_workers=int(local[1]) if local[1] else None, **options) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    if os.path.isfile(address):
        at = _scheduler_of(address)
    elif "://" in address:
        at = address
    else:
        what = "is no cluster: tcp://HOST:PORT, the path of a scheduler's file, local or local:N"
        raise Error(f"{address}: {what}")
    _answers(distributed, address, at)
    with distributed.Client(at, timeout=PATIENCE, set_as_default=False) as client:
        yield client


def _scheduler_of(path: str) -> str:
    """The address in a scheduler's file."""
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.loads(file.read(1 << 16))["address"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Error(f"{path}: is no file of a scheduler, as dask-scheduler --scheduler-file writes it") from None


def _answers(distributed: Any, address: str, at: str) -> None:
    """See that a scheduler answers; a client that finds none would go on looking when nobody waits for it any more."""

    async def ask() -> Any:
        options = distributed.Security().get_connection_args("client")
        async with distributed.rpc(at, timeout=PATIENCE, connection_args=options) as scheduler:
            return await asyncio.wait_for(scheduler.identity(), PATIENCE)

    try:
        with ThreadPoolExecutor(1) as thread:  # the loop of this one may be running, as in a notebook
            found = thread.submit(asyncio.run, ask()).result()
    except Exception as error:
        why = "" if isinstance(error, OSError | TimeoutError) else f" ({type(error).__name__})"
        raise Error(f"{address}: no scheduler answers there within {PATIENCE} seconds{why}") from None
    if not isinstance(found, dict) or found.get("type") != "Scheduler":
        raise Error(f"{address}: is no scheduler")


@contextmanager
def spread(address: str, path: str, *, ranged: bool, sources: Sequence[str], files: Sequence[str]) -> Iterator[Cluster]:
    """A cluster that was seen to be able to write a destination.

    Args:
        address: see :func:`connected`.
        path: the destination.
        ranged: whether its format is written by range.
        sources: paths of the models that are read.
        files: all files of these.

    Raises:
        RefusedError: the format is written as a stream.
        Error: a worker cannot do what it will be asked for; see also :func:`connected`.
    """
    if not ranged:
        what = "is written as one stream, which the workers of a cluster cannot share"
        hint = "leave out the cluster, or write .safetensors, .npz, .pt or a checkpoint"
        raise RefusedError(Problem(path, what, hint))
    with connected(address) as cluster:
        cluster.check(path, sources, files)
        yield cluster
