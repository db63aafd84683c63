"""Files of PyTorch made by hand or by PyTorch itself, and their tensors as arrays."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.support import need
from weightport.formats.torch_file import TorchSource, open_source


def save(obj: Any, path: Path, *, legacy: bool = False, **options: Any) -> str:
    """``torch.save``; ``legacy`` is the format before 1.6."""
    torch = need("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(obj, path, _use_new_zipfile_serialization=not legacy, **options)
    return str(path)


def array(tensor: Any) -> np.ndarray:
    """A tensor's values, bit for bit, of any dtype that numpy or ml_dtypes has."""
    torch = need("torch")
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return np.frombuffer(raw, dtype).reshape(tuple(tensor.shape)).copy()


def opened(obj: Any, path: Path, **options: Any) -> TorchSource:
    return open_source(save(obj, path, **options))


def pickled(data: bytes, storages: Mapping[str, bytes] | None = None, **members: bytes) -> bytes:
    """An archive with that ``data.pkl`` and these storages."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in {**{f"data/{k}": v for k, v in (storages or {}).items()}, **members}.items():
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def repacked(path: str, out: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> str:
    """The archive with its members compressed otherwise, and some of them replaced."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.partition("/")[2], old.read(name)))
    return str(out)


#: The pickle of a float32 tensor: its storage ``key`` has ``numel`` elements.
def tensor_pickle(
    key: str = "0", numel: int = 4, *, offset: int = 0, shape: bytes = b"K\4\x85", stride: bytes = b"K\1\x85"
) -> bytes:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX" + len(key).to_bytes(4, "little") + key.encode()
    storage += b"X\3\0\0\0cpu" + b"J" + numel.to_bytes(4, "little", signed=True) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    offset_code = b"J" + offset.to_bytes(4, "little", signed=True)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset_code + shape + stride + b"\x89" + hooks + b"tR"
