"""What a module of PyTorch's records about the RNN that it is, in the words of :class:`~weightport.tensors.Source`.

Source: torch/nn/modules/rnn.py (``RNNBase.__init__``, ``RNNCellBase.__init__``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: torch's classes -> the kind of cell.
CLASSES = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "LSTMCell": "lstm", "GRUCell": "gru", "RNNCell": "rnn"}
#: A module's attribute -> the fact.
_ATTRIBUTES = {
    "hidden_size": "units", "num_layers": "num_layers", "bidirectional": "bidirectional", "proj_size": "proj_size",
    "bias": "use_bias", "batch_first": "batch_first",
}  # fmt: skip


def facts_of(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of an RNN.

    Args:
        name: its class; of any that is no RNN, nothing is known.
        attributes: its own, as far as they are recorded.

    Returns:
        ``class``, ``units``, ``num_layers``, ``bidirectional``, ``proj_size``, ``use_bias``, ``batch_first``, as
        recorded; ``activation``; of an LSTM and a GRU ``recurrent_activation``; of an LSTM ``forget_bias`` 0.0 (nothing
        is added at run time); of a GRU ``reset_after``.
    """
    mode = attributes.get("mode")
    kind = CLASSES.get(name) or (CLASSES.get(mode.partition("_")[0]) if isinstance(mode, str) else None)
    if kind is None:
        return {}
    facts: dict[str, Any] = {"class": name}
    facts |= {fact: attributes[key] for key, fact in _ATTRIBUTES.items() if key in attributes}
    if kind == "rnn":
        found = attributes.get("nonlinearity") or (mode.partition("_")[2].lower() if isinstance(mode, str) else "")
        if found in ("tanh", "relu"):
            facts["activation"] = found
        return facts
    facts |= {"activation": "tanh", "recurrent_activation": "sigmoid"}
    return {**facts, "forget_bias": 0.0} if kind == "lstm" else {**facts, "reset_after": True}
