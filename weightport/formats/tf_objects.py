"""Names a person recognises for the tensors of a checkpoint, and what each of them is.

Object-based checkpoints (``tf.train.Checkpoint``, Keras' ``save_weights`` in TensorFlow's format, SavedModels of TF 2)
key their tensors by the path through the object graph that the saver happened to take. :func:`from_graph` names them:

1. a variable that the model reaches: its ``full_name`` (``lstm/lstm_cell/kernel``), if the checkpoint stores one, no
   other variable has the same, and it is no default (``Variable``); else its object path: the shortest path from the
   root that avoids mere collections (``variables/0``, ``keras_api/...``) and optimizers, the first in the graph's own
   order, so ``layer_with_weights-0/cell/kernel`` before ``layer-1/cell/kernel`` where the saver lists it first;
2. a slot: ``<variable's name>/.OPTIMIZER_SLOT/<optimizer's path>/<slot>``, also where newer optimizers keep their slots
   in lists and only the full name tells the variable;
3. an optimizer's other variables: the object path (``optimizer/iter``).

:func:`role_of` tells the same apart by name in name-based checkpoints. Limit: what an object is, is told by the names
of its children, which are those of the optimizers that TensorFlow 1.13 to 2.x, tf_keras and Keras 3 ship.

Sources: tensorflow/core/protobuf/trackable_object_graph.proto, tensorflow/python/checkpoint/{graph_view,save_util_v1,
trackable_utils}.py, tensorflow/python/training/slot_creator.py, keras/src/export/export_lib.py (which stores every
weight a second time, under ``_all_variables``).
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from weightport.formats._proto import BYTES, VARINT, fields, signed
from weightport.tensors import Budget, TensorSpec

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT = "/.OPTIMIZER_SLOT/"
_ATTRIBUTE = "/.ATTRIBUTES/"

# TF 1 optimizers name a slot after themselves, numbered; the last two are BERT's own Adam.
_TF1_SLOT = re.compile(
    r"(?:Adam|Momentum|RMSProp|Adagrad|AdagradDA|Adadelta|Ftrl|ProximalAdagrad|AdaMax|NadamW?|LazyAdam|LARSOptimizer)"
    r"(?:_\d+)?|adam_[mv]"
)
_TF1_OPTIMIZER = re.compile(r"beta[12]_power(?:_\d+)?")
_COUNTERS = {"global_step", "save_counter"}
#: Where random numbers stand: Keras 3's, and what ``tf.random.Generator`` calls its own.
_SEED, _STATE = "seed_generator_state", "_state_var"

_COLLECTIONS = {
    *("variables", "trainable_variables", "non_trainable_variables", "_all_variables", "keras_api"),
    *("layer_regularization_losses", "regularization_losses", "metrics", "signatures"),
}
_OPTIMIZER_REFERENCE = re.compile(r"_?(?:base_|inner_)?optimizers?")
_OPTIMIZER_CHILDREN = {"iter", "_iterations", "beta1_power", "beta2_power"}
# Longer paths are not spelt out: no name of a chain of a million objects is one that a person recognises.
_MAX_DEPTH = 100
_DEFAULT_NAME = re.compile(r"(?:.*/)?(?:Variable|ShardedVariable|StateVar)(?:_\d+)?")


def role_of(name: str, spec: TensorSpec, shape_of: Callable[[str], tuple[int, ...] | None]) -> str:
    """What a variable of a name-based checkpoint is. ``shape_of`` gives the shape of another variable, or None.

    A slot is told by its optimizer's suffix, only where the variable that it belongs to has the same shape.
    """
    scope, _, leaf = name.rpartition("/")
    if (leaf in _COUNTERS and not spec.shape and spec.dtype.kind in "iu") or leaf == _SEED:
        return "counter"
    if _TF1_OPTIMIZER.fullmatch(leaf) and not spec.shape:
        return "optimizer"
    if _TF1_SLOT.fullmatch(leaf):
        # An optimizer that was made inside a scope puts that scope in front of the variable's own name.
        for _ in range(_MAX_DEPTH):
            if not scope:
                break
            if shape_of(scope) == spec.shape:
                return "slot"
            scope = scope.partition("/")[2]
    return "weight"


@dataclass(slots=True)
class _Node:
    children: list[tuple[str, int]] = field(default_factory=list)
    #: (attribute, full name, key)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    #: (slot's name, node of the variable, node of the slot)
    slots: list[tuple[str, int, int]] = field(default_factory=list)


def from_graph(
    data: bytes,
    path: object,
    keys: Sequence[str],
    same: Callable[[str, str], bool],
    budget: Budget,
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Names for the keys of an object-based checkpoint.

    Args:
        data: the TrackableObjectGraph.
        path: the file that errors name.
        keys: every key of the checkpoint but the graph's own, in its order.
        same: whether two keys hold equal values (dtype, shape and checksum).
        budget: bounds the number of objects.

    Returns:
        name -> (key, role), in the order of the keys; and copy's key -> name, for copies that are not listed again.
    """
    nodes = _parse(data, path, budget)
    optimizers = _optimizers(nodes)

    def count(nbytes: int) -> None:
        budget.name(nbytes, len(data), path)

    natural = _paths(nodes, optimizers, count, collections=False)
    reached = _paths(nodes, optimizers, count, collections=True)
    known = set(keys)
    owner = {key: n for n, node in enumerate(nodes) for _, _, key in node.attributes if key in known}
    attribute = {key: (name, full) for node in nodes for name, full, key in node.attributes if key in known}

    copies = _copies(attribute, same)
    full_names = {
        key: full
        for key, (name, full) in attribute.items()
        if name == "VARIABLE_VALUE"
        and full
        and key not in copies
        and owner[key] in reached
        and not _DEFAULT_NAME.fullmatch(full)
    }
    shared = {full for full, count in Counter(full_names.values()).items() if count > 1}

    # Names wished for, first the variables' (slots are named after them).
    wished: dict[str, tuple[str, str]] = {}
    for key in keys:
        if key in attribute and attribute[key][0] != "VARIABLE_VALUE":
            wished[key] = (key, "constant")
        elif key not in owner and _ATTRIBUTE in key and not key.endswith(_SUFFIX):
            wished[key] = (key, "constant")  # the state of a table or an iterator, which saves it itself
        elif key not in owner:
            plain = key.removesuffix(_SUFFIX)
            wished[key] = (plain, "slot" if _SLOT in key else _plain_role(plain))
        elif owner[key] in reached and _SLOT not in key:
            full = full_names.get(key, "")
            name = full if full and full not in shared else natural.get(owner[key]) or key.removesuffix(_SUFFIX)
            role = _plain_role(natural.get(owner[key]) or reached[owner[key]] or name)
            wished[key] = (name, "counter" if name.rpartition("/")[2] == _SEED else role)
    variables = {
        attribute[key][1]: name for key, (name, role) in wished.items() if role == "weight" and key in attribute
    }
    of_node = {owner[key]: name for key, (name, _) in wished.items() if key in owner}
    slot_of = {slot: (variable, name) for node in nodes for name, variable, slot in node.slots}
    flat = {full.replace("/", "_"): name for full, name in variables.items() if full}
    for key in keys:
        if key not in wished:
            wished[key] = _optimizer_name(key, attribute[key][1], slot_of.get(owner[key]), of_node, variables, flat)

    counts = Counter(name for key, (name, _) in wished.items() if key not in copies)
    named: dict[str, tuple[str, str]] = {}
    aliases: dict[str, str] = {}
    for key in keys:
        name, role = wished[key]
        if key in copies:
            continue
        plain = key.removesuffix(_SUFFIX)
        for candidate in (name if counts[name] == 1 else plain, plain, key):
            name = candidate
            if name not in named:
                break
        while name in named:  # a key that is another variable's name
            name += "'"
        named[name] = (key, role)
    by_key = {key: name for name, (key, _) in named.items()}
    for copy, original in copies.items():
        aliases[copy] = by_key[original]
    return named, aliases


def objects(data: bytes, path: object, budget: Budget) -> tuple[list[list[tuple[str, int]]], dict[int, str]]:
    """The children (name, object) of every object of a TrackableObjectGraph, and object -> key of its value."""
    nodes = _parse(data, path, budget)
    keys = {n: key for n, node in enumerate(nodes) for name, _, key in node.attributes if name == "VARIABLE_VALUE"}
    return [node.children for node in nodes], keys


def _plain_role(path: str) -> str:
    if path.rpartition("/")[2] in _COUNTERS | {_SEED, _STATE} or path == "step" or "keras_api/metrics/" in path:
        return "counter"
    first = path.partition("/")[0]
    return "optimizer" if _OPTIMIZER_REFERENCE.fullmatch(first) else "weight"


def _optimizer_name(
    key: str,
    full: str,
    slot: tuple[int, str] | None,
    of_node: Mapping[int, str],
    variables: Mapping[str, str],
    flat: Mapping[str, str],
) -> tuple[str, str]:
    """Name and role of a variable that only an optimizer reaches."""
    plain = key.removesuffix(_SUFFIX)
    if _SLOT in plain:
        variable, tail = plain.split(_SLOT, 1)
        owner = of_node.get(slot[0], variable) if slot else variable
        return f"{owner}{_SLOT}{tail}", "slot"
    optimizer = re.split(r"/_variables/\d+$", plain)[0]
    if optimizer != plain and full:
        # tf_keras: "Adam/m/lstm/lstm_cell/kernel"; Keras 3: "adam/lstm_lstm_cell_kernel_momentum".
        kind, _, rest = full.partition("/")[2].partition("/")
        if rest in variables:
            return f"{variables[rest]}{_SLOT}{optimizer}/{kind}", "slot"
        joined = full.partition("/")[2]
        at = joined.rfind("_")
        for _ in range(_MAX_DEPTH):
            if at <= 0:
                break
            if joined[:at] in flat:
                return f"{flat[joined[:at]]}{_SLOT}{optimizer}/{joined[at + 1 :]}", "slot"
            at = joined.rfind("_", 0, at)
    return plain, "optimizer"


def _copies(attribute: Mapping[str, tuple[str, str]], same: Callable[[str, str], bool]) -> dict[str, str]:
    """Key -> key of the variable it repeats: Keras 3's ``export`` stores ``_all_variables`` beside the originals."""
    originals: dict[str, list[str]] = {}
    for key, (_, full) in attribute.items():
        if full and not key.startswith("_all_variables/"):
            originals.setdefault(full, []).append(key)
    found = {}
    for key, (_, full) in attribute.items():
        if key.startswith("_all_variables/"):
            candidates = originals.get(full, [])
            if len(candidates) == 1 and same(key, candidates[0]):
                found[key] = candidates[0]
    return found


def _optimizers(nodes: list[_Node]) -> set[int]:
    found = {
        n
        for n, node in enumerate(nodes)
        if n and (node.slots or any(name in _OPTIMIZER_CHILDREN for name, _ in node.children))
    }
    for node in nodes:
        found.update(child for name, child in node.children if child and _OPTIMIZER_REFERENCE.fullmatch(name))
    return found


def _paths(
    nodes: list[_Node], optimizers: set[int], count: Callable[[int], None], *, collections: bool
) -> dict[int, str]:
    """Node -> shortest path from the root, not through optimizers, nor (unless asked for) through collections.

    The path is empty for the root, and for what lies too deep to be named by it. ``count`` is told the length of each.
    """
    paths = {0: ""}
    queue = deque([(0, 0)]) if nodes else deque[tuple[int, int]]()
    while queue:
        at, depth = queue.popleft()
        for name, child in nodes[at].children:
            if child in paths or child in optimizers or (name in _COLLECTIONS and not collections):
                continue
            paths[child] = "" if depth >= _MAX_DEPTH else f"{paths[at]}/{name}" if paths[at] else name
            count(len(paths[child]))
            queue.append((child, depth + 1))
    return paths


def _parse(data: bytes, path: object, budget: Budget) -> list[_Node]:
    nodes: list[_Node] = []
    for number, wire, body in fields(data, path):
        if number != 1 or wire != BYTES or not isinstance(body, bytes):
            continue
        node = _Node()
        for kind, _, part in fields(body, path):
            if not isinstance(part, bytes):
                continue
            if kind == 1:
                numbers, texts = _small(part, path)
                node.children.append((texts.get(2, ""), numbers.get(1, 0)))
            elif kind == 2:
                _, texts = _small(part, path)
                node.attributes.append((texts.get(1, ""), texts.get(2, ""), texts.get(3, "")))
            elif kind == 3:
                numbers, texts = _small(part, path)
                node.slots.append((texts.get(2, ""), numbers.get(1, 0), numbers.get(3, 0)))
        nodes.append(node)
        budget.check("tensors", len(nodes), path)
    for node in nodes:  # references to objects that are not there lead nowhere
        node.children = [(name, child) for name, child in node.children if 0 <= child < len(nodes)]
        node.slots = [s for s in node.slots if 0 <= s[1] < len(nodes) and 0 <= s[2] < len(nodes)]
    return nodes


def _small(data: bytes, path: object) -> tuple[dict[int, int], dict[int, str]]:
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    for number, wire, value in fields(data, path):
        if wire == VARINT and isinstance(value, int):
            numbers[number] = signed(value)
        elif isinstance(value, bytes):
            texts[number] = value.decode("utf-8", "backslashreplace")
    return numbers, texts
