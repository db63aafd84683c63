"""What a pickle of PyTorch would rebuild, part by part: tensors of parts that fit, and what is said of any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support import need
from weightport.errors import Problem
from weightport.formats import _torch_names, _torch_tensors
from weightport.formats._pickle import Global, Malformed, Pairs, Thing
from weightport.formats._torch_tensors import DTYPES, OTHERS, Storage, Tensor
from weightport.tensors import DtypeError


def named(name: str) -> Global:
    module, _, name = name.rpartition(".")
    return Global(module, name)


def utils(name: str, *args: Any) -> Any:
    return _torch_tensors.call(named(f"torch._utils.{name}"), args)


STORAGE = Storage("0", "float32", 6, 0, 24)
FLOAT = named("torch.float32")
TENSOR = _torch_tensors.view_of(STORAGE, 0, (2, 3), (3, 1))


def told(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.offset, tensor.shape, tensor.stride, tensor.unread


def test_dtypes_are_pytorchs() -> None:
    torch = need("torch")
    for name in {*DTYPES, *OTHERS}:
        if hasattr(torch, name):
            assert _torch_tensors.itemsize(name) == getattr(torch, name).itemsize, name
    with pytest.raises(Malformed, match=r"^the dtype torch\.float31 is not known$"):
        _torch_tensors.itemsize("float31")
    assert _torch_tensors.dtype_of(FLOAT) == "float32"
    for wrong in (named("numpy.float32"), "float32", None):
        with pytest.raises(Malformed, match=r"^a dtype that is none$"):
            _torch_tensors.dtype_of(wrong)


def test_a_dtype_that_only_newer_packages_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise DtypeError(Problem("", f"the installed ml_dtypes 0.4 has no dtype {name}"))

    monkeypatch.setattr(_torch_tensors, "dtype_named", missing)
    assert TENSOR.numpy == np.dtype(object)


def test_views_of_a_storage() -> None:
    made = _torch_tensors.view_of(STORAGE, 1, [2, 2], (3, 1))
    assert told(made) == ("float32", 1, (2, 2), (3, 1), "")
    assert (made.storage, made.nbytes, made.extent, made.numpy) == (STORAGE, 16, 6, np.dtype("f4"))
    assert not made.conj
    assert not made.negative
    empty = _torch_tensors.view_of(STORAGE, 100, (0, 5), (5, 1))
    assert (empty.extent, empty.nbytes) == (0, 0)
    scalar = _torch_tensors.view_of(STORAGE, 5, (), ())
    assert (scalar.extent, scalar.nbytes) == (6, 4)
    size = Thing(named("torch.Size"), ((2,),))
    assert _torch_tensors.view_of(STORAGE, 0, size, [1]).shape == (2,)
    flags = Pairs([("conj", True), ("neg", 1), ("other", 1)])
    made = _torch_tensors.view_of(STORAGE, 0, (), (), "int32", flags)
    assert (made.dtype, made.conj, made.negative) == ("int32", True, True)
    other = Storage("1", "float32", 99, 0, 396)
    assert told(made.of(other)) == told(made)
    assert made.of(other).storage is other
    packed = _torch_tensors.view_of(Storage("0", "quint4x2", 6, 0, 6), 0, (6,), (1,))
    assert (packed.unread, packed.numpy) == ("quantized, packed below a byte", np.dtype(object))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("0", 0, (), ()), "a tensor without a storage"),
        ((STORAGE, 0, (2,), ()), "a shape of 1 axes with 0 strides"),
        ((STORAGE, -1, (), ()), "an offset that is no size"),
        ((STORAGE, True, (), ()), "an offset that is no size"),
        ((STORAGE, 1 << 62, (), ()), "an offset that is no size"),
        ((STORAGE, 0, (-2,), (1,)), "a dimension that is no size"),
        ((STORAGE, 0, (2.0,), (1,)), "a dimension that is no size"),
        ((STORAGE, 0, 2, (1,)), "a shape that is none"),
        ((STORAGE, 0, (1,) * 65, (1,) * 65), "a shape that is none"),
        ((STORAGE, 0, Thing(named("torch.Size"), ((2,), 1)), (1,)), "a shape that is none"),
        ((STORAGE, 0, Thing(named("torch.size"), ((2,),)), (1,)), "a shape that is none"),
        ((STORAGE, 6, (), ()), "a tensor of the bytes up to 28 of a storage of 24"),
        ((STORAGE, 0, (2, 2), (5, 1)), "a tensor of the bytes up to 28 of a storage of 24"),
        ((STORAGE, 0, (4,), (1,), "float64"), "a tensor of the bytes up to 32 of a storage of 24"),
    ],
)
def test_parts_that_make_no_tensor(parts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Malformed) as caught:
        _torch_tensors.view_of(*parts)
    assert str(caught.value) == message


def storage(numel: Any = 6, *view: Any, kind: Any = "torch.FloatStorage", key: Any = "0") -> Any:
    return _torch_tensors.storage_of(
        ("storage", named(kind) if isinstance(kind, str) else kind, key, "cpu", numel, *view)
    )


def test_storages() -> None:
    found = storage()
    assert (found.key, found.dtype, found.numel, found.start, found.total, found.nbytes) == (
        "0",
        "float32",
        6,
        0,
        24,
        24,
    )
    assert storage(6, None).start == 0
    assert storage(key=140_000).key == "140000"
    view = storage(6, ("1", 2, 4))
    assert (view.numel, view.start, view.total, view.nbytes) == (4, 8, 24, 16)
    untyped = storage(kind="torch.storage.UntypedStorage")
    assert (untyped.dtype, untyped.total) == ("uint8", 6)
    old = _torch_tensors.storage_of(("module", named("m.Net"), "net.py", "class Net"))
    assert str(old) == "m.Net"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: storage(-1), "the size of a storage that is no size"),
        (lambda: storage("6"), "the size of a storage that is no size"),
        (lambda: storage(6, ("1", 3, 4)), "a view of elements 3..7 of a storage of 6"),
        (lambda: storage(6, ("1", -1, 4)), "the offset of a view that is no size"),
        (lambda: storage(6, ("1", 0, None)), "the size of a view that is no size"),
        (lambda: storage(6, ("1", 0)), "a view of a storage that is none"),
        (lambda: storage(6, "view"), "a view of a storage that is none"),
        (lambda: storage(key=b"0"), "a storage whose key is no text"),
        (lambda: storage(kind="torch.FloatTensor"), "the storage type torch.FloatTensor is not known"),
        (lambda: storage(kind="torch.Float31Storage"), "the storage type torch.Float31Storage is not known"),
        (lambda: storage(kind="evil.FloatStorage"), "the storage type evil.FloatStorage is not known"),
        (lambda: storage(kind=None), "the storage type of a storage is not known"),
        (lambda: _torch_tensors.storage_of(("storage", 1, 2)), "a persistent id that is no storage"),
        (lambda: _torch_tensors.storage_of("storage"), "a persistent id that is no storage"),
        (lambda: _torch_tensors.storage_of(("module", 1)), "a persistent id that is no storage"),
    ],
)
def test_what_is_no_storage(make: Any, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        make()
    assert str(caught.value) == message


VIEW = (STORAGE, 0, (2, 3), (3, 1))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (utils("_rebuild_tensor", *VIEW), ("float32", 0, (2, 3), (3, 1), "")),
        (utils("_rebuild_tensor_v2", *VIEW, False, ()), ("float32", 0, (2, 3), (3, 1), "")),
        (utils("_rebuild_tensor_v3", *VIEW, False, (), named("torch.int32")), ("int32", 0, (2, 3), (3, 1), "")),
        (utils("_rebuild_parameter", TENSOR, True, ()), told(TENSOR)),
        (utils("_rebuild_parameter_with_state", TENSOR, True, (), {}), told(TENSOR)),
        (
            utils("_rebuild_qtensor", *VIEW, (named("torch.per_tensor_affine"), 0.1, 3), False, ()),
            ("float32", 0, (2, 3), (3, 1), "quantized (float32, per tensor affine)"),
        ),
        (
            utils("_rebuild_qtensor", *VIEW, (), False, ()),
            ("float32", 0, (2, 3), (3, 1), "quantized (float32, unknown)"),
        ),
        (utils("_rebuild_sparse_tensor", 0, (TENSOR, TENSOR, (5, 6))), ("float32", 0, (5, 6), (), "sparse")),
        (utils("_rebuild_sparse_tensor", 0, (TENSOR, TENSOR, TENSOR, (5,))), ("float32", 0, (5,), (), "sparse")),
        (utils("_rebuild_sparse_tensor", 0, (TENSOR, TENSOR)), ("float32", 0, (), (), "sparse")),
        (
            utils("_rebuild_nested_tensor", TENSOR, 1, 2),
            ("float32", 0, (2, 3), (3, 1), "nested: several tensors of different shapes"),
        ),
        (
            utils("_rebuild_meta_tensor_no_storage", FLOAT, (4,), (1,), False),
            ("float32", 0, (4,), (), "on the meta device, without values"),
        ),
        (
            utils("_rebuild_wrapper_subclass", named("m.Two"), FLOAT, (4,), (1,)),
            ("float32", 0, (4,), (), "a Two of other tensors"),
        ),
        (
            utils("_rebuild_wrapper_subclass", None, FLOAT, (4,), (1,)),
            ("float32", 0, (4,), (), "a subclass of other tensors"),
        ),
        (utils("_rebuild_xla_tensor", 0, FLOAT, "xla"), ("float32", 0, (), (), "stored as an array of numpy")),
        (utils("_rebuild_device_tensor_from_cpu_tensor", TENSOR, FLOAT), told(TENSOR)),
        (
            utils("_rebuild_device_tensor_from_cpu_tensor", TENSOR, named("torch.float16")),
            (*told(TENSOR)[:-1], "to be cast from float32 to float16"),
        ),
        (utils("_rebuild_tomorrow", 1), ("uint8", 0, (), (), "made by _rebuild_tomorrow, which is not known")),
        (utils("_rebuild_from_type_v2", named("torch._utils._rebuild_tensor"), 0, VIEW, 0), told(TENSOR)),
    ],
)
def test_what_is_rebuilt(found: Any, expected: tuple[Any, ...]) -> None:
    assert told(found) == expected


def test_what_is_not_of_pytorchs_own_is_left_alone() -> None:
    for of in ("os.system", "torch._utils.other", "torch.nn._rebuild_tensor", "torch._C._rebuild_tensor"):
        assert _torch_tensors.call(named(of), VIEW) is NotImplemented
    script = named("torch.jit._pickle.restore_type_tag")
    assert _torch_tensors.call(script, ([1, 2], "List[int]")) == [1, 2]
    assert _torch_tensors.call(script, ()) is NotImplemented


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("_rebuild_tensor", [1], "_rebuild_tensor of no arguments"),
        ("_rebuild_tensor", (1,), "_rebuild_tensor of 1 arguments"),
        ("_rebuild_tensor_v2", (*VIEW, 1, 2, None, 4), "_rebuild_tensor_v2 of 8 arguments"),
        ("_rebuild_parameter", (1, 2, 3), "a parameter that is no tensor"),
        ("_rebuild_nested_tensor", (1,), "a parameter that is no tensor"),
        ("_rebuild_sparse_tensor", (0, [1]), "a sparse tensor without values"),
        ("_rebuild_sparse_tensor", (0, ((), (), (3,))), "a sparse tensor without values"),
        ("_rebuild_meta_tensor_no_storage", (None, (4,)), "a dtype that is none"),
        ("_rebuild_from_type", (named("a.b"), 0, ()), "_rebuild_from_type of other arguments than its own"),
        ("_rebuild_from_type_v2", ("a.b", 0, (), 0), "_rebuild_from_type_v2 of other arguments than its own"),
    ],
)
def test_calls_of_other_arguments(name: str, args: Any, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        _torch_tensors.call(named(f"torch._utils.{name}"), args)
    assert str(caught.value) == message


def test_types_in_types_have_an_end() -> None:
    again = named("torch._tensor._rebuild_from_type_v2")
    args: Any = (named("torch._utils._rebuild_tensor"), 0, VIEW, 0)
    for _ in range(8):
        args = (again, 0, args, 0)
    assert told(_torch_tensors.call(again, args)) == told(TENSOR)
    with pytest.raises(Malformed, match=r"^_rebuild_from_type_v2 of other arguments than its own$"):
        _torch_tensors.call(again, (again, 0, args, 0))


def thing(of: str, args: Any = (), state: Any = None) -> Thing:
    made = Thing(named(of), args)
    made.state = state
    return made


def test_what_stands_for_a_tensor() -> None:
    of = _torch_tensors.tensor_of
    assert of(TENSOR) is TENSOR
    alone = of(STORAGE)
    assert alone is not None
    assert told(alone) == ("float32", 0, (6,), (1,), "")
    for name in ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.Variable"):
        assert of(thing(name, (TENSOR, True))) is TENSOR
        assert of(thing(name, (1,))) is None
        assert of(thing(name, ())) is None
    lazy = of(thing("torch.nn.parameter.UninitializedParameter"))
    assert lazy is not None
    assert told(lazy) == ("float32", 0, (), (), "not initialized: of a lazy module that has not run yet")
    old = of(thing("torch.FloatTensor", (), VIEW))
    assert old is not None
    assert told(old) == told(TENSOR)
    for other in (
        thing("torch.FloatTensor", (), VIEW[:3]),
        thing("torch.FloatTensor", (), list(VIEW)),
        thing("torch.FloatTensor", (), ("0", *VIEW[1:])),
        thing("torch.Thing", (), VIEW),
        thing("numpy.FloatTensor", (), VIEW),
        Thing("torch.FloatTensor"),
        5,
        None,
    ):
        assert of(other) is None


# -- texts and pairs -------------------------------------------------------------------------------------------------


def test_text_in_a_set() -> None:
    """What a module says of the buffers that it does not save; whatever else stands there says nothing."""
    made = Thing(Global("builtins", "set"), (["a", 7, "b"],))
    assert _torch_names._members(made) == {"a", "b"}
    assert _torch_names._members(Thing(Global("builtins", "set"), ())) == set()
    for other in (None, "a", ["a"], {"a": 1}):
        assert _torch_names._members(other) == set()


def test_ordered_dicts_of_python_2() -> None:
    """Lists of lists; what is no pair in them is passed over."""
    given = [["a", 1], 7, "xy", ["b"], ("c", 2), ["d", 1, 2], None]
    made = Thing(Global("collections", "OrderedDict"), (given,))
    made.pairs = [("e", 3)]
    assert list(_torch_names._pairs(made)) == [("a", 1), ("c", 2), ("e", 3)]
    assert list(_torch_names._pairs(Thing(Global("collections", "OrderedDict"), (7,)))) == []
    assert list(_torch_names._pairs(Thing(Global("builtins", "list"), (given,)))) == []
