"""The cells of the fixture models, and real layers to move them into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import weightport as wp
from tests.support import Fixture, fixtures

FILES = (
    "checkpoint_v2",
    "checkpoint_v1",
    "checkpoint_object_based",
    "frozen",
    "frozen_text",
    "saved_model",
    "meta_graph",
    "keras_h5",
    "keras_weights_h5",
)
#: Graphs record the forget bias and the activations; of a checkpoint, the mapping has to say what is not the default.
RECORDED = ("frozen", "frozen_text", "saved_model", "meta_graph")
TF1_KINDS = {"lstm.tf1", "lstm.tf1-coupled", "gru.tf1", "rnn.tf1", "lstm.scoped-gates", "lstm.ifco"}


@dataclass(frozen=True)
class Case:
    """One file of a fixture, and the one cell in it."""

    model: Fixture
    file: str
    scope: str
    layout: str

    def __str__(self) -> str:
        return f"{self.model.name}-{self.file}"

    @property
    def path(self) -> str:
        return self.model.path(self.file)

    @property
    def doc(self) -> dict[str, Any]:
        return self.model.doc

    @property
    def kind(self) -> str:
        return self.layout.split(".")[0]

    def source(self, **more: Any) -> dict[str, Any]:
        """``from:`` of a rule, with what this file does not record and is not the layout's default."""
        stated = {"layout": self.layout, "scope": self.scope, **more}
        if self.file not in RECORDED and self.layout in TF1_KINDS:
            if self.doc.get("forget_bias") == 0.0 and "BasicLSTMCell" in self.doc["cell"]:
                stated["forget_bias"] = 0.0
            if self.doc.get("activation") == "relu":
                stated["activation"] = "relu"
        silent = ("checkpoint_v2", "checkpoint_object_based", "keras_weights_h5")
        if self.file in silent and self.doc.get("recurrent_activation") == "hard_sigmoid":
            stated["recurrent_activation"] = "hard_sigmoid"
        return stated


def cases(*names: str) -> list[Case]:
    """Every file of every fixture model that holds one RNN cell whose outputs are known."""
    found = []
    for model in fixtures():
        if names and model.name not in names:
            continue
        if "reference" not in model.doc or model.name.startswith("b_seq2seq"):
            continue
        for file in FILES:
            if file not in model.files:
                continue
            with wp.open(model.path(file)) as source:
                cells = source.cells()
            if len(cells) == 1:
                found.append(Case(model, file, cells[0].scope, cells[0].layout.name))
    return found


def left_behind(case: Case) -> list[str]:
    """Every other tensor of the file: a mapping has to say that they are left behind."""
    with wp.open(case.path) as source:
        cell = set(source.cells()[0].names)
        return [n for n, s in source.specs().items() if n not in cell and s.role != "constant"]


def mapping(case: Case, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"weightport": 1, "rules": rules, "ignore": [n.replace("{", "{{") for n in left_behind(case)]}


def reference(case: Case) -> Mapping[str, np.ndarray]:
    """The fixture's reference, batch first."""
    arrays = case.model.reference
    if not case.doc.get("time_major"):
        return arrays
    turned = {n: a.swapaxes(0, 1) for n, a in arrays.items() if a.ndim == 3}
    return {**arrays, **turned}
