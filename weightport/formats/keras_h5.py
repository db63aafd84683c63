"""Keras' ``.h5`` files, as Keras 1, 2 and 3 wrote them, and any other HDF5 file of plain datasets.

Promise: headers only at opening, after :mod:`~weightport.formats._h5_preflight` looked the file over; values by
position where they lie in one run, else as the slice that was asked for. Names are stable and unique:

- a weight's name is its entry in ``weight_names`` without ``:0`` (``lstm_1/kernel``);
- one without ``/`` stands below its layer (``lstm_1/lstm_1_W_i``, ``dense_1/param_0``), unless it is called like it;
- one that occurs in several layers stands below its layer in each of them (``encoder/lstm/kernel``);
- the optimizer's stand below ``optimizer_weights/``: a tensor of any axes is a ``slot``, a scalar that belongs to no
  weight is the ``optimizer``'s own;
- a file without Keras' attributes is format ``hdf5``: the datasets' paths are the names. So is Keras 3's
  ``.weights.h5`` (``layers/dense/vars/0``).

The order is the file's. Limit: HDF5 has no checksums of its own (only the fletcher32 filter, verified where used).

Sources: Keras-1.2.2 keras/engine/topology.py and keras/models.py, tf_keras/src/saving/legacy/hdf5_format.py,
keras/src/legacy/saving/legacy_h5_format.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _beside, _h5_chunks, _h5_file, _strided, keras_config
from weightport.formats._h5_objects import Crashes
from weightport.formats._h5_preflight import Dataset, Preflight, superblock, translated
from weightport.formats._io import ByteFile, Bytes
from weightport.tensors import Array, Budget, Extent, Index, TensorSpec

TOP_LEVEL = "top_level_model_weights"
OPTIMIZER = "optimizer_weights"
MODEL = "model_weights"
_STRINGS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Layer:
    """One group of weights: its name below the weights' root and its ``weight_names``."""

    name: str
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """Which entry of a Keras file a tensor is. ``layer`` is -1 for the optimizer's."""

    layer: int
    position: int


class KerasH5Source:
    """An open HDF5 file, or with ``file`` one that lies in another.

    Attributes:
        format: ``keras-h5``, or ``hdf5`` without Keras' attributes.
        layers: the layers in the file's order, those without weights and the top level's included.
        weights: name -> which entry it is (Keras only; optimizer's included).
        attributes: ``keras_version`` and ``backend``, where recorded; ``metadata``: what weightport said of it.
        optimizer: its entries, as the file spells them.
        nested: whether the weights stand in the group ``model_weights`` (a full model); ``config``: ``model_config``.
        datasets: name -> header.
    """

    alone = False  # whether this process may be lost: see Crashes

    def __init__(self, path: str, *, budget: Budget | None = None, file: Bytes | None = None) -> None:
        self.path = path
        self.format = "keras-h5"
        self.layers: list[Layer] = []
        self.weights: dict[str, Weight] = {}
        self.attributes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.optimizer: tuple[str, ...] = ()
        self.nested = self._closed = False
        self.config: str | None = None
        self._model: keras_config.Config | None = None
        self._specs: dict[str, TensorSpec] = {}
        self.datasets: dict[str, Dataset] = {}
        self._heaps: set[int] = set()
        self._bytes: Bytes = ByteFile(path) if file is None else file
        self._h5: Preflight | None = None
        try:
            base = superblock(self._bytes)
            if base is None:
                raise FormatError(path, "is no HDF5 file: its signature is missing", offset=0)
            self._look_over(base, budget or Budget())
        except BaseException:
            self.close()
            raise

    # -- opening ------------------------------------------------------------------------------------------------------

    def _look_over(self, base: int, budget: Budget) -> None:
        self._h5 = Preflight(self._bytes, base, budget, alone=self.alone)
        self._chunks = _h5_chunks.Decoder(self._bytes, base, self._h5.values.compare_chunks)
        with translated(self.path):
            self._open(self._h5)

    def _open(self, h5: Preflight) -> None:
        self.metadata = {key: said for key in _beside.KEYS if (said := h5.text(h5.root, key)) is not None}
        group, where = h5.group(h5.root, MODEL), MODEL + "/"
        names = None if group is None else self._layer_names(h5, group)
        if names is None:
            group, where = h5.root, ""
            names = self._layer_names(h5, group)
        if names is None:
            self.format = "hdf5"
            for path, dataset in h5.paths.items():
                state = "/optimizer/vars/" in "/" + path
                self._add(path, dataset, ("slot" if dataset.shape else "optimizer") if state else "weight")
            return
        self.nested = bool(where)
        told = {key: h5.text(group, key) or h5.text(h5.root, key) for key in ("keras_version", "backend")}
        self.attributes = {key: value for key, value in told.items() if value is not None}
        self.config = h5.text(h5.root, "model_config")
        self._model = None if self.config is None else keras_config.parse(self.config, self.path)
        if TOP_LEVEL not in names and h5.group(group, TOP_LEVEL) is not None:
            names = [*names, TOP_LEVEL]
        found = []
        for number, name in enumerate(names):
            layer, datasets = self._layer(h5, group, name, where + name)
            self.layers.append(layer)
            found += [
                (Weight(number, at), layer.name, weight, dataset)
                for at, (weight, dataset) in enumerate(zip(layer.weights, datasets, strict=True))
            ]
        self._name(found, where)
        self._optimizer(h5)

    def _layer_names(self, h5: Preflight, group: Any) -> list[str] | None:
        names = h5.strings(group, "layer_names")
        if names is None:
            count = h5.attribute(group, "nb_layers")  # Keras before 1.0
            if count is None:
                return None
            names = [f"layer_{number}" for number in range(self._count(h5, count, "nb_layers"))]
        if len(set(names)) != len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise FormatError(self.path, f"the attribute 'layer_names' has {twice!r} twice")
        return names

    def _count(self, h5: Preflight, value: Any, name: str) -> int:
        if not isinstance(value, np.integer | int) or not 0 <= int(value) <= len(h5.paths) + 100_000:
            raise FormatError(self.path, f"the attribute {name!r} is no number of groups")
        return int(value)

    def _layer(self, h5: Preflight, root: Any, name: str, where: str) -> tuple[Layer, list[Dataset]]:
        group = h5.group(root, name)
        if group is None:
            raise FormatError(self.path, f"the layer {name!r} that 'layer_names' lists has no group")
        weights = h5.strings(group, "weight_names")
        if weights is None:
            count = h5.attribute(group, "nb_params")
            if count is None:
                raise FormatError(self.path, f"the group {where!r} has no attribute 'weight_names'")
            weights = [f"param_{number}" for number in range(self._count(h5, count, "nb_params"))]
        datasets = []
        for weight in weights:
            dataset = h5.dataset(group, weight)
            if dataset is None:
                raise FormatError(self.path, f"the weight {weight!r} that {where!r} lists has no dataset")
            datasets.append(dataset)
        if len(set(weights)) != len(weights):
            twice = next(weight for weight, count in Counter(weights).items() if count > 1)
            raise FormatError(self.path, f"the attribute 'weight_names' of {where!r} has {twice!r} twice")
        return Layer(name, tuple(weights)), datasets

    def _name(self, found: Sequence[tuple[Weight, str, str, Dataset]], where: str) -> None:
        def plain(weight: str) -> str:
            return weight.removesuffix(":0").strip("/")

        def first_choice(layer: str, weight: str) -> str:
            return weight if "/" in weight or weight == layer else f"{layer}/{weight}"

        firsts = [first_choice(layer, plain(weight)) for _, layer, weight, _ in found]
        often = Counter(firsts)
        names = [
            first if often[first] == 1 else f"{layer}/{plain(weight)}"
            for first, (_, layer, weight, _) in zip(firsts, found, strict=True)
        ]
        often = Counter(names)
        for name, (entry, layer, weight, dataset) in zip(names, found, strict=True):
            if often[name] > 1:  # the path in the file is always its own
                name = f"{where}{layer}/{weight}"
            self._add(name, dataset, "weight")
            self.weights[name] = entry

    def _optimizer(self, h5: Preflight) -> None:
        group = h5.group(h5.root, OPTIMIZER)
        if group is None:
            return
        names = h5.strings(group, "weight_names")
        if names is None:
            raise FormatError(self.path, f"the group {OPTIMIZER!r} has no attribute 'weight_names'")
        self.optimizer = tuple(names)
        often = Counter(name.removesuffix(":0") for name in names)
        owners = set(self._specs)
        for position, raw in enumerate(names):
            dataset = h5.dataset(group, raw)
            if dataset is None:
                raise FormatError(self.path, f"the weight {raw!r} that {OPTIMIZER!r} lists has no dataset")
            name = raw if often[raw.removesuffix(":0")] > 1 else raw.removesuffix(":0")
            slot = bool(dataset.shape) or any(_within(owner, name) for owner in owners)
            self._add(f"{OPTIMIZER}/{name}", dataset, "slot" if slot else "optimizer")
            self.weights[f"{OPTIMIZER}/{name}"] = Weight(-1, position)

    def _add(self, name: str, dataset: Dataset, role: str) -> None:
        if name in self._specs:
            raise FormatError(self.path, "two tensors come to this name", tensor=name)
        dtype = np.dtype(object) if dataset.strings else dataset.dtype.newbyteorder("=")
        self._specs[name] = TensorSpec(dtype, dataset.shape, dataset.nbytes, role)
        self.datasets[name] = dataset

    @property
    def file(self) -> Any:
        """The file as h5py has it, after it was looked over; read-only."""
        if self._h5 is None:
            raise Error(f"{self.path}: is closed")
        return self._h5.file

    def objects(self) -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
        """What Keras 3 stored by a model's objects: every group; an object's path -> the name that it says it has; an
        object's path -> the keys of its variables.
        """
        if self._h5 is None:
            raise Error(f"{self.path}: is closed")
        titles: dict[str, str] = {}
        stored: dict[str, list[str]] = {}
        for group in self._h5.groups:
            owner, _, leaf = group.rpartition("/")
            if leaf == "vars" and (title := self._h5.text(self._h5.group(self._h5.root, group), "name")):
                titles[owner] = title
        for path in self._h5.paths:
            group, _, key = path.rpartition("/")
            owner, _, leaf = group.rpartition("/")
            if leaf == "vars":
                stored.setdefault(owner, []).append(key)
        return self._h5.groups, titles, stored

    # -- the protocol -------------------------------------------------------------------------------------------------

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the file's order of layers and weights."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out."""
        dataset = self.datasets.get(name)
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if dataset is None:
            raise TensorNotFound(name, self._specs, self.path)
        cuts = _strided.bounds(index, dataset.shape, f"{self.path}: tensor {name!r}")
        swap = dataset.dtype.byteorder == ">"
        native = dataset.dtype.newbyteorder("=")
        if dataset.strings:
            return self._read_strings(dataset, cuts, name)
        if dataset.offset is not None:
            where = self._bytes, dataset.offset, native, dataset.shape, cuts
            return _strided.read_part(*where, tensor=name, big_endian=swap)
        out = np.empty(_strided.counts(cuts), native)
        if out.size:
            with translated(self.path, name, "truncated or corrupt"):
                found = self._slice(dataset, cuts, name)
                out[...] = found.view(native) if found.dtype.kind == "V" else found
        return out

    def extent(self, name: str) -> Extent | None:
        """Where a dataset lies that is stored in one piece, as it is in memory, in a file of its own."""
        dataset = self.datasets.get(name)
        if dataset is None:
            raise TensorNotFound(name, self._specs, self.path)
        nbytes = self._specs[name].nbytes
        if dataset.strings or dataset.offset is None or dataset.dtype.byteorder == ">" or not nbytes:
            return None
        return Extent(self.path, dataset.offset, nbytes) if isinstance(self._bytes, ByteFile) else None

    def checksum(self, name: str) -> str:
        """``fletcher32`` where that filter is over all of a dataset's values."""
        held = self.datasets.get(name)
        return "" if held is None else _h5_file.checksum(held.handle, held.strings == "variable")

    def _slice(self, dataset: Dataset, cuts: _strided.Bounds, name: str) -> Array:
        import h5py

        how = dataset.handle, dataset.dtype, cuts, name
        if dataset.strings != "variable" and (decoded := self._chunks.read(*how)) is not None:
            return decoded
        return np.asarray(h5py.Dataset(dataset.handle)[_strided.as_slices(cuts)])

    def _read_strings(self, dataset: Dataset, cuts: _strided.Bounds, name: str) -> Array:
        out = np.empty(_strided.counts(cuts), object)
        if not out.size:
            return out
        if dataset.strings == "variable":
            self._check_heap(dataset, name)
        # No two elements share their bytes, so a file cannot hold more of them than it has bytes.
        left = self._bytes.size
        rows = max(1, _STRINGS_AT_ONCE // max(1, prod(out.shape[1:])))
        start, stop, step = cuts[0] if cuts else (0, 1, 1)
        for at in range(0, -(-(stop - start) // step), rows):
            low = start + at * step
            here = ((low, min(stop, low + rows * step), step), *cuts[1:]) if cuts else ()
            with translated(self.path, name, "truncated or corrupt"):
                values = self._slice(dataset, here, name)
            flat = [
                v.encode("utf-8", "surrogateescape") if isinstance(v, str) else bytes(v) for v in values.reshape(-1)
            ]
            left -= sum(map(len, flat)) if dataset.strings == "variable" else 0
            if left < 0:
                raise FormatError(self.path, "its strings are longer than the file", tensor=name)
            part = np.empty(len(flat), object)
            part[:] = flat
            if cuts:
                out[at : at + rows] = part.reshape(values.shape)
            else:
                out[()] = flat[0]
        return out

    def _check_heap(self, dataset: Dataset, name: str) -> None:
        """Strings of one run: look at every reference, once, before HDF5 allocates what it claims."""
        if dataset.offset is not None and dataset.offset not in self._heaps and self._h5 is not None:
            size = prod(dataset.shape) * 16
            for piece in self._bytes.chunks(dataset.offset, size, tensor=name):
                self._h5.heap.check_values(piece, f"the tensor {name!r}")
            self._heaps.add(dataset.offset)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What ``model_config`` records about the layer or cell that owns these weights, and who wrote the file.

        Keys: those of :mod:`~weightport.formats.keras_config`, ``keras_version`` and ``backend``; where the weights'
        owners differ, only what they have in common.
        """
        common: dict[str, Any] | None = None
        for name in names:
            entry = self.weights.get(name)
            if entry is None or entry.layer < 0 or self._model is None:
                continue
            layer = self.layers[entry.layer]
            found = keras_config.facts(self._model, layer.name, layer.weights, entry.position, self._major())
            common = found if common is None else {k: v for k, v in common.items() if k in found and found[k] == v}
        return {**(common or {}), **self.attributes}

    def _major(self) -> int:
        first = self.attributes.get("keras_version", "1").split(".", 1)[0]
        return int(first) if first.isascii() and first.isdigit() and len(first) < 4 else 1

    def close(self) -> None:
        """Release the file."""
        self._closed = True
        if self._h5 is not None:
            self._h5.close()
            self._h5 = None
        self.datasets.clear()
        self._bytes.close()

    def __enter__(self) -> KerasH5Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _within(owner: str, name: str) -> bool:
    """Whether an optimizer's variable is named after a weight: by its path, or in Keras 3's way with underscores."""
    return owner in name or owner.replace("/", "_") in name


def sniff(path: str) -> bool:
    """Whether the file has HDF5's signature."""
    with contextlib.suppress(FormatError, OSError), ByteFile(path) as file:
        return superblock(file) is not None
    return False


def open_source(path: str, *, budget: Budget | None = None, file: Bytes | None = None) -> KerasH5Source:
    """Open an HDF5 file, Keras' or any other.

    Args:
        path: the file, or the one that it lies in, as ``file``.

    Raises:
        FormatError: truncated, corrupt, no HDF5 file, or one that leads out of itself.
    """
    budget = budget or Budget()
    if not budget.isolated:
        with contextlib.suppress(Crashes):
            return KerasH5Source(path, budget=budget, file=file)
    from weightport.formats._h5_isolated import IsolatedH5Source  # which is a KerasH5Source

    return IsolatedH5Source(path, budget=replace(budget, _spent={}), file=file)
