"""What the layers of Keras 3 call their variables, in the order in which they save them.

Promise: only what the layers' own sources say; where a layer's settings decide which variables it has, they are asked,
and the number of stored variables has to be right. Limit: Keras' own layers; of any other, nothing is known.

Sources: keras/src/layers of Keras 3.0 to 3.15: ``build`` of each layer, ``save_own_variables`` of layers/layer.py, and
``variable_serialization_spec`` of core/dense.py, einsum_dense.py, embedding.py and reversible_embedding.py (in older
releases the same order, in ``save_own_variables``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: A variable, the setting that it is there for (None: always; "!": where that is off), and whether it is by default.
Entry = tuple[str, str | None, bool]


def _always(*names: str) -> tuple[Entry, ...]:
    return tuple((name, None, True) for name in names)


_BIAS: Entry = ("bias", "use_bias", True)
_KERNEL = (*_always("kernel"), _BIAS)
_SEPARABLE = (*_always("depthwise_kernel", "pointwise_kernel"), _BIAS)
_CELL = (*_always("kernel", "recurrent_kernel"), _BIAS)
_NORM: tuple[Entry, ...] = (("gamma", "scale", True), ("beta", "center", True))
_RENORM = ("moving_stddev", "renorm_mean", "renorm_stddev")
_FLOAT8 = _always(
    "inputs_scale", "inputs_amax_history", "kernel_scale", "kernel_amax_history", "outputs_grad_scale",
    "outputs_grad_amax_history",
)  # fmt: skip

#: Class -> its variables. A mode of quantization stands behind the class: ``Dense int8``.
VARIABLES: dict[str, tuple[Entry, ...]] = {
    "Dense": _KERNEL,
    "EinsumDense": (*_always("kernel"), ("bias", "bias_axes", False)),
    "Embedding": _always("embeddings"),
    "ReversibleEmbedding": (*_always("embeddings"), ("reverse_embeddings", "!tie_weights", False)),
    **{f"Conv{n}D{kind}": _KERNEL for n in (1, 2, 3) for kind in ("", "Transpose")},
    **{f"DepthwiseConv{n}D": _KERNEL for n in (1, 2)},
    **{f"SeparableConv{n}D": _SEPARABLE for n in (1, 2)},
    "BatchNormalization": (
        *_NORM, *_always("moving_mean", "moving_variance"), *((name, "renorm", False) for name in _RENORM),
    ),
    "LayerNormalization": _NORM,
    "GroupNormalization": _NORM,
    "RMSNormalization": _always("scale"),
    "Normalization": _always("mean", "variance", "count"),
    "PReLU": _always("alpha"),
    "Attention": (("scale", "use_scale", False), ("concat_score_weight", "?concat", False)),
    "AdditiveAttention": (("scale", "use_scale", True),),
    **{f"{kind}Cell": _CELL for kind in ("LSTM", "GRU", "SimpleRNN", "ConvLSTM")},
    "Dense int8": (*_KERNEL, *_always("kernel_scale")),
    "Dense float8": (*_KERNEL, *_FLOAT8),
    "Embedding int8": _always("embeddings", "embeddings_scale"),
}  # fmt: skip
# Groups of these two may be missing where the quantization is not by groups of rows.
_ZERO, _GROUPS = ("kernel_zero", "?block_size", False), ("g_idx", "?block_size", False)
VARIABLES["Dense int4"] = (*_KERNEL, *_always("kernel_scale"), _ZERO, _GROUPS)
VARIABLES["Dense gptq"] = (_BIAS, *_always("quantized_kernel", "kernel_scale", "kernel_zero", "g_idx"))
VARIABLES["Dense awq"] = (
    _BIAS, *_always("quantized_kernel", "kernel_scale", "kernel_zero", "awq_scales", "g_idx"),
)  # fmt: skip
VARIABLES["Embedding int4"] = (
    *_always("embeddings", "embeddings_scale"), ("embeddings_zero", "?block_size", False), _GROUPS,
)  # fmt: skip
for _mode in ("int8", "int4", "float8", "gptq", "awq"):
    VARIABLES[f"EinsumDense {_mode}"] = tuple(
        ("bias", "bias_axes", False) if entry is _BIAS else entry for entry in VARIABLES[f"Dense {_mode}"]
    )

#: Layers with variables in parts of theirs only, beside those above: known by name, so that a name of theirs is one.
CONTAINERS = (
    "LSTM", "GRU", "SimpleRNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "RNN", "StackedRNNCells", "Bidirectional",
    "TimeDistributed", "MultiHeadAttention", "GroupedQueryAttention", "Functional", "Sequential",
)  # fmt: skip


def snake(name: str) -> str:
    """A class' name as Keras spells it in names (keras/src/utils/naming.py, ``to_snake_case``)."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


_CLASSES = {snake(name): name for name in (*VARIABLES, *CONTAINERS) if " " not in name}


def class_of(name: str) -> str:
    """The class of Keras that gives its layers such a name by itself (``dense_3``); empty if there is none."""
    return _CLASSES.get(name) or _CLASSES.get(re.sub(r"_\d{1,9}\Z", "", name), "")


def variables(kind: str, settings: Mapping[str, Any] | None, count: int, major: int = 3) -> tuple[str, ...] | None:
    """The names of a layer's stored variables, in their order; None where that cannot be said.

    Args:
        kind: the layer's class.
        settings: its configuration, or None if that is not known.
        count: how many variables are stored.
        major: the version of Keras.
    """
    if major < 3 and kind.startswith("DepthwiseConv"):
        return ("depthwise_kernel", "bias")[:count] if 0 < count < 3 else None
    mode = _mode_of(settings)
    entries = VARIABLES.get(f"{kind} {mode}" if mode else kind)
    if entries is None:
        return None
    if settings is None or any(setting and setting[0] == "?" for _, setting, _ in entries):
        return _by_count(entries, settings or {}, count)
    found = tuple(name for name, setting, default in entries if _is_on(settings, setting, default))
    return found if len(found) == count else None


def _is_on(settings: Mapping[str, Any], setting: str | None, default: bool) -> bool:
    if setting is None:
        return True
    negated = setting.startswith("!")
    value = settings.get(setting.lstrip("!"), default != negated)
    return bool(value) != negated


def _by_count(entries: tuple[Entry, ...], settings: Mapping[str, Any], count: int) -> tuple[str, ...] | None:
    """Of what the settings leave open: all, what is there by default, or none, by which of them has that count."""
    known = [e for e in entries if e[1] is None or e[1] not in settings or _is_on(settings, e[1], e[2])]
    choices = (
        known,
        [e for e in known if e[1] is None or e[1] in settings or e[2]],
        [e for e in known if e[1] is None or e[1] in settings],
    )
    fits = {tuple(name for name, _, _ in choice) for choice in choices if len(choice) == count}
    return fits.pop() if len(fits) == 1 else None


def _mode_of(settings: Mapping[str, Any] | None) -> str:
    """How a layer is quantized, by its dtype policy (``int8``, ``int4/128``: before the slash); empty if it is not."""
    policy = (settings or {}).get("dtype")
    config = policy.get("config") if isinstance(policy, Mapping) else None
    mode = config.get("mode") if isinstance(config, Mapping) else None
    return str(mode).partition("/")[0] if mode is not None else ""
