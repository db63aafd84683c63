"""Tensors of PyTorch as named specs and arrays, and values put into them.

Promise: bits are moved, not numbers: every dtype that numpy or ml_dtypes has, NaN payloads included; a tensor keeps its
device, its dtype, its memory format and its identity. What lies in the processor's memory as an array does is written
to where it lies. Limit: dense tensors only. PyTorch is imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from weightport.errors import Error, Problem
from weightport.formats._torch_tensors import DTYPES, OTHERS
from weightport.targets._buffers import produced
from weightport.targets._rollback import Kept
from weightport.tensors import Array, Index, TensorSpec, Value, dtype_named

#: Bytes of a value that are made at a time.
PIECE = 64 << 20


def spec_of(tensor: Any, role: str = "weight") -> TensorSpec:
    """Shape and dtype; of a tensor that cannot be given values, why not (``unread``)."""
    name = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(int(d) for d in tensor.shape)
    nbytes = prod(shape) * tensor.dtype.itemsize
    dense = str(tensor.layout) == "torch.strided"
    if name not in DTYPES:
        return TensorSpec(np.dtype(object), shape, nbytes, role, f"{OTHERS.get(name, (0, 'of a dtype'))[1]} ({name})")
    unread = "sparse" if not dense else f"a {type(tensor).__name__} of other tensors" if _wraps(tensor) else ""
    return TensorSpec(dtype_named(DTYPES[name]), shape, nbytes, role, unread)


def _wraps(tensor: Any) -> bool:
    """Whether it is a subclass that does everything by itself, as DTensor and quantized parameters do."""
    import torch

    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def repeats(tensor: Any) -> bool:
    """Whether several elements of it are one in memory."""
    return any(step == 0 and dim > 1 for step, dim in zip(tensor.stride(), tensor.shape, strict=True))


def is_fixed(tensor: Any) -> bool:
    """Whether it was made in inference mode, and that is over: nothing can be written to it."""
    import torch

    return bool(tensor.is_inference()) and not torch.is_inference_mode_enabled()


def storage(tensor: Any) -> Any:
    """What two tensors have in common that share memory; of a tensor without memory, itself."""
    dense = str(tensor.layout) == "torch.strided" and not tensor.is_meta and tensor.numel() and not _wraps(tensor)
    return (str(tensor.device), tensor.untyped_storage().data_ptr()) if dense else id(tensor)


def identity(tensor: Any) -> Any:
    """What two tensors have in common that are the same one, or the same view of the same memory."""
    held = storage(tensor)
    if isinstance(held, int):
        return held
    return (*held, tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def holds(tensor: Any, value: Value) -> bool:
    """Whether a tensor has that value."""
    return all(array_of(tensor, place).tobytes() == array.tobytes() for place, array in pieces(value))


def array_of(tensor: Any, index: Index = None) -> Array:
    """The values of a tensor, or the part that ``index`` cuts out, as a new array.

    Raises:
        Error: a tensor on the meta device.
    """
    if tensor.is_meta:
        raise Error("is on the meta device: it has no values")
    part = tensor.detach()
    if index is not None:
        part = part[(*index, ...)]
    spec = spec_of(part)
    out = np.empty(spec.shape, spec.dtype)
    out.reshape(-1).view(np.uint8)[...] = _bytes_of(part)
    return out


def _bytes_of(tensor: Any) -> Array:
    """The bytes of a tensor's values: of one that lies densely in memory, its own memory."""
    import torch

    dense = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    found: Array = dense.reshape(-1).view(torch.uint8).numpy() if dense.numel() else np.empty(0, np.uint8)
    return found


def tensor_of(array: Array, dtype: Any) -> Any:
    """An array as a tensor of that dtype, over the same memory."""
    import torch

    if not array.size:
        return torch.empty(array.shape, dtype=dtype)
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)


def pieces(value: Value) -> Iterator[tuple[Index, Array]]:
    """A value in pieces along its first axis, each with its place; a small one as a whole.

    Raises:
        PlanError: a value that is not what its spec says.
    """
    shape = value.spec.shape
    if not shape or value.spec.nbytes <= PIECE:
        yield None, produced(value)
        return
    rows = max(1, PIECE * shape[0] // value.spec.nbytes)
    for start in range(0, shape[0], rows):
        place = (slice(start, min(start + rows, shape[0])),)
        yield place, produced(value, place)


def fill(tensor: Any, value: Value, where: str) -> None:
    """Put a value into a tensor, in place.

    Raises:
        Error: PyTorch refuses it.
    """
    import torch

    memory = _memory(tensor)
    if memory is not None:
        value.fill(memory)
        increment = getattr(torch.autograd.graph, "increment_version", None)
        if increment is not None and not tensor.is_inference():
            increment(tensor)  # what was computed with the old values cannot be differentiated any more
        return
    for place, array in pieces(value):
        try:
            with torch.no_grad():
                (tensor if place is None else tensor[place]).copy_(tensor_of(array, tensor.dtype))
        except RuntimeError as error:
            what = f"PyTorch refused the value: {error}"
            raise Error(Problem(f"{where}: variable {value.name!r}", what)) from error


def _memory(tensor: Any) -> Array | None:
    """The memory of a tensor that lies as an array does, to be written to; None for any other tensor."""
    import torch

    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and tensor.numel()
    if not plain or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    spec = spec_of(tensor)
    raw: Array = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return raw.view(spec.dtype).reshape(spec.shape)


def keep(kept: Kept, tensor: Any) -> Callable[[], None]:
    """Keep a tensor's values; what is returned puts them back."""
    import torch

    old = kept.put(_bytes_of(tensor).copy())

    def back() -> None:
        raw = old()
        if raw.size and not np.array_equal(raw, _bytes_of(tensor)):  # what could not be changed need not be
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(raw).view(tensor.dtype).reshape(tensor.shape))

    return back
