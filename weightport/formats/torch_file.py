"""PyTorch's files: ``torch.save`` (archives, and the format before 1.6), ``torch.jit.save``, ``torch.export.save``.

Promise: nothing is unpickled, imported or run; the archive's directory and its pickle are read at opening, values by
position, whole or in part. Tensors that share a storage (tied weights, views of one buffer) are read each for itself.
CRCs are verified the first time a storage is read, where the file has them. Limit: names are made as
:mod:`~weightport.formats._torch_names` says; what has no plain values (quantized, sparse, ...) is listed and not read;
the format before 1.6 has no checksums; ``torch.export`` archives of PyTorch 2.7 and later, and no tar archives of
PyTorch before 0.2. Models in several files: :mod:`~weightport.formats.torch_index`.

Sources: torch/serialization.py (``_save``, ``_load``, ``_legacy_load``), caffe2/serialize/inline_container.cc,
torch/csrc/jit/serialization/export_module.cpp.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _pickle, _strided, _torch_names, _views
from weightport.formats._io import ByteFile
from weightport.formats._torch_facts import facts_of
from weightport.formats._torch_places import INDICES, MAGIC, Archive, Legacy
from weightport.formats._torch_tensors import Tensor
from weightport.formats._zipmember import LOCAL, Deflated, Stored, directory
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec

# How a pickle says the number that the format before 1.6 begins with: protocols 2 and up, and text.
_MAGIC = (b"\x8a\x0a" + MAGIC.to_bytes(10, "little"), str(MAGIC).encode())
_HEAD = 64


class TorchSource:
    """An open file of PyTorch's. ``metadata`` is what :mod:`~weightport.formats.torch_write` left in it."""

    format = "torch"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        self._budget = budget or Budget()
        self._tensors: dict[str, Tensor] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._modules: Mapping[str, tuple[str, Mapping[str, Any]]] = {}
        self._file = ByteFile(path)
        try:
            zipped = self._file.size >= 4 and self._file.read(0, 4) == LOCAL
            self._places = Archive(self._file, self._budget) if zipped else Legacy(self._file, self._budget)
            self.metadata = self._places.metadata
            self._name_all()
        except BaseException:
            self._file.close()
            raise

    def _name_all(self) -> None:
        alone = os.path.basename(self.path).rpartition(".")[0] or "tensor"
        for root, beside in self._places.roots:
            try:
                found = _torch_names.named(
                    root, self.path, self._budget, size=self._file.size, alone=alone, script=self._places.script
                )
            except _pickle.Malformed as error:
                raise FormatError(self.path, f"corrupt: {error}") from None
            for name, (tensor, role) in found.tensors.items():
                if name in self._tensors:
                    raise FormatError(self.path, "two tensors have this name", tensor=name)
                self._tensors[name] = tensor
                self._specs[name] = self._spec(name, tensor, beside or role)
            self._modules = self._modules or found.modules

    def _spec(self, name: str, tensor: Tensor, role: str) -> TensorSpec:
        dtype, nbytes = tensor.numpy, tensor.nbytes
        if dtype.kind == "O":
            self._budget.check("rank", len(tensor.shape), self.path, tensor=name)
            self._budget.check("tensor_bytes", nbytes, self.path, tensor=name)
            why = tensor.unread or "of a dtype that the installed ml_dtypes does not have"
            unread = why if tensor.dtype in why else f"{why} ({tensor.dtype})"
            return TensorSpec(dtype, tensor.shape, nbytes, role, unread)
        nbytes = _strided.checked(dtype, tensor.shape, self._budget, self.path, name)
        if not tensor.unread and nbytes:
            assert tensor.storage is not None
            self._places.check(tensor.storage, name)
        return TensorSpec(dtype, tensor.shape, nbytes, role, tensor.unread)

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the order in which the file speaks of them."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out; the CRC of its storage is checked first, once."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise TensorNotFound(name, self._tensors, self.path)
        spec = self._specs[name]
        if spec.unread:
            raise FormatError(self.path, f"cannot be read: {spec.unread}", tensor=name)
        cuts = _strided.bounds(index, tensor.shape, f"{self.path}: tensor {name!r}")
        if not spec.nbytes or 0 in _strided.counts(cuts):
            return np.empty(_strided.counts(cuts), spec.dtype)
        assert tensor.storage is not None
        file, start = self._places.find(tensor.storage, name)
        start += tensor.offset * spec.dtype.itemsize
        whole = not start and file.size == spec.nbytes and _strided.is_whole(cuts, spec.shape)
        fused = whole and isinstance(file, Stored) and _views.is_dense(tensor.shape, tensor.stride)
        if isinstance(file, Stored | Deflated) and not fused:
            file.verify(name)
        out = _views.read_view(file, start, spec.dtype, tensor.shape, tensor.stride, cuts, tensor=name)
        if fused and isinstance(file, Stored):
            file.verify_read(_strided.byte_view(out), name)
        if self._places.big_endian:
            _strided.swapped(out)
        if tensor.conj:
            np.conjugate(out, out=out)
        return np.negative(out, out=out) if tensor.negative else out

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies that has a storage of its own, or lies in a file of before 1.6, as it does in memory."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise TensorNotFound(name, self._tensors, self.path)
        spec = self._specs[name]
        plain = not (spec.unread or tensor.conj or tensor.negative) and _views.is_dense(tensor.shape, tensor.stride)
        if not plain or not spec.nbytes or self._places.big_endian:
            return None
        assert tensor.storage is not None
        file, start = self._places.find(tensor.storage, name)
        start += tensor.offset * spec.dtype.itemsize
        if isinstance(file, Stored):
            # One of several views of a storage would have the whole storage read to prove its part.
            return file.extent() if not start and file.size == spec.nbytes else None
        return Extent(self.path, start, spec.nbytes) if isinstance(file, ByteFile) else None

    def checksum(self, name: str) -> str:
        """The CRC-32 of the member that a tensor's storage is, where the file has them."""
        tensor = self._tensors.get(name)
        if tensor is None or tensor.storage is None or self._specs[name].unread or not self._specs[name].nbytes:
            return ""
        file, _ = self._places.find(tensor.storage, name)
        return file.checksum if isinstance(file, Stored | Deflated) else ""

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What a module that was saved whole, or as TorchScript, records about the RNN that owns these tensors.

        Keys: those of :func:`~weightport.formats._torch_facts.facts_of`. Empty for a state dict.
        """
        owners = {name.rpartition(".")[0] for name in names}
        known = self._modules.get(owners.pop()) if len(owners) == 1 else None
        return facts_of(*known) if known is not None else {}

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> TorchSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether the file is an archive with PyTorch's index, or begins as PyTorch's files before 1.6 do."""
    try:
        with ByteFile(path) as file:
            head = file.read(0, min(_HEAD, file.size))
            if not head.startswith(LOCAL):
                return any(magic in head for magic in _MAGIC)
            size = int.from_bytes(head[26:28], "little")
            if file.size > 30 + size and file.read(30, size).endswith(b"/data.pkl"):
                return True  # torch.save puts it first: no need to look further
            infos, _ = directory(file)
    except (FormatError, OSError):
        return False
    known = {infos[0].filename.partition("/")[0] + f"/{name}" for name in INDICES} if infos else set()
    return any(info.filename in known for info in infos)


def open_source(path: str, *, budget: Budget | None = None) -> TorchSource:
    """Open a file that ``torch.save``, ``torch.jit.save`` or ``torch.export.save`` wrote.

    Raises:
        FormatError: truncated, corrupt, or no file of PyTorch's.
    """
    return TorchSource(path, budget=budget)
