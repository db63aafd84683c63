"""Checks of live targets that need a process of their own: another backend of Keras, or more than one device.

``python -m tests.targets.elsewhere NAME`` runs one of them; tests/targets/test_elsewhere.py runs them all.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from weightport.plan import plan
from weightport.tensors import TensorSpec

KERNEL = np.arange(128, dtype="float32").reshape(8, 16) / 64
BIAS = np.arange(16, dtype="float32") / 64
MAPPING: dict[str, Any] = {
    "weightport": 1,
    "rules": [{"from": "kernel", "to": "encoder/kernel", "as": "constant"}, {"from": "bias", "to": "encoder/bias"}],
    "keep": ["**"],
}


class Recorded:
    """A source in memory that says which parts of it were read."""

    format, path = "memory", "a source in memory"

    def __init__(self) -> None:
        self.values = {"kernel": KERNEL, "bias": BIAS}
        self.read_parts: list[tuple[str, tuple[int, ...]]] = []

    def specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec.of("float32", value.shape) for name, value in self.values.items()}

    def read(self, name: str, index: Any = None) -> np.ndarray:
        found = self.values[name] if index is None else self.values[name][index]
        self.read_parts.append((name, found.shape))
        return np.array(found, order="C")

    def facts(self, names: Any) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def close(self) -> None:
        pass


def transferred(model: Any) -> Recorded:
    import weightport as wp

    source = Recorded()
    assert not plan(source, None, wp.load_mapping({**MAPPING, "keep": []})).problems
    wp.transfer(source, model, MAPPING)
    return source


def keras_model(keras: Any) -> Any:
    inputs = keras.Input((8,))
    hidden = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(16, name="encoder")(inputs))
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(hidden))


def trained(model: Any) -> None:
    rng = np.random.default_rng(0)
    model.compile("sgd", "mse")
    model.fit(rng.random((32, 8), "float32"), rng.random((32, 2), "float32"), verbose=0, epochs=2, batch_size=16)


def check(keras: Any, model: Any) -> None:
    """The encoder has its values; its kernel keeps them through training, and its bias does not."""
    encoder = model.get_layer("encoder")

    def value(variable: Any) -> np.ndarray:
        return np.asarray(keras.ops.convert_to_numpy(variable.value))

    assert np.array_equal(value(encoder.kernel), KERNEL)
    assert np.array_equal(value(encoder.bias), BIAS)
    trained(model)
    assert np.array_equal(value(encoder.kernel), KERNEL)
    assert not np.array_equal(value(encoder.bias), BIAS)
    model.trainable = True
    assert not encoder.kernel.trainable
    assert encoder.bias.trainable


def failing(keras: Any) -> None:
    """A source that breaks half way leaves the model as it was."""
    import weightport as wp

    class Broken(Recorded):
        def read(self, name: str, index: Any = None) -> np.ndarray:
            if name == "bias":
                raise RuntimeError("gone")
            return super().read(name, index)

    model = keras_model(keras)
    before = [np.array(keras.ops.convert_to_numpy(w.value)) for w in model.weights]
    try:
        wp.transfer(Broken(), model, MAPPING)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the failure was not told")
    after = [np.asarray(keras.ops.convert_to_numpy(w.value)) for w in model.weights]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.get_layer("encoder").kernel.trainable


def mixed(keras: Any) -> None:
    """Under mixed precision the variables are float32, and what they get is exact."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras_model(keras)
    assert {str(w.dtype) for w in model.weights} == {"float32"}
    transferred(model)
    check(keras, model)
    keras.config.set_dtype_policy("float32")


def torch() -> None:
    import keras
    import torch as t

    assert keras.backend.backend() == "torch"
    model = keras_model(keras)
    kernel = model.get_layer("encoder").kernel.value
    place = kernel.data_ptr()
    assert transferred(model).read_parts == [("kernel", (8, 16)), ("bias", (16,))]
    assert model.get_layer("encoder").kernel.value is kernel
    assert kernel.data_ptr() == place  # filled where it lies: what else holds the parameter sees the value
    assert [p for p in model.parameters() if p is kernel]
    assert not kernel.requires_grad
    check(keras, model)
    assert not kernel.requires_grad
    # A loop of PyTorch's own, with an optimizer that would move everything that it is given.
    model.train()
    optimizer = t.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(t.rand(4, 8)).sum().backward()
    optimizer.step()
    assert np.array_equal(kernel.numpy(), KERNEL)
    failing(keras)
    mixed(keras)


def jax() -> None:
    import jax as j
    import keras

    assert keras.backend.backend() == "jax"
    assert len(j.devices()) == 4
    model = keras_model(keras)
    assert transferred(model).read_parts == [("kernel", (8, 16)), ("bias", (16,))]
    check(keras, model)
    failing(keras)
    mixed(keras)
    at = keras.distribution
    at.set_distribution(at.DataParallel(devices=at.list_devices()))
    model = keras_model(keras)
    assert transferred(model).read_parts == [("kernel", (8, 16)), ("bias", (16,))]
    kernel = model.get_layer("encoder").kernel.value
    assert [np.array_equal(shard.data, KERNEL) for shard in kernel.addressable_shards] == [True] * 4
    check(keras, model)
    layout = at.LayoutMap(at.DeviceMesh((2, 2), ["batch", "model"], at.list_devices()))
    layout["encoder.*kernel"], layout["encoder.*bias"] = (None, "model"), ("model",)
    at.set_distribution(at.ModelParallel(layout_map=layout, batch_dim_name="batch"))
    model = keras_model(keras)
    source = transferred(model)
    assert source.read_parts == [("kernel", (8, 8))] * 2 + [("bias", (8,))] * 2, source.read_parts
    kernel = model.get_layer("encoder").kernel.value
    for shard in kernel.addressable_shards:
        assert shard.data.shape == (8, 8)
        assert np.array_equal(shard.data, KERNEL[shard.index])
    check(keras, model)
    failing(keras)


def tensorflow() -> None:
    import keras
    import tensorflow as tf
    import tf_keras

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for module in (keras, tf_keras):
        with strategy.scope():
            model = keras_model(module)
        transferred(model)
        for name, expected in (("kernel", KERNEL), ("bias", BIAS)):
            variable = getattr(model.get_layer("encoder"), name)
            replicas = getattr(variable, "value", variable).values if module is keras else variable.values
            assert [np.array_equal(replica, expected) for replica in replicas] == [True, True]
        with strategy.scope():
            trained(model)
        kernel = model.get_layer("encoder").kernel
        replicas = kernel.value.values if module is keras else kernel.values
        assert [np.array_equal(replica, KERNEL) for replica in replicas] == [True, True]
    mixed(keras)

    class Encoder(tf.Module):
        def __init__(self, kernel: Any) -> None:
            self.kernel, self.bias = kernel, tf.Variable(tf.zeros([16]), name="encoder/bias")

    with strategy.scope():
        module = Encoder(tf.Variable(tf.zeros([8, 16]), name="encoder/kernel"))
    transferred(module)
    assert [np.array_equal(replica, KERNEL) for replica in module.kernel.values] == [True, True]
    assert [v.name for v in module.trainable_variables] == ["encoder/bias:0"]


CHECKS = {check.__name__: check for check in (torch, jax, tensorflow)}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
