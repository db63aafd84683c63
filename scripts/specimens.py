"""The smallest file of each format that weightport reads: what the tests of damage and the fuzzers begin with.

Promise: they are files in ``tests/data/specimens``, so that which bits mean what does not change with a library's
version, and no framework is needed to damage them. ``make.py`` there made them, and says of what.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data" / "specimens"

#: Specimen -> the path in it that is opened, as ``FORMAT:PATH``.
OPENED = {
    "tf_v2": "tf-checkpoint:m",
    "tf_v2_sharded": "tf-checkpoint:m",
    "tf_v2_compressed": "tf-checkpoint:m",
    "tf_v2_partitioned": "tf-checkpoint:m",
    "tf_objects": "tf-checkpoint:m",
    "tf_v1": "tf-checkpoint-v1:m",
    "tf_v1_compressed": "tf-checkpoint-v1:m",
    "tf_v1_sharded": "tf-checkpoint-v1:m-?????-of-00002",
    "tf_frozen": "tf-frozen:m.pb",
    "tf_pbtxt": "tf-frozen:m.pbtxt",
    "tf_meta": "tf-meta:m.meta",
    "tf_saved_model": "tf-saved-model:.",
    "keras_h5": "keras-h5:m.h5",
    "hdf5_new": "hdf5:m.bin",
    "hdf5_chunked": "hdf5:m.bin",
    "keras_weights_h5": "keras-h5:m.weights.h5",
    "keras": "keras:m.keras",
    "keras_sharded": "keras-sharded:m.weights.json",
    "npz": "npz:m.npz",
    "npz_deflated": "npz:m.npz",
    "npy": "npy:m.npy",
    "safetensors": "safetensors:m.safetensors",
    "safetensors_index": "safetensors:m.safetensors.index.json",
    "torch_zip": "torch:m.pt",
    "torch_zip_own": "torch:m.pt",
    "torch_legacy": "torch:m.pt",
    "torch_export": "torch:m.pt2",
    "torch_script": "torch:m.pt",
    "torch_index": "torch:m.bin.index.json",
    "onnx": "onnx:m.onnx",
    "onnx_external": "onnx:m.onnx",
    "onnx_checksum": "onnx:m.onnx",
    "flax": "flax-msgpack:m.msgpack",
    "flax_index": "flax-msgpack:m.msgpack.index.json",
    "orbax": "orbax:m",
    "orbax_folders": "orbax:m",
    "gguf": "gguf:m.gguf",
    "tflite": "tflite:m.tflite",
}


@dataclass(frozen=True)
class Specimen:
    """A copy of a specimen, to damage."""

    name: str
    folder: Path

    @property
    def format(self) -> str:
        """The format's name, a key of ``detect.READERS``."""
        return OPENED[self.name].partition(":")[0]

    @property
    def path(self) -> str:
        """What is opened."""
        return str(self.folder / OPENED[self.name].partition(":")[2])

    @property
    def files(self) -> list[Path]:
        """Its files, sorted."""
        return sorted(file for file in self.folder.rglob("*") if file.is_file())


def copied(name: str, folder: Path) -> Specimen:
    """The specimen of that name, as a copy in a new folder below."""
    shutil.copytree(FOLDER / name, folder / name)
    return Specimen(name, folder / name)
