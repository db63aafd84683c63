"""What a graph saves and restores, without the variables that became constants; and nodes that nobody needs any more.

Promise: the savers that are left save and restore the other variables, under their names, from checkpoints old and
new; one that has nothing left to save does nothing. Limit: the main graph only. Savers of object-based checkpoints
write from inside functions: they go on saving a constant's value, and what they restore of it goes nowhere.

Sources: tensorflow/core/ops/io_ops.cc, tensorflow/python/training/saver.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from weightport.errors import FormatError
from weightport.formats._tf_edit import GraphEdit, attr_types, number_value, strings_value, type_value, types_value
from weightport.formats._tf_variables import SAVES
from weightport.formats.tf_graph import VARIABLES, reference

_MAX_CHAIN = 64
# What a graph may be fed by: never removed.
_FED = {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"}


def prune(edit: GraphEdit, starts: Iterable[str], pinned: Callable[[str], bool]) -> None:
    """Remove nodes of the main graph that were there for others that need them no more, and what was there for them."""
    main = edit.main
    users = {name: len(found) for name, found in main.users().items()}
    todo = list(starts)
    while todo:
        name = todo.pop()
        node = main.body.nodes.get(name)
        if node is None or name in main.removed or users.get(name) or pinned(name):
            continue
        if node.op in VARIABLES or node.op in _FED:
            continue
        given = main.inputs(name)
        main.removed.add(name)
        for other in given:
            at = reference(other.removeprefix("^"))[0]
            users[at] -= 1
            todo.append(at)


def saves(edit: GraphEdit) -> int:
    """How many operations of the main graph save something."""
    return sum(edit.main.op(name) in SAVES for name in edit.main.body.nodes)


def forget(edit: GraphEdit, gone: Collection[str]) -> list[str]:
    """Take variables out of the savers. Returns nodes that may not be needed any more."""
    left: list[str] = []
    main = edit.main
    restores = {name for name in main.body.nodes if main.op(name) == "RestoreV2"}
    before: set[tuple[str, int]] = set()
    takers: dict[tuple[str, int], list[str]] = {}
    for name, node in main.body.nodes.items():
        for given in node.inputs:
            if reference(given)[0] in restores:
                before.add(reference(given))
        for given in main.inputs(name):
            if reference(given)[0] in restores:
                takers.setdefault(reference(given), []).append(name)
    for name in main.body.nodes:
        if main.op(name) in SAVES:
            left.extend(_unsaved(edit, name, gone))
        elif name in restores:
            _unrestored(edit, name, before, takers)
    return left


def _unsaved(edit: GraphEdit, name: str, gone: Collection[str]) -> list[str]:
    first, sliced = SAVES[edit.main.op(name)]
    data, waits = _split(edit.main.inputs(name))
    keep = [n for n, tensor in enumerate(data[first:]) if _origin(edit, tensor) not in gone]
    if len(keep) >= len(data) - first:
        return []
    if not keep:
        edit.main.edit(name).becomes("NoOp", waits, bare=True)
        _unmerged(edit, data[0])
        return [reference(i)[0] for i in data[:first]]
    lists = _left(edit, data[1 : 3 if sliced else 2], keep)
    if lists is None:
        return []  # names that are computed: it goes on saving the constant
    attr = "dtypes" if edit.main.op(name) == "SaveV2" else "T"
    types = attr_types(edit.graph, edit.main.body.nodes[name], attr)
    if len(types) != len(data) - first:
        what = f"the save operation {name!r} has {len(types)} types for {len(data) - first} tensors"
        raise FormatError(edit.graph.path, what, offset=edit.main.body.nodes[name].start)
    inputs = [data[0], *lists, *(data[first + n] for n in keep), *waits]
    edit.main.edit(name).becomes(edit.main.op(name), inputs, {attr: types_value([types[n] for n in keep])})
    return []


def _unrestored(
    edit: GraphEdit, name: str, before: Collection[tuple[str, int]], takers: Mapping[tuple[str, int], list[str]]
) -> None:
    """Without the outputs that nobody takes since the variable is gone."""
    types = attr_types(edit.graph, edit.main.body.nodes[name], "dtypes")
    keep = [n for n in range(len(types)) if (name, n) in takers or (name, n) not in before]
    data, waits = _split(edit.main.inputs(name))
    if len(keep) == len(types) or not keep or len(data) < 3:
        return
    lists = _left(edit, data[1:3], keep)
    if lists is None:
        return
    inputs = [data[0], *lists, *data[3:], *waits]
    edit.main.edit(name).becomes("RestoreV2", inputs, {"dtypes": types_value([types[n] for n in keep]), **_NO_SHAPES})
    for new, old in enumerate(keep):
        for user in takers.get((name, old), ()) if new != old else ():
            changes = edit.main.edit(user)
            changes.inputs = [
                (f"{name}:{new}" if new else name) if not i.startswith("^") and reference(i) == (name, old) else i
                for i in changes.inputs
            ]


def _unmerged(edit: GraphEdit, prefix: str) -> None:
    """A shard that is not written is not merged with the others."""
    for name in edit.main.body.nodes:
        if edit.main.op(name) != "MergeV2Checkpoints":
            continue
        data, waits = _split(edit.main.inputs(name))
        pack = reference(data[0])[0] if data else ""
        if edit.main.op(pack) != "Pack":
            continue
        left = [i for i in edit.main.inputs(pack) if i != prefix]
        count = sum(not i.startswith("^") for i in left)
        if not count:
            edit.main.edit(name).becomes("NoOp", waits, bare=True)
        elif len(left) < len(edit.main.inputs(pack)):
            edit.main.edit(pack).becomes("Pack", left, {"N": number_value(count), **_NO_SHAPES})


def _left(edit: GraphEdit, given: Sequence[str], keep: Sequence[int]) -> list[str] | None:
    """Inputs that have only those of the strings that ``given`` have; None, and no change, if one is no constant."""
    found = [(name, values) for name in given if (values := _strings(edit, name, keep)) is not None]
    if len(found) < len(given):
        return None
    return [_constant(edit, name, values) for name, values in found]


def _strings(edit: GraphEdit, given: str, keep: Sequence[int]) -> list[bytes] | None:
    """Those of the strings of an input; None if they are no constant."""
    name = reference(given)[0]
    if edit.main.op(name) != "Const":
        return None
    values = edit.graph.const(edit.main.body.nodes[name], name).read(edit.graph.file).reshape(-1).tolist()
    if len(values) <= max(keep) or not all(isinstance(value, bytes) for value in values):
        return None
    return [values[n] for n in keep]


def _constant(edit: GraphEdit, given: str, values: list[bytes]) -> str:
    """An input that has those strings: the constant itself, or another one if it has other users."""
    name = reference(given)[0]
    value = strings_value(values)
    if len(edit.main.users().get(name, ())) == 1:
        edit.main.edit(name).becomes("Const", attrs={"value": value, **_NO_SHAPES})
        return given
    fresh = edit.fresh(f"{name}/left")
    edit.add_node(fresh, "Const", attrs={"dtype": type_value(7), "value": value})
    return fresh


def _origin(edit: GraphEdit, given: str) -> str | None:
    at = reference(given)[0]
    for _ in range(_MAX_CHAIN):
        inputs = edit.main.inputs(at)
        if edit.main.op(at) not in ("Identity", "ReadVariableOp") or not inputs:
            return at
        at = reference(inputs[0])[0]
    return None


def _split(inputs: Iterable[str]) -> tuple[list[str], list[str]]:
    """Data and control inputs."""
    data: list[str] = []
    waits: list[str] = []
    for given in inputs:
        (waits if given.startswith("^") else data).append(given)
    return data, waits


_NO_SHAPES = {"_output_shapes": None}
