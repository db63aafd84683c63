"""Leaves of JAX trees: which of them are arrays, what they are like, and new ones in their place.

Promise: an array that takes another's place has its dtype, its weak type, its devices and its sharding; of one that is
sharded, each device's part is read and put there by itself: no more than one part lies in the host's memory. Limit:
arrays that are traced (inside ``jax.jit``) are refused. JAX is imported inside the functions only.

Sources: jax/_src/array.py (``make_array_from_single_device_arrays``, ``committed``), jax/_src/lax/lax.py
(``_convert_element_type``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from weightport.errors import Error, MissingPackage, Problem, RefusedError
from weightport.targets._buffers import produced
from weightport.targets._variables import inherits
from weightport.tensors import Array, Index, TensorSpec, Value


def import_jax(what: str) -> ModuleType:
    """JAX, or an error that says how to get it."""
    try:
        import jax
    except ImportError:
        raise MissingPackage(what, "jax", "jax") from None
    module: ModuleType = jax
    return module


def is_array(leaf: object, where: str) -> bool:
    """Whether a leaf is an array that a mapping has to account for. Random keys, Python's numbers, functions are not.

    Raises:
        RefusedError: a traced array, or an array of another library.
    """
    import jax

    if isinstance(leaf, jax.core.Tracer):
        raise RefusedError(Problem(where, "is traced", "move weights outside of jit, grad and vmap"))
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct)):
        return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
        raise RefusedError(Problem(where, f"is a {kind}, not an array of JAX or numpy"))
    return False


def is_abstract(leaf: object) -> bool:
    """Whether it has a shape and a dtype, but no values (``jax.eval_shape``)."""
    return bool(inherits(leaf, "ShapeDtypeStruct", "jax", "jax._src.api", "jax._src.core"))


def spec_of(leaf: Any) -> TensorSpec:
    """Its dtype and shape."""
    return TensorSpec.of(np.dtype(leaf.dtype), tuple(int(d) for d in leaf.shape))


def read_part(leaf: Any, index: Index, where: str) -> Array:
    """The values of a leaf, or a part of them, in new memory.

    Raises:
        RefusedError: it has no values, or its values lie on other machines.
    """
    if is_abstract(leaf):
        raise RefusedError(Problem(where, "is abstract: it has no values"))
    if getattr(leaf, "is_deleted", bool)():
        raise RefusedError(Problem(where, "was deleted", "its buffer was donated to a function; use that one's result"))
    if not getattr(leaf, "is_fully_addressable", True):
        raise RefusedError(Problem(where, "lies in part on devices of other processes"))
    return np.array(np.asarray(leaf)[index if index is not None else ()], order="C", copy=True)


def made(old: Any, value: Value, where: str) -> Any:
    """The value as an array of the kind, dtype and sharding of the one whose place it takes.

    Raises:
        Error: the value is not what its spec says, or JAX refuses it.
    """
    if isinstance(old, np.ndarray):
        return produced(value)
    if isinstance(old, np.generic):
        return produced(value)[()]
    sharding = getattr(old, "sharding", None)
    if sharding is not None and len(sharding.device_set) > 1:
        new = _sharded(value, sharding, where)
    else:
        committed = sharding is not None and getattr(old, "committed", getattr(old, "_committed", True))
        new = _put(produced(value), sharding if committed else None, value, where)
    if new.dtype != value.spec.dtype:
        what = f"JAX makes {new.dtype.name} of {value.spec.dtype_name}"
        raise Error(Problem(f"{where}: {value.name!r}", what, "enable jax_enable_x64, as when the tree was made"))
    return _weak(old, new)


def _put(array: Array, place: Any, value: Value, where: str) -> Any:
    import jax

    try:
        return jax.device_put(array, place)
    except Exception as exc:
        raise _refused(value, where, exc) from exc


def _sharded(value: Value, sharding: Any, where: str) -> Any:
    """Each device's part, read for itself and given away at once; a part that several devices hold is read once."""
    import jax

    shape = value.spec.shape
    places: dict[tuple[tuple[int, int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(cut.indices(dim) for cut, dim in zip(index, shape, strict=True))
        places.setdefault(bounds, []).append(device)
    parts = []
    for bounds, devices in places.items():
        part = produced(value, tuple(slice(*b) for b in bounds))
        kinds = [jax.sharding.SingleDeviceSharding(d, memory_kind=sharding.memory_kind) for d in devices]
        parts += [_put(part, kind, value, where) for kind in kinds]
    try:
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)
    except Exception as exc:
        raise _refused(value, where, exc) from exc


def _refused(value: Value, where: str, exc: Exception) -> Error:
    return Error(Problem(f"{where}: {value.name!r}", f"JAX refused the value: {exc}"))


def _weak(old: Any, new: Any) -> Any:
    """The array, weakly typed if the old one is."""
    if not getattr(old, "weak_type", False):
        return new
    try:
        from jax._src.lax.lax import _convert_element_type
    except ImportError:  # no public function makes a weak array of given bits; a strong one has the same values
        return new
    return _convert_element_type(new, new.dtype, weak_type=True)
