"""How each tool of the comparison saves and loads named arrays, the way its documentation does.

Limit: nothing is done with a library before :meth:`Tool.load_library`, which only imports it: the comparison forks.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


class Saver(Protocol):
    """Saves arrays at a path."""

    def __call__(self, path: Path, arrays: Arrays, /) -> object:
        """Save them, over what is there."""
        ...


class Loader(Protocol):
    """Loads all arrays of a path."""

    def __call__(self, path: Path, /) -> Arrays:
        """Load them, or raise whatever the library does."""
        ...


@dataclass(frozen=True)
class Tool:
    """One tool with one format.

    Attributes:
        module: what has to be installed.
        file: the name that is saved to.
        main: the file that the others hang on; mostly the same.
        specimen: what hostile files begin with (``specimens.py``).
        format: of those, as weightport calls it.
        hostile: the name of the specimen that is loaded.
        pure: whether what it does to files goes through Python.
    """

    module: str
    file: str
    main: str
    specimen: str
    format: str
    hostile: str
    save: Saver
    load: Loader
    pure: bool = False

    def is_there(self) -> bool:
        """Whether it is installed."""
        return importlib.util.find_spec(self.module) is not None

    def load_library(self) -> str:
        """Import it; its version."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(self.module)
        return str(found.__version__)

    def digest(self, path: Path) -> str:
        """What a mapping may pin; only weightport has it."""
        if self.module != "weightport":
            return ""
        from weightport.formats.files import digest

        return digest(path)


def _weightport_save(path: Path, arrays: Arrays) -> None:
    from weightport.formats.detect import writer_for
    from weightport.tensors import TensorSpec

    def tiles(name: str) -> Iterator[Array]:
        yield arrays[name]

    out, write = writer_for(str(path))
    write(out, {name: TensorSpec.of(a.dtype, a.shape) for name, a in arrays.items()}, tiles)


def _weightport_load(path: Path) -> Arrays:
    import weightport

    with weightport.open(path) as source:
        return {name: source.read(name) for name in source.specs()}


def _tensorflow_save(path: Path, arrays: Arrays) -> None:
    import tensorflow as tf

    tf.train.Checkpoint(**{name: tf.Variable(a) for name, a in arrays.items()}).write(str(path))


_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def _tensorflow_load(path: Path) -> Arrays:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path))
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith("_CHECKPOINTABLE")]
    return {name.removesuffix(_VALUE): np.asarray(reader.get_tensor(name)) for name in names}


def _safetensors_save(path: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def _safetensors_load(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _torch_save(path: Path, arrays: Arrays) -> None:
    import torch

    torch.save({name: torch.from_numpy(a) for name, a in arrays.items()}, path)


def _torch_load(path: Path) -> Arrays:
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}


def _h5py_save(path: Path, arrays: Arrays) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def _h5py_load(path: Path) -> Arrays:
    import h5py

    found: Arrays = {}
    with h5py.File(path, "r") as file:

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(visit)
    return found


def _numpy_save(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _numpy_load(path: Path) -> Arrays:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _onnx_save(path: Path, arrays: Arrays) -> None:
    import onnx

    tensors = [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)), path)


def _onnx_load(path: Path) -> Arrays:
    import onnx

    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def _ours(file: str, specimen: str, kind: str, hostile: str, main: str = "") -> Tool:
    return Tool(
        "weightport", file, main or file, specimen, kind, hostile, _weightport_save, _weightport_load, pure=True
    )


TOOLS = {
    "weightport, checkpoint": _ours("m.ckpt", "tf_v2", "tf-checkpoint", "m", "m.ckpt.index"),
    "TensorFlow": Tool(
        "tensorflow", "m.ckpt", "m.ckpt.index", "tf_v2", "tf-checkpoint", "m", _tensorflow_save, _tensorflow_load
    ),
    "weightport, .npz": _ours("m.npz", "npz", "npz", "m.npz"),
    "numpy": Tool("numpy", "m.npz", "m.npz", "npz", "npz", "m.npz", _numpy_save, _numpy_load, pure=True),
    "weightport, .pt": _ours("m.pt", "torch_zip", "torch", "m.pt"),
    "torch": Tool("torch", "m.pt", "m.pt", "torch_zip", "torch", "m.pt", _torch_save, _torch_load),
    "weightport, .safetensors": _ours("m.safetensors", "safetensors", "safetensors", "m.safetensors"),
    "safetensors": Tool(
        "safetensors", "m.safetensors", "m.safetensors", "safetensors", "safetensors", "m.safetensors",
        _safetensors_save, _safetensors_load,
    ),
    "weightport, .h5": _ours("m.h5", "hdf5_chunked", "hdf5", "m.bin"),
    "h5py": Tool("h5py", "m.h5", "m.h5", "hdf5_chunked", "hdf5", "m.bin", _h5py_save, _h5py_load),
    "onnx": Tool("onnx", "m.onnx", "m.onnx", "onnx", "onnx", "m.onnx", _onnx_save, _onnx_load, pure=True),
}  # fmt: skip
