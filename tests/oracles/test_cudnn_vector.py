"""cuDNN's parameter buffer, without a GPU: against what others that give their weights to cuDNN put into it.

JAX makes the vector of an LSTM of any layers and directions and has a reference of what cuDNN computes with it; Keras
hands cuDNN the vector of an LSTM and of a GRU; the order of several layers of all kinds is that of MXNet's
FusedRNNCell (mxnet/rnn/rnn_cell.py, _slice_weights), written down here for PyTorch's tensors. TensorFlow 1.15 recorded
what a stack computes in the form in which its saver unpacks the buffer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.oracles.torch_modules import load, module, moved, run, save, state
from tests.support import fixture, need
from weightport.errors import PlanError

INPUTS, UNITS, STEPS, BATCH = 3, 4, 5, 2
MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
STACKS = [(1, 1), (2, 1), (1, 2), (3, 2)]


def opaque(kind: str, layers: int = 1, directions: int = 1, inputs: int = INPUTS, **more: Any) -> dict[str, Any]:
    sizes = {"input": inputs, "units": UNITS, "layers": layers, "directions": directions}
    return {"layout": f"{kind}.cudnn-opaque", "scope": "net/cudnn", "sizes": sizes, **more}


def rule(source: Any, target: Any) -> dict[str, Any]:
    return {"weightport": 1, "rules": [{"from": source, "to": target}]}


def torch_side(kind: str, **more: Any) -> dict[str, Any]:
    return {"layout": f"{kind}.torch", "scope": "rnn", **more}


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {n: archive[n] for n in archive.files}


@pytest.mark.parametrize(("layers", "directions"), STACKS)
def test_what_jax_gives_to_cudnn(layers: int, directions: int, tmp_path: Path) -> None:
    jax, rnn = need("jax"), need("jax.experimental.rnn")
    both = directions == 2
    weights = rnn.init_lstm_weight(jax.random.key(0), INPUTS, UNITS, layers, both)
    path = save(tmp_path / "jax.npz", {"net/cudnn/opaque_kernel": np.asarray(weights)})
    made = module("LSTM", INPUTS, UNITS, num_layers=layers, bidirectional=both, batch_first=True)
    spec = rule(opaque("lstm", layers, directions), torch_side("lstm"))
    found = moved(tmp_path, path, state(made, "rnn."), spec)
    load(made, found, "rnn.")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    h, c = (rng.normal(size=(layers * directions, BATCH, UNITS)).astype(np.float32) for _ in "hc")
    parts = rnn.unpack_lstm_weights(weights, INPUTS, UNITS, layers, both)
    lengths = np.full(BATCH, STEPS, np.int32)
    outputs, *final = rnn.lstm_ref(x, h, c, *parts, lengths, INPUTS, UNITS, layers, 0.0, both)
    mine, states = run(made, x, [h, c])
    np.testing.assert_allclose(mine, outputs, atol=1e-6)
    for one, other in zip(states, final, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    back = tmp_path / "back.npz"
    wp.transfer(save(tmp_path / "torch.npz", found), None, wp.load_mapping(spec).reversed(), out=str(back))
    assert read(back)["net/cudnn/opaque_kernel"].tobytes() == np.asarray(weights).tobytes()


def in_order(arrays: dict[str, np.ndarray], layers: int, directions: int) -> np.ndarray:
    """PyTorch's tensors in one vector, as mxnet/rnn/rnn_cell.py (FusedRNNCell._slice_weights) cuts it up."""
    places = [f"l{layer}{end}" for layer in range(layers) for end in ("", "_reverse")[:directions]]
    weights = [arrays[f"rnn.weight_{which}_{place}"] for place in places for which in ("ih", "hh")]
    biases = [arrays[f"rnn.bias_{which}_{place}"] for place in places for which in ("ih", "hh")]
    return np.concatenate([a.reshape(-1) for a in (*weights, *biases)])


@pytest.mark.parametrize(("layers", "directions"), STACKS)
@pytest.mark.parametrize("kind", MODULES)
def test_the_order_of_layers_and_directions(kind: str, layers: int, directions: int, tmp_path: Path) -> None:
    made = module(MODULES[kind], INPUTS, UNITS, num_layers=layers, bidirectional=directions == 2)
    arrays = state(made, "rnn.")
    path, out = save(tmp_path / "torch.npz", arrays), tmp_path / "out.npz"
    target = opaque(kind)
    del target["sizes"]  # the module tells them
    spec = rule(torch_side(kind), target)
    result = wp.transfer(path, None, spec, out=str(out))
    assert "bijective" in str(result)
    expected = in_order(arrays, layers, directions)
    assert read(out)["net/cudnn/opaque_kernel"].tobytes() == expected.tobytes()
    proof = wp.verify(path, str(out), spec)
    assert (proof.equal, len(proof.cells), proof.notes) == (True, layers * directions, ())
    # And where a vector of that length is there already; and back, the sizes told by the other side or by the rule.
    there = moved(tmp_path, path, {"net/cudnn/opaque_kernel": 0 * expected}, spec)
    assert there["net/cudnn/opaque_kernel"].tobytes() == expected.tobytes()
    again = moved(tmp_path, str(out), {n: 0 * a for n, a in arrays.items()}, wp.load_mapping(spec).reversed())
    assert {n: a.tobytes() for n, a in again.items()} == {n: a.tobytes() for n, a in arrays.items()}
    told = rule(opaque(kind, layers, directions), torch_side(kind))
    wp.transfer(str(out), None, told, out=str(tmp_path / "told.npz"))
    assert {n: a.tobytes() for n, a in read(tmp_path / "told.npz").items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }


class _Given(Exception):
    """What was about to go to cuDNN."""


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_what_keras_gives_to_cudnn(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf, backend = need("tensorflow"), need("keras.src.backend.tensorflow.rnn")
    rng, gates = np.random.default_rng(2), GATES[kind]
    kernel, recurrent = (rng.normal(size=(n, gates * UNITS)).astype(np.float32) for n in (INPUTS, UNITS))
    bias = rng.normal(size=gates * UNITS if kind == "lstm" else (2, gates * UNITS)).astype(np.float32)

    def given(*, params: Any, **_: Any) -> None:
        raise _Given(params.numpy())

    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", given)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": True, "is_rocm_build": False})
    x, first = tf.zeros((BATCH, STEPS, INPUTS)), [tf.zeros((BATCH, UNITS))] * (2 if kind == "lstm" else 1)
    states = first if kind == "lstm" else [first]
    with pytest.raises(_Given) as caught:
        getattr(backend, f"_cudnn_{kind}")(
            x, *states, *map(tf.constant, (kernel, recurrent, bias)), None, False, False, True
        )
    (expected,) = caught.value.args
    path = save(tmp_path / "keras.npz", {"a/kernel": kernel, "a/recurrent_kernel": recurrent, "a/bias": bias})
    source = {"layout": f"{kind}.keras", "scope": "a", "activation": "tanh", "recurrent_activation": "sigmoid"}
    wp.transfer(path, None, rule(source, opaque(kind)), out=str(tmp_path / "out.npz"))
    found = read(tmp_path / "out.npz")["net/cudnn/opaque_kernel"]
    if kind == "gru":
        assert found.tobytes() == expected.tobytes()
        return
    # Keras keeps an LSTM's one bias as the second, weightport as the first of cuDNN's two: only their sum counts.
    ends = found.size - 2 * gates * UNITS
    assert found[:ends].tobytes() == expected[:ends].tobytes()
    np.testing.assert_array_equal(found[ends:].reshape(2, -1).sum(axis=0), expected[ends:].reshape(2, -1).sum(axis=0))


def test_what_tensorflow_1_unpacks_of_it(tmp_path: Path) -> None:
    """The canonical form of CudnnLSTM's saver, packed and unpacked into PyTorch's module: the recorded outputs."""
    model = fixture("b_cells/cudnn_lstm_stack")
    source = {"layout": "lstm.tf1", "scope": "cudnn_lstm", "forget_bias": 0}
    target = {"layout": "lstm.cudnn-opaque", "scope": "cudnn_lstm"}
    packed = tmp_path / "packed.npz"
    wp.transfer(model.path("checkpoint_v2"), None, rule(source, target), out=str(packed))
    assert list(read(packed)) == ["cudnn_lstm/opaque_kernel"]
    made = module("LSTM", 5, 6, num_layers=2, batch_first=True)
    sizes = {"input": 5, "units": 6, "layers": 2, "directions": 1}
    found = moved(tmp_path, str(packed), state(made, "rnn."), rule({**target, "sizes": sizes}, torch_side("lstm")))
    load(made, found, "rnn.")
    expected = model.reference
    np.testing.assert_allclose(run(made, expected["x"])[0], expected["full_outputs"], atol=1e-6)


# Statements that are wrong, and cells that do not fit ----------------------------------------------------------------


def refused(path: str, spec: Any, target: str | None = None) -> str:
    with pytest.raises(PlanError) as caught:
        wp.plan(path, target, spec).check()
    return str(caught.value)


@pytest.fixture
def vector(tmp_path: Path) -> str:
    length = 2 * (16 * (INPUTS + UNITS) + 16 * (2 * UNITS + UNITS)) + 2 * 2 * 32
    return save(tmp_path / "vector.npz", {"net/cudnn/opaque_kernel": np.ones(length, np.float32)})


def test_a_wrong_statement_is_an_error(vector: str, tmp_path: Path) -> None:
    made = module("LSTM", INPUTS, UNITS, num_layers=2, bidirectional=True)
    target = save(tmp_path / "target.npz", state(made, "rnn."))
    assert wp.plan(vector, target, rule(opaque("lstm", 2, 2), torch_side("lstm"))).check()
    name = "'net/cudnn/opaque_kernel' has 736 values"
    assert refused(vector, rule(opaque("lstm", 2), torch_side("lstm")), target).startswith(
        f"rules[0].from: {name}; a lstm of 3 inputs, 4 units, 2 layers, 1 direction has 304; "
        "what would fit: layers: 2, directions: 2\n"
    )
    assert f"{name}; a gru of 3 inputs, 4 units, 2 layers, 2 directions has 552" in refused(
        vector, rule(opaque("gru", 2, 2), torch_side("gru"))
    )
    # The other side of another size.
    small = save(tmp_path / "small.npz", state(module("LSTM", INPUTS, UNITS, num_layers=2), "rnn."))
    assert "would be left behind: the target has none" in refused(
        vector, rule(opaque("lstm", 2, 2), torch_side("lstm")), small
    )
    # Nobody says.
    silent = {"layout": "lstm.cudnn-opaque", "scope": "net/cudnn"}
    assert "the 736 values of 'net/cudnn/opaque_kernel' do not tell how large the lstm is; state it: sizes:" in refused(
        vector, rule(silent, torch_side("lstm"))
    )
    assert "do not tell how large the lstm is" in refused(vector, rule(silent, silent), vector)


def test_what_no_length_tells_is_said(tmp_path: Path) -> None:
    """With as many inputs as units, two layers are as long as two directions."""
    made = module("LSTM", UNITS, UNITS, num_layers=2)
    path = save(tmp_path / "v.npz", {"net/cudnn/opaque_kernel": in_order(state(made, "rnn."), 2, 1)})
    said = str(wp.plan(path, None, rule(opaque("lstm", 2, inputs=UNITS), torch_side("lstm"))).check())
    assert (
        "'net/cudnn/opaque_kernel' would be as long with layers: 1, directions: 2: that it is layers: 2, directions: 1 "
        "is the mapping's word"
    ) in said
    # The other side tells: then nothing is taken on trust.
    target = save(tmp_path / "target.npz", state(made, "rnn."))
    silent = {"layout": "lstm.cudnn-opaque", "scope": "net/cudnn"}
    assert "the mapping's word" not in str(wp.plan(path, target, rule(silent, torch_side("lstm"))).check())
    wrong = rule(opaque("lstm", 1, 2, inputs=UNITS), torch_side("lstm"))
    assert "would be left behind: the target has none" in refused(path, wrong, target)


def test_sizes_of_other_cells_are_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "torch.npz", state(module("LSTM", INPUTS, UNITS, num_layers=2), "rnn."))
    sizes = {"input": INPUTS, "units": UNITS, "layers": 2}
    assert wp.plan(path, None, rule(torch_side("lstm", sizes=sizes), {"layout": "lstm.onnx", "scope": "x"}))
    wrong = torch_side("lstm", sizes={"input": 7, "units": UNITS})
    assert "rules[0].from: the sizes of the cell at 'rnn' are input: 3, not 7, layers: 2, not 1" in refused(
        path, rule(wrong, {"layout": "lstm.keras", "scope": "x"})
    )
    # Of a target that the rule makes, they are the source's.
    assert "rules[0].to: the sizes of the cell at 'rnn' are layers: 2, not 3" in refused(
        path, rule(torch_side("lstm"), opaque("lstm", 3))
    )
    assert wp.plan(path, None, rule(torch_side("lstm"), opaque("lstm", 2))).check()


def test_cells_that_one_vector_cannot_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = opaque("lstm")
    del target["sizes"]

    def source(*layers: tuple[int, int]) -> str:
        arrays = {}
        for k, (inputs, units) in enumerate(layers):
            arrays[f"s/cell_{k}/lstm_cell/kernel"] = rng.normal(size=(inputs + units, 4 * units))
            arrays[f"s/cell_{k}/lstm_cell/bias"] = rng.normal(size=4 * units)
        return save(tmp_path / "layers.npz", arrays)

    spec = rule({"layout": "lstm.tf1", "scope": "s"}, target)
    assert wp.plan(source((3, 4), (4, 4)), None, spec).check()
    assert "the source has 3 inputs, the target 4" in refused(source((3, 4), (3, 4)), spec)
    assert "the source has 5 units, the target 4" in refused(source((3, 4), (4, 5)), spec)
    projected = {"rnn.weight_hr_l0": np.ones((2, 4)), "rnn.weight_hh_l0": np.ones((16, 2))}
    arrays = state(module("LSTM", INPUTS, UNITS, bias=False), "rnn.") | projected
    assert "an output projection, the target has none" in refused(
        save(tmp_path / "p.npz", arrays), rule(torch_side("lstm"), target)
    )


def test_a_layer_is_picked_out_of_the_vector(vector: str, tmp_path: Path) -> None:
    one = {**opaque("lstm", 2, 2), "layers": 1, "directions": "backward"}
    spec = rule(one, torch_side("lstm"))
    wp.transfer(vector, None, spec, out=str(tmp_path / "one.npz"))
    assert {n: a.shape for n, a in read(tmp_path / "one.npz").items()} == {
        "rnn.weight_ih_l0": (16, 8), "rnn.weight_hh_l0": (16, 4), "rnn.bias_ih_l0": (16,), "rnn.bias_hh_l0": (16,),
    }  # fmt: skip
    # The other way, the rest of the vector would be left to chance.
    part = rule(torch_side("lstm"), {**opaque("lstm", 2, 2), "layers": 0, "directions": "forward"})
    path = save(tmp_path / "t.npz", state(module("LSTM", INPUTS, UNITS), "rnn."))
    assert "only a part of target tensor 'net/cudnn/opaque_kernel' would get values" in refused(path, part, vector)
