"""The moved weights in a live TensorFlow variable scope: constants for the LSTM, initial values for the rest.

Promise: the model is built as any graph model is, by ``get_variable``; the custom getter alone makes the difference.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from weightport.demo.char_lstm import VOCABULARY, Step
from weightport.tensors import Source


def installed() -> bool:
    """Whether TensorFlow can be looked for; nothing is imported."""
    return importlib.util.find_spec("tensorflow") is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what TensorFlow's libraries write to file descriptor 2 about processors and drivers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        saved = os.dup(2)
    except OSError:  # closed: quiet already
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class Live:
    """A graph with the character LSTM in Keras' packing, born with the weights of another model.

    Attributes:
        version: TensorFlow's.
        variables: the names of its variables, which are all there is to train.
        constants: the names of what was asked for as a variable and became a constant.
    """

    def __init__(self, source: Source, mapping: str, units: int) -> None:
        with _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow as tf

            self._build(tf, source, mapping, units)
        self.version = str(tf.__version__)

    def _build(self, tf: Any, source: Source, mapping: str, units: int) -> None:
        from weightport.tensorflow import getter

        tf1 = tf.compat.v1
        size = len(VOCABULARY)
        graph = tf1.Graph()
        with graph.as_default():
            pretrained = getter(source, mapping)
            with tf1.variable_scope(tf1.get_variable_scope(), custom_getter=pretrained):
                with tf1.variable_scope("lstm"):
                    kernel = tf1.get_variable("kernel", [size, 4 * units])
                    recurrent = tf1.get_variable("recurrent_kernel", [units, 4 * units])
                    bias = tf1.get_variable("bias", [4 * units])
                with tf1.variable_scope("dense"):
                    dense = tf1.get_variable("kernel", [units, size])
                    dense_bias = tf1.get_variable("bias", [size])
            pretrained.check()
            self._x = tf1.placeholder(tf.float32, [1, size])
            self._h, self._c = (tf1.placeholder(tf.float32, [1, units]) for _ in range(2))
            i, f, candidate, o = tf.split(self._x @ kernel + self._h @ recurrent + bias, 4, axis=1)
            c = tf.sigmoid(f) * self._c + tf.sigmoid(i) * tf.tanh(candidate)
            h = tf.sigmoid(o) * tf.tanh(c)
            self._out = (h @ dense + dense_bias, h, c)
            self.variables = [v.op.name for v in tf1.global_variables()]
            names = {"lstm/kernel", "lstm/recurrent_kernel", "lstm/bias", "dense/kernel", "dense/bias"}
            self.constants = sorted(names - set(self.variables))
            self._session = tf1.Session(graph=graph)
            self._session.run(tf1.global_variables_initializer())

    def step(self) -> Step:
        """One step of the live model."""

        def step(x: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
            logits, h, c = self._session.run(self._out, {self._x: x, self._h: h, self._c: c})
            return logits, h, c

        return step

    def close(self) -> None:
        """End the session."""
        self._session.close()
