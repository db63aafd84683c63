"""SavedModels written anew from a TARGET SavedModel, without TensorFlow: other values for its variables, and variables
that become constants of its graph.

Promise: the folder is the old one or the complete new one (:mod:`~weightport.formats._folder`); of what is not
concerned, every byte is the TARGET's: the nodes and functions of the graph, its signatures and tags, assets and
``keras_metadata.pb``. Initial values go into the checkpoint in ``variables/``, and what is kept is copied there. A
variable whose rule says ``as: constant`` becomes a constant in every graph of the model. In a SavedModel of TensorFlow
1 it leaves the checkpoint, too; in one of TensorFlow 2 its object becomes a constant, and the checkpoint goes on
holding its value, for Keras, which makes the model's layers anew and looks for their values there. Limits:
``fingerprint.pb``, a digest of the old graph, is left out; a graph of more than 2 GiB is refused, and one in text.

Sources: tensorflow/python/saved_model/{loader_impl,load,constants}.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from weightport.errors import Error, FormatError, Problem, RefusedError
from weightport.formats import _beside, _fs, _tf_saver_edit, tf_bundle, tf_bundle_write, tf_saved_model
from weightport.formats import _tf_collections as collections
from weightport.formats._folder import atomic_folder
from weightport.formats._io import ByteFile
from weightport.formats._message import MOST_BYTES, Message, fields_of
from weightport.formats._proto import BYTES
from weightport.formats._tf_calls import function_attrs
from weightport.formats._tf_change import Change, Values, refuse_text
from weightport.formats._tf_freeze import Kind
from weightport.formats._tf_metagraph import MetaGraph
from weightport.formats._tf_saved_objects import OBJECTS, SavedObjects
from weightport.formats._tf_variables import Variable
from weightport.formats.tf_graph import VARIABLES, reference
from weightport.formats.tf_saved_model import FILES, SavedModelSource
from weightport.sizes import size
from weightport.tensors import Array, TensorSpec, Tiles

_FINGERPRINT = "fingerprint.pb"
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_VARIABLES = "variables"
#: All that a SavedModel may have in its folder: one with more in it is not replaced.
_OWN = {
    *FILES,
    FILES[0] + _beside.ENDING,
    _FINGERPRINT,
    _VARIABLES,
    "keras_metadata.pb",
    "tfhub_module.pb",
    "assets",
    "assets.extra",
    "debug",
}


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    like: str,
    constants: Collection[str] = (),
    kept: Collection[str] = (),
    shard_size: int | None = None,
) -> None:
    """Write the SavedModel.

    Args:
        path: its folder.
        specs: name -> dtype and shape, as in ``like``.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: goes into a file in the folder (:mod:`~weightport.formats._beside`).
        like: the SavedModel.
        constants: the variables that become constants.
        kept: what stays as it is in ``like``.
        shard_size: bytes that a data shard of the checkpoint should not pass.

    Raises:
        Error: a variable is used in a way that forbids a constant; all of these at once. Nothing was written.
        RefusedError: the graph would be larger than protobuf reads, ``like`` is text, or the folder holds something
            else.
    """
    with _job(path, Values(path, specs, tiles), like, constants, kept) as (job, message), atomic_folder(path) as made:
        job.copy_files(made)
        job.write_variables(made, shard_size)
        with open(os.path.join(made, FILES[0]), "wb") as handle:
            message.write(handle)
        _beside.put(os.path.join(made, FILES[0]), metadata, whole=True)


def check(
    path: str,
    specs: Mapping[str, TensorSpec],
    *,
    like: str,
    constants: Collection[str] = (),
    kept: Collection[str] = (),
    shard_size: int | None = None,  # noqa: ARG001
) -> None:
    """Raise what :func:`write` would, as far as the values play no role."""
    with _job(path, Values.none(path, specs), like, constants, kept):
        pass


@contextmanager
def _job(
    path: str, values: Values, like: str, constants: Collection[str], kept: Collection[str]
) -> Iterator[tuple[_Job, Message]]:
    """What is to be done, and the graph, as long as ``like`` is open."""
    _refuse(path, like)
    with tf_saved_model.open_source(like) as source:
        refuse_text(source.file)
        job = _Job(source, values, [name for name in values.specs if name not in kept], constants)
        message = job.message()
        if message.size > MOST_BYTES:
            what = f"its graph would be {size(message.size)}, and protobuf reads at most 2 GiB"
            raise RefusedError(Problem(path, what, "make some of the constants initial values: as: initial"))
        yield job, message


def _refuse(folder: str, like: str) -> None:
    """Refuse a destination that is not there to be replaced."""
    model = _fs.realpath(like if _fs.isdir(like) else os.path.dirname(like) or ".")
    final = _fs.realpath(folder)
    if final == model or final.startswith(os.path.join(model, "")) or model.startswith(os.path.join(final, "")):
        raise RefusedError(Problem(folder, f"is in the place of {like}, which is only read", "write to another path"))
    if _fs.lexists(final) and not _fs.isdir(final):
        raise RefusedError(Problem(folder, "is a file, not the folder of a SavedModel", "write to another path"))
    others = sorted(set(_fs.listdir(final)) - _OWN) if _fs.isdir(final) else []
    if others:
        what = f"holds something else than a SavedModel ({others[0]!r}), which would be lost"
        raise RefusedError(Problem(folder, what, "write to another path"))


class _Job:
    """One SavedModel, and its new values."""

    def __init__(self, source: SavedModelSource, values: Values, moved: list[str], constants: Collection[str]) -> None:
        self._source, self._values = source, values
        self._checkpoint = source.variables
        named = source.constants
        self._frozen = [name for name in moved if name in constants and name not in named]
        self._given = [name for name in moved if name not in named]
        self._replaced = [name for name in moved if name in named]
        if self._replaced and len(source.graphs) > 1:
            what = f"is a constant, and there are several graphs ({', '.join('+'.join(t) for t in source.tags)})"
            raise Error([Problem(f"tensor {name!r} of {source.path}", what) for name in self._replaced])

    # The graph -------------------------------------------------------------------------------------------------------

    def message(self) -> Message:
        """The SavedModel message."""
        out = Message()
        graphs = iter(self._source.graphs)
        missing = set(self._frozen)
        for found in fields_of(self._source.file, 0, self._source.file.size):
            if found.number == 2 and found.wire == BYTES:
                graph = next(graphs)
                made, done = self._graph(graph)
                missing -= done
                out.bytes_field(2, made if made is not None else found.content)
            else:
                out.copied(found)
        if missing:
            what = "is in no graph as a variable, so it cannot become a constant"
            raise Error([Problem(f"tensor {n!r} of {self._source.path}", what) for n in self._frozen if n in missing])
        return out

    def _graph(self, meta: MetaGraph) -> tuple[Message | None, set[str]]:
        """A MetaGraphDef with the constants in it (None: as it is), and the variables that it has of them."""
        objects = _Objects.of(meta, self._checkpoint, self._frozen)
        variables = objects.variables if objects is not None else self._saved(meta)
        frozen = [name for name in self._frozen if name in variables]
        moved = [*frozen, *(self._replaced if meta is self._source.meta else ())]
        if not moved:
            return None, set()
        change = Change(
            meta.graph,
            self._values,
            constants=self._source.constants,
            variables=variables,
            initializers=collections.initializers(meta.file, meta.start, meta.end),
            roots=objects.roots if objects is not None else lambda _: {},
            same=objects.same if objects is not None else {},
        )
        saved = _tf_saver_edit.saves(change.edit)
        change.make(moved, self._frozen)
        around = collections.Surroundings(meta.file, meta.start, meta.end, change.frozen, change.initial)
        change.finish(around)
        other = {} if objects is None else {OBJECTS: objects.message(change.frozen)}
        left = not saved or bool(_tf_saver_edit.saves(change.edit))
        return around.message(change.edit.message(*meta.place), saver=left, other=other), set(frozen)

    def _saved(self, meta: MetaGraph) -> Mapping[str, Variable]:
        """Name -> variable of a graph whose saver writes the keys of the checkpoint."""
        named, model = meta.variables.named, self._checkpoint
        if model is None or not model.object_based:
            return named
        keys = {name: model.keys_of(name)[0] for name in self._frozen}
        return {name: named[key] for name, key in keys.items() if key in named}

    # The files -------------------------------------------------------------------------------------------------------

    def copy_files(self, made: str) -> None:
        """Copy what is neither graph nor variables."""
        for name in sorted(_OWN - {*FILES, _FINGERPRINT, _VARIABLES}):
            here = os.path.join(self._source.path, name)
            if _fs.isdir(here):
                for above, folders, names in _fs.walk(here):
                    place = os.path.join(made, os.path.relpath(above, self._source.path))
                    os.mkdir(place)
                    for linked in (f for f in folders if _fs.islink(os.path.join(above, f))):
                        self._copy(os.path.join(above, linked), "")
                    for found in names:
                        self._copy(os.path.join(above, found), os.path.join(place, found))
            elif _fs.lexists(here):
                self._copy(here, os.path.join(made, name))

    def _copy(self, path: str, to: str) -> None:
        """Copy a regular file of the model, also one that a link in its folder leads to."""
        inside = os.path.join(_fs.realpath(self._source.path), "")
        if not _fs.realpath(path).startswith(inside) or (_fs.islink(path) and _fs.isdir(path)):
            hint = "copy the model with the files in place of the links first (cp -rL)"
            raise FormatError(path, "is a link to a folder, or out of the model's own folder", hint=hint)
        with ByteFile(path) as file, open(to, "xb") as handle:
            for chunk in file.chunks(0, file.size):
                handle.write(chunk)

    def write_variables(self, made: str, shard_size: int | None) -> None:
        """Write the checkpoint: new values, those that are kept, and what belongs to its objects."""
        model = self._checkpoint
        if model is None:
            return
        gone = () if model.object_based else set(self._frozen)
        theirs = model.specs()
        given = set(self._given)
        specs = {
            name: self._values.specs[name] if name in given else spec
            for name, spec in theirs.items()
            if name not in gone
        }
        if not specs:
            return
        folder = os.path.join(made, _VARIABLES)
        os.mkdir(folder)

        def tiles(name: str) -> Iterator[Array]:
            return self._values.tiles(name) if name in given else tf_bundle_write.tiles_of(model, name, theirs[name])

        prefix = os.path.join(folder, _VARIABLES)
        tf_bundle_write.write(prefix, specs, tiles, like=model.path, shard_size=shard_size)


class _Objects:
    """The objects of a graph of TensorFlow 2 that are to become constants."""

    def __init__(
        self,
        meta: MetaGraph,
        saved: SavedObjects,
        variables: Mapping[str, Variable],
        same: Mapping[str, str],
        ids: Mapping[int, str],
    ) -> None:
        self._meta, self._saved = meta, saved
        #: name -> the nodes that hold it; node -> the first of those
        self.variables, self.same = variables, same
        self._ids = ids  # object -> node

    @classmethod
    def of(cls, meta: MetaGraph, checkpoint: tf_bundle.BundleSource | None, names: Collection[str]) -> _Objects | None:
        """None where the graph has no objects, or nothing is to become a constant."""
        if checkpoint is None or not checkpoint.object_based or not names:
            return None
        for found in fields_of(meta.file, meta.start, meta.end):
            if found.number == OBJECTS and found.wire == BYTES:
                saved = SavedObjects(meta.file, found.value, found.end, meta.budget)
                return cls._matched(meta, saved, checkpoint, names)
        return None

    @classmethod
    def _matched(
        cls, meta: MetaGraph, saved: SavedObjects, checkpoint: tf_bundle.BundleSource, names: Collection[str]
    ) -> _Objects:
        children, key_of = checkpoint.objects()
        places, passed = meta.graph_facts.saved(), _passed(meta, saved)
        object_of = {key_of[theirs]: mine for theirs, mine in saved.variables(children).items() if theirs in key_of}
        problems, variables, same, ids = [], dict[str, Variable](), dict[str, str](), dict[int, str]()
        for name in names:
            # Keras' export wraps every variable twice: each is an object with a node, and a key in the checkpoint.
            found = []
            for key in checkpoint.keys_of(name):
                nodes = [node for body, node in places.get(key, ()) if not body]
                if len(nodes) == 1 and key in object_of:
                    found.append((nodes[0], object_of[key]))
            if len(found) != len(checkpoint.keys_of(name)):
                what = "cannot become a constant: the model does not say for certain which node and which object it is"
                problems.append(Problem(f"variable {name!r}", what, "make it an initial value"))
                continue
            for node, number in found:
                ids[number] = node
            handed = [node for _, number in found for node in passed.get(number, ())]
            holders = list(dict.fromkeys([*(node for node, _ in found), *handed]))
            same.update(dict.fromkeys(holders, holders[0]))
            variables[name] = Variable(holders, cuts=[""] * len(holders))
        if problems:
            raise Error(problems)
        return cls(meta, saved, variables, same, ids)

    def roots(self, frozen: Mapping[str, Kind]) -> dict[str, dict[int, Kind]]:
        """Function -> the arguments that are captured and frozen."""
        kinds = {number: frozen[node] for number, node in self._ids.items() if node in frozen}
        found: dict[str, dict[int, Kind]] = {}
        for function, bound in self._saved.bound.items():
            body = self._meta.graph.functions.get(function)
            if body is not None:
                first = len(body.arguments) - len(bound)
                found[function] = {first + n: kinds[at] for n, at in enumerate(bound) if at in kinds}
        return found

    def message(self, frozen: Collection[str]) -> Message:
        """The object graph, without those variables."""
        return self._saved.message({n: self.same[node] for n, node in self._ids.items() if node in frozen})


def _passed(meta: MetaGraph, saved: SavedObjects) -> dict[int, list[str]]:
    """Object -> the nodes of variables that the main graph hands to functions in its place.

    A Keras 3 model that ``tf.saved_model.save`` wrote is saved from other nodes than those that its functions get.
    """
    nodes = meta.graph.main.nodes
    found: dict[int, list[str]] = {}
    for node in nodes.values():
        if node.op not in _CALLS:
            continue
        data = [given for given in node.inputs if not given.startswith("^")]
        for attr, _, function in function_attrs(meta.graph, node):
            bound = saved.bound.get(function, []) if attr == "f" else []
            for given, number in zip(data[len(data) - len(bound) :], bound, strict=False):
                holder = nodes.get(reference(given)[0])
                if holder is not None and holder.op in VARIABLES:
                    found.setdefault(number, []).append(holder.name)
    return found
