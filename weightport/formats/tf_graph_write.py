"""TensorFlow graphs written anew from a TARGET graph, ``.pb`` and ``.meta``: its constants with other values, its
variables as constants or with other initial values. TensorFlow is not run.

Promise: everything in the graph that is not concerned keeps its bytes; values stream through; the file is the old one
or the complete new one; the same input gives the same bytes. A constant of a frozen graph gets its value whatever the
mapping says of it. A variable whose rule says ``as: constant`` becomes a constant: what read it reads that, and
initializers, savers and collections know it no more. With ``as: initial`` its initializer gives the new value; one that
is kept keeps its initializer. Limit: a GraphDef of more than 2 GiB is nothing that protobuf reads, so it is refused,
and so is a TARGET in text (``.pbtxt``); ``metadata`` goes into a file beside it.

Sources: tensorflow/core/framework/graph.proto, tensorflow/core/protobuf/meta_graph.proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from weightport.errors import Problem, RefusedError
from weightport.formats import _beside, _tf_collections, _tf_saver_edit, tf_frozen, tf_meta
from weightport.formats._message import MOST_BYTES, Message
from weightport.formats._temporaries import atomic_file
from weightport.formats._tf_change import Change, Values, refuse_text
from weightport.formats._tf_collections import Surroundings
from weightport.formats._tf_metagraph import MetaGraph
from weightport.formats._tf_tensors import GraphTensors
from weightport.sizes import size
from weightport.tensors import TensorSpec, Tiles


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    like: str,
    constants: Collection[str] = (),
    kept: Collection[str] = (),
) -> None:
    """Write the graph.

    Args:
        path: the file.
        specs: name -> dtype and shape, as in ``like``.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: goes into a file beside it (:mod:`~weightport.formats._beside`).
        like: the graph, a GraphDef or a MetaGraphDef.
        constants: the variables that become constants; others of ``specs`` get an initial value.
        kept: what stays as it is in ``like``.

    Raises:
        Error: a variable is used in a way that forbids a constant, or has no initializer; all of these at once.
            Nothing was written.
        RefusedError: the graph would be larger than protobuf reads, or ``like`` is text.
    """
    with _message(path, Values(path, specs, tiles), like, constants, kept) as message, atomic_file(path) as handle:
        message.write(handle)
    _beside.put(path, metadata)


def check(
    path: str,
    specs: Mapping[str, TensorSpec],
    *,
    like: str,
    constants: Collection[str] = (),
    kept: Collection[str] = (),
) -> None:
    """Raise what :func:`write` would, as far as the values play no role."""
    with _message(path, Values.none(path, specs), like, constants, kept):
        pass


@contextmanager
def _message(
    path: str, values: Values, like: str, constants: Collection[str], kept: Collection[str]
) -> Iterator[Message]:
    """The message to write, as long as ``like`` is open."""
    moved = [name for name in values.specs if name not in kept]
    if tf_frozen.sniff(like):
        with tf_frozen.open_source(like) as source:
            tensors = source.tensors
            refuse_text(tensors.graph.file)
            change = Change(tensors.graph, values, constants=tensors.constants, variables=tensors.variables.named)
            change.make(moved, constants)
            change.finish(None)
            yield _fitting(path, change.edit.message(0, tensors.graph.file.size), moved)
    else:
        with tf_meta.open_source(like) as meta:
            refuse_text(meta.meta.file)
            yield _fitting(path, edited(meta.meta, meta.tensors(), values, moved, constants), moved)


def edited(
    meta: MetaGraph,
    tensors: GraphTensors,
    values: Values,
    moved: Collection[str],
    constants: Collection[str],
) -> Message:
    """A MetaGraphDef with new values."""
    initializers = _tf_collections.initializers(meta.file, meta.start, meta.end)
    change = Change(
        meta.graph,
        values,
        constants=tensors.constants,
        variables=tensors.variables.named,
        initializers=initializers,
    )
    saved = _tf_saver_edit.saves(change.edit)
    change.make(moved, constants)
    surroundings = Surroundings(meta.file, meta.start, meta.end, change.frozen, change.initial)
    change.finish(surroundings)
    saver = not saved or bool(_tf_saver_edit.saves(change.edit))
    return surroundings.message(change.edit.message(*meta.place), saver=saver)


def _fitting(path: str, message: Message, moved: Collection[str]) -> Message:
    """A message, unless protobuf could not read it."""
    if message.size > MOST_BYTES:
        what = f"would be {size(message.size)}, and protobuf reads at most 2 GiB of a graph"
        hint = "write a checkpoint instead (-o tf-checkpoint:PREFIX), and let the graph keep its variables"
        many = "1 tensor does" if len(moved) == 1 else f"{len(moved):,} tensors do"
        raise RefusedError(Problem(path, f"{what}: {many} not fit in", hint))
    return message
