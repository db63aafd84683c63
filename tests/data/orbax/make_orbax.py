"""Checkpoints of Orbax 0.4.8, beside this file: ``python make_orbax.py`` with ``orbax-checkpoint==0.4.8 jax==0.6.2``.

It wrote numbers, and what ``SaveArgs(aggregate=True)`` asks for, into one file of msgpack; later versions no longer do.
"""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

HERE = Path(__file__).resolve().parent
TREE = {
    "params": {
        "enc": {"kernel": jax.numpy.arange(60, dtype="float32").reshape(5, 12), "bias": np.full(12, 0.5, np.float32)},
        "l": [jax.numpy.ones(2, "bfloat16"), 3],
    },
    "step": 7,
    "rate": 1.5,
}
for name, ocdbt, together in (("ocdbt", True, False), ("folders", False, False), ("together", False, True)):
    shutil.rmtree(HERE / name, ignore_errors=True)
    args = jax.tree.map(lambda x, all_=together: ocp.SaveArgs(aggregate=all_ or np.shape(x) == ()), TREE)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)).save(HERE / name, TREE, save_args=args)
