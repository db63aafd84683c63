"""Real PyTorch modules: their weights to and from files, and what they give."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import weightport as wp
from tests.support import need

Arrays = Mapping[str, np.ndarray]


def save(path: Path, arrays: Arrays) -> str:
    """A ``.npz`` of these arrays."""
    np.savez(path, **arrays)
    return str(path)


def moved(
    folder: Path, source: str, target: Arrays, mapping: Any, out: str = "out.safetensors"
) -> dict[str, np.ndarray]:
    """What a transfer into a file with these tensors makes of them."""
    result = wp.transfer(source, save(folder / "target.npz", target), mapping, out=str(folder / out))
    assert set(result.plan.target.values()) <= {"moved"}
    if out.endswith(".npz"):
        with np.load(folder / out) as archive:
            return {n: archive[n] for n in archive.files}
    found: dict[str, np.ndarray] = need("safetensors.numpy").load_file(folder / out)
    return found


def module(kind: str, *args: Any, seed: int = 0, **kwargs: Any) -> Any:
    """``torch.nn.KIND``, its weights random (larger than PyTorch's own, so that faults show)."""
    torch = need("torch")
    made = getattr(torch.nn, kind)(*args, **kwargs)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.5)
    return made.eval()


def state(made: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The module's state dict as arrays."""
    return {f"{prefix}{n}": t.numpy().copy() for n, t in made.state_dict().items()}


def load(made: Any, arrays: Arrays, prefix: str = "") -> None:
    """Weights into the module: all of them, and no others."""
    torch = need("torch")
    made.load_state_dict({n.removeprefix(prefix): torch.from_numpy(a.copy()) for n, a in arrays.items()}, strict=True)


def run(made: Any, x: np.ndarray, initial: Any = None, lengths: Any = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs, batch first, and final states: ``h``, and ``c`` of an LSTM, ``[layers * directions, batch, units]``."""
    torch = need("torch")
    utils = torch.nn.utils.rnn
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        given = torch.from_numpy(np.ascontiguousarray(x))
        if lengths is not None:
            lengths = torch.from_numpy(np.asarray(lengths, np.int64))
            given = utils.pack_padded_sequence(given, lengths, batch_first=True, enforce_sorted=False)
        if initial is not None:
            tensors = [torch.from_numpy(np.ascontiguousarray(s)) for s in initial]
            initial = tuple(tensors) if len(tensors) > 1 else tensors[0]
        outputs, final = made(given, initial)
        if lengths is not None:
            outputs, _ = utils.pad_packed_sequence(outputs, batch_first=True, total_length=x.shape[1])
    states = final if isinstance(final, tuple) else (final,)
    return outputs.numpy(), [s.numpy() for s in states]
