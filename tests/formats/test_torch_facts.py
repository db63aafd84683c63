"""What modules of PyTorch's say of themselves, as PyTorch's own modules have it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import need
from weightport.formats._torch_facts import CLASSES, facts_of

RNN = {"use_bias": True, "units": 3}
LAYERS = {**RNN, "num_layers": 2, "bidirectional": True, "batch_first": False, "proj_size": 0}
GATES = {"activation": "tanh", "recurrent_activation": "sigmoid"}


@pytest.mark.parametrize(
    ("name", "how", "facts"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}, {**LAYERS, **GATES, "forget_bias": 0.0}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 1}, {"proj_size": 1}),
        ("LSTM", {"bias": False, "batch_first": True}, {"use_bias": False, "batch_first": True, "num_layers": 1}),
        ("GRU", {"num_layers": 2, "bidirectional": True}, {**LAYERS, **GATES, "reset_after": True}),
        ("RNN", {"num_layers": 2, "bidirectional": True}, {**LAYERS, "activation": "tanh"}),
        ("RNN", {"nonlinearity": "relu"}, {"activation": "relu"}),
        ("LSTMCell", {}, {**RNN, **GATES, "forget_bias": 0.0}),
        ("GRUCell", {}, {**RNN, **GATES, "reset_after": True}),
        ("RNNCell", {}, {**RNN, "activation": "tanh"}),
        ("RNNCell", {"nonlinearity": "relu"}, {"activation": "relu"}),
    ],
)
def test_modules(name: str, how: dict[str, Any], facts: dict[str, Any]) -> None:
    torch = need("torch")
    found = facts_of(name, vars(getattr(torch.nn, name)(2, 3, **how)))
    assert found.pop("class") == name
    if "units" in facts:
        assert found == facts
    else:  # what the others say, too, and these
        assert {key: found[key] for key in facts} == facts
    assert set(CLASSES) == {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"}


@pytest.mark.parametrize(
    ("mode", "facts"),
    [
        ("LSTM", {**GATES, "forget_bias": 0.0}),
        ("GRU", {**GATES, "reset_after": True}),
        ("RNN_TANH", {"activation": "tanh"}),
        ("RNN_RELU", {"activation": "relu"}),
        ("RNN_OTHER", {}),
    ],
)
def test_a_class_of_ones_own_that_is_an_rnn(mode: str, facts: dict[str, Any]) -> None:
    found = facts_of("Mine", {"mode": mode, "hidden_size": 4, "other": 1})
    assert found == {"class": "Mine", "units": 4, **facts}


@pytest.mark.parametrize("attributes", [{}, {"mode": None}, {"mode": 3}, {"mode": "fan_in"}, {"hidden_size": 3}])
def test_what_is_no_rnn(attributes: dict[str, Any]) -> None:
    assert facts_of("Linear", attributes) == {}


@pytest.mark.parametrize("mode", [None, 7])
def test_an_rnn_of_unknown_activation(mode: Any) -> None:
    assert facts_of("RNN", {"mode": mode, "bias": True}) == {"class": "RNN", "use_bias": True}
