"""A transfer by the workers of a cluster: the same bytes, whoever is lost; what cannot be is refused beforehand."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.plan.stub import numbers
from tests.serving import serving
from tests.support import need
from weightport import cluster
from weightport.errors import Error, FormatError, MissingPackage, RefusedError
from weightport.execute import files
from weightport.execute.boxes import Sizes

distributed = need("distributed")
RULES = {
    "weightport": 1,
    "rules": [
        {"from": "k{n}", "to": "turned/{n}", "rearrange": "i j -> j i"},
        {"from": "k{n}", "to": "same/{n}"},
    ],
}
QUIET = {"dashboard_address": "127.0.0.1:0", "silence_logs": 60, "threads_per_worker": 1}


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """Two processes, and their scheduler."""
    with distributed.LocalCluster(n_workers=2, processes=True, **QUIET) as made:
        yield made


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, which is moved in many small tasks, and the same moved by one process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "SIZES", Sizes(task=20_000))
    monkeypatch.setattr(cluster, "PATIENCE", 20)
    np.savez("s.npz", **{f"k{n}": numbers(40, 60, seed=n) for n in range(20)})
    wp.transfer("s.npz", None, RULES, out="s.ckpt", format="tf-checkpoint", threads=1)
    os.mkdir("out")
    return tmp_path


def content(path: str) -> dict[str, bytes]:
    base = Path(path)
    return {
        f.name.removeprefix(base.name): f.read_bytes() for f in base.parent.iterdir() if f.name.startswith(base.name)
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".ckpt", ".pt"])
def test_the_result_is_the_same(workers: Any, suffix: str) -> None:
    seen: list[int] = []
    wp.transfer("s.npz", None, RULES, out=f"one{suffix}", threads=1)
    wp.transfer("s.npz", None, RULES, out=f"out/m{suffix}", cluster=workers.scheduler_address, progress=seen.append)
    assert content(f"out/m{suffix}") == content(f"one{suffix}")
    assert sum(seen) == 2 * 20 * 40 * 60 * 4
    assert len(seen) > 10  # tasks


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("first", [True, False])
def test_what_was_interrupted_is_resumed(workers: Any, suffix: str, first: bool) -> None:
    """By the workers, or by one process where they ended; and the other way round."""
    out = f"out/m{suffix}"
    left = 5

    def failing(_: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(28, "No space left on device")

    wp.transfer("s.npz", None, RULES, out=f"one{suffix}", threads=1)
    address = workers.scheduler_address
    with pytest.raises(Error, match="No space left on device"):
        wp.transfer("s.npz", None, RULES, out=out, cluster=address if first else None, resume=True, progress=failing)
    found = wp.transfer("s.npz", None, RULES, out=out, cluster=None if first else address, resume=True).resumed
    assert found is not None
    assert found.found + found.moved == 2 * 20 * 40 * 60 * 4
    assert found.found >= 4 * 9600
    assert content(out) == content(f"one{suffix}")
    assert len(os.listdir("out")) == (3 if suffix == ".ckpt" else 1)


def test_a_checkpoint_to_a_checkpoint_with_kept_values(workers: Any) -> None:
    mapping = {"weightport": 1, "rules": [{"from": "same/3", "to": "same/4"}], "ignore": ["**"], "keep": ["**"]}
    for out, where in (("one.ckpt", None), ("out/m.ckpt", workers.scheduler_address)):
        wp.transfer("s.ckpt", "s.ckpt", mapping, out=out, cluster=where)
    assert content("out/m.ckpt") == content("one.ckpt")


def test_the_command_and_a_scheduler_file(workers: Any) -> None:
    Path("m.yaml").write_text(json.dumps(RULES))
    Path("scheduler.json").write_text(json.dumps({"address": workers.scheduler_address}))
    weightport("transfer", "s.npz", "-m", "m.yaml", "-o", "one.safetensors")
    weightport("transfer", "s.npz", "-m", "m.yaml", "-o", "out/m.safetensors", "--cluster", "scheduler.json")
    assert content("out/m.safetensors") == content("one.safetensors")


def test_processes_of_this_machine() -> None:
    wp.transfer("s.npz", None, RULES, out="one.safetensors", threads=1)
    wp.transfer("s.npz", None, RULES, out="out/m.safetensors", cluster="local:2")
    assert content("out/m.safetensors") == content("one.safetensors")
    assert os.listdir("out") == ["m.safetensors"]


def test_workers_open_a_url_themselves(workers: Any) -> None:
    need("aiohttp")
    wp.transfer("s.npz", None, RULES, out="one.safetensors", threads=1)
    with serving({"s.npz": Path("s.npz").read_bytes()}) as web:
        web.needs = "SECRET"
        wp.transfer(
            f"{web.url}/s.npz?token=SECRET", None, RULES, out="out/m.safetensors", cluster=workers.scheduler_address
        )
    assert content("out/m.safetensors") == content("one.safetensors")


def test_a_worker_that_is_lost(workers: Any) -> None:
    with distributed.Client(workers, set_as_default=False) as client:
        processes = list(client.run(os.getpid).values())
    killed: list[int] = []

    def kill(_: int) -> None:
        if not killed:
            killed.append(processes[0])
            os.kill(processes[0], signal.SIGKILL)

    wp.transfer("s.npz", None, RULES, out="one.safetensors", threads=1)
    wp.transfer("s.npz", None, RULES, out="out/m.safetensors", cluster=workers.scheduler_address, progress=kill)
    assert killed
    assert content("out/m.safetensors") == content("one.safetensors")
    with distributed.Client(workers, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)  # for who comes next


def test_a_source_that_is_corrupt_leaves_nothing(workers: Any) -> None:
    raw = bytearray(Path("s.ckpt.data-00000-of-00001").read_bytes())
    raw[50_000] ^= 1
    Path("s.ckpt.data-00000-of-00001").write_bytes(raw)
    same = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
    with pytest.raises(FormatError, match="corrupt"):
        wp.transfer("s.ckpt", None, same, out="out/m.safetensors", cluster=workers.scheduler_address)
    assert os.listdir("out") == []


def test_an_interrupt_leaves_nothing(workers: Any) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wp.transfer(
            "s.npz", None, RULES, out="out/m.safetensors", cluster=workers.scheduler_address, progress=interrupt
        )
    assert os.listdir("out") == []


# What is refused before anything is written ------------------------------------------------------------------------


def refused(out: str = "out/m.safetensors", **how: Any) -> str:
    with pytest.raises(Error) as caught:
        wp.transfer("s.npz", None, RULES, out=out, **how)
    assert os.listdir("out") == []
    return str(caught.value)


def test_streams() -> None:
    with pytest.raises(RefusedError) as caught:
        wp.transfer("s.npz", None, RULES, out="out/m.h5", cluster="nowhere")
    what = "is written as one stream, which the workers of a cluster cannot share"
    hint = "leave out the cluster, or write .safetensors, .npz, .pt or a checkpoint"
    assert str(caught.value) == f"out/m.h5: {what}; {hint}"


def test_addresses_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    said = "no scheduler answers there within 1 seconds"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        assert refused(cluster=address) == f"{address}: {said}"  # refused
        nobody.listen()
        assert refused(cluster=address) == f"{address}: {said}"  # silent
    kinds = "tcp://HOST:PORT, the path of a scheduler's file, local or local:N"
    assert refused(cluster="local:0") == f"local:0: is no cluster: {kinds}"
    assert refused(cluster="foo://bar") == f"foo://bar: {said} (ValueError)"
    Path("file").write_text("{}")
    assert refused(cluster="file") == "file: is no file of a scheduler, as dask-scheduler --scheduler-file writes it"


def test_a_scheduler_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with distributed.LocalCluster(n_workers=0, processes=True, **QUIET) as empty:
        monkeypatch.setattr(cluster, "PATIENCE", 1)
        address = empty.scheduler_address
        assert refused(cluster=address) == f"{address}: the scheduler has no workers"


def test_what_goes_with_what(workers: Any) -> None:
    said = "cluster: not together with executor, and not for an out by URL, which nobody shares"
    assert refused(cluster=workers.scheduler_address, executor=object()) == said
    need("fsspec")
    assert refused("memory://new/m.safetensors", cluster=workers.scheduler_address) == said


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackage) as caught:
        wp.transfer("s.npz", None, RULES, out="out/m.npz", cluster="local")
    assert str(caught.value) == "a cluster needs distributed; pip install 'weightport[cluster]'"


def test_workers_of_another_version(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wp, "__version__", "0.0.0")
    said = refused(cluster=workers.scheduler_address).splitlines()
    assert len(said) == 2
    assert all(line.startswith("worker tcp://") and line.endswith(", here it is 0.0.0") for line in said)


def test_workers_that_see_something_else(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_mark", lambda _: (1, 2))
    said = refused(cluster=workers.scheduler_address).splitlines()
    assert len(said) == 2
    assert all(line.endswith(f": sees another file under {Path('s.npz').absolute()}") for line in said)


def test_what_a_worker_looks_at(tmp_path: Path) -> None:
    token = str(tmp_path / "token")
    asked = cluster._Asked((token, b"x"), (), {})
    folder = f"{tmp_path}, the destination's folder"
    assert cluster._probe(asked) == f"cannot write to {folder}: No such file or directory"
    Path(token).write_bytes(b"y")
    assert cluster._probe(asked) == f"sees another folder under {tmp_path} than this process"
    Path(token).write_bytes(b"x")
    assert cluster._probe(asked) == ""
    assert cluster._probe(cluster._Asked((token, b"x"), (), {"gone": (1, 2)})) == "does not see gone"
    typed = (("nosuch://host/a", "nosuch://u@host/a"),)
    assert "no kind of URL" in cluster._probe(cluster._Asked((token, b"x"), typed, {}))


def test_workers_that_end_again_and_again(workers: Any) -> None:
    address = workers.scheduler_address
    with pytest.raises(Error) as caught, cluster.connected(address) as found:
        found.submit(os._exit, 1).result()
    what = "its workers end again and again: do they have the memory?; nothing was written"
    assert str(caught.value) == f"{address}: {what}"
