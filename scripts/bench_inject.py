"""Injection into live models, side by side with what each framework has for it: ``python scripts/bench_inject.py``.

Makes its data (``--mb`` of float32 variables, small by default), fills a TensorFlow graph and a Keras model, checks
that the variables hold the checkpoint's values, and prints time ratios within the run, peak memory and the goals.
Contenders: for a graph, ``Saver.restore``, ``init_from_checkpoint`` and an assignment of each value; for a Keras model,
``load_weights``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import Goal, Run, folder, interleaved, run, table

# Variables as a transformer has them: most bytes in matrices, some vectors between.
_SHAPES = """
import json, sys, time
import numpy as np
import weightport as wp
mapping = wp.load_mapping({"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]})
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
SHAPES = shapes(int(sys.argv[2]))
CHECK = list(SHAPES)[:2] + list(SHAPES)[-2:]
def check(read):
    for name in CHECK:
        assert np.array_equal(read(name), value(name, SHAPES[name])), name
"""

_MAKE = (
    _SHAPES
    + """
from weightport.formats import tf_bundle_write
from weightport.tensors import TensorSpec
folder = sys.argv[1]
specs = {name: TensorSpec.of("float32", shape) for name, shape in SHAPES.items()}
tf_bundle_write.write(folder + "/model.ckpt", specs, lambda name: iter([value(name, SHAPES[name])]))
print(json.dumps({"seconds": 0}))
"""
)

_GRAPH = (
    _SHAPES
    + """
import tensorflow as tf
v1 = tf.compat.v1
path = sys.argv[1] + "/model.ckpt"
how = sys.argv[3]
graph = tf.Graph()
with graph.as_default():
    variables = {name: v1.get_variable(name, shape, use_resource=True) for name, shape in SHAPES.items()}
    before = len(graph.as_graph_def().SerializeToString())
    session = v1.Session()
    start = time.perf_counter()
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
        wp.transfer(path, graph, mapping)
        session.run(v1.global_variables_initializer())
    seconds = time.perf_counter() - start
    after = len(graph.as_graph_def().SerializeToString())
    check(lambda name: session.run(variables[name]))
    print(json.dumps({"seconds": seconds, "growth": (after - before) / len(SHAPES)}))
"""
)

_KERAS = (
    _SHAPES
    + """
import keras
path, how = sys.argv[1], sys.argv[3]
class Dense(keras.layers.Layer):
    def __init__(self, shape, **more):
        super().__init__(**more)
        self.size = shape
    def build(self, _):
        self.kernel = self.add_weight(shape=self.size, name="kernel", initializer="zeros")
        self.bias = self.add_weight(shape=(self.size[1],), name="bias", initializer="zeros")
    def call(self, x):
        return x
layers = [Dense(shape, name=name.partition("/")[0]) for name, shape in SHAPES.items() if name.endswith("kernel")]
model = keras.Sequential([keras.Input((4,)), *layers])
weights = {w.path: w for w in model.weights}
if how == "make":
    for name, weight in weights.items():
        weight.assign(value("/".join(name.split("/")[-2:]), weight.shape))
    model.save_weights(path + "/model.weights.h5")
    print(json.dumps({"seconds": 0}))
    raise SystemExit
start = time.perf_counter()
if how == "load_weights":
    model.load_weights(path + "/model.weights.h5")
else:
    wp.transfer(path + "/model.ckpt", model, mapping)
seconds = time.perf_counter() - start
check(lambda name: np.asarray(next(w for p, w in weights.items() if p.endswith(name))))
print(json.dumps({"seconds": seconds}))
"""
)

_GOALS = {
    "graph": {"weightport": [Goal("Saver.restore", 1 / 3)]},
    "keras": {"weightport": [Goal("load_weights", 0.5)]},
}


def bench(data: Path, mb: int, rounds: int) -> str:
    """Both tables."""
    run(_MAKE, str(data), str(mb))
    run(_KERAS, str(data), str(mb), "make")

    def contender(code: str, how: str) -> Run:
        return run(code, str(data), str(mb), how)

    found = []
    graph = ["Saver.restore", "init_from_checkpoint", "weightport"] + (["an assign each"] if mb <= 300 else [])
    for title, code, names in (("graph", _GRAPH, graph), ("keras", _KERAS, ["load_weights", "weightport"])):
        runs = interleaved({name: (lambda c=code, n=name: contender(c, n)) for name in names}, rounds)  # type: ignore[misc]
        found.append(table(f"{mb} MB into a {title} model", runs, names[0], _GOALS[title]))
        growth = runs["weightport"][0].said.get("growth")
        if growth is not None:
            found.append(f"GraphDef: {growth:.0f} bytes more for each variable (goal: at most 1,000).")
    return "\n\n".join(found)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=8, help="size of the model in MB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the data is made")
    given = parser.parse_args(arguments)
    print(bench(folder(given.folder, "weightport-bench-inject"), given.mb, given.rounds))


if __name__ == "__main__":
    main()
