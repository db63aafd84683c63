"""Planning, from headers alone: ``python scripts/bench_plan.py``.

A model of ``--tensors`` names and a mapping of ``--rules`` patterns, each of which matches its share; then twice the
names, and twice the rules. What is linear takes at most twice as long; the seconds are of processor time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from benchmarks import Goal, interleaved, run, table

_PLAN = """
import json, sys, time
import numpy as np
import weightport as wp
from weightport.tensors import TensorSpec
tensors, rules = int(sys.argv[1]), int(sys.argv[2])
class Headers:
    format = path = "model"
    def __init__(self, names):
        self.found = {name: TensorSpec(np.dtype("float32"), (4, 4), 64) for name in names}
    def specs(self):
        return self.found
    def read(self, name, index=None):
        raise AssertionError("planning reads no values")
    def facts(self, names):
        return {}
    def close(self):
        pass
source = Headers(f"model/block_{n % rules}/layer_{n // rules}/kernel" for n in range(tensors))
mapping = wp.load_mapping({"weightport": 1, "rules": [
    {"from": f"model/block_{r}/layer_{{n}}/kernel", "to": f"new/block_{r}/layer_{{n}}/weight"} for r in range(rules)
]})
wp.plan(Headers(["model/block_0/layer_0/kernel"]), None, {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]})
start = time.process_time()
plan = wp.plan(source, None, mapping).check()
seconds = time.process_time() - start
assert len(plan.items) == tensors
print(json.dumps({"seconds": seconds}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=2000)
    parser.add_argument("--rules", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args(arguments)
    sizes = {
        "the model": (given.tensors, given.rules),
        "twice the tensors": (2 * given.tensors, given.rules),
        "twice the rules": (given.tensors, 2 * given.rules),
    }
    contenders = {name: partial(run, _PLAN, *map(str, size)) for name, size in sizes.items()}
    runs = interleaved(contenders, given.rounds)
    goals = {name: [Goal("the model", 2.3)] for name in list(sizes)[1:]}
    print(table(f"plan {given.tensors:,} tensors by {given.rules} patterns", runs, "the model", goals))
    least = min(one.seconds for one in runs["the model"])
    print(f"\ngoal: at most 1 s for 100,000 tensors and 100 patterns; here {least:.2f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
