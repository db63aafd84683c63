"""Keras' weights-only ``.h5``, written so that Keras 2 and 3 load it with ``model.load_weights(path)``.

Promise: values stream through, a tile at a time, into contiguous datasets; the same input gives the same bytes; the
destination is the old file or the complete new one. What :class:`~weightport.formats.keras_h5.KerasH5Source` reads back
has the same names in the same order of layers. Limit: Keras loads such a file by position: the layers with weights must
come in the model's order, and each layer's weights in its own (trainable first).

Without ``like``, a layer is the first part of the names (``lstm`` of ``lstm/lstm_cell/kernel``), in the order in which
they first come; a name without ``/`` is a layer of its own. That is right where the model's layers are named so; a
nested model, of which the file must have one group, needs ``like``: an ``.h5`` of the target, whose layers, groups,
order and attributes (a full model's ``model_config`` too) are repeated, with other values. The optimizer's weights are
left out, unless some are given that are not the old ones: then all of them are written.

Keras tells by the suffix how to load: a ``.weights.h5`` by the model's objects (``layers/dense/vars/0``), any other by
layers. A file of one kind under the other's suffix would not load, and is refused.

Sources: tf_keras/src/saving/legacy/hdf5_format.py and keras/src/legacy/saving/legacy_h5_format.py
(``save_weights_to_hdf5_group``, ``load_weights_from_hdf5_group``, ``save_attributes_to_hdf5_group``).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from weightport.errors import Error, Problem, closest
from weightport.formats import _tiles, keras_archive, keras_h5, keras_objects
from weightport.formats._temporaries import atomic_path
from weightport.formats.keras_h5 import MODEL, OPTIMIZER, TOP_LEVEL, KerasH5Source
from weightport.tensors import TensorSpec, Tiles

#: The suffix of Keras 3's own weights files.
OBJECTS = ".weights.h5"
_OBJECT = re.compile(r"(?:.*/)?vars/\d+", re.DOTALL)
_ERRNO = re.compile(r"errno = (\d+), error message")
#: What HDF5 takes into one attribute of an object header, by Keras' measure.
LIMIT = 64512
#: Which Keras the file's conventions are those of: Keras looks only whether it is "1".
VERSION = "2.15.0"


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    like: str | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write a weights file, or with a full model as ``like`` a full model.

    Args:
        path: the destination.
        specs: name -> dtype and shape, in the order of the model's layers.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: becomes root attributes ``weightport.KEY``.
        like: an ``.h5`` file whose structure is repeated, or a ``.keras`` archive of which that of the weights is; its
            weights' names must be those of ``specs``.
        kept: names that have the values they have in ``like``.

    Raises:
        Error: a name that HDF5 cannot hold, names that are not those of ``like``, or values that are not as their spec
            says. Nothing was changed.
    """
    if like is None:
        for name in specs:
            _check(path, name)
        objects = _by_objects(path, specs)
        with _created(path) as file:
            if objects:
                for name, spec in specs.items():
                    _write_dataset(path, file, name, name, spec, tiles)
            else:
                _write_layers(path, file, specs, tiles)
            _annotate(path, file, metadata)
        return
    model = keras_archive.open_source(like) if keras_archive.sniff(like) else keras_h5.open_source(like)
    with model:
        places = places_in(path, specs, model, kept)
        _by_objects(path, places)
        with _created(path) as file:
            repeat(path, file, model, places, specs, tiles, metadata)


def repeat(
    path: str,
    file: Any,
    model: KerasH5Source | keras_archive.KerasSource,
    places: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    metadata: Mapping[str, str] | None,
) -> None:
    """A model's groups and attributes, with the values of ``places`` (path in the file -> tensor)."""
    weights = model if isinstance(model, KerasH5Source) else model.weights
    if not isinstance(weights, KerasH5Source):
        what = f"{model.path} has its weights in several files, whose structure is not repeated"
        raise Error(Problem(path, what, "give a .keras archive of the model as the target"))
    optimizer = OPTIMIZER if weights.format == "keras-h5" else keras_objects.OPTIMIZER
    carried = any(place.startswith(f"{optimizer}/") for place in places)
    _copy_structure(path, weights.file, file, "" if carried else optimizer)
    for place, name in places.items():
        _write_dataset(path, file, place, name, specs[name], tiles)
    _annotate(path, file, metadata)


def _check(path: str, name: str) -> None:
    parts = name.split("/")
    if not all(part and part != "." for part in parts) or "\0" in name:
        raise Error(f"{path}: tensor {name!r}: HDF5 cannot hold a tensor of this name")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise Error(f"{path}: tensor {name!r}: the name is no valid text") from None


def _by_objects(path: str, names: Collection[str]) -> bool:
    """Whether the file is one of Keras 3's, whose paths are those of the model's objects.

    Raises:
        Error: the suffix says so and the names are others, or the names are such and the suffix is not.
    """
    said = path.lower().endswith(OBJECTS)
    odd = next((name for name in names if not _OBJECT.fullmatch(name)), None)
    if said and odd is not None:
        what = f"Keras loads a {OBJECTS} by the model's objects, and {odd!r} is not named like 'layers/dense/vars/0'"
        raise Error(Problem(path, what, f"give a {OBJECTS} of the model as the target, or name it .h5"))
    if names and not said and odd is None:
        what = "the tensors are named by a model's objects, and Keras loads an .h5 by layers"
        raise Error(Problem(path, what, f"name it {OBJECTS}"))
    return said


# -- from names ----------------------------------------------------------------------------------------------------


def _write_layers(path: str, file: Any, specs: Mapping[str, TensorSpec], tiles: Tiles) -> None:
    layers: dict[str, list[tuple[str, str]]] = {}
    for name in specs:
        layer, slash, rest = name.partition("/")
        # What stands in the optimizer's group is named below it anyway; so is a bare name at the top level.
        below = slash and (layer == OPTIMIZER or (layer == TOP_LEVEL and "/" not in rest))
        entry = f"{rest if below else name}:0"
        layers.setdefault(layer, []).append((entry, name))
    named = [layer for layer in layers if layer not in (OPTIMIZER, TOP_LEVEL)]
    with _translated(path):
        _put_names(path, file, "layer_names", named)
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = VERSION.encode()
    # Sorted, as Keras creates them; what counts is the order in layer_names.
    for layer in sorted(layers):
        entries = layers[layer]
        with _translated(path):
            group = file.create_group(layer)
            _put_names(path, group, "weight_names", [entry for entry, _ in entries])
        for entry, name in entries:
            _write_dataset(path, group, entry, name, specs[name], tiles)


def _put_names(path: str, owner: Any, name: str, values: Sequence[str]) -> None:
    """A list of names as an attribute, in chunks (``name0``, ``name1`` ...) where one would not hold them."""
    raw = [value.encode("utf-8") for value in values]
    widest = max(map(len, raw), default=1)
    if widest > LIMIT:
        raise Error(f"{path}: a name of {widest} bytes, HDF5 holds {LIMIT}")
    if len(raw) * widest <= LIMIT:
        owner.attrs[name] = np.array(raw, f"S{widest}")
        return
    each = LIMIT // widest
    for number, at in enumerate(range(0, len(raw), each)):
        owner.attrs[f"{name}{number}"] = np.array(raw[at : at + each], f"S{widest}")


# -- like another file ---------------------------------------------------------------------------------------------


def places_in(
    path: str,
    specs: Mapping[str, TensorSpec],
    model: KerasH5Source | keras_archive.KerasSource,
    kept: Collection[str] = (),
) -> dict[str, str]:
    """Path in the file -> tensor, after checking that the two sets of names are one and the shapes the same."""
    every = model.specs()
    state = {name for name, spec in every.items() if spec.role != "weight"}
    carried = any(name in state and name not in kept for name in specs)
    theirs = {name: spec for name, spec in every.items() if carried or name not in state}
    given = [name for name in specs if carried or name not in state]
    problems = [
        Problem(path, f"no values for {name!r} of {model.path}", closest(name, specs))
        for name in theirs
        if name not in specs
    ]
    problems += [
        Problem(path, f"{model.path} has no weight {name!r}", closest(name, theirs))
        for name in given
        if name not in theirs
    ]
    problems += [
        Problem(path, f"{name!r} is {list(specs[name].shape)}, in {model.path} {list(spec.shape)}")
        for name, spec in theirs.items()
        if name in specs and specs[name].shape != spec.shape
    ]
    if problems:
        raise Error(problems)
    if not isinstance(model, KerasH5Source):
        return {raw: name for raw, name in model.raw_names().items() if name in theirs}
    if model.format != "keras-h5":
        return {name: name for name in theirs}
    root = f"{MODEL}/" if model.nested else ""
    places = {}
    for name in theirs:
        entry = model.weights[name]
        if entry.layer < 0:
            places[f"{OPTIMIZER}/{model.optimizer[entry.position]}"] = name
            continue
        layer = model.layers[entry.layer]
        places[f"{root}{layer.name}/{layer.weights[entry.position]}"] = name
    return places


def _copy_structure(path: str, source: Any, file: Any, without: str) -> None:
    """Groups and attributes, without those of one group. Only hard links are followed, each group once."""
    import h5py

    with _translated(path):
        waiting = [(source, file)]
        seen = {h5py.h5o.get_info(source.id).addr}
        while waiting:
            old, new = waiting.pop()
            for key in old.attrs:
                new.attrs.create(key, old.attrs[key], dtype=old.attrs.get_id(key).dtype)
            for name in old:
                link = old.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink) or (old == source and name == without):
                    continue
                child = old[name]
                if isinstance(child, h5py.Group) and h5py.h5o.get_info(child.id).addr not in seen:
                    seen.add(h5py.h5o.get_info(child.id).addr)
                    waiting.append((child, new.create_group(name)))


# -- datasets ------------------------------------------------------------------------------------------------------


def _write_dataset(path: str, group: Any, place: str, name: str, spec: TensorSpec, tiles: Tiles) -> None:
    strings = spec.dtype.kind in "OSU"
    if strings:
        stored = np.dtype(f"S{_tiles.width(path, name, spec, tiles)}")
    elif np.dtype(spec.dtype).isbuiltin == 2:  # ml_dtypes: opaque bytes and an attribute, as Keras 3 does
        stored = np.dtype(f"V{spec.dtype.itemsize}")
    else:
        stored = np.dtype(spec.dtype).newbyteorder("<")
    with _translated(path, name):
        dataset = group.create_dataset(place, spec.shape, dtype=stored, track_times=False)
        if stored.kind == "V":
            dataset.attrs["dtype"] = spec.dtype.name
    row = 0
    if strings:
        blocks = (np.array(v, stored).reshape(shape) for shape, v in _tiles.encoded(path, name, spec, tiles))
    else:
        blocks = (tile.view(stored) if stored.kind == "V" else tile for tile in _tiles.checked(path, name, spec, tiles))
    for block in blocks:
        if not block.size:
            continue
        with _translated(path, name):
            if block.ndim:
                dataset[row : row + len(block)] = block
                row += len(block)
            else:
                dataset[()] = block


def _annotate(path: str, file: Any, metadata: Mapping[str, str] | None) -> None:
    with _translated(path):
        for key, value in (metadata or {}).items():
            file.attrs[f"weightport.{key.removeprefix('weightport.')}"] = value


@contextlib.contextmanager
def _created(path: str) -> Iterator[Any]:
    with atomic_path(path) as temporary, written(path, temporary) as file:
        yield file


@contextlib.contextmanager
def written(path: str, place: str | BinaryIO) -> Iterator[Any]:
    """A new ``h5py.File``; ``path`` is what errors call it, ``place`` where it is."""
    import h5py

    with _translated(path):
        # A temporary file is locked already, by whoever made it.
        options = {"locking": False} if isinstance(place, str) else {}
        file = h5py.File(place, "w", libver="earliest", **options)
    try:
        yield file
    finally:
        with _translated(path):
            file.close()


@contextlib.contextmanager
def _translated(path: str, tensor: str | None = None) -> Iterator[None]:
    """What HDF5 reports while writing. Only its own calls stand in here: a caller's mistake is not dressed up."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        where = path if tensor is None else f"{path}: tensor {tensor!r}"
        said = str(error)
        number = _ERRNO.search(said)  # what the system said, amid what HDF5 was about to do
        text = os.strerror(int(number[1])) if number is not None else said.split("\n", 1)[0]
        raise Error(f"{where}: cannot be written: {text}") from error
