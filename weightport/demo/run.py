"""The demo, step by step; what is printed of it is the command's business.

Promise: works on copies in a folder of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from weightport import api
from weightport.demo import char_lstm, live
from weightport.errors import Error, Problem
from weightport.opening import open as open_model
from weightport.tensors import Array

MODEL, MAPPING, OUT = "char_lstm.ckpt", "mapping.yaml", "keras.npz"
_FILES = ("char_lstm.ckpt.index", "char_lstm.ckpt.data-00000-of-00001", MAPPING)
#: Float32 rounds to about 1e-7 of each sum; a gate in the wrong place makes a difference of about 1.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Run:
    """What one model wrote.

    Attributes:
        text: the prompt and what follows.
        logits: of every step, [steps, vocabulary].
    """

    text: str
    logits: Array = field(repr=False)

    def difference(self, other: Run) -> float:
        """The greatest absolute difference of the logits."""
        return float(np.max(np.abs(self.logits - other.logits)))

    def agrees(self, other: Run) -> bool:
        """The same text, and the same logits but for rounding."""
        return self.text == other.text and self.difference(other) <= TOLERANCE


class Demo:
    """The demo's files in a folder, and what it does with them.

    Args:
        folder: where its files are put; it must not have files of these names.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.model, self.mapping, self.out = (os.path.join(folder, name) for name in (MODEL, MAPPING, OUT))
        data = resources.files("weightport.demo") / "data"
        os.makedirs(folder, exist_ok=True)
        for name in (*_FILES, OUT):
            if os.path.lexists(os.path.join(folder, name)):
                raise Error(Problem(os.path.join(folder, name), "exists already", "name another folder"))
        for name in _FILES:
            with open(os.path.join(folder, name), "xb") as file:
                file.write((data / name).read_bytes())
        self.units = 0

    def mapping_text(self) -> str:
        """The mapping."""
        with open(self.mapping, encoding="utf-8") as file:
            return file.read()

    def transfer(self) -> api.Result:
        """Move the weights into Keras' layout."""
        return api.transfer(self.model, None, self.mapping, out=self.out)

    def source(self) -> Run:
        """What the pretrained model writes."""
        weights = _weights(self.model)
        self.units = weights["softmax_w"].shape[0]
        return Run(*char_lstm.write(char_lstm.scoped_gates(weights), self.units))

    def moved(self) -> Run:
        """What the moved weights write."""
        return Run(*char_lstm.write(char_lstm.keras(_weights(self.out)), self.units))

    def live(self) -> tuple[Run, dict[str, Any]]:
        """What a live TensorFlow graph writes, whose variables were born with the weights; and what it is."""
        with open_model(self.model) as source:
            model = live.Live(source, self.mapping, self.units)
            try:
                run = Run(*char_lstm.write(model.step(), self.units))
            finally:
                model.close()
        return run, {"tensorflow": model.version, "variables": model.variables, "constants": model.constants}


def _weights(path: str) -> dict[str, Array]:
    with open_model(path) as source:
        return {name: source.read(name) for name in source.specs()}
