"""What a mapping does to a source and a target: pure, from headers only. A plan is the dry run."""

from __future__ import annotations

from weightport.plan.build import plan
from weightport.plan.lookup import Lookup
from weightport.plan.model import Item, Outcome, Plan, TargetView

__all__ = ["Item", "Lookup", "Outcome", "Plan", "TargetView", "plan"]
