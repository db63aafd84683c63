"""Functions of a TensorFlow graph library, rewritten so that they take a value where they took a variable's handle.

Promise: pure (FunctionDef in, new FunctionDefs out), through any nesting of while, if and call.
Limit: a function that writes the variable, or does with its handle what is not known here to be a read, is
:class:`UnreadableError`.
Source of the op signatures: TensorFlow's ``core/ops/{resource_variable,array,functional}_ops.cc``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from weightport.formats import _tf_uses
from weightport.formats._tf_uses import CALLERS

#: Ops that hand a handle on: rewritten, each output that was the handle is the value.
PASSES = (*_tf_uses.PASSES, *CALLERS)
#: Ops that read a variable through its handle.
READS = tuple(_tf_uses.READS)

_fresh = itertools.count()


class Kind(NamedTuple):
    """What comes instead of a handle: a value of this DataType and shape."""

    dtype: int
    shape: tuple[int, ...]

    def put_shape(self, shape: Any) -> None:
        """Write the shape into a TensorShapeProto."""
        shape.Clear()
        for size in self.shape:
            shape.dim.add(size=size)


class UnreadableError(Exception):
    """A use of the handle that is no read. ``str()`` names the op."""


def handle_outputs(op_type: str, inputs: Mapping[int, Kind]) -> dict[int, Kind]:
    """Which outputs of a passing op are the handles that came in as ``inputs`` (input -> kind; output -> kind)."""
    if op_type in ("While", "StatelessWhile"):
        return dict(inputs)
    if op_type == "Switch":
        return dict.fromkeys((0, 1), inputs[0])
    return {0: inputs[0]} if op_type in ("Identity", "Enter") else {}


def retype(node: Any, inputs: Mapping[int, Kind], definition: Callable[[str], Any]) -> list[Any]:
    """Change a passing NodeDef in place to take values for those inputs.

    Args:
        node: the NodeDef of an op of :data:`PASSES`.
        inputs: input position -> kind of the value that comes instead of the handle.
        definition: the FunctionDef of that name.

    Returns:
        The functions that it calls from now on.

    Raises:
        UnreadableError: the callee does more than read.
    """
    node.attr.pop("_class", None)
    if node.op not in CALLERS:
        for kind in inputs.values():
            node.attr["T"].type = kind.dtype
        return []
    types, first, functions = CALLERS[node.op]
    arguments = {i - first: kind for i, kind in inputs.items()}
    for i, kind in arguments.items():
        node.attr[types].list.type[i] = kind.dtype
        if functions[0] == "body" and i < len(node.attr["output_shapes"].list.shape):
            kind.put_shape(node.attr["output_shapes"].list.shape[i])
    node.attr.pop("_read_only_resource_inputs", None)
    made: list[Any] = []
    for attribute in functions:
        value = node.attr[attribute]
        callees = [value.func] if value.HasField("func") else list(value.list.func)
        for callee in callees:
            changed, returned = with_values(definition(callee.name), arguments, definition, made)
            if returned != (arguments if attribute == "body" else {}):
                raise UnreadableError(f"{node.op} {node.name!r} returns it")
            callee.name = changed.signature.name
    return made


def with_values(
    function: Any, arguments: Mapping[int, Kind], definition: Callable[[str], Any], made: list[Any]
) -> tuple[Any, dict[int, Kind]]:
    """A copy of the function that takes values for those arguments (position -> kind), appended to ``made``.

    Returns:
        The copy, and the outputs (position -> kind) that hand a value on.

    Raises:
        UnreadableError: it does more than read.
    """
    new = type(function)()
    new.CopyFrom(function)
    new.signature.name = f"{function.signature.name}_pretrained_{next(_fresh)}"
    handles: dict[str, Kind] = {}
    for i, kind in arguments.items():
        argument = new.signature.input_arg[i]
        argument.type = kind.dtype
        argument.ClearField("handle_data")
        handles[argument.name] = kind
        new.arg_attr.pop(i, None)
        kind.put_shape(new.arg_attr[i].attr["_output_shapes"].list.shape.add())
        new.resource_arg_unique_id.pop(i, None)

    renamed: dict[str, str] = {}
    waiting = list(new.node_def)
    progress = True
    while progress:  # a FunctionDef's nodes stand in no promised order
        progress, still = False, []
        for node in waiting:
            inputs = {i: handles[name] for i, name in enumerate(node.input) if name in handles}
            if not inputs:
                still.append(node)
                continue
            progress = True
            if node.op in PASSES:
                made.extend(retype(node, inputs, definition))
                for k, kind in handle_outputs(node.op, inputs).items():
                    handles[f"{node.name}:output:{k}"] = kind
            elif node.op in READS and list(inputs) == [0]:
                renamed.update(read(node, inputs[0].dtype))
            else:
                raise UnreadableError(f"{node.op} {node.name!r}")
        waiting = still
    for node in new.node_def:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    returned = {}
    for k, output in enumerate(new.signature.output_arg):
        source = new.ret[output.name]
        new.ret[output.name] = renamed.get(source, source)
        if source in handles:
            returned[k] = handles[source]
            output.type = handles[source].dtype
            output.ClearField("handle_data")
    made.append(new)
    return new, returned


def read(node: Any, dtype: int) -> dict[str, str]:
    """Change a NodeDef of an op of :data:`READS` in place into the op that does the same to a value.

    Returns:
        The output's name inside a function, where it is another: old -> new.

    Raises:
        UnreadableError: a gather with batch dimensions.
    """
    kind = node.op
    for attribute in ("_class", "dtype"):
        node.attr.pop(attribute, None)
    if kind == "ReadVariableOp":
        node.op = "Identity"
        node.attr["T"].type = dtype
        return {f"{node.name}:value:0": f"{node.name}:output:0"}
    if kind == "VariableShape":
        node.op = "Shape"
        node.attr["T"].type = dtype
    elif kind == "ResourceGatherNd":
        node.op = "GatherNd"
        node.attr["Tparams"].type = dtype
    else:
        # Gather needs no axis, and so no further node, which would have to stand in the right frame of a loop.
        if node.attr["batch_dims"].i:
            raise UnreadableError(f"{kind} {node.name!r} has batch dimensions")
        node.attr.pop("batch_dims")
        node.op = "Gather"
        node.attr["Tparams"].type = dtype
    return {}
