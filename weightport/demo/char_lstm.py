"""The character LSTM in numpy, once for each packing of its weights.

Both are written from their own documents, not from one another: the scoped gates as the model was trained, Keras' fused
kernel as keras/src/layers/rnn/lstm.py (LSTMCell.call) computes it. So they agree only if the gates were moved right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from weightport.tensors import Array

VOCABULARY = " abcdefghijklmnopqrstuvwxyz"
PROMPT = "the people "
#: What the model wrote when it was trained, in TensorFlow 1.15.
WRITTEN = "the people shall not perish from the earthfour score er at an"

#: ``step(x, h, c) -> (logits, h, c)``: x is a one-hot row; all are of shape [1, size].
Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    y: Array = 1 / (1 + np.exp(-x))
    return y


def scoped_gates(weights: Mapping[str, Array]) -> Step:
    """One set of matrices per gate: ``LSTMcell/{gate}/{wx,wt,bi}``, ``softmax_w``, ``softmax_b``."""

    def gate(name: str, x: Array, h: Array) -> Array:
        scope = f"LSTMcell/{name}"
        y: Array = x @ weights[f"{scope}/wx"] + h @ weights[f"{scope}/wt"] + weights[f"{scope}/bi"]
        return y

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
        kept = sigmoid(gate("forget_gate", x, h)) * c
        c = kept + sigmoid(gate("input_gate", x, h)) * np.tanh(gate("memory_cell", x, h))
        h = sigmoid(gate("output_gate", x, h)) * np.tanh(c)
        return h @ weights["softmax_w"] + weights["softmax_b"], h, c

    return step


def keras(weights: Mapping[str, Array]) -> Step:
    """Keras' LSTM and Dense: ``lstm/{kernel,recurrent_kernel,bias}`` with the gates i, f, c, o side by side."""

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
        z = x @ weights["lstm/kernel"] + h @ weights["lstm/recurrent_kernel"] + weights["lstm/bias"]
        i, f, candidate, o = np.split(z, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(candidate)
        h = sigmoid(o) * np.tanh(c)
        return h @ weights["dense/kernel"] + weights["dense/bias"], h, c

    return step


def write(step: Step, units: int, length: int = len(WRITTEN), prompt: str = PROMPT) -> tuple[str, Array]:
    """The prompt and what the model writes after it, and the logits of every step, [steps, vocabulary]."""
    h = c = np.zeros((1, units), np.float32)
    one_hot = np.eye(len(VOCABULARY), dtype=np.float32)
    text, logits = prompt, []
    for at in range(length - 1):
        x = one_hot[[VOCABULARY.index(text[at])]]
        scores, h, c = step(x, h, c)
        logits.append(np.asarray(scores)[0])
        if at + 1 == len(text):
            text += VOCABULARY[int(np.argmax(scores))]
    return text, np.stack(logits)
