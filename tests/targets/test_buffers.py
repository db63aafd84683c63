"""Memory that a framework takes over: aligned, owned by nobody else, and the only copy of a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightport as wp
from tests.support import need
from weightport.targets import _buffers
from weightport.targets._buffers import aligned, produced
from weightport.tensors import TensorSpec, Value

MEGABYTE = 1 << 20
MAPPING = {"weightport": 1, "rules": [{"from": "{x}", "to": "{x}"}]}
TURNED = {"weightport": 1, "rules": [{"from": "{x}", "to": "{x}", "rearrange": "a b -> b a"}]}


@pytest.fixture
def given_out(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All memory that is given to a framework."""
    arrays: list[Any] = []

    def noted(dtype: Any, shape: Any) -> Any:
        arrays.append(aligned(dtype, shape))
        return arrays[-1]

    monkeypatch.setattr(_buffers, "aligned", noted)
    return arrays


def source(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    rng = np.random.default_rng(0)
    arrays = {n: rng.standard_normal(s).astype("float32") for n, s in (("large", (600, 700)), ("small", (7, 5)))}
    np.savez(tmp_path / "s.npz", **arrays)
    wp.transfer(tmp_path / "s.npz", None, MAPPING, out=tmp_path / "s.ckpt")
    return tmp_path / "s.ckpt", arrays


@pytest.mark.parametrize("shape", [(), (0, 3), (3,), (MEGABYTE // 4 - 1,), (MEGABYTE // 4,), (513, 1025)])
@pytest.mark.parametrize("dtype", ["float32", "bool", ml_dtypes.bfloat16, "complex128"])
def test_memory_is_aligned_and_can_be_written_to(shape: tuple[int, ...], dtype: Any) -> None:
    made, other = aligned(np.dtype(dtype), shape), aligned(np.dtype(dtype), shape)
    assert (made.shape, made.dtype, made.ctypes.data % 64 if made.size else 0) == (shape, np.dtype(dtype), 0)
    assert made.flags.c_contiguous
    made[...], other[...] = 1, 0
    assert (made == np.ones(shape).astype(dtype)).all()


def test_too_much_memory() -> None:
    with pytest.raises(MemoryError):
        aligned(np.dtype("uint8"), (1 << 46,))


def test_what_is_produced_is_nobody_elses() -> None:
    kept = np.arange(MEGABYTE, dtype="float32")
    value = Value("v", TensorSpec.of("float32", kept.shape), False, lambda _: kept)
    made = produced(value)
    kept[:] = 7
    assert made.tolist() == list(range(MEGABYTE))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint64", "bool", "complex64", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 2), (5,), (300, 400)])
def test_a_tensor_over_memory(dtype: str, shape: tuple[int, ...]) -> None:
    tf = need("tensorflow")
    from weightport.targets._tf_variables import owned

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = aligned(kind, shape)
    array[...] = np.ones(shape).astype(kind)
    tensor = owned(array)
    assert tf.is_tensor(tensor)
    assert (tuple(tensor.shape), tensor.dtype) == (shape, tf.as_dtype(kind))
    assert np.asarray(tensor.numpy(), kind).tobytes() == array.tobytes()
    array[...] = np.zeros(shape).astype(kind)
    assert np.asarray(tensor.numpy(), kind).tobytes() == array.tobytes()  # it is the same memory


def test_what_tensorflow_cannot_have_as_memory_stays_an_array() -> None:
    need("tensorflow")
    from weightport.targets._tf_variables import owned

    array = np.ones(3, ml_dtypes.float8_e4m3fn)
    assert owned(array) is array


@pytest.mark.parametrize("kind", ["module", "keras", "graph"])
@pytest.mark.parametrize("mapping", [MAPPING, TURNED])
def test_a_value_is_in_memory_once(tmp_path: Path, given_out: list[Any], kind: str, mapping: Any) -> None:
    """What is read into is the variable's memory: a change of it would be seen."""
    tf = need("tensorflow")
    path, arrays = source(tmp_path)
    turned = mapping is TURNED
    shapes = {n: a.shape[::-1] if turned else a.shape for n, a in arrays.items()}
    if kind == "graph":
        graph = tf.Graph()
        with graph.as_default():
            session = tf.compat.v1.Session()
            all_of_it = {n: tf.compat.v1.get_variable(n, s, use_resource=True) for n, s in shapes.items()}
            add = [v.assign_add(tf.ones(v.shape)) for v in all_of_it.values()]
            wp.transfer(path, graph, mapping)
            session.run(tf.compat.v1.global_variables_initializer())
            shared(given_out, arrays, turned, lambda n: session.run(all_of_it[n]), lambda: session.run(add))
        return
    if kind == "keras":
        keras = need("keras")
        if keras.backend.backend() != "tensorflow":
            pytest.skip("another backend")
        layer = keras.layers.Layer(name="l")
        for name, shape in shapes.items():
            layer.add_weight(shape=shape, name=name)
        layer.built = True
        model: Any = layer
        variables = {v.name: v.value for v in layer.weights}
        rules = {**mapping, "target": {"scope": "l"}}
    else:
        variables = {n: tf.Variable(tf.zeros(s), name=n) for n, s in shapes.items()}
        model, rules = list(variables.values()), mapping
    wp.transfer(path, model, rules)

    def update() -> None:
        for variable in variables.values():
            variable.assign_add(tf.ones(variable.shape))

    shared(given_out, arrays, turned, lambda n: np.asarray(variables[n]), update)


def shared(given_out: list[Any], arrays: Any, turned: bool, read: Any, update: Any) -> None:
    assert len(given_out) == len(arrays)
    wanted = {n: a.T if turned else a for n, a in arrays.items()}
    assert all(np.array_equal(read(n), wanted[n]) for n in wanted)
    for array in given_out:
        array += 1
    assert all(np.array_equal(read(n), wanted[n] + 1) for n in wanted)
    update()
    assert all(np.array_equal(read(n), wanted[n] + 1 + 1) for n in wanted)
