"""PyTorch's tensors as their pickles describe them: a storage, an offset, a shape and strides.

Promise: the calls that rebuild tensors are known by name and taken apart, never made; a view that reaches outside its
storage is refused; what has no plain values (quantized, sparse, nested, packed below a byte, on the meta device, a
subclass that holds other tensors) stays a tensor with a reason in ``unread``. Limit: the calls that PyTorch 0.1 to 2.13
write.

Sources: torch/_utils.py (``_rebuild_*``), torch/_tensor.py (``_rebuild_from_type_v2``), torch/storage.py
(``_dtype_to_storage_type_map``, ``_new_dtypes``), torch/serialization.py (``persistent_load``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from weightport.formats._pickle import Global, Malformed, Pairs, Thing
from weightport.tensors import DtypeError, dtype_named

#: torch's name of a dtype -> numpy's or ml_dtypes'.
DTYPES = {
    **{
        n: n
        for n in (
            "float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool", "int8", "int16", "int32",
            "int64", "uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
            "float8_e5m2fnuz", "float8_e8m0fnu",
        )
    },
    "float": "float32", "double": "float64", "half": "float16", "cfloat": "complex64", "cdouble": "complex128",
    "long": "int64", "int": "int32", "short": "int16",
}  # fmt: skip
#: dtypes that numpy has no like of: bytes of an element as it is stored, and what to say of it.
OTHERS = {
    **dict.fromkeys(("qint8", "quint8"), (1, "quantized")),
    "qint32": (4, "quantized"),
    **dict.fromkeys(("quint4x2", "quint2x4"), (1, "quantized, packed below a byte")),
    "complex32": (4, "complex numbers of half precision"),
    "float4_e2m1fn_x2": (1, "packed below a byte"),
    **dict.fromkeys(("bits1x8", "bits2x4", "bits4x2", "bits8"), (1, "bits without a meaning")),
    "bits16": (2, "bits without a meaning"),
    **{f"{sign}int{bits}": (1, "whole numbers below a byte") for sign in ("", "u") for bits in range(1, 8)},
}
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QInt32": "qint32", "QUInt8": "quint8", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "uint8",
}  # fmt: skip
_MAX_AXES = 64
# Types in types: as deep as subclasses of tensors go, and no deeper.
_MAX_NESTED = 8


def itemsize(dtype: str) -> int:
    """Bytes of an element of a torch dtype as it is stored.

    Raises:
        Malformed: no such dtype.
    """
    if dtype in OTHERS:
        return OTHERS[dtype][0]
    if dtype not in DTYPES:
        raise Malformed(f"the dtype torch.{dtype} is not known")
    return _SIZES[DTYPES[dtype]]


_SIZES = {"complex128": 16, **dict.fromkeys(("float64", "complex64", "int64", "uint64"), 8)}
_SIZES |= dict.fromkeys(("float32", "int32", "uint32"), 4)
_SIZES |= dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2)
_SIZES |= {name: 1 for name in DTYPES.values() if name not in _SIZES}


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Bytes under a key.

    Attributes:
        dtype: torch's name.
        numel: elements of that dtype.
        start: where a view of another storage begins, in bytes.
        total: bytes that stand under the key.
    """

    key: str
    dtype: str
    numel: int
    start: int
    total: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes, from ``start``."""
        return self.numel * itemsize(self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage.

    Attributes:
        dtype: torch's name.
        offset, stride: in elements.
        unread: why its values cannot be read; empty if they can.
        conj, negative: whether the values are the conjugates, or the negatives, of what is stored.
    """

    storage: Storage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    unread: str = ""
    conj: bool = False
    negative: bool = False

    @property
    def numpy(self) -> np.dtype[Any]:
        """numpy's dtype; for what numpy has no like of, ``object``."""
        try:
            return dtype_named(DTYPES[self.dtype]) if self.dtype in DTYPES else np.dtype(object)
        except DtypeError:
            return np.dtype(object)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * itemsize(self.dtype)

    @property
    def extent(self) -> int:
        """Elements of the storage up to the last one."""
        if 0 in self.shape:
            return 0
        return self.offset + sum((dim - 1) * step for dim, step in zip(self.shape, self.stride, strict=True)) + 1

    def of(self, storage: Storage) -> Tensor:
        """The same view of another storage."""
        return replace(self, storage=storage)


def storage_of(key: Any) -> Any:
    """What a persistent id stands for: a storage, or (in old files) the class of a module.

    Raises:
        Malformed: anything else.
    """
    if isinstance(key, tuple) and len(key) in (5, 6) and key[0] == "storage":
        _, kind, name, _, numel, *view = key
        dtype, count = _storage_dtype(kind), _size(numel, "the size of a storage")
        storage = Storage(_key(name), dtype, count, 0, count * itemsize(dtype))
        if view and isinstance(view[0], tuple) and len(view[0]) == 3:
            _, offset, extent = view[0]
            start, size = _size(offset, "the offset of a view"), _size(extent, "the size of a view")
            if start + size > storage.numel:
                raise Malformed(f"a view of elements {start}..{start + size} of a storage of {storage.numel}")
            return replace(storage, numel=size, start=start * itemsize(dtype))
        if view and view[0] is not None:
            raise Malformed("a view of a storage that is none")
        return storage
    if isinstance(key, tuple) and len(key) == 4 and key[0] == "module":
        return key[1]
    raise Malformed("a persistent id that is no storage")


def call(of: Global, args: Any) -> Any:
    """A tensor, if that is what the call would rebuild; ``NotImplemented`` for any other call.

    Raises:
        Malformed: arguments that make no tensor.
    """
    return _called(of, args, 0)


def _called(of: Global, args: Any, nested: int) -> Any:
    if of.module == "torch.jit._pickle" and isinstance(args, tuple) and args:
        return args[0]  # lists of TorchScript with their type: restore_type_tag, build_tensorlist, ...
    if of.module not in ("torch._utils", "torch._tensor", "torch.tensor") or not of.name.startswith("_rebuild_"):
        return NotImplemented
    if not isinstance(args, tuple):
        raise Malformed(f"{of.name} of no arguments")
    if of.name in ("_rebuild_from_type", "_rebuild_from_type_v2"):
        if len(args) != 4 or type(args[0]) is not Global or nested > _MAX_NESTED:
            raise Malformed(f"{of.name} of other arguments than its own")
        return _called(args[0], args[2], nested + 1)
    rebuild = _REBUILD.get(of.name)
    if rebuild is None:
        return Tensor(None, "uint8", 0, (), (), f"made by {of.name}, which is not known")
    try:
        return rebuild(*args)
    except TypeError:
        raise Malformed(f"{of.name} of {len(args)} arguments") from None


# How each is rebuilt -------------------------------------------------------------------------------------------------


def view_of(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: str | None = None, metadata: Any = None
) -> Tensor:
    """A tensor of parts that a file names.

    Raises:
        Malformed: parts that make none, or one that reaches outside its storage.
    """
    if type(storage) is not Storage:
        raise Malformed("a tensor without a storage")
    named = dtype or storage.dtype
    dims, steps, first = _sizes(shape), _sizes(stride), _size(offset, "an offset")
    if len(dims) != len(steps):
        raise Malformed(f"a shape of {len(dims)} axes with {len(steps)} strides")
    flags = {k: bool(v) for k, v in metadata if k in ("conj", "neg")} if isinstance(metadata, Pairs) else {}
    unread = OTHERS[named][1] if named in OTHERS else ""
    made = Tensor(storage, named, first, dims, steps, unread, flags.get("conj", False), flags.get("neg", False))
    if made.extent * itemsize(named) > storage.nbytes:
        raise Malformed(f"a tensor of the bytes up to {made.extent * itemsize(named)} of a storage of {storage.nbytes}")
    return made


def _v1(storage: Any, offset: Any, shape: Any, stride: Any) -> Any:
    return view_of(storage, offset, shape, stride)


def _v2(storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None) -> Any:
    return view_of(storage, offset, shape, stride, None, metadata)


def _v3(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    return view_of(storage, offset, shape, stride, dtype_of(dtype), metadata)


def _parameter(data: Any, *_: Any) -> Any:
    if type(data) is not Tensor:
        raise Malformed("a parameter that is no tensor")
    return data


def _quantized(storage: Any, offset: Any, shape: Any, stride: Any, params: Any, _grad: Any, _hooks: Any) -> Any:
    scheme = params[0].name if isinstance(params, tuple) and params and type(params[0]) is Global else "unknown"
    made = view_of(storage, offset, shape, stride)
    return replace(made, unread=f"quantized ({made.dtype}, {scheme.replace('_', ' ')})")


def _sparse(_layout: Any, data: Any) -> Any:
    parts = data if isinstance(data, tuple) else ()
    sizes = parts[3] if len(parts) == 4 and type(parts[2]) is Tensor else parts[2] if len(parts) > 2 else ()
    values = next((p for p in reversed(parts) if type(p) is Tensor), None)
    if values is None:
        raise Malformed("a sparse tensor without values")
    return Tensor(None, values.dtype, 0, _sizes(sizes), (), "sparse")


def _nested(buffer: Any, *_: Any) -> Any:
    return replace(_parameter(buffer), unread="nested: several tensors of different shapes")


def _meta(dtype: Any, shape: Any, *_: Any) -> Any:
    return Tensor(None, dtype_of(dtype), 0, _sizes(shape), (), "on the meta device, without values")


def _wrapper(cls: Any, dtype: Any, shape: Any, *_: Any) -> Any:
    return Tensor(None, dtype_of(dtype), 0, _sizes(shape), (), f"a {getattr(cls, 'name', 'subclass')} of other tensors")


def _from_numpy(_data: Any, dtype: Any, *_: Any) -> Any:
    return Tensor(None, dtype_of(dtype), 0, (), (), "stored as an array of numpy")


def _from_cpu(data: Any, dtype: Any, *_: Any) -> Any:
    made = _parameter(data)
    same = dtype_of(dtype) == made.dtype
    return made if same else replace(made, unread=f"to be cast from {made.dtype} to {dtype_of(dtype)}")


_REBUILD: dict[str, Callable[..., Any]] = {
    "_rebuild_tensor": _v1,
    "_rebuild_tensor_v2": _v2,
    "_rebuild_tensor_v3": _v3,
    "_rebuild_parameter": _parameter,
    "_rebuild_parameter_with_state": _parameter,
    "_rebuild_qtensor": _quantized,
    "_rebuild_sparse_tensor": _sparse,
    "_rebuild_sparse_csr_tensor": _sparse,
    "_rebuild_nested_tensor": _nested,
    "_rebuild_meta_tensor_no_storage": _meta,
    "_rebuild_wrapper_subclass": _wrapper,
    "_rebuild_xla_tensor": _from_numpy,
    "_rebuild_device_tensor_from_numpy": _from_numpy,
    "_rebuild_device_tensor_from_cpu_tensor": _from_cpu,
}


# What else may stand for a tensor ------------------------------------------------------------------------------------


def tensor_of(found: Any) -> Tensor | None:
    """The tensor that a value of a pickle is, or None.

    Raises:
        Malformed: the state of an old tensor that makes none.
    """
    kind = type(found)
    if kind is Tensor:
        return found  # type: ignore[no-any-return]
    if kind is Storage:
        return Tensor(found, found.dtype, 0, (found.numel,), (1,))
    if kind is not Thing or type(found.of) is not Global or not found.of.module.startswith("torch"):
        return None
    name = found.of.name
    if name in ("Parameter", "Buffer", "Variable") and isinstance(found.args, tuple) and found.args:
        return found.args[0] if type(found.args[0]) is Tensor else None
    if name.startswith("Uninitialized"):
        return Tensor(None, "float32", 0, (), (), "not initialized: of a lazy module that has not run yet")
    state = found.state
    if name.endswith("Tensor") and isinstance(state, tuple) and len(state) == 4 and type(state[0]) is Storage:
        return _v1(*state)  # type: ignore[no-any-return]
    return None


def dtype_of(found: Any) -> str:
    """The name of a dtype: ``torch.float32``.

    Raises:
        Malformed: it is none.
    """
    if type(found) is not Global or found.module != "torch":
        raise Malformed("a dtype that is none")
    itemsize(found.name)
    return found.name


def _storage_dtype(kind: Any) -> str:
    name = kind.name if type(kind) is Global else ""
    dtype = _STORAGES.get(name.removesuffix("Storage")) if name.endswith("Storage") else None
    if dtype is None or not kind.module.startswith("torch"):
        raise Malformed(f"the storage type {kind if name else 'of a storage'} is not known")
    return dtype


def _key(name: Any) -> str:
    if isinstance(name, str):
        return name
    if type(name) is int:
        return str(name)
    raise Malformed("a storage whose key is no text")


def _size(found: Any, what: str) -> int:
    if type(found) is not int or not 0 <= found < 1 << 62:
        raise Malformed(f"{what} that is no size")
    return found


def _sizes(found: Any) -> tuple[int, ...]:
    if type(found) is Thing and found.named("torch.Size") and isinstance(found.args, tuple) and len(found.args) == 1:
        found = found.args[0]
    if not isinstance(found, (tuple, list)) or len(found) > _MAX_AXES:
        raise Malformed("a shape that is none")
    return tuple(_size(dim, "a dimension") for dim in found)
