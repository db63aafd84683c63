"""nnx modules as targets: values in place, all or nothing, and a filter of what is constant."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from tests.support import need
from tests.targets.live import failing, value
from weightport.errors import Error, RefusedError, TensorNotFound
from weightport.targets.nnx_module import NnxTarget, accepts
from weightport.targets.registry import live_target
from weightport.tensors import Source, Target, TensorSpec

jax, nnx = need("jax"), need("flax.nnx")
jnp = jax.numpy
OF_THE_MODEL = "model" in inspect.signature(nnx.Optimizer.update).parameters  # not before Flax 0.11
LIST = getattr(nnx, "List", list)  # Flax 0.12 wants its own


class Net(nnx.Module):
    def __init__(self, rngs: Any, **options: Any) -> None:
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(2, 3, rngs=rngs, **options), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.heads = LIST([nnx.Linear(3, 1, rngs=rngs)])
        self.tied = self.heads[0]

    def __call__(self, x: Any) -> Any:
        return self.heads[0](self.norm(self.rnn(x)[:, -1]))


NAMES = [
    *("heads/0/bias", "heads/0/kernel", "norm/bias", "norm/mean", "norm/scale", "norm/var"),
    *("rnn/cell/dense_h/bias", "rnn/cell/dense_h/kernel", "rnn/cell/dense_i/kernel"),
]


def current(net: Any) -> dict[str, bytes]:
    target = NnxTarget(net)
    return {n: target.read(n).tobytes() for n in target.specs()}


def test_names_are_paths_and_random_state_is_not_listed() -> None:
    net = Net(nnx.Rngs(0))
    target: Target = NnxTarget(net)
    assert sorted(target.specs()) == NAMES
    assert target.specs()["rnn/cell/dense_i/kernel"] == TensorSpec.of("float32", (2, 12))
    assert target.kind == "nnx"
    assert isinstance(target, Source)
    assert isinstance(live_target(net), NnxTarget)
    assert not accepts(nnx.state(net))
    with pytest.raises(TensorNotFound, match=r"^nnx module Net: no tensor 'heads/1/bias'; closest: 'heads/0/bias'"):
        target.facts(["heads/1/bias"])


def test_values_arrive_in_place_bit_for_bit() -> None:
    net = Net(nnx.Rngs(0))
    kernel, param = net.heads[0].kernel, type(net.heads[0].kernel)
    array = np.array([[0x7FA00001], [0xFFC12345], [0x80000000]], np.uint32).view(np.float32)
    assert NnxTarget(net).assign([value("heads/0/kernel", array)]) is net
    assert net.heads[0].kernel is kernel
    assert type(kernel) is param
    assert np.asarray(net.tied.kernel[...]).tobytes() == array.tobytes()


def test_a_failure_half_way_takes_everything_back() -> None:
    net = Net(nnx.Rngs(0))
    before = current(net)
    target = NnxTarget(net)
    good = value("heads/0/bias", np.float32([5]))
    with pytest.raises(OSError, match="gone"):
        target.assign([good, failing("norm/mean", TensorSpec.of("float32", (3,)), OSError("gone"))])
    with pytest.raises(Error) as caught:
        target.assign([good, value("norm/mean", np.zeros(4, np.float32)), value("norm/men", np.zeros(1))])
    assert [str(p) for p in caught.value.problems] == [
        "nnx module Net: variable 'norm/mean': shape [4] for a variable of [3]",
        "nnx module Net: no variable 'norm/men'; closest: 'norm/mean', 'norm/scale', 'norm/var'",
    ]
    assert current(net) == before
    assert target.frozen is None


def test_abstract_modules_become_arrays() -> None:
    net = nnx.eval_shape(lambda: nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
    target = NnxTarget(net)
    bias = value("bias", np.float32([2]))
    with pytest.raises(RefusedError) as caught:
        target.assign([bias])
    assert str(caught.value).startswith("nnx module Linear: leaf 'kernel' is abstract and gets no value")
    assert target.hollow == ["bias", "kernel"]
    target.assign([bias, value("kernel", np.float32([[3], [4]]))])
    assert net(jnp.ones((1, 2))).tolist() == [[9]]


def test_facts_of_cells() -> None:
    net = Net(nnx.Rngs(0), activation_fn=jax.nn.relu, gate_fn=lambda x: x)
    target = NnxTarget(net)
    cell = [n for n in target.specs() if n.startswith("rnn/")]
    facts = {"class": "OptimizedLSTMCell", "units": 3, "activation": "relu", "go_backwards": False}
    assert target.facts(cell) == facts
    assert target.facts(cell[:1]) == facts
    assert target.facts(["norm/mean"]) == {}
    assert target.facts([*cell, "norm/mean"]) == {}
    cell = nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0))
    assert NnxTarget(cell).facts(["dense_i/kernel"])["activation"] == "tanh"
    cell = nnx.SimpleCell(2, 3, residual=True, activation_fn=jax.nn.hard_sigmoid, rngs=nnx.Rngs(0))
    assert NnxTarget(cell).facts(["dense_i/kernel"]) == {
        "class": "SimpleCell",
        "units": 3,
        "activation": "hard_sigmoid_6 of a sum with the state (residual=True)",
    }


def test_no_variables() -> None:
    with pytest.raises(RefusedError) as caught:
        NnxTarget(nnx.Dropout(0.5))
    assert str(caught.value) == "nnx module Dropout: has no variables"


def test_constants_stay_while_the_rest_learns() -> None:
    optax = need("optax")
    net = Net(nnx.Rngs(0))
    net.drop.deterministic = True
    target = NnxTarget(net)
    random = np.random.default_rng(0)
    arrays = {n: random.normal(size=target.specs()[n].shape).astype(np.float32) for n in NAMES if n.startswith("rnn")}
    target.assign([value(n, a, constant=True) for n, a in arrays.items()])

    trainable = nnx.All(nnx.Param, nnx.Not(target.frozen))
    optimizer = nnx.Optimizer(net, optax.adam(0.05), wrt=trainable)
    x = jax.random.normal(jax.random.key(1), (16, 5, 2))

    @nnx.jit
    def step(net: Any, optimizer: Any) -> Any:
        def loss(net: Any) -> Any:
            return jnp.mean((net(x)[:, 0] - x[:, -1].sum(1)) ** 2)

        at, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, trainable))(net)
        if OF_THE_MODEL:
            optimizer.update(net, gradients)
        else:
            optimizer.update(gradients)
        return at

    before = current(net)
    losses = [float(step(net, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    after = current(net)
    assert {n for n in NAMES if after[n] == before[n]} == set(arrays)
    assert {n: a.tobytes() for n, a in arrays.items()} == {n: after[n] for n in arrays}
