"""JAX trees as targets: a new tree, the old one untouched, and a mask of what is constant."""

from __future__ import annotations

import operator
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import weightport as wp
from tests.support import need
from tests.targets.live import failing, value
from weightport.errors import Error, RefusedError, TensorNotFound
from weightport.targets.jax_tree import JaxTreeTarget, accepts
from weightport.tensors import Source, Target, TensorSpec

jax = need("jax")
jnp = jax.numpy
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else need("jax.experimental").enable_x64


class Pair(NamedTuple):
    left: Any
    right: Any


def tree() -> dict[str, Any]:
    return {
        "encoder": {"kernel": jnp.ones((2, 3)), "bias": np.zeros(3, np.float64)},
        "heads": [jnp.zeros(2, jnp.bfloat16), (jnp.int32(4), np.float32(1.5))],
        "pair": Pair(jnp.arange(3), None),
    }


SPECS = {
    "encoder/bias": TensorSpec.of("float64", (3,)),
    "encoder/kernel": TensorSpec.of("float32", (2, 3)),
    "heads/0": TensorSpec.of("bfloat16", (2,)),
    "heads/1/0": TensorSpec.of("int32", ()),
    "heads/1/1": TensorSpec.of("float32", ()),
    "pair/left": TensorSpec.of("int32", (3,)),
}


def bits(array: Any) -> bytes:
    return bytes(np.asarray(array).tobytes())


def leaves(found: Any) -> dict[str, bytes]:
    target = JaxTreeTarget(found)
    return {n: bits(target.read(n)) for n in target.specs()}


def test_names_are_keys_joined_by_slashes() -> None:
    target: Target = JaxTreeTarget(tree())
    assert dict(target.specs()) == SPECS
    assert target.kind == "jax"
    assert isinstance(target, Source)
    assert target.facts(["encoder/bias"]) == {}
    with pytest.raises(TensorNotFound, match=r"^JAX tree dict: no tensor 'encoder/kernal'; closest: 'encoder/kernel'"):
        target.facts(["encoder/kernal"])


def test_a_new_tree_comes_back_and_the_old_one_stays() -> None:
    old = tree()
    before = leaves(old)
    target = JaxTreeTarget(old)
    random = np.random.default_rng(0)
    new = {n: random.integers(0, 9, s.shape).astype(s.dtype) for n, s in SPECS.items()}
    found = target.assign([value(n, a) for n, a in new.items()])
    assert jax.tree.structure(found) == jax.tree.structure(old)
    assert leaves(found) == {n: bits(a) for n, a in new.items()}
    assert leaves(old) == before
    kinds = [type(leaf) for leaf in jax.tree.leaves(found)]
    assert kinds == [type(leaf) for leaf in jax.tree.leaves(old)]
    assert {n: s.dtype for n, s in JaxTreeTarget(found).specs().items()} == {n: s.dtype for n, s in SPECS.items()}


def test_what_gets_no_value_is_the_very_leaf() -> None:
    old = tree()
    found = JaxTreeTarget(old).assign([value("encoder/kernel", np.zeros((2, 3), np.float32))])
    assert found["heads"][0] is old["heads"][0]
    assert found["encoder"]["bias"] is old["encoder"]["bias"]
    assert found["encoder"] is not old["encoder"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_arrives(dtype: str) -> None:
    width = np.dtype(jnp.dtype(dtype)).itemsize
    patterns = {4: [0x7FA00001, 0xFFC12345, 0x80000000, 1], 2: [0x7F81, 0xFFC1, 0x8000, 1]}[width]
    array = np.array(patterns, f"u{width}").view(jnp.dtype(dtype))
    old = {"a": jnp.zeros(4, dtype), "b": np.zeros(4, jnp.dtype(dtype)), "weak": jnp.full(4, 0.5).astype(dtype)}
    found = JaxTreeTarget(old).assign([value(n, array) for n in old])
    assert {bits(leaf) for leaf in found.values()} == {array.tobytes()}


def test_weak_types_stay() -> None:
    old = {"strong": jnp.float32(1), "weak": jnp.asarray(1.0), "vector": jnp.full(2, 0.5)}
    assert [old[n].weak_type for n in old] == [False, True, True]
    nan = np.array(0x7FA00001, np.uint32).view(np.float32)
    found = JaxTreeTarget(old).assign([value(n, np.broadcast_to(nan, np.shape(a)).copy()) for n, a in old.items()])
    assert [found[n].weak_type for n in old] == [False, True, True]
    assert {bits(found[n])[:4] for n in old} == {nan.tobytes()}


def test_abstract_trees_become_arrays() -> None:
    old = jax.eval_shape(lambda: {"w": jnp.ones((2, 3)), "b": jnp.ones(3, jnp.bfloat16)})
    target = JaxTreeTarget(old)
    assert dict(target.specs()) == {"b": TensorSpec.of("bfloat16", (3,)), "w": TensorSpec.of("float32", (2, 3))}
    w = value("w", np.ones((2, 3), np.float32))
    with pytest.raises(RefusedError) as caught:
        target.assign([w])
    assert str(caught.value) == (
        "JAX tree dict: leaf 'b' is abstract and gets no value: it has none to keep; move or initialize it by a rule, "
        "or give an initialized tree"
    )
    with pytest.raises(RefusedError, match=r"^JAX tree dict: leaf 'b': is abstract: it has no values$"):
        target.read("b")
    found = target.assign([w, value("b", np.ones(3, jnp.bfloat16))])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


def test_abstract_leaves_cannot_be_kept(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones((2, 3), np.float32))
    old = jax.eval_shape(lambda: {"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
    mapping = {"weightport": 1, "rules": [{"from": "w", "to": "w"}], "keep": ["b"]}
    with pytest.raises(wp.PlanError) as caught:
        wp.transfer(str(tmp_path / "a.npz"), old, mapping, dry_run=True)
    assert str(caught.value) == (
        "the jax model: target tensor 'b' (float32 [3]) has no value to keep; move or initialize: it by a rule"
    )


def test_trees_are_sources_too(tmp_path: Path) -> None:
    """Weights that were trained go back by the mapping that brought them, also below ``params``."""
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "a.npz", w=w)
    old = {"params": {"dense": {"kernel": jnp.zeros((3, 2))}}}
    mapping = wp.load_mapping(
        {"weightport": 1, "rules": [{"from": "w", "to": "dense/kernel", "rearrange": "a b -> b a"}]}
    )
    trained = jax.tree.map(lambda x: x + 1, wp.transfer(str(tmp_path / "a.npz"), old, mapping).target)
    out = str(tmp_path / "back.npz")
    wp.transfer(trained, str(tmp_path / "a.npz"), mapping.reversed(), out=out)
    with np.load(out) as back:
        assert back["w"].tolist() == (w + 1).tolist()
    assert wp.verify(trained, out, mapping.reversed()).equal
    assert wp.plan(trained, old, {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}).problems == ()


def test_the_mask_has_the_structure_of_the_tree() -> None:
    old = {**tree(), "name": "net", "act": jnp.tanh}
    target = JaxTreeTarget(old)
    assert target.frozen is None
    target.assign(
        [
            value("encoder/kernel", np.zeros((2, 3), np.float32), constant=True),
            value("encoder/bias", np.zeros(3)),
            value("heads/1/1", np.float32(2), constant=True),
        ]
    )
    assert target.frozen == {
        "encoder": {"kernel": True, "bias": False},
        "heads": [False, (False, True)],
        "pair": Pair(False, None),
        "name": True,
        "act": True,
    }


def test_where_all_names_begin_with_params_it_may_be_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.arange(2, dtype=np.float32))
    old = {"params": {"dense": {"kernel": jnp.zeros(2), "bias": jnp.zeros(1)}}}
    for to, keep in (("dense/kernel", "dense/bias"), ("params/dense/kernel", "params/dense/bias")):
        mapping = {"weightport": 1, "rules": [{"from": "w", "to": to}], "keep": [keep]}
        result = wp.transfer(str(tmp_path / "a.npz"), old, mapping)
        assert result.target["params"]["dense"]["kernel"].tolist() == [0, 1]
        assert result.plan.target == {"params/dense/bias": "kept", "params/dense/kernel": "moved"}
        assert wp.verify(str(tmp_path / "a.npz"), result.target, mapping).equal
        assert not wp.verify(str(tmp_path / "a.npz"), old, mapping).equal
    assert JaxTreeTarget({"params": {"a": jnp.zeros(1)}, "batch_stats": {"a": jnp.zeros(1)}}).root == ""


def test_misfits_are_all_said_before_anything_is_read() -> None:
    target = JaxTreeTarget(tree())
    spec = TensorSpec.of("float32", (9,))
    with pytest.raises(Error) as caught:
        target.assign([failing("encoder/bias", spec, AssertionError()), failing("no/such", spec, AssertionError())])
    assert [str(p) for p in caught.value.problems] == [
        "JAX tree dict: variable 'encoder/bias': shape [9] for a variable of [3]",
        "JAX tree dict: variable 'encoder/bias': dtype float32 for a variable of float64",
        "JAX tree dict: no variable 'no/such'",
    ]


def test_a_failure_half_way_leaves_no_mask() -> None:
    target = JaxTreeTarget(tree())
    values = [
        value("encoder/kernel", np.zeros((2, 3), np.float32)),
        failing("heads/0", SPECS["heads/0"], OSError("gone")),
    ]
    with pytest.raises(OSError, match="gone"):
        target.assign(values)
    assert target.frozen is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": {"b": np.ones(1)}, "a/b": np.ones(1)}, "JAX tree dict: two leaves are named 'a/b'; rename a key"),
        ({1: np.ones(1), "x": np.ones(1)}, "JAX tree dict: is no tree for JAX: Comparator raised exception"),
        ({"a": jax.random.key(0), "b": 3, "c": None}, "JAX tree dict: has no arrays; give the parameters, as init "),
    ],
)
def test_trees_that_are_refused(found: Any, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        JaxTreeTarget(found)
    assert str(caught.value).startswith(message)


def test_arrays_of_other_libraries_are_refused() -> None:
    torch = need("torch")
    found = {"a": jnp.ones(1), "b": torch.ones(1)}
    with pytest.raises(RefusedError) as caught:
        JaxTreeTarget(found)
    assert str(caught.value) == "JAX tree dict: leaf 'b': is a torch.Tensor, not an array of JAX or numpy"
    assert not accepts({"b": torch.ones(1)})


def test_traced_trees_are_refused() -> None:
    def step(params: Any) -> Any:
        return JaxTreeTarget(params).specs()

    with pytest.raises(RefusedError, match=r"^JAX tree dict: leaf 'a': is traced; move weights outside of jit"):
        jax.jit(step)({"a": jnp.ones(1)})


def test_donated_arrays_have_no_values() -> None:
    array = jnp.ones(3)
    array.delete()
    target = JaxTreeTarget({"a": array})
    with pytest.raises(RefusedError, match="leaf 'a': was deleted; its buffer was donated"):
        target.read("a")
    assert target.assign([value("a", np.ones(3, np.float32))])["a"].tolist() == [1, 1, 1]


def test_reads_are_slices_in_new_memory() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    target = JaxTreeTarget({"a": jnp.asarray(array), "b": array})
    for name in ("a", "b"):
        part = target.read(name, (slice(1, 3), slice(0, 4, 2)))
        assert part.tolist() == [[4, 6], [8, 10]]
        assert part.flags.c_contiguous
        assert part.flags.owndata
        part[:] = 0
    assert array[1, 0] == 4


def test_doubles_where_they_are_not_enabled() -> None:
    with enable_x64(True):
        old = {"a": jnp.ones(2, jnp.float64)}
    with pytest.raises(Error) as caught:
        JaxTreeTarget(old).assign([value("a", np.ones(2))])
    assert str(caught.value) == (
        "JAX tree dict: 'a': JAX makes float32 of float64; enable jax_enable_x64, as when the tree was made"
    )
    with enable_x64(True):
        assert JaxTreeTarget(old).assign([value("a", np.ones(2))])["a"].dtype == np.float64


def test_training_states_tell_their_optimizer() -> None:
    optax, train_state = need("optax"), need("flax.training.train_state")
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    target = JaxTreeTarget(state)
    assert {n: s.role for n, s in target.specs().items()} == {
        "params/dense/bias": "weight",
        "params/dense/kernel": "weight",
        "opt_state/0/count": "optimizer",
        "opt_state/0/mu/dense/bias": "slot",
        "opt_state/0/mu/dense/kernel": "slot",
        "opt_state/0/nu/dense/bias": "slot",
        "opt_state/0/nu/dense/kernel": "slot",
    }
    found = target.assign([value("params/dense/bias", np.float32([3, 4]), constant=True)])
    assert type(found) is train_state.TrainState
    assert found.params["dense"]["bias"].tolist() == [3, 4]
    assert found.tx is state.tx
    assert target.frozen.params == {"dense": {"kernel": False, "bias": True}}


def test_boxes_of_partitioned_parameters_add_nothing_to_names() -> None:
    nn = need("flax.linen")
    made = nn.with_partitioning(nn.initializers.ones, ("rows", None))
    old = nn.Dense(2, kernel_init=made).init(jax.random.key(0), jnp.ones((1, 3)))
    target = JaxTreeTarget(old)
    assert list(target.specs()) == ["params/bias", "params/kernel"]
    found = target.assign([value("params/kernel", np.full((3, 2), 7, np.float32), constant=True)])
    assert found["params"]["kernel"].names == ("rows", None)
    assert found["params"]["kernel"].value.tolist() == [[7, 7]] * 3
    assert jax.tree.structure(target.frozen) == jax.tree.structure(old)
    assert jax.tree.leaves(target.frozen) == [False, True]


def test_states_of_nnx_are_trees_too() -> None:
    nnx = need("flax.nnx")
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    graph, state = nnx.split(model)
    target = JaxTreeTarget(state)
    assert list(target.specs()) == ["layers/0/bias", "layers/0/kernel"]
    found = nnx.merge(graph, target.assign([value("layers/0/bias", np.float32([1, 2, 3]))]))
    assert found.layers[0].bias[...].tolist() == [1, 2, 3]
    assert model.layers[0].bias[...].tolist() == [0, 0, 0]


def test_frozen_dicts_and_registered_classes() -> None:
    frozen_dict = need("flax.core").FrozenDict

    @jax.tree_util.register_dataclass
    @dataclass
    class Layer:
        kernel: Any
        bias: Any

    old = frozen_dict({"a": Layer(jnp.ones(2), jnp.ones(1))})
    target = JaxTreeTarget(old)
    assert list(target.specs()) == ["a/kernel", "a/bias"]
    found = target.assign([value("a/kernel", np.float32([5, 6]))])
    assert isinstance(found, frozen_dict)
    assert isinstance(found["a"], Layer)
    assert found["a"].kernel.tolist() == [5, 6]


def test_haikus_names() -> None:
    old = {"net/~/lstm/linear": {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}}
    assert list(JaxTreeTarget(old).specs()) == ["net/~/lstm/linear/b", "net/~/lstm/linear/w"]


def test_equinox_cells_record_themselves() -> None:
    eqx = need("equinox")
    key = jax.random.key(0)

    class Own(eqx.nn.LSTMCell):  # type: ignore[misc, name-defined]
        pass

    tree = {
        "a": [eqx.nn.LSTMCell(2, 3, key=key), eqx.nn.GRUCell(2, 3, use_bias=False, key=key)],
        "b": Own(2, 3, key=key),
    }
    target = JaxTreeTarget(tree)
    both = {"activation": "tanh", "recurrent_activation": "sigmoid", "units": 3}
    assert target.facts(["a/0/weight_ih", "a/0/bias"]) == {
        "class": "LSTMCell",
        "use_bias": True,
        "forget_bias": 0.0,
        **both,
    }
    assert target.facts(["a/1/weight_ih"]) == {"class": "GRUCell", "use_bias": False, "reset_after": True, **both}
    assert target.facts(["b/weight_ih"]) == {}
    assert target.facts(["a/0/weight_ih", "a/1/weight_ih"]) == {}


def test_equinox_trees_and_their_mask() -> None:
    eqx, optax = need("equinox"), need("optax")
    model = eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))
    target = JaxTreeTarget(model)
    assert list(target.specs()) == ["layers/0/weight", "layers/0/bias", "layers/1/weight", "layers/1/bias"]
    new = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
    found = target.assign([value("layers/0/weight", new, constant=True)])
    assert found.layers[0].weight.tolist() == new.tolist()
    assert found.activation is model.activation

    trainable, rest = eqx.partition(found, jax.tree.map(operator.not_, target.frozen))
    optimizer = optax.adam(0.1)
    state = optimizer.init(trainable)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(part: Any, x: Any, y: Any) -> Any:
        return jnp.mean((jax.vmap(eqx.combine(part, rest))(x)[:, 0] - y) ** 2)

    x = jax.random.normal(jax.random.key(1), (32, 2))
    losses = []
    for _ in range(10):
        at, gradients = loss(trainable, x, x.sum(1))
        updates, state = optimizer.update(gradients, state)
        trainable = eqx.apply_updates(trainable, updates)
        losses.append(float(at))
    assert losses[-1] < losses[0]
    after = eqx.combine(trainable, rest)
    assert bits(after.layers[0].weight) == new.tobytes()
    assert bits(after.layers[0].bias) != bits(found.layers[0].bias)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from weightport.targets.jax_tree import JaxTreeTarget
from weightport.tensors import TensorSpec, Value

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("a", "b"))
array = np.arange(32, dtype=np.float32).reshape(8, 4)
asked = []

def produce(index):
    asked.append(None if index is None else tuple((c.start, c.stop) for c in index))
    return array[index if index is not None else ()].copy()

def moved(old):
    asked.clear()
    found = JaxTreeTarget({"w": old}).assign([Value("w", TensorSpec.of("float32", (8, 4)), False, produce)])["w"]
    assert found.sharding == old.sharding and np.array_equal(np.asarray(found), array), found
    assert {s.device for s in found.addressable_shards} == set(old.sharding.device_set)
    return sorted(asked, key=str)

for spec, parts in [
    (P("a", "b"), [((r, r + 4), (c, c + 2)) for r in (0, 4) for c in (0, 2)]),
    (P("b"), [((r, r + 4), (0, 4)) for r in (0, 4)]),
    (P(), [((0, 8), (0, 4))]),
]:
    sharding = NamedSharding(mesh, spec)
    for old in (jax.device_put(np.zeros((8, 4), np.float32), sharding),
                jax.ShapeDtypeStruct((8, 4), np.float32, sharding=sharding)):
        assert moved(old) == parts, (spec, asked)

second = jax.device_put(np.zeros((8, 4), np.float32), jax.devices()[1])
assert moved(second) == [None]
here = jax.numpy.zeros((8, 4))
found = JaxTreeTarget({"w": here}).assign([Value("w", TensorSpec.of("float32", (8, 4)), False, produce)])["w"]
assert not found.committed and found.devices() == here.devices()

def broken(index):
    raise OSError("gone")

try:
    old = jax.device_put(np.zeros((8, 4), np.float32), NamedSharding(mesh, P("a")))
    JaxTreeTarget({"w": old}).assign([Value("w", TensorSpec.of("float32", (8, 4)), False, broken)])
except OSError as error:
    assert str(error) == "gone"
else:
    raise AssertionError("no error")

# A whole transfer: of a cell's kernels, each device's part reads its columns of the source, and nothing else.
import sys
import weightport as wp

np.savez(sys.argv[1], kernel=array, w=array[:, :2], b=np.zeros(4, np.float32))
tree = {
    "kernel": jax.device_put(np.zeros((8, 4), np.float32), NamedSharding(mesh, P("a"))),
    "turned": jax.ShapeDtypeStruct((4, 8), np.float32, sharding=NamedSharding(mesh, P(None, "b"))),
}
mapping = {
    "weightport": 1,
    "rules": [
        {"from": "kernel", "to": "kernel"},
        {"from": "kernel", "to": "turned", "rearrange": "a b -> b a"},
    ],
    "ignore": ["w", "b"],
}
source = wp.open(sys.argv[1])
read, asked = source.read, []


def counted(name, index=None):
    asked.append((name, None if index is None else tuple(cut.indices(n) for cut, n in zip(index, (8, 4)))))
    return read(name, index)


source.read = counted
found = wp.transfer(source, tree, mapping).target
assert np.array_equal(np.asarray(found["kernel"]), array)
assert np.array_equal(np.asarray(found["turned"]), array.T)
halves = [("kernel", ((r, r + 4, 1), (0, 4, 1))) for r in (0, 4)]
assert sorted(asked) == sorted(halves + halves), asked
print("done")
"""


def test_each_device_reads_only_its_part(tmp_path: Path) -> None:
    """In a process of its own: how many devices there are is settled when JAX starts."""
    command = [sys.executable, "-W", "error", "-c", SHARDED, str(tmp_path / "a.npz")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout == "done\n", found.stderr


def test_no_jax_is_one_error() -> None:
    code = (
        "import sys\n"
        "sys.modules['jax'] = None\n"
        "import numpy as np\n"
        "from weightport.errors import MissingPackage\n"
        "from weightport.targets.registry import live_target\n"
        "try:\n    live_target({'a': np.ones(1)})\n"
        "except MissingPackage as error:\n    print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout == "a tree of arrays as a target needs jax; pip install 'weightport[jax]'\n", found.stderr
