"""What a model holds, told by whole processes, imports included: ``python scripts/bench_inspect.py``.

Makes its data: a checkpoint of many small tensors (``--tensors``), and a frozen graph of ``--mb`` of constants, most of
which lie in another scope than the one that is asked for. Contenders: TensorFlow's ``list_variables``, and its parser.
The seconds are those of the whole process, as a person waits for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from benchmarks import Goal, Run, folder, interleaved, run, table

_MAKE = """
import json, sys
import numpy as np
from weightport.formats import tf_bundle_write
from weightport.formats._table import put_varint
from weightport.tensors import TensorSpec
folder, tensors, mb = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
spec = TensorSpec.of("float32", (2, 2))
specs = {f"bert/encoder/layer_{n // 16}/part_{n % 16}/kernel": spec for n in range(tensors)}
value = np.ones((2, 2), np.float32)
tf_bundle_write.write(f"{folder}/{tensors}.ckpt", dict(sorted(specs.items())), lambda name: iter([value]))
def field(number, content):
    return bytes([number << 3 | 2]) + put_varint(len(content)) + content
def const(name, array):
    dims = b"".join(field(2, b"\\x08" + put_varint(n)) for n in array.shape)
    tensor = b"\\x08\\x01" + field(2, dims) + field(4, array.tobytes())
    attrs = field(5, field(1, b"value") + field(2, field(8, tensor)))
    attrs += field(5, field(1, b"dtype") + field(2, b"\\x30\\x01"))
    return field(1, field(1, name.encode()) + field(2, b"Const") + attrs)
with open(f"{folder}/frozen.pb", "wb") as file:
    for n in range(max(1, mb)):
        file.write(const(f"other/layer_{n}/kernel", np.zeros((1000, 250), np.float32)))
    file.write(const("wanted/kernel", np.ones((100, 100), np.float32)))
print(json.dumps({"seconds": 0}))
"""

_CODES = {
    "weightport inspect": """
import sys
from weightport.cli import main
sys.argv = ["weightport", "inspect", sys.argv[1] + ".index", "--json"]
try:
    main()
finally:
    sys.stdout.write("\\n" + '{"seconds": 0}' + "\\n")
""",
    "import numpy": "import numpy; print('{\"seconds\": 0}')",
    "import weightport": "import weightport; print('{\"seconds\": 0}')",
    "TensorFlow": """
import sys
import tensorflow as tf
assert len(tf.train.list_variables(sys.argv[1])) == int(sys.argv[2])
print('{"seconds": 0}')
""",
}

_FROZEN = {
    "weightport, one scope": """
import json, sys, time
import weightport as wp
wp.open(sys.argv[1]).close()  # loads what it needs
start = time.perf_counter()
with wp.open(sys.argv[1]) as source:
    assert source.read("wanted/kernel").sum() == 10_000
print(json.dumps({"seconds": time.perf_counter() - start}))
""",
    "TensorFlow, parsed": """
import json, sys, time
import tensorflow as tf
start = time.perf_counter()
graph = tf.compat.v1.GraphDef()
with open(sys.argv[1], "rb") as file:
    graph.ParseFromString(file.read())
node = next(node for node in graph.node if node.name == "wanted/kernel")
assert tf.make_ndarray(node.attr["value"].tensor).sum() == 10_000
print(json.dumps({"seconds": time.perf_counter() - start}))
""",
}


def whole(code: str, *arguments: str) -> Run:
    """A process, timed from its start to its end."""
    start = time.perf_counter()
    found = run(code, *arguments)
    return Run(time.perf_counter() - start, found.peak)


def _contender(code: str, *arguments: str, timed: Callable[..., Run] = whole) -> Callable[[], Run]:
    return lambda: timed(code, *arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, action="append", help="of the checkpoint (default: 400); again for more")
    parser.add_argument("--mb", type=int, default=4, help="size of the frozen graph, in MB (default: 4)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", help="where the data is made; it stays there")
    given = parser.parse_args(arguments)
    where = folder(given.folder, "weightport-bench-inspect")
    for tensors in given.tensors or [400]:
        run(_MAKE, str(where), str(tensors), str(given.mb))
        path = f"{where}/{tensors}.ckpt"
        runs = interleaved({n: _contender(c, path, str(tensors)) for n, c in _CODES.items()}, given.rounds)
        goals = {
            "weightport inspect": [Goal("TensorFlow", 1 / 15)],
            "import weightport": [Goal("import numpy", 1.5)],
        }
        print(table(f"inspect a checkpoint of {tensors:,} tensors, whole process", runs, "import numpy", goals))
        print(flush=True)
    frozen = {n: _contender(c, f"{where}/frozen.pb", timed=run) for n, c in _FROZEN.items()}
    found = interleaved(frozen, given.rounds)
    one, parsed = list(_FROZEN)
    print(table(f"one scope of a frozen graph of {given.mb} MB", found, parsed, {one: [Goal(parsed, 1 / 100)]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
