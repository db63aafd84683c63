"""A variable of a finished TensorFlow graph becomes a constant: everything that read it reads the constant.

Promise: :meth:`Surgery.problems` finds every use that is no read before anything changes, and :meth:`Surgery.undo`
puts every edge back. Reference variables and resource variables; handles captured by loops, branches and functions of
either control flow.
Limits: a session that has run the graph keeps its own copy of it, without the changes. The variable's op and
initializer stay in the graph unread, so that a Saver or an initializer made before still works: the Saver saves the
constant's value under the variable's name, and restoring it changes nothing that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weightport.errors import Problem
from weightport.targets import _tf_functions as functions
from weightport.targets._tf_values import tensorflow

_RESTORES = ("RestoreV2", "Restore", "RestoreSlice")
# DisableCopyOnRead: a Saver asks a resource variable for its own buffer instead of a copy.
_HARMLESS = (
    *("VarIsInitializedOp", "IsVariableInitialized", "DestroyResourceOp", "DestroyTemporaryVariable"),
    "DisableCopyOnRead",
)

_BUILD = "build the scope with the custom getter instead"


class Edits:
    """Changes to a graph's edges and objects, each with its way back."""

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._back:
            self._back.pop()()

    def later(self, back: Callable[[], None]) -> None:
        """Remember how to take back a change that was made."""
        self._back.append(back)

    def rewire(self, op: Any, position: int, tensor: Any) -> None:
        """Give an op another tensor as that input."""
        before = op.inputs[position]
        op._update_input(position, tensor)
        self.later(lambda: op._update_input(position, before))

    def attribute(self, target: Any, attribute: str, value: Any) -> None:
        """Set a Python attribute, if the object has it."""
        if hasattr(target, attribute):
            before = getattr(target, attribute)
            setattr(target, attribute, value)
            self.later(lambda: setattr(target, attribute, before))

    def set_list(self, target: list[Any], items: Iterable[Any]) -> None:
        """Replace a list's items in place."""
        before = list(target)
        target[:] = items
        self.later(lambda: target.__setitem__(slice(None), before))

    def consumers(self, old: Any, new: Any) -> None:
        """Everything that takes ``old`` takes ``new``."""
        for op in old.consumers():
            for i, tensor in enumerate(op.inputs):
                if tensor is old:
                    self.rewire(op, i, new)

    def followers(self, old: Any, new: Any) -> None:
        """Everything that waits for the op ``old`` waits for the op ``new``."""
        for op in list(old._control_outputs):
            self.control_inputs(op, [new if c is old else c for c in op.control_inputs])

    def control_inputs(self, op: Any, new: list[Any]) -> None:
        """Give an op other ops to wait for."""
        before = list(op.control_inputs)
        self._set_control_inputs(op, new)
        self.later(lambda: self._set_control_inputs(op, before))

    def uncolocate(self, op: Any, groups: set[bytes]) -> None:
        """Take an op out of the colocation groups of variables that it no longer reads."""
        try:
            before = list(op.get_attr("_class"))
        except ValueError:
            return
        after = [g for g in before if g not in groups]
        if after != before:
            self._set_groups(op, after)
            self.later(lambda: self._set_groups(op, before))

    @staticmethod
    def _set_control_inputs(op: Any, inputs: list[Any]) -> None:
        op._remove_all_control_inputs()
        op._add_control_inputs(inputs)

    @staticmethod
    def _set_groups(op: Any, groups: list[bytes]) -> None:
        tf = tensorflow()
        if groups:
            op._set_attr("_class", tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(s=groups)))
        else:
            op._clear_attr("_class")


class Surgery:
    """Makes constants of variables, all at once."""

    def __init__(self, graph: Any, variables: Iterable[Any]) -> None:
        self.graph = graph
        self.variables = list(variables)
        self._initializers: dict[str, list[Any]] = {}
        self._inputs: dict[str, tuple[Any, dict[int, functions.Kind]]] = {}
        self._problems: list[Problem] = []
        for variable in self.variables:
            self._look_at(variable)
        for op, inputs in self._inputs.values():
            try:
                self._retyped(op, inputs)
            except functions.UnreadableError as error:
                self._problems.append(
                    Problem(f"{op.type} {op.name!r}", f"uses a constant in a way that is no read: {error}", _BUILD)
                )

    def problems(self) -> list[Problem]:
        """Every use of the variables that stands in the way. Nothing was changed to find them."""
        return self._problems

    def _look_at(self, variable: Any) -> None:
        output = variable.op.outputs[0]
        left = {variable.initializer.name} if variable.initializer is not None else set()
        name = variable.name.rsplit(":", 1)[0]
        if output.dtype.base_dtype != tensorflow().resource:
            for op in output.consumers():
                for i, tensor in enumerate(op.inputs):
                    if tensor is output and op._input_types[i]._is_ref_dtype and op.name not in left:
                        self._refuse(name, op)
            return
        handles = [output]
        seen = set()
        kind = functions.Kind(variable.dtype.base_dtype.as_datatype_enum, tuple(variable.shape.as_list()))
        while handles:
            handle = handles.pop()
            if handle.name in seen:
                continue
            seen.add(handle.name)
            for op in handle.consumers():
                inputs = [i for i, tensor in enumerate(op.inputs) if tensor is handle]
                if op.type in functions.PASSES or (op.type in functions.READS and inputs == [0]):
                    self._inputs.setdefault(op.name, (op, {}))[1].update(dict.fromkeys(inputs, kind))
                    self._initializers.setdefault(op.name, []).append(variable.initializer)
                    for k in functions.handle_outputs(op.type, dict.fromkeys(inputs, kind)):
                        handles.append(op.outputs[k])
                elif op.name not in left:
                    self._refuse(name, op)

    def _refuse(self, name: str, op: Any) -> None:
        if op.type in _HARMLESS or _restores(op):
            return
        if "Apply" in op.type:
            what = f"{op.type} {op.name!r} already exists"
            hint = "make constants before the optimizer is built"
        elif op.type.startswith(("Assign", "Scatter", "ResourceScatter", "CountUpTo", "ResourceCountUpTo")):
            what = f"{op.type} {op.name!r} writes it"
            hint = "a constant cannot be written: make it an initial value, or make constants before that op is built"
        else:
            what = f"{op.type} {op.name!r} uses it in a way that is no read"
            hint = _BUILD
        self._problems.append(Problem(f"variable {name!r}", what, hint))

    def _definition(self, name: str) -> Any:
        function = self.graph._get_function(name)
        if function is None:
            raise functions.UnreadableError(f"function {name!r} is not in the graph")
        found = getattr(function, "cached_definition", None)
        return found if found is not None else function.definition

    def _retyped(self, op: Any, inputs: Mapping[int, functions.Kind]) -> tuple[Any, list[Any]]:
        node = type(op.node_def)()
        node.CopyFrom(op.node_def)
        if op.type in functions.READS:
            functions.read(node, inputs[0].dtype)
            return node, []
        return node, functions.retype(node, inputs, self._definition)

    def operate(self, constants: Mapping[str, Any], edits: Edits) -> None:
        """Put the constants (variable name -> tensor) in the variables' place; every change goes through ``edits``."""
        tf = tensorflow()
        values: dict[str, Any] = {}
        groups: set[bytes] = set()
        for variable in self.variables:
            output = variable.op.outputs[0]
            constant = constants[variable.name.rsplit(":", 1)[0]]
            groups.add(b"loc:@" + variable.op.name.encode())
            if output.dtype.base_dtype == tf.resource:
                values[output.name] = constant
                # Later uses of the Python object read these instead of the handle.
                edits.attribute(variable, "_cached_value", constant)
                edits.attribute(variable, "_graph_element", constant)
            else:
                edits.attribute(variable, "_as_graph_element", lambda constant=constant: constant)
                for op in output.consumers():
                    for i, tensor in enumerate(op.inputs):
                        if tensor is output and not op._input_types[i]._is_ref_dtype:
                            edits.rewire(op, i, constant)
        todo = list(self._inputs.values())
        while todo:  # the old control flow makes an op before the Enter that brings its input
            later = []
            for op, inputs in todo:
                if all(op.inputs[i].name in values for i in inputs):
                    self._replace(tf, op, inputs, values, edits)
                else:
                    later.append((op, inputs))
            todo = later
        if not groups:
            return
        written = {v.initializer.name for v in self.variables if v.initializer is not None}
        for op in self.graph.get_operations():
            if op.name not in written and not _restores(op):
                edits.uncolocate(op, groups)

    def _replace(
        self, tf: Any, op: Any, inputs: Mapping[int, functions.Kind], values: dict[str, Any], edits: Edits
    ) -> None:
        """Make the op that takes the value and give it all that depended on the one that takes the handle."""
        if op.type == "ReadVariableOp":
            copy = values[op.inputs[0].name].op  # what comes instead of the handle is what was read
            edits.consumers(op.outputs[0], values[op.inputs[0].name])
        else:
            copy = self._copy(tf, op, inputs, values)
            handles = functions.handle_outputs(op.type, inputs)
            for k, output in enumerate(op.outputs):
                if k in handles:
                    values[output.name] = copy.outputs[k]
                else:
                    edits.consumers(output, copy.outputs[k])
        edits.followers(op, copy)
        if op._get_control_flow_context() is None:
            # The model may hold the old op's tensor and use it yet: it gives the constant too, by way of the variable.
            edits.control_inputs(op, [*op.control_inputs, *self._initializers[op.name]])

    def _copy(self, tf: Any, op: Any, inputs: Mapping[int, functions.Kind], values: Mapping[str, Any]) -> Any:
        node, library = self._retyped(op, inputs)
        node.name = node.op
        del node.input[:]
        feeds, inner = {}, {}
        with tf.control_dependencies(None), tf.compat.v1.name_scope(None):
            for i, tensor in enumerate(op.inputs):
                tensor = values[tensor.name] if i in inputs else tensor
                if tensor.op._get_control_flow_context() is not None:
                    # Importing would see an op outside a loop that takes something inside it, before it can be told
                    # that the op is inside too. So it is imported with a stand-in.
                    inner[i] = tensor
                    tensor = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, f"{op.name}/pretrained/stand_in")
                node.input.append(f"input_{i}:0")
                feeds[f"input_{i}:0"] = tensor
            graph_def = tf.compat.v1.GraphDef(node=[node])
            graph_def.library.function.extend(library)
            graph_def.versions.CopyFrom(self.graph.graph_def_versions)
            (copy,) = tf.graph_util.import_graph_def(
                graph_def, input_map=feeds, return_elements=[node.name], name=f"{op.name}/pretrained"
            )
        copy._set_control_flow_context(op._get_control_flow_context())
        copy._add_control_inputs(op.control_inputs)
        for i, tensor in inner.items():
            copy._update_input(i, tensor)
        return copy


def _restores(op: Any) -> bool:
    """Whether the op assigns what a Saver reads from a checkpoint."""
    if op.type not in ("Assign", "AssignVariableOp"):
        return False
    source = op.inputs[1].op
    while source.type == "Identity":
        source = source.inputs[0].op
    return source.type in _RESTORES
