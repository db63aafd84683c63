"""Cells of MXNet's Gluon: their weights under MXNet's names, inputs and outputs.

    python -m venv venv && venv/bin/pip install "mxnet==1.9.1" "numpy<1.24" && venv/bin/python make_mxnet.py

For each, NAME.npz has the weights and NAME_run.npz the inputs x [batch, time, input], the initial states and y.
"""

from pathlib import Path

import numpy as np

np.bool = bool  # MXNet 1.9.1 still asks for it

import mxnet as mx  # noqa: E402
from mxnet.gluon import rnn  # noqa: E402

HERE = Path(__file__).parent
RNG = np.random.RandomState(41)


def fill(block):
    block.initialize()
    for parameter in block.collect_params().values():
        parameter.set_data(mx.nd.array(0.5 * RNG.randn(*parameter.shape)))


def write(name, block, saved, x, states, y):
    named = block._collect_params_with_prefix() if saved else block.collect_params()
    np.savez(HERE / f"{name}.npz", **{n: p.data().asnumpy() for n, p in named.items()})
    runs = {f"state{k}": s.asnumpy() for k, s in enumerate(states)}
    np.savez(HERE / f"{name}_run.npz", x=x.asnumpy(), y=y.asnumpy(), **runs)


def layers():
    x = mx.nd.array(RNG.randn(2, 4, 3))
    for kind, options in (("LSTM", {}), ("LSTM", {"projection_size": 3}), ("GRU", {}), ("RNN", {})):
        for both in (False, True):
            block = getattr(rnn, kind)(5, 2, layout="NTC", bidirectional=both, input_size=3, prefix="net_", **options)
            fill(block)
            states = [mx.nd.array(RNG.randn(*s.shape)) for s in block.begin_state(2)]
            y, _ = block(x, states)
            for saved in (False, True):
                parts = ["mxnet", kind.lower(), *["proj"] * bool(options), *["both"] * both, *["saved"] * saved]
                write("_".join(parts), block, saved, x, states, y)


def cells():
    x = mx.nd.array(RNG.randn(2, 4, 3))
    for kind in ("LSTM", "GRU", "RNN"):
        block = getattr(rnn, f"{kind}Cell")(5, input_size=3, prefix="net_")
        fill(block)
        states = [mx.nd.array(RNG.randn(*s.shape)) for s in block.begin_state(2)]
        y, _ = block.unroll(4, x, states, layout="NTC", merge_outputs=True)
        for saved in (False, True):
            write("_".join(["mxnet", kind.lower(), "cell", *["saved"] * saved]), block, saved, x, states, y)


layers()
cells()
