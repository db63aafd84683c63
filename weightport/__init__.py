"""weightport moves pretrained weights, RNN gates included, between model files and live models.

``open`` a model file, ``load_mapping``, ``plan`` what a mapping does, ``transfer`` the weights; ``tensorflow.getter``
for variable scopes of a TensorFlow graph. Importing this package imports numpy and nothing heavier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# The package of that name takes the name here when it is first imported: before the function does, not after.
from weightport import plan as _plan  # noqa: F401
from weightport.api import Result, load_mapping, lock, plan, transfer, verify
from weightport.errors import (
    BudgetExceeded,
    ConditionError,
    Error,
    FormatError,
    LayoutError,
    MappingError,
    MissingPackage,
    PlanError,
    RefusedError,
    TensorNotFound,
)
from weightport.opening import OpenSource, open
from weightport.tensors import Budget, TensorSpec

if TYPE_CHECKING:
    from weightport import tensorflow

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "BudgetExceeded",
    "ConditionError",
    "Error",
    "FormatError",
    "LayoutError",
    "MappingError",
    "MissingPackage",
    "OpenSource",
    "PlanError",
    "RefusedError",
    "Result",
    "TensorNotFound",
    "TensorSpec",
    "load_mapping",
    "lock",
    "open",
    "plan",
    "tensorflow",
    "transfer",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "tensorflow":
        import importlib

        return importlib.import_module("weightport.tensorflow")
    raise AttributeError(f"module 'weightport' has no attribute {name!r}")
