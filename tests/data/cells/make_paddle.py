"""Cells of PaddlePaddle: their weights under PaddlePaddle's names, inputs and outputs.

    python -m venv venv && venv/bin/pip install "paddlepaddle==3.3.1" && venv/bin/python make_paddle.py

For each, NAME.npz has the weights and NAME_run.npz the inputs x [batch, time, input], the initial states and y.
"""

from pathlib import Path

import numpy as np
import paddle

HERE = Path(__file__).parent
RNG = np.random.RandomState(42)


def draw(*shape):
    return paddle.to_tensor((0.5 * RNG.randn(*shape)).astype("float32"))


def fill(layer):
    for parameter in layer.parameters():
        parameter.set_value(draw(*parameter.shape))


def write(name, layer, x, states, y):
    np.savez(HERE / f"{name}.npz", **{n: t.numpy() for n, t in layer.state_dict().items()})
    runs = {f"state{k}": s.numpy() for k, s in enumerate(states)}
    np.savez(HERE / f"{name}_run.npz", x=x.numpy(), y=y.numpy(), **runs)


def layers():
    x = draw(2, 4, 3)
    for kind, options in (("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {}), ("SimpleRNN", {})):
        for both in (False, True):
            direction = "bidirect" if both else "forward"
            layer = getattr(paddle.nn, kind)(3, 5, num_layers=2, direction=direction, **options)
            fill(layer)
            states = [draw(2 * (1 + both), 2, options.get("proj_size", 5))]
            if kind == "LSTM":
                states.append(draw(2 * (1 + both), 2, 5))
            y, _ = layer(x, tuple(states) if kind == "LSTM" else states[0])
            name = "_".join(["paddle", kind.lower().replace("simple", ""), *["proj"] * bool(options), *["both"] * both])
            write(name, layer, x, states, y)


def cells():
    x = draw(2, 4, 3)
    for kind, options in (("LSTM", {}), ("LSTM", {"proj_size": 3}), ("GRU", {}), ("SimpleRNN", {})):
        layer = getattr(paddle.nn, f"{kind}Cell")(3, 5, **options)
        fill(layer)
        states = [draw(2, options.get("proj_size", 5)), *[draw(2, 5)] * (kind == "LSTM")]
        now, found = tuple(states) if kind == "LSTM" else states[0], []
        for k in range(4):
            out, now = layer(x[:, k], now)
            found.append(out)
        name = "_".join(["paddle", kind.lower().replace("simple", ""), *["proj"] * bool(options), "cell"])
        write(name, layer, x, states, paddle.stack(found, 1))


layers()
cells()
