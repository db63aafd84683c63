"""What a mapping does to a source and a target: pure, from headers only. A plan is the dry run.

Importing this package loads none of its modules: ``weightport`` has to import it at once (see there).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightport.plan.build import plan
    from weightport.plan.lookup import Lookup
    from weightport.plan.model import Item, Outcome, Plan, TargetView

__all__ = ["Item", "Lookup", "Outcome", "Plan", "TargetView", "plan"]

_HOMES = {
    "Item": "model",
    "Lookup": "lookup",
    "Outcome": "model",
    "Plan": "model",
    "TargetView": "model",
    "plan": "build",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"weightport.plan.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'weightport.plan' has no attribute {name!r}")
