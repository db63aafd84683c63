"""Models that PyTorch exported to ONNX: their cells into PyTorch modules and Keras layers, and back into the model that
onnxruntime runs. What was exported is checked against what PyTorch gave.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.torch_modules import load, module, moved, state
from tests.support import need

CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {"LSTM": {}, "GRU": {}, "RNN": {"nonlinearity": "relu"}}


def network(kind: str, seed: int, **options: Any) -> Any:
    """An embedding, an RNN of five units and a head."""
    torch = need("torch")

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.letters = module("Embedding", 11, 3, seed=seed)
            self.rnn = module(kind, 3, 5, batch_first=True, seed=seed, **KINDS[kind], **options)
            self.head = module("Linear", 10 if options.get("bidirectional") else 5, 1, seed=seed)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(self.letters(x))[0])

    return Network().eval()


def exported(made: Any, path: Path, *, fold: bool = True) -> str:
    torch = need("torch")
    need("onnx")
    x = torch.zeros((2, 4), dtype=torch.long)
    axes = {"x": {0: "batch", 1: "time"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and says so
        torch.onnx.export(
            made, (x,), str(path), dynamo=False, do_constant_folding=fold, opset_version=17, input_names=["x"],
            output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    return str(path)


def given(made: Any) -> tuple[np.ndarray, np.ndarray]:
    """Letters, and what the network makes of them."""
    torch = need("torch")
    x = np.random.default_rng(4).integers(0, 11, (3, 7))
    with torch.no_grad():
        return x, made(torch.from_numpy(x)).numpy()


def run(path: str, x: np.ndarray) -> np.ndarray:
    session = need("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def mapping(kind: str, there: bool = True) -> dict[str, Any]:
    """Of an exported network to one of PyTorch's, or back."""
    sides = [{"layout": f"{kind.lower()}.onnx", "scope": "rnn"}, {"layout": f"{kind.lower()}.torch", "scope": "rnn"}]
    names = ["onnx::MatMul_{n}", "head.weight"]
    same = [{"from": name, "to": name} for name in ("letters.weight", "head.bias")]
    if not there:
        sides.reverse()
    head = {"from": names[0], "to": names[1], "rearrange": "in out -> out in"}
    return {"weightport": 1, "rules": [{"from": sides[0], "to": sides[1]}, *same, *([head] if there else [])]}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_from_onnx_into_torch_and_back(kind: str, layers: int, both: bool, tmp_path: Path) -> None:
    made = network(kind, 1, num_layers=layers, bidirectional=both)
    path = exported(made, tmp_path / "m.onnx")
    x, y = given(made)
    np.testing.assert_allclose(run(path, x), y, **CLOSE)
    with wp.open(path) as source:
        (cell,) = source.cells()
        assert (cell.scope, cell.layout.name, cell.layers) == ("rnn", f"{kind.lower()}.onnx", layers)
        assert cell.directions == (("forward", "backward") if both else ("forward",))

    other = network(kind, 2, num_layers=layers, bidirectional=both)
    load(other, moved(tmp_path, path, state(other), mapping(kind)))
    assert all(np.array_equal(state(other)[n], a) for n, a in state(made).items())

    # Other weights into the exported model.
    new = network(kind, 3, num_layers=layers, bidirectional=both)
    back = mapping(kind, there=False)
    with wp.open(path) as source:
        (head,) = [n for n in source.specs() if n.startswith("onnx::MatMul")]
    back["rules"].append({"from": "head.weight", "to": head, "rearrange": "out in -> in out"})
    np.savez(tmp_path / "new.npz", **state(new))
    out = str(tmp_path / "out.onnx")
    wp.transfer(tmp_path / "new.npz", path, back, out=out)
    need("onnx").checker.check_model(out, full_check=True)
    x, y = given(new)
    np.testing.assert_allclose(run(out, x), y, **CLOSE)
    proof = wp.verify(tmp_path / "new.npz", out, back)
    assert proof.equal
    assert len(proof.cells) == layers * (1 + both)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_without_folding_keeps_torch_s_weights(kind: str, tmp_path: Path) -> None:
    """The graph cuts and joins PyTorch's own weights: they are in the file, and what its nodes say of them counts."""
    made = network(kind, 1, num_layers=2, bidirectional=True)
    path = exported(made, tmp_path / "m.onnx", fold=False)
    x, y = given(made)
    np.testing.assert_allclose(run(path, x), y, **CLOSE)
    layout = {"layout": f"{kind.lower()}.torch", "scope": "rnn"}
    with wp.open(path) as source:
        (cell,) = source.cells()
        assert (cell.scope, cell.layout.name, cell.layers) == ("rnn", layout["layout"], 2)
        said = source.facts(cell.units[0].names)
    assert said["activation"] == ("relu" if kind == "RNN" else "tanh")
    np.savez(tmp_path / "new.npz", **state(network(kind, 3, num_layers=2, bidirectional=True)))
    rules = [{"from": layout, "to": layout}, {"from": "{a}.{b}", "to": "{a}.{b}"}]
    out = str(tmp_path / "out.onnx")
    wp.transfer(tmp_path / "new.npz", path, {"weightport": 1, "rules": rules}, out=out)
    x, y = given(network(kind, 3, num_layers=2, bidirectional=True))
    np.testing.assert_allclose(run(out, x), y, **CLOSE)


def test_into_keras(tmp_path: Path) -> None:
    """Sizes, gates and the reset mode are the file's; the outputs are PyTorch's."""
    keras = need("keras")
    for kind in ("LSTM", "GRU"):
        made = network(kind, 1)
        path = exported(made, tmp_path / "m.onnx")
        inputs = keras.Input((None, 3))
        layer = getattr(keras.layers, kind)(5, return_sequences=True, name="rnn")
        model = keras.Model(inputs, layer(inputs))
        sides = [
            {"layout": f"{kind.lower()}.onnx", "scope": "rnn"},
            {"layout": f"{kind.lower()}.keras", "scope": "rnn"},
        ]
        rules = [{"from": sides[0], "to": sides[1]}]
        wp.transfer(path, model, {"weightport": 1, "rules": rules, "ignore": ["letters.*", "head.*", "onnx::*"]})
        torch = need("torch")
        x = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
        with torch.no_grad():
            expected = made.rnn(torch.from_numpy(x))[0].numpy()
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, **CLOSE)
