"""A stored cell in its own framework: its tensors, as they are stored, given to the framework's real cell.

Promise: a cell that no installed framework runs is run by the reference steps, and that is said. Limit: one layer in
one direction at a time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightport.layouts.behaviour import Behaviour
from weightport.layouts.reference import ReferenceCell
from weightport.layouts.units import FORWARD, Stored, Unit, dims_of, spelled
from weightport.targets.live_cells import Runner, runner
from weightport.tensors import Array, Source


@dataclass(slots=True)
class LiveCell:
    """A unit of a file.

    Attributes:
        by: what runs it, known once it has run.
        note: why it is not its own framework, if it is not.
    """

    unit: Unit
    source: Source
    does: Behaviour
    reference: ReferenceCell
    by: str = "numpy"
    note: str = ""
    _runner: Runner | None = None
    _tensors: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        found = runner(self.unit.layout.name)
        if found is None:
            self.note = f"no framework that is installed runs {self.unit.layout.name}: run by the reference steps"
            return
        self._runner, self.by = found
        self._tensors = {self._name(stored): self._read(stored) for stored in self.unit.tensors}

    def run(self, x: Array, h: Array, c: Array) -> Array:
        """Outputs ``[time, batch, hidden]`` for inputs ``[time, batch, input]`` and initial states."""
        if self._runner is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that a cell is deprecated is why its weights move
                    return self._runner(self._tensors, self._options(), x, h, c)
            except Exception as error:  # whatever a framework says of a cell that it cannot be
                self._runner = None
                self.note = f"{self.by} cannot run it ({type(error).__name__}: {error}): run by the reference steps"
                self.by = "numpy"
        return np.stack([out for out, _ in self.reference.run(x, h, c)])

    def _name(self, stored: Stored) -> str:
        return spelled(self.unit.layout, stored.row.template, stored.gate, 0, FORWARD)

    def _read(self, stored: Stored) -> Array:
        """The tensor; of one that holds several layers or directions, the unit's own."""
        index = tuple(
            slice(self.unit.index[group[0]], self.unit.index[group[0]] + 1)
            if len(group) == 1 and group[0] in self.unit.index and group[0] in self.unit.sizes
            else slice(None)
            for group in dims_of(stored.row.packing.terms[0])
        )
        return self.source.read(stored.name, index)

    def _options(self) -> dict[str, Any]:
        return {key: getattr(self.does, key).value for key in Behaviour.__slots__}
