"""Transfers between files, beside a plain copy and what people use: ``python scripts/bench_transfer.py``.

Makes its data (``--mb`` of float32 each, small by default): a checkpoint with the tensors of a transformer, another
with two large LSTM cells. Every contender writes the same values, which is checked. weightport makes its files durable
(fsync), which none of the others does: so there are two copies to compare with, ``cp`` and ``cp + fsync``, and
weightport also without its fsync. The files that are read are in the cache; what was written before is removed and
synced. A busy machine changes the processor time, printed below each table, less than how long it takes. Below some
hundred MB the figures say nothing about the goals.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import Goal, Run, folder, interleaved, run, table

_COMMON = """
import json, os, resource, sys, time
import numpy as np
folder, mb = sys.argv[1], int(sys.argv[2])
def transformer():
    wide = 1024 if mb >= 100 else 128
    found, left, n = {"encoder/embedding": (mb * 1_000_000 // 12 // wide, wide)}, mb * 2_000_000 // 12, 0
    while left > 0:
        for name, shape in (("query", (wide, wide)), ("value", (wide, wide)), ("inner", (wide, 4 * wide)),
                            ("outer", (4 * wide, wide))):
            found[f"encoder/layer_{n}/{name}/kernel"] = shape
            found[f"encoder/layer_{n}/{name}/bias"] = shape[1:]
            left -= shape[0] * shape[1]
        n += 1
    return found
def recurrent():
    units = max(16, int((mb * 1_000_000 / 64) ** 0.5) // 16 * 16)
    return {f"rnn/multi_rnn_cell/cell_{n}/lstm_cell/{name}": shape for n in (0, 1)
            for name, shape in (("kernel", (2 * units, 4 * units)), ("bias", (4 * units,)))}
def value(name, shape):
    return np.random.default_rng(sum(map(ord, name))).standard_normal(shape, dtype="float32")
def durable(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
def used():
    own, other = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + other.ru_utime + other.ru_stime
def begin():
    os.sync()
    global cpu, start
    cpu, start = used(), time.perf_counter()
def said():
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": used() - cpu}))
"""

_MAKE = (
    _COMMON
    + """
from weightport.formats import safetensors_file, tf_bundle_write, torch_write
from weightport.tensors import TensorSpec
for base, shapes in (("transformer", transformer()), ("recurrent", recurrent())):
    specs = {name: TensorSpec.of("float32", shape) for name, shape in sorted(shapes.items())}
    tiles = lambda name: iter([value(name, shapes[name])])
    tf_bundle_write.write(f"{folder}/{base}.ckpt", specs, tiles)
    safetensors_file.write(f"{folder}/{base}.safetensors", specs, tiles)
    if base == "transformer":
        torch_write.write(f"{folder}/{base}.pt", specs, tiles)
begin()
said()
"""
)

_COPY = (
    _COMMON
    + """
import subprocess
source, out, sync = sys.argv[3:]
begin()
subprocess.run(["cp", source, out], check=True)
if sync == "fsync":
    durable(out)
said()
"""
)

_WEIGHTPORT = (
    _COMMON
    + """
import weightport as wp
from weightport import execute
source, out, mapping, options = sys.argv[3:]
options = json.loads(options)
if not options.pop("durable", True):
    os.fsync = lambda handle: None
    os.posix_fadvise = lambda *arguments: None
mapping = wp.load_mapping(json.loads(mapping))
wp.transfer(source, None, mapping, out=out, dry_run=True)  # loads what it needs
begin()
wp.transfer(source, None, mapping, out=out, **options)
said()
"""
)

_TENSORFLOW = (
    _COMMON
    + """
import tensorflow as tf
from safetensors.numpy import save_file
source, out, how = sys.argv[3:]
def gates(kernel):
    i, g, f, o = np.split(kernel, 4, -1)
    return np.concatenate([i, f, g, o], -1)
begin()
reader = tf.train.load_checkpoint(source)
found = {}
for name in reader.get_variable_to_shape_map():
    tensor = reader.get_tensor(name)
    if how == "transposed" and name.endswith("/kernel"):
        tensor = np.ascontiguousarray(tensor.T)
    elif how == "gates" and name.endswith("/kernel"):
        tensor = gates(tensor)
        half = len(tensor) // 2
        found[name.replace("/kernel", "/recurrent_kernel")] = np.ascontiguousarray(tensor[half:])
        tensor = np.ascontiguousarray(tensor[:half])
    elif how == "gates":
        tensor = gates(tensor)
        tensor[len(tensor) // 4 : len(tensor) // 2] += np.float32(1)
    found[name] = tensor
if out.endswith(".ckpt"):
    tf.raw_ops.SaveV2(prefix=out, tensor_names=list(found), shape_and_slices=[""] * len(found),
                      tensors=list(found.values()))
else:
    save_file(found, out)
said()
"""
)

_TORCH = (
    _COMMON
    + """
import torch
from safetensors.torch import load_file, save_file
source, out, how = sys.argv[3:]
begin()
found = torch.load(source) if source.endswith(".pt") else load_file(source)
if how == "transposed":
    found = {n: t.t().contiguous() if n.endswith("/kernel") else t for n, t in found.items()}
torch.save(found, out) if out.endswith(".pt") else save_file(found, out)
said()
"""
)

_CHECK = (
    _COMMON
    + """
import weightport as wp
one, other, renamed = sys.argv[3:]
with wp.open(one) as a, wp.open(other) as b:
    names = {n: n.replace(*renamed.split(">")) if ">" in renamed else n for n in a.specs()}
    assert set(names.values()) == set(b.specs()), set(names.values()) ^ set(b.specs())
    for mine, its in names.items():
            assert np.array_equal(a.read(mine), b.read(its)), mine
begin()
said()
"""
)

_SAME = [{"from": "{x**}", "to": "{x**}"}]
_TRANSPOSED = [
    {"from": "encoder/layer_{n}/{w}/kernel", "to": "encoder/layer_{n}/{w}/kernel", "rearrange": "i o -> o i"},
    {"from": "encoder/layer_{n}/{w}/bias", "to": "encoder/layer_{n}/{w}/bias"},
    {"from": "encoder/embedding", "to": "encoder/embedding"},
]
_CELLS = [
    {"from": {"layout": "lstm.tf1", "scope": f"rnn/multi_rnn_cell/cell_{n}/lstm_cell"},
     "to": {"layout": "lstm.keras", "scope": f"rnn/multi_rnn_cell/cell_{n}/lstm_cell"}}
    for n in (0, 1)
]  # fmt: skip
_TORCH_CELLS = [{"from": {"layout": "lstm.tf1", "scope": "rnn"}, "to": {"layout": "lstm.torch", "scope": "lstm"}}]


def _mapping(rules: Sequence[object]) -> str:
    return json.dumps({"weightport": 1, "rules": rules})


def _processor(runs: Mapping[str, Sequence[Run]]) -> str:
    """What each takes of the processors, which a busy machine changes less than how long it takes."""

    def least(name: str) -> float:
        return min(float(str(one.said["cpu"])) for one in runs[name])

    return ", ".join(f"{name} {least(name) / max(least('cp'), 1e-9):.1f}" for name in runs if name != "cp")


class Bench:
    """The jobs, over one folder of data."""

    def __init__(self, where: Path, mb: int, rounds: int) -> None:
        self.where, self.mb, self.rounds = where, mb, rounds
        self.out = where / "out"
        run(_MAKE, str(where), str(mb))

    def _run(self, code: str, *arguments: str) -> Run:
        return run(code, str(self.where), str(self.mb), *arguments)

    def _fresh(self, name: str) -> str:
        shutil.rmtree(self.out / name, ignore_errors=True)
        (self.out / name).mkdir(parents=True)
        return str(self.out / name)

    def job(
        self,
        title: str,
        source: str,
        suffix: str,
        rules: Sequence[object],
        peers: Mapping[str, tuple[str, str]],
        goals: Mapping[str, Sequence[Goal]],
    ) -> str:
        """One job by all contenders; their results are compared. Returns the table."""
        path = str(self.where / source)
        data = str(next(self.where.glob(f"{source}.data-*"))) if source.endswith(".ckpt") else path
        mapping = _mapping(rules)

        def copied(sync: str) -> Run:
            return self._run(_COPY, data, self._fresh("copy") + "/copy", sync)

        def ours(**options: object) -> Run:
            out = self._fresh("ours") + f"/model{suffix}"
            return self._run(_WEIGHTPORT, path, out, mapping, json.dumps(options))

        def peer(name: str, code: str, how: str) -> Run:
            end = ".safetensors" if code == _TORCH and suffix == ".ckpt" else suffix
            given = str(self.where / source.replace(".ckpt", ".safetensors")) if code == _TORCH else path
            found = self._run(code, given, self._fresh(name) + f"/model{end}", how)
            mine = f"{self.out}/ours/model{suffix}"
            if Path(f"{self.out}/ours").exists():
                self._run(_CHECK, mine, f"{self.out}/{name}/model{end}", "")
            return found

        contenders: dict[str, Callable[[], Run]] = {
            "cp": lambda: copied(""),
            "cp + fsync": lambda: copied("fsync"),
            "weightport": ours,
            "weightport, one thread": lambda: ours(threads=1),
            "weightport without fsync": lambda: ours(durable=False),
            **{name: partial(peer, name, *how) for name, how in peers.items()},
        }
        runs = interleaved(contenders, self.rounds)
        return table(title, runs, "cp", goals) + "\n\nProcessor time / cp: " + _processor(runs) + "."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=8, help="size of each model, in MB (default: 8)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the data is made; it stays there")
    parser.add_argument(
        "--job", action="append", help="only these: renamed, transposed, cells, torch, same, tensors, pt, pt-tensors"
    )
    given = parser.parse_args(arguments)
    bench = Bench(folder(given.folder, "weightport-bench-transfer"), given.mb, given.rounds)
    durable = Goal("cp + fsync", 1.0)

    def goals(plain: float, *peers: str) -> dict[str, list[Goal]]:
        return {
            "weightport": [durable],
            "weightport without fsync": [Goal("cp", plain), *(Goal(peer, 1 / 6) for peer in peers)],
        }

    tf = "TensorFlow + save_file"
    jobs: dict[str, tuple[Any, ...]] = {
        "renamed": ("checkpoint -> safetensors, renamed", "transformer.ckpt", ".safetensors", _SAME,
                    {tf: (_TENSORFLOW, "")}, goals(1.15, tf)),
        "transposed": ("checkpoint -> safetensors, two thirds transposed", "transformer.ckpt", ".safetensors",
                       _TRANSPOSED, {tf: (_TENSORFLOW, "transposed"), "torch": (_TORCH, "transposed")},
                       goals(1.8, tf, "torch")),
        "cells": ("LSTM cells, gates in another order: lstm.tf1 -> lstm.keras", "recurrent.ckpt", ".safetensors",
                  _CELLS, {tf: (_TENSORFLOW, "gates")}, goals(1.8, tf)),
        "torch": ("LSTM cells, transposed and in another order: lstm.tf1 -> lstm.torch", "recurrent.ckpt",
                  ".safetensors", _TORCH_CELLS, {}, goals(2.0)),
        "same": ("checkpoint -> checkpoint, renamed", "transformer.ckpt", ".ckpt", _SAME,
                 {"TensorFlow": (_TENSORFLOW, "")}, goals(1.1, "TensorFlow")),
        "tensors": ("safetensors -> safetensors, renamed", "transformer.safetensors", ".safetensors", _SAME,
                    {"load_file + save_file": (_TORCH, "")}, goals(1.1)),
        "pt": (".pt -> .pt, renamed", "transformer.pt", ".pt", _SAME, {"torch.load + torch.save": (_TORCH, "")},
               goals(1.1)),
        "pt-tensors": (".pt -> safetensors, renamed", "transformer.pt", ".safetensors", _SAME,
                       {"torch.load + save_file": (_TORCH, "")}, goals(1.15)),
    }  # fmt: skip
    print(f"{given.mb} MB, {given.rounds} rounds; times are of the job, without imports\n")
    for name in given.job or jobs:
        print(bench.job(*jobs[name]), end="\n\n", flush=True)
    shutil.rmtree(bench.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
