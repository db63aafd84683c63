"""What a graph does with a variable, use by use: which are reads, which fall away with the variable, which forbid a
constant.

Promise: every operation that a reference or a handle can be given to is in one class; what is not known is a use that
forbids. Source of the signatures: TensorFlow's ``core/ops/{state,training,resource_variable,control_flow,functional}_
ops.cc``; of the names of an optimizer's operations ``Optimizer.apply_gradients`` in python/training/optimizer.py, which
opens a scope ``update_VARIABLE`` for them.
"""

from __future__ import annotations

import re

#: Caller -> attribute of the input types, first input that is an argument, attributes that name the functions.
CALLERS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    **dict.fromkeys(("While", "StatelessWhile"), ("T", 0, ("body", "cond"))),
    **dict.fromkeys(("If", "StatelessIf"), ("Tin", 1, ("then_branch", "else_branch"))),
    **dict.fromkeys(("Case", "StatelessCase"), ("Tin", 1, ("branches",))),
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall"), ("Tin", 0, ("f",))),
}
LOOPS = ("While", "StatelessWhile")
#: Hand a handle on, as it is.
PASSES = {"Identity", "Enter", "Switch"}
#: Hand a reference on -> what does so with a value.
REF_PASSES = {
    "RefIdentity": "Identity",
    "RefEnter": "Enter",
    "RefExit": "Exit",
    "RefSwitch": "Switch",
    "RefMerge": "Merge",
    "RefNextIteration": "NextIteration",
}
#: Read through a handle -> what does the same to a value, and the attribute that is the value's type there.
READS = {
    "ReadVariableOp": ("Identity", "T"),
    "ResourceGather": ("Gather", "Tparams"),
    "ResourceGatherNd": ("GatherNd", "Tparams"),
    "VariableShape": ("Shape", "T"),
}
#: Ask whether there is a value: of a constant there is one.
ASKS = {"IsVariableInitialized", "VarIsInitializedOp"}
#: Mean nothing to a constant.
NEEDLESS = {"DisableCopyOnRead", "DestroyResourceOp"}
ASSIGNS = {"Assign", "AssignVariableOp"}
RESTORES = {"RestoreV2", "Restore", "RestoreSlice"}
SAVES = {"SaveV2", "SaveSlices", "Save"}

_UPDATES = re.compile(r"(?:Resource)?(?:Sparse)?Apply[A-Z]\w*")
# Operations of variables that take a reference at their first input, and write.
_REF_WRITES = re.compile(
    r"Assign(?:Add|Sub)?|Scatter(?:Nd)?(?:Update|Add|Sub|Mul|Div|Min|Max)|(?:Sparse)?Apply[A-Z]\w*|StridedSliceAssign|CountUpTo"
)
# What takes its inputs as references, and is no operation of variables or writes its state beside.
_REF_OTHERS = {"RefSelect", "DestroyTemporaryVariable", "DebugGradientRefIdentity", "NegTrain", "SdcaShrinkL1"}


def is_update(op: str) -> bool:
    """Whether it is an optimizer's step of the variable that is its first input."""
    return _UPDATES.fullmatch(op) is not None


def in_update_of(node: str, variable: str) -> bool:
    """Whether a node stands in the scope that an optimizer opens for its step of a variable."""
    return f"/update_{variable}/" in f"/{node}/"


def takes_reference(op: str, position: int) -> bool:
    """Whether an operation takes that input as a reference, not as a value."""
    if op == "RefSwitch":
        return position == 0
    if op in REF_PASSES or op in _REF_OTHERS or op == "IsVariableInitialized":
        return True
    if is_update(op) and not op.startswith("Resource"):
        return position < _STATES.get(op.removeprefix("Sparse"), 1)
    return position == 0 and _REF_WRITES.fullmatch(op) is not None


# Optimizer's step -> how many of its inputs are references: the variable and its slots.
_STATES = {
    "ApplyAdadelta": 3,
    "ApplyAdagrad": 2,
    "ApplyAdagradDA": 3,
    "ApplyAdagradV2": 2,
    "ApplyAdam": 3,
    "ApplyAdaMax": 3,
    "ApplyAddSign": 2,
    "ApplyCenteredRMSProp": 4,
    "ApplyFtrl": 3,
    "ApplyFtrlV2": 3,
    "ApplyMomentum": 2,
    "ApplyPowerSign": 2,
    "ApplyProximalAdagrad": 2,
    "ApplyRMSProp": 3,
}
