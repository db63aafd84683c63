"""Which target an object is, without importing a framework to find out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.support import need
from weightport.errors import Error
from weightport.targets.registry import is_graph, live_source, live_target


@pytest.mark.parametrize("obj", [None, 3, "path", {}, [], [1], {"a": ["b", {"c": None}]}, object()])
def test_an_object_of_no_framework(obj: Any) -> None:
    assert not is_graph(obj)
    with pytest.raises(Error) as caught:
        live_target(obj)
    kind = f"{type(obj).__module__}.{type(obj).__name__}"
    assert str(caught.value) == (
        f"{kind} is no model that takes weights: expected a tf.Graph, a Keras model or layer, a tf.Module, a list of "
        "tf.Variable, a torch.nn.Module, an nnx module or a JAX tree of arrays; a file is given as a path, with out="
    )


def test_no_framework_is_imported_to_find_out() -> None:
    code = (
        "import sys\n"
        "from weightport.targets.registry import live_target\n"
        "try:\n    live_target(object())\n"
        "except Exception as error:\n    assert 'no model' in str(error), error\n"
        "assert not {'tensorflow', 'keras', 'tf_keras', 'torch', 'jax', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_kind_has_its_target() -> None:
    tf = need("tensorflow")
    keras, legacy = need("keras"), need("tf_keras")
    module = tf.Module()
    module.v = tf.Variable(1.0, name="v")
    layer = keras.layers.Dense(2)
    layer.build((1, 3))
    old = legacy.layers.Dense(2)
    old.build((1, 3))
    found = {
        kind: type(live_target(obj)).__name__
        for kind, obj in {
            "graph": tf.Graph(),
            "keras": layer,
            "tf_keras": old,
            "module": module,
            "variables": [tf.Variable(1.0, name="w")],
        }.items()
    }
    assert found == {
        "graph": "GraphTarget",
        "keras": "Keras3Target",
        "tf_keras": "TfKerasTarget",
        "module": "TfModuleTarget",
        "variables": "TfModuleTarget",
    }
    assert is_graph(tf.Graph())
    assert not is_graph(layer)


def test_options_are_for_graphs() -> None:
    tf = need("tensorflow")
    graph = tf.Graph()
    assert live_target(graph, large_constants="variable").kind
    module = tf.Module()
    module.v = tf.Variable(1.0, name="v")
    with pytest.raises(Error) as caught:
        live_target(module, session=None, large_constants="refuse")
    assert str(caught.value) == "session, large_constants: for TensorFlow graphs only, not for Module"


def test_models_that_show_their_values() -> None:
    tf = need("tensorflow")
    jax = need("jax")
    assert live_source({"a": jax.numpy.ones(2)}).read("a").tolist() == [1, 1]
    with pytest.raises(Error) as caught:
        live_source([tf.Variable(1.0, name="v")])
    assert str(caught.value) == "the tf.Module model does not show its values: write a file, and give that"
