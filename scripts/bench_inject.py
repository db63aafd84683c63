"""Injection into live models, side by side with what each framework has for it: ``python scripts/bench_inject.py``.

Makes its data (``--mb`` of float32 variables, small by default), fills a TensorFlow graph, a Keras model, a PyTorch
module and a tree of JAX, checks that the variables hold the file's values, and prints time ratios within the run,
processor time, peak memory and the goals. Every contender first does the same with a small model, so that imports and
what a framework sets up once are left out.
Contenders: for a graph ``Saver.restore``, ``init_from_checkpoint`` and an assignment of each value, for a transposed
one ``RestoreV2`` and ``tf.transpose``; for a Keras model ``load_weights``; for PyTorch ``torch.load`` or ``load_file``
and ``load_state_dict``; for JAX ``load_file``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import Goal, Run, folder, interleaved, run, table

# Variables as a transformer has them: most bytes in matrices, some vectors between.
_COMMON = """
import json, os, resource, sys, time
import numpy as np
folder, mb, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
turned = how.endswith("transposed")
def mapping():
    import weightport as wp
    turn = {"rearrange": "i o -> o i"} if turned else {}
    rules = [{"from": "{x}/kernel", "to": "{x}/kernel", **turn}, {"from": "{x}/bias", "to": "{x}/bias"}]
    return wp.load_mapping({"weightport": 1, "rules": rules})
def shapes(mb):
    wide = 1024 if mb >= 64 else 128
    found, left, n = {}, mb * 1_000_000 // 4, 0
    while left > 0:
        rows = min(wide * 4, max(1, left // wide))
        found[f"layer_{n}/kernel"] = (rows, wide)
        found[f"layer_{n}/bias"] = (wide,)
        left -= (rows + 1) * wide
        n += 1
    return found
def value(name, shape):
    return np.random.default_rng(sum(map(ord, name))).standard_normal(shape, dtype="float32")
def shaped(all):
    return {name: shape[::-1] if turned else shape for name, shape in all.items()}
def check(read, all):
    for name in list(all)[:2] + list(all)[-2:]:
        found, made = read(name), value(name, all[name])
        assert np.array_equal(found, made.T if turned else made), name
KB = 1 if sys.platform == "darwin" else 1024
def used():
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_maxrss
def benchmark(job):
    for place, all in ((folder + "/small", shapes(1)), (folder, shapes(mb))):
        make, read, more = job(place, shaped(all))
        cpu, before = used()
        start = time.perf_counter()
        make()
        seconds = time.perf_counter() - start
        after, peak = used()
        check(read, all)
    print(json.dumps({"seconds": seconds, "cpu": after - cpu, "more": (peak - before) * KB, **more()}))
"""

_MAKE = (
    _COMMON
    + """
import torch
from safetensors.numpy import save_file
from weightport.formats import tf_bundle_write
from weightport.tensors import TensorSpec
for place, all in ((folder, shapes(mb)), (folder + "/small", shapes(1))):
    os.makedirs(place, exist_ok=True)
    specs = {name: TensorSpec.of("float32", shape) for name, shape in all.items()}
    tf_bundle_write.write(place + "/model.ckpt", specs, lambda name: iter([value(name, all[name])]))
    values = {name: value(name, shape) for name, shape in all.items()}
    save_file(values, place + "/model.safetensors")
    torch.save({name.replace("/", "."): torch.from_numpy(v) for name, v in values.items()}, place + "/model.pt")
    del values
print(json.dumps({"seconds": 0}))
"""
)

_GRAPH = (
    _COMMON
    + """
import tensorflow as tf
v1 = tf.compat.v1
def job(place, all):
    path, graph = place + "/model.ckpt", tf.Graph()
    with graph.as_default():
        def initial(name, shape):
            if how != "RestoreV2 + tf.transpose, transposed":
                return {"name": name, "shape": shape}
            made = tf.raw_ops.RestoreV2(prefix=path, tensor_names=[name], shape_and_slices=[""], dtypes=[tf.float32])[0]
            made = tf.transpose(made) if len(shape) > 1 else made
            made.set_shape(shape)
            return {"name": name, "initializer": lambda *_, **__: made, "shape": shape}
        variables = {name: v1.get_variable(use_resource=True, **initial(name, s)) for name, s in all.items()}
    before = len(graph.as_graph_def().SerializeToString())
    session = v1.Session(graph=graph)
    def make():
        with graph.as_default():
            if how == "Saver.restore":
                v1.train.Saver().restore(session, path)
            elif how == "init_from_checkpoint":
                v1.train.init_from_checkpoint(path, {"/": "/"})
                session.run(v1.global_variables_initializer())
            elif how == "an assign each":
                reader = tf.train.load_checkpoint(path)
                for name, variable in variables.items():
                    session.run(v1.assign(variable, reader.get_tensor(name)))
            else:
                if how.startswith("weightport"):
                    import weightport as wp
                    wp.transfer(path, graph, mapping())
                session.run(v1.global_variables_initializer())
    def grown():
        return {"growth": (len(graph.as_graph_def().SerializeToString()) - before) / len(all)}
    return make, lambda name: session.run(variables[name]), grown
benchmark(job)
"""
)

_KERAS = (
    _COMMON
    + """
import keras
class Dense(keras.layers.Layer):
    def __init__(self, shape, wide, **more):
        super().__init__(**more)
        self.size, self.wide = shape, wide
    def build(self, _):
        self.kernel = self.add_weight(shape=self.size, name="kernel", initializer="zeros")
        self.bias = self.add_weight(shape=(self.wide,), name="bias", initializer="zeros")
    def call(self, x):
        return x
def job(place, all):
    names = [name.partition("/")[0] for name in all if name.endswith("kernel")]
    layers = [Dense(all[f"{n}/kernel"], all[f"{n}/bias"][0], name=n) for n in names]
    model = keras.Sequential([keras.Input((4,)), *layers])
    weights = {"/".join(w.path.split("/")[-2:]): w for w in model.weights}
    def make():
        if how == "make":
            for name, weight in weights.items():
                weight.assign(value(name, weight.shape))
            model.save_weights(place + "/model.weights.h5")
        elif how == "load_weights":
            model.load_weights(place + "/model.weights.h5")
        else:
            import weightport as wp
            wp.transfer(place + "/model.ckpt", model, mapping())
    return make, lambda name: np.asarray(weights[name]), dict
benchmark(job)
"""
)

_TORCH = (
    _COMMON
    + """
import torch
torch.set_num_threads(2)
class Layer(torch.nn.Module):
    def __init__(self, kernel, bias):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.zeros(kernel))
        self.bias = torch.nn.Parameter(torch.zeros(bias))
def job(place, all):
    names = [name.partition("/")[0] for name in all if name.endswith("kernel")]
    model = torch.nn.ModuleDict({n: Layer(all[f"{n}/kernel"], all[f"{n}/bias"]) for n in names})
    def make():
        if how == "torch.load":
            model.load_state_dict(torch.load(place + "/model.pt"))
        elif how == "torch.load, mapped":
            model.load_state_dict(torch.load(place + "/model.pt", mmap=True))
        elif how == "load_file":
            from safetensors.torch import load_file
            found = load_file(place + "/model.safetensors")
            model.load_state_dict({name.replace("/", "."): tensor for name, tensor in found.items()})
        else:
            import weightport as wp
            suffix, split = (".pt", ".") if how.endswith(".pt") else (".safetensors", "/")
            rules = [{"from": "{x}" + split + "{w}", "to": "{x}.{w}"}]
            wp.transfer(place + "/model" + suffix, model, wp.load_mapping({"weightport": 1, "rules": rules}))
    return make, lambda name: model.state_dict()[name.replace("/", ".")].numpy(), dict
benchmark(job)
"""
)

_JAX = (
    _COMMON
    + """
import jax, jax.numpy as jnp
def job(place, all):
    tree = {}
    for name, shape in all.items():
        tree.setdefault(name.partition("/")[0], {})[name.partition("/")[2]] = jax.ShapeDtypeStruct(shape, "float32")
    made = {}
    def make():
        if how == "load_file":
            from safetensors.flax import load_file
            found = load_file(place + "/model.safetensors")
            made.update({n: {w: found[f"{n}/{w}"] for w in inner} for n, inner in tree.items()})
        else:
            import weightport as wp
            made.update(wp.transfer(place + "/model.safetensors", tree, mapping()).target)
        jax.block_until_ready(made)
    return make, lambda name: np.asarray(made[name.partition("/")[0]][name.partition("/")[2]]), dict
benchmark(job)
"""
)

_CODE = {"graph": _GRAPH, "keras": _KERAS, "torch": _TORCH, "jax": _JAX}
_WHO: Mapping[str, Sequence[str]] = {
    "graph": (
        "Saver.restore", "init_from_checkpoint", "weightport",
        "RestoreV2 + tf.transpose, transposed", "weightport, transposed",
    ),
    "keras": ("load_weights", "weightport", "weightport, transposed"),
    "torch": ("torch.load", "torch.load, mapped", "weightport .pt", "load_file", "weightport .safetensors"),
    "jax": ("load_file", "weightport"),
}  # fmt: skip
_GOALS = {
    "graph": {"weightport": [Goal("Saver.restore", 1 / 3)], "weightport, transposed": [Goal("Saver.restore", 1)]},
    "keras": {"weightport": [Goal("load_weights", 0.5)]},
}


def bench(data: Path, mb: int, rounds: int, models: Sequence[str], who: Sequence[str] = ()) -> str:
    """A table for each of these models: of all contenders, or of the first, which is the base, and those in ``who``."""
    run(_MAKE, str(data), str(mb), "make")
    if "keras" in models:
        run(_KERAS, str(data), str(mb), "make")
    found = []
    for model in models:
        names = [*_WHO[model], *(["an assign each"] if model == "graph" and mb <= 300 else [])]
        names = [n for n in names if not who or n == names[0] or n in who]
        runs = interleaved({n: partial(run, _CODE[model], str(data), str(mb), n) for n in names}, rounds)
        found.append(table(f"{mb} MB into a {model} model", runs, names[0], _GOALS.get(model)))
        found.append(_beside(runs))
        growth = runs["weightport"][0].said.get("growth") if model == "graph" and "weightport" in runs else None
        if growth is not None:
            found.append(f"GraphDef: {growth:.0f} bytes more for each variable (goal: at most 1,000).")
    return "\n\n".join(found)


def _beside(runs: Mapping[str, Sequence[Run]]) -> str:
    """Processor time and the memory that was added, which depend less than time does on what else runs."""
    cpu = {n: statistics.median(float(str(one.said["cpu"])) for one in own) for n, own in runs.items()}
    more = {n: max(int(str(one.said["more"])) for one in own) / 1e6 for n, own in runs.items()}
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in cpu.items())
    memory = ", ".join(f"{name} {value:,.0f}" for name, value in more.items())
    return f"Processor time in seconds: {seconds}.\n\nMB more at the peak than before: {memory}."


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=8, help="size of the model in MB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the data is made")
    parser.add_argument("--model", action="append", choices=list(_CODE), help="which models; all by default")
    parser.add_argument("--who", action="append", help="which contenders beside each model's first; all by default")
    given = parser.parse_args(arguments)
    models = given.model or list(_CODE)
    print(bench(folder(given.folder, "weightport-bench-inject"), given.mb, given.rounds, models, given.who or ()))


if __name__ == "__main__":
    main()
