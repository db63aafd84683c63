"""Tensors of PyTorch as named specs and arrays, and values put into them.

Promise: bits are moved, not numbers: every dtype that numpy or ml_dtypes has, NaN payloads included; a tensor keeps its
device, its dtype, its memory format and its identity; old values that may have to come back are held in memory up to
:data:`HELD`, and beyond that in a temporary file. Limit: dense tensors only. PyTorch is imported inside the functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from math import prod
from typing import IO, Any

import numpy as np

from weightport.errors import Error, Problem
from weightport.formats._torch_tensors import DTYPES, OTHERS
from weightport.tensors import Array, Index, TensorSpec, Value, dtype_named

#: Bytes of old values that are held in memory.
HELD = 256 << 20
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


def array_of(tensor: Any, index: Index = None) -> Array:
    """The values of a tensor, or the part that ``index`` cuts out, as a new array.

    Raises:
        Error: a tensor on the meta device.
    """
    import torch

    if tensor.is_meta:
        raise Error("is on the meta device: it has no values")
    part = tensor.detach()
    if index is not None:
        part = part[(*index, ...)]
    part = part.resolve_conj().resolve_neg().to("cpu").contiguous()
    spec = spec_of(part)
    out = np.empty(spec.shape, spec.dtype)
    if out.size:
        raw = part.reshape(-1).view(torch.uint8).numpy()
        out.reshape(-1).view(np.uint8)[...] = raw
    return out


def tensor_of(array: Array, dtype: Any) -> Any:
    """An array as a tensor of that dtype, over the same memory."""
    import torch

    if not array.size:
        return torch.empty(array.shape, dtype=dtype)
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)


def pieces(value: Value, where: str) -> Iterator[tuple[slice | None, Array]]:
    """A value in pieces along its first axis, each with its place; a small one as a whole.

    Raises:
        Error: a value that is not what its spec says.
    """
    shape = value.spec.shape
    if not shape or value.spec.nbytes <= PIECE:
        yield None, _as_said(value, value.produce(None), shape, where)
        return
    rows = max(1, PIECE * shape[0] // value.spec.nbytes)
    for start in range(0, shape[0], rows):
        place = slice(start, min(start + rows, shape[0]))
        yield place, _as_said(value, value.produce((place,)), (place.stop - start, *shape[1:]), where)


def _as_said(value: Value, array: Array, shape: tuple[int, ...], where: str) -> Array:
    if tuple(array.shape) != shape or array.dtype != value.spec.dtype:
        what = f"the value has dtype {array.dtype.name} and shape {list(array.shape)}, "
        what += f"its plan said {value.spec.dtype_name} and {list(shape)}"
        raise Error(Problem(f"{where}: variable {value.name!r}", what))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def fill(tensor: Any, value: Value, where: str) -> None:
    """Put a value into a tensor, in place.

    Raises:
        Error: PyTorch refuses it.
    """
    import torch

    for place, array in pieces(value, where):
        try:
            with torch.no_grad():
                (tensor if place is None else tensor[place]).copy_(tensor_of(array, tensor.dtype))
        except RuntimeError as error:
            what = f"PyTorch refused the value: {error}"
            raise Error(Problem(f"{where}: variable {value.name!r}", what)) from error


class Before:
    """Old values, to be put back if a transfer fails half way."""

    def __init__(self) -> None:
        self._held = 0
        self._file: IO[bytes] | None = None

    def keep(self, tensor: Any) -> Callable[[], None]:
        """Remember a tensor's values; what is returned puts them back."""
        import torch

        size = tensor.numel() * tensor.element_size()
        if self._held + size <= HELD:
            self._held += size
            old = tensor.detach().to("cpu", copy=True)

            def back() -> None:
                if array_of(tensor).tobytes() != array_of(old).tobytes():  # what could not be changed, need not be
                    with torch.no_grad():
                        tensor.copy_(old)

            return back
        rows = [None] if not tensor.dim() else list(_rows(tensor, size))
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="weightport-")  # noqa: SIM115 - closed by close()
            file, start = self._file, self._file.seek(0, 2)
            for place in rows:
                file.write(array_of(tensor if place is None else tensor[place]).reshape(-1).view(np.uint8).data)
        except OSError as error:
            what = f"old values cannot be kept for the way back: {error.strerror}"
            raise Error(Problem("", what, "name a folder with room for them: TMPDIR=...")) from error

        def reread() -> None:
            file.seek(start)
            for place in rows:
                part = tensor if place is None else tensor[place]
                raw = np.empty(part.numel() * part.element_size(), np.uint8)
                file.readinto(raw.data)  # type: ignore[attr-defined]
                with torch.no_grad():
                    part.copy_(torch.from_numpy(raw).view(tensor.dtype).reshape(part.shape))

        return reread

    def close(self) -> None:
        """Forget them."""
        if self._file is not None:
            self._file.close()


def _rows(tensor: Any, size: int) -> Iterator[slice]:
    count = max(1, PIECE * tensor.shape[0] // max(size, 1))
    for start in range(0, tensor.shape[0], count):
        yield slice(start, min(start + count, tensor.shape[0]))
